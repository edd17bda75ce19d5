"""`/invocations` against `mlflow models serve` of the same logged model: one row and a thousand, as `dataframe_split`.

The rule to keep: both answer the same body alike before either is timed; server on one core, load on another.
"""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests import serving
from tests.bench import load
from tests.bench.conftest import Goal
from tests.bench.load import ratios
from tests.bench.peers import Missing, Running, on_cores, two_cores
from tests.bench.tabular_models import N_FEATURES, data, trained

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred", "ignore:.*integer column")

FORESTS = ("RandomForest 10 × depth 5", "RandomForest 200 × depth 12")
COLUMNS = [f"f{i}" for i in range(N_FEATURES)]
GOALS = {1: Goal("≥", 15.0, 0.05), 1000: Goal("≥", 10.0, 0.05)}  # rows a request: requests a second, ours over theirs
START_S = 120.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@pytest.fixture(scope="module", params=FORESTS)
def logged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forest as a scikit-learn user logs it."""
    import pandas
    folder = tmp_path_factory.mktemp("logged") / request.param
    frame = pandas.DataFrame(data()[0][:100], columns=COLUMNS)
    estimator = trained(request.param).estimator
    signature = mlflow.models.infer_signature(frame, estimator.predict(frame.to_numpy()))
    mlflow.sklearn.save_model(estimator, folder, signature=signature, pip_requirements=[],
                              serialization_format="cloudpickle")
    return folder


@contextmanager
def mlflow_serves(model: Path, core: int) -> Iterator[Running]:
    port, start = serving.free_port(), time.perf_counter()
    command = [*on_cores([core]), sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--port",
               str(port), "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # uvicorn, which that starts
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | QUIET | {"PATH": path})
    try:
        serving.wait_for(lambda: is_up(port))
        yield Running("mlflow", last_child(process.pid), port, time.perf_counter() - start)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def last_child(pid: int) -> int:
    """The process that answers: the command starts others, one after the other."""
    return max((child.pid for child in psutil.Process(pid).children(recursive=True)), default=pid)


def is_up(port: int) -> bool:
    try:
        return ask(port, "GET", "/ping")[0] == 200
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def predictions(server: Running, body: bytes) -> list:
    status, answer = ask(server.port, "POST", "/invocations", body)
    assert status == 200, answer
    return json.loads(answer)["predictions"]


@pytest.mark.parametrize("n_rows", GOALS)
def test_invocations_against_mlflow_models_serve(goals, logged, n_rows):
    rows = np.round(data()[0][:n_rows], 4)
    body = json.dumps({"dataframe_split": {"columns": COLUMNS, "data": rows.tolist()}}).encode()
    try:
        server_core, load_core = two_cores()
    except Missing as error:
        pytest.skip(str(error))
    with serving.start(logged, "--allow-pickle", command=[*on_cores([server_core]), *serving.COMMAND]) as server, \
            mlflow_serves(logged, server_core) as theirs:
        ours = Running("testigo", server.pid, server.port, 0.0)
        assert predictions(ours, body) == predictions(theirs, body)
        rounds = load.compare([lambda each=each: load.post(each, 1, [load_core], "/invocations", body)
                               for each in (ours, theirs)], 5)
    for each, loads in zip((ours, theirs), zip(*rounds)):
        figures = load.spreads(loads)
        goals.note(f"  {each.name:8} {figures['requests_per_s']} requests/s, p50 {figures['p50_ms']} ms")
    goals.check((f"/invocations, {n_rows} rows, {logged.name}, over mlflow models serve",
                 ratios(rounds, "requests_per_s"), GOALS[n_rows]))
