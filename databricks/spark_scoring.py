"""Scoring with Spark: rows of a data frame, through mapInArrow.

The rule to keep: `score` needs nothing but `mapInArrow`: no sparkContext, no broadcast, no RDD, so that it runs on
Spark Connect and serverless too. Workers import `databricks.spark_worker` by name: the wheel must be installed on the
cluster, and a notebook that imported `databricks` before it installed the wheel restarts Python.

A task scores with one thread, as Spark's tasks are the parallelism. A batch has at most
`spark.sql.execution.arrow.maxRecordsPerBatch` rows, 10,000 by default: with fewer than about 1,000 the price of a batch
shows, with more only the memory of the workers grows.

https://spark.apache.org/docs/latest/api/python/reference/pyspark.sql/api/pyspark.sql.DataFrame.mapInArrow.html
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyspark.errors import PySparkException, PythonException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import (
    BinaryType, BooleanType, ByteType, CharType, DateType, DecimalType, DoubleType, FloatType, IntegerType, LongType,
    NullType, ShortType, StringType, StructField, StructType, TimestampNTZType, TimestampType, VarcharType)

from databricks import spark_worker
from databricks.model_file import model_file
from databricks.scoring import REASON, BatchError, Scorer

CSV = {"header": "true", "escape": '"'}  # quotes as RFC 4180 has them; Spark's own default is a backslash
ARROW = {
    BooleanType: pa.bool_(), ByteType: pa.int8(), ShortType: pa.int16(), IntegerType: pa.int32(), LongType: pa.int64(),
    FloatType: pa.float32(), DoubleType: pa.float64(), DecimalType: pa.decimal128(38, 18), StringType: pa.string(),
    CharType: pa.string(), VarcharType: pa.string(), NullType: pa.null(), BinaryType: pa.binary(),
    DateType: pa.date32(), TimestampType: pa.timestamp("us", "UTC"), TimestampNTZType: pa.timestamp("us")}


def score(df: DataFrame, model: str | Path, columns: Sequence[str] | None = None, output: str = "prediction", *,
          key: Sequence[str] | None = None, allow_pickle: bool = False) -> DataFrame:
    """The rows of `df`, each with what the model predicts for it: the columns of `df`, `output` and `{output}_reason`.

    A row that cannot be scored (a null where the model takes none, a value out of type) has a null prediction and says
    why in `{output}_reason`; every other row has a null there. `model` is a file that `kernels.load` takes, a folder
    with an MLmodel, `models:/…` or `runs:/…`; `allow_pickle` has a pickled one converted, in a process of its own.
    The features are taken by name; `columns` names them, in order, for a model that has no names. `output` is of the
    labels' type, else double, or an array of doubles for a model of several outputs. `key` are the columns to keep
    instead of all: what is not kept need not travel back from the workers.

    Lazy, as Spark is, for streams too; the model is read now. Raises BatchError, before any job, for columns that are
    missing, of another type or in the way; ModelError and OSError for the model.
    """
    with model_file(str(model), allow_pickle=allow_pickle) as found:
        scorer = Scorer(found.path, columns=columns, prediction_column=output, answer=found.answer, names=found.names)
        return scored(df, scorer, df.columns if key is None else key, f"{output}_{REASON}")


def scored(df: DataFrame, scorer: Scorer, keep: Sequence[str], reason: str) -> DataFrame:
    """The columns `keep` of `df`, and for each row a prediction or a reason. Raises BatchError, as `score` does."""
    names, output = df.columns, scorer.prediction_column
    kept = list(range(len(names))) if list(keep) == names else [_place(names, name) for name in keep]
    for name in (output, reason):
        if name in [names[i] for i in kept]:
            raise BatchError(f"expected no column {name!r:.60}: the result has one")
    scorer.check(_schema_of(df, scorer.needed))
    wanted = [*kept, *(i for i in map(names.index, scorer.columns) if i not in kept)]
    schema = StructType([*(df.schema[i] for i in kept), StructField(output, from_arrow_type(scorer.prediction_type)),
                         StructField(reason, StringType())])
    function = functools.partial(spark_worker.score_partition, spark_worker.task_of(scorer),
                                 [names[i] for i in wanted], schema.names)
    # By place: mapInArrow takes a dot in a name for a field of a struct, and a name may be there twice.
    numbered = df.toDF(*(f"c{i}" for i in range(len(names))))
    return numbered.select(*(f"c{i}" for i in wanted)).mapInArrow(function, schema)


def _schema_of(df: DataFrame, names: Sequence[str]) -> pa.Schema:
    """The columns of these names as workers get them, as far as it matters for features."""
    return pa.schema([(field.name, ARROW.get(type(field.dataType), pa.struct([]))) for field in df.schema
                      if field.name in names])


def prepare(spark: SparkSession, scorer: Scorer) -> dict[str, float]:
    """Load the model and compile on the workers, as many as Spark starts tasks at once → {machine: seconds that
    compiling took}, without the machines that had compiled before."""
    function = functools.partial(spark_worker.prepare_partition, spark_worker.task_of(scorer))
    rows = spark.range(1 << 10).mapInArrow(function, "machine string, seconds double").collect()
    return {machine: seconds for machine, seconds in sorted(map(tuple, rows)) if seconds}


@contextmanager
def kept(df: DataFrame) -> Iterator[None]:
    """What is computed of a data frame is kept for its second use. Serverless cannot: there it is computed twice."""
    try:
        df.persist()
    except PySparkException:
        yield
        return
    try:
        yield
    finally:
        df.unpersist()


def need_delta(spark: SparkSession) -> None:
    """Raises BatchError where Spark has no Delta Lake."""
    try:
        spark.read.format("delta").load("/none-such").schema  # Spark Connect looks when the schema is asked for
    except Exception as error:  # with Delta Lake the path is not found
        if "DATA_SOURCE_NOT_FOUND" in str(error):
            raise BatchError("this Spark has no Delta Lake; --engine arrow reads and writes Delta tables") from None


def is_of_spark(error: Exception) -> bool:
    """Whether Spark raised it; py4j is there in the classic Spark only, which lets some of its errors through."""
    return isinstance(error, PySparkException) or type(error).__module__.startswith("py4j.")


def first_line(error: Exception) -> str:
    """What an error says, without py4j's own first line and the stacks of Java and of Python."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("An error occurred while call")]
    from_worker = isinstance(error, PythonException)  # its last line is Python's
    return (lines or [type(error).__name__])[-from_worker].removeprefix(": ")[:300]


def _place(names: Sequence[str], name: str) -> int:
    if names.count(name) != 1:
        raise BatchError(f"expected one column {name!r:.60} for the key, found {names.count(name) or 'none'}")
    return names.index(name)
