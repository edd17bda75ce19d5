"""The goal of batch scoring with Spark: a Parquet table to a Parquet table, against `mlflow.pyfunc.spark_udf` of the
original model, in the same session.

The rule to keep: both read, score and write in the time that is measured, ours with all that a job does; the peer,
slower, gets fewer rows of the same table, in as many tasks at once, and rows a second are compared. Answers are
compared first, and the peers take turns. `score`, whose rows Spark reads and hands over, is measured beside the job.
"""

import io
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kernels
from tests.bench.conftest import Goal
from tests.bench.tabular_models import N_FEATURES, trained
from tests.databricks.spark import MARKS, spark  # noqa: F401  a fixture
from tests.serving import NO_TELEMETRY

pytest.importorskip("mlflow")

from pyspark.sql import DataFrame  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402

from databricks import spark_engine  # noqa: E402
from databricks.job import Job, Progress  # noqa: E402

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore")]  # mlflow warns of much that is its own
FILE_ROWS, OUR_FILES, THEIR_FILES, ROUNDS, TOLERANCE = 250_000, 20, 2, 3, 0.05
NAMES = [f"f{i}" for i in range(N_FEATURES)]
FOREST, BOOSTER = "RandomForest 200 × depth 12", "LightGBM 200 × 63 leaves"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of FILE_ROWS rows each."""
    folder, random, paths = tmp_path_factory.mktemp("spark-batch"), np.random.default_rng(0), []
    for i in range(OUR_FILES):
        columns = {"id": np.arange(i * FILE_ROWS, (i + 1) * FILE_ROWS)}
        columns |= {name: random.normal(size=FILE_ROWS) for name in NAMES}
        paths.append(str(folder / f"{i}.parquet"))
        pq.write_table(pa.table(columns), paths[-1])
    return paths


def saved(name: str, folder: Path) -> tuple[Path, str, str]:
    """(our file, MLflow's folder of the original, its result's type)."""
    os.environ |= NO_TELEMETRY
    estimator, theirs = trained(name).estimator.set_params(n_jobs=1), str(folder / "mlflow")  # a task has one core
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == BOOSTER:
            import mlflow.lightgbm
            mlflow.lightgbm.save_model(estimator.booster_, theirs, pip_requirements=[])
            return trained(name).own, theirs, "double"
        import mlflow.sklearn
        mlflow.sklearn.save_model(estimator, theirs, serialization_format="cloudpickle", pip_requirements=[])
    kernels.save(kernels.from_sklearn(estimator), folder / "forest.gguf")
    return folder / "forest.gguf", theirs, "long"


def seconds(scored: DataFrame, output: Path) -> float:
    start = time.perf_counter()
    scored.write.mode("overwrite").parquet(str(output))
    return time.perf_counter() - start


@pytest.mark.parametrize("name", [FOREST, BOOSTER])
def test_speed_over_spark_udf_of_the_original(goals, spark, files, tmp_path, name):  # noqa: F811
    import mlflow.pyfunc
    file, uri, result_type = saved(name, tmp_path)
    udf = mlflow.pyfunc.spark_udf(spark, uri, result_type=result_type, env_manager="local")
    job = Job(str(file), str(Path(files[0]).parent), str(tmp_path / "out"), str(tmp_path / "out-rejects"),
              key=("id",), columns=tuple(NAMES))

    def theirs(paths: list[str]) -> DataFrame:
        return spark.read.parquet(*paths).select("id", udf(F.struct(*NAMES)).alias("prediction"))

    def ours() -> float:
        done = spark_engine.run(job, Progress(None, io.StringIO()))
        assert (done.rows, done.rejects) == (OUR_FILES * FILE_ROWS, 0)
        return done.seconds

    seconds(theirs(files[:1]), tmp_path / "theirs")  # which starts the workers and loads the model; the same for ours
    ours()
    both = [pq.read_table(tmp_path / folder, columns=["id", "prediction"]).sort_by("id").slice(0, FILE_ROWS)
            for folder in ("theirs", "out")]
    assert both[0]["id"] == both[1]["id"] and len(both[0]) == FILE_ROWS
    assert np.allclose(both[0]["prediction"], both[1]["prediction"], rtol=0, atol=1e-12)
    found, us = [], []
    for _ in range(ROUNDS):
        their_us = seconds(theirs(files[:THEIR_FILES]), tmp_path / "theirs") / (THEIR_FILES * FILE_ROWS) * 1e6
        our_us = ours() / (OUR_FILES * FILE_ROWS) * 1e6
        scored = spark_engine.score(spark.read.parquet(*files[:THEIR_FILES * 2]), file, NAMES, key=["id"])
        us.append((their_us, our_us, seconds(scored, tmp_path / "score") / (THEIR_FILES * 2 * FILE_ROWS) * 1e6))
        found.append(their_us / our_us)
    udf_us, job_us, score_us = np.median(us, axis=0)
    goals.note(f"  {name} in Spark, µs a row: spark_udf {udf_us:.1f} ({THEIR_FILES * FILE_ROWS:,} rows), the job "
               f"{job_us:.2f} ({OUR_FILES * FILE_ROWS:,}), score {score_us:.2f} ({THEIR_FILES * 2 * FILE_ROWS:,})")
    goals.check((f"Parquet to Parquet in Spark, {name}, speed over spark_udf", found, Goal("≥", 5, TOLERANCE)))
