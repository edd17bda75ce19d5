"""A GGUF v3 writer for tests: plain `struct`, able to write what no honest writer would."""

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
LAYOUTS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
           U64: "<Q", I64: "<q", F64: "<d"}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(value_type: int, item) -> bytes:
    """A value without its type; an array's item is (item type, items)."""
    if value_type == STRING:
        return string(item)
    if value_type == ARRAY:
        item_type, items = item
        return struct.pack("<IQ", item_type, len(items)) + b"".join(value(item_type, i) for i in items)
    return struct.pack(LAYOUTS[value_type], item)


def pair(key: str | bytes, value_type: int, item) -> bytes:
    return string(key) + struct.pack("<I", value_type) + value(value_type, item)


def tensor_info(name: str | bytes, shape: Sequence[int], tensor_type: int, offset: int) -> bytes:
    """`shape` rows first, as everywhere here; the file has the reverse."""
    dims = struct.pack(f"<{len(shape)}Q", *shape[::-1])
    return string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", tensor_type, offset)


def gguf(
    pairs: Sequence[bytes], infos: Sequence[bytes] = (), data: bytes = b"", *, alignment: int = 32,
    magic: bytes = b"GGUF", version: int = 3, n_tensors: int | None = None, n_pairs: int | None = None,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, len(infos) if n_tensors is None else n_tensors,
                               len(pairs) if n_pairs is None else n_pairs)
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def gguf_of(pairs: Sequence[bytes], tensors: dict[str, tuple[Sequence[int], int, bytes]]) -> bytes:
    """A sound file; tensors are name → (shape, tensor type, bytes)."""
    infos, data = [], b""
    for name, (shape, tensor_type, content) in tensors.items():
        infos.append(tensor_info(name, shape, tensor_type, len(data)))
        data += content + bytes(-len(content) % 32)
    return gguf(pairs, infos, data)
