"""Benchmarks run with --thresholds only (`make latency`): `make test` decides nothing by time.

Each goal is recorded with what was measured, and the table of all is printed at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.load import Spread


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thresholds", action="store_true", help="measure, and fail below the goals")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    measuring = config.getoption("--thresholds", default=False)
    return True if collection_path.suffix == ".py" and not measuring else None


@dataclass(frozen=True)
class Goal:
    """What a figure shall be. Fails beyond `tolerance`, a share of it: the machine is not ours alone."""
    sign: str  # "≥" or "≤"
    value: float
    tolerance: float = 0.0

    @property
    def threshold(self) -> float:
        return self.value * (1 - self.tolerance if self.sign == "≥" else 1 + self.tolerance)

    def holds(self, measured: float, limit: float) -> bool:
        return measured >= limit if self.sign == "≥" else measured <= limit


class Record:
    """What was measured against which goal."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def check(self, *figures: tuple[str, Sequence[float], Goal]) -> None:
        """Note each figure's values of all rounds, then fail if a median is beyond its goal's threshold."""
        missed = []
        for what, values, goal in figures:
            spread = Spread.of(values)
            verdict = ("met" if goal.holds(spread.median, goal.value)
                       else "within tolerance" if goal.holds(spread.median, goal.threshold) else "MISSED")
            line = (f"{what:62} {str(spread):34} goal {goal.sign} {goal.value:g}"
                    f"{f', fails beyond {goal.threshold:.3g}' if goal.tolerance else ''}: {verdict}")
            self.lines.append(line)
            missed += [line] if verdict == "MISSED" else []
        if missed:
            pytest.fail("\n".join(missed), pytrace=False)


RECORD = pytest.StashKey[Record]()


@pytest.fixture
def goals(request: pytest.FixtureRequest) -> Record:
    return request.config.stash.setdefault(RECORD, Record())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    record = config.stash.get(RECORD, None)
    if record:
        terminalreporter.section("goals: median (lowest … highest)")
        for line in record.lines:
            terminalreporter.write_line(line)
