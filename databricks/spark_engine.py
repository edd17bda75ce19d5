"""The batch job with Spark, for what outgrows one machine: what `arrow_engine` does, with the same results.

Parquet and Delta tables on a file system that all workers have mounted are read by the workers themselves, which takes
a third of the processor time that Spark takes to read rows and hand them over. Anything else is read by Spark.

The rule to keep: on a local file system Spark writes beside the tables and `commit` makes them appear; elsewhere only
what Spark itself writes exactly once is taken: tables that are overwritten whole, and Delta's transactions.
"""

import functools
import os
import re
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameWriter, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import DataType, StringType, StructField, StructType

from databricks import commit, spark_worker
from databricks.job import Job, Progress, Summary
from databricks.scoring import REASON, ROW, BatchError, Scorer
from databricks.spark_scoring import CSV, first_line, is_of_spark, kept, need_delta, prepare, score, scored
from databricks.spark_stream import score_stream
from databricks.tables import SUFFIXES, Table, open_table, pieces_of

__all__ = ["run", "score", "score_stream"]

ODD = "_odd"  # the text of a row of CSV that has other columns than the header
ODD_REASON = "the row has another number of columns than the file's header"
READ_CSV = CSV | {"multiLine": "true", "columnPruning": "false", "columnNameOfCorruptRecord": ODD}
TIMESTAMPS = "spark.sql.parquet.outputTimestampType"
GROUP = "spark.jobGroup.id"  # of jobs that a thread starts
PIECE_ROWS = 1 << 18  # at least, of a file for a task: a second of work
CHECKED_ROWS = 1000  # of text, whose columns must hold a number
# Where one of these is set, somebody else says which Spark this is.
PLACES = ("SPARK_HOME", "SPARK_REMOTE", "PYSPARK_GATEWAY_PORT", "PYSPARK_SUBMIT_ARGS", "DATABRICKS_RUNTIME_VERSION")
LOCAL: dict[str, bool | float | int | str | None] = {
    "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "FATAL",
    "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}


def run(job: Job, progress: Progress | None = None) -> Summary:
    """Score all rows of the job's input into its output and its rejects, paths or names of tables.

    Raises BatchError, before anything is written, for columns, types, tables and modes that do not fit, and with
    Spark's first line where Spark gives up; ModelError and OSError for a model that cannot be loaded.
    """
    progress, start = progress or Progress(None), time.monotonic()
    job = _with_places(job)
    with _session(job.threads) as spark, _timestamps(spark):
        try:
            return _run(spark, job, progress, start)
        except Exception as error:
            if not is_of_spark(error):
                raise
            raise BatchError(f"Spark: {first_line(error)}") from error


def _run(spark: SparkSession, job: Job, progress: Progress, start: float) -> Summary:
    source = _open(spark, job)
    scorer = job.scorer(source.text)
    local = [path for path in (job.rejects, job.output) if job.format != "delta" and _is_local(spark, path)]
    if source.table is not None:
        source.table.check(scorer.check, job.key)
    rows = _scored(spark, job, source, scorer)  # which checks what Spark makes of the columns
    _check(spark, job, source, rows, scorer, local)
    identity = _identity(job, source, scorer)
    _say_compiled(progress, scorer.model.name, prepare(spark, scorer))
    with ExitStack() as stack:
        folders = {path: stack.enter_context(commit.staging(Path(path))) for path in local}
        if job.mode == "append" and job.output in local and commit.is_committed(job, identity):
            return Summary(0, 0, time.monotonic() - start, repeated=True)
        staged = {path: folder / f"rows-{uuid.uuid4().hex}" for path, folder in folders.items()}
        counts = _write(spark, job, rows, staged, identity, progress, source)
        for path in local:
            _commit(job, identity, staged[path], Path(path), job.mode)
    return Summary(counts["rows"], counts["rejects"], time.monotonic() - start)


# ---- where ---------------------------------------------------------------------------------------------------

@contextmanager
def _session(threads: int) -> Iterator[SparkSession]:
    """The session that there is, or one on this machine with so many tasks at once, which ends with the job."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        found = SparkSession.getActiveSession()
        if found is not None or any(name in os.environ for name in PLACES):
            yield found or SparkSession.builder.appName("testigo batch").getOrCreate()
            return
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master(f"local[{threads}]").appName("testigo batch")
        spark = builder.config(map=LOCAL).getOrCreate()
        try:
            yield spark
        finally:
            spark.stop()


@contextmanager
def _timestamps(spark: SparkSession) -> Iterator[None]:
    """Have Parquet's own timestamps written, as Arrow does: of Spark's default, INT96, no reader knows the zone."""
    before = spark.conf.get(TIMESTAMPS)
    spark.conf.set(TIMESTAMPS, "TIMESTAMP_MICROS")
    try:
        yield
    finally:
        spark.conf.set(TIMESTAMPS, str(before))


def _with_places(job: Job) -> Job:
    """The job with paths of this machine without `file:`, and with a table's name for the rejects of a table."""
    rejects = job.rejects
    if _is_table(job.output) and rejects == f"{job.output}-rejects":
        rejects = f"{job.output}_rejects"
    return replace(job, input=_plain(job.input), output=_plain(job.output), rejects=_plain(rejects))


def _plain(path: str) -> str:
    return re.sub("^file:(//)?(?=/)", "", path)


def _is_table(path: str) -> bool:
    """Whether this is a table's name: catalog.schema.table or schema.table, and neither a file nor its name."""
    return (re.fullmatch(r"\w+\.\w+(\.\w+)?", path) is not None and Path(path).suffix not in SUFFIXES
            and not Path(path).exists())


def _is_local(spark: SparkSession, path: str) -> bool:
    """Whether Spark takes this path for one of this machine's."""
    return not _is_table(path) and not re.match(r"[\w+.-]+:/", path) and _default_files(spark).startswith("file:")


def _default_files(spark: SparkSession) -> str:
    try:
        return str(spark.sparkContext._jsc.hadoopConfiguration().get("fs.defaultFS"))
    except PySparkException:
        return ""  # Spark Connect is on another machine


# ---- reading -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Source:
    """The rows of the input: as Spark reads them, or a table on this machine, or both."""

    df: DataFrame | None = None
    text: bool = False  # all columns are strings
    table: Table | None = None


def _open(spark: SparkSession, job: Job) -> Source:
    if _is_table(job.input):
        return Source(spark.table(job.input))
    if not _is_local(spark, job.input):
        return _open_elsewhere(spark, job.input)
    table = open_table(job.input)
    if not table.text:
        return Source(table=table)
    pattern = re.sub(r"([\\\[\]{}*?])", r"\\\1", str(Path(job.input).resolve()))  # which Spark takes a path for
    return Source(_csv(spark, f"file:{pattern}", table.schema.names), True, table)


def _open_elsewhere(spark: SparkSession, path: str) -> Source:
    if path.lower().endswith(".csv"):
        return Source(_csv(spark, path, spark.read.options(**READ_CSV).csv(path).columns), True)
    with suppress(Exception):  # it is no Delta table, or there is no Delta Lake
        found = Source(spark.read.format("delta").load(path))
        if found.df is not None and found.df.schema:  # Spark Connect looks when the schema is asked for
            return found
    return Source(spark.read.parquet(path))


def _csv(spark: SparkSession, path: str, names: list[str]) -> DataFrame:
    schema = StructType([StructField(name, StringType()) for name in (*names, ODD)])
    return spark.read.schema(schema).options(**READ_CSV).csv(path)


def _identity(job: Job, source: Source, scorer: Scorer) -> str:
    """Of the job; the files elsewhere are looked at only where it matters, for `append`."""
    inputs: object = None
    if source.table is not None:
        inputs = source.table.identity()
    elif source.df is not None and job.mode == "append":
        columns = [f"_metadata.file_{what}" for what in ("path", "size", "modification_time")]
        try:
            inputs = sorted(map(str, source.df.select(*columns).distinct().collect()))
        except PySparkException:
            raise BatchError("--mode append expects files as the input, to know them when the job is run again"
                             ) from None
    return job.identity(scorer.digest, inputs)


# ---- before the first row ------------------------------------------------------------------------------------

def _check(spark: SparkSession, job: Job, source: Source, rows: DataFrame, scorer: Scorer, local: list[str]) -> None:
    if source.df is not None and scorer.text:
        batches = source.df.select(*map(_column, scorer.columns)).limit(CHECKED_ROWS).toArrow().combine_chunks()
        for batch in batches.to_batches():
            scorer.check_text(batch)
    if job.format == "delta":
        need_delta(spark)
    elif job.mode == "append" and len(local) < 2:
        raise BatchError(f"--mode append: expected paths on this machine for --format {job.format}; elsewhere only "
                         "Delta tables can be appended to exactly once")
    read, *written = (Path(path) if _is_table(path) else Path(path).absolute()
                      for path in (job.input, job.output, job.rejects))
    commit.check_apart([read], *written)
    if len(local) == 2:
        keys = _as_arrow(spark, StructType(rows.schema.fields[:len(job.key)]))
        commit.check_targets(job, scorer.output_schema(keys), scorer.rejects_schema(keys))


def _as_arrow(spark: SparkSession, schema: StructType) -> pa.Schema:
    return spark.createDataFrame([], schema).toArrow().schema if len(schema) else pa.schema([])


def _check_unique(rows: DataFrame, key: tuple[str, ...]) -> None:
    counts = rows.filter(_column(REASON).isNull()).groupBy(*map(_column, key)).count()
    if not counts.filter(F.col("count") > 1).isEmpty():
        raise BatchError("--mode merge expects each key once in the input: nothing was written")


# ---- scoring and writing -------------------------------------------------------------------------------------

def _scored(spark: SparkSession, job: Job, source: Source, scorer: Scorer) -> DataFrame:
    """The key columns, without a key the row's number where it has one, the prediction and the reason of every row."""
    if source.df is None:
        assert source.table is not None  # one of the two is there
        return _scored_by_workers(spark, job, source.table, scorer)
    rows = scored(source.df, scorer, [*job.key, ODD] if source.text else job.key, REASON)
    columns = {name: _column(name) for name in (*job.key, job.prediction_column, REASON)}
    if source.text:
        odd = _column(ODD).isNotNull()
        columns = {name: F.when(~odd, column) for name, column in columns.items()}
        columns[REASON] = F.when(odd, F.lit(ODD_REASON)).otherwise(_column(REASON))
    columns = columns if job.key else {ROW: F.lit(None).cast("bigint")} | columns
    return rows.select(*(column.alias(name) for name, column in columns.items()))


def _scored_by_workers(spark: SparkSession, job: Job, table: Table, scorer: Scorer) -> DataFrame:
    fields = [*scorer.rejects_schema(table.schema)][:-1]
    fields += [pa.field(job.prediction_column, scorer.prediction_type), pa.field(REASON, pa.string())]
    schema = StructType([StructField(field.name, _spark_type(field)) for field in fields])
    pieces = list(pieces_of(table, PIECE_ROWS))
    function = functools.partial(spark_worker.score_pieces, spark_worker.task_of(scorer), pieces, job.key,
                                 _as_arrow(spark, schema))
    return spark.range(0, len(pieces), 1, max(1, len(pieces))).mapInArrow(function, schema)


def _spark_type(field: pa.Field) -> DataType:
    try:
        return from_arrow_type(field.type)
    except PySparkException:
        raise BatchError(f"column {field.name!r:.60}: Spark has no type {field.type}; the engine arrow has") from None


def _write(spark: SparkSession, job: Job, rows: DataFrame, staged: dict[str, Path], identity: str, progress: Progress,
           source: Source) -> dict[str, int]:
    """Write what is scored and what is not, the latter first → the number of all "rows" and of "rejects"."""
    seen, is_bad = Observation(), _column(REASON).isNotNull()
    keys = [_column(name) for name in job.key]
    with kept(rows), _progress(spark, progress, None if source.table is None else source.table.n_rows):
        if job.mode == "merge":
            _check_unique(rows, job.key)
        watched = rows.observe(seen, F.count(F.lit(1)).alias("rows"), F.count(_column(REASON)).alias("rejects"))
        bad = watched.filter(is_bad).select(*(keys or [_column(ROW)]), _column(REASON))
        mode_of_rejects = "overwrite" if job.mode == "merge" else job.mode
        _save(job, bad, job.rejects, staged.get(job.rejects), identity, mode_of_rejects)
        good = rows.filter(~is_bad).select(*keys, _column(job.prediction_column))
        _save(job, good, job.output, staged.get(job.output), identity, job.mode)
    return seen.get


def _save(job: Job, rows: DataFrame, target: str, staged: Path | None, identity: str, mode: str) -> None:
    writer = rows.write.format(job.format).options(**CSV if job.format == "csv" else {})
    if staged is not None:
        return writer.save(f"file:{staged}")
    if mode == "merge" and _merge(job, rows, target):
        return
    if mode == "append":
        writer = writer.options(txnAppId=commit.APP + identity, txnVersion=1)
    elif job.format == "delta":
        writer = writer.option("overwriteSchema", "true")
    _save_to(writer.mode("append" if mode == "append" else "overwrite"), target)


def _save_to(writer: DataFrameWriter, target: str) -> None:
    writer.saveAsTable(target) if _is_table(target) else writer.save(target)


def _merge(job: Job, rows: DataFrame, target: str) -> bool:
    """Merge into a Delta table; False where there is none yet."""
    spark, source = rows.sparkSession, f"testigo_{uuid.uuid4().hex}"
    table = target if _is_table(target) else f"delta.{commit.quoted(target)}"
    try:
        spark.sql(f"DESCRIBE DETAIL {table}").head()
    except PySparkException:
        return False
    rows.createOrReplaceTempView(source)
    on = " AND ".join(f"target.{commit.quoted(name)} = source.{commit.quoted(name)}" for name in job.key)
    spark.sql(f"MERGE INTO {table} AS target USING {source} AS source ON {on} "
              "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *")
    return True


def _commit(job: Job, identity: str, staged: Path, target: Path, mode: str) -> None:
    """Make the files that Spark wrote part of the table at `target`, or all of it.

    The file that tells that this job is in the table, the one without a number, comes last: a job that died before that
    left numbered files, which it replaces when it is run again.
    """
    first, *others = sorted(path for path in staged.iterdir() if path.name.startswith("part-"))
    names = {path: f"part-{identity}-{i:05}.{job.format}" for i, path in enumerate(others, 1)}
    names[first] = f"part-{identity}.{job.format}"
    for path in names:
        commit.sync(path)
    folder = target if mode == "append" else staged.with_name(f"{staged.name}-complete")
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"part-{identity}*"):
        old.unlink()
    for path, name in names.items():
        path.replace(folder / name)
    commit.sync(folder)
    if mode != "append":
        commit.exchange(folder, target)


def _column(name: str) -> Column:
    return F.col(commit.quoted(name))


# ---- telling -------------------------------------------------------------------------------------------------

def _say_compiled(progress: Progress, name: str, seconds: dict[str, float]) -> None:
    if seconds:
        progress.say(f"{name}: kernels compiled, or read from the cache, after {max(seconds.values()):.1f} s on "
                     f"{len(seconds)} machine{'s' * (len(seconds) > 1)}")


@contextmanager
def _progress(spark: SparkSession, progress: Progress, n_rows: int | None) -> Iterator[None]:
    """Tell how many rows are done, by the tasks that are, while Spark works; Spark Connect does not say."""
    progress.total, progress.started = n_rows, time.monotonic()
    try:
        context = spark.sparkContext
    except PySparkException:
        yield
        return
    before, group, over = context.getLocalProperty(GROUP), f"testigo-{uuid.uuid4().hex}", threading.Event()
    context.setLocalProperty(GROUP, group)
    watcher = threading.Thread(target=functools.partial(_watch, context.statusTracker(), group, progress, over))
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        context.setLocalProperty(GROUP, before)  # type: ignore[arg-type]  # None: no group


def _watch(tracker, group: str, progress: Progress, over: threading.Event) -> None:
    """Of the first job of the group, in which the rows are scored."""
    while progress.total and not over.wait(0.5):
        jobs = tracker.getJobIdsForGroup(group)
        info = tracker.getJobInfo(min(jobs)) if jobs else None
        stages = [tracker.getStageInfo(stage) for stage in (info.stageIds if info and info.status == "RUNNING" else ())]
        tasks = sum(stage.numTasks for stage in stages if stage)
        done = sum(stage.numCompletedTasks for stage in stages if stage)
        if tasks:
            progress.update(progress.total * done // tasks)
