"""The pytest plugin: a test fails by what its server did."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing")
ROOT = Path(__file__).resolve().parents[2]


def run_tests(folder: Path, text: str) -> str:
    """What pytest says about a test file of its own."""
    (folder / "test_it.py").write_text("from urllib.request import urlopen\nimport pytest\n" + text)
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "test_it.py"], cwd=folder,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return done.stdout + done.stderr


@pytest.mark.syscalls(policy="sovereign")
def test_health_stays_on_this_machine(traced_server):
    assert urlopen(f"{traced_server.url}/health").status == 200


def test_server_without_a_marker_is_held_to_sovereign(traced_server):
    assert urlopen(f"{traced_server.url}/ready").status == 200
    assert traced_server.trace.exists()


def test_broken_policy_fails_the_test_with_its_reason(tmp_path):
    (tmp_path / "no_accept.toml").write_text(
        'name = "no-accept"\nprofile = "sovereign"\n[[assert]]\nname = "nobody is let in"\ncheck = "calls"\nnever = ["accept4"]\n')
    said = run_tests(tmp_path, """
@pytest.mark.syscalls(policy="no_accept.toml", options=["--no-native"])
def test_it(traced_server):
    urlopen(traced_server.url + "/health").read()
""")
    assert "1 failed" in said and "nobody is let in" in said and "accept4 is not allowed" in said


def test_failing_test_is_not_judged(tmp_path):
    said = run_tests(tmp_path, """
@pytest.mark.syscalls(options=["--no-native"])
def test_it(traced_server):
    assert 1 == 2
""")
    assert "1 failed" in said and "assert 1 == 2" in said


@pytest.mark.parametrize("marker, message", [
    ("policies='x'", "syscalls has no policies; it takes models, options, policy"),
    ("'sovereign'", "by name"),
    ("policy='nonsense'", "expected one of readonly, sovereign, steady"),
])
def test_marker_that_is_not_understood_is_an_error(tmp_path, marker, message):
    said = run_tests(tmp_path, f"@pytest.mark.syscalls({marker})\ndef test_it(traced_server):\n    pass\n")
    assert "1 error" in said and message in said
