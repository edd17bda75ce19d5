"""Models at MLflow's addresses, served: without mlflow in the serving process, or by mlflow in one of its own."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import kernels
from server import mlflow_models, models, rows, sagemaker
from server.errors import ApiError
from server.mlflow_models import Found, ProcessModel
from tests import serving
from tests.databricks import foreign_models
from tests.databricks.foreign_models import COLUMNS, Foreign
from tests.serving import predict_request, request, wait_for

# A server in which mlflow cannot be imported; the processes that it starts can.
WITHOUT_MLFLOW = (sys.executable, "-c", "import sys; sys.modules['mlflow'] = None;"
                  "from server.__main__ import main; main(sys.argv[1:])")
ROW = [0.5, -1.0, 2.0, 0.0]
END, FAIL, HANG = ([value, 0.0, 0.0, 0.0] for value in (-1.0, -2.0, -3.0))


@pytest.fixture(scope="module")
def foreign() -> Foreign:
    return foreign_models.made()


@pytest.fixture(scope="module")
def pickle_server(foreign) -> Iterator[serving.Server]:
    with serving.start("models:/credit/2", "--allow-pickle", env=foreign.env, command=WITHOUT_MLFLOW) as server:
        yield server


@pytest.fixture(scope="module")
def process_server(foreign) -> Iterator[serving.Server]:
    with serving.start(foreign.path("pyfunc"), "--allow-pickle", env=foreign.env, command=WITHOUT_MLFLOW) as server:
        yield server


@pytest.fixture
def process_model(foreign) -> Iterator[ProcessModel]:
    inputs = [{"type": "double", "name": name} for name in COLUMNS]
    found = Found(None, str(foreign.path("unsigned")), "unsigned", "1", "pyfunc", {"inputs": inputs}, "it is one's own")
    model = ProcessModel(found, lambda line: None)
    yield model
    model.close()


def split(*data: list[float], **fields: object) -> bytes:
    return json.dumps({"dataframe_split": {"columns": COLUMNS, "data": data}, **fields}).encode()


def invocation(*data: list[float], **fields: object) -> bytes:
    return request("POST", "/invocations", split(*data, **fields))


def worker_of(server: serving.Server) -> int:
    """The id of the process that runs a model."""
    found = [child.pid for child in psutil.Process(server.pid).children(True)
             if "databricks.pyfunc_process" in child.cmdline()]
    assert len(found) == 1
    return found[0]


# --- converted --------------------------------------------------------------------------------------------------

def test_pickle_of_the_registry_is_served_by_our_kernels(pickle_server, foreign):
    model = pickle_server.ask(request("GET", "/v1/models/credit")).json()
    assert {key: model[key] for key in ("version", "engine", "flavor", "source", "feature_names")} == {
        "version": "2", "engine": "testigo", "flavor": "sklearn", "source": "models:/credit/2",
        "feature_names": COLUMNS}
    body, expected = foreign.answers["words-pickle"]
    assert pickle_server.ask(request("POST", "/invocations", body.encode())).json() == expected
    inputs = json.loads(body)["dataframe_split"]["data"]
    assert pickle_server.ask(predict_request(inputs)).json()["predictions"] == expected["predictions"]


def test_serving_process_has_no_child_and_no_file_of_mlflow(pickle_server):
    """The processes that resolved are gone; nothing of the author's paths is told."""
    children = psutil.Process(pickle_server.pid).children(True)
    assert not [child for child in children if "databricks" in " ".join(child.cmdline())]
    maps = Path(f"/proc/{pickle_server.pid}/maps").read_text()
    assert "numba" in maps or "llvmlite" in maps
    assert not re.search("/(pandas|sklearn|sqlalchemy|pyarrow|mlflow)/", maps)
    assert "/tmp" not in pickle_server.ask(request("GET", "/v1/models")).body.decode()


def test_alias_of_a_booster_needs_no_leave(foreign):
    with serving.start("models:/credit@champion", native=False, env=foreign.env, command=WITHOUT_MLFLOW) as server:
        assert server.ask(request("GET", "/health")).json()["version"] == "1"
        body, expected = foreign.answers["lgb-booster"]
        assert server.ask(request("POST", "/invocations", body.encode())).json()["predictions"] == pytest.approx(
            expected["predictions"], rel=1e-9)


@pytest.mark.parametrize("name", ["words-pickle", "pyfunc"])
def test_model_that_can_run_code_is_one_line_without_leave(name, foreign):
    done = serving.run(foreign.path(name))
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1 and "--allow-pickle" in done.stderr


def test_address_without_mlflow_installed_says_what_to_install(foreign, tmp_path):
    """As in an installation of the core packages alone."""
    (tmp_path / "mlflow.py").write_text("raise ImportError('no mlflow', name='mlflow')")
    done = serving.run("models:/credit@champion", env={"PYTHONPATH": f"{tmp_path}:{serving.ROOT}"}, cwd=tmp_path)
    assert done.returncode == 3
    assert "pip install 'testigo[databricks]'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_two_models_of_one_name_are_refused(foreign):
    source = foreign.path("lgb-booster")
    with pytest.raises(kernels.ModelError, match="is named 'lgb-booster' too"):
        models.load([source, source], native=False)


def test_folder_without_mlmodel_is_one_line(tmp_path):
    with pytest.raises(kernels.ModelError, match="MLmodel"):
        models.load([tmp_path], native=False)


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_models.tempfile, "tempdir", str(tmp_path))
    for name in ("used", "left", "new", "other"):
        (tmp_path / f"{mlflow_models.PREFIX}{name}").mkdir()
    for name in ("used", "left"):
        (tmp_path / f"{mlflow_models.PREFIX}{name}" / mlflow_models.LOCK).touch()
    (tmp_path / "other" / mlflow_models.LOCK).parent.mkdir()
    with mlflow_models.locked(tmp_path / f"{mlflow_models.PREFIX}used" / mlflow_models.LOCK):
        mlflow_models.remove_left_over()
    assert sorted(path.name.removeprefix(mlflow_models.PREFIX) for path in tmp_path.iterdir()) == [
        "new", "other", "other", "used"]


# --- in a process of mlflow's -----------------------------------------------------------------------------------

def test_model_that_only_mlflow_can_run_is_served_behind_the_same_api(process_server, foreign):
    model = process_server.ask(request("GET", "/v1/models")).json()["data"][0]
    assert (model["engine"], model["flavor"], model["n_features"]) == ("mlflow process", "pyfunc", 4)
    assert model["engine_reason"] and model["explanation"] is None
    body, expected = foreign.answers["pyfunc"]
    assert process_server.ask(request("POST", "/invocations", body.encode())).json() == expected
    inputs = json.loads(body)["dataframe_split"]["data"]
    assert process_server.ask(predict_request(inputs)).json()["predictions"] == expected["predictions"]


def test_parameters_and_csv_reach_the_model(process_server):
    factor = process_server.ask(invocation(ROW, params={"factor": 10.0})).json()
    assert [list(row.values()) for row in factor["predictions"]] == [[5.0]]
    csv = process_server.ask(request("POST", "/invocations", b"a,b,c,d\n1,2,3,4\n", {"Content-Type": "text/csv"}))
    assert csv.json() == {"predictions": [{"a": 2.0}]}


def test_missing_value_is_answered_as_null(process_server):
    body = b'{"dataframe_records": [{"a": null, "b": 1, "c": 2, "d": 3}]}'
    assert process_server.ask(request("POST", "/invocations", body)).body == b'{"predictions": [{"a": null}]}'


@pytest.mark.parametrize("body", [
    b'{"dataframe_split": {"columns": ["a"], "data": [["secret"]]}}', b'{"secret": 1}', b"secret", b"[]",
    split(FAIL), split([7.25])])
def test_refusal_holds_no_value_of_the_request(body, process_server):
    answer = process_server.ask(request("POST", "/invocations", body))
    assert answer.status == 400 and set(answer.json()) == {"error_code", "message"}
    assert b"secret" not in answer.body and b"7.25" not in answer.body and b"-2" not in answer.body


def test_failure_of_the_model_is_logged_without_values(process_server):
    assert process_server.ask(invocation(FAIL)).status == 400
    wait_for(lambda: "ValueError" in process_server.stderr_text())
    assert "secret [" not in process_server.stderr_text()
    assert "predicting 1 rows" in process_server.stderr_text(), "what the model prints is in the log"


def test_model_that_ends_its_process_costs_one_request(process_server):
    before = worker_of(process_server)
    answer = process_server.ask(invocation(END))
    assert (answer.status, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert process_server.ask(invocation(ROW)).json() == {"predictions": [{"a": 1.0}]}
    assert worker_of(process_server) != before


def test_process_that_was_killed_is_replaced_before_the_next_request(process_server):
    before = worker_of(process_server)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: psutil.Process(before).status() == psutil.STATUS_ZOMBIE
             and len(os.listdir(f"/proc/{before}/task")) == 1)
    assert process_server.ask(invocation(ROW)).status == 200


def test_process_ends_with_the_server_whatever_it_does(foreign):
    """Also with one that is killed while the model answers."""
    with serving.start(foreign.path("pyfunc"), "--allow-pickle", env=foreign.env) as server, server.connect() as client:
        worker = psutil.Process(worker_of(server))
        client.send(invocation(HANG))
        wait_for(lambda: server.stderr_text().count("predicting 1 rows"))
        server.stop(signal.SIGKILL)
        wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_sandboxed_server_says_that_it_cannot_start_another_process(foreign):
    with serving.start(foreign.path("pyfunc"), "--allow-pickle", "--sandbox", native=False, env=foreign.env) as server:
        statuses = [server.ask(invocation(row)).status for row in (ROW, END, ROW)]
        assert statuses == [200, 500, 503]
        assert server.stop() == 0


def test_model_that_does_not_answer_in_time_is_given_up(process_model, monkeypatch):
    monkeypatch.setattr(mlflow_models, "ANSWER_S", 0.2)
    status, answer = process_model.invoke("application/json", split(HANG))
    assert (status, json.loads(answer)["error_code"]) == (504, "DEADLINE_EXCEEDED")
    monkeypatch.undo()
    assert process_model.invoke("application/json", split(ROW)) == (200, b'{"predictions": [{"a": 1.0}]}')


def test_request_does_not_wait_for_others_for_ever(process_model, monkeypatch):
    monkeypatch.setattr(mlflow_models, "ANSWER_S", 0.01)
    with process_model._lock:
        status, answer = process_model.invoke(mlflow_models.JSON, split(ROW))
    assert (status, json.loads(answer)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")


def test_code_of_a_model_does_not_read_its_requests(process_server):
    assert os.readlink(f"/proc/{worker_of(process_server)}/fd/0") == os.devnull


def test_process_that_cannot_be_started_again_is_said(process_model, monkeypatch):
    process_model.invoke("application/json", split(END))
    process_model.close()
    monkeypatch.setattr(mlflow_models.sys, "executable", "/absent/python")
    status, answer = process_model.invoke("application/json", split(ROW))
    assert (status, json.loads(answer)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    with pytest.raises(ApiError) as error:
        process_model.predict([ROW])
    assert error.value.status == 503


def test_model_that_cannot_be_loaded_stops_the_start(foreign, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(foreign.path("pyfunc"), folder)
    (folder / "chosen.py").write_text("import absent_package")
    done = serving.run(folder, "--allow-pickle")
    assert done.returncode == 3
    assert "absent_package" in done.stderr.splitlines()[-1] and done.stderr.splitlines()[-1].startswith("server: error")


def test_rows_for_a_model_that_takes_none_are_refused():
    with pytest.raises(ApiError) as error:
        rows.read_rows({"inputs": [ROW]}, SimpleNamespace(n_features=0), ())  # type: ignore[arg-type]
    assert error.value.code == "no_rows"


TENSOR = {"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2, 2]}}


@pytest.mark.parametrize("inputs, n", [
    ([{"type": "double", "name": "a"}, {"type": "long", "name": "b"}], 2), ([TENSOR], 4), (None, 0),
    ([{"type": "string", "name": "a"}], 0), ([TENSOR, TENSOR], 0),
    ([{"type": "tensor", "tensor-spec": {"dtype": "str", "shape": [-1, 2]}}], 0)])
def test_rows_are_taken_where_the_signature_is_all_numbers(inputs, n):
    assert mlflow_models.n_features(inputs or []) == n


def test_row_becomes_json_of_the_columns_types():
    inputs = [{"type": kind, "name": kind} for kind in ("double", "long", "boolean")]
    assert mlflow_models.request_of([[1.0, 2.0, 1.0], [float("nan"), 2.5, 3.0]], inputs) == {"dataframe_split": {
        "columns": ["double", "long", "boolean"], "data": [[1.0, 2, True], [None, 2.5, 3.0]]}}
    assert mlflow_models.request_of([[1.0, 2.0, 3.0, 4.0]], [TENSOR]) == {"inputs": [[[1.0, 2.0], [3.0, 4.0]]]}
    assert mlflow_models.request_of([[1.0]], [{"type": "double"}]) == {"inputs": [[1.0]]}


# --- SageMaker --------------------------------------------------------------------------------------------------

def test_serve_starts_as_sagemaker_does(foreign):
    with serving.start("serve", command=SAGEMAKER, env=foreign.env | {
            "SM_MODEL_DIR": str(foreign.path("lgb-booster")), "SAGEMAKER_BIND_TO_PORT": "0"}) as server:
        assert server.host == "0.0.0.0"
        with serving.Client("127.0.0.1", server.port) as client:
            assert client.ask(request("GET", "/ping", headers={"Host": "model.internal:8080"})).status == 200
            body, expected = foreign.answers["lgb-booster"]
            answer = client.ask(request("POST", "/invocations", body.encode()))
            assert answer.json()["predictions"] == pytest.approx(expected["predictions"], rel=1e-9)
        assert server.stop() == 0


SAGEMAKER = (sys.executable, "-c", "import sys; from server.__main__ import main; main(sys.argv[3:])")  # no --port 0


def test_sagemaker_folder_holds_mlmodel_or_one_file(tmp_path):
    for names, found in (([], None), (["a.gguf"], "a.gguf"), (["a.gguf", ".cache"], "a.gguf"), (["a", "b"], None),
                         (["a", "MLmodel"], "")):
        folder = tmp_path / "-".join(["folder", *names])
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        if found is None:
            with pytest.raises(kernels.ModelError, match="MLmodel"):
                sagemaker.model(folder)
        else:
            assert sagemaker.model(folder) == str(folder / found)


@pytest.mark.parametrize("environment, status", [
    ({"SAGEMAKER_BIND_TO_PORT": "x"}, 2), ({"SM_MODEL_DIR": "/absent"}, 3), ({"SM_MODEL_DIR": "/proc/self/fd"}, 3)])
def test_wrong_environment_of_sagemaker_is_one_line(environment, status):
    done = serving.run("serve", env=environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1)


# --- validated --------------------------------------------------------------------------------------------------

def test_nothing_leaves_while_a_model_of_the_registry_is_served(foreign, tmp_path):
    done = serving.run("validate", "models:/credit@champion", "--policy", "sovereign", "--out", tmp_path,
                       env=foreign.env, command=(sys.executable, "-m", "tracing"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASS sovereign")
