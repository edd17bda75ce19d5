"""`python -m tracing diff A B`: what is new, missing or changed in count between a golden trace and another.

What differs between two runs of the same program is taken out: numbers of descriptors, processes and threads, ports,
pointers, sizes, times, names in temporary folders. What is left of a call is its pattern, such as
`openat(/etc/hosts, O_RDONLY) ENOENT`.

The rule to keep: what is not compared is in a table here, with its reason, and the output says that it was left out.
"""

import functools
import math
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tracing.calls import CLASSES
from tracing.events import REISSUED, Call
from tracing.phases import PHASES
from tracing.replay import Replay, Step
from tracing.sockets import address_of, ends_of
from tracing.syntax import AT_FDCWD, arguments, descriptor, text_of, plain

SHOWN = 60
CHANGES = ("new", "missing", "changed")  # in the order of the output
SERVING_THREADS = "threads that serve"
SAME_NAME = 200  # more threads than this are matched by their start alone: comparing all with all takes too long

# Calls whose number depends on the scheduler, the allocator or the clock: compared is only whether a role makes any.
VARYING = frozenset("""
    futex sched_yield nanosleep clock_nanosleep restart_syscall rt_sigreturn epoll_wait epoll_pwait epoll_pwait2 poll
    ppoll select pselect6 brk mmap munmap mremap madvise mprotect clock_gettime gettimeofday times getrusage
    """.split())
CHANCE = ("EAGAIN", "EINTR", "ERESTART")  # came too early, or was interrupted: another run would have had to wait

NAMING = CLASSES["%file"] | {"mq_open", "memfd_create"}  # calls whose strings are names, not payload
PATHS = re.compile(r"""
    (?P<temporary>^/(?:tmp|var/tmp|dev/shm|run/user/\d+)/).+  # also what is made in what is made there
  | (?P<proc>^/proc/|/task/)\d+
  | (?P<hex>(?<![\dA-Za-z])[\da-f]{8,}(?![\dA-Za-z])) | (?P<number>(?<![A-Za-z])\d{4,})
    """, re.VERBOSE)
INSIDE = re.compile(r"\[\d+(?:->\d+)?")  # inodes: pipe:[12], UNIX-STREAM:[12->13]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?|0x[\da-f]+")
COMMENT = re.compile(r" ?/\*.*?\*/")


class Role(NamedTuple):
    """Who makes calls: a program, as the n-th process that is this program, and a thread of it."""

    program: str
    process: int
    thread: str

    def __str__(self) -> str:
        return f"{self.program}{f' ({self.process})' if self.process > 1 else ''}, {self.thread}"


@dataclass
class Thread:
    pid: int
    order: int  # of its start in its process, from 0
    serves: bool = False  # connections: which of a pool gets one is chance
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)  # (phase, pattern)
    names: Counter[str] = field(default_factory=Counter)  # what it is recognised by


class Profile(NamedTuple):
    """A trace without what varies."""

    threads: list[Thread]
    programs: dict[int, tuple[str, int]]  # pid → (program, which of those)
    reasons: list[str]


class Difference(NamedTuple):
    role: str
    phase: str
    pattern: str
    before: int
    after: int

    @property
    def change(self) -> str:
        return "new" if not self.before else "missing" if not self.after else "changed"

    @property
    def path(self) -> str:
        """The file that it is about; "" where it is about none."""
        found = re.search(r"\((/[^,)]*)", self.pattern)
        return found[1] if found else ""


def main(options: Namespace) -> int:
    """`options.before`, `options.after`: paths → 0 the same, 1 different."""
    before, after = profile(options.before), profile(options.after)
    differences = list(compare(before, after))
    for name, reasons in ((options.before, before.reasons), (options.after, after.reasons)):
        for reason in reasons:
            print(f"incomplete: {plain(str(name))}: {plain(reason)}")
    print(text(differences))
    return 1 if differences else 0


def text(differences: list[Difference]) -> str:
    """Grouped by role and phase, what is about one file on one line; the last line sums up."""
    lines = list(_lines(differences))
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"… and {len(lines) - SHOWN:,} more lines"]
    n = Counter(one.change for one in differences)
    counts = f"{n['new']:,} new, {n['missing']:,} missing, {n['changed']:,} changed in count"
    left_out = "(left out: how often calls wait or manage memory)"
    return "\n".join([*lines, f"different: {counts} {left_out}" if differences else f"the same {left_out}"])


def _lines(differences: list[Difference]) -> Iterator[str]:
    for (role, phase), group in groupby(differences, lambda one: (one.role, one.phase)):
        yield f"{plain(role)}, {phase}"
        by_file: dict[tuple[str, str], list[Difference]] = {}
        for one in group:
            by_file.setdefault((one.change, one.path or one.pattern), []).append(one)
        for (change, about), alike in by_file.items():
            yield f"  {change:8}{_line(alike) if len(alike) == 1 else plain(about) + ': ' + _calls(alike)}"


def _line(alike: list[Difference]) -> str:
    return f"{plain(alike[0].pattern)}: {_counts(alike[0])}"


def _calls(alike: list[Difference]) -> str:
    return ", ".join(f"{one.pattern.partition('(')[0]} {_counts(one)}" for one in alike)


def _counts(one: Difference) -> str:
    return f"{one.before:,} → {one.after:,}" if one.change == "changed" else f"{one.before or one.after:,}"


# --- reading ------------------------------------------------------------------------------------

def profile(trace: str | Path) -> Profile:
    """One pass over a trace. Raises TraceError where it is none."""
    replay, threads, programs = Replay(trace), _Threads(), _Programs()
    for event in replay:
        if isinstance(event, Step) and not event.call.flags & REISSUED and not event.call.errno.startswith(CHANCE):
            programs.follow(event.call)
            threads.add(event)
    return Profile(threads.all, programs.numbered(), replay.reasons())


class _Threads:
    def __init__(self) -> None:
        self.all: list[Thread] = []
        self._living: dict[tuple[int, int], Thread] = {}
        self._started: Counter[int] = Counter()  # threads, by process

    def add(self, step: Step) -> None:
        call = step.call
        thread = self._living.get((call.pid, call.tid)) or self._start(call)
        name = call.name
        if name in VARYING:
            thread.calls["", name] = 1
        else:
            thread.calls[step.phase, pattern(call)] += 1
        thread.names[name] += 1
        thread.serves = thread.serves or step.request is not None
        if name in ("exit", "exit_group"):  # its number may come again
            self._living.pop((call.pid, call.tid), None)

    def _start(self, call: Call) -> Thread:
        order = 0 if call.tid == call.pid else max(1, self._started[call.pid])
        self._started[call.pid] = order + 1
        thread = self._living[call.pid, call.tid] = Thread(call.pid, order)
        self.all.append(thread)
        return thread


class _Programs:
    """What each process executes: the last; "fork" where it executes nothing."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def follow(self, call: Call) -> None:
        self._names.setdefault(call.pid, "fork")
        if call.name in ("execve", "execveat") and call.result == 0:
            given = arguments(call.args)
            self._names[call.pid] = Path(text_of(given[call.name == "execveat"]) or "?").name

    def numbered(self) -> dict[int, tuple[str, int]]:
        seen: Counter[str] = Counter()
        found = {}
        for pid, name in self._names.items():
            seen[name] += 1
            found[pid] = name, seen[name]
        return found


# --- patterns -----------------------------------------------------------------------------------

def pattern(call: Call) -> str:
    """A call without what varies from run to run."""
    named = call.name in NAMING
    shown = ", ".join(part for part in (_argument(one, named) for one in arguments(COMMENT.sub("", call.args))) if part)
    failed = f" {call.errno}" if call.errno else ""
    return f"{call.name}({shown}){failed}"


@functools.lru_cache(10_000)
def _argument(argument: str, named: bool) -> str:
    """What stays of an argument; "" for pointers, numbers, payload and what the kernel filled in."""
    if argument[:1] == '"':
        return steady_path(text_of(argument) or "") if named else ""
    if argument.startswith("{sa_family="):
        return _end(argument)
    if argument[:1] in ("[", "{", "") or NUMBER.fullmatch(argument) or " => " in argument or argument == "NULL":
        return ""
    found = descriptor(argument)
    if found is None:
        return argument
    return "" if found[0] == AT_FDCWD else _annotation(found[1])  # where it started is not what it does


def _end(argument: str) -> str:
    address = address_of(argument)
    return "" if address is None else steady_path(str(address._replace(port=0) if address.port > 1023 else address))


def _annotation(annotation: str) -> str:
    ends = ends_of(annotation)
    if ends is None:
        return steady_path(INSIDE.sub("[", annotation))
    return ends.protocol + (f"→{ends.peer.host}" if ends.peer else "")


def steady_path(path: str) -> str:
    return PATHS.sub(lambda found: f"{found['temporary'] or found['proc'] or ''}*", path)


# --- comparing ----------------------------------------------------------------------------------

def compare(before: Profile, after: Profile) -> Iterator[Difference]:
    """By role and phase; within one, what is new or missing first."""
    names = _roles(before, after)
    ours, theirs = _by_role(before, names[0]), _by_role(after, names[1])
    for role in [*ours, *(role for role in theirs if role not in ours)]:
        a, b = ours.get(role, Counter()), theirs.get(role, Counter())
        found = [Difference(str(role), phase or "any phase", pattern, a[phase, pattern], b[phase, pattern])
                 for phase, pattern in {**a, **b} if a[phase, pattern] != b[phase, pattern]]
        yield from sorted(found, key=_order)


def _order(one: Difference) -> tuple:
    phase = PHASES.index(one.phase) if one.phase in PHASES else -1
    return phase, CHANGES.index(one.change), -abs(one.before - one.after), one.pattern


def _by_role(profile: Profile, names: dict[int, Role]) -> dict[Role, Counter[tuple[str, str]]]:
    """Calls of all threads of a role; of a varying call, that it was made."""
    found: dict[Role, Counter[tuple[str, str]]] = {}
    for thread in profile.threads:
        counts = found.setdefault(names[id(thread)], Counter())
        counts.update(thread.calls)
        for key in [key for key in thread.calls if not key[0]]:
            counts[key] = 1
    return found


def _roles(before: Profile, after: Profile) -> tuple[dict[int, Role], dict[int, Role]]:
    """Roles of the threads of both, by id()."""
    sides = _grouped(before), _grouped(after)
    roles: tuple[dict[int, Role], dict[int, Role]] = {}, {}
    for process in {**sides[0], **sides[1]}:
        a, b = (side.get(process, []) for side in sides)
        others = [[one for one in side if one.order and not one.serves] for side in (a, b)]
        for number, pair in enumerate(_pairs(*others), 1):
            for side, one in zip(roles, pair):
                if one is not None:
                    side[id(one)] = Role(*process, f"thread {number}")
        for side, threads in zip(roles, (a, b)):
            for one in threads:
                side.setdefault(id(one), Role(*process, SERVING_THREADS if one.order else "main"))
    return roles


def _grouped(profile: Profile) -> dict[tuple[str, int], list[Thread]]:
    found: dict[tuple[str, int], list[Thread]] = {}
    for thread in profile.threads:
        found.setdefault(profile.programs[thread.pid], []).append(thread)
    return found


def _pairs(ours: list[Thread], theirs: list[Thread]) -> list[tuple[Thread | None, Thread | None]]:
    """Threads that do the same, the most alike first; then by their start. What is left has no partner."""
    if max(len(ours), len(theirs)) > SAME_NAME:
        alike = [(0.0, abs(i - j), i, j) for i, j in zip(range(len(ours)), range(len(theirs)))]
    else:
        alike = sorted((-_likeness(a, b), abs(i - j), i, j) for i, a in enumerate(ours) for j, b in enumerate(theirs))
    of_ours: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, i, j in alike:
        if i not in of_ours and j not in taken:
            of_ours[i] = j
            taken.add(j)
    pairs: list[tuple[Thread | None, Thread | None]] = [
        (one, theirs[of_ours[i]] if i in of_ours else None) for i, one in enumerate(ours)]
    return pairs + [(None, one) for j, one in enumerate(theirs) if j not in taken]


def _likeness(a: Thread, b: Thread) -> float:
    """0 to 1: how much of what they call, weighed by the logarithm of how often, is common."""
    names = set(a.names) | set(b.names)
    common = sum(math.log1p(min(a.names[name], b.names[name])) for name in names)
    return common / (sum(math.log1p(max(a.names[name], b.names[name])) for name in names) or 1)
