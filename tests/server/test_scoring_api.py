"""`/invocations`, `/ping`, `/version` by themselves: signatures, bodies, refusals. What MLflow says of the same bodies
is compared in test_scoring_differential.py."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from server import scoring_api, scoring_tables
from server.errors import ApiError
from server.schema import Column, Param, Schema, Tensor
from tests import serving
from tests.server.stand_in import stand_in

pytestmark = pytest.mark.core

SECRET = "4711-secret"
DOUBLES = {"inputs": [{"type": "double", "name": name} for name in "ab"]}
NAMED = Schema(columns=(Column("a", "double"), Column("b", "double")))
UNNAMED = Schema(columns=(Column(None, "double"), Column(None, "double")))
ARRAY = Schema(tensors=(Tensor(None, np.dtype(np.float64), (-1, 2)),), flavor="sklearn")
FEEDS = Schema(tensors=(Tensor("x", np.dtype(np.float32), (-1, 2)),), flavor="onnx")
MANY = Schema(columns=tuple(Column(kind, kind, kind != "string") for kind in (
    "boolean", "integer", "long", "float", "double", "string", "binary", "datetime")))
SCHEMAS = {"named": NAMED, "unnamed": UNNAMED, "array": ARRAY, "feeds": FEEDS, "none": Schema(flavor="sklearn"),
           "many": MANY}


def model(**options):
    """Two features; a row's answer is a / 2 + b."""
    return stand_in("m", ("a", "b"), **options)


def ask(body: object, schema: Schema = NAMED, content_type: str | None = None, **options) -> object:
    """The predictions for a body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(scoring_api.invoke(model(**options), schema, content_type, data).body)["predictions"]


def refusal(body: object, schema: Schema = NAMED, content_type: str | None = None, **options) -> tuple[int, str]:
    """The status and code with which a body is refused; the message holds no SECRET."""
    with pytest.raises(ApiError) as refused:
        ask(body, schema, content_type, **options)
    assert SECRET not in refused.value.message
    return refused.value.status, refused.value.code


BAD, MISMATCH = (400, "BAD_REQUEST"), (400, "INVALID_PARAMETER_VALUE")


# --- signatures ---------------------------------------------------------------------------------

def test_columns_are_read_as_mlmodel_writes_them():
    text = '[{"type": "long", "name": "n", "required": true}, {"type": "string", "name": "s", "required": false}]'
    schema = Schema.of({"inputs": text, "outputs": None, "params": None}, model(), "sklearn")
    assert schema.columns == (Column("n", "long"), Column("s", "string", False))
    assert schema == Schema.of({"inputs": json.loads(text)}, model(), "sklearn")
    assert schema.names == ("n", "s") and schema.named and not schema.is_ours


def test_tensors_and_parameters_are_read_as_mlmodel_writes_them():
    schema = Schema.of({
        "inputs": [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}],
        "params": [{"name": "k", "default": 3, "shape": None, "type": "long"},
                   {"name": "w", "default": [1.5], "shape": [-1], "type": "double"}]}, model(), "onnx")
    assert schema.tensors == (Tensor(None, np.dtype(np.float32), (-1, 3)),)
    assert schema.params == (Param("k", "long", 3), Param("w", "double", [1.5], (-1,)))
    assert schema.columns is None and not schema.named


def test_schema_of_a_plain_file_is_the_models_own():
    found = Schema.of(None, stand_in("m", ("a", "b"), missing=(1,)))
    assert found.columns == (Column("a", "double"), Column("b", "double", False)) and found.is_ours
    assert Schema.of(None, stand_in("m", 1)).columns == (Column(None, "double"),)
    assert Schema.of(None, SimpleNamespace(invoke=None)).columns is None


@pytest.mark.parametrize("signature", [
    {"inputs": "["}, {"inputs": 5}, {"inputs": [5]}, {"inputs": [{"name": "a"}]}, {"params": [{"name": "a"}]},
    {"inputs": [{"type": "tensor"}]}, {"inputs": [{"type": "tensor", "tensor-spec": {"dtype": "?!", "shape": [-1]}}]},
    {"predict_fn": "score"}])
def test_what_is_no_signature_is_refused(signature: dict):
    with pytest.raises(kernels.ModelError):
        Schema.of(signature, model(), "sklearn")


@pytest.mark.parametrize(("options", "answer"), [
    ({"model_class": "xgboost.sklearn.XGBClassifier"}, "labels"),
    ({"model_class": "xgboost.core.Booster"}, "predict"),
    ({"outputs": [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]}, "labels"),
    ({"outputs": [{"type": "double"}]}, "predict"), ({}, "predict"),
    ({"predict_fn": "predict_proba"}, "predict_proba")])
def test_class_of_a_boosters_file_says_whether_it_answers_labels(options: dict, answer: str):
    assert Schema.of(DOUBLES | options, model(n_classes=2), "xgboost").answer == answer


# --- bodies -------------------------------------------------------------------------------------

@pytest.mark.parametrize("body", [
    {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4.5]]}},
    {"dataframe_split": {"columns": ["b", "x", "a"], "data": [[2, "x", 1], [4.5, [], 3]], "index": ["r", "s"]}},
    {"dataframe_records": [{"a": 1, "b": 2}, {"b": 4.5, "a": 3, "x": None}]},
    {"instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4.5}]},
    {"inputs": [{"a": 1, "b": 2}, {"a": 3, "b": 4.5}]},
    {"inputs": {"a": [1, 3], "b": [2, 4.5]}},
    {"dataframe_split": {"columns": ["a", "b"], "data": [["1", 2], [" 3 ", "4.5"]]}, "client_request_id": "x"}])
def test_forms_of_json_say_the_same(body: dict):
    assert ask(body) == [2.5, 6.0]


def test_success_is_the_bytes_that_the_hot_path_writes():
    body = b'{"dataframe_split": {"columns": ["a", "b"], "data": [[3, 0], [4, 0]]}}'
    assert scoring_api.invoke(model(), NAMED, None, body).body == b'{"predictions": [1.5, 2.0]}'


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_arrays_are_taken_as_rows_where_the_signature_has_no_names(key: str):
    for schema in UNNAMED, ARRAY, Schema(flavor="sklearn"):
        assert ask({key: [[1, 2], [3, 4]]}, schema) == [2.5, 5.5]
    assert refusal({key: [[1, 2], [3, 4]]}) == MISMATCH


@pytest.mark.parametrize(("text", "expected"), [
    ("a,b\n1,2\n", [2.5]), ("b,a\r\n2,1\r\n", [2.5]), ('"a","b"\n"1","2"', [2.5]), (",a,b\n7,1,2\n", [2.5]),
    ("a,b\n5,1,2\n6,1,2", [2.5, 2.5]), ("\ufeffa,b\n1,2", [2.5]), ("a,b\n\n1,2\n\n", [2.5]), ("a,b\n", [])])
def test_csv_is_read_as_pandas_reads_it(text: str, expected: list):
    assert ask(text.encode(), content_type="text/csv; charset=UTF-8") == expected


@pytest.mark.parametrize("data", [b"", b"\n", b"a,b\n1,x", b"a,b\n1,2,3\n1,2,3,4", b"a,b\n1,\xff", b'a,b\n1,"2'])
def test_csv_that_is_none_is_refused(data: bytes):
    assert refusal(data, content_type="text/csv") == BAD


def test_csv_without_a_column_of_the_model_is_a_mismatch():
    assert refusal(b"a,c\n1,2", content_type="text/csv") == MISMATCH


def test_names_that_csv_repeats_are_told_apart_as_pandas_does():
    table = scoring_tables.from_csv("a,a,a.1,,a\n1,2,3,4,5\n", {})
    assert table.names == ["a", "a.1", "a.1.1", "Unnamed: 3", "a.2"]


def test_parquet_needs_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(b"PAR1", content_type="application/vnd.apache.parquet") == (415, "BAD_REQUEST")


@pytest.mark.parametrize(("values", "dtype"), [
    ([1, 2], "int64"), ([1 << 63, 1], "uint64"), ([1 << 64], "object"), ([-1, 1 << 63], "object"),
    ([1, 2.5], "float64"), ([1, None], "float64"), ([True, False], "bool"), ([True, None], "object"),
    ([True, 1], "object"), (["a"], "object"),
    ([None], "object"), ([], "object"), ([[1]], "object"), ([[1, 2], [3, 4]], "object"), ([1.5, 1 << 2000], "object")])
def test_columns_have_the_type_that_pandas_infers(values: list, dtype: str):
    found = scoring_tables.infer(values)
    assert found.dtype == dtype and found.shape == (len(values),)
    if None not in values:
        assert found.tolist() == values


# --- what the model is given, and answers -------------------------------------------------------

def test_missing_value_is_null_or_nan_or_a_name_left_out_where_it_may_be_missing():
    schema = Schema.of(None, model(missing=(1,)))
    for body in (b'{"dataframe_records": [{"a": 1, "b": null}]}', b'{"dataframe_records": [{"a": 1, "b": NaN}]}',
                 b'{"dataframe_records": [{"a": 1}]}', b'{"inputs": {"a": [1]}}'):
        assert ask(body, schema, missing=(1,)) == ask(b'{"inputs": {"a": [1], "b": [null]}}', schema, missing=(1,))
    assert refusal(b'{"dataframe_records": [{"b": 1}]}', schema, missing=(1,)) == MISMATCH


@pytest.mark.parametrize("body", [{"inputs": [[1, 2]]}, {"dataframe_records": [{"x": 1}]}, {"inputs": {}},
                                  {"dataframe_split": {"data": [[1, 2]]}}, {"prompt": 1}])
def test_input_without_any_column_of_the_model_is_not_all_missing(body: dict):
    schema = Schema.of(None, model(missing=(0, 1)))
    assert ask({"inputs": {"a": [1]}}, schema, missing=(0, 1))
    assert refusal(body, schema, missing=(0, 1)) == MISMATCH


def test_answers_that_are_no_numbers_of_json_are_null():
    assert scoring_api.without_nan(np.array([[1.5, math.nan], [math.inf, -math.inf]])) == [[1.5, None], [None, None]]
    assert scoring_api.without_nan(np.array(["nan"])) == ["nan"]


@pytest.mark.parametrize("number", ["1e999", "-Infinity"])
def test_infinite_values_have_no_answer(number: str):
    assert refusal(b'{"inputs": {"a": [1], "b": [%s]}}' % number.encode()) == BAD


def test_probabilities_are_a_parameter_of_our_own_models():
    schema, body = Schema.of(None, model(n_classes=2)), {"inputs": {"a": [0.25], "b": [0.75]}}
    assert ask(body | {"params": {"return_probabilities": True}}, schema, n_classes=2) == [[0.25, 0.75]]
    assert ask(body | {"params": {"return_probabilities": False, "other": 1}}, schema, n_classes=2) == [0.875]
    assert refusal(body | {"params": {"return_probabilities": 1}}, schema, n_classes=2) == MISMATCH
    assert refusal(body | {"params": {"return_probabilities": True}}, schema, n_classes=0) == BAD
    assert refusal(body | {"params": {"threads": 0}}, schema, n_classes=2) == BAD


def test_no_rows_have_no_predictions():
    assert ask({"dataframe_split": {"columns": ["a", "b"], "data": []}}) == []


def test_process_of_a_model_answers_for_itself():
    asked = []

    def invoke(content_type: str, body: bytes) -> tuple[int, bytes]:
        asked.append((content_type, body))
        return 418, b"{}"
    answer = scoring_api.invoke(SimpleNamespace(invoke=invoke), Schema(), None, b"x")
    assert (answer.status, answer.body, asked) == (418, b"{}", [("application/json", b"x")])


# --- refusals -----------------------------------------------------------------------------------

@pytest.mark.parametrize(("body", "expected"), [
    (b"", BAD), (b"\xff", BAD), (b"[" * 100_000, BAD), ([], BAD), ("x", BAD), ({}, BAD), ({"a": 1}, BAD),
    ({"inputs": [], "instances": []}, BAD), ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, BAD),
    ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, SECRET]]}}, BAD),
    ({"dataframe_split": {"columns": ["a", SECRET], "data": [[1, 2]]}}, MISMATCH),
    ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]], SECRET: 1}}, BAD),
    ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]], "index": [SECRET, 1]}}, BAD),
    ({"dataframe_records": [{"a": 1, SECRET: 2}]}, MISMATCH), ({"dataframe_records": SECRET}, BAD),
    ({"inputs": {"a": [1], "b": [SECRET]}}, BAD), ({"inputs": {"a": [1], "b": [[SECRET]]}}, BAD),
    ({"inputs": {"a": [1, 2], "b": [1]}}, MISMATCH), ({"instances": {"a": [1, 2], "b": [1]}}, BAD),
    ({"prompt": SECRET}, MISMATCH), ({SECRET: 1}, BAD)])
def test_refusals_say_no_value(body: object, expected: tuple[int, str]):
    assert refusal(body) == expected


def test_names_that_a_signature_without_names_is_given_are_not_said():
    assert refusal({"dataframe_split": {"columns": [SECRET, "b"], "data": [["x", 1]]}}, UNNAMED) == BAD
    assert refusal(f"{SECRET},b\nx,1".encode(), UNNAMED, "text/csv") == BAD


def test_numbers_for_a_column_of_bytes_are_refused():
    assert refusal({"dataframe_records": [{"binary": 1}]}, MANY) == BAD


@pytest.mark.parametrize("content_type", [
    "text/plain", "application/json; charset=latin-1", "application/json; format=pandas-split", "text/csv; header=1",
    "APPLICATION/JSON", "application/json;", ""])
def test_other_content_types_are_unsupported(content_type: str):
    assert refusal({"inputs": {"a": [1], "b": [2]}}, content_type=content_type) == (415, "BAD_REQUEST")


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json ;charset=utf-8"])
def test_no_content_type_is_json(content_type: str | None):
    assert ask({"inputs": {"a": [1], "b": [2]}}, content_type=content_type) == [2.5]


@pytest.mark.parametrize("body", [
    {"dataframe_split": {"data": [[0] * 5000] + [[]] * 5000}},
    {"inputs": {"a": [0] * 5000} | dict.fromkeys(range(5000), 0)},
    {"dataframe_records": [dict.fromkeys(range(5000))] + [{}] * 5000},
    {"dataframe_split": {"data": {"a": [0] * 5000} | dict.fromkeys(range(5000), 0)}},
    {"dataframe_split": {"columns": list(range(5000)), "data": [{}] * 5000}},
    {"inputs": [dict.fromkeys(range(5000), 0)] + [{}] * 5000},
    {"inputs": {"x": ["x" * 1_000_000] + [""] * 100}}, {"inputs": {"x": ["x"] + [0] * 1_000_000}},
    {"instances": [{"x": "x" * 1_000_000}] + [{"x": ""}] * 100},
    ("a," * 5000 + "\n" + "0\n" * 5000).encode()])
def test_few_bytes_that_stand_for_many_values_are_refused(body: object):
    assert refusal(body, content_type="text/csv" if isinstance(body, bytes) else None)[0] == 413


def test_one_text_for_all_rows_is_held_once():
    text = "x" * 100
    table = scoring_api._as_table({"a": np.str_(text), "b": np.zeros(1000)})
    assert table.columns[0].tolist() == [text] * 1000 and len(set(map(id, table.columns[0]))) == 1


def test_texts_of_parquet_that_are_the_same_are_held_once():
    pyarrow, write_table = parquet_writer()
    table = scoring_tables.from_parquet(write_table({"a": pyarrow.array(["x" * 1000] * 500 + [None])}))
    assert table.columns[0].tolist() == ["x" * 1000] * 500 + [None] and len(set(map(id, table.columns[0]))) == 2


@pytest.mark.parametrize(("values", "kind", "status"), [
    ([np.zeros(scoring_tables.MAX_CELLS + 1, np.int8)], "list", 413), ([["x", "x"]], "list", 400),
    ([bytes(1 << 20)] * 300, "binary", 413)], ids=["list", "texts", "fixed"])
def test_parquet_that_stands_for_far_more_is_refused(values: list, kind: str, status: int):
    pyarrow, write_table = parquet_writer()
    if kind == "binary":
        zeros = pyarrow.array(np.zeros(len(values), np.int32))
        column = pyarrow.DictionaryArray.from_arrays(zeros, pyarrow.array(values[:1], pyarrow.binary(len(values[0]))))
    else:
        column = pyarrow.array(values)
    with pytest.raises(ApiError) as refused:
        scoring_tables.from_parquet(write_table({"a": column}))
    assert refused.value.status == status


def parquet_writer():
    """pyarrow, and what makes the bytes of a file with these columns."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write_table(columns: dict) -> bytes:
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
        return sink.getvalue().to_pybytes()
    return pyarrow, write_table


def test_long_text_for_a_time_is_looked_at_once():
    """A search for a time zone from every colon on would take hours."""
    with pytest.raises(ValueError):
        scoring_tables.cast(scoring_tables.infer([":" * 1_000_000]), "datetime")
    for zone in "Z", "+02:00", " -0200 ":
        with pytest.raises(ApiError, match="time zone"):
            scoring_tables.cast(scoring_tables.infer(["2024-01-01T10:00" + zone]), "datetime")
    assert scoring_tables.cast(scoring_tables.infer(["2024-01-01"]), "datetime")


def test_names_that_the_library_would_refuse_are_not_taken_by_place():
    body = {"dataframe_split": {"columns": ["b", "x"], "data": [[1, 2]]}}
    columns = (Column("b", "double"), Column("x", "double"))
    assert ask(body, Schema(columns=columns)) == [2.5]
    for flavor in "sklearn", "xgboost":
        assert refusal(body, Schema(columns=columns, flavor=flavor)) == BAD


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "1", "2024-01-01", "nan"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(
        st.sampled_from(["a", "b", "x", "columns", "data", "index", "string", "datetime"]), values, max_size=3),
    max_leaves=12)


@given(st.sampled_from(sorted(SCHEMAS)), st.sampled_from([*scoring_api.FORMATS, "prompt", "params"]), JSON_VALUES,
       JSON_VALUES)
def test_any_json_is_answered_or_refused(name: str, key: str, value: object, params: object):
    body = json.dumps({key: value, "params": params}).encode()
    try:
        answer = scoring_api.invoke(model(), SCHEMAS[name], None, body)
    except ApiError as error:
        assert error.status in (400, 413) and error.code.isupper()
    else:
        json.loads(answer.body, parse_constant=lambda constant: pytest.fail(constant))


@given(st.sampled_from(sorted(SCHEMAS)), st.text(alphabet='ab,"\n\r 1.x-', max_size=30))
def test_any_csv_is_answered_or_refused(name: str, text: str):
    try:
        scoring_api.invoke(model(), SCHEMAS[name], "text/csv", text.encode())
    except ApiError as error:
        assert error.status == 400


# --- parameters ---------------------------------------------------------------------------------

PARAMS = (Param("k", "long", 3), Param("t", "double", 0.5), Param("names", "string", ["a"], (-1,)),
          Param("when", "datetime", "2024-01-01"))


def test_parameters_have_their_types_and_defaults():
    assert scoring_api.check_params(None, PARAMS) == {"k": 3, "t": 0.5, "names": ["a"], "when": "2024-01-01"}
    found = scoring_api.check_params({"k": 4, "t": 1, "names": [], "when": "2024-02-03", "other": 1}, PARAMS)
    assert found == {"k": 4, "t": 1.0, "names": [], "when": "2024-02-03"} and type(found["t"]) is float
    assert scoring_api.check_params(5, None) == {}


@pytest.mark.parametrize("given", [5, [], {"k": 1.5}, {"k": "4"}, {"k": True}, {"t": "1"}, {"t": 10**400},
                                   {"names": "a"}, {"names": [1]}, {"when": "x"}, {"when": 5}])
def test_parameters_of_other_types_are_a_mismatch(given: object):
    with pytest.raises(ApiError) as refused:
        scoring_api.check_params(given, PARAMS)
    assert (refused.value.status, refused.value.code) == MISMATCH


# --- over HTTP ----------------------------------------------------------------------------------

def scoring_request(body: object, content_type: str | None = "application/json", path: str = "/invocations") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = serving.request("POST", path, data, {"Content-Type": content_type or "-"})
    return request if content_type else request.replace(b"Content-Type: -\r\n", b"")


def test_embedded_model_scores_as_it_predicts(server: serving.Server):
    row = [0.1, 0.2, 0.3, 0.4, 0.5]
    expected = json.dumps({"predictions": server.ask(serving.predict_request([row])).json()["predictions"]}).encode()
    for content_type in "application/json", "application/json; charset=utf-8", None:
        for body in ({"dataframe_split": {"data": [row]}},
                     {"dataframe_split": {"columns": list("abcde"), "data": [row]}},
                     {"dataframe_records": [dict(zip("abcde", row))]}, {"inputs": [row]}, {"instances": [row]}):
            response = server.ask(scoring_request(body, content_type))
            assert (response.status, response.body) == (200, expected)
            assert response.headers["Content-Type"] == "application/json"
    assert server.ask(scoring_request(b"a,b,c,d,e\n0.1,0.2,0.3,0.4,0.5\n", "text/csv")).body == expected


def test_ping_is_an_empty_line_and_version_a_bare_one(server: serving.Server):
    for path, body in ("/ping", b"\n"), ("/version", kernels.__version__.encode()):
        response = server.ask(serving.request("GET", path))
        assert (response.status, response.body) == (200, body)


@pytest.mark.parametrize(("request_bytes", "status", "code"), [
    (scoring_request({}), 400, "BAD_REQUEST"), (scoring_request({}, "text/plain"), 415, "BAD_REQUEST"),
    (serving.request("GET", "/invocations"), 405, "BAD_REQUEST"),
    (scoring_request({}, path="/invocations?x"), 400, "BAD_REQUEST"),
    (serving.request("POST", "/invocations", headers={"Content-Length": "99999999"}), 413, "REQUEST_LIMIT_EXCEEDED")])
def test_refusals_have_mlflows_shape(server: serving.Server, request_bytes: bytes, status: int, code: str):
    response = server.ask(request_bytes)
    assert response.status == status and response.json().keys() == {"error_code", "message"}
    assert response.json()["error_code"] == code


def test_other_paths_take_json_alone_and_keep_their_shape(server: serving.Server):
    assert server.ask(scoring_request(b"a\n1\n", "text/csv", "/v1/predict")).code == "unsupported_media_type"


def test_key_is_asked_for_scores_but_not_for_ping(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret-key\n")
    with serving.start("--api-key-file", keys, native=False) as server:
        refused = server.ask(scoring_request({}))
        assert (refused.status, refused.json()["error_code"]) == (401, "UNAUTHENTICATED")
        assert server.ask(serving.request("GET", "/ping")).status == 200
