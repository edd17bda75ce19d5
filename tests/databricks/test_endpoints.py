"""Serving endpoints through the real databricks-sdk, against a local workspace that is as strict as the real one."""

import json
import os
import socket
import subprocess
import sys
import uuid
from collections import Counter

import pytest
from databricks.sdk import WorkspaceClient

from databricks import endpoints
from databricks.endpoints import EndpointError, Patience, UpdateFailed, entity
from tests.databricks import workspace as workspaces
from tests.serving import ROOT

CHAMPION, CHALLENGER = "champion=main.ml.fraud/1", "challenger=main.ml.fraud/2"
PAYLOAD = {"dataframe_split": {"columns": ["a"], "data": [[1.0], [2.0]]}}
CONFIG = "/api/2.0/serving-endpoints/fraud/config"
QUICK = ("--poll", "0.01", "--timeout", "20")


@pytest.fixture
def workspace(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "ARM_", "AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    with workspaces.workspace() as served:
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.fixture
def said():
    return []


@pytest.fixture
def quick(said):
    return Patience(timeout_s=20, poll_s=0.01, say=said.append)


def run(capsys, *argv):
    """The command in this process → status, stdout, stderr."""
    status = endpoints.main(argv)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def served(capsys) -> dict[str, int]:
    """What `show` prints: {entity name: percent}."""
    lines = run(capsys, "show", "fraud")[1].splitlines()[1:]
    return {line.split()[2].rstrip(":"): int(line.split()[0]) for line in lines}


def pair(*percentages: int) -> list[str]:
    return [f"{name}={share}" for name, share in zip(("champion", "challenger"), percentages)]


# --- what is sent -------------------------------------------------------------------------------

def test_create_sends_the_config_and_waits_until_the_endpoint_is_ready(workspace, capsys):
    status, _, stderr = run(capsys, "create", "fraud", CHAMPION, *QUICK)
    assert status == 0
    assert workspace.changes == [("POST", "/api/2.0/serving-endpoints", {"name": "fraud", "config": {
        "name": "fraud",
        "served_entities": [{"name": "champion", "entity_name": "main.ml.fraud", "entity_version": "1",
                             "workload_size": "Small", "scale_to_zero_enabled": True}],
        "traffic_config": {"routes": [{"served_model_name": "champion", "traffic_percentage": 100}]}}})]
    states = [line.split(" after ")[0] for line in stderr.splitlines()]
    assert states == ["fraud: IN_PROGRESS, NOT_READY", "fraud: NOT_UPDATING, NOT_READY", "fraud: NOT_UPDATING, READY"]


def test_options_of_a_served_entity_are_sent(workspace, capsys):
    assert run(capsys, "create", "fraud", "main.ml.fraud/3", "--size", "Large", "--no-scale-to-zero", *QUICK)[0] == 0
    assert workspace.changes[0][2]["config"]["served_entities"] == [
        {"name": "fraud-3", "entity_name": "main.ml.fraud", "entity_version": "3", "workload_size": "Large",
         "scale_to_zero_enabled": False}]


def test_ab_split_promote_and_roll_back(workspace, capsys):
    assert run(capsys, "create", "fraud", CHAMPION, *QUICK)[0] == 0
    assert run(capsys, "update", "fraud", CHALLENGER, "--traffic", *pair(90, 10), *QUICK)[0] == 0
    assert served(capsys) == {"champion": 90, "challenger": 10}
    assert run(capsys, "split", "fraud", *pair(50, 50), *QUICK)[0] == 0
    assert served(capsys) == {"champion": 50, "challenger": 50}
    assert run(capsys, "promote", "fraud", "challenger", *QUICK)[0] == 0
    assert served(capsys) == {"champion": 0, "challenger": 100}
    assert run(capsys, "rollback", "fraud", *QUICK)[0] == 0
    assert served(capsys) == {"champion": 50, "challenger": 50}
    assert run(capsys, "rollback", "fraud", *QUICK)[0] == 0, "a rollback can be rolled back"
    assert served(capsys) == {"champion": 0, "challenger": 100}


def test_queries_are_shared_as_the_traffic_says(workspace, capsys, quick):
    client = WorkspaceClient()
    endpoints.create(client, "fraud", [entity("main.ml.fraud", 1, name="champion"),
                                       entity("main.ml.fraud", 2, name="challenger")],
                     {"champion": 90, "challenger": 10}, patience=quick)
    answers = [endpoints.query(client, "fraud", PAYLOAD) for _ in range(100)]
    assert Counter(answer["served-model-name"] for answer in answers) == {"champion": 90, "challenger": 10}
    assert all(answer["predictions"] == [1.0 + (answer["served-model-name"] == "challenger")] * 2 for answer in answers)


def test_update_gives_the_new_version_all_traffic_and_drops_what_had_none(workspace, capsys):
    for command, version in ("create", 1), ("update", 2), ("update", 3):
        assert run(capsys, command, "fraud", f"fraud/{version}", *QUICK)[0] == 0
    assert served(capsys) == {"fraud-2": 0, "fraud-3": 100}
    assert run(capsys, "rollback", "fraud", *QUICK)[0] == 0
    assert served(capsys) == {"fraud-2": 100, "fraud-3": 0}


def test_update_of_the_same_version_changes_its_size(workspace, capsys):
    assert run(capsys, "create", "fraud", "fraud/1", *QUICK)[0] == 0
    assert run(capsys, "update", "fraud", "fraud/1", "--size", "Medium", *QUICK)[0] == 0
    assert "100 %  fraud-1: fraud version 1, Medium, scales to zero" in run(capsys, "show", "fraud")[1]


def test_promote_can_remove_the_others(workspace, capsys):
    run(capsys, "create", "fraud", CHAMPION, CHALLENGER, "--traffic", *pair(90, 10), *QUICK)
    assert run(capsys, "promote", "fraud", "challenger", "--remove-others", *QUICK)[0] == 0
    assert served(capsys) == {"challenger": 100}
    status, _, stderr = run(capsys, "rollback", "fraud", *QUICK)
    assert (status, stderr) == (1, "endpoints: error: fraud has no change to roll back\n")


def test_delete_deletes(workspace, capsys):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    assert run(capsys, "delete", "fraud") == (0, "", "")
    status, _, stderr = run(capsys, "show", "fraud")
    assert status == 1
    assert "Endpoint with name 'fraud' does not exist" in stderr


@pytest.mark.parametrize("payload", [
    PAYLOAD, PAYLOAD | {"params": {"return_probabilities": True}}, {"dataframe_records": [{"a": 1.0}, {"a": 2.0}]},
    {"inputs": [[1.0], [2.0]]}, {"dataframe_split": {"columns": ["a"], "data": []}}])
def test_query_sends_the_payload_as_it_is(workspace, capsys, tmp_path, payload):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    (tmp_path / "payload.json").write_text(json.dumps(payload))
    for given in (json.dumps(payload), str(tmp_path / "payload.json")):
        status, stdout, stderr = run(capsys, "query", "fraud", given)
        assert status == 0
        assert workspace.requests[-1] == ("POST", "/serving-endpoints/fraud/invocations", payload)
        assert json.loads(stdout) == {"predictions": workspaces.version_of_each_row("fraud", "1", payload)}
        assert stderr.startswith("served by champion in ")


def test_query_of_one_entity_ignores_the_split(workspace, capsys):
    run(capsys, "create", "fraud", CHAMPION, CHALLENGER, "--traffic", *pair(100, 0), *QUICK)
    stdout = run(capsys, "query", "fraud", json.dumps(PAYLOAD), "--entity", "challenger")[1]
    assert json.loads(stdout) == {"predictions": [2.0, 2.0]}


def test_the_sdk_reaches_nothing_but_the_workspace(workspace, capsys, monkeypatch):
    connected = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address) or
                        connect(self, address))
    assert run(capsys, "create", "fraud", CHAMPION, *QUICK)[0] == 0
    assert {f"http://{host}:{port}" for host, port in connected} == {workspace.host}


# --- what fails ---------------------------------------------------------------------------------

def test_failed_update_says_why_and_the_config_before_still_serves(workspace, capsys):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    run(capsys, "update", "fraud", CHALLENGER, "--traffic", *pair(90, 10), *QUICK)
    workspace.failure = "Container failed:\n  no module named 'kernels'"
    status, _, stderr = run(capsys, "update", "fraud", "third=main.ml.fraud/3", *QUICK)
    assert status == 1
    assert stderr.splitlines()[-1] == ("endpoints: error: fraud: UPDATE_FAILED, READY: third: Container failed:"
                                       " no module named 'kernels'")
    assert served(capsys) == {"champion": 90, "challenger": 10}
    workspace.failure = ""
    assert run(capsys, "rollback", "fraud", *QUICK)[0] == 0
    assert served(capsys) == {"champion": 100, "challenger": 0}, "the failed update is no change to roll back"


def test_failed_creation_raises_update_failed(workspace, quick):
    workspace.failure = "Registered model version 9 does not exist"
    with pytest.raises(UpdateFailed, match="champion: Registered model version 9 does not exist"):
        endpoints.create(WorkspaceClient(), "fraud", [entity("fraud", 9, name="champion")], patience=quick)


def test_change_while_another_is_in_progress_is_refused(workspace, capsys):
    workspace.polls = 1_000_000
    run(capsys, "create", "fraud", CHAMPION, "--no-wait")
    status, _, stderr = run(capsys, "split", "fraud", "champion=100", *QUICK)
    assert (status, stderr) == (1, "endpoints: error: fraud is being updated: run this again when that has ended\n")
    assert len(workspace.changes) == 1


def test_the_workspace_own_refusal_of_a_second_update_is_shown(workspace, capsys, monkeypatch):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    asked = endpoints.show(WorkspaceClient(), "fraud")
    run(capsys, "update", "fraud", CHALLENGER, "--no-wait")
    monkeypatch.setattr(endpoints, "show", lambda *_: asked)  # as it was before another session's update began
    status, _, stderr = run(capsys, "split", "fraud", "champion=100", *QUICK)
    assert status == 1
    assert stderr == ("endpoints: error: the workspace refused: ResourceConflict: Endpoint 'fraud' is currently being"
                      " updated.\n")


def test_waiting_ends_with_the_state_when_the_time_is_over(workspace, capsys):
    workspace.polls = 1_000_000
    status, _, stderr = run(capsys, "create", "fraud", CHAMPION, "--timeout", "0.05", "--poll", "0.01")
    assert status == 1
    assert "fraud is still IN_PROGRESS, NOT_READY after 0.05 s; the workspace goes on" in stderr


@pytest.mark.parametrize("token, expected", [
    (workspaces.READER, "PermissionDenied: tester@example.com may not manage this endpoint"),
    ("dapi-unknown", "Unauthenticated: Credential was not sent or was of an unsupported type")])
def test_refusal_names_its_kind_and_neither_token_nor_configuration(workspace, capsys, monkeypatch, token, expected):
    monkeypatch.setenv("DATABRICKS_TOKEN", token)
    status, _, stderr = run(capsys, "create", "fraud", CHAMPION, *QUICK)
    assert (status, stderr) == (1, f"endpoints: error: the workspace refused: {expected}\n")


def test_no_workspace_is_one_line(workspace, capsys, monkeypatch):
    for name in workspace.environment:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "/dev/null")
    status, _, stderr = run(capsys, "show", "fraud")
    assert status == 1
    assert stderr.startswith("endpoints: error: no workspace is configured, or not wholly: set DATABRICKS_HOST and")
    assert stderr.count("\n") == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workspace_that_does_not_answer_is_one_line(workspace, capsys, monkeypatch):
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(endpoints, "RETRY_S", 1)
        status, _, stderr = run(capsys, "show", "fraud")
    assert status == 1
    assert stderr.splitlines()[-1] == "endpoints: error: the workspace cannot be reached: TimeoutError"


@pytest.mark.parametrize("argv, expected", [
    (["create", "fraud", CHAMPION, CHALLENGER], "say how the traffic is shared"),
    (["create", "fraud", CHAMPION, CHALLENGER, "--traffic", *pair(90, 20)], "must sum to 100, not 110"),
    (["create", "fraud", CHAMPION, "--traffic", "other=100"], "no served entity is named other; there are champion"),
    (["create", "fraud", CHAMPION, CHAMPION, "--traffic", "champion=100"], "have the same name"),
    (["create", "fraud", CHAMPION, "--traffic", "champion=50", "champion=50"], "has two percentages"),
    (["create", "fraud", *(f"fraud/{i}" for i in range(11)), "--traffic", "fraud-0=100"], "an endpoint takes 10"),
    (["create", "../x", CHAMPION], "endpoint name '../x': expected letters"),
    (["create", "fraud", "a.b=fraud/1"], "served entity name 'a.b': expected letters"),
    (["query", "fraud", "{}"], "one of dataframe_split, dataframe_records, instances, inputs"),
    (["query", "fraud", '{"inputs": [[NaN]]}'], "expected a JSON object"),
    (["query", "fraud", '{"inputs": [[1]], "instances": [[1]]}'], "one of dataframe_split"),
    (["split", "fraud", "champion=100", "--state", "state.json"], "--state is for --dry-run"),
    (["query", "fraud", "no-such-file.json"], "no-such-file.json: No such file or directory"),
])
def test_what_cannot_work_is_refused_before_anything_is_sent(workspace, capsys, argv, expected):
    status, _, stderr = run(capsys, *argv)
    assert status == 1
    assert expected in stderr
    assert not workspace.changes


@pytest.mark.parametrize("argv, expected", [
    (["update", "fraud", "champion=main.ml.fraud/2"], "fraud serves version 1 as 'champion'"),
    (["split", "fraud", *pair(90, 10)], "no served entity is named challenger; there are champion"),
    (["promote", "fraud", "other"], "no served entity is named other"),
    (["rollback", "fraud"], "fraud has no change to roll back")])
def test_what_does_not_fit_the_endpoint_is_refused(workspace, capsys, argv, expected):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    status, _, stderr = run(capsys, *argv)
    assert status == 1
    assert expected in stderr
    assert len(workspace.changes) == 1


@pytest.mark.parametrize("argv", [["create", "fraud", "fraud"], ["create", "fraud", "fraud/latest"],
                                  ["split", "fraud", "champion"], ["split", "fraud", "champion=-1"], ["create"]])
def test_bad_options_end_with_status_2(argv):
    with pytest.raises(SystemExit) as ended:
        endpoints.main(argv)
    assert ended.value.code == 2


def test_roll_back_to_what_is_no_longer_served_names_it(workspace, capsys, quick):
    run(capsys, "create", "fraud", "fraud/1", *QUICK)
    run(capsys, "update", "fraud", "fraud/2", *QUICK)
    client = WorkspaceClient()
    left = endpoints.show(client, "fraud").config
    client.serving_endpoints.update_config(  # by someone else
        "fraud", served_entities=[entity("fraud", 2)],
        traffic_config=type(left.traffic_config)([route for route in left.traffic_config.routes
                                                  if route.served_model_name == "fraud-2"]))
    endpoints.wait(client, "fraud", quick)
    with pytest.raises(EndpointError, match="no longer serves fraud-1"):
        endpoints.roll_back(client, "fraud")


# --- dry runs -----------------------------------------------------------------------------------

def bodies(text: str) -> list:
    """The JSON documents that follow each other in a text."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found, text = [*found, value], text[end:]
    return found


def dry(argv, cwd) -> subprocess.CompletedProcess:
    """A dry run in a process that has no credentials."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DATABRICKS_")}
    return subprocess.run([sys.executable, "-m", "databricks.endpoints", *argv, "--dry-run"], cwd=cwd, text=True,
                          capture_output=True, timeout=60,
                          env=environment | {"DATABRICKS_CONFIG_FILE": "/dev/null", "PYTHONPATH": str(ROOT)})


def test_dry_run_of_create_needs_no_workspace_and_prints_what_would_be_sent(workspace, capsys, tmp_path):
    argv = ["create", "fraud", CHAMPION, CHALLENGER, "--traffic", *pair(90, 10)]
    done = dry(argv, tmp_path)
    assert (done.returncode, done.stderr) == (0, "POST /api/2.0/serving-endpoints\n")
    assert not workspace.requests
    assert run(capsys, *argv, *QUICK)[0] == 0
    assert bodies(done.stdout) == [workspace.changes[0][2]]


@pytest.mark.parametrize("argv", [
    ["update", "fraud", "third=main.ml.fraud/3"], ["split", "fraud", *pair(60, 40)], ["promote", "fraud", "challenger"],
    ["promote", "fraud", "challenger", "--remove-others"], ["rollback", "fraud"], ["delete", "fraud"],
    ["query", "fraud", json.dumps(PAYLOAD)]])
def test_dry_run_prints_what_is_then_sent(workspace, capsys, tmp_path, argv):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    run(capsys, "update", "fraud", CHALLENGER, "--traffic", *pair(90, 10), *QUICK)
    (tmp_path / "state.json").write_text(run(capsys, "show", "fraud", "--json")[1])
    changes = [] if argv[0] in ("delete", "query") else ["--state", str(tmp_path / "state.json")]
    for name in workspace.environment:
        os.environ.pop(name)
    sent = len(workspace.requests)
    status, stdout, stderr = run(capsys, *argv, *changes, "--dry-run")
    assert (status, len(workspace.requests)) == (0, sent), stderr
    os.environ.update(workspace.environment)
    assert run(capsys, *argv, *(QUICK if changes else ()))[0] == 0
    requests = [request for request in workspace.requests[sent:] if request[0] != "GET"]
    assert stderr.splitlines() == [f"{method} {path}" for method, path, _ in requests]
    assert bodies(stdout) == [body for *_, body in requests if body is not None]


def test_dry_run_without_a_state_only_reads_the_workspace(workspace, capsys):
    run(capsys, "create", "fraud", CHAMPION, *QUICK)
    sent = len(workspace.requests)
    assert run(capsys, "update", "fraud", CHALLENGER, "--dry-run")[0] == 0
    assert {method for method, *_ in workspace.requests[sent:]} == {"GET"}


# --- a real workspace ---------------------------------------------------------------------------

@pytest.mark.skipif(not all(map(os.environ.get, ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "TESTIGO_DATABRICKS_MODEL"))),
                    reason="opt-in: TESTIGO_DATABRICKS_MODEL=MODEL/VERSION, DATABRICKS_HOST and DATABRICKS_TOKEN of a"
                           " workspace in which an endpoint is created for some minutes, at a cost, and deleted")
def test_real_workspace_creates_splits_promotes_rolls_back_and_deletes():
    client = endpoints.connect()
    model, _, version = os.environ["TESTIGO_DATABRICKS_MODEL"].rpartition("/")
    name = f"testigo-test-{uuid.uuid4().hex[:8]}"
    try:
        endpoints.create(client, name, [entity(model, version, name="champion")])
        endpoints.update(client, name, [entity(model, version, name="challenger")],
                         {"champion": 90, "challenger": 10})
        endpoints.promote(client, name, "challenger")
        endpoints.roll_back(client, name)
        routes = endpoints.show(client, name).config.traffic_config.routes
        assert {route.served_model_name: route.traffic_percentage for route in routes} == {"champion": 90,
                                                                                           "challenger": 10}
    finally:
        endpoints.delete(client, name)
