"""A model that only mlflow can run, in a process of its own: requests in at stdin, answers out at stdout.

`python -m databricks.pyfunc_process FOLDER` loads the model of a folder with an MLmodel, by mlflow and with whatever
code it brings; then it answers one request after the other as `mlflow models serve` would, by mlflow's own functions.

A request is 8 bytes, how many bytes of content type and of body follow, each uint32, little-endian; an answer 8 bytes,
the status and how many bytes of JSON follow. The first answer says that the model is loaded (200), or why not (500).

The rules to keep: an answer holds no value of the request, whatever mlflow says; this process ends when its stdin
does, whatever the model is doing; and nothing is imported before mlflow that a model may bring itself.
"""

import json
import os
import queue
import signal
import struct
import sys
import threading
import traceback
from typing import Any, BinaryIO

from databricks import child

HEAD = struct.Struct("<II")
MAX_BYTES = 1 << 31
JSON = "application/json"

# What an error of mlflow's says to the client, by its code: its own message repeats the request.
MESSAGES = {
    "BAD_REQUEST": "The request is not what the model takes: see its signature in MLmodel.",
    "INVALID_PARAMETER_VALUE": "The input does not fit the model's signature, or the model refuses it.",
}
UNSUPPORTED = "The body must be application/json, text/csv or application/vnd.apache.parquet, in UTF-8."
FAILED = "The model failed to answer; the server's log says more."


class Model:
    """A loaded model of mlflow's."""

    def __init__(self, folder: str) -> None:
        import mlflow.pyfunc
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import scoring_server
        self._error, self._invocations = MlflowException, scoring_server.invocations
        self._model = mlflow.pyfunc.load_model(folder)
        self._schema = self._model.metadata.get_input_schema()
        os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"  # as mlflow's own server sets it, now

    def answer(self, content_type: str, body: bytes) -> tuple[int, bytes]:
        """The status, and JSON."""
        try:
            found: Any = self._invocations(body, content_type, self._model, self._schema)
        except self._error as error:
            if error.message.startswith("Encountered an unexpected error"):  # the model's own, in place of mlflow's
                log_failure(error.__context__ or error)
            return refusal(error.get_http_status_code(), error.error_code)
        if found.status != 200:
            return refusal(found.status, "BAD_REQUEST", UNSUPPORTED)
        return 200, without_nan(found.response)


def without_nan(text: str) -> bytes:
    """JSON in which null stands for NaN and infinities, which are no JSON."""
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=lambda _: None))
    return text.encode()


def refusal(status: int, code: str, message: str = "") -> tuple[int, bytes]:
    """An error as MLflow's clients read it."""
    return status, json.dumps({"error_code": code, "message": message or MESSAGES.get(code, FAILED)}).encode()


def log_failure(error: BaseException) -> None:
    """Where it was raised, and of which kind: what it says may hold values of the request."""
    print("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__, file=sys.stderr, flush=True)


def read_requests(source: BinaryIO, requests: "queue.Queue[tuple[str, bytes]]") -> None:
    """Queue what comes at stdin; at its end the process ends, because there is nobody to answer."""
    while len(head := source.read(HEAD.size)) == HEAD.size:
        n_type, n_body = HEAD.unpack(head)
        if n_type + n_body > MAX_BYTES:
            break
        requests.put((source.read(n_type).decode("latin-1"), source.read(n_body)))
    os._exit(0)


def write(answers: BinaryIO, status: int, body: bytes) -> None:
    if len(body) > MAX_BYTES:
        status, body = refusal(500, "INTERNAL_ERROR")
    answers.write(HEAD.pack(status, len(body)) + body)
    answers.flush()


def serve(folder: str, source: BinaryIO, answers: BinaryIO) -> int:
    """→ exit status: 3 where the model cannot be loaded; else it never returns."""
    requests: queue.Queue[tuple[str, bytes]] = queue.Queue()
    threading.Thread(target=read_requests, args=(source, requests), daemon=True).start()
    try:
        model = Model(folder)
    except BaseException as error:  # whatever the model's code raises, or exits with
        traceback.print_exc()
        write(answers, 500, child.one_line(error).encode())
        return 3
    write(answers, 200, b"")
    while True:
        content_type, body = requests.get()
        try:
            status, answer = model.answer(content_type, body)
        except Exception as error:  # the one place where a bug becomes an answer
            log_failure(error)
            status, answer = refusal(500, "INTERNAL_ERROR")
        write(answers, status, answer)


def main(arguments: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # the server gets them, too, and ends this process when it is done
        signal.signal(number, signal.SIG_IGN)
    child.before_mlflow()
    return serve(arguments[0], child.take_stdin(), child.take_stdout())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
