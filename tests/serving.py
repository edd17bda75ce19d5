"""Servers for tests: real processes on ports of their own, and clients that see every byte.

The rule to keep: nothing started here outlives its `with`, also when a test fails.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.parser import BytesParser
from http.client import HTTPMessage
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "server")
START_S = 120.0  # a cold cache compiles first, and several servers may
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # of mlflow, in every process
WAIT_S = 30.0  # no test waits longer for what must come


class Server:
    """A running `python -m server`."""

    def __init__(self, process: subprocess.Popen, stderr: Path):
        self.process, self._stderr = process, stderr
        self.first_line = _first_line(process, self)
        found = re.search(r"http://(\[[^]]+\]|[^:/\s]+):(\d+)", self.first_line)
        if found is None:
            raise RuntimeError(f"the server did not start: {self.first_line!r}\n{self.stderr_text()}")
        self.host, self.port = found[1].strip("[]"), int(found[2])
        self.url = found[0]

    @property
    def pid(self) -> int:
        return self.process.pid

    def stderr_text(self) -> str:
        return self._stderr.read_text(errors="replace")

    def connect(self, timeout_s: float = WAIT_S, receive_buffer_bytes: int = 0) -> "Client":
        """A new connection to this server."""
        return Client(self.host, self.port, timeout_s, receive_buffer_bytes)

    def ask(self, data: bytes) -> "Response":
        """The answer to one request on a connection of its own."""
        with self.connect() as client:
            return client.ask(data)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the process to end → its exit status, or minus the signal that ended it."""
        return self.process.wait(timeout_s)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask the process to end → its exit status; raises subprocess.TimeoutExpired if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()


@contextmanager
def start(*args: str | Path, native: bool = True, env: dict[str, str] | None = None, cwd: Path = ROOT,
          command: Sequence[str | Path] = COMMAND) -> Iterator[Server]:
    """A server on a free port with these further arguments; `native=False` adds --no-native.

    `env` is added to the environment. Raises RuntimeError when the process ends or is silent for START_S before
    it serves.
    """
    command = [*command, "--port", "0", *args, *([] if native else ["--no-native"])]
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        stderr = Path(folder) / "stderr"
        with stderr.open("wb") as log:
            process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=log, cwd=cwd, env=os.environ | (env or {}))
        try:
            yield Server(process, stderr)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def run(*args: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT,
        command: Sequence[str | Path] = COMMAND) -> subprocess.CompletedProcess:
    """Run `python -m server` with these arguments to its end → status, stdout and stderr as text."""
    return subprocess.run([str(part) for part in (*command, *args)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=START_S, cwd=cwd, env=os.environ | (env or {}))


def free_port() -> int:
    """A port of the loopback address that nobody listens at, for a program that cannot pick one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _first_line(process: subprocess.Popen, server: Server) -> str:
    """The line that a server prints when it accepts; what it printed instead when it ends before."""
    line, deadline = b"", time.monotonic() + START_S
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise RuntimeError(f"no address within {START_S} s\n{server.stderr_text()}")
        data = os.read(process.stdout.fileno(), 1)
        if not data:
            break
        line += data
    return line.decode()


# --- clients ------------------------------------------------------------------------------------

class Response(NamedTuple):
    status: int
    headers: HTTPMessage  # names in any case
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code of an OpenAI error object, which this body must be."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error["code"]


class Client:
    """One raw connection: what is sent is exactly what is given; responses are read one by one."""

    def __init__(self, host: str, port: int, timeout_s: float = WAIT_S, receive_buffer_bytes: int = 0):
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.settimeout(timeout_s)
        if receive_buffer_bytes:  # works only before connecting
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            self.socket.connect((host, port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_each_byte(self, data: bytes) -> None:
        """One `send` a byte."""
        for i in range(len(data)):
            self.socket.sendall(data[i:i + 1])

    def ask(self, data: bytes) -> Response:
        """Send one request and receive its answer."""
        self.send(data)
        return self.receive(head_only=data.startswith(b"HEAD "))

    def receive(self, head_only: bool = False) -> Response:
        """The next response; `head_only` for the answer to HEAD. Raises EOFError when the server closes first."""
        while b"\r\n\r\n" not in self._received:
            self._receive_more()
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        version, status, _ = line.decode("latin-1").split(" ", 2)
        assert version == "HTTP/1.1"
        headers = BytesParser(HTTPMessage).parsebytes(fields + b"\r\n\r\n", headersonly=True)
        self._received = bytearray(rest)
        length = 0 if head_only else int(headers.get("Content-Length", 0))
        while len(self._received) < length:
            self._receive_more()
        body = bytes(self._received[:length])
        del self._received[:length]
        return Response(int(status), headers, body)

    def _receive_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the server closed the connection after {bytes(self._received)!r:.200}")
        self._received += data

    def receive_final(self) -> Response:
        """The next response that is not an interim one (100 Continue)."""
        response = self.receive()
        return response if response.status >= 200 else self.receive_final()

    def is_closed(self) -> bool:
        """Wait until the server says something: whether that is the end of the connection."""
        return not self._received and not self.socket.recv(1)


def request(method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of an HTTP/1.1 request; Host and, with a body, its length and JSON's type are added where not given."""
    fields = {"Host": "localhost"}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= headers or {}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")


def predict_request(inputs: object = ((0.1, 0.2, 0.3, 0.4, 0.5),), headers: dict[str, str] | None = None,
                    **fields: object) -> bytes:
    """A predict request as most clients send it; `fields` are those beside `inputs`."""
    return request("POST", "/v1/predict", json.dumps({"inputs": inputs, **fields}).encode(), headers)


def wait_for(condition: Callable[[], object]) -> None:
    """Until the condition holds; at most WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
