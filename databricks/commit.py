"""From files that are complete to the tables that others read, in one step each: exactly once, whenever a job dies.

The rule to keep: nothing at OUTPUT or at its rejects changes before both are complete beside them; then the rejects
are committed, and last OUTPUT. A job that died before that left nothing but `.NAME.partial`, which the next one of
this OUTPUT empties; one that died between is done again by running it again, and finds its own rejects.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from databricks.job import Job
from databricks.scoring import BatchError
from databricks.tables import first_line

AT_FDCWD, RENAME_EXCHANGE = -100, 2
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 1 << 20, 1 << 24
OLD = "-old"  # the end of a folder's name that was a table
APP = "testigo-batch-"  # and the job's identity: Delta's application id
# What a folder that may be replaced holds beside rows: what Spark and others write there, by its name's start.
MARKS = ("_SUCCESS", "_started_", "_committed_", "_metadata", "_common_metadata")


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, this process's alone, removed at the end. Raises BatchError for a second job."""
    target = target.resolve()  # a link to a folder stays one
    folder = target.with_name(f".{target.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = os.fstat(lock).st_ino == folder.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            alone = False
        if not alone:
            raise BatchError(f"{target}: another job is writing this table")
        for left in folder.iterdir():
            if left.name.endswith(OLD) and not target.exists():  # it died between the two steps of `exchange`
                left.rename(target)
            else:
                remove(left)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class Writer:
    """One file of rows, Parquet or CSV, in row groups that are bounded in rows and bytes."""

    def __init__(self, path: Path, schema: pa.Schema, csv: bool) -> None:
        self.schema, self.rows = schema, 0
        self._path = path
        self._writer = pa.csv.CSVWriter(path, schema) if csv else pq.ParquetWriter(path, schema)
        self._waiting: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self.rows += len(batch)
        self._waiting += [batch] if len(batch) else []
        if (sum(map(len, self._waiting)) >= ROW_GROUP_ROWS
                or sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES):
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._waiting, self.schema))
        self._waiting = []

    def close(self) -> None:
        """Write what waits, to the disk."""
        self._flush()
        self._writer.close()
        sync(self._path)


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's names."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def staged_format(job: Job) -> str:
    """Delta's rows wait in Parquet for its transaction."""
    return "csv" if job.format == "csv" else "parquet"


# ---- before the first row ----------------------------------------------------------------------------------

def check_apart(inputs: Iterable[Path], output: Path, rejects: Path) -> None:
    """Raises BatchError unless what is read and the two that are written are apart: not the same, none in another."""
    if output == rejects or output in rejects.parents or rejects in output.parents:
        raise BatchError("--rejects: expected a path beside --output, not the same and not inside")
    written = (output, rejects)
    if any(path == one or path in one.parents or one in path.parents for one in inputs for path in written):
        raise BatchError("--output and --rejects: expected paths apart from --input")


def check_targets(job: Job, output: pa.Schema, rejects: pa.Schema) -> None:
    """Raises BatchError for what cannot be written: types that the format lacks, tables of other columns, other files.
    """
    for path, schema in ((job.output, output), (job.rejects, rejects)):
        _check_types(job, schema)
        target = Path(path)
        if not target.exists():
            continue
        if not target.is_dir():
            raise BatchError(f"{path:.200}: expected a folder or nothing there: a table is a folder of files")
        is_delta = (target / "_delta_log").is_dir()
        if job.format == "delta":
            if not is_delta and any(target.iterdir()):
                raise BatchError(f"{path:.200}: expected a Delta table or nothing there")
        elif is_delta or not all(_may_be_replaced(found, job.format) for found in target.rglob("*")):
            raise BatchError(f"{path:.200}: expected a table in {job.format}, or nothing, there: "
                             f"{'a Delta table' if is_delta else 'other files'} would be lost")
        if job.mode != "overwrite" and not (job.mode == "merge" and path == job.rejects):
            found = _schema_there(job, target)
            if found is not None and not _same_columns(job, found, schema):
                raise BatchError(f"{path:.200}: --mode {job.mode} expects a table of the columns "
                                 f"{', '.join(f'{field.name!r:.60} {field.type}' for field in schema)}")


def _may_be_replaced(path: Path, format: str) -> bool:
    return path.suffix in (f".{format}", ".crc") or path.name.startswith(MARKS) or path.is_dir()


def _check_types(job: Job, schema: pa.Schema) -> None:
    try:
        if job.format == "delta":
            from deltalake import Schema
            Schema.from_arrow(schema)
        else:
            sink = pa.BufferOutputStream()
            with pa.csv.CSVWriter(sink, schema) if job.format == "csv" else pq.ParquetWriter(sink, schema) as writer:
                writer.write_table(schema.empty_table())
    except Exception as error:  # deltalake raises a bare Exception for a type that Delta lacks
        raise BatchError(f"--format {job.format} cannot hold these columns: {str(error).partition(chr(10))[0]:.200}"
                         ) from None


def _schema_there(job: Job, target: Path) -> pa.Schema | None:
    if job.format == "delta":
        if not (target / "_delta_log").is_dir():
            return None
        from deltalake import DeltaTable
        with _said_of(target):
            return pa.schema(DeltaTable(target).schema())
    files = sorted(target.glob(f"*.{job.format}"))
    if not files:
        return None
    if job.format == "parquet":
        return pq.read_schema(files[0])
    with files[0].open(encoding="utf-8") as file:
        return pa.schema([(name.strip('"'), pa.string()) for name in file.readline().rstrip("\r\n").split(",")])


def _same_columns(job: Job, found: pa.Schema, ours: pa.Schema) -> bool:
    if job.format == "csv" or found.names != ours.names:
        return found.names == ours.names
    if job.format == "delta":
        from deltalake import Schema
        ours = pa.schema(Schema.from_arrow(ours))
    return found.types == ours.types


# ---- the commit --------------------------------------------------------------------------------------------

def is_committed(job: Job, identity: str) -> bool:
    """Whether this job's rows are in OUTPUT, and a job that appends is done."""
    target = Path(job.output)
    if job.format != "delta":
        return (target / f"part-{identity}.{job.format}").exists()
    return (target / "_delta_log").is_dir() and _in_delta(target, identity)


def commit(job: Job, identity: str, staged: Path, target: Path, mode: str) -> None:
    """Make the staged file part of the table at `target`, or all of it."""
    if job.format == "delta":
        return _commit_delta(job, identity, staged, target, mode)
    name = f"part-{identity}.{job.format}"
    if mode == "append":
        target.mkdir(exist_ok=True)
        staged.replace(target / name)
        return sync(target)
    folder = staged.with_suffix("")
    folder.mkdir()
    staged.replace(folder / name)
    sync(folder)
    exchange(folder, target)


def exchange(folder: Path, target: Path) -> None:
    """The complete folder takes the place of `target`, which takes its place where it exists.

    One step on Linux's own file systems; two on others, between which `staging` finds what was at `target`.
    """
    target = target.resolve()
    if not target.exists():
        folder.rename(target)
    elif not _exchange_in_one(folder, target):
        old = folder.with_name(folder.name + OLD)
        target.rename(old)
        folder.rename(target)
    sync(target.parent)


def _exchange_in_one(one: Path, other: Path) -> bool:
    """Whether the file system could: NFS and some others cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(other))
    return False


def _in_delta(target: Path, identity: str) -> bool:
    """Whether the table has this job's transaction, and nobody has overwritten the table since."""
    from deltalake import DeltaTable
    table = DeltaTable(target)
    if table.transaction_version(APP + identity) is None:
        return False
    for entry in table.history():  # the newest first
        if entry.get("testigo_job") == identity:
            return True
        if json.loads(json.dumps(entry.get("operationParameters", {}), default=str)).get("mode") == "Overwrite":
            return False
    return True


@contextlib.contextmanager
def _said_of(target: Path) -> Iterator[None]:
    """Delta's errors, as of another writer who was there first, as BatchError."""
    from deltalake.exceptions import DeltaError
    try:
        yield
    except DeltaError as error:
        raise BatchError(f"{target}: {first_line(error)}") from error


def _commit_delta(job: Job, identity: str, staged: Path, target: Path, mode: str) -> None:
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    exists = (target / "_delta_log").is_dir()
    if mode == "append" and exists and _in_delta(target, identity):
        return  # the rejects of a job that died before it committed its output
    properties = CommitProperties(custom_metadata={"testigo_job": identity},
                                  app_transactions=[Transaction(APP + identity, 1)])
    with pq.ParquetFile(staged) as file, _said_of(target):
        reader = pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())
        if mode == "merge" and exists:
            on = " AND ".join(f"target.{quoted(name)} = source.{quoted(name)}" for name in job.key)
            (DeltaTable(target).merge(reader, on, "source", "target", commit_properties=properties)
             .when_matched_update_all().when_not_matched_insert_all().execute())
        else:
            write_deltalake(target, reader, mode="append" if mode == "append" else "overwrite",
                            schema_mode="overwrite" if mode != "append" else None, commit_properties=properties)


def quoted(name: str) -> str:
    """A name as Delta's and Spark's SQL take it."""
    return "`" + name.replace("`", "``") + "`"
