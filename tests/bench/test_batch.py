"""The goals of batch scoring with the Arrow engine: Parquet to Parquet, against the training libraries' own predict.

The rule to keep: ours reads and writes files and loads its model in the time that is measured; theirs has all rows in
memory already. Answers are compared before they are timed, and peers take turns.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kernels
from tests.bench.conftest import Goal
from tests.bench.tabular_models import N_FEATURES, trained

N_ROWS, ROUNDS, TOLERANCE = 5_000_000, 3, 0.05
BLOCK = 250_000  # rows made at a time
LARGE_ROWS, LARGE_BYTES = 9_000_000, 2 << 30
NAMES = [f"f{i}" for i in range(N_FEATURES)]
FOREST, BOOSTER = "RandomForest 200 × depth 12", "LightGBM 200 × 63 leaves"
CORES = len(os.sched_getaffinity(0))


def write_table(path: Path, n_rows: int, row_group_rows: int) -> None:
    rng = np.random.default_rng(1)
    schema = pa.schema([("id", pa.int64()), *((name, pa.float64()) for name in NAMES)])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, n_rows, row_group_rows):
            columns = [pa.array(rng.normal(size=row_group_rows)) for _ in NAMES]
            ids = pa.array(range(first, first + row_group_rows), pa.int64())
            writer.write_table(pa.table([ids, *columns], schema=schema), row_group_rows)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("batch") / "rows.parquet"
    write_table(path, N_ROWS, BLOCK)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def rows(table: Path) -> np.ndarray:
    """(N_ROWS, N_FEATURES) float64, as the peers take it."""
    found = np.empty((N_ROWS, N_FEATURES))
    for i, batch in enumerate(pq.ParquetFile(table).iter_batches(BLOCK, columns=NAMES)):
        found[i * BLOCK:(i + 1) * BLOCK] = np.stack(batch.columns, axis=1)
    return found


@functools.cache
def model_file(name: str, folder: Path) -> Path:
    """The model in the form that a batch job is given."""
    if name == BOOSTER:
        return trained(name).own
    path = folder / "forest.gguf"
    kernels.save(kernels.from_sklearn(trained(name).estimator), path)
    return path


def theirs(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The library's own predict, on all cores."""
    estimator = trained(name).estimator
    if name == BOOSTER:
        return lambda rows: estimator.booster_.predict(rows, num_threads=CORES)
    return estimator.set_params(n_jobs=CORES).predict


def job(model: Path, table: Path, output: Path, cores: int = CORES) -> float:
    """Score `table` in a process of its own, on so many cores → seconds, from the start of the job in that process."""
    command = [sys.executable, "-m", "databricks.batch", "--model", model, "--input", table, "--output", output,
               "--key", "id", "--columns", ",".join(NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]))
    count, rejects, _, seconds = done.stdout.splitlines()[-1].split(", ")
    assert (count, rejects) == (f"{N_ROWS} rows", "0 rejects")
    return float(seconds.removesuffix(" s"))


@pytest.mark.parametrize(("name", "goal"), [(FOREST, 2.2), (BOOSTER, 4.0)])
def test_parquet_to_parquet_against_the_library_on_all_cores(goals, table, rows, tmp_path, name, goal):
    model, predict, found, us = model_file(name, table.parent), theirs(name), [], []
    job(model, table, tmp_path / "out")
    scored = pq.read_table(tmp_path / "out")
    assert scored["id"].to_numpy()[-1] == N_ROWS - 1
    assert np.allclose(scored["prediction"].to_numpy()[:BLOCK], predict(rows[:BLOCK]), atol=1e-12)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        predict(rows)
        their_s = time.perf_counter() - start
        our_s = job(model, table, tmp_path / "out")
        found.append(their_s / our_s)
        us.append((their_s / N_ROWS * 1e6, our_s / N_ROWS * 1e6))
    goals.note(f"  {name}: theirs {min(one[0] for one in us):.2f} µs a row, ours {min(one[1] for one in us):.2f} with "
               "files")
    goals.check((f"{N_ROWS:,} rows, {name}, speed over its own on {CORES} cores", found,
                 Goal("≥", goal, TOLERANCE)))


@pytest.mark.parametrize("name", [FOREST, BOOSTER])
@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_two_cores_against_one(goals, table, tmp_path, name):
    model = model_file(name, table.parent)
    found = []
    for _ in range(ROUNDS):
        one, two = (job(model, table, tmp_path / "out", cores) for cores in (1, 2))
        found.append(one / two)
    goals.check((f"{N_ROWS:,} rows, {name}, two cores' speed over one's", found, Goal("≥", 1.8, TOLERANCE)))


PEAK = """
import sys
from pathlib import Path
import numpy, pyarrow.parquet, kernels
from databricks import batch
def mib(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name)) / 1024
idle = mib("VmRSS")
assert batch.main(sys.argv[1:]) == 0
print(mib("VmHWM") - idle)
"""


@pytest.mark.parametrize("row_group_rows", [1_000_000, LARGE_ROWS])
def test_memory_of_a_large_file(goals, tmp_path, row_group_rows):
    path = tmp_path / "large.parquet"
    write_table(path, LARGE_ROWS, row_group_rows)
    assert path.stat().st_size > LARGE_BYTES
    try:
        command = [sys.executable, "-c", PEAK, "--model", trained(BOOSTER).own, "--input", path, "--output",
                   tmp_path / "out", "--key", "id", "--columns", ",".join(NAMES)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        path.unlink()
    goals.check((f"a file of 2 GiB in row groups of {row_group_rows:,}, MiB above the idle process",
                 [float(done.stdout.splitlines()[-1])], Goal("≤", 512)))
