"""`python -m tests.bench.compare OUT.md`: measure ways to serve the course's model, write the table of them.

The rule to keep: a row is measured here or marked as published; a way that is not installed is named with the reason.
"""

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil

import kernels
from tests import serving
from tests.bench import load
from tests.bench.load import Spread
from tests.bench.peers import (
    BIAS, ROW, SOURCES, WEIGHTS, Missing, Running, body_of, mlflow_serves, on_cores, peer, testigo,
    two_cores,
)
from tests.bench.syscalls import NoTrace, calls_a_request
from tests.serving import NO_TELEMETRY

ROUNDS, STARTS = 5, 5
CONNECTIONS = 16
PACKAGES = ("numpy", "numba", "scikit-learn", "lightgbm", "onnxruntime", "fastapi", "uvicorn", "mlflow", "pyspark")
COLUMNS = [f"f{i}" for i in range(len(ROW))]
# What is asked: a path and a body.
PREDICT = ("/v1/predict", body_of([ROW]))
SCORE = ("/invocations", json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [ROW]}}).encode())


@dataclass(frozen=True)
class Row:
    """One line of the table, as text; empty where the question makes no sense."""
    cold_start: str
    p50: str
    p99: str
    requests_per_s: str = ""
    memory: str = ""
    system_calls: str = ""
    note: str = ""


# --- measured -----------------------------------------------------------------------------------

def this_server() -> Row:
    with tempfile.TemporaryDirectory(prefix="cold-") as cache:
        with testigo(two_cores(), env={"TESTIGO_CACHE_DIR": str(Path(cache) / "cache")}) as server:
            first_s = server.start_s
    return measured(testigo, f"{first_s:.1f} s the first time on a machine, while it compiles")


def this_server_without_native_code() -> Row:
    return measured(lambda cores: testigo(cores, native=False), "`--no-native`")


def server_of(name: str, note: str) -> Callable[[], Row]:
    return lambda: measured(lambda cores: peer(name, cores), note)


def mlflow_models_serve() -> Row:
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        model = logged_in_mlflow(Path(folder) / "linear")
        return measured(lambda cores: mlflow_serves(model, cores[0]), "`/invocations`; scikit-learn in MLflow", SCORE)


def this_server_for_mlflow() -> Row:
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        model = logged_in_mlflow(Path(folder) / "linear")
        return measured(lambda cores: testigo(cores, str(model), "--allow-pickle"),
                        "`/invocations`; the same model of MLflow's, converted while starting", SCORE)


def logged_in_mlflow(folder: Path) -> Path:
    """The course's model as a scikit-learn user logs it, in a process that may import mlflow."""
    code = """if True:
        import sys
        import mlflow.sklearn, numpy, pandas
        from sklearn.linear_model import LinearRegression
        folder, columns, *numbers = sys.argv[1:]
        *weights, bias = map(float, numbers)
        X = pandas.DataFrame(numpy.random.default_rng(0).normal(size=(100, len(weights))), columns=columns.split(","))
        model = LinearRegression().fit(X, X.to_numpy() @ weights + bias)  # finds these weights
        signature = mlflow.models.infer_signature(X, model.predict(X))
        mlflow.sklearn.save_model(model, folder, signature=signature, serialization_format="cloudpickle",
                                  pip_requirements=[])"""
    command = [sys.executable, "-c", code, str(folder), ",".join(COLUMNS), *map(str, WEIGHTS), str(BIAS)]
    if subprocess.run(command, env=os.environ | NO_TELEMETRY, capture_output=True).returncode:
        raise Missing("no mlflow, or no scikit-learn; pip install '.[test]'")
    return folder


def measured(start: Callable[[list[int]], AbstractContextManager[Running]], note: str,
             asked: tuple[str, bytes] = PREDICT) -> Row:
    """A row of a server that `start` starts on given cores: one for it, the other for the load."""
    server_core, load_core = two_cores()
    starts = []
    for _ in range(STARTS):
        with start([server_core]) as server:
            starts.append(server.start_s)
    with start([server_core]) as server:
        memory = psutil.Process(server.pid).memory_info().rss
        rounds = load.compare([lambda: load.post(server, 1, [load_core], *asked),
                               lambda: load.post(server, CONNECTIONS, [load_core], *asked)], ROUNDS)
        calls = _count(server, *asked)
    alone, many = map(load.spreads, zip(*rounds))
    others = max(figures["other_cores"].median for figures in (alone, many))
    if others > load.QUIET:
        note += f"; disturbed: other programs kept {others:.1f} cores busy"
    return Row(seconds(Spread.of(starts).median), milliseconds(alone["p50_ms"].median),
               milliseconds(alone["p99_ms"].median), thousands(many["requests_per_s"]), f"{memory / 1e6:.0f} MB",
               calls, note)


def _count(server: Running, path: str, body: bytes) -> str:
    request = serving.request("POST", path, body)
    with serving.Client("127.0.0.1", server.port) as client:
        return count_calls(server.pid, lambda: client.ask(request), 1000)


def count_calls(pid: int, ask: Callable[[], object], n: int, predictions: int = 1) -> str:
    """System calls a prediction, when `ask` makes some at once."""
    try:
        return f"{calls_a_request(pid, ask, n) / predictions:.2f}"
    except NoTrace as reason:
        return f"not counted ({reason})"


def scikit_learn_in_process() -> Row:
    try:
        from sklearn.linear_model import LinearRegression
    except ImportError:
        raise Missing("no scikit-learn; pip install '.[test]'") from None
    X = np.random.default_rng(0).normal(size=(100, len(WEIGHTS)))
    model = LinearRegression().fit(X, X @ WEIGHTS + BIAS)  # finds these weights
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        path = Path(folder) / "model.pickle"
        path.write_bytes(pickle.dumps(model))
        starts = [_run_local(path, 0)[0] for _ in range(STARTS)]
        _, runs, memory, calls = _run_local(path, 5000)
    p50, p99, requests = (Spread.of([run[figure] for run in runs])
                          for figure in ("p50_ms", "p99_ms", "requests_per_s"))
    return Row(seconds(Spread.of(starts).median), milliseconds(p50.median), milliseconds(p99.median),
               thousands(requests), f"{memory / 1e6:.0f} MB", calls,
               "no server: `predict` on one row in the caller's process, one caller")


def _run_local(model: Path, n: int) -> tuple[float, list[dict], int, str]:
    """Run `scikit_local.py` → (start s, its figures of each round of n predictions, bytes, system calls)."""
    start = time.perf_counter()
    command = [*on_cores(two_cores()[:1]), sys.executable, str(SOURCES / "scikit_local.py"), str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        def predict(times: int) -> dict:
            process.stdin.write(f"{times}\n")
            return json.loads(process.stdout.readline())
        score, elapsed_s = float(process.stdout.readline()), time.perf_counter() - start
        assert abs(score - np.dot(ROW, WEIGHTS) - BIAS) < 1e-9, score
        rounds = [predict(n) for _ in range(ROUNDS)] if n else []
        calls = count_calls(process.pid, lambda: predict(1000), n=20, predictions=1000) if n else ""
        memory = psutil.Process(process.pid).memory_info().rss
        process.stdin.close()
    return elapsed_s, rounds, memory, calls


# --- published ----------------------------------------------------------------------------------

def published(cold_start: str, warm: str) -> Callable[[], Row]:
    return lambda: Row(cold_start, warm, "", note="**published** by the course, not measured here: a cloud service")


# A way to serve is a name and a function to its row.
ROWS: dict[str, Callable[[], Row]] = {
    "Testigo": this_server,
    "Testigo, pure Python": this_server_without_native_code,
    "Local Python (scikit-learn in process)": scikit_learn_in_process,
    "Testigo, a model of MLflow's": this_server_for_mlflow,
    "`mlflow models serve`": mlflow_models_serve,
    "FastAPI + uvicorn": server_of("fastapi", "uvloop and httptools; the model in plain Python"),
    "Rust (hyper + serde_json)": server_of("rust", "one thread, `--release` with LTO"),
    "C, a thread a connection": server_of("c", "`-O2`; trusts its client"),
    "Databricks Model Serving": published("1–5 s", "50–200 ms"),
    "AWS SageMaker": published("1–10 s", "50–100 ms"),
}


# --- tabular models in process --------------------------------------------------------------------

def tabular_lines() -> list[str]:
    """A line a model: one row and many, one thread, of ours, of ONNX Runtime and of the training library."""
    from tests.bench.tabular_models import NAMES, data, session, trained
    rows, lines = data()[0], []
    narrow = rows.astype(np.float32)
    for name in NAMES:
        print(name, file=sys.stderr, flush=True)
        model, run = kernels.load(trained(name).own), session(trained(name).onnx)
        estimator = trained(name).estimator
        if hasattr(estimator, "n_jobs"):
            estimator.set_params(n_jobs=1)
        calls = [lambda x: model.predict(x), lambda x: run(x), lambda x: estimator.predict(x)]
        inputs = [narrow, narrow, rows]
        one = [best_of(call, x[:1].copy(), n) for call, x, n in zip(calls, inputs, (1000, 1000, 20))]
        many = [best_of(call, x, 1) for call, x in zip(calls, inputs)]
        cells = [name, *(f"{s * 1e6:,.1f}" for s in one), *(f"{s * 1e3:,.2f}" for s in many)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def table() -> str:
    """Rows through the server against rows in a job: `realtime_batch`'s table."""
    from tests.bench import realtime_batch
    print("a table of a million rows", file=sys.stderr, flush=True)
    return realtime_batch.measured(realtime_batch.MILLION, spark=True)


def best_of(call: Callable[[np.ndarray], object], rows: np.ndarray, times: int) -> float:
    """The shortest time of a call, s: the others were disturbed."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            call(rows)
        found.append((time.perf_counter() - start) / times)
    return min(found)


# --- text ---------------------------------------------------------------------------------------

def seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def milliseconds(value: float) -> str:
    return f"{value:.3f} ms"


def thousands(spread: Spread) -> str:
    return f"{spread.median:,.0f} ({spread.lowest:,.0f} … {spread.highest:,.0f})"


def line_of(name: str, function: Callable[[], Row]) -> str:
    print(name, file=sys.stderr, flush=True)
    try:
        row = function()
    except Missing as reason:
        row = Row("", "", "", note=f"missing here: {reason}")
    return "| " + " | ".join([name, row.cold_start, row.p50, row.p99, row.requests_per_s, row.memory, row.system_calls,
                              row.note]) + " |"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join([f"Testigo {kernels.__version__}", f"Python {platform.python_version()}", *found])


def document() -> str:
    lines = [line_of(name, function) for name, function in ROWS.items()]
    return f"""# Ways to serve the same model

The course's linear model (five features, one row a request), measured by `make compare`
on {date.today()}: {psutil.cpu_count()} cores of {processor()}, {psutil.virtual_memory().total / 2**30:.0f} GB,
Linux {platform.release()}; {versions()}.

Each server has one core, the load (wrk) another. Cold start: from the start of the process to the first correct
answer, median of {STARTS}. p50 and p99: one connection, as the client sees it, medians of {ROUNDS} runs.
Requests/s: {CONNECTIONS} connections, median (lowest … highest). Memory: resident, after the first answer. System
calls: of all threads, a request, on one keep-alive connection, by strace. The machine is shared: trust ratios.

| way | cold start | warm p50 | warm p99 | requests/s | memory | system calls | |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

## Tabular models in process

One thread, 30 features, `predict`: µs for one row, ms for 20,000 rows, the shortest of {ROUNDS} rounds. The training
library is scikit-learn, or LightGBM through its scikit-learn interface; ONNX Runtime takes float32 rows.

| model | one: Testigo | ONNX Runtime | training library | 20,000: Testigo | ONNX Runtime | training library |
|---|---|---|---|---|---|---|
{chr(10).join(tabular_lines())}

## A table: the server or a job

A random forest of 200 trees, 12 deep, on 30 features; a million rows from Parquet to Parquet in a job, and through the
server. {table()}"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.md", help="the file to write")
    out = parser.parse_args().out
    text = document()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
