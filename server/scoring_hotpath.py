"""The body of a request to /invocations in native code: data frames, or lists, for the default model.

The rule to keep: this reads only what it fully understands, and then as `scoring_api` does; everything else, and all
that MLflow would refuse, is for Python. What the model takes is in `layout.MODEL` and `layout.FEATURE`.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#local-inference-server-spec
"""

import numpy as np

from kernels.compiled import inner
from server.hot_rows import (
    COMMA, MINUS, NAMES, NINE, OPEN, OPEN_OBJECT, PLAIN, RECORDS, SHUT, SHUT_OBJECT, SPLIT, ZERO, bytes_of,
    call_read_rows, call_read_values, expect, models_of, read_key, skip_space, text_of,
)
from server.layout import BY_NAME, BY_PLACE, FOR_PYTHON
from server.memory import equals

DATAFRAME_SPLIT, DATAFRAME_RECORDS = text_of("dataframe_split"), text_of("dataframe_records")
INPUTS, INSTANCES = text_of("inputs"), text_of("instances")
COLUMNS, INDEX, DATA = text_of("columns"), text_of("index"), text_of("data")
MAX_INDEX_DIGITS = 18  # so many that every int is an int64


@inner
def read_index(buf, at, end):
    """A list of ints → (the place after it, how many, whether they are 0, 1, 2, …), or (-1, -1, False)."""
    at, n, in_order = expect(buf, at, end, OPEN), np.intp(0), True
    while 0 <= at < end:
        negative = buf[at] == MINUS
        first, value = at + negative, np.intp(0)
        at = first
        while at < end and ZERO <= buf[at] <= NINE and at - first < MAX_INDEX_DIGITS:
            value = value * 10 + buf[at] - ZERO
            at += 1
        if at == first or (buf[first] == ZERO and at - first > 1):
            break
        in_order &= value == n and not negative
        n, at = n + 1, skip_space(buf, at, end)
        if at < end and buf[at] == SHUT:
            return at + 1, n, in_order
        at = expect(buf, at, end, COMMA)
    return -1, -1, False


@inner
def read_columns(shared, work, model, at, end):
    """All columns' names, each once, in any order; their numbers, where they have no names → the place after them."""
    buf = bytes_of(work.received)
    if model.invocations == BY_NAME:
        at = expect(buf, at, end, OPEN)
        if at >= 0:
            at = call_read_values(shared.read_values, (shared, work, at, end, 0, 0, NAMES))
        return expect(buf, at, end, SHUT) if at > 0 else at
    at, n, in_order = read_index(buf, at, end)
    return at if in_order and n == model.n_features else -1


@inner
def read_split(shared, work, model, at, end):
    """`{"columns": […], "index": […], "data": […]}`, named columns before the data → the place after it."""
    buf, n_index, n_rows, has_columns = bytes_of(work.received), -1, -1, False
    at = expect(buf, at, end, OPEN_OBJECT)
    while at >= 0:
        key_at, key_end, at = read_key(buf, at, end)
        if at < 0:
            return -1
        if equals(buf, key_at, key_end, COLUMNS) and not has_columns:
            has_columns, at = True, read_columns(shared, work, model, at, end)
        elif equals(buf, key_at, key_end, INDEX) and n_index < 0:
            at, n_index, _ = read_index(buf, at, end)
        elif equals(buf, key_at, key_end, DATA) and n_rows < 0 and (has_columns or model.invocations == BY_PLACE):
            form = SPLIT if model.invocations == BY_NAME else PLAIN
            at = call_read_rows(shared.read_rows, (shared, work, at, end, 0, form))
            n_rows = work.result[3]
        else:
            return -1
        if at <= 0:
            return at
        at = skip_space(buf, at, end)
        if at >= end:
            return -1
        if buf[at] == SHUT_OBJECT:
            return at + 1 if n_rows > 0 and (n_index < 0 or n_index == n_rows) else -1
        at = expect(buf, at, end, COMMA)
    return -1


def read_frame(shared, work, at, end):
    """The request object of /invocations at received[at:end]; gives what `hotpath.read_body` gives."""
    buf, model = bytes_of(work.received), models_of(shared.models)[0]
    at = expect(buf, at, end, OPEN_OBJECT)
    if at < 0 or model.invocations == FOR_PYTHON:
        return -1
    key_at, key_end, at = read_key(buf, at, end)
    if at < 0:
        return -1
    if equals(buf, key_at, key_end, DATAFRAME_SPLIT):
        at = read_split(shared, work, model, at, end)
    elif equals(buf, key_at, key_end, DATAFRAME_RECORDS) and model.invocations == BY_NAME:
        at = call_read_rows(shared.read_rows, (shared, work, at, end, 0, RECORDS))
    elif ((equals(buf, key_at, key_end, INPUTS) or equals(buf, key_at, key_end, INSTANCES))
          and model.invocations == BY_PLACE):
        at = call_read_rows(shared.read_rows, (shared, work, at, end, 0, PLAIN))
    else:
        return -1
    if at <= 0:
        return at
    if expect(buf, at, end, SHUT_OBJECT) != end:
        return -1
    n_rows = work.result[3]
    work.result[1], work.result[3] = 0, False
    return n_rows
