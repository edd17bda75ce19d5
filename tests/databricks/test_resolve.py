"""Addresses of models: other people's MLflow models answer as MLflow does, or only with leave to run their code."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import kernels
from databricks import resolve as resolving
from databricks.resolve import Resolved, resolve
from server import scoring_api
from server.schema import Schema
from tests.databricks import foreign_models
from tests.databricks.foreign_models import COLUMNS, Foreign
from tests.serving import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:UserWarning:mlflow", "ignore:.*:FutureWarning:mlflow", "ignore:.*:DeprecationWarning:mlflow")

UNPICKLED = ["forest-skops", "words-pickle", "probabilities", "lgb-classifier"]
READ = ["lgb-booster", "xgb-booster", "xgb-classifier", "xgb-kinds", "xgb-best", "onnx"]
FLAVORS = {"forest-skops": "sklearn", "lgb-classifier": "lightgbm", "xgb-best": "xgboost", "onnx": "onnx"}


@pytest.fixture(scope="module")
def foreign() -> Foreign:
    return foreign_models.made()


@pytest.fixture
def copy(foreign, tmp_path):
    """Makes a copy of a model whose MLmodel was changed by a function of its content."""
    def make(name: str, change) -> Path:
        folder = tmp_path / name
        shutil.copytree(foreign.path(name), folder)
        content = yaml.safe_load((folder / "MLmodel").read_text())
        change(content)
        (folder / "MLmodel").write_text(yaml.safe_dump(content))
        return folder
    return make


def run(foreign: Foreign, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "databricks.resolve", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | foreign.env)


def like(ours, mlflows) -> bool:
    """Whether two JSON values are the same, numbers but for rounding to float32."""
    if isinstance(mlflows, dict):
        return ours.keys() == mlflows.keys() and all(like(ours[key], mlflows[key]) for key in mlflows)
    if isinstance(mlflows, list):
        return len(ours) == len(mlflows) and all(map(like, ours, mlflows))
    if isinstance(mlflows, float):
        return isinstance(ours, float) and math.isclose(ours, mlflows, rel_tol=1e-6, abs_tol=1e-7)
    return type(ours) is type(mlflows) and ours == mlflows


def answer(found: Resolved, body: str):
    model = kernels.load(found.file, native=False)
    return json.loads(scoring_api.invoke(model, Schema.of(found.schema, model, found.flavor), None, body.encode()).body)


@pytest.mark.parametrize("name", UNPICKLED + READ)
def test_converted_model_answers_as_mlflow_does(name, foreign, tmp_path):
    found = resolve(str(foreign.path(name)), allow_pickle=name in UNPICKLED, folder=tmp_path)
    assert (found.worker, found.name, found.flavor) == (None, name, FLAVORS.get(name, found.flavor))
    body, expected = foreign.answers[name]
    assert like(answer(found, body), expected)


@pytest.mark.parametrize("name", READ)
def test_file_of_a_known_format_is_served_where_it_is(name, foreign, tmp_path):
    found = resolve(str(foreign.path(name)), folder=tmp_path)
    is_there = Path(found.file).is_relative_to(foreign.path(name).resolve())
    assert is_there == (name not in ("xgb-classifier", "xgb-kinds", "xgb-best"))  # whose labels, or trees, are others


@pytest.mark.parametrize("name", UNPICKLED + ["booleans", "neighbors", "pyfunc", "unsigned"])
def test_what_can_run_code_is_refused_without_leave(name, foreign, tmp_path):
    with pytest.raises(kernels.ModelError, match="--allow-pickle") as error:
        resolve(str(foreign.path(name)), folder=tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_refused_pickle_is_not_opened(foreign, tmp_path, copy):
    folder, mark = copy("words-pickle", lambda mlmodel: None), tmp_path / "exploded"
    (folder / "model.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    done = run(foreign, folder, "--folder", tmp_path)
    assert (done.returncode, done.stdout, mark.exists()) == (3, "", False)
    done = run(foreign, folder, "--folder", tmp_path, "--allow-pickle")
    assert mark.exists(), "the same file goes off once it is allowed to"


def test_model_packaged_by_us_is_served_from_its_weights_alone(foreign, tmp_path):
    """Without leave, and though the code that was packaged with it would fail."""
    from databricks import register
    register.save_model(kernels.load(kernels.DEFAULT_MODEL, native=False), tmp_path / "fraud")
    for code in (tmp_path / "fraud").rglob("*.py"):
        code.write_text("raise SystemExit(9)")
    found = resolve(str(tmp_path / "fraud"), folder=tmp_path)
    assert (found.flavor, found.name, found.worker) == ("testigo", "fraud", None)
    row = [[0.1, 0.2, 0.3, 0.4, 0.5]]
    assert kernels.load(found.file).predict(row) == kernels.load(kernels.DEFAULT_MODEL).predict(row)


@pytest.mark.parametrize("name, why", [
    ("neighbors", "RadiusNeighbors"), ("booleans", "labels"), ("pyfunc", "pyfunc"), ("unsigned", "pyfunc")])
def test_model_that_cannot_be_converted_is_left_to_mlflow(name, why, foreign, tmp_path):
    found = resolve(str(foreign.path(name)), allow_pickle=True, folder=tmp_path)
    assert found.file is None and why in found.worker and found.directory == str(foreign.path(name))


def test_answer_that_is_no_prediction_is_left_to_mlflow(foreign, tmp_path, copy):
    folder = copy("words-pickle", lambda mlmodel: mlmodel["flavors"]["python_function"].update(predict_fn="score"))
    assert "score" in resolve(str(folder), allow_pickle=True, folder=tmp_path).worker


# --- MLmodel that lies ------------------------------------------------------------------------------------------

def claims(**pyfunc):
    return lambda mlmodel: mlmodel["flavors"]["python_function"].update(pyfunc)


@pytest.mark.parametrize("change", [
    claims(loader_module="evil"), claims(loader_module="mlflow.pyfunc.model"), claims(loader_module="mlflow.sklearn"),
    claims(loader_module=["mlflow.lightgbm"])], ids=["module", "own code", "absent flavor", "list"])
def test_loader_that_is_not_the_flavors_own_is_taken_for_foreign_code(change, foreign, tmp_path, copy):
    with pytest.raises(kernels.ModelError, match="--allow-pickle"):
        resolve(str(copy("lgb-booster", change)), folder=tmp_path)


def test_class_that_is_not_the_librarys_own_is_not_imported(foreign, tmp_path, copy):
    folder = copy("xgb-classifier", lambda mlmodel: mlmodel["flavors"]["xgboost"].update(model_class="evil.Class"))
    with pytest.raises(kernels.ModelError, match="--allow-pickle"):
        resolve(str(folder), folder=tmp_path)


@pytest.mark.parametrize("name, change", [
    ("lgb-booster", claims(data="sub")), ("lgb-booster", claims(data="../other/model.lgb")),
    ("onnx", lambda mlmodel: mlmodel["flavors"]["onnx"].update(providers=[["AnyProvider", {"library": "evil.so"}]])),
    ("onnx", lambda mlmodel: mlmodel["flavors"]["onnx"].update(onnx_session_options={"extra_session_config": {}}))],
    ids=["other MLmodel", "outside", "provider", "session"])
def test_what_mlflow_would_load_beside_the_file_is_foreign_code(name, change, foreign, tmp_path, copy):
    """mlflow reads the flavor again, from the MLmodel beside what `python_function` names: that may be a pickle's."""
    folder = copy(name, change)
    (folder / yaml.safe_load((folder / "MLmodel").read_text())["flavors"][FLAVORS.get(name, "lightgbm")]["data"]
     ).write_text("one that we do not read\n")
    with pytest.raises(kernels.ModelError, match="--allow-pickle"):
        resolve(str(folder), folder=tmp_path)


@pytest.mark.parametrize("name", ["xgb-booster", "xgb-classifier"])
def test_parameters_that_xgboost_takes_are_left_to_mlflow(name, foreign, tmp_path, copy):
    """Its defaults hold for every request."""
    def change(mlmodel):
        mlmodel["signature"]["params"] = json.dumps([
            {"name": "output_margin", "type": "boolean", "default": True, "shape": None}])
    found = resolve(str(copy(name, change)), folder=tmp_path)
    assert found.file is None and "parameters" in found.worker


@pytest.mark.parametrize("data", ["../secret", "/etc/passwd", "", ".", "absent", 5, None])
def test_file_outside_of_the_models_folder_is_refused(data, foreign, tmp_path, copy):
    (tmp_path / "secret").write_text("tree\n")
    folder = copy("lgb-booster", lambda mlmodel: mlmodel["flavors"]["lightgbm"].update(data=data))
    with pytest.raises(kernels.ModelError, match="in its folder"):
        resolve(str(folder), folder=tmp_path)


@pytest.mark.parametrize("content", [
    b"", b"[", b"flavors: []", b"flavors: {onnx: 5}", b"x: !!python/object/apply:os.abort []", b"\xff\xfe",
    b"a: &a [*a]", b"[" * 5000], ids=["empty", "half", "list", "flavor", "object", "bytes", "cycle", "deep"])
def test_mlmodel_that_is_none_gives_one_line(content, foreign, tmp_path):
    (tmp_path / "MLmodel").write_bytes(content)
    with pytest.raises(kernels.ModelError, match="MLmodel") as error:
        resolve(str(tmp_path), folder=tmp_path)
    assert "\n" not in str(error.value)


def test_signature_that_is_no_json_gives_one_line(foreign, tmp_path, copy):
    folder = copy("lgb-booster", lambda mlmodel: mlmodel.update(signature={"inputs": "[{"}))
    with pytest.raises(kernels.ModelError, match="signature"):
        resolve(str(folder), folder=tmp_path)


# --- addresses --------------------------------------------------------------------------------------------------

def test_alias_becomes_the_version_that_it_means(foreign, tmp_path):
    done = run(foreign, "models:/credit@champion", "--folder", tmp_path)
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (found["name"], found["version"], found["flavor"]) == ("credit", "1", "lightgbm")
    assert Path(found["file"]).is_relative_to(tmp_path) and found["worker"] is None
    assert [column["name"] for column in found["schema"]["inputs"]] == COLUMNS


def test_version_and_run_are_addresses(foreign, tmp_path, monkeypatch):
    for name, value in foreign.env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    found = resolve("models:/credit/2", allow_pickle=True, folder=tmp_path / "a")
    assert (found.name, found.version, found.flavor) == ("credit", "2", "sklearn")
    found = resolve(foreign.run, folder=tmp_path / "b")
    assert (found.name, found.version) == ("light", foreign.run.split("/")[1])


@pytest.mark.parametrize("source", ["models:/absent@champion", "models:/credit@absent", "models:/credit/9", "models:/",
                                    "runs:/absent/x", "runs:/absent"])
def test_address_of_nothing_gives_one_line(source, foreign, tmp_path, monkeypatch):
    for name, value in foreign.env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kernels.ModelError) as error:
        resolve(source, folder=tmp_path)
    assert source in str(error.value) and "\n" not in str(error.value)


def test_plain_file_is_taken_as_it_is(tmp_path):
    path = str(kernels.DEFAULT_MODEL)
    assert resolve(path, folder=tmp_path) == Resolved(path, None, "", "", "", None, None)
    with pytest.raises(OSError):
        resolve(str(tmp_path / "absent"), folder=tmp_path)


def test_what_a_model_prints_is_no_answer(foreign, tmp_path, copy):
    """A pickle that prints while it is opened."""
    folder = copy("words-pickle", lambda mlmodel: None)
    (folder / "model.pkl").write_bytes(pickle.dumps(Printer()))
    done = run(foreign, folder, "--folder", tmp_path, "--allow-pickle")
    assert json.loads(done.stdout)["worker"] and "printed" in done.stderr


class Printer:
    def __reduce__(self):
        return print, ("printed",)


def test_flavors_are_read_by_one_table():
    assert set(resolving.CONVERTERS) == {"sklearn", "lightgbm", "xgboost", "onnx", "testigo"}
