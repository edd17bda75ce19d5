"""`/v1/explain` and `explain` in `/v1/predict`: what `kernels.explain` says, by name, and refusals by their code."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kernels
from kernels.explain import explain
from server import explain_api, models, sandbox
from server.errors import ApiError
from server.explain_api import MOST_VALUES
from tests import serving
from tests.server import trained_models
from tests.server.stand_in import STAND_INS
from tests.serving import predict_request, request

ROW, USUAL = [0.1, -2.0, 0.3, 40.0, 0.5], [[0.5, 0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1, 0]]


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for library in ("lightgbm", "xgboost", "pandas"):
        pytest.importorskip(library)
    return {path.stem: path for path in trained_models.write_all(tmp_path_factory.mktemp("models"))}


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def trees(request: pytest.FixtureRequest, model_files: dict[str, Path]) -> Iterator[serving.Server]:
    with serving.start(*model_files.values(), native=request.param) as server:
        yield server


def explain_request(inputs, model: str | None = None, **parameters) -> bytes:
    body = {"inputs": inputs, "parameters": parameters} | ({} if model is None else {"model": model})
    return request("POST", "/v1/explain", json.dumps(body).encode())


def added_up(explanation: dict) -> np.ndarray:
    return np.sum(explanation["values"], axis=-1) + explanation["base_value"]


def test_linear_model_is_explained_against_a_background(server):
    response = server.ask(explain_request([ROW, USUAL[0]], background=USUAL, reason_codes=2)).json()
    assert list(response) == ["explanations", "model", "version", "latency_ms"]
    expected = explain(kernels.load(kernels.DEFAULT_MODEL), np.array([ROW, USUAL[0]]), np.array(USUAL))
    for i, found in enumerate(response["explanations"]):
        assert found["values"] == expected.values[i, :, 0].tolist()
        assert added_up(found) == pytest.approx(found["score"], abs=1e-12)
        assert found["base_value"] == expected.base_values[0]
        strongest = np.argsort(-np.abs(found["values"]), kind="stable")[:2].tolist()
        assert found["reason_codes"] == [{"feature": i, "value": found["values"][i]} for i in strongest]


def test_prediction_comes_with_its_explanation(server):
    parameters = {"explain": True, "background": USUAL, "return_probabilities": True}
    response = server.ask(predict_request([ROW], parameters=parameters)).json()
    assert list(response) == ["predictions", "probabilities", "explanations", "model", "version", "latency_ms"]
    alone = server.ask(explain_request([ROW], background=USUAL)).json()
    assert response["explanations"] == alone["explanations"] and "reason_codes" not in alone["explanations"][0]
    assert response["predictions"] == [alone["explanations"][0]["score"]]


def test_trees_are_explained_by_feature_name_with_strings_and_nulls(trees, model_files):
    rows = [{"country": "DE", "amount": 31.5, "hour": None, "colour": "grün"},
            {"country": "nowhere", "amount": 3, "hour": 5, "colour": "red"}]
    model = kernels.load(model_files["shop"])
    expected = explain(model, np.array([[31.5, 1, np.nan, 0], [3, 2, 5, np.nan]]))
    response = trees.ask(explain_request(rows, "shop", reason_codes=4)).json()
    for i, found in enumerate(response["explanations"]):
        assert found["values"] == expected.values[i, :, 0].tolist()
        assert added_up(found) == pytest.approx(found["score"], abs=1e-12)
        names = [code["feature"] for code in found["reason_codes"]]
        assert sorted(names) == sorted(model.signature.feature_names)
    against = trees.ask(explain_request(rows[:1], "shop", background=rows)).json()["explanations"][0]
    assert added_up(against) == pytest.approx(against["score"], abs=1e-12)
    assert against["score"] == response["explanations"][0]["score"]
    assert against["values"] != response["explanations"][0]["values"]


def test_models_say_whether_and_how_they_are_explained(trees):
    said = {model["id"]: model["explanation"] for model in trees.ask(request("GET", "/v1/models")).json()["data"]}
    assert said["shop"] == said["forty"] == {"needs_background": False}


def test_several_scores_have_a_list_each(trees):
    found = trees.ask(explain_request([[1, 2, 3]], "three", reason_codes=1)).json()["explanations"][0]
    assert np.shape(found["values"]) == (3, 3) and len(found["base_value"]) == len(found["score"]) == 3
    assert added_up(found) == pytest.approx(found["score"], abs=1e-12)
    assert [len(codes) for codes in found["reason_codes"]] == [1, 1, 1]


@pytest.mark.parametrize(("inputs", "parameters", "code", "param"), [
    ([ROW], {}, "missing_background", "parameters.background"),
    ([ROW], {"background": []}, "empty_input", "parameters.background"),
    ([ROW], {"background": [[1]]}, "wrong_feature_count", "parameters.background"),
    ([ROW], {"background": "x"}, "invalid_inputs", "parameters.background"),
    ([ROW], {"background": USUAL, "reason_codes": 0}, "invalid_parameters", "parameters.reason_codes"),
    ([ROW], {"background": USUAL, "reason_codes": 6}, "invalid_parameters", "parameters.reason_codes"),
    ([ROW], {"background": USUAL, "reason_codes": 1.5}, "invalid_parameters", "parameters.reason_codes"),
    ([ROW], {"background": USUAL, "reason_codes": True}, "invalid_parameters", "parameters.reason_codes"),
    ([ROW], {"return_probabilities": True}, "unknown_parameter", "parameters"),
    ([[1e308] * 5], {"background": [[-1e308] * 5]}, "result_overflow", "inputs"),
    ([[1]], {"background": USUAL}, "wrong_feature_count", "inputs"), ([], {}, "empty_input", "inputs"),
])
def test_what_cannot_be_explained_is_refused_by_its_code(server, inputs, parameters, code, param):
    response = server.ask(explain_request(inputs, **parameters))
    assert (response.status, response.code) == (400, code)
    assert response.json()["error"]["param"] == param


def test_parameters_of_explaining_need_explain(server):
    assert server.ask(predict_request([ROW], parameters={"background": USUAL})).code == "invalid_parameters"
    assert server.ask(predict_request([ROW], parameters={"explain": 1})).code == "invalid_parameters"
    assert server.ask(predict_request([ROW], parameters={"explain": True})).code == "missing_background"


def test_explanation_of_too_many_values_is_refused(trees):
    response = trees.ask(explain_request([[0] * 40] * (MOST_VALUES // 40 + 1), "forty"))
    assert (response.status, response.code) == (400, "explanation_too_large")
    assert trees.ask(explain_request([[0] * 40] * 9, "forty")).status == 200


def test_explanation_that_would_take_long_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(explain_api, "MOST_WORK_NS", 0)
    served = models.load([], native=False)
    with pytest.raises(ApiError, match="too long") as refused:
        explain_api.explain(served, json.dumps({"inputs": [ROW], "parameters": {"background": USUAL}}).encode())
    assert (refused.value.status, refused.value.code) == (400, "explanation_too_large")


def test_model_without_an_exact_explanation_is_refused():
    with serving.start(command=STAND_INS) as server:
        response = server.ask(explain_request([[1, 2, 3]], "plain"))
        assert (response.status, response.code) == (400, "no_explanation")
        said = {model["id"]: model["explanation"] for model in server.ask(request("GET", "/v1/models")).json()["data"]}
        assert said["plain"] is None and said["fraud-detector"] == {"needs_background": True}
        assert server.ask(explain_request([ROW], background=USUAL)).status == 200


def test_explaining_opens_nothing_and_compiles_nothing(model_files):
    """In the sandbox, whose default profile lets no file be opened, trees are explained for the first time."""
    if reason := sandbox.unsupported():
        pytest.skip(reason)
    rows = [[31.5, "grün", None, "DE"]]
    with serving.start(model_files["shop"], model_files["three"], "--sandbox") as server:
        assert server.ask(explain_request(rows, "shop")).status == 200
        assert server.ask(explain_request(rows, "shop", background=rows * 100)).status == 200
        assert server.ask(explain_request([[1, 2, 3]] * 200, "three", reason_codes=2)).status == 200
        assert server.stop() == 0
