"""The namespace in which leaks run, and their untraced neighbour: `unshare --net python -m tests.tracing.leaks.stage`.

It brings lo up and gives it the addresses that stand for other hosts, then serves: a line of JSON
{"name": …, "out": folder} on stdin → a line {"status": …, "stdout": …, "stderr": …, "arrived": …} on stdout.
"""

import contextlib
import fcntl
import json
import os
import select
import selectors
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.tracing.leaks import FULL_PORT, LEAKS, MARKERS, OUTSIDE, OUTSIDE6, PATIENCE_S, PEERS, PORT, SECRET
from tests.tracing.leaks import everything, refuse_outside  # noqa: F401

SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, IFF_UP = 0x8914, 0x8916, 0x891C, 0x1
SLEEPER = f"""
import ctypes, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(({OUTSIDE!r}, {PORT}))
room = ctypes.create_string_buffer(64)
print(s.fileno(), ctypes.addressof(room), flush=True)
sys.stdin.read()
"""

RECORD_WITH_STDOUT = """
import argparse, sys
from tests.tracing.leaks.stage import outward
from tracing import judge, record
with outward() as s, record.start(sys.argv[2:], out=sys.argv[1], stdout=s) as recording:
    recording.wait()
sys.exit(judge.main(argparse.Namespace(trace=recording.path, policy=["sovereign"])))
"""


def prepare_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        for what, address in ((SIOCSIFADDR, OUTSIDE), (SIOCSIFNETMASK, "255.255.255.255")):
            fcntl.ioctl(s, what, struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(address)))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFADDR, struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, OUTSIDE6), 128, 1))
    with contextlib.suppress(OSError):  # who may use ICMP datagram sockets
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")


class Neighbour:
    """Receives whatever is sent to it, in all the ways that a leak may try."""

    def __init__(self, folder: str):
        self.folder, self.received = folder, b""
        self._selector = selectors.DefaultSelector()
        self._all: list[socket.socket] = []
        self._pipes: list[int] = []
        any_ = ("::", PORT)
        self.listen(socket.AF_INET6, socket.SOCK_STREAM, any_)
        self.listen(socket.AF_INET6, socket.SOCK_DGRAM, any_)
        for name in ("stream", "\0leak", "giver", "taker"):
            self.listen(socket.AF_UNIX, socket.SOCK_STREAM, self.path(name), name)
        self.listen(socket.AF_UNIX, socket.SOCK_DGRAM, self.path("log"))
        self._full = socket.create_server(("::", FULL_PORT), family=socket.AF_INET6, backlog=0, dualstack_ipv6=True)
        self._waiting = [socket.socket() for _ in range(2)]
        for each in self._waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", FULL_PORT))

    def path(self, name: str) -> str:
        return name if name.startswith("\0") else os.path.join(self.folder, name)

    def listen(self, family: int, kind: int, address: Any, role: str = "", shared: bool = False) -> None:
        s = socket.socket(family, kind)
        if family != socket.AF_UNIX:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        s.bind(address)
        if kind == socket.SOCK_STREAM:
            s.listen()
        self._watch(s, role)

    def _watch(self, s: socket.socket, role: str) -> None:
        s.setblocking(False)
        self._selector.register(s, selectors.EVENT_READ, role)
        self._all.append(s)

    def close(self) -> None:
        for s in (*self._all, self._full, *self._waiting):
            s.close()
        for fd in self._pipes:
            os.close(fd)
        self._selector.close()

    def step(self, timeout_s: float) -> bool:
        """Serve what is ready; whether anything was."""
        self._answer()
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            with contextlib.suppress(OSError):
                self._serve(key.fileobj, key.data)  # type: ignore[arg-type]
        return bool(ready)

    def _serve(self, s: socket.socket, role: str) -> None:
        if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connection = s.accept()[0]
            if role == "giver":
                return self._give(connection)
            return self._watch(connection, role)
        data, descriptors = (socket.recv_fds(s, 65536, 4)[:2]) if role == "taker" else (s.recv(65536), [])
        for fd in descriptors:
            self._take(fd)
            s.send(b".")
        self.received += data
        if not data and s.type == socket.SOCK_STREAM:
            self._selector.unregister(s)
            s.close()

    def _take(self, fd: int) -> None:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._watch(socket.socket(fileno=fd), "")
        else:
            self._pipes.append(fd)

    def _give(self, connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
            outward.connect((OUTSIDE, PORT))
            socket.send_fds(connection, [b"."], [outward.fileno()])

    def _answer(self) -> None:
        """Do what a leak asked for in a file (leaks.ask)."""
        asked = self.path("ask")
        if not os.path.exists(asked):
            return
        how, kind, *where = Path(asked).read_text().split()
        os.unlink(asked)
        said = ""
        try:
            if kind == "unix":
                self.listen(socket.AF_UNIX, socket.SOCK_STREAM, where[0])
            else:
                family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
                type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
                self.listen(family, type_, (where[0], int(where[1])), shared=how == "share")
        except OSError as error:
            said = str(error)
        Path(self.path("answer.new")).write_text(said)
        os.rename(self.path("answer.new"), self.path("answer"))

    def wait(self, process: subprocess.Popen) -> int:
        """Serve until it ends, and then what it left."""
        handle = os.pidfd_open(process.pid)
        while not select.select([handle], [], [], 0)[0]:
            self.step(0.01)
        os.close(handle)
        while self.step(0):
            pass
        for fd in self._pipes:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                self.received += os.read(fd, 65536)
        return process.wait()


class Stage:
    """One after the other, each leak with a neighbour of its own."""

    def __init__(self, folder: str):
        self.folder = folder
        self.sleeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEPER], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        assert self.sleeper.stdout is not None
        self.fd, self.address = map(int, self.sleeper.stdout.readline().split())

    def run(self, name: str, out: str, how: str = "", options: tuple[str, ...] = ()) -> dict[str, Any]:
        folder = tempfile.mkdtemp(dir=self.folder)
        Path(folder, "weights").write_bytes(SECRET)
        peers = {"folder": folder, "pid": self.sleeper.pid, "fd": self.fd, "address": self.address}
        environment = {**os.environ, PEERS: json.dumps(peers), "RES_OPTIONS": "attempts:1 timeout:1"}
        environment.pop(MARKERS, None)
        with contextlib.closing(Neighbour(folder)) as neighbour:
            with open(f"{out}/stdout", "w+") as stdout, open(f"{out}/stderr", "w+") as stderr:
                streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, "env": environment}
                started = HOW[how or LEAKS[name].how](name, out, list(options), streams)
                statuses = [neighbour.wait(process) for process in started]
                stdout.seek(0), stderr.seek(0)
                return {"status": statuses[0], "stdout": stdout.read(), "stderr": stderr.read(),
                        "arrived": SECRET in neighbour.received}


# How a leak is started and traced: (name, folder for the trace, options of `tracing`, what Popen needs) → processes

def leak_command(name: str) -> list[str]:
    return [sys.executable, "-m", "tests.tracing.leaks", name]


def run(name: str, out: str, options: list[str], streams: dict[str, Any]) -> list[subprocess.Popen]:
    recorder = [sys.executable, "-m", "tracing", "run", "--policy", "sovereign", "--out", out, *options, "--"]
    return [subprocess.Popen([*recorder, *leak_command(name)], **streams)]


def run_without_bpf(name: str, out: str, options: list[str], streams: dict[str, Any]) -> list[subprocess.Popen]:
    return run(name, out, ["--no-seccomp-bpf", *options], streams)


def run_with_stdin(name: str, out: str, options: list[str], streams: dict[str, Any]) -> list[subprocess.Popen]:
    """Its stdin is a socket connected to the outside."""
    with outward() as s:
        return run(name, out, options, streams | {"stdin": s})


def run_with_stdout(name: str, out: str, options: list[str], streams: dict[str, Any]) -> list[subprocess.Popen]:
    """Its stdout is one; that of the recorder is not, the verdict is printed there."""
    return [subprocess.Popen([sys.executable, "-c", RECORD_WITH_STDOUT, out, *leak_command(name)], **streams)]


def outward() -> socket.socket:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((OUTSIDE, PORT))
    return s


def attach(name: str, out: str, options: list[str], streams: dict[str, Any]) -> list[subprocess.Popen]:
    """The leak prepares and says "ready"; strace attaches; the leak goes on."""
    program = subprocess.Popen(leak_command(name), **streams | {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE})
    assert program.stdin is not None and program.stdout is not None
    program.stdout.readline()
    recorder = subprocess.Popen([sys.executable, "-m", "tracing", "attach", "--policy", "sovereign", "--out", out,
                                 *options, str(program.pid)], **streams)
    end = time.monotonic() + PATIENCE_S
    while not list(Path(out).glob(f"*-{program.pid}.trace")) and recorder.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    program.stdin.write(b"go\n")
    program.stdin.close()
    return [recorder, program]


def strace(name: str, out: str, options: list[str], streams: dict[str, Any]) -> list[subprocess.Popen]:
    """Without the recorder: strace as somebody may call it."""
    return [subprocess.Popen(["strace", "-f", "-o", f"{out}/plain.trace", *options, *leak_command(name)], **streams)]


HOW = {"run": run, "no_bpf": run_without_bpf, "stdin": run_with_stdin, "stdout": run_with_stdout, "attach": attach,
       "strace": strace}


def main() -> None:
    refuse_outside()
    prepare_loopback()
    with tempfile.TemporaryDirectory(prefix="leaks-") as folder:
        stage = Stage(folder)
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(stage.run(**json.loads(line))), flush=True)
        stage.sleeper.kill()
        stage.sleeper.wait()


if __name__ == "__main__":
    main()
