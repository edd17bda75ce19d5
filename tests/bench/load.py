"""Load from wrk: closed-loop clients on one thread, and what they measured.

The rule to keep: a run in which anything but a 200 came back raises; a figure is never taken from it.

https://github.com/wg/wrk
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import psutil

from tests.bench.peers import ROW, SOURCES, Running, body_of, need, on_cores

SECONDS = 2  # of one run
QUIET = 0.1  # more than this share of a core taken by others disturbs a run


class Load(NamedTuple):
    """What one run measured."""
    requests_per_s: float
    p50_ms: float  # latencies as the client sees them, corrected by wrk for requests that it could not send in time
    p99_ms: float
    server_us: float  # processor time of the server a request, µs
    server_cores: float  # processor time of the server a second: at 1.0 a core is full
    client_cores: float  # the same of wrk: near 1.0 it is the client that limits
    other_cores: float  # the same of everybody else on this machine, and of its host


def run(server: Running, connections: int, cores: Sequence[int], rows: Sequence[Sequence[float]] = (ROW,),
        seconds: int = SECONDS) -> Load:
    """Load a server through keep-alive `connections` from these cores with requests for `rows`."""
    return post(server, connections, cores, "/v1/predict", body_of(rows), seconds)


def post(server: Running, connections: int, cores: Sequence[int], path: str, content: bytes,
         seconds: int = SECONDS) -> Load:
    """As `run`, with any JSON to any path."""
    wrk = need("wrk", "Debian: apt-get install wrk")
    with tempfile.NamedTemporaryFile(prefix="body-") as body:
        body.write(content)
        body.flush()
        before = _busy_s(server.pid)
        done = subprocess.run([*on_cores(cores), wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
                               "-s", str(SOURCES / "predict.lua"), f"http://127.0.0.1:{server.port}{path}",
                               "--", body.name], capture_output=True, text=True, check=True)
        server_s, client_s, all_s = (after - b for after, b in zip(_busy_s(server.pid), before))
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == 0 and found["requests"] > 0, f"{server.name}: {found}"
    measured_s = found["duration_us"] / 1e6
    return Load(found["requests"] / measured_s, found["p50_us"] / 1e3, found["p99_us"] / 1e3,
                server_s * 1e6 / found["requests"], server_s / measured_s, client_s / measured_s,
                (all_s - server_s - client_s) / measured_s)


def _busy_s(pid: int) -> tuple[float, float, float]:
    """Processor time so far: of a process, of the programs that this one has run, of the machine and its host."""
    process, us, machine = psutil.Process(pid).cpu_times(), psutil.Process().cpu_times(), psutil.cpu_times()
    return (process.user + process.system, us.children_user + us.children_system,
            sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice)  # guest is in user too


def compare(servers: Sequence[Callable[[], Load]], n_rounds: int) -> list[list[Load]]:
    """The loads of rounds in which each server had its turn; every other round goes backwards.

    A round in which others wanted the cores is repeated, up to twice as many in all; what they took is in the loads.
    """
    rounds: list[list[Load]] = []
    while len(rounds) < 2 * n_rounds and sum(_others(loads) <= QUIET for loads in rounds) < n_rounds:
        turn = 1 if len(rounds) % 2 == 0 else -1
        rounds.append([server() for server in servers[::turn]][::turn])
    return sorted(rounds, key=_others)[:n_rounds]


def _others(loads: Sequence[Load]) -> float:
    return max(load.other_cores for load in loads)


class Spread(NamedTuple):
    """A figure of several rounds."""
    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.lowest:.4g} … {self.highest:.4g})"


def spreads(loads: Sequence[Load]) -> dict[str, Spread]:
    """Each figure of `Load` over several runs."""
    return {figure: Spread.of(values) for figure, values in zip(Load._fields, zip(*loads))}


def ratios(rounds: Sequence[Sequence[Load]], figure: str) -> list[float]:
    """The first server's figure over the second's, round by round."""
    return [getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in rounds]
