"""HTTP/1.1 as clients use it: connections, bodies, methods, headers; the same from the native and the Python server."""

import http.client
import json
import re
import select
import socket
import threading
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import pytest

import kernels
from tests import serving
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

MODEL = kernels.load(kernels.DEFAULT_MODEL, native=False)
ROW = [0.1, 0.2, 0.3, 0.4, 0.5]
BODY = json.dumps({"inputs": [ROW]}).encode()
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}


def predictions(rows: list[list[float]]) -> list[float]:
    return MODEL.predict(rows).tolist()


def chunked(body: bytes, chunk_bytes: int = 7) -> bytes:
    pieces = [body[i:i + chunk_bytes] for i in range(0, len(body), chunk_bytes)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def chunked_request(body: bytes, **fields: str) -> bytes:
    return request("POST", "/v1/predict", headers=CHUNKED | fields) + chunked(body)


def padded_body(size_bytes: int) -> bytes:
    """A predict body of exactly this size."""
    return BODY[:-1] + b" " * (size_bytes - len(BODY)) + b"}"


# --- connections --------------------------------------------------------------------------------

def test_connection_serves_many_requests(server):
    with server.connect() as client:
        for i in range(100):
            response = client.ask(predict_request([[i, 2, 3, 4, 5]]))
            assert response.json()["predictions"] == predictions([[i, 2, 3, 4, 5]])
            assert "Connection" not in response.headers


def test_standard_client_reuses_its_connection(server):
    client = http.client.HTTPConnection(server.host, server.port, timeout=serving.WAIT_S)
    for method, path, body in [("POST", "/v1/predict", BODY), ("GET", "/health", None), ("POST", "/v1/predict", BODY)]:
        client.request(method, path, body)
        used = client.sock
        response = client.getresponse()
        assert response.status == 200 and response.read() and client.sock is used
    client.close()


def mixed_requests(n: int) -> list[tuple[bytes, object]]:
    """Requests for the hot path and for Python in turn, each with what its answer must hold."""
    mixed = []
    for i in range(n):
        row = [i, 1, 2, 3, 4]
        body = json.dumps({"inputs": [row]}).encode()
        mixed += [(predict_request([row]), predictions([row])),
                  (request("GET", f"/v1/models/none-{i}", headers={"X-Request-Id": f"id-{i}"}), f"id-{i}"),
                  (chunked_request(body), predictions([row])),
                  (request("POST", "/v1/predict", body[:-1]), "invalid_json")]
    return mixed


def check_mixed(client: serving.Client, mixed: list[tuple[bytes, object]]) -> None:
    for _, expected in mixed:
        response = client.receive()
        if isinstance(expected, list):
            assert response.json()["predictions"] == expected
        else:
            assert expected in (response.headers["X-Request-Id"], response.code)


def test_pipelined_requests_are_answered_in_order(server):
    mixed = mixed_requests(50)
    with server.connect() as client:
        client.send(b"".join(data for data, _ in mixed))
        check_mixed(client, mixed)


def test_pipelined_requests_in_any_pieces_are_answered_in_order(server):
    mixed = mixed_requests(4)
    data = b"".join(request for request, _ in mixed)
    for step in (1, 13, 200):
        with server.connect() as client:
            for i in range(0, len(data), step):
                client.send(data[i:i + step])
            check_mixed(client, mixed)


@pytest.mark.parametrize("first", [predict_request(headers={"Connection": "close"}),
                                   request("GET", "/health", headers={"Connection": "Close"})], ids=["hot", "python"])
def test_connection_close_ends_it_and_what_follows_is_not_served(server, first):
    with server.connect() as client:
        response = client.ask(first + predict_request())
        assert response.status == 200 and response.headers["Connection"] == "close"
        assert client.is_closed()


@pytest.mark.parametrize("data", [predict_request(), chunked_request(BODY), request("GET", "/health")],
                         ids=["hot", "chunked", "get"])
def test_half_closed_client_gets_its_answer(server, data):
    with server.connect() as client:
        client.send(data)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.receive().status == 200
        assert client.is_closed()


def test_clients_that_leave_in_the_middle_disturb_nobody(server):
    for data in (predict_request(), chunked_request(BODY), request("GET", "/health")):
        for cut in (1, len(data) // 2, len(data) - 1):
            with server.connect() as client:
                client.send(data[:cut])
    assert server.ask(predict_request()).status == 200
    assert server.ask(request("GET", "/health")).status == 200


def test_client_that_reads_late_gets_every_answer(server):
    """The answers are many times what the socket buffers hold, so that the server must wait for this client."""
    rows = [[i, 1, 2, 3, 4] for i in range(100)]
    n, data, expected = 2500, predict_request(rows), predictions(rows)
    with server.connect(receive_buffer_bytes=4096) as client:
        sender = threading.Thread(target=client.send, args=(data * n,))
        sender.start()
        sender.join(0.3)  # usually it is stuck by now; the answers must be right either way
        for _ in range(n):
            assert client.receive().json()["predictions"] == expected
        sender.join()


def test_last_answer_to_a_client_that_reads_late_is_followed_by_the_end(server):
    """The answer is larger than the socket buffers, and it is the last: whoever finishes sending it must also close."""
    rows = [[1, 2, 3, 4, 5]] * 5000
    body = json.dumps({"inputs": rows, "parameters": {"return_probabilities": True}}, separators=(",", ":")).encode()
    data = request("POST", "/v1/predict", body, {"Content-Type": "application/json", "Connection": "close"})
    with server.connect(timeout_s=5, receive_buffer_bytes=4096) as client:
        client.send(data)
        wait_readable(client)
        assert len(client.receive().json()["probabilities"]) == len(rows)
        assert client.is_closed()


def wait_readable(client: serving.Client) -> None:
    """Until the first bytes are there, so that the server has met a full socket buffer before any are read."""
    assert select.select([client.socket], [], [], serving.WAIT_S)[0]


# --- bodies -------------------------------------------------------------------------------------

@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_chunked_body_is_the_body(server, chunk_bytes):
    data = request("POST", "/v1/predict", headers=CHUNKED) + chunked(BODY, chunk_bytes)
    with server.connect() as client:
        for _ in range(3):
            assert client.ask(data).json()["predictions"] == predictions([ROW])


def test_chunk_extensions_and_trailers_are_discarded(server):
    body = b'%x;a=b;c="d"\r\n%b\r\n0\r\nX-Trailer: a\r\n\r\n' % (len(BODY), BODY)
    with server.connect() as client:
        assert client.ask(request("POST", "/v1/predict", headers=CHUNKED) + body).status == 200
        assert client.ask(predict_request()).status == 200


@pytest.mark.parametrize("body", [b"x\r\n", b"5\r\nhello!", b"-1\r\n", b"0\r\nHost: a\r\n\r\n", b"2\n{}"])
def test_malformed_chunks_are_refused_at_once(server, body):
    with server.connect(timeout_s=5) as client:
        response = client.ask(request("POST", "/v1/predict", headers=CHUNKED) + body)
        assert response.status == 400 and response.code in ("bad_chunk", "bad_header")
        assert client.is_closed()


@pytest.mark.parametrize("size_bytes", [65_000, 65_300, *range(65_530, 65_540), 70_000, 131_072, 1_000_000,
                                        16 * 1024 * 1024])
def test_bodies_around_and_above_a_buffer_are_served(server, size_bytes):
    with server.connect() as client:
        for _ in range(2):
            response = client.ask(request("POST", "/v1/predict", padded_body(size_bytes)))
            assert response.json()["predictions"] == predictions([ROW])
        assert client.ask(predict_request()).status == 200


def test_large_requests_are_answered_row_for_row(server):
    rows = [[i, i / 3, -i, 1e-3, 2] for i in range(20_000)]
    response = server.ask(predict_request(rows, parameters={"return_probabilities": True})).json()
    assert response["predictions"] == predictions(rows)
    assert response["probabilities"] == MODEL.predict_proba(rows).tolist()


def test_body_longer_than_limit_gets_413(server):
    size_bytes = 16 * 1024 * 1024 + 1
    with server.connect() as client:
        response = client.ask(request("POST", "/v1/predict", padded_body(size_bytes)))
        assert (response.status, response.code) == (413, "body_too_large")
        assert client.is_closed()


def test_length_above_the_limit_gets_413_before_the_body_comes(server):
    with server.connect(timeout_s=5) as client:
        response = client.ask(request("POST", "/v1/predict", headers={"Content-Length": "16777217"}))
        assert (response.status, response.code) == (413, "body_too_large")
        for _ in range(50):  # a client that sends it all the same is not reset
            client.send(b" " * 20_000)
        assert client.is_closed()


@pytest.mark.parametrize("native", [True, False])
def test_limit_of_bodies_is_exact(native):
    with serving.start("--max-body-bytes", "100000", native=native) as server:
        for make in (lambda body: request("POST", "/v1/predict", body), chunked_request):
            assert server.ask(make(padded_body(100_000))).status == 200
            assert server.ask(make(padded_body(100_001))).code == "body_too_large"


# --- Expect: 100-continue -----------------------------------------------------------------------

def test_client_that_waits_is_told_to_continue(server):
    head = request("POST", "/v1/predict", headers={"Expect": "100-continue", "Content-Length": str(len(BODY))})
    with server.connect() as client:
        for _ in range(2):
            assert client.ask(head).status == 100
            assert client.ask(BODY).json()["predictions"] == predictions([ROW])


def test_chunked_client_that_waits_is_told_to_continue(server):
    with server.connect() as client:
        assert client.ask(request("POST", "/v1/predict", headers=CHUNKED | {"Expect": "100-continue"})).status == 100
        assert client.ask(chunked(BODY)).status == 200


@pytest.mark.parametrize("target, fields, status, code", [
    ("/v1/predict", {"Content-Length": "16777217"}, 413, "body_too_large"),
    ("/nothing", {"Content-Length": "5"}, 404, "not_found"),
    ("/health", {"Content-Length": "5"}, 405, "method_not_allowed"),
    ("/v1/predict", {"Content-Length": "5", "Content-Type": "text/csv"}, 415, "unsupported_media_type"),
])
def test_client_that_waits_is_refused_without_its_body(server, target, fields, status, code):
    with server.connect(timeout_s=5) as client:
        response = client.ask(request("POST", target, headers={"Expect": "100-continue", **fields}))
        assert (response.status, response.code) == (status, code)
        assert client.is_closed()


def test_http_1_0_client_is_not_told_to_continue(server):
    data = request("POST", "/v1/predict", BODY, {"Expect": "100-continue"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert server.ask(data).status == 200


# --- methods, versions, targets -----------------------------------------------------------------

@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/v1/models/fraud-detector", "/openapi.json",
                                  "/nothing"])
def test_head_gives_the_headers_of_get(server, path):
    with server.connect() as client:
        head, get = client.ask(request("HEAD", path)), client.ask(request("GET", path))
        assert head.status == get.status
        assert {name: value for name, value in head.headers.items() if name != "Date"} \
            == {name: value for name, value in get.headers.items() if name != "Date"}


@pytest.mark.parametrize("data", [predict_request(), request("GET", "/health")], ids=["predict", "get"])
def test_http_1_0_closes_unless_asked_to_stay(server, data):
    old = data.replace(b"HTTP/1.1", b"HTTP/1.0")
    with server.connect() as client:
        response = client.ask(old)
        assert response.status == 200 and response.headers["Connection"] == "close"
        assert client.is_closed()
    with server.connect() as client:
        for _ in range(2):
            response = client.ask(old.replace(b"\r\n", b"\r\nConnection: Keep-Alive\r\n", 1))
            assert response.status == 200 and response.headers["Connection"] == "keep-alive"


def test_absolute_form_is_served(server):
    with server.connect() as client:
        assert client.ask(request("GET", f"http://localhost:{server.port}/health")).json()["status"] == "healthy"
        assert client.ask(request("POST", "http://127.0.0.1/v1/predict", BODY)).status == 200


@pytest.mark.parametrize("method, path, allowed", [
    ("POST", "/health", "GET, HEAD"), ("DELETE", "/v1/models/fraud-detector", "GET, HEAD"),
    ("GET", "/v1/predict", "POST"), ("HEAD", "/v1/predict", "POST"), ("PUT", "/v1/predict", "POST"),
    ("OPTIONS", "/v1/predict", "POST"),
    ("get", "/health", "GET, HEAD"),
])
def test_wrong_method_gets_405_and_what_is_allowed(server, method, path, allowed):
    with server.connect() as client:
        response = client.ask(request(method, path))
        assert (response.status, response.headers["Allow"]) == (405, allowed)
        assert method == "HEAD" or response.code == "method_not_allowed"
        assert client.ask(predict_request()).status == 200


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/predict/", "/V1/predict", "/v1/models/", "/v1/models/{id}/x",
                                  "/v1%2Fpredict", "//health"])
def test_unknown_path_gets_404(server, path):
    with server.connect() as client:
        response = client.ask(request("GET", path))
        assert response.status == 404 and response.code in ("not_found", "model_not_found")
        assert client.ask(predict_request()).status == 200


@pytest.mark.parametrize("method, target", [("POST", "/v1/predict?a=1"), ("POST", "/v1/predict?"),
                                            ("GET", "/health?verbose")])
def test_query_parameters_get_400(server, method, target):
    with server.connect() as client:
        response = client.ask(request(method, target, BODY if method == "POST" else None))
        assert (response.status, response.code) == (400, "unknown_query_parameter")
        assert client.ask(predict_request()).status == 200


@pytest.mark.parametrize("content_type, status", [
    ("application/json", 200), ("APPLICATION/JSON", 200), ("application/json; charset=utf-8", 200),
    ('application/json;charset="UTF-8"', 200), ("application/json ; charset=utf-8", 200), ("application/json;", 200),
    ("text/csv", 415), ("application/jsonp", 415), ("application/json; charset=latin-1", 415), ("", 415),
    ("application/json, text/csv", 415),
])
def test_content_type_must_be_json(server, content_type, status):
    with server.connect() as client:
        response = client.ask(request("POST", "/v1/predict", BODY, {"Content-Type": content_type}))
        assert response.status == status
        assert status == 200 or response.code == "unsupported_media_type"
        assert client.ask(predict_request()).status == 200


def test_missing_content_type_is_taken_as_json(server):
    data = request("POST", "/v1/predict", BODY).replace(b"Content-Type: application/json\r\n", b"")
    assert b"Content-Type" not in data and server.ask(data).status == 200


def test_compressed_body_gets_415(server):
    response = server.ask(request("POST", "/v1/predict", BODY, {"Content-Encoding": "gzip"}))
    assert (response.status, response.code) == (415, "unsupported_content_encoding")


# --- headers ------------------------------------------------------------------------------------

@pytest.mark.parametrize("data", [predict_request(), request("GET", "/health"), request("GET", "/nothing"), b"\0"],
                         ids=["hot", "python", "error", "malformed"])
def test_date_is_now_in_the_format_of_http(server, data):
    date = server.ask(data).headers["Date"]
    assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d GMT", date)
    moment = parsedate_to_datetime(date)
    assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 5
    assert moment.strftime("%a") == date[:3]


@pytest.mark.parametrize("data", [predict_request(headers={"X-Request-Id": "trace-{}"}),
                                  request("GET", "/health", headers={"x-request-id": "trace-{}"}),
                                  predict_request(headers={"X-Request-Id": "trace-{}" + 150 * "x"}),
                                  request("GET", "/nothing", headers={"X-REQUEST-ID": "trace-{}"})],
                         ids=["predict", "get", "long", "error"])
def test_request_id_is_echoed_and_logged(server, request, data):
    name = f"trace-{request.node.callspec.id}" + (150 * "x" if b"xxx" in data else "")
    data = data.replace(150 * b"x", b"").replace(b"trace-{}", name.encode())
    assert server.ask(data).headers["X-Request-Id"] == name
    serving.wait_for(lambda: f"request_id={name}\n" in server.stderr_text())  # the hot path's, within a second


def test_both_servers_send_the_same_headers(native_server, python_server):
    for data in (predict_request(), predict_request(headers={"Connection": "close"}), request("GET", "/health"),
                 chunked_request(BODY), request("GET", "/nothing"), b"GET\t"):
        names = [[name for name in server.ask(data).headers] for server in (native_server, python_server)]
        assert names[0] == names[1]
