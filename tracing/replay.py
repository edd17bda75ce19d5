"""A recorded trace played again: every call in its context, and what is missing from the evidence.

The rule to keep: whatever could hide a call from us becomes a reason, and a reason forbids PASS.

One pass, in order of completion, in memory that depends on what is open at one time, never on the trace's length.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tracing import fds
from tracing.errors import TraceError
from tracing.fds import Description, Descriptors
from tracing.parse import RESUMING, Call, Exit, Mode, Parser, Signal, Superseded, Unknown
from tracing.phases import FOLDER, SENDS, Phase, Phases, Request, Requests, marker_of
from tracing.sockets import end_of
from tracing.syntax import arguments
from tracing.tracefile import Footer, Header, Inherited, TraceFile

CREATE = {"clone", "clone3", "fork", "vfork"}
SHOWN = 5
ENDS = re.compile(r"(TCP|UDP) (\S+:\d+)(?: -> (\S+:\d+))?")
OWN_TABLES = {("unshare", 0): "CLONE_FILES", ("close_range", 0): "CLOSE_RANGE_UNSHARE"}
FILTERS = {"seccomp": "SECCOMP_SET_MODE_FILTER", "prctl": "PR_SET_SECCOMP"}


class Step(NamedTuple):
    """A call in its context."""

    call: Call
    phase: str
    request: Request | None
    descriptor: Description | None  # of the first argument, or what the call made


class Replay:
    """Iterate once: Phase as it begins, Step, Signal, Exit, each Request when it is over; then ask for `reasons()`."""

    def __init__(self, trace: TraceFile | str | Path):
        self.trace = trace if isinstance(trace, TraceFile) else TraceFile.open(trace)
        self.descriptors, self.requests = Descriptors(self._creating), Requests()
        self._parser = Parser({one.tid: one.pid for one in self.header.threads} if self.header else {})
        self._phases = Phases(self.header.nonce if self.header else "")
        self._born: dict[int, tuple[int, int]] = {}  # thread made by a call, not yet seen → its process, the line
        self._ended: set[int] = set()  # that ended before the call that made them had returned
        self.living: dict[int, int] = {}  # thread → process
        self._reasons: list[str] = []
        self._unknown: list[str] = []  # the first lines that are not understood
        self._n_unknown = self._n_misplaced = 0
        self.n_events = 0
        self.main_pid = 0
        self.start_ns = self.end_ns = 0

    @property
    def header(self) -> Header | None:
        return self.trace.header

    @property
    def footer(self) -> Footer | None:
        return self.trace.footer

    @property
    def phases(self) -> list[Phase]:
        return self._phases.begun

    @property
    def nonce(self) -> str:
        return self._phases.nonce

    def __iter__(self) -> Iterator[Phase | Step | Signal | Exit | Request]:
        self._begin()
        yield self.phases[0]
        for text in self.trace.lines():
            event = self._parser.feed(text)
            if event is None:
                self._appear_pending(text)
            else:
                yield from self._follow(event)
            for call in self._parser.take_abandoned():
                yield from self._call(call)
        self._n_unknown, self._n_misplaced = self._parser.unknown, self._parser.misplaced
        for call in self._parser.finish():
            yield from self._call(call)
        self.requests.finish()
        yield from self._take_requests()
        self._finish()

    # --- events ---

    def _begin(self) -> None:
        marked = any(FOLDER in text for text in self.trace.lines())
        if self.header and self.header.attached:
            self.descriptors.inherited_kind = fds.INHERITED
        for one in self.header.inherited if self.header else ():
            self.descriptors.inherit(one.pid, one.fd, _inherited(one))
        self._phases.start(marked, self.header.started_ns if self.header else 0)

    def _follow(self, event) -> Iterator[Phase | Step | Signal | Exit | Request]:
        if isinstance(event, Unknown):
            self._unknown.append(f"line {event.line}") if len(self._unknown) < SHOWN else None
            return
        if isinstance(event, Mode):
            self._because(f"line {event.line}: a process ran in another mode (32 bit), whose calls are not judged")
            return
        self._appear(event.tid, event.pid)
        if isinstance(event, Call):
            yield from self._call(event)
        elif isinstance(event, Superseded):
            self.living.pop(event.by, None)
        else:
            self.n_events += 1
            if isinstance(event, Exit):
                self._exit(event)
            yield event

    def _call(self, call: Call) -> Iterator[Phase | Step | Request]:
        self.n_events += 1
        self.start_ns = self.start_ns or call.start_ns
        self.end_ns = max(self.end_ns, call.start_ns)
        marker = marker_of(call)
        if marker is not None:
            n_phases = len(self.phases)
            self._phases.mark(call, marker)
            self.requests.mark(call, marker)
            yield from self.phases[n_phases:]
            return
        if call.name in CREATE:
            self._create(call)
        if call.flags & RESUMING and not (self.header and self.header.attached):
            self._because(f"line {call.line}: the beginning of a {call.name} is missing")
        if call.name.startswith("syscall_0x"):
            self._because(f"line {call.line}: this strace does not know the call {call.name}")
        self._look_for_gaps(call)
        phase = self._phases.of(call)
        descriptor = self.descriptors.apply(call)
        request = self.requests.place(call, phase, descriptor)
        if request is not None and call.name in SENDS:
            request.descriptors = self.descriptors.count(call.pid)
        step = Step(call, phase, request, descriptor)
        yield from self._take_requests()
        yield step

    def _take_requests(self) -> Iterator[Request]:
        if self.requests.finished:
            yield from self.requests.finished
            self.requests.finished.clear()

    # --- threads and processes ---

    def _appear_pending(self, text: str) -> None:
        """An unfinished call: its thread may be seen for the first time."""
        number = text.partition(" ")[0]
        if number.isdigit() and int(number) not in self.living:
            tid = int(number)
            self._appear(tid, self._parser.pid_of(tid))

    def _appear(self, tid: int, pid: int) -> None:
        if tid in self.living:
            return
        self.living[tid] = pid
        self._born.pop(tid, None)
        self.main_pid = self.main_pid or pid
        if pid not in self.descriptors.tables:
            birth = self._parser.birth_of(tid)
            self.descriptors.begin(pid, self._parser.parent_of(pid) or None,
                                   birth is not None and "CLONE_FILES" in birth.args)

    def _create(self, call: Call) -> None:
        if "CLONE_UNTRACED" in call.args:
            self._because(f"line {call.line}: {call.name} made a process that strace does not see (CLONE_UNTRACED)")
            return
        child = call.result or 0
        if child > 0 and child not in self.living and child not in self._ended:
            self._born[child] = call.pid if "CLONE_THREAD" in call.args else child, call.line
            if "CLONE_THREAD" not in call.args:
                self.descriptors.begin(child, call.pid, "CLONE_FILES" in call.args)
        elif child in self.descriptors.tables and "CLONE_FILES" in call.args and "CLONE_THREAD" not in call.args:
            self.descriptors.tables[child] = self.descriptors.table(call.pid)
        if not self._creating():
            self._ended.clear()
            self.descriptors.forget_closed()

    def _creating(self) -> bool:
        return any(call.name in CREATE for call in self._parser.open_calls.values())

    def _exit(self, event: Exit) -> None:
        if event.core:
            self._because(f"line {event.line}: the kernel dumped a process's memory, to a file or to a helper")
        self.living.pop(event.tid, None)
        if self._creating():
            self._ended.add(event.tid)
        self.requests.end_thread(event.tid)
        others = [*self.living.values(), *(pid for pid, _ in self._born.values())]
        if event.pid not in others:  # the leader may end before its threads
            self.descriptors.end(event.pid)

    # --- what is missing ---

    def _because(self, reason: str) -> None:
        if len(self._reasons) < 50 and reason not in self._reasons:
            self._reasons.append(reason)

    def _look_for_gaps(self, call: Call) -> None:
        if call.name in FILTERS and FILTERS[call.name] in call.args and call.result == 0:
            if self.header is None or self.header.seccomp_bpf:
                self._because(f"line {call.line}: the program set a seccomp filter, and this recording (--seccomp-bpf)"
                              " does not see calls that such a filter stops; record with --no-seccomp-bpf")
        elif (call.name, call.result) in OWN_TABLES and OWN_TABLES[call.name, 0] in call.args:
            self._because(f"line {call.line}: a thread took a table of descriptors of its own ({call.name}), which is"
                          " not followed")
        elif call.name in ("sendmmsg", "recvmmsg") and _is_elided(call):
            self._because(f"line {call.line}: strace left out some messages of a {call.name} (its -s is shorter)")

    def _finish(self) -> None:
        trace = self.trace
        if trace.header is None:
            self._because("the trace has no header: it is not known how it was recorded and which calls it holds")
        if trace.torn:
            self._because("the last line is torn")
        if trace.damaged:
            self._because(trace.damaged)
        if trace.footer is None:
            self._because("the trace has no end: the recording was cut off")
        elif not trace.footer.recorded:
            self._because("the recording did not end as it should: strace or the recorder was killed")
        if self._n_unknown:
            self._because(f"{self._n_unknown} lines are not understood ({', '.join(self._unknown)} …)")
        if self.living and not (trace.header and trace.header.attached):
            self._because(f"{len(self.living)} threads have no exit line: what they did at the end is not known")
        if self._born:
            _, line = next(iter(self._born.values()))
            self._because(f"line {line}: a process was made and never seen ({len(self._born)} in all)")
        if self._n_misplaced:
            self._because(f"{self._n_misplaced} processes were taken for children of others until their clone returned")
        if self.descriptors.n_contradictions:
            self._because(f"{self.descriptors.n_contradictions} descriptors are not what they seem:"
                          f" {'; '.join(self.descriptors.contradictions)}")
        self._reasons += self._phases.finish()
        if not self.n_events and trace.header is None:
            raise TraceError(f"{trace.path}: no system calls in it; expected the output of strace -f")

    def reasons(self) -> list[str]:
        """Why the evidence is incomplete; empty when nothing can be missing."""
        return self._reasons


def _is_elided(call: Call) -> bool:
    vector = arguments(call.args)[1:2]
    return not vector or vector[0].endswith("...]") or not vector[0].startswith("[") or "/* 0x" in vector[0]


def _inherited(one: Inherited) -> Description:
    description = fds.described("" if one.kind == "socket" else one.detail, fds.INHERITED, 0)
    description.kind, description.name = one.kind, one.detail
    ends = ENDS.match(one.detail)
    if one.kind == "socket" and ends:
        description.type = "SOCK_STREAM" if ends[1] == "TCP" else "SOCK_DGRAM"
        description.local, description.peer = end_of(ends[2]), end_of(ends[3] or "")
        description.family = description.local.family if description.local else ""
        description.listening = one.detail.endswith("LISTEN")
    return description
