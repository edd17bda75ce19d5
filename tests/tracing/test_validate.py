"""The lab: the server under strace, all of it used, and a verdict."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.tracing.traces import policy
from tracing import drive, judge, validate
from tracing.drive import Driven
from tracing.policy import load_all

ROOT = Path(__file__).resolve().parents[2]
RUNS = 3


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*environment.pop("path", "").split(), str(ROOT)])
    return subprocess.run([sys.executable, "-m", "tracing", "validate", *options], cwd=folder, capture_output=True, text=True,
                          env=os.environ | environment | {"PYTHONPATH": path})


def test_server_passes_and_the_reports_say_so(tmp_path):
    done = run(tmp_path, "--report", "report.html", "--junit", "out.xml")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1].startswith("PASS sovereign, steady: 5 of 5 assertions hold")
    assert re.search(r"1,7\d\d requests to 12 endpoints, 0 answered otherwise", done.stdout)
    assert "sovereign: " in lines[0] and " × (" in lines[0]  # what recording costs
    assert "PASS" in (tmp_path / "report.html").read_text("utf-8")
    cases = ET.parse(tmp_path / "out.xml").getroot().iter("testcase")
    assert not [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert (tmp_path / "traces" / "validate.trace").stat().st_mode & 0o777 == 0o600


def test_clean_server_passes_each_time(tmp_path):
    policies = load_all(validate.DEFAULT_POLICIES)
    for i in range(RUNS):
        validation = validate.validate([], policies, tmp_path / f"{i}.trace")
        assert validation.judgement.verdict == judge.PASS, validate.text(validation)


def test_sandboxed_server_passes_too(tmp_path):
    done = run(tmp_path, "--sandbox", "--isolated")
    assert done.returncode == 0, done.stdout + done.stderr


def test_server_in_python_stays_here_but_is_not_steady(tmp_path):
    done = run(tmp_path, "--no-native")
    assert done.returncode == 1
    assert "PASS          sovereign: nothing leaves" in done.stdout
    assert "FAIL          steady: two system calls a request" in done.stdout


def test_model_that_is_not_there_is_one_clear_line(tmp_path):
    done = run(tmp_path, "no-such.gguf")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1 and "no-such.gguf" in done.stderr


def test_trace_of_a_drive_that_went_wrong_proves_nothing(tmp_path):
    from tests.tracing.traces import Lines
    path = Lines().start().end().write(tmp_path / "a.trace")
    quiet = [policy('check = "calls"\nnever = ["connect"]')]
    assert validate.judged(path, quiet, Driven(), 0).verdict == judge.PASS
    assert validate.judged(path, quiet, Driven(wrong=["x"]), 0).verdict == judge.INCONCLUSIVE
    assert validate.judged(path, quiet, Driven(), 1).verdict == judge.INCONCLUSIVE


def test_drive_uses_every_endpoint(tmp_path):
    """Each path of the server's own OpenAPI document is asked, by each of its methods."""
    from tests import serving
    with serving.start(native=False) as server:
        driven = drive.drive(server.url)
        target = drive.Target(server.url)
    assert driven.endpoints == list(target.paths) and not driven.wrong
    asked = {exchange.what for exchange in drive.endpoints(target)}
    assert {f"GET {path}" for path, methods in target.paths.items() if "get" in methods} <= asked


@pytest.mark.parametrize("status", [0, 500])
def test_answer_that_was_not_expected_is_reported(status):
    driven = Driven()
    driven.count("it", status, (200,))
    assert driven.wrong == [f"it: answered {status or 'nothing'}, expected 200"]
