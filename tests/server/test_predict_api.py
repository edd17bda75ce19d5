"""`/v1/predict` and `/v1/models`: the course's contract, every refusal by its code, several models of all kinds."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kernels
from kernels.export import save_dense
from tests import serving
from tests.server.stand_in import MISSING, STAND_INS
from tests.serving import predict_request, request

MARKER = "sEcReT"
ROW = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each kind, of 3 inputs; the linear one takes missing values and has feature names."""
    pytest.importorskip("gguf")
    folder, random = tmp_path_factory.mktemp("models"), np.random.default_rng(0)

    def layer(n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray]:
        return random.normal(size=(n_out, n_in)), random.normal(size=n_out)
    kinds: dict[str, dict] = {
        "linear": dict(layers=[layer(1, 3)], activations=["logistic"], task="classification", classes=["no", "yes"],
                       feature_names=["age", "größe", "income"], fill_values=[30.0, 1.7, 1e4]),
        "digits": dict(layers=[layer(4, 3), layer(3, 4)], activations=["relu", "softmax"], task="classification",
                       classes=[7, -1, 100]),
        "price/2": dict(layers=[layer(1, 3)], activations=["identity"], task="regression"),
    }
    paths = {name: folder / f"{number}.gguf" for number, name in enumerate(kinds)}
    for name, arguments in kinds.items():
        save_dense(paths[name], name=name, version="1.2.3", **arguments)
    return paths


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def several(request: pytest.FixtureRequest, model_files: dict[str, Path]) -> Iterator[serving.Server]:
    """A server of the models above and the embedded one, which is the first."""
    with serving.start(kernels.DEFAULT_MODEL, *model_files.values(), native=request.param) as server:
        yield server


def post(body: bytes) -> bytes:
    return request("POST", "/v1/predict", body)


# --- the course's contract ----------------------------------------------------------------------

@pytest.mark.core
def test_course_request_gets_the_course_response(server):
    body = b'{"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]], "parameters": {"return_probabilities": false}}'
    response = server.ask(post(body))
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert re.fullmatch(rb'\{"predictions": \[0\.45\d*\], "model": "fraud-detector", "version": "1\.0\.0",'
                        rb' "latency_ms": \d+\.\d+\}', response.body)


@pytest.mark.core
def test_probabilities_are_those_of_both_classes(server):
    response = server.ask(predict_request([ROW, [9, 9, 9, 9, 9]], parameters={"return_probabilities": True})).json()
    assert list(response) == ["predictions", "probabilities", "model", "version", "latency_ms"]
    for score, (no, yes) in zip(response["predictions"], response["probabilities"]):
        assert yes == pytest.approx(1 / (1 + np.exp(-score))) and no == 1 - yes


@pytest.mark.core
def test_health_and_models_say_what_is_served(server):
    assert server.ask(request("GET", "/health")).json() == {
        "status": "healthy", "model_loaded": True, "model_name": "fraud-detector", "version": "1.0.0"}
    assert server.ask(request("GET", "/ready")).json() == {"status": "ready"}
    listing = server.ask(request("GET", "/v1/models")).json()
    assert (listing["object"], listing["name"], listing["version"]) == ("list", "fraud-detector", "1.0.0")
    assert listing["n_features"] == 5 and listing["model_type"]
    assert [model["id"] for model in listing["data"]] == ["fraud-detector"]
    assert server.ask(request("GET", "/v1/models/fraud-detector")).json() == listing["data"][0]


# --- refusals -----------------------------------------------------------------------------------

NUMBER_TEXT = "1" * 400
REFUSED = [  # (name, body, code, param)
    ("empty body", "", "invalid_json", None),
    ("not JSON", MARKER, "invalid_json", None),
    ("cut short", '{"inputs": [[1, 2', "invalid_json", None),
    ("trailing comma", '{"inputs": [[1, 2, 3, 4, 5],]}', "invalid_json", None),
    ("data after the object", '{"inputs": [[1, 2, 3, 4, 5]]} ' + MARKER, "invalid_json", None),
    ("two objects", '{"inputs": [[1, 2, 3, 4, 5]]}{}', "invalid_json", None),
    ("NaN", '{"inputs": [[NaN, 2, 3, 4, 5]]}', "invalid_json", None),
    ("nan", '{"inputs": [[nan, 2, 3, 4, 5]]}', "invalid_json", None),
    ("Infinity", '{"inputs": [[Infinity, 2, 3, 4, 5]]}', "invalid_json", None),
    ("-Infinity", '{"inputs": [[-Infinity, 2, 3, 4, 5]]}', "invalid_json", None),
    ("inf", '{"inputs": [[inf, 2, 3, 4, 5]]}', "invalid_json", None),
    ("leading zero", '{"inputs": [[01, 2, 3, 4, 5]]}', "invalid_json", None),
    ("leading plus", '{"inputs": [[+1, 2, 3, 4, 5]]}', "invalid_json", None),
    ("hexadecimal", '{"inputs": [[0x1, 2, 3, 4, 5]]}', "invalid_json", None),
    ("bare point", '{"inputs": [[1., 2, 3, 4, 5]]}', "invalid_json", None),
    ("byte order mark", '\ufeff{"inputs": [[1, 2, 3, 4, 5]]}', "invalid_json", None),
    ("control character in a string", '{"model": "a\tb"}', "invalid_json", None),
    ("list", f'["{MARKER}"]', "invalid_request", None),
    ("string", f'"{MARKER}"', "invalid_request", None),
    ("null", "null", "invalid_request", None),
    ("unknown field", f'{{"inputs": [[1, 2, 3, 4, 5]], "{MARKER}": 1}}', "unknown_field", None),
    ("field twice", f'{{"inputs": [[1, 2, 3, 4, 5]], "inputs": "{MARKER}"}}', "duplicate_name", None),
    ("feature twice", '{"inputs": [{"a": 1, "a": 2}]}', "duplicate_name", None),
    ("no inputs", "{}", "missing_inputs", "inputs"),
    ("no rows", '{"inputs": []}', "empty_input", "inputs"),
    ("inputs null", '{"inputs": null}', "invalid_inputs", "inputs"),
    ("inputs string", f'{{"inputs": "{MARKER}"}}', "invalid_inputs", "inputs"),
    ("inputs object", f'{{"inputs": {{"{MARKER}": 1}}}}', "invalid_inputs", "inputs"),
    ("flat row", '{"inputs": [1, 2, 3, 4, 5]}', "invalid_inputs", "inputs"),
    ("rows of both kinds", '{"inputs": [[1, 2, 3, 4, 5], {"a": 1}]}', "invalid_inputs", "inputs"),
    ("empty row", '{"inputs": [[]]}', "wrong_feature_count", "inputs"),
    ("four features", '{"inputs": [[1, 2, 3, 4]]}', "wrong_feature_count", "inputs"),
    ("six features", '{"inputs": [[1, 2, 3, 4, 5, 6]]}', "wrong_feature_count", "inputs"),
    ("ragged rows", '{"inputs": [[1, 2, 3, 4, 5], [1, 2, 3, 4]]}', "ragged_rows", "inputs"),
    ("number as a string", '{"inputs": [["1", 2, 3, 4, 5]]}', "not_a_number", "inputs"),
    ("string", f'{{"inputs": [["{MARKER}", 2, 3, 4, 5]]}}', "not_a_number", "inputs"),
    ("NaN as a string", '{"inputs": [["NaN", 2, 3, 4, 5]]}', "not_a_number", "inputs"),
    ("boolean", '{"inputs": [[true, 2, 3, 4, 5]]}', "not_a_number", "inputs"),
    ("null where nothing may be missing", '{"inputs": [[null, 2, 3, 4, 5]]}', "missing_value", "inputs"),
    ("nested row", '{"inputs": [[[1], 2, 3, 4, 5]]}', "nested_input", "inputs"),
    ("object in a row", f'{{"inputs": [[{{"{MARKER}": 1}}, 2, 3, 4, 5]]}}', "nested_input", "inputs"),
    ("deep nesting", '{"inputs": ' + "[" * 200_000, "nested_too_deeply", None),
    ("deep nesting, closed", "[" * 100_000 + "]" * 100_000, "nested_too_deeply", None),
    ("exponent above a double", '{"inputs": [[1e400, 2, 3, 4, 5]]}', "number_out_of_range", "inputs"),
    ("digits above a double", f'{{"inputs": [[-{NUMBER_TEXT}, 2, 3, 4, 5]]}}', "number_out_of_range", "inputs"),
    ("result above a double", '{"inputs": [[1.7e308, -1.7e308, 1.7e308, -1.7e308, 1.7e308]]}', "result_overflow",
     "inputs"),
    ("rows as objects without feature names", f'{{"inputs": [{{"{MARKER}": 1}}]}}', "no_feature_names", "inputs"),
    ("model not a string", '{"inputs": [[1, 2, 3, 4, 5]], "model": 1}', "invalid_model", "model"),
    ("model null", '{"inputs": [[1, 2, 3, 4, 5]], "model": null}', "invalid_model", "model"),
    ("unknown model", f'{{"inputs": [[1, 2, 3, 4, 5]], "model": "{MARKER}"}}', "model_not_found", "model"),
    ("model of a lone surrogate", '{"inputs": [[1, 2, 3, 4, 5]], "model": "\\ud800"}', "model_not_found", "model"),
    ("parameters not an object", f'{{"inputs": [[1, 2, 3, 4, 5]], "parameters": "{MARKER}"}}', "invalid_parameters",
     "parameters"),
    ("unknown parameter", f'{{"inputs": [[1, 2, 3, 4, 5]], "parameters": {{"{MARKER}": 1}}}}', "unknown_parameter",
     "parameters"),
    ("flag not a boolean", '{"inputs": [[1, 2, 3, 4, 5]], "parameters": {"return_probabilities": 1}}',
     "invalid_parameters", "parameters.return_probabilities"),
]


def check_refusal(client: serving.Client, body: bytes, code: str, param: str | None) -> dict:
    """The error of a refused body; the connection must stay usable."""
    response = client.ask(post(body))
    assert (response.status, response.code) == (404 if code == "model_not_found" else 400, code)
    error = response.json()["error"]
    assert error["param"] == param and error["message"] and MARKER not in response.body.decode()
    assert client.ask(predict_request()).status == 200
    return error


@pytest.mark.core
@pytest.mark.parametrize("body, code, param", [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused_body_gets_its_code_and_the_next_one_is_served(server, body, code, param):
    with server.connect() as client:
        check_refusal(client, body.encode(), code, param)


@pytest.mark.core
@pytest.mark.parametrize("body, offset", [
    (b"{]", 1), (b'{"inputs": [[1, 2, 3, 4, x]]}', 25), ('{"ü": é}'.encode(), 7), (b'{"inputs": "\xff"}', 12), (b"", 0),
])
def test_bad_json_is_told_with_its_byte_offset(server, body, offset):
    with server.connect() as client:
        error = check_refusal(client, body, "invalid_json", None)
        assert error["message"].endswith(f" at byte {offset}.")


@pytest.mark.core
@pytest.mark.parametrize("data", [
    request("GET", f"/{MARKER}"), request("GET", f"/v1/models/{MARKER}"), request("GET", f"/health?{MARKER}=1"),
    request("GET", "/nothing", headers={"X-Any": MARKER, "Cookie": MARKER, "Authorization": f"Bearer {MARKER}"}),
    request(MARKER, "/health"), request("GET", "/health", headers={"Host": MARKER}),
    request("POST", "/v1/predict", b"{}", {"Content-Type": MARKER}), request("GET", "/", headers={"Expect": MARKER}),
    request("POST", "/v1/predict", headers={"Transfer-Encoding": MARKER}), f"{MARKER}\t".encode(),
    request("GET", "/", headers={"Content-Length": MARKER}), f"GET {MARKER}".encode(),
])
def test_errors_repeat_nothing_of_the_request(server, data):
    response = server.ask(data)
    assert response.status >= 400
    assert MARKER.lower() not in (str(response.headers) + response.body.decode()).lower()


# --- several models -----------------------------------------------------------------------------

def local(path: Path) -> kernels.TabularModel:
    return kernels.load(path, native=False)


@pytest.mark.parametrize("name", ["linear", "digits", "price/2"])
def test_model_is_chosen_by_name_and_answers_as_the_library_does(several, model_files, name):
    rows = np.random.default_rng(1).normal(size=(50, 3))
    response = several.ask(predict_request(rows.tolist(), model=name)).json()
    assert response["predictions"] == local(model_files[name]).predict(rows).tolist()
    assert (response["model"], response["version"]) == (name, "1.2.3")


@pytest.mark.parametrize("name", ["linear", "digits"])
def test_labels_keep_their_type_and_probabilities_their_order(several, model_files, name):
    rows = np.random.default_rng(2).normal(size=(20, 3))
    response = several.ask(predict_request(rows.tolist(), model=name, parameters={"return_probabilities": True})).json()
    model = local(model_files[name])
    assert response["probabilities"] == model.predict_proba(rows).tolist()
    assert {type(label) for label in response["predictions"]} == {type(model.signature.classes[0])}


def test_first_model_answers_when_none_is_named(several):
    assert several.ask(predict_request()).json()["model"] == "fraud-detector"
    assert several.ask(predict_request(model="fraud-detector")).json()["model"] == "fraud-detector"


def test_every_model_is_listed_and_described(several, model_files):
    listing = several.ask(request("GET", "/v1/models")).json()
    assert [model["id"] for model in listing["data"]] == ["fraud-detector", *model_files]
    for model in listing["data"][1:]:
        for target in (model["id"], model["id"].replace("/", "%2F")):
            assert several.ask(request("GET", f"/v1/models/{target}")).json() == model
    assert listing["data"][1]["feature_names"] == ["age", "größe", "income"]


def test_rows_as_objects_are_read_by_feature_name(several, model_files):
    rows = [{"income": 100, "age": 1, "größe": 2.5}, {"age": 4, "größe": -5, "income": 6}]
    response = several.ask(predict_request(rows, model="linear")).json()
    assert response["predictions"] == local(model_files["linear"]).predict([[1, 2.5, 100], [4, -5, 6]]).tolist()


@pytest.mark.parametrize("row", [{"age": 1, "income": 2}, {"age": 1, "größe": 2, "income": 3, MARKER: 4},
                                 {"age": 1, "größe": 2, MARKER: 3}, {}])
def test_objects_with_other_features_are_refused(several, row):
    with several.connect() as client:
        check_refusal(client, json.dumps({"inputs": [row], "model": "linear"}).encode(), "wrong_features", "inputs")


def test_missing_values_are_filled_where_the_model_takes_them(several, model_files):
    rows = [[None, 1, 2], [1, None, None], [None] * 3]
    expected = local(model_files["linear"]).predict(np.array(rows, float)).tolist()
    assert several.ask(predict_request(rows, model="linear")).json()["predictions"] == expected
    objects = [dict(zip(("age", "größe", "income"), row)) for row in rows]
    assert several.ask(predict_request(objects, model="linear")).json()["predictions"] == expected
    assert several.ask(predict_request(rows, model="digits")).code == "missing_value"


def test_regressor_has_no_probabilities(several):
    with several.connect() as client:
        body = {"inputs": [[1, 2, 3]], "model": "price/2", "parameters": {"return_probabilities": True}}
        check_refusal(client, json.dumps(body).encode(), "no_probabilities", "parameters.return_probabilities")
        assert client.ask(predict_request([[1, 2, 3]], model="price/2")).status == 200


# --- strings, names and missing values ----------------------------------------------------------

@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def shop(request: pytest.FixtureRequest) -> Iterator[serving.Server]:
    """A server of the models that say back what they are given."""
    with serving.start(command=STAND_INS, native=request.param) as server:
        yield server


SHOP_ROW = {"amount": 2.5, "colour": "red", "hour": 7, "country": "FR"}
ECHO = {"return_probabilities": True}


@pytest.mark.core
@pytest.mark.parametrize(("row", "values"), [
    ({}, [2.5, 0, 7, 1]), ({"colour": "green", "country": "ES"}, [2.5, 1, 7, 2]), ({"colour": ""}, [2.5, 2, 7, 1]),
    ({"colour": "nobody's"}, [2.5, -1, 7, 1]), ({"colour": "Red", "country": "?"}, [2.5, -1, 7, -1]),
    ({"colour": "grün"}, [2.5, 5, 7, 1]), ({"colour": 'a "quoted" \\ one'}, [2.5, 4, 7, 1]),
    ({"colour": "🙂"}, [2.5, 7, 7, 1]),
    ({"colour": None, "hour": None}, [2.5, MISSING, MISSING, 1]), ({"amount": None}, [MISSING, 0, 7, 1]),
    ({"amount": -1e308, "hour": 0}, [-1e308, 0, 0, 1]),
])
def test_each_value_gets_to_its_place(shop, row, values):
    row = SHOP_ROW | row
    for rows in ([row], [dict(reversed(row.items()))], [SHOP_ROW, row], [list(row.values())]):
        for ensure_ascii in (True, False):
            body = json.dumps({"model": "shop", "inputs": rows, "parameters": ECHO}, ensure_ascii=ensure_ascii)
            assert shop.ask(post(body.encode())).json()["probabilities"][-1] == values


@pytest.mark.core
@pytest.mark.parametrize(("model", "row", "code", "names"), [
    ("shop", SHOP_ROW | {"colour": 1}, "not_a_string", "Feature 1, 'colour',"),
    ("shop", SHOP_ROW | {"colour": True}, "not_a_string", "'colour'"),
    ("shop", SHOP_ROW | {"hour": "7"}, "not_a_number", "Feature 2, 'hour',"),
    ("shop", SHOP_ROW | {"hour": False}, "not_a_number", "'hour'"),
    ("shop", SHOP_ROW | {"hour": [1]}, "nested_input", ""),
    ("shop", SHOP_ROW | {"country": None}, "missing_value", "'country'"),
    ("shop", SHOP_ROW | {"hour": 1e400}, "invalid_json", ""),
    ("shop", {"amount": 1, "colour": "red", "hour": 3}, "wrong_features", "amount, colour, hour, country"),
    ("shop", SHOP_ROW | {MARKER: 1}, "wrong_features", "country"),
    ("shop", [1, "red", 3], "wrong_feature_count", "4 features"),
    ("shop", [1, 1, 3, "DE"], "not_a_string", "Feature 1, 'colour',"),
    ("strict", {"größe": 1, "": 2, 'say "no"': 3, "colour": MARKER}, "unknown_category", "red, green"),
    ("strict", [1, 2, None, "red"], "missing_value", "'say \"no\"'"),
    ("nameless", ["red", 1], "not_a_string", "Feature 1 "), ("nameless", [None, "x"], "missing_value", "Feature 0 "),
    ("nameless", {"a": 1, "b": 2}, "no_feature_names", ""), ("plain", [1, "x", 3], "not_a_number", "Feature 1 "),
    ("plain", [1, 2, None], "missing_value", "Feature 2 "), ("plain", [1, True, None], "not_a_number", "Feature 1 "),
    ("wide", {}, "wrong_features", "f0, f1, f2, "), ("slow", ["1", "a"], "not_a_number", "'x'"),
    ("slow", [1, None], None, ""), ("slow", {"x": 1, "y": "?"}, None, ""),
])
def test_row_with_a_wrong_value_is_refused_by_the_feature_s_name(shop, model, row, code, names):
    response = shop.ask(predict_request([row], model=model))
    if code is None:
        assert response.status == 200
        return
    assert (response.status, response.code) == (400, code)
    error = response.json()["error"]
    assert names in error["message"] and MARKER not in error["message"] and len(error["message"]) < 600


@pytest.mark.core
def test_models_say_what_each_feature_takes(shop):
    model = shop.ask(request("GET", "/v1/models/shop")).json()
    assert model["feature_names"] == ["amount", "colour", "hour", "country"] and model["takes_missing"]
    assert [feature["type"] for feature in model["features"]] == ["number", "string", "number", "string"]
    assert [feature["takes_missing"] for feature in model["features"]] == [True, True, True, False]
    assert model["features"][3] == {"name": "country", "type": "string", "takes_missing": False,
                                    "categories": ["DE", "FR", "ES"]}
    plain = shop.ask(request("GET", "/v1/models/plain")).json()
    assert plain["features"] == [{"name": None, "type": "number", "takes_missing": False}] * 3


@pytest.mark.core
def test_predictions_of_several_outputs_are_lists_and_labels_keep_their_type(shop):
    assert shop.ask(predict_request([[1], [2.5]], model="several")).json()["predictions"] == [
        [1, 2, 3, 4, 5], [2.5, 3.5, 4.5, 5.5, 6.5]]
    assert shop.ask(predict_request([[0, 0, 0, "green"]], model="strict")).json()["predictions"] == [-1e300]
    assert shop.ask(predict_request([[1], [2]], model="long")).json()["predictions"] == ["ü" * 500, "no"]
