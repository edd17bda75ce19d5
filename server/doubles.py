"""Numbers in JSON text to doubles and back, correct to the last bit, without the GIL.

It owns the native twin of `float(text)` and `repr(float)`. The rule to keep: every 64-bit quantity is
a `u64` and meets only other `u64`s, because numba makes an int64 of a uint64 and an int64 or, where
branches join, a float64 without its low bits. What this code cannot decide it hands back.

Grammar: RFC 8259, section 6, https://www.rfc-editor.org/rfc/rfc8259#section-6
Reading: W. D. Clinger, "How to read floating point numbers accurately", PLDI 1990; D. Lemire, "Number
parsing at a gigabyte per second", 2021, https://arxiv.org/abs/2101.11408; N. Mushtak and D. Lemire,
"Fast number parsing without fallback", 2023, https://arxiv.org/abs/2212.06644
Writing: R. Giulietti, "The Schubfach way to render doubles", 2020, in the form that A. Bolz gives it,
https://github.com/abolz/Drachennest
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.compiled import inner
from server.memory import bits_of, double_of, put_byte, put_word, word_at

MALFORMED = -1  # no JSON number begins here
UNSURE = -2     # a number of more than 19 digits, too near the middle of two doubles: Python must decide
OVERFLOW = -3   # a JSON number that rounds to infinity

MAX_DOUBLE_CHARS = 24  # -2.2250738585072014e-308
MAX_INT_CHARS = 20     # -9223372036854775808

u64 = np.uint64

MINUS, PLUS, DOT, ZERO, LOWER_E = (ord(char) for char in "-+.0e")
LOWER_CASE = 0x20  # the bit that makes "E" an "e"

MANTISSA_BITS = u64(52)
HIDDEN_BIT = u64(1 << 52)
MANTISSA_MASK = u64((1 << 52) - 1)
SIGN_SHIFT = u64(63)
MAGNITUDE_MASK = u64((1 << 63) - 1)
EXPONENT_BIAS = 1023
INFINITE_EXPONENT = 2047  # the biased exponent of infinity

MAX_DIGITS_IN_U64 = 19   # every number of 19 decimal digits is below 2**64
LONGEST_DIGITS = 17      # no double needs more to be told from its neighbours
SMALLEST_POWER = -342    # (2**64 - 1) * 10**-343 is below half of the smallest double
LARGEST_POWER = 308      # 10**309 is above the largest
LARGEST_SCALE = 324      # Schubfach multiplies by up to 10**324 (the smallest doubles)
HUGE_EXPONENT = 10**17   # beyond the length of any text: where a written exponent stops growing
EXACT_MANTISSA = u64(1 << 53)  # Clinger: integers up to here and powers of ten up to 10**22 are doubles
EXACT_POWER = 22

ASCII_ZEROS = u64(0x3030303030303030)


def _significand(power: int) -> int:
    """The 128 leading bits of 10**power: rounded up for powers from -27 to -1, truncated elsewhere.

    A number of 64 bits can be a multiple of 5**1 … 5**27, and only of those; a reciprocal that is rounded
    up gives the quotient exactly, where a truncated one falls short of it and hides ties (Lemire 2021).
    """
    if power >= 0:
        significand = 5**power
        excess = significand.bit_length() - 128
        return significand >> excess if excess > 0 else significand << -excess
    divisor = 5**-power
    return (1 << divisor.bit_length() + 127) // divisor + (power >= -27)


def _table(rows: list, dtype: type) -> np.ndarray:
    """A read-only array: numba compiles it in as a constant, so a later change would go unseen."""
    table: np.ndarray = np.array(rows, dtype=dtype)
    table.setflags(write=False)
    return table


# (667, 2): the high and the low word of each significand, from 10**SMALLEST_POWER to 10**LARGEST_SCALE.
SIGNIFICANDS = _table([divmod(_significand(power), 1 << 64)
                       for power in range(SMALLEST_POWER, LARGEST_SCALE + 1)], np.uint64)
EXACT_POWERS = _table([float(10**power) for power in range(EXACT_POWER + 1)], np.float64)
TEN_TO = _table([10**power for power in range(MAX_DIGITS_IN_U64 + 1)], np.uint64)


@intrinsic
def _wide_product(typingctx, a, b):
    """(high, low) words of the product of two uint64; any other type is a compile-time error."""
    if a != types.uint64 or b != types.uint64:
        return None

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))
        low = builder.trunc(product, ir.IntType(64))
        return context.make_tuple(builder, signature.return_type, (high, low))

    return types.UniTuple(types.uint64, 2)(a, b), codegen


@intrinsic
def _leading_zeros(typingctx, n):
    """How many leading bits of a uint64 are zero, as an int64 (64 for zero)."""
    if n != types.uint64:
        return None

    def codegen(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(n), codegen


@intrinsic
def _trailing_zeros(typingctx, n):
    """How many trailing bits of a uint64 are zero, as an int64 (64 for zero)."""
    if n != types.uint64:
        return None

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(n), codegen


# Reading

@inner
def parse_double(buf, pos, end):
    """Read the JSON number that begins at buf[pos] as `float()` would: (value, position after it).

    `buf` is (n,) uint8, contiguous; bytes at and after `end` are never read. The number ends at the
    first byte that cannot continue it, and the caller checks what follows. On failure the value is
    0.0 and the position MALFORMED, UNSURE (ask Python) or OVERFLOW, all negative.
    """
    negative = _byte_at(buf, pos, end) == MINUS
    first = pos + 1 if negative else pos
    if first + 8 <= end:
        value, after = _parse_short(word_at(buf, first))
        if after > 0:
            return -value if negative else value, first + after
    if _byte_at(buf, first, end) == ZERO:  # no digit may follow it
        mantissa, point = u64(0), first + 1
    else:
        mantissa, point = _scan_digits(buf, first, end, u64(0))
    last = point
    if _byte_at(buf, point, end) == DOT:
        mantissa, last = _scan_digits(buf, point + 1, end, mantissa)
    n_fraction = last - point - 1 if last > point else 0
    n_dropped = 0
    if point - first + n_fraction > MAX_DIGITS_IN_U64:
        mantissa, n_dropped = _leading_digits(buf, first, last)
    exponent, pos = _scan_exponent(buf, last, end)
    if point == first or last == point + 1 or pos < 0:  # a part without digits
        return 0.0, MALFORMED
    power = exponent - n_fraction + n_dropped
    value = _nearest_double(mantissa, power)
    # Where digits were left out, the number is below (mantissa + 1) * 10**power.
    if n_dropped and value != _nearest_double(mantissa + u64(1), power):
        return 0.0, UNSURE
    if value == np.inf:
        return 0.0, OVERFLOW
    return -value if negative else value, pos


@inner
def _parse_short(chars):
    """The number that ends within these eight bytes, digits around a point: (value, length), or length 0 for others.

    Most numbers in requests are such; there is no branch on their digits, which nobody could predict.
    """
    digits = chars ^ ASCII_ZEROS  # each byte is 0 … 9 where a digit stands
    others = (((digits & u64(0x7F7F7F7F7F7F7F7F)) + u64(0x7676767676767676)) | digits) & u64(0x8080808080808080)
    point = _trailing_zeros(others) >> 3
    length = _trailing_zeros(others & (others - u64(1))) >> 3
    if point == 0 or length == 8 or length == point + 1 or (point > 1 and chars & u64(0xFF) == u64(ZERO)):
        return 0.0, 0
    after = (chars >> u64(8 * length)) & u64(0xFF)
    if (chars >> u64(8 * point)) & u64(0xFF) != u64(DOT) or after | u64(LOWER_CASE) == u64(LOWER_E):
        return 0.0, 0
    before_point = (u64(1) << u64(8 * point)) - u64(1)
    joined = (digits & before_point) | ((digits >> u64(8)) & ~before_point)
    mantissa = _join_digits(joined << u64(8 * (9 - length)))  # zeros in front, and what stood behind is gone
    return np.float64(np.int64(mantissa)) / EXACT_POWERS[u64(length - point - 1)], length


@inner
def _byte_at(buf, pos, end):
    """buf[pos], or zero, which no number holds, from `end` on."""
    return buf[u64(pos)] if pos < end else np.uint8(0)


@inner
def _join_digits(digits):
    """The number whose eight digits these are, one a byte, the first the lowest; undoes `_spread_digits`."""
    pairs = (digits * u64(10) + (digits >> u64(8))) & u64(0x00FF00FF00FF00FF)
    fours = (pairs * u64(100) + (pairs >> u64(16))) & u64(0x0000FFFF0000FFFF)
    return (fours * u64(10000) + (fours >> u64(32))) & u64(0xFFFFFFFF)


@inner
def _scan_digits(buf, pos, end, value):
    """Append the decimal digits from buf[pos] on to `value`, modulo 2**64: (value, next position).

    Eight at a time as long as there are: fractions are long.
    """
    while pos + 8 <= end:
        chars = word_at(buf, pos)
        # Each byte is one of "0" … "9" where neither 0x46 more nor 0x30 less sets its top bit.
        if ((chars + u64(0x4646464646464646)) | (chars - ASCII_ZEROS)) & u64(0x8080808080808080) != u64(0):
            break
        value = value * u64(10**8) + _join_digits(chars - ASCII_ZEROS)
        pos += 8
    digit = u64(_byte_at(buf, pos, end)) - u64(ZERO)
    while digit <= u64(9):
        value = value * u64(10) + digit
        pos += 1
        digit = u64(_byte_at(buf, pos, end)) - u64(ZERO)
    return value, pos


@inner
def _scan_exponent(buf, pos, end):
    """The exponent at buf[pos], zero if there is none: (exponent, next position or MALFORMED).

    Its size stays below 10 * HUGE_EXPONENT.
    """
    exponent = 0
    if _byte_at(buf, pos, end) | LOWER_CASE == LOWER_E:
        pos += 1
        sign = _byte_at(buf, pos, end)
        if sign == MINUS or sign == PLUS:
            pos += 1
        first = pos
        digit = np.int64(_byte_at(buf, pos, end)) - ZERO
        while 0 <= digit <= 9:
            if exponent < HUGE_EXPONENT:
                exponent = exponent * 10 + digit
            pos += 1
            digit = np.int64(_byte_at(buf, pos, end)) - ZERO
        if sign == MINUS:
            exponent = -exponent
        if pos == first:
            pos = MALFORMED
    return exponent, pos


@inner
def _leading_digits(buf, pos, last):
    """The first 19 significant digits of buf[pos:last], digits around a point: (value, digits left out)."""
    value = u64(0)
    n_dropped = 0
    for i in range(pos, last):
        if buf[i] == DOT:
            continue
        if value < TEN_TO[MAX_DIGITS_IN_U64 - 1]:
            value = value * u64(10) + (u64(buf[i]) - u64(ZERO))
        else:
            n_dropped += 1
    return value, n_dropped


@inner
def _nearest_double(mantissa, power):
    """The double nearest to mantissa * 10**power, ties to even; infinity beyond the largest."""
    if mantissa == u64(0) or power < SMALLEST_POWER:
        return 0.0
    if power > LARGEST_POWER:
        return np.inf
    if mantissa <= EXACT_MANTISSA and -EXACT_POWER <= power <= EXACT_POWER:
        exact = np.float64(np.int64(mantissa))
        return exact / EXACT_POWERS[-power] if power < 0 else exact * EXACT_POWERS[power]
    return double_of(_eisel_lemire(mantissa, power))


@inner
def _eisel_lemire(mantissa, power):
    """The bits of `_nearest_double` where 0 < mantissa and SMALLEST_POWER <= power <= LARGEST_POWER.

    Lemire 2021, algorithm 1, without its fallback: Mushtak and Lemire show that it is never needed.
    """
    zeros = _leading_zeros(mantissa)
    normalized = mantissa << u64(zeros)
    power_high, power_low = SIGNIFICANDS[power - SMALLEST_POWER, 0], SIGNIFICANDS[power - SMALLEST_POWER, 1]
    high, low = _wide_product(normalized, power_high)
    if high & u64(0x1FF) == u64(0x1FF):  # what lies below could carry into the 55 bits that decide
        carry, _ = _wide_product(normalized, power_low)
        low += carry
        if low < carry:
            high += u64(1)
    upper_bit = high >> u64(63)
    shift = upper_bit + u64(9)
    rounded = high >> shift  # 53 bits and one to round by
    # 217706 / 2**16 is log2(10), close enough for every power of the table.
    exponent = (217706 * power >> 16) + 63 + np.int64(upper_bit) - zeros + EXPONENT_BIAS
    if exponent <= 0:
        # There are no ties so far down, and 2**52 is the smallest normal.
        return ((rounded >> u64(1 - exponent)) + u64(1)) >> u64(1) if exponent > -63 else u64(0)
    # A tie between two doubles: nothing is set below the 54 bits, which only these powers can give.
    if low <= u64(1) and -4 <= power <= 23 and rounded & u64(3) == u64(1) and rounded << shift == high:
        rounded -= u64(1)
    rounded = (rounded + u64(1)) >> u64(1)
    # The hidden bit adds one to the exponent, and so does a mantissa that rounds up to 2**53.
    bits = (u64(exponent - 1) << MANTISSA_BITS) + rounded
    infinity = u64(INFINITE_EXPONENT) << MANTISSA_BITS
    return bits if bits < infinity else infinity


# Writing

@inner
def format_double(value, out, pos):
    """Write a finite double as `repr(float)` and `json.dumps` do; return the position after it.

    `out` is uint8, contiguous, with room for MAX_DOUBLE_CHARS bytes from `pos` on; what the text does
    not fill of them is overwritten too. Infinities and nan are the caller's to refuse: they have no JSON.
    """
    bits = bits_of(value)
    if bits >> SIGN_SHIFT:
        put_byte(out, pos, MINUS)
        pos += 1
    digits, exponent = _shortest_decimal(bits & MAGNITUDE_MASK)
    n_digits = _count_digits(digits)
    digits *= TEN_TO[LONGEST_DIGITS - n_digits]
    point = n_digits + exponent  # digits before the decimal point
    if -4 < point <= 0:  # 0.ddd, with up to three zeros after the point
        for i in range(5):
            put_byte(out, pos + i, DOT if i == 1 else ZERO)
        pos += 2 - point
        return pos + _write_digits(digits, out, pos)
    n_digits = _write_digits(digits, out, pos + 1)
    if 0 < point <= 16:  # ddd.ddd or ddd.0
        for i in range(pos, pos + point):
            put_byte(out, i, out[u64(i + 1)])
        put_byte(out, pos + point, DOT)
        return pos + 1 + (n_digits if n_digits > point else point + 1)
    put_byte(out, pos, out[u64(pos + 1)])  # d.ddde+dd, or de+dd of a single digit
    put_byte(out, pos + 1, DOT)
    return _write_exponent(point - 1, out, pos + 1 + n_digits if n_digits > 1 else pos + 1)


@inner
def _write_exponent(exponent, out, pos):
    """Write e+dd or e-dd, with a third digit where it is needed; return the position after it."""
    put_byte(out, pos, LOWER_E)
    put_byte(out, pos + 1, MINUS if exponent < 0 else PLUS)
    pos += 2
    if exponent < 0:
        exponent = -exponent
    if exponent >= 100:
        put_byte(out, pos, ZERO + exponent // 100)
        pos += 1
    put_byte(out, pos, ZERO + exponent // 10 % 10)
    put_byte(out, pos + 1, ZERO + exponent % 10)
    return pos + 2


@inner
def _write_digits(digits, out, pos):
    """Write a number of exactly 17 digits; return how many are left without the zeros at its end."""
    head = digits // u64(10**8)
    first = head // u64(10**8)
    middle = _spread_digits(head - first * u64(10**8))
    tail = _spread_digits(digits - head * u64(10**8))
    put_byte(out, pos, u64(ZERO) + first)
    put_word(out, pos + 1, middle + ASCII_ZEROS)
    put_word(out, pos + 9, tail + ASCII_ZEROS)
    if tail != u64(0):
        return 17 - _leading_zeros(tail) // 8
    return 9 - _leading_zeros(middle) // 8


@inner
def _spread_digits(n):
    """The eight decimal digits of n < 10**8, one a byte, the first the lowest.

    Divisions by 100 and by 10 in all lanes at once, as multiplications that are exact in their range;
    P. Khuong, "How to print integers really fast", 2017, https://pvk.ca.
    """
    high = n // u64(10000)
    fours = high + ((n - high * u64(10000)) << u64(32))
    high = ((fours * u64(10486)) >> u64(20)) & u64(0x0000007F0000007F)
    twos = high + ((fours - high * u64(100)) << u64(16))
    high = ((twos * u64(103)) >> u64(10)) & u64(0x000F000F000F000F)
    return high + ((twos - high * u64(10)) << u64(8))


@inner
def _count_digits(n):
    """How many decimal digits n < 10**19 has; one for zero. 1233 / 2**12 is log10(2)."""
    guess = (64 - _leading_zeros(n)) * 1233 >> 12
    return guess + (n >= TEN_TO[guess]) if guess else 1


@inner
def _shortest_decimal(magnitude):
    """The shortest, then nearest, decimal that reads as the double with these bits: (digits, exponent).

    Digits may end in zeros. Giulietti, figures 4 and 6, whose names c, q, k, h and s these are.
    """
    fraction = magnitude & MANTISSA_MASK
    biased = np.int64(magnitude >> MANTISSA_BITS)
    if magnitude == u64(0):
        return u64(0), 0
    c = fraction | HIDDEN_BIT if biased else fraction
    q = (biased if biased else 1) - EXPONENT_BIAS - 52  # the value is c * 2**q
    if -53 < q <= 0 and c & ((u64(1) << u64(-q)) - u64(1)) == u64(0):
        return c >> u64(-q), 0  # an integer below 2**53
    uneven = fraction == u64(0) and biased > 1  # below a power of two the doubles are twice as dense
    # 1262611 / 2**22 is log10(2), 524031 / 2**22 is log10(4/3), 1741647 / 2**19 is log2(10).
    k = (q * 1262611 - (524031 if uneven else 0)) >> 22
    h = u64(q + (-k * 1741647 >> 19) + 1)
    # Four times the value and the middles to its neighbours, in units of 10**k.
    lower = _scale((u64(4) * c - u64(1 if uneven else 2)) << h, -k)
    scaled = _scale((u64(4) * c) << h, -k)
    upper = _scale((u64(4) * c + u64(2)) << h, -k)
    odd = c & u64(1)  # ties go to even: an odd number does not own the ends of its interval
    digits, carry = _shortest_between(lower + odd, scaled, upper - odd)
    return digits, k + carry


@inner
def _shortest_between(lower, scaled, upper):
    """The n nearest to scaled / 4 with lower <= 4 * n <= upper: (n, 0), but (n / 10, 1) if n can end in 0.

    The interval is so wide that it holds an integer, and so narrow that it holds at most one multiple of ten.
    """
    s = scaled >> u64(2)
    tens = s // u64(10)
    below = lower <= u64(40) * tens
    above = u64(40) * tens + u64(40) <= upper
    if tens > u64(0) and below != above:
        return tens + u64(above), 1
    below = lower <= u64(4) * s
    above = u64(4) * s + u64(4) <= upper
    if below != above:
        return s + u64(above), 0
    half = u64(4) * s + u64(2)
    round_up = scaled > half or (scaled == half and s & u64(1) == u64(1))
    return s + u64(round_up), 0


@inner
def _scale(c, power):
    """c times `_significand(power)` without its last 128 bits, which the last bit left stands for if set."""
    high, low = SIGNIFICANDS[power - SMALLEST_POWER, 0], SIGNIFICANDS[power - SMALLEST_POWER, 1]
    if power < -27 or power > 55:  # Schubfach wants inexact powers rounded up, and these were truncated
        low += u64(1)
    carry, _ = _wide_product(c, low)
    result, rest = _wide_product(c, high)
    rest += carry
    result += u64(rest < carry)
    return result | u64(rest > u64(1))


@inner
def format_int(value, out, pos):
    """Write an int64 in decimal; return the position after it. At most MAX_INT_CHARS bytes are written."""
    magnitude = u64(value)
    if value < 0:
        put_byte(out, pos, MINUS)
        pos += 1
        magnitude = u64(0) - magnitude
    end = pos + _count_digits(magnitude)
    for i in range(end - 1, pos - 1, -1):
        rest = magnitude // u64(10)
        put_byte(out, i, u64(ZERO) + magnitude - rest * u64(10))
        magnitude = rest
    return end
