"""The threads of the native path and what they share: event loops and workers around the listening socket.

The rule to keep: threads are started before they are needed, because a thread that is started while others
hold the cores waits for them; and whoever takes the last idle worker's place starts another first.
"""

import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable

import numpy as np

from kernels import TabularModel
from kernels.native import NativeModel
from server import errors, layout, warm
from server.application import Application
from server.connection import LINGER_S, SEND_S, Connection, Gone, Limits, http_date
from server.event_loop import GONE, LARGE, LATE, Native
from server.http1 import TRANSITIONS
from server.listener import SPARE_DESCRIPTORS, Listener
from server.models import places
from server.schema import CHECKS_NAMES, PREDICT, RETURN_PROBABILITIES, THREADS, Column, Schema

LOOP_BYTES = 65536  # an event loop's receive buffer: what is larger is received by a worker
FIRST_WORKERS, SPARE_WORKERS = 8, 16
GRACE_S = 0.1  # after the deadline of a drain, for threads that have only to return
TYPES_OF_TENSORS = {"<f8": "double", "<f4": "float", "<i8": "long", "<i4": "integer"}
DATE_PLACE = "x" * layout.DATE_BYTES  # native code writes the Date here


class NativeListener(Listener):
    """Serves with event loops and workers: Python sees only what the hot path does not answer."""

    def __init__(self, host: str, port: int, application: Application, limits: Limits):
        super().__init__(host, port, application, limits)
        self._serving_threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._free_rows = list(range(limits.max_connections))  # at worst every connection needs a worker
        self._queue = os.pipe()

    def prepare(self, progress: Callable[[str], None], explanations: bool = False) -> None:
        """Compile what these models need, or load it from the cache; what explains them too where it is asked for."""
        warm.compile_ahead(list(self.application.models.by_name.values()), progress, explanations)
        self.native = Native()
        n_loops = len(os.sched_getaffinity(0))
        self._build_shared(n_loops, self.limits.max_connections + SPARE_DESCRIPTORS)

    def _build_shared(self, n_loops: int, n_descriptors: int) -> None:
        app, limits, text = self.application, self.limits, layout.Text()
        models = list(app.models.by_name.values())
        self._kept = natives = [model.native() for model in models]
        self._scratch_doubles = max((native.scratch_doubles for native in natives if native), default=0)
        rows = np.zeros(len(models), layout.MODEL)
        labels: list[bytes] = []
        features: list[tuple] = []
        words: list[tuple] = []
        for row, native, model in zip(rows, natives, models):
            row["name"], row["n_features"] = text.add(model.name.encode()), model.n_features
            row["first_feature"] = len(features)
            features += [(0, 0, 0, 0)] * model.n_features
            row["tail"] = text.add(b'], "model": %s, "version": %s, "latency_ms": ' % (
                json.dumps(model.name).encode(), json.dumps(model.version).encode()))
            if native is None:
                continue
            row["predict"], row["state"] = native.predict_address, native.state_address
            row["n_outputs"], row["n_classes"] = native.n_outputs, native.n_classes
            row["takes_missing"], row["unknown"] = native.takes_missing, native.unknown
            row["first_label"], row["n_labels"] = len(labels), len(native.labels or ())
            row["prediction_room"] = max([layout.NUMBER_ROOM * native.n_outputs + 4,
                                          *(len(label) + 2 for label in native.labels or ())])
            labels += native.labels or ()
            self._add_words(row, native, text, features, words)
            self._add_columns(row, model, text, features, words)
        refusals = np.zeros(2, layout.REFUSAL)
        for i, error in ((layout.OVERLOADED, errors.OVERLOADED), (layout.TIMED_OUT, errors.TIMED_OUT)):
            response = errors.refusal(error, DATE_PLACE)
            refusals[i] = (text.add(response), response.index(DATE_PLACE.encode()))
        cors_lines = text.add("".join(f"\r\n{name}: {value}" for name, value in app.cors_headers_for(None)).encode())
        n_threads = n_loops + len(self._free_rows)
        self.shared = layout.Shared(layout.SHARED, {
            "connections": np.zeros(n_descriptors, layout.CONNECTION), "loops": self._make_loops(n_loops),
            "gauges": np.zeros(layout.LOOP_LOADS + n_loops, np.int64),
            "counts": np.zeros((n_threads, layout.COUNTS), np.int64),
            "predictions": np.zeros((n_threads, len(models)), np.int64),
            "models": rows, "labels": text.spans(labels),
            "features": np.array(features, layout.FEATURE), "words": np.array(words, layout.WORD),
            "hosts": text.spans([host.encode() for host in sorted(app.allowed_hosts or ())]),
            "keys": text.spans(app.keys), "refusals": refusals, "transitions": TRANSITIONS, "text": text.array(),
            "dates": np.zeros((2, layout.DATE_BYTES), np.uint8),
            "logged": np.zeros(n_threads * layout.LOG_ROWS, layout.LOG_LINE),
        }, {
            "listener": self.fileno(), "queue_out": self._queue[0], "queue_in": self._queue[1],
            "any_host": app.allowed_hosts is None, "origin_matters": app.cors_origin not in (None, "*"),
            "cors_lines": cors_lines,
            "max_connections": limits.max_connections, "max_body_bytes": limits.max_body_bytes,
            "idle_ns": int(limits.idle_s * 1e9), "head_ns": int(limits.head_s * 1e9),
            "body_ns": int(limits.body_s * 1e9), "send_ns": int(SEND_S * 1e9),
            "linger_ns": int(LINGER_S * 1e9),
        } | self.native.addresses)
        app.metrics.shared = self.shared

    def _add_words(self, row: np.void, native: NativeModel, text: layout.Text, features: list[tuple],
                   words: list[tuple]) -> None:
        """What a model's rows may hold beside numbers: names, where each feature has one of its own, and categories."""
        names = [name.decode() for name in native.feature_names or ()]
        if len(set(names)) == native.n_features:
            added = text.words({name: i for i, name in enumerate(names)})
            row["first_name"], row["n_names"] = len(words), len(added)
            words += added
        for i, categories in enumerate(native.categories or ()):
            if categories is not None:
                row["takes_strings"] = 1
                added = text.words(places([category.decode() for category in categories]))
                features[row["first_feature"] + i] = (1, 0, len(words), len(added))
                words += added

    def _add_columns(self, row: np.void, model: TabularModel, text: layout.Text, features: list[tuple],
                     words: list[tuple]) -> None:
        """What /invocations takes for a row of a model, where its answer there is that of `predict`."""
        found = columns_of_features(self.application.models.schemas[model.name], model)
        if found is None:
            return
        names, types = found
        first = int(row["first_feature"])
        for i, kind in enumerate(types):
            strings, _, *span = features[first + i]
            features[first + i] = (strings, layout.COLUMN_TYPES.get(kind, 0), *span)
        row["invocations"] = layout.BY_PLACE if names is None else layout.BY_NAME
        if names is not None:
            added = text.words({name: i for i, name in enumerate(names)})
            row["first_column"], row["n_columns"] = len(words), len(added)
            words += added

    def _make_loops(self, n_loops: int) -> np.ndarray:
        """An epoll a core, each with the listening socket: the kernel wakes only one of those that wait for it."""
        loops = np.zeros(n_loops, layout.LOOP)
        self._epolls = []
        for loop in loops:
            epoll = select.epoll()
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            epoll.register(self.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
            epoll.register(wake, select.EPOLLIN | select.EPOLLET)
            loop["epoll"], loop["wake"] = epoll.fileno(), wake
            self._epolls.append(epoll)
        return loops

    def tick(self) -> None:
        self.shared.set_date(http_date())

    def start(self) -> None:
        self.tick()
        self.socket.setblocking(False)
        self.server_activate()
        for i in range(len(self.shared.loops)):
            self._start(f"loop-{i}", self._loop, i)
        for _ in range(FIRST_WORKERS):
            self._start_worker()

    def drain(self, deadline: float) -> bool:
        self.draining = True
        self.socket.shutdown(socket.SHUT_RDWR)
        self.shared.record[0]["draining"] = 1
        for loop in self.shared.loops:
            os.eventfd_write(int(loop["wake"]), 1)
        for thread in self._serving_threads[:len(self.shared.loops)]:
            thread.join(max(0.0, deadline - time.monotonic()))
        os.close(self._queue[1])  # no event loop hands anything over any more: idle workers see the end and return
        for thread in list(self._serving_threads):
            thread.join(max(0.0, deadline + GRACE_S - time.monotonic()))
        return not any(thread.is_alive() for thread in self._serving_threads)

    # --- threads ---

    def _start(self, name: str, target: Callable, *args) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._serving_threads.append(thread)
        thread.start()

    def _work(self, thread: int, received_bytes: int = LOOP_BYTES) -> layout.Work:
        return layout.Work(self.shared, thread, received_bytes, self._scratch_doubles)

    def _loop(self, i: int) -> None:
        work = self._work(i)
        self.native.run_loop(self.shared.address, work.address, i)

    def _start_worker(self) -> None:
        with self._lock:
            if self._free_rows:
                row = self._free_rows.pop(0)
                self._start(f"worker-{row}", self._worker, row)

    def _worker(self, row: int) -> None:
        """Serve what the event loops hand over, until there are enough others who wait for that."""
        work = self._work(len(self.shared.loops) + row)
        gauges = self.shared.gauges
        while gauges[layout.IDLE_WORKERS] < SPARE_WORKERS:
            fd = self.native.take(self.shared.address, work.address)
            if fd < 0:
                return
            if gauges[layout.IDLE_WORKERS] <= 0:
                self._start_worker()
            try:
                self._serve(fd, work)
            except Exception:  # a bug must cost one connection, not a worker and a connection that nobody closes
                self.application.access_log.exception(None)
                self.native.leave(self.shared.address, work.address, fd)
        with self._lock:
            self._free_rows.insert(0, row)
            self._serving_threads.remove(threading.current_thread())

    def _serve(self, fd: int, work: layout.Work) -> None:
        """Serve one connection until it is closed or back in its event loop."""
        native, shared = self.native, self.shared.address
        n = native.begin(shared, work.address, fd)
        connection = None
        while n >= 0:
            outcome = native.serve_owned(shared, work.address, fd, n, LOOP_BYTES)
            if outcome == GONE:
                return
            n, needed = int(work.result[0]), int(work.result[1])
            if outcome == LARGE:
                try:
                    larger = self._work(int(work.record[0]["thread"]), needed)
                except MemoryError:
                    pass  # Python receives it without room for the worst that such a body could hold
                else:
                    larger.received[:n] = work.received[:n]
                    work = larger
                    continue
            connection = connection or HeldConnection(self)
            n = connection.serve(fd, work.received, n, late=outcome == LATE)
            if n < 0:
                native.leave(shared, work.address, fd)


def columns_of_features(schema: Schema, model: TabularModel) -> tuple[list[str] | None, list[str]] | None:
    """For each feature the name, where columns have names, and the type of its column in /invocations.

    None where it is not `predict` that answers there (`scoring_api`), or a type is one that native code does not read.
    """
    defaults = {param.name: param.default for param in schema.params or ()} if schema.is_ours else {}
    if (schema.answer != PREDICT or schema.dtype is not None or schema.flavor == "onnx"
            or defaults.get(RETURN_PROBABILITIES) or (defaults.get(THREADS) or 1) < 1):
        return None
    columns, signature, n = schema.columns, model.signature, model.n_features
    if schema.tensors is not None and len(schema.tensors) == 1:
        tensor = schema.tensors[0]
        if tensor.name is None and tensor.shape == (-1, n):
            columns = (Column(None, TYPES_OF_TENSORS.get(tensor.dtype.str, "")),) * n
    if columns is None or len(columns) != n:
        return None
    by_name = {column.name: column for column in columns}
    if by_name.keys() == set(signature.feature_names or ()) and schema.flavor != "lightgbm":  # else it goes by place
        columns = tuple(by_name[name] for name in signature.feature_names or ())
    elif schema.named and signature.feature_names is not None and schema.flavor in CHECKS_NAMES:
        return None
    types, categories = [column.type for column in columns], signature.categories or (None,) * n
    if any(kind not in (layout.COLUMN_TYPES if strings is None else {"string"})
           for kind, strings in zip(types, categories)):
        return None
    if schema.named:
        return ([str(column.name) for column in columns], types) if len(by_name) == n else None
    needs_names = schema.flavor == "xgboost" and signature.feature_names is not None
    return (None, types) if len(set(types)) == 1 and not needs_names else None


class HeldConnection(Connection):
    """A connection that native code owns and lends to Python for one request at a time."""

    def __init__(self, server: NativeListener):
        self.server, self.client_address = server, ()  # type: ignore[assignment]
        self.setup()

    def serve(self, fd: int, buffer: np.ndarray, n: int, late: bool) -> int:
        """Serve the request that begins at buffer[0:n] → how many bytes of a next one are there; -1: to be closed."""
        self.received[:] = buffer[:n].tobytes()
        self.request = socket.socket(self.server.address_family, socket.SOCK_STREAM, fileno=fd)
        try:
            self.client_address = self.client_address or self.request.getpeername()
            self.time_out() if late else self.handle_one_request()
        except (Gone, OSError):
            self.close_connection = True
        finally:
            self.request.detach()
        if self.close_connection:
            return -1
        n = len(self.received)
        buffer[:n] = np.frombuffer(self.received, np.uint8)
        return n
