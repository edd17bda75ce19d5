"""Reader of GGUF v3 model files: metadata and a table of tensors over a memory map, nothing copied.

The rule to keep: a file is hostile until checked. Every count and length is compared with the bytes that
remain before anything of that size is made, so memory stays within a constant factor of the file's size.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kernels.errors import ModelError

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_TENSOR_NAME_BYTES = 64
MAX_KEY_BYTES = 65_535
MAX_ARRAY_DEPTH = 8  # arrays in arrays: real files have 1; each level is a level of Python's stack


class Format(NamedTuple):
    """How a tensor type stores its elements: `elements` values in every `size_bytes` bytes."""

    name: str
    elements: int
    size_bytes: int


F32, F16, Q4_0, Q8_0, F64 = 0, 1, 2, 8, 28

FORMATS = {
    0: Format("F32", 1, 4), 1: Format("F16", 1, 2),
    2: Format("Q4_0", 32, 18), 3: Format("Q4_1", 32, 20),
    6: Format("Q5_0", 32, 22), 7: Format("Q5_1", 32, 24),
    8: Format("Q8_0", 32, 34), 9: Format("Q8_1", 32, 40),
    10: Format("Q2_K", 256, 84), 11: Format("Q3_K", 256, 110), 12: Format("Q4_K", 256, 144),
    13: Format("Q5_K", 256, 176), 14: Format("Q6_K", 256, 210), 15: Format("Q8_K", 256, 292),
    16: Format("IQ2_XXS", 256, 66), 17: Format("IQ2_XS", 256, 74), 18: Format("IQ3_XXS", 256, 98),
    19: Format("IQ1_S", 256, 50), 20: Format("IQ4_NL", 32, 18), 21: Format("IQ3_S", 256, 110),
    22: Format("IQ2_S", 256, 82), 23: Format("IQ4_XS", 256, 136),
    24: Format("I8", 1, 1), 25: Format("I16", 1, 2), 26: Format("I32", 1, 4), 27: Format("I64", 1, 8),
    28: Format("F64", 1, 8), 29: Format("IQ1_M", 256, 56), 30: Format("BF16", 1, 2),
    34: Format("TQ1_0", 256, 54), 35: Format("TQ2_0", 256, 66), 39: Format("MXFP4", 32, 17),
    40: Format("NVFP4", 64, 36), 41: Format("Q1_0", 128, 18),
}

# value type → its little-endian layout; strings (8) and arrays (9) have a length of their own
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8",
           12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
SMALLEST_BYTES = {STRING: 8, ARRAY: 12} | {t: np.dtype(layout).itemsize for t, layout in SCALARS.items()}


@dataclass(frozen=True)
class Tensor:
    """One tensor, its bytes as the file holds them."""

    name: str
    shape: tuple[int, ...]  # rows first: (n_out, n_in) for a matrix; the file has the reverse order
    tensor_type: int
    offset: int  # bytes from the start of the file
    data: np.ndarray = field(repr=False)  # (rows, row_bytes) uint8, read-only view of the map

    @property
    def format(self) -> Format:
        """How the elements are stored."""
        return FORMATS[self.tensor_type]


@dataclass(frozen=True)
class GGUFFile:
    """A checked file: its metadata, and its tensors in the file's order."""

    path: Path
    metadata: dict[str, object]  # str, int, float, bool; arrays: list of str or of arrays, 1-D ndarray
    tensors: dict[str, Tensor]
    alignment: int
    size_bytes: int


def read(path: str | Path) -> GGUFFile:
    """Map the file at `path` and check all of it but the values of its tensors.

    Raises ModelError naming what was expected and where, OSError when the file cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ModelError(f"{path.name}: expected a regular file")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path.name}: expected a GGUF file, which starts with the bytes 'GGUF'")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read_mapped(path, np.frombuffer(mapped, np.uint8))
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None


def _read_mapped(path: Path, data: np.ndarray) -> GGUFFile:
    cursor = _Cursor(data, len(MAGIC))
    version = cursor.scalar("<u4", "the version")
    if version != VERSION:
        big_endian = " (a big-endian file)" if version == VERSION << 24 else ""
        raise ModelError(f"expected GGUF version {VERSION}, found {version}{big_endian}")
    # A tensor's entry: name length, number of dimensions, one dimension, type, offset. A pair's: key length,
    # type, value.
    n_tensors = cursor.count(8 + 4 + 8 + 4 + 8, "tensors")
    n_pairs = cursor.count(8 + 4 + 1, "metadata pairs")
    metadata = _read_metadata(cursor, n_pairs)
    alignment = _alignment(metadata)
    infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
    start = -(-cursor.pos // alignment) * alignment
    tensors = _tensor_table(data, infos, start, alignment)
    return GGUFFile(path, metadata, tensors, alignment, len(data))


class _Cursor:
    """A position in the mapped bytes that never passes their end."""

    def __init__(self, data: np.ndarray, pos: int) -> None:
        self.data = data
        self.pos = pos

    def take(self, size: int, what: str) -> np.ndarray:
        """The next `size` bytes, as a view."""
        if size > len(self.data) - self.pos:
            raise ModelError(f"expected {size} bytes of {what} at byte {self.pos}, "
                             f"the file ends at {len(self.data)}")
        self.pos += size
        return self.data[self.pos - size:self.pos]

    def scalar(self, layout: str, what: str) -> Any:
        """The next number or bool, as a Python one."""
        taken = self.take(np.dtype(layout).itemsize, what)
        if layout == SCALARS[BOOL] and taken[0] > 1:
            raise ModelError(f"expected 0 or 1 for {what}, found {taken[0]}")
        return taken.view(layout)[0].item()

    def count(self, smallest_bytes: int, what: str) -> int:
        """A 64-bit count of things that take at least `smallest_bytes` each, all still to come."""
        n = self.scalar("<u8", f"the number of {what}")
        if n * smallest_bytes > len(self.data) - self.pos:
            raise ModelError(f"expected {n} {what}, the file ends at byte {len(self.data)}")
        return n

    def string(self, max_bytes: int, what: str) -> str:
        start = self.pos
        length = self.scalar("<u8", f"the length of {what}")
        if length > max_bytes:
            raise ModelError(f"expected at most {max_bytes} bytes of {what} at byte {start}, found {length}")
        try:
            return self.take(length, what).tobytes().decode()
        except UnicodeDecodeError:
            raise ModelError(f"expected UTF-8 in {what} at byte {start}") from None

    def name(self, max_bytes: int, what: str) -> str:
        name = self.string(max_bytes, what)
        if not name:
            raise ModelError(f"expected {what} at byte {self.pos}, found an empty string")
        return name


def _read_metadata(cursor: _Cursor, n_pairs: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    for _ in range(n_pairs):
        key = cursor.name(MAX_KEY_BYTES, "a metadata key")
        if key in metadata:
            raise ModelError(f"expected metadata keys to be unique, found {key!r:.80} twice")
        value_type = cursor.scalar("<u4", f"the type of {key!r:.80}")
        metadata[key] = _read_value(cursor, value_type, f"{key!r:.80}", depth=0)
    return metadata


def _read_value(cursor: _Cursor, value_type: int, what: str, depth: int) -> object:
    if value_type in SCALARS:
        return cursor.scalar(SCALARS[value_type], what)
    if value_type == STRING:
        return cursor.string(len(cursor.data), what)
    if value_type == ARRAY:
        return _read_array(cursor, what, depth + 1)
    raise ModelError(f"expected a value type from 0 to 12 for {what}, found {value_type}")


def _read_array(cursor: _Cursor, what: str, depth: int) -> np.ndarray | list:
    if depth > MAX_ARRAY_DEPTH:
        raise ModelError(f"expected at most {MAX_ARRAY_DEPTH} levels of arrays in {what}")
    item_type = cursor.scalar("<u4", f"the item type of {what}")
    if item_type not in SMALLEST_BYTES:
        raise ModelError(f"expected an item type from 0 to 12 for {what}, found {item_type}")
    n = cursor.count(SMALLEST_BYTES[item_type], f"items of {what}")
    if item_type not in SCALARS:
        return [_read_value(cursor, item_type, what, depth) for _ in range(n)]
    items = cursor.take(n * SMALLEST_BYTES[item_type], what)
    if item_type == BOOL and items.max(initial=0) > 1:
        raise ModelError(f"expected 0 or 1 for every item of {what}, found {items.max()}")
    return items.view(SCALARS[item_type])


def _alignment(metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise ModelError(f"expected a power of two, 8 or more, in general.alignment, found {alignment!r:.40}")
    return alignment


class _TensorInfo(NamedTuple):
    name: str
    shape: tuple[int, ...]
    tensor_type: int
    offset: int  # bytes from the start of the tensors' data
    row_bytes: int

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])


def _read_tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.name(MAX_TENSOR_NAME_BYTES, "a tensor's name")
    n_dims = cursor.scalar("<u4", f"the number of dimensions of {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise ModelError(f"expected 1 to {MAX_DIMS} dimensions of {name!r}, found {n_dims}")
    dims = cursor.take(8 * n_dims, f"dimensions of {name!r}").view("<u8").tolist()
    tensor_type = cursor.scalar("<u4", f"the type of {name!r}")
    offset = cursor.scalar("<u8", f"the offset of {name!r}")
    if tensor_type not in FORMATS:
        raise ModelError(f"expected a known tensor type for {name!r}, found {tensor_type}")
    format_name, elements, size_bytes = FORMATS[tensor_type]
    if min(dims) == 0 or dims[0] % elements:
        raise ModelError(f"expected rows of {name!r} in whole blocks of {elements} ({format_name}), "
                         f"found shape {dims[::-1]}")
    return _TensorInfo(name, tuple(dims[::-1]), tensor_type, offset, dims[0] // elements * size_bytes)


def _tensor_table(
    data: np.ndarray, infos: list[_TensorInfo], start: int, alignment: int,
) -> dict[str, Tensor]:
    end = start
    tensors: dict[str, Tensor] = {}
    for info in sorted(infos, key=lambda info: info.offset):
        offset, size = start + info.offset, info.n_rows * info.row_bytes
        if info.name in tensors:
            raise ModelError(f"expected tensor names to be unique, found {info.name!r} twice")
        if info.offset % alignment:
            raise ModelError(f"expected a multiple of {alignment} for the offset of {info.name!r}, "
                             f"found {info.offset}")
        if offset < end:
            raise ModelError(f"expected tensors that do not overlap, {info.name!r} starts at byte {offset}, "
                             f"before {end}")
        end = offset + size
        if end > len(data):
            raise ModelError(f"expected {size} bytes of {info.name!r} at byte {offset}, "
                             f"the file ends at {len(data)}")
        rows = data[offset:end].reshape(info.n_rows, info.row_bytes)
        tensors[info.name] = Tensor(info.name, info.shape, info.tensor_type, offset, rows)
    return {info.name: tensors[info.name] for info in infos}
