"""Block formats of weights: bytes of a GGUF tensor ↔ numbers, in numpy.

The rule to keep: `dequantize` is exact. A half or float32 widens exactly, and a half scale (11 bits) times an
8-bit integer fits the 53 bits of a float64. The native kernels compute the very same products.

A row is padded with zeros to a multiple of 32 values. The block of each format, little-endian:

    F64    32 × float64                                                          256 bytes
    F32    32 × float32                                                          128 bytes
    F16    32 × float16                                                           64 bytes
    Q8_0   bytes 0–1 float16 scale d, bytes 2–33 int8 q[32]: value i = d · q[i]    34 bytes
    Q4_0   bytes 0–1 float16 scale d, bytes 2–17: value i = d · (low nibble of byte 2 + i − 8),
           value 16 + i = d · (high nibble of byte 2 + i − 8), i < 16              18 bytes

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q8_0, block_q4_0)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kernels.errors import ModelError
from kernels.gguf import F16, F32, F64, FORMATS, Q4_0, Q8_0

BLOCK = 32  # values a block; a row's length in the model is a multiple of it


def _f64_values(rows: np.ndarray) -> np.ndarray:
    return rows.view("<f8")


def _f32_values(rows: np.ndarray) -> np.ndarray:
    return rows.view("<f4").astype(np.float64)


def _f16_values(rows: np.ndarray) -> np.ndarray:
    return rows.view("<f2").astype(np.float64)


def _q8_0_values(rows: np.ndarray) -> np.ndarray:
    blocks = rows.reshape(len(rows), -1, 34)
    values = blocks[..., 2:].view(np.int8) * _scales(blocks)
    return values.reshape(len(rows), -1)


def _q4_0_values(rows: np.ndarray) -> np.ndarray:
    blocks = rows.reshape(len(rows), -1, 18)
    nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    values = (nibbles.astype(np.int8) - 8) * _scales(blocks)
    return values.reshape(len(rows), -1)


def _scales(blocks: np.ndarray) -> np.ndarray:
    return blocks[..., :2].view("<f2").astype(np.float64)  # (rows, blocks, 1)


def _f64_bytes(blocks: np.ndarray) -> np.ndarray:
    return blocks.view(np.uint8)


def _f32_bytes(blocks: np.ndarray) -> np.ndarray:
    return blocks.astype("<f4").view(np.uint8)


def _f16_bytes(blocks: np.ndarray) -> np.ndarray:
    return blocks.astype("<f2").view(np.uint8)


def _q8_0_bytes(blocks: np.ndarray) -> np.ndarray:
    # Rounding against the scale as stored, not as computed, keeps every error within half a step.
    scale = (np.abs(blocks).max(axis=-1, keepdims=True) / 127).astype("<f2")
    q = np.rint(_divide(blocks, scale)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), q.view(np.uint8)], axis=-1)


def _q4_0_bytes(blocks: np.ndarray) -> np.ndarray:
    # The steps reach from −8 to 7, so the value farthest from zero gets −8 whatever its sign. One as far on
    # the other side would need +8 and gets 7: a whole step of error, where the others have half a step.
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    scale = (farthest / -8).astype("<f2")
    q = (np.rint(_divide(blocks, scale)).clip(-8, 7) + 8).astype(np.uint8)
    return np.concatenate([scale.view(np.uint8), q[..., :16] | q[..., 16:] << 4], axis=-1)


def _divide(blocks: np.ndarray, scale: np.ndarray) -> np.ndarray:
    wide = scale.astype(np.float64)
    return np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide != 0)


class Codec(NamedTuple):
    """How one format's rows are read and written."""

    # (rows, row_bytes) uint8 → (rows, n) float64
    values: Callable[[np.ndarray], np.ndarray]
    # (rows, blocks, 32) float64 → (rows, blocks, block_bytes) uint8
    bytes: Callable[[np.ndarray], np.ndarray]


CODECS = {
    F64: Codec(_f64_values, _f64_bytes),
    F32: Codec(_f32_values, _f32_bytes),
    F16: Codec(_f16_values, _f16_bytes),
    Q8_0: Codec(_q8_0_values, _q8_0_bytes),
    Q4_0: Codec(_q4_0_values, _q4_0_bytes),
}


def dequantize(rows: np.ndarray, tensor_type: int) -> np.ndarray:
    """The exact values, (rows, n) float64, of a tensor's bytes, (rows, row_bytes) uint8."""
    with np.errstate(invalid="ignore"):  # an infinite scale times zero, in a hostile file
        return CODECS[tensor_type].values(np.ascontiguousarray(rows))


def quantize(values: np.ndarray, tensor_type: int) -> np.ndarray:
    """The bytes, (rows, row_bytes) uint8, nearest to the `values`, (rows, n) with n a multiple of 32.

    Raises ModelError when a value is not finite or too large for the format.
    """
    rows, n = values.shape
    if n % BLOCK:
        raise ModelError(f"expected rows in multiples of {BLOCK} values, found {n}")
    if not np.isfinite(values).all():
        raise ModelError("expected finite weights")
    blocks = values.astype(np.float64, order="C").reshape(rows, n // BLOCK, BLOCK)
    with np.errstate(over="ignore"):
        quantized = CODECS[tensor_type].bytes(blocks)
    quantized = quantized.reshape(rows, -1)
    if not np.isfinite(dequantize(quantized, tensor_type)).all():
        raise ModelError("expected smaller weights: one is too large for the format")
    return quantized


def all_finite(rows: np.ndarray, tensor_type: int) -> bool:
    """Whether every value of a tensor's bytes, (rows, row_bytes) uint8, is finite; widens a row at a time."""
    return all(np.isfinite(dequantize(rows[i:i + 1], tensor_type)).all() for i in range(len(rows)))


def row_bytes(n_in: int, tensor_type: int) -> int:
    """The bytes of a row of n_in weights, padded to whole blocks of 32."""
    elements, size_bytes = FORMATS[tensor_type][1:]
    return -(-n_in // BLOCK) * BLOCK // elements * size_bytes
