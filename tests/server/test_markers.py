"""Markers: which calls a traced server makes for them, that they make none otherwise, and what is opened by then."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from server import markers
from tests import serving
from tests.serving import predict_request, request
from tests.server import whole_load

NONCE = "0123456789abcdef"
FOLDER = f"/dev/null/testigo/v1/{NONCE}/"
LINE = re.compile(r'(\d+) +(?:<\.\.\. )?(\w+)[( ]')
OPENING = "open,openat,openat2,creat,execve,execveat,fork,vfork,clone,clone3,connect,socket,bind,listen"
MARKING = "access,faccessat,faccessat2"


class Call(NamedTuple):
    tid: int
    name: str
    text: str


class Traced(NamedTuple):
    server: serving.Server
    file: Path

    def calls(self) -> list[Call]:
        """All calls, once the server has ended; a call in two lines is one, where it began."""
        serving.wait_for(lambda: re.search(rf"^{self.server.pid} +\+\+\+ ", self.file.read_text(), re.M))
        lines = [line for line in self.file.read_text().splitlines() if " resumed>" not in line]
        return [Call(int(found[1]), found[2], line) for line in lines if (found := LINE.match(line))]

    def serving_calls(self) -> list[Call]:
        """Those after the marker of serving that are no markers."""
        calls = self.calls()
        first = next(i for i, call in enumerate(calls) if "phase=serving" in call.text)
        return [call for call in calls[first:] if FOLDER not in call.text]

    def marks(self) -> list[tuple[int, int, str]]:
        """(thread, number, text) of each marker, in the order of the trace."""
        found = [(call.tid, re.search(f'"{FOLDER}([^/]*)/([^"]*)"', call.text)) for call in self.calls()
                 if FOLDER in call.text]
        return [(tid, int(match[1]), match[2]) for tid, match in found]


@contextmanager
def traced(*args: str, native: bool, trace: str, folder: Path, nonce: str = NONCE) -> Iterator[Traced]:
    """A server that strace watches from its start; -D: the process that is started is the server, not strace."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", os.devnull, "true"]).returncode:
        pytest.skip("strace cannot trace here")
    file = folder / "trace"
    command = ("strace", "-D", "-f", "-s", "200", "--quiet=attach", "-o", file, "-e", f"trace={trace}",
               *serving.COMMAND)
    with serving.start(*args, native=native, command=command, env={markers.VARIABLE: nonce}) as server:
        yield Traced(server, file)


kinds = pytest.mark.parametrize("native", [True, False], ids=["native", "python"])


@kinds
def test_phases_come_in_order_and_numbers_without_gaps(native, tmp_path):
    with traced(native=native, trace=MARKING, folder=tmp_path) as run:
        run.server.ask(request("GET", "/health"))
        assert run.server.stop() == 0
        marks = run.marks()
    assert [text for _, _, text in marks if text.startswith("phase=")] == [f"phase={name}" for name in markers.PHASES]
    assert [number for _, number, _ in marks] == list(range(len(marks)))
    assert all("ENOTDIR" in call.text for call in run.calls() if FOLDER in call.text and "unfinished" not in call.text)


@kinds
def test_each_request_of_python_begins_and_ends_in_its_thread(native, tmp_path):
    with traced(native=native, trace=MARKING, folder=tmp_path) as run:
        whole_load.drive(run.server)
        with run.server.connect() as client:
            assert client.ask(request("GET", "/health", headers={"X-Request-Id": "my.id-1"})).status == 200
            assert client.ask(request("GET", "/health", headers={"X-Request-Id": "../no"})).status == 200
        assert run.server.stop() == 0
        marks = [(tid, text.removeprefix("req=")) for tid, _, text in run.marks() if text.startswith("req=")]
    by_thread = {tid: [text for other, text in marks if other == tid] for tid, _ in marks}
    for texts in by_thread.values():
        for begin, end in zip(texts[::2], texts[1::2]):
            assert begin.endswith("/begin") and end == begin.removesuffix("begin") + "end"
        assert len(texts) % 2 == 0
    names = [text.removesuffix("/begin") for _, text in marks if text.endswith("/begin")]
    assert "my.id-1" in names and all(markers.SAFE_ID.fullmatch(name) for name in names)
    assert not any("no" == name for name in names)


def test_python_path_marks_all_requests_and_the_hot_path_none(tmp_path):
    counts = {}
    for native in (True, False):
        folder = tmp_path / str(native)
        folder.mkdir()
        with traced(native=native, trace=MARKING, folder=folder) as run:
            with run.server.connect() as client:
                for _ in range(30):
                    assert client.ask(predict_request()).status == 200
            assert run.server.ask(request("GET", "/health")).status == 200
            assert run.server.ask(b"\0").status == 400
            assert run.server.stop() == 0
            counts[native] = sum(text.endswith("/begin") for _, _, text in run.marks())
    assert counts == {True: 2, False: 32}


@pytest.mark.parametrize("nonce", ["", "../../etc/passwd", "0123"])
def test_without_a_nonce_no_marker_is_made(nonce, tmp_path):
    with traced(native=False, trace=MARKING, folder=tmp_path, nonce=nonce) as run:
        whole_load.statuses(run.server)
        assert run.server.stop() == 0
        assert not any("testigo/v1" in call.text for call in run.calls())


@kinds
def test_nothing_is_opened_started_or_connected_while_serving_and_stopping(native, tmp_path):
    with traced(native=native, trace=f"{OPENING},{MARKING}", folder=tmp_path) as run:
        whole_load.drive(run.server)
        if not native:
            whole_load.crowd(run.server, 12)
        with run.server.connect() as idle, run.server.connect() as late:
            idle.ask(predict_request())
            whole_load.begin(late)
            run.server.process.terminate()
            serving.wait_for(lambda: "stopping" in run.server.stderr_text())
            assert whole_load.finish(late) == 200
        assert run.server.wait() == 0
        calls = run.serving_calls()
    # Without native code each connection has a thread. With it workers are there; only many slow clients need more.
    threads = [call for call in calls if call.name in ("clone", "clone3") and "CLONE_THREAD" in call.text]
    assert [call.text for call in calls if call not in threads] == []
    assert not (native and threads)


# --- without strace -----------------------------------------------------------------------------

@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that this process asks for, with markers wanted."""
    paths: list[str] = []
    monkeypatch.setattr(os, "access", lambda path, mode: paths.append(path))
    monkeypatch.setenv(markers.VARIABLE, NONCE)
    markers.wanted.cache_clear()
    yield paths
    markers.wanted.cache_clear()


def test_numbers_are_those_of_the_order_of_calls_over_threads(made):
    threads = [threading.Thread(target=lambda: [markers.end(markers.begin(None)) for _ in range(200)])
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(path.split("/")[-3]) for path in made] == list(range(8 * 400))
    assert len({path.split("/")[-2] for path in made}) == 8 * 200


@pytest.mark.parametrize(("given", "name"), [
    ("a-B_9.z", "a-B_9.z"), ("x" * 64, "x" * 64), ("x" * 65, "_0"), ("", "_0"), (None, "_0"), ("a/b", "_0"),
    ("a b", "_0"), ('a"', "_0"), ("\xe9", "_0"), ("a\n", "_0")])
def test_id_that_is_not_safe_in_a_path_is_replaced(made, given, name):
    assert markers.begin(given) == name
    assert made == [f"{FOLDER}0/req={name}/begin"]


def test_nothing_is_called_without_the_variable(made, monkeypatch):
    monkeypatch.delenv(markers.VARIABLE)
    markers.phase("startup")
    markers.end(markers.begin("a"))
    assert made == []
