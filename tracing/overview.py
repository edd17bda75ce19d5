"""What a trace shows, in one pass: phases, calls, files, peers, requests, processes. What reports are made of.

The rule to keep: memory is bounded, however long the trace is. What is not kept is counted, and the count is shown.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from tracing.checks import OPENS, WRITING, addresses_in
from tracing.egress import opened_path
from tracing.events import REISSUED, Call, Exit, Signal
from tracing.fds import Description
from tracing.histogram import Density, Durations, Frequent
from tracing.phases import Phase, Request
from tracing.replay import Replay, Step
from tracing.sockets import Address
from tracing.syntax import arguments, text_of
from tracing.tracefile import Footer, Header, TraceFile

KEPT_REQUESTS = 2_000
KEPT_FILES, KEPT_PEERS, KEPT_PROCESSES, KEPT_LISTENERS = 5_000, 1_000, 1_000, 200
KEPT_SLOWEST = 20
KEPT_ARGUMENTS, KEPT_CHARACTERS = 12, 200  # of a command line
UNNAMED = re.compile(r"#\d+(?:>\(deleted\)?)?$")  # what O_TMPFILE makes: a new number each time
EXECUTES = ("execve", "execveat")
TALKS = {"connect": "connect", "sendto": "send to", "sendmsg": "send to", "sendmmsg": "send to"}


class Tally:
    """Calls of one name in one phase."""

    __slots__ = ("n", "errors", "durations")

    def __init__(self) -> None:
        self.n = 0
        self.errors = 0  # calls that failed; a call that a signal interrupted and the kernel restarted did not
        self.durations = Durations()

    def unite(self, other: "Tally") -> None:
        self.n, self.errors = self.n + other.n, self.errors + other.errors
        self.durations.unite(other.durations)


@dataclass
class FileUse:
    path: str
    reads: int = 0  # times that it was opened for reading
    writes: int = 0  # … for writing
    failures: int = 0  # … and was not
    phases: set[str] = field(default_factory=set)

    @property
    def n(self) -> int:
        return self.reads + self.writes + self.failures


@dataclass
class Peer:
    """Another end of sockets."""

    address: str
    way: str  # "connect", "send to" or "accept from"
    line: int  # the first
    n: int = 0
    failures: int = 0
    phases: set[str] = field(default_factory=set)


class Exchanged(NamedTuple):
    """A request, as far as it is kept."""

    id: str
    fd: int
    tid: int
    phase: str
    line: int
    start_ns: int
    duration_ns: int  # -1: never answered
    calls: int
    arrivals: int
    sends: int
    marked: bool


@dataclass
class Requests:
    """All requests of one kind."""

    n: int = 0
    unanswered: int = 0
    arrivals: int = 0
    sends: int = 0
    durations: Durations = field(default_factory=Durations)  # of those that were answered
    calls: Counter[int] = field(default_factory=Counter)  # how many made so many calls; the last counts all above

    MANY = 1000

    def add(self, one: Exchanged) -> None:
        self.n += 1
        self.arrivals += one.arrivals
        self.sends += one.sends
        self.calls[min(one.calls, self.MANY)] += 1
        if one.duration_ns < 0:
            self.unanswered += 1
        else:
            self.durations.add(one.duration_ns)


@dataclass
class Process:
    pid: int
    line: int  # of its first call
    programs: list[str] = field(default_factory=list)  # command lines
    threads: int = 0
    calls: int = 0
    end: str = ""  # "exited with 0", "killed by SIGKILL"


@dataclass
class PhaseView:
    name: str
    line: int
    start_ns: int
    end_ns: int = 0
    calls: int = 0
    errors: int = 0
    requests: int = 0
    density: Density = field(default_factory=lambda: Density(0))  # of calls
    arrivals: Density = field(default_factory=lambda: Density(0))  # of requests

    @classmethod
    def begin(cls, phase: Phase, replay: Replay) -> Self:
        start_ns = phase.start_ns if phase.line else replay.start_ns  # the first begins with the first call
        return cls(phase.name, phase.line, start_ns, density=Density(start_ns), arrivals=Density(start_ns))

    @property
    def duration_ns(self) -> int:
        return max(0, self.end_ns - self.start_ns)


@dataclass
class Overview:
    path: str
    header: Header | None
    footer: Footer | None = None
    sha256: str = ""
    lines: int = 0
    start_ns: int = 0
    end_ns: int = 0
    calls: dict[tuple[str, str], Tally] = field(default_factory=dict)  # (phase, name)
    reissued: int = 0  # calls that the kernel restarted, not counted again
    phases: list[PhaseView] = field(default_factory=list)
    files: list[FileUse] = field(default_factory=list)  # written ones and those of serving first
    more_files: int = 0
    peers: list[Peer] = field(default_factory=list)
    more_peers: int = 0
    listening: list[tuple[str, str, bool]] = field(default_factory=list)  # (address, type, beyond loopback)
    requests: dict[str, Requests] = field(default_factory=dict)  # "hot path", "marked"
    sample: list[Exchanged] = field(default_factory=list)  # the first requests
    slowest: list[Exchanged] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    more_processes: int = 0
    signals: Counter[tuple[str, str]] = field(default_factory=Counter)  # (phase, name)
    reasons: tuple[str, ...] = ()  # why the evidence is incomplete
    cost: str | None = None  # what recording costs, in words

    @property
    def n_calls(self) -> int:
        return sum(phase.calls for phase in self.phases)

    @property
    def n_requests(self) -> int:
        return sum(kind.n for kind in self.requests.values())

    def by_name(self, phase: str | None = None) -> dict[str, Tally]:
        """Calls of one phase, or of all, by name: those that took most time first."""
        found: dict[str, Tally] = {}
        for (where, name), tally in self.calls.items():
            if phase in (None, where):
                found.setdefault(name, Tally()).unite(tally)
        return dict(sorted(found.items(), key=lambda item: (-item[1].durations.total_ns, -item[1].n, item[0])))


def overview(trace: str | Path | TraceFile, cost: str | None = None) -> Overview:
    """One pass over a trace. Raises TraceError where it is none."""
    replay = Replay(trace)
    observer = Observer(replay)
    for event in replay:
        if type(event) in SEE:
            SEE[type(event)](observer, event)
    return observer.finish(cost)


class Observer:
    """Adds up the events of a replay."""

    def __init__(self, replay: Replay):
        self._replay = replay
        self._view = Overview(str(replay.trace.path), replay.header)
        self._phase = PhaseView("", 0, 0)
        self._last_line = 0
        self._views: dict[str, PhaseView] = {}
        self._files: Frequent[str, FileUse] = Frequent(KEPT_FILES, lambda use: (use.writes > 0, use.n))
        self._peers: Frequent[tuple[str, str], Peer] = Frequent(KEPT_PEERS, lambda peer: peer.n)
        self._processes: dict[int, Process] = {}  # those that live
        self._threads: dict[int, Process] = {}  # those that live
        self._listeners: dict[int, Description] = {}

    def step(self, step: Step) -> None:
        call, phase = step.call, step.phase
        if call.flags & REISSUED:
            self._view.reissued += 1
            return
        if phase != self._phase.name:
            self._enter(phase)
        self._count(call)
        look = LOOK.get(call.name)
        if look is not None:
            look(self, step)

    def _enter(self, name: str) -> None:
        """The phase of the calls that follow; threads may be in the one before for some calls more."""
        known = self._views.get(name)
        if known is None:
            begun = next(phase for phase in self._replay.phases if phase.name == name)
            known = self._views[name] = PhaseView.begin(begun, self._replay)
        self._phase = known

    def _count(self, call: Call) -> None:
        phase = self._phase
        self._last_line = call.last_line
        key = phase.name, call.name
        tally = self._view.calls.get(key)
        if tally is None:
            tally = self._view.calls[key] = Tally()
        tally.n += 1
        phase.calls += 1
        if call.errno and not call.errno.startswith("ERESTART"):
            tally.errors += 1
            phase.errors += 1
        if call.duration_ns >= 0:
            tally.durations.add(call.duration_ns)
        phase.density.add(call.start_ns)
        thread = self._threads.get(call.tid)
        if thread is None:
            thread = self._appear(call)
        thread.calls += 1

    # --- processes ---

    def _appear(self, call: Call) -> Process:
        process = self._processes.get(call.pid)
        if process is None:
            process = self._processes[call.pid] = Process(call.pid, call.line)
            if len(self._view.processes) < KEPT_PROCESSES:
                self._view.processes.append(process)
            else:
                self._view.more_processes += 1
        process.threads += 1
        self._threads[call.tid] = process
        return process

    def _execute(self, step: Step) -> None:
        given = arguments(step.call.args)
        at = 1 if step.call.name == "execveat" else 0
        if step.call.result != 0 or len(given) < at + 2:
            return
        words = [text_of(word) for word in arguments(given[at + 1][1:-1])[:KEPT_ARGUMENTS]]
        words[:1] = [text_of(given[at])]
        programs = self._threads[step.call.tid].programs
        if len(programs) < KEPT_ARGUMENTS:
            programs.append(" ".join(word or "…" for word in words)[:KEPT_CHARACTERS])

    def exit(self, event: Exit) -> None:
        self._threads.pop(event.tid, None)
        if event.tid == event.pid and event.pid in self._processes:
            process = self._processes.pop(event.pid)
            process.end = f"killed by {event.signal}" if event.signal else f"exited with {event.status}"

    def signal(self, event: Signal) -> None:
        self._view.signals[self._phase.name, event.name] += 1

    # --- files and peers ---

    def _open(self, step: Step) -> None:
        call = step.call
        path = UNNAMED.sub("(unnamed)", opened_path(call) or "(not readable)")
        use = self._files.find(path, lambda: FileUse(path))
        use.phases.add(step.phase)
        if call.result is None or call.result < 0:
            use.failures += 1
        elif call.name == "creat" or WRITING.search(call.args):
            use.writes += 1
            use.reads += "O_RDWR" in call.args
        else:
            use.reads += 1

    def _talk(self, step: Step) -> None:
        for address in addresses_in(step.call):
            if address.family != "AF_UNSPEC":
                self._meet(str(address), TALKS[step.call.name], step)

    def _accept(self, step: Step) -> None:
        one = step.descriptor
        if one is not None and one.is_connection:
            peer = one.peer.host if one.peer and one.peer.is_ip else str(one.peer or one.family or "unknown")
            self._meet(f"{peer} at {one.local}" if one.local else peer, "accept from", step)

    def _meet(self, address: str, way: str, step: Step) -> None:
        peer = self._peers.find((address, way), lambda: Peer(address, way, step.call.line))
        peer.n += 1
        peer.failures += bool(step.call.errno)
        peer.phases.add(step.phase)

    def _listen(self, step: Step) -> None:
        one = step.descriptor
        receives = one is not None and one.local is not None and (one.listening or one.type == "SOCK_DGRAM")
        if one is not None and receives and len(self._listeners) < KEPT_LISTENERS:
            self._listeners[id(one)] = one  # kept: the port of an address that was bound with 0 shows later

    # --- requests ---

    def request(self, request: Request) -> None:
        one = Exchanged(request.id, request.fd, request.tid, request.phase, request.line, request.start_ns,
                        request.end_ns - request.start_ns if request.end_ns else -1, request.calls, request.arrivals,
                        request.sends, request.marked)
        self._view.requests.setdefault("marked" if one.marked else "hot path", Requests()).add(one)
        if one.phase in self._views:
            self._views[one.phase].requests += 1
            self._views[one.phase].arrivals.add(one.start_ns)
        if len(self._view.sample) < KEPT_REQUESTS:
            self._view.sample.append(one)
        slowest = self._view.slowest
        if len(slowest) < KEPT_SLOWEST or one.duration_ns > slowest[-1].duration_ns:
            slowest.append(one)
            slowest.sort(key=lambda each: -each.duration_ns)
            del slowest[KEPT_SLOWEST:]

    # --- the end ---

    def finish(self, cost: str | None) -> Overview:
        view, replay = self._view, self._replay
        view.cost, view.reasons = cost, tuple(replay.reasons())
        view.footer, view.sha256 = replay.footer, replay.trace.sha256
        view.lines = replay.footer.lines if replay.footer else self._last_line
        view.start_ns, view.end_ns = replay.start_ns, replay.end_ns
        view.phases = [self._views.get(phase.name) or PhaseView.begin(phase, replay) for phase in replay.phases]
        for phase, after in zip(view.phases, [*view.phases[1:], None]):
            phase.end_ns = after.start_ns if after else replay.end_ns
        view.files = sorted(self._files.kept.values(), key=_of_interest)
        view.more_files = self._files.n_dropped
        view.peers = sorted(self._peers.kept.values(), key=lambda one: (one.way == "accept from", -one.n, one.address))
        view.more_peers = self._peers.n_dropped
        view.listening = list(_addresses(self._listeners.values()))
        return view


def _of_interest(use: FileUse) -> tuple:
    """Written first, then touched while serving, then the most frequent; what was only looked for comes last."""
    return use.reads + use.writes == 0, use.writes == 0, "serving" not in use.phases, -use.n, use.path


def _addresses(sockets: Iterable[Description]) -> Iterator[tuple[str, str, bool]]:
    seen = set()
    for one in sockets:
        row = str(one.local), one.type, _is_exposed(one.local)
        if row not in seen:
            seen.add(row)
            yield row


def _is_exposed(address: Address | None) -> bool:
    return address is not None and address.is_ip and not address.ip.is_loopback


SEE: dict[type, Callable[[Observer, Any], None]] = {
    Step: Observer.step, Signal: Observer.signal, Exit: Observer.exit, Request: Observer.request}
LOOK = {**dict.fromkeys(OPENS, Observer._open), **dict.fromkeys(TALKS, Observer._talk),
        **dict.fromkeys(EXECUTES, Observer._execute), **dict.fromkeys(("accept", "accept4"), Observer._accept),
        **dict.fromkeys(("bind", "listen"), Observer._listen)}

# --- for people ---------------------------------------------------------------------------------

UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))


def duration(ns: float) -> str:
    """Three digits and a unit: "1.53 ms"."""
    for size, unit in UNITS:
        if ns >= size:
            n = ns / size
            return f"{n:,.0f} {unit}" if n >= 100 or size == 1 else f"{n:.3g} {unit}"
    return "0"
