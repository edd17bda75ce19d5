"""Models at MLflow's addresses: who finds them, and what stands for one that only mlflow can run.

The rule to keep: mlflow is never imported here. A process of its own resolves an address, and ends; another runs a
model that is not ours, and ends with this one, whatever becomes of it.

What the two processes speak is at the head of databricks/pyfunc_process.py.
"""

import atexit
import fcntl
import functools
import json
import math
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

import kernels
from kernels.native import NativeModel
from kernels.program import Program
from kernels.tabular import Signature
from server.errors import ApiError

URIS = ("models:/", "runs:/")
HEAD = struct.Struct("<II")
MAX_BYTES = 1 << 31  # of a request or an answer
PREFIX, LOCK = "testigo-models-", "in-use"  # of a folder's name; of the file in it that its process holds locked
LOAD_S, ANSWER_S = 300.0, 60.0  # the second is what mlflow's own server allows
JSON = "application/json"

# A column's type → what stands in JSON for a number of a row.
NUMBERS: dict[str, Callable[[float], Any]] = {
    "double": float, "float": float, "long": lambda x: int(x) if x.is_integer() else x,
    "integer": lambda x: int(x) if x.is_integer() else x, "boolean": lambda x: bool(x) if x in (0.0, 1.0) else x}


class Found(NamedTuple):
    """What databricks/resolve.py says of an address, as `Resolved` there."""

    file: str | None
    directory: str | None
    name: str
    version: str
    flavor: str
    schema: dict | None
    worker: str | None


def is_mlflow(source: str) -> bool:
    """Whether this is for MLflow to find: one of its addresses, or a folder."""
    return source.startswith(URIS) or os.path.isdir(source)


def shown(source: str) -> str:
    """An address without this machine's paths."""
    return source if source.startswith(URIS) else Path(source).resolve().name


@functools.cache
def _root() -> Path:
    """A folder of this process's own, for what is downloaded and converted: nobody exchanges what is mapped from it."""
    remove_left_over()
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = locked(root / "new")
    os.rename(root / "new", root / LOCK)  # held by now: who removes folders looks at none without it
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(lock.close)
    return root


def locked(path: Path) -> IO[bytes]:
    """A file, made where it is missing, that is locked as long as it is open. Raises BlockingIOError where it is."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def remove_left_over() -> None:
    """Remove the folders of servers that were killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.geteuid() and (folder / LOCK).is_file():
                with locked(folder / LOCK):
                    shutil.rmtree(folder, ignore_errors=True)


def resolve(source: str, *, allow_pickle: bool, engine: str, log: Callable[[str], None]) -> Found:
    """Find a model in a process that ends with that. Raises kernels.ModelError with what that process says."""
    folder = tempfile.mkdtemp(dir=_root())
    command = [sys.executable, "-m", "databricks.resolve", f"--folder={folder}", f"--engine={engine}",
               *["--allow-pickle"] * allow_pickle, "--", source]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    said = done.stderr.strip().splitlines()
    if done.returncode:
        last = said[-1] if said else f"status {done.returncode}"
        raise kernels.ModelError(last.removeprefix("resolve: error: ") if last.startswith("resolve: error: ")
                                 else f"{source}: it cannot be resolved: {last:.400}")
    for line in said:
        log(f"{shown(source)}: {line:.400}")
    return Found(**json.loads(done.stdout))


class Gone(Exception):
    """The process of a model ended, or did not answer in time."""


class Child:
    """One process that runs a model."""

    def __init__(self, name: str, directory: str, log: Callable[[str], None]) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "databricks.pyfunc_process", directory],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        threading.Thread(target=_log_lines, args=(self._process.stderr, name, log), daemon=True).start()
        atexit.register(self.end)

    def send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline)
            with suppress(BlockingIOError):
                rest = rest[os.write(self._requests, rest):]

    def receive(self, deadline: float) -> tuple[int, bytes]:
        """The next answer: a status, and its bytes."""
        status, size = HEAD.unpack(self._read(HEAD.size, deadline))
        if size > MAX_BYTES:
            raise Gone
        return status, self._read(size, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._answers, select.POLLIN, deadline)
            part = os.read(self._answers, min(size - len(data), 1 << 20))
            if not part:
                raise Gone
            data += part
        return bytes(data)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise Gone

    def ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        atexit.unregister(self.end)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        with suppress(OSError):  # a sandbox allows neither; then it ends because its stdin did
            self._process.kill()
            self._process.wait()


def _log_lines(stream: Any, name: str, log: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            if text := line.decode(errors="replace").rstrip():
                log(f"{name}: {text:.1000}")


class ProcessModel(kernels.TabularModel):
    """A model that mlflow runs, in a process of its own; safe to call from several threads, one at a time is answered.

    The process starts with this; one that dies is replaced before the next request. Raises kernels.ModelError where
    mlflow cannot load the model.
    """

    kernel = "mlflow"  # type: ignore[assignment]
    kind = "mlflow"

    def __init__(self, found: Found, log: Callable[[str], None]) -> None:
        assert found.directory is not None
        self.name, self.version, self.model_type = found.name, found.version, found.flavor
        self.path, self._directory, self._log = None, found.directory, log
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._loaded = False  # what the child says first was read
        if why := self._start():  # it checks the signature, too
            raise kernels.ModelError(f"{self.name}: mlflow cannot load it: {why}")
        self.size_bytes = sum(path.stat().st_size for path in Path(found.directory).rglob("*") if path.is_file())
        self._inputs = (found.schema or {}).get("inputs") or []
        self.n_features = n_features(self._inputs)
        names = tuple(spec.get("name") for spec in self._inputs)
        has_names = self.n_features == len(names) and len(set(names)) == len(names) and None not in names
        self.signature = Signature(self.n_features, names if has_names and names else None, None, "regression")
        self.n_outputs, self.n_classes = 1, 0
        floats = [spec.get("type") in ("double", "float") for spec in self._inputs]
        self.takes_missing_in = np.array(floats if len(floats) == self.n_features else [False] * self.n_features, bool)

    def native(self) -> NativeModel:
        """None: there is no compiled form, and the server answers in Python."""
        return None  # type: ignore[return-value]

    @property
    def program(self) -> Program:  # type: ignore[override]
        raise kernels.ModelError("expected a model of our own kernels: mlflow runs this one")

    def invoke(self, content_type: str, body: bytes) -> tuple[int, bytes]:
        """The status and JSON that mlflow's scoring protocol answers to this body, of mlflow's own making."""
        kind = content_type.encode("latin-1", "replace")
        if len(kind) + len(body) > MAX_BYTES:
            return refusal(413, "BAD_REQUEST", "The body is too large.")
        if not self._lock.acquire(timeout=ANSWER_S):
            return refusal(503, "TEMPORARILY_UNAVAILABLE", "The model is busy with other requests.")
        try:
            return self._answer(kind, body)
        finally:
            self._lock.release()

    def _answer(self, kind: bytes, body: bytes) -> tuple[int, bytes]:
        if why := self._start():
            self._log(f"{self.name}: its process cannot be started again: {why:.400}")
            return refusal(503, "TEMPORARILY_UNAVAILABLE", "The model's process ended and cannot be started again.")
        assert self._child is not None
        deadline = time.monotonic() + ANSWER_S
        try:
            self._child.send(HEAD.pack(len(kind), len(body)) + kind + body, deadline)
            return self._child.receive(deadline)
        except (Gone, OSError):
            late = time.monotonic() >= deadline
            self._log(f"{self.name}: its process {'did not answer in time' if late else 'ended while it answered'}")
            self._end()
            with suppress(OSError):  # which the next request will meet
                self._spawn()
        if late:
            return refusal(504, "DEADLINE_EXCEEDED", "The model did not answer in time.")
        return refusal(500, "INTERNAL_ERROR", "The model's process ended while it answered; another takes its place.")

    def predict(self, X) -> np.ndarray:
        """The model's answer for every row: (n, n_features) → (n) objects. Raises ApiError."""
        body = json.dumps(request_of(np.asarray(X, np.float64).tolist(), self._inputs)).encode()
        status, answer = self.invoke(JSON, body)
        if status == 400:
            raise ApiError(400, "invalid_inputs", "The model does not take these inputs.", "inputs")
        if status != 200:
            raise ApiError(status, "model_failed", json.loads(answer)["message"])
        predictions = json.loads(answer)["predictions"]
        if not isinstance(predictions, list):
            predictions = [predictions]
        found = np.empty(len(predictions), object)
        for i, prediction in enumerate(predictions):  # numpy would take lists for rows
            found[i] = prediction
        return found

    def predict_proba(self, X) -> np.ndarray:
        raise kernels.ModelError("this model has no probabilities")

    def close(self) -> None:
        """End the process; a request would start another."""
        with self._lock:
            self._end()

    def _start(self) -> str | None:
        """Have a process that has loaded the model; why there is none."""
        try:
            if self._child is None or self._child.ended():
                self._end()
                self._spawn()
            assert self._child is not None
            if not self._loaded:
                status, said = self._child.receive(time.monotonic() + LOAD_S)
                if status != 200:
                    self._end()
                    return said.decode(errors="replace")
                self._loaded = True
            return None
        except Gone:
            self._end()
            return "its process ended, or took too long"
        except OSError as error:
            return error.strerror or type(error).__name__

    def _spawn(self) -> None:
        self._child, self._loaded = Child(self.name, self._directory, self._log), False

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None


def refusal(status: int, code: str, message: str) -> tuple[int, bytes]:
    """An error as MLflow's clients read it."""
    return status, json.dumps({"error_code": code, "message": message}).encode()


def n_features(inputs: list[dict]) -> int:
    """How many numbers a row has; 0 where the signature asks for anything else, or there is none."""
    if len(inputs) == 1 and inputs[0].get("type") == "tensor":
        spec = inputs[0]["tensor-spec"]
        shape = spec["shape"]
        is_rows = shape[:1] == [-1] and len(shape) > 1 and min(shape[1:]) > 0 and np.dtype(spec["dtype"]).kind in "fiub"
        return math.prod(shape[1:]) if is_rows else 0
    return len(inputs) if all(spec.get("type") in NUMBERS for spec in inputs) else 0


def request_of(rows: list[list[float]], inputs: list[dict]) -> dict:
    """Rows of `n_features` numbers as mlflow's protocol has them, for a signature's inputs."""
    name = inputs[0].get("name")
    if inputs[0].get("type") == "tensor":
        values = np.reshape(rows, [len(rows), *inputs[0]["tensor-spec"]["shape"][1:]]).tolist()
        return {"inputs": values if name is None else {name: values}}
    casts = [NUMBERS[spec["type"]] for spec in inputs]
    data = [[None if math.isnan(x) else cast(x) for x, cast in zip(row, casts)] for row in rows]
    if name is None:
        return {"inputs": data}
    return {"dataframe_split": {"columns": [spec["name"] for spec in inputs], "data": data}}
