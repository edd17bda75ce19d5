"""`/metrics` after a known number of requests: exact, whoever served them."""

import json
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import serving
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

HOT, ROWS, BAD, HEALTHS = 40, 3, 5, 7


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def asked(request: pytest.FixtureRequest) -> Iterator[serving.Server]:
    """A server that has served just what the constants say, over several connections."""
    with serving.start(native=request.param) as server:
        server.is_native = request.param
        for _ in range(4):
            with server.connect() as client:
                client.send(predict_request([[1, 2, 3, 4, 5]] * ROWS) * (HOT // 4))
                for _ in range(HOT // 4):
                    assert client.receive().status == 200
        with server.connect() as client:
            for _ in range(2):
                assert client.ask(predict_request(headers={"Connection": "keep-alive, a"})).status == 200  # for Python
            for _ in range(BAD):
                assert client.ask(predict_request([[1]])).status == 400
            for _ in range(HEALTHS):
                client.ask(serving.request("GET", "/health"))
            client.ask(serving.request("GET", "/health?a"))
            client.ask(serving.request("GET", "/made-up-by-the-client"))
            client.ask(b"\0")
        yield server


def samples(server: serving.Server) -> dict[tuple, float]:
    """(name, *values of labels in the order of their names): value."""
    response = server.ask(request("GET", "/metrics"))
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(response.body.decode()) for sample in family.samples}


def test_requests_are_counted_exactly_by_route_status_and_path(asked):
    found = {key[1:]: value for key, value in samples(asked).items() if key[0] == "testigo_requests_total" and value}
    found.pop(("python", "/metrics", "200"), None)  # what this module itself asked
    python = {("python", "/v1/predict", "400"): BAD, ("python", "/health", "200"): HEALTHS,
              ("python", "/health", "400"): 1, ("python", "other", "404"): 1, ("python", "malformed", "400"): 1}
    if asked.is_native:
        assert found == python | {("hot", "/v1/predict", "200"): HOT, ("python", "/v1/predict", "200"): 2}
    else:
        assert found == python | {("python", "/v1/predict", "200"): HOT + 2}


def test_predictions_are_counted_in_rows(asked):
    assert samples(asked)["testigo_predictions_total", "fraud-detector"] == HOT * ROWS + 2


def test_latency_histogram_adds_up(asked):
    found = samples(asked)
    buckets = {key[1]: value for key, value in found.items() if key[0] == "testigo_predict_latency_seconds_bucket"}
    edges = sorted(buckets, key=float)
    counts = [buckets[edge] for edge in edges]
    assert counts == sorted(counts) and edges[-1] == "+Inf" and len(edges) > 10
    assert counts[-1] == found["testigo_predict_latency_seconds_count",] == HOT + 2
    # The sum lies between what the buckets' lower and upper bounds allow.
    per_bucket = [after - before for before, after in zip([0, *counts], counts)]
    lower = sum(n * float(edge) for n, edge in zip(per_bucket, ["0", *edges]))
    upper = sum(n * float(edge) for n, edge in zip(per_bucket, edges) if n)
    assert lower <= found["testigo_predict_latency_seconds_sum",] <= upper


def test_json_has_the_four_figures_of_the_course(asked):
    def ask() -> dict:
        return asked.ask(request("GET", "/metrics", headers={"Accept": "application/json"})).json()
    before, after = ask(), ask()
    assert list(before) == ["total_requests", "total_predictions", "avg_latency_ms", "uptime_seconds"]
    assert after["total_requests"] == before["total_requests"] + 1
    assert after["total_predictions"] == HOT * ROWS + 2
    assert 0 < after["avg_latency_ms"] < 1000 * after["uptime_seconds"] and after["uptime_seconds"] > 0


def test_total_of_json_is_the_sum_of_the_text(asked):
    text = sum(value for key, value in samples(asked).items() if key[0] == "testigo_requests_total")
    response = asked.ask(request("GET", "/metrics", headers={"Accept": "application/json"}))
    assert json.loads(response.body)["total_requests"] == text + 1  # the request for the text, counted as it was sent


def test_connections_are_counted_while_they_are_open(asked):
    with asked.connect() as first, asked.connect() as second:
        assert first.ask(predict_request()).status == second.ask(predict_request()).status == 200
        assert samples(asked)["testigo_connections",] >= 3


def test_process_figures_are_there(asked):
    assert samples(asked)["process_resident_memory_bytes",] > 1e6


@pytest.mark.parametrize("native", [True, False])
def test_refused_connections_are_counted(native):
    with serving.start("--max-connections", "2", native=native) as server, server.connect() as first, \
            server.connect() as second:
        assert first.ask(predict_request()).status == second.ask(predict_request()).status == 200
        for _ in range(3):
            with server.connect() as client:
                assert client.ask(predict_request()).status == 503
        metrics = first.ask(request("GET", "/metrics")).body.decode()
        assert "\ntestigo_refused_connections_total 3.0\n" in metrics
