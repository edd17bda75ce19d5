"""The table of `strace -c`, by phase, with percentiles."""

from argparse import Namespace

import pytest

from tests.tracing.traces import Lines
from tracing import summary
from tracing.errors import TraceError

pytestmark = pytest.mark.core


def rows(text: str, title: str) -> dict[str, list[str]]:
    """Rows of one table: {call: columns before it}."""
    table = next(part for part in text.split("\n\n") if part.startswith(title))
    return {line.split()[-1]: line.split()[:-1] for line in table.splitlines()[3:] if not line.startswith("-")}


def shown(lines: Lines, tmp_path, capsys) -> str:
    assert summary.main(Namespace(traces=[lines.write(tmp_path / "a.trace")])) == 0
    return capsys.readouterr().out


def timed(name: str, microseconds: int, result: str = "0") -> str:
    return f"{name}(3</x>) = {result} <{microseconds / 1e6:.9f}>"


def test_each_phase_has_a_table_with_percentiles(tmp_path, capsys):
    lines = Lines().start().phase("load").phase("serving")
    for microseconds in range(1, 101):
        lines.raw(timed("fsync", microseconds))
    lines.raw(timed("close", 50, "-1 EIO (Input/output error)")).end()
    text = shown(lines, tmp_path, capsys)
    share, seconds, mean, p50, p90, p99, most, calls = rows(text, "serving")["fsync"]
    assert (seconds, mean, most, calls) == ("0.005050", "50.5", "100.0", "100")
    for printed, exact in ((p50, 50), (p90, 90), (p99, 99)):
        assert abs(float(printed) - exact) <= 0.01 * exact + 0.05
    assert float(share) == pytest.approx(100 * 5050 / 5100, abs=0.01)
    assert rows(text, "serving")["close"][-2:] == ["1", "1"]
    assert rows(text, "serving")["total"][-2:] == ["102", "1"]
    assert rows(text, "startup")["total"][-1] == "1"
    assert rows(text, "all phases")["total"][-2:] == ["103", "1"]


def test_shares_of_a_table_add_up_to_a_hundred(tmp_path, capsys):
    lines = Lines().start()
    for i, name in enumerate(("close", "fsync", "fdatasync"), 1):
        lines.raw(timed(name, i))
    table = rows(shown(lines.end(), tmp_path, capsys), "serving")
    assert sum(float(columns[0]) for name, columns in table.items() if name not in ("total", "exit_group")) \
        == pytest.approx(100, abs=0.03)
    assert list(table)[:2] == ["fdatasync", "fsync"]  # by time


def test_one_phase_needs_no_second_table(tmp_path, capsys):
    assert "all phases" not in shown(Lines().start().end(), tmp_path, capsys)


def test_gaps_are_said(tmp_path, capsys):
    assert "incomplete: 1 threads have no exit line" in shown(Lines().start(), tmp_path, capsys)


def test_bad_input_is_one_clear_line(tmp_path):
    with pytest.raises(TraceError) as raised:
        summary.main(Namespace(traces=[tmp_path / "none"]))
    assert str(raised.value) == f"{tmp_path}/none: No such file or directory"
