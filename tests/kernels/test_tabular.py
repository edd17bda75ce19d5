"""Tabular models: what the loader refuses, by field, and what rows may hold."""

import numpy as np
import pytest

import kernels
from kernels import DEFAULT_MODEL, ModelError
from kernels.data import write_fraud_detector
from kernels.gguf import F16, F32, F64, Q8_0
from tests.kernels import gguf_bytes as g

SCALE_OF_INFINITY = b"\x00\x7c" + bytes(32)
Q4_1 = 3
NAN, ZEROS = np.array([np.nan] * 2, "<f4").tobytes(), bytes(8)

# A sound model of 3 features, 2 hidden units and 2 classes, as parts that a test replaces.
STRINGS = {
    "general.architecture": "tabular", "general.name": "m", "general.version": "1",
    "tabular.task": "classification",
}
ARRAYS = {
    "tabular.layer_widths": (g.U32, [3, 2, 2]), "tabular.activations": (g.STRING, ["relu", "softmax"]),
    "tabular.classes": (g.STRING, ["no", "yes"]), "tabular.feature_names": (g.STRING, ["a", "b", "c"]),
    "tabular.fill_values": (g.F64, [0.0, 1.0, 2.0]),
}
TENSORS = {
    "dense.0.weight": ((2, 32), Q8_0, bytes(68)), "dense.0.bias": ((2,), F32, ZEROS),
    "dense.1.weight": ((2, 32), Q8_0, bytes(68)), "dense.1.bias": ((2,), F32, ZEROS),
    "input.offset": ((3,), F64, bytes(24)), "input.scale": ((3,), F64, bytes(24)),
}
BINARY = {
    "tabular.layer_widths": (g.U32, [3, 2, 1]), "tabular.activations": (g.STRING, ["relu", "logistic"]),
    "dense.1.weight": ((1, 32), Q8_0, bytes(34)), "dense.1.bias": ((1,), F32, bytes(4)),
}


def write(path, changes: dict[str, object]) -> None:
    """The sound model with `changes` by field; None leaves a field out."""
    parts = {key: part for key, part in (STRINGS | ARRAYS | TENSORS | changes).items() if part is not None}
    tensors = {key: part for key, part in parts.items() if isinstance(part, tuple) and len(part) == 3}
    pairs = [g.pair(key, g.STRING, part) if isinstance(part, str) else g.pair(key, g.ARRAY, part)
             for key, part in parts.items() if key not in tensors]
    path.write_bytes(g.gguf_of(pairs, tensors))


SOUND = {
    "all fields": {},
    "only what must be": dict.fromkeys(["tabular.feature_names", "tabular.fill_values", "input.offset",
                                        "input.scale"]),
    "labels that are integers": {"tabular.classes": (g.I32, [-5, 7])},
    "binary": BINARY,
    "score": BINARY | {"tabular.task": "score", "tabular.activations": (g.STRING, ["relu", "identity"])},
    "regression": BINARY | {"tabular.task": "regression",
                            "tabular.activations": (g.STRING, ["relu", "relu"])},
}


@pytest.mark.parametrize("case", SOUND)
def test_sound_file_is_loaded(tmp_path, case):
    write(tmp_path / "m.gguf", SOUND[case])
    model = kernels.load(tmp_path / "m.gguf", native=False)
    assert model.predict([[1, 2, 3]]).shape == (1,)
    assert (model.kind, model.model_type, model.n_features) == ("tabular", "mlp", 3)
    assert model.size_bytes == (tmp_path / "m.gguf").stat().st_size


REFUSED = {
    "another architecture": ({"general.architecture": "llama"}, "general.architecture 'tabular'"),
    "no name": ({"general.name": None}, "general.name"),
    "empty version": ({"general.version": ""}, "general.version"),
    "name a number": ({"general.name": (g.U8, [1])}, "general.name"),
    "unknown task": ({"tabular.task": "ranking"}, "tabular.task"),
    "no widths": ({"tabular.layer_widths": None}, "tabular.layer_widths"),
    "widths of strings": ({"tabular.layer_widths": (g.STRING, ["3"])}, "tabular.layer_widths"),
    "widths of floats": ({"tabular.layer_widths": (g.F32, [3, 2, 2])}, "tabular.layer_widths"),
    "one width": ({"tabular.layer_widths": (g.U32, [3])}, "tabular.layer_widths"),
    "width of 0": ({"tabular.layer_widths": (g.U32, [3, 0, 2])}, "tabular.layer_widths"),
    "width below 0": ({"tabular.layer_widths": (g.I32, [-3, 2, 2])}, "tabular.layer_widths"),
    "huge width": ({"tabular.layer_widths": (g.U64, [3, 2**63, 2])}, "shape"),
    "one activation too few": ({"tabular.activations": (g.STRING, ["softmax"])}, "tabular.activations"),
    "unknown activation": ({"tabular.activations": (g.STRING, ["gelu", "softmax"])}, "tabular.activations"),
    "softmax before the end": ({"tabular.activations": (g.STRING, ["softmax", "softmax"])},
                               "tabular.activations"),
    "classes by identity": ({"tabular.activations": (g.STRING, ["relu", "identity"])}, "tabular.activations"),
    "classes by two logistics": ({"tabular.activations": (g.STRING, ["relu", "logistic"])},
                                 "softmax takes more"),
    "classes by one softmax": (BINARY | {"tabular.activations": (g.STRING, ["relu", "softmax"])},
                               "tabular.classes"),
    "score by logistic": (BINARY | {"tabular.task": "score"}, "tabular.activations"),
    "regression by softmax": (BINARY | {"tabular.task": "regression",
                                        "tabular.activations": (g.STRING, ["relu", "softmax"])},
                              "tabular.activations"),
    "regression of two": ({"tabular.task": "regression"},
                          "one output for tabular.task 'regression', found 2"),
    "no classes": ({"tabular.classes": None}, "tabular.classes"),
    "three classes": ({"tabular.classes": (g.STRING, ["a", "b", "c"])},
                      "2 different labels in tabular.classes"),
    "class twice": ({"tabular.classes": (g.STRING, ["a", "a"])}, "tabular.classes"),
    "classes of floats": ({"tabular.classes": (g.F32, [0, 1])}, "tabular.classes"),
    "classes of bools": ({"tabular.classes": (g.BOOL, [False, True])}, "tabular.classes"),
    "class of 64 bits": ({"tabular.classes": (g.U64, [0, 2**63])}, "tabular.classes"),
    "two feature names": ({"tabular.feature_names": (g.STRING, ["a", "b"])}, "tabular.feature_names"),
    "feature name twice": ({"tabular.feature_names": (g.STRING, ["a", "b", "a"])}, "tabular.feature_names"),
    "feature names numbers": ({"tabular.feature_names": (g.U8, [1, 2, 3])}, "tabular.feature_names"),
    "two fill values": ({"tabular.fill_values": (g.F64, [1, 2])}, "tabular.fill_values"),
    "fill values of float32": ({"tabular.fill_values": (g.F32, [1, 2, 3])}, "tabular.fill_values"),
    "fill value NaN": ({"tabular.fill_values": (g.F64, [1, 2, np.nan])}, "tabular.fill_values"),
    "no weight": ({"dense.1.weight": None}, "a tensor dense.1.weight"),
    "no bias": ({"dense.0.bias": None}, "a tensor dense.0.bias"),
    "weight of another shape": ({"dense.0.weight": ((3, 32), Q8_0, bytes(102))},
                                "shape (2, 32) of dense.0.weight"),
    "weight not padded": ({"dense.0.weight": ((2, 3), F32, bytes(24))}, "shape (2, 32) of dense.0.weight"),
    "weight of another type": ({"dense.0.weight": ((2, 32), Q4_1, bytes(40))},
                               "Q8_0 or Q4_0 for dense.0.weight, found Q4_1"),
    "bias of another type": ({"dense.0.bias": ((2,), F16, bytes(4))}, "F32 for dense.0.bias, found F16"),
    "bias of another shape": ({"dense.0.bias": ((1, 2), F32, ZEROS)}, "shape (2,) of dense.0.bias"),
    "weight infinite": ({"dense.0.weight": ((2, 32), Q8_0, bytes(34) + SCALE_OF_INFINITY)},
                        "finite numbers in dense.0.weight"),
    "weight NaN": ({"dense.1.weight": ((2, 32), F32, NAN * 32)}, "finite numbers in dense.1.weight"),
    "bias NaN": ({"dense.1.bias": ((2,), F32, NAN)}, "finite numbers in dense.1.bias"),
    "scale NaN": ({"input.scale": ((3,), F64, np.full(3, np.nan).tobytes())},
                  "finite numbers in input.scale"),
    "offset of float32": ({"input.offset": ((3,), F32, bytes(12))}, "F64 for input.offset"),
    "offset of another shape": ({"input.offset": ((4,), F64, bytes(32))}, "shape (3,) of input.offset"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsound_file_is_refused_by_field(tmp_path, case):
    changes, expected = REFUSED[case]
    write(tmp_path / "m.gguf", changes)
    with pytest.raises(ModelError) as raised:
        kernels.load(tmp_path / "m.gguf")
    assert expected in str(raised.value)
    assert str(raised.value).startswith("m.gguf: expected")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("rows", "expected"), [
    ([1, 2, 3, 4, 5], "rows of 5 features, found an array of shape (5,)"),
    ([[1, 2, 3]], "rows of 5 features, found an array of shape (1, 3)"),
    ([[[1, 2, 3, 4, 5]]], "shape (1, 1, 5)"),
    ([[1, 2, 3, 4, "x"]], "rows of 5 numbers"),
    ([[1, 2], [3]], "rows of 5 numbers"),
    ([[1, 2, 3, 4, 10**400]], "rows of 5 numbers"),
    ([[0, 0, 0, 0, 0], [1, 2, np.nan, 4, 5]], "row 1, feature 2 is nan"),
    ([[1, 2, 3, 4, -np.inf]], "row 0, feature 4 is -inf"),
    ([[1.7e308, -1.7e308, 1.7e308, -1.7e308, 1.7e308]], "too large: a score overflows"),
])
def test_rows_that_make_no_sense_are_refused(rows, expected, native):
    model = kernels.load(DEFAULT_MODEL, native=native)
    with pytest.raises(ModelError) as raised:
        model.predict(rows)
    assert expected in str(raised.value)


@pytest.mark.parametrize("native", [True, False])
def test_no_rows_give_no_predictions(tmp_path, native):
    write(tmp_path / "m.gguf", {})
    model = kernels.load(tmp_path / "m.gguf", native=native)
    assert model.predict(np.empty((0, 3))).shape == (0,)
    assert model.predict_proba(np.empty((0, 3))).shape == (0, 2)


@pytest.mark.parametrize("native", [True, False])
def test_rows_of_any_numeric_type_and_order_are_taken(native):
    model = kernels.load(DEFAULT_MODEL, native=native)
    X = np.arange(20.0).reshape(4, 5)
    expected = model.predict(X).tolist()
    for same in (X.tolist(), X.astype(np.float32), X.astype(int), np.asfortranarray(X),
                 np.repeat(X, 2, axis=0)[::2]):
        assert model.predict(same).tolist() == expected


def test_missing_values_are_filled_where_the_model_says_so(tmp_path):
    write(tmp_path / "m.gguf", {"tabular.fill_values": (g.F64, [0.5, 1.5, 2.5])})
    model = kernels.load(tmp_path / "m.gguf", native=False)
    assert model.takes_missing
    filled = model.predict_proba([[1, 1.5, 2.5]]).tolist()
    assert model.predict_proba([[1, np.nan, np.nan]]).tolist() == filled
    with pytest.raises(ModelError, match="feature 0 is inf"):
        model.predict([[np.inf, np.nan, 1]])


def test_regression_has_no_probabilities(tmp_path):
    write(tmp_path / "m.gguf", SOUND["regression"])
    with pytest.raises(ModelError, match="no probabilities"):
        kernels.load(tmp_path / "m.gguf").predict_proba([[1, 2, 3]])


def test_less_than_one_thread_is_refused():
    with pytest.raises(ModelError, match="1 thread or more, found 0"):
        kernels.load(DEFAULT_MODEL, threads=0)


def test_embedded_model_is_the_courses():
    model = kernels.load(DEFAULT_MODEL)
    assert (model.name, model.version, model.model_type) == ("fraud-detector", "1.0.0", "linear")
    assert model.signature == kernels.tabular.Signature(5, None, None, "score")
    x = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    score = (x @ write_fraud_detector.WEIGHTS[0] + write_fraud_detector.BIAS)[0]
    assert abs(model.predict(x)[0] - score) <= 0.5 * (0.8 / 127) * x.sum() * 1.001 + 1e-8
    assert model.predict_proba(x)[0, 1] > 0.5


def test_embedded_model_is_written_again_to_the_byte(tmp_path):
    write_fraud_detector.write(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == DEFAULT_MODEL.read_bytes()


def test_label_that_ends_in_nul_keeps_it(tmp_path):
    write(tmp_path / "m.gguf", {"tabular.classes": (g.STRING, ["no\0", "yes"])})
    model = kernels.load(tmp_path / "m.gguf", native=False)
    assert model.predict(np.zeros((1, 3))).tolist() == ["no\0"]
