"""The Asset Bundle: its job by the SDK's own dataclasses, the task's command as it runs, the wheel as it is built.

The whole bundle is checked against Databricks' schema where their command line is installed (or the file that
`databricks bundle schema` prints is named by TESTIGO_BUNDLE_SCHEMA).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from databricks.sdk.service.jobs import JobSettings

import kernels
from tests.serving import ROOT

BUNDLE = ROOT / "databricks" / "bundle"
REFERENCE = re.compile(r"\$\{([a-z_.]+)\}")


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def root() -> dict:
    return read(BUNDLE / "databricks.yml")


def files(root: dict) -> list[Path]:
    return [BUNDLE / "databricks.yml", *(path for pattern in root["include"] for path in sorted(BUNDLE.glob(pattern)))]


def variables(root: dict, **given: str) -> dict[str, object]:
    """The value of each variable; those without a default must be given."""
    values = {name: given.get(name, variable.get("default")) for name, variable in root["variables"].items()}
    assert None not in values.values(), values
    return {name: resolve(value, values) for name, value in values.items()}


def resolve(node: object, values: dict[str, object]) -> object:
    """The tree with the variables' values."""
    if isinstance(node, dict):
        return {key: resolve(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [resolve(value, values) for value in node]
    if not isinstance(node, str):
        return node
    if match := REFERENCE.fullmatch(node):
        return values[match[1].removeprefix("var.")]
    return REFERENCE.sub(lambda match: str(values[match[1].removeprefix("var.")]), node)


@pytest.fixture(scope="module")
def job(root) -> dict:
    values = variables(root, model="models:/main.ml.fraud@champion", input="main.ml.rows", output="main.ml.scores",
                       key="id")
    return resolve(read(files(root)[1])["resources"]["jobs"]["batch_scoring"], values)


def command(job: dict, **given: str) -> list[str]:
    """The task's arguments in a run with these job parameters."""
    values = {parameter["name"]: parameter["default"] for parameter in job["parameters"]} | given
    return [re.sub(r"\{\{job\.parameters\.(\w+)\}\}", lambda match: values[match[1]], argument)
            for argument in job["tasks"][0]["spark_python_task"]["parameters"]]


def test_every_variable_that_is_used_is_declared_and_the_other_way_round(root):
    used = {name.removeprefix("var.") for path in files(root) for name in REFERENCE.findall(path.read_text("utf-8"))
            if name.startswith("var.")}
    assert used == set(root["variables"])


def test_job_is_what_the_sdk_sends_and_nothing_is_lost_in_it(job):
    assert JobSettings.from_dict(job).as_dict() == job


@pytest.mark.parametrize("break_it", [
    lambda job: job["tasks"][0]["spark_python_task"].update(python_files="x"),
    lambda job: job["schedule"].update(pause_status="SOMETIMES"),
    lambda job: job["job_clusters"][0]["new_cluster"].update(nodes=2)])
def test_the_check_of_the_job_finds_unknown_keys_and_values(job, break_it):
    broken = json.loads(json.dumps(job))
    break_it(broken)
    assert JobSettings.from_dict(broken).as_dict() != broken


def test_job_has_a_schedule_a_cluster_of_its_own_and_the_wheel(job):
    task, cluster = job["tasks"][0], job["job_clusters"][0]
    assert job["schedule"] == {"quartz_cron_expression": "0 0 3 * * ?", "timezone_id": "UTC",
                               "pause_status": "UNPAUSED"}
    assert task["job_cluster_key"] == cluster["job_cluster_key"]
    assert task["libraries"] == [{"whl": "../dist/*.whl"}]
    assert (BUNDLE / "resources" / task["spark_python_task"]["python_file"]).resolve().is_file()
    assert cluster["new_cluster"]["num_workers"] == 2


def test_rejects_go_beside_the_output(job):
    given = dict(zip(command(job)[::2], command(job)[1::2]))
    assert (given["--output"], given["--rejects"]) == ("main.ml.scores", "main.ml.scores_rejects")


def run_task(job: dict, tmp_path: Path, **given: str) -> subprocess.CompletedProcess:
    """The task's file with its arguments, on the Arrow engine."""
    arguments = ["arrow" if argument == "spark" else argument for argument in command(job, **given)]
    script = (BUNDLE / "resources" / job["tasks"][0]["spark_python_task"]["python_file"]).resolve()
    return subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, text=True, capture_output=True,
                          timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_task_scores_a_table(job, tmp_path):
    pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 3)), columns=["a", "b", "c"])
    estimator = LogisticRegression().fit(rows, rows["a"] > rows["b"])
    kernels.save(kernels.from_sklearn(estimator, name="fraud"), tmp_path / "model.gguf")
    rows.assign(id=range(100)).to_parquet(tmp_path / "rows.parquet")
    done = run_task(job, tmp_path, model="model.gguf", input="rows.parquet", output="scores", rejects="scores_rejects",
                    format="parquet")
    assert done.returncode == 0, done.stderr
    scores = pq.read_table(tmp_path / "scores").sort_by("id")
    assert scores["prediction"].to_pylist() == estimator.predict(rows).tolist()


def test_task_fails_when_the_job_cannot_start(job, tmp_path):
    done = run_task(job, tmp_path, model=str(kernels.DEFAULT_MODEL), input="missing.parquet", output="scores",
                    format="parquet")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_wheel_is_built_where_the_job_looks_for_it(root, job, tmp_path):
    pytest.importorskip("setuptools", minversion="70.1")
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "dist", "tests", "traces",
                                                                             "*.egg-info"))
    bundle = tmp_path / "source" / "databricks" / "bundle"
    subprocess.run(root["artifacts"]["testigo"]["build"] + " --quiet --no-index --no-build-isolation", shell=True,
                   check=True, cwd=bundle / root["artifacts"]["testigo"]["path"],
                   env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    wheels = list((bundle / "resources").glob(job["tasks"][0]["libraries"][0]["whl"]))
    assert len(wheels) == 1
    names = zipfile.ZipFile(wheels[0]).namelist()
    assert {"databricks/batch.py", "databricks/endpoints.py", "kernels/mlflow_model.py"} <= set(names)
    assert "databricks/__init__.py" not in names


@pytest.fixture(scope="module")
def schema() -> dict:
    if file := os.environ.get("TESTIGO_BUNDLE_SCHEMA"):
        text = Path(file).read_text("utf-8")
    elif shutil.which("databricks"):
        text = subprocess.check_output(["databricks", "bundle", "schema"], text=True)
    else:
        pytest.skip("Databricks' command line is not installed, nor its schema named by TESTIGO_BUNDLE_SCHEMA")
    for go, python in (r"\\.\\p{L}+", r"\\.[A-Za-z]+"), (r"\\p{L}", "A-Za-z"), (r"\\p{N}", "0-9"):  # what ${…} may hold
        text = text.replace(go, python)
    return json.loads(text)


def test_bundle_has_databricks_own_schema(root, schema):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema)
    for path in files(root):
        assert [error.message for error in validator.iter_errors(read(path))] == []
        assert read(path).keys() <= schema["properties"].keys()
    assert not validator.is_valid({"resources": {"jobs": {"batch_scoring": {"schedule": {"quartz": "x"}}}}})
