"""Native kernels of dense layers: rows × weights straight from GGUF blocks.

The rule to keep: every product, sum and activation happens in the order that `dense_numpy.py` spells out, so
that both give the same bits. Kernels check nothing, allocate nothing, never raise and never take the GIL.

One sum, for a row of weights w and an input x zero-padded to a multiple of 8: lane l of eight accumulates
w[8b + l] · x[8b + l] over b ascending; `simd.sum_lanes` adds the lanes; the bias comes last. Where the model's own
arithmetic is float32 (`row_ops.is_float32`), products are added one by one, in float32.
"""

import math

import numpy as np
from numba.extending import register_jitable

from kernels import quants
from kernels.compiled import inner
from kernels.gguf import F16, F32, F64, Q4_0, Q8_0
from kernels.native import IDENTITY, RELU, TANH
from kernels.quants import BLOCK
from kernels.row_kernels import logistic
from kernels.row_ops import is_float32
from kernels.simd import (
    add, add_f32x16, add_products, keep_scalar, lane_f32x16, load, load_f16, load_f32, load_f32x16, load_f64,
    load_first_f64, load_high_nibbles, load_i8, load_i64, load_low_nibbles, load_scale, mul, narrow_f64, record,
    relu_f32x16, round_f32, round_f32x8, spread_f32, store, store_f64, store_one_f32, sum_lanes, widen_f32x16, zero,
    zero_f32x16,
)
from kernels.step import Step

LAYER = np.dtype([
    ("input", np.int64), ("out", np.int64), ("padded", np.int64),  # numbers of values; the last is scratch
    ("groups", np.int64),       # rows of n_in inputs in a row of the value
    ("weights", np.int64),      # address of (n_out, row_bytes) bytes, blocks of `tensor_type`
    ("bias", np.int64),         # address of (n_out) float64
    ("n_in", np.int64),         # weights in a row, the padding not counted
    ("n_out", np.int64),
    ("row_bytes", np.int64),
    ("activation", np.int64),
    ("rounds", np.int64),
])
DOUBLE = 8  # bytes of a float64
X_GROUP = 8 * DOUBLE  # bytes of eight float64 of the input
X_BLOCK = BLOCK * DOUBLE  # bytes of a block of the input
F64_BLOCK, F32_BLOCK, F16_BLOCK, Q8_0_BLOCK, Q4_0_BLOCK = 256, 128, 64, 34, 18  # bytes; maps in quants.py
ROWS = 4  # input rows that share what is read of the weights


# ---- eight weights: group g of the block at address w ------------------------------------------------------

# `register_jitable`, not `inner`, where a function is passed as an argument: a compiled function there would
# be an address of this process and could not be cached.

@register_jitable
def _weights_f64(w, g):
    return load_f64(w + X_GROUP * g)


@register_jitable
def _weights_f32(w, g):
    return load_f32(w + 32 * g)


@register_jitable
def _weights_f16(w, g):
    return load_f16(w + 16 * g)


@register_jitable
def _weights_q8_0(w, g):
    return mul(load_i8(w + 2 + 8 * g), load_scale(w))


@register_jitable
def _weights_q4_0(w, g):
    if g < 2:  # the first 16 weights are the low nibbles of the 16 bytes
        return mul(load_low_nibbles(w + 2 + 8 * g), load_scale(w))
    return mul(load_high_nibbles(w + 8 * g - 14), load_scale(w))


# ---- y = W · x + bias --------------------------------------------------------------------------------------

@register_jitable
def _dot_four(weights, w, w_step, g, x, x_step, a, b, c, d):
    """Group g of four sums: of one output for four rows, or of four outputs for one row (a step is 0 then)."""
    at = x + g * X_GROUP
    return (add(a, mul(weights(w, g), load_f64(at))),
            add(b, mul(weights(w + w_step, g), load_f64(at + x_step))),
            add(c, mul(weights(w + 2 * w_step, g), load_f64(at + 2 * x_step))),
            add(d, mul(weights(w + 3 * w_step, g), load_f64(at + 3 * x_step))))


@inner
def _four_sums(weights, block_bytes, layer, o, w_step, x, x_step, y, y_step):
    # Four sums at a time do not wait for each other, where the additions of one must; what is read and widened of the
    # weights serves four rows. Groups of the last block that hold only padding are left out: their products are
    # zeros, and no sum here is ever −0.
    w, n_blocks, n_groups = layer.weights + o * layer.row_bytes, layer.n_in // BLOCK, (layer.n_in % BLOCK + 7) // 8
    a, b, c, d = zero(), zero(), zero(), zero()
    for _ in range(n_blocks):
        a, b, c, d = _dot_four(weights, w, w_step, 0, x, x_step, a, b, c, d)
        a, b, c, d = _dot_four(weights, w, w_step, 1, x, x_step, a, b, c, d)
        a, b, c, d = _dot_four(weights, w, w_step, 2, x, x_step, a, b, c, d)
        a, b, c, d = _dot_four(weights, w, w_step, 3, x, x_step, a, b, c, d)
        w += block_bytes
        x += X_BLOCK
    for g in range(n_groups):
        a, b, c, d = _dot_four(weights, w, w_step, g, x, x_step, a, b, c, d)
    bias, bias_step = layer.bias + o * DOUBLE, DOUBLE if w_step else 0
    store(y, sum_lanes(a) + load(bias))
    store(y + y_step, sum_lanes(b) + load(bias + bias_step))
    store(y + 2 * y_step, sum_lanes(c) + load(bias + 2 * bias_step))
    store(y + 3 * y_step, sum_lanes(d) + load(bias + 3 * bias_step))


@inner
def _one_row(weights, block_bytes, layer, x, y):
    n_tiled = layer.n_out - layer.n_out % 4
    for o in range(0, n_tiled, 4):
        _four_sums(weights, block_bytes, layer, o, layer.row_bytes, x, 0, y + o * DOUBLE, DOUBLE)
    for o in range(n_tiled, layer.n_out):  # four times the same sum, which LLVM computes once
        _four_sums(weights, block_bytes, layer, o, 0, x, 0, y + o * DOUBLE, 0)


@inner
def _four_rows(weights, block_bytes, layer, x, x_bytes, y):
    for o in range(layer.n_out):
        _four_sums(weights, block_bytes, layer, o, 0, x, x_bytes, y + o * DOUBLE, layer.n_out * DOUBLE)


# ---- the same in float32 -----------------------------------------------------------------------------------

# Lanes are outputs here and each adds up its products one after the other, from weights that `state_of` has turned
# round, (n_in, n_out padded to sixteens): with few inputs, adding up lanes would cost more than the products.

FLOAT = 4  # bytes of a float32
FLOAT_GROUP = 16 * FLOAT


@inner
def _store_sixteen(acc, layer, o, y):
    """Sixteen sums and their biases from output o on, as float64; fewer at the end."""
    acc = add_f32x16(acc, load_f32x16(layer.bias + o * FLOAT))
    if layer.activation == RELU:
        acc = relu_f32x16(acc)
    if o + 16 <= layer.n_out:
        widen_f32x16(acc, y + o * DOUBLE)
    else:
        for k in range(layer.n_out - o):
            store(y + (o + k) * DOUBLE, lane_f32x16(acc, k))


@inner
def _store_outputs(left, right, layer, o, y):
    _store_sixteen(left, layer, o, y)
    if o + 16 < layer.n_out:
        _store_sixteen(right, layer, o + 16, y)


@inner
def _four_rows_f32(layer, x, x_bytes, y, y_bytes):
    """Thirty-two outputs × four rows at a time; with steps of 0, four times the same row, which LLVM computes once."""
    for o in range(0, layer.n_out, 32):
        w = layer.weights + o * FLOAT
        a, b, c, d = zero_f32x16(), zero_f32x16(), zero_f32x16(), zero_f32x16()
        e, f, g, h = zero_f32x16(), zero_f32x16(), zero_f32x16(), zero_f32x16()
        for i in range(x, x + layer.n_in * FLOAT, FLOAT):
            left, right = load_f32x16(w), load_f32x16(w + FLOAT_GROUP)
            inputs = spread_f32(i)
            a, e = add_products(a, left, inputs), add_products(e, right, inputs)
            inputs = spread_f32(i + x_bytes)
            b, f = add_products(b, left, inputs), add_products(f, right, inputs)
            inputs = spread_f32(i + 2 * x_bytes)
            c, g = add_products(c, left, inputs), add_products(g, right, inputs)
            inputs = spread_f32(i + 3 * x_bytes)
            d, h = add_products(d, left, inputs), add_products(h, right, inputs)
            w += layer.row_bytes
        _store_outputs(a, e, layer, o, y)
        if y_bytes:
            _store_outputs(b, f, layer, o, y + y_bytes)
            _store_outputs(c, g, layer, o, y + 2 * y_bytes)
            _store_outputs(d, h, layer, o, y + 3 * y_bytes)


@inner
def _narrow(x, n, out):
    """Copy one row of inputs as float32."""
    n_whole = n - n % 8
    for i in range(0, n_whole, 8):
        narrow_f64(x + i * DOUBLE, out + i * FLOAT)
    for i in range(n_whole, n):
        store_one_f32(out + i * FLOAT, load(x + i * DOUBLE))


def run_dense_float(state, values, n_rows):
    """The kernel (ABI in native.py) of a step "dense" of a model in float32: F32 weights, and `rounds`."""
    layer = record(state, LAYER)
    x, y = load_i64(values + layer.input * 8), load_i64(values + layer.out * 8)
    padded = load_i64(values + layer.padded * 8)
    n, x_bytes, y_bytes = n_rows * layer.groups, (layer.n_in + 15) // 16 * FLOAT_GROUP, layer.n_out * DOUBLE
    n_tiled = n - n % ROWS
    for r in range(0, n_tiled, ROWS):
        for k in range(ROWS):
            _narrow(x + (r + k) * layer.n_in * DOUBLE, layer.n_in, padded + k * x_bytes)
        _four_rows_f32(layer, padded, x_bytes, y + r * y_bytes, y_bytes)
    for r in range(n_tiled, n):
        _narrow(x + r * layer.n_in * DOUBLE, layer.n_in, padded)
        _four_rows_f32(layer, padded, 0, y + r * y_bytes, 0)
    if layer.activation > RELU:
        _activate(y, n * layer.n_out, layer.activation)
        _round(y, n * layer.n_out)
    return 0


# ---- activations -------------------------------------------------------------------------------------------

@inner
def _activate(values, n, activation):
    if activation == RELU:
        for at in range(values, values + n * DOUBLE, DOUBLE):
            s = load(at)
            store(at, 0.0 if s <= 0.0 else s)  # NaN stays NaN
    elif activation != IDENTITY:
        for at in range(values, values + n * DOUBLE, DOUBLE):
            keep_scalar()
            store(at, math.tanh(load(at)) if activation == TANH else logistic(load(at)))


@inner
def _round(values, n):
    for at in range(values, values + n * DOUBLE, DOUBLE):
        store(at, round_f32(load(at)))


# ---- a block of rows ---------------------------------------------------------------------------------------

@inner
def _pad(x, n, rounds, out):
    """Copy one row of inputs, rounded where the model's are float32, zeros behind it up to whole eights."""
    n_whole = n - n % 8
    for i in range(0, n_whole * DOUBLE, X_GROUP):
        inputs = load_f64(x + i)
        store_f64(out + i, round_f32x8(inputs) if rounds else inputs)
    if n_whole < n:
        inputs = load_first_f64(x + n_whole * DOUBLE, n - n_whole)
        store_f64(out + n_whole * DOUBLE, round_f32x8(inputs) if rounds else inputs)


@inner
def _run(weights, block_bytes, state, values, n_rows):
    layer = record(state, LAYER)
    x, y = load_i64(values + layer.input * 8), load_i64(values + layer.out * 8)
    padded = load_i64(values + layer.padded * 8)
    n, x_bytes, y_bytes = n_rows * layer.groups, (layer.n_in + 7) // 8 * X_GROUP, layer.n_out * DOUBLE
    n_tiled = n - n % ROWS
    for r in range(0, n_tiled, ROWS):
        for k in range(ROWS):
            _pad(x + (r + k) * layer.n_in * DOUBLE, layer.n_in, layer.rounds != 0, padded + k * x_bytes)
        _four_rows(weights, block_bytes, layer, padded, x_bytes, y + r * y_bytes)
    for r in range(n_tiled, n):
        _pad(x + r * layer.n_in * DOUBLE, layer.n_in, layer.rounds != 0, padded)
        _one_row(weights, block_bytes, layer, padded, y + r * y_bytes)
    if layer.rounds:
        _round(y, n * layer.n_out)
    _activate(y, n * layer.n_out, layer.activation)
    if layer.rounds and layer.activation > RELU:
        _round(y, n * layer.n_out)
    return 0


# One function a format, written out: numba's cache cannot recognise a closure over a compiled function in
# another process, and a model compiles only what it uses.

def run_dense_f64(state, values, n_rows):
    """The kernel (ABI in native.py) of a step "dense" with F64 weights."""
    return _run(_weights_f64, F64_BLOCK, state, values, n_rows)


def run_dense_f32(state, values, n_rows):
    """The same with F32 weights."""
    return _run(_weights_f32, F32_BLOCK, state, values, n_rows)


def run_dense_f16(state, values, n_rows):
    """The same with F16 weights."""
    return _run(_weights_f16, F16_BLOCK, state, values, n_rows)


def run_dense_q8_0(state, values, n_rows):
    """The same with Q8_0 weights."""
    return _run(_weights_q8_0, Q8_0_BLOCK, state, values, n_rows)


def run_dense_q4_0(state, values, n_rows):
    """The same with Q4_0 weights."""
    return _run(_weights_q4_0, Q4_0_BLOCK, state, values, n_rows)


KERNELS = {F64: run_dense_f64, F32: run_dense_f32, F16: run_dense_f16, Q8_0: run_dense_q8_0, Q4_0: run_dense_q4_0}


def kernel_of(step: Step):
    """The kernel function of a step "dense"."""
    if is_float32(step):
        return run_dense_float
    return KERNELS[int(step.numbers["tensor_type"])]


def state_of(step: Step, widths: list[int], number: int, scratch: int) -> tuple[np.ndarray, tuple, int]:
    """(LAYER record as bytes, arrays that it points into, float64 of scratch a call) of step `number`."""
    n_in, weights, bias = int(step.numbers["n_in"]), step.arrays["weights"], step.arrays["bias"]
    row_bytes = quants.row_bytes(n_in, int(step.numbers["tensor_type"]))
    if is_float32(step):
        weights, bias, row_bytes = _turned(weights, bias, n_in)
    state = np.zeros(1, LAYER)
    state[0] = (step.inputs[0], number, scratch, widths[0] // n_in, weights.ctypes.data, bias.ctypes.data, n_in,
                len(step.arrays["bias"]), row_bytes, int(step.numbers["activation"]),
                int(step.numbers.get("rounds", 0)))
    return state.view(np.uint8), (weights, bias), ROWS * (-(-n_in // 16) * 16)


def _turned(weights: np.ndarray, bias: np.ndarray, n_in: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights (n_in, n_out padded to 32s) and bias (n_out padded) float32, and the bytes of a row."""
    n_out = len(bias)
    padded = -(-n_out // 32) * 32
    turned, biases = np.zeros((n_in, padded), np.float32), np.zeros(padded, np.float32)
    turned[:, :n_out], biases[:n_out] = weights.view("<f4")[:, :n_in].T, bias
    return turned, biases, turned.strides[0]
