"""What an assertion can check: one row in CHECKS and one class a kind.

The rule to keep: a check that had too little to look at (too few requests, calls that were not recorded, a path that
cannot be read) is INCONCLUSIVE. Absence of evidence is never PASS.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from tracing import calls
from tracing.assertion import Assertion
from tracing.egress import (
    LEAVES, MESSAGE_NAME, NEEDED, NOTED, UNPROVEN, Finding, Watch, is_named, opened_path,
    opening_flags,
)
from tracing.fds import INHERITED, PASSED, UNKNOWN, described
from tracing.parse import REISSUED, Call
from tracing.phases import Phase, Request
from tracing.redact import redact
from tracing.replay import Replay, Step
from tracing.sockets import UNREADABLE, Address, address_of
from tracing.syntax import arguments, descriptor, text_of, unescaped

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
SHOWN = 5  # offences that an outcome names
SHOWN_CHARACTERS = 200


class Offence(NamedTuple):
    """A call, or a request, that an assertion does not allow."""

    line: int
    time_ns: int
    tid: int
    phase: str
    call: str
    why: str


@dataclass(frozen=True)
class Outcome:
    """What became of one assertion."""

    policy: str
    name: str
    verdict: str
    detail: str
    offences: tuple[Offence, ...]
    n_offences: int


def shown(call: Call) -> str:
    """A call as people read it, without payload."""
    result = "?" if call.result is None else str(call.result)
    text = redact(f"{call.name}({call.args}) = {result}")
    given = text[len(call.name) + 1:text.rindex(") = ")]
    if len(given) > SHOWN_CHARACTERS:
        given = given[:SHOWN_CHARACTERS] + " …"
    return f"{call.name}({given}) = {result}{' ' + call.errno if call.errno else ''}"


@dataclass
class Check:
    """Watches a replay for one assertion; the kinds below say what an offence is."""

    assertion: Assertion
    replay: Replay
    offences: list[Offence] = field(default_factory=list)
    n_offences: int = 0
    doubts: list[str] = field(default_factory=list)  # why it may not be called PASS
    notes: list[str] = field(default_factory=list)  # worth knowing, whatever the verdict

    def __post_init__(self) -> None:
        self.o = self.assertion.options
        self.begin()

    def begin(self) -> None:
        """Prepare state."""

    def needed(self) -> frozenset[str]:
        """Calls without which a recording says nothing about this."""
        return frozenset()

    def enter(self, phase: Phase) -> None:
        """A phase begins."""

    def see(self, step: Step) -> None:
        """Every call of the trace, in order of completion."""
        if step.phase in self.assertion.phases:
            self.look(step)

    def look(self, step: Step) -> None:
        """A call in a phase that the assertion is about."""

    def see_request(self, request: Request) -> None:
        """Every request, when it is over."""
        if request.phase in self.assertion.phases:
            self.look_at_request(request)

    def look_at_request(self, request: Request) -> None:
        """A request that arrived in a phase that the assertion is about."""

    def detail(self) -> str:
        """What was measured, in a few words."""
        return ""

    def offend(self, step: Step, why: str) -> None:
        self._offend(Offence(step.call.line, step.call.start_ns, step.call.tid, step.phase, shown(step.call), why))

    def offend_request(self, request: Request, why: str) -> None:
        made = ", ".join(f"{n} {name}" for name, n in request.names.items())
        self._offend(Offence(request.line, request.start_ns, request.tid, request.phase,
                             f"request {request.id}: {made}", why))

    def fail(self, why: str) -> None:
        """An offence that no single call stands for."""
        self._offend(Offence(0, 0, 0, "", "", why))

    def _offend(self, offence: Offence) -> None:
        self.n_offences += 1
        if len(self.offences) < SHOWN:
            self.offences.append(offence)

    def outcome(self) -> Outcome:
        """When all was seen."""
        detail, a = self.detail(), self.assertion
        header = self.replay.header
        if header is None:
            self.doubts.append("it is not known which calls were recorded")
        unseen = calls.missing(header.traced, self.needed()) if header else []
        if unseen:
            self.doubts.append(f"the recording leaves out {', '.join(unseen[:8])}{' …' if len(unseen) > 8 else ''}")
        verdict = FAIL if self.n_offences else INCONCLUSIVE if self.doubts else PASS
        said = "; ".join([detail] * bool(detail) + self.doubts[:SHOWN])
        return Outcome(a.policy, a.name, verdict, said, tuple(self.offences), self.n_offences)


def matches(path: str, globs: tuple[str, ...]) -> bool:
    """Whether a glob means this path: `*` also matches slashes; a glob that ends in /** means the folder, too."""
    return any(fnmatchcase(path, glob) or (glob.endswith("/**") and path == glob[:-3]) for glob in globs)


class Calls(Check):
    """only, never: calls and classes that may, or may not, be made."""

    def needed(self) -> frozenset[str]:
        return self.o["never"] if "never" in self.o else calls.NAMES

    def look(self, step: Step) -> None:
        name = step.call.name
        if "never" in self.o and name in self.o["never"]:
            self._look_closer(step)
        elif "only" in self.o and name not in self.o["only"]:
            self.offend(step, f"{name} is not one of the calls that are allowed")

    def _look_closer(self, step: Step) -> None:
        path = opened_path(step.call) if step.call.name in ("open", "openat", "openat2", "creat") else None
        if path is None or not matches(path, self.o.get("except_paths", ())):
            self.offend(step, f"{step.call.name} is not allowed")


class Count(Check):
    """is: how many calls `of` a set there may be, in total or per request, token or second."""

    def begin(self) -> None:
        self.of: frozenset[str] = self.o.get("of", calls.NAMES)
        self.per, self.bound = self.o.get("per", "total"), self.o["is"]
        self.streak_from, self.units, self._answered = self.o.get("streak_from", 0), 0, 0
        self.smallest, self.largest = float("inf"), float("-inf")
        self._by_thread: Counter[int] = Counter()
        self._made = 0  # calls so far
        self._window: tuple[int, int] | None = None  # a steady streak: calls before it, and when it began
        self._others, self._window_ns = 0, 0  # calls beside those of its requests

    def needed(self) -> frozenset[str]:
        return self.of

    def look(self, step: Step) -> None:
        if step.call.name in self.of and self.per in ("total", "second") and not step.call.flags & REISSUED:
            self._by_thread[step.call.tid] += 1
            self._made += 1
            if self.per == "total" and "threads" not in self.o and self._made > self.bound.high:
                self.offend(step, f"call {self._made}, expected {self.bound}")

    def look_at_request(self, request: Request) -> None:
        if self.per == "token" and request.tokens:
            self._measure(request, request.token_calls / request.tokens)
        if self.per == "second" and self.streak_from:
            self._look_beside(request)
        if self.per != "request" or request.streak < self.streak_from or not request.sends:
            return
        made = sum(n for name, n in request.names.items() if name in self.of)
        if self.o.get("free_arrivals"):
            made -= request.arrivals - 1
        self._measure(request, made)

    def _look_beside(self, request: Request) -> None:
        """In a steady streak, what all threads do beside the calls of its requests."""
        if request.streak < self.streak_from:
            self._window = None
            return
        if self._window:
            made, end_ns = self._window
            self.units += 1
            self._others += self._made - made - sum(n for name, n in request.names.items() if name in self.of)
            self._window_ns += request.end_ns - end_ns
        self._window = self._made, request.end_ns

    def _measure(self, request: Request, made: float) -> None:
        self.units += 1
        self.smallest, self.largest = min(self.smallest, made), max(self.largest, made)
        if made not in self.bound:
            self.offend_request(request, f"{made:g} calls a {self.per}, expected {self.bound}")

    def detail(self) -> str:
        if self.per in ("request", "token"):
            return self._measured()
        n, seconds = self._total()
        if self.per == "second":
            if seconds <= 0:
                self.doubts.append("nothing to measure lasted long enough")
                return ""
            if self.streak_from and self.units / seconds <= 4 * self.bound.high:  # more by the request would not show
                self.doubts.append(f"{self.units / seconds:.0f} requests a second are too few to tell")
            n /= max(seconds, 1.0)
        if n not in self.bound and not self.n_offences:
            self.fail(f"{n:.4g} calls{' a second' if self.per == 'second' else ''}, expected {self.bound}")
        return f"{n:.4g} calls{' a second' if self.per == 'second' else ''}"

    def _total(self) -> tuple[float, float]:
        """(calls, seconds) that are looked at."""
        if self.streak_from:
            return self._others, self._window_ns / 1e9
        left_out = self.replay.requests.serving if self.o.get("threads") == "background" else set()
        made = sum(n for tid, n in self._by_thread.items() if tid not in left_out)
        return made, seconds_in(self.replay, self.assertion.phases)

    def _measured(self) -> str:
        at_least = max(1, self.o.get("at_least", 1))
        if self.units < at_least:
            self.doubts.append(f"{self.units} {self.per}s to count, expected at least {at_least}")
        return f"{self.smallest:g} to {self.largest:g} calls a {self.per} in {self.units:,}" if self.units else ""


def seconds_in(replay: Replay, phases: frozenset[str]) -> float:
    """How long these phases lasted, from the trace's own times."""
    ends = [phase.start_ns for phase in replay.phases[1:]] + [replay.end_ns]
    return sum(max(0, end - (phase.start_ns or replay.start_ns)) for phase, end in zip(replay.phases, ends)
               if phase.name in phases) / 1e9


# Calls that change what a path stands for → where the folder's descriptor and the path are among the arguments.
CHANGES: dict[str, list[tuple[int | None, int | None]]] = {
    "truncate": [(None, 0)], "mkdir": [(None, 0)], "mkdirat": [(0, 1)], "rmdir": [(None, 0)], "unlink": [(None, 0)],
    "unlinkat": [(0, 1)], "rename": [(None, 0), (None, 1)], "renameat": [(0, 1), (2, 3)], "renameat2": [(0, 1), (2, 3)],
    "link": [(None, 1)], "linkat": [(2, 3)], "symlink": [(None, 1)], "symlinkat": [(1, 2)], "mknod": [(None, 0)],
    "mknodat": [(0, 1)], "chmod": [(None, 0)], "fchmodat": [(0, 1)], "fchmodat2": [(0, 1)], "chown": [(None, 0)],
    "lchown": [(None, 0)], "fchownat": [(0, 1)], "utime": [(None, 0)], "utimes": [(None, 0)], "utimensat": [(0, 1)],
    "futimesat": [(0, 1)], "setxattr": [(None, 0)], "lsetxattr": [(None, 0)], "removexattr": [(None, 0)],
    "lremovexattr": [(None, 0)], "acct": [(None, 0)], "swapon": [(None, 0)],
    # by descriptor, which need not be open for writing
    "setxattrat": [(0, 1)], "removexattrat": [(0, 1)], "file_setattr": [(0, 1)],
    "fchmod": [(0, None)], "fchown": [(0, None)], "fsetxattr": [(0, None)], "fremovexattr": [(0, None)],
}
OPENS = frozenset({"open", "openat", "openat2", "creat", "open_by_handle_at"})
HIDDEN_WRITES = frozenset({"mount", "umount2", "pivot_root", "chroot", "open_by_handle_at", "move_mount", "open_tree",
                           "fsmount", "setns", "unshare", "io_uring_setup"})
# Calls that write through a descriptor → which argument that is. Those that open it are judged by themselves.
WRITES = {"write": 0, "pwrite64": 0, "writev": 0, "pwritev": 0, "pwritev2": 0, "ftruncate": 0, "fallocate": 0,
          "sendfile": 0, "copy_file_range": 2, "splice": 2, "mmap": 4, "ioctl": 0}
ONLY_IF = {"ioctl": re.compile(r"FS_IOC(32)?_(SETFLAGS|FSSETXATTR)|FICLONE|FIDEDUPERANGE"),
           "mmap": re.compile(r"PROT_WRITE.*MAP_SHARED", re.DOTALL)}
FROM_BEFORE = {INHERITED, UNKNOWN, PASSED}
WRITING = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)")


class Paths(Check):
    """only, never: globs of the paths that may be opened for reading or changed."""

    def needed(self) -> frozenset[str]:
        changes = frozenset(CHANGES) | frozenset(WRITES) | {"bind", "io_submit"}
        return OPENS | changes if self.o["opened"] != "read" else OPENS

    def look(self, step: Step) -> None:
        call = step.call
        if call.name in OPENS:
            writing = WRITING.search(opening_flags(call, arguments(call.args))) is not None
            if self.o["opened"] in ("any", "write" if writing else "read"):
                self._judge(step, opened_path(call))
        elif self.o["opened"] != "read":
            self._look_at_change(step)
            self._look_at_write(step)

    def _look_at_change(self, step: Step) -> None:
        call, given = step.call, arguments(step.call.args)
        for folder, path in CHANGES.get(call.name, ()):
            self._judge(step, _path(given, folder, path))
        address = address_of(given[1]) if call.name == "bind" and len(given) > 1 else None
        if address and address.family == "AF_UNIX" and address.host and not address.host.startswith("@"):
            self._judge(step, address.host)
        if call.name in HIDDEN_WRITES and call.result is not None and call.result >= 0:
            self.doubts.append(f"line {call.line}: after a {call.name}, paths may not be what they seem")

    def _look_at_write(self, step: Step) -> None:
        """Through a descriptor that the program did not open, or by an ioctl that changes attributes."""
        call = step.call
        if call.name == "io_submit":
            self.doubts.append(f"line {call.line}: what an io_submit writes is not shown")
        given = arguments(call.args)
        found = descriptor(given[WRITES[call.name]]) if len(given) > WRITES.get(call.name, len(given)) else None
        if found is None or call.name in ONLY_IF and not ONLY_IF[call.name].search(call.args):
            return
        one = self.replay.descriptors.find(call.pid, found[0]) or described(found[1], UNKNOWN, call.line)
        if one.kind == "file" and (one.origin in FROM_BEFORE or call.name == "ioctl"):
            self._judge(step, unescaped(re.sub(r"<(?:char|block) \d+:\d+>$", "", one.name)))

    def _judge(self, step: Step, path: str | None) -> None:
        if path is None or not path.startswith(("/", "pipe:", "socket:", "anon_inode:")):
            if step.call.result is not None and step.call.result >= 0:
                self.doubts.append(f"line {step.call.line}: the path of a {step.call.name} could not be read")
            return
        path = posixpath.normpath(path)
        if "only" in self.o and not matches(path, self.o["only"]):
            self.offend(step, f"{path} is none of the paths that are allowed")
        elif "never" in self.o and matches(path, self.o["never"]):
            self.offend(step, f"{path} is not allowed")


def _path(given: list[str], folder: int | None, at: int | None) -> str | None:
    """An argument's path, with the folder that it is relative to; None where that is not in the trace."""
    base = descriptor(given[folder]) if folder is not None and len(given) > folder else None
    if at is None or given[at:at + 1] == ["NULL"]:
        return unescaped(base[1]) if base and base[1] else None
    path = text_of(given[at]) if len(given) > at else None
    if path is None or path.startswith("/"):
        return path
    return f"{unescaped(base[1])}/{path}" if base and base[1] else None


class Addresses(Check):
    """only, never: addresses that sockets may connect to, bind or send to."""

    OF = {"connect": {"connect"}, "bind": {"bind"}, "send": {"sendto", "sendmsg", "sendmmsg", "write", "writev"}}

    def needed(self) -> frozenset[str]:
        return frozenset(self.OF[self.o["of"]])

    def look(self, step: Step) -> None:
        if step.call.name not in self.OF[self.o["of"]]:
            return
        one = step.descriptor
        connected = [one.peer] if one and one.connected and one.peer and self.o["of"] == "send" else []
        for address in addresses_in(step.call) or connected:
            if address == UNREADABLE:
                self.doubts.append(f"line {step.call.line}: the address of a {step.call.name} could not be read")
            elif "only" in self.o and not any(is_named(address, name) for name in self.o["only"]):
                self.offend(step, f"{address} is none of the addresses that are allowed")
            elif any(is_named(address, name) for name in self.o.get("never", ())):
                self.offend(step, f"{address} is not allowed")


def addresses_in(call: Call) -> list[Address]:
    """The addresses that a connect, bind, sendto, sendmsg or sendmmsg gives."""
    given = arguments(call.args)
    if call.name in ("write", "writev"):
        found: list[Address | None] = []
    elif call.name in ("connect", "bind"):
        found = [address_of(given[1]) if len(given) > 1 else UNREADABLE]
    elif call.name == "sendto":
        found = [address_of(given[4]) if len(given) > 4 else UNREADABLE]
    else:
        names = MESSAGE_NAME.findall(call.args)
        found = [address_of(name) for name in names] if names else [UNREADABLE]
    return [address for address in found if address is not None]


class Errnos(Check):
    """only, never: errors that calls may return."""

    def needed(self) -> frozenset[str]:
        return self.o.get("of", calls.NAMES)

    def look(self, step: Step) -> None:
        call = step.call
        if not call.errno or call.errno.startswith("ERESTART") or call.name not in self.o.get("of", calls.NAMES):
            return
        if call.errno in self.o.get("never", ()) or ("only" in self.o and call.errno not in self.o["only"]):
            self.offend(step, f"{call.errno} is not allowed")


class Order(Check):
    """first, then: no `then` before a `first` has succeeded."""

    def begin(self) -> None:
        self._first_line = 0

    def needed(self) -> frozenset[str]:
        return frozenset({self.o["first"], self.o["then"]})

    def see(self, step: Step) -> None:
        call = step.call
        if call.name == self.o["first"] and call.result is not None and call.result >= 0:  # in any phase
            self._first_line = self._first_line or call.last_line
        elif call.name == self.o["then"] and step.phase in self.assertion.phases:
            if not 0 < self._first_line <= call.line:
                self.offend(step, f"before any {self.o['first']}")


class NeverAfter(Check):
    """calls, after: none of these calls once `after` was entered."""

    def begin(self) -> None:
        self._line = 0

    def needed(self) -> frozenset[str]:
        return self.o["calls"] | {self.o["after"]}

    def see(self, step: Step) -> None:
        late = self._line and step.call.line > self._line and step.call.name in self.o["calls"]
        if late and step.phase in self.assertion.phases:
            self.offend(step, f"after the {self.o['after']} on line {self._line}")
        if step.call.name == self.o["after"]:  # in any phase
            self._line = self._line or step.call.line


class DescriptorGrowth(Check):
    """growth: how many more descriptors a process may have open after so many requests."""

    def begin(self) -> None:
        self._open: dict[int, tuple[int, int]] = {}  # process → at its first request, at its last
        self._n = 0

    def needed(self) -> frozenset[str]:
        return calls.NAMES  # many make a descriptor

    def look_at_request(self, request: Request) -> None:
        if request.streak >= self.o.get("streak_from", 0) and request.sends:
            first, _ = self._open.get(request.pid, (request.descriptors, 0))
            self._open[request.pid] = first, request.descriptors
            self._n += 1

    def detail(self) -> str:
        expected = self.o.get("over_requests", 1)
        if self._n < expected:
            self.doubts.append(f"{self._n} requests to look at, expected at least {expected}")
        growth = max((last - first for first, last in self._open.values()), default=0)
        if growth not in self.o["growth"]:
            self.fail(f"{growth:+} descriptors over {self._n:,} requests, expected {self.o['growth']}")
        return f"{growth:+} descriptors over {self._n:,} requests"


class MemoryGrowth(Check):
    """growth_bytes: how much more writable memory a phase may end with (brk, anonymous mappings, mprotect)."""

    def begin(self) -> None:
        self.bytes = 0
        self._breaks: dict[int, int] = {}
        self._mapped: dict[tuple[int, int], int] = {}  # process, address → bytes that were counted

    def needed(self) -> frozenset[str]:
        return frozenset({"brk", "mmap", "munmap", "mremap", "mprotect"})

    def see(self, step: Step) -> None:
        given = arguments(step.call.args)
        if step.call.name in GROWTH and step.call.result is not None and step.call.result >= 0 and len(given) > 0:
            grown = GROWTH[step.call.name](self, step.call, given)
            self.bytes += grown if step.phase in self.assertion.phases else 0

    def _brk(self, call: Call, given: list[str]) -> int:
        before, now = self._breaks.get(call.pid), call.result or 0
        self._breaks[call.pid] = now
        return now - before if before else 0

    def _map(self, call: Call, address: int, size: int) -> int:
        """From now on so many bytes at this address → how many more that are."""
        before = self._mapped.get((call.pid, address), 0)
        self._mapped[call.pid, address] = max(before, size)
        return max(0, size - before)

    def _mmap(self, call: Call, given: list[str]) -> int:
        counts = len(given) > 3 and "MAP_ANONYMOUS" in given[3] and "PROT_NONE" not in given[2]
        return self._map(call, call.result or 0, number(given[1])) if counts else 0

    def _mprotect(self, call: Call, given: list[str]) -> int:
        writable = len(given) > 2 and "PROT_WRITE" in given[2]
        return self._map(call, number(given[0]), number(given[1])) if writable else 0

    def _munmap(self, call: Call, given: list[str]) -> int:
        """Of mappings that were not counted, nothing."""
        return -min(self._mapped.pop((call.pid, number(given[0])), 0), number(given[1]) if len(given) > 1 else 0)

    def _mremap(self, call: Call, given: list[str]) -> int:
        before = self._mapped.pop((call.pid, number(given[0])), 0)
        return self._map(call, call.result or 0, number(given[2]) if len(given) > 2 else 0) - before

    def detail(self) -> str:
        if self.bytes not in self.o["growth_bytes"]:
            self.fail(f"{self.bytes:+,} bytes, expected {self.o['growth_bytes']}")
        return f"{self.bytes:+,} bytes"


GROWTH: dict[str, Callable[[MemoryGrowth, Call, list[str]], int]] = {
    "brk": MemoryGrowth._brk, "mmap": MemoryGrowth._mmap, "mprotect": MemoryGrowth._mprotect,
    "munmap": MemoryGrowth._munmap, "mremap": MemoryGrowth._mremap}


def number(text: str) -> int:
    return int(text, 0) if re.fullmatch(r"\d+|0x[0-9a-f]+", text) else 0


class Egress(Check):
    """Nothing leaves the traced processes (see `egress`); `named` are helpers that may be reached."""

    def begin(self) -> None:
        self._watch = Watch(self.replay.descriptors, self.replay.living, self.o.get("named", ()))
        self._entered = self._seen = False
        self._lasting: list[str] = []

    def needed(self) -> frozenset[str]:
        return frozenset(NEEDED)

    def enter(self, phase: Phase) -> None:
        """What was prepared in phases that are not judged is looked at when the first one that is begins."""
        if phase.name in self.assertion.phases and not self._entered:
            self._entered = True
            self.doubts += [*self._lasting, *(one.why for one in self._watch.still_open())]

    def see(self, step: Step) -> None:
        finding = self._watch.examine(step)
        self._seen |= step.phase in self.assertion.phases
        if finding is None:
            return
        if finding.kind == NOTED:
            self.notes.append(f"line {step.call.line}: {step.call.name} {finding.why}")
        elif step.phase not in self.assertion.phases:
            self._earlier(step, finding)
        elif finding.kind == LEAVES:
            self.offend(step, finding.why)
        elif finding.kind == UNPROVEN:
            self.doubts.append(f"line {step.call.line}: {step.call.name}: {finding.why}")

    def _earlier(self, step: Step, finding: Finding) -> None:
        """Allowed in this phase, unless it goes on in one that is judged."""
        what = f"line {step.call.line}: {step.call.name} in {step.phase}: {finding.why}"
        if self._entered or step.call.result is None:
            self.doubts.append(f"{what}, and it went on later")
        elif finding.lasts:
            self._lasting.append(f"{what}, whose effect lasts")
        else:
            self.notes.append(what)

    def detail(self) -> str:
        for step in self._watch.unconfirmed():  # a traced process listens there; but perhaps another one accepted
            self.doubts.append(f"line {step.call.line}: {step.call.name}: no traced process was seen to accept it")
        if not self._seen and not self.replay.reasons():
            self.doubts.append("no call in the phases that are judged")
        return f"{self.n_offences} attempts to leave"


class Spec(NamedTuple):
    """How a kind of assertion is written: keys and the types of their values (policy.VALUES)."""

    make: type[Check]
    needs: dict[str, str]
    may: dict[str, str]
    one_of: tuple[str, ...] = ()


EITHER = ("only", "never")
CHECKS = {
    "calls": Spec(Calls, {}, {"only": "calls", "never": "calls", "except_paths": "globs"}, EITHER),
    "count": Spec(Count, {"is": "bound"}, {"of": "calls", "per": "per", "threads": "threads", "streak_from": "whole",
                                           "free_arrivals": "flag", "at_least": "whole"}),
    "paths": Spec(Paths, {"opened": "opened"}, {"only": "globs", "never": "globs"}, EITHER),
    "addresses": Spec(Addresses, {"of": "way"}, {"only": "addresses", "never": "addresses"}, EITHER),
    "errnos": Spec(Errnos, {}, {"of": "calls", "only": "errnos", "never": "errnos"}, EITHER),
    "order": Spec(Order, {"first": "call", "then": "call"}, {}),
    "never_after": Spec(NeverAfter, {"calls": "calls", "after": "call"}, {}),
    "descriptors": Spec(DescriptorGrowth, {"growth": "bound"}, {"over_requests": "whole", "streak_from": "whole"}),
    "memory": Spec(MemoryGrowth, {"growth_bytes": "bound"}, {}),
    "egress": Spec(Egress, {}, {"named": "addresses"}),
}


def checks_for(assertions: tuple[Assertion, ...], replay: Replay) -> list[Check]:
    return [CHECKS[assertion.check].make(assertion, replay) for assertion in assertions]
