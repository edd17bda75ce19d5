"""What the server counts, for Prometheus and as the course's JSON: Python's requests and the hot path's as one.

The rule to keep: a request is counted before its answer is sent, so that whoever has N answers finds N.
Native threads count in rows of their own in `layout.Shared`; only the sums are taken here.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from server import layout
from server.process import Process

BOUNDS_S = layout.BUCKET_BOUNDS_NS / 1e9


def hot_requests(counts: np.ndarray) -> np.ndarray:
    """Of a row of `counts`, or their sum: the requests of each of the ROUTES."""
    return counts[layout.REQUESTS:layout.REQUESTS + len(layout.ROUTES)]


class Metrics:
    """Counters of this process, safe to use from all threads."""

    def __init__(self, model_names: list[str]):
        self.model_names = model_names
        self.shared: layout.Shared | None = None  # set when native threads serve
        self.connections: Callable[[], tuple[int, int]] = lambda: (0, 0)  # set by the listener: open, refused so far
        self._start_s = time.monotonic()
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()  # (route, status)
        self._rows: Counter[str] = Counter()  # by model
        self._buckets = np.zeros(len(BOUNDS_S) + 1, np.int64)  # of successful predict requests
        self._seconds = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._process = Process()

    def count(self, route: str, status: int, seconds: float, model: str, rows: int) -> None:
        with self._lock:
            self._requests[route, status] += 1
            if rows:
                self._rows[model] += rows
                self._buckets[np.searchsorted(BOUNDS_S, seconds)] += 1
                self._seconds += seconds

    def hot_totals(self) -> tuple[int, int, int]:
        """Requests, rows and nanoseconds of the hot path since the start."""
        if self.shared is None:
            return 0, 0, 0
        counts = self.shared.counts.sum(0)
        return int(hot_requests(counts).sum()), int(self.shared.predictions.sum()), int(counts[layout.LATENCY_NS])

    def as_text(self) -> tuple[str, bytes]:
        """(content type, the exposition)."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def as_json(self) -> dict[str, float]:
        """The course's four figures; the average is that of successful predict requests."""
        hot, hot_rows, hot_ns = self.hot_totals()
        with self._lock:
            total = hot + sum(self._requests.values())
            if self.shared is not None:
                total += int(self.shared.gauges[layout.TIMEOUTS])
            rows = hot_rows + sum(self._rows.values())
            answered, seconds = hot + int(self._buckets.sum()), hot_ns / 1e9 + self._seconds
        return {"total_requests": total, "total_predictions": rows,
                "avg_latency_ms": round(seconds / answered * 1e3, 4) if answered else 0.0,
                "uptime_seconds": round(time.monotonic() - self._start_s, 3)}

    def collect(self) -> Iterator:
        """The metric families, as prometheus_client asks for them."""
        hot_ns = self.hot_totals()[2]
        requests = CounterMetricFamily("testigo_requests", "Requests answered, by who served them.",
                                       labels=("route", "status", "path"))
        rows = CounterMetricFamily("testigo_predictions", "Rows predicted.", labels=("model",))
        latency = HistogramMetricFamily("testigo_predict_latency_seconds",
                                        "From the parsed head of a predict request to its answer, successes only.")
        with self._lock:
            for (route, status), n in sorted(self._requests.items()):
                requests.add_metric((route, str(status), "python"), n)
            buckets, seconds = self._buckets.copy(), self._seconds
            slow_rows = dict(self._rows)
        if self.shared is not None:
            for route, n in zip(layout.ROUTES, hot_requests(self.shared.counts.sum(0)).tolist()):
                requests.add_metric((route, "200", "hot"), n)
            requests.add_metric(("malformed", "408", "hot"), int(self.shared.gauges[layout.TIMEOUTS]))
            buckets += self.shared.counts.sum(0)[layout.BUCKETS:layout.BUCKETS + len(buckets)]
            seconds += hot_ns / 1e9
        for i, name in enumerate(self.model_names):
            hot_rows = int(self.shared.predictions[:, i].sum()) if self.shared is not None else 0
            rows.add_metric((name,), slow_rows.get(name, 0) + hot_rows)
        edges = [f"{bound:g}" for bound in BOUNDS_S] + ["+Inf"]
        latency.add_metric((), [(edge, int(n)) for edge, n in zip(edges, np.cumsum(buckets))], seconds)
        yield from (requests, rows, latency)
        opened, refused = self.connections()
        if self.shared is not None:
            opened, refused = (int(self.shared.gauges[i]) for i in (layout.CONNECTIONS, layout.REFUSED))
        yield GaugeMetricFamily("testigo_connections", "Open connections.", opened)
        yield CounterMetricFamily("testigo_refused_connections", "Connections over --max-connections.", refused)
        yield GaugeMetricFamily("testigo_uptime_seconds", "Since the start.", time.monotonic() - self._start_s)
        # The names are those of Prometheus's own clients.
        yield CounterMetricFamily("process_cpu_seconds", "User and system time.", self._process.cpu_s())
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", self._process.resident_bytes())
        yield GaugeMetricFamily("process_open_fds", "Open descriptors.", self._process.n_descriptors())
        yield GaugeMetricFamily("process_start_time_seconds", "Since 1970.", self._process.create_time_s)
