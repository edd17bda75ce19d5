"""The operations of a program: what each step must hold, and what it computes, in numpy.

The rule to keep: the kernels of `row_kernels`, `dense` and `tree_kernels` compute the same bits. A new operation is
one row of OPS here and one kernel there. exp, log and tanh come from the C library one number at a time, since
numpy's own round differently.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kernels import dense_numpy, quants, svm, trees
from kernels.errors import ModelError
from kernels.gguf import F32
from kernels.native import ACTIVATIONS
from kernels.step import MAX_WIDTH, Step, take_array, take_number

Values = list[np.ndarray]  # (n, width) float64 of each input


def _round(values: np.ndarray, step: Step) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64) if step.numbers.get("rounds") else values


def _expect_inputs(widths: list[int], n: int) -> None:
    if len(widths) != n:
        raise ModelError(f"expected {n} inputs, found {len(widths)}")


def _check_rounds(step: Step) -> None:
    if step.numbers.get("rounds", 0) not in (0, 1):
        raise ModelError("expected 0 or 1 in rounds")


def each(function: Callable[[float], float], values: np.ndarray) -> np.ndarray:
    """The function of every number, one at a time."""
    return np.array([function(value) for value in values.ravel().tolist()], np.float64).reshape(values.shape)


# ---- move: columns from anywhere ---------------------------------------------------------------------------

# runs (n, 3) int64: input number or −1, its first column (of the constants where −1), how many

def _check_move(step: Step, widths: list[int]) -> None:
    runs = take_array(step, "runs", np.int64, (None, 3))
    constants = take_array(step, "constants", np.float64, (None,))
    room = np.array([*widths, len(constants)])
    source, first, n = runs.T
    if not widths:  # it says how many rows there are
        raise ModelError("expected an input")
    if not len(runs) or (source < -1).any() or (source >= len(widths)).any():
        raise ModelError("expected runs of inputs that exist")
    if (first < 0).any() or (n < 1).any() or (first > MAX_WIDTH).any() or (n > MAX_WIDTH).any():
        raise ModelError("expected runs of columns")
    if (first + n > room[source]).any() or n.sum() != step.width:
        raise ModelError(f"expected runs of {step.width} columns that exist")


def _move(step: Step, values: Values) -> np.ndarray:
    n_rows = len(values[0])
    constants = np.broadcast_to(step.arrays["constants"], (n_rows, len(step.arrays["constants"])))
    every = [*values, constants]
    return np.concatenate([every[source][:, first:first + n]
                           for source, first, n in step.arrays["runs"].tolist()], axis=1)


def runs_of(columns: list[tuple[int, int]]) -> np.ndarray:
    """Runs for `move` from (input number or −1, column) for each column of the result."""
    runs: list[list[int]] = []
    for source, column in columns:
        if runs and runs[-1][0] == source and runs[-1][1] + runs[-1][2] == column:
            runs[-1][2] += 1
        else:
            runs.append([source, column, 1])
    return np.array(runs, np.int64).reshape(-1, 3)


# ---- prepare: fill, shift, scale ---------------------------------------------------------------------------

def _check_prepare(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    _check_rounds(step)
    if step.width != widths[0]:
        raise ModelError(f"expected the width {widths[0]}")
    for name in ("missing", "fill_values", "offset", "scale"):
        take_array(step, name, np.float64, (step.width,))


def _prepare(step: Step, values: Values) -> np.ndarray:
    x, missing = values[0], step.arrays["missing"]
    is_missing = (x == missing) | (np.isnan(x) & np.isnan(missing))
    x = np.where(is_missing, step.arrays["fill_values"], x)
    return _round(_round(x - step.arrays["offset"], step) * step.arrays["scale"], step)


# ---- functions of one number -------------------------------------------------------------------------------

def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log1p_exp(x: float) -> float:
    return x if x > 50.0 else math.log(1.0 + math.exp(x))


def _probit(x: float) -> float:
    """ONNX Runtime's inverse of the normal distribution: √2 · erf⁻¹(2x − 1), by Winitzki's formula."""
    y = 2.0 * x - 1.0
    sign, log = math.copysign(1.0, y), _log((1.0 - y) * (1.0 + y))
    v = 2.0 / (math.pi * 0.147) + 0.5 * log
    return 1.41421356 * sign * math.sqrt(math.sqrt(v * v - 1.0 / 0.147 * log) - v) if math.isfinite(log) else math.nan


def _as_f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


# The place of a function is its code in files and kernels: new ones go to the end.
UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs,
    "exp": lambda x: each(_exp, x),
    "log": lambda x: each(_log, x),
    "neg": np.negative,
    "not": lambda x: (x == 0).astype(np.float64),
    "relu": lambda x: np.where(x <= 0, 0.0, x),  # NaN stays NaN
    "sigmoid": lambda x: each(dense_numpy.logistic, x),
    "sqrt": np.sqrt,
    "tanh": lambda x: each(math.tanh, x),
    "float32": _as_f32,
    "trunc": np.trunc,
    "bool": lambda x: (x != 0).astype(np.float64),
    "positive": lambda x: (x > 0).astype(np.float64),
    "log1p_exp": lambda x: each(_log1p_exp, x),
    "signed_square": lambda x: np.where(x < 0, -(x * x), x * x),
    "probit": lambda x: each(_probit, x),
    "complement": lambda x: 1.0 - x,
}
UNARY_CODES = {name: code for code, name in enumerate(UNARY)}


def _check_unary(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    _check_rounds(step)
    take_number(step, "function", 0, len(UNARY) - 1)
    if step.width != widths[0]:
        raise ModelError(f"expected the width {widths[0]}")


def _unary(step: Step, values: Values) -> np.ndarray:
    return _round(list(UNARY.values())[int(step.numbers["function"])](values[0]), step)


# ---- functions of two numbers ------------------------------------------------------------------------------

def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    def power(pair: tuple[float, float]) -> float:
        try:
            return math.pow(*pair)
        except OverflowError:
            return -math.inf if pair[0] < 0 and pair[1] % 2 else math.inf
        except ValueError:
            if pair[0] == 0:
                return math.copysign(math.inf, pair[0]) if pair[1] % 2 == 1 else math.inf
            return math.nan
    return np.array([power(pair) for pair in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)],
                    np.float64).reshape(a.shape)


BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": _pow,
    "max": lambda a, b: np.where((a > b) | np.isnan(a), a, b),  # NaN where either is
    "min": lambda a, b: np.where((a < b) | np.isnan(a), a, b),
    "and": lambda a, b: ((a != 0) & (b != 0)).astype(np.float64),
    "or": lambda a, b: ((a != 0) | (b != 0)).astype(np.float64),
    "equal": lambda a, b: (a == b).astype(np.float64),
    "greater": lambda a, b: (a > b).astype(np.float64),
    "greater_or_equal": lambda a, b: (a >= b).astype(np.float64),
    "less": lambda a, b: (a < b).astype(np.float64),
    "less_or_equal": lambda a, b: (a <= b).astype(np.float64),
    "whole_div": lambda a, b: np.trunc(a / b),
}
BINARY_CODES = {name: code for code, name in enumerate(BINARY)}


def _check_binary(step: Step, widths: list[int]) -> None:
    _check_rounds(step)
    take_number(step, "function", 0, len(BINARY) - 1)
    if "constant" in step.arrays:  # the second operand
        take_array(step, "constant", np.float64, (step.width,))
        widths = [*widths, step.width]
    _expect_inputs(widths, 2)
    if set(widths) != {step.width}:
        raise ModelError(f"expected two inputs of the width {step.width}")


def _binary(step: Step, values: Values) -> np.ndarray:
    a = values[0]
    b = np.broadcast_to(step.arrays["constant"], a.shape) if "constant" in step.arrays else values[1]
    return _round(list(BINARY.values())[int(step.numbers["function"])](a, b), step)


# ---- where -------------------------------------------------------------------------------------------------

def _check_where(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 3)
    if set(widths) != {step.width}:
        raise ModelError(f"expected three inputs of the width {step.width}")


def _where(step: Step, values: Values) -> np.ndarray:
    return np.where(values[0] != 0, values[1], values[2])


# ---- reduce: groups of `group` columns become one ------------------------------------------------------------

def _sum(x: np.ndarray) -> np.ndarray:
    total = np.zeros(x.shape[:-1])
    for i in range(x.shape[-1]):
        total = total + x[..., i]  # one by one: numpy's sum adds in pairs
    return total


def _largest(x: np.ndarray) -> np.ndarray:
    best = x[..., 0]
    for i in range(1, x.shape[-1]):
        best = BINARY["max"](best, x[..., i])
    return best


def _smallest(x: np.ndarray) -> np.ndarray:
    best = x[..., 0]
    for i in range(1, x.shape[-1]):
        best = BINARY["min"](best, x[..., i])
    return best


def _argbest(x: np.ndarray, better) -> np.ndarray:
    """The first of the best; a NaN is never better."""
    place, best = np.zeros(x.shape[:-1]), x[..., 0]
    for i in range(1, x.shape[-1]):
        is_better = better(x[..., i], best)
        place, best = np.where(is_better, float(i), place), np.where(is_better, x[..., i], best)
    return place


REDUCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sum": _sum,
    "mean": lambda x: _sum(x) / x.shape[-1],
    "max": _largest,
    "min": _smallest,
    "argmax": lambda x: _argbest(x, np.greater),
    "argmin": lambda x: _argbest(x, np.less),
    "argmax_last": lambda x: _argbest(x, np.greater_equal),
    "argmin_last": lambda x: _argbest(x, np.less_equal),
}
REDUCE_CODES = {name: code for code, name in enumerate(REDUCE)}


def _check_reduce(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    _check_rounds(step)
    take_number(step, "function", 0, len(REDUCE) - 1)
    if take_number(step, "group", 1, MAX_WIDTH) * step.width != widths[0]:
        raise ModelError("expected groups of columns, one for each of the result's")


def _reduce(step: Step, values: Values) -> np.ndarray:
    x = values[0].reshape(len(values[0]), step.width, -1)
    return _round(list(REDUCE.values())[int(step.numbers["function"])](x), step)


# ---- softmax, normalize: groups of columns -------------------------------------------------------------------

SOFTMAX, SOFTMAX_ZERO, NORM_MAX, NORM_L1, NORM_L2 = range(5)  # SOFTMAX_ZERO: zeros stay zeros (ONNX)


def _check_scale(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    _check_rounds(step)
    take_number(step, "function", 0, NORM_L2)
    if step.width != widths[0] or step.width % take_number(step, "group", 1, MAX_WIDTH):
        raise ModelError("expected whole groups of columns")


def _scale(step: Step, values: Values) -> np.ndarray:
    function = int(step.numbers["function"])
    x = values[0].reshape(-1, int(step.numbers["group"]))
    if function in (SOFTMAX, SOFTMAX_ZERO):
        e = each(_exp, x - _largest(x)[:, None])
        if function == SOFTMAX_ZERO:
            e = np.where(np.abs(x) <= 1e-7, 0.0, e)
        scaled = e / _sum(e)[:, None]
    else:
        norm = {NORM_MAX: lambda: _largest(np.abs(x)), NORM_L1: lambda: _sum(np.abs(x)),
                NORM_L2: lambda: np.sqrt(_sum(x * x))}[function]()
        scaled = np.where(norm[:, None] != 0, x / norm[:, None], x)
    return _round(scaled.reshape(values[0].shape), step)


# ---- lookup, onehot: by key --------------------------------------------------------------------------------

def _sorted_keys(step: Step) -> np.ndarray:
    keys = take_array(step, "keys", np.float64, (None,))
    if np.isnan(keys).any() or (keys[1:] <= keys[:-1]).any():
        raise ModelError("expected keys in ascending order")
    return keys


def _check_lookup(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    take_array(step, "values", np.float64, (len(_sorted_keys(step)) + 2,))  # then: of NaN, of everything else
    if step.width != widths[0]:
        raise ModelError(f"expected the width {widths[0]}")


def _places(keys: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Each number's place among the keys; len(keys) for NaN, len(keys) + 1 for what is no key."""
    places = np.searchsorted(keys, x)
    found = np.append(keys, np.nan)[places] == x
    return np.where(np.isnan(x), len(keys), np.where(found, places, len(keys) + 1))


def _lookup(step: Step, values: Values) -> np.ndarray:
    return step.arrays["values"][_places(step.arrays["keys"], values[0])]


def _check_onehot(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    keys = _sorted_keys(step)
    places = take_array(step, "places", np.int64, (len(keys) + 2,))  # then: of NaN, of everything else; −1 = none
    group = take_number(step, "group", 1, MAX_WIDTH)
    if step.width != widths[0] * group or (places < -1).any() or (places >= group).any():
        raise ModelError("expected a place in the group for each key")


def _onehot(step: Step, values: Values) -> np.ndarray:
    place = step.arrays["places"][_places(step.arrays["keys"], values[0])]  # (n, width of the input)
    hot = place[:, :, None] == np.arange(int(step.numbers["group"]))
    return hot.reshape(len(place), -1).astype(np.float64)


# ---- dense -------------------------------------------------------------------------------------------------

# weights: (n_out, row_bytes) uint8, blocks of `tensor_type`, each row padded with zeros to whole blocks. Where it
# `rounds`, inputs are rounded as well as sums and activations.

MIN_FLOAT_OUTPUTS = 8


def _check_dense(step: Step, widths: list[int]) -> None:
    _expect_inputs(widths, 1)
    _check_rounds(step)
    n_in = take_number(step, "n_in", 1, MAX_WIDTH)
    tensor_type = take_number(step, "tensor_type", 0, 1000)
    take_number(step, "activation", 0, max(ACTIVATIONS.values()))
    n_out = len(take_array(step, "bias", np.float64, (None,)))
    if tensor_type not in quants.CODECS:
        raise ModelError("expected weights of a known type")
    if widths[0] % n_in or not n_out or step.width != widths[0] // n_in * n_out:
        raise ModelError("expected rows of inputs as wide as the weights")
    weights = take_array(step, "weights", np.uint8, (n_out, quants.row_bytes(n_in, tensor_type)))
    if not quants.all_finite(weights, tensor_type) or not np.isfinite(step.arrays["bias"]).all():
        raise ModelError("expected finite weights")


def is_float32(step: Step) -> bool:
    """Whether a dense step is computed in float32: where the model's own arithmetic is, and its weights are.

    With few outputs that would be slower: the kernel's lanes are outputs.
    """
    is_rounded = bool(step.numbers.get("rounds")) and int(step.numbers["tensor_type"]) == F32
    return is_rounded and len(step.arrays["bias"]) >= MIN_FLOAT_OUTPUTS


def _dense(step: Step, values: Values) -> np.ndarray:
    weights = quants.dequantize(step.arrays["weights"], int(step.numbers["tensor_type"]))
    n_in = int(step.numbers["n_in"])
    x = np.zeros((values[0].size // n_in, weights.shape[1]))
    x[:, :n_in] = _round(values[0].reshape(-1, n_in), step)
    if is_float32(step):
        sums = dense_numpy.matvec_f32(weights, step.arrays["bias"], x)
    else:
        sums = _round(dense_numpy.matvec(weights, step.arrays["bias"], x), step)
    activated = dense_numpy.ACTIVATE[int(step.numbers["activation"])](sums)
    return _round(activated, step).reshape(len(values[0]), -1)


# ---- the table ---------------------------------------------------------------------------------------------

class Op(NamedTuple):
    """What a step of this kind must hold, and what it computes from its inputs (n, width) → (n, width)."""

    check: Callable[[Step, list[int]], None]
    run: Callable[[Step, Values], np.ndarray]
    numbers: str  # names of all that a step may hold
    arrays: str


OPS: dict[str, Op] = {
    "move": Op(_check_move, _move, "", "runs constants"),
    "prepare": Op(_check_prepare, _prepare, "rounds", "missing fill_values offset scale"),
    "unary": Op(_check_unary, _unary, "function rounds", ""),
    "binary": Op(_check_binary, _binary, "function rounds", "constant"),
    "where": Op(_check_where, _where, "", ""),
    "reduce": Op(_check_reduce, _reduce, "function group rounds", ""),
    "scale": Op(_check_scale, _scale, "function group rounds", ""),
    "lookup": Op(_check_lookup, _lookup, "", "keys values"),
    "onehot": Op(_check_onehot, _onehot, "group", "keys places"),
    "dense": Op(_check_dense, _dense, "n_in tensor_type activation rounds", "weights bias"),
    "trees": Op(trees.check, trees.run, "aggregate rounds_inputs rounds_sums", trees.ARRAYS),
    "distances": Op(svm.check_distances, svm.distances, "factor", "vectors"),
    "svm_pairs": Op(svm.check_pairs, svm.pairs, "n_classes", "first coefficients rho"),
    "svm_votes": Op(svm.check_votes, svm.votes, "n_classes", ""),
    "svm_coupling": Op(svm.check_coupling, svm.coupling, "", "prob_a prob_b"),
}


def run_steps(steps: tuple[Step, ...], values: Values) -> Values:
    """Append the value of each step to `values`, which holds those that the steps before made."""
    with np.errstate(all="ignore"):
        for step in steps:
            values.append(OPS[step.op].run(step, [values[value] for value in step.inputs]))
    return values
