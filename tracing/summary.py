"""`python -m tracing summary`: the table of `strace -c`, with percentiles, for each phase.

The rule to keep: the shares of a table are of the time in that phase's calls; time is wall time as traced (strace -c
without -w shows system time), so a call that waits comes first.
"""

from argparse import Namespace

from tracing.histogram import Durations
from tracing.overview import Overview, Tally, overview
from tracing.syntax import plain

HEAD = (f"{'% time':>6} {'seconds':>11} {'usecs/call':>11} {'p50':>10} {'p90':>10} {'p99':>10} {'max':>11} {'calls':>9}"
        f" {'errors':>8} syscall")
RULE = " ".join("-" * n for n in (6, 11, 11, 10, 10, 10, 11, 9, 8, 16))


def main(options: Namespace) -> int:
    """`options.traces`: paths → exit status."""
    views = [overview(trace) for trace in options.traces]
    print("\n\n".join((f"{plain(view.path)}\n\n" if len(views) > 1 else "") + text(view) for view in views))
    return 0


def text(view: Overview) -> str:
    """A table a phase that has calls, and one of all."""
    tables = [table(phase.name, view.by_name(phase.name)) for phase in view.phases if phase.calls]
    if len(tables) > 1:
        tables.append(table("all phases", view.by_name()))
    notes = [f"incomplete: {plain(reason)}" for reason in view.reasons]
    if view.reissued:
        notes.append(f"{view.reissued:,} calls that the kernel restarted after a signal are not counted again")
    return "\n\n".join(tables + ["\n".join(notes)] * bool(notes))


def table(title: str, tallies: dict[str, Tally]) -> str:
    whole = Tally()
    for tally in tallies.values():
        whole.unite(tally)
    share = 100 / (whole.durations.total_ns or 1)
    rows = [row(name, tally, share) for name, tally in tallies.items()]
    return "\n".join([f"{title}, durations in µs", HEAD, RULE, *rows, RULE, row("total", whole, share)])


def row(name: str, tally: Tally, share: float) -> str:
    times = tally.durations
    numbers = (times.mean_ns, times.percentile(50), times.percentile(90), times.percentile(99), times.max_ns)
    mean, p50, p90, p99, most = (microseconds(ns, times) for ns in numbers)
    return (f"{times.total_ns * share:6.2f} {times.total_ns / 1e9:11.6f} {mean:>11} {p50:>10} {p90:>10} {p99:>10}"
            f" {most:>11} {tally.n:9} {tally.errors or '':>8} {name}")


def microseconds(ns: float, times: Durations) -> str:
    """Empty where nothing was timed."""
    return "" if not times.n else f"{ns / 1000:.1f}" if ns < 1e6 else f"{ns / 1000:.0f}"
