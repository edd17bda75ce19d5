"""Recording: runs a command under strace, or attaches to a process, and writes a private, redacted trace file.

    with record.start(["python", "-m", "server"], path="server.trace") as recording:
        ...                                       # recording.tracee, .send_signal(), .wait()
    # here everything that was started has ended, and the trace has its footer

strace writes into a FIFO, a thread reads it, `redact` takes the payload out, and only then is it on disk.

The rule to keep: nothing of a recording outlives it, whoever is killed (see guard.py), and `recorded` in the footer is
True only where strace saw everything to its end.

Source: strace(1), fifo(7), pidfd_send_signal(2).
"""

import contextlib
import dataclasses
import fcntl
import itertools
import os
import platform
import re
import secrets
import select
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Self

import psutil

from tracing import guard, inherited, preflight
from tracing.errors import TraceError
from tracing.preflight import Strace
from tracing.redact import redact
from tracing.tracefile import VERSION, Footer, Header, Inherited, Thread, Writer

NONCE_VARIABLE = "TESTIGO_TRACE"
BLOCK_BYTES = 1 << 20  # also asked for as the size of the FIFO, so that strace seldom waits for us
KILLED = 128 + signal.SIGKILL
ATTACH_ROUNDS = 5  # processes that fork while strace attaches are looked for again
START_SLACK_NS = 1_500_000_000  # the start of a process is known from the second in which the machine booted
FIRST_STOPS_MS = 100  # for strace to have stopped each thread once, before descriptors are listed

FAILED_EXECVE = re.compile(rb"\d+ +\S+ execve\(.*\) = -1 \w+ \((.*?)\)")
SEIZED = re.compile(r"\S*strace: Process (\d+) attached")
NOT_SEIZED = re.compile(r"\S*strace: attach: ptrace\(\w+, (\d+)\): (.*)")
CHATTER = re.compile(r"\S*strace: Process \d+ (?:attached|detached)")


class Pipes:
    """What a recording reads: strace's FIFO and the guard's socket. `ended` is what the guard said at the end."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="testigo-trace-")  # 0700
        self.fifo_path = os.path.join(self.folder.name, "strace")
        os.mkfifo(self.fifo_path, 0o600)
        self.fifo = os.open(self.fifo_path, os.O_RDONLY | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # over the user's limit: a smaller one works too
            fcntl.fcntl(self.fifo, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
        self.control, self.guards_end = socket.socketpair()
        self.strace_pid = 0
        self.ended: tuple[int, int] | None = None  # strace's status, processes left
        self._said = ""

    def close(self) -> None:
        os.close(self.fifo)
        self.control.close()
        self.guards_end.close()
        self.folder.cleanup()

    def wait_for_strace(self) -> None:
        """Until the guard has said which process strace is."""
        while not self.strace_pid and self._listen():
            pass

    def blocks(self) -> Iterator[bytes]:
        """What strace writes, until it and the guard have ended."""
        poll = select.poll()
        poll.register(self.fifo, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        open_ends = {self.fifo, self.control.fileno()}
        while self.control.fileno() in open_ends:
            ready = dict(poll.poll())
            yield from self._drain()
            for fd in self._closed(ready):
                poll.unregister(fd)
                open_ends.discard(fd)
        if self.ended is None and self.fifo in open_ends:
            select.select([self.fifo], [], [], guard.PATIENCE_MS / 1000)  # the guard was killed, strace dies with it
        yield from self._drain()

    def _closed(self, ready: dict[int, int]) -> list[int]:
        closed = [self.fifo] if ready.get(self.fifo) == select.POLLHUP else []  # nothing more is in it
        if self.control.fileno() in ready and not self._listen():
            closed.append(self.control.fileno())
        return closed

    def _drain(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self.fifo, BLOCK_BYTES):
                yield block

    def _listen(self) -> bool:
        """Take what the guard says; False at its end."""
        try:
            data = self.control.recv(4096)
        except OSError:
            data = b""
        *lines, self._said = (self._said + data.decode()).split("\n")
        for word, *numbers in map(str.split, lines):
            if word == "strace":
                self.strace_pid = int(numbers[0])
            elif word == "end":
                self.ended = int(numbers[0]), int(numbers[1])
        return bool(data)


class Output:
    """The trace file: private, and named when the tracee is known."""

    def __init__(self, path: Path | None, folder: Path, program: str):
        self.path, self._wanted, self._program = path, path is not None, program
        try:
            if path is None:
                make_private(folder)
                fd, name = tempfile.mkstemp(".trace", f"{program}-", folder)  # 0600
                self.path = folder / Path(name).name
            else:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                os.fchmod(fd, 0o600)  # it may have been there
        except OSError as error:
            raise TraceError(f"cannot write the trace: {error.filename or path}: {error.strerror}") from None
        self.file: BinaryIO = open(fd, "wb")

    def name_after(self, pid: int) -> Path:
        assert self.path is not None
        if not self._wanted:
            again = itertools.chain([""], map("-{}".format, itertools.count(2)))  # numbers of processes come back
            paths = (self.path.with_name(f"{self._program}-{pid}{more}.trace") for more in again)
            self.path = self.path.rename(next(path for path in paths if not path.exists()))
        return self.path

    def discard(self) -> None:
        self.file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """Create the folder and its parents, where missing, for this user alone."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(0o700, exist_ok=True)


class Recording:
    """A recording that runs. Leaving the `with` ends what was started (or lets go of what was attached to)."""

    def __init__(self, pipes: Pipes, process: subprocess.Popen[bytes], output: Output, header: Header,
                 blocks: Iterator[bytes], first: bytes = b""):
        self.header, self.path, self.tracee = header, output.name_after(header.tracee), header.tracee
        self.stdout: IO[bytes] | None = process.stdout  # where subprocess.PIPE was asked for
        self.stderr: IO[bytes] | None = None if header.attached else process.stderr
        self.footer: Footer | None = None
        self._pipes, self._process, self._output, self._blocks = pipes, process, output, blocks
        self._started = time.monotonic()
        self._exit = re.compile(rb"^%d +\S+ \+\+\+ (?:exited with (\d+)|killed by (\w+))" % header.tracee, re.MULTILINE)
        self._exited: int | None = None  # the tracee's exit status
        self._signalled = False  # … was death by a signal
        self._rest = first
        self._error: BaseException | None = None
        self._tracee = None if header.attached else _handle(header.tracee, pipes)
        self._reader = threading.Thread(target=self._record, name="trace reader", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._reader.join()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        if self._tracee is not None:
            os.close(self._tracee)
            self._tracee = None
        if self._error is not None and exception[1] is None:
            raise self._failure()

    def stop(self) -> None:
        """Ask the guard to end what was started, or strace to let go of what it is attached to."""
        with contextlib.suppress(OSError):  # it is over already
            self._pipes.control.shutdown(socket.SHUT_WR)

    def send_signal(self, number: int) -> None:
        """To the tracee; when that has ended, to the processes that it left behind."""
        if self._tracee is not None and not select.select([self._tracee], [], [], 0)[0]:  # readable: it has ended
            with contextlib.suppress(ProcessLookupError):
                return signal.pidfd_send_signal(self._tracee, number)
        with contextlib.suppress(OSError):  # all has ended
            self._pipes.control.send(f"signal {int(number)}\n".encode())

    def wait(self, timeout: float | None = None) -> int:
        """Until all tracees have ended: the exit status of the first, 128+N where signal N ended it; 0 if attached.

        Raises TimeoutError, and TraceError where the trace could not be written.
        """
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise TimeoutError(f"process {self.tracee} still runs after {timeout} s")
        if self._error is not None:
            raise self._failure()
        if self.header.attached:
            return 0
        return KILLED if self._exited is None else self._exited

    def _failure(self) -> TraceError:
        return TraceError(f"{self.path}: the trace could not be written: {self._error}")

    # The reader's thread

    def _record(self) -> None:
        try:
            with self._output.file as file:
                writer = Writer(file, self.header)
                torn = self._write_lines(writer)
                self.footer = self._write_footer(writer, torn)
        except BaseException as error:
            self._error = error
            self.stop()
        finally:
            self._process.wait()
            self._pipes.close()

    def _write_lines(self, writer: Writer) -> bool:
        for block in itertools.chain([b""], self._blocks):
            whole, newline, self._rest = (self._rest + block).rpartition(b"\n")
            if newline:
                self._look_for_exit(whole)
                writer.add([redact(line) for line in _text(whole).split("\n")])
        if self._rest:
            writer.add([redact(_text(self._rest))])
        return bool(self._rest)

    def _look_for_exit(self, lines: bytes) -> None:
        for found in self._exit.finditer(lines):
            self._signalled = found[1] is None
            self._exited = int(found[1]) if found[1] else 128 + getattr(signal, found[2].decode(), 0)

    def _write_footer(self, writer: Writer, torn: bool) -> Footer:
        status, left = self._pipes.ended or (-signal.SIGKILL, 0)
        if self._pipes.ended is None:
            self._end_without_guard()
        whole = self._pipes.ended is not None and not torn and not left and self._is_expected(status)
        return writer.finish(status, whole, time.monotonic() - self._started, torn)

    def _is_expected(self, strace_status: int) -> bool:
        """strace ends as its tracee did; on SIGINT where it is attached."""
        if self.header.attached:
            return strace_status in (0, -signal.SIGINT)
        return self._exited is not None and (strace_status < 0 if self._signalled else strace_status == self._exited)

    def _end_without_guard(self) -> None:
        """The guard was killed, and strace with it: orphans have no descent any more, but they carry our nonce."""
        if self.header.attached or not self.header.nonce:
            return
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                began_ns = process.create_time() * 1e9 + START_SLACK_NS
                if began_ns > self.header.started_ns and process.environ().get(NONCE_VARIABLE) == self.header.nonce:
                    process.kill()


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _handle(pid: int, pipes: Pipes) -> int | None:
    """A pidfd of strace's child `pid`; None where it has ended."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        handle = os.pidfd_open(pid)
        if psutil.Process(pid).ppid() == pipes.strace_pid:
            return handle
        os.close(handle)
    return None


Target = int | IO[Any] | None  # what subprocess takes as stdin, stdout, stderr


def start(command: Sequence[str], *, profile: str = "sovereign", path: str | os.PathLike[str] | None = None,
          out: str | os.PathLike[str] = "traces", env: Mapping[str, str] | None = None, cwd: str | None = None,
          stdin: Target = None, stdout: Target = None, stderr: Target = None, nonce: str | None = None,
          seccomp_bpf: bool | None = None) -> Recording:
    """Run `command` under strace; return when its first line is there. The trace goes to `path` or into folder `out`.

    `seccomp_bpf` False: stop at every call, also at those that a filter of the program's own refuses.

    Raises TraceError where strace, ptrace or the command is not usable.
    """
    command = preflight.resolve(command, env, cwd)
    strace = preflight.prepare(profile, seccomp_bpf is not False)
    nonce = secrets.token_hex(8) if nonce is None else nonce
    environment = {**(os.environ if env is None else env), NONCE_VARIABLE: nonce}
    started_ns = time.time_ns()
    with contextlib.ExitStack() as undo:
        output = Output(Path(path) if path else None, Path(out), Path(command[0]).name)
        undo.callback(output.discard)
        pipes = Pipes()
        undo.callback(pipes.close)
        process = _launch(pipes, strace, "run", ("--", *command), env=environment, cwd=cwd, stdin=stdin, stdout=stdout,
                          stderr=stderr)
        undo.callback(_abandon, pipes, process)
        pipes.wait_for_strace()
        blocks = pipes.blocks()
        first = _first_line(blocks, pipes, command)
        pipes.folder.cleanup()  # strace has opened the FIFO: a recorder that is killed leaves none behind
        tracee = int(first.split()[0])
        standard = inherited.standard(tracee, _descriptors(stdin, stdout, stderr))
        header = _header(strace, profile, tracee, command, nonce, started_ns, standard, attached=False)
        recording = Recording(pipes, process, output, header, blocks, first)
        undo.pop_all()
    return recording


def _launch(pipes: Pipes, strace: Strace, mode: str, what: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start the guard, and it strace. In a process group of its own: a terminal's Ctrl-C goes to the recorder."""
    command = [preflight.interpreter(), "-I", "-S", guard.__file__, str(pipes.guards_end.fileno()), mode,
               strace.path, *strace.options, "-o", pipes.fifo_path, *what]
    process = subprocess.Popen(command, pass_fds=[pipes.guards_end.fileno()], process_group=0, **options)
    pipes.guards_end.close()
    return process


def _abandon(pipes: Pipes, process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        pipes.control.shutdown(socket.SHUT_WR)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _first_line(blocks: Iterator[bytes], pipes: Pipes, command: Sequence[str]) -> bytes:
    """What strace wrote when it had written a line: the command's execve."""
    first = b""
    for block in blocks:
        first += block
        if b"\n" not in first:
            continue
        if failed := FAILED_EXECVE.match(first):
            raise TraceError(f"cannot execute {command[0]}: {failed[1].decode()}")
        return first
    raise TraceError(f"strace ended before the program began (status {pipes.ended and pipes.ended[0]})")


def _descriptors(stdin: Target, *outputs: Target) -> list[int]:
    """The caller's descriptors that become 0, 1, 2; below 0: none of them (a new pipe, the null device)."""
    found: list[int] = []
    for fd, target in enumerate((stdin, *outputs)):
        number = fd if target is None else target if isinstance(target, int) else target.fileno()
        found.append(found[1] if number == subprocess.STDOUT else number)
    return found


def _header(strace: Strace, profile: str, tracee: int, command: Sequence[str], nonce: str, started_ns: int,
            opened: tuple[Inherited, ...], attached: bool) -> Header:
    printable = tuple(os.fsencode(word).decode("utf-8", "backslashreplace") for word in command)
    return Header(VERSION, printable, strace.version, strace.options, profile, strace.traced, strace.seccomp_bpf,
                  preflight.STRING_LIMIT, attached, nonce, started_ns, tracee, opened,
                  f"{platform.system()} {platform.release()} {platform.machine()}", platform.python_version())


# Attaching

class _Incomplete(Exception):
    """A process or thread began between the look for them and strace's attaching."""


def attach(pid: int, *, profile: str = "sovereign", path: str | os.PathLike[str] | None = None,
           out: str | os.PathLike[str] = "traces") -> Recording:
    """Record process `pid` and all below it, until `stop()` or their end; they go on running, unharmed.

    Raises TraceError where there is no such process or it may not be traced.
    """
    strace = preflight.prepare(profile, attached=True)
    for _ in range(ATTACH_ROUNDS):
        with contextlib.suppress(_Incomplete):
            return _attach_to(_tree(pid), strace, profile, path, out)
    raise TraceError(f"process {pid} starts processes faster than strace attaches to them; use 'run' instead")


def _tree(pid: int) -> list[int]:
    try:
        root = psutil.Process(pid)
        tree = [pid, *(child.pid for child in root.children(recursive=True))]
    except (psutil.Error, ValueError, OverflowError):
        raise TraceError(f"no such process: {pid}") from None
    if os.getpid() in tree:
        raise TraceError(f"process {pid} is, or started, this recorder: it cannot record itself")
    return tree


def _attach_to(tree: list[int], strace: Strace, profile: str, path: str | os.PathLike[str] | None,
               out: str | os.PathLike[str]) -> Recording:
    pid, started_ns, command, nonce = tree[0], time.time_ns(), _command_of(tree[0]), _nonce_of(tree[0])
    with contextlib.ExitStack() as undo:
        output = Output(Path(path) if path else None, Path(out), Path(command[0]).name)
        undo.callback(output.discard)
        pipes = Pipes()
        undo.callback(pipes.close)
        each = [word for each in tree for word in ("-p", str(each))]
        process = _launch(pipes, strace, "attach", each, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        undo.callback(_abandon, pipes, process)
        pipes.wait_for_strace()
        _wait_until_seized(process, tree)
        pipes.folder.cleanup()  # strace has opened the FIFO
        select.select([pipes.fifo], [], [], FIRST_STOPS_MS / 1000)
        opened = inherited.of_processes(tree)
        _check_all_seized(_tree(pid), pipes.strace_pid)
        header = _header(strace, profile, pid, command, nonce, started_ns, opened, attached=True)
        header = dataclasses.replace(header, threads=tuple(_threads(tree)))
        threading.Thread(target=_pass_on, args=(process.stderr,), name="strace's messages", daemon=True).start()
        recording = Recording(pipes, process, output, header, pipes.blocks())
        undo.pop_all()
    return recording


def _threads(tree: list[int]) -> Iterator[Thread]:
    for pid in tree:
        with contextlib.suppress(psutil.Error):
            yield from (Thread(one.id, pid) for one in psutil.Process(pid).threads())


def _command_of(pid: int) -> list[str]:
    try:
        process = psutil.Process(pid)
        return process.cmdline() or [process.name()]
    except psutil.Error:
        return [str(pid)]


def _nonce_of(pid: int) -> str:
    """A program that was started with the variable makes markers with its value."""
    try:
        return psutil.Process(pid).environ().get(NONCE_VARIABLE, "")
    except psutil.Error:
        return ""


def _wait_until_seized(process: subprocess.Popen[bytes], tree: list[int]) -> None:
    """Until strace has said of each process that it is attached to it."""
    assert process.stderr is not None
    missing, line = set(tree), ""
    while missing:
        line = process.stderr.readline().decode(errors="replace").strip()
        if seized := SEIZED.match(line):
            missing.discard(int(seized[1]))
        elif failed := NOT_SEIZED.match(line):
            if int(failed[1]) == tree[0] or "No such process" not in line:
                raise TraceError(f"cannot attach to process {failed[1]}: {failed[2]}{_hint(int(failed[1]))}")
            missing.discard(int(failed[1]))  # it ended before
        elif not line:
            raise TraceError(f"strace ended before it was attached to process {min(missing)}")


def _hint(pid: int) -> str:
    """Why it may not be permitted."""
    tracer = _tracer(Path(f"/proc/{pid}/status"))
    if tracer:
        return f" (process {tracer} traces it already)"
    return " (it needs the same user or CAP_SYS_PTRACE, and kernel.yama.ptrace_scope 0 or CAP_SYS_PTRACE)"


def _tracer(status: Path) -> int | None:
    """The process that traces this thread, 0 for none; None where the thread has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^TracerPid:\s*(\d+)", status.read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None


def _check_all_seized(tree: list[int], strace_pid: int) -> None:
    for pid in tree:
        if any(_tracer(status) not in (strace_pid, None) for status in Path(f"/proc/{pid}/task").glob("*/status")):
            raise _Incomplete


def _pass_on(messages: IO[bytes]) -> None:
    """strace's messages to our stderr, but for what it says of each process."""
    with messages:
        for line in messages:
            if not CHATTER.match(text := line.decode(errors="replace")):
                sys.stderr.write(text)


# What recording costs

class Overhead(NamedTuple):
    """How many times as long a load takes when it is recorded."""

    median: float
    lowest: float
    highest: float
    what: str

    def __str__(self) -> str:
        return f"{self.median:.1f} × ({self.lowest:.1f} … {self.highest:.1f}) for {self.what}"


PAIRS = 3
LOADS = {
    "calls": ("1,000 times open and close, in Python", """
for _ in range(1000):
    os.close(os.open("/dev/null", os.O_RDONLY))"""),
    "reads": ("1,000 times pread, in Python", """
file = os.open("/dev/zero", os.O_RDONLY)
for _ in range(1000):
    os.pread(file, 1, 0)"""),
    "start": ("3 times the start of python -c pass", """
for _ in range(3):
    os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", "pass"], {}), 0)"""),
}
TIMED = "import os, sys, time\nbegin = time.perf_counter_ns(){}\nprint(time.perf_counter_ns() - begin)"


def overhead(profile: str, load: str = "calls") -> Overhead:
    """Interleaved pairs of one load, recorded and not; the load times itself, so starting strace is left out."""
    what, code = LOADS[load]
    command = [preflight.interpreter(), "-I", "-S", "-c", TIMED.format(code)]
    ratios = sorted(_traced_ns(command, profile) / _untraced_ns(command) for _ in range(PAIRS))
    return Overhead(statistics.median(ratios), ratios[0], ratios[-1], what)


def _untraced_ns(command: list[str]) -> int:
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _traced_ns(command: list[str], profile: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.trace"
        with start(command, profile=profile, path=path, stdout=subprocess.PIPE) as recording:
            assert recording.stdout is not None
            said = recording.stdout.read()
            recording.wait()
    if not said.strip():
        raise TraceError(f"the load did not run: {shlex.join(command[:1])}")
    return int(said)
