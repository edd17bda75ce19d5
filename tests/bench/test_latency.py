"""The server's goals: speed against peers in the same run, start, memory, system calls.

The rule to keep: an answer is checked against the oracle before it is timed (`peers.check_answer`), servers take
turns, and only medians of ratios of neighbouring runs decide. Server on one core, load on another.
"""

import random
import resource
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests import serving
from tests.bench import load, peers
from tests.bench.conftest import Goal, Record
from tests.bench.load import ratios
from tests.bench.peers import Missing, Running, testigo, two_cores
from tests.bench.syscalls import NoTrace, calls_a_request

ROUNDS = 5
THROUGHPUT, LATENCY = 0.05, 0.25  # tolerances: rounds on a quiet shared machine differ by about as much

# Against whom, and with how many connections → figures of `load.Load` and their goals as ratios of ours over theirs.
AGAINST = {
    ("rust", 1): {"requests_per_s": Goal("≥", 1.0, THROUGHPUT), "p50_ms": Goal("≤", 1.0, THROUGHPUT)},
    ("rust", 16): {"requests_per_s": Goal("≥", 1.0, THROUGHPUT)},
    ("rust", 64): {"requests_per_s": Goal("≥", 1.0, THROUGHPUT), "p99_ms": Goal("≤", 2.0, LATENCY)},
    ("rust", 256): {"p99_ms": Goal("≤", 2.0, LATENCY)},
    ("c", 1): {"requests_per_s": Goal("≥", 0.95, THROUGHPUT)},
    ("c", 16): {"requests_per_s": Goal("≥", 0.95, THROUGHPUT)},
    ("c", 64): {"requests_per_s": Goal("≥", 0.95, THROUGHPUT)},
    ("fastapi", 16): {"requests_per_s": Goal("≥", 15.0, THROUGHPUT)},
}


@pytest.fixture(scope="module")
def cores() -> tuple[int, int]:
    """(the server's, the load's)."""
    try:
        return two_cores()
    except Missing as error:
        pytest.skip(str(error))


@contextmanager
def peer_or_skip(name: str, core: int) -> Iterator[Running]:
    try:
        with peers.peer(name, [core]) as server:
            yield server
    except Missing as error:
        pytest.skip(f"{name}: missing ({error})")


@pytest.fixture(scope="module")
def ours(cores) -> Iterator[Running]:
    with testigo([cores[0]]) as server:
        yield server


def thousand_rows(decimals: int) -> list[list[float]]:
    numbers = random.Random(0)
    return [[round(numbers.uniform(-3, 3), decimals) for _ in range(5)] for _ in range(1000)]


def hot_requests(server: Running) -> int:
    """How many requests native code has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        for line in response.read().decode().splitlines():
            if line.startswith("testigo_requests_total{") and 'path="hot"' in line:
                return int(float(line.split()[-1]))
    raise AssertionError("no count of the hot path's requests")


def measure(benchmark, runs: list[Callable[[], load.Load]], n_rounds: int = ROUNDS) -> list[list[load.Load]]:
    """`load.compare` as a benchmark; the loads are kept in its JSON."""
    benchmark.group = "duration of a measurement; its results are the goals below"
    rounds = benchmark.pedantic(load.compare, args=(runs, n_rounds), rounds=1)
    benchmark.extra_info["rounds"] = [[each._asdict() for each in loads] for loads in rounds]
    return rounds


def note_loads(goals: Record, name: str, loads: list[load.Load]) -> None:
    each = load.spreads(loads)
    goals.note(f"  {name:13} {each['requests_per_s']} requests/s, p50 {each['p50_ms']} ms, p99 {each['p99_ms']} ms;"
               f" server {each['server_us']} µs a request; cores busy: server {each['server_cores'].median:.2f},"
               f" load {each['client_cores'].median:.2f}, others {each['other_cores'].median:.2f}")


@pytest.mark.parametrize("name, connections", AGAINST)
def test_one_row_against_a_peer(benchmark, goals, cores, ours, name, connections):
    with peer_or_skip(name, cores[0]) as theirs:
        before = hot_requests(ours)
        rounds = measure(benchmark, [lambda server=server: load.run(server, connections, cores[1:])
                                     for server in (ours, theirs)])
        assert hot_requests(ours) - before > 1000  # native code served this, not Python
    for server, loads in zip((ours, theirs), zip(*rounds)):
        note_loads(goals, server.name, loads)
    goals.check(*[(f"{figure}, c={connections}, one core, against {name}", ratios(rounds, figure), goal)
                  for figure, goal in AGAINST[name, connections].items()])


def test_p99_of_sixteen_clients_is_under_10_ms(benchmark, goals, cores, ours):
    rounds = measure(benchmark, [lambda: load.run(ours, 16, cores[1:])])
    goals.check(("p99_ms, c=16, one core", [loads[0].p99_ms for loads in rounds], Goal("≤", 10.0)))


@pytest.mark.parametrize("decimals", [4, 17], ids=["short-numbers", "full-doubles"])
def test_thousand_rows_against_fastapi_with_numpy(benchmark, goals, cores, ours, decimals):
    rows = thousand_rows(decimals)
    with peer_or_skip("fastapi+numpy", cores[0]) as theirs:
        for server in (ours, theirs):
            peers.check_answer(server.port, rows)
        rounds = measure(benchmark, [lambda server=server: load.run(server, 4, cores[1:], rows)
                                     for server in (ours, theirs)], 5)
    for server, loads in zip((ours, theirs), zip(*rounds)):
        note_loads(goals, server.name, loads)
    goals.check((f"requests_per_s, 1,000 rows of {decimals} decimals, c=4, against fastapi+numpy",
                 ratios(rounds, "requests_per_s"), Goal("≥", 10.0, THROUGHPUT)))


def test_two_cores_against_one(benchmark, goals, cores, ours):
    """The load needs a core as well and there may be only two: on both, it takes its share from the server.

    The ratio of requests a second is therefore a lower bound; `load` in the notes tells how much it took.
    """
    rows = thousand_rows(4)
    peers.check_answer(ours.port, rows)
    with testigo(cores) as both:
        peers.check_answer(both.port, rows)
        rounds = measure(benchmark, [lambda: load.run(both, 8, cores, rows),
                                     lambda: load.run(ours, 8, cores[1:], rows)])
    for name, loads in zip(("two cores", "one core"), zip(*rounds)):
        note_loads(goals, name, loads)
    goals.check(("requests_per_s, 1,000 rows, c=8, two cores against one", ratios(rounds, "requests_per_s"),
                 Goal("≥", 1.7, THROUGHPUT)))


@contextmanager
def idle_connections(server: Running, n: int) -> Iterator[None]:
    """n connections that have been answered once and are kept alive."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < n + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(n + 256, hard), hard))
    request = serving.predict_request()
    with ExitStack() as stack:
        for _ in range(n):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(request)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        yield


def test_busy_connections_next_to_2000_idle_ones(benchmark, goals, cores, ours):
    resident, sizes = psutil.Process(ours.pid).memory_info, []

    def next_to_idle_ones() -> load.Load:
        without = resident().rss
        with idle_connections(ours, 2000):
            measured = load.run(ours, 64, cores[1:])
            sizes.append((resident().rss, resident().rss - without))
        return measured
    rounds = measure(benchmark, [next_to_idle_ones, lambda: load.run(ours, 64, cores[1:])])
    goals.note(f"  resident with 2,064 connections: {max(total for total, _ in sizes) / 2**20:.0f} MiB,"
               f" {max(more for _, more in sizes) / 2**20:.1f} MiB more than before")
    for name, loads in zip(("with idle", "without"), zip(*rounds)):
        note_loads(goals, name, loads)
    goals.check(("requests_per_s, c=64, next to 2,000 idle connections against without",
                 ratios(rounds, "requests_per_s"), Goal("≥", 1.0, THROUGHPUT)))


def test_system_calls_a_request(goals, ours):
    request = serving.predict_request()
    with serving.Client("127.0.0.1", ours.port) as client:
        try:
            calls = calls_a_request(ours.pid, lambda: client.ask(request))
        except NoTrace as reason:
            pytest.skip(str(reason))
    goals.check(("system calls a request, keep-alive, all threads", [calls], Goal("≤", 2.0, 0.02)))


@pytest.mark.benchmark(group="start to first correct answer")
def test_start_with_warm_caches(benchmark, goals, cores):
    starts = []
    benchmark.pedantic(lambda: starts.append(start_s(cores)), rounds=5, warmup_rounds=1)  # the first one may compile
    goals.check(("start to first correct answer, caches warm, s", starts[1:], Goal("≤", 1.2)))


@pytest.mark.benchmark(group="start to first correct answer")
def test_start_with_cold_caches(benchmark, goals, cores, tmp_path):
    starts = []
    benchmark.pedantic(lambda: starts.append(start_s(cores, tmp_path / f"cache-{len(starts)}")), rounds=3)
    goals.check(("start to first correct answer, caches cold, s", starts, Goal("≤", 10.0)))


def start_s(cores, cache: Path | None = None) -> float:
    with testigo(cores, env={"TESTIGO_CACHE_DIR": str(cache)} if cache else None) as server:
        return server.start_s


def test_resident_memory_after_start(goals, cores):
    with testigo(cores) as server:
        size = psutil.Process(server.pid).memory_info().rss
    goals.check(("resident after start and one answer, MB", [size / 1e6], Goal("≤", 180.0)))


@pytest.mark.benchmark(group="one request at a time, client included")
@pytest.mark.parametrize("name", ["testigo", "testigo --no-native", *peers.PEERS])
def test_one_request_at_a_time(benchmark, cores, name):
    """How long a client waits. The client is Python on the other core, its share is in all figures alike."""
    request = serving.predict_request()
    with ExitStack() as stack:
        if name in peers.PEERS:
            server = stack.enter_context(peer_or_skip(name, cores[0]))
        else:
            server = stack.enter_context(testigo(cores[:1], native="--no-native" not in name))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))

        def ask() -> bytes:
            client.sendall(request)
            answer = client.recv(65536)
            while not answer.endswith(b"}"):  # uvicorn sends head and body apart
                answer += client.recv(65536)
            return answer
        assert ask().startswith(b"HTTP/1.1 200 OK\r\n")
        benchmark.pedantic(ask, rounds=2000, warmup_rounds=100)
