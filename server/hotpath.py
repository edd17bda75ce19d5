"""One predict request in native code: HTTP head → JSON body → kernel → JSON response.

The rule to keep: this file answers only what it fully understands, and then exactly as the Python
path (`predict_api`) would; everything else is SLOW and left untouched. Every index is proven
against `end` before it is read: numba checks no bounds here (the fuzz suite also runs with its checks on).

The functions of `UNITS` are compiled apart and call each other through addresses in `Shared`: what is compiled into
its caller is optimised once more there, and in the caller's caller. One whose bounds check fails returns FAILED.

Heads: RFC 9112 through the table of `http1`. Bodies: `hot_rows`, and `scoring_hotpath` for /invocations.
"""

import numpy as np
from numba import from_dtype, types

from kernels.compiled import cfunc, inner
from kernels.simd import caller_of, load, load_u8
from server import hot_rows, scoring_hotpath
from server.doubles import format_double, format_int
from server.hot_rows import (
    COLON, COMMA, LISTS, OPEN, OPEN_OBJECT, QUOTE, SEMICOLON, SHUT, SHUT_OBJECT, SPACE, TAB, bytes_of, call_read_rows,
    doubles_of, expect, find_quote, int64s_of, models_of, read_key, read_string, skip_space, spans_of, text_of,
)
from server.http1 import DONE, LINE_START, MAX_HEAD_BYTES, REJECT, SINGLETONS, START
from server.layout import (
    ANSWERED, BUCKET_BOUNDS_NS, BUCKETS, COUNTS, DATE_BYTES, FAILED, HEAD_ROOM, INCOMPLETE_BODY, INCOMPLETE_HEAD,
    INVOCATIONS, LATENCY_NS, LOG_LINE, LOG_ROWS, LOGGED, MAX_LINES, MAX_REQUEST_ID_BYTES, NUMBER_ROOM, PREDICT,
    REQUESTS, ROUTES, SHARED, SLOW, WORK,
)
from server.libc import CLOCK_MONOTONIC, memmove, now_ns, view_of
from server.memory import address_of, equals, equals_span, put, put_from, put_span, starts_with

PREDICT_LINE, INVOCATIONS_LINE = (text_of(f"POST {route} HTTP/1.1\r\n") for route in ROUTES)
INPUTS, MODEL_NAME, PARAMETERS = text_of("inputs"), text_of("model"), text_of("parameters")
RETURN_PROBABILITIES, TRUE, FALSE = text_of("return_probabilities"), text_of("true"), text_of("false")
JSON_TYPE, CHARSET, JSON_UTF_8 = map(text_of, ("application/json", "charset=utf-8", "application/json; charset=utf-8"))
BEARER, CLOSE, KEEP_ALIVE = text_of("bearer "), text_of("close"), text_of("keep-alive")

# The header fields that mean something here; a second line of any of them is a matter for Python. The first
# seven are read, the next three make a request one for Python, the rest may only not be repeated (`http1.SINGLETONS`).
FIELDS = ["host", "content-length", "content-type", "connection", "authorization", "origin", "x-request-id",
          "transfer-encoding", "expect", "content-encoding"]
HOST, CONTENT_LENGTH, CONTENT_TYPE, CONNECTION, AUTHORIZATION, ORIGIN, X_REQUEST_ID, *_ = range(len(FIELDS))
FIRST_REPEATABLE = len(FIELDS)
FIELDS += sorted(set(SINGLETONS) - set(FIELDS))
FIELD_NAMES = text_of("".join(FIELDS))
FIELD_ENDS = np.cumsum([len(name) for name in FIELDS])

RESPONSE_START = text_of("HTTP/1.1 200 OK\r\nServer: testigo\r\nDate: ")
RESPONSE_CLOSE = text_of("\r\nConnection: close")
RESPONSE_LENGTH = text_of("\r\nContent-Type: application/json\r\nContent-Length: ")
RESPONSE_ID = text_of("\r\nX-Request-Id: ")
RESPONSE_BODY = text_of("\r\n\r\n")
SEPARATOR = text_of(", ")
PREDICTIONS, PROBABILITIES = text_of('{"predictions": ['), text_of('], "probabilities": [')
FRAME_END = text_of("]}")

logged_of = view_of(LOG_LINE)
call_predict = caller_of(types.int32, *[types.intp] * 6)  # kernels.native

# Of the functions of UNITS. SHARED and WORK are records; the other arguments are as there.
_RECORDS = from_dtype(SHARED), from_dtype(WORK)
SIGNATURE = types.int64(*_RECORDS, *[types.intp] * 3)
READ_SIGNATURE = types.int64(*_RECORDS, *[types.intp] * 2)
WRITE_NUMBER_SIGNATURE = types.int64(_RECORDS[1], types.float64, types.intp)
call_read, call_write_number = (caller_of(signature.return_type, *signature.args)
                                for signature in (READ_SIGNATURE, WRITE_NUMBER_SIGNATURE))


# --- text ---------------------------------------------------------------------------------------

@inner
def equals_folded(buf, at, end, text, size):
    """Whether buf[at:end] is the lower-case text of `size` bytes at the address `text`, but for the case of letters."""
    if end - at != size:
        return False
    for i in range(size):
        byte = buf[at + i]
        if 65 <= byte <= 90:
            byte += 32
        if byte != load_u8(text + i):
            return False
    return True


# --- head ---------------------------------------------------------------------------------------

@inner
def scan_head(transitions, buf, at, end, lines):
    """Run the grammar over buf[at:end] → (state, end of the head, number of field lines).

    lines[i] is where field line i starts; the last one is the empty line that ends the head.
    The state is REJECT also for heads with more lines or bytes than are taken here.
    """
    state, n_lines, i = np.intp(START), 0, at
    limit = at + MAX_HEAD_BYTES if end - at > MAX_HEAD_BYTES else end
    while i < limit:
        state = np.intp(transitions[state * 256 + buf[i]])
        i += 1
        if state == LINE_START:
            if n_lines == MAX_LINES:
                return np.intp(REJECT), i, n_lines
            lines[n_lines] = i
            n_lines += 1
        elif state == DONE or state >= REJECT:
            return state, i, n_lines
    if i - at >= MAX_HEAD_BYTES:
        state = np.intp(REJECT)
    return state, i, n_lines


@inner
def trim(buf, at, end):
    """The span without spaces and tabs at its ends."""
    while at < end and (buf[at] == SPACE or buf[at] == TAB):
        at += 1
    while end > at and (buf[end - 1] == SPACE or buf[end - 1] == TAB):
        end -= 1
    return at, end


@inner
def read_length(buf, at, end):
    """A Content-Length of up to 9 digits, or -1."""
    if at == end or end - at > 9:
        return -1
    length = 0
    for i in range(at, end):
        if buf[i] < 48 or buf[i] > 57:
            return -1
        length = length * 10 + buf[i] - 48
    return length


@inner
def is_json_type(buf, at, end):
    """application/json, with charset=utf-8 or without parameters."""
    split = at
    while split < end and buf[split] != SEMICOLON:
        split += 1
    name_at, name_end = trim(buf, at, split)
    if not equals_folded(buf, name_at, name_end, address_of(JSON_TYPE), JSON_TYPE.size):
        return False
    if split == end:
        return True
    parameter_at, parameter_end = trim(buf, split + 1, end)
    return equals_folded(buf, parameter_at, parameter_end, address_of(CHARSET), CHARSET.size)


@inner
def is_allowed_host(shared, buf, at, end):
    """Whether a Host value is a plain name or address with an optional port, and on the list where there is one."""
    name_end = at
    while name_end < end and buf[name_end] != COLON:
        byte = buf[name_end]
        if not (97 <= byte <= 122 or 65 <= byte <= 90 or 48 <= byte <= 57 or byte == 45 or byte == 46):
            return False
        name_end += 1
    if name_end == at:
        return False
    if name_end < end:
        port = read_length(buf, name_end + 1, end)
        if port < 0 or port > 65535:
            return False
    if shared.any_host:
        return True
    hosts = spans_of(shared.hosts)
    for i in range(hosts.size):
        if equals_folded(buf, at, name_end, shared.text.at + hosts[i].at, hosts[i].length):
            return True
    return False


@inner
def is_authorized(shared, buf, at, end):
    """Whether an Authorization value is `Bearer` with one of the keys; as slow for every wrong key of a length."""
    if end - at <= BEARER.size or not equals_folded(buf, at, at + BEARER.size, address_of(BEARER), BEARER.size):
        return False
    at, end = trim(buf, at + BEARER.size, end)
    keys, text = spans_of(shared.keys), bytes_of(shared.text)
    found = 0
    for i in range(keys.size):
        span = keys[i]
        if span.length == end - at:
            different = 0
            for j in range(span.length):
                different |= text[span.at + j] ^ buf[at + j]
            found |= different == 0
    return found != 0


@inner
def find_field(buf, at, end):
    """The index in FIELDS of a field name, or -1."""
    name_at = 0
    for i in range(FIELD_ENDS.size):
        name_end = FIELD_ENDS[i]
        if equals_folded(buf, at, end, address_of(FIELD_NAMES) + name_at, name_end - name_at):
            return i
        name_at = name_end
    return -1


@inner
def note_request_id(work, at, end):
    """Remember where the X-Request-Id is → whether it is short and plain, so that it can be echoed and logged here."""
    buf = bytes_of(work.received)
    if at == end or end - at > MAX_REQUEST_ID_BYTES:
        return False
    for i in range(at, end):
        if buf[i] <= SPACE or buf[i] > 126:
            return False
    work.request_id.at, work.request_id.length = at, end - at
    return True


def read_head(shared, work, at, end):
    """The head at received[at:end] → the outcome; in work.result: the end of the request, where its body starts,
    keep-alive; in work.route whose request it is.

    ANSWERED stands for a head of a request that may be answered here.
    """
    work.result[0], work.result[1], work.result[2] = at, at, True
    buf, lines = bytes_of(work.received), int64s_of(work.lines)
    state, body, n_lines = scan_head(bytes_of(shared.transitions), buf, at, end, lines)
    if state != DONE:
        return SLOW if state >= REJECT else INCOMPLETE_HEAD
    work.request_id.length = 0
    length, keep_alive, hot, authorized, seen = 0, True, True, shared.keys.length == 0, 0
    good_host, usual_type = False, True
    for i in range(n_lines - 1):
        name_at, line_end = lines[i], lines[i + 1] - 2
        name_end = name_at
        while buf[name_end] != COLON:
            name_end += 1
        field = find_field(buf, name_at, name_end)
        if field < 0:
            continue
        if seen >> field & 1:
            return SLOW
        seen |= 1 << field
        value_at, value_end = trim(buf, name_end + 1, line_end)
        if field == HOST:
            good_host = is_allowed_host(shared, buf, value_at, value_end)
        elif field == CONTENT_LENGTH:
            length = read_length(buf, value_at, value_end)
            if length < 0 or length > shared.max_body_bytes:
                return SLOW
        elif field == CONTENT_TYPE:
            hot &= is_json_type(buf, value_at, value_end)
            usual_type = (equals(buf, value_at, value_end, JSON_TYPE) or equals(buf, value_at, value_end, JSON_UTF_8))
        elif field == CONNECTION:
            keep_alive = equals_folded(buf, value_at, value_end, address_of(KEEP_ALIVE), KEEP_ALIVE.size)
            hot &= keep_alive or equals_folded(buf, value_at, value_end, address_of(CLOSE), CLOSE.size)
        elif field == AUTHORIZATION:
            authorized |= is_authorized(shared, buf, value_at, value_end)
        elif field == ORIGIN:
            hot &= not shared.origin_matters
        elif field == X_REQUEST_ID:
            hot &= note_request_id(work, value_at, value_end)
        elif field < FIRST_REPEATABLE:  # the body may not be where and what it seems
            return SLOW
    if not good_host:  # it may be one that is refused, whatever its body: Python knows
        return SLOW
    hot &= authorized and length > 0 and not shared.draining
    work.route = PREDICT if equals(buf, at, lines[0], PREDICT_LINE) else INVOCATIONS
    hot &= work.route == PREDICT or (usual_type and equals(buf, at, lines[0], INVOCATIONS_LINE))
    work.result[0], work.result[1], work.result[2] = body + length, body, keep_alive
    if body + length > end and (hot or body + length - at <= buf.size):
        return INCOMPLETE_BODY
    return ANSWERED if hot else SLOW


# --- body ---------------------------------------------------------------------------------------

@inner
def find_model(shared, buf, at, end):
    models, text = models_of(shared.models), bytes_of(shared.text)
    for i in range(models.size):
        if equals_span(buf, at, end, text, models[i].name):
            return i
    return -1


@inner
def skip_value(buf, at, end):
    """The place after the list, object or string at `at`, whatever is in it; or -1."""
    depth = 0
    while at < end:
        byte = buf[at]
        if byte == QUOTE:
            at, _ = find_quote(buf, at + 1, end)
            if at < 0:
                return -1
        elif byte == OPEN or byte == OPEN_OBJECT:
            depth += 1
        elif byte == SHUT or byte == SHUT_OBJECT:
            depth -= 1
        at += 1
        if depth <= 0:
            return at
    return -1


@inner
def look_ahead(shared, buf, at, end):
    """Which model the members after the inputs at `at` name → its index, or -1; what else is wrong, others will see."""
    while True:
        at = skip_value(buf, at, end)
        if at < 0:
            return -1
        at = expect(buf, at, end, COMMA)
        if at < 0:
            return 0
        key_at, key_end, at = read_key(buf, at, end)
        if at < 0:
            return -1
        if equals(buf, key_at, key_end, MODEL_NAME):
            name_at, name_end = read_string(buf, at, end)
            return find_model(shared, buf, name_at, name_end) if name_at >= 0 else -1


@inner
def read_parameters(buf, at, end):
    """`{}` or `{"return_probabilities": true|false}` → (place after it, the flag), or -1."""
    at = expect(buf, at, end, OPEN_OBJECT)
    if at < 0 or at >= end:
        return -1, False
    if buf[at] == SHUT_OBJECT:
        return at + 1, False
    key_at, key_end, at = read_key(buf, at, end)
    if at < 0 or not equals(buf, key_at, key_end, RETURN_PROBABILITIES):
        return -1, False
    wanted = starts_with(buf, at, end, TRUE)
    if not wanted and not starts_with(buf, at, end, FALSE):
        return -1, False
    at = skip_space(buf, at + (TRUE.size if wanted else FALSE.size), end)
    if at >= end or buf[at] != SHUT_OBJECT:
        return -1, False
    return at + 1, wanted


def read_body(shared, work, at, end):
    """The request object at received[at:end] → the number of rows or -1; in work.result[1] the model's index, in
    work.result[3] whether probabilities are wanted.
    """
    buf, models = bytes_of(work.received), models_of(shared.models)
    model, n_rows, wanted = 0 if models.size == 1 else -1, -1, False
    seen_model = seen_parameters = False
    at = expect(buf, at, end, OPEN_OBJECT)
    while True:
        if at < 0:
            return -1
        key_at, key_end, at = read_key(buf, at, end)
        if at < 0:
            return -1
        if equals(buf, key_at, key_end, INPUTS) and n_rows < 0:
            if model < 0:
                model = look_ahead(shared, buf, at, end)
                if model < 0:
                    return -1
            at = call_read_rows(shared.read_rows, (shared, work, at, end, model, LISTS))
            if at == FAILED:
                return FAILED
            n_rows = work.result[3]
        elif equals(buf, key_at, key_end, PARAMETERS) and not seen_parameters:
            seen_parameters = True
            at, wanted = read_parameters(buf, at, end)
        elif equals(buf, key_at, key_end, MODEL_NAME) and not seen_model:
            seen_model = True
            name_at, name_end = read_string(buf, at, end)
            if name_at < 0:
                return -1
            found = find_model(shared, buf, name_at, name_end)
            if found < 0 or (n_rows >= 0 and found != model):
                return -1
            model, at = found, name_end + 1
        else:
            return -1
        if at < 0:
            return -1
        at = skip_space(buf, at, end)
        if at >= end:
            return -1
        if buf[at] == SHUT_OBJECT:
            break
        if buf[at] != COMMA:
            return -1
        at = skip_space(buf, at + 1, end)
    if skip_space(buf, at + 1, end) != end or n_rows < 0 or (wanted and not models[model].n_classes):
        return -1
    work.result[1], work.result[3] = model, wanted
    return n_rows


# --- answer -------------------------------------------------------------------------------------

@inner
def put_date(shared, out, at):
    """The value of the Date header, which Python makes once a second in the one of two places that is not read."""
    return put_from(out, at, shared.dates.at + shared.date * DATE_BYTES, DATE_BYTES)


def write_number(work, value, at):
    """A finite number at response[at:] → the place after it."""
    return format_double(value, bytes_of(work.response), at)


@inner
def write_rows(shared, work, at, numbers, n_rows, width, are_lists):
    """Rows of `width` numbers, each row a list or, of one number, that number; `numbers` is where they are."""
    out = bytes_of(work.response)
    for i in range(n_rows):
        if i:
            at = put(out, at, SEPARATOR)
        if are_lists:
            out[at] = OPEN
            at += 1
        for j in range(width):
            if j:
                at = put(out, at, SEPARATOR)
            at = call_write_number(shared.write_number, (work, load(numbers), at))
            numbers += 8
        if are_lists:
            out[at] = SHUT
            at += 1
    return at


@inner
def write_labels(shared, work, at, model, n_rows):
    """The labels that the predictions are the places of."""
    out, predictions, text = bytes_of(work.response), doubles_of(work.predictions), bytes_of(shared.text)
    labels = spans_of(shared.labels)
    for i in range(n_rows):
        if i:
            at = put(out, at, SEPARATOR)
        at = put_span(out, at, text, labels[model.first_label + np.intp(predictions[i])])
    return at


@inner
def write_head(shared, work, out, at, body_bytes, keep_alive):
    at = put(out, at, RESPONSE_START)
    at = put_date(shared, out, at)
    if not keep_alive:
        at = put(out, at, RESPONSE_CLOSE)
    at = put(out, at, RESPONSE_LENGTH)
    at = format_int(body_bytes, out, at)
    if work.request_id.length:
        at = put_span(out, put(out, at, RESPONSE_ID), bytes_of(work.received), work.request_id)
    at = put_span(out, at, bytes_of(shared.text), shared.cors_lines)
    return put(out, at, RESPONSE_BODY)


@inner
def count(shared, work, model, n_rows, latency_ns):
    """Count an answer; one with an id is left for the access log, which reads a thread's rows once a second."""
    counts, predictions = int64s_of(shared.counts), int64s_of(shared.predictions)
    first = work.thread * COUNTS
    counts[first + REQUESTS + work.route] += 1
    counts[first + LATENCY_NS] += latency_ns
    bucket = 0
    while bucket < BUCKET_BOUNDS_NS.size and latency_ns > BUCKET_BOUNDS_NS[bucket]:
        bucket += 1
    counts[first + BUCKETS + bucket] += 1
    predictions[work.thread * shared.models.length + model] += n_rows
    if work.request_id.length:
        n = counts[first + LOGGED]
        line = logged_of(shared.logged)[work.thread * LOG_ROWS + n % LOG_ROWS]
        line.route, line.latency_ns, line.id_bytes = work.route, latency_ns, work.request_id.length
        put_span(line.id, 0, bytes_of(work.received), work.request_id)
        counts[first + LOGGED] = n + 1


@inner
def has_room(shared, work, model, n_rows, wanted, out_at):
    """Whether the buffers take the answer to so many rows at response[out_at:], however long its numbers are."""
    columns = model.n_classes if wanted else 0
    row = model.prediction_room + NUMBER_ROOM * columns + 4
    around = HEAD_ROOM + shared.cors_lines.length + model.tail.length
    return (n_rows * model.n_outputs < work.predictions.length and n_rows * columns < work.probabilities.length
            and out_at + around + n_rows * row <= work.response.length)


@inner
def write_response(shared, work, m, n_rows, wanted, keep_alive, out_at, start_ns):
    """The response for the predictions in `work` at response[out_at:] → its end; counts the request."""
    model, out = models_of(shared.models)[m], bytes_of(work.response)
    # The head's size depends on the number of digits of the body's length: three is the usual, others move the body.
    guess = out_at + HEAD_BYTES + shared.cors_lines.length + (0 if keep_alive else RESPONSE_CLOSE.size) + 3
    if work.request_id.length:
        guess += RESPONSE_ID.size + work.request_id.length
    o = put(out, guess, PREDICTIONS)
    if model.n_labels:
        o = write_labels(shared, work, o, model, n_rows)
    else:
        o = write_rows(shared, work, o, work.predictions.at, n_rows, model.n_outputs, model.n_outputs > 1)
    if wanted:
        o = put(out, o, PROBABILITIES)
        o = write_rows(shared, work, o, work.probabilities.at, n_rows, model.n_classes, True)
    latency_ns = now_ns(CLOCK_MONOTONIC, work.clock) - start_ns
    if work.route == PREDICT:
        o = put_span(out, o, bytes_of(shared.text), model.tail)
        o = call_write_number(shared.write_number, (work, latency_ns // 100 / 1e4, o))
        out[o] = SHUT_OBJECT
        o += 1
    else:
        o = put(out, o, FRAME_END)
    body_bytes = o - guess
    digits, power = 1, 10
    while power <= body_bytes:
        digits, power = digits + 1, power * 10
    body_at = guess + digits - 3
    if body_at != guess:
        memmove(work.response.at + body_at, work.response.at + guess, body_bytes)
    write_head(shared, work, out, out_at, body_bytes, keep_alive)
    count(shared, work, m, n_rows, latency_ns)
    return body_at + body_bytes


def answer(shared, work, at, end, out_at):
    """Serve the request at received[at:end] → the outcome; in work.result: the place after the request, the end
    of the response, whether to keep the connection.

    The response begins at response[out_at]. With INCOMPLETE_BODY the place is where the request will end.
    Nothing is written or counted unless the outcome is ANSWERED.
    """
    result = work.result
    outcome = call_read(shared.read_head, (shared, work, at, end))
    if outcome != ANSWERED:
        return outcome
    start_ns = now_ns(CLOCK_MONOTONIC, work.clock)
    read = shared.read_body if work.route == PREDICT else shared.read_frame
    n_rows = call_read(read, (shared, work, result[1], result[0]))
    if n_rows <= 0:
        return FAILED if n_rows == 0 else SLOW
    m, wanted = result[1], result[3] != 0
    model = models_of(shared.models)[m]
    if not has_room(shared, work, model, n_rows, wanted, out_at):
        return SLOW
    if call_predict(model.predict, (model.state, work.rows.at, n_rows, work.predictions.at,
                                    work.probabilities.at if wanted else 0, work.scratch.at)):
        return SLOW
    result[1] = write_response(shared, work, m, n_rows, wanted, result[2] != 0, out_at, start_ns)
    return ANSWERED


HEAD_BYTES = RESPONSE_START.size + DATE_BYTES + RESPONSE_LENGTH.size + RESPONSE_BODY.size

# What is compiled apart: fields of SHARED with the address of the function of that name.
UNITS = {
    "answer": (SIGNATURE, answer), "read_head": (READ_SIGNATURE, read_head), "read_body": (READ_SIGNATURE, read_body),
    "read_frame": (READ_SIGNATURE, scoring_hotpath.read_frame),
    "read_rows": (hot_rows.READ_ROWS_SIGNATURE, hot_rows.read_rows),
    "read_values": (hot_rows.READ_VALUES_SIGNATURE, hot_rows.read_values),
    "read_numbers": (hot_rows.READ_NUMBERS_SIGNATURE, hot_rows.read_numbers),
    "write_number": (WRITE_NUMBER_SIGNATURE, write_number),
}


def compile_unit(name: str):
    """One of UNITS as a C function, compiled or from the cache."""
    signature, function = UNITS[name]
    return cfunc(signature)(function)
