"""The time line of a report: each phase on a scale of its own, its calls as a curve, its requests as dots above them.

The rule to keep: readable with one request and with thousands, so what is drawn depends on bins and a bounded sample,
never on the number of events. No script, and no text in the drawing (it is stretched); each bin has a title.
"""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from html import escape
from typing import NamedTuple, Self

from tracing.checks import Offence
from tracing.histogram import Density
from tracing.overview import Exchanged, Overview, PhaseView, duration
from tracing.syntax import plain

WIDTH, LOW, HIGH = 1000, 34, 150  # of a phase without, and with, requests
CURVE = 30  # height of the curve of calls
MARGIN = 8
SHARES = ("startup", "load", "warmup", "serving", "drain", "shutdown")


def timeline(overview: Overview, offences: Sequence[Offence] = ()) -> str:
    """HTML: a bar with the true shares, then a strip a phase; what a policy does not allow is a line across it."""
    strips = [strip(phase, overview, [one for one in offences if one.phase == phase.name and one.time_ns])
              for phase in overview.phases]
    return bar(overview.phases) + "".join(strips)


def bar(phases: Sequence[PhaseView]) -> str:
    total = sum(phase.duration_ns for phase in phases) or 1
    parts = "".join(
        f'<i class="{_class(phase)}" style="flex-grow:{max(phase.duration_ns / total, 0.002):.4f}"'
        f' title="{escape(phase.name)}: {duration(phase.duration_ns)}"></i>' for phase in phases)
    return f'<div class="shares" role="img" aria-label="share of each phase in the time">{parts}</div>'


def strip(phase: PhaseView, overview: Overview, offences: Sequence[Offence]) -> str:
    sample = [one for one in overview.sample if one.phase == phase.name]
    height = HIGH if sample else LOW
    counts = f"{phase.calls:,} calls" + f", {phase.errors:,} failed" * bool(phase.errors)
    counts += f", {phase.requests:,} requests" * bool(phase.requests)
    scale = Scale.around(sample)
    drawing = "".join([_curve(phase, height), _dots(phase, sample, scale), _hover(phase, height),
                       _offences(phase, offences, height)])
    took = duration(phase.duration_ns)
    return (f'<div class="strip {_class(phase)}"><div class="what"><b>{escape(phase.name)}</b> {took}'
            f'<small>{counts}</small></div><div class="drawing" style="height:{height}px">'
            f'{scale.labels() if sample else ""}'
            f'<svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img"'
            f' aria-label="{escape(phase.name)}: {counts}">{drawing}</svg></div>'
            f'<div class="axis"><span>{clock(phase.start_ns)}</span><span>+{took}</span></div></div>')


def clock(ns: int) -> str:
    """Time of day (UTC), to the millisecond; "" where the trace has no times."""
    at = datetime.fromtimestamp(ns // 1_000_000 / 1000, timezone.utc)
    return at.strftime("%H:%M:%S.%f")[:-3] if ns else ""


def _class(phase: PhaseView) -> str:
    return f"phase-{phase.name}" if phase.name in SHARES else ""


def _x(phase: PhaseView, ns: int) -> float:
    return round(min(max((ns - phase.start_ns) / (phase.duration_ns or 1), 0), 1) * WIDTH, 1)


def _bins(phase: PhaseView, density: Density) -> Iterator[tuple[float, float, int]]:
    """(left, right, count) of each stretch; the last may go on after the phase."""
    for at, count in enumerate(density.counts):
        begin = density.start_ns + at * density.width_ns
        yield _x(phase, begin), _x(phase, begin + density.width_ns), count


def _curve(phase: PhaseView, height: int) -> str:
    """Calls in each stretch, on a scale of square roots: a few must show beside thousands."""
    most = math.sqrt(max(phase.density.counts, default=0)) or 1
    steps = "".join(f"L{left:g} {_top(count, most, height)}H{right:g}"
                    for left, right, count in _bins(phase, phase.density))
    return f'<path class="calls" d="M0 {height}{steps}V{height}Z"/>'


def _top(count: int, most: float, height: int) -> str:
    return f"{height - math.sqrt(count) / most * CURVE:.1f}"


class Scale(NamedTuple):
    """Durations on a logarithmic axis, from 10**low to 10**high ns."""

    low: int
    high: int

    @classmethod
    def around(cls, sample: Sequence[Exchanged]) -> Self:
        known = [max(one.duration_ns, 1) for one in sample if one.duration_ns >= 0] or [1]
        low = math.floor(math.log10(min(known)))
        return cls(low, max(math.ceil(math.log10(max(known))), low + 1))

    def y(self, ns: int) -> str:
        share = (math.log10(max(ns, 1)) - self.low) / (self.high - self.low)
        return f"{MARGIN + (1 - share) * (HIGH - CURVE - 2 * MARGIN):.1f}"

    def labels(self) -> str:
        return "".join(f'<em style="top:{self.y(10**power)}px">{duration(10**power)}</em>'
                       for power in range(self.low, self.high + 1))


def _dots(phase: PhaseView, sample: Sequence[Exchanged], scale: Scale) -> str:
    """Requests by arrival and duration, those with a marker apart; those without an answer are ticks at the top."""
    kinds = {"hot": [], "marked": [], "lost": []}  # type: dict[str, list[str]]
    for one in sample:
        kind = "lost" if one.duration_ns < 0 else "marked" if one.marked else "hot"
        x = f"M{_x(phase, one.start_ns):g} "
        kinds[kind].append(x + (f"0v{MARGIN}" if kind == "lost" else f"{scale.y(one.duration_ns)}h0"))
    return "".join(f'<path class="dots {kind}" d="{"".join(points)}"/>' for kind, points in kinds.items() if points)


def _offences(phase: PhaseView, offences: Sequence[Offence], height: int) -> str:
    return "".join(f'<path class="offence" d="M{_x(phase, one.time_ns):g} 0v{height}">'
                   f'<title>{escape(plain(f"{one.call}: {one.why}"))}</title></path>' for one in offences)


def _hover(phase: PhaseView, height: int) -> str:
    """What each stretch holds, as titles of rectangles that are not seen."""
    wide = max(1, math.ceil(len(phase.density.counts) / 120))
    span = wide * phase.density.width_ns
    titles = []
    for at in range(0, len(phase.density.counts), wide):
        begin = at * phase.density.width_ns
        calls, came = sum(phase.density.counts[at:at + wide]), _between(phase.arrivals, begin, begin + span)
        left, right = _x(phase, phase.start_ns + begin), _x(phase, phase.start_ns + begin + span)
        said = f"{clock(phase.start_ns + begin)} +{duration(span)}: {calls:,} calls"
        said += f", {came:,} requests" * bool(came)
        titles.append(f'<rect class="bin" x="{left:g}" width="{right - left:.1f}" height="{height}">'
                      f"<title>{escape(said)}</title></rect>")
    return "".join(titles)


def _between(density: Density, begin: int, end: int) -> int:
    """Events from `begin` to `end` (ns after its start): exact, as widths are powers of two; 0 where it is coarser."""
    return sum(density.counts[begin // density.width_ns:end // density.width_ns])
