"""Jobs killed at any point and run again: the tables of a job that nobody disturbed, and at no time half of them.

A process that has imported all and loaded nothing forks for each job; the job kills itself when it is about to change
a name in the file system for the n-th time, or is killed by a timer of the kernel's.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from sklearn.linear_model import LinearRegression

import kernels

N, OLD = 60_000, 100
KILLED = -9, -14  # by itself, by the timer
FORKER = """
import json, os, signal, sys, time
import deltalake, deltalake.exceptions, pyarrow.csv, pyarrow.dataset, pyarrow.parquet, kernels
from databricks import arrow_engine, batch, commit

NAMES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "ctypes.dlsym"}

def job(arguments, point, seconds):
    os.dup2(os.open("job.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    changes = [0]
    def count(event, details):
        if event in NAMES or event == "open" and ".partial" in str(details[:1]):
            changes[0] += 1
            if changes[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    commits = commit.commit
    def commit_between_points(*details):
        sys.audit("os.rename")
        commits(*details)
        sys.audit("os.rename")
    commit.commit = commit_between_points  # Delta's own writes are not seen from Python
    signal.setitimer(signal.ITIMER_REAL, seconds)
    answers, sys.stdout = sys.stdout, sys.stderr
    status, started = batch.main(arguments), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.write(answers.fileno(), b"%d " % changes[0])
    os._exit(status)

kernels.load(sys.argv[1]).predict([[1.0, 2.0]])
for line in sys.stdin:
    started = time.monotonic()
    child = os.fork()
    if not child:
        job(*json.loads(line))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(1, b"%d %f\\n" % (status, time.monotonic() - started))
"""


class Ended(NamedTuple):
    status: int
    changes: int  # of names in the file system, where it was not killed
    seconds: float


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, 10 · a + b, an old input and one whose keys overlap with it."""
    folder = tmp_path_factory.mktemp("exactly-once")
    frame = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 2.0], "b": [0.0, 0.0, 1.0, 1.0]})
    kernels.save(kernels.from_sklearn(LinearRegression().fit(frame, [0.0, 10.0, 1.0, 21.0])), folder / "model.gguf")
    rng = np.random.default_rng(4)
    for name, ids in (("old", range(OLD)), ("new", range(OLD // 2, OLD // 2 + N))):
        a, b = rng.normal(size=(2, len(ids)))
        table = pa.table({"id": ids, "a": pa.array(a, mask=rng.random(len(ids)) < 0.001), "b": b})
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Run]:
    """Run a job on `folder`'s inputs, killed at the `point`-th change or after `seconds` where they are not 0."""
    with subprocess.Popen([sys.executable, "-c", FORKER, folder / "model.gguf"], text=True, bufsize=1, cwd=folder,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forker:
        def run_job(source: str, output: Path, mode: str, format_: str, point: int = 0, seconds: float = 0) -> Ended:
            arguments = ["--model", "model.gguf", "--input", f"{source}.parquet", "--output", str(output),
                         "--key", "id", "--mode", mode, "--format", format_]
            forker.stdin.write(json.dumps([arguments, point, seconds]) + "\n")
            *changes, status, took = forker.stdout.readline().split()
            assert int(status) in (0, *KILLED), (folder / "job.log").read_text()
            return Ended(int(status), int(changes[0]) if changes else 0, float(took))
        yield run_job
        forker.stdin.close()


def rows(path: Path, format_: str) -> pa.Table:
    found = DeltaTable(path).to_pyarrow_table() if format_ == "delta" else pa.dataset.dataset(path).to_table()
    return found.sort_by([(name, "ascending") for name in found.column_names])


def tables(output: Path, format_: str) -> list[pa.Table]:
    return [rows(path, format_) for path in (output, output.with_name(f"{output.name}-rejects"))]


def copy(source: Path, target: Path) -> Path:
    for ending in ("", "-rejects"):
        shutil.copytree(f"{source}{ending}", f"{target}{ending}")
    return target


@pytest.mark.parametrize(("format_", "mode"), [
    ("parquet", "overwrite"), ("parquet", "append"), ("delta", "overwrite"), ("delta", "append"), ("delta", "merge")])
def test_killed_at_any_point_and_run_again_gives_the_same_tables(run, folder, tmp_path, format_, mode):
    start = tmp_path / "start"
    assert run("old", start, "overwrite", format_).status == 0
    undisturbed = copy(start, tmp_path / "undisturbed")
    done = run("new", undisturbed, mode, format_)
    before, after = tables(start, format_), tables(undisturbed, format_)
    assert after[0].num_rows > N - 200 and after[1].num_rows > 30
    rng = random.Random(f"{format_} {mode}")
    points = [(point, 0.0) for point in range(1, done.changes + 1)]
    instants = [(0, rng.uniform(0.001, done.seconds)) for _ in range(6)]
    killed = 0
    for i, (point, seconds) in enumerate(points + instants):
        output = copy(start, tmp_path / f"{i}" / "table")
        killed += run("new", output, mode, format_, point, seconds).status in KILLED
        seen = tables(output, format_)
        assert seen[0] in (before[0], after[0]) and seen[1] in (before[1], after[1])
        assert not (seen[0] == after[0] and seen[1] == before[1])  # the rejects come first
        assert run("new", output, mode, format_).status == 0
        assert tables(output, format_) == after
        assert {path.name for path in output.parent.iterdir()} == {"table", "table-rejects"}
        shutil.rmtree(output.parent)
    assert killed >= len(points) >= 8
    print(f"{format_} {mode}: killed {killed} times at {len(points)} changes and {len(instants)} instants")
