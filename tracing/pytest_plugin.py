"""For pytest: a server under strace, and a test that fails when its system calls break a policy.

    @pytest.mark.syscalls(policy="sovereign")          # or a list; also models=[…], options=["--no-native"]
    def test_prediction_stays_here(traced_server):
        assert urlopen(f"{traced_server.url}/health").status == 200

The server is stopped and judged when the test's function has returned; anything but PASS fails the test, and says why.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

READY_S, STOP_S = 60.0, 20.0
OPTIONS = {"policy", "models", "options"}


class Wanted(NamedTuple):
    policies: list[str]
    models: list[str]
    options: list[str]


class TracedServer:
    """A running `python -m server`."""

    def __init__(self, recording: Any, url: str, policies: tuple):
        self._recording, self._policies = recording, policies
        self.url, self.pid, self.trace = url, recording.tracee, Path(recording.path)

    def judge(self) -> None:
        """Stop it and fail the test unless all policies hold."""
        from tracing import judge
        self._recording.send_signal(signal.SIGTERM)
        status = self._recording.wait(STOP_S)
        judgement = judge.judge(self.trace, self._policies)
        if status != 0:
            pytest.fail(f"the server ended with status {status}", pytrace=False)
        if judgement.verdict != judge.PASS:
            pytest.fail(judge.text(judgement), pytrace=False)


SERVER = pytest.StashKey[TracedServer]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "syscalls(policy='sovereign', models=(), options=()): what the test's"
                                       " traced_server may do; a policy is a name, a TOML file or a list of them")


def wanted(node: pytest.Item) -> Wanted:
    """What the test's marker asks for; pytest.UsageError names what it does not know."""
    marker = node.get_closest_marker("syscalls")
    given: dict[str, Any] = dict(marker.kwargs) if marker else {}
    if marker and marker.args:
        raise pytest.UsageError(f"syscalls takes {', '.join(sorted(OPTIONS))} by name")
    unknown = sorted(given.keys() - OPTIONS)
    if unknown:
        raise pytest.UsageError(f"syscalls has no {', '.join(unknown)}; it takes {', '.join(sorted(OPTIONS))}")
    policy = given.get("policy", "sovereign")
    return Wanted([policy] if isinstance(policy, str) else list(policy),
                  [str(model) for model in given.get("models", ())], list(given.get("options", ())))


@pytest.fixture
def traced_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TracedServer]:
    """A server under strace for one test, judged by its `syscalls` marker."""
    from tracing import preflight, record, validate  # on use: most runs of pytest that load this plugin don't need them
    from tracing.errors import TraceError
    from tracing.policy import load_all, profile_for
    asked = wanted(request.node)
    policies = load_all(asked.policies)
    try:
        preflight.prepare(profile_for(policies))
    except TraceError as reason:
        pytest.fail(f"nothing can be judged here: {reason}", pytrace=False)
    validate.compile_ahead(asked.models, asked.options)
    command = [sys.executable, "-m", "server", *asked.models, "--port", "0", *asked.options]
    with (tmp_path / "stderr").open("wb+") as stderr, record.start(
            command, profile=profile_for(policies), path=tmp_path / "server.trace", stdout=subprocess.PIPE,
            stderr=stderr, seccomp_bpf=validate.by_seccomp(asked.options)) as recording:
        server = TracedServer(recording, validate.wait_until_ready(recording, stderr), policies)
        request.node.stash[SERVER] = server
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """When the function has passed: what did its server do?"""
    result = yield
    server = pyfuncitem.stash.get(SERVER, None)
    if server is not None:
        server.judge()
    return result
