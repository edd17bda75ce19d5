"""System calls of the hot path, counted by strace: two a request, and nothing else that grows with requests."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import kernels
from tests import serving
from tests.bench.syscalls import WARM_UP, NoTrace, Trace, attach
from tests.server import trained_models
from tests.server.stand_in import STAND_INS
from tracing.parse import Call

N = 1000
ONE_REQUEST = ["recvfrom", "sendto"]
OTHERS_A_SECOND = 40  # of all other threads: the log thread's line a second, and Python's switching to it
PREDICT = serving.predict_request()


@contextmanager
def traced(pid: int) -> Iterator[Trace]:
    with ExitStack() as stack:
        try:
            trace = stack.enter_context(attach(pid))
        except NoTrace as reason:
            pytest.skip(str(reason))
        yield trace


def ask(client: serving.Client, n: int, data: bytes = PREDICT) -> None:
    for _ in range(n):
        assert client.ask(data).status == 200


def steady_calls(trace: Trace, client: serving.Client, once, warm_up: bytes = PREDICT) -> tuple[list[Call], float]:
    """The calls from the end of a warm-up to the end of N requests, each made by `once`; and the seconds it took.

    A worker gives back a connection that is silent for half a second: when this process had to wait
    for a core for that long, the window shows it and is taken anew.
    """
    for _ in range(3):
        sent = trace.count("sendto")
        ask(client, WARM_UP, warm_up)
        first = trace.wait_for("sendto", sent + WARM_UP)
        start = time.monotonic()
        for _ in range(N):
            once()
        last = trace.wait_for("sendto", sent + WARM_UP + N)
        calls = trace.calls[first:last]
        if not any(call.name == "recvfrom" and call.errno == "EAGAIN" for call in calls):
            break
    return calls, time.monotonic() - start


def split(calls: list[Call]) -> tuple[list[str], list[str]]:
    """(the names of the calls of the thread that answers, in order; those of all other threads)."""
    serving_tid = Counter(call.tid for call in calls if call.name == "sendto").most_common(1)[0][0]
    others = [f"{call.tid} {call.name}" for call in calls if call.tid != serving_tid]
    return [call.name for call in calls if call.tid == serving_tid], others


def test_request_costs_one_recvfrom_and_one_sendto():
    with serving.start() as server, traced(server.pid) as trace, server.connect() as client:
        calls, seconds = steady_calls(trace, client, lambda: ask(client, 1))
    mine, others = split(calls)
    print(f"{len(mine) / N:.2f} system calls a request; other threads in {seconds:.1f} s: {dict(Counter(others))}")
    assert mine == ONE_REQUEST * N
    assert len({call.args.split(",")[0] for call in calls if call.name in ONE_REQUEST}) == 1  # one descriptor
    assert len(others) <= OTHERS_A_SECOND * (seconds + 1)


def check_two_calls(requests: list[bytes], *files: str | Path, command=serving.COMMAND) -> None:
    """Requests in turns cost a `recvfrom` and a `sendto` each."""
    turns = itertools.cycle(requests)
    with (serving.start(*files, command=command) as server, traced(server.pid) as trace,
          server.connect() as client):
        calls, _ = steady_calls(trace, client, lambda: ask(client, 1, next(turns)), requests[0])
    assert split(calls)[0] == ONE_REQUEST * N


def test_objects_with_strings_and_nulls_cost_the_same():
    rows = [{"amount": 1.5, "colour": "grün", "hour": 3, "country": "DE"},
            {"country": "unheard of", "amount": None, "colour": None, "hour": None}]
    check_two_calls([serving.predict_request([row] * n, model="shop", parameters={"return_probabilities": n > 1})
                     for row in rows for n in (1, 3)], command=STAND_INS)


def test_models_of_other_libraries_cost_the_same(tmp_path):
    for library in ("lightgbm", "xgboost", "pandas"):
        pytest.importorskip(library)
    shop, three, price, forty, _ = trained_models.write_all(tmp_path)
    row = {"amount": 1.5, "colour": "grün", "hour": None, "country": "nowhere"}
    check_two_calls([
        serving.predict_request([row], model="shop"), serving.predict_request([[1.5, "red", 2, None]], model="shop"),
        serving.predict_request([[1, 2, 3]], model="three", parameters={"return_probabilities": True}),
        serving.predict_request([[1, 2, 3]] * 10, model="price"),
        serving.predict_request([{f"feature {i}": i for i in range(40)}], model="forty"),
    ], kernels.DEFAULT_MODEL, shop, three, price, forty)


def test_frames_of_mlflow_s_protocol_cost_the_same():
    columns, cells = ["colour", "amount", "count", "hour", "ratio", "country"], ["grün", None, 7, 8, 0.5, "DE"]
    bodies = ({"dataframe_split": {"columns": columns, "data": [cells]}},
              {"dataframe_records": [dict(zip(columns, cells))] * 2},
              {"dataframe_split": {"index": [0, 1], "columns": columns, "data": [cells] * 2}})
    check_two_calls([serving.request("POST", "/invocations", json.dumps(body).encode()) for body in bodies],
                    command=(*STAND_INS, "small", "frame", "typed"))


def test_other_threads_work_by_the_second_not_by_the_request():
    with serving.start() as server, traced(server.pid) as trace, server.connect() as client:
        ask(client, WARM_UP)
        first, start, n = trace.wait_for("sendto", WARM_UP), time.monotonic(), 0
        logged = trace.count("write")
        while trace.count("write") < logged + 2:  # the log's line a second
            ask(client, 100)
            n += 100
        calls, seconds = trace.calls[first:trace.wait_for("sendto", WARM_UP + n)], time.monotonic() - start
    others = split(calls)[1]
    print(f"{n} requests in {seconds:.1f} s; calls of other threads: {dict(Counter(others))}")
    assert len(others) <= OTHERS_A_SECOND * (seconds + 1)


def test_head_and_body_sent_apart_cost_one_more_recvfrom():
    head, blank, body = PREDICT.partition(b"\r\n\r\n")
    with serving.start() as server, traced(server.pid) as trace, server.connect() as client:
        def ask_in_two_parts() -> None:
            received, sent = trace.count("recvfrom"), trace.count("sendto")
            client.send(head + blank)
            trace.wait_for("recvfrom", received + 1)
            client.send(body)
            assert client.receive().status == 200
            trace.wait_for("sendto", sent + 1)
        calls, _ = steady_calls(trace, client, ask_in_two_parts)
    assert split(calls)[0] == ["recvfrom", *ONE_REQUEST] * N


def test_sixteen_busy_connections_share_an_epoll_wait_and_open_nothing():
    with ExitStack() as stack:
        server = stack.enter_context(serving.start())
        clients = [stack.enter_context(server.connect()) for _ in range(16)]
        trace = stack.enter_context(traced(server.pid))

        def ask_all() -> None:
            for client in clients:
                client.send(PREDICT)
            for client in clients:
                assert client.receive().status == 200
        ask_all()
        first = trace.wait_for("sendto", len(clients))
        for _ in range(N // len(clients)):
            ask_all()
        n_requests = N // len(clients) * len(clients)
        last = trace.wait_for("sendto", len(clients) + n_requests)
    names = Counter(call.name for call in trace.calls[first:last])
    print(f"{names.total() / n_requests:.2f} system calls a request: {dict(names)}")
    assert names["recvfrom"] == names["sendto"] == n_requests
    assert names.total() <= 2.5 * n_requests
    assert not names.keys() & {"openat", "connect", "clone", "clone3", "accept4"}
