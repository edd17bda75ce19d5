"""The access log on stderr: a line a request that Python served, and a line a second for the hot path's share.

The rule to keep: one `write` a line, so that lines of many threads never mix; no body, key or query value in it.
"""

import json
import sys
import traceback
from collections.abc import Callable
from datetime import datetime, timezone

import numpy as np

from server import layout
from server.http1 import RequestHead


class AccessLog:
    """Writes lines as `text` or `json` (`--log-format`)."""

    def __init__(self, style: str = "text", stream=None):
        self.style, self.stream = style, stream or sys.stderr

    def request(self, client: tuple, head: RequestHead | None, status: int, seconds: float) -> None:
        fields = {"client": client[0] if client else "-", "method": head.method if head else "-",
                  "path": head.path if head else "-", "status": status, "ms": round(seconds * 1e3, 3)}
        if head and "x-request-id" in head.headers:
            fields["request_id"] = head.headers["x-request-id"]
        self.write("request", fields)

    def hot_share(self, requests: int, rows: int, mean_ms: float) -> None:
        self.write("hot_path", {"requests": requests, "rows": rows, "mean_ms": round(mean_ms, 4)})

    def message(self, text: str) -> None:
        self.write("server", {"message": text})

    def exception(self, head: RequestHead | None) -> None:
        """The exception being handled, with its trace: for the operator; the client sees none of it."""
        self.write("error", {"method": head.method if head else "-", "path": head.path if head else "-",
                             "trace": traceback.format_exc()})

    def write(self, kind: str, fields: dict) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self.style == "json":
            line = json.dumps({"time": now, "kind": kind, **fields})
        else:
            line = f"{now} {kind} " + " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # a closed stderr must not stop the serving
            pass


def _quoted(value) -> str:
    text = str(value)
    return text if text and " " not in text and text.isprintable() and '"' not in text else json.dumps(text)


class HotShare:
    """Logs, whenever it is called, what the hot path did since the last call: each request that has an id, and all
    of them as one line. `totals`: requests, rows, and ns.
    """

    def __init__(self, log: AccessLog, totals: Callable[[], tuple[int, int, int]], shared: layout.Shared | None):
        self.log, self.totals, self.shared, self.before = log, totals, shared, totals()
        self.lines_read = np.zeros(0 if shared is None else len(shared.counts), np.int64)

    def __call__(self) -> None:
        if self.shared is not None:
            self._log_requests(self.shared)
        after = self.totals()
        requests, rows, spent_ns = (new - old for new, old in zip(after, self.before))
        if requests:
            self.log.hot_share(requests, rows, spent_ns / requests / 1e6)
        self.before = after

    def _log_requests(self, shared: layout.Shared) -> None:
        written = shared.counts[:, layout.LOGGED].copy()
        for thread in np.flatnonzero(written - self.lines_read):
            first = max(self.lines_read[thread], written[thread] - layout.LOG_ROWS)
            if first > self.lines_read[thread]:
                self.log.message(f"{first - self.lines_read[thread]} requests with an id were too many to be logged")
            for n in range(first, written[thread]):
                line = shared.logged[thread * layout.LOG_ROWS + n % layout.LOG_ROWS]
                self.log.write("request", {
                    "client": "-", "method": "POST", "path": layout.ROUTES[line["route"]], "status": 200,
                    "ms": round(int(line["latency_ns"]) / 1e6, 3),
                    "request_id": line["id"][:int(line["id_bytes"])].tobytes().decode("ascii")})
        self.lines_read = written
