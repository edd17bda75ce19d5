"""The strict cases against real servers: each whole, and byte by byte up to the byte that decides."""

from collections.abc import Iterator

import pytest

from server.http1 import REFUSALS
from tests import serving
from tests.server.http_cases import ACCEPTED, CASES, REFUSED, Case

pytestmark = pytest.mark.core

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module", params=[True, False], ids=["native", "python"])
def server(request: pytest.FixtureRequest) -> Iterator[serving.Server]:
    """The cases name hosts of all kinds."""
    with serving.start("--allowed-hosts", "*", native=request.param) as server:
        yield server


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def check(client: serving.Client, case: Case) -> None:
    """Receive what the case has coming, and whatever may or must not come after it."""
    response = client.receive_final()
    if case.expected is not None:
        assert (response.status, response.code) == case.expected
        assert response.headers["Connection"] == "close"
        assert client.is_closed()
        return
    assert response.status == 200 or response.code not in REFUSALS
    if response.headers["Connection"] == "close":
        assert b"HTTP/1.0" in case.head
        assert client.is_closed()
    else:
        assert client.ask(HEALTH).status == 200


def test_there_are_at_least_forty_cases():
    assert len(REFUSED) >= 40 and len(ACCEPTED) >= 20


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_whole_request_is_served_or_refused(server, case):
    with server.connect() as client:
        client.send(case.data)
        check(client, case)


@pytest.mark.parametrize("case", ACCEPTED, ids=names(ACCEPTED))
def test_request_that_comes_byte_by_byte_is_served(server, case):
    with server.connect() as client:
        client.send_each_byte(case.data)
        check(client, case)


@pytest.mark.parametrize("case", REFUSED, ids=names(REFUSED))
def test_request_is_refused_when_the_offending_byte_arrives(server, case):
    """Nothing follows that byte: who waits for more would answer at the deadline, after this client has given up."""
    with server.connect(timeout_s=5) as client:
        client.send_each_byte(case.head)
        check(client, case)
