"""Traces for tests, written line by line as strace writes them."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from tracing.policy import Policy, read
from tracing.tracefile import VERSION, Header, Inherited, Writer

NONCE = "00112233445566ff"
START_NS = 1_700_000_000_000_000_000
PID = 100


def header(**changed) -> Header:
    values = {"version": VERSION, "command": ("program",), "strace": "6.1", "options": ("-f", "-yy"), "profile": "full",
              "traced": ("all",), "seccomp_bpf": False, "string_limit": 128, "attached": False, "nonce": NONCE,
              "started_ns": START_NS, "tracee": PID, "inherited": (), "system": "Linux", "python": "3"}
    return Header(**(values | changed))


class Lines:
    """Calls with times that go on by a microsecond each, or as told."""

    def __init__(self, step_ns: int = 1000):
        self.lines: list[str] = []
        self._ns, self._step_ns, self._seq = START_NS, step_ns, itertools.count()

    def wait(self, seconds: float) -> "Lines":
        self._ns += int(seconds * 1e9)
        return self

    def raw(self, text: str, tid: int = PID) -> "Lines":
        """Anything, with its thread and time in front."""
        self._ns += self._step_ns
        self.lines.append(f"{tid} {self._ns // 10**9}.{self._ns % 10**9:09} {text}")
        return self

    def call(self, text: str, tid: int = PID) -> "Lines":
        """A call with its result, such as `close(3) = 0`."""
        return self.raw(f"{text} <0.000000100>", tid)

    def phase(self, name: str, nonce: str = NONCE) -> "Lines":
        return self.marker(f"phase={name}", nonce)

    def marker(self, what: str, nonce: str = NONCE, tid: int = PID) -> "Lines":
        path = f"/dev/null/testigo/v1/{nonce}/{next(self._seq)}/{what}"
        return self.call(f'access("{path}", F_OK) = -1 ENOTDIR (Not a directory)', tid)

    def start(self) -> "Lines":
        return self.call('execve("/bin/program", ["program"], 0x7ffd /* 3 vars */) = 0')

    def accept(self, fd: int = 5, tid: int = PID, peer: str = "127.0.0.1:40000") -> "Lines":
        return self.call(f"accept4(3<TCP:[127.0.0.1:80]>, NULL, NULL, SOCK_CLOEXEC) = {fd}<TCP:[127.0.0.1:80->{peer}]>", tid)

    def receive(self, fd: int = 5, tid: int = PID, result: str = "9") -> "Lines":
        return self.call(f'recvfrom({fd}<TCP:[127.0.0.1:80->127.0.0.1:40000]>, ""..., 65536, 0, NULL, NULL) = {result}', tid)

    def send(self, fd: int = 5, tid: int = PID, result: str = "9") -> "Lines":
        return self.call(f'sendto({fd}<TCP:[127.0.0.1:80->127.0.0.1:40000]>, ""..., 9, MSG_NOSIGNAL, NULL, 0) = {result}', tid)

    def exchange(self, fd: int = 5, tid: int = PID) -> "Lines":
        return self.receive(fd, tid).send(fd, tid)

    def listen(self, fd: int = 3, address: str = "127.0.0.1", port: int = 80) -> "Lines":
        return (self.call(f"socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = {fd}<TCP:[7]>")
                .call(f"bind({fd}<TCP:[7]>, {inet(address, port)}, 16) = 0")
                .call(f"listen({fd}<TCP:[{address}:{port}]>, 5) = 0"))

    def end(self, tid: int = PID) -> "Lines":
        return self.raw("exit_group(0) = ?", tid).raw("+++ exited with 0 +++", tid)

    def write(self, path: Path, **changed) -> Path:
        return write(path, self.lines, **changed)


def write(path: Path, lines: Iterable[str], recorded: bool = True, **changed) -> Path:
    """A trace file as the recorder leaves it; `changed` are fields of the header."""
    with path.open("wb") as file:
        writer = Writer(file, header(**changed))
        writer.add(list(lines))
        writer.finish(0, recorded, 1.0)
    return path


def inet(host: str, port: int) -> str:
    return f'{{sa_family=AF_INET, sin_port=htons({port}), sin_addr=inet_addr("{host}")}}'


def inet6(host: str, port: int) -> str:
    return (f"{{sa_family=AF_INET6, sin6_port=htons({port}), sin6_flowinfo=htonl(0),"
            f' inet_pton(AF_INET6, "{host}", &sin6_addr), sin6_scope_id=0}}')


def unix(path: str) -> str:
    return f'{{sa_family=AF_UNIX, sun_path="{path}"}}'


def policy(assertion: str, profile: str = "full") -> Policy:
    """A policy of one assertion, given as TOML."""
    return read(f'name = "test"\nprofile = "{profile}"\n[[assert]]\nname = "it"\n{assertion}\n', "test.toml")


__all__ = ["Inherited", "Lines", "header", "inet", "inet6", "policy", "unix", "write"]
