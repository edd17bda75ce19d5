"""Limits of time, size and number. The deadlines here are short ones; what they are by default is checked apart."""

import select
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from server.connection import Limits
from tests import serving
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

HEAD_S, BODY_S, IDLE_S = 1.0, 1.0, 1.5
PATIENCE_S = 6.0  # until what is due after these; also on a busy machine
SHORT_DEADLINES = f"""
import functools, sys
from server import __main__, connection
connection.Limits = functools.partial(connection.Limits, head_s={HEAD_S}, body_s={BODY_S}, idle_s={IDLE_S})
__main__.main(sys.argv[1:])
"""
HEALTH = request("GET", "/health")
POST = request("POST", "/v1/predict", headers={"Content-Type": "application/json", "Content-Length": "55"})
CHUNKED = request("POST", "/v1/predict", headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"})


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def hasty(request: pytest.FixtureRequest) -> Iterator[serving.Server]:
    """A server with short deadlines."""
    with serving.start(native=request.param, command=(sys.executable, "-c", SHORT_DEADLINES)) as server:
        yield server


@contextmanager
def connections(server: serving.Server, n: int, timeout_s: float = serving.WAIT_S) -> Iterator[list[serving.Client]]:
    with ExitStack() as stack:
        yield [stack.enter_context(server.connect(timeout_s)) for _ in range(n)]


def silent_for(client: serving.Client, seconds: float) -> bool:
    """Whether the server says nothing for so long."""
    return not select.select([client.socket], [], [], seconds)[0]


def dribble(client: serving.Client, data: bytes) -> None:
    """Send a byte every tenth of a second, for longer than any deadline here, until the server says something."""
    for i in range(len(data)):
        client.send(data[i:i + 1])
        if not silent_for(client, 0.1):
            return
    raise AssertionError("there is no deadline")


def check_timed_out(client: serving.Client) -> None:
    response = client.receive()
    assert (response.status, response.code) == (408, "request_timeout")
    assert response.headers["Connection"] == "close"
    assert client.is_closed()


# --- deadlines ----------------------------------------------------------------------------------

def test_deadlines_are_those_of_the_documents():
    assert (Limits().head_s, Limits().idle_s, Limits().max_connections) == (10.0, 75.0, 4096)


def test_head_that_does_not_end_gets_408(hasty):
    parts = [b"G", HEALTH[:-1], POST[:-2], b"\r\n"]
    with connections(hasty, len(parts), PATIENCE_S) as clients:
        for client, part in zip(clients, parts):
            client.send(part)
        for client in clients:
            check_timed_out(client)


def test_bytes_that_dribble_do_not_extend_the_deadline_of_a_head(hasty):
    with hasty.connect(PATIENCE_S) as client:
        dribble(client, HEALTH)
        check_timed_out(client)


def test_body_that_does_not_end_gets_408(hasty):
    parts = [POST + b'{"inputs"', POST, CHUNKED + b'37\r\n{"inputs"', CHUNKED]
    with connections(hasty, len(parts), PATIENCE_S) as clients:
        for client, part in zip(clients, parts):
            client.send(part)
        for client in clients:
            check_timed_out(client)


@pytest.mark.parametrize("part", [POST, CHUNKED + b"37\r\n"], ids=["length", "chunked"])
def test_bytes_that_dribble_do_not_extend_the_deadline_of_a_body(hasty, part):
    with hasty.connect(PATIENCE_S) as client:
        client.send(part)
        dribble(client, b" " * 40)
        check_timed_out(client)


def test_second_head_has_a_deadline_too(hasty):
    with connections(hasty, 2, PATIENCE_S) as clients:
        for client, first in zip(clients, (HEALTH, predict_request())):
            client.send(first + b"GET /hea")
        for client in clients:
            assert client.receive().status == 200
            check_timed_out(client)


def test_second_head_has_a_deadline_on_a_connection_that_was_idle_too(hasty):
    """The first request comes shortly before the connection would have been closed as idle."""
    with hasty.connect(PATIENCE_S) as client:
        assert silent_for(client, IDLE_S * 0.8)
        assert client.ask(HEALTH + b"GET /hea").status == 200
        check_timed_out(client)


@pytest.mark.parametrize("data", [predict_request(), HEALTH], ids=["hot", "python"])
def test_each_head_has_the_whole_time(hasty, data):
    """Requests one after the other, with no moment in which none has begun: together they take longer than one may."""
    middle = data.index(b"Host")
    with hasty.connect(PATIENCE_S) as client:
        client.send(data[:middle])
        for _ in range(5):
            assert silent_for(client, HEAD_S / 4)
            assert client.ask(data[middle:] + data[:middle]).status == 200


def test_idle_connection_is_closed_without_a_word(hasty):
    with hasty.connect(PATIENCE_S) as fresh, hasty.connect(PATIENCE_S) as used:
        assert used.ask(predict_request()).status == 200
        assert used.is_closed() and fresh.is_closed()


def test_connection_in_use_is_not_idle(hasty):
    with hasty.connect(PATIENCE_S) as client:
        for _ in range(6):
            assert client.ask(predict_request()).status == client.ask(HEALTH).status == 200
            assert silent_for(client, IDLE_S / 5)


# --- sizes --------------------------------------------------------------------------------------

def test_head_of_more_than_16_kib_gets_431(server):
    for fields in ({"X-A": "a" * 16384}, {f"X-{i}": "a" * 100 for i in range(200)}):
        with server.connect() as client:
            response = client.ask(request("GET", "/health", headers=fields))
            assert (response.status, response.code) == (431, "headers_too_large")
            assert client.is_closed()


def test_many_header_lines_are_served(server):
    fields = {f"X-{i}": "a" for i in range(1000)}
    with server.connect() as client:
        assert client.ask(predict_request(headers=fields)).status == 200
        assert client.ask(predict_request()).status == 200


# --- numbers ------------------------------------------------------------------------------------

@pytest.mark.parametrize("native", [True, False])
def test_connections_above_the_limit_get_503_and_others_are_served(native):
    with serving.start("--max-connections", "20", native=native) as server, server.connect() as first:
        for _ in range(2):  # what was refused or closed is not counted for ever
            with connections(server, 19) as others:
                admitted = [first, *others]
                for client in admitted:
                    assert client.ask(HEALTH).status == 200
                for _ in range(30):
                    with server.connect() as refused:
                        response = refused.ask(predict_request())
                        assert (response.status, response.code) == (503, "too_many_connections")
                        assert int(response.headers["Retry-After"]) > 0
                        assert response.headers["Connection"] == "close"
                        assert refused.is_closed()
                for client in admitted:
                    assert client.ask(predict_request()).status == 200
            serving.wait_for(lambda: b"testigo_connections 1.0\n" in first.ask(request("GET", "/metrics")).body)


def wait_until_served(server: serving.Server) -> None:
    """The server notices that its clients left when it next looks; until then it counts them."""
    def only_this_connection() -> bool:
        response = server.ask(request("GET", "/metrics"))
        return response.status == 200 and b"testigo_connections 1.0\n" in response.body
    serving.wait_for(only_this_connection)


@pytest.mark.parametrize("native", [True, False])
def test_server_without_free_descriptors_serves_on(native):
    """Connections that cannot be accepted wait, the others are served, and all is well when descriptors are free."""
    few = ("/bin/sh", "-c", 'ulimit -n 64; exec "$0" -m server "$@"', sys.executable)
    with serving.start(native=native, command=few) as server:
        with connections(server, 150) as clients:
            assert clients[0].ask(HEALTH).status == 200
            assert clients[1].ask(predict_request()).status == 200
            assert clients[0].ask(predict_request()).status == 200
        wait_until_served(server)


@pytest.mark.parametrize("part", [b"GET /hea", POST, CHUNKED], ids=["head", "body", "chunked"])
def test_three_hundred_slow_clients_do_not_stop_the_server(server, part):
    with connections(server, 300) as slow:
        for client in slow:
            client.send(part)
        for _ in range(3):
            with server.connect(timeout_s=5) as client:
                assert client.ask(predict_request()).status == 200
                assert client.ask(HEALTH).status == 200
            for client in slow:
                client.send(b"1")


def test_many_clients_at_once_are_all_served(server):
    failures: list[str] = []

    def use() -> None:
        try:
            with server.connect() as client:
                for _ in range(20):
                    assert client.ask(predict_request()).status == client.ask(HEALTH).status == 200
        except Exception as error:
            failures.append(repr(error))
    threads = [threading.Thread(target=use) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_request_without_a_good_host_is_refused_before_its_body(server):
    for host in (b"", b"Host: a:99999\r\n"):
        with server.connect(timeout_s=PATIENCE_S) as client:
            client.send(b"POST /v1/predict HTTP/1.1\r\n" + host + b"Content-Length: 50\r\n\r\n")
            assert client.receive().status == 400


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_refused_connections_take_no_place(native):
    with serving.start("--max-connections", "2", native=native) as server, ExitStack() as stack:
        admitted = [stack.enter_context(server.connect()) for _ in range(2)]
        for client in admitted:
            assert client.ask(request("GET", "/health")).status == 200
        for _ in range(5):
            client = stack.enter_context(server.connect())
            assert client.receive().status == 503  # and is left open by its client
        metrics = admitted[0].ask(request("GET", "/metrics")).body.decode()
        assert "testigo_connections 2.0\n" in metrics and "testigo_refused_connections_total 5.0\n" in metrics
