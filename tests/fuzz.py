"""`python -m tests.fuzz`: mutated requests against the hot path, and a box in which it runs beside Python's.

The rule to keep: what runs here is the compiled function that the event loops call, on buffers laid out by
the server's own code; only the sockets are missing, and a share of the requests goes over real ones too.

Each request is given whole, and then every prefix of it, as an event loop that receives it in pieces would
see it. A finding is: an index out of bounds (NUMBA_BOUNDSCHECK=1), an outcome that depends on bytes past the
end of the request, an answer to half a request, one that differs from the whole request's, a byte changed
that is not the hot path's to change, a request that is not counted, and a response other than the Python
path's.
"""

import argparse
import ctypes
import importlib.util
import itertools
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numba
import numpy as np
from numba.core import config

import kernels
from kernels.compiled import OPTIONS, inner
from server import layout, models
from server.__main__ import LOOPBACK
from server.access_log import AccessLog
from server.application import Application
from server.connection import Connection, Gone, Limits
from server.event_loop import call_answer
from server.hotpath import ANSWERED, FAILED, INCOMPLETE_BODY, INCOMPLETE_HEAD, SLOW, bytes_of
from server.metrics import Metrics
from server.native_listener import LOOP_BYTES, NativeListener
from tests import serving
from tests.server.stand_in import STAND_INS, Frame, StandIn, frames, stand_ins

CLIENT = ("127.0.0.1", 1)
ANSWER_TYPE = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)  # `hotpath.answer`
GUARD_BYTES, GUARD = 4096, 0xA5  # around every buffer that the hot path writes
GUARDED = ("received", "response", "rows", "predictions", "probabilities", "scratch", "order", "seen", "lines")
VARYING = re.compile(rb'(?:(?<=\r\nDate: )[^\r]{29}|(?<=\r\nContent-Length: )\d+|(?<="latency_ms": )[^}]+)')


# --- both paths in a box ------------------------------------------------------------------------

class Wire:
    """The server's end of a connection whose client sends `data` and no more; `sent`: an item a response."""

    def __init__(self, data: bytes = b""):
        self.unread, self.sent = data, []

    def recv(self, size: int) -> bytes:
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def send(self, data: bytes) -> int:
        self.sent.append(bytes(data))
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def shutdown(self, how: int) -> None:
        """There is nobody to tell."""


class Lent(Connection):
    """A connection that Python holds for one request, as `native_listener.HeldConnection` does."""

    def __init__(self, server, data: bytes):
        self.server, self.request, self.client_address = server, Wire(), CLIENT
        self.setup()
        self.received += data

    def serve(self) -> list[bytes]:
        """The responses to the first request; what follows it stays in `received`."""
        try:
            self.handle_one_request()
        except Gone:
            self.close_connection = True
        return self.request.sent


class Answer(NamedTuple):
    """What the hot path made of the bytes at the front."""

    outcome: int
    response: bytes
    place: int  # where the request ends; INCOMPLETE_BODY: will end
    keep_alive: bool


class Paths:
    """The hot path and the Python path of one server without its sockets and threads.

    The Python path computes with numpy, as --no-native does: equal answers mean equal bits of two kernels.
    """

    def __init__(self, files: Sequence[Path] = (), received_bytes: int = LOOP_BYTES, *,
                 first: Frame | None = None, others: Sequence[StandIn] = (), **options):
        """`others` are models beside those of the files; `first` is the default one, where it is given."""
        options = {"allowed_hosts": frozenset(LOOPBACK)} | options

        def application(native: bool) -> Application:
            by_name = ({first.model.name: first.model} if first else {}) | models.load(files, native).by_name
            served = models.ServedModels(by_name | {model.name: model for model in others},
                                         schemas={first.model.name: first.schema} if first else {})
            return Application(served, Metrics(list(served.by_name)), AccessLog(stream=SimpleNamespace(
                write=lambda line: None, flush=lambda: None)), **options)
        self.listener = NativeListener("127.0.0.1", 0, application(native=True), Limits())
        self.listener.prepare(lambda step: None)
        self.listener.tick()
        self.shared = self.listener.shared
        self.fit(received_bytes)
        self._answer = ANSWER_TYPE(self.listener.native.answer_address)
        self._python = SimpleNamespace(application=application(native=False), limits=Limits(), draining=False)

    def __enter__(self) -> "Paths":
        return self

    def __exit__(self, *_) -> None:
        self.listener.socket.close()

    def fit(self, received_bytes: int) -> None:
        """Take buffers, with guards around them, for requests of up to so many bytes."""
        self.work = self.listener._work(0, received_bytes)
        self._guards = guard(self.work)

    def hot(self, data: bytes, at: int = 0, out_at: int = 0) -> Answer:
        """The hot path's answer to data[at:], its response written at `out_at`."""
        self.work.received[:len(data)] = np.frombuffer(data, np.uint8)
        outcome = self._answer(self.shared.address, self.work.address, at, len(data), out_at)
        place, end, keep_alive = self.work.result[:3].tolist()
        response = self.work.response[out_at:end].tobytes() if outcome == ANSWERED else b""
        return Answer(outcome, response, place, bool(keep_alive))

    def python(self, data: bytes) -> list[bytes]:
        """The Python path's responses to everything in `data`."""
        wire = Wire(data)
        Connection(wire, CLIENT, self._python)
        return wire.sent

    def mixed(self, data: bytes) -> tuple[list[bytes], int]:
        """The responses as event loop and workers take turns, and how many are the hot path's."""
        sent, n_hot = [], 0
        while data:
            answer = self.hot(data)
            if answer.outcome == ANSWERED:
                sent.append(answer.response)
                n_hot, data, keep_alive = n_hot + 1, data[answer.place:], answer.keep_alive
            elif answer.outcome == SLOW:
                lent = Lent(self._python, data)
                sent += lent.serve()
                data, keep_alive = bytes(lent.received), not lent.close_connection
            else:
                break
            if not keep_alive:
                break
        return sent, n_hot

    def guards_are_intact(self) -> bool:
        """Whether nothing was written around the buffers so far."""
        return all((edge == GUARD).all() for edge in self._guards)


def guard(work: layout.Work) -> list[np.ndarray]:
    """Move the buffers of `work` to where GUARD_BYTES of known content surround each → these edges."""
    edges = []
    for name in GUARDED:
        array = getattr(work, name)
        block = np.full(array.nbytes + 2 * GUARD_BYTES, GUARD, np.uint8)
        moved = block[GUARD_BYTES:-GUARD_BYTES].view(array.dtype)
        work.record[0][name] = (moved.ctypes.data, moved.size)
        setattr(work, name, moved)
        edges += [block[:GUARD_BYTES], block[-GUARD_BYTES:]]
    return edges


def comparable(response: bytes) -> bytes:
    """A response without what may differ in two answers: date, latency, and the length, which is checked."""
    head, _, body = response.partition(b"\r\n\r\n")
    if body:
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        assert length is not None and int(length[1]) == len(body), response
        assert b"application/json" not in head or isinstance(json.loads(body), dict), response
    return VARYING.sub(b"", response)


def example_models(folder: Path) -> list[Path]:
    """Small model files: string labels, integer labels, missing values, regressions. Needs gguf.

    What "echo" predicts for a number is that number.
    """
    from kernels.export import save_dense
    rng = np.random.default_rng(0)

    def layers(*widths: int) -> list:
        return [(rng.normal(size=(n_out, n_in)), rng.normal(size=n_out))
                for n_in, n_out in itertools.pairwise(widths)]
    save_dense(folder / "labels.gguf", layers(3, 1), ["logistic"], name="labels", version="1.0.0",
               task="classification", classes=["no", 'a "quoted" ü'], tensor_type="f32")
    save_dense(folder / "digits.gguf", layers(4, 8, 10), ["tanh", "softmax"], name="digits", version="2",
               task="classification", classes=list(range(-5, 5)), tensor_type="q8_0")
    save_dense(folder / "missing.gguf", layers(2, 1), ["logistic"], name="missing", version="0.1",
               task="classification", classes=["x", "y"], fill_values=[0.5, -2.0],
               input_offset=[1.0, 2.0], input_scale=[0.1, 3.0])
    save_dense(folder / "regression.gguf", layers(5, 16, 4, 1), ["relu", "logistic", "identity"],
               name="regression", version="3", task="regression", tensor_type="q4_0")
    save_dense(folder / "echo.gguf", [([[1.0]], [0.0])], ["identity"], name="echo", version="1",
               task="regression", tensor_type="f32")
    return [folder / f"{name}.gguf" for name in ("labels", "digits", "missing", "regression", "echo")]


# --- requests -----------------------------------------------------------------------------------

ROW = b'{"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]]}'


def predict_request(body: bytes = ROW, *fields: bytes, host: bytes = b"localhost:8080") -> bytes:
    """A predict request as curl sends it, with more header lines before the length."""
    lines = (b"POST /v1/predict HTTP/1.1", b"Host: " + host, *fields, b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def invocations_request(body: bytes, *fields: bytes, host: bytes = b"localhost:8080") -> bytes:
    """`predict_request` for MLflow's protocol."""
    return predict_request(body, *fields, host=host).replace(b" /v1/predict ", b" /invocations ", 1)


HOT_BODIES = [
    ROW, b'{"inputs":[[1,2,3,4,5],[-1e-3,-0.0,12345.678e2,5e-324,1.7976931348623157e300]]}',
    b'{"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]], "parameters": {"return_probabilities": true}}',
    b' {\t"parameters" :\r\n{ "return_probabilities" : false } , "model" : "fraud-detector" , "inputs"'
    b' : [ [ 1 , 0 , -0 , 1E5 , 1.5e+3 ] ] } ',
    b'{"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]], "parameters": {}}',
    b'{"inputs": [' + b", ".join([b"[3.141592653589793,-2.71828182845904,1e-17,123456789012345678,0.1]"] * 20)
    + b"]}",
]
HOT_FRAMES = [  # for the embedded model, whose features have no names
    b'{"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5], [-1, 0, -0, 1e5, -0.0]]}', b'{"instances":[[1,2,3,4,5]]}',
    b'{"dataframe_split": {"index": [0, 7], "columns": [0, 1, 2, 3, 4], "data": [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]}}',
    b' { "dataframe_split"\t: {"data":\r\n[ [1e-3,2,3,4,5]] , "index" :[ -12345] } }\n',
]
HOT_REQUESTS = [predict_request(body) for body in HOT_BODIES] + [invocations_request(body) for body in HOT_FRAMES] + [
    predict_request(ROW, b"Content-Type: application/json"),
    predict_request(ROW, b"content-type:APPLICATION/json ;\tcharset=UTF-8", b"CONNECTION: Keep-Alive"),
    predict_request(ROW, b"Content-Type: application/json; charset=utf-8"),
    predict_request(ROW, b"Connection: close", host=b"127.0.0.1"),
    predict_request(ROW, b"Accept: */*", b"User-Agent: curl/8.5.0", b"X-Custom: \xff", b"Accept: text/html"),
    predict_request(ROW, b"Origin: http://example.com", b"Authorization: Bearer whatever", host=b"LOCALHOST"),
    predict_request(ROW, b"X-Request-Id: 01HQ-7", b"Connection: close"),
    invocations_request(HOT_FRAMES[0], b"Content-Type: application/json", b"X-Request-Id: 01HQ-8"),
]
OTHER_REQUESTS = [
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HEAD /health HTTP/1.0\r\n\r\n",
    b"GET /nothing?x=1 HTTP/1.1\r\nHost: [::1]:80\r\nX-Request-Id: abc\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    predict_request().replace(b" /v1", b" http://localhost/v1", 1),
    predict_request(ROW, b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(ROW), ROW),
    b"\r\n" + predict_request(), predict_request(ROW, b"Expect: 100-continue"),
    predict_request(ROW, b"X-Request-Id: not one word"), predict_request(b""),
    predict_request(ROW, b"X-Request-Id: " + b"7" * 500),
    predict_request(b'{"inputs": [[1, 2, 3, 4]]}'), invocations_request(b'{"inputs": [[1, 2, 3, 4]]}'),
    invocations_request(b'{"dataframe_records": [{"a": 1}]}'),
    invocations_request(b"a,b\n1,2\n", b"Content-Type: text/csv"),
    predict_request(b'{"inputs": [[1, 2, 3, 4, null]], "model": "nobody"}'),
    predict_request(b'{"inputs": [[1, 2], [3, 4]], "inputs": [[1, 2, 3, 4, 5]], "extra": "\\u0041"}'),
]
MODEL_BODIES = [
    b'{"model": "labels", "inputs": [[1, 2, 3], [4, 5, -6]], "parameters": {"return_probabilities": true}}',
    b'{"model": "digits", "inputs": [[0.5, -1.5, 2, 1e2]], "parameters": {"return_probabilities": true}}',
    b'{"model": "missing", "inputs": [[null, 1], [2, null], [null,null]]}',
    b'{"inputs": [[1, 2, 3, 4, 5]], "model": "regression"}',
    b'{"inputs": [[0.1], [2], [1234.5], [-6e-7]], "model": "echo"}',
]
NUMBERS = [
    b"0", b"-0", b"-0.0", b"0e0", b"1E-5", b"1e5", b"1e-400", b"-1.5e+3", b"12345678", b"0.12345678",
    b"0.123456789", b"4.9e-324", b"2.4703282292062327e-324", b"2.4703282292062328e-324",
    b"2.2250738585072011e-308", b"1e23", b"9007199254740993", b"18446744073709551615",
    b"18446744073709551616", b"9" * 19, b"9" * 20, b"9" * 40, b"0." + b"3" * 60, b"0." + b"0" * 330 + b"1",
    b"1e-99999999999999999999", b"9007199254740992.99999999999999999999", b"1.7976931348623157e308",
    b"1.00000000000000011102230246251565404236316680908203125", b"1.7976931348623158e308", b"-1e300",
    b"1" + b"0" * 300,
]
NO_NUMBERS = [  # no JSON numbers, no doubles, or not one number
    b"00", b"01", b"-", b"--1", b"+1", b".5", b"5.", b"1e", b"1e+", b"1e400", b"-1e400", b"0x10", b"1_0",
    b"1" + b"0" * 400, b"1.7976931348623159e308", b"1e999999999999999999999", b"NaN", b"Infinity",
    b"-Infinity", b"nan", b"true", b"null", b"nul", b'"1"', b"[1]", b"[]", b"{}", b"",
    b" ", b"1 2", b"1,2", b"1,",
    b"1.5e3.2", b"1e5e5", b"\xd9\xa1",
]
STRINGS = [  # in the place of a category or a name; some are neither JSON nor UTF-8
    b'"red"', b'"green"', b'""', b'"gr\xc3\xbcn"', b'"gr\\u00fcn"', b'"gr\\u00FCn"', b'"DE"', b'"de"', b'"?"',
    b'"\x7f"', b'"\\n"', b'"\xf0\x9f\x99\x82"', b'"\\ud83d\\ude42"', b'"\\ud83d"', b'"\xed\xa0\xbd"', b'"\xc0\xaf"',
    b'"\xe2\x82"', b'"\xf4\x90\x80\x80"', b'"\xff"', b'"a\tb"', b'"\\q"', b'"\\"', b'"red', b"'red'",
    b'"r\\u0065d"', b'"/"', b'"\\/"', b'"' + b"long" * 300 + b'"', b"null", b"1", b"true", b'"null"', b'"1"',
]
TOKENS = NUMBERS + NO_NUMBERS + STRINGS + [
    b'"amount": 1', b'"colour": ', b'"columns": ["count"], ', b'"index": [0], ', b'"params": {}, ', b'"data": [[1]], ',
    b"dataframe_split", b"dataframe_records", b"POST /invocations HTTP/1.1\r\n",
    b'{"', b'"}', b'": ', b'", "', b'}, {', b'"model": "shop", ', b"null, ",
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"\"", b"\\", b"[", b"]", b"{", b"}",
    b"\xff", b"\xc3\xbc", b"\xef\xbb\xbf", b"\r\n\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n", b"close", b"Expect: 100-continue\r\n",
    b"Connection: close\r\n", b"\r\n ", b"HTTP/1.0", b"inputs", b'"inputs": ', b'"model": "x", ',
    b'"parameters": {}, ', b'{"return_probabilities": true}', b"\\u0069", b"POST /v1/predict HTTP/1.1\r\n",
    b"X" * 70, b"a:\r\n" * 130,
]
STRING = re.compile(rb'"(?:[^"\\\\]|\\\\.)*"')
LENGTH = re.compile(rb"(?i)(content-length: *)(\d+)")
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
MOST_BYTES = 3072  # of a mutated request


# --- rows for models ----------------------------------------------------------------------------

def utf_16(text: str) -> list[int]:
    return np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2").tolist()


FORMS: list[Callable[[str], str]] = [  # of a string in JSON: the last two are for Python
    json.dumps, lambda text: json.dumps(text, ensure_ascii=False),
    lambda text: '"%s"' % "".join(f"\\u{unit:04X}" for unit in utf_16(text)),
    lambda text: json.dumps(text, ensure_ascii=False).replace("/", "\\/").replace("e", "\\u0065"),
]
UNKNOWN = (  # the last two only with escapes
    "rot", "verde", "", "rødt", "赤", "🟥", "re", "redd", "Red", "r\u00e9d", "z1", " red", "\x7f",
    "a\\b", "\ud800")


def form(rng: random.Random, text: str, unusual: float) -> str:
    return (rng.choice(FORMS[2:]) if rng.random() < unusual else rng.choice(FORMS[:2]))(text)


def value_for(rng: random.Random, model: StandIn, i: int, oddity: float) -> str:
    """What stands for a feature in a row: what it should be, or, as often as `oddity` says, perhaps not."""
    odd, categories = rng.random() < oddity, (model.signature.categories or {i: None})[i]
    if rng.random() < 0.1 and (model.takes_missing_in[i] or odd):
        return "null"
    if (categories is None) != (odd and rng.random() < 0.5):
        usual = b"%d" % rng.randrange(-9, 9), b"%f" % rng.gauss(0, 9)
        return rng.choice(NUMBERS if rng.random() < 1 / model.n_features else usual).decode()
    unusual = 0.2 / model.n_features
    if not categories or rng.random() < 0.2:
        unheard = rng.choice(UNKNOWN if rng.random() < unusual else UNKNOWN[:-2])
        return form(rng, unheard, unusual) if rng.random() < unusual else json.dumps(unheard, ensure_ascii=False)
    return form(rng, rng.choice(categories), unusual)


def rows_for(rng: random.Random, model: StandIn, oddity: float) -> str:
    """Some rows for a model as JSON: lists, or objects in the model's order, another, or a new one each."""
    n, names = model.n_features, model.signature.feature_names
    as_objects, order, rows = names is not None and rng.random() < 0.7, list(range(n)), []
    steady = rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not steady and rng.random() < 0.5:
            rng.shuffle(order)
        members = [value_for(rng, model, i, oddity) for i in range(n)]
        if as_objects:
            members = [f"{form(rng, names[i], 0.1 / n)}:{members[i]}" for i in order]
        if rng.random() < oddity:  # one too few, too many, twice, or of another kind
            others = rng.choices([*members, "1", '"a":1', "[1]", "{}"], k=rng.randrange(3))
            members[rng.randrange(n):rng.randrange(n + 1)] = others
        kinds = "{%s}", "[%s]"
        rows.append(kinds[as_objects == (rng.random() < oddity)] % ",".join(members))
    return f"[{','.join(rows)}]"


def body_for(rng: random.Random, model: StandIn) -> bytes:
    """A request body for a model, most of it right."""
    oddity = rng.choice((0, 0, 0, 0.02, 0.2))
    members = [f'"model":"{model.name}"', f'"inputs":{rows_for(rng, model, oddity)}']
    if rng.random() < (0.6 if model.n_classes else oddity):
        members.append('"parameters":{"return_probabilities":%s}' % rng.choice(("true", "true", "false")))
    rng.shuffle(members)
    return spaced(rng, "{%s}" % ",".join(members))


def spaced(rng: random.Random, text: str) -> bytes:
    return text.replace(",", rng.choice((",", ", ", " ,\r\n"))).encode("utf-8", "surrogatepass")


# --- frames for models --------------------------------------------------------------------------

NO_FRAMES = [  # what is right JSON, but not the one frame that a model takes
    '{}', '[]', '{"dataframe_split":{}}', '{"dataframe_split":[]}', '{"dataframe_records":[]}', '{"inputs":[]}',
    '{"dataframe_records":[{}]}', '{"dataframe_split":{"columns":[],"data":[]}}', '{"inputs":[1,2]}', '{"inputs":{}}',
    '{"dataframe_split":{"columns":["a"],"data":[[1]]},"dataframe_records":[{"a":1}]}', '{"instances":null}',
]


def frame_for(rng: random.Random, frame: Frame) -> bytes:
    """A body for /invocations, most of it right: any form that the schema takes, columns in any order."""
    schema, oddity = frame.schema, rng.choice((0, 0, 0, 0.02, 0.2))
    n, known = frame.model.n_features, frame.model.signature.feature_names or ()
    if rng.random() < oddity / 4:
        return spaced(rng, rng.choice(NO_FRAMES))
    if schema.columns is not None:
        names, types = [one.name for one in schema.columns], [one.type for one in schema.columns]
    else:
        names, types = [None] * n, [schema.tensors[0].dtype.name if schema.tensors else "double"] * n
    by_name = schema.flavor != "lightgbm" and set(names) == set(known)
    order, n_rows = list(range(len(names))), rng.choice((1, 1, 1, 2, 5))
    if rng.random() < 0.5 and None not in names:
        rng.shuffle(order)

    def value(j: int) -> str:
        if types[j] in ("long", "integer", "int64", "int32") and rng.random() >= oddity:
            return "%d" % rng.randrange(-99, 99 if rng.random() < 0.9 else 1 << 33)
        return value_for(rng, frame.model, known.index(names[j]) if by_name else min(j, n - 1), oddity)
    rows = [[value(j) for j in order] for _ in range(n_rows)]
    keys = [str(k) if names[j] is None else form(rng, names[j], 0.1 / n) for k, j in enumerate(order)]
    if rng.random() < oddity:  # one too few, too many, or twice
        at, more = rng.randrange(len(keys)), rng.randrange(3)
        keys[at:at + 1] = rng.choices([*keys, '"other"', "7"], k=more)
        for row in rows[:rng.choice((1, n_rows))]:
            row[at:at + 1] = rng.choices([*row, "1", "[1]"], k=more)
    lists = "[%s]" % ",".join("[%s]" % ",".join(row) for row in rows)
    kind = rng.choice(("split", "split", "records") if None not in names else ("split", "inputs", "instances"))
    if rng.random() < oddity:
        kind = rng.choice(("split", "records", "inputs", "instances"))
    if kind == "records":
        members = ",".join("{%s}" % ",".join(map(":".join, zip(map(as_key, keys), row))) for row in rows)
        return spaced(rng, '{"dataframe_records":[%s]}' % members)
    if kind != "split":
        return spaced(rng, '{"%s":%s}' % (kind, lists))
    index = rng.choice((range(n_rows), rng.sample(range(-9, 10**9), n_rows), range(n_rows + (rng.random() < oddity))))
    parts = {"columns": "[%s]" % ",".join(keys), "index": "[%s]" % ",".join(map(str, index)), "data": lists}
    kinds = ("columns data", "index columns data", "columns index data", "columns data index", "data columns", "data")
    chosen = rng.choice(kinds if rng.random() < oddity or None in names else kinds[:4]).split()
    return spaced(rng, '{"dataframe_split":{%s}}' % ",".join(f'"{name}":{parts[name]}' for name in chosen))


def as_key(name: str) -> str:
    return name if name.startswith('"') else f'"{name}"'


# --- mutations ----------------------------------------------------------------------------------

def somewhere(rng: random.Random, data: bytearray) -> int:
    """A place in the data, rather in its body: most changes of a head leave nothing for the hot path."""
    body = data.find(b"\r\n\r\n") + 4
    first = body if 4 <= body < len(data) and rng.random() < 0.7 else 0
    return rng.randrange(first, len(data))


def flip_bit(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    data[somewhere(rng, data)] ^= 1 << rng.randrange(8)


def set_byte(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    data[somewhere(rng, data)] = rng.randrange(256)


def insert_token(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    at = somewhere(rng, data)
    data[at:at] = rng.choice(TOKENS)


def remove_span(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    at = somewhere(rng, data)
    del data[at:at + rng.choice((1, 1, 2, 8, 40))]


def repeat_span(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    at = somewhere(rng, data)
    data[at:at] = data[at:at + rng.choice((1, 2, 8, 40))] * rng.choice((1, 1, 4))


def truncate(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    del data[somewhere(rng, data):]


def splice(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    other = rng.choice(corpus)
    data[somewhere(rng, data):] = other[rng.randrange(len(other)):]


def append_request(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    data += rng.choice(corpus)


def change_number(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    """Replace a number of the body, or of the head where there is no body."""
    found = list(NUMBER.finditer(data, max(data.find(b"["), 0)))
    if found:
        start, end = rng.choice(found).span()
        data[start:end] = rng.choice(NUMBERS if rng.random() < 0.7 else NO_NUMBERS)


def change_string(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    """Replace a string of the body by another that is there, or by what could stand in its place."""
    found = list(STRING.finditer(data, data.find(b"\r\n\r\n") + 4))
    if found:
        start, end = rng.choice(found).span()
        data[start:end] = rng.choice(STRINGS) if rng.random() < 0.8 else rng.choice(found)[0]


def change_digit(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    """What only changes a number's value gets past every check."""
    at = somewhere(rng, data)
    while at < len(data) and not 48 <= data[at] <= 57:
        at += 1
    if at < len(data):
        data[at] = rng.randrange(48, 58)


def insert_space(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    """White space beside a mark that it may stand beside."""
    at = somewhere(rng, data)
    while at < len(data) and data[at] not in b",:[]{}":
        at += 1
    at += rng.randrange(2)
    data[at:at] = rng.choice((b" ", b"\t", b"  ", b"\n", b"\r\n "))


def change_length(rng: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    found = LENGTH.search(data)
    if found:
        length = int(found[2][:9]) + rng.choice((-2, -1, 1, 2, 10**6, 10**9))
        data[found.start(2):found.end(2)] = b"%d" % length


def mend_length(data: bytearray) -> None:
    """Let Content-Length say what there is, so that a mutation of the body gets to be read."""
    found, body = LENGTH.search(data), data.find(b"\r\n\r\n") + 4
    if found and 4 <= body and found.end() < body:
        data[found.start(2):found.end(2)] = b"%d" % (len(data) - body)


Mutation = Callable[[random.Random, bytearray, list[bytes]], None]
MUTATIONS: dict[Mutation, int] = {  # how often, in proportion
    flip_bit: 1, set_byte: 1, insert_token: 1, remove_span: 1, repeat_span: 1, truncate: 1, splice: 1,
    append_request: 1, change_number: 6, change_string: 3, change_digit: 6, insert_space: 6, change_length: 1}


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A request of the corpus after one to six mutations, never empty."""
    data = bytearray(rng.choice(corpus))
    for mutate in rng.choices(list(MUTATIONS), list(MUTATIONS.values()), k=rng.choice((1, 1, 1, 2, 3, 6))):
        mutate(rng, data, corpus)
        data = data or bytearray(b"P")
    if rng.random() < 0.8:
        mend_length(data)
    return bytes(data[:MOST_BYTES])


# --- native driver ------------------------------------------------------------------------------

FAULTS = (
    "none",
    "an index out of bounds, or another exception in compiled code",
    "the outcome depends on bytes past the end of the request",
    "the request was written to",
    "the request ends at an impossible place",
    "a prefix of the request was answered, or told to wait for less than the prefix before it",
    "the request that came in pieces was answered otherwise than the whole one",
    "the response of another request was written to, or one without an answer",
)
NONE, EXCEPTION, READ_PAST_END, WROTE_REQUEST, BAD_PLACE, BAD_PREFIX, PIECES_DIFFER, WROTE_RESPONSE = range(8)
# What stands past the end of a request: text with which it would go on. Past the end of the buffer: GUARD.
POISONS = np.frombuffer(b'1]} "\x000,\r\n.eE5', np.uint8)
CANARY_BYTES, CANARY = 32, 0x5A


@inner
def lay_out(received, at, data, n, poison):
    """Put data[0:n] at received[at:] and poison everywhere else."""
    for i in range(received.size):
        received[i] = poison
    for i in range(n):
        received[at + i] = data[i]


@inner
def fingerprint(response, at, end):
    """FNV-1a of what two answers have in common: the status, and the body up to the latency."""
    body, last = at, end
    while body < end - 1 and not (response[body] == 123 and response[body - 1] == 10):  # { after a line feed
        body += 1
    while last > body and response[last] != 58 and response[end - 2] != 93:  # the latency's colon; ] if there is none
        last -= 1
    value = np.uint64(0xCBF29CE484222325)
    for i in range(at, at + 15):
        value = (value ^ np.uint64(response[i])) * np.uint64(0x100000001B3)
    for i in range(body, last):
        value = (value ^ np.uint64(response[i])) * np.uint64(0x100000001B3)
    return value


@inner
def ask(shared, work, at, end, out_at):
    """→ (fault, outcome, place counted from `at`, fingerprint of the response or 0)."""
    response = bytes_of(work.response)
    response[out_at - CANARY_BYTES:out_at + CANARY_BYTES] = CANARY
    outcome = call_answer(shared.answer, (shared, work, at, end, out_at))
    place, value, fault = work.result[0], np.uint64(0), NONE
    for i in range(out_at - CANARY_BYTES, out_at if outcome == ANSWERED else out_at + CANARY_BYTES):
        if response[i] != CANARY:
            fault = WROTE_RESPONSE
    if outcome == FAILED:
        fault = EXCEPTION
    elif outcome == ANSWERED:
        value = fingerprint(response, out_at, work.result[1])
        if place <= at or place > end:
            fault = BAD_PLACE
    elif outcome == INCOMPLETE_BODY and place <= end:
        fault = BAD_PLACE
    return fault, outcome, place - at, value


@inner
def ask_prefixes(shared, work, at, data, n, out_at, whole, seen, at_end):
    """Ask for each prefix of a request whose whole gave `whole` → (fault, number of answers).

    The rest of the request, which is at received[at:], stands behind the prefix; or nothing does, where the
    prefix is put `at_end` of the buffer. `seen` keeps the outcomes of the first way for the second.
    """
    received, phase, n_answers = bytes_of(work.received), 0, 0
    outcome, place, value = whole
    for k in range(1, n + 1):
        if at_end:
            at = received.size - k
            for i in range(k):
                received[at + i] = data[i]
        fault, outcome_k, place_k, value_k = ask(shared, work, at, at + k, out_at)
        n_answers += outcome_k == ANSWERED
        if fault:
            return fault, n_answers
        phase_k = 0 if outcome_k == INCOMPLETE_HEAD else 1 if outcome_k == INCOMPLETE_BODY else 2
        if phase_k < phase or (outcome_k == ANSWERED and k < place):
            return BAD_PREFIX, n_answers
        phase = phase_k
        differs = outcome_k != outcome or value_k != value or (outcome == ANSWERED and place_k != place)
        if phase_k == 2 and differs:
            return PIECES_DIFFER, n_answers
        if at_end and seen[k - 1] != outcome_k:
            return READ_PAST_END, n_answers
        seen[k - 1] = outcome_k
    return NONE if outcome_k == outcome else PIECES_DIFFER, n_answers


@inner
def probe(shared, work, data, i, split, seen):
    """One request → (fault, its outcome, number of answers).

    It is asked with poison behind it, and at the end of the buffer, where bounds checks see an index past it.
    """
    received, n = bytes_of(work.received), data.size
    at, out_at = i % 7, CANARY_BYTES + i % 5 * 1000
    lay_out(received, at, data, n, POISONS[i % POISONS.size])
    fault, outcome, place, value = ask(shared, work, at, at + n, out_at)
    n_answers = np.int64(outcome == ANSWERED)
    for j in range(n):
        if received[at + j] != data[j]:
            return WROTE_REQUEST, outcome, n_answers
    if fault:
        return fault, outcome, n_answers
    if split:
        fault, answers = ask_prefixes(shared, work, at, data, n, out_at, (outcome, place, value), seen, False)
        n_answers += answers
        if fault:
            return fault, outcome, n_answers
    if split:
        fault, answers = ask_prefixes(shared, work, at, data, n, out_at, (outcome, place, value), seen, True)
        return fault, outcome, n_answers + answers
    at = received.size - n
    lay_out(received, at, data, n, POISONS[i % POISONS.size])
    fault, again, place_again, value_again = ask(shared, work, at, at + n, out_at)
    n_answers += again == ANSWERED
    if again != outcome or place_again != place or value_again != value:
        fault = READ_PAST_END
    return fault, outcome, n_answers


@numba.njit(**OPTIONS)
def drive(shared, work, data, ends, first, split, seen, outcomes, faults):
    """Probe the requests that `data` holds one after the other, until `ends` → how many answers were given.

    `first` is the number of the first one, on which poison and places depend. `seen` has room for an outcome
    a byte.
    """
    start, n_answers = 0, 0
    for i in range(ends.size):
        request = data[start:ends[i]]
        faults[i], outcomes[i], answers = probe(shared[0], work[0], request, first + i, split, seen)
        start, n_answers = ends[i], n_answers + answers
    return n_answers


# --- the fuzzer ---------------------------------------------------------------------------------

BATCH = 4096
COMPARE_EACH = 10  # every tenth request that is answered is answered by the Python path too


class Finding(Exception):
    """What is wrong, and the request that shows it."""

    def __init__(self, what: str, request: bytes):
        super().__init__(f"{what}\nrequest (hex): {request.hex()}")


class Fuzzer:
    """Probes requests and raises Finding for the first that shows something wrong."""

    def __init__(self, paths: Paths, split: bool):
        self.paths, self.split = paths, split
        self.outcomes: Counter[int] = Counter()
        self.n_requests = self.n_compared = 0
        self._seen = np.zeros(MOST_BYTES, np.int64)
        self._exceptions: list[BaseException | None] = []

    def run(self, requests: list[bytes]) -> None:
        """Probe some requests at once; all checks of many requests are made after them."""
        outcomes = self._probe(requests, self.n_requests)
        answered = [request for request, outcome in zip(requests, outcomes) if outcome == ANSWERED]
        for request in answered[self.n_requests % COMPARE_EACH::COMPARE_EACH]:
            self.compare(request)
        self.outcomes.update(outcomes.tolist())
        self.n_requests += len(requests)

    def _probe(self, requests: list[bytes], first: int) -> np.ndarray:
        faults, outcomes = np.zeros((2, len(requests)), np.int64)
        data = np.frombuffer(b"".join(requests), np.uint8)
        ends = np.cumsum([len(request) for request in requests])
        before = self._counted()
        hook, sys.unraisablehook = sys.unraisablehook, lambda found: self._exceptions.append(found.exc_value)
        try:
            n_answers = drive(self.paths.shared.record, self.paths.work.record, data, ends, first, self.split,
                              self._seen, outcomes, faults)
        finally:
            sys.unraisablehook = hook
        for i in np.flatnonzero(faults)[:1].tolist():
            raise Finding(f"{FAULTS[faults[i]]} {self._exceptions[:1] or ''}", requests[i])
        self._check_batch(requests, first, n_answers == self._counted() - before)
        return outcomes

    def _check_batch(self, requests: list[bytes], first: int, counted: bool) -> None:
        """Raise what only a whole batch can show; of several requests the guilty one is sought by halves."""
        wrong = ("an exception in the model's kernel" if self._exceptions
                 else "a byte outside the buffers was written" if not self.paths.guards_are_intact()
                 else "an answer was not counted, or counted twice" if not counted else None)
        if wrong is None:
            return
        if len(requests) > 1:
            self._exceptions.clear()
            for edge in self.paths._guards:
                edge[:] = GUARD
            half = len(requests) // 2
            self._probe(requests[:half], first)
            self._probe(requests[half:], first + half)
        raise Finding(wrong, requests[0] if len(requests) == 1 else b"".join(requests))

    def _counted(self) -> int:
        return int(self.paths.shared.counts[0, layout.REQUESTS:layout.REQUESTS + len(layout.ROUTES)].sum())

    def compare(self, request: bytes) -> None:
        """Ask both paths."""
        answer = self.paths.hot(request)
        expected = self.paths.python(request[:answer.place])
        if [comparable(answer.response)] != [comparable(response) for response in expected]:
            raise Finding(f"the Python path answers otherwise:\n{answer.response!r}\n{expected!r}", request)
        self.n_compared += 1


def check_that_bounds_are_checked(paths: Paths) -> None:
    """Raise RuntimeError unless an index out of bounds, made by a buffer of one element, is seen."""
    lines, hook = paths.work.record[0]["lines"].copy(), sys.unraisablehook
    seen: list = []
    sys.unraisablehook = lambda found: seen.append(found.exc_value)
    try:
        paths.work.record[0]["lines"]["length"] = 1
        outcome = paths.hot(HOT_REQUESTS[0]).outcome
    finally:
        sys.unraisablehook = hook
        paths.work.record[0]["lines"] = lines
    if outcome != FAILED or [type(error) for error in seen] != [IndexError]:
        raise RuntimeError(f"NUMBA_BOUNDSCHECK is set, but an index out of bounds gave {outcome} and {seen}")


def over_sockets(server: serving.Server, paths: Paths, requests: Sequence[bytes], rng: random.Random) -> None:
    """Send each request in random pieces on its own connection; the answers must be the Python path's."""
    for request in requests:
        received = exchange(server, request, random_cuts(rng, request))
        expected = b"".join(paths.python(request))
        if VARYING.sub(b"", received) != VARYING.sub(b"", expected):
            raise Finding(f"over a socket the answer was {received!r}, expected {expected!r}", request)


def random_cuts(rng: random.Random, request: bytes) -> list[int]:
    """Up to three places at which to cut a request."""
    return sorted(rng.sample(range(len(request)), min(len(request), rng.randrange(4))))


def exchange(server: serving.Server, request: bytes, cuts: list[int]) -> bytes:
    """Everything that the server sends in answer to a request in pieces and the end of the connection."""
    received = bytearray()
    with socket.create_connection((server.host, server.port), serving.WAIT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start, end in zip([0, *cuts], [*cuts, len(request)]):
                connection.sendall(request[start:end])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before its end: the answer is there all the same
        while data := connection.recv(65536):
            received += data
    return bytes(received)


def corpus(with_models: bool, others: Sequence[StandIn] = ()) -> list[bytes]:
    """What mutations start from: mostly requests for the hot path, also for models of the files and others."""
    rng, more = random.Random(0), [predict_request(body) for body in MODEL_BODIES] if with_models else []
    rows = [predict_request(body_for(rng, model)) for model in others for _ in range(8)]
    return [*HOT_REQUESTS, *more, *HOT_REQUESTS, *more, *rows, *OTHER_REQUESTS]


def frame_corpus(frame: Frame) -> list[bytes]:
    """As `corpus`, for the /invocations of one model."""
    rng = random.Random(0)
    return [*(invocations_request(frame_for(rng, frame)) for _ in range(100)), *OTHER_REQUESTS]


def batches(n: int, seed: int, starts: list[bytes]) -> Iterator[list[bytes]]:
    """`n` mutated requests, always the same ones for a seed."""
    rng = random.Random(seed)
    for start in range(0, n, BATCH):
        yield [mutated(rng, starts) for _ in range(min(BATCH, n - start))]


def fuzz(n: int, seed: int, split: bool, n_sockets: int) -> str:
    """Run everything, half of it for a model with typed columns → a line of figures. Raises Finding."""
    outcomes: Counter[int] = Counter()
    n_compared, spent_s = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        files = [kernels.DEFAULT_MODEL]
        with_models = importlib.util.find_spec("gguf") is not None
        if with_models:
            files += example_models(Path(folder))
        others, typed = stand_ins(large=False), frames()["typed"]
        for first, command, starts in ((None, (), corpus(with_models, others)),
                                       (typed, ("frame", "typed"), frame_corpus(typed))):
            with Paths(files, received_bytes=4096, first=first, others=others) as paths:
                if config.BOUNDSCHECK:
                    check_that_bounds_are_checked(paths)
                fuzzer = Fuzzer(paths, split)
                fuzzer.run(starts)  # also compiles the driver, so that the rate is that of the requests
                begin = time.perf_counter()
                for requests in batches(n // 2, seed, starts):
                    fuzzer.run(requests)
                spent_s += time.perf_counter() - begin
                if n_sockets:
                    rng = random.Random(seed)
                    with serving.start(*files, command=(*STAND_INS, "small", *command)) as server:
                        over_sockets(server, paths, [mutated(rng, starts) for _ in range(n_sockets // 2)], rng)
                        over_sockets(server, paths, HOT_REQUESTS, rng)
                        if server.stop() != 0:
                            raise Finding("the server did not stop as it should after the requests", b"")
            outcomes, n_compared = outcomes + fuzzer.outcomes, n_compared + fuzzer.n_compared
    shares = ", ".join(f"{name} {outcomes[outcome] / outcomes.total():.1%}" for name, outcome in (
        ("answered", ANSWERED), ("incomplete", INCOMPLETE_HEAD),
        ("without all of the body", INCOMPLETE_BODY), ("for Python", SLOW)))
    return (f"{n} requests {'whole and split at every byte' if split else 'whole'}, seed {seed}:"
            f" {shares}; {n_compared} answers compared, {n_sockets} requests over sockets;"
            f" {n / spent_s:.0f} requests/s, bounds {'' if config.BOUNDSCHECK else 'not '}checked")


def main(arguments: Sequence[str] | None = None) -> int:
    """→ exit status: 0, or 1 with the finding on stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Fuzz the hot path; NUMBA_BOUNDSCHECK=1 in the environment has its indices checked too.")
    parser.add_argument("--requests", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--whole", action="store_true", help="do not split the requests")
    parser.add_argument("--sockets", type=int, metavar="N",
                        help="requests over sockets (default: one in a thousand)")
    options = parser.parse_args(arguments)
    n_sockets = options.requests // 1000 if options.sockets is None else options.sockets
    try:
        print(fuzz(options.requests, options.seed, not options.whole, n_sockets))
    except Finding as finding:
        print(f"finding with --seed {options.seed}: {finding}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
