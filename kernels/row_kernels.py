"""Native kernels of the steps of a program, each compiled on its own, and the driver that runs a whole program.

The rule to keep: the same bits as `row_ops`. Kernels check nothing, allocate nothing, never raise and never take the
GIL. Each is compiled apart and called through its address, so that a model compiles only what it uses and a change
of one compiles one.

A kernel's state is a record that begins with the fields of STEP; the ABI is in native.py.
"""

import math

import numpy as np
from numba import types
from numba.extending import register_jitable

from kernels.compiled import inner
from kernels.native import ASK, CALL, PROGRAM
from kernels.row_ops import BINARY_CODES as B
from kernels.row_ops import NORM_L1, NORM_MAX, REDUCE_CODES, SOFTMAX, SOFTMAX_ZERO, UNARY_CODES
from kernels.simd import (
    add, caller_of, keep_scalar, load, load_f32, load_f64, load_first_f64, load_i64, load_one_f32, mul, record,
    round_f32, store, store_f64, store_i64, sum_lanes, zero,
)
from kernels.step import Step

PREDICT_SIGNATURE = types.int32(*[types.intp] * 6)
KERNEL_SIGNATURE = types.int32(*[types.intp] * 3)
ASK_SIGNATURE = types.int32(types.intp)
call_kernel = caller_of(types.int32, *[types.intp] * 3)
call_predict = caller_of(types.int32, *[types.intp] * 6)

CALL_BYTES, DOUBLE = CALL.itemsize, 8
COMMON = [("a", np.int64), ("width_a", np.int64), ("out", np.int64), ("width", np.int64), ("function", np.int64),
          ("rounds", np.int64), ("group", np.int64)]


def _dtype(*names: str) -> np.dtype:
    return np.dtype(COMMON + [(name, np.int64) for name in names])


@register_jitable
def _value(values, number):
    """The address of a value's first row in this block."""
    return load_i64(values + number * 8)


# ---- the driver --------------------------------------------------------------------------------------------

@inner
def _widen(rows, n, out):
    n_eights = n - n % 8
    for i in range(0, n_eights, 8):
        store_f64(out + i * DOUBLE, load_f32(rows + i * 4))
    for i in range(n_eights, n):
        store(out + i * DOUBLE, load_one_f32(rows + i * 4))


@inner
def _all_finite(values, n):
    none, total = zero(), zero()  # 0 · x is NaN where x is not finite, and so is the sum from then on
    for i in range(0, n - n % 8, 8):
        total = add(total, mul(load_f64(values + i * DOUBLE), none))
    rest = load_first_f64(values + (n - n % 8) * DOUBLE, n % 8)
    return sum_lanes(add(total, mul(rest, none))) == 0.0


@inner
def _are_places(values, n, n_labels):
    """Whether each of n numbers is the place of a label."""
    for i in range(n):
        place = load(values + i * DOUBLE)
        if not 0.0 <= place < n_labels:
            return False
    return True


@inner
def _copy(source, n, out):
    for i in range(n):
        store(out + i * DOUBLE, load(source + i * DOUBLE))


@inner
def _run_block(program, values, n_rows, n_steps):
    for i in range(n_steps):
        call = record(program.calls + i * CALL_BYTES, CALL)
        if call_kernel(call.kernel, (call.state, values, n_rows)) != 0:
            return 1
    for i in range(program.n_checked):
        checked = program.checked + i * 16
        if not _all_finite(_value(values, load_i64(checked)), n_rows * load_i64(checked + 8)):
            return 1
    return 0


def run_program(state, rows, n_rows, predictions, probabilities, scratch):
    """The model kernel (ABI in native.py): the steps, for blocks of rows."""
    program, values = record(state, PROGRAM), scratch
    for i in range(program.n_values):
        store_i64(values + i * 8, scratch + load_i64(program.offsets + i * 8) * DOUBLE)
    widened = _value(values, 0)
    n_steps = program.n_prediction_steps if probabilities == 0 else program.n_steps
    both = program.prediction == program.probabilities
    for first in range(0, n_rows, program.block_rows):
        n = min(program.block_rows, n_rows - first)
        if program.float32_rows:
            _widen(rows + first * program.n_features * 4, n * program.n_features, widened)
        else:
            store_i64(values, rows + first * program.n_features * DOUBLE)
        predicted = predictions + first * program.n_outputs * DOUBLE
        store_i64(values + program.prediction * 8, predicted)
        asked = probabilities + first * program.n_classes * DOUBLE
        if probabilities != 0 and not both:
            store_i64(values + program.probabilities * 8, asked)
        if _run_block(program, values, n, n_steps) != 0:
            return 1
        if program.n_labels != 0 and not _are_places(predicted, n, program.n_labels):
            return 1
        if probabilities != 0 and both:
            _copy(predicted, n * program.n_classes, asked)
    return 0


def run_ask(address):
    """Make the call of an ASK record."""
    ask = record(address, ASK)
    return call_predict(ask.predict, (ask.state, ask.rows, ask.n_rows, ask.predictions, ask.probabilities,
                                      ask.scratch))


# ---- move --------------------------------------------------------------------------------------------------

MOVE = _dtype("runs", "n_runs")
RUN = np.dtype([("value", np.int64), ("width", np.int64), ("first", np.int64), ("n", np.int64)])
RUN_BYTES = RUN.itemsize


def run_move(state, values, n_rows):
    """Columns of other values, or constants (a run's value is −1, its `first` an address)."""
    step = record(state, MOVE)
    out, row_bytes = _value(values, step.out), step.width * DOUBLE
    for i in range(step.n_runs):
        run = record(step.runs + i * RUN_BYTES, RUN)
        at, stride = run.first, 0
        if run.value >= 0:
            at, stride = _value(values, run.value) + run.first * DOUBLE, run.width * DOUBLE
        for r in range(n_rows):
            to = out + r * row_bytes
            for k in range(run.n):
                store(to + k * DOUBLE, load(at + k * DOUBLE))
            at += stride
        out += run.n * DOUBLE
    return 0


# ---- prepare -----------------------------------------------------------------------------------------------

PREPARE = _dtype("missing", "fill_values", "offset", "scale")


def run_prepare(state, values, n_rows):
    """Fill what is missing, shift and scale."""
    step = record(state, PREPARE)
    at, out = _value(values, step.a), _value(values, step.out)
    for _ in range(n_rows):
        for i in range(0, step.width * DOUBLE, DOUBLE):
            x, missing = load(at + i), load(step.missing + i)
            if x == missing or (math.isnan(x) and math.isnan(missing)):
                x = load(step.fill_values + i)
            x -= load(step.offset + i)
            if step.rounds:
                x = round_f32(x)
            x *= load(step.scale + i)
            if step.rounds:
                x = round_f32(x)
            store(out + i, x)
        at += step.width * DOUBLE
        out += step.width * DOUBLE
    return 0


# ---- functions of one number -------------------------------------------------------------------------------

UNARY = _dtype()
(ABS, EXP, LOG, NEG, NOT, RELU_FUNCTION, SIGMOID, SQRT, TANH_FUNCTION, FLOAT32, TRUNC, BOOL, POSITIVE, LOG1P_EXP,
 SIGNED_SQUARE, PROBIT, COMPLEMENT) = UNARY_CODES.values()


@inner
def logistic(s):
    """1 / (1 + e^−s), without overflow."""
    if s >= 0.0:
        return 1.0 / (1.0 + math.exp(-s))
    e = math.exp(s)
    return e / (1.0 + e)


@inner
def _log(x):
    if x > 0.0:
        return math.log(x)
    return -math.inf if x == 0.0 else math.nan


@inner
def _probit(x):
    y = 2.0 * x - 1.0
    log = _log((1.0 - y) * (1.0 + y))
    if not math.isfinite(log):
        return math.nan
    v = 2.0 / (math.pi * 0.147) + 0.5 * log
    return 1.41421356 * math.copysign(1.0, y) * math.sqrt(math.sqrt(v * v - 1.0 / 0.147 * log) - v)


@inner
def _library(function, x):
    """The functions that the C library computes."""
    if function == EXP:
        return math.exp(x)
    if function == LOG:
        return _log(x)
    if function == SIGMOID:
        return logistic(x)
    if function == TANH_FUNCTION:
        return math.tanh(x)
    if function == LOG1P_EXP:
        return x if x > 50.0 else math.log(1.0 + math.exp(x))
    return _probit(x)


@inner
def _plain(function, x):
    if function == ABS:
        return abs(x)
    if function == NEG:
        return -x
    if function == NOT:
        return 1.0 if x == 0.0 else 0.0
    if function == SQRT:
        return math.sqrt(x) if x >= 0.0 else math.nan
    if function == TRUNC:
        return math.copysign(float(math.trunc(x)), x) if abs(x) < 4503599627370496.0 else x  # −0.5 becomes −0.0
    if function == BOOL:
        return 1.0 if x != 0.0 else 0.0
    if function == POSITIVE:
        return 1.0 if x > 0.0 else 0.0
    if function == SIGNED_SQUARE:
        return -(x * x) if x < 0.0 else x * x
    return 1.0 - x


def run_unary(state, values, n_rows):
    """A function of each number."""
    step = record(state, UNARY)
    at, out, n, function = _value(values, step.a), _value(values, step.out), n_rows * step.width, step.function
    if function == RELU_FUNCTION:
        for i in range(0, n * DOUBLE, DOUBLE):
            x = load(at + i)
            store(out + i, 0.0 if x <= 0.0 else x)
    elif function == FLOAT32:
        for i in range(0, n * DOUBLE, DOUBLE):
            store(out + i, round_f32(load(at + i)))
    elif (function == EXP or function == LOG or function == SIGMOID or function == TANH_FUNCTION
          or function == LOG1P_EXP or function == PROBIT):
        for i in range(0, n * DOUBLE, DOUBLE):
            keep_scalar()
            store(out + i, _library(function, load(at + i)))
    else:
        for i in range(0, n * DOUBLE, DOUBLE):
            store(out + i, _plain(function, load(at + i)))
    if step.rounds:
        for i in range(0, n * DOUBLE, DOUBLE):
            store(out + i, round_f32(load(out + i)))
    return 0


# ---- functions of two numbers ------------------------------------------------------------------------------

BINARY = _dtype("b", "constant")  # constant: an address, or 0
(ADD, SUB, MUL, DIV, POW, HIGHEST, LOWEST, AND, OR, EQUAL, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL,
 WHOLE_DIV) = B.values()


@inner
def _compare(function, a, b):
    if function == EQUAL:
        return a == b
    if function == GREATER:
        return a > b
    if function == GREATER_EQUAL:
        return a >= b
    if function == LESS:
        return a < b
    if function == LESS_EQUAL:
        return a <= b
    if function == AND:
        return a != 0.0 and b != 0.0
    return a != 0.0 or b != 0.0


@inner
def _two(function, a, b):
    if function == ADD:
        return a + b
    if function == SUB:
        return a - b
    if function == MUL:
        return a * b
    if function == DIV:
        return a / b
    if function == POW:
        return math.pow(a, b)
    if function == HIGHEST:
        return a if a > b or math.isnan(a) else b
    if function == LOWEST:
        return a if a < b or math.isnan(a) else b
    if function == WHOLE_DIV:
        return _plain(TRUNC, a / b)
    return 1.0 if _compare(function, a, b) else 0.0


def run_binary(state, values, n_rows):
    """A function of each pair of numbers; the second ones may be the same constants for every row."""
    step = record(state, BINARY)
    a, out, row_bytes = _value(values, step.a), _value(values, step.out), step.width * DOUBLE
    b, b_bytes = (step.constant, 0) if step.constant != 0 else (_value(values, step.b), row_bytes)
    for _ in range(n_rows):
        for i in range(0, row_bytes, DOUBLE):
            keep_scalar()
            y = _two(step.function, load(a + i), load(b + i))
            store(out + i, round_f32(y) if step.rounds else y)
        a += row_bytes
        b += b_bytes
        out += row_bytes
    return 0


WHERE = _dtype("b", "c")


def run_where(state, values, n_rows):
    """The number of the second value where the first is not 0, else of the third."""
    step = record(state, WHERE)
    condition, b, c = _value(values, step.a), _value(values, step.b), _value(values, step.c)
    out = _value(values, step.out)
    for i in range(0, n_rows * step.width * DOUBLE, DOUBLE):
        store(out + i, load(b + i) if load(condition + i) != 0.0 else load(c + i))
    return 0


# ---- groups of columns -------------------------------------------------------------------------------------

GROUPS = _dtype()
(R_SUM, R_MEAN, R_MAX, R_MIN, R_ARGMAX, R_ARGMIN, R_ARGMAX_LAST, R_ARGMIN_LAST) = REDUCE_CODES.values()


@inner
def _is_better(function, x, best):
    if function == R_ARGMAX:
        return x > best
    if function == R_ARGMIN:
        return x < best
    if function == R_ARGMAX_LAST:
        return x >= best
    return x <= best


@inner
def _place_of_best(function, at, n):
    if n == 2:  # without a branch, which of two classes nobody could predict
        return 1.0 * _is_better(function, load(at + DOUBLE), load(at))
    place, best = 0, load(at)
    for i in range(1, n):
        x = load(at + i * DOUBLE)
        if _is_better(function, x, best):
            place, best = i, x
    return float(place)


@inner
def _sum(at, n):
    total = 0.0
    for i in range(n):
        total += load(at + i * DOUBLE)
    return total


@inner
def _extreme(function, at, n):
    best = load(at)
    for i in range(1, n):
        best = _two(function, best, load(at + i * DOUBLE))
    return best


@inner
def _reduced(function, at, n):
    if function == R_SUM:
        return _sum(at, n)
    if function == R_MEAN:
        return _sum(at, n) / n
    if function == R_MAX:
        return _extreme(HIGHEST, at, n)
    if function == R_MIN:
        return _extreme(LOWEST, at, n)
    return _place_of_best(function, at, n)


def run_reduce(state, values, n_rows):
    """One number of each group."""
    step = record(state, GROUPS)
    at, out = _value(values, step.a), _value(values, step.out)
    for i in range(n_rows * step.width):
        y = _reduced(step.function, at + i * step.group * DOUBLE, step.group)
        store(out + i * DOUBLE, round_f32(y) if step.rounds else y)
    return 0


@inner
def _softmax(function, at, n, out):
    highest = _extreme(HIGHEST, at, n)
    for i in range(0, n * DOUBLE, DOUBLE):
        keep_scalar()
        x = load(at + i)
        store(out + i, 0.0 if function == SOFTMAX_ZERO and abs(x) <= 1e-7 else math.exp(x - highest))
    total = _sum(out, n)
    for i in range(0, n * DOUBLE, DOUBLE):
        store(out + i, load(out + i) / total)


@inner
def _normalize(function, at, n, out):
    norm = abs(load(at)) if function == NORM_MAX else 0.0
    for i in range(0, n * DOUBLE, DOUBLE):
        x = load(at + i)
        if function == NORM_MAX:
            norm = _two(HIGHEST, norm, abs(x))
        elif function == NORM_L1:
            norm += abs(x)
        else:
            norm += x * x
    if function != NORM_MAX and function != NORM_L1:
        norm = math.sqrt(norm)
    for i in range(0, n * DOUBLE, DOUBLE):
        store(out + i, load(at + i) / norm if norm != 0.0 else load(at + i))


def run_scale(state, values, n_rows):
    """Each group divided by something of its own: a softmax or a norm."""
    step = record(state, GROUPS)
    at, out, n = _value(values, step.a), _value(values, step.out), n_rows * step.width
    for i in range(0, n * DOUBLE, step.group * DOUBLE):
        if step.function == SOFTMAX or step.function == SOFTMAX_ZERO:
            _softmax(step.function, at + i, step.group, out + i)
        else:
            _normalize(step.function, at + i, step.group, out + i)
    if step.rounds:
        for i in range(0, n * DOUBLE, DOUBLE):
            store(out + i, round_f32(load(out + i)))
    return 0


# ---- by key ------------------------------------------------------------------------------------------------

KEYED = _dtype("keys", "n_keys", "table")


@inner
def _key_place(step, x):
    if math.isnan(x):
        return step.n_keys
    at, n = step.keys, step.n_keys
    while n > 1:
        half = n >> 1
        at += half * DOUBLE if load(at + half * DOUBLE) <= x else 0
        n -= half
    if n == 1 and load(at) == x:
        return (at - step.keys) // DOUBLE
    return step.n_keys + 1


def run_lookup(state, values, n_rows):
    """Each number's entry in a table."""
    step = record(state, KEYED)
    at, out = _value(values, step.a), _value(values, step.out)
    for i in range(0, n_rows * step.width * DOUBLE, DOUBLE):
        store(out + i, load(step.table + _key_place(step, load(at + i)) * DOUBLE))
    return 0


def run_onehot(state, values, n_rows):
    """A group of zeros for each number, with a 1 at its place."""
    step = record(state, KEYED)
    at, out, group_bytes = _value(values, step.a), _value(values, step.out), step.group * DOUBLE
    for i in range(n_rows * step.width_a):
        for k in range(0, group_bytes, DOUBLE):
            store(out + k, 0.0)
        place = load_i64(step.table + _key_place(step, load(at + i * DOUBLE)) * DOUBLE)
        if place >= 0:
            store(out + place * DOUBLE, 1.0)
        out += group_bytes
    return 0


# ---- states ------------------------------------------------------------------------------------------------

def _common(step: Step, widths: list[int], number: int) -> dict[str, int]:
    numbers = step.numbers
    return {"a": step.inputs[0] if step.inputs else 0, "width_a": widths[0] if widths else 0, "out": number,
            "width": step.width, "function": int(numbers.get("function", 0)), "rounds": int(numbers.get("rounds", 0)),
            "group": int(numbers.get("group", 1))}


def _address(step: Step, name: str) -> int:
    return step.arrays[name].ctypes.data if name in step.arrays else 0


def _move_fields(step: Step, widths: list[int]) -> tuple[dict[str, int], tuple]:
    runs = np.zeros(len(step.arrays["runs"]), RUN)
    for run, (source, first, n) in zip(runs, step.arrays["runs"].tolist(), strict=True):
        place = first if source >= 0 else _address(step, "constants") + first * DOUBLE
        run["value"] = step.inputs[source] if source >= 0 else -1
        run["width"], run["first"], run["n"] = widths[source] if source >= 0 else 0, place, n
    return {"runs": runs.ctypes.data, "n_runs": len(runs)}, (runs,)


def _prepare_fields(step: Step, widths: list[int]) -> tuple[dict[str, int], tuple]:
    return {name: _address(step, name) for name in ("missing", "fill_values", "offset", "scale")}, ()


def _binary_fields(step: Step, widths: list[int]) -> tuple[dict[str, int], tuple]:
    return {"b": step.inputs[-1], "constant": _address(step, "constant")}, ()


def _where_fields(step: Step, widths: list[int]) -> tuple[dict[str, int], tuple]:
    return {"b": step.inputs[1], "c": step.inputs[2]}, ()


def _keyed_fields(step: Step, widths: list[int]) -> tuple[dict[str, int], tuple]:
    return {"keys": _address(step, "keys"), "n_keys": len(step.arrays["keys"]),
            "table": _address(step, "values" if step.op == "lookup" else "places")}, ()


def _no_fields(step: Step, widths: list[int]) -> tuple[dict[str, int], tuple]:
    return {}, ()


KERNELS = {  # op: (kernel, record, its own fields)
    "move": (run_move, MOVE, _move_fields),
    "prepare": (run_prepare, PREPARE, _prepare_fields),
    "unary": (run_unary, UNARY, _no_fields),
    "binary": (run_binary, BINARY, _binary_fields),
    "where": (run_where, WHERE, _where_fields),
    "reduce": (run_reduce, GROUPS, _no_fields),
    "scale": (run_scale, GROUPS, _no_fields),
    "lookup": (run_lookup, KEYED, _keyed_fields),
    "onehot": (run_onehot, KEYED, _keyed_fields),
}


def state_of(step: Step, widths: list[int], number: int) -> tuple[np.ndarray, tuple]:
    """(the record as bytes, arrays that it points into) of a step of KERNELS, which makes value `number`."""
    _, dtype, fields = KERNELS[step.op]
    own, owners = fields(step, widths)
    state = np.zeros(1, dtype)
    for name, value in (_common(step, widths, number) | own).items():
        state[0][name] = value
    return state.view(np.uint8), (*owners, step.arrays)
