"""The hot path against the Python path: whatever the hot path answers, Python answers with the same bytes.

The Python path here computes with numpy, the hot path with the compiled kernels: this compares those too.
Each test counts what the hot path answered, because it could agree with everything by answering nothing.
"""

import importlib.util
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernels
from server.hotpath import ANSWERED, INCOMPLETE_BODY, INCOMPLETE_HEAD, SLOW
from server.layout import FLUSH_BYTES
from tests import fuzz, serving
from tests.server import trained_models
from tests.server.stand_in import STAND_INS, StandIn, stand_ins
from tests.fuzz import (
    HOT_REQUESTS, MODEL_BODIES, NO_NUMBERS, NUMBERS, OTHER_REQUESTS, ROW, Paths, comparable, predict_request,
)

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf writes the models")
unhurried = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
EMBEDDED = {"fraud-detector": 5}  # model: number of features
EXAMPLES = {"labels": 3, "digits": 4, "missing": 2, "regression": 5, "echo": 1}


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with Paths() as paths:
        yield paths


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    files = fuzz.example_models(tmp_path_factory.mktemp("models"))
    with Paths([kernels.DEFAULT_MODEL, *files]) as paths:
        yield paths


def is_hot(paths: Paths, request: bytes) -> bool:
    """Whether the hot path answers this one request; then the answers of both paths are compared."""
    answer = paths.hot(request)
    assert answer.outcome in (ANSWERED, INCOMPLETE_HEAD, INCOMPLETE_BODY, SLOW)
    if answer.outcome == ANSWERED:
        expected = paths.python(request[:answer.place])
        assert [comparable(answer.response)] == list(map(comparable, expected))
    return answer.outcome == ANSWERED


def count_hot(paths: Paths, requests: st.SearchStrategy[bytes], n: int) -> int:
    """Compare both paths' answers to n requests, always the same ones → how many were the hot path's."""
    n_hot = 0

    @settings(unhurried, max_examples=n)
    @given(requests)
    def compare(request: bytes) -> None:
        nonlocal n_hot
        n_hot += is_hot(paths, request)
    compare()
    assert paths.guards_are_intact()
    return n_hot


# --- bodies -------------------------------------------------------------------------------------

SPACES = st.lists(st.sampled_from(["", "", "", "", " ", "  ", "\t", "\n", "\r\n"]), min_size=1, max_size=4)
GOOD_NUMBERS = st.one_of(
    st.sampled_from([number.decode() for number in NUMBERS]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr), st.floats(-1e3, 1e3).map(repr),
    st.integers().map(str), st.integers(-9, 9).map(str),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?\Z"))
ODD_VALUES = st.one_of(
    st.sampled_from([number.decode() for number in NO_NUMBERS]), st.text(max_size=5).map(json.dumps),
    st.text(max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)), st.just("false"))
ENDS = st.sampled_from([b""] * 60 + [b" ", b"\r\n\t ", b"x", b"{}", b",", b"]", b"\0", b"\xff", b"\xc3"])
ODD_MEMBERS = [
    '"inputs": []', '"inputs": [[]]', '"inputs": null', '"inputs": [[1], [2, 3]]',
    '"inputs": [1, 2, 3, 4, 5]', '"Inputs": 1', '"inputs": {"a": [1]}', '"\\u0069nputs": [[1, 2, 3, 4, 5]]',
    '"ïnputs": 1', '"": 0', '"model": null', '"model": 1', '"inputs": [[[1, 2, 3, 4, 5]]]',
    '"inputs": [{"a": 1, "b": 2}]', '"model": "nobody"', '"model": ""', '"model": "fraud\\u002ddetector"',
    '"model": "détecteur"', '"parameters": null', '"parameters": []',
    '"parameters": {"return_probabilities": 1}', '"parameters": {"return_probabilities": "true"}',
    '"parameters": {"return_probabilities": true, "return_probabilities": false}',
    '"parameters": {"threshold": 0.5}', '"parameters": {"return_probabilities": true,}',
    '"parameters": {"return_probabilities": truE}', '"latency_ms": 1',
]
PARAMETERS = ['"parameters": {}', '"parameters": {"return_probabilities": true}',
              '"parameters": {"return_probabilities": false}']


@st.composite
def rows_texts(draw, width: int, takes_missing: bool) -> str:
    """Rows of `width` numbers, now and then with something wrong."""
    rows = draw(st.lists(st.lists(GOOD_NUMBERS, min_size=width, max_size=width), min_size=1, max_size=4))
    oddity = draw(st.integers(0, 15))
    if oddity == 7:
        rows[-1][draw(st.integers(0, width - 1))] = draw(ODD_VALUES)
    elif oddity == 8:
        rows[0].append("1")
    elif oddity > 11 and takes_missing:
        rows[-1][0] = "null"
    return "[" + ",".join("[" + ",".join(row) + "]" for row in rows) + "]"


@st.composite
def bodies(draw, widths: dict[str, int]) -> bytes:
    """JSON for one of these models (name → number of features), most of it right."""
    name = draw(st.sampled_from(list(widths)))
    members = ['"inputs":' + draw(rows_texts(widths[name], name == "missing"))]
    if len(widths) > 1 or draw(st.booleans()):
        members.append(f'"model":"{name}"')
    if draw(st.booleans()):
        members.append(draw(st.sampled_from(PARAMETERS)))
    if draw(st.integers(0, 9)) == 7:
        members.append(draw(st.sampled_from([*members, *ODD_MEMBERS])))
    if draw(st.integers(0, 19)) == 13:
        del members[0]
    text = "{" + ",".join(draw(st.permutations(members))) + "}"
    spaces = itertools.cycle(draw(SPACES))
    spaced = re.sub(r"[][{},:]", lambda mark: next(spaces) + mark[0] + next(spaces), text)
    return spaced.encode("utf-8", "surrogatepass") + draw(ENDS)


@pytest.mark.core
def test_bodies_are_answered_alike(paths: Paths):
    assert count_hot(paths, bodies(EMBEDDED).map(predict_request), 3000) > 1000


@needs_gguf
def test_bodies_for_models_of_every_kind_are_answered_alike(model_paths: Paths):
    assert count_hot(model_paths, bodies(EMBEDDED | EXAMPLES).map(predict_request), 2500) > 800


@needs_gguf
def test_missing_values_of_the_only_model_are_answered_alike(tmp_path):
    files = [path for path in fuzz.example_models(tmp_path) if path.stem == "missing"]
    with Paths(files) as paths:
        assert count_hot(paths, bodies({"missing": EXAMPLES["missing"]}).map(predict_request), 500) > 150


# --- rows of all kinds --------------------------------------------------------------------------

@pytest.fixture(scope="module")
def many_paths() -> Iterator[Paths]:
    with Paths(others=stand_ins()) as paths:
        yield paths


def parts(body: bytes) -> set[str]:
    """Which kinds of rows and values are in a body."""
    marks = {"objects": b"[{", "strings": b'"inputs":[', "null": b"null", "escapes": b"\\u", "UTF-8": b"\xc3"}
    return {part for part, mark in marks.items() if mark in body.replace(b" ", b"")}


@pytest.mark.core
@pytest.mark.parametrize("model", stand_ins(), ids=lambda model: model.name)
def test_rows_for_a_model_are_answered_alike(many_paths: Paths, model: StandIn):
    rng, n_hot, hot_parts = random.Random(model.name), 0, Counter()
    n = 40 if model.name in ("wide", "long", "many") else 600
    for _ in range(n):
        body = fuzz.body_for(rng, model)
        if is_hot(many_paths, predict_request(body)):
            n_hot += 1
            hot_parts.update(parts(body))
    assert many_paths.guards_are_intact()
    if not model.native_too:
        assert n_hot == 0
        return
    assert n_hot > n / 5
    assert hot_parts["objects"] > n / 8 or model.name in ("nameless", "plain", "twins", "long")
    assert hot_parts["null"] > n / 40 or not model.takes_missing
    assert hot_parts["escapes"] > n / 20 or model.name not in ("shop", "nameless")
    assert hot_parts["UTF-8"] > n / 20 or model.name not in ("shop", "strict", "nameless")


@pytest.mark.core
@pytest.mark.parametrize("text", [
    b"", b"a", b"\x7f", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbf",
    b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbf", b"z\xe1\x80\x80z\xf1\x80\x80\x80\xc3\xbf",
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xc2z", b"\xc2\xc0", b"\xe0\x9f\xbf", b"\xe1\x80",
    b"\xe1\x80z", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x8f\xbf\xbf", b"\xf1\x80\x80", b"\xf1\x80\x80\xc0",
    b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xc3\xbc\xc3", b"\x00", b"\x1f", b"\n", b"\\", b"\\q",
    b'\\"', b"\\n"])
def test_unknown_strings_are_answered_by_the_hot_path_where_they_are_utf_8(many_paths: Paths, text: bytes):
    request = predict_request(b'{"model": "nameless", "inputs": [["red", "%b"]]}' % text)
    try:
        is_plain = not any(char < " " or char == "\\" for char in text.decode())
    except UnicodeDecodeError:
        is_plain = False
    assert is_hot(many_paths, request) == is_plain


@pytest.mark.core
def test_random_bytes_in_strings_are_answered_alike(many_paths: Paths):
    body = b'{"model":"shop","inputs":[{"amount":1,"country":"DE","hour":2,"colour":"%b"}]}'
    lead = st.sampled_from([bytes([byte]) for byte in (*range(0xC0, 0x100), 0x5C, 0x22, 0x41)])
    more = st.lists(st.sampled_from([0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0x6E]), max_size=3).map(bytes)
    texts = st.lists(st.tuples(lead, more).map(b"".join), min_size=1, max_size=3).map(b"".join)
    assert count_hot(many_paths, texts.map(lambda text: predict_request(body % text)), 1500) > 50


def test_rows_for_models_of_other_libraries_are_answered_alike(tmp_path):
    for library in ("lightgbm", "xgboost", "pandas"):
        pytest.importorskip(library)
    rng, files = random.Random(3), trained_models.write_all(tmp_path)
    with Paths(files) as paths:
        for model in paths.listener.application.models.by_name.values():
            n_hot = sum(is_hot(paths, predict_request(fuzz.body_for(rng, model))) for _ in range(200))
            assert n_hot > 60, model.name
        assert paths.guards_are_intact()


def row_of(order: str, **values: str) -> str:
    return "{%s}" % ",".join(f'"{name}":{values.get(name, 1)}' for name in order.split())


COLOUR, COUNTRY = {"colour": '"red"'}, {"country": '"DE"'}


@pytest.mark.core
@pytest.mark.parametrize(("rows", "hot"), [
    ([row_of("amount colour hour country", **COLOUR, **COUNTRY)] * 2, True),
    ([row_of("country hour amount colour", **COLOUR, **COUNTRY),
      row_of("hour colour amount country", **COLOUR, **COUNTRY)], True),
    ([row_of("amount colour hour country", colour="null", amount="null", **COUNTRY)], True),
    ([row_of("amount colour hour country", colour='"unheard of"', country='"\\u00c4"')], False),
    ([row_of("amount colour hour country", colour='"unheard of"', country='"Ä"')], True),
    ([row_of("amount colour hour country", **COLOUR, country="null")], False),
    ([row_of("amount colour hour country", **COUNTRY)], False),
    ([row_of("amount colour hour country", **COLOUR, **COUNTRY, hour='"3"')], False),
    ([row_of("amount colour hour", **COLOUR)], False),
    ([row_of("amount colour hour country extra", **COLOUR, **COUNTRY)], False),
    ([row_of("amount colour hour country hour", **COLOUR, **COUNTRY)], False),
    ([row_of("amount colour hour hour", **COLOUR, **COUNTRY)], False),
    ([row_of("amount colour hour Country", **COLOUR)], False),
    ([row_of("amount colour hour country", **COLOUR, **COUNTRY), '[1,"red",1,"DE"]'], False),
    (['[1,"red",1,"DE"]', row_of("amount colour hour country", **COLOUR, **COUNTRY)], False),
    (["{}"], False), (["[]"], False), (['[1,"red",null,"FR"]'], True),
])
def test_only_rows_with_each_feature_once_are_answered_by_the_hot_path(many_paths: Paths, rows: list[str], hot: bool):
    for form in ('{"model":"shop","inputs":[%s]}', '{"inputs":[%s],"model":"shop"}'):
        for _ in range(2):  # the second time the order is known
            assert is_hot(many_paths, predict_request((form % ",".join(rows)).encode())) == hot


@pytest.mark.core
def test_the_order_of_one_model_s_rows_does_not_matter_to_another_s(many_paths: Paths):
    rng, models = random.Random(5), [model for model in stand_ins(large=False) if model.signature.feature_names]
    requests = [predict_request(fuzz.body_for(rng, rng.choice(models))) for _ in range(500)]
    assert sum(is_hot(many_paths, request) for request in requests) > 150


@pytest.mark.core
def test_answers_that_are_too_long_for_the_buffers_are_for_python(many_paths: Paths):
    wanted = {"return_probabilities": True}
    for model, n_rows, n_hot_bytes in (("many", 10, 1_000_000), ("long", 100, 7_000_000)):
        bodies = [{"model": model, "inputs": [[0]] * n, "parameters": wanted} for n in (n_rows, 10 * n_rows)]
        answers = [many_paths.hot(predict_request(json.dumps(body).encode())) for body in bodies]
        assert [answer.outcome for answer in answers] == [ANSWERED, SLOW]
        assert len(answers[0].response) > n_hot_bytes
    assert many_paths.guards_are_intact()
    assert is_hot(many_paths, predict_request(json.dumps(bodies[0]).encode()))


# --- heads --------------------------------------------------------------------------------------

LINES = {  # field: its lines in variations that the hot path may take, and others
    "host": ([b"Host: localhost", b"host:LOCALHOST:80", b"HOST: \t127.0.0.1:65535 \t", b"Host: 127.0.0.1:0"],
             [b"Host: [::1]:8080", b"Host: example.com", b"Host: localhost:", b"Host: localhost:65536",
              b"Host: localhost.", b"Host: localhost:00000000080", b"Host:", b"Host: localhost, localhost",
              b"Host: local%68ost", b"X: y", b"Host: localhost\r\nHost: localhost", b"Host: u@localhost",
              b"Host : localhost", b"Host: localhost:8x", b"Host: \xe4.de"]),
    "length": ([b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH: \t00%d \t"],
               [b"Content-Length: +%d", b"Content-Length: %d, %d",
                b"Content-Length: %d\r\nContent-Length: %d", b"Content-Length: 0x%d", b"Content-Length: -%d",
                b"Content-Length: %d.0", b"Content-Length: 1%d", b"Content-Length:", b"Content-Length: 0",
                b"Content-Length: 99999999999%d", b"X: %d",
                b"Transfer-Encoding: chunked\r\nContent-Length: %d",
                b"Content-Length: %d\r\nTransfer-Encoding: identity"]),
    "type": ([b"", b"Content-Type: application/json", b"content-TYPE:Application/JSON",
              b"Content-Type: application/json \t", b"Content-Type: application/json; charset=utf-8",
              b"Content-Type: application/json \t;\t charset=UTF-8 "],
             [b"Content-Type: application/json;", b'Content-Type: application/json; charset="utf-8"',
              b"Content-Type: text/plain", b"Content-Type: application/json; charset=latin-1",
              b"Content-Type: application/json;;charset=utf-8",
              b"Content-Type: application/json; charset = utf-8", b"Content-Type: application/jsonx",
              b"Content-Type:", b"Content-Type: application/json; charset=utf-8; x=y",
              b"Content-Type: application/json, text/plain",
              b"Content-Type: application/json\r\nContent-Type: application/json", b"Content-Type: \xe4"]),
    "connection": ([b"", b"Connection: keep-alive", b"connection: Keep-Alive", b"Connection: close",
                    b"Connection:CLOSE "],
                   [b"Connection: close, x", b"Connection: x, CLOSE", b"Connection: upgrade", b"Connection:",
                    b"Connection: keep-alive\r\nConnection: close", b"Connection: keep-alive, close",
                    b"Connection: closed"]),
    "other": ([b"", b"Accept: */*\r\nAccept: text/html", b"User-Agent: \x80\xff", b"Cookie: a=b; c=\"d\"",
               b"X-Long: " + b"y" * 5000, b"Origin: http://example.com", b"Authorization: Bearer x",
               b"hosts: a\r\ncontent-lengths: 7", b"X-Empty:", b"Expectation: none", b"X-Request-Id: abc",
               b"x-request-id:\t{~!\"} ", b"If-Range: a", b"X:%b" % (b" \t" * 30)],
              [b"Expect: 100-continue", b"Expect: other", b"X-Request-Id: a b", b"x-request-id:",
               b"X-Request-Id: \xe4", b"X-Request-Id: a\r\nX-Request-Id: a", b"X-Request-Id: " + b"a" * 3000,
               b"Content-Encoding: identity", b"Content-Encoding: gzip", b"User-Agent: a\r\nuser-agent: b",
               b"Authorization: a\r\nAuthorization: b", b": y", b"X: y\r\n folded", b"Bad Name: y",
               b"X: \x00", b"X: \x7f", b"Transfer-Encoding: chunked", b"TE: trailers",
               b"Referer: a\r\nReferer: b", b"X: " + b"z" * 17000, b"\r\n".join([b"X: y"] * 200),
               b"Date: a\r\nDate: b"]),
}
REQUEST_LINES = ([b"POST /v1/predict HTTP/1.1"], [
    b"POST /v1/predict HTTP/1.0", b"POST /v1/predict HTTP/1.2", b"POST /v1/predict HTTP/2.0",
    b"post /v1/predict HTTP/1.1", b"POST /v1/predict? HTTP/1.1", b"POST /v1/predict?a=b HTTP/1.1",
    b"POST /v1/predict/ HTTP/1.1", b"GET /v1/predict HTTP/1.1", b"POST http://localhost/v1/predict HTTP/1.1",
    b"POST http://example.com/v1/predict HTTP/1.1", b"POST  /v1/predict HTTP/1.1",
    b"POST /v1/%70redict HTTP/1.1", b"POST //v1/predict HTTP/1.1", b"POST /V1/predict HTTP/1.1",
    b"HEAD /health HTTP/1.1", b"PATCH /v1/predict HTTP/1.1", b"\r\nPOST /v1/predict HTTP/1.1",
    b" POST /v1/predict HTTP/1.1", b"OPTIONS /v1/predict HTTP/1.1", b"POST /v1/predict http/1.1",
    b"POST /v1/predict#x HTTP/1.1", b"POST /v1/predicts HTTP/1.1",
])


@st.composite
def heads(draw, lines: dict[str, tuple[list[bytes], list[bytes]]] = LINES) -> bytes:
    """A predict request with header lines in any order, at most one of them not for the hot path."""
    odd = draw(st.sampled_from([*lines, "request line", *[""] * len(lines)]))
    chosen = [draw(st.sampled_from(others if name == odd else usual))
              for name, (usual, others) in lines.items()]
    request_line = draw(st.sampled_from(REQUEST_LINES[odd == "request line"]))
    ordered = [line for line in draw(st.permutations(chosen)) if line]
    return b"\r\n".join([request_line, *ordered]).replace(b"%d", b"%d" % len(ROW)) + b"\r\n\r\n" + ROW


@pytest.mark.core
def test_heads_are_answered_alike(paths: Paths):
    assert count_hot(paths, heads(), 2000) > 800


KEYS = {"authorization": (
    [b"Authorization: Bearer secret", b"authorization:bearer  another-key \t",
     b"AUTHORIZATION: BEARER\tsecret", b"X: secret", b"Authorization: Bearer Secret",
     b"Authorization: Bearer secre", b"Authorization: Bearer secrets", b"Authorization: secret",
     b"Authorization: Bearer", b"Authorization: Basic secret", b"Authorization:",
     b"Authorization: Bearer \xe4ecret", b"Authorization: Bearer secret secret",
     b"Authorization: Bearersecret", b"Authorization: Bearer \t secret"],
    [b"Authorization: Bearer secret\r\nAuthorization: Bearer secret"])}
ORIGINS = {"origin": (
    [b"X: y", b"Origin: http://a", b"Origin: http://b", b"origin:", b"Origin: http://a\r\nOrigin: http://b"],
    [b"Access-Control-Request-Method: POST"])}


@pytest.mark.core
@pytest.mark.parametrize(("options", "lines"), [
    ({"keys": ("secret", "another-key")}, KEYS), ({"allowed_hosts": None}, {}),
    ({"allowed_hosts": frozenset({"example.com"})}, {}), ({"cors_origin": "http://a"}, ORIGINS),
    ({"cors_origin": "*"}, ORIGINS), ({"keys": ("secret",), "cors_origin": "http://a"}, KEYS | ORIGINS),
], ids=["keys", "any host", "other hosts", "CORS", "CORS for all", "keys and CORS"])
def test_heads_are_answered_alike_with_options(options: dict, lines: dict):
    with Paths(**options) as paths:
        example_com = {"host": (LINES["host"][0] + [b"Host: Example.com:8080"], LINES["host"][1])}
        varied = LINES | example_com | {"other": ([b""], [b"Expect: 100-continue"])} | lines
        assert count_hot(paths, heads(varied), 400) > 10


# --- what the hot path must take ----------------------------------------------------------------

@pytest.mark.core
@pytest.mark.parametrize("request_bytes", HOT_REQUESTS, ids=range(len(HOT_REQUESTS)))
def test_usual_requests_are_answered_by_the_hot_path(paths: Paths, request_bytes: bytes):
    assert is_hot(paths, request_bytes)


@needs_gguf
@pytest.mark.parametrize("body", MODEL_BODIES, ids=list(EXAMPLES))
def test_models_of_every_kind_are_served_by_the_hot_path(model_paths: Paths, body: bytes):
    assert is_hot(model_paths, predict_request(body))


# A result that overflows, and what only its twentieth digit or a later one rounds to one of two doubles.
LEFT_TO_PYTHON = {b"1.7976931348623158e308", b"9007199254740992.99999999999999999999",
                  b"1.00000000000000011102230246251565404236316680908203125"}


@pytest.mark.core
@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
def test_numbers_are_read_alike(paths: Paths, number: bytes):
    request = predict_request(b'{"inputs": [[0, %b, 0, 0, -0]]}' % number)
    assert is_hot(paths, request) or number in LEFT_TO_PYTHON


@needs_gguf
@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
def test_the_number_that_was_read_is_the_number_that_is_written(model_paths: Paths, number: bytes):
    request = predict_request(b'{"model": "echo", "inputs": [[%b]]}' % number)
    assert is_hot(model_paths, request) or number in LEFT_TO_PYTHON
    predictions = json.loads(model_paths.python(request)[0].partition(b"\r\n\r\n")[2])["predictions"]
    assert predictions == [float(number)]


@pytest.mark.core
@pytest.mark.parametrize("text", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
def test_what_is_no_number_is_left_to_python(paths: Paths, text: bytes):
    assert paths.hot(predict_request(b'{"inputs": [[0, %b, 0, 0, 0]]}' % text)).outcome == SLOW


# --- several requests ---------------------------------------------------------------------------

PIPELINES = st.lists(st.one_of(
    st.sampled_from(HOT_REQUESTS), st.sampled_from(OTHER_REQUESTS),
    bodies(EMBEDDED).map(predict_request)), min_size=1, max_size=6)


@pytest.mark.core
def test_pipelined_requests_for_both_paths_are_answered_alike_and_in_order(paths: Paths):
    n_hot = n_together = 0

    @settings(unhurried, max_examples=600)
    @given(PIPELINES, st.integers(0, 20))
    def compare(requests: list[bytes], missing: int) -> None:
        nonlocal n_hot, n_together
        data = b"".join(requests)
        data = data[:len(data) - missing] if missing > 10 else data
        responses, hot = paths.mixed(data)
        assert list(map(comparable, responses)) == list(map(comparable, paths.python(data)))
        n_hot, n_together = n_hot + hot, n_together + (0 < hot < len(responses))
    compare()
    assert n_hot > 500 and n_together > 100


# --- buffers ------------------------------------------------------------------------------------

LONG_NUMBER = b"-1.2345678901234567e-100"


def full_request(body_of_rows: Callable[[bytes], bytes], row: bytes, size: int) -> bytes:
    """A request of at most `size` bytes with as many of these rows as fit, and at least one."""
    def build(n: int) -> bytes:
        body = body_of_rows(b",".join([row] * n))
        return b"POST /v1/predict HTTP/1.1\r\nHost:localhost\r\nContent-Length:%d\r\n\r\n" % len(body) + body
    n = (size - len(build(0)) + 1) // (len(row) + 1)
    while n > 0 and len(build(n)) > size:  # the length has more digits
        n -= 1
    return build(max(n, 1))


def check_full_buffers(paths: Paths, name: bytes, rows: list[bytes]) -> None:
    for row, size in itertools.product(rows, (200, 333, 1000, 4096, 65536)):
        wanted = b"" if name in (b"regression", b"echo") else b'"return_probabilities":true'
        request = full_request(lambda text: b'{"inputs":[%b],"model":"%b","parameters":{%b}}' % (
            text, name, wanted), row, size)
        paths.fit(len(request))
        answer = paths.hot(request, out_at=FLUSH_BYTES - 1)
        assert answer.outcome == ANSWERED
        assert [comparable(answer.response)] == list(map(comparable, paths.python(request)))
        assert paths.guards_are_intact()


@pytest.mark.core
@pytest.mark.parametrize("options", [{}, {"cors_origin": "http://" + "a" * 1000}], ids=["", "long origin"])
def test_a_request_that_fills_the_receive_buffer_fits_the_others(options: dict):
    with Paths(**options) as paths:
        check_full_buffers(paths, b"fraud-detector", [b"[9,3,1,2,7]", b"[%b]" % b",".join([LONG_NUMBER] * 5)])


@needs_gguf
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_request_that_fills_the_receive_buffer_fits_the_others_for_every_model(
        model_paths: Paths, name: str):
    rows = [b"[%b]" % b",".join([digit] * EXAMPLES[name]) for digit in (b"0", b"9")]
    check_full_buffers(model_paths, name.encode(), rows)
    model_paths.fit(fuzz.LOOP_BYTES)


@pytest.mark.core
def test_rows_beyond_the_longest_usual_body_are_answered_alike(paths: Paths):
    rng = np.random.default_rng(0)
    for n_rows in (1, 2, 9, 99, 500):
        rows = rng.normal(size=(n_rows, 5)).tolist()
        body = json.dumps({"inputs": rows, "parameters": {"return_probabilities": True}})
        assert is_hot(paths, predict_request(body.encode()))


# --- real servers -------------------------------------------------------------------------------

def hot_total(server: serving.Server) -> int:
    text = server.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").body.decode()
    found = re.search(r'^testigo_requests_total\{path="hot",[^}]*\} (\S+)$', text, re.MULTILINE)
    return int(float(found[1])) if found else 0


@pytest.mark.core
def test_both_kinds_of_server_answer_the_same_bytes(
        native_server: serving.Server, python_server: serving.Server):
    rng, starts = random.Random(0), fuzz.corpus(with_models=False)
    requests = [*HOT_REQUESTS, *OTHER_REQUESTS, *(fuzz.mutated(rng, starts) for _ in range(150))]
    before = hot_total(native_server)
    for request in requests:
        cuts = fuzz.random_cuts(rng, request)
        native, python = (fuzz.VARYING.sub(b"", fuzz.exchange(server, request, cuts))
                          for server in (native_server, python_server))
        assert native == python, request
    assert hot_total(native_server) - before >= len(HOT_REQUESTS)


@pytest.mark.core
def test_both_kinds_of_server_answer_the_same_bytes_for_models_of_all_kinds():
    rng = random.Random(1)
    requests = [predict_request(fuzz.body_for(rng, rng.choice(stand_ins()))) for _ in range(150)]
    with serving.start(command=STAND_INS) as native, serving.start(command=STAND_INS, native=False) as python:
        for request in requests:
            cuts = fuzz.random_cuts(rng, request)
            answers = [fuzz.VARYING.sub(b"", fuzz.exchange(server, request, cuts)) for server in (native, python)]
            assert answers[0] == answers[1], request
        assert hot_total(native) > len(requests) / 3
