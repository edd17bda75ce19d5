"""ONNX Runtime as the engine: against ONNX Runtime called by hand, the training libraries, and files that are wrong."""

import builtins
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC

import kernels
from kernels import ModelError
from kernels.__main__ import main
from kernels.onnxruntime_engine import OnnxRuntimeModel, read
from tests import serving
from tests.kernels.onnx_models import classifier, info, model

onnxruntime = pytest.importorskip("onnxruntime")
skl2onnx = pytest.importorskip("skl2onnx")
from skl2onnx.common.data_types import FloatTensorType, StringTensorType  # noqa: E402

FLOAT, DOUBLE, INT64, STRING = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64,
                                onnx.TensorProto.STRING)
RNG = np.random.default_rng(5)


def saved(built: onnx.ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(built.SerializeToString())
    return folder / "m.onnx"


def loaded(built: onnx.ModelProto, folder: Path) -> OnnxRuntimeModel:
    return kernels.load(saved(built, folder), engine="onnxruntime")


def by_hand(path: Path, feeds: dict) -> list:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def node(op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, domain=domain, **attributes)


# ---- models that give what ONNX Runtime gives ------------------------------------------------------------------

ESTIMATORS = {
    "naive Bayes": lambda: (GaussianNB(), load_iris(return_X_y=True)),
    "logistic, strings": lambda: (LogisticRegression(max_iter=5000), strings()),
    "forest, strings": lambda: (RandomForestClassifier(5, max_depth=4), strings()),
    "forest": lambda: (RandomForestClassifier(5, max_depth=4), load_iris(return_X_y=True)),
    "mlp": lambda: (make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=30)), load_digits(return_X_y=True)),
    "mlp of two classes": lambda: (make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=300)), strings()),
    "neighbours": lambda: (KNeighborsClassifier(3), load_iris(return_X_y=True)),
    "svm": lambda: (SVC(), load_iris(return_X_y=True)),
}


def strings() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return data.data[:, :8], data.target_names[data.target]


@pytest.mark.parametrize("zipmap", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:Attribute .prob:FutureWarning")
def test_classifiers(tmp_path, name, zipmap):
    estimator, (X, y) = ESTIMATORS[name]()
    X = X.astype(np.float32)
    estimator.fit(X, y)
    path = saved(skl2onnx.to_onnx(estimator, X[:1], options={"zipmap": zipmap}), tmp_path)
    found = kernels.load(path, engine="onnxruntime", threads=2)
    assert found.kernel == "onnxruntime" and found.native() is None and found.kind == "tabular"
    assert found.signature.classes == tuple(estimator.classes_.tolist())
    assert (found.n_classes, found.n_outputs, found.n_features) == (len(estimator.classes_), 1, X.shape[1])
    labels, scores = by_hand(path, {"X": X})
    assert found.predict(X).tolist() == labels.tolist()
    if zipmap:
        scores = [[row[label] for label in found.signature.classes] for row in scores]
    assert np.array_equal(found.predict_proba(X), np.array(scores, np.float64))
    assert np.mean(found.predict(X) == estimator.predict(X)) > 0.99
    assert found.predict(X[0][None].astype(np.float64)).tolist() == labels[:1].tolist()


def test_regression_of_one_and_several_numbers(tmp_path):
    X, y = load_diabetes(return_X_y=True)
    for targets in (y, np.column_stack([y, -y])):
        estimator = LinearRegression().fit(X, targets)
        path = saved(skl2onnx.to_onnx(estimator, X[:1]), tmp_path)
        found = kernels.load(path, engine="onnxruntime")
        assert found.predict(X).shape == targets.shape and found.n_classes == 0 and found.signature.classes is None
        np.testing.assert_allclose(found.predict(X), estimator.predict(X), rtol=1e-12)
        with pytest.raises(ModelError, match="no probabilities"):
            found.predict_proba(X)


def test_no_rows_and_more_rows_than_one_call_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("kernels.onnxruntime_engine.CHUNK_ROWS", 7)
    found = loaded(classifier(), tmp_path)
    X = RNG.normal(size=(30, 3))
    assert found.predict(X[:0]).shape == (0,) and found.predict_proba(X[:0]).shape == (0, 2)
    monkeypatch.undo()
    assert np.array_equal(loaded(classifier(), tmp_path).predict_proba(X), found.predict_proba(X))


def erf() -> onnx.ModelProto:
    """An operator that our own kernels lack; metadata."""
    built = model([node("Erf", ["x"], ["e"]), node("ReduceSum", ["e", "axes"], ["y"])], [info("x", FLOAT, ["n", 3])],
                  [info("y", FLOAT, ["n", 1])], {"axes": np.array([1])}, opset=17, model_version=7)
    helper.set_model_props(built, {"feature_names": '["a", "b", "c"]', "name": "erf"})
    return built


def test_operator_that_our_own_engine_refuses(tmp_path):
    path = saved(erf(), tmp_path)
    with pytest.raises(ModelError, match="operator Erf .*--engine onnxruntime"):
        kernels.load(path)
    found = kernels.load(path, engine="onnxruntime")
    assert (found.name, found.version, found.signature.feature_names) == ("erf", "7", ("a", "b", "c"))
    X = RNG.normal(size=(50, 3))
    assert np.array_equal(found.predict(X), by_hand(path, {"x": X.astype(np.float32)})[0][:, 0].astype(np.float64))
    assert found.size_bytes == path.stat().st_size and found.path == path


def one_type(data_type: int) -> onnx.ModelProto:
    return model([node("Cast", ["x"], ["d"], to=DOUBLE), node("ReduceSum", ["d", "axes"], ["y"])],
                 [info("x", data_type, ["n", 2])], [info("y", DOUBLE, ["n", 1])], {"axes": np.array([1])}, opset=17)


@pytest.mark.parametrize("name, rows, expected", [
    ("DOUBLE", [[1e300, 2.5]], 1e300), ("FLOAT", [[0.1, 0]], np.float64(np.float32(0.1))),
    ("INT64", [[2.0 ** 62, -3]], 2.0 ** 62), ("INT32", [[-2.0 ** 31, 5]], 5 - 2.0 ** 31), ("UINT8", [[255, 0]], 255),
    ("BOOL", [[3, 0]], 1)])
def test_types_of_numbers(tmp_path, name, rows, expected):
    assert loaded(one_type(onnx.TensorProto.DataType.Value(name)), tmp_path).predict(rows).tolist() == [expected]


@pytest.mark.parametrize("name, value", [("INT64", 2.0 ** 63), ("INT32", 2.0 ** 31), ("UINT8", -1), ("UINT8", 256),
                                         ("INT64", np.nan), ("INT64", np.inf), ("BOOL", np.nan)])
def test_numbers_that_a_type_does_not_hold(tmp_path, name, value):
    found = loaded(one_type(onnx.TensorProto.DataType.Value(name)), tmp_path)
    with pytest.raises(ModelError, match="row 1, feature 0"):
        found.predict([[0, 0], [value, 0]])
    assert not found.takes_missing


@pytest.mark.parametrize("name, value", [("FLOAT", 1e300), ("FLOAT", np.nan), ("DOUBLE", np.inf)])
def test_score_that_is_not_finite_is_refused(tmp_path, name, value):
    with pytest.raises(ModelError, match="expected finite numbers|too large"):
        loaded(one_type(onnx.TensorProto.DataType.Value(name)), tmp_path).predict([[0, 0], [value, 0]])


def test_missing_values_are_taken_where_they_have_a_score(tmp_path):
    built = model([node("IsNaN", ["x"], ["n"]), node("Where", ["n", "fill", "x"], ["a"]),
                   node("Add", ["a", "z"], ["y"])],
                  [info("x", FLOAT, ["n", 1]), info("z", FLOAT, ["n", 1])], [info("y", FLOAT, ["n", 1])],
                  {"fill": np.float32([5])}, opset=17)
    found = loaded(built, tmp_path)
    assert found.takes_missing_in.tolist() == [True, False] and found.signature.feature_names == ("x", "z")
    assert found.predict([[np.nan, 1], [2, 3]]).tolist() == [6, 5]
    with pytest.raises(ModelError, match="row 1, feature 1"):
        found.predict([[2, 3], [1, np.nan]])


def test_model_of_one_row_gets_row_after_row(tmp_path):
    built = model([node("MatMul", ["x", "w"], ["y"])], [info("x", FLOAT, [1, 3])], [info("y", FLOAT, [1, 2])],
                  {"w": RNG.normal(size=(3, 2)).astype(np.float32)}, opset=17)
    found, X = loaded(built, tmp_path), RNG.normal(size=(9, 3)).astype(np.float32)
    np.testing.assert_allclose(found.predict(X), X @ numpy_helper.to_array(built.graph.initializer[0]), rtol=1e-6)


def test_labels_of_any_origin(tmp_path):
    """ArgMax alone; a table of strings; a LabelEncoder after it."""
    scores = [node("MatMul", ["x", "w"], ["s"]), node("ArgMax", ["s"], ["i"], axis=1, keepdims=0)]
    w = RNG.normal(size=(3, 3)).astype(np.float32)
    tails = {
        (0, 1, 2): (INT64, [node("Identity", ["i"], ["label"])]),
        ("a", "b", "c"): (STRING, [node("Gather", ["names", "i"], ["label"])]),
        ("x", "z", "other"): (STRING, [node("LabelEncoder", ["i"], ["label"], "ai.onnx.ml", keys_int64s=[1, 0],
                                            values_strings=["z", "x"], default_string="other")]),
    }
    X = RNG.normal(size=(40, 3)).astype(np.float32)
    best = (X @ w).argmax(axis=1)
    for classes, (data_type, tail) in tails.items():
        constants = {"w": w} | ({"names": np.array(["a", "b", "c"], object)} if "a" in classes else {})
        built = model([*scores, *tail], [info("x", FLOAT, ["n", 3])],
                      [info("label", data_type, ["n"]), info("s", FLOAT, ["n", 3])], constants, opset=17)
        found = loaded(built, tmp_path)
        assert found.signature.classes == classes
        assert found.predict(X).tolist() == [classes[i] for i in best]


def test_clusters_have_their_numbers_as_classes(tmp_path):
    X = load_iris().data.astype(np.float32)
    estimator = KMeans(3, n_init=1, random_state=0).fit(X)
    found = loaded(skl2onnx.to_onnx(estimator, X[:1]), tmp_path)
    assert found.signature.classes == (0, 1, 2) and found.predict(X).tolist() == estimator.predict(X).tolist()


# ---- strings ---------------------------------------------------------------------------------------------------

def rows_of_strings(n: int = 60) -> np.ndarray:
    return np.array([[RNG.normal(), RNG.choice(list("abc")), RNG.normal(), RNG.choice(list("xyz"))]
                     for _ in range(n)], object)


@pytest.mark.parametrize("encoder, zeros", [(OneHotEncoder(sparse_output=False), False),
                                            (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), True),
                                            (OrdinalEncoder(), True)], ids=["strict", "ignore", "ordinal"])
def test_pipeline_with_strings(tmp_path, encoder, zeros):
    X = rows_of_strings()
    estimator = make_pipeline(ColumnTransformer([("c", encoder, [3, 1]), ("n", StandardScaler(), [0, 2])]),
                              GaussianNB()).fit(X, RNG.choice(["no", "yes"], len(X)))
    types = [(name, (StringTensorType if name[0] == "c" else FloatTensorType)([None, 1])) for name in
             ("n", "c1", "m", "c2")]
    path = saved(skl2onnx.to_onnx(estimator, initial_types=types, options={"zipmap": False}), tmp_path)
    found = kernels.load(path, engine="onnxruntime")
    assert found.signature.feature_names == ("n", "c1", "m", "c2") and found.signature.unknown == -1
    assert found.signature.categories == (None, ("a", "b", "c"), None, ("x", "y", "z"))
    labels, scores = by_hand(path, {name: X[:, i:i + 1].astype(object if name[0] == "c" else np.float32)
                                    for i, name in enumerate(found.signature.feature_names)})
    assert found.predict(X).tolist() == labels.tolist()
    assert np.array_equal(found.predict_proba(X), scores.astype(np.float64))
    unknown = np.array([[0.5, "?", 1.5, "never"]], object)
    if zeros:
        expected = by_hand(path, {"n": [[np.float32(0.5)]], "m": [[np.float32(1.5)]],
                                  "c1": np.array([["p"]], object), "c2": np.array([["q"]], object)})
        assert found.predict_proba(unknown).tolist() == expected[1].tolist()
    else:
        with pytest.raises(ModelError, match="ONNX Runtime cannot compute these rows: .*Unknown"):
            found.predict(unknown)
    with pytest.raises(ModelError, match="missing values of feature 1"):
        found.predict(np.array([[0.5, None, 1.5, "x"]], object))


@pytest.mark.parametrize("encoder", [OneHotEncoder(sparse_output=False), OrdinalEncoder()], ids=["hot", "ordinal"])
def test_columns_of_one_input_of_strings_have_their_own(tmp_path, encoder):
    X = rows_of_strings()[:, [1, 3]]
    estimator = make_pipeline(encoder, GaussianNB()).fit(X, RNG.integers(2, size=len(X)))
    path = saved(skl2onnx.to_onnx(estimator, initial_types=[("s", StringTensorType([None, 2]))],
                                  options={"zipmap": False}), tmp_path)
    found = kernels.load(path, engine="onnxruntime")
    assert found.signature.categories == (("a", "b", "c"), ("x", "y", "z"))
    assert found.predict(X).tolist() == by_hand(path, {"s": X})[0].tolist()


def strings_through(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None, opset: int = 20,
                    n_inputs: int = 1) -> onnx.ModelProto:
    """A model of inputs s0, s1 … of a string each, and of y that is made from them."""
    return model(list(nodes), [info(f"s{i}", STRING, ["n", 1]) for i in range(n_inputs)], [info("y", FLOAT, ["n", 1])],
                 constants, opset=opset)


def test_string_that_is_compared_with_a_constant(tmp_path):
    built = strings_through(node("Equal", ["s0", "red"], ["b"]), node("Cast", ["b"], ["y"], to=FLOAT),
                            constants={"red": np.array(["red"], object)})
    found = loaded(built, tmp_path)
    assert found.signature.categories == (("red",),)
    assert found.predict(np.array([["red"], ["blue"], [""]], object)).tolist() == [1, 0, 0]
    assert found.predict(np.array([[0.0], [1.0], [0.5], [-1.0], [1e300]])).tolist() == [1, 0, 0, 0, 0]


ENCODED = {"keys_strings": ["a"], "values_floats": [1.0], "default_float": 0.0}


@pytest.mark.parametrize("built, expected", [
    (strings_through(node("Reshape", ["s0", "shape"], ["t"]), node("RegexFullMatch", ["t"], ["b"], pattern="a+"),
                     node("Cast", ["b"], ["y"], to=FLOAT), constants={"shape": np.array([-1, 1])}),
     "operator RegexFullMatch"),
    (strings_through(node("Identity", ["s0"], ["t"]), node("Cast", ["t"], ["y"], to=FLOAT)), "operator Cast"),
    (strings_through(node("StringConcat", ["s0", "s1"], ["t"]),
                     node("LabelEncoder", ["t"], ["y"], "ai.onnx.ml", **ENCODED), n_inputs=2), "operator StringConcat"),
    (strings_through(node("Equal", ["s0", "s1"], ["b"]), node("Cast", ["b"], ["y"], to=FLOAT), n_inputs=2),
     "compared with constants"),
])
def test_string_that_is_not_compared_as_a_whole_is_refused(tmp_path, built, expected):
    """A row holds the place of a string that the model knows: of any other one nothing would be left."""
    with pytest.raises(ModelError, match=expected):
        loaded(built, tmp_path)


# ---- what is refused -------------------------------------------------------------------------------------------

def test_other_engine_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="testigo, onnxruntime for the engine, found 'tensorrt'"):
        kernels.load(saved(erf(), tmp_path), engine="tensorrt")


@pytest.mark.parametrize("first, name", [(b"GGUF", "GGUF"), (b"\x80\x05x", "a pickle"), (b"tree\n", "LightGBM"),
                                         (b'{"learner": {}}', "XGBoost's JSON"), (b"{L\0\0", "XGBoost's UBJSON")])
def test_other_formats_are_refused_by_name(tmp_path, first, name):
    (tmp_path / "m").write_bytes(first)
    with pytest.raises(ModelError, match=f"m: expected an ONNX file for the engine onnxruntime, found {name}"):
        kernels.load(tmp_path / "m", engine="onnxruntime")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package_is_named_with_the_way_to_it(tmp_path, monkeypatch, package):
    path, real = saved(erf(), tmp_path), builtins.__import__

    def refuse(name: str, *arguments):
        if name == package:
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModelError, match=rf"pip install 'testigo\[{package}\]'"):
        kernels.load(path, engine="onnxruntime")


def with_outputs(*outputs: onnx.ValueInfoProto, nodes: list | None = None) -> onnx.ModelProto:
    made = nodes or [node("Erf", ["x"], ["y"]), node("Neg", ["x"], ["z"])]
    return model(made, [info("x", FLOAT, ["n", 3])], list(outputs), {"all": np.ones(3, bool)}, opset=17)


def of_input(data_type: int, shape: list | None) -> onnx.ModelProto:
    return model([node("Identity", ["x"], ["y"])], [info("x", data_type, shape)], [info("y", data_type)], opset=17)


REFUSED = {
    "two outputs of numbers": (with_outputs(info("y", FLOAT), info("z", FLOAT)), "found 2 outputs"),
    "labels that nothing lists": (with_outputs(info("y", INT64), nodes=[node("Cast", ["x"], ["y"], to=INT64)]),
                                  "known classes"),
    "another number of rows": (with_outputs(info("y", FLOAT), nodes=[node("Transpose", ["x"], ["y"])]), "1 rows"),
    "ranks": (of_input(FLOAT, []), "first dimension"),
    "features of no known number": (of_input(FLOAT, ["n", "m"]), "fixed number of features"),
    "too many features": (of_input(FLOAT, ["n", 1 << 40]), "features in a file of this size"),
    "float16": (of_input(onnx.TensorProto.FLOAT16, ["n", 2]), "expected a tensor of"),
    "operator that nobody has": (with_outputs(info("y", FLOAT), nodes=[node("Nonsense", ["x"], ["y"])]),
                                 "ONNX Runtime refuses the model"),
    "classes that only the file says": (
        with_outputs(info("i", INT64), info("s", FLOAT, ["n", 1 << 40]),
                     nodes=[node("Compress", ["x", "all"], ["s"], axis=1), node("ArgMax", ["s"], ["i"], axis=1)]),
        "known classes"),
    "more classes than scores": (
        with_outputs(info("i", INT64), info("s", FLOAT, ["n", 4]),
                     nodes=[node("Compress", ["x", "all"], ["s"], axis=1), node("ArgMax", ["s"], ["i"], axis=1)]),
        "expected 4 probabilities, found 3"),
    "cycle": (with_outputs(info("y", FLOAT), nodes=[node("Add", ["x", "y"], ["z"]), node("Neg", ["z"], ["y"])]),
              "ONNX Runtime refuses the model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unfit_models_are_refused(tmp_path, name, capfd):
    built, expected = REFUSED[name]
    with pytest.raises(ModelError, match=f"(?s)m.onnx: .*{expected}"):
        loaded(built, tmp_path)
    assert capfd.readouterr().err == "", "ONNX Runtime prints nothing"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_give_one_error(tmp_path, seed):
    random = np.random.default_rng(seed)
    whole = classifier().SerializeToString()
    for _ in range(40):
        data = bytearray(whole)
        for at in random.integers(len(data), size=random.integers(1, 4)):
            data[at] = random.integers(256)
        (tmp_path / "m.onnx").write_bytes(data[:random.integers(1, len(data) + 1)] if random.random() < 0.3 else data)
        try:
            found = read(tmp_path / "m.onnx")
            found.predict(np.ones((3, found.n_features)))
        except ModelError as error:
            assert "m.onnx: " in str(error) or "rows" in str(error) or "finite" in str(error) or "score" in str(error)


def test_metadata_that_is_no_list_of_names(tmp_path):
    built = erf()
    built.metadata_props[0].value = "{"
    with pytest.raises(ModelError, match="JSON list of strings"):
        loaded(built, tmp_path)


def external(location: str, nested: bool = False) -> onnx.ModelProto:
    """Weights in a file at that location; in a branch of an If where nested."""
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3, 1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    product = node("MatMul", ["x", "w"], ["y"])
    if not nested:
        built = model([product], [info("x", FLOAT, ["n", 3])], [info("y", FLOAT, ["n", 1])], opset=17)
        built.graph.initializer.append(tensor)
        return built
    branch = helper.make_graph([product], "branch", [], [info("y", FLOAT, ["n", 1])])
    branch.initializer.append(tensor)
    return model([node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)], [info("x", FLOAT, ["n", 3])],
                 [info("y", FLOAT, ["n", 1])], {"yes": np.array(True)}, opset=17)


def test_external_data_beside_the_model(tmp_path):
    weights = RNG.normal(size=(3, 1)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    found, X = loaded(external("w.bin"), tmp_path), RNG.normal(size=(9, 3)).astype(np.float32)
    np.testing.assert_allclose(found.predict(X), (X @ weights)[:, 0], rtol=1e-6)
    assert found.size_bytes == (tmp_path / "m.onnx").stat().st_size + 12


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("location", ["../secret.bin", "link.bin", "{folder}/secret.bin", "short.bin", "none.bin"])
def test_external_data_elsewhere_is_refused_before_it_is_opened(tmp_path, location, nested):
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    folder = tmp_path / "models"
    folder.mkdir()
    os.symlink("../secret.bin", folder / "link.bin")
    (folder / "short.bin").write_bytes(bytes(4))
    with pytest.raises(ModelError, match="m.onnx: .*external data"):
        loaded(external(location.format(folder=tmp_path), nested), folder)


def test_what_needs_our_own_kernels_refuses_it(tmp_path):
    with pytest.raises(ModelError, match="ONNX Runtime computes this one"):
        kernels.save(loaded(erf(), tmp_path), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


# ---- served ----------------------------------------------------------------------------------------------------

def test_server_serves_what_our_own_engine_refuses(tmp_path):
    X = rows_of_strings()
    encoder = ColumnTransformer([("c", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), [1, 3]),
                                 ("n", StandardScaler(), [0, 2])])
    estimator = make_pipeline(encoder, GaussianNB()).fit(X, RNG.choice(["no", "yes"], len(X)))
    types = [(name, (StringTensorType if name[0] == "c" else FloatTensorType)([None, 1])) for name in
             ("n", "c1", "m", "c2")]
    path = saved(skl2onnx.to_onnx(estimator, initial_types=types), tmp_path)
    refused = serving.run(path, "--port", "0")
    assert refused.returncode == 3 and "--engine onnxruntime" in refused.stderr
    with serving.start("--engine", "onnxruntime", path) as server:
        told = server.ask(serving.request("GET", "/v1/models/m")).json()
        answer = server.ask(serving.predict_request(X[:20].tolist(), parameters={"return_probabilities": True})).json()
        named = server.ask(serving.predict_request([dict(zip(["n", "c1", "m", "c2"], X[0], strict=True))])).json()
        missing = server.ask(serving.predict_request([[1, "a", 2, None]]))
    assert told["model_type"] == "onnx" and told["classes"] == ["no", "yes"]
    assert told["features"][1]["categories"] == ["a", "b", "c"]
    found = kernels.load(path, engine="onnxruntime")
    assert answer["predictions"] == found.predict(X[:20]).tolist()
    assert answer["probabilities"] == found.predict_proba(X[:20]).tolist()
    assert named["predictions"] == answer["predictions"][:1]
    assert missing.status == 400 and missing.code == "missing_value"


def test_quantize_and_others_of_the_command_line_name_the_engine(tmp_path, capsys):
    assert main(["warm", str(saved(erf(), tmp_path))]) == 1
    assert "--engine onnxruntime" in capsys.readouterr().err
