"""`/openapi.json`: a valid document, of exactly the routes that there are, that tells the truth about answers."""

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from server import openapi
from server.application import ROUTES
from tests import serving
from tests.serving import predict_request, request


@pytest.mark.parametrize("authorized", [False, True])
def test_document_is_valid_openapi(authorized):
    validate(openapi.document(authorized))


def test_document_is_what_the_server_gives(server):
    assert server.ask(request("GET", "/openapi.json")).json() == openapi.document(authorized=False)


def test_document_and_routes_are_the_same_set():
    methods = {"get", "post", "put", "delete", "patch"}
    described = {(path, method.upper()) for path, item in openapi.document(False)["paths"].items()
                 for method in methods & set(item)}
    assert described == {(path, method) for path, route in ROUTES.items() for method in route}


def check(response: serving.Response, path: str, method: str) -> None:
    """The answer is one that the document describes."""
    document = openapi.document(False)
    responses = document["paths"][path][method]["responses"]
    described = responses.get(str(response.status), responses["default"])
    kind = response.headers["Content-Type"].partition(";")[0]
    schema = described["content"][kind]["schema"]
    if kind == "application/json":
        Draft202012Validator({**schema, "components": document["components"]}).validate(response.json())


@pytest.mark.parametrize("path, method, data, status", [
    ("/", "get", request("GET", "/"), 200),
    ("/health", "get", request("GET", "/health"), 200),
    ("/ready", "get", request("GET", "/ready"), 200),
    ("/metrics", "get", request("GET", "/metrics"), 200),
    ("/metrics", "get", request("GET", "/metrics", headers={"Accept": "application/json"}), 200),
    ("/openapi.json", "get", request("GET", "/openapi.json"), 200),
    ("/v1/models", "get", request("GET", "/v1/models"), 200),
    ("/v1/models/{id}", "get", request("GET", "/v1/models/fraud-detector"), 200),
    ("/v1/models/{id}", "get", request("GET", "/v1/models/none"), 404),
    ("/v1/predict", "post", predict_request(), 200),
    ("/v1/predict", "post", predict_request(parameters={"return_probabilities": True}), 200),
    ("/v1/predict", "post", predict_request([[1]]), 400),
    ("/v1/predict", "post", predict_request(model="none"), 404),
    ("/v1/predict", "post", request("POST", "/v1/predict", headers={"Content-Length": "99999999"}), 413),
    ("/v1/predict", "post", request("POST", "/v1/predict", b"", {"Content-Type": "text/csv"}), 415),
    ("/v1/predict", "post", request("POST", "/v1/predict?a"), 400),
])
def test_answers_are_as_described(server, path, method, data, status):
    response = server.ask(data)
    assert response.status == status
    check(response, path, method)


def test_example_request_is_served(server):
    example = openapi.document(False)["components"]["schemas"]["PredictRequest"]["example"]
    assert server.ask(predict_request(**example)).status == 200


def test_page_loads_nothing_from_elsewhere(server):
    response = server.ask(request("GET", "/"))
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert b"://" not in response.body
