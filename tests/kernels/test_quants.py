"""Block formats: one block of each by hand, every half, and the step that quantizing may cost."""

import numpy as np
import pytest

from kernels import ModelError, quants
from kernels.export import TENSOR_TYPES
from tests import naive

FORMATS = list(TENSOR_TYPES)

# float16 0x3800 = 0.5, little-endian; 0x3C00 = 1, 0xC000 = −2
HAND_COMPUTED = {
    "f64": (bytes(6) + b"\xf0\x3f" + bytes(6) + b"\x04\xc0" + bytes(240), [1.0, -2.5] + [0.0] * 30),
    "f32": (b"\x00\x00\x80\x3f\x00\x00\x20\xc0" + bytes(120), [1.0, -2.5] + [0.0] * 30),
    "f16": (b"\x00\x3c\x00\xc0\x01\x00" + bytes(58), [1.0, -2.0, 2.0**-24] + [0.0] * 29),
    "q8_0": (b"\x00\x38" + bytes([1, 0xFF, 127, 0x80]) + bytes(28), [0.5, -0.5, 63.5, -64.0] + [0.0] * 28),
    # byte 2 holds value 0 in its low nibble (3 − 8 = −5) and value 16 in its high one (15 − 8 = 7)
    "q4_0": (b"\x00\x38" + b"\xf3" + b"\x88" * 15, [-2.5] + [0.0] * 15 + [3.5] + [0.0] * 15),
}


def row_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)[None]


@pytest.mark.parametrize("format_name", FORMATS)
def test_block_computed_by_hand(format_name):
    data, expected = HAND_COMPUTED[format_name]
    assert quants.dequantize(row_of(data), TENSOR_TYPES[format_name])[0].tolist() == expected
    assert naive.DEQUANTIZE[format_name](data) == expected


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("n_blocks", [1, 3, 17])
def test_dequantized_values_are_the_oracles(format_name, n_blocks):
    values = np.random.default_rng(n_blocks).normal(size=(2, 32 * n_blocks))
    rows = quants.quantize(values, TENSOR_TYPES[format_name])
    expected = [naive.DEQUANTIZE[format_name](row.tobytes()) for row in rows]
    assert quants.dequantize(rows, TENSOR_TYPES[format_name]).tolist() == expected


def test_every_finite_half_is_read_exactly():
    bits = np.array([b for b in range(65536) if b & 0x7C00 != 0x7C00], "<u2").reshape(-1, 32)
    found = quants.dequantize(bits.view(np.uint8), TENSOR_TYPES["f16"])
    expected = np.array([naive.half(b) for b in bits.ravel().tolist()]).reshape(found.shape)
    assert found.tobytes() == expected.tobytes()  # bytes: −0.0 is not 0.0


# The largest error, in steps of the block's scale; a Q4_0 value as far from zero as the farthest, on the
# other side, costs a whole step.
@pytest.mark.parametrize(("format_name", "steps"), [("q8_0", 0.5), ("q4_0", 1.0)])
@pytest.mark.parametrize("size", [0.02, 1.0, 1e4])
def test_quantizing_costs_at_most_the_stated_step(format_name, steps, size):
    values = np.random.default_rng(0).standard_t(3, size=(50, 320)) * size
    rows = quants.quantize(values, TENSOR_TYPES[format_name])
    scale = np.abs(rows.reshape(50, 10, -1)[..., :2].copy().view("<f2").astype(float))
    errors = np.abs(values - quants.dequantize(rows, TENSOR_TYPES[format_name])).reshape(50, 10, 32)
    assert scale.min() > 2.0**-14  # below, a half cannot hold the scale precisely
    assert (errors <= steps * scale * (1 + 1e-12)).all()
    assert errors.max() <= np.abs(values).max() / (100 if format_name == "q8_0" else 7)


def test_zeros_stay_zeros():
    for tensor_type in TENSOR_TYPES.values():
        assert not quants.dequantize(quants.quantize(np.zeros((1, 32)), tensor_type), tensor_type).any()


@pytest.mark.parametrize(("format_name", "too_large"),
                         [("f32", 1e39), ("f16", 65520.0), ("q8_0", 1e7), ("q4_0", 1e6)])
def test_weights_that_the_format_cannot_hold_are_refused(format_name, too_large):
    for value, message in [(too_large, "smaller weights"), (np.nan, "finite"), (-np.inf, "finite")]:
        values = np.zeros((1, 32))
        values[0, 5] = value
        with pytest.raises(ModelError, match=message):
            quants.quantize(values, TENSOR_TYPES[format_name])


def test_rows_in_parts_of_a_block_are_refused():
    with pytest.raises(ModelError, match="multiples of 32 values, found 33"):
        quants.quantize(np.zeros((1, 33)), TENSOR_TYPES["q8_0"])
