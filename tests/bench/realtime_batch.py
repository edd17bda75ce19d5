"""`python -m tests.bench.realtime_batch [--spark] [--write FILE.md]`: rows through the server against rows in one job.

Prints rows a second and what a million rows cost, and where the two ways cross; `--write` puts that between the two
`<!-- measured -->` lines of a document. The model is a random forest of 200 trees, 12 deep, on 30 features.

The rule to keep: every way scores the same rows, and what it answers is compared before its time counts.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import kernels
from tests import serving
from tests.bench.compare import processor

N_FEATURES, N_TREES, DEPTH = 30, 200, 12
NAMES = [f"f{i}" for i in range(N_FEATURES)]
MILLION = 1_000_000
SECONDS, PRICE = 3.0, 0.10  # of load for each way to ask; of an hour of this machine, $
MARK = "<!-- measured -->\n"
ASKED = {  # rows a request, connections
    "server, 1 row a request, 1 connection": (1, 1),
    "server, 1 row a request, 8 connections": (1, 8),
    "server, 1,000 rows a request, 2 connections": (1000, 2),
}


@dataclass(frozen=True)
class Way:
    """How long rows take: `start_s`, and then so many a second."""
    name: str
    rows_per_s: float
    start_s: float = 0.0

    def seconds(self, rows: float) -> float:
        return self.start_s + rows / self.rows_per_s

    def crossing(self, other: "Way") -> float:
        """From how many rows on this way is the quicker one; inf for never."""
        gain_s = 1 / other.rows_per_s - 1 / self.rows_per_s  # a row
        return max(0.0, (self.start_s - other.start_s) / gain_s) if gain_s > 0 else np.inf


def make_model(folder: Path, n_trees: int, depth: int) -> Path:
    from sklearn.ensemble import RandomForestClassifier
    random = np.random.default_rng(0)
    X = pd.DataFrame(random.normal(size=(20_000, N_FEATURES)), columns=NAMES)
    y = X["f0"] * X["f1"] + np.sin(3 * X["f2"]) + X["f3"] ** 2 > X["f4"] + 0.5
    model = folder / "forest.gguf"
    forest = RandomForestClassifier(n_trees, max_depth=depth, n_jobs=-1, random_state=0).fit(X, y.astype(np.int64))
    kernels.save(kernels.from_sklearn(forest, name="forest"), model)
    return model


# --- real time ----------------------------------------------------------------------------------

def realtime(model: Path, rows: np.ndarray, seconds: float) -> list[Way]:
    """The server on this machine, asked by Python on this machine: both share its cores."""
    wanted = kernels.load(model).predict(rows)
    with serving.start(model) as server:
        return [Way(name, _ask(server, rows, wanted, seconds, *asked)) for name, asked in ASKED.items()]


def _ask(server: serving.Server, rows: np.ndarray, wanted: np.ndarray, seconds: float, n: int,
         connections: int) -> float:
    """→ rows/s, closed loop."""
    requests = [_request(rows[i:i + n]) for i in range(0, min(len(rows) - n + 1, 100 * n), n)]
    for i, request in enumerate(requests):
        assert server.ask(request).json()["predictions"] == wanted[i * n:(i + 1) * n].tolist()

    def client(_: int) -> int:
        done = 0
        with socket.create_connection((server.host, server.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < end:
                connection.sendall(requests[done % len(requests)])
                _read(connection)
                done += 1
        return done
    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(connections) as pool:
        done = sum(pool.map(client, range(connections)))
    return done * n / (time.perf_counter() - start)


def _request(rows: np.ndarray) -> bytes:
    body = json.dumps({"dataframe_split": {"columns": NAMES, "data": rows.tolist()}}).encode()
    return (f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def _read(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    left = int(re.search(rb"(?i)content-length: (\d+)", head)[1]) - len(body)
    while left > 0:
        left -= len(connection.recv(left))


# --- batch --------------------------------------------------------------------------------------

def batch(engine: str, model: Path, rows: np.ndarray, folder: Path) -> Way:
    """A job from Parquet to Parquet: what its own time, in its last line, leaves of the whole is the start."""
    wanted = kernels.load(model, threads=psutil.cpu_count() or 1).predict(rows)
    for n in (1, len(rows)):  # the first one compiles where this machine has not yet
        table = pa.table({"id": np.arange(n)} | {name: rows[:n, i] for i, name in enumerate(NAMES)})
        pq.write_table(table, folder / "rows.parquet")
        output = folder / f"scores-{engine}-{n}"
        command = [sys.executable, "-m", "databricks.batch", "--engine", engine, "--model", model, "--key", "id",
                   "--input", folder / "rows.parquet", "--output", output]
        start = time.perf_counter()
        done = subprocess.run([str(part) for part in command], cwd=serving.ROOT, capture_output=True, text=True)
        whole_s = time.perf_counter() - start
        assert done.returncode == 0, done.stderr
        assert pq.read_table(output).sort_by("id")["prediction"].to_pylist() == wanted[:n].tolist()
    summary = re.search(r"^(\d+) rows, 0 rejects, \d+ rows/s, ([\d.]+) s", done.stdout.splitlines()[-1])
    assert summary and int(summary[1]) == len(rows), done.stdout
    own_s = float(summary[2])
    return Way(f"batch, {engine} engine", len(rows) / own_s, whole_s - own_s)


# --- text ---------------------------------------------------------------------------------------

def document(ways: Sequence[Way], price: float) -> str:
    """The table, and where its ways cross; `price` is of an hour of this machine, $."""
    lines = [f"| {way.name} | {f'{way.start_s:.1f} s' if way.start_s else 'runs'} | {way.rows_per_s:,.0f} |"
             f" {way.seconds(MILLION):,.1f} s | ${way.seconds(MILLION) / 3600 * price:.5f} |" for way in ways]
    jobs = [way for way in ways if way.start_s]
    crossings = [f"- {job.name} is quicker than {way.name} {_from(job.crossing(way))}."
                 for job in jobs for way in ways if not way.start_s]
    a_day = (24 * 3600 - jobs[0].start_s) * jobs[0].rows_per_s
    return f"""Measured on {date.today()}: {psutil.cpu_count()} cores of {processor()} at ${price:.2f} an hour; the
server's clients run on them too.

| way | start | rows/s | a million rows | cost of a million |
|---|---|---|---|---|
{chr(10).join(lines)}

{chr(10).join(crossings)}
- A server that is always on costs ${price * 24:.2f} a day, whatever it is asked; for that money a job scores
  {a_day / 1e9:,.1f} thousand million rows.
"""


def _from(rows: float) -> str:
    return "at no size" if np.isinf(rows) else f"from {float(f'{rows:.2g}'):,.0f} rows on"


def measured(n_rows: int, n_trees: int = N_TREES, seconds: float = SECONDS, price: float = PRICE,
             spark: bool = False) -> str:
    """The table of all ways, measured now; arguments as the command's."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        model = make_model(folder, n_trees, DEPTH)
        rows = np.random.default_rng(1).normal(size=(n_rows, N_FEATURES))
        ways = realtime(model, rows, seconds)
        ways += [batch(engine, model, rows, folder) for engine in ["arrow"] + ["spark"] * spark]
    return document(ways, price)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.realtime_batch", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=MILLION, help="of the table that a job scores (%(default)s)")
    parser.add_argument("--trees", type=int, default=N_TREES, help="of the forest (%(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load for each way to ask (%(default)s)")
    parser.add_argument("--price", type=float, default=PRICE, help="of an hour of this machine, $ (%(default)s)")
    parser.add_argument("--spark", action="store_true", help="a row for the Spark engine too")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write it between that file's marks")
    options = parser.parse_args()
    text = measured(options.rows, options.trees, options.seconds, options.price, options.spark)
    print(text)
    if options.write is not None:
        before, _, after = options.write.read_text("utf-8").split(MARK)
        options.write.write_text(f"{before}{MARK}{text}{MARK}{after}", "utf-8")


if __name__ == "__main__":
    main()
