"""Reports about traces: text, one page of HTML, JSON, JUnit XML.

The rule to keep: a report never says more than the judgement: without a policy there is no verdict, and a trace with
gaps says so in every format.

JSON: {"version": 1, "verdict", "reports": [one a trace]}; `as_dict` has its keys. They stay; more may come.
"""

import json as jsons
import xml.etree.ElementTree as ET
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracing import judge, page
from tracing.checks import FAIL, INCONCLUSIVE, PASS, Offence, Outcome
from tracing.errors import TraceError
from tracing.histogram import Durations
from tracing.judge import Judgement
from tracing.overview import Overview, duration, overview
from tracing.page import PERCENTILES, Reported, recording
from tracing.policy import Policy, load_all
from tracing.syntax import plain

VERSION = 1
Target = str | Path | None  # a file to write, if any
SHOWN_CALLS, SHOWN_FILES, SHOWN_PEERS = 12, 10, 20


def main(options: Namespace) -> int:
    """`python -m tracing report TRACE… [--policy …] [--html FILE] [--json FILE] [--junit FILE]` → exit status."""
    if options.junit and not options.policy:
        raise TraceError("--junit needs --policy: without one there is nothing to hold or fail")
    policies = load_all(options.policy)
    reports = [examine(trace, policies) for trace in options.traces]
    write_all(reports, options.html, options.json, options.junit)
    print("\n\n".join(text(view, judgement) for view, judgement in reports))
    if policies and len(reports) > 1:
        print(f"{page.worst(judgement for _, judgement in reports)} of {len(reports)} traces")
    return max((judge.STATUS[judgement.verdict] for _, judgement in reports if judgement), key=GRAVITY.index, default=0)


GRAVITY = [judge.STATUS[PASS], judge.STATUS[INCONCLUSIVE], judge.STATUS[FAIL]]  # FAIL is not the highest number


def examine(trace: str | Path, policies: Sequence[Policy]) -> Reported:
    return overview(trace), judge.judge(trace, policies) if policies else None


def write(trace: str | Path, judgement: Judgement | None, *, html: Target = None, json: Target = None,
          junit: Target = None, cost: str | None = None) -> None:
    """Write the reports that are asked for, about a trace that was judged already."""
    if html or json or junit:
        write_all([(overview(trace, cost), judgement)], html, json, junit)


def write_all(reports: Sequence[Reported], html: Target, json: Target, junit: Target) -> None:
    judgements = [judgement for _, judgement in reports if judgement]
    if html:
        _write(Path(html), page.page(reports))
    if json:
        _write(Path(json), json_text(reports))
    if junit:
        _write(Path(junit), junit_text(judgements))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


def html(view: Overview, judgement: Judgement | None) -> str:
    """One self-contained page."""
    return page.page([(view, judgement)])


# --- text ---------------------------------------------------------------------------------------

def text(view: Overview, judgement: Judgement | None) -> str:
    """A screen or two; with a judgement, the last line begins with the verdict."""
    parts = [f"{plain(view.path)}: {view.n_calls:,} calls in {duration(view.end_ns - view.start_ns)}"]
    for heading, lines in (("phases", _phases(view)), ("requests", _requests(view)), (_where(view), _calls(view)),
                           ("files", _files(view)), ("peers", _peers(view)), ("processes", _processes(view)),
                           ("recorded", [f"{term}: {plain(said)}" for term, said in recording(view)])):
        parts += [heading, *(f"  {line}" for line in lines)] if lines else []
    if judgement:
        return "\n".join([*parts, "judged", *map(plain, judge.text(judgement).split("\n"))])
    return "\n".join([*parts, *(f"incomplete: {plain(reason)}" for reason in view.reasons), page.why(None)])


def _phases(view: Overview) -> list[str]:
    return [f"{phase.name:10}{duration(phase.duration_ns):>10}{phase.calls:>10,} calls{phase.errors:>8,} failed"
            + f"{phase.requests:>9,} requests" * bool(phase.requests) for phase in view.phases]


def _requests(view: Overview) -> list[str]:
    lines = []
    for kind, requests in view.requests.items():
        (calls, n), *_ = requests.calls.most_common(1)
        times = ", ".join(f"p{p} {duration(requests.durations.percentile(p))}" for p in PERCENTILES)
        lines.append(f"{page.kind_name(view, kind):18}{requests.n:>7,}, {requests.unanswered:,} unanswered; {times},"
                     f" max {duration(requests.durations.max_ns)}; {calls} calls in {n:,} of them")
    return lines


def _busiest(view: Overview) -> str:
    names = [phase.name for phase in view.phases if phase.calls]
    return "serving" if "serving" in names else names[-1]


def _where(view: Overview) -> str:
    return f"calls in {_busiest(view)}, by time"


def _calls(view: Overview) -> list[str]:
    tallies = view.by_name(_busiest(view))
    lines = [f"{'call':18}{'calls':>9}{'failed':>8}{'total':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}"]
    for name, tally in list(tallies.items())[:SHOWN_CALLS]:
        times = tally.durations
        lines.append(f"{name:18}{tally.n:>9,}{tally.errors:>8,}" + "".join(f"{duration(ns):>10}" for ns in (
            times.total_ns, *map(times.percentile, PERCENTILES), times.max_ns)))
    return lines + _more(len(tallies) - SHOWN_CALLS, "calls (see: summary)")


def _files(view: Overview) -> list[str]:
    opened = [use for use in view.files if use.reads or use.writes]
    shown = [use for use in opened if use.writes or "serving" in use.phases]
    lines = [f"{'written' if use.writes else 'read':8}{use.n:>5,}  {plain(use.path)} ({', '.join(sorted(use.phases))})"
             for use in shown[:SHOWN_FILES]]
    return lines + _more(len(opened) + view.more_files - len(lines), "paths opened")


def _peers(view: Overview) -> list[str]:
    lines = [f"{peer.way} {plain(peer.address)}: {peer.n:,}" + f", {peer.failures:,} failed" * bool(peer.failures)
             for peer in view.peers[:SHOWN_PEERS]]
    lines += [f"listens at {plain(address)} ({kind})" + ", other machines can reach it" * exposed
              for address, kind, exposed in view.listening]
    return lines + _more(len(view.peers) + view.more_peers - SHOWN_PEERS, "peers")


def _processes(view: Overview) -> list[str]:
    lines = [f"{one.pid}: {plain('; then '.join(one.programs)) or '(as its parent)'}: {one.threads:,} threads,"
             f" {one.calls:,} calls, {one.end or 'no exit line'}" for one in view.processes[:SHOWN_PEERS]]
    return lines + _more(len(view.processes) + view.more_processes - SHOWN_PEERS, "processes")


def _more(n: int, what: str) -> list[str]:
    return [f"… and {n:,} more {what}"] if n > 0 else []


# --- JSON ---------------------------------------------------------------------------------------

def as_json(view: Overview, judgement: Judgement | None) -> str:
    return json_text([(view, judgement)])


def json_text(reports: Sequence[Reported]) -> str:
    verdict = page.worst(judgement for _, judgement in reports)
    return jsons.dumps({"version": VERSION, "verdict": None if verdict == page.NOT_JUDGED else verdict,
                        "reports": [as_dict(*report) for report in reports]}, indent=1) + "\n"


def as_dict(view: Overview, judgement: Judgement | None) -> dict[str, Any]:
    """Times are ns since 1970, durations ns; a duration that is not known is null."""
    return {
        **_fields(view, "path sha256 lines start_ns end_ns reissued more_files more_peers more_processes"),
        "recording": dict(recording(view)), "incomplete": list(judgement.reasons if judgement else view.reasons),
        "judgement": judgement and _judgement(judgement),
        "phases": [_fields(phase, "name line start_ns end_ns calls errors requests") for phase in view.phases],
        "calls": [{"phase": phase, "name": name, **_fields(tally, "n errors"), "duration": _durations(tally.durations)}
                  for (phase, name), tally in view.calls.items()],
        "requests": {kind.replace(" ", "_"): {
            **_fields(one, "n unanswered arrivals sends"), "calls": {str(n): one.calls[n] for n in sorted(one.calls)},
            "duration": _durations(one.durations)} for kind, one in view.requests.items()},
        "sample": [{**one._asdict(), "duration_ns": one.duration_ns if one.duration_ns >= 0 else None}
                   for one in view.sample],
        "files": [_fields(use, "path reads writes failures phases") for use in view.files],
        "peers": [_fields(peer, "address way n failures line phases") for peer in view.peers],
        "listening": [dict(zip(("address", "type", "exposed"), one)) for one in view.listening],
        "processes": [_fields(one, "pid line programs threads calls end") for one in view.processes],
        "signals": [{"phase": phase, "name": name, "n": n} for (phase, name), n in view.signals.items()],
        "blind_spots": list(judge.BLIND_SPOTS),
    }


def _fields(one: object, names: str) -> dict[str, Any]:
    values = {name: getattr(one, name) for name in names.split()}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def _durations(times: Durations) -> dict[str, Any]:
    return {"n": times.n, "total_ns": times.total_ns, "mean_ns": round(times.mean_ns), "max_ns": times.max_ns,
            **{f"p{p}_ns": round(times.percentile(p)) for p in PERCENTILES}}


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {"verdict": judgement.verdict, "why": page.why(judgement), "policies": list(judgement.policies),
            "outcomes": [{"policy": one.policy, "name": one.name, "verdict": one.verdict, "detail": one.detail,
                          "n_offences": one.n_offences, "offences": [offence._asdict() for offence in one.offences]}
                         for one in judgement.outcomes],
            "notes": list(judgement.notes), "exposed": list(judgement.exposed)}


# --- JUnit --------------------------------------------------------------------------------------

EVIDENCE = "the evidence is whole"


def junit(judgement: Judgement) -> str:
    return junit_text([judgement])


def junit_text(judgements: Sequence[Judgement]) -> str:
    """A suite a policy, a case an assertion; that nothing is missing from the evidence is a case, too.

    The schema is that of Jenkins' xunit plugin (junit-10.xsd).
    """
    root = ET.Element("testsuites", name="tracing")
    for judgement in judgements:
        for policy in dict.fromkeys(judgement.policies):
            root.append(_suite(judgement, policy))
    root.attrib |= {key: str(sum(int(suite.attrib[key]) for suite in root)) for key in ("tests", "failures", "errors")}
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _suite(judgement: Judgement, policy: str) -> ET.Element:
    cases = [_case(one) for one in judgement.outcomes if one.policy == policy]
    whole = Outcome(policy, EVIDENCE, INCONCLUSIVE if judgement.reasons else PASS, "; ".join(judgement.reasons), (), 0)
    cases.append(_case(whole))
    suite = ET.Element("testsuite", name=_xml(policy), tests=str(len(cases)), time="0", skipped="0",
                       failures=str(sum(case.find("failure") is not None for case in cases)),
                       errors=str(sum(case.find("error") is not None for case in cases)))
    properties = ET.SubElement(suite, "properties")
    for name, value in (("verdict", judgement.verdict), ("trace", judgement.path), ("sha256", judgement.sha256)):
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    suite.extend(cases)
    return suite


def _case(one: Outcome) -> ET.Element:
    case = ET.Element("testcase", name=_xml(one.name), classname=_xml(f"tracing.{one.policy}"), time="0")
    tag = {FAIL: "failure", INCONCLUSIVE: "error"}.get(one.verdict)
    if tag:
        problem = ET.SubElement(case, tag, message=_xml(one.detail or one.verdict), type=one.verdict)
        problem.text = _xml("\n".join(map(_offence, one.offences)))
    elif one.detail:
        ET.SubElement(case, "system-out").text = _xml(one.detail)
    return case


def _offence(one: Offence) -> str:
    return (f"line {one.line} ({one.phase}): {one.call}: " if one.line else "") + one.why


def _xml(text: str) -> str:
    """Line breaks stay; what XML cannot hold is escaped."""
    return "\n".join(map(plain, text.split("\n")))
