"""Every way out that `leaks/` tries makes `sovereign` FAIL or INCONCLUSIVE; so does damage to the evidence."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tracing import traces
from tests.tracing.leaks import FAIL, INCONCLUSIVE, LEAKS, NO_NAMESPACE, NOT_HERE, everything, interfaces
from tracing import judge, policy, record
from tracing.tracefile import FOOTER_MARK, TraceFile, Writer

STATUS = {FAIL: 1, INCONCLUSIVE: 2}
NAMESPACES = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
SOVEREIGN = [policy.load("sovereign")]

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing")


def isolated() -> list[str]:
    """How a command gets a network namespace of its own here."""
    for command in NAMESPACES:
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    pytest.skip("this user may not make network namespaces")


class Stage:
    """leaks/stage.py in its namespace."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([*isolated(), sys.executable, "-m", "tests.tracing.leaks.stage"], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def run(self, name: str, out: Path, **how: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"name": name, "out": str(out), **how}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def verdict(path: Path) -> str:
    return judge.judge(path, SOVEREIGN).verdict


# Leaks

def test_there_is_a_leak_for_every_way_out():
    assert len(LEAKS) >= 30
    assert everything.__all__ and {leak.verdict for leak in LEAKS.values()} == {FAIL, INCONCLUSIVE}


def caught(done: dict[str, Any], name: str, expected: str) -> None:
    if done["status"] == NOT_HERE or "not on this machine" in done["stderr"]:
        pytest.skip(done["stderr"].strip().splitlines()[0])
    assert f"attempted {name}" in done["stderr"], done["stderr"]
    said = (done["stdout"].splitlines() or [""])[-1]
    assert said.startswith(f"{expected} sovereign"), done["stdout"] + done["stderr"]
    assert done["status"] == STATUS[expected]


@pytest.mark.parametrize("name", LEAKS)
def test_leak_never_passes(stage, tmp_path, name):
    done = stage.run(name, tmp_path)
    caught(done, name, LEAKS[name].verdict)
    assert done["arrived"] or not LEAKS[name].arrives, "the leak did not work, so it was not tested"


@pytest.mark.parametrize("name", ["tcp6", "udp_sendmsg", "sendmmsg_hidden", "proxy_tcp", "forked_child", "unix_stream"])
def test_leak_never_passes_when_all_calls_are_traced(stage, tmp_path, name):
    caught(stage.run(name, tmp_path, options=["--profile", "full"]), name, LEAKS[name].verdict)


@pytest.mark.parametrize("name", ["connected_in_load", "netlink_of_load"])
def test_write_that_is_traced_is_seen(stage, tmp_path, name):
    done = stage.run(name, tmp_path, options=["--profile", "full"])
    assert done["status"] in STATUS.values() and "nothing leaves" in done["stdout"]


def test_leak_refuses_to_run_where_a_packet_could_leave():
    if interfaces() == ["lo"]:
        pytest.skip("no packet can leave here")
    done = subprocess.run([sys.executable, "-m", "tests.tracing.leaks", "tcp4"], capture_output=True, text=True)
    assert done.returncode == NO_NAMESPACE
    assert done.stderr.startswith("refused: this network namespace has interfaces besides lo")
    assert "attempted" not in done.stderr


def test_second_address_hidden_by_a_short_s_does_not_pass(stage, tmp_path):
    """A plain strace trace, and the same lines with a header that claims them for a recording."""
    done = stage.run("sendmmsg_second", tmp_path, how="strace", options=["-yy", "-s", "1", "-ttt", "-T"])
    assert done["arrived"]
    plain = tmp_path / "plain.trace"
    lines = plain.read_text().splitlines()
    assert any("sendmmsg" in line and "192.0.2.1" not in line and "...]" in line for line in lines)
    assert verdict(plain) == INCONCLUSIVE
    assert verdict(traces.write(tmp_path / "claimed.trace", lines, string_limit=1)) == INCONCLUSIVE


# Evidence

CLEAN = """
import os, threading
def mark(seq, what):
    os.access(f"/dev/null/testigo/v1/{os.environ['TESTIGO_TRACE']}/{seq}/{what}", os.F_OK)
mark(0, "phase=load")
open("/dev/null").close()
mark(1, "phase=serving")
worker = threading.Thread(target=lambda: open("/dev/null").close())
worker.start()
worker.join()
if os.fork() == 0:
    open("/dev/null").close()
    os._exit(0)
os.wait()
mark(2, "phase=shutdown")
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clean") / "clean.trace"
    with record.start([sys.executable, "-I", "-c", CLEAN], path=path) as recording:
        assert recording.wait() == 0
    return path


def mended(trace: Path, path: Path, change: Callable[[list[str]], None]) -> Path:
    """The trace with other lines, and a footer that fits them."""
    source = TraceFile.open(trace)
    lines = list(source.lines())
    before = list(lines)
    change(lines)
    assert lines != before
    assert source.header is not None
    with path.open("wb") as file:
        writer = Writer(file, source.header)
        writer.add(lines)
        writer.finish(0, True, 1.0)
    return path


def remove(part: str, nth: int = 0) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        del lines[[i for i, line in enumerate(lines) if part in line][nth]]
    return change


def insert(text: str) -> Callable[[list[str]], None]:
    return lambda lines: lines.insert(len(lines) // 2, text)


def test_whole_evidence_passes(clean, tmp_path):
    """What the damages below are damages of."""
    assert verdict(clean) == "PASS"
    assert verdict(mended(clean, tmp_path / "same", lambda lines: lines.insert(-1, lines[-2]))) == "PASS"


MENDED = {
    "exit line of the process lost": remove("+++ exited", -1),
    "exit line of the child lost": remove("+++ exited", 1),
    "exit line of the thread lost": remove("+++ exited", 0),
    "all exit lines lost": lambda lines: lines.__setitem__(slice(None), [line for line in lines if "+++" not in line]),
    "first marker lost": remove("/0/phase=load"),
    "middle marker lost": remove("/1/phase=serving"),
    "marker made twice": lambda lines: lines.insert(-3, next(line for line in lines if "/0/phase=load" in line)),
    "unknown line": insert("something else"),
    "unknown line of a thread": insert("4711 1700000000.000000001 what is this"),
    "empty line": insert(""),
    "line of binary rubbish": insert("\x01\x02\x03"),
    "nothing after the middle": lambda lines: lines.__delitem__(slice(len(lines) // 2, None)),
    "child never seen": lambda lines: lines.__setitem__(slice(None), without_child(lines)),
}


def without_child(lines: list[str]) -> list[str]:
    """Without the lines of the last process that was made."""
    child = [line for line in lines if "+++ exited" in line][1].split()[0]
    return [line for line in lines if not line.startswith(f"{child} ")]


@pytest.mark.parametrize("damage", MENDED)
def test_missing_evidence_does_not_pass_though_the_footer_fits(clean, tmp_path, damage):
    assert verdict(mended(clean, tmp_path / "damaged", MENDED[damage])) == INCONCLUSIVE


def cut(share: float) -> Callable[[bytes], bytes]:
    """In the middle of a line."""
    def damage(data: bytes) -> bytes:
        at = data.index(b"\n", int(len(data) * share)) + 20
        return data[:at]
    return damage


def cut_at_line_end(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[:data.index(b"\n", int(len(data) * share)) + 1]


def without_line(n: int) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        del lines[n]
        return b"".join(lines)
    return damage


FILES: dict[str, Callable[[bytes], bytes]] = {
    "cut in a line, early": cut(0.1), "cut in a line, late": cut(0.7),
    "cut at a line end, early": cut_at_line_end(0.1), "cut at a line end, late": cut_at_line_end(0.7),
    "without the header": without_line(0), "without the footer": without_line(-1),
    "without a line in the middle": without_line(20), "without the last exit line": without_line(-2),
    "a byte changed": lambda data: data.replace(b"O_RDONLY", b"O_RDONLX", 1),
    "something after the footer": lambda data: data + b"1 1.0 getpid() = 1 <0.1>\n",
    "two traces in one file": lambda data: data + data,
    "footer cut": lambda data: data[:data.index(FOOTER_MARK) + 30],
    "footer without its newline": lambda data: data[:-1],
    "lines twice": lambda data: data.replace(data.splitlines(keepends=True)[9], 2 * data.splitlines(keepends=True)[9]),
    "with CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "a strace killed, says the footer": lambda data: data.replace(b'"recorded": true', b'"recorded": false'),
}


@pytest.mark.parametrize("damage", FILES)
def test_damaged_file_does_not_pass(clean, tmp_path, damage):
    data, damaged = clean.read_bytes(), tmp_path / "damaged.trace"
    damaged.write_bytes(FILES[damage](data))
    assert damaged.read_bytes() != data
    assert verdict(damaged) == INCONCLUSIVE


def test_cut_anywhere_never_passes(clean, tmp_path):
    data, path = clean.read_bytes(), tmp_path / "cut.trace"
    first_call, end = data.index(b" = 0 <"), len(data) - 1
    for at in [*range(first_call + 40, end, (end - first_call) // 40), *range(end - 40, end)]:
        path.write_bytes(data[:at])
        assert verdict(path) == INCONCLUSIVE, at


# Killed while recording

WAITING = "import os, signal; os.write(1, b'begun'); signal.pause(); os.write(1, b'went on')"
WAITS = [sys.executable, "-I", "-S", "-c", WAITING]


def start_waiting(path: Path) -> record.Recording:
    recording = record.start(WAITS, path=path, stdout=subprocess.PIPE)
    assert recording.stdout is not None and recording.stdout.read(5) == b"begun"
    return recording


def strace_of(recording: record.Recording) -> psutil.Process:
    strace = psutil.Process(recording.tracee).parent()
    assert strace is not None and strace.name() == "strace"
    return strace


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV], ids=lambda sent: sent.name)
def test_killed_strace_does_not_pass(tmp_path, sent):
    path = tmp_path / "killed.trace"
    with start_waiting(path) as recording:
        strace_of(recording).send_signal(sent)
        recording.wait()
    assert verdict(path) == INCONCLUSIVE


def test_killed_guard_does_not_pass(tmp_path):
    path = tmp_path / "killed.trace"
    with start_waiting(path) as recording:
        guard = strace_of(recording).parent()
        assert guard is not None
        guard.kill()
        recording.wait()
    assert verdict(path) == INCONCLUSIVE


def test_killed_recorder_does_not_pass(tmp_path):
    recorder = subprocess.Popen([sys.executable, "-m", "tracing", "run", "--out", str(tmp_path), "--", *WAITS], stdout=subprocess.PIPE)
    assert recorder.stdout is not None
    with recorder.stdout:
        assert recorder.stdout.read(5) == b"begun"
        recorder.kill()
        recorder.wait()
        assert recorder.stdout.read() == b"", "the program went on, untraced"
    assert verdict(only(tmp_path)) == INCONCLUSIVE


def only(folder: Path) -> Path:
    [path] = folder.glob("*.trace")
    return path
