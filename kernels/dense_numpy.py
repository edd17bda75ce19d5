"""The dense kernels again, in numpy: the definition of every sum, and the answer where numba is not wanted.

The rule to keep: the same bits as `dense.py`. numpy rounds each product before it adds it; exp and tanh come
from the C library one number at a time, since numpy's own round differently.
"""

import math

import numpy as np

from kernels.native import IDENTITY, LOGISTIC, RELU, TANH

LANES = 8
CHUNK_VALUES = 1 << 20  # float64 of accumulators at a time: 8 MiB


def matvec(weights: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The sums (n, n_out) of x (n, n_in_padded), weights (n_out, n_in_padded), bias (n_out); all float64."""
    rows = max(1, CHUNK_VALUES // (len(weights) * LANES))
    sums = np.empty((len(x), len(weights)))
    for first in range(0, len(x), rows):
        sums[first:first + rows] = _sum_products(weights, x[first:first + rows]) + bias
    return sums


def _sum_products(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    acc = np.zeros((len(x), len(weights), LANES))
    for b in range(0, weights.shape[1], LANES):
        acc += weights[:, b:b + LANES] * x[:, None, b:b + LANES]
    acc = acc[..., :4] + acc[..., 4:]
    acc = acc[..., :2] + acc[..., 2:]
    return acc[..., 0] + acc[..., 1]  # (n, n_out)


def matvec_f32(weights: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As `matvec`, in float32: products added one by one, then the bias."""
    weights, x = weights.astype(np.float32), x.astype(np.float32)
    sums = np.zeros((len(x), len(weights)), np.float32)
    for i in range(weights.shape[1]):
        sums += weights[:, i] * x[:, i:i + 1]
    return (sums + bias.astype(np.float32)).astype(np.float64)


def logistic(s: float) -> float:
    """1 / (1 + e^−s), without overflow."""
    if s >= 0:
        return 1 / (1 + math.exp(-s))
    e = math.exp(s)
    return e / (1 + e)


def _elementwise(function, values: np.ndarray) -> np.ndarray:
    return np.array([function(v) for v in values.ravel().tolist()]).reshape(values.shape)


ACTIVATE = {
    IDENTITY: lambda values: values,
    RELU: lambda values: np.where(values <= 0, 0.0, values),  # NaN stays NaN
    TANH: lambda values: _elementwise(math.tanh, values),
    LOGISTIC: lambda values: _elementwise(logistic, values),
}


def softmax(scores: np.ndarray) -> np.ndarray:
    """The probabilities (n, n_classes) of scores (n, n_classes)."""
    e = _elementwise(math.exp, scores - scores.max(axis=1, keepdims=True))
    total = np.zeros(len(e))
    for column in e.T:
        total += column  # one by one: numpy's sum adds in pairs
    return e / total[:, None]


def binary(scores: np.ndarray) -> np.ndarray:
    """[1 − p, p] with p the logistic of the score: (n, 1) → (n, 2)."""
    p = _elementwise(logistic, scores)
    return np.concatenate([1 - p, p], axis=1)
