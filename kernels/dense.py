"""Native kernels of dense layers: matrix × vector straight from GGUF blocks, and a whole model over rows.

The rule to keep: every product, sum and activation happens in the order that `dense_numpy.py` spells out, so
that both give the same bits. Kernels check nothing, allocate nothing, never raise and never take the GIL.

One sum, for a row of weights w and an input x zero-padded to a multiple of 32: lane l of eight accumulates
w[8b + l] · x[8b + l] over b ascending; `simd.sum_lanes` adds the lanes; the bias comes last.
"""

import functools
import math

from numba import types
from numba.extending import register_jitable

from kernels.compiled import cfunc, inner
from kernels.gguf import F16, F32, Q4_0, Q8_0
from kernels.native import BINARY, IDENTITY, LAYER, LOGISTIC, MODEL, MULTICLASS, RELU, TANH, VALUE
from kernels.quants import BLOCK
from kernels.simd import (
    add, keep_scalar, load, load_f16, load_f32, load_f64, load_high_nibbles, load_i8, load_low_nibbles,
    load_scale, mul, record, store, sum_lanes, zero,
)

SIGNATURE = types.int32(*[types.intp] * 6)

MODEL_BYTES, LAYER_BYTES = MODEL.itemsize, LAYER.itemsize
DOUBLE = 8  # bytes of a float64
X_GROUP = 8 * DOUBLE  # bytes of eight float64 of the input
X_BLOCK = BLOCK * DOUBLE  # bytes of a block of the input
F32_BLOCK, F16_BLOCK, Q8_0_BLOCK, Q4_0_BLOCK = 128, 64, 34, 18  # bytes; maps in quants.py


# ---- eight weights: group g of the block at address w ------------------------------------------------------

# `register_jitable`, not `inner`, where a function is passed as an argument: a compiled function there would
# be an address of this process and could not be cached.

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
def _dot_group(weights, w, g, x, acc):
    return add(acc, mul(weights(w, g), load_f64(x + g * X_GROUP)))


@register_jitable
def _dot_block(weights, w, x, acc):
    # Written out, because LLVM leaves a loop of four as a loop.
    acc = _dot_group(weights, w, 0, x, acc)
    acc = _dot_group(weights, w, 1, x, acc)
    acc = _dot_group(weights, w, 2, x, acc)
    return _dot_group(weights, w, 3, x, acc)


@inner
def _matvec(weights, block_bytes, layer, x, y):
    # Four rows at a time: their sums do not wait for each other, where one row's additions must. Groups of the last
    # block that hold only padding are left out: their products are zeros, and no sum here is ever −0.
    n_blocks = layer.n_in // BLOCK
    n_groups = (layer.n_in % BLOCK + 7) // 8
    tail, tail_inputs = n_blocks * block_bytes, x + n_blocks * X_BLOCK
    n_tiled = layer.n_out - layer.n_out % 4
    for o in range(0, n_tiled, 4):
        w0 = layer.weights + o * layer.row_bytes
        w1, w2, w3 = w0 + layer.row_bytes, w0 + 2 * layer.row_bytes, w0 + 3 * layer.row_bytes
        acc0, acc1, acc2, acc3 = zero(), zero(), zero(), zero()
        for b in range(n_blocks):
            at, inputs = b * block_bytes, x + b * X_BLOCK
            acc0 = _dot_block(weights, w0 + at, inputs, acc0)
            acc1 = _dot_block(weights, w1 + at, inputs, acc1)
            acc2 = _dot_block(weights, w2 + at, inputs, acc2)
            acc3 = _dot_block(weights, w3 + at, inputs, acc3)
        for g in range(n_groups):
            acc0 = _dot_group(weights, w0 + tail, g, tail_inputs, acc0)
            acc1 = _dot_group(weights, w1 + tail, g, tail_inputs, acc1)
            acc2 = _dot_group(weights, w2 + tail, g, tail_inputs, acc2)
            acc3 = _dot_group(weights, w3 + tail, g, tail_inputs, acc3)
        bias, out = layer.bias + o * DOUBLE, y + o * DOUBLE
        store(out, sum_lanes(acc0) + load(bias))
        store(out + DOUBLE, sum_lanes(acc1) + load(bias + DOUBLE))
        store(out + 2 * DOUBLE, sum_lanes(acc2) + load(bias + 2 * DOUBLE))
        store(out + 3 * DOUBLE, sum_lanes(acc3) + load(bias + 3 * DOUBLE))
    for o in range(n_tiled, layer.n_out):
        w, acc = layer.weights + o * layer.row_bytes, zero()
        for b in range(n_blocks):
            acc = _dot_block(weights, w + b * block_bytes, x + b * X_BLOCK, acc)
        for g in range(n_groups):
            acc = _dot_group(weights, w + tail, g, tail_inputs, acc)
        store(y + o * DOUBLE, sum_lanes(acc) + load(layer.bias + o * DOUBLE))


@register_jitable
def matvec_f32(layer, x, y):
    """To address y, the sums of a LAYER record with F32 weights for the n_in float64 at x, zero-padded to eights."""
    _matvec(_weights_f32, F32_BLOCK, layer, x, y)


@register_jitable
def matvec_f16(layer, x, y):
    """As `matvec_f32`, F16 weights."""
    _matvec(_weights_f16, F16_BLOCK, layer, x, y)


@register_jitable
def matvec_q8_0(layer, x, y):
    """As `matvec_f32`, Q8_0 weights."""
    _matvec(_weights_q8_0, Q8_0_BLOCK, layer, x, y)


@register_jitable
def matvec_q4_0(layer, x, y):
    """As `matvec_f32`, Q4_0 weights."""
    _matvec(_weights_q4_0, Q4_0_BLOCK, layer, x, y)


@register_jitable
def matvec_mixed(layer, x, y):
    """As `matvec_f32`, weights of any of the formats."""
    if layer.tensor_type == F32:
        matvec_f32(layer, x, y)
    elif layer.tensor_type == F16:
        matvec_f16(layer, x, y)
    elif layer.tensor_type == Q8_0:
        matvec_q8_0(layer, x, y)
    elif layer.tensor_type == Q4_0:
        matvec_q4_0(layer, x, y)


# ---- activations -------------------------------------------------------------------------------------------

@inner
def _logistic(s):
    # exp of what is not above zero never overflows.
    if s >= 0.0:
        return 1.0 / (1.0 + math.exp(-s))
    e = math.exp(s)
    return e / (1.0 + e)


@inner
def _activate(values, n, activation):
    for at in range(values, values + n * DOUBLE, DOUBLE):
        keep_scalar()
        s = load(at)
        if activation == RELU:
            store(at, 0.0 if s <= 0.0 else s)  # NaN stays NaN
        elif activation == TANH:
            store(at, math.tanh(s))
        elif activation == LOGISTIC:
            store(at, _logistic(s))


@inner
def _argmax(scores, n):
    best = 0
    for i in range(1, n):
        if load(scores + i * DOUBLE) > load(scores + best * DOUBLE):
            best = i
    return best


@inner
def _softmax(scores, n, out):
    highest = load(scores + _argmax(scores, n) * DOUBLE)
    total = 0.0
    for i in range(n):
        keep_scalar()
        e = math.exp(load(scores + i * DOUBLE) - highest)
        store(out + i * DOUBLE, e)
        total += e
    for at in range(out, out + n * DOUBLE, DOUBLE):
        store(at, load(at) / total)


# ---- a whole model -----------------------------------------------------------------------------------------

@inner
def _load_row(model, row, x):
    """One row: fill what is missing, shift and scale."""
    for i in range(model.n_features):
        feature = load(row + i * DOUBLE)
        if math.isnan(feature):
            feature = load(model.fill_values + i * DOUBLE)
        store(x + i * DOUBLE, (feature - load(model.offset + i * DOUBLE)) * load(model.scale + i * DOUBLE))


@inner
def _pad(values, n):
    for i in range(n, (n + 7) // 8 * 8):
        store(values + i * DOUBLE, 0.0)


@inner
def _run_layers(matvec, model, layers, x, y, z):
    """From the inputs at x, through y and z in turns → the address of the last layer's values."""
    for i in range(model.n_layers):
        layer = record(layers + i * LAYER_BYTES, LAYER)
        matvec(layer, x, y)
        if layer.activation != IDENTITY:
            _activate(y, layer.n_out, layer.activation)
        if i + 1 < model.n_layers:
            _pad(y, layer.n_out)
        x, y, z = y, z, y
    return x


@inner
def _all_finite(values, n):
    for at in range(values, values + n * DOUBLE, DOUBLE):
        if not math.isfinite(load(at)):
            return False
    return True


@inner
def _prediction(output, scores, n):
    if output == BINARY:
        return 1.0 if load(scores) > 0.0 else 0.0
    if output == MULTICLASS:
        return float(_argmax(scores, n))
    return load(scores)


@inner
def _store_probabilities(output, scores, n, out):
    if output == MULTICLASS:
        _softmax(scores, n, out)
    elif output != VALUE:
        p = _logistic(load(scores))
        store(out, 1.0 - p)
        store(out + DOUBLE, p)


@inner
def _predict(matvec, state, rows, n_rows, predictions, probabilities, scratch):
    model = record(state, MODEL)
    layers = state + MODEL_BYTES
    n_scores = record(layers + (model.n_layers - 1) * LAYER_BYTES, LAYER).n_out
    y = scratch + model.width * DOUBLE
    z = y + model.width * DOUBLE
    _pad(scratch, model.n_features)
    for i in range(n_rows):
        _load_row(model, rows + i * model.n_features * DOUBLE, scratch)
        scores = _run_layers(matvec, model, layers, scratch, y, z)
        if not _all_finite(scores, n_scores):
            return 1
        store(predictions + i * DOUBLE, _prediction(model.output, scores, n_scores))
        if probabilities != 0:
            at = probabilities + i * model.n_classes * DOUBLE
            _store_probabilities(model.output, scores, n_scores, at)
    return 0


# One function a format, written out: numba's cache cannot recognise a closure over a compiled function in
# another process, and a model compiles only what it uses.

def predict_f32(state, rows, n_rows, predictions, probabilities, scratch):
    """The model kernel (ABI in native.py) where every layer is F32."""
    return _predict(matvec_f32, state, rows, n_rows, predictions, probabilities, scratch)


def predict_f16(state, rows, n_rows, predictions, probabilities, scratch):
    """The model kernel where every layer is F16."""
    return _predict(matvec_f16, state, rows, n_rows, predictions, probabilities, scratch)


def predict_q8_0(state, rows, n_rows, predictions, probabilities, scratch):
    """The model kernel where every layer is Q8_0."""
    return _predict(matvec_q8_0, state, rows, n_rows, predictions, probabilities, scratch)


def predict_q4_0(state, rows, n_rows, predictions, probabilities, scratch):
    """The model kernel where every layer is Q4_0."""
    return _predict(matvec_q4_0, state, rows, n_rows, predictions, probabilities, scratch)


def predict_mixed(state, rows, n_rows, predictions, probabilities, scratch):
    """The model kernel where the layers' formats differ."""
    return _predict(matvec_mixed, state, rows, n_rows, predictions, probabilities, scratch)


PREDICT = {F32: predict_f32, F16: predict_f16, Q8_0: predict_q8_0, Q4_0: predict_q4_0}


def compile_predict(tensor_types: frozenset[int]):
    """The model kernel for layers of these formats, compiled or from the cache; `.address` is its entry."""
    if len(tensor_types) == 1:
        return _compiled(PREDICT[min(tensor_types)])
    return _compiled(predict_mixed)


@functools.cache
def _compiled(function):
    return cfunc(SIGNATURE)(function)
