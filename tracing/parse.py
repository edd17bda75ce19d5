"""What strace writes, as typed events: one line in, at most one event out. Pure and total.

The rule to keep: no text makes this raise, and none is passed over in silence. A line that is not understood becomes
an `Unknown` and is counted. A line is read from left to right, past strings and <annotations>, for the traced program
chooses what stands in them: `") = 3"`, `"<unfinished ...>"` or a socket named `]> = 0`.

Lines may begin with a thread ("123 ", "[pid 123] ") and a time (seconds since 1970, or HH:MM:SS), as strace was asked.
https://man7.org/linux/man-pages/man1/strace.1.html  (6.1; foreign traces of older ones are read, too)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from tracing.events import DELAYED, DETACHED, INJECTED, NO_RETURN, REISSUED, RESUMING, SPLIT
from tracing.events import Call, Event, Exit, Mode, Signal, Superseded, Unknown
from tracing.syntax import ANNOTATION, AT_FDCWD, STRING, arguments, descriptor, text_of

__all__ = ["AT_FDCWD", "BIRTHS", "DELAYED", "DETACHED", "INJECTED", "NO_RETURN", "REISSUED", "RESUMING", "SPLIT",
           "Call", "Event", "Exit", "Mode", "Parser", "Signal", "Superseded", "Unknown",
           "arguments", "descriptor", "parse", "text_of"]

BIRTHS = {"clone", "clone3", "fork", "vfork"}
NESTED_SIGNALS = 8  # interrupted calls of a thread that are kept: some stay for ever where rt_sigreturn is not traced

# A line, from left to right. Nothing is read twice (++): the time to refuse a line is linear in its length.
TIME = r"\d{9,10}+(?:\.\d{1,9}+)?+|\d\d:\d\d:\d\d(?:\.\d{1,9})?"
RELATIVE_TIME = r"\d{1,8}\.\d{1,9}"  # to the line before: of no use here
PREFIX = rf" *+(?:(?:\[pid +)?+(\d{{1,7}})(?:<[^<>]*+>)?+\]?+ ++)?(?:({TIME}) ++|{RELATIVE_TIME} ++)?"
PLAIN = '[^"<)]*+'
TOKEN = rf"{STRING}|{ANNOTATION}|<(?!(?:unfinished|detached) \.\.\.>$)|\)(?! += )"
RESULT = r"-?[1-9]\d{0,19}|0x[\da-f]{1,16}|0[0-7]{0,22}"
ERROR = r"E[A-Z]\w*|\(errno \d+\)"
DETAIL = r"(?:(?=[ <])(?:[^ \n]++| (?!<[\d.]+>$))++)?+"
RETURN = rf"\) += (?:\?|({RESULT}))(?: ({ERROR}))?+({DETAIL})(?: <(\d{{1,9}}\.\d{{1,9}})>)?"

CALL = re.compile(rf"{PREFIX}(?:([a-z_]\w*)\(|<\.\.\. (\w+) resumed>)({PLAIN}(?:(?:{TOKEN}){PLAIN})*+)"
                  rf"(?:{RETURN}|<(unfinished|detached) \.\.\.>)$", re.ASCII)
SIGNAL = re.compile(rf"{PREFIX}--- (stopped by )?(\w+)(?: (.*))? ---$", re.ASCII)
EXIT = re.compile(rf"{PREFIX}\+\+\+ (?:exited with (\d{{1,9}})|killed by (\w+)( \(core dumped\))?) \+\+\+$", re.ASCII)
SUPERSEDED = re.compile(rf"{PREFIX}\+\+\+ superseded by execve in pid (\d{{1,7}}) \+\+\+$", re.ASCII)
MODE = re.compile(rf"{PREFIX}(?:strace: )?(\[ Process PID=\d+ runs in .* mode\. \])$", re.ASCII)
REMARK = re.compile(r"(.*)strace: Process \d+ (?:attached|detached)(?: with \d+ threads)?$", re.ASCII)  # on stderr
KILLED = " <unfinished ...>"  # before ") = ?": in the midst of the call
TIME_WITH_NS = len("1700000000.123456789")  # no other form of TIME is as long


class Parser:
    """Reads one trace. What it remembers is bounded by the calls that are open and the threads that live."""

    def __init__(self, leaders: Mapping[int, int] | None = None) -> None:
        """`leaders`: the processes of threads that were there before the trace."""
        self.lines = 0
        self.unknown = 0  # lines that are not understood, or that leave an open call behind
        self.misplaced = 0  # threads whose events carried another pid until their clone returned
        self.open_calls: dict[int, Call] = {}  # by tid
        self._abandoned: list[Call] = []  # open calls whose threads went on without them
        self._leaders: dict[int, int] = dict(leaders or {})  # of threads that live
        self._parents: dict[int, int] = {}  # of processes that live
        self._births: dict[int, int] = {}  # thread in a clone that has not returned: its child, or 0 if not yet seen
        self._ended: set[int] = set()  # threads that ended while there were such clones
        self._interrupted: dict[int, list[Call]] = {}  # by signals, and perhaps to be re-issued
        self._in_handler: set[int] = set()
        self._interjected = ""  # the beginning of a line, before strace's remark

    def feed(self, text: str) -> Event | None:
        """Read one line; None if it ends nothing."""
        self.lines = line = self.lines + 1
        match = CALL.match(text)
        if match is None:
            return self._read_other(text)
        number, time, name, resumed, args, value, errno, detail, duration, cut = match.groups("")
        tid = int(number) if number else 0
        pid = self._leaders.get(tid)
        flags = 0
        if detail or not value:
            args, flags = args.removesuffix(KILLED), flags_of(value or cut, errno, detail)
        call = _new(Call, (
            tid, self._meet(tid) if pid is None else pid, line, line,
            int(time.replace(".", "")) if len(time) == TIME_WITH_NS else nanoseconds(time),
            round(float(duration) * 1e9) if duration else -1, name or resumed, args,
            number_of(value) if value else None, errno, detail and detail.lstrip(), flags))
        if resumed:
            return self._resume(call, text, cut)
        if tid in self.open_calls or tid in self._interrupted or name == "restart_syscall":
            call = self._enter(call)
        if cut:
            return self._break_off(call, cut)
        return self._leave(call) if name in FOLLOWED or errno and errno.startswith("ERESTART") else call

    def finish(self) -> list[Call]:
        """The calls that are open at the end of the trace, by line; then only the counts are left."""
        for tid in list(self.open_calls):
            self._abandon(tid)
        self.unknown += bool(self._interjected)
        counts = {"lines": self.lines, "unknown": self.unknown, "misplaced": self.misplaced}
        calls = self.take_abandoned()
        vars(self).update(vars(Parser()) | counts)
        return sorted(calls, key=lambda call: call.line)

    def take_abandoned(self) -> list[Call]:
        """Calls whose threads went on, or ended, without a word of their return."""
        abandoned, self._abandoned = self._abandoned, []
        return abandoned

    def pid_of(self, tid: int) -> int:
        """The process of a thread, as far as the trace has told."""
        return self._leaders.get(tid, tid)

    def parent_of(self, pid: int) -> int:
        """The process that made this one; 0: not seen."""
        return self._parents.get(pid, 0)

    def birth_of(self, tid: int) -> Call | None:
        """The call that makes this thread and has not returned yet."""
        return next((self.open_calls.get(parent) for parent, child in self._births.items() if child == tid), None)

    # --- a call begins, waits, goes on ---

    def _enter(self, call: Call) -> Call:
        """A thread begins a call, and has one open or interrupted (or was so when strace attached)."""
        if call.tid in self.open_calls:
            self.unknown += 1  # its return was lost
            self._abandon(call.tid)
        interrupted = self._interrupted.get(call.tid)
        if interrupted is None:
            return flagged(call, RESUMING) if call.name == "restart_syscall" else call
        if call.tid not in self._in_handler and repeats(interrupted[-1], call):
            self._settle_interrupted(call.tid)
            return flagged(call, REISSUED)
        if call.name != "rt_sigreturn":
            self._in_handler.add(call.tid)
        return call

    def _break_off(self, call: Call, how: str) -> Call | None:
        """A line that ends within a call."""
        if how == "detached":
            return unreturned(call, DETACHED)
        self.open_calls[call.tid] = call
        if call.name in BIRTHS:
            self._births.setdefault(call.tid, 0)
        return None

    def _resume(self, rest: Call, text: str, cut: str) -> Event | None:
        """A line that goes on with an open call."""
        tid = self._begun_by(rest)
        begun = self.open_calls.get(tid) or without_entry(rest)
        if begun.name != rest.name:
            return self._refuse(text)
        self.open_calls.pop(tid, None)
        call = merged(begun, rest)
        if tid in self._births:
            self._births[call.tid] = self._births.pop(tid)
        return self._break_off(call, cut) if cut else self._leave(call)

    def _begun_by(self, rest: Call) -> int:
        """The thread. On stderr strace names none while there is only one: it may be named on one of the two lines."""
        if rest.tid in self.open_calls or rest.tid and 0 not in self.open_calls:
            return rest.tid
        same = (tid for tid, call in self.open_calls.items() if call.name == rest.name and (not tid or not rest.tid))
        return next(same, rest.tid)

    def _abandon(self, tid: int) -> None:
        self._births.pop(tid, None)
        self._abandoned.append(unreturned(self.open_calls.pop(tid), SPLIT))

    # --- what a return changes ---

    def _leave(self, call: Call) -> Call:
        if call.name in FOLLOWED:
            FOLLOWED[call.name](self, call)
        if call.errno.startswith("ERESTART"):
            self._in_handler.discard(call.tid)
            self._interrupted[call.tid] = [*self._interrupted.get(call.tid, []), call][-NESTED_SIGNALS:]
        return call

    def _settle_interrupted(self, tid: int) -> None:
        """The last one is settled; those before it wait for the handler that we are in."""
        self._interrupted[tid].pop()
        if self._interrupted[tid]:
            self._in_handler.add(tid)
        else:
            self._forget_interrupted(tid)

    def _forget_interrupted(self, tid: int) -> None:
        self._interrupted.pop(tid, None)
        self._in_handler.discard(tid)

    def _return_from_handler(self, call: Call) -> None:
        self._in_handler.discard(call.tid)
        if call.errno == "EINTR" and call.tid in self._interrupted:
            self._settle_interrupted(call.tid)  # the program is told, and nothing re-issued

    def _execute(self, call: Call) -> None:
        if call.result == 0:
            self._forget_interrupted(call.tid)

    def _bear(self, call: Call) -> None:
        """A clone has returned: only now is it sure whose child its child is."""
        child, guess = call.result or 0, self._births.pop(call.tid, 0)
        if guess not in (0, child) and guess in self._leaders:
            self._leaders[guess] = guess
            self._parents.pop(guess, None)
        if child > 0 and child not in self._ended:
            known = self._leaders.get(child)
            self.misplaced += known not in (None, self._place(child, call))
        for parent in [parent for parent, guess in self._births.items() if guess == child]:
            self._births[parent] = 0
        if not self._births:
            self._ended.clear()

    # --- threads and processes ---

    def _meet(self, tid: int) -> int:
        """The process of a thread that is seen for the first time, perhaps before its clone has returned."""
        for parent, child in self._births.items():
            if not child:
                self._births[parent] = tid
                return self._place(tid, self.open_calls[parent])
        self._leaders[tid] = tid
        return tid

    def _place(self, child: int, birth: Call) -> int:
        parent = self.pid_of(birth.tid)
        is_thread = "CLONE_THREAD" in birth.args
        self._leaders[child] = parent if is_thread else child
        if not is_thread:
            self._parents[child] = parent
        return self._leaders[child]

    def _forget(self, tid: int) -> None:
        """A thread has ended; its number may come again."""
        if tid in self.open_calls:
            self._abandon(tid)
        self._forget_interrupted(tid)
        self._leaders.pop(tid, None)
        self._parents.pop(tid, None)
        if self._births:
            self._ended.add(tid)

    # --- lines that are no calls ---

    def _read_other(self, text: str) -> Event | None:
        if self._interjected:
            begun, self._interjected = self._interjected, ""
            self.lines -= 1
            return self.feed(begun + text)
        for pattern, read in OTHERS.items():
            match = pattern.match(text)
            if match:
                return read(self, match)
        return self._refuse(text)

    def _refuse(self, text: str) -> Unknown:
        self.unknown += 1
        return Unknown(self.lines, text.removesuffix("\n"))

    def _place_of(self, match: re.Match) -> tuple[int, int, int, int]:
        """(tid, pid, line, time_ns) of an event."""
        tid = int(match[1] or 0)
        pid = self._leaders.get(tid)
        return tid, self._meet(tid) if pid is None else pid, self.lines, nanoseconds(match[2] or "")

    def _signal(self, match: re.Match) -> Signal:
        return Signal(*self._place_of(match), match[4], "stopped" if match[3] else match[5] or "")

    def _exit(self, match: re.Match) -> Exit:
        event = Exit(*self._place_of(match), int(match[3]) if match[3] else None, match[4] or "", bool(match[5]))
        self._forget(event.tid)
        return event

    def _supersede(self, match: re.Match) -> Superseded:
        event = Superseded(*self._place_of(match), int(match[3]))
        if event.tid in self.open_calls:
            self._abandon(event.tid)
        moved = self.open_calls.pop(event.by, None)
        if moved:
            self.open_calls[event.tid] = moved._replace(tid=event.tid, pid=event.pid)
        self._forget_interrupted(event.tid)
        self._forget(event.by)
        return event

    def _mode(self, match: re.Match) -> Mode:
        return Mode(self.lines, match[3])

    def _remark(self, match: re.Match) -> None:
        """strace follows one more, and says so even in the midst of a line, whose rest comes next."""
        self._interjected = match[1]


FOLLOWED: dict[str, Callable[[Parser, Call], None]] = {
    **dict.fromkeys(BIRTHS, Parser._bear), **dict.fromkeys(("execve", "execveat"), Parser._execute),
    "rt_sigreturn": Parser._return_from_handler}
OTHERS: dict[re.Pattern[str], Callable[[Parser, re.Match], Event | None]] = {
    SIGNAL: Parser._signal, EXIT: Parser._exit, SUPERSEDED: Parser._supersede, MODE: Parser._mode,
    REMARK: Parser._remark}


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a trace, in order of completion; calls that never returned come last."""
    parser = Parser()
    for text in lines:
        event = parser.feed(text)
        if event is not None:
            yield event
        if parser._abandoned:
            yield from parser.take_abandoned()
    yield from parser.finish()


_new = tuple.__new__  # a third of the time of Call(…)


def nanoseconds(text: str) -> int:
    """"1.5" and "00:00:01.5" → 1500000000, "" → 0."""
    clock, _, fraction = text.partition(".")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part or 0)
    return seconds * 10**9 + int(fraction.ljust(9, "0"))


def number_of(text: str) -> int:
    """As C writes it: decimal, 0x…, 0…"""
    if text[0] != "0":
        return int(text)
    return int(text, 16 if text[1:2] == "x" else 8)


def flags_of(value: str, errno: str, detail: str) -> int:
    flags = 0 if value or errno else NO_RETURN
    if detail.endswith("ED)"):
        flags |= INJECTED * detail.endswith(("(INJECTED)", "(INJECTED) (DELAYED)"))
        flags |= DELAYED * detail.endswith(("(DELAYED)", "(DELAYED) (INJECTED)"))
    return flags


def flagged(call: Call, flags: int) -> Call:
    return call._replace(flags=call.flags | flags)


def unreturned(call: Call, flags: int) -> Call:
    return call._replace(args=call.args.removesuffix(" "), flags=call.flags | flags | NO_RETURN)


def without_entry(rest: Call) -> Call:
    """What a call began with of which only the return is in the trace."""
    start_ns = max(rest.start_ns - max(rest.duration_ns, 0), 0)
    return rest._replace(start_ns=start_ns, args="", flags=RESUMING)


def merged(begun: Call, rest: Call) -> Call:
    """The call of two lines. The time of `rest` is that of the return."""
    tid, pid, line, _, start_ns, _, name, args, _, _, _, flags = begun
    rest_tid, rest_pid, last_line, _, end_ns, duration_ns, _, more, result, errno, detail, flags_at_return = rest
    if rest_tid:
        tid, pid = rest_tid, rest_pid
    if duration_ns < 0 and start_ns and end_ns:
        duration_ns = end_ns - start_ns
    args = args.removesuffix(" ")
    if more[:1] == " " and (args[-1:] in ("", " ") or more.isspace()):
        more = more[1:]  # older straces write it after "resumed>", too
    return _new(Call, (tid, pid, line, last_line, start_ns, duration_ns, name, args + more, result, errno, detail,
                       flags | SPLIT | flags_at_return))


def repeats(interrupted: Call, call: Call) -> bool:
    """Whether a call is an interrupted one again. What it puts out was not there yet: the first argument decides."""
    return call.name == "restart_syscall" or (
        call.name == interrupted.name and first_input(call.args) == first_input(interrupted.args))


def first_input(args: str) -> str:
    return re.split("<| => ", next(iter(arguments(args)), ""), maxsplit=1)[0]
