"""Traces against policies: the verdict, and why.

The rule to keep: PASS needs every assertion to hold and the evidence to be whole. What was seen to be wrong is FAIL,
however little else was seen; everything between is INCONCLUSIVE.
"""

import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tracing.checks import FAIL, INCONCLUSIVE, PASS, Offence, Outcome, checks_for
from tracing.fds import Description
from tracing.phases import Phase, Request
from tracing.policy import Policy, load_all
from tracing.replay import Replay, Step
from tracing.syntax import plain
from tracing.tracefile import TraceFile

STATUS = {PASS: 0, FAIL: 1, INCONCLUSIVE: 2}
KEPT_NOTES = 20

BLIND_SPOTS = (
    "io_uring operations (their set-up is seen, and judged)",
    "clock reads through the vDSO, and reads and writes of memory-mapped files",
    "what an untraced process does with files, FIFOs, shared memory, message queues, or with the program's output",
    "files on a network file system",
    "symbolic links in the paths of calls that open nothing (rename, unlink, mkdir), where a policy is about paths",
    "calls that are newer than this strace, where it filters by seccomp",
    "descriptors that were open before strace attached, beyond what /proc showed then",
    "arguments that another thread changes between strace's look and the kernel's",
)


@dataclass(frozen=True)
class Judgement:
    verdict: str
    policies: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    reasons: tuple[str, ...]  # why the evidence is incomplete
    notes: tuple[str, ...]
    exposed: tuple[str, ...]  # addresses listened at, beyond loopback
    n_events: int
    phases: tuple[str, ...]
    sha256: str  # of the trace
    path: str


def judge(trace: str | Path | TraceFile, policies: Sequence[Policy]) -> Judgement:
    """One pass over the trace for all policies. Raises TraceError where it is no trace."""
    replay = Replay(trace)
    checks = checks_for(tuple(a for policy in policies for a in policy.assertions), replay)
    listening: dict[Description, None] = {}
    for event in replay:
        if isinstance(event, Step):
            _note_listener(event, listening)
            for check in checks:
                check.see(event)
        elif isinstance(event, Request):
            for check in checks:
                check.see_request(event)
        elif isinstance(event, Phase):
            for check in checks:
                check.enter(event)
    outcomes = tuple(check.outcome() for check in checks)
    reasons = tuple(replay.reasons())
    notes = [note for check in checks for note in check.notes]
    if len(notes) > KEPT_NOTES:
        notes = [*notes[:KEPT_NOTES], f"{len(notes) - KEPT_NOTES} more"]
    return Judgement(_verdict(outcomes, reasons), tuple(policy.name for policy in policies), outcomes, reasons,
                     tuple(notes), exposed(replay, listening), replay.n_events,
                     tuple(phase.name for phase in replay.phases), replay.trace.sha256, str(replay.trace.path))


def _verdict(outcomes: tuple[Outcome, ...], reasons: tuple[str, ...]) -> str:
    found = {outcome.verdict for outcome in outcomes}
    return FAIL if FAIL in found else INCONCLUSIVE if INCONCLUSIVE in found or reasons else PASS


def _note_listener(step: Step, listening: dict[Description, None]) -> None:
    one = step.descriptor
    if step.call.name in ("listen", "bind") and step.call.result == 0 and one is not None and one.kind == "socket":
        if one.listening or (one.type == "SOCK_DGRAM" and one.family != "AF_UNIX"):
            listening[one] = None


def exposed(replay: Replay, listening: Iterable[Description]) -> tuple[str, ...]:
    """Where the program can be reached from beyond this machine."""
    found: dict[str, None] = {}
    for one in listening:
        if one.local is None and one.family in ("AF_INET", "AF_INET6"):
            found[f"an address that the kernel chose ({one.type})"] = None
        elif one.local and one.local.is_ip and not one.local.ip.is_loopback:
            found[f"{one.local} ({one.type})"] = None
    for before in replay.header.inherited if replay.header else ():
        if before.detail.endswith("LISTEN") and not re.search(r" (127\.|\[::1\])", before.detail):
            found[before.detail] = None
    return tuple(found)


# --- for people ---------------------------------------------------------------------------------

def text(judgement: Judgement) -> str:
    """The judgement as a screen of text; its last line begins with the verdict."""
    lines = []
    for outcome in judgement.outcomes:
        measured = f" ({outcome.detail})" * bool(outcome.detail)
        lines.append(f"  {outcome.verdict:12}  {outcome.policy}: {outcome.name}{measured}")
        lines += [f"                  {_offence(offence)}" for offence in outcome.offences]
        more = outcome.n_offences - len(outcome.offences)
        lines += [f"                  … and {more} more"] if more > 0 else []
    lines += [f"  incomplete: {reason}" for reason in judgement.reasons]
    lines += [f"  note: {note}" for note in judgement.notes]
    lines += [f"  exposed: listens at {address}" for address in judgement.exposed]
    lines.append(summary(judgement))
    return "\n".join(map(plain, lines))


def summary(judgement: Judgement) -> str:
    """One line, the verdict first."""
    held = sum(outcome.verdict == PASS for outcome in judgement.outcomes)
    return (f"{judgement.verdict} {', '.join(judgement.policies)}: {held} of {len(judgement.outcomes)} assertions hold,"
            f" {judgement.n_events:,} events (trace {judgement.path})")


def _offence(offence: Offence) -> str:
    if not offence.line:
        return offence.why
    at = datetime.fromtimestamp(offence.time_ns / 1e9, timezone.utc).strftime("%H:%M:%S.%f") if offence.time_ns else ""
    return f"line {offence.line} {at} thread {offence.tid} ({offence.phase}): {offence.call}: {offence.why}"


def main(options: Namespace) -> int:
    """`python -m tracing judge TRACE --policy …` → exit status."""
    judgement = judge(options.trace, load_all(options.policy))
    print(text(judgement))
    return STATUS[judgement.verdict]
