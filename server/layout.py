"""What the native threads see: plain arrays, filled by Python before the threads start.

The rule to keep: a row of `connections` is written only by the thread that holds that connection; a
row of `counts` only by its own thread; `gauges` only through `libc.atomic_add`; all else never changes
while native threads run, but for `draining`, which goes from 0 to 1 once, and `dates` (see `Shared.set_date`).
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

# Where an array or a text is: an address and a number of elements, or an offset in `text` and a number of bytes.
SPAN = np.dtype([("at", np.int64), ("length", np.int64)])

# A connection's row is found by its descriptor number. `state` says who holds it.
FREE, WATCHED, OWNED, LINGERING = range(4)  # nobody; its event loop; a worker thread; waits for the client's close
CONNECTION = np.dtype([
    ("state", np.int32),
    ("loop", np.int32),  # index of the event loop that watches it
    ("phase", np.int32),  # IDLE, or which part of a request is incomplete
    ("deadline_ns", np.int64),  # of the phase, on the monotonic clock
    ("saved", np.int64),  # address of received bytes that wait, from malloc; 0 = none
    ("saved_bytes", np.int64),
    ("unsent", np.int64),  # address of response bytes that the socket did not take; 0 = none
    ("unsent_bytes", np.int64),
])

IDLE, HEAD, BODY, CLOSING, TURNED_AWAY = range(5)  # phases; no more than its unsent bytes; over max_connections

LOOP = np.dtype([("epoll", np.int32), ("wake", np.int32),  # wake: eventfd that makes the loop look around
                 ("sweep_ns", np.int64)])  # when it will look at the deadlines of its connections

# What became of the bytes at the front of a buffer. FAILED (a bug: numba's bounds check) is served as SLOW, for Python.
FAILED, ANSWERED, INCOMPLETE_HEAD, INCOMPLETE_BODY, SLOW = range(5)

ROUTES = "/v1/predict", "/invocations"  # that the hot path answers
PREDICT, INVOCATIONS = range(2)

FOR_PYTHON, BY_NAME, BY_PLACE = range(3)
MODEL = np.dtype([
    ("name", SPAN), ("tail", SPAN),  # tail: the response's text between the predictions and the latency
    ("predict", np.int64), ("state", np.int64),  # addresses: kernels.native.NativeModel; 0 = only Python can
    ("n_features", np.int64), ("n_outputs", np.int64), ("n_classes", np.int64),
    ("takes_missing", np.int32), ("takes_strings", np.int32),
    ("first_label", np.int64), ("n_labels", np.int64),  # rows of `labels`; 0 labels = predictions are numbers
    ("prediction_room", np.int64),  # response bytes for a row's prediction and the comma
    ("first_feature", np.int64),  # row of `features` and of a thread's `order`
    ("first_name", np.int64), ("n_names", np.int64),  # rows of `words`; 0 names = rows are no objects
    ("invocations", np.int32),  # FOR_PYTHON, or what its columns are known by there
    ("first_column", np.int64), ("n_columns", np.int64),  # rows of `words`: their names there
    ("unknown", np.float64),  # what stands for a string that is none of a feature's `words`
])

# A string as JSON has it, the quotes included, and what it stands for: which feature, or which category.
WORD = np.dtype([("text", SPAN), ("place", np.int64)])

FEATURE = np.dtype([("takes_strings", np.int32), ("type", np.int32), ("first_word", np.int64), ("n_words", np.int64)])
DOUBLE, FLOAT, LONG, INTEGER = range(4)  # types of the columns of /invocations that hold numbers
COLUMN_TYPES = {"double": DOUBLE, "float": FLOAT, "long": LONG, "integer": INTEGER}

# A whole response for what no thread of Python sees; its Date is filled in where it says.
REFUSAL = np.dtype([("text", SPAN), ("date_at", np.int64)])
OVERLOADED, TIMED_OUT = range(2)  # rows of `refusals`

# A request with an X-Request-Id, for the access log. Each native thread has LOG_ROWS of them, used in turn.
MAX_REQUEST_ID_BYTES = 128
LOG_ROWS = 256
LOG_LINE = np.dtype([("route", np.int64), ("latency_ns", np.int64), ("id_bytes", np.int64),
                     ("id", np.uint8, (MAX_REQUEST_ID_BYTES,))])

# Columns of `counts`, one row a native thread.
LATENCY_NS, EVENTS, LOGGED, REQUESTS = range(4)  # LOGGED: lines written to `logged`; REQUESTS: one a route
BUCKETS = REQUESTS + len(ROUTES)
BUCKET_BOUNDS_NS = np.array([
    5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000, 500_000_000,
    1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000], np.int64)
COUNTS = 32  # columns: BUCKETS + 20 bounds + the one without a bound, rounded up to whole cache lines
assert BUCKETS + len(BUCKET_BOUNDS_NS) + 1 <= COUNTS

# Places in `gauges`; each event loop's number of connections follows.
CONNECTIONS, IDLE_WORKERS, REFUSED, TIMEOUTS, LOOP_LOADS = range(5)


# What all native threads share. The spans stand for numpy arrays of `Shared`, named alike.
SHARED = np.dtype([
    ("listener", np.int32),
    ("queue_in", np.int32), ("queue_out", np.int32),  # pipe of descriptors on the way to a worker
    ("any_host", np.int32),
    ("origin_matters", np.int32),  # CORS is on for one origin: requests with an Origin are not for the hot path
    ("draining", np.int32),
    ("date", np.int32),  # which of the two `dates` holds
    # Addresses of the compiled functions of `hotpath.UNITS`.
    ("answer", np.int64), ("read_head", np.int64), ("read_body", np.int64), ("read_frame", np.int64),
    ("read_rows", np.int64), ("read_values", np.int64), ("read_numbers", np.int64), ("write_number", np.int64),
    ("max_connections", np.int64), ("max_body_bytes", np.int64),
    ("idle_ns", np.int64),  # keep-alive without a request
    ("head_ns", np.int64),  # from the first byte of a head to its end
    ("body_ns", np.int64),  # from the end of the head to the end of the body
    ("send_ns", np.int64),  # a client must take an answer within this time
    ("linger_ns", np.int64),  # how long a refused client has to take its answer
    ("cors_lines", SPAN),  # in text: header lines of every answer, each after a CRLF
    ("connections", SPAN), ("loops", SPAN), ("gauges", SPAN), ("counts", SPAN), ("predictions", SPAN),
    ("models", SPAN), ("labels", SPAN), ("features", SPAN), ("words", SPAN), ("hosts", SPAN), ("keys", SPAN),
    ("text", SPAN), ("refusals", SPAN), ("transitions", SPAN), ("dates", SPAN), ("logged", SPAN),
])

# One thread's own: buffers, and small things. A request that fits `received` fits `rows`; that it fits those of the
# answer is asked before anything is computed.
WORK = np.dtype([
    ("received", SPAN), ("response", SPAN),  # uint8
    ("rows", SPAN),  # float64: the inputs, row after row
    ("predictions", SPAN), ("probabilities", SPAN), ("scratch", SPAN),  # float64; the last is the kernel's own
    ("order", SPAN),  # int64, (features of all models): which name stood in each place of the last row of objects
    ("seen", SPAN),  # int64, (features of one model): the last row that had the feature, by `n_rows`
    ("lines", SPAN),  # int64: where the head's field lines start
    ("events", SPAN),  # int32: struct epoll_event
    ("route", np.int64),  # of the request: PREDICT or INVOCATIONS
    ("thread", np.int64),  # row of `counts` and `predictions`, and which LOG_ROWS of `logged`
    ("n_rows", np.int64),  # rows of objects read so far, of all requests
    ("request_id", SPAN),  # in received; of length 0 where the request has none
    ("clock", np.int64, (2,)),  # struct timespec
    ("interest", np.int32, (4,)),  # one struct epoll_event
    ("result", np.int64, (4,)),  # what a native function gives beside its return value
])


class Packed:
    """A record of a dtype above whose spans point to arrays that live as long as this object."""

    def __init__(self, dtype: np.dtype, arrays: dict[str, np.ndarray], values: dict[str, Any]):
        self.record = np.zeros(1, dtype)
        self.address = self.record.ctypes.data
        for name, array in arrays.items():
            assert array.flags.c_contiguous
            self.record[0][name] = (array.ctypes.data, array.size)
            setattr(self, name, array)
        for name, value in values.items():
            self.record[0][name] = value


class Shared(Packed):
    connections: np.ndarray  # (highest descriptor + 1,) CONNECTION
    loops: np.ndarray  # (n_loops,) LOOP
    gauges: np.ndarray  # (LOOP_LOADS + n_loops,) int64
    counts: np.ndarray  # (n_threads, COUNTS) int64
    predictions: np.ndarray  # (n_threads, n_models) int64: rows predicted
    models: np.ndarray  # (n_models,) MODEL
    labels: np.ndarray  # (n_labels,) SPAN in text
    features: np.ndarray  # (features of all models,) FEATURE
    words: np.ndarray  # (n_words,) WORD; each model's names, each feature's categories by length, then bytes
    hosts: np.ndarray  # (n_hosts,) SPAN in text: lower-case names that a Host may give
    keys: np.ndarray  # (n_keys,) SPAN in text: API keys; none = no authorization
    text: np.ndarray  # (n,) uint8
    refusals: np.ndarray  # (2,) REFUSAL
    transitions: np.ndarray  # (n_states, 256) uint8: `http1.TRANSITIONS`
    dates: np.ndarray  # (2, DATE_BYTES) uint8: values of the Date header
    logged: np.ndarray  # (n_threads * LOG_ROWS,) LOG_LINE

    def set_date(self, value: str) -> None:
        """Make `value` the date of answers: written beside the one in use, which whoever copies it now keeps."""
        other = 1 - int(self.record[0]["date"])
        self.dates[other] = np.frombuffer(value.encode(), np.uint8)
        self.record[0]["date"] = other


class Work(Packed):
    received: np.ndarray
    response: np.ndarray
    result: np.ndarray  # (4,) int64: a view of the record's field

    def __init__(self, shared: Shared, thread: int, received_bytes: int, scratch_doubles: int):
        """Buffers for requests of up to `received_bytes`; pages that are not touched cost no memory."""
        def most(size_of_row) -> int:
            worst = max(received_bytes // (2 * int(m["n_features"]) + 1) * size_of_row(m) for m in shared.models)
            return min(worst, MOST_ANSWER_BYTES + MOST_GROWTH * received_bytes)
        n_features = shared.models["n_features"]
        super().__init__(WORK, {
            "received": np.empty(received_bytes, np.uint8),
            "response": np.empty(most(lambda m: int(m["prediction_room"]) + NUMBER_ROOM * int(m["n_classes"]) + 4)
                                 + FLUSH_BYTES + HEAD_ROOM + int(shared.models["tail"]["length"].max())
                                 + int(shared.record[0]["cors_lines"]["length"]), np.uint8),
            "rows": np.empty(received_bytes // 2 + 1, np.float64),
            "predictions": np.empty(most(lambda m: 8 * int(m["n_outputs"])) // 8 + 1, np.float64),
            "probabilities": np.empty(most(lambda m: 8 * int(m["n_classes"])) // 8 + 1, np.float64),
            "scratch": np.empty(scratch_doubles, np.float64),
            "order": np.zeros(n_features.sum(), np.int64),
            "seen": np.zeros(n_features.max(), np.int64),
            "lines": np.empty(MAX_LINES, np.int64),
            "events": np.empty(MAX_EVENTS * 4, np.int32),
        }, {"thread": thread})
        self.result = self.record[0]["result"]


DATE_BYTES = 29
MAX_LINES = 128
MAX_EVENTS = 64
FLUSH_BYTES = 16384  # answers to pipelined requests are sent together up to about this size
HEAD_ROOM = 1024  # response bytes around the predictions, the model's tail and the lines of CORS aside
NUMBER_ROOM = 27  # a double's text and ", "
# Few rows can make a long answer where there are thousands of classes, or labels are long. Beyond so many bytes, and
# times the size of the request, it is for Python.
MOST_ANSWER_BYTES, MOST_GROWTH = 1 << 22, 64


class Text:
    """Bytes gathered into one array, each with its SPAN."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def add(self, text: bytes) -> tuple[int, int]:
        self.bytes += text
        return len(self.bytes) - len(text), len(text)

    def spans(self, texts: Sequence[bytes]) -> np.ndarray:
        return np.array([self.add(text) for text in texts], SPAN)

    def words(self, places: dict[str, int]) -> list[tuple]:
        """A WORD for each form in which a string is written: as it is, and in ASCII as Python's `json` does."""
        forms = {form.encode(): place for ensure_ascii in (True, False)
                 for word, place in places.items() for form in [json.dumps(word, ensure_ascii=ensure_ascii)]}
        return [(self.add(form), forms[form]) for form in sorted(forms, key=lambda form: (len(form), form))]

    def array(self) -> np.ndarray:
        return np.frombuffer(bytes(self.bytes) or b"\0", np.uint8)
