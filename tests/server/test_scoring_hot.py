"""/invocations by the hot path: the bytes of `scoring_api`, for every kind of schema, and what is left to Python.

Each test counts what the hot path answered, because it could agree with everything by answering nothing.
"""

import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest

from server.hotpath import ANSWERED
from server.native_listener import columns_of_features
from server.schema import Column, Schema
from tests import fuzz, serving
from tests.fuzz import Paths, invocations_request
from tests.server import trained_models
from tests.server.stand_in import STAND_INS, Frame, frames, stand_in
from tests.server.test_differential import is_hot
from tests.server.test_scoring_differential import save_all

FRAMES = frames()
ABC = b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2.5, -3]]}}'


@pytest.fixture(scope="module")
def typed_paths() -> Iterator[Paths]:
    with Paths(first=FRAMES["typed"]) as paths:
        yield paths


@pytest.fixture(scope="module")
def abc_paths() -> Iterator[Paths]:
    with Paths(first=FRAMES["usual"]) as paths:
        yield paths


def ask(paths: Paths, body: bytes | dict, *fields: bytes) -> bool:
    return is_hot(paths, invocations_request(body if isinstance(body, bytes) else json.dumps(body).encode(), *fields))


# --- both paths ---------------------------------------------------------------------------------

def parts(body: bytes) -> list[str]:
    marks = {"split": b'"dataframe_split"', "records": b'"dataframe_records"', "inputs": b'"inputs"',
             "instances": b'"instances"', "index": b'"index"', "null": b"null", "escapes": b"\\u"}
    return [part for part, mark in marks.items() if mark in body]


@pytest.mark.core
@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_answered_alike(name: str):
    frame, rng, n_hot, hot_parts, n = FRAMES[name], random.Random(name), 0, Counter(), 500
    with Paths(first=frame) as paths:
        for _ in range(n):
            body = fuzz.frame_for(rng, frame)
            if ask(paths, body):
                n_hot += 1
                hot_parts.update(parts(body))
        assert paths.guards_are_intact()
    if not frame.is_hot:
        assert n_hot == 0
        return
    assert n_hot > n / 4
    forms = ("split", "records") if frame.schema.named else ("split", "inputs", "instances")
    assert all(hot_parts[part] > n / 20 for part in (*forms, "index"))
    assert hot_parts["null"] > n / 40 or not frame.model.takes_missing or name in ("int64", "int32")


def test_frames_for_models_of_other_libraries_are_answered_alike(tmp_path):
    for library in ("lightgbm", "xgboost", "pandas"):
        pytest.importorskip(library)
    rng = random.Random(3)
    for file in trained_models.write_all(tmp_path):
        with Paths([file]) as paths:
            served = paths.listener.application.models
            frame = Frame(served.default, served.schemas[served.default.name], is_hot=True)
            assert sum(ask(paths, fuzz.frame_for(rng, frame)) for _ in range(100)) > 30, file.name


def test_frames_for_models_that_mlflow_saved_are_answered_alike(tmp_path):
    for library in ("lightgbm", "mlflow", "skl2onnx", "xgboost"):
        pytest.importorskip(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and those that it calls
        saved = save_all(tmp_path)
    rng, hot = random.Random(7), set()
    for name, (_, model, schema) in saved.items():
        frame = Frame(model, schema, is_hot=True)
        with Paths(first=frame) as paths:
            if sum(ask(paths, fuzz.frame_for(rng, frame)) for _ in range(60)) > 15:
                hot.add(name)
    assert hot == {"forest", "array", "several", "strings", "lightgbm", "xgboost"}


@pytest.mark.core
@pytest.mark.parametrize(("names", "flavor", "found"), [
    ("ba", "sklearn", "ab"), ("xy", "sklearn", None), ("ay", "xgboost", None), ("xy", "", "xy"),
    ("xy", "lightgbm", "xy")])
def test_names_that_a_library_would_refuse_are_left_to_python(names: str, flavor: str, found: str | None):
    schema = Schema(columns=tuple(Column(name, "double") for name in names), flavor=flavor)
    columns = columns_of_features(schema, stand_in("m", ("a", "b")))
    assert columns == (None if found is None else (list(found), ["double", "double"]))


@pytest.mark.core
@pytest.mark.parametrize("number", fuzz.NUMBERS, ids=range(len(fuzz.NUMBERS)))
@pytest.mark.parametrize("column", ["amount", "ratio", "hour", "count"])
def test_numbers_are_read_alike_for_columns_of_every_type(typed_paths: Paths, column: str, number: bytes):
    row = {name: '"red"' if name == "colour" else '"DE"' if name == "country" else "1"
           for name in FRAMES["typed"].schema.names} | {column: number.decode()}
    hot = ask(typed_paths, ('{"dataframe_records":[{%s}]}' % ",".join(f'"{k}":{v}' for k, v in row.items())).encode())
    is_int, value = number.strip(b"-").isdigit(), abs(float(number))
    most = {"amount": 1e301, "ratio": 3.4e38, "hour": 2.0**53, "count": 2.0**31}[column]
    if column in ("hour", "count"):
        assert hot == (is_int and value < most)
    elif value < most and number not in (b"9007199254740992.99999999999999999999",
                                         b"1.00000000000000011102230246251565404236316680908203125"):
        assert hot == (not is_int or value < 2.0**53)


@pytest.mark.core
@pytest.mark.parametrize("text", fuzz.NO_NUMBERS, ids=range(len(fuzz.NO_NUMBERS)))
def test_what_is_no_number_is_left_to_python(text: bytes, typed_paths: Paths):
    row = b'"count":%b,"hour":1,"country":"DE","amount":1,"colour":"red","ratio":1'
    assert typed_paths.hot(invocations_request(b'{"dataframe_records":[{%b}]}' % (row % b"1"))).outcome == ANSWERED
    assert not ask(typed_paths, b'{"dataframe_records":[{%b}]}' % (row % text))


# --- what is hot --------------------------------------------------------------------------------

SPLIT = '{"dataframe_split":%s}'
RIGHT = '"columns":["a","b","c"],"data":[[1,2.5,-3]]'


@pytest.mark.core
@pytest.mark.parametrize(("body", "hot"), [
    (SPLIT % f"{{{RIGHT}}}", True),
    (SPLIT % f'{{"index":[0],{RIGHT}}}', True),
    (SPLIT % f'{{{RIGHT},"index":[-7]}}', True),
    (SPLIT % '{"columns":["c","a","b"],"index":[999999999999999999],"data":[[null,1,2]]}', False),  # c is a must
    (SPLIT % '{"columns":["b","c","a"],"data":[[1,2,null],[3,4,5]]}', True),
    (SPLIT % '{"columns":["a","b"],"data":[[1,2]]}', False),
    (SPLIT % '{"columns":["a","b","c","d"],"data":[[1,2,3,4]]}', False),
    (SPLIT % '{"columns":["a","b","b"],"data":[[1,2,3]]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[[1,2]]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[[1,2,3,4]]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[[1,2,3],[1,2]]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[{"a":1,"b":2,"c":3}]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[1,2,3]}', False),
    (SPLIT % '{"columns":["a","b","c"]}', False),
    (SPLIT % '{"data":[[1,2,3]]}', False),
    (SPLIT % '{"data":[[1,2,3]],"columns":["a","b","c"]}', False),
    (SPLIT % '{"columns":[0,1,2],"data":[[1,2,3]]}', False),
    (SPLIT % f'{{"index":[0,1],{RIGHT}}}', False), (SPLIT % f'{{"index":[],{RIGHT}}}', False),
    (SPLIT % f'{{"index":[00],{RIGHT}}}', False), (SPLIT % f'{{"index":[-],{RIGHT}}}', False),
    (SPLIT % f'{{"index":[0.5],{RIGHT}}}', False), (SPLIT % f'{{"index":["0"],{RIGHT}}}', False),
    (SPLIT % f'{{"index":[0,],{RIGHT}}}', False), (SPLIT % f'{{"index":null,{RIGHT}}}', False),
    (SPLIT % f'{{"index":[9999999999999999999],{RIGHT}}}', False),
    (SPLIT % f'{{"index":[0],"index":[0],{RIGHT}}}', False),
    (SPLIT % f'{{{RIGHT},{RIGHT}}}', False), (SPLIT % f'{{{RIGHT},"dtype":1}}', False),
    (SPLIT % f'{{{RIGHT},}}', False), (SPLIT % f"{{{RIGHT}}}" + ",", False), (SPLIT % f"{{{RIGHT}", False),
    ('{"dataframe_records":[{"c":-3,"a":1,"b":2.5}]}', True),
    ('{"dataframe_records":[{"a":1,"b":2.5,"c":-3},{"c":1,"b":2,"a":null}]}', True),
    ('{"dataframe_records":[{"a":1,"b":2.5}]}', False), ('{"dataframe_records":[{"a":1,"b":2.5,"c":-3},{}]}', False),
    ('{"dataframe_records":[[1,2.5,-3]]}', False), ('{"dataframe_records":{"a":1,"b":2.5,"c":-3}}', False),
    ('{"dataframe_records":[{"a":1,"b":2.5,"c":-3,"c":-3}]}', False),
    ('{"dataframe_records":[{"a":1,"b":2.5,"c":-3}],"params":{}}', False),
    ('{"params":null,"dataframe_records":[{"a":1,"b":2.5,"c":-3}]}', False),
    ('{"client_request_id":"1","dataframe_records":[{"a":1,"b":2.5,"c":-3}]}', False),
    ('{"dataframe_records":[{"a":1,"b":true,"c":-3}]}', False), ('{"inputs":[[1,2.5,-3]]}', False),
    ('{"instances":[{"a":1,"b":2.5,"c":-3}]}', False), ('{"inputs":{"a":[1],"b":[2],"c":[3]}}', False),
])
def test_only_whole_frames_of_the_columns_are_answered_by_the_hot_path(body: str, hot: bool, abc_paths: Paths):
    for text in (body, body.replace(",", " ,\t").replace(":", ": \n") + " \r\n"):
        for _ in range(2):  # the second time the order is known
            assert ask(abc_paths, text.encode()) == hot


@pytest.mark.core
@pytest.mark.parametrize(("body", "hot"), [
    ('{"inputs":[[1,2.5,-3],[null,0,-0]]}', True), ('{"instances":[[1,2,3]]}', True),
    (SPLIT % '{"data":[[1,2,3]]}', True), (SPLIT % '{"index":[5],"data":[[1,2,3]]}', True),
    (SPLIT % '{"columns":[0,1,2],"data":[[1,2,3]]}', True), (SPLIT % '{"data":[[1,2,3]],"columns":[0,1,2]}', True),
    (SPLIT % '{"columns":[1,0,2],"data":[[1,2,3]]}', False), (SPLIT % '{"columns":[0,1],"data":[[1,2,3]]}', False),
    (SPLIT % '{"columns":[-0,1,2],"data":[[1,2,3]]}', False),
    (SPLIT % '{"columns":["a","b","c"],"data":[[1,2,3]]}', False),
    ('{"inputs":[1,2,3]}', False), ('{"inputs":[[1,2]]}', False), ('{"inputs":[[[1,2,3]]]}', False),
    ('{"inputs":[]}', False), ('{"dataframe_records":[{"0":1,"1":2,"2":3}]}', False),
])
def test_lists_are_answered_by_the_hot_path_where_columns_have_no_names(body: str, hot: bool):
    for name in ("plain", "float64"):
        with Paths(first=FRAMES[name]) as paths:
            assert ask(paths, body.encode()) == hot


@pytest.mark.core
@pytest.mark.parametrize(("field", "hot"), [
    (b"Content-Type: application/json", True), (b"Content-Type: application/json; charset=utf-8", True),
    (b"Content-Type: text/csv", False), (b"Content-Type: Application/JSON", False), (b"X-Request-Id: 7", True),
    (b"Content-Type: application/json;charset=UTF-8", False), (b"Connection: close", True),
    (b"Content-Type: application/json; Charset=utf-8", False), (b"Content-Type: application/json;", False),
])
def test_heads_are_answered_alike(field: bytes, hot: bool, abc_paths: Paths):
    assert ask(abc_paths, ABC, field) == hot


@pytest.mark.core
@pytest.mark.parametrize(("field", "hot"), [
    (b"Authorization: Bearer secret", True), (b"Authorization: Bearer other", False), (b"X: y", False)])
def test_a_key_is_asked_for_where_there_are_keys(field: bytes, hot: bool):
    with Paths(first=FRAMES["usual"], keys=("secret",)) as paths:
        assert ask(paths, ABC, field) == hot


@pytest.mark.core
def test_only_the_path_itself_is_answered_by_the_hot_path(abc_paths: Paths):
    request = invocations_request(ABC)
    assert is_hot(abc_paths, request)
    for line in (b"POST /invocations? H", b"POST /invocations/ H", b"POST /Invocations H", b"PUT /invocations H",
                 b"POST /v1/predict H", b"POST http://localhost/invocations H"):
        assert not is_hot(abc_paths, request.replace(b"POST /invocations H", line, 1))


@pytest.mark.core
def test_a_frame_that_fills_the_receive_buffer_fits_the_others():
    for name in ("one", "several", "typed"):
        frame = FRAMES[name]
        cells = {"country": "DE", "colour": "red"}
        row = json.dumps([cells.get(str(key), 9) for key in frame.schema.names]).encode()
        with Paths(first=frame) as paths:
            head = b'{"dataframe_split":{"columns":%b,"data":[' % json.dumps(frame.schema.names).encode()
            for n in (1, 9, 500):
                request = invocations_request(head + b",".join([row] * n) + b"]}}")
                paths.fit(len(request))
                answer = paths.hot(request, out_at=fuzz.layout.FLUSH_BYTES - 1)
                assert answer.outcome == ANSWERED
                assert [fuzz.comparable(answer.response)] == list(map(fuzz.comparable, paths.python(request)))
                assert paths.guards_are_intact()


# --- real servers -------------------------------------------------------------------------------

def test_hot_invocations_are_counted_and_logged_under_their_own_path():
    command = (*STAND_INS, "small", "frame", "typed")
    rng, requests = random.Random(5), [fuzz.frame_for(random.Random(i), FRAMES["typed"]) for i in range(60)]
    with serving.start(command=command) as native, serving.start(command=command, native=False) as python:
        for body in requests:
            request = invocations_request(body, b"X-Request-Id: a-frame")
            cuts = fuzz.random_cuts(rng, request)
            answers = [fuzz.VARYING.sub(b"", fuzz.exchange(server, request, cuts)) for server in (native, python)]
            assert answers[0] == answers[1], request
        native.ask(fuzz.predict_request(b'{"model": "plain", "inputs": [[1, 2, 3]]}'))
        text = native.ask(serving.request("GET", "/metrics")).body.decode()
        found = re.findall(r'^testigo_requests_total\{path="hot",route="([^"]*)",status="200"} (\S+)$', text, re.M)
        counted = {route: float(n) for route, n in found}
        assert counted["/v1/predict"] == 1 and 20 < counted["/invocations"] <= len(requests)
        serving.wait_for(lambda: native.stderr_text().count("path=/invocations") >= len(requests))
        assert "path=/v1/predict" not in native.stderr_text()
