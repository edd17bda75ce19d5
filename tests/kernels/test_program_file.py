"""Programs in GGUF files: what `save` keeps, and what `load` refuses, by field."""

import copy
import json
import math
import tempfile
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn import datasets

import kernels
from kernels import DEFAULT_MODEL, ModelError, gguf, quants, trees
from kernels.export import TYPES
from kernels.gguf import F16, F32, F64, Q4_0, Q8_0
from kernels.program import Builder, Program
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, UNARY_CODES, runs_of
from kernels.step import MAX_WIDTH
from kernels.tabular import Signature, TabularModel
from tests.kernels import gguf_bytes as g
from tests.kernels.test_row_ops import assert_same, model_of, random_program
from tests.kernels.test_tree_kernels import program_of, random_ensemble, rows_around

I8, I16, I32, I64 = 24, 25, 26, 27


def saved(model: TabularModel, folder: Path, **options) -> TabularModel:
    path = folder / "saved.gguf"
    kernels.save(model, path, **options)
    return kernels.load(path)


def assert_same_program(found: Program, expected: Program) -> None:
    for name in ("n_features", "prediction", "probabilities", "n_prediction_steps", "checked", "widths"):
        assert getattr(found, name) == getattr(expected, name)
    for a, b in zip(found.steps, expected.steps, strict=True):
        assert a._replace(arrays={}) == b._replace(arrays={})
        assert a.arrays.keys() == b.arrays.keys()
        for name, array in b.arrays.items():
            assert (a.arrays[name].dtype, a.arrays[name].shape) == (array.dtype, array.shape)
            assert a.arrays[name].tobytes() == array.tobytes(), name


# ---- what is kept ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(25))
def test_exact_keeps_every_bit_of_any_program(tmp_path, seed):
    program, X = random_program(seed)
    model = model_of(program)
    again = saved(model, tmp_path)
    assert_same_program(again.program, program)
    assert_same(again.predict(X), model.predict(X))
    assert_same(again.predict_proba(X), model.predict_proba(X))
    assert again.takes_missing_in.tolist() == model.takes_missing_in.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_exact_keeps_every_bit_of_trees(tmp_path, seed):
    ensemble = random_ensemble(seed, n_outputs=1 + seed % 3, rounds_inputs=seed % 2 == 1, category_rule=seed % 3)
    model, X = model_of(program_of(ensemble)), rows_around(ensemble, seed)
    again = saved(model, tmp_path)
    assert_same_program(again.program, model.program)
    assert_same(again.predict(X), model.predict(X))


def support_vectors() -> Program:
    rng, builder = np.random.default_rng(0), Builder(4)
    value = builder.add("distances", (0,), 9, numbers={"factor": -0.1}, arrays={"vectors": rng.normal(size=(9, 4))})
    value = builder.add("svm_pairs", (value,), 3, numbers={"n_classes": 3}, arrays={
        "first": np.array([0, 2, 5, 9]), "coefficients": rng.normal(size=(2, 9)), "rho": rng.normal(size=3)})
    winner = builder.add("svm_votes", (value,), 1, numbers={"n_classes": 3})
    single = np.float32(rng.normal(size=3)).astype(float)
    p = builder.add("svm_coupling", (value,), 3, arrays={"prob_a": single, "prob_b": single})
    return builder.finish(winner, p, (value,))


@pytest.mark.parametrize("format_name", ["f64", "f32", "f16", "q8_0", "q4_0"])
def test_exact_keeps_every_bit_of_other_steps(tmp_path, format_name):
    tensor_type = {"f64": F64, "f32": F32, "f16": F16, "q8_0": Q8_0, "q4_0": Q4_0}[format_name]
    rng, builder = np.random.default_rng(0), Builder(4)
    value = builder.add("prepare", (0,), 4, numbers={"rounds": 1}, arrays={
        "missing": np.array([math.nan, 0.0, math.nan, -math.inf]),
        "fill_values": np.array([1.0, math.nan, -0.0, 5e-324]),
        "offset": rng.normal(size=4), "scale": rng.normal(size=4)})
    padded = np.zeros((5, 32))
    padded[:, :2] = rng.normal(size=(5, 2))
    value = builder.add("dense", (value,), 10, numbers={"n_in": 2, "tensor_type": tensor_type, "activation": 2},
                        arrays={"weights": quants.quantize(padded, tensor_type), "bias": rng.normal(size=5)})
    for program in (builder.finish(value, 0, (value,)), support_vectors()):
        model, X = model_of(program), rng.normal(size=(70, 4))
        again = saved(model, tmp_path)
        assert_same_program(again.program, program)
        assert_same(again.predict(X), model.predict(X))


@cache
def trained() -> tuple[TabularModel, ...]:
    """Boosters with missing values, categories and classes."""
    X, y = datasets.load_breast_cancer(return_X_y=True)
    X = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    kinds = np.array(["a", "b", "ñ"])[np.nan_to_num(X[:, 1]).astype(int) % 3]
    frame = pd.DataFrame({"size": X[:, 0], "kind": pd.Categorical(kinds),
                          "n": pd.Categorical(np.nan_to_num(X[:, 2]).astype(int) // 10 * 10)})
    wine = datasets.load_wine(return_X_y=True)
    quiet = {"verbose": -1, "num_threads": 1}
    texts = [lightgbm.train(quiet | {"objective": "binary"}, lightgbm.Dataset(X, y), 15),
             lightgbm.train(quiet | {"objective": "binary"}, lightgbm.Dataset(frame, y), 15),
             lightgbm.train(quiet | {"objective": "multiclass", "num_class": 3}, lightgbm.Dataset(*wine), 5)]
    documents = [xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(X, y), 15),
                 xgboost.train({"objective": "multi:softprob", "num_class": 3, "nthread": 1},
                               xgboost.DMatrix(*wine), 5)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.txt" for i in range(5)]
        for path, booster in zip(paths, texts):
            path.write_text(booster.model_to_string())
        for path, booster in zip(paths[3:], documents):
            path.write_bytes(booster.save_raw("ubj"))
        return tuple(kernels.load(path) for path in paths)


def rows_of(model: TabularModel, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(100, model.n_features)) * 10.0 ** rng.integers(-2, 4, (100, model.n_features))
    return np.where(rng.random(X.shape) < 0.1, np.nan, X)


@pytest.mark.parametrize("i", range(5))
def test_exact_keeps_every_bit_of_boosters(tmp_path, i):
    model = trained()[i]
    again, X = saved(model, tmp_path), rows_of(model)
    assert_same_program(again.program, model.program)
    assert again.signature.categories == model.signature.categories
    assert again.signature.feature_names == model.signature.feature_names
    assert (again.name, again.version, again.model_type, again.signature.task) == (
        model.name, model.version, model.model_type, model.signature.task)
    assert_same(again.predict(X), model.predict(X))
    assert_same(again.predict_proba(X), model.predict_proba(X))
    portable = kernels.load(again.path, native=False)
    assert_same(portable.predict_proba(X), model.predict_proba(X))


def test_exact_keeps_dense_layers(tmp_path):
    model = kernels.load(DEFAULT_MODEL)
    again, X = saved(model, tmp_path), np.random.default_rng(0).normal(size=(100, model.n_features))
    assert_same_program(again.program, model.program)
    assert_same(again.predict(X), model.predict(X))
    assert_same(again.predict_proba(X), model.predict_proba(X))


def test_name_and_version_are_kept_unless_given(tmp_path):
    model = trained()[0]
    assert (saved(model, tmp_path).name, saved(model, tmp_path).version) == ("0", "1")
    named = saved(model, tmp_path, name="fraud — ñ", version="2.1")
    assert (named.name, named.version) == ("fraud — ñ", "2.1")


def test_unknown_type_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ModelError, match="expected one of exact"):
        saved(trained()[0], tmp_path, type="q9")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_do_not_fit_the_type_are_refused_and_leave_the_old_file(tmp_path):
    ensemble = random_ensemble(0)
    ensemble.leaf_values[0] = 1e6
    (tmp_path / "saved.gguf").write_bytes(b"old")
    with pytest.raises(ModelError, match="too large"):
        saved(model_of(program_of(ensemble)), tmp_path, type="f16")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("type_name", TYPES)
def test_type_changes_leaves_by_half_a_step_and_no_decision_or_few(tmp_path, type_name):
    model = trained()[0]
    again = saved(model, tmp_path, type=type_name)
    (before,), (after,) = ([step for step in m.program.steps if step.op == "trees"] for m in (model, again))
    leaves, found = before.arrays["values"], after.arrays["values"]
    number = type_name.removeprefix("bin8-")
    blocks = np.abs(np.pad(leaves, (0, -len(leaves) % 32))).reshape(-1, 32).max(axis=1).repeat(32)[:len(leaves)]
    bound = {"exact": 0, "f64": 0, "f32": np.abs(leaves) * 2.0**-24, "f16": np.abs(leaves) * 2.0**-11 + 2.0**-25,
             "q8_0": blocks / 127 * 0.502, "q4_0": blocks / 127 * 0.502}[number]
    assert (np.abs(found - leaves) <= bound).all()
    specs = after.arrays["specs"]
    if type_name.startswith("bin8"):
        assert specs[specs[:, trees.RULE] < trees.CATEGORY, trees.N_EDGES].max() <= 255
    else:
        for name in ("edges", "node_columns", "node_ranks", "specs", "tables"):
            assert after.arrays[name].tobytes() == before.arrays[name].tobytes()
    X = rows_of(model)
    difference = np.abs(again.predict(X) - model.predict(X))
    n_trees = len(before.arrays["tree_sizes"])
    assert difference.max() <= np.max(bound) * n_trees / 4 + 1e-15  # the slope of the logistic is a quarter at most
    assert again.size_bytes < model.size_bytes


def test_bin8_keeps_255_edges_of_a_feature_that_has_more(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 2))
    y = np.sin(X[:, 0] * 20) + X[:, 1]
    parameters = {"verbose": -1, "num_leaves": 400, "max_bin": 4000, "min_data_in_leaf": 2, "num_threads": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(X, y), 20)
    path = tmp_path / "m.txt"
    path.write_text(booster.model_to_string())
    model = kernels.load(path)
    (before,), (after,) = ([step for step in m.program.steps if step.op == "trees"]
                           for m in (model, saved(model, tmp_path, type="bin8-f64")))
    assert before.arrays["specs"][:, trees.N_EDGES].max() > 500
    assert after.arrays["specs"][:, trees.N_EDGES].max() == 255
    assert set(after.arrays["edges"]) <= set(before.arrays["edges"])
    error = np.mean((saved(model, tmp_path, type="bin8-f64").predict(X) - model.predict(X)) ** 2)
    assert 0 < error < 0.05 * np.var(model.predict(X))


@pytest.mark.parametrize("type_name", TYPES)
def test_ensemble_of_leaves_and_infinite_thresholds_takes_every_type(tmp_path, type_name):
    for ensemble in (random_ensemble(0, depth=0), random_ensemble(1)):
        model = model_of(program_of(ensemble))
        assert np.isfinite(saved(model, tmp_path, type=type_name).predict(rows_around(ensemble))).all()


# ---- a sound file, as parts that a test changes ------------------------------------------------------------

class Parts:
    """What is in a program's file."""

    def __init__(self, path: Path) -> None:
        file = gguf.read(path)
        self.strings = {key: value for key, value in file.metadata.items() if isinstance(value, str)}
        self.arrays = {key: (g.STRING, value) for key, value in file.metadata.items() if isinstance(value, list)}
        self.content: Any = json.loads(self.strings.pop("tabular.program"))
        self.tensors = {name: (tensor.shape, tensor.tensor_type, tensor.data.tobytes())
                        for name, tensor in file.tensors.items()}

    def write(self, path: Path, text: str | None = None) -> Path:
        strings = self.strings | {"tabular.program": json.dumps(self.content) if text is None else text}
        pairs = [g.pair(key, g.STRING, value) for key, value in strings.items()]
        pairs += [g.pair(key, g.ARRAY, value) for key, value in self.arrays.items()]
        path.write_bytes(g.gguf_of(pairs, self.tensors))
        return path


@cache
def sound_model() -> TabularModel:
    """Two classes from trees and a layer, over a feature of numbers, one of strings, one that is looked up."""
    ensemble = random_ensemble(3, n_trees=3, n_features=3, n_outputs=2, depth=2, cover=None)
    step, builder = program_of(ensemble).steps[0], Builder(3)
    keyed = builder.add("lookup", (0,), 3, arrays={"keys": np.array([-1.0, 0.5]), "values": np.arange(4.0)})
    hot = builder.add("onehot", (0,), 6, numbers={"group": 2}, arrays={
        "keys": np.array([0.0, 1.0]), "places": np.array([0, 1, -1, -1])})
    forest = builder.add("trees", (0,), 2, numbers=step.numbers,
                         arrays=step.arrays | {"cover": np.ones(len(step.arrays["node_columns"]))})
    columns = builder.add("move", (keyed, hot), 3, arrays={
        "runs": runs_of([(0, 0), (1, 5), (-1, 0)]), "constants": np.array([2.5])})
    layer = builder.add("dense", (columns,), 2, numbers={"n_in": 3, "tensor_type": Q8_0, "activation": 1, "rounds": 0},
                        arrays={"weights": quants.quantize(np.eye(2, 32), Q8_0), "bias": np.array([0.5, -0.5])})
    scores = builder.add("binary", (forest, layer), 2, numbers={"function": BINARY_CODES["add"]})
    shifted = builder.add("binary", (scores,), 2, numbers={"function": BINARY_CODES["add"], "rounds": 1},
                          arrays={"constant": np.array([0.25, 0.5])})
    p = builder.add("scale", (shifted,), 2, numbers={"function": 0, "group": 2})
    best = builder.add("reduce", (shifted,), 1, numbers={"function": REDUCE_CODES["argmax"], "group": 2})
    signature = Signature(3, ("a", "b", "c"), ("no", "yes"), "classification", (None, ("x", "y"), None), -1.0)
    return TabularModel("m", "1", "pipeline", signature, builder.finish(best, p, (shifted,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("programs")
    kernels.save(sound_model(), made / "sound.gguf")
    return made


@pytest.fixture
def parts(folder) -> Parts:
    return Parts(folder / "sound.gguf")


ROWS = np.array([[0.5, 1.0, -1.0], [-1.0, 0.0, 2.0], [math.nan, 1.0, 0.0], [1e300, -1.0, 7.0]])


def outcome(path: Path) -> str | None:
    """The error of the file; None where it loads, and answers or refuses rows."""
    try:
        model = kernels.load(path)
    except ModelError as error:
        assert str(error).startswith(f"{path.name}: ") and len(str(error)) < 600, str(error)
        return str(error)
    for other in (model, kernels.load(path, native=False)):
        other.native()
        for rows in (np.resize(ROWS, (4, other.n_features)), np.resize(ROWS, (1, other.n_features))):
            try:
                other.predict(rows)
            except ModelError:
                pass
    return None


def refused(path: Path, match: str = "expected") -> None:
    with pytest.raises(ModelError, match=match) as caught:
        kernels.load(path)
    assert str(caught.value).startswith(f"{path.name}: ")


def test_sound_file_that_was_taken_apart_and_joined_is_the_model(parts, folder):
    again = kernels.load(parts.write(folder / "joined.gguf"))
    assert_same_program(again.program, sound_model().program)
    assert again.predict(ROWS).tolist() == sound_model().predict(ROWS).tolist()
    assert again.predict([[1, "y", 0.5]]).tolist() == again.predict(np.array([[1.0, 1.0, 0.5]])).tolist()


# ---- JSON --------------------------------------------------------------------------------------------------

def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path to everything in a document."""
    if path:
        yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def at(content: Any, path: tuple) -> Any:
    for key in path:
        content = content[key]
    return content


VALUES = [None, True, -1, 0, 1, 3, 2**24, 2**63, 10**400, 0.5, 1e308, "x", "trees", [], [[0]], {"a": 1}, [1] * 100]


def test_any_value_in_any_place_is_refused_or_harmless(parts, folder):
    content, n_refused, n_harmless = parts.content, 0, 0
    for i, path in enumerate(list(places(content))):
        for value in VALUES[i % 2::2]:
            parts.content = copy.deepcopy(content)
            at(parts.content, path[:-1])[path[-1]] = value
            error = outcome(parts.write(folder / "changed.gguf"))
            n_refused, n_harmless = n_refused + (error is not None), n_harmless + (error is None)
    assert n_refused > 1000 and 20 < n_harmless < n_refused / 5


def test_file_without_any_one_key_is_refused(parts, folder):
    content = parts.content
    for path in list(places(content)):
        if isinstance(path[-1], int) or path[-1] in ("categories", "unknown", "rounds", "cover", "constant"):
            continue
        parts.content = copy.deepcopy(content)
        del at(parts.content, path[:-1])[path[-1]]
        assert outcome(parts.write(folder / "missing.gguf")) is not None, path


def test_array_that_the_format_does_not_have_is_refused(parts, folder):
    for step in parts.content["steps"]:
        step["arrays"]["other"] = {"dtype": "float64", "shape": [0]}
    refused(parts.write(folder / "more.gguf"), "found 'other'")


def deep(n: int) -> str:
    return "[" * n + "]" * n


@pytest.mark.parametrize("text", [
    "", "{", "null", "[]", "1", "nul", deep(100_000), '{"steps": ' + deep(100_000) + "}",
    '{"n_features": ' + "9" * 5000 + "}", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}'], ids=lambda text: text[:20])
def test_text_that_is_no_program_is_refused(parts, folder, text):
    refused(parts.write(folder / "text.gguf", text))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1" + "0" * 400])
@pytest.mark.parametrize("name", ["group", "function", "n_in", "rounds"])
def test_number_that_is_not_finite_is_refused(parts, folder, name, constant):
    step = next(step for step in parts.content["steps"] if name in step["numbers"])
    step["numbers"][name] = "HERE"
    refused(parts.write(folder / "number.gguf", json.dumps(parts.content).replace('"HERE"', constant)))


@pytest.mark.parametrize("changes", [
    {"n_features": 2}, {"n_features": 4}, {"prediction": 0}, {"prediction": 99}, {"probabilities": -1},
    {"probabilities": 1}, {"n_prediction_steps": 0}, {"n_prediction_steps": 99}, {"checked": []}, {"checked": [0]},
    {"checked": [99]}, {"checked": [-1]}, {"steps": []}, {"n_classes": 3}, {"n_classes": 1}, {"n_classes": 0},
    {"takes_missing": [3]}, {"takes_missing": [-1]}, {"takes_missing": [2**70]}, {"categories": [None]},
    {"categories": [None, ["x", "x"], None]}, {"categories": [None, ["\ud800"], None]},
    {"categories": [None, [1], None]},
    {"categories": "abc"}, {"unknown": 10**400}, {"unknown": 0.5}, {"model_type": "\ud800"}, {"model_type": 1},
], ids=str)
def test_change_of_the_program_is_refused(parts, folder, changes):
    parts.content |= changes
    refused(parts.write(folder / "program.gguf"))


def test_step_that_reads_itself_or_a_later_one_is_refused(parts, folder):
    content = parts.content
    for i, step in enumerate(content["steps"]):
        for value in (i + 1, i + 2, len(content["steps"]), -1, 2**70):
            parts.content = copy.deepcopy(content)
            parts.content["steps"][i]["inputs"] = [value] * len(step["inputs"])
            refused(parts.write(folder / "cycle.gguf"), f"step {i} .*inputs made by steps before")


@pytest.mark.parametrize("key", ["general.name", "general.version", "tabular.task"])
def test_metadata_that_is_missing_or_no_string_is_refused(parts, folder, key):
    del parts.strings[key]
    refused(parts.write(folder / "string.gguf"), key)
    parts.strings[key] = ""
    refused(parts.write(folder / "string.gguf"), key)


@pytest.mark.parametrize(("key", "value"), [
    ("tabular.classes", (g.STRING, ["no"])), ("tabular.classes", (g.STRING, ["no", "no"])),
    ("tabular.classes", (g.F64, [0.0, 1.0])), ("tabular.classes", (g.U64, [0, 2**63])),
    ("tabular.feature_names", (g.STRING, ["a", "b"])), ("tabular.feature_names", (g.STRING, ["a", "b", "b"])),
    ("tabular.feature_names", (g.I64, [1, 2, 3])),
])
def test_names_and_labels_that_do_not_fit_are_refused(parts, folder, key, value):
    parts.arrays[key] = value
    refused(parts.write(folder / "names.gguf"), key)


# ---- tensors -----------------------------------------------------------------------------------------------

def test_file_without_any_one_tensor_is_refused(parts, folder):
    tensors = parts.tensors
    assert len(tensors) > 15
    for name in tensors:
        parts.tensors = {other: tensor for other, tensor in tensors.items() if other != name}
        refused(parts.write(folder / "tensor.gguf"), name)


@pytest.mark.parametrize("tensor_type", [F64, F32, F16, Q8_0, Q4_0, I8, I16, I32, I64])
def test_tensor_of_another_type_is_refused_or_harmless(parts, folder, tensor_type):
    tensors, n_refused = parts.tensors, 0
    elements, size = gguf.FORMATS[tensor_type][1:]
    for name, (shape, own_type, _) in tensors.items():
        if own_type == tensor_type or shape[-1] % elements:
            continue
        n_bytes = math.prod(shape) // elements * size
        parts.tensors = tensors | {name: (shape, tensor_type, bytes(n_bytes))}
        error = outcome(parts.write(folder / "type.gguf"))
        n_refused += error is not None
        assert error is not None or tensor_type in (F32, F16)  # floats may be floats of other types
    assert n_refused or elements > 1


def test_tensor_of_another_shape_is_refused(parts, folder):
    tensors = parts.tensors
    for name, (shape, tensor_type, data) in tensors.items():
        if tensor_type == Q8_0:
            continue
        row = len(data) // shape[0]
        for other, content in (((shape[0] + 1, *shape[1:]), data + data[-row:]), ((1, *shape), data)):
            parts.tensors = tensors | {name: (other, tensor_type, content)}
            refused(parts.write(folder / "shape.gguf"), name)


BROKEN = {
    "an edge that is no number": ("edges", np.nan), "an infinite leaf": ("2.values", np.inf),
    "a base that is NaN": ("base", np.nan),
    "a cover below zero": ("cover", -1.0), "a bias that is NaN": ("bias", np.nan),
    "a key that is NaN": ("keys", np.nan),
}


def test_vector_of_signalling_nan_is_refused_without_a_warning(tmp_path):
    data = bytearray(DEFAULT_MODEL.read_bytes())
    at = gguf.read(DEFAULT_MODEL).tensors["dense.0.bias"].offset
    data[at:at + 4] = b"\x01\x00\x80\x7f"
    (tmp_path / "m.gguf").write_bytes(data)
    refused(tmp_path / "m.gguf", "finite numbers in dense.0.bias")


def test_sigmoid_beyond_float32_is_refused_without_a_warning(tmp_path):
    kernels.save(model_of(support_vectors()), tmp_path / "m.gguf")
    parts = Parts(tmp_path / "m.gguf")
    (name,) = (name for name in parts.tensors if name.endswith(".prob_a"))
    parts.tensors[name] = ((3,), F64, np.full(3, 1e300).tobytes())
    refused(parts.write(tmp_path / "m.gguf"), "float32 numbers in prob_a")


@pytest.mark.parametrize("case", BROKEN)
def test_tensor_with_a_number_that_may_not_be_is_refused(parts, folder, case):
    array, number = BROKEN[case]
    names = [name for name in parts.tensors if name.endswith(f".{array}")]
    assert names
    for name in names:
        shape, tensor_type, data = parts.tensors[name]
        assert tensor_type == F64
        parts.tensors[name] = (shape, F64, np.float64(number).tobytes() + data[8:])
        refused(parts.write(folder / "broken.gguf"))


def test_any_integer_in_any_tensor_is_refused_or_harmless(parts, folder):
    tensors, dtypes = parts.tensors, {I8: "<i1", I16: "<i2", I32: "<i4", I64: "<i8"}
    n_refused = 0
    for name, (shape, tensor_type, data) in tensors.items():
        if tensor_type not in dtypes:
            continue
        dtype = np.dtype(dtypes[tensor_type])
        for place in range(len(data) // dtype.itemsize):
            for value in (-1, 0, 1, 2, np.iinfo(dtype).max, np.iinfo(dtype).min):
                array = np.frombuffer(data, dtype).copy()
                array[place] = value
                parts.tensors = tensors | {name: (shape, tensor_type, array.tobytes())}
                n_refused += outcome(parts.write(folder / "integer.gguf")) is not None
    assert n_refused > 200


# ---- memory, and what only a call shows --------------------------------------------------------------------

def peak_bytes(path: Path) -> int:
    """The most that loading the file and one call took."""
    tracemalloc.start()
    try:
        outcome(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_counts_of_nothing_take_no_memory(parts, folder):
    outcome(parts.write(folder / "warm.gguf"))  # compiles
    content = parts.content
    for i, step in enumerate(content["steps"]):
        for width in (MAX_WIDTH, 2**31, 2**62):
            parts.content = copy.deepcopy(content)
            parts.content["steps"][i]["width"] = width
            assert peak_bytes(parts.write(folder / "wide.gguf")) < 1 << 20
            for name in step["arrays"]:
                parts.content = copy.deepcopy(content)
                parts.content["steps"][i]["arrays"][name]["shape"][0] = width
                assert peak_bytes(parts.write(folder / "long.gguf")) < 1 << 20
                parts.content["steps"][i]["arrays"][name]["shape"] = [0, width]
                assert peak_bytes(parts.write(folder / "long.gguf")) < 1 << 20


def test_wide_onehots_and_moves_of_a_small_file_are_bounded_together(folder, tmp_path):
    builder = Builder(1)
    builder.add("onehot", (0,), 2, numbers={"group": 2}, arrays={"keys": np.empty(0), "places": np.zeros(2, np.int64)})
    value = builder.add("reduce", (1,), 1, numbers={"function": 0, "group": 2})
    kernels.save(model_of(builder.finish(value, 0, (value,))), tmp_path / "m.gguf")
    parts = Parts(tmp_path / "m.gguf")
    parts.tensors["step.2.places"], parts.tensors["step.4.places"] = [parts.tensors["step.0.places"]] * 2
    hot, total = parts.content["steps"]
    hot["width"] = hot["numbers"]["group"] = total["numbers"]["group"] = MAX_WIDTH // 2
    parts.content["steps"] *= 3
    refused(parts.write(tmp_path / "wide.gguf"), f"at most {MAX_WIDTH} numbers a row")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("score", [-1.0, 2.0, 1e300, -1e300, -1e-9])
def test_class_that_does_not_exist_is_no_answer(folder, score, native):
    builder = Builder(1)
    value = builder.add("unary", (0,), 1, numbers={"function": UNARY_CODES["neg"]})
    signature = Signature(1, None, ("no", "yes"), "classification")
    kernels.save(TabularModel("m", "1", "test", signature, builder.finish(value, 0, (value,))), folder / "index.gguf")
    model = kernels.load(folder / "index.gguf", native=native)
    for n in (1, 2, 65):
        assert model.predict(np.full((n, 1), -1.0)).tolist() == ["yes"] * n
        X = np.full((n, 1), 0.0)
        X[-1] = -score
        with pytest.raises(ModelError):
            model.predict(X)
