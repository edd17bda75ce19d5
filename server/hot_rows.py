"""Rows in the body of a request, in native code: JSON lists and objects → float64.

The rule to keep: what is read here is read as `rows` and `scoring_api` read it, or not at all. A reader gives the place
after what it read, and something negative, or FAILED, for whatever it does not fully understand. Every index is proven
against `end`, as in `hotpath`.

JSON: RFC 8259.
"""

import numpy as np
from numba import from_dtype, types

from kernels.compiled import inner
from kernels.simd import caller_of
from server.doubles import parse_double
from server.layout import (
    DOUBLE, FAILED, FEATURE, FLOAT, INTEGER, LONG, MODEL, SHARED, SPAN, WORD, WORK,
)
from server.libc import view_of
from server.memory import starts_with, starts_with_span


def text_of(text: str) -> np.ndarray:
    """ASCII as (n) uint8, for compiled code."""
    return np.frombuffer(text.encode("ascii"), np.uint8)


NULL = text_of("null")
TAB, LF, CR, SPACE, QUOTE, COMMA, COLON, SEMICOLON, BACKSLASH = (np.uint8(ord(c)) for c in "\t\n\r \",:;\\")
OPEN, SHUT, OPEN_OBJECT, SHUT_OBJECT = (np.uint8(ord(c)) for c in "[]{}")
MINUS, DOT, LOWER_E, UPPER_E, ZERO, NINE = (np.uint8(ord(c)) for c in "-.eE09")
EXACT, MAX_INTEGER = 2.0**53, 2.0**31  # integers below are doubles; int32

# Forms of rows. Lists or objects of /v1/predict, where every number is a double. Of /invocations, where columns have
# types: objects; names alone, for `order` to hold; lists in that order; lists in the order of the features.
LISTS, OBJECTS, RECORDS, NAMES, SPLIT, PLAIN = range(6)

bytes_of, int64s_of, doubles_of = view_of(np.uint8), view_of(np.int64), view_of(np.float64)
spans_of, models_of, features_of, words_of = view_of(SPAN), view_of(MODEL), view_of(FEATURE), view_of(WORD)

# Of the functions that `hotpath.UNITS` has from here. SHARED and WORK are records; the other arguments are as there.
_RECORDS = from_dtype(SHARED), from_dtype(WORK)
READ_ROWS_SIGNATURE = types.int64(*_RECORDS, *[types.intp] * 4)
READ_VALUES_SIGNATURE = types.int64(*_RECORDS, *[types.intp] * 5)
READ_NUMBERS_SIGNATURE = types.int64(_RECORDS[1], *[types.intp] * 5)
call_read_rows, call_read_values, call_read_numbers = (
    caller_of(signature.return_type, *signature.args)
    for signature in (READ_ROWS_SIGNATURE, READ_VALUES_SIGNATURE, READ_NUMBERS_SIGNATURE))


# --- text ---------------------------------------------------------------------------------------

@inner
def skip_space(buf, at, end):
    while at < end and (buf[at] == SPACE or buf[at] == LF or buf[at] == CR or buf[at] == TAB):
        at += 1
    return at


@inner
def expect(buf, at, end, byte):
    """The place after white space, `byte` and white space; -1 where something else stands."""
    at = skip_space(buf, at, end)
    if at >= end or buf[at] != byte:
        return -1
    return skip_space(buf, at + 1, end)


@inner
def read_string(buf, at, end):
    """A string of printable ASCII without escapes → (its first byte, its closing quote), or -1s."""
    if at >= end or buf[at] != QUOTE:
        return -1, -1
    close = at + 1
    while close < end and buf[close] != QUOTE:
        if buf[close] < 32 or buf[close] > 126 or buf[close] == BACKSLASH:
            return -1, -1
        close += 1
    if close >= end:
        return -1, -1
    return at + 1, close


@inner
def read_key(buf, at, end):
    """A plain key and its colon → (its first byte, its closing quote, the place after the colon), or -1s."""
    key_at, key_end = read_string(buf, at, end)
    return key_at, key_end, (expect(buf, key_end + 1, end, COLON) if key_at >= 0 else -1)


@inner
def find_quote(buf, at, end):
    """The closing quote of the string whose first byte is buf[at] → (place or -1, whether it has escapes)."""
    escaped = False
    while at < end and buf[at] != QUOTE:
        if buf[at] < SPACE:
            return -1, False
        if buf[at] == BACKSLASH:
            escaped = True
            at += 1
        at += 1
    return (at if at < end else -1), escaped


@inner
def is_utf8(buf, at, end):
    """Whether these bytes are UTF-8 (RFC 3629, section 4), as Python decodes it."""
    while at < end:
        first = buf[at]
        if first < 0x80:
            at += 1
            continue
        n_more = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        if first < 0xC2 or first > 0xF4 or at + n_more >= end:
            return False
        second = buf[at + 1]  # others than these would be too long a form, a surrogate, or above U+10FFFF
        if second < (0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80):
            return False
        if second > (0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF):
            return False
        for i in range(at + 2, at + 1 + n_more):
            if buf[i] < 0x80 or buf[i] > 0xBF:
                return False
        at += 1 + n_more
    return True


@inner
def find_word(shared, first, n_words, buf, at, end):
    """The index in `words` of the string buf[at:end], its quotes included, among the n_words from `first` on; or -1."""
    words, text, length = words_of(shared.words), bytes_of(shared.text), end - at
    low, high = first, first + n_words
    while low < high:
        middle = (low + high) >> 1
        span = words[middle].text
        difference, i = length - span.length, 0
        while difference == 0 and i < length:
            difference = np.intp(buf[at + i]) - np.intp(text[span.at + i])
            i += 1
        if difference == 0:
            return middle
        if difference < 0:
            high = middle
        else:
            low = middle + 1
    return -1


# --- rows ---------------------------------------------------------------------------------------

@inner
def read_name(shared, work, model, form, k, at, end):
    """The k-th name of a row → (the feature, the place after the name); -1s for others.

    Objects of one client have one order: the name that stood here in the last row is tried first.
    """
    buf, text, order = bytes_of(work.received), bytes_of(shared.text), int64s_of(work.order)
    first, n_words = model.first_name, model.n_names
    if form >= RECORDS:
        first, n_words = model.first_column, model.n_columns
    words, place = words_of(shared.words), model.first_feature + k
    word, after = order[place], -1
    if first <= word < first + n_words:
        span = words[word].text
        after = at + span.length
        if not starts_with_span(buf, at, end, text, span):
            after = -1
    if after < 0:
        if at >= end or buf[at] != QUOTE:
            return -1, -1
        close, _ = find_quote(buf, at + 1, end)
        if close < 0:
            return -1, -1
        after = close + 1
        word = find_word(shared, first, n_words, buf, at, after)
        if word < 0:
            return -1, -1
        order[place] = word
    return words[word].place, after


@inner
def read_category(shared, model, feature, buf, at, end, rows, n):
    """A string's place among the feature's categories, or what stands for others, into rows[n + feature].

    As `read_numbers` otherwise. Escapes are those of the one way in which Python's `json` writes a category; others
    are for Python to read.
    """
    if at >= end or buf[at] != QUOTE:
        if not model.takes_missing or not starts_with(buf, at, end, NULL):
            return -1
        rows[n + feature] = np.nan
        return skip_space(buf, at + NULL.size, end)
    close, escaped = find_quote(buf, at + 1, end)
    if close < 0:
        return -1
    words = features_of(shared.features)[model.first_feature + feature]
    word = find_word(shared, words.first_word, words.n_words, buf, at, close + 1)
    if word < 0 and (escaped or not is_utf8(buf, at, close)):
        return -1
    rows[n + feature] = model.unknown if word < 0 else float(words_of(shared.words)[word].place)
    return skip_space(buf, close + 1, end)


def read_numbers(work, at, end, first, last, takes_missing):
    """Numbers, or nulls, with commas between them into rows[first:last] → the place of what follows, or negative."""
    buf, rows = bytes_of(work.received), doubles_of(work.rows)
    for i in range(first, last):
        if i > first:
            if at >= end or buf[at] != COMMA:
                return -1
            at = skip_space(buf, at + 1, end)
        value, after = parse_double(buf, at, end)
        if after < 0:
            if not takes_missing or not starts_with(buf, at, end, NULL):
                return -1
            value, after = np.nan, at + NULL.size
        rows[i] = value
        at = skip_space(buf, after, end)
    return at


@inner
def has_point(buf, at, end):
    """Whether the number at `at`, which there is, is written with a point or an exponent; MLflow's ints are without."""
    at += buf[at] == MINUS
    while at < end and ZERO <= buf[at] <= NINE:
        at += 1
    return at < end and (buf[at] == DOT or buf[at] == LOWER_E or buf[at] == UPPER_E)


@inner
def convert(kind, buf, at, end, rows, i):
    """Make of rows[i], a number that begins at `at`, or a null, what a column of this type holds → whether it may."""
    value = rows[i]
    if kind == DOUBLE and 0.0 < abs(value) < EXACT:  # as nearly all are
        return True
    if np.isnan(value):
        return kind == DOUBLE or kind == FLOAT
    if has_point(buf, at, end):
        if kind == LONG or kind == INTEGER:
            return False
    elif abs(value) >= (MAX_INTEGER if kind == INTEGER else EXACT):
        return False
    else:
        value += 0.0  # an int has no -0
    if kind == FLOAT:
        value = np.float64(np.float32(value))
    rows[i] = value
    return abs(value) < np.inf


def read_values(shared, work, at, end, m, n, form):
    """As `read_numbers`, the row from rows[n] on of model m, where there is more to a row than numbers in a list.

    Of NAMES nothing gets into rows.
    """
    model, features = models_of(shared.models)[m], features_of(shared.features)
    buf, rows, seen, order = bytes_of(work.received), doubles_of(work.rows), int64s_of(work.seen), int64s_of(work.order)
    work.n_rows += 1
    for k in range(model.n_features):
        feature = np.int64(k)
        if k:
            if at >= end or buf[at] != COMMA:
                return -1
            at = skip_space(buf, at + 1, end)
        if OBJECTS <= form <= NAMES:
            feature, at = read_name(shared, work, model, form, k, at, end)
            if at < 0 or seen[feature] == work.n_rows:
                return -1
            seen[feature] = work.n_rows
            if form == NAMES:
                at = skip_space(buf, at, end)
                continue
            at = expect(buf, at, end, COLON)
            if at < 0:
                return -1
        elif form == SPLIT:
            feature = words_of(shared.words)[order[model.first_feature + k]].place
        column = features[model.first_feature + feature]
        if column.takes_strings:
            at = read_category(shared, model, feature, buf, at, end, rows, n)
        else:
            i, first = n + feature, at
            at = call_read_numbers(shared.read_numbers, (work, at, end, i, i + 1, model.takes_missing))
            if form >= RECORDS and at > 0 and not convert(column.type, buf, first, end, rows, i):
                return -1
        if at <= 0:
            return at
    return at


def read_rows(shared, work, at, end, m, form):
    """`[[…], […]]` or `[{…}, {…}]` for model m → the place after it; in work.result[3] the number of rows.

    LISTS stands for objects too, where the model's features have names.
    """
    buf, model = bytes_of(work.received), models_of(shared.models)[m]
    at = expect(buf, at, end, OPEN)
    if at < 0 or at >= end or not model.predict:
        return -1
    if form == LISTS and model.n_names and buf[at] == OPEN_OBJECT:
        form = np.intp(OBJECTS)
    are_objects = form == OBJECTS or form == RECORDS
    n, n_rows = np.intp(0), np.intp(0)
    while True:
        at = expect(buf, at, end, OPEN_OBJECT if are_objects else OPEN)
        if at < 0 or n + model.n_features > work.rows.length:
            return -1
        if form != LISTS or model.takes_strings:
            at = call_read_values(shared.read_values, (shared, work, at, end, m, n, form))
        else:
            last = n + model.n_features
            at = call_read_numbers(shared.read_numbers, (work, at, end, n, last, model.takes_missing))
        if at == FAILED:
            return FAILED
        if at < 0 or at >= end or buf[at] != (SHUT_OBJECT if are_objects else SHUT):
            return -1
        n, n_rows = n + model.n_features, n_rows + 1
        at = skip_space(buf, at + 1, end)
        if at >= end:
            return -1
        if buf[at] == SHUT:
            work.result[3] = n_rows
            return at + 1
        if buf[at] != COMMA:
            return -1
        at += 1
