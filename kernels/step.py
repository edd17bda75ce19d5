"""One step of a program, and what the operations check their steps with (`program` says how steps fit together)."""

from typing import NamedTuple

import numpy as np

from kernels.errors import ModelError

MAX_WIDTH = 1 << 24  # float64 of one row's value


class Step(NamedTuple):
    """One operation of a program; `op` is a row of `row_ops.OPS`, which says what the rest holds."""

    op: str
    inputs: tuple[int, ...]        # numbers of the values that it reads
    width: int                     # float64 a row of the value that it makes
    numbers: dict[str, float]      # what the operation is set to
    arrays: dict[str, np.ndarray]  # constants, C-contiguous


def take_array(step: Step, name: str, dtype: type | np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
    """The step's array of this name; ModelError unless it has this dtype and shape (None: any length)."""
    array = step.arrays.get(name)
    if array is None:
        raise ModelError(f"expected an array {name}")
    fits = len(shape) == array.ndim and all(n in (None, found) for n, found in zip(shape, array.shape, strict=True))
    if array.dtype != np.dtype(dtype) or not fits or not array.flags.c_contiguous:
        expected = "×".join("n" if n is None else str(n) for n in shape)
        raise ModelError(f"expected {np.dtype(dtype)} {expected} in {name}, found {array.dtype} {array.shape}")
    return array


def take_number(step: Step, name: str, lowest: float, highest: float) -> int:
    """The step's whole number of this name; ModelError unless it lies within."""
    number = step.numbers.get(name, float("nan"))
    if type(number) not in (int, float) or not lowest <= number <= highest or number % 1:
        raise ModelError(f"expected a whole number from {lowest} to {highest} in {name}")
    return int(number)
