"""The goals of tabular models in process: against ONNX Runtime, the training libraries and lleaves, one thread.

The rule to keep: answers are compared before they are timed, peers take turns, and only medians of ratios of
neighbouring rounds decide.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import kernels
from tests.bench.conftest import Goal
from tests.bench.peers import SOURCES, Missing
from tests.bench.tabular_models import N_ROWS, NAMES, data, session, trained

pytest.importorskip("onnxruntime")

ROUNDS = 9
TOLERANCE = 0.1
FOREST, BOOSTER = "RandomForest 200 × depth 12", "LightGBM 200 × 63 leaves"
LLEAVES_PACKAGES = ("lleaves", "llvmlite==0.43.0", "numpy<2.1", "pandas", "lightgbm")


def ratios(ours: Callable[[], object], theirs: Callable[[], object], times: int) -> tuple[list[float], list[float]]:
    """(our time over theirs, theirs in µs a call) of rounds in turns."""
    found, peers_us = [], []
    for _ in range(ROUNDS):
        both = []
        for call in (ours, theirs):
            start = time.perf_counter()
            for _ in range(times):
                call()
            both.append((time.perf_counter() - start) / times)
        found.append(both[0] / both[1])
        peers_us.append(both[1] * 1e6)
    return found, peers_us


def check_same(model: kernels.TabularModel, name: str, rows: np.ndarray) -> None:
    labels, probabilities = session(trained(name).onnx)(rows)[:2]
    assert np.abs(model.predict_proba(rows) - probabilities).max() < 1e-5
    if model.signature.classes is not None:
        assert (model.predict(rows) != labels).mean() < 1e-3  # float32 sums may tie otherwise


@pytest.mark.parametrize("name", NAMES)
def test_one_row_against_onnx_runtime(goals, name):
    rows = data()[0].astype(np.float32)
    model, run, one = kernels.load(trained(name).own), session(trained(name).onnx), rows[:1].copy()
    check_same(model, name, rows[:1000])
    found, theirs = ratios(lambda: model.predict(one), lambda: run(one), 1000)
    goals.note(f"  {name}: ONNX Runtime {np.median(theirs):.1f} µs a row")
    goals.check((f"one row, {name}, ours over ONNX Runtime's", found, Goal("≤", 0.4, TOLERANCE)))


def test_one_row_of_lightgbm_against_itself(goals):
    model, booster, one = kernels.load(trained(BOOSTER).own), trained(BOOSTER).estimator.booster_, data()[0][:1].copy()
    assert abs(model.predict(one)[0] - booster.predict(one)[0]) < 1e-12
    found, theirs = ratios(lambda: model.predict(one), lambda: booster.predict(one, num_threads=1), 500)
    goals.note(f"  {BOOSTER}: LightGBM itself {np.median(theirs):.1f} µs a row")
    goals.check((f"one row, {BOOSTER}, ours over LightGBM's", found, Goal("≤", 0.4, TOLERANCE)))


@pytest.mark.parametrize(("name", "goal"), [
    ("LogisticRegression", 1.0), ("MLP 64-64", 1.0), (FOREST, 0.4), (BOOSTER, 0.4)])
def test_many_rows_against_onnx_runtime(goals, name, goal):
    rows = data()[0].astype(np.float32)
    model, run = kernels.load(trained(name).own), session(trained(name).onnx)
    check_same(model, name, rows)
    found, theirs = ratios(lambda: model.predict(rows), lambda: run(rows), 3)
    goals.note(f"  {name}: ONNX Runtime {np.median(theirs) / 1e3:.2f} ms for {N_ROWS:,} rows")
    goals.check((f"{N_ROWS:,} rows, {name}, ours over ONNX Runtime's", found, Goal("≤", goal, TOLERANCE)))


def test_many_rows_of_a_forest_against_scikit_learn(goals):
    rows, estimator = data()[0], trained(FOREST).estimator.set_params(n_jobs=1)
    model = kernels.from_sklearn(estimator)
    assert (model.predict(rows[:2000]) == estimator.predict(rows[:2000])).all()
    found, _ = ratios(lambda: model.predict(rows), lambda: estimator.predict(rows), 1)
    goals.check((f"{N_ROWS:,} rows, {FOREST}, ours over scikit-learn's", found, Goal("≤", 0.4, TOLERANCE)))


@contextmanager
def lleaves_peer(model: Path, rows: Path) -> Iterator[subprocess.Popen]:
    """A process that predicts with lleaves, when a line is written to it; from an environment of its own."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "testigo-peers" / "lleaves"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *LLEAVES_PACKAGES], capture_output=True)
        if done.returncode:
            raise Missing(f"pip install {' '.join(LLEAVES_PACKAGES)} failed")
        (folder / "installed").touch()
    with subprocess.Popen([python, SOURCES / "lleaves_local.py", model, rows], text=True, bufsize=1,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.stdin.close()


def test_many_rows_of_lightgbm_against_lleaves(goals, tmp_path):
    rows, model = data()[0], kernels.load(trained(BOOSTER).own)
    np.save(tmp_path / "rows.npy", rows)
    found, theirs = [], []
    try:
        with lleaves_peer(trained(BOOSTER).own, tmp_path / "rows.npy") as peer:
            compile_s, first = map(float, peer.stdout.readline().split())
            assert abs(model.predict(rows)[0] - first) < 1e-6
            for _ in range(ROUNDS):
                start = time.perf_counter()
                model.predict(rows)
                ours_ms = (time.perf_counter() - start) * 1e3
                peer.stdin.write("\n")
                theirs.append(float(peer.stdout.readline()))
                found.append(ours_ms / theirs[-1])
    except Missing as reason:
        pytest.skip(f"lleaves: missing ({reason})")
    goals.note(f"  lleaves: {np.median(theirs):.1f} ms for {N_ROWS:,} rows, {compile_s:.0f} s to compile")
    goals.check((f"{N_ROWS:,} rows, {BOOSTER}, ours over lleaves'", found, Goal("≤", 1.0, TOLERANCE)))


@pytest.mark.parametrize("name", [FOREST, BOOSTER])
def test_two_threads_against_one(goals, name):
    rows = np.tile(data()[0], (5, 1))
    one, two = (kernels.load(trained(name).own, threads=n) for n in (1, 2))
    assert (one.predict(rows) == two.predict(rows)).all()
    found, _ = ratios(lambda: one.predict(rows), lambda: two.predict(rows), 1)
    goals.check((f"{len(rows):,} rows, {name}, two threads' speed over one's", found, Goal("≥", 1.9, 0.05)))


FIRST_ANSWER = """
import time
start = time.perf_counter()
import sys
import numpy as np
import kernels
model = kernels.load(sys.argv[1])
model.predict(np.zeros((1, model.n_features)))
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("name", NAMES)
def test_load_and_compile_to_the_first_answer(goals, name, tmp_path):
    path, seconds = trained(name).own, []
    for i in range(3):
        environment = os.environ | {"TESTIGO_CACHE_DIR": str(tmp_path / f"cache-{i}")}
        seconds.append(float(subprocess.check_output([sys.executable, "-c", FIRST_ANSWER, path], env=environment)))
    goals.check((f"import, load and compile to the first answer, cold, {name}, s", seconds, Goal("≤", 3.0, TOLERANCE)))
