"""`/invocations` against `mlflow models serve` of the same logged model: one row and a thousand, as `dataframe_split`.

The rule to keep: both answer the same body alike before either is timed; server on one core, load on another.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import serving
from tests.bench import load
from tests.bench.conftest import Goal
from tests.bench.load import ratios
from tests.bench.peers import Missing, Running, ask, mlflow_serves, on_cores, two_cores
from tests.bench.tabular_models import N_FEATURES, data, trained

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred", "ignore:.*integer column")

FORESTS = ("RandomForest 10 × depth 5", "RandomForest 200 × depth 12")
COLUMNS = [f"f{i}" for i in range(N_FEATURES)]
GOALS = {1: Goal("≥", 15.0, 0.05), 1000: Goal("≥", 10.0, 0.05)}  # rows a request: requests a second, ours over theirs


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
