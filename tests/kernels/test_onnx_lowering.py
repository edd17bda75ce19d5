"""Lowered ONNX graphs against the numpy executor, ONNX Runtime and the libraries that trained them."""

import functools
import itertools
import json
import tracemalloc
import warnings

import lightgbm
import numpy as np
import onnx
import onnxmltools
import onnxruntime
import pytest
import skl2onnx
import xgboost
from onnx import helper
from onnxmltools.convert.common import data_types as onnxmltools_types
from skl2onnx.common import data_types
from sklearn import (base, calibration, compose, decomposition, ensemble, feature_selection, impute, linear_model,
                     neural_network, pipeline, preprocessing, svm, tree)

from kernels import onnx_graph, onnx_lowering
from kernels.errors import ModelError
from kernels.onnx_lowering import NotTabular, lower
from kernels.tabular import TabularModel
from tests.kernels import test_onnx_ml_ops as generated
from tests.kernels.onnx_models import classifier, info, mlp, model

FLOAT, DOUBLE, INT64, STRING, BOOL = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64,
                                      onnx.TensorProto.STRING, onnx.TensorProto.BOOL)
DTYPES = {FLOAT: np.float32, DOUBLE: np.float64, INT64: np.int64, STRING: object, BOOL: np.bool_}
RNG = np.random.default_rng(7)
ROWS = np.concatenate([RNG.normal(size=(70, 6)), [[0, -0.0, 1, -1, 0.5, 2], [3, 3, 3, 3, 3, 3]]]).astype(np.float32)


def pair(graph_model: onnx.ModelProto) -> tuple[TabularModel, TabularModel]:
    """The native model and its numpy twin."""
    lowered = lower(onnx_graph.from_model(graph_model, None))
    native, plain = (TabularModel("m", "1", lowered.model_type, lowered.signature, lowered.program, native=one,
                                  takes_missing_in=lowered.takes_missing_in)
                     for one in (True, False))
    return native, plain


def same_bits(models: tuple[TabularModel, ...], rows: np.ndarray) -> np.ndarray:
    """Predictions, which both ways of running give to the bit; probabilities too."""
    found = [one.predict(rows) for one in models]
    assert found[0].tolist() == found[1].tolist()
    if models[0].n_classes:
        assert np.array_equal(*[one.predict_proba(rows) for one in models], equal_nan=True)
    return found[0]


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes) -> onnx.NodeProto:
    domain = "ai.onnx.ml" if op_type in onnx_lowering.LOWER["ai.onnx.ml"] else ""
    return helper.make_node(op_type, inputs, outputs, domain=domain, **attributes)


def chain(*steps: tuple) -> list[onnx.NodeProto]:
    """Nodes from (op_type, other inputs …, attributes): each one's first input is the output before, x at first."""
    nodes, before = [], "x"
    for i, (op_type, *others, attributes) in enumerate(steps):
        after = "y" if i + 1 == len(steps) else f"v{i}"
        nodes.append(node(op_type, [before, *others], [after], **attributes))
        before = after
    return nodes


# ---- every operator, on small graphs -----------------------------------------------------------------------------

# Constants of the input's type, then of others. "x" is (n, 6).
REAL = {"row": RNG.normal(size=6), "one": np.array(0.5), "column": np.array([[1.5]]), "two": np.array(2.0),
        "matrix": RNG.normal(size=(6, 4)), "square": RNG.normal(size=(3, 5)), "vector": RNG.normal(size=6),
        "bias": RNG.normal(size=4), "bias_row": RNG.normal(size=(1, 4)), "table": RNG.normal(size=4),
        "embedding": RNG.normal(size=(4, 3)), "low": np.array(-0.5), "high": np.array(0.75)}
WHOLE = {"cube": [-1, 2, 3], "cube_0": [0, 2, 3], "flat": [-1, 6], "axis_1": [1], "axis_2": [2], "axes_12": [1, 2],
         "axis_0": [0], "some": [4, 0, 0], "group": [1, -1, 6], "k": [1], "places": [[0, 2], [5, 1]]}
MASK = np.array([True, False, True, True, False, False])

INT = {"to": INT64}
ARG = {"axis": 1, "keepdims": 1}
SPLIT = ("Reshape", "cube", {})

GRAPHS = {
    **{name: chain((name, {})) for name in ("Abs", "Neg", "Exp", "Relu", "Sigmoid", "Tanh", "Identity")},
    **{f"{name} of magnitudes": chain(("Abs", {}), (name, {})) for name in ("Log", "Sqrt")},
    **{f"{name} a row": chain((name, "row", {})) for name in ("Add", "Sub", "Mul", "Div")},
    **{f"{name} a scalar": chain((name, "one", {})) for name in ("Add", "Sub", "Mul", "Div")},
    **{f"{name} of a constant": [node(name, ["row", "x"], ["y"])] for name in ("Add", "Sub", "Mul", "Div")},
    **{f"{name} of two rows": [node("Abs", ["x"], ["a"]), node(name, ["x", "a"], ["y"])]
       for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **{name: [node("Neg", ["x"], ["a"]), node(name, ["row", "x", "one", "a"], ["y"])]
       for name in ("Max", "Min", "Sum")},
    **{name: [node(name, ["x", "row"], ["b"]), node("Cast", ["b"], ["y"], to=FLOAT)]
       for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")},
    **{f"{name} of a constant": [node(name, ["row", "x"], ["b"]), node("Cast", ["b"], ["y"], to=FLOAT)]
       for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{name: [node("Greater", ["x", "row"], ["a"]), node("Less", ["x", "one"], ["b"]), node("Not", ["b"], ["c"]),
              node(name, ["a", "c"], ["d"]), node("Cast", ["d"], ["y"], to=FLOAT)] for name in ("And", "Or")},
    "Pow": chain(("Abs", {}), ("Pow", "row", {})),
    "Pow 2": chain(("Pow", "two", {})),
    "Pow of a constant": [node("Abs", ["row"], ["a"]), node("Pow", ["a", "x"], ["y"])],
    "stretched column": [node("Gather", ["x", "axis_1"], ["c"], axis=1), node("Mul", ["c", "x"], ["y"])],
    "Where": [node("Greater", ["x", "row"], ["c"]), node("Where", ["c", "x", "one"], ["y"])],
    "Where of constants": [node("Greater", ["x", "row"], ["c"]), node("Where", ["c", "one", "row"], ["y"])],
    "Where by a constant": [node("Where", ["mask", "x", "row"], ["y"])],
    "Clip": chain(("Clip", "low", "high", {})),
    "Clip below": chain(("Clip", "", "high", {})),
    **{name: chain((name, *["axis_1"] * (name == "ReduceSum"), {} if name == "ReduceSum" else {"axes": [1]}))
       for name in ("ReduceSum", "ReduceMean", "ReduceMax")},
    "ReduceSum without dimension": chain(("ReduceSum", "axis_1", {"keepdims": 0}), ("Unsqueeze", "axis_1", {})),
    "ReduceSum of an inner axis": chain(SPLIT, ("ReduceSum", "axis_1", {"keepdims": 0})),
    "ReduceMax of two axes": chain(SPLIT, ("ReduceMax", {"axes": [1, 2], "keepdims": 0})),
    "ReduceMean over models": [node("Neg", ["x"], ["a"]), node("Reshape", ["x", "group"], ["b"]),
                               node("Reshape", ["a", "group"], ["c"]), node("Concat", ["b", "c", "b"], ["d"], axis=0),
                               node("ReduceMean", ["d"], ["y"], axes=[0], keepdims=0)],
    **{name: chain((name, ARG), ("Cast", {"to": FLOAT})) for name in ("ArgMax", "ArgMin")},
    **{f"{name} last": chain((name, ARG | {"select_last_index": 1}), ("Cast", {"to": FLOAT}))
       for name in ("ArgMax", "ArgMin")},
    "ArgMax of an inner axis": chain(SPLIT, ("ArgMax", {"axis": 1, "keepdims": 0}), ("Cast", {"to": FLOAT})),
    "Softmax": chain(("Softmax", {})),
    "Softmax of an inner axis": chain(SPLIT, ("Softmax", {"axis": 1})),
    "TopK": [node("TopK", ["x", "k"], ["y", ""])],
    "smallest": [node("TopK", ["x", "k"], ["", "i"], largest=0), node("Cast", ["i"], ["y"], to=FLOAT)],
    "MatMul": chain(("MatMul", "matrix", {})),
    "MatMul a vector": chain(("MatMul", "vector", {}), ("Unsqueeze", "axis_1", {})),
    "MatMul inner rows": chain(SPLIT, ("MatMul", "square", {})),
    "MatMul, Add, Tanh": chain(("MatMul", "matrix", {}), ("Add", "bias", {}), ("Tanh", {})),
    "Add, MatMul": [node("MatMul", ["x", "matrix"], ["a"]), node("Add", ["bias_row", "a"], ["y"])],
    "a layer read twice": [node("MatMul", ["x", "matrix"], ["a"]), node("Relu", ["a"], ["b"]),
                           node("Add", ["a", "b"], ["y"])],
    "Gemm": chain(("Gemm", "matrix", "bias", {})),
    "Gemm, Relu": chain(("Gemm", "matrix", "bias_row", {"alpha": 0.5, "beta": 2.0}), ("Relu", {})),
    "Gemm of a row": [node("MatMul", ["x", "matrix"], ["c"]), node("Gemm", ["x", "matrix", "c"], ["y"], beta=0.5)],
    "Gather columns": chain(("Gather", "some", {"axis": 1})),
    "Gather a matrix of columns": chain(("Gather", "places", {"axis": 1})),
    "Gather from a table": [node("Gather", ["x", "axis_0"], ["a"], axis=1), node("Sigmoid", ["a"], ["b"]),
                            node("Mul", ["b", "two"], ["c"]), node("Cast", ["c"], ["d"], to=INT64),
                            node("Gather", ["table", "d"], ["y"])],
    "Gather from a matrix": [node("Gather", ["x", "axis_0"], ["a"], axis=1), node("Sigmoid", ["a"], ["b"]),
                             node("Mul", ["b", "two"], ["c"]), node("Cast", ["c"], ["d"], to=INT64),
                             node("Gather", ["embedding", "d"], ["y"])],
    "Concat": [node("Neg", ["x"], ["a"]), node("Concat", ["a", "x", "a"], ["y"], axis=-1)],
    "Transpose": chain(SPLIT, ("Transpose", {"perm": [0, 2, 1]}), ("Flatten", {})),
    "Transpose and back": chain(("Transpose", {"perm": [1, 0]}), ("Neg", {}), ("Transpose", {"perm": [1, 0]})),
    "Reshape and back": chain(("Reshape", "cube_0", {}), ("Tanh", {}), ("Reshape", "flat", {})),
    "Squeeze": chain(("Unsqueeze", "axes_12", {}), ("Squeeze", "axis_2", {}), ("Squeeze", {})),
    "Cast to int64": chain(("Mul", "two", {}), ("Cast", INT), ("Cast", {"to": DOUBLE})),
    "Cast to bool": chain(("Relu", {}), ("Cast", {"to": BOOL}), ("Cast", {"to": FLOAT})),
    "whole numbers": [node("Cast", ["x"], ["a"], to=INT64), node("Mul", ["a", "whole"], ["b"]),
                      node("Div", ["b", "three"], ["c"]), node("Cast", ["c"], ["y"], to=DOUBLE)],
    "Scaler": chain(("Scaler", {"offset": [0.5, 1, 0, 0, 2, 3], "scale": [2.0, 0.1, 1, 1, 3, 4]})),
    "Scaler of one": chain(("Scaler", {"offset": [0.5], "scale": [2.0]})),
    **{f"Normalizer {norm}": chain(("Normalizer", {"norm": norm})) for norm in ("MAX", "L1", "L2")},
    "Binarizer": chain(("Binarizer", {"threshold": 0.25})),
    "Imputer of a number": chain(("Imputer", {"imputed_value_floats": [9.0], "replaced_value_float": 3.0})),
    "ArrayFeatureExtractor": chain(("ArrayFeatureExtractor", "some", {})),
    "FeatureVectorizer": [node("Abs", ["x"], ["a"]),
                          node("FeatureVectorizer", ["a", "x"], ["y"], inputdimensions=[8, 4])],
    "OneHotEncoder": chain(("OneHotEncoder", {"cats_int64s": [0, 1, -1, 1], "zeros": 1}), ("Flatten", {})),
    "LabelEncoder": chain(("Cast", INT), ("LabelEncoder", {
        "keys_int64s": [0, 1, 1, -1], "values_floats": [0.5, 7.0, 8.0, -2.5], "default_float": 11.0})),
    "LinearRegressor": chain(("LinearRegressor", {
        "coefficients": RNG.normal(size=12).tolist(), "intercepts": [0.5, -1.0], "targets": 2,
        "post_transform": "SOFTMAX"})),
    "SVMRegressor linear": chain(("SVMRegressor", {
        "coefficients": RNG.normal(size=6).tolist(), "rho": [0.5], "n_supports": 0})),
    "SVMRegressor one class": chain(("SVMRegressor", {
        "coefficients": [0.5, -0.75], "rho": [0.1], "n_supports": 2, "support_vectors": RNG.normal(size=12).tolist(),
        "kernel_type": "RBF", "kernel_params": [0.25, 0.0, 0.0], "one_class": 1})),
}


def graph_of(nodes: list, data_type: int, opset: int = 17) -> onnx.ModelProto:
    dtype = DTYPES[data_type]
    constants = {name: array.astype(dtype) for name, array in REAL.items()}
    constants |= {name: np.array(numbers, np.int64) for name, numbers in WHOLE.items()}
    constants |= {"mask": MASK, "whole": np.array([1, 2, 3, -4, 5, -6]), "three": np.array(3)}
    used = {name for one in nodes for name in one.input}
    return model(nodes, [info("x", data_type, ["n", 6])], [info("y", data_type)],
                 {name: array for name, array in constants.items() if name in used}, opset=opset, ml_opset=3)


def executed(graph_model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    """y of the numpy executor, operator by operator, whatever type the model says it has: (n, width)."""
    graph = onnx_graph.from_model(graph_model, None)
    values = graph.constants | {"x": rows}
    for one in graph.nodes:
        made = onnx_graph.run_node(one, [values[name] if name else None for name in one.inputs])
        values.update(zip(one.outputs, made, strict=True))
    return values["y"].reshape(len(rows), -1)


def check_against_executor(graph_model: onnx.ModelProto, rows: np.ndarray) -> None:
    expected, models = executed(graph_model, rows), pair(graph_model)
    answered = np.isfinite(expected).all(axis=1)
    found = same_bits(models, rows[answered]).reshape(answered.sum(), -1)
    tolerance = 2e-6 if expected.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found, expected[answered], rtol=tolerance, atol=1e-6)
    for row in rows[~answered]:
        for one in models:
            with pytest.raises(ModelError):
                one.predict(row[None])


@pytest.mark.parametrize("data_type", [FLOAT, DOUBLE], ids=["float", "double"])
@pytest.mark.parametrize("name", GRAPHS)
def test_operator_gives_what_the_executor_gives(name, data_type):
    check_against_executor(graph_of(GRAPHS[name], data_type), ROWS.astype(DTYPES[data_type]))


OLD_GRAPHS = {
    "Clip 6": (6, chain(("Clip", {"min": -0.5, "max": 0.25}))),
    "Add with an axis": (6, chain(("Add", "row", {"axis": 1, "broadcast": 1}))),
    "Softmax 11 of all that follows": (11, [node("Reshape", ["x", "cube"], ["a"]),
                                            node("Softmax", ["a"], ["y"], axis=1)]),
    "Squeeze 11": (11, [node("Unsqueeze", ["x"], ["a"], axes=[1]), node("Squeeze", ["a"], ["y"], axes=[1])]),
    "ReduceSum 11": (11, chain(("ReduceSum", {"axes": [-1]}))),
    "TopK 1": (9, [node("TopK", ["x"], ["y", "i"], k=1)]),
}


@pytest.mark.parametrize("name", OLD_GRAPHS)
def test_operator_of_an_older_version(name):
    opset, nodes = OLD_GRAPHS[name]
    check_against_executor(graph_of(nodes, FLOAT, opset), ROWS)


# ---- the generated models of the tests of ai.onnx.ml -------------------------------------------------------------

def check_generated(op_type: str, inputs, outputs, attributes: dict, version: int = 1) -> tuple:
    """In the place of `generated.both`: a lowered model against the executor, which is tested against ONNX Runtime."""
    inputs = inputs if isinstance(inputs, dict) else {"X": inputs}
    outputs = outputs if isinstance(outputs, dict) else {"Y": outputs}
    built = generated.make_model(op_type, inputs, outputs, attributes, version)
    for one, array in zip(built.graph.input, inputs.values(), strict=True):
        for dim, n in list(zip(one.type.tensor_type.shape.dim, array.shape, strict=True))[1:]:
            dim.dim_value = n
    expected = list(onnx_graph.from_model(built, None).run(inputs).values())
    if any(array.ndim != 2 for array in inputs.values()):
        return expected, expected  # one row, not a matrix of rows
    rows = np.concatenate([array.reshape(len(array), -1) for array in inputs.values()], axis=1)
    rows = rows if rows.dtype == object else rows.astype(np.float64)
    models = pair(built)
    try:
        same_bits(models, rows)
        answered = np.ones(len(rows), bool)
    except ModelError:
        answered = np.array([is_answered(models, row[None]) for row in rows])
        for output in expected:
            if output.dtype.kind == "f" and models[0].signature.classes is None:
                assert not np.isfinite(output[~answered]).reshape((~answered).sum(), -1).all(axis=1).any()
    if answered.any():
        expected = [output[answered] for output in expected]
        if models[0].signature.classes is None:
            found = same_bits(models, rows[answered])
            tolerance = generated.tolerance_of(attributes.get("post_transform"))
            np.testing.assert_allclose(found, expected[0].reshape(found.shape), rtol=tolerance, atol=tolerance)
        else:
            check_against(expected, models, rows[answered], generated.tolerance_of(attributes.get("post_transform")))
    return expected, expected


def is_answered(models: tuple[TabularModel, ...], row: np.ndarray) -> bool:
    found = []
    for one in models:
        try:
            found.append(one.predict(row) is not None)
        except ModelError:
            found.append(False)
    assert found[0] == found[1]
    return found[0]


GENERATED = [
    (generated.test_tree_regressor_takes_the_branches_of_onnx_runtime, (generated.BRANCHES, np.float64)),
    *[(generated.test_tree_regressor_aggregates, (one, "some")) for one in ("SUM", "AVERAGE", "MIN", "MAX")],
    *[(generated.test_tree_classifier_chooses_and_scores_as_onnx_runtime, case)
      for case in itertools.product((2, 3), ("all", "one", "zero", "some"), (np.float32,))],
    (generated.test_tree_classifier_chooses_and_scores_as_onnx_runtime, (2, "some", np.float64)),
    *[(generated.test_tree_attributes_as_double_tensors, (of,)) for of in ("class", "target")],
    *[(generated.test_tree_classifier_of_one_class, ({"classlabels_int64s": [4]},))],
    *[(generated.test_linear_classifier, case) for case in itertools.product((np.float32, np.int64), (True, False))],
    (generated.test_linear_regressor, ()),
    *[(generated.test_svm_regressor, case) for case in generated.KERNELS],
    *[(generated.test_svm_classifier, (*case, one)) for case in generated.KERNELS for one in (True, False)],
    (generated.test_svm_classifier_of_liblinear, ()),
    *[(generated.test_scaler, case) for case in itertools.product(generated.NUMBERS, (1, 4))],
    *[(generated.test_normalizer, case) for case in itertools.product((np.float32, np.int64), ("MAX", "L1", "L2"))],
]


@pytest.mark.parametrize(("test", "case"), GENERATED)
def test_generated_models(test, case, monkeypatch):
    monkeypatch.setattr(generated, "both", check_generated)
    test(*case)


def test_imputer_fills_what_is_missing():
    nodes = chain(("Imputer", {"imputed_value_floats": np.arange(6.0).tolist(), "replaced_value_float": np.nan}))
    rows = np.where(RNG.random(ROWS.shape) < 0.3, np.float32(np.nan), ROWS)
    check_against_executor(graph_of(nodes, FLOAT), rows)
    assert pair(graph_of(nodes, FLOAT))[0].takes_missing_in.all()


def test_imputer_and_scaler_are_one_step():
    nodes = chain(("Imputer", {"imputed_value_floats": np.arange(6.0).tolist(), "replaced_value_float": np.nan}),
                  ("Scaler", {"offset": [0.5], "scale": [2.0]}), ("Scaler", {"offset": [0.25], "scale": [0.5]}))
    built = graph_of(nodes, FLOAT)
    check_against_executor(built, np.where(RNG.random(ROWS.shape) < 0.3, np.float32(np.nan), ROWS))
    assert [step.op for step in pair(built)[0].program.steps] == ["unary", "prepare", "prepare"]


def test_label_encoder_knows_nan():
    nodes = chain(("LabelEncoder", {"keys_floats": [1.0, np.nan, -1.0], "values_floats": [5.0, 6.0, 7.0],
                                    "default_float": 8.0}))
    rows = np.where(RNG.random(ROWS.shape) < 0.3, np.float32(np.nan), ROWS)
    built = graph_of(nodes, FLOAT)
    built.opset_import[1].version = 4
    check_against_executor(built, rows)
    assert 6.0 in same_bits(pair(built), rows)


# ---- models of libraries -----------------------------------------------------------------------------------------

X = RNG.normal(size=(150, 5)).astype(np.float32).astype(np.float64)
TARGETS = {
    "binary": (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int) * 3 - 1,
    "multi": np.array(["a", "b", "c"])[(X[:, 0] > 0.3).astype(int) + (X[:, 1] > 0)],
    "real": X[:, 0] * 2 + np.sin(X[:, 1]),
    "two": np.stack([X[:, 0] * 2 + np.sin(X[:, 1]), X[:, 2]], axis=1),
    "count": np.arange(150) % 3,
}
TESTED = np.concatenate([X[:60], RNG.normal(size=(60, 5)) * 3]).astype(np.float32).astype(np.float64)


def after(step) -> object:
    return pipeline.make_pipeline(step, linear_model.LogisticRegression())


def two_models(kind: str) -> list:
    members = {"Classifier": linear_model.LogisticRegression(), "Regressor": linear_model.LinearRegression()}
    return [("a", members[kind]), ("b", getattr(tree, f"DecisionTree{kind}")(max_depth=3))]


CLASSIFIERS = {
    "LogisticRegression": linear_model.LogisticRegression(),
    "SGD": linear_model.SGDClassifier(random_state=0),
    "LinearSVC": svm.LinearSVC(),
    "RidgeClassifier": linear_model.RidgeClassifier(),
    "SVC": svm.SVC(),
    "SVC with probabilities": svm.SVC(probability=True, random_state=0),
    "SVC poly": svm.SVC(kernel="poly", coef0=0.5),
    "SVC linear": svm.SVC(kernel="linear"),
    "SVC sigmoid": svm.SVC(kernel="sigmoid"),
    "NuSVC": svm.NuSVC(nu=0.3),
    **{f"MLP {one}": neural_network.MLPClassifier((9, 8), activation=one, max_iter=20, random_state=0)
       for one in ("relu", "tanh", "logistic", "identity")},
    "RandomForest": ensemble.RandomForestClassifier(5, max_depth=4, random_state=0),
    "ExtraTrees": ensemble.ExtraTreesClassifier(5, max_depth=4, random_state=0),
    "DecisionTree": tree.DecisionTreeClassifier(max_depth=4, random_state=0),
    "GradientBoosting": ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    "StandardScaler": after(preprocessing.StandardScaler()),
    "MinMaxScaler": after(preprocessing.MinMaxScaler()),
    "RobustScaler": after(preprocessing.RobustScaler()),
    "MaxAbsScaler": after(preprocessing.MaxAbsScaler()),
    "Normalizer": after(preprocessing.Normalizer()),
    "SimpleImputer": after(impute.SimpleImputer()),
    "Binarizer": after(preprocessing.Binarizer(threshold=0.25)),
    "KBins": after(preprocessing.KBinsDiscretizer(3, encode="onehot-dense", quantile_method="averaged_inverted_cdf")),
    "PCA": after(decomposition.PCA(3)),
    "SelectKBest": after(feature_selection.SelectKBest(k=3)),
    "Voting": ensemble.VotingClassifier(two_models("Classifier"), voting="soft", flatten_transform=False),
    "Bagging": ensemble.BaggingClassifier(linear_model.LogisticRegression(), n_estimators=3, random_state=0),
    "Stacking": ensemble.StackingClassifier(two_models("Classifier"), cv=2),
    "calibrated": calibration.CalibratedClassifierCV(linear_model.LogisticRegression(), cv=2),
    "calibrated by steps": calibration.CalibratedClassifierCV(linear_model.LogisticRegression(), method="isotonic",
                                                              cv=2),
}
REGRESSORS = {
    "LinearRegression": linear_model.LinearRegression(),
    "Ridge": linear_model.Ridge(),
    "Lasso": linear_model.Lasso(0.1),
    "SGDRegressor": linear_model.SGDRegressor(random_state=0),
    "SVR": svm.SVR(),
    "SVR poly": svm.SVR(kernel="poly", coef0=0.5, degree=2),
    "NuSVR": svm.NuSVR(),
    "LinearSVR": svm.LinearSVR(random_state=0),
    **{f"MLPRegressor {one}": neural_network.MLPRegressor(hidden_layer_sizes=(9, 8), activation=one, max_iter=20,
                                                          random_state=0) for one in ("relu", "tanh", "logistic")},
    "RandomForestRegressor": ensemble.RandomForestRegressor(5, max_depth=4, random_state=0),
    "ExtraTreesRegressor": ensemble.ExtraTreesRegressor(5, max_depth=4, random_state=0),
    "DecisionTreeRegressor": tree.DecisionTreeRegressor(max_depth=4, random_state=0),
    "GradientBoostingRegressor": ensemble.GradientBoostingRegressor(n_estimators=5, random_state=0),
    "VotingRegressor": ensemble.VotingRegressor(two_models("Regressor")),
}
TWO_OUTPUTS = ("LinearRegression", "RandomForestRegressor")  # skl2onnx makes one column of an MLPRegressor's two

NOT_OF_DOUBLES = {"LinearSVC", "RidgeClassifier",     # skl2onnx refuses
                  "Normalizer",                       # an operator that is not supported: ReduceSumSquare
                  "KBins", "Voting", "VotingRegressor"}  # skl2onnx mixes float and double: no valid ONNX
CASES = [(name, target, data_type) for name, target in
         [(name, target) for name in CLASSIFIERS for target in ("binary", "multi")]
         + [(name, "real") for name in REGRESSORS] + [(name, "two") for name in TWO_OUTPUTS]
         for data_type in (FLOAT, DOUBLE) if data_type == FLOAT or name not in NOT_OF_DOUBLES]
NOT_EXACT = {"calibrated by steps", "KBins"}  # skl2onnx approximates
CANCELLING = {"SVC poly": 1e-4, "SVC linear": 1e-4, "SVR poly": 1e-4}  # ONNX Runtime's own sums, in float32


@functools.cache
def fitted(name: str, target: str):
    estimator = base.clone({**CLASSIFIERS, **REGRESSORS}[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged, and what is deprecated
        return estimator.fit(X, TARGETS[target])


def converted(estimator, data_type: int) -> onnx.ModelProto:
    kind = data_types.FloatTensorType if data_type == FLOAT else data_types.DoubleTensorType
    options = {id(estimator): {"zipmap": False}} if data_type == DOUBLE and hasattr(estimator, "classes_") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = skl2onnx.convert_sklearn(estimator, initial_types=[("X", kind([None, X.shape[1]]))], options=options)
    return made


def reference(graph_model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list:
    """What ONNX Runtime gives; where it has no kernel for double, or skl2onnx declares a wrong type, the executor."""
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(graph_model.SerializeToString(), options).run(None, inputs)
    except (onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
            onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        graph = onnx_graph.from_model(graph_model, None)
        declared = [onnx_graph.replace(one, dtype=np.dtype(np.float32)) if one.dtype == np.float64 else one
                    for one in graph.outputs]
        try:
            return list(graph.run(inputs).values())
        except ModelError:
            return list(onnx_graph.replace(graph, outputs=tuple(declared)).run(inputs).values())


def check_against(expected: list, models: tuple[TabularModel, ...], rows: np.ndarray, tolerance: float) -> None:
    """Labels equal, numbers and probabilities within the tolerance, relative where they are large."""
    found = same_bits(models, rows)
    if models[0].signature.classes is None:
        np.testing.assert_allclose(found, expected[0].reshape(found.shape), rtol=tolerance, atol=tolerance)
        return
    scores = expected[1]
    if isinstance(scores, list):
        scores = np.array([[one[label] for label in models[0].signature.classes] for one in scores])
    best = np.sort(scores, axis=1)[:, -2:]
    differs = found != expected[0].reshape(-1)
    assert not differs.any() or (best[differs, 0] >= best[differs, 1] - tolerance).all() and differs.sum() < 2
    if models[0].n_classes:
        np.testing.assert_allclose(models[0].predict_proba(rows), scores, rtol=tolerance, atol=tolerance)
    else:
        assert scores.shape[1] != len(models[0].signature.classes), "scores of pairs of classes: no probabilities"


@pytest.mark.parametrize(("name", "target", "data_type"), CASES)
def test_estimator_gives_what_onnx_runtime_gives(name, target, data_type):
    estimator = fitted(name, target)
    built = converted(estimator, data_type)
    models = pair(built)
    is_single = data_type == FLOAT or any(one.domain == "ai.onnx.ml" for one in built.graph.node)
    expected = reference(built, {"X": TESTED.astype(DTYPES[data_type])})
    check_against(expected, models, TESTED, CANCELLING.get(name, 3e-6) if is_single else 1e-9)
    if name not in NOT_EXACT:
        found, wanted = models[0].predict(TESTED), estimator.predict(TESTED)
        assert found.dtype == float or (found == wanted).mean() > 0.98  # a tie is decided otherwise
        assert found.dtype != float or np.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_estimators_of_all_kinds_are_named():
    kinds = {(name, target): pair(converted(fitted(name, target), FLOAT))[0].model_type for name, target in (
        ("LogisticRegression", "multi"), ("MLP tanh", "binary"), ("SVC poly", "multi"), ("SVR", "real"),
        ("GradientBoosting", "binary"), ("StandardScaler", "binary"), ("Voting", "multi"))}
    assert list(kinds.values()) == ["linear", "mlp", "svm", "svm", "trees", "pipeline", "pipeline"]


@pytest.mark.parametrize("target", ["binary", "count", "real"])
@pytest.mark.parametrize("library", ["LGBM", "XGB"])
def test_booster_gives_what_onnx_runtime_gives(library, target):
    module = {"LGBM": lightgbm, "XGB": xgboost}[library]
    options = {"LGBM": {"verbose": -1, "n_jobs": 1}, "XGB": {"n_jobs": 1}}[library]
    y = (TARGETS["binary"] > 0).astype(int) if target == "binary" else TARGETS[target]
    kind = "Regressor" if target == "real" else "Classifier"
    booster = getattr(module, f"{library}{kind}")(n_estimators=6, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        booster.fit(X, y)
        convert = onnxmltools.convert_lightgbm if library == "LGBM" else onnxmltools.convert_xgboost
        built = convert(booster, initial_types=[("X", onnxmltools_types.FloatTensorType([None, 5]))])
    models = pair(built)
    check_against(reference(built, {"X": TESTED.astype(np.float32)}), models, TESTED, 2e-6)
    assert models[0].model_type == "trees" and models[0].takes_missing
    rows = np.where(RNG.random(TESTED.shape) < 0.2, np.nan, TESTED)
    check_against(reference(built, {"X": rows.astype(np.float32)}), models, rows, 2e-6)


# ---- columns: strings, numbers, missing values -------------------------------------------------------------------

CITIES = ["Lima", "Quito", "Bogotá"]
COLUMNS = {  # name: (values, type in ONNX)
    "age": (np.round(RNG.normal(40, 10, 150)).astype(np.float64), data_types.FloatTensorType),
    "income": (np.where(np.arange(150) % 7, X[:, 1], np.nan), data_types.FloatTensorType),
    "city": (RNG.choice(CITIES, 150).astype(object), data_types.StringTensorType),
    "kind": (RNG.choice(["x", "y"], 150).astype(object), data_types.StringTensorType),
    "k": (RNG.integers(0, 4, 150), data_types.Int64TensorType),
}
TABLE = np.stack([values.astype(object) for values, _ in COLUMNS.values()], axis=1)
ANSWERS = np.where((COLUMNS["age"][0] > 40) ^ (COLUMNS["city"][0] == "Lima"), "sí", "no")


@functools.cache
def of_columns(encoder: str) -> tuple:
    """A pipeline over named columns as ONNX: (model, its file)."""
    encoders = {"ignore": preprocessing.OneHotEncoder(handle_unknown="ignore"), "error": preprocessing.OneHotEncoder(),
                "ordinal": preprocessing.OrdinalEncoder()}
    numbers = pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), preprocessing.StandardScaler())
    prepared = compose.ColumnTransformer([("n", numbers, [0, 1]), ("s", encoders[encoder], [2, 3]),
                                          ("k", preprocessing.OneHotEncoder(handle_unknown="ignore"), [4])])
    last = (ensemble.GradientBoostingClassifier(n_estimators=8, random_state=0) if encoder == "ordinal"
            else linear_model.LogisticRegression())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = pipeline.make_pipeline(prepared, last).fit(TABLE, ANSWERS)
        types = [(name, kind([None, 1])) for name, (_, kind) in COLUMNS.items()]
        built = skl2onnx.convert_sklearn(estimator, initial_types=types)
    return pair(built), built


def inputs_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    kinds = {data_types.FloatTensorType: np.float32, data_types.StringTensorType: object,
             data_types.Int64TensorType: np.int64}
    return {name: rows[:, i:i + 1].astype(kinds[kind]) for i, (name, (_, kind)) in enumerate(COLUMNS.items())}


@pytest.mark.parametrize("encoder", ["ignore", "error", "ordinal"])
def test_columns_of_strings_and_numbers(encoder):
    models, built = of_columns(encoder)
    signature = models[0].signature
    assert signature.feature_names == tuple(COLUMNS) and signature.classes == ("no", "sí")
    assert signature.categories == (None, None, tuple(sorted(CITIES)), ("x", "y"), None) and signature.unknown == -1
    check_against(reference(built, inputs_of(TABLE)), models, TABLE, 2e-6)
    assert models[0].takes_missing_in[:2].all() and models[0].model_type == "pipeline"


def test_unknown_string_is_ignored_or_has_no_answer():
    row = np.array([[30.0, 1.0, "Paris", "x", 1]], object)
    models, built = of_columns("ignore")
    check_against(reference(built, inputs_of(row)), models, row, 2e-6)
    for encoder in ("error", "ordinal"):
        for one in of_columns(encoder)[0]:
            if encoder == "error":
                with pytest.raises(ModelError):
                    one.predict(row)
    missing = np.array([[30.0, 1.0, None, "x", 1]], object)
    assert np.array_equal(models[0].predict_proba(missing), models[0].predict_proba(row))


def test_missing_values_are_tried_in_a_row_that_has_an_answer():
    """1 is no category here: a row of ones has no answer, be anything missing or not."""
    nodes = [node("Imputer", ["x"], ["a"], imputed_value_floats=[7.0], replaced_value_float=np.nan),
             node("Cast", ["z"], ["c"], to=INT64), node("OneHotEncoder", ["c"], ["d"], cats_int64s=[5, 7], zeros=0),
             node("Flatten", ["d"], ["e"]), node("Concat", ["a", "e"], ["y"], axis=1)]
    built = model(nodes, [info("x", FLOAT, ["n", 1]), info("z", FLOAT, ["n", 1])], [info("y", FLOAT)], ml_opset=3)
    models = pair(built)
    assert models[0].takes_missing_in.tolist() == [True, False]
    assert same_bits(models, np.array([[np.nan, 5.0], [2.0, 7.0]])).tolist() == [[7, 1, 0], [2, 0, 1]]
    with pytest.raises(ModelError):
        models[0].predict(np.array([[2.0, 6.0]]))


def strings_model(nodes: list, n: int, constants: dict | None = None, output: int = FLOAT) -> onnx.ModelProto:
    return model(nodes, [info("x", STRING, ["n", n])], [info("y", output)], constants, opset=17, ml_opset=3)


def test_columns_that_share_a_table_share_their_categories():
    nodes = [node("LabelEncoder", ["x"], ["a"], keys_strings=["b", "a"], values_floats=[2.0, 1.0], default_float=9.0),
             node("Gather", ["x", "last"], ["c"], axis=1),
             node("LabelEncoder", ["c"], ["d"], keys_strings=["z", "a"], values_floats=[5.0, 4.0], default_float=7.0),
             node("Concat", ["a", "d"], ["y"], axis=1)]
    models = pair(strings_model(nodes, 3, {"last": np.array([2])}))
    assert models[0].signature.categories == (("b", "a", "z"),) * 3
    rows = np.array([["a", "b", "z"], ["z", "?", "a"], ["b", "b", "?"]], object)
    assert same_bits(models, rows).tolist() == [[1, 2, 9, 5], [9, 9, 1, 4], [2, 2, 9, 7]]


def test_strings_compared_with_constants():
    nodes = [node("Equal", ["x", "texts"], ["a"]), node("Cast", ["a"], ["y"], to=FLOAT)]
    models = pair(strings_model(nodes, 2, {"texts": np.array(["p", "q"], object)}))
    assert models[0].signature.categories == (("p",), ("q",))
    rows = np.array([["p", "p"], ["q", "q"], ["?", "q"]], object)
    assert same_bits(models, rows).tolist() == [[1, 0], [0, 1], [0, 1]]


def test_category_mapper_both_ways():
    nodes = [node("CategoryMapper", ["x"], ["a"], cats_strings=["b", "a"], cats_int64s=[7, 3], default_int64=-5),
             node("CategoryMapper", ["a"], ["b"], cats_strings=["seven", "three"], cats_int64s=[7, 3]),
             node("LabelEncoder", ["b"], ["y"], keys_strings=["three", "seven", "_Unused"],
                  values_floats=[3.0, 7.0, -1.0])]
    rows = np.array([["a"], ["b"], ["?"]], object)
    assert same_bits(pair(strings_model(nodes, 1)), rows).tolist() == [3, 7, -1]


# ---- what a model says of itself ---------------------------------------------------------------------------------

def test_network_by_hand_equals_executor(tmp_path):
    nodes = [one for one in mlp().graph.node if one.output[0] != "sum"]
    built = mlp()
    del built.graph.node[:], built.graph.output[1]
    built.graph.node.extend(nodes)
    path = tmp_path / "net.onnx"
    path.write_bytes(built.SerializeToString())
    found, rows = onnx_lowering.read(path), RNG.normal(size=(40, 3)).astype(np.float32)
    expected = onnx_graph.read(path).run({"x": rows})
    assert (found.predict(rows) == expected["label"]).all() and set(found.predict(rows)) == {"no", "yes"}
    np.testing.assert_allclose(found.predict_proba(rows), expected["p"], atol=1e-6)
    assert (found.name, found.version, found.model_type) == ("net", "7", "mlp")
    assert found.signature.feature_names == ("a", "b", "c") and found.size_bytes == path.stat().st_size
    assert [step.op for step in found.program.steps] == ["dense", "binary", "dense", "scale", "reduce"]


def test_zip_map_gives_the_classes(tmp_path):
    models = pair(classifier())
    rows = RNG.normal(size=(40, 3)).astype(np.float32)
    check_against(reference(classifier(), {"x": rows}), models, rows, 2e-6)
    assert models[0].signature.feature_names is None


@pytest.mark.parametrize(("shapes", "names"), [
    ([["n", 3]], None), ([["n", 1]], ("i0",)), ([["n"]], ("i0",)), ([["n", 1], ["n", 1]], ("i0", "i1")),
    ([["n", 1], ["n", 2]], ("i0", "i1_0", "i1_1")), ([[1, 3]], None), ([["n", 2, 2]], None)])
def test_names_of_features(shapes, names):
    inputs = [info(f"i{i}", FLOAT, shape) for i, shape in enumerate(shapes)]
    nodes = [node("Flatten" if len(shape) > 1 else "Unsqueeze", [f"i{i}"] + ["axis"] * (len(shape) == 1), [f"f{i}"])
             for i, shape in enumerate(shapes)]
    nodes.append(node("Concat", [f"f{i}" for i in range(len(shapes))], ["y"], axis=1))
    built = model(nodes, inputs, [info("y", FLOAT)], {"axis": np.array([1])})
    models = pair(built)
    assert models[0].signature.feature_names == names
    rows = RNG.normal(size=(3, models[0].n_features)).astype(np.float32)
    assert same_bits(models, rows).reshape(3, -1).tolist() == rows.tolist()


def test_names_of_metadata_and_of_another_count():
    built = graph_of(chain(("Abs", {})), FLOAT)
    helper.set_model_props(built, {"feature_names": json.dumps(list("abcdef")), "name": "named"})
    assert lower(onnx_graph.from_model(built, None)).signature.feature_names == tuple("abcdef")
    built.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    assert lower(onnx_graph.from_model(built, None)).signature.n_features == 6
    for text in ("{", '{"a": 1}', "[1]", "[" * 100_000):
        helper.set_model_props(built, {"feature_names": text})
        with pytest.raises(ModelError, match="JSON list of strings"):
            lower(onnx_graph.from_model(built, None))


def test_one_row_model_answers_many_rows():
    nodes = [node("Reshape", ["x", "shape"], ["a"]), node("MatMul", ["a", "w"], ["b"]), node("Softmax", ["b"], ["y"])]
    constants = {"shape": np.array([1, 3, 2]), "w": RNG.normal(size=(2, 2)).astype(np.float32)}
    built = model(nodes, [info("x", FLOAT, [1, 6])], [info("y", FLOAT)], constants)
    found = same_bits(pair(built), ROWS)
    for i, row in enumerate(ROWS[:5]):
        expected = onnx_graph.from_model(built, None).run({"x": row[None]})["y"]
        np.testing.assert_allclose(found[i], expected.ravel(), atol=1e-6)


def labels_model(nodes: list, output: int, constants: dict, more: list = ()) -> onnx.ModelProto:
    return model([node("ArgMax", ["x"], ["i"], axis=1, keepdims=0), *nodes], [info("x", FLOAT, ["n", 3])],
                 [info("label", output), *more], constants)


LABELS = {
    "strings": ([node("Gather", ["labels", "i"], ["label"])], STRING, np.array(["u", "v", "w"], object)),
    "integers": ([node("Gather", ["labels", "i"], ["label"])], INT64, np.array([7, -1, 3])),
    "extractor": ([node("ArrayFeatureExtractor", ["labels", "i"], ["a"]), node("Reshape", ["a", "flat"], ["label"])],
                  STRING, np.array(["u", "v", "w"], object)),
    "cast to strings": ([node("Gather", ["labels", "i"], ["a"]), node("Cast", ["a"], ["label"], to=STRING)], STRING,
                        np.array([7, -1, 3])),
    "cast to integers": ([node("Gather", ["labels", "i"], ["a"]), node("Cast", ["a"], ["label"], to=INT64)], INT64,
                         np.array(["5", "4", "6"], object)),
    "indices": ([node("Identity", ["i"], ["label"])], INT64, np.array([0])),
    "encoder": ([node("LabelEncoder", ["i"], ["label"], keys_int64s=[2, 0, 1], values_strings=["c", "a", "b"])], STRING,
                np.array([0])),
    "equal strings": ([node("Gather", ["labels", "i"], ["label"])], STRING, np.array(["u", "v", "u"], object)),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_recovered(name):
    nodes, output, labels = LABELS[name]
    built = labels_model(nodes, output, {"labels": labels, "flat": np.array([-1])})
    models, rows = pair(built), ROWS[:, :3]
    assert same_bits(models, rows).tolist() == onnx_graph.from_model(built, None).run({"x": rows})["label"].tolist()
    assert models[0].n_classes == 0 and models[0].signature.task == "classification"
    for one in models:
        with pytest.raises(ModelError):  # what is hidden behind the index is seen
            one.predict(np.array([[0.0, np.nan, 1.0]]))


def test_index_outside_the_table_has_no_answer():
    nodes = [node("Cast", ["x"], ["i"], to=INT64), node("Gather", ["labels", "i"], ["label"])]
    built = model(nodes, [info("x", FLOAT, ["n", 1])], [info("label", STRING)],
                  {"labels": np.array(["u", "v"], object)})
    models = pair(built)
    assert same_bits(models, np.array([[0.0], [1.5]])).tolist() == ["u", "v"]
    for one in models:
        for number in (-1.0, 2.0, 1e300, np.nan):
            with pytest.raises(ModelError):
                one.predict(np.array([[number]]))


def test_labels_in_another_order_than_zip_map():
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(
        INT64, helper.make_tensor_type_proto(FLOAT, [])))
    nodes = [node("Gather", ["labels", "i"], ["label"]), node("Softmax", ["x"], ["p"]),
             node("Concat", ["p2", "p0", "p1"], ["q"], axis=1),
             *[node("Gather", ["p", f"at{i}"], [f"p{i}"], axis=1) for i in range(3)],
             node("ZipMap", ["q"], ["probabilities"], classlabels_int64s=[3, 7, -1])]
    built = labels_model(nodes, INT64, {"labels": np.array([7, -1, 3]), **{f"at{i}": np.array([i]) for i in range(3)}},
                         [helper.make_value_info("probabilities", maps)])
    models = pair(built)
    assert models[0].signature.classes == (3, 7, -1)
    check_against(reference(built, {"x": ROWS[:, :3]}), models, ROWS[:, :3], 2e-6)


# ---- what is no function of a row, and hostile files -------------------------------------------------------------

def bomb() -> list:
    names = ["x", *(f"v{i}" for i in range(60)), "y"]
    return [node("Concat", [a, a], [b], axis=1) for a, b in zip(names, names[1:], strict=False)]


REFUSED = {
    "ReduceSum": chain(("ReduceSum", "axis_0", {})),
    "ReduceMax": chain(("ReduceMax", {"keepdims": 0})),
    "ArgMax": [node("ArgMax", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=FLOAT)],
    "Softmax": chain(("Softmax", {"axis": 0})),
    "Reshape": chain(("Reshape", "k", {})),
    "Flatten": chain(("Flatten", {"axis": 0})),
    "MatMul": [node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["y"])],
    "Gemm": chain(("Gemm", "matrix", {"transA": 1})),
    "TopK": [node("TopK", ["x", "axis_2"], ["y", ""])],
    "Gather": chain(("Gather", "axis_0", {"axis": 0})),
    "Add": [node("Transpose", ["x"], ["t"]), node("Add", ["x", "t"], ["y"])],
    "Mul": chain(("Mul", "matrix", {})),
    "Where": [node("Where", ["mask", "x", "matrix"], ["y"])],
    "Concat": chain(("Concat", "bias_row", {"axis": 1})),
    "Cast": chain(("Cast", {"to": STRING})),
    "Pow": [node("Cast", ["x"], ["a"], to=INT64), node("Pow", ["a", "whole"], ["b"]),
            node("Cast", ["b"], ["y"], to=FLOAT)],
    "Imputer": chain(("Imputer", {"imputed_value_floats": [1.0, 2.0]})),
    "Scaler": chain(("Scaler", {"offset": [1.0], "scale": [1.0, 2.0]})),
    "OneHotEncoder": chain(("OneHotEncoder", {"cats_strings": ["a"]})),
    "LinearRegressor": chain(("LinearRegressor", {"coefficients": [1.0] * 5})),
    "SVMRegressor": chain(("SVMRegressor", {"coefficients": [1.0], "rho": [1.0], "n_supports": 1,
                                            "support_vectors": [1.0]})),
    "FeatureVectorizer": chain(("FeatureVectorizer", {"inputdimensions": [1 << 40]})),
    "LabelEncoder": chain(("LabelEncoder", {"keys_strings": ["a"], "values_floats": [1.0]})),
    "Concat ": bomb(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_program_computes_is_refused_by_name(name):
    with pytest.raises(NotTabular, match=f"operator {name.strip()} .node "):
        lower(onnx_graph.from_model(graph_of(REFUSED[name], FLOAT), None))


def test_memory_stays_small():
    graph = onnx_graph.from_model(graph_of(bomb(), FLOAT), None)
    tracemalloc.start()
    try:
        with pytest.raises(NotTabular):
            lower(graph)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_constants_do_not_explode():
    nodes = [node("Reshape", ["c", "tall"], ["t"]), node("Mul", ["c", "t"], ["big"]), node("ReduceSum", ["big"], ["s"]),
             node("Add", ["x", "s"], ["y"])]
    built = model(nodes, [info("x", FLOAT, ["n", 3])], [info("y", FLOAT)],
                  {"c": np.ones(20_000, np.float32), "tall": np.array([-1, 1])})
    with pytest.raises(NotTabular, match="smaller tensors"):
        lower(onnx_graph.from_model(built, None))


@pytest.mark.parametrize(("inputs", "match"), [
    ([info("x", FLOAT, ["n", 1 << 40])], "features in a file of this size"),
    ([info("x", FLOAT, ["n", 1 << 20])], "features in a file of this size"),
    ([info("x", FLOAT, ["n", "k"])], "fixed number of features"),
    ([info("x", FLOAT, ["n", 0])], "fixed number of features"),
    ([info("x", FLOAT, [5, 3])], "first dimension is free"),
    ([info("x", FLOAT, [])], "first dimension is free"),
    ([info("x", FLOAT)], "first dimension is free"),
    ([info("x", onnx.TensorProto.FLOAT16, ["n", 3])], "found float16"),
    ([], "an input"),
])
def test_inputs_that_are_no_rows(inputs, match):
    nodes = [node("Identity", ["x" if inputs else "c"], ["y"])]
    built = model(nodes, inputs, [info("y", FLOAT)], {"c": np.ones(1, np.float32)})
    with pytest.raises(NotTabular, match=match):
        lower(onnx_graph.from_model(built, None))


OUTPUTS = {
    "two matrices": ([node("Neg", ["x"], ["a"]), node("Abs", ["x"], ["b"])], {"a": FLOAT, "b": FLOAT}, "2 outputs"),
    "a constant": ([node("Identity", ["c"], ["a"])], {"a": FLOAT}, "found a constant"),
    "labels of several outputs": ([node("ArgMax", ["x"], ["a"], axis=1), node("ArgMin", ["x"], ["b"], axis=1)],
                                  {"a": INT64, "b": INT64}, "2 outputs"),
    "a matrix of labels": ([node("ArgMax", ["x"], ["i"], axis=1), node("Concat", ["i", "i"], ["j"], axis=1),
                            node("Gather", ["s", "j"], ["a"])], {"a": STRING}, "one label a row"),
    "a label of no table": ([node("Cast", ["x"], ["i"], to=INT64), node("ReduceSum", ["i", "k"], ["a"]),
                             node("Softmax", ["x"], ["b"])], {"a": INT64, "b": FLOAT}, "looked up in a table"),
}


@pytest.mark.parametrize("labels", [{"classlabels_strings": ["a", "b"]}, {"classlabels_int64s": [4, 5]}])
def test_labels_of_no_table_are_those_of_zip_map(labels):
    kind = STRING if "classlabels_strings" in labels else INT64
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(
        kind, helper.make_tensor_type_proto(FLOAT, [])))
    nodes = [node("Cast", ["x"], ["label"], to=INT64), node("Concat", ["x", "x"], ["p"], axis=1),
             node("ZipMap", ["p"], ["probabilities"], **labels)]
    built = model(nodes, [info("x", FLOAT, ["n", 1])], [info("label", INT64), helper.make_value_info(
        "probabilities", maps)])
    if kind == STRING:
        with pytest.raises(NotTabular, match="looked up in a table"):
            pair(built)
        return
    models = pair(built)
    assert same_bits(models, np.array([[4.0], [5.5]])).tolist() == [4, 5]
    for one in models:
        with pytest.raises(ModelError):
            one.predict(np.array([[6.0]]))


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_no_answer(name):
    nodes, outputs, match = OUTPUTS[name]
    constants = {"c": np.ones(3, np.float32), "s": np.array(["u", "v", "w"], object), "k": np.array([1])}
    built = model(nodes, [info("x", FLOAT, ["n", 3])], [info(one, kind) for one, kind in outputs.items()], constants)
    with pytest.raises(NotTabular, match=match):
        lower(onnx_graph.from_model(built, None))


def test_scores_of_pairs_of_classes_are_no_probabilities():
    built = labels_model([node("Identity", ["i"], ["label"]), node("Concat", ["x", "x"], ["scores"], axis=1)], INT64,
                         {}, [info("scores", FLOAT)])
    models = pair(built)
    assert models[0].n_classes == 0 and same_bits(models, ROWS[:, :3]).tolist() == ROWS[:, :3].argmax(axis=1).tolist()


def test_dict_has_no_columns(tmp_path):
    kind = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))
    built = model([node("DictVectorizer", ["x"], ["y"], string_vocabulary=["a"])], [helper.make_value_info("x", kind)],
                  [info("y", FLOAT)])
    path = tmp_path / "dict.onnx"
    path.write_bytes(built.SerializeToString())
    with pytest.raises(ModelError, match="dict.onnx: input 'x': expected a tensor"):
        onnx_lowering.read(path)


def test_many_strings_of_many_features_are_refused():
    texts = [f"{i}" for i in range(3000)]
    nodes = [node("LabelEncoder", ["x"], ["y"], keys_strings=texts, values_floats=[1.0] * 3000)]
    with pytest.raises(NotTabular, match="strings of all features together"):
        lower(onnx_graph.from_model(strings_model(nodes, 4000), None))
