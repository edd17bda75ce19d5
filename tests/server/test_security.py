"""Who may ask what: API keys, the hosts that a request may name, and pages of other origins."""

from collections.abc import Iterator

import pytest

from tests import serving
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

KEYS = ("first-key", "second key")
ORIGIN = "https://app.example"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def locked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Server]:
    """A server that wants a key, serves pages of ORIGIN and answers for two names."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("\n".join(["", *KEYS, ""]))
    with serving.start("--api-key-file", keys, "--cors-origin", ORIGIN, "--allowed-hosts", "Model.Example, localhost",
                       native=request.param) as server:
        yield server


def everything(**fields: str) -> list[bytes]:
    """Requests of all kinds that need a key: for the hot path, for Python's predict, and for other routes."""
    fields = {name.replace("_", "-"): value for name, value in fields.items()}
    return [predict_request(headers=fields), predict_request(headers=fields | {"X-Request-Id": "a"}),
            request("GET", "/metrics", headers=fields), request("GET", "/v1/models", headers=fields),
            request("GET", "/openapi.json", headers=fields), request("GET", "/", headers=fields)]


# --- keys ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [*(f"Bearer {key}" for key in KEYS), "bearer first-key", "BEARER  first-key \t"])
def test_each_key_opens_everything(locked, value):
    with locked.connect() as client:
        for data in everything(Authorization=value):
            assert client.ask(data).status == 200


@pytest.mark.parametrize("value", [
    None, "", "Bearer", "Bearer ", "first-key", "Bearer first-ke", "Bearer first-keyx", "Bearer First-Key",
    "Basic first-key", "Bearer first-key second key", "Bearer first-key, Bearer first-key", "Bearerfirst-key",
    "Bearer \xe9", "Bearer \x80" * 99,
])
def test_anything_else_gets_401_and_keeps_the_connection(locked, value):
    with locked.connect() as client:
        for data in everything(**({} if value is None else {"Authorization": value})):
            response = client.ask(data)
            assert (response.status, response.code) == (401, "invalid_api_key")
            assert response.headers["WWW-Authenticate"] == "Bearer"
        assert client.ask(everything(Authorization="Bearer first-key")[0]).status == 200


def test_who_has_no_key_does_not_learn_which_paths_there_are(locked):
    for data in (request("GET", "/nothing"), request("PUT", "/v1/predict"), request("GET", "/v1/models/x")):
        assert locked.ask(data).code == "invalid_api_key"


def test_health_and_ready_need_no_key(locked):
    for path in ("/health", "/ready"):
        assert locked.ask(request("GET", path)).status == 200


def test_description_of_the_api_names_the_key(locked, server):
    document = locked.ask(request("GET", "/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"})).json()
    assert document["security"] == [{"key": []}]
    assert "security" not in server.ask(request("GET", "/openapi.json")).json()


# --- hosts --------------------------------------------------------------------------------------

@pytest.mark.parametrize("host", ["localhost", "LocalHost", "localhost:1", "127.0.0.1", "127.0.0.1:65535", "[::1]",
                                  "[::1]:80"])
def test_loopback_names_are_served(server, host):
    with server.connect() as client:
        for data in everything(Host=host):
            assert client.ask(data).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhos",
                                  "10.0.0.1", "localhost.", "evil.example:80", "[::2]"])
def test_other_names_get_421_and_keep_the_connection(server, host):
    with server.connect() as client:
        for data in (*everything(Host=host), request("GET", "/health", headers={"Host": host})):
            response = client.ask(data)
            assert (response.status, response.code) == (421, "host_not_allowed")
        assert client.ask(predict_request()).status == 200


def test_host_of_an_absolute_target_is_the_one_that_counts(server):
    assert server.ask(request("GET", "http://evil.example/health")).status == 421
    assert server.ask(request("GET", "http://localhost/health", headers={"Host": "evil.example"})).status == 200


@pytest.mark.parametrize("host, status", [("model.example", 200), ("MODEL.example:99", 200), ("localhost", 200),
                                          ("127.0.0.1", 421), ("example", 421)])
def test_allowed_hosts_replace_the_loopback_names(locked, host, status):
    with locked.connect() as client:
        for data in everything(Host=host, Authorization="Bearer first-key"):
            assert client.ask(data).status == status


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("args", [("--allowed-hosts", "*"), ("--host", "0.0.0.0")], ids=["star", "not loopback"])
def test_any_host_is_served_where_there_is_no_list(args, native):
    with serving.start(*args, native=native) as server:
        for data in everything(Host="any.example"):
            assert server.ask(data).status == 200


# --- other origins ------------------------------------------------------------------------------

def cors_headers(response: serving.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control")}


def test_other_origins_are_told_nothing_by_default(server):
    for data in everything(Origin=ORIGIN):
        response = server.ask(data)
        assert response.status == 200 and cors_headers(response) == {}
    response = server.ask(request("OPTIONS", "/v1/predict", headers=PREFLIGHT))
    assert response.status == 405 and cors_headers(response) == {}


def test_named_origin_may_read_answers_and_errors(locked):
    for data in (*everything(Origin=ORIGIN, Authorization="Bearer first-key"), *everything(Origin=ORIGIN)):
        response = locked.ask(data)
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN and response.headers["Vary"] == "Origin"


def test_other_origin_may_not_read_them(locked):
    for origin in ("https://evil.example", "null", ORIGIN + ".evil.example", ORIGIN.upper(), "http://app.example"):
        for data in everything(Origin=origin, Authorization="Bearer first-key"):
            response = locked.ask(data)
            assert response.status == 200 and cors_headers(response) == {}


def test_preflight_of_the_named_origin_is_answered_without_a_key(locked):
    with locked.connect() as client:
        response = client.ask(request("OPTIONS", "/v1/predict", headers=PREFLIGHT))
        assert response.status == 204 and response.body == b"" and "Content-Length" not in response.headers
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert "authorization" in response.headers["Access-Control-Allow-Headers"]
        other = client.ask(request("OPTIONS", "/v1/predict", headers=PREFLIGHT | {"Origin": "https://evil.example"}))
        assert "Access-Control-Allow-Origin" not in other.headers
        assert client.ask(predict_request(headers={"Authorization": "Bearer first-key"})).status == 200


def test_star_lets_every_origin_read():
    with serving.start("--cors-origin", "*", native=False) as server:
        assert server.ask(predict_request(headers={"Origin": ORIGIN})).headers["Access-Control-Allow-Origin"] == "*"
