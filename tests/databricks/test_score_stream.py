"""Scoring a stream: files that arrive, stops, restarts, and micro-batches that are done twice."""

from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression

import kernels
from databricks import spark_engine, spark_stream
from databricks.scoring import BatchError
from tests.databricks.spark import MARKS, spark  # noqa: F401  a fixture

pytestmark = MARKS
SCHEMA = "id long, a double, b double"
NOW = {"availableNow": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """10 · a + b."""
    path = tmp_path_factory.mktemp("stream") / "model.gguf"
    frame = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 2.0], "b": [0.0, 0.0, 1.0, 1.0]})
    kernels.save(kernels.from_sklearn(LinearRegression().fit(frame, [0.0, 10.0, 1.0, 21.0])), path)
    return path


class Arrivals:
    """A folder in which files arrive, and the query that scores them."""

    def __init__(self, folder: Path, spark, model: Path) -> None:  # noqa: F811
        self.folder, self.spark, self.model, self.n = folder, spark, model, 0
        self.paths = {"output_path": str(folder / "out"), "checkpoint": str(folder / "checkpoint")}
        (folder / "in").mkdir()

    def arrive(self, n_rows: int, bad: int = 0) -> None:
        """A file of this many rows more, of which the first `bad` hold a null."""
        ids = np.arange(self.n, self.n + n_rows)
        a = pa.array([None] * bad + ids[bad:].astype(float).tolist(), pa.float64())
        pq.write_table(pa.table({"id": ids, "a": a, "b": pa.array(np.ones(n_rows))}),
                       self.folder / "in" / f"{self.n}.parquet")
        self.n += n_rows

    def start(self, **options):
        stream = self.spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).parquet(str(self.folder / "in"))
        return spark_engine.score_stream(stream, self.model, **self.paths | options)

    def run(self, **options) -> None:
        """Score all that has arrived."""
        query = self.start(trigger=NOW, **options)
        query.awaitTermination()
        assert query.exception() is None

    def rows(self, name: str = "out", kind: str = "parquet") -> list[dict]:
        """By id."""
        if not (self.folder / name).exists():
            return []
        table = pa.dataset.dataset(self.folder / name, format=kind, partitioning="hive").to_table()
        return sorted(table.to_pylist(), key=lambda row: row["id"])


@pytest.fixture
def arrivals(spark, model, tmp_path) -> Arrivals:  # noqa: F811
    return Arrivals(tmp_path, spark, model)


def check_whole(arrivals: Arrivals, bad: set[int]) -> None:
    """Every row that arrived is there once, scored or rejected."""
    rows, rejects = arrivals.rows(), arrivals.rows("out-rejects")
    assert [row["id"] for row in rows] == [i for i in range(arrivals.n) if i not in bad]
    assert [row["prediction"] for row in rows] == pytest.approx([10 * row["a"] + row["b"] for row in rows])
    assert {row["id"] for row in rejects} == bad and len(rejects) == len(bad)
    assert all("'a' is null" in row["prediction_reason"] for row in rejects)


def test_files_that_arrive_are_scored_also_after_a_stop(arrivals):
    arrivals.arrive(5, bad=2)
    arrivals.arrive(4)
    arrivals.run()
    check_whole(arrivals, {0, 1})
    assert set(arrivals.rows()[0]) == {"id", "a", "b", "prediction", "batch"}
    arrivals.arrive(3, bad=1)
    query = arrivals.start()
    query.processAllAvailable()
    arrivals.arrive(2)
    query.processAllAvailable()
    query.stop()
    check_whole(arrivals, {0, 1, 9})
    arrivals.run()
    check_whole(arrivals, {0, 1, 9})


def test_a_micro_batch_whose_end_was_not_noted_is_not_there_twice(arrivals):
    for _ in range(2):
        arrivals.arrive(4, bad=1)
    arrivals.run()
    for commit in (arrivals.folder / "checkpoint" / "commits").glob("*1*"):  # as if killed before it was written
        commit.unlink()
    arrivals.arrive(3)
    arrivals.run()
    check_whole(arrivals, {0, 4})


def test_a_micro_batch_that_fails_between_rejects_and_output_is_done_again(arrivals, monkeypatch):
    arrivals.arrive(4, bad=1)
    write = spark_stream._write

    def fail(rows, format, is_table, target, query, batch_id):
        if not target.endswith("-rejects"):
            raise RuntimeError("killed here")
        write(rows, format, is_table, target, query, batch_id)
    with monkeypatch.context() as patch:
        patch.setattr(spark_stream, "_write", fail)
        query = arrivals.start(trigger=NOW)
        with pytest.raises(Exception, match="killed here"):
            query.awaitTermination()
    assert arrivals.rows() == [] and len(arrivals.rows("out-rejects")) == 1
    arrivals.run()
    check_whole(arrivals, {0})


def test_a_query_with_a_new_checkpoint_adds_to_the_output(arrivals):
    arrivals.arrive(2)
    arrivals.run()
    arrivals.run(checkpoint=str(arrivals.folder / "other"))
    assert [row["id"] for row in arrivals.rows()] == [0, 0, 1, 1]


def test_key_columns_names_and_format_are_the_callers(arrivals):
    arrivals.arrive(3, bad=1)
    arrivals.run(key=["id"], output="score", format="csv", rejects=str(arrivals.folder / "bad"))
    assert [set(row) for row in arrivals.rows(kind="csv")] == [{"id", "score", "batch"}] * 2
    assert [set(row) for row in arrivals.rows("bad", "csv")] == [{"id", "score_reason", "batch"}]


@pytest.mark.parametrize(("options", "message"), [
    ({"output_path": None}, "one of output_path and table"),
    ({"table": "default.out"}, "one of output_path and table"),
    ({"format": "orc"}, "parquet, csv, delta for the format"),
    ({"format": "delta"}, "no Delta Lake"),
    ({"output_path": None, "table": "default.out"}, "no Delta Lake"),
    ({"columns": ["a", "c"]}, "'c' is none of them"),
])
def test_what_cannot_be_done_is_said_before_the_query_starts(arrivals, options, message):
    with pytest.raises(BatchError, match=message):
        arrivals.start(**options)
    assert not (arrivals.folder / "checkpoint").exists()


def test_a_data_frame_that_is_no_stream_is_refused(spark, model):  # noqa: F811
    with pytest.raises(BatchError, match="expected a stream"):
        spark_engine.score_stream(spark.range(1), model, output_path="out", checkpoint="checkpoint")


def test_delta_appends_name_the_query_and_the_micro_batch():
    """There is no Delta Lake here: what Spark's writer is asked for."""
    asked = []

    class Rows:
        def __getattr__(self, name):
            return self if name == "write" else lambda *args, **options: asked.append((name, args, options)) or self
    spark_stream._write(Rows(), "delta", True, "main.default.out", "query", 7)
    assert asked == [
        ("format", ("delta",), {}), ("mode", ("append",), {}),
        ("options", (), {"txnAppId": "testigo-stream-query", "txnVersion": 7}),
        ("saveAsTable", ("main.default.out",), {})]
