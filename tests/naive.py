"""Slow oracles in plain Python, importing nothing of ours: what the fast versions must equal.

Numbers are Python floats (float64, rounded after every operation); rows are lists.
"""

import math
import struct
from collections.abc import Sequence


# ---- GGUF blocks -------------------------------------------------------------------------------------------

def half(bits: int) -> float:
    """The value of an IEEE 754 binary16 given as its 16 bits; finite ones only."""
    sign = -1.0 if bits & 0x8000 else 1.0
    exponent, fraction = bits >> 10 & 31, bits & 1023
    if exponent == 0:
        return sign * math.ldexp(fraction, -24)
    return sign * math.ldexp(1024 + fraction, exponent - 25)


def _f64(row: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(row) // 8}d", row))


def _f32(row: bytes) -> list[float]:
    return [struct.unpack_from("<f", row, at)[0] for at in range(0, len(row), 4)]


def _f16(row: bytes) -> list[float]:
    return [half(struct.unpack_from("<H", row, at)[0]) for at in range(0, len(row), 2)]


def _q8_0(row: bytes) -> list[float]:
    values = []
    for at in range(0, len(row), 34):
        scale = half(struct.unpack_from("<H", row, at)[0])
        values += [scale * q for q in struct.unpack_from("<32b", row, at + 2)]
    return values


def _q4_0(row: bytes) -> list[float]:
    values = []
    for at in range(0, len(row), 18):
        scale = half(struct.unpack_from("<H", row, at)[0])
        packed = row[at + 2:at + 18]
        values += [scale * ((byte & 15) - 8) for byte in packed]
        values += [scale * ((byte >> 4) - 8) for byte in packed]
    return values


DEQUANTIZE = {"f64": _f64, "f32": _f32, "f16": _f16, "q8_0": _q8_0, "q4_0": _q4_0}


# ---- dense layers ------------------------------------------------------------------------------------------

def dot(weights: Sequence[float], x: Sequence[float]) -> float:
    """Eight interleaved sums, then ((0+4)+(2+6)) + ((1+5)+(3+7)); `x` shorter than `weights` means zeros."""
    x = list(x) + [0.0] * (len(weights) - len(x))
    acc = [0.0] * 8
    for i, (w, value) in enumerate(zip(weights, x, strict=True)):
        product = w * value
        acc[i % 8] = acc[i % 8] + product
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]))


def logistic(s: float) -> float:
    if s >= 0:
        return 1.0 / (1.0 + math.exp(-s))
    return math.exp(s) / (1.0 + math.exp(s))


def softmax(scores: Sequence[float]) -> list[float]:
    highest = max(scores)
    e = [math.exp(s - highest) for s in scores]
    total = 0.0
    for value in e:
        total += value
    return [value / total for value in e]


ACTIVATE = {
    "identity": lambda s: s,
    "relu": lambda s: s if s > 0 else 0.0,
    "tanh": math.tanh,
    "logistic": logistic,
}


def forward(
    layers: Sequence[tuple[Sequence[Sequence[float]], Sequence[float], str]], row: Sequence[float],
) -> list[float]:
    """The last layer's values for one row; layers are (weights by row, bias, activation)."""
    values = list(row)
    for weights, bias, activation in layers:
        sums = [dot(w, values) + b for w, b in zip(weights, bias, strict=True)]
        values = [ACTIVATE[activation](s) for s in sums]
    return values


def prepare(
    row: Sequence[float], fill: Sequence[float] | None, offset: Sequence[float], scale: Sequence[float],
) -> list[float]:
    """Missing values filled, then (x − offset) · scale."""
    filled = [fill[i] if fill is not None and math.isnan(x) else x for i, x in enumerate(row)]
    return [(x - offset[i]) * scale[i] for i, x in enumerate(filled)]
