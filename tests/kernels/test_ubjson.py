"""The UBJSON reader: every type of draft 12 that it reads, bytes written by hand, and bytes that lie."""

import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import ModelError, ubjson

BIG = struct.pack(">q", 2**62)
NESTED = (b'{i\x01a[#i\x02{i\x01bT}[$l#U\x02\x00\x00\x00\x05\xff\xff\xff\xff'
          b'i\x01cSi\x02\xc3\xa9i\x01d[i\x01d?\x80\x00\x00]}')

VALUES = [
    (b"Z", None), (b"T", True), (b"F", False), (b"NNT", True),
    (b"i\x80", -128), (b"U\xff", 255), (b"I\x80\x00", -32768), (b"l\x80\x00\x00\x00", -2**31),
    (b"L\x7f" + b"\xff" * 7, 2**63 - 1), (b"d\xbf\xc0\x00\x00", -1.5), (b"D\x3f\xb9\x99\x99\x99\x99\x99\x9a", 0.1),
    (b"Cx", "x"), (b"Si\x00", ""), (b"SU\x02\xc3\xa9", "é"), (b"SL" + struct.pack(">q", 2) + b"ab", "ab"),
    (b"[]", []), (b"[#i\x00", []), (b"[NTNFN]", [True, False]), (b"[#U\x02TF", [True, False]),
    (b"[[]{}]", [[], {}]), (b"[$S#i\x02i\x01ai\x01b", ["a", "b"]), (b"[$C#i\x02ab", ["a", "b"]),
    (b"{}", {}), (b"{#i\x00", {}), (b"{Ni\x01aTN}", {"a": True}), (b"{#i\x01i\x01aT", {"a": True}),
    (b"{$i#i\x02i\x01a\x05i\x01b\xfb", {"a": 5, "b": -5}), (b"[$[#i\x02#i\x01T]", [[True], []]),
    (b"{$[#i\x01i\x01aT]", {"a": [True]}), (b"[$i#i\x00", []),
]

REFUSED = [
    (b"", "a UBJSON value at byte 0"), (b"N", "a UBJSON value"), (b"x", "a UBJSON value at byte 0"),
    (b"Hi\x011", "a UBJSON value"), (b"]", "a UBJSON value"), (b"TT", "the end"), (b"I\x00", "2 bytes of a number"),
    (b"Si\x05ab", "length from 0 to the 2 bytes"), (b"Si\xffab", "length from 0"), (b"Sd\x00\x00\x00\x00", "integer"),
    (b"Si\x01\xff", "UTF-8 at byte 3"), (b"C\xff", "UTF-8"), (b"[T", "a UBJSON value at byte 2"),
    (b"[$i\x01]", "the count"), (b"[$T#i\x05", "payload"), (b"[$Z#L" + BIG, "payload"), (b"[$N#i\x02", "the count"),
    (b"{$F#l\x7f\xff\xff\xff", "payload"), (b"[#L" + BIG, "length"), (b"[$D#L" + BIG, "length"),
    (b"[$D#i\x01abcdefg", "length|8 bytes"), (b"[$D#i\x02abcdefgh", "16 bytes of numbers"), (b"{#L" + BIG, "length"),
    (b"{i\x01a", "a UBJSON value"), (b"{T}", "integer for a length"), (b"[" * 100_000, "at most 64 containers"),
    (b"{i\x01a" * 1000, "at most 64 containers"), (b"[$[#i\x01" * 1000, "at most 64 containers"),
]


@pytest.mark.parametrize("data, value", VALUES, ids=[repr(data[:20]) for data, _ in VALUES])
def test_every_type_is_read(data, value):
    found = ubjson.read(data)
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
    assert type(found) is type(value) or isinstance(found, np.ndarray)


@pytest.mark.parametrize("marker", ubjson.NUMBERS)
def test_typed_numbers_become_an_array_over_the_bytes(marker):
    dtype = np.dtype(ubjson.NUMBERS[marker])
    numbers = np.array([0, 1, 100], dtype)
    data = b"[$" + marker + b"#U\x03" + numbers.tobytes()
    found = ubjson.read(data)
    assert found.dtype == dtype and found.tolist() == [0, 1, 100]
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


def test_nested_document_is_read_and_each_of_its_beginnings_is_refused():
    found = ubjson.read(NESTED)
    assert found["a"][0] == {"b": True} and found["a"][1].tolist() == [5, -1]
    assert (found["c"], found["d"]) == ("é", [1, 1.0])
    for end in range(len(NESTED)):
        with pytest.raises(ModelError, match="expected"):
            ubjson.read(NESTED[:end])


@pytest.mark.parametrize("data, expected", REFUSED, ids=[repr(data[:20]) for data, _ in REFUSED])
def test_what_lies_is_refused_by_name(data, expected):
    with pytest.raises(ModelError, match=expected):
        ubjson.read(data)


@pytest.mark.parametrize("data", [b"[#L", b"[$L#L", b"{#L", b"{$U#L", b"[$S#L", b"[$[#L"])
@pytest.mark.parametrize("count", [10**9, 2**63 - 1])
def test_huge_counts_allocate_nothing(data, count):
    data += struct.pack(">q", count) + bytes(1000)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            ubjson.read(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("element", [b"[]", b"{}", b"T", b"d\x00\x00\x00\x00", b"[$d#U\x00", b"Si\x01a", b"[#i\x00"])
def test_memory_is_within_a_constant_factor_of_the_bytes(element):
    data = b"[" + element * 20_000 + b"]"
    tracemalloc.start()
    try:
        assert len(ubjson.read(data)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 64 * len(data)
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=40).map(lambda tail: b"[" + tail))
def test_any_bytes_give_a_value_or_a_model_error(data):
    try:
        assert isinstance(ubjson.read(data), (list, np.ndarray))
    except ModelError:
        pass


def test_mutations_give_a_value_or_a_model_error():
    rng = random.Random(4)
    n_read = 0
    for _ in range(5000):
        data = bytearray(NESTED)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(b"NZTFiUIlLdDCS[]{}$#\x00\x01\x02\xff")
        try:
            assert isinstance(ubjson.read(bytes(data)), (dict, list, np.ndarray, str, int, float, type(None)))
            n_read += 1
        except ModelError:
            pass
    assert n_read > 100  # the mutations do reach beyond the first check
