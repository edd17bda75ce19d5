"""Packaging and registering models: what is written, what MLflow's registry says, and what is refused."""

import json
import os
import re
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.types.schema import Array, ColSpec

import kernels
from databricks.register import example_of, log_model, main, save_model, signature_of
from kernels import DEFAULT_MODEL, ModelError
from tests.databricks.packaged_models import Case, cases
from tests.serving import ROOT

pytestmark = [pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
              pytest.mark.filterwarnings("ignore::ResourceWarning")]  # of SQLAlchemy's connections to SQLite


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Case]:
    return cases(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def packaged(models, tmp_path_factory) -> dict[str, Path]:
    """The folders of packaged models, by kind, written from a folder that holds a project of uv's."""
    folder = tmp_path_factory.mktemp("author")
    for name in ("uv.lock", "pyproject.toml"):
        (folder / name).write_text("[project]\nname = 'private'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_UV_AUTO_DETECT", raising=False)
        for name, case in models.items():
            save_model(case.source, folder / name)
        assert "MLFLOW_UV_AUTO_DETECT" not in os.environ
    return {name: folder / name for name in models}


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- what is written ---------------------------------------------------------------------------------------------

def test_package_holds_code_weights_and_descriptions_only(packaged):
    code = {f"code/kernels/{path.relative_to(ROOT / 'kernels')}" for path in (ROOT / "kernels").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    for folder in packaged.values():
        assert set(files(folder)) - code == {
            "MLmodel", "artifacts/model.gguf", "conda.yaml", "input_example.json", "mlflow_model.py", "python_env.yaml",
            "requirements.txt", "serving_input_example.json"}
        assert code <= set(files(folder))


def test_package_holds_no_pickle(packaged):
    for folder in packaged.values():
        for name, path in files(folder).items():
            content = path.read_bytes()
            if path.suffix == ".gguf":
                assert kernels.load(path, native=False).n_features
            else:
                assert content.decode("utf-8"), name  # no pickle of protocol 2 or later is UTF-8
                assert not content.startswith((b"(", b"c__builtin__", b"PK")), name


def test_package_says_nothing_of_the_machine_it_was_made_on(packaged):
    secrets = {str(ROOT), sys.prefix, str(Path.home()), socket.gethostname(), os.environ.get("TMPDIR", "/tmp/"),
               *(str(folder.parent) for folder in packaged.values())}
    for folder in packaged.values():
        for name, path in files(folder).items():
            content = path.read_bytes()
            if not name.startswith("code/"):
                assert not [secret for secret in secrets if secret.encode() in content], name
            if name in ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"):
                assert not re.search(rb"://|index-url|find-links|file:", content), name


def test_recorded_requirements_are_those_installed_and_need_no_network(packaged, outside):
    for folder in packaged.values():
        lines = (folder / "requirements.txt").read_text().splitlines()
        assert lines == [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "numba")]
        conda = yaml.safe_load((folder / "conda.yaml").read_text())
        assert conda["dependencies"][-1] == {"pip": lines}
    done = outside.run("-m", "pip", "install", "--dry-run", "--no-index", "-r", folder / "requirements.txt",
                       PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 0 and "Would install" not in done.stdout, done.stderr


def test_weights_are_the_file_itself_or_exact(models, packaged):
    assert (packaged["gguf linear"] / "artifacts/model.gguf").read_bytes() == DEFAULT_MODEL.read_bytes()
    for name, case in models.items():
        found = kernels.load(packaged[name] / "artifacts/model.gguf")
        for field in ("feature_names", "classes", "categories", "task"):
            assert getattr(found.signature, field) == getattr(case.model().signature, field)
        assert found.predict(case.rows).tobytes() == case.model().predict(case.rows).tobytes()


def test_mlmodel_names_the_weights_for_readers_that_run_no_code(packaged):
    for folder in packaged.values():
        flavors = Model.load(str(folder)).flavors
        assert flavors["testigo"] == {"data": "artifacts/model.gguf", "testigo_version": kernels.__version__}
        assert flavors["python_function"]["artifacts"] == {"model": {"path": "artifacts/model.gguf",
                                                                     "uri": "artifacts/model.gguf"}}
        assert flavors["python_function"]["model_code_path"] == "mlflow_model.py"


def test_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MlflowException, match="not empty"):
        save_model(DEFAULT_MODEL, tmp_path)


def test_models_validation_of_mlflow_is_refused(tmp_path):
    from databricks.register import package_of
    with pytest.raises(ValueError, match="expected false for validate_serving_input"):
        package_of(DEFAULT_MODEL, None).save_model(tmp_path / "m", validate_serving_input=True)


# ---- signatures and examples -------------------------------------------------------------------------------------

DOUBLE = ColSpec("double")
SIGNATURES = {
    "gguf linear": ([DOUBLE] * 5, DOUBLE),
    "gguf mlp": ([DOUBLE] * 30, ColSpec("string")),
    "lightgbm": ([ColSpec("double", name, required=False) for name in
                  ("sepal_length", "sepal_width", "petal_length", "petal_width")], ColSpec(Array("double"))),
    "xgboost json": ([ColSpec("double", name, required=False) for name in
                      ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")], DOUBLE),
    "onnx": ([DOUBLE] * 30, ColSpec("long")),
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_signature_is_inferred(packaged, kind):
    columns, output = SIGNATURES[kind]
    signature = Model.load(str(packaged[kind])).signature
    assert signature.inputs.inputs == columns
    assert signature.outputs.inputs == [output]
    assert json.loads(signature.to_dict()["params"]) == [
        {"name": "return_probabilities", "type": "boolean", "default": False, "shape": None},
        {"name": "threads", "type": "integer", "default": 1, "shape": None}]


def test_columns_of_strings_and_of_missing_values_are_told(models, packaged):
    signature = Model.load(str(packaged["sklearn strings"])).signature
    takes_missing = models["sklearn strings"].source.takes_missing_in.tolist()
    assert [(one.name, one.type.name, not one.required) for one in signature.inputs.inputs] == list(
        zip(("merchant", "country", "amount", "age"), ("string", "string", "double", "double"), takes_missing))
    assert signature.outputs.inputs == [ColSpec("string")]


def test_column_without_missing_values_is_required(tmp_path):
    path = tmp_path / "m.gguf"
    from kernels.export import save_dense
    save_dense(path, [(np.ones((1, 2)), [0.0])], ["identity"], name="m", version="1", task="regression",
               feature_names=["a", "b"])
    assert [one.required for one in signature_of(kernels.load(path)).inputs.inputs] == [True, True]


@pytest.mark.parametrize("kind", [*SIGNATURES, "sklearn strings"])
def test_input_example_is_a_row_that_the_model_takes(models, packaged, kind):
    example = Model.load(str(packaged[kind])).load_input_example(str(packaged[kind]))
    assert models[kind].model().predict(example).shape[0] == 1
    pd.testing.assert_frame_equal(example, example_of(models[kind].model()), check_column_type=False)


def test_input_example_may_be_given_and_must_have_a_prediction(models, tmp_path):
    rows = models["xgboost json"].rows[:3]
    save_model(models["xgboost json"].source, tmp_path / "given", input_example=rows)
    example = Model.load(str(tmp_path / "given")).load_input_example(str(tmp_path / "given"))
    pd.testing.assert_frame_equal(example, rows)
    with pytest.raises(ModelError, match="expected a column 'bmi'"):
        save_model(models["xgboost json"].source, tmp_path / "bad", input_example=rows.drop(columns="bmi"))
    assert not (tmp_path / "bad").exists()


# ---- the registry ------------------------------------------------------------------------------------------------

LOAD = """
import json, sys
import mlflow.pyfunc, pandas as pd
rows = pd.DataFrame(**json.loads(sys.argv[1]))
print(json.dumps([mlflow.pyfunc.load_model(uri).predict(rows).tolist() for uri in sys.argv[2:]]))
"""


def test_versions_and_aliases_load_by_their_uris(models, mlflow_store, run_outside):
    first, second = (log_model(models[kind].source, name="value", registered_model_name="value", alias=alias)
                     for kind, alias in (("gguf linear", "champion"), ("xgboost json", "challenger")))
    assert (first.registered_model_version, second.registered_model_version) == (1, 2)
    client = mlflow.MlflowClient()
    assert [int(client.get_model_version_by_alias("value", alias).version) for alias in ("champion", "challenger")] == [
        1, 2]
    row = {"columns": models["xgboost json"].rows.columns.tolist(), "data": [[0.1 * i for i in range(10)]]}
    client.set_registered_model_alias("value", "champion", 2)
    found = json.loads(run_outside(LOAD, json.dumps(row), "models:/value@champion", "models:/value/2", second.model_uri,
                                   **mlflow_store.env))
    expected = models["xgboost json"].model().predict(pd.DataFrame(**row)).tolist()
    assert found == [expected] * 3


def test_logged_model_tells_no_path_either(models, mlflow_store):
    info = log_model(models["onnx"].source, name="onnx", tags={"team": "risk"})
    text = Path(mlflow.artifacts.download_artifacts(info.model_uri), "MLmodel").read_text()
    assert "artifact_path: /" not in text and str(mlflow_store.folder) not in text
    assert info.registered_model_version is None
    assert mlflow.get_logged_model(info.model_id).tags["team"] == "risk"


@pytest.mark.parametrize("alias", ["two words", "", "latest", "v2"])
def test_alias_that_mlflow_refuses_registers_nothing(alias, mlflow_store):
    with pytest.raises(mlflow.MlflowException, match="(?i)alias"):
        log_model(DEFAULT_MODEL, name="refused", registered_model_name="refused", alias=alias)
    assert not mlflow.MlflowClient().search_model_versions("name = 'refused'")


def test_alias_without_a_registered_name_is_refused(mlflow_store):
    with pytest.raises(ValueError, match="expected registered_model_name beside alias"):
        log_model(DEFAULT_MODEL, name="m", alias="champion")


def test_unsound_model_is_refused_before_mlflow_knows_of_it(mlflow_store, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    before = len(mlflow.search_logged_models(output_format="list"))
    with pytest.raises(ModelError, match=r"m\.gguf"):
        log_model(tmp_path / "m.gguf", name="m", registered_model_name="unsound")
    assert len(mlflow.search_logged_models(output_format="list")) == before


# ---- the command -------------------------------------------------------------------------------------------------

def register(*args: str | Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "databricks.register", *map(str, args)], cwd=ROOT, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | env)


def test_command_registers_and_prints_uri_and_version(mlflow_store):
    done = register(DEFAULT_MODEL, "--name", "fraud", "--alias", "champion", "--tracking-uri", mlflow_store.uri)
    assert (done.returncode, done.stdout) == (0, "models:/fraud@champion version 1\n"), done.stderr
    done = register(DEFAULT_MODEL, "--name", "fraud")
    assert (done.returncode, done.stdout) == (0, "models:/fraud/2 version 2\n"), done.stderr
    assert int(mlflow.MlflowClient().get_model_version_by_alias("fraud", "champion").version) == 1


@pytest.mark.parametrize("model, options, status, message", [
    (DEFAULT_MODEL, [], 2, "the following arguments are required: --name (see --help)"),
    (Path("none.gguf"), ["--name", "fraud"], 3, "none.gguf: No such file or directory"),
    (Path(__file__), ["--name", "fraud"], 3, f"{Path(__file__).name}: expected a model in GGUF, ONNX, LightGBM's text"),
    (DEFAULT_MODEL, ["--name", "a/b"], 4, ""),
], ids=["no name", "no file", "no model", "bad name"])
def test_command_says_what_is_wrong_in_one_line(mlflow_store, capsys, model, options, status, message):
    with pytest.raises(SystemExit) as ended:
        main([str(model), *options])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (status, "")
    assert err.splitlines()[-1].startswith(f"register: error: {message}")


def test_command_turns_telemetry_off_before_mlflow_is_imported():
    code = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("DO_NOT_TRACK"))
            raise SystemExit
sys.meta_path.insert(0, Watch())
import databricks.register
"""
    names = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    env = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, text=True, capture_output=True)
    assert done.stdout == "true true\n", done.stderr
