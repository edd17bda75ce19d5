"""The report as one page of HTML that needs nothing else: verdict, why, time line, calls, files, peers, evidence.

The rule to keep: every text that a traced program chose goes through `shown`. The page loads nothing and can be read
without script; the script only filters tables.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from shlex import join
from string import Template

from tracing.checks import FAIL, INCONCLUSIVE, PASS, Offence, Outcome
from tracing.histogram import Durations
from tracing.judge import BLIND_SPOTS, Judgement
from tracing.overview import Exchanged, FileUse, Overview, Process, Requests, Tally, duration
from tracing.syntax import plain
from tracing.timeline import clock, timeline

TEMPLATE = Path(__file__).with_name("report.html")
SHOWN_FILES, SHOWN_PEERS, SHOWN_PROCESSES = 300, 100, 50
PERCENTILES = (50, 90, 99)
NOT_JUDGED = "NOT JUDGED"
SORTED = {FAIL: 0, INCONCLUSIVE: 1, PASS: 2}

Reported = tuple[Overview, Judgement | None]


def page(reports: Sequence[Reported]) -> str:
    """The whole page; a part for each trace."""
    name = Path(reports[0][0].path).name + (f" and {len(reports) - 1} more" if len(reports) > 1 else "")
    title = f"{worst(judgement for _, judgement in reports)}: {name}"
    body = (_contents(reports) if len(reports) > 1 else "") + "\n".join(
        article(view, judgement, number) for number, (view, judgement) in enumerate(reports, 1))
    return Template(TEMPLATE.read_text("utf-8")).substitute(title=shown(title), body=body)


def worst(judgements: Iterable[Judgement | None]) -> str:
    return min(map(_verdict, judgements), key=lambda verdict: SORTED.get(verdict, 3))


def _contents(reports: Sequence[Reported]) -> str:
    rows = "".join(f'<li><span class="badge {_tone(judgement)}">{_verdict(judgement)}</span>'
                   f' <a href="#trace-{number}">{shown(view.path)}</a></li>'
                   for number, (view, judgement) in enumerate(reports, 1))
    return f"<h1>{len(reports)} traces</h1>\n<ol>{rows}</ol>\n"


def _verdict(judgement: Judgement | None) -> str:
    return judgement.verdict if judgement else NOT_JUDGED


def _tone(judgement: Judgement | None) -> str:
    """The class that gives the colour."""
    return judgement.verdict if judgement else "none"


def article(view: Overview, judgement: Judgement | None, number: int) -> str:
    parts = "".join(f"<section>\n<h2>{heading}</h2>\n{content}</section>\n" for heading, content in (
        (heading, write(view, judgement)) for heading, write in SECTIONS) if content)
    return f'<article id="trace-{number}">\n{_head(view, judgement)}{parts}</article>'


def shown(text: object) -> str:
    return escape(plain(str(text)))


# --- the verdict --------------------------------------------------------------------------------

def why(judgement: Judgement | None, view: Overview | None = None) -> str:
    """The verdict's reason in one sentence."""
    if judgement is None:
        reasons = view.reasons if view else ()
        return "No policy was given." + (f" The evidence is not whole: {reasons[0]}." if reasons else "")
    of = ", ".join(judgement.policies)
    bad = [outcome for outcome in judgement.outcomes if outcome.verdict == judgement.verdict]
    if judgement.verdict == PASS:
        return f"All {len(judgement.outcomes)} assertions of {of} hold, and nothing is missing from the evidence."
    if judgement.verdict == FAIL:
        first = bad[0]
        reason = _reason(first.offences[0]) if first.offences else first.detail
        others = f" (and {len(bad) - 1} more {'assertions fail' if len(bad) > 2 else 'assertion fails'})"
        others *= len(bad) > 1
        return f"“{first.name}” of {first.policy} does not hold: {reason}{others}."
    missing = [*judgement.reasons, *(f"“{outcome.name}” of {outcome.policy}: {outcome.detail}" for outcome in bad)]
    others = f" (and {len(missing) - 1} more)" * (len(missing) > 1)
    first_missing = missing[0] if missing else "the evidence is not whole"
    return f"Nothing was seen that {of} forbids, but it is not proven: {first_missing}{others}."


def _reason(one: Offence) -> str:
    """Why, with the call's name where it is not said."""
    name = one.call.partition("(")[0]
    return one.why if name in one.why or not name.isidentifier() else f"{name} {one.why}"


def _head(view: Overview, judgement: Judgement | None) -> str:
    about = join(view.header.command) if view.header else Path(view.path).name
    began = datetime.fromtimestamp(view.start_ns // 10**9, timezone.utc)
    at = began.strftime("%Y-%m-%d %H:%M:%S UTC") if view.start_ns else ""
    figures = (("calls", f"{view.n_calls:,}"), ("failed calls", f"{sum(phase.errors for phase in view.phases):,}"),
               ("requests", f"{view.n_requests:,}"), ("processes", f"{len(view.processes) + view.more_processes:,}"),
               ("traced for", duration(view.end_ns - view.start_ns) if view.start_ns else "–"))
    return (f'<h1><code>{shown(about)}</code> <small>{at}</small></h1>\n'
            f'<div class="verdict {_tone(judgement)}" role="status"><b>{_verdict(judgement)}</b>'
            f"<p>{shown(why(judgement, view))}</p></div>\n"
            f'<div class="figures">{"".join(f"<div><b>{n}</b>{what}</div>" for what, n in figures)}</div>\n')


def _outcomes(view: Overview, judgement: Judgement | None) -> str:
    ordered = sorted(judgement.outcomes, key=lambda outcome: SORTED[outcome.verdict]) if judgement else []
    return "".join(map(_outcome, ordered))


def _outcome(one: Outcome) -> str:
    more = one.n_offences - len(one.offences)
    offences = "".join(map(_offence, one.offences))
    parts = [f'<div class="outcome"><span class="badge {one.verdict}">{one.verdict}</span> <b>{shown(one.name)}</b>',
             f' <span class="soft">{shown(one.policy)}</span>', f"<div>{shown(one.detail)}</div>" * bool(one.detail),
             f"<ol>{offences}</ol>" * bool(offences), f"<div>… and {more:,} more</div>" * (more > 0), "</div>\n"]
    return "".join(parts)


def _offence(one: Offence) -> str:
    where = f"line {one.line:,}, {clock(one.time_ns)}, thread {one.tid}, {one.phase}: " if one.line else ""
    return f"<li>{shown(where + one.why)}" + (f"<code>{shown(one.call)}</code>" if one.call else "") + "</li>"


def _gaps(view: Overview, judgement: Judgement | None) -> str:
    reasons = judgement.reasons if judgement else view.reasons
    return _list(reasons) if reasons else ""


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{shown(text)}</li>" for text in texts) + "</ul>\n"


def _notes(view: Overview, judgement: Judgement | None) -> str:
    return _list(judgement.notes) if judgement and judgement.notes else ""


# --- tables -------------------------------------------------------------------------------------

Cell = str  # HTML; a number where it begins with ">"
TIMES = ("mean", "p50", "p90", "p99", "max")


def NUMBERS(*names: str) -> list[str]:
    """Headings of columns of numbers."""
    return [f">{name}" for name in names]


def _number(text: str) -> Cell:
    return ">" + text


def _n(n: int) -> Cell:
    return f">{n:,}" if n else ">"


def _table(head: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    tops = "".join(_cell("th", cell) for cell in head)
    body = "".join("<tr>" + "".join(_cell("td", cell) for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{tops}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _cell(tag: str, cell: Cell) -> str:
    if cell.startswith(">"):
        return f'<{tag} class="n">{cell[1:]}</{tag}>'
    return f'<{tag} class="text">{cell}</{tag}>' if len(cell) > 60 and tag == "td" else f"<{tag}>{cell}</{tag}>"


def _times_of(times: Durations) -> list[str]:
    """Mean, percentiles, maximum; empty where nothing was timed."""
    known = (times.mean_ns, *map(times.percentile, PERCENTILES), times.max_ns)
    return [_number(duration(ns) if times.n else "") for ns in known]


# --- time ---------------------------------------------------------------------------------------

def _times(view: Overview, judgement: Judgement | None) -> str:
    if not view.start_ns:
        return "<p>The trace has no times: record with <code>--absolute-timestamps</code>.</p>\n"
    offences = [offence for outcome in judgement.outcomes for offence in outcome.offences] if judgement else []
    drawn = len(view.sample)
    some = f"<p>The first {drawn:,} of {view.n_requests:,} requests are drawn.</p>" * (view.n_requests > drawn)
    return (f'<p class="soft">The bar shows each phase\'s true share; below, each has a scale of its own. Durations are'
            f" those of a traced run: slower than without.</p>{timeline(view, offences)}"
            f'<p class="key">{_key(view, offences)}</p>{some}\n')


KEY = {"calls": "calls (square roots)", "hot": "request", "marked": "request with a marker",
       "lost": "request without an answer", "offence": "not allowed"}


def _key(view: Overview, offences: Sequence[Offence]) -> str:
    drawn = {"calls"} | {"lost" if one.duration_ns < 0 else "marked" if one.marked else "hot" for one in view.sample}
    drawn |= {"offence"} if any(one.time_ns for one in offences) else set()
    said = "".join(f'<span><i class="{kind}"></i>{what}</span>' for kind, what in KEY.items() if kind in drawn)
    return said + '<span class="soft">height: from its first bytes to its answer</span>' * bool(view.sample)


KINDS = {"hot path": "without a marker", "marked": "with a marker"}
REQUEST_HEAD = ["requests", *NUMBERS("number", "unanswered", "receives", "sends", *TIMES), "calls a request: how often"]
SLOW_HEAD = ["request", "phase", "arrived (UTC)", *NUMBERS("line", "calls", "receives", "sends", "took")]


def _requests(view: Overview, judgement: Judgement | None) -> str:
    if not view.requests:
        return ""
    rows = [_request_row(kind_name(view, kind), requests) for kind, requests in view.requests.items()]
    slowest = [[f"<code>{shown(one.id)}</code>", one.phase, clock(one.start_ns),
                *map(_n, (one.line, one.calls, one.arrivals, one.sends)), _number(_took(one))] for one in view.slowest]
    return _table(REQUEST_HEAD, rows) + (
        f"<details><summary>The slowest requests</summary>{_table(SLOW_HEAD, slowest)}</details>\n")


def kind_name(view: Overview, kind: str) -> str:
    return KINDS[kind] if "marked" in view.requests else "all"


def _took(one: Exchanged) -> str:
    return duration(one.duration_ns) if one.duration_ns >= 0 else "no answer"


def _request_row(kind: str, requests: Requests) -> list[str]:
    common = requests.calls.most_common(5)
    often = ", ".join(f"{calls}{'+' if calls == Requests.MANY else ''}: {n:,}" for calls, n in common)
    rest = requests.n - sum(n for _, n in common)
    return [kind, *map(_n, (requests.n, requests.unanswered, requests.arrivals, requests.sends)),
            *_times_of(requests.durations), often + f", others: {rest:,}" * bool(rest)]


# --- calls, files, peers, processes ------------------------------------------------------------------

def _calls(view: Overview, judgement: Judgement | None) -> str:
    phases = [phase for phase in view.phases if phase.calls]
    first = next((phase for phase in phases if phase.name == "serving"), phases[0])
    tables = [_calls_of(f"{one.name}: {one.calls:,} calls", view.by_name(one.name), one is first) for one in phases]
    if len(phases) > 1:
        tables.append(_calls_of(f"all phases: {view.n_calls:,} calls", view.by_name(), False))
    again = f" {view.reissued:,} calls that the kernel restarted after a signal are not counted again."
    said = "By time; it is wall time, waiting included, as traced." + again * bool(view.reissued)
    return f'{_filter("call")}<p class="soft">{said}</p>{"".join(tables)}'


def _filter(what: str) -> str:
    return (f'<input hidden data-filters type="search" placeholder="filter by {what}"'
            f' aria-label="filter by {what}">')


CALLS_HEAD = ["call", *NUMBERS("calls", "failed", "total", *TIMES)]


def _calls_of(title: str, tallies: dict[str, Tally], is_open: bool) -> str:
    rows = [[f"<code>{shown(name)}</code>", _n(tally.n), _n(tally.errors),
             _number(duration(tally.durations.total_ns) if tally.durations.n else ""), *_times_of(tally.durations)]
            for name, tally in tallies.items()]
    return f"<details{' open' * is_open}><summary>{shown(title)}</summary>{_table(CALLS_HEAD, rows)}</details>\n"


def _files(view: Overview, judgement: Judgement | None) -> str:
    if not view.files:
        return "<p>No call that opens a file is in this trace.</p>\n"
    written = [use for use in view.files if use.writes]
    served = [use for use in view.files if "serving" in use.phases and not use.writes and use.reads]
    rest = [use for use in view.files if use.reads and not use.writes and "serving" not in use.phases]
    failed = [use for use in view.files if not use.reads and not use.writes]
    groups = (("opened for writing", written, True), ("read while serving", served, True),
              ("read in other phases", rest, False), ("looked for, not opened", failed, False))
    more = f"<p>{view.more_files:,} more paths, each seldom opened, are not kept.</p>" * bool(view.more_files)
    return _filter("path") + "".join(_files_of(*group) for group in groups) + more


def _files_of(title: str, uses: list[FileUse], is_open: bool) -> str:
    if not uses:
        return f"<p><b>{title}:</b> none</p>\n"
    rows = [[f'<code>{shown(use.path)}</code>', _n(use.reads), _n(use.writes), _n(use.failures), _phases(use.phases)]
            for use in uses[:SHOWN_FILES]]
    table = _table(["path", *NUMBERS("read", "written", "failed"), "in"], rows) + _more(len(uses) - SHOWN_FILES)
    is_open = is_open and len(uses) <= 20
    return f"<details{' open' * is_open}><summary>{title}: {len(uses):,}</summary>{table}</details>\n"


def _more(n: int) -> str:
    return f"<p>… and {n:,} more</p>\n" * (n > 0)


def _phases(phases: set[str]) -> str:
    return shown(", ".join(sorted(phases)))


def _peers(view: Overview, judgement: Judgement | None) -> str:
    rows = [[f"<code>{shown(one.address)}</code>", one.way, *map(_n, (one.n, one.failures, one.line)),
             _phases(one.phases)] for one in view.peers[:SHOWN_PEERS]]
    head = ["address", "way", *NUMBERS("times", "failed", "first line"), "in"]
    return (_table(head, rows) if rows else "<p>None was seen.</p>\n") + _more(
        len(view.peers) - len(rows) + view.more_peers)


def _exposure(view: Overview, judgement: Judgement | None) -> str:
    if not view.listening:
        return "<p>No socket was seen to listen.</p>\n"
    reach = {True: "<b>other machines can reach it</b>", False: "this machine only"}
    return _table(["listens at", "type", "exposure"], [
        [f"<code>{shown(address)}</code>", shown(kind), reach[exposed]] for address, kind, exposed in view.listening])


def _processes(view: Overview, judgement: Judgement | None) -> str:
    rows = [_process(one) for one in view.processes[:SHOWN_PROCESSES]]
    signals = ", ".join(f"{name} × {n:,} in {phase or 'the beginning'}" for (phase, name), n in view.signals.items())
    head = [*NUMBERS("pid"), "program", *NUMBERS("threads", "calls"), "end"]
    return (_table(head, rows) + _more(len(view.processes) - len(rows) + view.more_processes)
            + f"<p>Signals: {shown(signals)}.</p>\n" * bool(signals))


def _process(one: Process) -> list[Cell]:
    programs = "<br>".join(f"<code>{shown(program)}</code>" for program in one.programs)
    return [_number(str(one.pid)), programs or "as its parent", _n(one.threads), _n(one.calls),
            shown(one.end) or "no exit line"]


# --- evidence -----------------------------------------------------------------------------------

def _blind_spots(view: Overview, judgement: Judgement | None) -> str:
    return _list(BLIND_SPOTS)


def _recording(view: Overview, judgement: Judgement | None) -> str:
    rows = ((term, f"<code>{shown(said)}</code>" if term in CODE else shown(said)) for term, said in recording(view))
    return "<dl>" + "".join(f"<dt>{term}</dt><dd>{said}</dd>" for term, said in rows) + "</dl>\n"


CODE = {"command", "strace options", "sha256", "trace"}


def recording(view: Overview) -> list[tuple[str, str]]:
    """How the trace was recorded: (term, what) for people."""
    header, footer = view.header, view.footer
    known = [("recorded by", "unknown: the trace has no header")] if header is None else [
        ("command", join(header.command)), ("profile", header.profile), ("traced calls", ", ".join(header.traced)),
        ("strace", header.strace), ("strace options", join(header.options)),
        ("seccomp-bpf", "on: other calls ran at native speed" if header.seccomp_bpf else "off"),
        ("began", "attached to a process that ran" if header.attached else "with the program"),
        ("system", header.system), ("python", header.python)]
    ended = [("ended", "no footer: the recording was cut off")] if footer is None else [
        ("ended", f"{'whole' if footer.recorded else 'strace or the recorder was killed'}, {footer.seconds:,.1f} s")]
    cost = [("cost of recording", view.cost)] if view.cost else []
    return [*known, *ended, *cost, ("lines", f"{view.lines:,}"), ("trace", view.path), ("sha256", view.sha256)]


SECTIONS: tuple[tuple[str, Callable[[Overview, Judgement | None], str]], ...] = (
    ("Why", _outcomes), ("What is missing from the evidence", _gaps), ("Time", _times), ("Requests", _requests),
    ("System calls", _calls), ("Files", _files), ("Peers", _peers), ("Exposure", _exposure), ("Processes", _processes),
    ("Notes", _notes), ("What no trace shows", _blind_spots), ("How it was recorded", _recording))
