"""Packaged models where they are used: MLflow in processes that have neither this repository nor its `kernels`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kernels
from databricks.register import save_model
from tests.databricks.conftest import Outside
from tests.databricks.packaged_models import Case, cases
from tests.serving import ROOT, START_S

BESIDE = Path(sys.prefix) / "beside"
MLFLOW_WARNS = "ignore:Operation with range is deprecated"
pytestmark = pytest.mark.filterwarnings(MLFLOW_WARNS)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Case]:
    return cases(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def packaged(models, tmp_path_factory) -> Path:
    """The folder of the packaged models, one of each kind, and of their rows as JSON."""
    folder = tmp_path_factory.mktemp("packaged")
    for name, case in models.items():
        save_model(case.source, folder / name)
        (folder / f"{name}.json").write_text(json.dumps(split(case.rows)))
    return folder


def split(rows: pd.DataFrame) -> dict[str, list]:
    """Rows as `dataframe_split` has them, to the last bit."""
    cells = rows.astype(object).where(rows.notna(), None)
    return {"columns": [str(name) for name in rows.columns], "data": cells.to_numpy().tolist()}


# Loads all packaged models of a folder and writes what they predict to a file; says what the process then holds.
LOAD = """
import json, os, sys, tempfile
from pathlib import Path
import mlflow, pandas as pd, numpy as np
FIRST
import mlflow.pyfunc
folder, out = map(Path, sys.argv[1:])
assert not any("kernels" in name for name in sys.modules if "." not in name), "before the first model is loaded"
answers = {}
for directory in sorted(p for p in folder.iterdir() if p.is_dir()):
    rows = pd.DataFrame(**json.loads((folder / f"{directory.name}.json").read_text()))
    model = mlflow.pyfunc.load_model(str(directory))
    answers[directory.name] = model.predict(rows)
    answers[directory.name + " again"] = model.predict(rows, params={"threads": 2, "return_probabilities": False})
    try:
        answers[directory.name + " probabilities"] = model.predict(rows, params={"return_probabilities": True})
    except ValueError as error:
        answers[directory.name + " probabilities"] = np.array(str(error))
np.savez(out, **{name: np.array(answer) for name, answer in answers.items()})
print(json.dumps({"kernels": sys.modules["kernels"].__file__, "modules": sorted(sys.modules), "path": sys.path,
                  "maps": Path("/proc/self/maps").read_text()}))
"""


@pytest.fixture(scope="module")
def loaded(packaged, run_outside, tmp_path_factory) -> tuple[dict[str, np.ndarray], dict]:
    """What a fresh process outside the repository predicts, and what it says of itself."""
    out = tmp_path_factory.mktemp("answers") / "answers.npz"
    said = run_outside(LOAD.replace("FIRST", ""), packaged, out)
    return dict(np.load(out)), json.loads(said)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


KINDS = ["gguf linear", "gguf mlp", "lightgbm", "xgboost json", "xgboost ubjson", "onnx", "sklearn strings"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_predicts_the_bits_of_the_original(models, loaded, kind):
    model, rows = models[kind].model(), models[kind].rows
    answers, _ = loaded
    assert_same(answers[kind], model.predict(rows))
    assert_same(answers[f"{kind} again"], model.predict(rows))
    found = answers[f"{kind} probabilities"]
    if model.n_classes:
        assert_same(found, model.predict_proba(rows))
    else:
        assert str(found) == ("expected false for the parameter return_probabilities: this model has no probabilities")


def test_every_kind_is_covered(models, loaded):
    assert set(models) == set(KINDS)
    assert len(loaded[0]) == 3 * len(KINDS)


def test_only_the_models_own_copy_of_kernels_is_loaded(packaged, loaded):
    _, process = loaded
    assert Path(process["kernels"]).is_relative_to(packaged)
    assert not {name for name in process["modules"] if name in ("databricks.register", "server", "tests")}
    assert not [entry for entry in process["path"] if Path(entry) == ROOT]


def test_nothing_is_imported_that_the_requirements_leave_out(loaded):
    assert not {"gguf", "onnx", "onnxruntime", "skl2onnx", "lightgbm", "xgboost"} & set(loaded[1]["modules"])


def test_quantized_weights_stay_mapped(loaded):
    assert "gguf linear/artifacts/model.gguf" in loaded[1]["maps"]


def test_loads_beside_databricks_packages(models, packaged, run_outside, tmp_path):
    if not all((BESIDE / name).exists() for name in ("databricks/connect", "databricks/sql", "grpc_status", "lz4")):
        pytest.skip("Databricks' other packages are not in .venv/beside: make test puts them there")
    first = ("import databricks.sdk, databricks.sql.client, databricks.connect, pyspark\n"
             "for one in (databricks.sql, databricks.connect, pyspark):\n"
             f"    assert one.__file__.startswith({str(BESIDE)!r})")
    out = tmp_path / "answers.npz"
    process = json.loads(run_outside(LOAD.replace("FIRST", first), packaged, out, path=(BESIDE,)))
    assert {"databricks.sdk", "databricks.sql.client", "databricks.connect"} <= set(process["modules"])
    answers = dict(np.load(out))
    for kind, (source, rows) in models.items():
        assert_same(answers[kind], models[kind].model().predict(rows))


# ---- whose kernels -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("first", ["import kernels", ""], ids=["imported before", "first on the path"])
def test_foreign_package_of_the_same_name_gives_one_clear_line(packaged, outside, tmp_path, first):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(): pass\n")
    path = packaged / "gguf linear" / "mlflow_model.py"
    code = f"{first}\nimport runpy\nrunpy.run_path({str(path)!r})"
    done = outside.run("-c", code, path=(tmp_path,))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: the package 'kernels' at {tmp_path / 'kernels'} is another one of that name, not Testigo's:"
        " uninstall it (pip uninstall kernels) or load the model in an environment of its own")


def test_foreign_package_that_was_imported_stops_mlflow_with_that_line(packaged, outside, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    code = "import kernels, mlflow.pyfunc, sys; mlflow.pyfunc.load_model(sys.argv[1])"
    done = outside.run("-c", code, packaged / "gguf linear", path=(tmp_path,))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mlflow.exceptions.MlflowException") and "is another one of that name" in last


def test_foreign_module_and_no_module_of_the_name_are_said_too(packaged, outside, tmp_path):
    shutil.copy(packaged / "gguf linear" / "mlflow_model.py", tmp_path)
    assert "'kernels' at None is another one" in outside.run(tmp_path / "mlflow_model.py").stderr.splitlines()[-1]
    (tmp_path / "kernels.py").write_text("")
    assert f"'kernels' at {tmp_path}/kernels.py is" in outside.run(tmp_path / "mlflow_model.py").stderr.splitlines()[-1]


def test_imported_as_a_module_it_does_nothing():
    code = "import sys, kernels.mlflow_model; raise SystemExit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_telemetry_is_off_before_mlflow_is_imported(packaged, outside):
    code = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"))
            raise SystemExit
sys.meta_path.insert(0, Watch())
del os.environ["MLFLOW_DISABLE_TELEMETRY"]
sys.path.insert(0, sys.argv[1] + "/code")
runpy.run_path(sys.argv[1] + "/mlflow_model.py")
"""
    assert outside.run("-c", code, packaged / "gguf linear").stdout == "true\n"


# ---- rows and parameters -----------------------------------------------------------------------------------------

# Asks one model for each of the questions, a dict of rows and params → what is answered or what is wrong.
ASK = """
import json, sys
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = []
for columns, data, params in json.loads(sys.argv[2]):
    try:
        answers.append(model.predict(pd.DataFrame(data, columns=columns), params=params).tolist())
    except ValueError as error:
        answers.append(f"{type(error).__name__}: {error}")
    except Exception as error:
        answers.append(type(error).__name__)
print(json.dumps(answers))
"""


def test_columns_may_come_in_any_order_and_optional_ones_not_at_all(models, packaged, run_outside):
    rows = models["sklearn strings"].rows[:4]
    expected = models["sklearn strings"].model().predict(rows.assign(age=np.nan)).tolist()
    shuffled = rows[["country", "amount", "merchant"]].assign(more=1)
    questions = [(list(frame.columns), frame.to_numpy(object).tolist(), None)
                 for frame in (shuffled, rows.assign(age=None))]
    answers = json.loads(run_outside(ASK, packaged / "sklearn strings", json.dumps(questions)))
    assert answers == [expected, expected]


def test_rows_and_parameters_that_do_not_fit_are_refused(packaged, run_outside):
    row = [0.5] * 5
    questions = [
        (None, [row], {"threads": 0}),
        (None, [row], {"threads": "two"}),
        (None, [row], {"return_probabilities": 1.5}),
        (None, [row[:4]], None),
        (None, [[None, *row[:4]]], None),
        (None, [row], {"threads": 1000}),
    ]
    answers = json.loads(run_outside(ASK, packaged / "gguf linear", json.dumps(questions)))
    expected = kernels.load(kernels.DEFAULT_MODEL).predict([row]).tolist()
    assert answers == ["ModelError: expected 1 or more for the parameter threads", "MlflowException", "MlflowException",
                       "MlflowException", "ModelError: expected finite numbers: row 0, feature 0 is nan", expected]


def test_unknown_parameter_is_refused_by_the_model_itself():
    from kernels.mlflow_model import PackagedModel
    with pytest.raises(kernels.ModelError, match="no parameters but return_probabilities and threads"):
        PackagedModel().predict(None, None, {"temperature": 1})


# ---- MLflow's own ways of using a model --------------------------------------------------------------------------

class ScoringServer:
    """`mlflow models serve` of a model in a folder, which runs outside."""

    def __init__(self, model: Path, outside: Outside, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local",
                   "--host", "127.0.0.1", "--port", self.port, "--workers", 1]
        with log.open("wb") as file:
            self.process = subprocess.Popen([*map(str, command)], cwd=outside.folder, env=outside.environment(),
                                            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        self.log = log

    def wait(self) -> None:
        """Until it answers; the model compiles before."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(OSError):
                if self.ask("GET", "/ping")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def ask(self, method: str, target: str, body: dict | None = None) -> tuple[int, bytes]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=START_S)) as connection:
            connection.request(method, target, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def scoring_server(packaged, outside, tmp_path_factory) -> Iterator[ScoringServer]:
    server = ScoringServer(packaged / "sklearn strings", outside, tmp_path_factory.mktemp("serve") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def records(rows: pd.DataFrame) -> list[dict]:
    return [dict(zip(rows.columns, row)) for row in split(rows)["data"]]


def test_mlflow_models_serve_answers(models, scoring_server):
    model, rows = models["sklearn strings"].model(), models["sklearn strings"].rows
    status, body = scoring_server.ask("POST", "/invocations", {"dataframe_split": split(rows)})
    assert (status, json.loads(body)) == (200, {"predictions": model.predict(rows).tolist()})
    status, body = scoring_server.ask("POST", "/invocations", {"dataframe_records": records(rows),
                                                               "params": {"return_probabilities": True}})
    assert (status, json.loads(body)) == (200, {"predictions": model.predict_proba(rows).tolist()})


def test_mlflow_models_serve_refuses_what_the_model_does(scoring_server):
    row = {"merchant": 1, "country": "es", "amount": 1.0}
    assert scoring_server.ask("POST", "/invocations", {"dataframe_records": [row]})[0] == 400


SPARK = """
import json, sys
from pathlib import Path
import mlflow, pandas as pd
from mlflow.pyfunc import spark_udf
from pyspark.sql import SparkSession
from pyspark.sql.functions import array, struct

folder = Path(sys.argv[1])
spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
         .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
         .config("spark.sql.warehouse.dir", sys.argv[2]).getOrCreate())
spark.sparkContext.setLogLevel("ERROR")
answers = {}
for name, params in (("sklearn strings", None), ("lightgbm", None), ("gguf linear", {"return_probabilities": True})):
    rows = pd.DataFrame(**json.loads((folder / f"{name}.json").read_text()))
    kind = "array<double>" if params else None
    udf = spark_udf(spark, str(folder / name), result_type=kind, env_manager="local", params=params)
    frame = spark.createDataFrame(rows)
    found = frame.select(udf(*frame.columns).alias("prediction")).toPandas()["prediction"]
    answers[name] = [one.tolist() if hasattr(one, "tolist") else one for one in found]
print(json.dumps(answers))
"""


def test_spark_udf_predicts_the_same(models, packaged, outside, tmp_path):
    if shutil.which("java") is None:
        pytest.skip("Spark needs java (make test installs it where it may)")
    done = outside.run("-c", SPARK, packaged, tmp_path, PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for name, found in answers.items():
        case = models[name]
        expected = case.model().predict_proba(case.rows) if name == "gguf linear" else case.model().predict(case.rows)
        assert found == expected.tolist()


def test_copies_of_the_code_share_what_is_compiled(packaged, run_outside, tmp_path):
    shutil.copytree(packaged / "gguf linear", tmp_path / "copy", copy_function=shutil.copyfile)  # with times of its own
    load = "import sys, mlflow.pyfunc; mlflow.pyfunc.load_model(sys.argv[1])"
    cache = tmp_path / "cache"
    run_outside(load, packaged / "gguf linear", TESTIGO_CACHE_DIR=str(cache))
    compiled = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
    run_outside(load, tmp_path / "copy", TESTIGO_CACHE_DIR=str(cache))
    assert compiled and {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")} == compiled
