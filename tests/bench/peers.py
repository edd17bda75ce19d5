"""The servers that ours is measured against: built where they can be, named with the reason where not.

The rule to keep: every server answers `ROW` correctly (`check_answer`) before anything about it is measured.
Sources are in `peers/`; builds go to a folder of their own under the user's cache folder.
"""

import hashlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests import serving
from tests.serving import NO_TELEMETRY

SOURCES = Path(__file__).resolve().parent / "peers"
DEBIAN_CRATES = Path("/usr/share/cargo/registry")  # where librust-*-dev puts them
RUST_PACKAGES = "cargo librust-hyper-dev librust-tokio-dev librust-serde-json-dev librust-serde-dev"
WEIGHTS, BIAS = [0.5, -0.3, 0.8, -0.2, 0.4], 0.1  # the course's model
ROW = [0.1, 0.2, 0.3, 0.4, 0.5]
START_S = 60.0


class Missing(Exception):
    """A peer that cannot be had here, and why."""


class Running(NamedTuple):
    """A server that has answered correctly."""
    name: str
    pid: int
    port: int
    start_s: float  # from the start of the process to its first correct answer


# --- answers ------------------------------------------------------------------------------------

def body_of(rows: Sequence[Sequence[float]]) -> bytes:
    return json.dumps({"inputs": rows}).encode()


def check_answer(port: int, rows: Sequence[Sequence[float]] = (ROW,)) -> None:
    """Ask for a prediction of each row. Raises AssertionError when one is further off than Q8_0 weights explain."""
    status, body = ask(port, "POST", "/v1/predict", body_of(rows))
    assert status == 200, body
    predictions = json.loads(body)["predictions"]
    assert len(predictions) == len(rows)
    # a weight is rounded to a multiple of its block's scale, max |w| / 127, the scale to 11 bits
    error = max(map(abs, WEIGHTS)) * (1 / 254 + 2 ** -11)
    for row, prediction in zip(rows, predictions):
        score = sum(w * x for w, x in zip(WEIGHTS, row, strict=True)) + BIAS
        assert abs(prediction - score) <= error * sum(map(abs, row)) + 1e-12, (row, prediction, score)


# --- builds -------------------------------------------------------------------------------------

def _build(sources: Path, command: Sequence[str | Path], product: str) -> Path:
    """Run `command` in a copy of `sources`, once for each state of it → the file that it makes. Raises Missing."""
    digest = hashlib.sha256(repr(command).encode())
    for source in sorted(path for path in sources.rglob("*") if path.is_file()):
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = cache / "testigo-peers" / digest.hexdigest()[:24]
    built = folder / product
    if not built.exists():
        shutil.copytree(sources, folder, dirs_exist_ok=True)
        done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise Missing(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return built


def need(program: str, remedy: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise Missing(f"no {program}; {remedy}")
    return path


def _rust(port: int) -> list[str]:
    cargo = need("cargo", f"Debian: apt-get install {RUST_PACKAGES}")
    offline: list[str] = []
    if DEBIAN_CRATES.is_dir():
        offline = ["--offline", "--config", 'source.crates-io.replace-with="debian"',
                   "--config", f'source.debian.directory="{DEBIAN_CRATES}"']
    try:
        built = _build(SOURCES / "rust", [cargo, "build", "--release", "--quiet", *offline], "target/release/predict")
    except Missing as error:
        raise Missing(f"{error}; Debian: apt-get install {RUST_PACKAGES}") from None
    return [str(built), str(port)]


def _c(port: int) -> list[str]:
    compiler = need("cc", "Debian: apt-get install gcc libc6-dev")
    built = _build(SOURCES / "c", [compiler, "-O2", "-pthread", "predict.c", "-o", "predict"], "predict")
    return [str(built), str(port)]


def _fastapi(app: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        for package in ("fastapi", "uvicorn", "uvloop", "httptools"):
            if importlib.util.find_spec(package) is None:
                raise Missing(f"no {package}; pip install '.[bench]'")
        return [sys.executable, "-m", "uvicorn", "--app-dir", str(SOURCES), f"{app}:app", "--port", str(port),
                "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return command


# A peer is a name and a function from a port to the command that serves there.
PEERS: dict[str, Callable[[int], list[str]]] = {
    "rust": _rust,
    "c": _c,
    "fastapi": _fastapi("fastapi_lists"),
    "fastapi+numpy": _fastapi("fastapi_numpy"),
}


def why_missing(name: str) -> str | None:
    """Why a peer cannot be had here; None when it can (it is built now)."""
    try:
        PEERS[name](0)
    except Missing as error:
        return str(error)
    return None


# --- processes ----------------------------------------------------------------------------------

def two_cores() -> tuple[int, int]:
    """(the server's core, the load's core). Raises Missing on a machine with one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Missing("two cores: one for the server, one for the load")
    return cores[0], cores[1]


def on_cores(cores: Sequence[int]) -> list[str]:
    """The beginning of a command that may run on these cores only."""
    return [need("taskset", "Debian: apt-get install util-linux"), "-c", ",".join(map(str, cores))]


@contextmanager
def testigo(cores: Sequence[int], *args: str, native: bool = True, env: dict[str, str] | None = None,
            ) -> Iterator[Running]:
    """This server on these cores. Bytecode is cached also where the environment says otherwise, as users have it."""
    start = time.perf_counter()
    with serving.start(*args, native=native, env={"PYTHONDONTWRITEBYTECODE": ""} | (env or {}),
                       command=[*on_cores(cores), *serving.COMMAND]) as server:
        check_answer(server.port)
        yield Running("testigo" if native else "testigo --no-native", server.pid, server.port,
                      time.perf_counter() - start)


@contextmanager
def peer(name: str, cores: Sequence[int]) -> Iterator[Running]:
    """A peer on these cores. Raises Missing."""
    port = serving.free_port()
    command = [*on_cores(cores), *PEERS[name](port)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(process, port)
        check_answer(port)
        yield Running(name, process.pid, port, time.perf_counter() - start)
    finally:
        process.kill()
        process.wait()


@contextmanager
def mlflow_serves(model: Path, core: int) -> Iterator[Running]:
    """`mlflow models serve` of a model's folder on this core, when its /ping answers."""
    port, start = serving.free_port(), time.perf_counter()
    command = [*on_cores([core]), sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--port",
               str(port), "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # uvicorn, which that starts
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | NO_TELEMETRY | {"PATH": path})
    try:
        serving.wait_for(lambda: _is_up(port))
        yield Running("mlflow", _last_child(process.pid), port, time.perf_counter() - start)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def _last_child(pid: int) -> int:
    """The process that answers: the command starts others, one after the other."""
    return max((child.pid for child in psutil.Process(pid).children(recursive=True)), default=pid)


def _is_up(port: int) -> bool:
    try:
        return ask(port, "GET", "/ping")[0] == 200
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait_until_it_listens(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} does not listen at port {port}") from None
            time.sleep(0.001)  # servers do not tell when they listen; a start is measured this exactly
