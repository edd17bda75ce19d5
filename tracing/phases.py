"""Phases and requests of a traced program: which event belongs to which.

A program that is told a nonce (TESTIGO_TRACE) marks its phases and, off the hot path, its requests with calls that
fail on purpose: access("/dev/null/testigo/v1/<nonce>/<seq>/phase=serving") is ENOTDIR, one call, never shortened by
strace.

The rule to keep: nothing is assumed about requests. On a connection a request is what lies between two answers, as
the trace shows them; a marker only gives it a name.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

from tracing.fds import Description
from tracing.parse import REISSUED, Call
from tracing.syntax import arguments

FOLDER = "/dev/null/testigo/v1/"
MARKER = re.compile(r'"/dev/null/testigo/v1/([0-9a-f]{1,64})/(\d{1,18})/'
                    r'(?:phase=(\w{1,20})|req=([\w.-]{1,64})/(begin|first_token|end))"')
MARKER_CALLS = {"access", "faccessat", "faccessat2"}
PHASES = ("startup", "load", "warmup", "serving", "drain", "shutdown")
SERVING = "serving"
RECEIVES = {"recvfrom", "recvmsg", "recvmmsg", "read", "readv"}
SENDS = {"sendto", "sendmsg", "sendmmsg", "write", "writev", "sendfile", "splice"}
PAUSE_NS = 250_000_000  # a connection that was silent for longer begins a new streak


class Marker(NamedTuple):
    nonce: str
    seq: int
    phase: str  # "" when it is about a request
    request: str
    step: str  # "begin", "first_token", "end"


def marker_of(call: Call) -> Marker | None:
    """The marker that this call is; None for all other calls. One that is badly written is none either."""
    if call.name not in MARKER_CALLS or FOLDER not in call.args:
        return None
    found = MARKER.search(call.args)
    return Marker(found[1], int(found[2]), found[3] or "", found[4] or "", found[5] or "") if found else None


class Phase(NamedTuple):
    name: str
    line: int  # the first line that belongs to it
    start_ns: int


@dataclass
class Phases:
    """The phases so far. Without any marker all is one: serving."""

    nonce: str  # "" accepts the first that comes
    begun: list[Phase] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # why they cannot be trusted
    spanning: int = 0  # calls that began in one phase and ended in a later one
    _seen: dict[int, list[int]] = field(default_factory=dict)  # pid → [markers, highest seq]

    def mark(self, call: Call, marker: Marker) -> None:
        """Note a marker: its phase begins when the call has returned."""
        if self.nonce and marker.nonce != self.nonce:
            self._distrust("a marker carries another nonce than the recording gave out")
            return
        self.nonce = marker.nonce
        seen = self._seen.setdefault(call.pid, [0, -1])
        seen[0], seen[1] = seen[0] + 1, max(seen[1], marker.seq)
        if marker.phase:
            self._begin(marker.phase, call)

    def _begin(self, name: str, call: Call) -> None:
        if name not in PHASES:
            self._distrust(f"line {call.line}: an unknown phase was marked; expected one of {', '.join(PHASES)}")
        elif len(self.begun) == 1 and name == PHASES[0]:
            pass  # what came before the first marker was startup, too
        elif PHASES.index(name) <= PHASES.index(self.begun[-1].name):
            self._distrust(f"line {call.line}: phase {name} was marked after {self.begun[-1].name}")
        else:
            self.begun.append(Phase(name, call.last_line, call.start_ns + max(call.duration_ns, 0)))

    def _distrust(self, reason: str) -> None:
        if len(self.reasons) < 5:
            self.reasons.append(reason)

    def start(self, marked: bool, start_ns: int) -> None:
        """Begin with the first line; `marked`: markers will come."""
        self.begun.append(Phase(PHASES[0] if marked else SERVING, 0, start_ns))

    def of(self, call: Call) -> str:
        """The phase in which a call was entered."""
        at = bisect_left(self.begun, call.line, key=lambda phase: phase.line) - 1
        if self.begun[-1].line > call.line and self.begun[-1].line < call.last_line:
            self.spanning += 1
        return self.begun[max(at, 0)].name

    def finish(self) -> list[str]:
        """Why the phases cannot be trusted, when all lines were read."""
        if self._seen:
            if all(phase.name != SERVING for phase in self.begun):
                self._distrust("the program marked phases, but none was serving")
            for pid, (count, highest) in self._seen.items():
                if count != highest + 1:
                    self._distrust(f"process {pid} made {highest + 1} markers, {count} are in the trace")
        return self.reasons


# --- requests -----------------------------------------------------------------------------------

@dataclass(eq=False)
class Request:
    """One exchange on a connection: arrivals, work, answer."""

    fd: int
    id: str = ""  # from its marker; else "<pid>.<fd>.<n>"
    pid: int = 0
    tid: int = 0  # of the thread that received it
    phase: str = ""  # in which its first bytes arrived
    line: int = 0
    start_ns: int = 0  # when its first bytes had arrived
    end_ns: int = 0  # when the last `send` had returned; 0: never answered
    calls: int = 0  # all that were made for it; what follows an answer counts for the next request
    arrivals: int = 0  # segments, as far as receives show them: all that had come was taken, and later there was more
    drained: bool = False  # the last receive asked for more than it got
    sends: int = 0
    marked: bool = False  # a marker named it: it took the path through Python
    streak: int = 0  # requests answered before on this connection by this thread, without a pause
    names: dict[str, int] = field(default_factory=dict)  # calls by name
    descriptors: int = 0  # that the process had open when it answered
    tokens: int = 0  # sends since its first token
    token_calls: int = 0
    in_tokens: bool = False


@dataclass(eq=False)
class _Connection:
    fd: int
    current: Request  # arriving; or nothing of it has arrived yet
    answered: Request | None = None  # more of its answer may follow
    n: int = 0
    streak: int = -1
    holder: int = 0  # the thread that touched it last


class Requests:
    """Attributes calls to requests, and gives each request once: when nothing can be added to it any more."""

    def __init__(self) -> None:
        self._connections: dict[Description, _Connection] = {}
        self._last: dict[int, _Connection] = {}  # thread → the connection that it last touched
        self.serving: set[int] = set()  # threads that have touched any
        self._named: dict[int, str] = {}  # thread → the marked request that it is in
        self.finished: list[Request] = []  # to be taken by whoever replays

    def mark(self, call: Call, marker: Marker) -> None:
        """A request's marker: the thread works for the connection that it last touched."""
        if marker.step == "begin":
            self._named[call.tid] = marker.request
        elif marker.step == "end":
            self._named.pop(call.tid, None)
        connection = self._last.get(call.tid)
        if connection is None:
            return
        if marker.step == "begin" and connection.current.arrivals:
            connection.current.id, connection.current.marked = marker.request, True
        for request in (connection.current, connection.answered):
            if request and marker.step != "begin":
                request.in_tokens = marker.step == "first_token"

    def place(self, call: Call, phase: str, descriptor: Description | None) -> Request | None:
        """The request that a call was made for; None for what no connection asked for."""
        if descriptor is None or not descriptor.is_connection or call.name.startswith("accept"):
            connection = self._last.get(call.tid)
            return self._count(connection.current, call) if connection and connection.holder == call.tid else None
        connection = self._connections.get(descriptor)
        if connection is None:
            fd = int(call.args.partition("<")[0])
            connection = self._connections[descriptor] = _Connection(fd, Request(fd))
        self._last[call.tid], connection.holder = connection, call.tid
        self.serving.add(call.tid)
        if call.result is not None and call.result > 0:
            if call.name in RECEIVES:
                self._arrive(connection, call, phase)
            elif call.name in SENDS:
                return self._send(connection, call)
        request = self._count(connection.current, call)
        if call.name == "close" and call.result == 0:
            self._leave(descriptor, connection)
        return request

    def _arrive(self, connection: _Connection, call: Call, phase: str) -> None:
        request, now_ns = connection.current, call.start_ns + max(call.duration_ns, 0)
        if not request.arrivals:
            before = connection.answered
            follows = before and before.tid == call.tid and now_ns - before.end_ns < PAUSE_NS
            connection.streak = connection.streak + 1 if follows else 0
            connection.n += 1
            request.streak, request.pid, request.tid, request.phase = connection.streak, call.pid, call.tid, phase
            request.line, request.start_ns = call.line, now_ns
            request.marked = call.tid in self._named
            request.id = self._named.get(call.tid) or f"{call.pid}.{connection.fd}.{connection.n}"
            if before:
                self.finished.append(before)
                connection.answered = None
        taken, asked = _received(call)
        if not request.arrivals or (request.drained and taken):
            request.arrivals += 1
        request.drained = taken and asked > (call.result or 0)

    def _send(self, connection: _Connection, call: Call) -> Request:
        if connection.current.arrivals:
            connection.answered, connection.current = connection.current, Request(connection.fd)
        elif connection.answered:  # more of the same answer; so is what was done since its last part
            _move(connection.current, connection.answered)
        request = connection.answered or connection.current
        request.sends += 1
        request.end_ns = call.start_ns + max(call.duration_ns, 0)
        request.tokens += request.in_tokens
        return self._count(request, call)

    def _count(self, request: Request, call: Call) -> Request:
        if not call.flags & REISSUED:
            request.calls += 1
            request.names[call.name] = request.names.get(call.name, 0) + 1
            request.token_calls += request.in_tokens
        return request

    def _leave(self, descriptor: Description, connection: _Connection) -> None:
        del self._connections[descriptor]
        self._last = {tid: last for tid, last in self._last.items() if last is not connection}
        self.finished += [r for r in (connection.answered, connection.current) if r and r.arrivals]

    def end_thread(self, tid: int) -> None:
        self._last.pop(tid, None)
        self._named.pop(tid, None)

    def finish(self) -> None:
        """All lines were read: what is still open is over."""
        for descriptor, connection in list(self._connections.items()):
            self._leave(descriptor, connection)


def _received(call: Call) -> tuple[bool, int]:
    """(whether the bytes are taken, not only looked at; how many were asked for, 0 where that is not shown)."""
    given = arguments(call.args)
    asked = given[2] if call.name in ("recvfrom", "read") and len(given) > 2 else ""
    return "MSG_PEEK" not in call.args, int(asked) if asked.isdigit() else 0


def _move(source: Request, target: Request) -> None:
    target.token_calls += source.calls if target.in_tokens else 0
    target.calls, source.calls = target.calls + source.calls, 0
    for name, n in source.names.items():
        target.names[name] = target.names.get(name, 0) + n
    source.names.clear()
