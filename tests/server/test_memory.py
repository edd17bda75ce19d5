"""Bytes that native code copies and compares, against Python's own; and that a bounds check is made where it is on."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import njit

from server import memory
from server.layout import SPAN
from tests import serving

pytestmark = pytest.mark.core
unhurried = settings(deadline=None, max_examples=200)  # the first example compiles
ROOM = 16  # on both sides of what is written


@njit
def compared(buf, at, end, text, part):
    return (memory.equals(buf, at, end, text), memory.starts_with(buf, at, end, text),
            memory.equals_span(buf, at, end, text, part), memory.starts_with_span(buf, at, end, text, part))


@njit
def as_word(out, at, word, byte):
    memory.put_word(out, at, word)
    found = memory.word_at(out, at)
    memory.put_byte(out, at + 8, byte)
    return found


@njit
def through_bits(value):
    return memory.bits_of(value), memory.double_of(memory.bits_of(value))


@njit
def put_only(out, at, text):
    return memory.put(out, at, text)


@njit
def put_part(out, at, text, part):
    return memory.put_span(out, at, text, part)


@njit
def put_at(out, at, address, size):
    return memory.put_from(out, at, address, size)


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).copy()


def span(at: int, length: int) -> np.record:
    return np.array([(at, length)], SPAN)[0]


@unhurried
@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_text_is_copied_whole_by_its_span_and_by_its_address(text: bytes, data: st.DataObject):
    first = data.draw(st.integers(0, len(text)))
    size = data.draw(st.integers(0, len(text) - first))
    whole, edge = array(text), bytes(range(ROOM))
    for put in (lambda out: put_only(out, ROOM, whole[first:first + size]),
                lambda out: put_part(out, ROOM, whole, span(first, size)),
                lambda out: put_at(out, ROOM, whole.ctypes.data + first, size)):
        out = array(edge + bytes(size) + edge)
        assert put(out) == ROOM + size
        assert out.tobytes() == edge + text[first:first + size] + edge


SHORT = st.text("ab", max_size=5).map(str.encode)


@unhurried
@given(SHORT, SHORT, SHORT, SHORT, SHORT)
@example(b"", b"", b"", b"", b"")
@example(b"", b"ab", b"", b"ab", b"")
def test_texts_are_compared_as_python_does(before: bytes, found: bytes, after: bytes, text: bytes, around: bytes):
    buf, at, end = array(before + found + after), len(before), len(before) + len(found)
    is_equal, is_front = found == text, found.startswith(text)
    part = span(len(around), len(text))
    texts = array(around + text + around)
    assert compared(buf, at, end, array(text), span(0, 0))[:2] == (is_equal, is_front)
    assert compared(buf, at, end, texts, part)[2:] == (is_equal, is_front)


@unhurried
@given(st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_words_have_their_lowest_byte_first(word: int, byte: int):
    out = np.zeros(12, np.uint8)
    assert int(as_word(out, 2, np.uint64(word), byte)) == word
    assert out.tobytes() == bytes(2) + word.to_bytes(8, "little") + bytes([byte, 0])


@unhurried
@given(st.floats())
def test_bits_are_those_of_the_double(value: float):
    bits, back = through_bits(value)
    assert int(bits) == int(np.array(value).view(np.uint64)) == int(np.array(back).view(np.uint64))


def test_places_are_checked_where_numba_checks_bounds():
    script = """
import numpy as np, pytest
from tests.server import test_memory as m
out, text = np.zeros(10, np.uint8), np.zeros(4, np.uint8)
assert m.put_only(out, 6, text) == 10 and m.put_part(out, 7, text, m.span(1, 3)) == 10
m.as_word(out, 1, np.uint64(1), 1)
for wrong in (lambda: m.put_only(out, 7, text), lambda: m.put_only(out, -1, text),
              lambda: m.put_part(out, 0, text, m.span(2, 3)), lambda: m.put_at(out, 9, text.ctypes.data, 2),
              lambda: m.as_word(out, 3, np.uint64(1), 1), lambda: m.compared(out, 8, 12, text, m.span(0, 4))):
    with pytest.raises(IndexError):
        wrong()
"""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=serving.ROOT)
