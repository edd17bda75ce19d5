"""Reader of UBJSON, draft 12: bytes become dicts, lists, str, int, float, bool, None, and numpy arrays.

The rule to keep: bytes are hostile until checked. A count is compared with the bytes that remain before anything
of that size is made, and an element of a container is always one byte or more, so that memory stays within a
constant factor of the data's size. Types without a payload are therefore refused as the type of a container.

https://ubjson.org (type reference, container types)
"""

import struct
from typing import Any

import numpy as np

from kernels.errors import ModelError

MAX_DEPTH = 64  # XGBoost's files have 8; each level is two of Python's stack

# marker → the layout of its payload, big-endian
NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
UNPACK = {marker: struct.Struct(">" + code).unpack_from
          for marker, code in zip(NUMBERS, "bBhiqfd", strict=True)}
SIZE_BYTES = {marker: np.dtype(layout).itemsize for marker, layout in NUMBERS.items()}
CONSTANTS = {b"Z": None, b"T": True, b"F": False}
NO_OP, STRING, CHAR, ARRAY, OBJECT = b"N", b"S", b"C", b"[", b"{"
ARRAY_END, OBJECT_END, TYPE, COUNT = b"]", b"}", b"$", b"#"


def read(data: bytes) -> Any:
    """The one value that `data` holds; an array typed as numbers becomes a read-only, big-endian numpy array.

    Raises ModelError where the bytes end early, go on after the value, nest deeper than MAX_DEPTH, or hold
    what is not a value (high-precision numbers are not read).
    """
    reader = _Reader(data)
    value = reader.value(reader.marker(), 0)
    if reader.pos != len(data):
        raise ModelError(f"expected the end of the UBJSON at byte {reader.pos} of {len(data)}")
    return value


class _Reader:
    """A place in the bytes."""

    def __init__(self, data: bytes):
        self.data, self.pos = data, 0

    def take(self, n_bytes: int, what: str) -> int:
        """Where the next `n_bytes` start, now behind the reader."""
        start = self.pos
        if n_bytes > len(self.data) - start:
            raise ModelError(f"expected {n_bytes} bytes of {what} at byte {start} of {len(self.data)}")
        self.pos += n_bytes
        return start

    def marker(self) -> bytes:
        """The next marker that is not a no-op."""
        while True:
            start = self.take(1, "a UBJSON value")
            found = self.data[start:self.pos]
            if found != NO_OP:
                return found

    def skip(self, marker: bytes) -> bool:
        """Whether the next byte is `marker`; if so it is behind the reader."""
        found = self.data.startswith(marker, self.pos)
        self.pos += found
        return found

    def value(self, marker: bytes, depth: int) -> Any:
        """The value whose marker was read."""
        if marker in UNPACK:
            return UNPACK[marker](self.data, self.take(SIZE_BYTES[marker], "a number"))[0]
        if marker == STRING:
            return self.text()
        if marker == ARRAY or marker == OBJECT:
            if depth == MAX_DEPTH:
                raise ModelError(f"expected at most {MAX_DEPTH} containers in one another")
            return self.array(depth + 1) if marker == ARRAY else self.object(depth + 1)
        if marker in CONSTANTS:
            return CONSTANTS[marker]
        if marker == CHAR:
            return self.characters(1)
        raise ModelError(f"expected a UBJSON value at byte {self.pos - 1}")

    def length(self) -> int:
        """An integer that counts bytes or elements, none of which is smaller than a byte."""
        start, marker = self.pos, self.marker()
        if marker not in UNPACK or marker in b"dD":
            raise ModelError(f"expected an integer for a length at byte {start}")
        n = self.value(marker, 0)
        left = len(self.data) - self.pos
        if not 0 <= n <= left:
            raise ModelError(f"expected a length from 0 to the {left} bytes that are left at byte {start}, found {n}")
        return n

    def text(self) -> str:
        return self.characters(self.length())

    def characters(self, n_bytes: int) -> str:
        start = self.take(n_bytes, "text")
        try:
            return self.data[start:self.pos].decode()
        except UnicodeDecodeError:
            raise ModelError(f"expected UTF-8 at byte {start}") from None

    def header(self) -> tuple[bytes, int]:
        """What opens a container: its elements' marker or b"", and their count or −1."""
        element = b""
        if self.skip(TYPE):
            element = self.marker()
            if element in CONSTANTS:
                raise ModelError(f"expected a container's type to have a payload at byte {self.pos - 1}")
        if self.skip(COUNT):
            return element, self.length()
        if element:
            raise ModelError(f"expected the count of a typed container at byte {self.pos}")
        return element, -1

    def array(self, depth: int) -> list | np.ndarray:
        element, n = self.header()
        if element in NUMBERS:
            start = self.take(n * SIZE_BYTES[element], "numbers")
            return np.frombuffer(self.data, NUMBERS[element], n, start)
        if n >= 0:
            return [self.value(element or self.marker(), depth) for _ in range(n)]
        values = []
        while (marker := self.marker()) != ARRAY_END:
            values.append(self.value(marker, depth))
        return values

    def object(self, depth: int) -> dict[str, Any]:
        element, n = self.header()
        values = {}
        while n and not (n < 0 and self.skip(OBJECT_END)):
            if n < 0 and self.skip(NO_OP):
                continue
            key = self.text()
            values[key] = self.value(element or self.marker(), depth)
            n -= n > 0
        return values
