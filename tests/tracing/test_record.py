"""Recording with the real strace: what is on disk, what is passed on, and that nothing outlives a recording."""

import contextlib
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tracing import inherited, preflight, record
from tracing.errors import TraceError
from tracing.tracefile import TraceFile

PATIENCE_S = 20
PIPE = subprocess.PIPE
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# A tracee with a child, and a grandchild of its own session whose parent is gone; none ends when asked to.
FAMILY = """
    import os, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    begun, begins = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            os.write(1, b"%d\\n" % os.getpid())
            os.write(begins, b".")
            signal.pause()
        os._exit(0)
    os.wait()
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())
        os.write(begins, b".")
        signal.pause()
    os.read(begun, 1), os.read(begun, 1)
    os.write(1, b"%d\\n" % os.getpid())
    signal.pause()
"""
ECHO = """
    import sys
    print("ready", flush=True)
    for line in sys.stdin:
        print(line, end="", flush=True)
    sys.exit(3)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)]


def strace_of(recording: record.Recording) -> int:
    """The tracer of a tracee."""
    return int(re.search(r"TracerPid:\s*(\d+)", Path(f"/proc/{recording.tracee}/status").read_text())[1])


def lines_of(path: Path) -> tuple[TraceFile, list[str]]:
    trace = TraceFile.open(path)
    return trace, list(trace.lines())


class Handles:
    """Processes that a test waits for, safe against their numbers being given again."""

    def __init__(self, pids: list[int]):
        self.handles = [os.pidfd_open(pid) for pid in pids]

    def ended(self, timeout: float = PATIENCE_S) -> bool:
        return all(select.select([handle], [], [], timeout)[0] for handle in self.handles)

    def close(self) -> None:
        for handle in self.handles:
            os.close(handle)


@contextmanager
def family(stdout) -> Iterator[Handles]:
    """The three processes that FAMILY tells of."""
    handles = Handles([int(stdout.readline()) for _ in range(3)])
    try:
        yield handles
    finally:
        handles.close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.trace"


@pytest.fixture
def echo() -> Iterator[subprocess.Popen]:
    """A process that runs already, and answers on a pipe."""
    with subprocess.Popen(python(ECHO), stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def answers(process: subprocess.Popen) -> bool:
    process.stdin.write("hello\n")
    process.stdin.flush()
    return process.stdout.readline() == "hello\n"


# What is passed on

@pytest.mark.parametrize("profile", preflight.PROFILES)
@pytest.mark.parametrize(("code", "status"), [
    ("pass", 0), ("raise SystemExit(7)", 7), ("raise SystemExit(255)", 255),
    ("import os; os.kill(os.getpid(), 15)", 143), ("import os; os.kill(os.getpid(), 9)", 137),
    ("import os, signal, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()", 134),
])
def test_exit_status_is_the_tracees(path, profile, code, status):
    with record.start(python(code), profile=profile, path=path) as recording:
        assert recording.wait(PATIENCE_S) == status
    trace, lines = lines_of(path)
    assert trace.footer.recorded and not trace.torn and not trace.damaged
    assert lines[-1].startswith(f"{recording.tracee} ") and "+++ " in lines[-1]


def test_header_says_how_it_was_recorded(path):
    command = python("import os; print(os.environ['TESTIGO_TRACE'])")
    with record.start(command, path=path, stdout=PIPE) as recording:
        nonce = recording.stdout.read().decode().strip()
        recording.wait(PATIENCE_S)
    header = TraceFile.open(path).header
    assert header == recording.header
    assert re.fullmatch("[0-9a-f]{16}", nonce) and header.nonce == nonce
    assert header.command == tuple(command) and header.tracee == recording.tracee
    assert header.profile == "sovereign" and header.seccomp_bpf and not header.attached
    assert "%net" in header.traced and header.inherited == ()
    assert header.options[-1] == f"trace={','.join(header.traced)}"


def test_seccomp_bpf_can_be_left_out(path):
    with record.start(["true"], path=path, seccomp_bpf=False) as recording:
        assert recording.wait(PATIENCE_S) == 0
    assert not recording.header.seccomp_bpf and "--seccomp-bpf" not in recording.header.options


def test_environment_folder_and_nonce_are_given(path, tmp_path):
    code = "import os; print(os.environ['A'], os.environ['TESTIGO_TRACE'], os.getcwd())"
    with record.start(python(code), path=path, env={"A": "b"}, cwd=str(tmp_path), nonce="0" * 16,
                      stdout=PIPE) as recording:
        assert recording.stdout.read().decode().split() == ["b", "0" * 16, str(tmp_path)]


def test_tracee_has_a_process_group_of_its_own(path):
    with record.start(python("import os; print(os.getpgid(0))"), path=path, stdout=PIPE) as recording:
        assert int(recording.stdout.read()) != os.getpgid(0)


@pytest.mark.parametrize("number", HANDLED)
def test_signal_goes_to_the_tracee_alone(path, number):
    code = f"""
        import signal, sys
        for number in {[int(n) for n in HANDLED]}:
            signal.signal(number, lambda n, frame: sys.exit(n))
        print("ready", flush=True)
        signal.pause()
    """
    with record.start(python(code), path=path, stdout=PIPE) as recording:
        recording.stdout.readline()
        recording.send_signal(number)
        assert recording.wait(PATIENCE_S) == number
    assert recording.footer.recorded


def test_signal_after_the_tracee_goes_to_what_it_left(path):
    code = """
        import os, select, signal
        tracee = os.pidfd_open(os.getpid())
        if os.fork():
            os._exit(4)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(5))
        select.select([tracee], [], [])
        print("ready", flush=True)
        signal.pause()
    """
    with record.start(python(code), path=path, stdout=PIPE) as recording:
        recording.stdout.readline()
        with pytest.raises(TimeoutError):
            recording.wait(0)
        recording.send_signal(signal.SIGTERM)
        assert recording.wait(PATIENCE_S) == 4
    trace, lines = lines_of(path)
    assert sum("+++ exited with" in line for line in lines) == 2 and trace.footer.recorded


# Nothing outlives a recording

@pytest.mark.parametrize("profile", preflight.PROFILES)
def test_leaving_ends_all_processes_and_the_trace_is_whole(path, profile):
    with record.start(python(FAMILY), profile=profile, path=path, stdout=PIPE) as recording:
        with family(recording.stdout) as processes:
            recording.stop()
            assert processes.ended()
    assert recording.wait() == 137
    trace, lines = lines_of(path)
    assert sum("+++ killed by SIGKILL +++" in line for line in lines) == 3
    assert trace.footer.recorded and not trace.torn


@pytest.mark.parametrize("profile", preflight.PROFILES)
def test_killed_strace_ends_the_tracees_and_the_footer_says_so(path, profile):
    with record.start(python(FAMILY), profile=profile, path=path, stdout=PIPE) as recording:
        with family(recording.stdout) as processes:
            os.kill(strace_of(recording), signal.SIGKILL)
            assert processes.ended()
        assert recording.wait(PATIENCE_S) == 137
    trace, lines = lines_of(path)
    assert lines and not trace.damaged
    assert not trace.footer.recorded and trace.footer.strace_status == -signal.SIGKILL


def test_killed_guard_ends_the_tracees_and_the_footer_says_so(path):
    with record.start(python(FAMILY), path=path, stdout=PIPE) as recording:
        with family(recording.stdout) as processes:
            os.kill(psutil.Process(strace_of(recording)).ppid(), signal.SIGKILL)
            assert recording.wait(PATIENCE_S) == 137
            assert processes.ended()
    assert not TraceFile.open(path).damaged and not recording.footer.recorded


def test_killed_recorder_leaves_no_process_and_no_fifo(tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = [sys.executable, "-m", "tracing", "run", "--out", str(tmp_path), "--", *python(FAMILY)]
    with subprocess.Popen(command, stdout=PIPE, env={**os.environ, "TMPDIR": str(folder)}) as recorder:
        with family(recorder.stdout) as processes:
            recorder.kill()
            assert processes.ended()
        assert recorder.stdout.read() == b""  # the guard and strace held it, too
    trace, _ = lines_of(next(tmp_path.glob("*.trace")))
    assert trace.header is not None and trace.footer is None
    assert list(folder.iterdir()) == []


def test_trace_that_cannot_be_written_ends_the_tracee(path, monkeypatch):
    def fail(line: str) -> str:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(record, "redact", fail)
    with pytest.raises(TraceError, match="No space left"):
        with record.start(["sleep", "1000"], path=path) as recording:
            recording.wait(PATIENCE_S)


# On disk

def test_file_and_folder_are_private_and_named_after_the_tracee(tmp_path):
    out = tmp_path / "new" / "traces"
    with record.start(["true"], out=out) as recording:
        recording.wait(PATIENCE_S)
    assert recording.path == out / f"true-{recording.tracee}.trace"
    assert stat.S_IMODE(recording.path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (out, out.parent)} == {0o700}
    assert list(out.iterdir()) == [recording.path]


def test_file_that_was_there_becomes_private(path):
    path.write_text("x" * 10_000)
    path.chmod(0o644)
    with record.start(["true"], path=path) as recording:
        recording.wait(PATIENCE_S)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not lines_of(path)[0].damaged


def test_name_that_is_taken_gets_a_number(tmp_path):
    for name in ("a-1.trace", "a-1-2.trace"):
        (tmp_path / name).touch()
    output = record.Output(None, tmp_path, "a")
    assert output.name_after(1).name == "a-1-3.trace"
    output.file.close()


@pytest.mark.parametrize("profile", preflight.PROFILES)
def test_payload_is_not_on_disk(path, profile):
    code = """
        import os, socket, sys
        secret = sys.argv[1].encode()[::-1]
        a, b = socket.socketpair()
        a.send(secret); b.recv(99); a.sendmsg([secret, secret]); b.recvmsg(99)
        os.write(1, secret)
    """
    with record.start([*python(code), "terces-pot"], profile=profile, path=path, stdout=PIPE) as recording:
        assert recording.stdout.read() == b"top-secret"
    _, lines = lines_of(path)
    assert any('sendto(' in line for line in lines) and any('sendmsg(' in line for line in lines)
    assert b"top-secret" not in path.read_bytes()


def test_no_trace_is_left_where_nothing_was_recorded(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF of no machine")
    program.chmod(0o700)
    with pytest.raises(TraceError, match=r"cannot execute .*program: Exec format error"):
        record.start([str(program)], out=tmp_path / "traces", stderr=subprocess.DEVNULL)
    assert list((tmp_path / "traces").iterdir()) == []


# What was open before

def test_standard_descriptors_that_are_sockets_are_recorded(path):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        ends = [f"{host}:{port}" for host, port in (server.getsockname(), server.getpeername())]
        with server, record.start(["true"], path=path, stdin=server, stdout=server, stderr=client) as recording:
            recording.wait(PATIENCE_S)
    given = [(each.pid, each.fd, each.kind, each.detail) for each in TraceFile.open(path).header.inherited]
    there, back = "TCP {} -> {} ESTABLISHED".format(*ends), "TCP {1} -> {0} ESTABLISHED".format(*ends)
    assert given == [(recording.tracee, fd, "socket", detail) for fd, detail in enumerate((there, there, back))]


def test_plain_files_pipes_and_the_null_device_are_not(path, tmp_path):
    with open(tmp_path / "file", "wb") as file:
        with record.start(["true"], path=path, stdin=subprocess.DEVNULL, stdout=file, stderr=PIPE) as recording:
            recording.wait(PATIENCE_S)
    assert recording.header.inherited == ()


def test_descriptors_of_a_process(tmp_path):
    name = str(tmp_path / "s")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener, socket.socket(socket.AF_UNIX) as local, \
            socket.socket(type=socket.SOCK_DGRAM) as datagrams, tempfile.TemporaryFile() as file:
        local.bind(name)
        datagrams.bind(("127.0.0.1", 0))
        found = {each.fd: each for each in inherited.of_processes([os.getpid(), 2 ** 22 + 1])}
        assert found[listener.fileno()].detail == f"TCP [::1]:{listener.getsockname()[1]} LISTEN"
        assert found[local.fileno()].detail == f"UNIX {name}"
        assert found[datagrams.fileno()].detail == f"UDP 127.0.0.1:{datagrams.getsockname()[1]}"
        assert found[file.fileno()].kind == "file"


# Attaching

def test_attached_process_goes_on_after_it(path, echo):
    with record.attach(echo.pid, profile="full", path=path) as recording:
        assert answers(echo)
    assert answers(echo)
    trace, lines = lines_of(path)
    assert trace.header.attached and not trace.header.seccomp_bpf and trace.header.tracee == echo.pid
    assert trace.footer.recorded and trace.footer.strace_status == -signal.SIGINT
    assert {(each.fd, each.kind) for each in trace.header.inherited} >= {(0, "pipe"), (1, "pipe")}
    assert any(" read(0<pipe:" in line for line in lines) and lines[-1].endswith("<detached ...>")
    assert recording.wait() == 0
    echo.stdin.close()
    assert echo.wait(PATIENCE_S) == 3


def test_children_and_threads_are_attached_too(path):
    code = """
        import os, signal, threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        if os.fork() == 0:
            signal.pause()
        print("ready", flush=True)
        signal.pause()
    """
    with subprocess.Popen(python(code), stdout=PIPE) as process:
        process.stdout.readline()
        child = psutil.Process(process.pid).children()[0]
        with record.attach(process.pid, path=path) as recording:
            threads = [*Path(f"/proc/{process.pid}/task").iterdir(), *Path(f"/proc/{child.pid}/task").iterdir()]
            tracers = {record._tracer(thread / "status") for thread in threads}
            assert len(threads) >= 3 and tracers == {strace_of(recording)}
        assert {each.pid for each in recording.header.inherited} == {process.pid, child.pid}
        assert not any(record._tracer(thread / "status") for thread in threads)
        child.kill()
        process.kill()


def test_end_of_the_attached_process_ends_the_recording(path, echo):
    with record.attach(echo.pid, path=path) as recording:
        echo.stdin.close()
        assert recording.wait(PATIENCE_S) == 0
    trace, lines = lines_of(path)
    assert trace.footer.recorded and lines[-1].endswith("+++ exited with 3 +++")
    assert echo.wait(PATIENCE_S) == 3


def test_killed_strace_lets_the_attached_process_go_on(path, echo):
    with record.attach(echo.pid, path=path) as recording:
        os.kill(strace_of(recording), signal.SIGKILL)
        recording.wait(PATIENCE_S)
        assert answers(echo)
    assert not recording.footer.recorded


def test_killed_recorder_lets_the_attached_process_go_on(tmp_path, echo):
    code = f"""if True:
        import sys
        from tracing import record
        with record.attach({echo.pid}, out={str(tmp_path)!r}):
            print("attached", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as recorder:
        assert recorder.stdout.readline() == b"attached\n"
        assert record._tracer(Path(f"/proc/{echo.pid}/status"))
        recorder.kill()
        recorder.stdout.read()  # until the guard has ended
        assert not record._tracer(Path(f"/proc/{echo.pid}/status"))
    assert answers(echo)


def test_attaching_twice_says_who_traces(path, echo, tmp_path):
    with record.attach(echo.pid, path=path):
        expected = rf"cannot attach to process {echo.pid}: .*\(process \d+ traces it already\)"
        with pytest.raises(TraceError, match=expected):
            record.attach(echo.pid, path=tmp_path / "b.trace")
        assert answers(echo)
    assert not (tmp_path / "b.trace").exists()


def test_marker_nonce_of_an_attached_process(path):
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, "TESTIGO_TRACE": "ab" * 8}) as process:
        with record.attach(process.pid, path=path) as recording:
            pass
        process.kill()
    assert recording.header.nonce == "ab" * 8


def test_attaching_to_itself_or_nothing_is_refused(path):
    for pid in (os.getpid(), os.getppid()):
        with pytest.raises(TraceError, match="cannot record itself"):
            record.attach(pid, path=path)
    for pid in (2 ** 22 + 1, 2 ** 80, -1):
        with pytest.raises(TraceError, match="no such process"):
            record.attach(pid, path=path)


# Preflight

def shell(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a shell script in front of a program of that name."""
    def put(name: str, text: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return shell(folder / name, text)
    return put


def test_shim_in_front_of_python_is_looked_through(path, fake):
    fake("python3", f'exec "{sys.executable}" "$@"')
    with record.start(["python3", "-c", "raise SystemExit(9)"], path=path) as recording:
        assert recording.wait(PATIENCE_S) == 9
    assert recording.header.command == (sys.executable, "-c", "raise SystemExit(9)")
    assert f'execve("{sys.executable}", ' in lines_of(path)[1][0]


def test_python_of_a_virtual_environment_stays_the_link_that_it_is():
    assert preflight.resolve([sys.executable, "-V"]) == (sys.executable, "-V")


def test_other_scripts_are_started_as_they_are(tmp_path):
    script = shell(tmp_path / "server", "true")
    assert preflight.resolve([script, "a"]) == (script, "a")


@pytest.mark.parametrize("text", ["exit 1", "echo", 'echo "$0"'])
def test_shim_that_leads_nowhere(fake, text):
    fake("python3", text)
    with pytest.raises(TraceError, match="does not lead to a Python"):
        preflight.resolve(["python3"])


def test_commands_that_cannot_run(tmp_path):
    (tmp_path / "text").write_text("hello")
    os.chmod(shell(tmp_path / "locked", "true"), 0o600)
    (tmp_path / "no interpreter").write_text("#!/no/such/shell\n")
    (tmp_path / "no interpreter").chmod(0o755)
    for command, expected in (([], "no command"), ([""], "no command"), (["no-such-program"], "no such command"),
                              (["./locked"], "Permission denied"), (["./no interpreter"], "/no/such/shell"),
                              (["/tmp"], "it is a folder"), (["./text"], "Permission denied"),
                              (["./missing"], "no such command: ./missing")):
        with pytest.raises(TraceError, match=expected) as error:
            preflight.resolve(command, cwd=str(tmp_path))
        assert "\n" not in str(error.value)


def test_no_strace(monkeypatch, path):
    monkeypatch.setenv("PATH", "/no/such/folder")
    with pytest.raises(TraceError, match="strace is not in PATH; install it"):
        record.start([sys.executable], path=path)
    assert not path.exists()


def test_no_permission_to_trace(fake, path):
    fake("strace", '[ "$1" = --version ] && echo "strace -- version 6.1" && exit\n'
         'echo "$0: ptrace(PTRACE_TRACEME, ...): Operation not permitted" >&2; exit 1')
    expected = r"strace 6.1 cannot trace here \(ptrace.*Operation not permitted\): allow ptrace"
    with pytest.raises(TraceError, match=expected):
        record.start(["true"], path=path)


def test_strace_that_is_killed_in_preflight_leaves_nothing(fake, tmp_path):
    fake("strace", '[ "$1" = --version ] && echo "strace -- version 6.1" && exit\n'
         f'sleep 1000 & echo $! > {tmp_path}/child; kill -9 $$')
    with pytest.raises(TraceError, match=r"cannot trace here \(status -9\)"):
        preflight.prepare("full")
    with contextlib.suppress(ProcessLookupError):
        handles = Handles([int((tmp_path / "child").read_text())])
        assert handles.ended()
        handles.close()


def test_program_that_is_no_strace(fake):
    fake("strace", "exit 0")
    with pytest.raises(TraceError, match="does not say its version"):
        preflight.prepare("full")


def test_no_permission_to_attach(path, echo):
    """As root: without the capability, for it is by that alone that root may trace a process with more of them."""
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"] if os.geteuid() == 0 else []
    pid = echo.pid if drop else 1
    out = path.parent / "out"
    command = [*drop, sys.executable, "-m", "tracing", "attach", str(pid), "--seconds", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 3 and done.stdout == ""
    expected = rf"tracing: error: cannot attach to process {pid}: Operation not permitted \(.*\)\n"
    assert re.fullmatch(expected, done.stderr)
    assert list(out.iterdir()) == []


def test_calls_that_this_strace_does_not_know_are_marked(fake):
    """An old strace: one that does not know two of the names."""
    fake("strace", f"""
        case " $*" in
            *[=,]splice,*) echo "strace: invalid system call 'splice'" >&2; exit 1;;
            *[=,]close_range,*) echo "strace: invalid system call 'close_range'" >&2; exit 1;;
        esac
        exec {preflight.shutil.which("strace")} "$@" """)
    strace = preflight.prepare("sovereign")
    assert {name for name in strace.traced if name.startswith("?")} == {"?splice", "?close_range"}


def test_kernel_without_seccomp_filters(fake):
    fake("strace", f"""
        case " $*" in *--seccomp-bpf*) echo "strace: {preflight.NO_SECCOMP}" >&2;; esac
        exec {preflight.shutil.which("strace")} "$@" """)
    assert not preflight.prepare("sovereign").seccomp_bpf


def test_unknown_profile():
    with pytest.raises(TraceError, match="expected one of: sovereign, full"):
        preflight.prepare("half")


@pytest.mark.parametrize("load", record.LOADS)
def test_overhead_is_measured_in_pairs(load):
    cost = record.overhead("sovereign", load)
    assert 0 < cost.lowest <= cost.median <= cost.highest and cost.what
