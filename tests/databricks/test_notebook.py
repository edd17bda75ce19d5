"""The course's notebook, run unchanged: with a workspace whose endpoint answers by the model, and with none."""

import functools
import os
import re
import subprocess

import pandas as pd
import pytest

for package in ("gguf", "mlflow", "sklearn"):
    pytest.importorskip(package)
import mlflow  # noqa: E402

from tests.databricks import notebook  # noqa: E402
from tests.databricks import workspace as workspaces  # noqa: E402
from tests.databricks.spark import MARKS, spark  # noqa: E402, F401
from tests.serving import ROOT  # noqa: E402

pytestmark = MARKS

NOTEBOOK = ROOT / "databricks" / "notebooks" / "model_serving.py"
ROWS = 2000
WIDGETS = {"rows": str(ROWS), "trees": "10", "poll_s": "0.02"}


@functools.cache
def loaded(model: str, version: str):
    return mlflow.pyfunc.load_model(f"models:/{model}/{version}")


def predict(model: str, version: str, payload: dict) -> list:
    return loaded(model, version).predict(pd.DataFrame(**payload["dataframe_split"])).tolist()


@pytest.fixture(scope="module")
def left_behind(mlflow_store):
    """What git sees under databricks/ before the notebook runs."""
    return files()


def files() -> str:
    return subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=all", "--", "databricks"],
                                   cwd=ROOT, text=True)


@pytest.fixture(scope="module")
def with_workspace(mlflow_store, left_behind, spark) -> tuple[notebook.Run, workspaces.Workspace]:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch, workspaces.workspace(predict) as workspace:
        for name, value in workspace.environment.items():
            patch.setenv(name, value)
        return notebook.run(NOTEBOOK, spark, WIDGETS), workspace


def test_it_installs_the_project_that_it_is_in(with_workspace):
    assert with_workspace[0].installed == [f"install --quiet {ROOT}[gguf]"]


def test_every_way_to_ask_agrees_with_scikit_learn(with_workspace):
    printed = with_workspace[0].printed
    assert "the server agrees with scikit-learn on 100 of 100 rows" in printed
    assert "served by {'champion': 90, 'challenger': 10}" in printed
    assert "the endpoint agrees with scikit-learn on 100 of 100 rows" in printed
    assert f"spark_udf and score agree on {ROWS} of {ROWS} rows" in printed


def test_it_shows_scores_accuracy_latency_and_throughput(with_workspace):
    scores, accuracy, latency, throughput = with_workspace[0].displayed
    assert {"amount", "id", "prediction", "prediction_reason"} <= set(scores.columns)
    assert accuracy["alias"].tolist() == ["champion", "challenger"]
    trained = dict(re.findall(r"^(champion|challenger): accuracy ([\d.]+)$", with_workspace[0].printed, re.MULTILINE))
    assert {alias: f"{value:.3f}" for alias, value in zip(accuracy["alias"], accuracy["accuracy"])} == trained
    assert latency["one row"].tolist() == ["scikit-learn, in process", "mlflow.pyfunc, in process",
                                           "kernels, in process", "python -m server, /invocations", "endpoint"]
    assert (latency["p50 ms"] <= latency["p99 ms"]).all()
    assert throughput["table"].tolist() == ["spark_udf", "score"]


def test_it_promotes_the_better_version_after_an_ab_split(with_workspace):
    run, workspace = with_workspace
    shares = [[route["traffic_percentage"] for route in (body.get("config") or body)["traffic_config"]["routes"]]
              for method, _, body in workspace.changes if method in ("POST", "PUT")]
    better = re.search(r"^(\w+) is the better one$", run.printed, re.MULTILINE)[1]
    all_to_it = [100, 0] if better == "champion" else [0, 100]
    assert shares == [[90, 10], all_to_it, [90, 10], all_to_it]


def test_it_cleans_up(with_workspace, left_behind):
    run, workspace = with_workspace
    assert workspace.changes[-1][0] == "DELETE"
    assert not mlflow.MlflowClient().search_registered_models()
    assert not mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert "deleted what was made: the endpoint, the model's versions, the runs" in run.printed
    assert files() == left_behind, "nothing is left in the notebook's folder"


def test_without_a_workspace_it_says_why_and_goes_on(mlflow_store, spark, monkeypatch):  # noqa: F811
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/dev/null")
    run = notebook.run(NOTEBOOK, spark, WIDGETS, skip=(6, 7, 8))  # Spark's part is the same
    assert "No endpoint is created: no workspace is configured" in run.printed
    assert '"traffic_percentage": 90' in run.printed
    assert "the server agrees with scikit-learn on 100 of 100 rows" in run.printed
    assert "deleted what was made: the model's versions, the runs" in run.printed


# --- the runner ---------------------------------------------------------------------------------

def written(folder, *cells: str):
    path = folder / "notebook.py"
    path.write_text(notebook.FIRST + notebook.BETWEEN.join(cells))
    return path


def test_restart_forgets_variables_and_keeps_widgets(tmp_path):
    path = written(tmp_path, "dbutils.widgets.text('a', '1')\nb = 2", "# MAGIC %pip install x==$b",
                   "dbutils.library.restartPython()", "print(dbutils.widgets.get('a'), 'b' in globals())")
    run = notebook.run(path, None, {"a": "3"})
    assert (run.installed, run.printed) == (["install x==2"], "3 False\n")


@pytest.mark.parametrize("cell, error", [("b", NameError), ("dbutils.widgets.get('none')", KeyError),
                                         ("# MAGIC %sh ls", ValueError), ("a = 1\n# MAGIC %pip install x", ValueError)])
def test_what_would_fail_on_databricks_fails_here(tmp_path, cell, error):
    with pytest.raises(error):
        notebook.run(written(tmp_path, cell), None)


def test_file_that_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "script.py").write_text("print(1)\n")
    with pytest.raises(ValueError, match="expected '# Databricks notebook source' as the first line"):
        notebook.run(tmp_path / "script.py", None)
