"""Scoring data frames and tables with Spark: what users see of it, and the same rows as the Arrow engine's."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

import kernels
from databricks import batch, spark_engine, spark_scoring, spark_worker
from databricks.job import Job, Progress
from databricks.scoring import BatchError, Scorer
from databricks.tables import open_table, pieces_of
from tests.databricks.spark import MARKS, spark  # noqa: F401  a fixture
from tests.serving import START_S

pytestmark = MARKS
N, FEATURES = 3000, ["amount", "age.days", "`odd` name", "share"]


class Models(NamedTuple):
    """Files of fitted models, and rows for them."""
    labels: Path    # strings
    values: Path    # of a regression
    several: Path   # three numbers a row
    forest: Path    # integers; it takes any row
    folder: Path
    table: pa.Table  # id, the features, some rows that cannot be scored


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(7)
    X = pandas.DataFrame(rng.normal(size=(N, len(FEATURES))), columns=FEATURES)
    y = (X["amount"] * X["share"] + X["age.days"]).to_numpy()
    fitted = {
        "labels": LogisticRegression().fit(X, np.where(y > 0, "fraud", "fine")),
        "values": LinearRegression().fit(X, y),
        "several": LinearRegression().fit(X, np.column_stack([y, -y, y * y])),
        "forest": RandomForestClassifier(10, max_depth=6, random_state=0).fit(X, (y > 0).astype(int))}
    for name, estimator in fitted.items():
        kernels.save(kernels.from_sklearn(estimator), folder / f"{name}.gguf")
    columns = {"id": pa.array(range(N), pa.int64())} | {name: pa.array(X[name]) for name in FEATURES}
    for name, value, at in (("amount", None, 0), ("share", np.inf, 1)):
        columns[name] = pa.array([value if i % 100 == at else x for i, x in enumerate(X[name].tolist())])
    return Models(*(folder / f"{name}.gguf" for name in fitted), folder, pa.table(columns))


@pytest.fixture(scope="module")
def parquet(models: Models) -> Path:
    """The rows in three files."""
    folder = models.folder / "rows"
    folder.mkdir()
    for i in range(3):
        pq.write_table(models.table.slice(i * N // 3, N // 3), folder / f"{i}.parquet", row_group_size=500)
    return folder


def expected(models: Models, path: Path) -> dict[int, object]:
    """What `predict` says of each row alone that it takes, by id."""
    model, answers = kernels.load(path), {}
    for i, row in enumerate(models.table.drop_columns("id").to_pandas().to_numpy()):
        with suppress(kernels.ModelError):
            answers[i] = model.predict(row[None])[0].tolist()
    return answers


@pytest.mark.parametrize("kind", ["labels", "values", "several", "forest"])
def test_every_row_has_a_prediction_or_a_reason(spark, models, parquet, kind):  # noqa: F811
    path = getattr(models, kind)
    found = spark_engine.score(spark.read.parquet(str(parquet)), path).collect()
    answers = expected(models, path)
    assert sorted(row.id for row in found) == list(range(N))
    assert len(answers) == (N if kind == "forest" else N - N // 50)
    assert {row.id: row.prediction for row in found if row.prediction is not None} == answers
    reasons = {row.id: row.prediction_reason for row in found if row.prediction_reason is not None}
    assert reasons.keys() == set(range(N)) - answers.keys()
    assert kind == "forest" or "'share' is infinite" in reasons[1]


def test_all_columns_are_kept_whatever_their_types_and_names(spark, models):  # noqa: F811
    values = (1, 0.5, 2.0, 3.0, 4.0, datetime(2024, 1, 2, 3, 4, 5), Decimal("1.50"), [1, 2], {"a": 1}, b"x", None)
    names = ["id", *FEATURES, "when", "price", "list", "map", "bytes", "nothing"]
    schema = ("long not null, double, double, double, double, timestamp, decimal(10, 2), array<int>, map<string, int>, "
              "binary, string").split(", ")
    df = spark.createDataFrame([values], ", ".join(f"c{i} {type_}" for i, type_ in enumerate(_joined(schema))))
    df = df.toDF(*names)
    scored = spark_engine.score(df, models.values, output="value")
    assert scored.schema.fields[:-2] == df.schema.fields
    assert scored.columns[-2:] == ["value", "value_reason"]
    row = scored.collect()[0]
    assert tuple(row)[:-2] == values
    assert row.value == kernels.load(models.values).predict([[0.5, 2.0, 3.0, 4.0]])[0]


def _joined(parts: list[str]) -> list[str]:
    """Types that a comma cut in two."""
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1].count("(") + joined[-1].count("<") > joined[-1].count(")") + joined[-1].count(">"):
            joined[-1] += f", {part}"
        else:
            joined.append(part)
    return joined


def test_of_all_columns_only_the_key_is_kept(spark, models, parquet):  # noqa: F811
    scored = spark_engine.score(spark.read.parquet(str(parquet)), models.values, key=["id"])
    assert scored.columns == ["id", "prediction", "prediction_reason"]
    assert {row.id for row in scored.collect()} == set(range(N))


def test_columns_name_the_features_of_a_model_without_names(spark, tmp_path):  # noqa: F811
    X = np.random.default_rng(1).normal(size=(50, 2))
    kernels.save(kernels.from_sklearn(LinearRegression().fit(X, X[:, 0] - 10 * X[:, 1])), tmp_path / "m.gguf")
    df = spark.createDataFrame([(1.0, 2.0)], "a double, b double")
    with pytest.raises(BatchError, match="no feature names"):
        spark_engine.score(df, tmp_path / "m.gguf")
    for columns, answer in ((["a", "b"], 1 - 20), (["b", "a"], 2 - 10)):
        row = spark_engine.score(df, tmp_path / "m.gguf", columns).collect()[0]
        assert row.prediction == pytest.approx(answer)


def test_another_format_scores_to_the_bit_as_its_own_file(spark, tmp_path):  # noqa: F811
    lightgbm = pytest.importorskip("lightgbm")
    X = np.random.default_rng(2).normal(size=(500, 3))
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(X, X[:, 0] > X[:, 1]), 20)
    booster.save_model(tmp_path / "model.txt")
    df = spark.createDataFrame(X.tolist(), "a double, b double, c double")
    found = spark_engine.score(df, tmp_path / "model.txt", ["a", "b", "c"]).select("prediction").toArrow()
    assert (found["prediction"].to_numpy() == kernels.load(tmp_path / "model.txt").predict(X)).all()
    assert np.abs(found["prediction"].to_numpy() - booster.predict(X)).max() < 1e-12


@pytest.mark.parametrize(("change", "message"), [
    (lambda df: df.drop("share"), "'share' for feature 3, found none"),
    (lambda df: df.withColumn("share", F.lit("x")), "'share': expected numbers for feature 3, found string"),
    (lambda df: df.withColumn("share", F.current_timestamp()), "'share': expected numbers for feature 3, found"),
    (lambda df: df.withColumn("prediction", F.lit(1)), "no column 'prediction'"),
    (lambda df: df.withColumn("prediction_reason", F.lit(1)), "no column 'prediction_reason'"),
    (lambda df: df.toDF(*["share" if name == "id" else name for name in df.columns]), "'share'.*found 2"),
])
def test_columns_that_do_not_fit_are_named_before_any_job(spark, models, parquet, change, message):  # noqa: F811
    df = change(spark.read.parquet(str(parquet)))
    tracker = spark.sparkContext.statusTracker()
    before = tracker.getJobIdsForGroup(None)
    with pytest.raises(BatchError, match=message):
        spark_engine.score(df, models.values)
    assert tracker.getJobIdsForGroup(None) == before


def test_a_key_that_is_not_there_is_refused(spark, models, parquet):  # noqa: F811
    with pytest.raises(BatchError, match="one column 'none' for the key, found none"):
        spark_engine.score(spark.read.parquet(str(parquet)), models.values, key=["none"])


def test_no_rows_give_no_rows(spark, models, parquet):  # noqa: F811
    df = spark.read.parquet(str(parquet)).limit(0)
    assert spark_engine.score(df, models.values).count() == 0


def test_the_model_comes_as_mlflow_folder_with_names_and_answer_of_mlmodel(spark, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "model"
    folder.mkdir()
    lightgbm = pytest.importorskip("lightgbm")
    X = np.random.default_rng(2).normal(size=(200, 2))
    rows = lightgbm.Dataset(X, X[:, 0] > 0, feature_name=["b", "a_1"])
    lightgbm.train({"objective": "binary", "verbose": -1}, rows, 5).save_model(folder / "model.lgb")
    (folder / "MLmodel").write_text("""flavors:
  lightgbm: {data: model.lgb, lgb_version: 4.0.0, model_class: lightgbm.basic.Booster}
  python_function: {loader_module: mlflow.lightgbm, predict_fn: predict_proba}
signature:
  inputs: '[{"name": "a 1", "type": "double"}, {"name": "b", "type": "double"}]'
  outputs: '[{"type": "double"}]'
""")
    df = spark.createDataFrame([(5, 1.0, 2.0)], "id int, b double, a double").withColumnRenamed("a", "a 1")
    expected = kernels.load(folder / "model.lgb").predict_proba([[2.0, 1.0]])[0].tolist()
    assert spark_engine.score(df, folder).collect()[0].prediction == expected
    df.write.parquet(str(tmp_path / "in"))
    assert run_batch(capsys, "--model", folder, "--input", tmp_path / "in", "--output", tmp_path / "out", "--engine",
                     "spark")[0] == 0
    assert rows_of(tmp_path / "out") == [(expected,)]


# ---- workers ------------------------------------------------------------------------------------------------

def test_a_worker_process_loads_the_model_once(spark, models, parquet):  # noqa: F811
    task = spark_worker.task_of(Scorer(str(models.values)))
    names = models.table.column_names

    def counting(batches):
        rows = sum(map(len, spark_worker.score_partition(task, names, ["id", "p", "r"], batches)))
        info = spark_worker._scorer.cache_info()
        yield pa.RecordBatch.from_pydict({"pid": [os.getpid()], "rows": [rows], "all": [info.misses + info.hits],
                                          "size": [info.currsize], "misses": [info.misses]})
    df = spark.read.parquet(str(parquet)).repartition(8).toDF("id", "a", "b", "c", "d")
    first, second = (df.mapInArrow(counting, "pid long, rows long, all long, size long, misses long").collect()
                     for _ in range(2))
    assert sum(row.rows for row in second) == N and len(second) == 8
    before = {row.pid: row.misses for row in first}
    after = {row.pid: row.misses for row in second}
    assert after.keys() & before.keys(), "no worker process was used again"
    assert all(after[pid] == before[pid] for pid in after.keys() & before.keys())
    assert max(row.all for row in second) > max(after.values())


COUNT_COMPILATIONS = """
import sys
from databricks import spark_worker
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    task = spark_worker.Task(sys.argv[1], tuple(sys.argv[3].split("|")), content=open(sys.argv[2], "rb").read())
    input()
    task.scorer()
print(len(recorder.buffer))
"""


def test_many_workers_of_a_new_machine_compile_once(models, tmp_path):
    task = spark_worker.task_of(Scorer(str(models.several)))
    command = [sys.executable, "-c", COUNT_COMPILATIONS, task.digest, models.several, "|".join(task.columns)]
    workers = [subprocess.Popen(command, env=os.environ | {"TESTIGO_CACHE_DIR": str(tmp_path)}, text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    counts = [int(worker.communicate(timeout=START_S)[0]) for worker in workers]
    assert sum(count > 0 for count in counts) == 1
    assert len(list(tmp_path.rglob(f"{task.digest}.gguf"))) == 1


def test_models_that_nobody_has_loaded_for_a_week_are_removed(models, tmp_path):
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    for path in (old, new, old.with_suffix(".compiled")):
        path.touch()
    os.utime(old, times=(time.time() - 8 * 24 * 3600,) * 2)
    spark_worker._forget_old(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_a_machine_is_told_of_once_when_it_compiles(spark, models, tmp_path):  # noqa: F811
    kernels.save(kernels.load(models.labels), tmp_path / "new.gguf", version=str(time.time()))  # of no worker
    scorer = Scorer(str(tmp_path / "new.gguf"))
    first = spark_scoring.prepare(spark, scorer)
    assert len(first) == 1 and all(seconds > 0 for seconds in first.values())
    assert spark_scoring.prepare(spark, scorer) == {}


# ---- the job ------------------------------------------------------------------------------------------------

def run_batch(capsys, *arguments: object) -> tuple[int, str, str]:
    """The command → (exit status, the last line, stderr)."""
    status = batch.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, (said.out.splitlines() or [""])[-1], said.err


def rows_of(folder: Path, kind: str = "parquet") -> list[tuple]:
    """Sorted by all columns, as text where there is a null."""
    table = pa.dataset.dataset(folder, format=kind, exclude_invalid_files=False).to_table()
    return sorted(map(tuple, (row.values() for row in table.to_pylist())), key=str)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("model", ["labels", "values"])
def test_same_tables_as_the_arrow_engine(spark, models, parquet, tmp_path, capsys, kind, model):  # noqa: F811
    source = parquet
    if kind == "csv":
        source = tmp_path / "rows.csv"
        pyarrow.csv.write_csv(models.table, source)
        with source.open("a") as file:
            file.write('7000,1.5\n7001," 2.5",1,1,1\n7002,text,1,1,1\n7003,1,1,1,1,1\n')
    for engine in ("arrow", "spark"):
        status, line, err = run_batch(
            capsys, "--model", getattr(models, model), "--input", source, "--output", tmp_path / engine, "--key", "id",
            "--engine", engine, "--format", kind, "--prediction-column", "answer")
        assert status == 0, err
        assert line.startswith(f"{N + 4 if kind == 'csv' else N} rows, ")
    schemas = [pa.dataset.dataset(tmp_path / engine, format=kind).schema for engine in ("arrow", "spark")]
    assert schemas[0].names == schemas[1].names == ["id", "answer"]
    assert schemas[0].types == schemas[1].types
    assert rows_of(tmp_path / "arrow", kind) == rows_of(tmp_path / "spark", kind)
    rejects = [rows_of(tmp_path / f"{engine}-rejects", kind) for engine in ("arrow", "spark")]
    assert len(rejects[0]) == len(rejects[1]) > N // 200
    assert [row for row in rejects[0] if row[0] is not None] == [row for row in rejects[1] if row[0] is not None]
    assert sum(row[0] is None for row in rejects[1]) == (2 if kind == "csv" else 0)


def test_rows_without_a_key_are_rejected_by_their_number(spark, models, parquet, tmp_path, capsys):  # noqa: F811
    for engine in ("arrow", "spark"):
        status, _, err = run_batch(capsys, "--model", models.values, "--input", parquet, "--output", tmp_path / engine,
                                   "--engine", engine)
        assert status == 0, err
    assert rows_of(tmp_path / "spark-rejects") == rows_of(tmp_path / "arrow-rejects")
    assert rows_of(tmp_path / "spark") == rows_of(tmp_path / "arrow")


def test_keys_of_many_types_and_of_folders_names_are_kept(spark, models, tmp_path, capsys):  # noqa: F811
    when = [datetime(2024, 1, 2, 3, 4, 5, 678901 + i) for i in range(4)]
    keys = {"when": pa.array(when), "zoned": pa.array(when, pa.timestamp("ms", "Europe/Madrid"), safe=False),
            "price": pa.array([Decimal("1.50")] * 4), "code": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "small": pa.array([1, 2, 3, None], pa.int8()), "flag": pa.array([True, None, False, True]),
            "bytes": pa.array([b"x", b"", None, b"y"])}
    for day in (1, 2):
        folder = tmp_path / "in" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(keys | {name: pa.array([1.0, 2.0, None, 4.0]) for name in FEATURES}),
                       folder / "rows.parquet", row_group_size=1)
    command = ["--model", models.values, "--input", tmp_path / "in", "--key", ",".join([*keys, "day"])]
    for engine in ("arrow", "spark"):
        status, _, err = run_batch(capsys, *command, "--output", tmp_path / engine, "--engine", engine)
        assert status == 0, err
    for name in ("", "-rejects"):
        rows = rows_of(tmp_path / f"spark{name}")
        assert rows == rows_of(tmp_path / f"arrow{name}") and len(rows) == (2 if name else 6)


def test_a_key_of_a_type_that_spark_lacks_is_named(spark, models, tmp_path, capsys):  # noqa: F811
    table = models.table.append_column("big", pa.array([1] * N, pa.uint64()))
    pq.write_table(table, tmp_path / "in.parquet")
    status, _, err = run_batch(capsys, "--model", models.values, "--input", tmp_path / "in.parquet", "--output",
                               tmp_path / "out", "--engine", "spark", "--key", "big")
    assert status == 2 and "'big': Spark has no type uint64; the engine arrow has" in err


def test_files_become_pieces_of_whole_row_groups(tmp_path):
    for i, n in enumerate((10, 7, 0)):
        pq.write_table(pa.table({"id": range(10 * i, 10 * i + n)}), tmp_path / f"{i}.parquet", row_group_size=3)
    table = open_table(str(tmp_path))
    pieces = list(pieces_of(table, 5))
    found = [[x for batch in piece.batches(["id"], 2, str) for x in batch.column(0).to_pylist()] for piece, _ in pieces]
    assert found == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14, 15], [16]]
    assert [(piece.n_rows, first) for piece, first in pieces] == [(6, 0), (4, 6), (6, 10), (1, 16)]


def test_a_job_that_is_run_again_appends_nothing(spark, models, parquet, tmp_path, capsys):  # noqa: F811
    command = ["--model", models.values, "--input", parquet, "--output", tmp_path / "out", "--key", "id",
               "--engine", "spark", "--mode", "append"]
    assert run_batch(capsys, *command)[0] == 0
    first = rows_of(tmp_path / "out"), rows_of(tmp_path / "out-rejects")
    status, line, _ = run_batch(capsys, *command)
    assert (status, "already" in line) == (0, True)
    assert (rows_of(tmp_path / "out"), rows_of(tmp_path / "out-rejects")) == first
    command[command.index(models.values)] = models.several.with_name("labels.gguf")
    status, _, err = run_batch(capsys, *command)
    assert status == 2 and "expects a table of the columns" in err


def test_an_append_is_known_to_the_arrow_engine(spark, models, parquet, tmp_path, capsys):  # noqa: F811
    command = ["--model", models.values, "--input", parquet, "--output", tmp_path / "out", "--mode", "append"]
    assert "already" not in run_batch(capsys, *command, "--engine", "spark")[1]
    assert "already" in run_batch(capsys, *command, "--engine", "arrow")[1]


def test_a_table_of_the_catalog_is_read_and_written(spark, models, parquet, capsys):  # noqa: F811
    spark.read.parquet(str(parquet)).write.mode("overwrite").saveAsTable("default.rows_in")
    command = ["--model", models.values, "--input", "default.rows_in", "--output", "default.rows_out", "--key", "id",
               "--engine", "spark"]
    for _ in range(2):
        status, line, err = run_batch(capsys, *command)
        assert status == 0, err
        found = {row.id: row.prediction for row in spark.table("default.rows_out").collect()}
        assert found == expected(models, models.values)
        assert spark.table("default.rows_out_rejects").columns == ["id", "reason"]
        assert spark.table("default.rows_out_rejects").count() == N - len(found)
    status, _, err = run_batch(capsys, *command, "--mode", "append")
    assert status == 2 and "--mode append: expected paths on this machine" in err


@pytest.mark.parametrize(("options", "message"), [
    ({"--format": "delta"}, "this Spark has no Delta Lake; --engine arrow"),
    ({"--input": "none.parquet"}, "no such file"),
    ({"--input": "default.none_such"}, "TABLE_OR_VIEW_NOT_FOUND"),
    ({"--key": "none"}, "one column 'none' for the key"),
    ({"--rejects": "{output}"}, "--rejects: expected a path beside"),
    ({"--output": "{input}/out"}, "expected paths apart from --input"),
])
def test_what_is_wrong_is_said_in_one_line_before_the_job(
        spark, models, parquet, tmp_path, capsys, options, message):  # noqa: F811
    given = {"--model": models.values, "--input": parquet, "--output": tmp_path / "out", "--engine": "spark"}
    given |= {name: value.format(output=tmp_path / "out", input=parquet) for name, value in options.items()}
    status, line, err = run_batch(capsys, *(part for pair in given.items() for part in pair))
    assert (status, line) == (2, "")
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_delta_tables_of_this_machine_are_read_without_delta_lake(spark, models, tmp_path, capsys):  # noqa: F811
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(tmp_path / "table", models.table)
    status, _, err = run_batch(capsys, "--model", models.values, "--input", tmp_path / "table", "--output",
                               tmp_path / "out", "--engine", "spark", "--key", "id")
    assert status == 0, err
    assert dict(rows_of(tmp_path / "out")) == expected(models, models.values)


def test_a_failure_in_the_middle_leaves_the_tables_as_they_were(
        spark, models, parquet, tmp_path, capsys):  # noqa: F811
    command = ["--model", models.values, "--output", tmp_path / "out", "--engine", "spark", "--input"]
    assert run_batch(capsys, *command, parquet)[0] == 0
    before = rows_of(tmp_path / "out")
    damaged = tmp_path / "damaged.parquet"
    content = bytearray((parquet / "0.parquet").read_bytes())
    content[100:5000] = bytes(4900)
    damaged.write_bytes(content)
    status, _, err = run_batch(capsys, *command, damaged)
    assert status == 2 and "Spark: " in err and err.count("\n") == 1
    assert rows_of(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.parquet", "out", "out-rejects"]


KILLED = [sys.executable, "-m", "databricks.batch", "--engine", "spark", "--threads", "1", "--key", "id"]


def test_a_job_that_is_killed_while_spark_writes_is_done_by_running_it_again(
        spark, models, parquet, tmp_path, capsys):  # noqa: F811
    arguments = ["--model", str(models.values), "--input", str(parquet), "--output", str(tmp_path / "out")]
    with subprocess.Popen([*KILLED, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_start(lambda: list(tmp_path.glob(".out*.partial/rows-*")) or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        assert process.wait(START_S) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert run_batch(capsys, *arguments, "--engine", "spark", "--key", "id")[0] == 0
    assert run_batch(capsys, *arguments[:-1], tmp_path / "other", "--engine", "arrow", "--key", "id")[0] == 0
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "other")
    assert rows_of(tmp_path / "out-rejects") == rows_of(tmp_path / "other-rejects")


def wait_for_start(condition) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


class Died(BaseException):
    """Instead of a process's death."""


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_commit_that_dies_at_any_step_is_done_by_the_next(models, tmp_path, monkeypatch, mode):
    job = Job("m", "in", str(tmp_path / "out"), "rejects", mode=mode)
    old = tmp_path / "out" / "part-old.parquet"

    def commit(files: int) -> None:
        staged = tmp_path / f"staged-{time.monotonic_ns()}"
        staged.mkdir()
        for i in range(files):
            pq.write_table(models.table.slice(i * N // files, N // files), staged / f"part-{i}.parquet")
        spark_engine._commit(job, "me", staged, tmp_path / "out", mode)

    steps, wholes = 0, {"append": [N, N + 1], "overwrite": [N]}[mode]
    for death in range(100):
        (tmp_path / "out").mkdir(exist_ok=True)
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        pq.write_table(models.table.slice(0, 1), old)
        with monkeypatch.context() as patch:
            left = [death]
            for name in ("replace", "unlink", "rename", "mkdir"):
                patch.setattr(Path, name, _dying(getattr(Path, name), left))
            try:
                commit(files=4)
                ended = True
            except Died:
                ended = False
        committed = (tmp_path / "out" / "part-me.parquet").exists()
        assert committed or old.exists()
        if not committed:
            commit(files=3)
        assert pa.dataset.dataset(tmp_path / "out").count_rows() in wholes
        steps += 1
        if ended:
            break
    assert steps > 5


def _dying(function, left: list[int]):
    def call(self, *args, **options):
        left[0] -= 1
        if left[0] < 0 and "staged" in str(self):
            raise Died
        return function(self, *args, **options)
    return call


def test_progress_is_told_by_the_tasks_that_are_done():
    class Over:
        def __init__(self):
            self.left = 3

        def wait(self, seconds):
            self.left -= 1
            return self.left < 0

    stages = {5: SimpleNamespace(numTasks=8, numCompletedTasks=2)}
    tracker = SimpleNamespace(getJobIdsForGroup=lambda group: [7, 3], getStageInfo=stages.get,
                              getJobInfo={3: SimpleNamespace(status="RUNNING", stageIds=[4, 5])}.get)
    progress = Progress(1000, io.StringIO(), started=time.monotonic() - 10, _last=time.monotonic() - 10)
    spark_engine._watch(tracker, "group", progress, Over())
    assert progress.stream.getvalue().startswith("250 of 1,000 rows, 2")


def test_delta_appends_are_transactions_that_a_second_run_repeats_in_vain():
    """There is no Delta Lake here: what Spark's writer is asked for."""
    asked = []

    class Writer:
        def __getattr__(self, name):
            return lambda *args, **options: asked.append((name, args, options)) or self

    job = Job("m", "in", "s3://bucket/out", "s3://bucket/out-rejects", format="delta", mode="append")
    spark_engine._save(job, SimpleNamespace(write=Writer()), job.output, None, "me", "append")
    assert [name for name, _, _ in asked] == ["format", "options", "options", "mode", "save"]
    assert asked[2][2] == {"txnAppId": "testigo-batch-me", "txnVersion": 1}
    assert asked[3][1:] == (("append",), {}) and asked[4][1] == ("s3://bucket/out",)
