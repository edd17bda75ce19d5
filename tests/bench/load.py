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

from tests.bench.peers import ROW, SOURCES, Running, need, body_of, on_cores

SECONDS = 2  # of one run; servers take turns, so that a noisy neighbour meets them all


class Load(NamedTuple):
    """What one run measured."""
    requests_per_s: float
    p50_ms: float  # latencies as the client sees them, corrected by wrk for requests that it could not send in time
    p99_ms: float
    server_us: float  # processor time of the server a request, µs
    server_cores: float  # processor time of the server a second: at 1.0 a core is full
    client_cores: float  # the same of wrk: near 1.0 it is the client that is measured


def run(server: Running, connections: int, cores: Sequence[int], rows: Sequence[Sequence[float]] = (ROW,),
        seconds: int = SECONDS) -> Load:
    """Load a server through keep-alive `connections` from these cores with requests for `rows`."""
    wrk = need("wrk", "Debian: apt-get install wrk")
    with tempfile.NamedTemporaryFile(prefix="body-") as body:
        body.write(body_of(rows))
        body.flush()
        command = [*on_cores(cores), wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
                   "-s", str(SOURCES / "predict.lua"), f"http://127.0.0.1:{server.port}/v1/predict", "--", body.name]
        server_before, client_before = _busy_s(server.pid), psutil.Process().cpu_times()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        server_s, client = _busy_s(server.pid) - server_before, psutil.Process().cpu_times()
    client_s = (client.children_user + client.children_system
                - client_before.children_user - client_before.children_system)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == 0 and found["requests"] > 0, f"{server.name}: {found}"
    measured_s = found["duration_us"] / 1e6
    return Load(found["requests"] / measured_s, found["p50_us"] / 1e3, found["p99_us"] / 1e3,
                server_s * 1e6 / found["requests"], server_s / measured_s, client_s / measured_s)


def _busy_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def alternate(runs: Sequence[Callable[[], Load]], round_number: int) -> list[Load]:
    """Do each run once → their loads, in the order of `runs`; every other round goes backwards."""
    order = range(len(runs)) if round_number % 2 == 0 else reversed(range(len(runs)))
    loads = {i: runs[i]() for i in order}
    return [loads[i] for i in range(len(runs))]


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


def ratios(loads: Sequence[Sequence[Load]], figure: str) -> list[float]:
    """The first server's figure over the second's, round by round."""
    return [getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in loads]
