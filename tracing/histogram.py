"""Durations and moments of any number of events, in memory that does not grow with them.

The rule to keep: a percentile is off by at most 1 %, counts and sums are exact.

Buckets that grow by a constant factor: Masson, Rim, Lee, "DDSketch", VLDB 2019.
"""

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

ERROR = 0.01
_GROWTH = math.log((1 + ERROR) / (1 - ERROR))
_MIDDLE = 2 / (1 + math.exp(_GROWTH))  # of a bucket, as a share of its upper end; equally wrong at both ends
_log, _ceil = math.log, math.ceil


class Durations:
    """How long calls or requests took, in ns."""

    __slots__ = ("n", "total_ns", "min_ns", "max_ns", "_buckets")

    def __init__(self) -> None:
        self.n = self.total_ns = self.min_ns = self.max_ns = 0
        self._buckets: dict[int, int] = {}

    def add(self, ns: int) -> None:
        bucket = _ceil(_log(ns) / _GROWTH) if ns > 0 else -1
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        if ns > self.max_ns:
            self.max_ns = ns
        if ns < self.min_ns or not self.n:
            self.min_ns = ns
        self.n += 1
        self.total_ns += ns

    def unite(self, other: "Durations") -> None:
        for bucket, n in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + n
        self.min_ns = min((one.min_ns for one in (self, other) if one.n), default=0)
        self.max_ns = max(self.max_ns, other.max_ns)
        self.n += other.n
        self.total_ns += other.total_ns

    @property
    def mean_ns(self) -> float:
        return self.total_ns / self.n if self.n else 0.0

    def percentile(self, p: float) -> float:
        """The smallest duration (ns) that `p` per cent of all do not exceed; 0 where there are none."""
        rank = max(1, math.ceil(self.n * p / 100))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                middle = math.exp(bucket * _GROWTH) * _MIDDLE if bucket >= 0 else 0.0
                return min(max(middle, self.min_ns), self.max_ns)
        return 0.0


class Density:
    """How many events there were in each stretch of time since `start_ns`; stretches double when they get too many."""

    LIMIT = 240

    def __init__(self, start_ns: int):
        self.start_ns, self.width_ns = start_ns, 1 << 14  # 16 µs
        self.counts: list[int] = []

    def add(self, time_ns: int) -> None:
        at = max(0, time_ns - self.start_ns) // self.width_ns
        while at >= self.LIMIT:
            self._double()
            at //= 2
        if at >= len(self.counts):
            self.counts += [0] * (at + 1 - len(self.counts))
        self.counts[at] += 1

    def _double(self) -> None:
        self.counts = [sum(self.counts[i:i + 2]) for i in range(0, len(self.counts), 2)]
        self.width_ns *= 2


Key = TypeVar("Key")
Known = TypeVar("Known")


class Frequent(Generic[Key, Known]):
    """Keys and what is known of each; where there are too many, the rarer half goes, and only its number is kept."""

    def __init__(self, limit: int, weight: Callable[[Known], Any]) -> None:
        self.kept: dict[Key, Known] = {}
        self.n_dropped = 0  # keys; one that comes again after it was dropped is counted anew
        self._limit, self._weight = limit, weight

    def find(self, key: Key, make: Callable[[], Known]) -> Known:
        """What is known of `key`; made where it is new."""
        known = self.kept.get(key)
        if known is None:
            if len(self.kept) >= self._limit:
                self._drop()
            known = self.kept[key] = make()
        return known

    def _drop(self) -> None:
        by_weight = sorted(self.kept, key=lambda key: self._weight(self.kept[key]), reverse=True)
        self.kept = {key: self.kept[key] for key in by_weight[:self._limit // 2]}
        self.n_dropped += len(by_weight) - len(self.kept)
