"""What runs in Spark's Python workers: a model that came with the task, and the Arrow batches of a partition.

The rule to keep: this imports no pyspark and looks nothing up: whatever a worker needs is in its task and in the
installed wheel. A machine writes a model to its disk, and compiles for it, once; a worker process loads it once.
"""

import fcntl
import functools
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

import kernels
from databricks.scoring import PREDICT, Scorer
from databricks.tables import Table

KEPT_S = 7 * 24 * 3600  # a model's file that no worker has loaded for so long is removed
GGUF = b"GGUF"
BATCH_ROWS, BATCH_CELLS = 1 << 14, 1 << 22  # at most, of what a worker reads itself


@dataclass(frozen=True)
class Task:
    """A model on its way to the workers, with what `Scorer` is made of there."""

    digest: str  # of the content: SHA-256 in hexadecimal
    columns: tuple[str, ...]
    key: tuple[str, ...] = ()  # of which no column may be null
    text: bool = False
    answer: str = PREDICT
    content: bytes = field(default=b"", repr=False)  # a GGUF file

    def scorer(self) -> Scorer:
        """Loaded once a process, from the machine's file."""
        return _scorer(str(stored(self)), self.columns, self.key, self.text, self.answer)


def task_of(scorer: Scorer) -> Task:
    """The task for a model, which travels as GGUF: that keeps every bit, is small and is mapped, not read."""
    content = Path(scorer.file).read_bytes()
    if not content.startswith(GGUF):
        with tempfile.TemporaryDirectory(prefix="testigo-") as folder:
            path = Path(folder) / "model.gguf"
            kernels.save(scorer.model, path)
            content = path.read_bytes()
    key = scorer.key if scorer.whole_keys else ()
    return Task(hashlib.sha256(content).hexdigest(), scorer.columns, key, scorer.text, scorer.answer, content)


@functools.lru_cache(maxsize=4)
def _scorer(path: str, columns: tuple[str, ...], key: tuple[str, ...], text: bool, answer: str) -> Scorer:
    os.utime(path)  # it is in use
    scorer = Scorer(path, names=columns, key=key, whole_keys=bool(key), text=text, answer=answer)
    _compile_once(scorer, Path(path).with_suffix(".compiled"))
    return scorer


# ---- once a machine ----------------------------------------------------------------------------------------

def stored(task: Task) -> Path:
    """The model's file on this machine, in a folder of this user's alone."""
    path = _folder() / f"{task.digest}.gguf"
    if not path.exists():
        with _one_at_a_time():
            if not path.exists():
                _forget_old(path.parent)
                _write(path, task.content)
    return path


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; for who holds the lock."""
    unfinished = path.with_suffix(".partial")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _compile_once(scorer: Scorer, mark: Path) -> None:
    """Have the compiled code in this process; the first process of the machine compiles, the others wait for it.

    `mark` says, when it exists, how many seconds that took.
    """
    if not mark.exists():
        from kernels import compiled_program  # noqa: F401  numba takes half a second to import: not while others wait
        with _one_at_a_time():
            if not mark.exists():
                _write(mark, b"%.3f" % scorer.warm_up())
    scorer.warm_up()


def _folder() -> Path:
    from kernels.compiled import cache_dir  # numba takes half a second to import
    folder = cache_dir(Path(__file__).resolve().parent) / "models"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Among all workers of the machine."""
    with (_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old(folder: Path) -> None:
    for path in folder.glob("*.gguf"):
        if time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink()
            path.with_suffix(".compiled").unlink(missing_ok=True)


# ---- what mapInArrow calls ---------------------------------------------------------------------------------

def score_partition(task: Task, names: Sequence[str], output: Sequence[str],
                    batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of the columns `names` → their first columns, the prediction and the reason, named `output`."""
    scorer = None
    for batch in batches:
        scorer = scorer or task.scorer()
        batch = batch.rename_columns(list(names))
        predictions, reasons = scorer.answers(batch)
        yield pa.RecordBatch.from_arrays([*batch.columns[:len(output) - 2], predictions, reasons], names=list(output))


def score_pieces(task: Task, pieces: Sequence[tuple[Table, int]], key: Sequence[str], schema: pa.Schema,
                 batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Numbers of pieces → the rows of those pieces: the key columns or the row's number, the prediction, the reason.

    The worker reads the files itself: a third of the processor time of having Spark read them and hand them over.
    """
    for batch in batches:
        for place in batch.column(0).to_pylist():
            table, first_row = pieces[place]
            scorer = task.scorer()
            names = list(dict.fromkeys((*key, *scorer.columns)))
            for rows in table.batches(names, max(256, min(BATCH_ROWS, BATCH_CELLS // len(names))), _no_reject):
                numbers = pa.array(range(first_row, first_row + len(rows)), pa.int64())
                kept = [rows.column(name).cast(type_) for name, type_ in zip(key, schema.types)] or [numbers]
                yield pa.RecordBatch.from_arrays([*kept, *scorer.answers(rows)], schema=schema)
                first_row += len(rows)


def _no_reject(_: str) -> None:
    """Parquet has all columns in each row."""


def prepare_partition(task: Task, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Load and compile ahead → one row: this machine's name, the seconds that compiling took here, 0 = long ago."""
    for _ in batches:
        pass
    mark, start = stored(task).with_suffix(".compiled"), time.time()
    task.scorer()
    seconds = float(mark.read_text()) if mark.exists() and mark.stat().st_mtime >= start else 0.0
    yield pa.RecordBatch.from_pydict({"machine": [socket.gethostname()], "seconds": [seconds]})
