"""The batch job on this machine: a thread reads ahead, each core scores batches of its own, one thread writes.

The rule to keep: batches are bounded in bytes and so is how many of them wait; the order of the input is kept.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from databricks import commit
from databricks.job import Job, Progress, Summary
from databricks.scoring import BatchError, Scorer
from databricks.tables import Table, first_line, open_table

BATCH_ROWS = 1 << 14  # time enough to hide what a batch costs, little enough to stay in a cache
WAITING_BYTES = 1 << 26  # of all batches that are read, scored or wait
AHEAD = 2  # batches read ahead
STRING_BYTES = 64  # about, of a cell


def run(job: Job, progress: Progress | None = None) -> Summary:
    """Score all rows of the job's input into its output and its rejects.

    Raises BatchError, before anything is written, for columns, types, tables and modes that do not fit, and for files
    that turn out to be damaged; ModelError and OSError for a model that cannot be loaded.
    """
    try:
        return _run(job, progress or Progress(None), time.monotonic())
    except pa.ArrowException as error:
        raise BatchError(f"--input {job.input:.200}: {first_line(error)}: nothing was written") from None


def _run(job: Job, progress: Progress, start: float) -> Summary:
    table = open_table(job.input)
    scorer = job.scorer(table.text)
    table.check(scorer.check, job.key)
    output_schema, rejects_schema = scorer.output_schema(table.schema), scorer.rejects_schema(table.schema)
    read = {Path(job.input).resolve(), *(part.path.resolve() for part in table.parts)}
    commit.check_apart(read, Path(job.output).resolve(), Path(job.rejects).resolve())
    commit.check_targets(job, output_schema, rejects_schema)
    identity = job.identity(scorer.digest, table.identity())
    progress.say(f"{scorer.model.name}: kernels compiled, or read from the cache, after {scorer.warm_up():.1f} s")
    output, rejects = Path(job.output), Path(job.rejects)
    with commit.staging(output) as here, commit.staging(rejects) as there:
        if job.mode == "append" and commit.is_committed(job, identity):
            return Summary(0, 0, time.monotonic() - start, repeated=True)
        ending = commit.staged_format(job)
        staged, staged_rejects = here / f"output.{ending}", there / f"rejects.{ending}"
        progress.total, progress.started = table.n_rows, time.monotonic()
        scored, rejected = _write(job, table, scorer, progress, (staged, output_schema),
                                  (staged_rejects, rejects_schema))
        if job.mode == "merge":
            _check_unique(staged, job.key)
        commit.commit(job, identity, staged_rejects, rejects, "append" if job.mode == "append" else "overwrite")
        commit.commit(job, identity, staged, output, job.mode)
    return Summary(scored + rejected, rejected, time.monotonic() - start)


def _write(job: Job, table: Table, scorer: Scorer, progress: Progress, output: tuple[Path, pa.Schema],
           rejects: tuple[Path, pa.Schema]) -> tuple[int, int]:
    """(rows scored, rows rejected) into two files."""
    odd: list[str] = []  # rows of CSV that have no columns, as the reader finds them
    is_csv = job.format == "csv"
    with ExitStack() as stack:
        good, bad = (commit.Writer(path, schema, is_csv) for path, schema in (output, rejects))
        stack.callback(bad.close)
        stack.callback(good.close)
        batches = table.batches(scorer.needed, _batch_rows(table, scorer, job.threads), odd.append)
        for scored, rejected in _score_all(batches, scorer, job.threads):
            good.write(scored)
            bad.write(rejected)
            progress.update(good.rows + bad.rows)
        bad.write(_without_columns(odd, rejects[1]))
    return good.rows, bad.rows


def _score_all(batches: Iterator[pa.RecordBatch], scorer: Scorer,
               threads: int) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """(scored, rejected) of each batch, in order, from `threads` threads."""
    first_row = 0
    waiting: deque = deque()
    with ThreadPoolExecutor(threads, "score") as pool:
        for batch in _read_ahead(batches):
            if scorer.text and not first_row:
                scorer.check_text(batch)
            waiting.append(pool.submit(scorer.score, batch, first_row))
            first_row += len(batch)
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with ThreadPoolExecutor(1, "read") as reader:
        waiting = deque(reader.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, batches, None))
            yield batch


def _batch_rows(table: Table, scorer: Scorer, threads: int) -> int:
    """Rows a batch, so that all batches at work, each as columns and as a matrix, fit WAITING_BYTES."""
    row_bytes = 8 * len(scorer.columns)
    for name in scorer.needed:
        type_ = table.schema.field(name).type
        row_bytes += type_.bit_width // 8 + 1 if pa.types.is_primitive(type_) else STRING_BYTES
    return min(BATCH_ROWS, max(256, WAITING_BYTES // (row_bytes * (2 * threads + AHEAD))))


def _without_columns(reasons: list[str], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.nulls(len(reasons), field.type) for field in schema]
    return pa.RecordBatch.from_arrays([*columns[:-1], pa.array(reasons, pa.string())], schema=schema)


def _check_unique(staged: Path, key: tuple[str, ...]) -> None:
    keys = pq.read_table(staged, columns=list(key))
    if keys.group_by(list(key)).aggregate([]).num_rows != keys.num_rows:
        raise BatchError("--mode merge expects each key once in the input: nothing was written")
