"""The compiled kernels and their numpy twins against the oracle: the same bits in every format and shape."""

import ctypes
import math
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import DEFAULT_MODEL, ModelError, TabularModel, gguf, quants
from kernels.export import TENSOR_TYPES, save_dense
from kernels.simd import load_f16, load_scale, sum_lanes
from tests import naive
from tests.kernels import gguf_bytes as g

FORMATS = list(TENSOR_TYPES)
PREDICT_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_ssize_t] * 6)
REPOSITORY = Path(kernels.__file__).resolve().parents[1]


def saved(folder: Path, widths: list[int], activations: list[str], *, seed: int = 0, **arguments) -> Path:
    """A model of random weights."""
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(n_out, n_in)) / np.sqrt(n_in), rng.normal(size=n_out))
              for n_in, n_out in zip(widths, widths[1:], strict=False)]
    path = folder / "model.gguf"
    save_dense(path, layers, activations, **{"name": "m", "version": "1", "task": "regression"} | arguments)
    return path


def both(path: Path) -> tuple[TabularModel, TabularModel]:
    """The compiled one and the numpy one."""
    return kernels.load(path), kernels.load(path, native=False)


def naive_scores(model: TabularModel, row: list[float]) -> list[float]:
    """What the last layer gives, before a classifier's own activation; from the file, not from the model."""
    file = gguf.read(model.path)
    layers = []
    for i, activation in enumerate(file.metadata["tabular.activations"]):
        weight, bias = file.tensors[f"dense.{i}.weight"], file.tensors[f"dense.{i}.bias"]
        rows = [naive.DEQUANTIZE[weight.format.name.lower()](row.tobytes()) for row in weight.data]
        layers.append((rows, bias.data[0].view("<f4").astype(float).tolist(), activation))
    if model.n_classes:
        layers[-1] = (*layers[-1][:2], "identity")
    fill = file.metadata.get("tabular.fill_values")
    offset, scale = (file.tensors[key].data[0].view("<f8").tolist() if key in file.tensors else [default] * len(row)
                     for key, default in (("input.offset", 0.0), ("input.scale", 1.0)))
    return naive.forward(layers, naive.prepare(row, None if fill is None else fill.tolist(), offset, scale))


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("widths", [[1, 1], [5, 1], [32, 1], [33, 1], [100, 1], [7, 1, 1], [5, 4, 1],
                                    [40, 37, 1], [3, 33, 6, 1]])
def test_predictions_are_the_oracles(tmp_path, format_name, widths):
    activations = ["tanh", "relu"][:len(widths) - 2] + ["identity"]
    path = saved(tmp_path, widths, activations, tensor_type=format_name)
    X = np.random.default_rng(1).normal(size=(4, widths[0])) * 3
    for model in both(path):
        assert model.predict(X).tolist() == [naive_scores(model, row)[0] for row in X.tolist()]


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic"])
def test_hidden_and_last_activations_are_the_oracles(tmp_path, activation):
    path = saved(tmp_path, [6, 9, 1], [activation, activation])
    X = np.random.default_rng(1).normal(size=(50, 6)) * 10.0 ** np.arange(-3, 3)
    for model in both(path):
        assert model.predict(X).tolist() == [naive_scores(model, row)[0] for row in X.tolist()]


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_softmax_and_its_classes_are_the_oracles(tmp_path, n_classes):
    labels = [f"class {i}" for i in range(n_classes)]
    path = saved(tmp_path, [4, 8, n_classes], ["relu", "softmax"], task="classification", classes=labels)
    X = np.random.default_rng(1).normal(size=(50, 4)) * 20
    for model in both(path):
        scores = [naive_scores(model, row) for row in X.tolist()]
        assert model.predict(X).tolist() == [labels[s.index(max(s))] for s in scores]
        assert model.predict_proba(X).tolist() == [naive.softmax(s) for s in scores]


@pytest.mark.parametrize(("task", "activation"), [("score", "identity"), ("classification", "logistic")])
def test_probabilities_of_one_score_are_one_minus_p_and_p(tmp_path, task, activation):
    classes = [10, 20] if task == "classification" else None
    path = saved(tmp_path, [4, 1], [activation], task=task, classes=classes)
    X = np.random.default_rng(1).normal(size=(50, 4)) * 100
    for model in both(path):
        scores = [naive_scores(model, row)[0] for row in X.tolist()]
        expected = scores if classes is None else [classes[s > 0] for s in scores]
        assert model.predict(X).tolist() == expected
        assert model.predict_proba(X).tolist() == [[1 - naive.logistic(s), naive.logistic(s)] for s in scores]


def test_layers_of_different_formats_work_together(tmp_path):
    widths, types = [6, 5, 7, 4, 1], ["f32", "q4_0", "f16", "q8_0"]
    tensors = {}
    for i, format_name in enumerate(types):
        n_in, n_out, tensor_type = widths[i], widths[i + 1], TENSOR_TYPES[format_name]
        padded = np.zeros((n_out, -(-n_in // 32) * 32))
        padded[:, :n_in] = np.random.default_rng(i).normal(size=(n_out, n_in))
        weights = quants.quantize(padded, tensor_type)
        tensors[f"dense.{i}.weight"] = (padded.shape, tensor_type, weights.tobytes())
        tensors[f"dense.{i}.bias"] = ((n_out,), TENSOR_TYPES["f32"], np.full(n_out, 0.5, "<f4").tobytes())
    strings = {"general.architecture": "tabular", "general.name": "m", "general.version": "1",
               "tabular.task": "regression"}
    pairs = [g.pair(key, g.STRING, text) for key, text in strings.items()]
    pairs.append(g.pair("tabular.layer_widths", g.ARRAY, (g.U32, widths)))
    pairs.append(g.pair("tabular.activations", g.ARRAY, (g.STRING, ["tanh", "relu", "logistic", "identity"])))
    path = tmp_path / "mixed.gguf"
    path.write_bytes(g.gguf_of(pairs, tensors))
    X = np.random.default_rng(1).normal(size=(20, 6))
    for model in both(path):
        used = [step.numbers["tensor_type"] for step in model.program.steps if step.op == "dense"]
        assert used == [TENSOR_TYPES[name] for name in types]
        assert model.predict(X).tolist() == [naive_scores(model, row)[0] for row in X.tolist()]


def test_product_is_rounded_before_it_is_added(tmp_path):
    # (1 + 2^-23)(1 + 2^-52) + (−1 − 2^-23): a fused multiply-add keeps the product's last bits, rounding
    # drops them.
    w, x = float(np.float32(1 + 2**-23)), 1 + 2.0**-52
    first = [-w] + [0.0] * 7  # lane 0 of the first group, then lane 0 of the second
    path = tmp_path / "model.gguf"
    save_dense(path, [([[*first, w]], [0.0])], ["identity"], name="m", version="1", task="regression",
               tensor_type="f32")
    row = [1.0] + [0.0] * 7 + [x]
    rounded, fused = w * x - w, float(Fraction(w) * Fraction(x) - Fraction(w))
    assert rounded != fused
    for model in both(path):
        assert model.predict([row]).tolist() == [rounded]


def test_every_finite_half_is_loaded_exactly():
    bits = [b for b in range(65536) if b & 0x7C00 != 0x7C00]
    lanes = np.zeros((len(bits), 8), "<u2")
    lanes[np.arange(len(bits)), np.arange(len(bits)) % 8] = bits

    @numba.njit
    def loaded(address, vectors, scales):
        for i in range(len(vectors)):
            vectors[i] = sum_lanes(load_f16(address + 16 * i))
            scales[i] = sum_lanes(load_scale(address + 16 * i + 2 * (i % 8)))

    vectors, scales = np.empty(len(bits)), np.empty(len(bits))
    loaded(lanes.ctypes.data, vectors, scales)
    expected = [naive.half(b) for b in bits]
    assert vectors.tolist() == expected
    assert scales.tolist() == [8 * value for value in expected]


EXTREMES = st.one_of(st.floats(allow_infinity=False, allow_nan=False), st.floats(-50, 50),
                     st.sampled_from([0.0, -0.0, 5e-324]))


@st.composite
def models(draw):
    """Arguments of `saved`, and rows."""
    n_hidden = draw(st.integers(0, 2))
    widths = [draw(st.integers(1, 40)) for _ in range(n_hidden + 1)]
    activations = [draw(st.sampled_from(["relu", "tanh", "logistic", "identity"])) for _ in range(n_hidden)]
    task, last = draw(st.sampled_from([
        ("score", "identity"), ("regression", "identity"), ("regression", "relu"),
        ("classification", "logistic"), ("classification", "softmax"),
    ]))
    n_out = draw(st.integers(2, 6)) if last == "softmax" else 1
    classes = list(range(max(n_out, 2))) if task == "classification" else None
    vector = st.none() | st.lists(st.floats(-1e3, 1e3), min_size=widths[0], max_size=widths[0])
    fill_values = draw(vector)
    values = EXTREMES if fill_values is None else EXTREMES | st.just(math.nan)
    rows = draw(st.lists(st.lists(values, min_size=widths[0], max_size=widths[0]), max_size=4))
    arguments = {
        "widths": [*widths, n_out], "activations": [*activations, last], "task": task, "classes": classes,
        "fill_values": fill_values, "input_offset": draw(vector), "input_scale": draw(vector),
        "tensor_type": draw(st.sampled_from(FORMATS)), "seed": draw(st.integers(0, 2**32 - 1)),
    }
    return arguments, np.array(rows).reshape(-1, widths[0])


def outcome(model: TabularModel, X: np.ndarray) -> object:
    try:
        return model.predict(X).tobytes(), model.predict_proba(X).tobytes() if model.n_classes else None
    except ModelError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(models())
def test_compiled_and_numpy_answers_are_the_same_bits(drawn):
    arguments, X = drawn
    with tempfile.TemporaryDirectory() as folder:
        native, portable = both(saved(Path(folder), **arguments))
        assert outcome(native, X) == outcome(portable, X)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows_and_change_nothing(tmp_path, threads):
    path = saved(tmp_path, [30, 64, 3], ["relu", "softmax"], task="classification", classes=["a", "b", "c"])
    X = np.random.default_rng(1).normal(size=(3001, 30))
    alone, shared = kernels.load(path), kernels.load(path, threads=threads)
    assert len(shared._shares(len(X))) == threads
    assert shared.predict_proba(X).tobytes() == alone.predict_proba(X).tobytes()
    assert shared.predict(X).tolist() == alone.predict(X).tolist()


def test_overflow_in_any_threads_share_is_reported(tmp_path):
    path = saved(tmp_path, [30, 64, 1], ["identity", "identity"])
    X = np.ones((3001, 30))
    X[-1] = 1e308
    with pytest.raises(ModelError, match="overflow"):
        kernels.load(path, threads=2).predict(X)


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic"])
def test_hidden_sum_that_is_no_number_is_not_hidden_by_its_activation(tmp_path, activation):
    path = tmp_path / "model.gguf"  # inf − inf in the hidden unit
    save_dense(path, [([[3.0, -3.0]], [0.0]), ([[1.0]], [0.0])], [activation, "identity"],
               name="m", version="1", task="regression", tensor_type="f32")
    for model in both(path):
        with pytest.raises(ModelError, match="overflow"):
            model.predict([[1e308, 1e308]])


def test_kernel_stays_within_its_buffers_and_reports_overflow(tmp_path):
    path = saved(tmp_path, [5, 33, 3], ["relu", "softmax"], task="classification", classes=[0, 1, 2])
    model = kernels.load(path)
    native = model.native()
    predict = PREDICT_TYPE(native.predict_address)
    X, canary = np.random.default_rng(1).normal(size=(2, 5)), 12345.0
    predictions, scratch = np.full(2 + 1, canary), np.full(native.scratch_doubles + 1, canary)
    probabilities = np.full(2 * 3 + 1, canary)

    def status(wanted: int) -> int:
        return predict(native.state_address, X.ctypes.data, 2, predictions.ctypes.data, wanted,
                       scratch.ctypes.data)

    assert status(0) == 0
    assert probabilities.tolist() == [canary] * 7
    assert status(probabilities.ctypes.data) == 0
    assert predictions[:2].tolist() == model.predict(X).tolist()
    assert probabilities[:6].tolist() == model.predict_proba(X).ravel().tolist()
    assert (predictions[-1], probabilities[-1], scratch[-1]) == (canary,) * 3
    X[1, 0] = 1e308 * 1e308
    assert status(0) == 1


def test_native_model_describes_itself(tmp_path):
    path = saved(tmp_path, [5, 1], ["logistic"], task="classification", classes=["né\"", "b"],
                 fill_values=[0.0] * 5)
    native = kernels.load(path).native()
    assert (native.n_features, native.n_classes, native.takes_missing) == (5, 2, True)
    assert native.labels == (b'"n\\u00e9\\""', b'"b"')
    demo = kernels.load(DEFAULT_MODEL).native()
    assert (demo.n_features, demo.n_classes, demo.labels, demo.takes_missing) == (5, 2, None, False)
    assert kernels.load(saved(tmp_path, [5, 1], ["identity"])).native().n_classes == 0


def test_native_model_outlives_the_model(tmp_path):
    path = saved(tmp_path, [5, 1], ["identity"])
    X = np.ones((1, 5))
    expected = kernels.load(path).predict(X)[0]
    native = kernels.load(path).native()
    path.unlink()
    prediction, scratch = ctypes.c_double(), np.empty(native.scratch_doubles)
    status = PREDICT_TYPE(native.predict_address)(
        native.state_address, X.ctypes.data, 1, ctypes.addressof(prediction), 0, scratch.ctypes.data)
    assert (status, prediction.value) == (0, expected)


COMPILE_ALL = """
from kernels import compiled_program as c, dense, row_kernels, tree_kernels
functions = [*dense.KERNELS.values(), *(k[0] for k in row_kernels.KERNELS.values()), tree_kernels.run_trees]
compiled = [c.compiled(f) for f in functions] + [c.compiled_driver(), c.compiled_ask()]
print(len(compiled), sum(f.cache_hits for f in compiled), len({f.address for f in compiled}))
"""


def test_second_process_finds_every_kernel_in_the_cache(tmp_path):
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(tmp_path)}
    (n, hits, addresses), again = [
        subprocess.run([sys.executable, "-W", "error", "-c", COMPILE_ALL], env=environment, cwd=REPOSITORY,
                       capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert int(n) >= 17 and (hits, addresses) == ("0", n)
    assert again == [n, n, n]


def test_kernels_fuse_no_multiply_with_an_add(tmp_path):
    code = ("from kernels import compiled_program as c, dense, row_kernels\n"
            "for f in (*dense.KERNELS.values(), row_kernels.run_prepare, row_kernels.run_scale):\n"
            "    print(c.compiled(f)._library.get_asm_str())")
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(tmp_path)}
    assembly = subprocess.run([sys.executable, "-c", code], env=environment, cwd=REPOSITORY,
                              capture_output=True, text=True, check=True).stdout
    assert "mul" in assembly
    for fused in ("fmadd", "fmla", "fmsub"):
        assert fused not in assembly


def test_importing_the_package_does_not_import_numba():
    code = ("import sys, kernels; kernels.load(kernels.DEFAULT_MODEL, native=False).predict([[0] * 5]); "
            "print('numba' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
                           check=True)
    assert found.stdout.strip() == "False"
