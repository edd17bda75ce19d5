"""Limits of time, size and number. The deadlines here are short ones; what they are by default is checked apart."""

import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from server.connection import Limits
from tests import serving
from tests.serving import predict_request, request

pytestmark = pytest.mark.core

HEAD_S, BODY_S, IDLE_S = 1.0, 1.5, 2.0
LONGEST_S = 6.0  # what is due after at most IDLE_S, on a busy machine
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
def connections(server: serving.Server, n: int) -> Iterator[list[serving.Client]]:
    with ExitStack() as stack:
        yield [stack.enter_context(server.connect()) for _ in range(n)]


def dribble(client: serving.Client, data: bytes, pause_s: float = 0.2) -> float:
    """Send a byte every now and then until there is an answer or nothing left → seconds."""
    start = time.monotonic()
    for i in range(len(data)):
        client.send(data[i:i + 1])
        if select.select([client.socket], [], [], pause_s)[0]:
            break
    return time.monotonic() - start


def check_timed_out(client: serving.Client) -> None:
    response = client.receive()
    assert (response.status, response.code) == (408, "request_timeout")
    assert response.headers["Connection"] == "close"
    assert client.is_closed()


# --- deadlines ----------------------------------------------------------------------------------

def test_deadlines_are_those_of_the_documents():
    assert (Limits().head_s, Limits().idle_s, Limits().max_connections) == (10.0, 75.0, 4096)


@pytest.mark.parametrize("part", [b"G", HEALTH[:-1], POST[:-2]])
def test_head_that_does_not_end_gets_408(hasty, part):
    with hasty.connect(LONGEST_S) as client:
        client.send(part)
        check_timed_out(client)


def test_bytes_that_dribble_do_not_extend_the_deadline_of_a_head(hasty):
    with hasty.connect(LONGEST_S) as client:
        assert HEAD_S <= dribble(client, HEALTH) + 0.01 < LONGEST_S
        check_timed_out(client)


@pytest.mark.parametrize("head, body", [(POST, b'{"inputs"' + b" " * 60), (CHUNKED, b"37\r\n" + b" " * 60)],
                         ids=["length", "chunked"])
def test_body_that_does_not_end_gets_408(hasty, head, body):
    for send in (lambda client: client.send(body[:20]), lambda client: dribble(client, body[:50])):
        with hasty.connect(LONGEST_S) as client:
            client.send(head)
            send(client)
            check_timed_out(client)


def test_second_head_has_a_deadline_too(hasty):
    for first in (HEALTH, predict_request()):
        with hasty.connect(LONGEST_S) as client:
            client.send(first + b"GET /hea")
            assert client.receive().status == 200
            check_timed_out(client)


def test_each_head_has_the_whole_time(hasty):
    """Requests that each take half of the deadline, with no moment in which none has begun."""
    for data in (predict_request(), HEALTH):
        with hasty.connect(LONGEST_S) as client:
            middle = data.index(b"Host")
            client.send(data[:middle])
            for _ in range(5):
                assert not select.select([client.socket], [], [], HEAD_S / 2)[0]
                assert client.ask(data[middle:] + data[:middle]).status == 200


def test_idle_connection_is_closed_without_a_word(hasty):
    with hasty.connect(LONGEST_S) as fresh, hasty.connect(LONGEST_S) as used:
        start = time.monotonic()
        assert used.ask(predict_request()).status == 200
        assert used.is_closed() and fresh.is_closed()
        assert time.monotonic() - start > IDLE_S - 0.1


def test_connection_in_use_is_not_idle(hasty):
    with hasty.connect(LONGEST_S) as client:
        for _ in range(6):
            assert client.ask(predict_request()).status == client.ask(HEALTH).status == 200
            assert not select.select([client.socket], [], [], IDLE_S / 4)[0]


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
    with serving.start("--max-connections", "20", native=native) as server:
        for _ in range(2):  # what was refused or closed is not counted for ever
            with connections(server, 20) as admitted:
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
            wait_until_served(server)


def wait_until_served(server: serving.Server) -> None:
    """The server notices that its clients left when it next looks; until then it refuses."""
    deadline = time.monotonic() + serving.WAIT_S
    while server.ask(HEALTH).status != 200:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("native", [True, False])
def test_server_without_free_descriptors_serves_on(native):
    """Connections that cannot be accepted wait, the others are served, and all is well when descriptors are free."""
    few = ("/bin/sh", "-c", 'ulimit -n 64; exec "$0" -m server "$@"', sys.executable)
    with serving.start(native=native, command=few) as server:
        with connections(server, 150) as clients:
            assert clients[0].ask(HEALTH).status == 200
            assert clients[1].ask(predict_request()).status == 200
            before = os.times()
            assert clients[2].ask(predict_request()).status == 200
            assert len(re.findall("Traceback", server.stderr_text())) == 0 and before
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
