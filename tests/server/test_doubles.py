"""`server.doubles` against Python's own `float()`, `repr()` and `json`, bit for bit and byte for byte."""

import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import types

from kernels.compiled import OPTIONS
from server import doubles
from server.doubles import MALFORMED, MAX_DOUBLE_CHARS, MAX_INT_CHARS, OVERFLOW, UNSURE

SCANNED = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?")  # as far as a number may go on
NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")  # RFC 8259, section 6
unhurried = settings(deadline=None, max_examples=1000)  # the first example may compile
SMALLEST, SMALLEST_NORMAL, LARGEST = 5e-324, 2.0**-1022, sys.float_info.max


njit = numba.njit(**OPTIONS)  # with entry points for Python, which the functions under test have not
parse_double, format_double, format_int = (
    njit(inner.py_func) for inner in (doubles.parse_double, doubles.format_double, doubles.format_int))


@njit
def format_list(values, out):
    """Write `values` as `json.dumps(values.tolist())` does; return the length."""
    out[0] = ord("[")
    pos = 1
    for i in range(len(values)):
        if i > 0:
            out[pos] = ord(",")
            out[pos + 1] = ord(" ")
            pos += 2
        pos = format_double(values[i], out, pos)
    out[pos] = ord("]")
    return pos + 1


@njit
def parse_list(buf, values, statuses):
    """Read a list as `format_list` writes it: each value, and 0 or why there is none; return how many."""
    pos = 1
    count = 0
    while pos < len(buf):
        values[count], after = parse_double(buf, pos, len(buf))
        statuses[count] = min(after, 0)
        count += 1
        while buf[pos] != ord(",") and buf[pos] != ord("]"):
            pos += 1
        pos += 2
    return count


def formatted_list(values: np.ndarray) -> bytes:
    out = np.empty(len(values) * (MAX_DOUBLE_CHARS + 2) + 2, np.uint8)
    return out[:format_list(values, out)].tobytes()


def parsed_list(text: bytes, n: int) -> tuple[np.ndarray, np.ndarray]:
    values, statuses = np.empty(n), np.empty(n, np.int64)
    assert parse_list(np.frombuffer(text, np.uint8).copy(), values, statuses) == n
    return values, statuses


def parsed(text: bytes) -> tuple[float, int]:
    """`parse_double` on text that begins at 3 and is followed by digits: (value, length or status)."""
    buf = np.frombuffer(b"999" + text + b"99e99999", np.uint8).copy()
    value, after = parse_double(buf, 3, 3 + len(text))
    # With more behind it than any number is long, other code reads the same number.
    inside = np.frombuffer(b"999" + text + b", -12.5e-3, 1234567890", np.uint8).copy()
    value_inside, after_inside = parse_double(inside, 3, len(inside))
    assert (bits(value_inside), after_inside) == (bits(value), after), text
    return value, after - 3 if after >= 0 else after


def formatted(value: float) -> str:
    """`format_double` in the middle of a guarded buffer with exactly the room that it asks for."""
    out = np.full(MAX_DOUBLE_CHARS + 16, ord("#"), np.uint8)
    after = format_double(value, out, 8)
    assert bytes(out[:8]) == bytes(out[8 + MAX_DOUBLE_CHARS:]) == b"#" * 8
    return out[8:after].tobytes().decode()


def bits(value: float) -> int:
    return int(np.float64(value).view(np.uint64))


def n_significant_digits(text: bytes) -> int:
    digits = re.split(rb"[eE]", text)[0].replace(b"-", b"").replace(b".", b"")
    return len(digits.lstrip(b"0"))


def check_parse(text: bytes) -> int:
    """Compare with Python; return the status. UNSURE is right only where there are more than 19 digits."""
    value, after = parsed(text)
    scanned = SCANNED.match(text)
    if scanned is None or not NUMBER.fullmatch(scanned.group()):
        assert after == MALFORMED, text
    elif after == UNSURE:
        assert n_significant_digits(scanned.group()) > 19, text
    elif math.isinf(float(scanned.group())):
        assert after == OVERFLOW, text
    else:
        assert (bits(value), after) == (bits(float(scanned.group())), scanned.end()), text
    return min(after, 0)


def check_both_ways(value: float) -> None:
    for signed in (value, -value):
        assert formatted(signed) == repr(signed)
        assert check_parse(repr(signed).encode()) == 0


# Reading: the grammar

@pytest.mark.parametrize("text, value", [
    (b"0", 0.0), (b"-0", -0.0), (b"0.0", 0.0), (b"-0.0e5", -0.0), (b"7", 7.0), (b"-12", -12.0),
    (b"1.5", 1.5), (b"10.25", 10.25), (b"1e2", 100.0), (b"1E2", 100.0), (b"1e+2", 100.0), (b"1e-2", 0.01),
    (b"0e0", 0.0), (b"0.5e1", 5.0), (b"1e002", 100.0), (b"123456789012345678", 123456789012345678.0),
])
def test_json_number_is_read(text, value):
    got, after = parsed(text)
    assert (bits(got), after) == (bits(value), len(text))


@pytest.mark.parametrize("text", [
    b"", b"-", b"+1", b".5", b"-.5", b"1.", b"-1.", b"1.e5", b"1e", b"1e+", b"1e-", b"1.5e", b"1.5e+x",
    b"--1", b"- 1", b" 1", b"e5", b"inf", b"Infinity", b"-Infinity", b"nan", b"NaN", b"null",
    b"x", b"\x00", b"\xff", "٣".encode(), b"1234567890123456789012345.", b"1234567890123456789012345e",
    b"1.e999", b"0.",
])
def test_what_is_no_json_number_is_malformed(text):
    assert parsed(text) == (0.0, MALFORMED)


@pytest.mark.parametrize("text, length", [
    (b"01", 1), (b"-01", 2), (b"00", 1), (b"0x10", 1), (b"1,2", 1), (b"1]", 1), (b"1 ", 1), (b"1_000", 1),
    (b"1.5.5", 3), (b"1e5.5", 3), (b"1e5e5", 3), (b"1e5-", 3), (b"1-1", 1), (b"1+1", 1), (b"1f", 1),
    (b"1\x00", 1), (b"0.12345678:", 10), (b"0.12345678/", 10), (b"0.1234567:", 9), (b"1.5\xb5", 3),
    (b"1.5\xb5678901234567890", 3),
])
def test_number_ends_at_the_first_byte_that_cannot_continue_it(text, length):
    value, after = parsed(text)
    assert (value, after) == (float(text[:length]), length)


@pytest.mark.parametrize("text", [
    b"-123.4567890123456789e-123", b"0.00000000000000000000012345678901234567890123456789", b"-0.0E+00",
    b"98765432109876543210987654321e-30", b"1e999999999999999999999", b"1234567.12345678e+12",
])
def test_number_truncated_at_every_byte_is_read_only_up_to_there(text):
    for length in range(len(text) + 1):
        check_parse(text[:length])


def test_fraction_with_any_other_byte_in_any_place_ends_there():
    for place in range(2, 19):
        for other in range(256):
            text = bytearray(b"0.12345678901234567")
            text[place] = other
            check_parse(bytes(text))


# Reading: sizes

@pytest.mark.parametrize("text, expected", [
    (b"1e999999999999999999999", OVERFLOW), (b"-1e999999999999999999999", OVERFLOW), (b"1e309", OVERFLOW),
    (b"1.7976931348623159e308", OVERFLOW), (b"1" + b"0" * 309, OVERFLOW),
    (b"18446744073709551616e290", OVERFLOW), (b"1e" + b"9" * 400, OVERFLOW),
    (b"1.7976931348623158e308", LARGEST), (b"-1.7976931348623157e308", -LARGEST),
    (b"1e-99999999999999999999", 0.0), (b"-1e-99999999999999999999", -0.0), (b"1e-" + b"9" * 400, 0.0),
    (b"0e999999999999", 0.0), (b"-0e999999999999999999999999", -0.0), (b"0.000e-99999999999999999999", 0.0),
    (b"2.4703282292062327e-324", 0.0), (b"2.4703282292062328e-324", SMALLEST), (b"1e-343", 0.0),
    (b"9999999999999999999e-343", 0.0), (b"9999999999999999999e-342", 2 * SMALLEST),
    (b"2.2250738585072011e-308", 2.225073858507201e-308), (b"2.2250738585072012e-308", SMALLEST_NORMAL),
    (b"2.2250738585072013e-308", SMALLEST_NORMAL),
    (b"0." + b"0" * 400 + b"1e401", 1.0), (b"1" + b"0" * 400 + b"e-400", 1.0),
    (b"9007199254740993", 9007199254740992.0), (b"9007199254740995", 9007199254740996.0),
    (b"0.000000000000000000000000000001", 1e-30),
])
def test_extreme_number(text, expected):
    value, after = parsed(text)
    if expected == OVERFLOW:
        assert (value, after) == (0.0, OVERFLOW)
    else:
        assert (bits(value), after) == (bits(expected), len(text))
    check_parse(text)


def test_leading_zeros_are_no_significant_digits():
    for n_zeros in (0, 1, 7, 8, 20, 330):
        for digits in (b"1", b"1234567890123456789", b"9999999999999999999"):
            assert check_parse(b"0." + b"0" * n_zeros + digits) == 0


@pytest.mark.parametrize("mantissa", [
    *range(1, 10), 2**53 - 1, 2**53 + 1, 2**63, 2**64 - 1, 10**18, 10**19 - 1])
def test_every_power_of_ten_is_rounded_correctly(mantissa):
    for power in range(-400, 400):
        status = check_parse(b"%de%d" % (mantissa, power))
        assert status in (0, OVERFLOW) or mantissa >= 10**19


# Reading: the middles of two doubles

def exact_decimal(value: Fraction) -> tuple[int, int]:
    """A fraction of which the denominator is a power of two: (digits, power of ten), exactly."""
    power = value.denominator.bit_length() - 1
    return value.numerator * 5**power, -power


def middles() -> list[Fraction]:
    """Middles of neighbouring doubles: around powers of two and ten, subnormal, largest, and random ones."""
    rng = np.random.default_rng(2023)
    lower = [SMALLEST, 2 * SMALLEST, SMALLEST_NORMAL, np.nextafter(SMALLEST_NORMAL, 0),
             np.nextafter(LARGEST, 0), 1.0, np.nextafter(1.0, 0), 0.1, 2.0**53, 2.0**60, 2.0**63, 2.0**64,
             1e15, 1e16, 1e22, 1e23, 0.0]
    lower += list(rng.integers(1, bits(LARGEST), 150).astype(np.uint64).view(np.float64))
    lower += list(rng.integers(1, 2**52, 20).astype(np.uint64).view(np.float64))
    lower += [float(n) for n in rng.integers(2**53, 2**60, 40)] + list(rng.random(40) * 1000)
    return [(Fraction(float(x)) + Fraction(float(np.nextafter(x, np.inf)))) / 2 for x in lower]


def with_digits(digits: int, power: int, n: int) -> tuple[int, int]:
    """The first n digits of digits * 10**power; zeros are appended to fewer."""
    missing = n - len(str(digits))
    return (digits * 10**missing if missing >= 0 else digits // 10**-missing), power - missing


def test_middle_of_two_doubles_and_its_neighbours_are_rounded_correctly_or_unsure():
    lengths = [*range(17, 26), 30, 100, 400, 767, 768, 800]
    seen = {0: 0, UNSURE: 0, OVERFLOW: 0}
    for middle in middles():
        for n in lengths:
            digits, power = with_digits(*exact_decimal(middle), n)
            for last_place in (-1, 0, 1):
                seen[check_parse(b"%de%d" % (digits + last_place, power))] += 1
    assert seen[0] > 2000 and seen[UNSURE] > 100


def test_exact_middle_in_plain_notation():
    for middle in middles():
        digits, power = exact_decimal(middle)
        if -300 < power < 0 and len(str(digits)) < 300:
            text = f"{digits:0{1 - power}d}"
            check_parse(f"{text[:power]}.{text[power:]}".encode())


def short_ties() -> list[tuple[int, int]]:
    """Middles of two doubles, odd integers of 54 bits times a power of two: (digits, power of ten)."""
    odd = [2**53 + 1, 2**53 + 3, 2**54 - 3, 2**54 - 1]  # to even is down, up, down, up
    ties = [(n << shift, 0) for n in odd for shift in range(10)]
    ties += [(n * 5**power, -power) for n in odd for power in range(1, 5)]
    for power in range(1, 24):
        smallest = 2**53 // 5**power + 1 | 1
        ties += [(n, power) for n in (smallest, smallest + 2) if 2**53 < n * 5**power < 2**54]
    return [(digits, power) for digits, power in ties if digits < 10**19]


def test_tie_of_up_to_19_digits_goes_to_even():
    powers = set()
    for digits, power in short_ties():
        assert check_parse(b"%de%d" % (digits, power)) == 0
        powers.add(power)
    assert powers == set(range(-4, 24))


def test_middle_with_more_digits_is_left_to_python():
    assert parsed(b"9007199254740993.00000000000") == (0.0, UNSURE)


# Writing

@pytest.mark.parametrize("value, text", [
    (0.0, "0.0"), (-0.0, "-0.0"), (1.0, "1.0"), (-1.5, "-1.5"), (100.0, "100.0"), (0.1, "0.1"),
    (0.001, "0.001"), (0.0001, "0.0001"), (0.00001, "1e-05"), (0.000015, "1.5e-05"),
    (1e15, "1000000000000000.0"), (9999999999999998.0, "9999999999999998.0"), (1e16, "1e+16"),
    (12345678901234567.0, "1.2345678901234568e+16"), (1e22, "1e+22"), (1e23, "1e+23"), (1e100, "1e+100"),
    (1e-100, "1e-100"), (SMALLEST, "5e-324"), (2.0**-44, "5.684341886080802e-14"),
    (-2.2250738585072014e-308, "-2.2250738585072014e-308"),
    (LARGEST, "1.7976931348623157e+308"), (123456.789, "123456.789"), (2.0**60, "1.152921504606847e+18"),
])
def test_double_is_written_as_python_writes_it(value, text):
    assert formatted(value) == text == repr(value)


def test_longest_text_has_max_double_chars():
    assert len(formatted(-2.2250738585072014e-308)) == MAX_DOUBLE_CHARS


def test_edges_and_their_neighbours_both_ways():
    edges = [0.0, SMALLEST, SMALLEST_NORMAL, LARGEST, 0.1, 0.3, 2.0**53, 2.0**63, 2.0**64, 9007199254740993e3]
    edges += [2.0**power for power in range(-1074, 1024)]
    edges += [float(f"1e{power}") for power in range(-323, 309)]
    edges += [float(f"9.999999999999999e{power}") for power in range(-10, 25)]
    edges += [float(f"1.2345678901234567e{power}") for power in range(-10, 25)]
    edges += [n * SMALLEST for n in range(1, 300)]
    for edge in edges:
        check_both_ways(edge)
        check_both_ways(float(np.nextafter(edge, 0)))
        if edge < LARGEST:
            check_both_ways(float(np.nextafter(edge, np.inf)))


def test_integers_are_written_as_python_writes_them():
    edges = [0, -(2**63), 2**63 - 1]
    edges += [10**power + offset for power in range(19) for offset in (-1, 0, 1)]
    edges += [2**power + offset for power in range(63) for offset in (-1, 0, 1)]
    for value in [*edges, *(-edge for edge in edges if edge > -(2**63))]:
        out = np.full(MAX_INT_CHARS + 16, ord("#"), np.uint8)
        after = format_int(value, out, 8)
        assert out[8:after].tobytes().decode() == str(value)
        assert bytes(out[:8]) == b"#" * 8 and bytes(out[after:]) == b"#" * (len(out) - after)


# Both

@unhurried
@given(st.text("0123456789.-+eE", max_size=60))
@example("-0.0e-0")
def test_any_text_of_number_characters(text):
    check_parse(text.encode())


@unhurried
@given(st.binary(max_size=40))
def test_any_bytes(text):
    check_parse(text)


@unhurried
@given(st.integers(0, 10**19 - 1), st.integers(-400, 400))
def test_any_number_of_up_to_19_digits_is_decided(mantissa, power):
    assert check_parse(b"%de%d" % (mantissa, power)) != UNSURE


@unhurried
@given(st.integers(0, 10**60), st.integers(-400, 400))
def test_any_longer_number(mantissa, power):
    check_parse(b"%de%d" % (mantissa, power))


@unhurried
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_double_both_ways(value):
    check_both_ways(value)


@unhurried
@given(st.integers(-(2**63), 2**63 - 1))
def test_any_int64(value):
    out = np.empty(MAX_INT_CHARS, np.uint8)
    assert out[:format_int(value, out, 0)].tobytes().decode() == str(value)


def random_bits(rng, n):
    """Every sign, exponent and fraction alike; infinities and nans are replaced."""
    values = rng.integers(0, 2**64, n, dtype=np.uint64).view(np.float64)
    return np.where(np.isfinite(values), values, 0.5)


DISTRIBUTIONS = {
    "random bits": (4_000_000, random_bits),
    "uniform": (2_500_000, lambda rng, n: rng.random(n)),
    "normal, thousands": (1_000_000, lambda rng, n: rng.standard_normal(n) * 1000),
    "short decimals": (2_500_000,
                       lambda rng, n: rng.integers(-10**7, 10**7, n) / 10.0 ** rng.integers(0, 7, n)),
    "subnormal": (500_000, lambda rng, n: rng.integers(0, 2**52, n, dtype=np.uint64).view(np.float64)),
    "integers": (500_000, lambda rng, n: rng.integers(-2**60, 2**60, n).astype(np.float64)),
}
CHUNK = 250_000


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_millions_of_doubles_both_ways(distribution):
    count, draw = DISTRIBUTIONS[distribution]
    rng = np.random.default_rng(count)
    for _ in range(count // CHUNK):
        values = draw(rng, CHUNK)
        text = formatted_list(values)
        assert text == json.dumps(values.tolist()).encode()
        back, statuses = parsed_list(text, CHUNK)
        assert not statuses.any()
        assert np.array_equal(back.view(np.uint64), values.view(np.uint64))


@pytest.mark.parametrize("form", ["%.15e", "%.16e", "%.17e", "%.18e", "%.19e", "%.24e", "%.40e", "%.17f"])
def test_texts_that_are_not_the_shortest(form):
    rng = np.random.default_rng(19)
    n = 50_000
    values = rng.random(n) if form == "%.17f" else random_bits(rng, n)
    text = "[" + ", ".join([form % value for value in values.tolist()]) + "]"
    back, statuses = parsed_list(text.encode(), n)
    decided = statuses == 0
    expected = np.array(json.loads(text.replace("inf", "1e999")))
    sure = decided | (statuses == OVERFLOW)
    assert np.array_equal(back[decided].view(np.uint64), expected[decided].view(np.uint64))
    assert np.isinf(expected[statuses == OVERFLOW]).all()
    assert sure.all() if form in ("%.15e", "%.16e", "%.17e", "%.18e") else np.mean(sure) > 0.99


# What the rules at the head of the module promise

U64, I64 = types.uint64, types.int64
BYTES = types.Array(types.uint8, 1, "C")


@pytest.mark.parametrize("function, argument_types", [
    (doubles._eisel_lemire, (U64, I64)), (doubles._scale, (U64, I64)),
    (doubles._shortest_decimal, (U64,)), (doubles._shortest_between, (U64, U64, U64)),
    (doubles._count_digits, (U64,)),
    (doubles._scan_digits, (BYTES, I64, I64, U64)),
    (doubles._scan_exponent, (BYTES, I64, I64)), (doubles._leading_digits, (BYTES, I64, I64)),
    (doubles._write_digits, (U64, BYTES, I64)), (doubles._write_exponent, (I64, BYTES, I64)),
    (doubles._spread_digits, (U64,)), (doubles._join_digits, (U64,)), (doubles.format_int, (I64, BYTES, I64)),
], ids=lambda parameter: getattr(parameter, "__name__", ""))
def test_signed_and_unsigned_never_meet(function, argument_types):
    assert meetings(doubles.inner(function.py_func), argument_types) == []


@pytest.mark.parametrize("mixed", [lambda n, i: n + i, lambda n, i: n >> i, lambda n, i: n < i,
                                   lambda n, i: n if i else i])
def test_signed_and_unsigned_that_meet_are_found(mixed):
    assert meetings(doubles.inner(mixed), (U64, I64))


def meetings(dispatcher, argument_types) -> list[str]:
    """The operations on a uint64 and an int64, and the variables that became floats, as numba types it."""
    dispatcher.compile(argument_types)
    annotation = dispatcher.overloads[argument_types].type_annotation
    kinds = {name: types.unliteral(found) for name, found in annotation.typemap.items()}
    operations = [operation for operation in annotation.calltypes
                  if getattr(operation, "op", "") in ("binop", "inplace_binop")]
    return ([str(operation) for operation in operations
             if {kinds[operation.lhs.name], kinds[operation.rhs.name]} == {U64, I64}]
            + [name for name, found in kinds.items() if isinstance(found, types.Float)])


def test_wide_product_refuses_signed_integers():
    @njit
    def signed(a, b):
        return doubles._wide_product(a, b)

    with pytest.raises(Exception, match="_wide_product"):
        signed(3, 4)


@njit
def wide_product(a, b):
    return doubles._wide_product(a, b)


@unhurried
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(2**64 - 1, 2**64 - 1)
def test_wide_product_is_the_product(a, b):
    high, low = wide_product(np.uint64(a), np.uint64(b))
    assert (int(high) << 64) + int(low) == a * b


def test_edges_hold_with_bounds_checks_on():
    script = f"""
import numba, numpy as np, pytest
from kernels.compiled import OPTIONS
from server import doubles
parse_double, format_double, format_int = (
    numba.njit(**OPTIONS)(inner.py_func) for inner in (doubles.parse_double, doubles.format_double, doubles.format_int))
for value in {[0.0, -0.0, 1.0, 1e15, 1e16, 0.0001, -2.2250738585072014e-308, LARGEST, 0.1234567890123456]}:
    out = np.empty({MAX_DOUBLE_CHARS}, np.uint8)
    text = out[:format_double(value, out, 0)].copy()
    assert text.tobytes().decode() == repr(value)
    assert parse_double(text, 0, len(text)) == (value, len(text))
assert parse_double(np.empty(0, np.uint8), 0, 0) == (0.0, {MALFORMED})
out = np.empty({MAX_INT_CHARS}, np.uint8)
assert format_int(-2**63, out, 0) == {MAX_INT_CHARS}
with pytest.raises(IndexError):
    format_int(-2**63, out[1:], 0)
with pytest.raises(IndexError):
    parse_double(np.frombuffer(b"123", np.uint8).copy(), 0, 4)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "NUMBA_BOUNDSCHECK": "1"})
