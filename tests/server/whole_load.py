"""Every endpoint of a real server, with good and bad requests: what a server must be able to do at any time."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

from tests import serving
from tests.serving import predict_request, request

PATHS = ("/", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/models/x", "/v1/models/%ff",
         "/nothing", "/health?x")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "DELETE")
ROW = [0.1, 0.2, 0.3, 0.4, 0.5]
BODY = json.dumps({"inputs": [ROW]}).encode()
CHUNKED = (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
           b"Transfer-Encoding: chunked\r\n\r\n")
GOOD = [
    predict_request(), predict_request(headers={"X-Request-Id": "good-1"}), predict_request([ROW] * 20_000),
    predict_request([dict(zip("abcde", ROW))]), predict_request(parameters={"return_probabilities": True}),
    CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    request("GET", "/metrics", headers={"Accept": "application/json"}),
    request("POST", "/v1/explain", json.dumps({"inputs": [ROW], "parameters": {"background": [ROW]}}).encode()),
]
BAD_BODIES = [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"inputs": []}', b'{"inputs": [[1]]}',
              b'{"inputs": [[1, 2, 3, 4, "x"]]}', b'{"inputs": [[1, 2, 3, 4, NaN]]}', b'{"a": 1, "a": 2}',
              b'{"inputs": [[1, 2, 3, 4, 5]], "model": "x"}', '{"é": "\\ud800"}'.encode()]
BAD = [
    *(request("POST", "/v1/predict", body) for body in BAD_BODIES),
    request("POST", "/v1/predict", BODY, {"Content-Type": "text/plain"}),
    request("POST", "/v1/predict", BODY, {"Content-Encoding": "gzip"}),
    request("POST", "/v1/predict", None, {"Content-Length": "99999999999"}),
    request("GET", "/health", headers={"Host": "other"}),
    request("GET", "/health", headers={"X-Request-Id": "a b/\xe9"}),
    CHUNKED + b"no length\r\n", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/3\r\n\r\n", b"x" * 70_000,
]


def requests() -> Iterator[bytes]:
    for method in METHODS:
        for path in PATHS:
            yield request(method, path, b"{}" if method == "POST" else None)
    yield from GOOD
    yield from BAD


def statuses(server: serving.Server) -> list[int]:
    """Send all of it, each request on a connection of its own → the statuses; none tells of a bug."""
    found = []
    for data in requests():
        found.append(server.ask(data).status)
        assert found[-1] != 500, data[:200]
    return found


def drive(server: serving.Server) -> list[int]:
    """All requests, and clients that keep their connection, wait for leave, are slow, or leave early."""
    found = statuses(server)
    with server.connect() as client:
        for _ in range(100):
            assert client.ask(predict_request()).status == 200
        client.send_each_byte(request("GET", "/health"))
        assert client.receive().status == 200
    with server.connect() as client:
        begin(client)
        assert finish(client) == 200
    with server.connect(receive_buffer_bytes=2048) as client:
        assert client.ask(predict_request([ROW] * 20_000)).status == 200
    with server.connect() as client:
        client.send(predict_request()[:50])
    return found


def begin(client: serving.Client) -> None:
    """Send a request but for its body, and know that the server is at it."""
    client.send(request("POST", "/v1/predict", BODY, {"Expect": "100-continue"})[:-len(BODY)])
    assert client.receive().status == 100


def finish(client: serving.Client) -> int:
    """Send the body → the status of the answer."""
    client.send(BODY)
    return client.receive().status


def crowd(server: serving.Server, n: int) -> None:
    """Clients that all have a request in flight at once, which Python serves."""
    data = request("POST", "/v1/predict", json.dumps({"inputs": [ROW] * 4000}).encode())  # more than a loop receives
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(n)]
        for client in clients:
            client.send(data[:-1])
        for client in clients:
            client.send(data[-1:])
            assert client.receive().status == 200
