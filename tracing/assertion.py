"""An assertion of a policy, read and typed: what `policy` makes of TOML and `checks` works with."""

from dataclasses import dataclass
from typing import Any, NamedTuple


class Bound(NamedTuple):
    """An interval of numbers, both ends included."""

    low: float
    high: float

    def __contains__(self, n: object) -> bool:
        return isinstance(n, (int, float)) and self.low <= n <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        if self.low == float("-inf"):
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high == float("inf") else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Assertion:
    policy: str
    name: str
    phases: frozenset[str]
    check: str
    options: dict[str, Any]  # as checks.CHECKS types them
