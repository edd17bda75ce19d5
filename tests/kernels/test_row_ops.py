"""The operations of a program: values against an oracle in plain Python, and the kernels' bits against numpy's."""

import ctypes
import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from kernels import ModelError, quants, tabular
from kernels.compiled_program import BLOCK_ROWS
from kernels.gguf import F16, F32, F64, Q4_0, Q8_0
from kernels.native import ACTIVATIONS
from kernels.program import Builder, Program
from kernels.row_ops import BINARY_CODES, OPS, REDUCE_CODES, UNARY_CODES, runs_of
from kernels.step import MAX_WIDTH
from kernels.tabular import Signature, TabularModel
from tests import naive

PREDICT_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_ssize_t] * 6)
GUARD, CANARY = 64, 12345.0  # float64 on both sides of every buffer
ROW_COUNTS = [1, 7, 8, 9, 63, 64, 65, 130]
WIDTHS = [1, 7, 8, 9, 33]
NAN, INF = math.nan, math.inf
SPECIAL = [NAN, INF, -INF, 0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1e-45, 1e-40, 1e-7, -1e-7, 1.0000001e-7,
           0.25, 0.5, -0.5, 0.99999, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0, 3.0, -3.0, 49.9, 50.0, 51.0, 88.8, 709.7, 710.0,
           -745.0, -746.0, 2.0**52 + 1, -2.0**52 - 0.5, 2.0**53, 1e19, -1e19, 3.4028235677973366e38, 1e39, 1e300,
           -1e300, 1.7976931348623157e308]


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Half of them special, the others of every magnitude."""
    rng = np.random.default_rng(seed)
    usual = rng.normal(size=shape) * 10.0 ** rng.integers(-4, 5, shape)
    return np.where(rng.random(shape) < 0.5, rng.choice(SPECIAL, shape), usual)


def bits(values) -> bytes:
    """The bits, all NaN being one."""
    array = np.array(values, np.float64)
    array[np.isnan(array)] = np.nan
    return array.tobytes()


def assert_same(found, expected) -> None:
    """Equal to the bit; says the first number that is not."""
    found, expected = np.asarray(found, float), np.asarray(expected, float).reshape(np.shape(found))
    if bits(found) != bits(expected):
        pairs = zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True)
        place, pair = next((i, pair) for i, pair in enumerate(pairs) if bits(pair[0]) != bits(pair[1]))
        raise AssertionError(f"at {np.unravel_index(place, found.shape)}: {pair[0]!r}, expected {pair[1]!r}")


def model_of(program: Program, **options) -> TabularModel:
    task = "score" if program.probabilities else "regression"
    return TabularModel("m", "1", "test", Signature(program.n_features, None, None, task), program, **options)


def finished(builder: Builder, value: int, probabilities: int = 0) -> Program:
    """The program that predicts a value, whatever it is: what is checked is a constant."""
    checked = builder.add("move", (0,), 1, arrays={"runs": np.array([[-1, 0, 1]]), "constants": np.zeros(1)})
    return builder.finish(value, probabilities, (checked,))


def guarded_call(model: TabularModel, X: np.ndarray, wanted: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """(predictions, probabilities, status) of the kernel; the guards around all its buffers must stay as they are."""
    native, n = model.native(), len(X)
    sizes = {"rows": X.size, "predictions": n * native.n_outputs, "probabilities": n * native.n_classes,
             "scratch": native.scratch_doubles}
    buffers = {name: np.full(size + 2 * GUARD, CANARY) for name, size in sizes.items()}
    buffers["rows"][GUARD:GUARD + X.size] = X.ravel()
    at = {name: buffer.ctypes.data + GUARD * 8 for name, buffer in buffers.items()}
    status = PREDICT_TYPE(native.predict_address)(native.state_address, at["rows"], n, at["predictions"],
                                                  at["probabilities"] if wanted else 0, at["scratch"])
    for name, buffer in buffers.items():
        assert (buffer[:GUARD] == CANARY).all() and (buffer[GUARD + sizes[name]:] == CANARY).all(), name
    assert bits(buffers["rows"][GUARD:GUARD + X.size]) == bits(X)
    predictions, probabilities = (buffers[name][GUARD:GUARD + sizes[name]].reshape(n, -1)
                                  for name in ("predictions", "probabilities"))
    return predictions, probabilities, status


@pytest.mark.parametrize("place", [-1, 3, 3 + GUARD - 1])
def test_guards_see_a_kernel_that_writes_outside_its_buffer(place):
    def write(state, rows, n_rows, predictions, probabilities, scratch):
        ctypes.c_double.from_address(predictions + place * 8).value = 1.0
        return 0
    callback = PREDICT_TYPE(write)
    native = SimpleNamespace(predict_address=ctypes.cast(callback, ctypes.c_void_p).value, state_address=0, n_outputs=1,
                             n_classes=0, scratch_doubles=8)
    with pytest.raises(AssertionError, match="predictions"):
        guarded_call(SimpleNamespace(native=lambda: native), np.ones((3, 2)), wanted=False)


def run(program: Program, X: np.ndarray) -> np.ndarray:
    """The predictions (n, n_outputs), after it was seen that kernels and numpy give the same bits for any row count."""
    compiled, portable = model_of(program), model_of(program, native=False)
    expected = portable.predict(X).reshape(len(X), -1)
    for n in [n for n in ROW_COUNTS if n <= len(X)]:
        assert_same(compiled.predict(X[:n]).reshape(n, -1), expected[:n])
    n = min(len(X), 65)
    predictions, _, status = guarded_call(compiled, X[:n], wanted=False)
    assert status == 0
    assert_same(predictions, expected[:n])
    return expected


def run_step(op: str, inputs: list[np.ndarray], width: int, numbers=None, arrays=None) -> np.ndarray:
    """A step over inputs (n, width each), which are columns of one row."""
    X = np.concatenate(inputs, axis=1)
    builder, values, first = Builder(X.shape[1]), [], 0
    for part in inputs:
        columns = [(0, first + i) for i in range(part.shape[1])]
        arrays_of_move = {"runs": runs_of(columns), "constants": np.empty(0)}
        values.append(builder.add("move", (0,), len(columns), arrays=arrays_of_move))
        first += part.shape[1]
    return run(finished(builder, builder.add(op, values, width, numbers=numbers, arrays=arrays)), X)


def as_f32(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def float32s(X: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return X.astype(np.float32)


def rounded(rounds: int, x: float) -> float:
    return as_f32(x) if rounds else x


# ---- functions of one and two numbers ----------------------------------------------------------------------

def exp(x: float) -> float:
    return INF if 709.8 < x else math.exp(x)


def log(x: float) -> float:
    return NAN if x != x or x < 0 else -INF if x == 0 else math.log(x)


def logistic(x: float) -> float:
    return x if x != x else 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


def probit(x: float) -> float:
    if not 0 < x < 1:
        return NAN
    y = 2.0 * x - 1.0
    w = log((1.0 - y) * (1.0 + y))
    if w == -INF:
        return NAN
    v = 2.0 / (math.pi * 0.147) + 0.5 * w
    return 1.41421356 * math.copysign(1.0, y) * math.sqrt(math.sqrt(v * v - 1.0 / 0.147 * w) - v)


def trunc(x: float) -> float:
    return x if math.isnan(x) or math.isinf(x) else math.copysign(float(int(x)), x)


ONE = {
    "abs": abs, "exp": exp, "log": log, "neg": lambda x: -x, "not": lambda x: float(x == 0),
    "relu": lambda x: 0.0 if x <= 0 else x, "sigmoid": logistic,
    "sqrt": lambda x: x if x == 0 or x != x else NAN if x < 0 else math.sqrt(x),
    "tanh": math.tanh, "float32": as_f32, "trunc": trunc, "bool": lambda x: float(x != 0),
    "positive": lambda x: float(x > 0), "log1p_exp": lambda x: x if x > 50 else math.log(1 + exp(x)),
    "signed_square": lambda x: -(x * x) if x < 0 else x * x, "probit": probit, "complement": lambda x: 1.0 - x,
}


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("function", UNARY_CODES)
def test_function_of_one_number(function, rounds):
    width = WIDTHS[UNARY_CODES[function] % len(WIDTHS)]
    X = numbers(UNARY_CODES[function], 130, width)
    found = run_step("unary", [X], width, {"function": UNARY_CODES[function], "rounds": rounds})
    assert_same(found, [[rounded(rounds, ONE[function](x)) for x in row] for row in X.tolist()])


def divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    return NAN if a == 0 or a != a else math.copysign(INF, a) * math.copysign(1, b)


def power(a: float, b: float) -> float:
    """C's pow, by its cases: Python raises where it gives an infinity."""
    is_odd = math.isfinite(b) and b % 2 == 1
    if a == 0 and b < 0:
        return math.copysign(INF, a) if is_odd else INF
    if a < 0 and math.isfinite(a) and math.isfinite(b) and b % 1:
        return NAN
    try:
        return math.pow(a, b)
    except OverflowError:
        return -INF if a < 0 and is_odd else INF


TWO = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": divide, "pow": power,
    "max": lambda a, b: a if a != a or a > b else b, "min": lambda a, b: a if a != a or a < b else b,
    "and": lambda a, b: float(bool(a) and bool(b)), "or": lambda a, b: float(bool(a) or bool(b)),
    "equal": lambda a, b: float(a == b), "greater": lambda a, b: float(a > b),
    "greater_or_equal": lambda a, b: float(a >= b), "less": lambda a, b: float(a < b),
    "less_or_equal": lambda a, b: float(a <= b), "whole_div": lambda a, b: trunc(divide(a, b)),
}


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("function", BINARY_CODES)
def test_function_of_two_numbers(function, rounds):
    code, width = BINARY_CODES[function], WIDTHS[BINARY_CODES[function] % len(WIDTHS)]
    a, b = numbers(code, 520 // width + 70, width), numbers(code + 100, 520 // width + 70, width)
    ties = np.random.default_rng(code).random(a.shape) < 0.2
    b[ties] = a[ties]
    found = run_step("binary", [a, b], width, {"function": code, "rounds": rounds})
    assert_same(found, [[rounded(rounds, TWO[function](x, y)) for x, y in zip(left, right, strict=True)]
                        for left, right in zip(a.tolist(), b.tolist(), strict=True)])
    constant = b[0]
    found = run_step("binary", [a], width, {"function": code, "rounds": rounds}, {"constant": constant})
    assert_same(found, [[rounded(rounds, TWO[function](x, y)) for x, y in zip(left, constant.tolist(), strict=True)]
                        for left in a.tolist()])


def test_power_of_every_two_special_numbers():
    pairs = np.array([(a, b) for a in SPECIAL for b in SPECIAL])
    found = run_step("binary", [pairs[:, :1], pairs[:, 1:]], 1, {"function": BINARY_CODES["pow"]})
    assert_same(found, [power(a, b) for a, b in pairs.tolist()])


def test_same_value_may_be_both_operands():
    X, builder = numbers(1, 130, 9), Builder(9)
    program = finished(builder, builder.add("binary", (0, 0), 9, numbers={"function": BINARY_CODES["mul"]}))
    assert_same(run(program, X), [[x * x for x in row] for row in X.tolist()])


@pytest.mark.parametrize("width", WIDTHS)
def test_where_takes_what_is_not_zero_for_true(width):
    condition, b, c = (numbers(seed, 130, width) for seed in range(3))
    condition[::3] = 0.0
    found = run_step("where", [condition, b, c], width)
    assert_same(found, [[y if x != 0 else z for x, y, z in zip(*row, strict=True)]
                        for row in zip(condition.tolist(), b.tolist(), c.tolist(), strict=True)])


# ---- groups of columns -------------------------------------------------------------------------------------

def total(values: list[float]) -> float:
    result = 0.0
    for value in values:
        result += value
    return result


def best(values: list[float], better) -> float:
    """NaN where there is one; of equal ones the last."""
    result = values[0]
    for value in values[1:]:
        result = result if result != result or better(result, value) else value
    return result


def place_of_best(values: list[float], better) -> float:
    place = 0
    for i, value in enumerate(values):
        if i and better(value, values[place]):
            place = i
    return float(place)


MANY = {
    "sum": total, "mean": lambda values: total(values) / len(values),
    "max": lambda values: best(values, lambda a, b: a > b), "min": lambda values: best(values, lambda a, b: a < b),
    "argmax": lambda values: place_of_best(values, lambda a, b: a > b),
    "argmin": lambda values: place_of_best(values, lambda a, b: a < b),
    "argmax_last": lambda values: place_of_best(values, lambda a, b: a >= b),
    "argmin_last": lambda values: place_of_best(values, lambda a, b: a <= b),
}


def grouped(row: list[float], group: int) -> list[list[float]]:
    return [row[i:i + group] for i in range(0, len(row), group)]


@pytest.mark.parametrize(("width", "group"), [(1, 1), (1, 9), (7, 1), (3, 3), (2, 8), (1, 33)])
@pytest.mark.parametrize("function", REDUCE_CODES)
def test_group_becomes_one_number(function, width, group):
    rounds = width % 2
    X = numbers(group, 130, width * group)
    X[::2] = np.random.default_rng(0).integers(-2, 3, X[::2].shape)  # ties
    found = run_step("reduce", [X], width, {"function": REDUCE_CODES[function], "group": group, "rounds": rounds})
    assert_same(found, [[rounded(rounds, MANY[function](part)) for part in grouped(row, group)] for row in X.tolist()])


def softmax(values: list[float], zeros_stay: bool = False) -> list[float]:
    highest = best(values, lambda a, b: a > b)
    e = [0.0 if zeros_stay and abs(x) <= 1e-7 else exp(x - highest) for x in values]
    return [divide(x, total(e)) for x in e]


def normalized(values: list[float], norm: float) -> list[float]:
    return values if norm == 0 else [divide(x, norm) for x in values]


SCALE = [
    softmax, lambda values: softmax(values, zeros_stay=True),
    lambda values: normalized(values, best([abs(x) for x in values], lambda a, b: a > b)),
    lambda values: normalized(values, total([abs(x) for x in values])),
    lambda values: normalized(values, ONE["sqrt"](total([x * x for x in values]))),
]


@pytest.mark.parametrize(("width", "group"), [(1, 1), (9, 9), (7, 1), (9, 3), (16, 8), (33, 33)])
@pytest.mark.parametrize("function", range(len(SCALE)))
def test_group_is_scaled(function, width, group):
    rounds = width % 2
    X = numbers(group, 130, width)
    X[::2] = np.random.default_rng(0).normal(size=X[::2].shape) * 20
    X[3], X[5, 0] = 0.0, 1e-8
    found = run_step("scale", [X], width, {"function": function, "group": group, "rounds": rounds})
    assert_same(found, [[rounded(rounds, x) for part in grouped(row, group) for x in SCALE[function](part)]
                        for row in X.tolist()])


# ---- columns, keys -----------------------------------------------------------------------------------------

def test_move_takes_columns_of_any_values_and_constants():
    a, b, constants = numbers(0, 130, 9), numbers(1, 130, 4), np.array([NAN, -0.0, 7.5])
    columns = [(1, 3), (-1, 2), (0, 0), (0, 1), (0, 2), (0, 0), (-1, 0), (-1, 1), (1, 0), (1, 0)]
    found = run_step("move", [a, b], len(columns), arrays={"runs": runs_of(columns), "constants": constants})
    assert_same(found, [[(x, y, constants)[source][i] for source, i in columns] for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("width", WIDTHS)
def test_prepare_fills_shifts_and_scales(width, rounds):
    X, rng = numbers(width, 130, width), np.random.default_rng(width)
    missing = rng.choice([NAN, 0.0, 1.5, -INF], width)
    fill, offset, scale = rng.choice([NAN, 0.5, 1e300], width), rng.normal(size=width), rng.normal(size=width) * 1e3
    found = run_step("prepare", [X], width, {"rounds": rounds},
                     {"missing": missing, "fill_values": fill, "offset": offset, "scale": scale})

    def prepared(x, i):
        is_missing = x == missing[i] or (x != x and missing[i] != missing[i])
        return rounded(rounds, rounded(rounds, (fill[i] if is_missing else x) - offset[i]) * scale[i])
    with np.errstate(all="ignore"):
        assert_same(found, [[prepared(x, i) for i, x in enumerate(row)] for row in X.tolist()])


KEYS = [[], [0.0], [-INF, INF], [-INF, -2.0, -0.0, 5e-324, 0.5, 1.0, 2.0, 3.0, 1e300], list(range(-100, 155))]


def place_of(keys: list[float], x: float) -> int:
    """Its place, or behind them where a table has entries for NaN and for everything else."""
    return len(keys) if x != x else keys.index(x) if x in keys else len(keys) + 1


@pytest.mark.parametrize("width", [1, 8, 9])
@pytest.mark.parametrize("keys", KEYS, ids=len)
def test_lookup_gives_the_entry_of_a_key(keys, width):
    X, table = numbers(width, 130, width), numbers(5, len(keys) + 2)
    found = run_step("lookup", [X], width, arrays={"keys": np.array(keys, float), "values": table})
    assert_same(found, [[table[place_of(keys, x)] for x in row] for row in X.tolist()])


@pytest.mark.parametrize(("width", "group"), [(1, 1), (3, 9), (8, 2)])
@pytest.mark.parametrize("keys", KEYS, ids=len)
def test_onehot_has_a_1_at_the_place_of_a_key(keys, width, group):
    X, places = numbers(width, 130, width), np.random.default_rng(3).integers(-1, group, len(keys) + 2)
    found = run_step("onehot", [X], width * group, {"group": group}, {"keys": np.array(keys, float), "places": places})
    assert_same(found, [[float(k == places[place_of(keys, x)]) for x in row for k in range(group)]
                        for row in X.tolist()])


@pytest.mark.parametrize("keys", [[1.0, 1.0], [2.0, 1.0], [INF, INF], [-INF, -INF, 0.0], [0.0, -0.0], [NAN],
                                  [0.0, NAN]])
@pytest.mark.parametrize("op", ["lookup", "onehot"])
def test_keys_that_are_not_ascending_are_refused(op, keys):
    table = {"values": np.zeros(len(keys) + 2), "places": np.zeros(len(keys) + 2, np.int64)}
    arrays = {"keys": np.array(keys)} | {name: table[name] for name in ["values" if op == "lookup" else "places"]}
    builder = Builder(1)
    value = builder.add(op, (0,), 1, numbers={"group": 1} if op == "onehot" else {}, arrays=arrays)
    with pytest.raises(ModelError, match="keys in ascending order"):
        finished(builder, value)


# ---- dense -------------------------------------------------------------------------------------------------

TYPES = {"f64": F64, "f32": F32, "f16": F16, "q8_0": Q8_0, "q4_0": Q4_0}


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("n_in", "n_out", "groups", "format_name"), [
    (1, 1, 1, "f64"), (9, 5, 3, "f64"), (33, 8, 1, "f64"), (32, 7, 2, "f32"), (9, 8, 3, "f32"), (33, 35, 1, "f32"),
    (64, 3, 1, "f16"), (40, 4, 1, "q8_0"),
    (31, 6, 2, "q4_0")])
def test_dense_layer_of_groups_of_rows(n_in, n_out, groups, format_name, activation, rounds):
    rng = np.random.default_rng(n_in)
    padded = np.zeros((n_out, -(-n_in // 32) * 32))
    padded[:, :n_in] = rng.normal(size=(n_out, n_in))
    weights, bias = quants.quantize(padded, TYPES[format_name]), rng.normal(size=n_out)
    X = rng.normal(size=(66, groups * n_in)) * 10.0 ** rng.integers(-3, 4, (66, 1))
    found = run_step("dense", [X], groups * n_out, {"n_in": n_in, "tensor_type": TYPES[format_name], "rounds": rounds,
                                                    "activation": ACTIVATIONS[activation]},
                     {"weights": weights, "bias": bias})
    rows = [naive.DEQUANTIZE[format_name](row.tobytes()) for row in weights]
    activate, in_float32 = naive.ACTIVATE[activation], rounds and format_name == "f32" and n_out >= 8

    def output(w, b, part):
        part = [rounded(rounds, x) for x in part]
        s = dot_f32(w, part, b) if in_float32 else naive.dot(w, part) + b
        return rounded(rounds, activate(rounded(rounds, s)))
    outputs = list(zip(rows, bias.tolist(), strict=True))
    assert_same(found, [[output(w, b, part) for part in grouped(row, n_in) for w, b in outputs] for row in X.tolist()])


def dot_f32(weights: list[float], x: list[float], bias: float) -> float:
    """The sum in float32, one product after the other."""
    s = 0.0
    for w, value in zip(weights, x, strict=False):
        s = as_f32(s + as_f32(w * value))
    return as_f32(s + as_f32(bias))


# ---- support vector machines -------------------------------------------------------------------------------

@pytest.mark.parametrize("width", WIDTHS)
def test_distances_are_squared_and_weighed(width):
    rng = np.random.default_rng(width)
    X, vectors = rng.normal(size=(70, width)) * 10.0 ** rng.integers(-3, 4, (70, 1)), rng.normal(size=(5, width))
    found = run_step("distances", [X], 5, {"factor": -0.25}, {"vectors": vectors})
    exact = [[-0.25 * math.fsum((x - v) ** 2 for x, v in zip(row, vector, strict=True)) for vector in vectors.tolist()]
             for row in X.tolist()]
    np.testing.assert_allclose(found, exact, rtol=1e-14)


PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_scores_of_pairs_weigh_both_classes_vectors():
    rng, first = np.random.default_rng(0), [0, 3, 3, 10, 11]
    X, coefficients, rho = rng.normal(size=(70, 11)), rng.normal(size=(3, 11)), rng.normal(size=6)
    found = run_step("svm_pairs", [X], 6, {"n_classes": 4},
                     {"first": np.array(first), "coefficients": coefficients, "rho": rho})
    exact = [[math.fsum([row[v] * coefficients[j - 1, v] for v in range(first[i], first[i + 1])]
                        + [row[v] * coefficients[i, v] for v in range(first[j], first[j + 1])]) + rho[pair]
              for pair, (i, j) in enumerate(PAIRS)] for row in X]
    np.testing.assert_allclose(found, np.float32(exact), rtol=1e-6, atol=1e-6)


def test_votes_choose_the_first_class_that_most_pairs_choose():
    X = np.random.default_rng(0).normal(size=(130, 6))
    X[::4] = numbers(0, 33, 6)
    found = run_step("svm_votes", [X], 1, {"n_classes": 4})
    expected = []
    for row in X.tolist():
        votes = [0] * 4
        for score, (i, j) in zip(row, PAIRS, strict=True):
            votes[i if score > 0 else j] += 1
        expected.append(votes.index(max(votes)))
    assert_same(found, expected)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_coupled_probabilities_solve_what_libsvm_minimizes(k):
    rng = np.random.default_rng(k)
    n_pairs = k * (k - 1) // 2
    X = rng.normal(size=(70, n_pairs)) * 2
    a, b = np.float32(rng.normal(size=n_pairs) - 2).astype(float), np.float32(rng.normal(size=n_pairs)).astype(float)
    found = run_step("svm_coupling", [X], k, arrays={"prob_a": a, "prob_b": b})
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    p = (1 / (1 + np.exp(X * a + b))).clip(1e-7, 1 - 1e-7)
    for row, chosen in zip(p, found, strict=True):
        r, at = np.zeros((k, k)), 0
        for i in range(k):
            for j in range(i + 1, k):
                r[i, j], r[j, i], at = row[at], 1 - row[at], at + 1
        Q = np.diag((r ** 2).sum(axis=0)) - r.T * r
        exact = np.linalg.lstsq(np.vstack([np.hstack([Q, np.ones((k, 1))]), [1.0] * k + [0.0]]),
                                [0.0] * k + [1.0], rcond=None)[0][:k]
        np.testing.assert_allclose(chosen, exact, atol=0.01)  # libsvm stops at 0.005


@pytest.mark.parametrize("k", [2, 3, 4])
def test_special_scores_of_pairs_give_the_same_bits(k):
    n_pairs = k * (k - 1) // 2
    slopes = np.full(n_pairs, -1.5)
    run_step("svm_coupling", [numbers(k, 130, n_pairs)], k, arrays={"prob_a": slopes, "prob_b": slopes})
    run_step("svm_pairs", [numbers(k, 130, 2 * k)], n_pairs, {"n_classes": k}, {
        "first": np.arange(k + 1) * 2, "coefficients": np.full((k - 1, 2 * k), 0.5), "rho": np.zeros(n_pairs)})
    run_step("distances", [numbers(k, 130, 9)], 3, {"factor": -0.5}, {"vectors": np.arange(27.0).reshape(3, 9)})


# ---- programs ----------------------------------------------------------------------------------------------

class Drawn(NamedTuple):
    program: Program
    X: np.ndarray


KINDS = ["move", "unary", "binary", "where", "reduce", "scale", "lookup", "onehot"]


def random_program(seed: int) -> Drawn:
    """Steps of most kinds over each other's values, of any width."""
    rng = np.random.default_rng(seed)
    builder = Builder(int(rng.integers(1, 12)))
    for _ in range(int(rng.integers(1, 12))):
        a = int(rng.integers(len(builder.widths)))
        width, op = builder.widths[a], rng.choice(KINDS)
        same = [value for value, other in enumerate(builder.widths) if other == width]
        rounds, arrays, inputs = int(rng.integers(2)), {}, [a]
        settings: dict[str, float] = {"rounds": rounds, "function": int(rng.integers(
            {"unary": len(UNARY_CODES), "binary": len(BINARY_CODES), "reduce": len(REDUCE_CODES)}.get(op, len(SCALE))))}
        made = width
        if op == "move":
            inputs = [int(value) for value in rng.integers(len(builder.widths), size=2)]
            columns = [(source, int(rng.integers(builder.widths[inputs[source]] if source >= 0 else 3)))
                       for source in rng.integers(-1, 2, rng.integers(1, 40)).tolist()]
            arrays, made = {"runs": runs_of(columns), "constants": numbers(seed, 3)}, len(columns)
        elif op == "binary":
            inputs.append(int(rng.choice(same)))
        elif op == "where":
            inputs += [int(value) for value in rng.choice(same, 2)]
        elif op in ("reduce", "scale"):
            group = int(rng.choice([n for n in range(1, width + 1) if width % n == 0]))
            settings["group"], made = group, width // group if op == "reduce" else width
        elif op == "lookup":
            arrays = {"keys": np.arange(-2.0, 3.0), "values": numbers(seed, 7)}
        elif op == "onehot" and width < 50:
            arrays, made = {"keys": np.arange(-2.0, 3.0), "places": rng.integers(-1, 3, 7)}, width * 3
            settings["group"] = 3
        else:
            op = "unary"
        wanted = {"move": (), "where": (), "lookup": (), "onehot": ("group",), "unary": ("function", "rounds"),
                  "binary": ("function", "rounds")}.get(op, ("function", "rounds", "group"))
        builder.add(op, inputs, made, arrays=arrays, numbers={name: settings[name] for name in wanted})
    value, probabilities = (int(number) for number in rng.integers(1, len(builder.widths), 2))
    return Drawn(finished(builder, value, probabilities), numbers(seed, 130, builder.n_features))


@pytest.mark.parametrize("seed", range(40))
def test_programs_give_the_same_bits_as_numpy_and_stay_within_their_buffers(seed):
    program, X = random_program(seed)
    run(program, X)
    compiled, portable = model_of(program), model_of(program, native=False)
    expected = portable.predict_proba(X)
    for n in (1, 9, 64, 65, 130):
        assert_same(compiled.predict_proba(X[:n]), expected[:n])
        _, probabilities, status = guarded_call(compiled, X[:n], wanted=True)
        assert status == 0
        assert_same(probabilities, expected[:n])


def test_all_operations_are_tested_here_or_with_the_trees():
    assert set(OPS) == {"move", "prepare", "unary", "binary", "where", "reduce", "scale", "lookup", "onehot", "dense",
                        "distances", "svm_pairs", "svm_votes", "svm_coupling"} | {"trees"}
    assert (set(ONE), set(TWO), set(MANY)) == (set(UNARY_CODES), set(BINARY_CODES), set(REDUCE_CODES))


@pytest.mark.parametrize("width", [1, 3000, 20_000])
def test_wide_values_shorten_the_blocks_and_change_nothing(width):
    X, builder = numbers(2, 21, 2), Builder(2)
    wide = builder.add("move", (0,), width, arrays={"runs": runs_of([(0, i % 2) for i in range(width)]),
                                                    "constants": np.empty(0)})
    total_of_row = builder.add("reduce", (wide,), 1, numbers={"function": REDUCE_CODES["max"], "group": width})
    program = finished(builder, total_of_row)
    repeated = [row[:min(width, 2)] * (1 + (width > 1)) for row in X.tolist()]
    assert_same(run(program, X), [best(row, lambda a, b: a > b) for row in repeated])
    assert (model_of(program)._compiled.block_rows == BLOCK_ROWS) == (width == 1)


def test_row_that_is_wider_than_a_block_is_a_block(width=200_000):
    builder = Builder(1)
    hot = builder.add("onehot", (0,), width, numbers={"group": width}, arrays={
        "keys": np.array([1.0]), "places": np.array([width - 1, 7, -1])})
    program = finished(builder, hot)
    found = run(program, np.array([[1.0], [NAN], [5.0]]))
    assert [np.flatnonzero(row).tolist() for row in found] == [[width - 1], [7], []]
    assert model_of(program)._compiled.block_rows == 1


@pytest.mark.parametrize("n", ROW_COUNTS)
def test_float32_rows_are_widened(n):
    X, builder = float32s(numbers(3, n, 9)), Builder(9)
    program = finished(builder, builder.add("unary", (0,), 9, numbers={"function": UNARY_CODES["tanh"]}))
    for model in (model_of(program), model_of(program, native=False)):
        assert_same(model.predict(X), [[math.tanh(x) for x in row] for row in X.astype(float).tolist()])


def test_one_value_may_be_predictions_and_probabilities():
    X, builder = np.random.default_rng(0).normal(size=(130, 5)), Builder(5)
    value = builder.add("scale", (0,), 5, numbers={"function": 0, "group": 5})
    program = builder.finish(value, value, (value,))
    model, expected = model_of(program), [naive.softmax(row) for row in X.tolist()]
    for n in ROW_COUNTS:
        assert_same(model.predict(X[:n]), expected[:n])
        assert_same(model.predict_proba(X[:n]), expected[:n])
        predictions, probabilities, _ = guarded_call(model, X[:n], wanted=True)
        assert_same(predictions, expected[:n])
        assert_same(probabilities, expected[:n])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_checked_values_must_be_finite(bad, native):
    builder = Builder(3)
    first = builder.add("unary", (0,), 3, numbers={"function": UNARY_CODES["neg"]})
    last = builder.add("reduce", (first,), 1, numbers={"function": REDUCE_CODES["argmax"], "group": 3})
    model = model_of(builder.finish(last, 0, (first,)), native=native)
    for n in ROW_COUNTS:
        X = np.ones((n, 3))
        assert model.predict(X).tolist() == [0.0] * n
        X[n - 1, 2] = bad
        with pytest.raises(ModelError, match=f"row {n - 1}, feature 2 is"):
            model.predict(X)


def test_value_that_only_probabilities_need_is_not_checked():
    builder = Builder(1)
    value = builder.add("unary", (0,), 1, numbers={"function": UNARY_CODES["neg"]})
    infinite = builder.add("unary", (value,), 1, numbers={"function": UNARY_CODES["exp"]})
    program = builder.finish(value, infinite, (value,))
    assert program.n_prediction_steps == 1
    for model in (model_of(program), model_of(program, native=False)):
        assert model.predict([[-1e6]]).tolist() == [1e6]
        assert model.predict_proba([[-1e6]]).tolist() == [[INF]]


@pytest.mark.parametrize("n_rows", [65, 130, 1001])
def test_threads_share_the_rows_and_change_nothing(monkeypatch, n_rows):
    monkeypatch.setattr(tabular, "MIN_THREAD_WORK", 1)
    program, _ = random_program(5)
    X = numbers(9, n_rows, program.n_features)
    alone, shared = model_of(program), model_of(program, threads=3)
    assert len(shared._shares(n_rows)) == 3
    assert_same(shared.predict(X), alone.predict(X))
    assert_same(shared.predict_proba(X), alone.predict_proba(X))
    assert_same(shared.predict_proba(float32s(X)), alone.predict_proba(float32s(X)))


def test_no_rows_are_no_answers():
    program, _ = random_program(3)
    for model in (model_of(program), model_of(program, native=False)):
        assert len(model.predict(np.empty((0, program.n_features)))) == 0
        assert len(model.predict_proba(np.empty((0, program.n_features)))) == 0


CONSTANT = {"runs": np.array([[-1, 0, 1]]), "constants": np.array([2.5])}


def test_value_that_is_made_of_constants_alone():
    builder = Builder(2)
    value = builder.add("move", (0,), 1, arrays=CONSTANT)
    program = builder.finish(value, 0, (value,))
    for model in (model_of(program), model_of(program, native=False)):
        assert model.predict(np.ones((3, 2))).tolist() == [2.5] * 3


# ---- what a program may not be -----------------------------------------------------------------------------

def test_step_that_reads_nothing_is_refused():
    builder = Builder(2)
    value = builder.add("move", (), 1, arrays=CONSTANT)
    with pytest.raises(ModelError, match="expected an input"):
        builder.finish(value, 0, (value,))


def test_values_that_are_wide_together_are_refused():
    builder, value = Builder(1), 0
    for _ in range(3):
        value = builder.add("onehot", (0,), MAX_WIDTH // 2, numbers={"group": MAX_WIDTH // 2},
                            arrays={"keys": np.empty(0), "places": np.zeros(2, np.int64)})
        builder.add("reduce", (value,), 1, numbers={"function": 0, "group": MAX_WIDTH // 2})
    last = builder.add("move", (2, 4, 6), 3, arrays={"runs": runs_of([(0, 0), (1, 0), (2, 0)]),
                                                     "constants": np.empty(0)})
    with pytest.raises(ModelError, match=str(MAX_WIDTH)):
        builder.finish(last, 0, (last,))


def test_array_that_the_operation_does_not_have_is_refused():
    # A onehot that has a lookup's table, too: were it taken, its numbers would be addresses.
    builder = Builder(1)
    value = builder.add("onehot", (0,), 2, numbers={"group": 2}, arrays={
        "keys": np.empty(0), "places": np.zeros(2, np.int64), "values": np.full(2, 1e300)})
    with pytest.raises(ModelError, match="values"):
        finished(builder, value)


@pytest.mark.parametrize(("name", "number"), [("group", 1e300), ("rounds", 10**30), ("function", INF), ("other", 1)])
def test_number_that_the_operation_does_not_have_is_refused(name, number):
    builder = Builder(1)
    value = builder.add("move", (0,), 1, numbers={name: number}, arrays=CONSTANT)
    with pytest.raises(ModelError, match=name):
        finished(builder, value)
