"""Scoring a stream of Structured Streaming: every row once, also when the query dies and is started again.

The rule to keep: a micro-batch that is done again writes what it wrote before, over it or, in Delta, not at all.

https://spark.apache.org/docs/latest/streaming/apis-on-dataframes-and-datasets.html#foreachbatch
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from databricks.scoring import REASON, BatchError
from databricks.spark_scoring import CSV, kept, need_delta, score

FORMATS = ("parquet", "csv", "delta")
BATCH = "batch"  # the column of micro-batches
APP = "testigo-stream-"  # and the query's id: Delta's application id


def score_stream(stream: DataFrame, model: str | Path, *, checkpoint: str, output_path: str | None = None,
                 table: str | None = None, rejects: str | None = None, columns: Sequence[str] | None = None,
                 output: str = "prediction", key: Sequence[str] | None = None, format: str = "parquet",
                 trigger: dict[str, Any] | None = None, allow_pickle: bool = False) -> StreamingQuery:
    """Start a query that scores the rows of a stream as they come.

    Rows go to `output_path`, in `format` (parquet, csv or delta), or to the Delta table `table`, with the columns of
    `score`; those that cannot be scored go, with the reason instead of a prediction, to `rejects`: by default the
    output's path and `-rejects`, or the table's name and `_rejects`; there from the first such row on. `checkpoint` is
    where Spark notes what is done: of one query, and to keep as long as its output. Files stand in a folder a
    micro-batch, which readers see as the column `batch`. `trigger` is what DataStreamWriter.trigger takes, such as
    {"availableNow": True}; by default each micro-batch follows the one before.

    The other arguments are `score`'s, and so is what is raised, before the query starts.
    """
    if (output_path is None) == (table is None):
        raise BatchError("expected one of output_path and table")
    if not stream.isStreaming:
        raise BatchError("expected a stream, as from spark.readStream: score takes other data frames")
    format = format if table is None else "delta"
    if format not in FORMATS:
        raise BatchError(f"expected one of {', '.join(FORMATS)} for the format, found {format!r:.40}")
    if format == "delta":
        need_delta(stream.sparkSession)
    rows = score(stream, model, columns, output, key=key, allow_pickle=allow_pickle)
    target = table or str(output_path).rstrip("/")
    rejects = rejects or target + ("-rejects" if table is None else "_rejects")
    write = functools.partial(_write_batch, checkpoint, format, table is not None, target, rejects, output)
    writer = rows.writeStream.foreachBatch(write).option("checkpointLocation", checkpoint)
    return (writer.trigger(**trigger) if trigger else writer).start()


def _write_batch(checkpoint: str, format: str, is_table: bool, target: str, rejects: str, output: str,
                 batch: DataFrame, batch_id: int) -> None:
    query, reason = _query_id(batch.sparkSession, checkpoint), F.col(f"`{output}_{REASON}`")
    with kept(batch):
        bad = batch.filter(reason.isNotNull()).drop(output)
        if not bad.isEmpty():
            _write(bad, format, is_table, rejects, query, batch_id)
        _write(batch.filter(reason.isNull()).drop(f"{output}_{REASON}"), format, is_table, target, query, batch_id)


def _write(rows: DataFrame, format: str, is_table: bool, target: str, query: str, batch_id: int) -> None:
    writer = rows.write.format(format)
    if format == "delta":
        writer = writer.mode("append").options(txnAppId=APP + query, txnVersion=batch_id)
        return writer.saveAsTable(target) if is_table else writer.save(target)
    writer = writer.options(**CSV) if format == "csv" else writer
    writer.mode("overwrite").save(f"{target}/{BATCH}={query}-{batch_id}")


def _query_id(spark: SparkSession, checkpoint: str) -> str:
    """What Spark calls the query of a checkpoint, for as long as the checkpoint is there."""
    metadata = spark.read.text(f"{checkpoint}/metadata").select(F.get_json_object("value", "$.id"))
    return str(metadata.collect()[0][0])
