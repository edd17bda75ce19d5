"""The strace parser: golden lines, whole, torn, and with all columns; interleavings; arbitrary text; memory."""

import itertools
import tracemalloc
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracing.strace_lines import BLOCKS, REISSUES, WHOLE, server_trace
from tracing.parse import (DETACHED, NO_RETURN, REISSUED, RESUMING, SPLIT, Call, Exit, Mode, Parser, Signal, Superseded,
                           Unknown, arguments, descriptor, parse, text_of)

pytestmark = pytest.mark.core

NS = 1_795_477_143_777_805_300
COLUMNS = {  # what a line begins with: (tid, time in ns)
    "": (0, 0),
    "4060  1795477143.777805300 ": (4060, NS),
    "4060  1795477143.777805 ": (4060, 1_795_477_143_777_805_000),
    "4060  1795477143 ": (4060, 1_795_477_143_000_000_000),
    "1795477143.777805300 ": (0, NS),
    "1795477143 ": (0, 1_795_477_143_000_000_000),
    "4060  ": (4060, 0),
    "[pid  4060] ": (4060, 0),
    "[pid  4060] 23:55:29 ": (4060, 86_129_000_000_000),
    "23:55:29.473213 ": (0, 86_129_473_213_000),
    "23:55:29.473213456 ": (0, 86_129_473_213_456),
    "     0.000271 ": (0, 0),
    "4060      0.000000 ": (4060, 0),
    "4060<python3> 1795477143.777805300 ": (4060, NS),
}
LAST = "4060  1795477143.777805300 "
OTHERS = {
    "--- SIGCHLD {si_signo=SIGCHLD, si_status=0, si_utime=0, si_stime=1 /* 0.01 s */} ---":
        lambda *at: Signal(*at, "SIGCHLD", "{si_signo=SIGCHLD, si_status=0, si_utime=0, si_stime=1 /* 0.01 s */}"),
    "--- SIGCHLD (Child exited) @ 0 (0) ---": lambda *at: Signal(*at, "SIGCHLD", "(Child exited) @ 0 (0)"),
    "--- stopped by SIGSTOP ---": lambda *at: Signal(*at, "SIGSTOP", "stopped"),
    "+++ exited with 3 +++": lambda *at: Exit(*at, 3, "", False),
    "+++ killed by SIGKILL +++": lambda *at: Exit(*at, None, "SIGKILL", False),
    "+++ killed by SIGSEGV (core dumped) +++": lambda *at: Exit(*at, None, "SIGSEGV", True),
    "+++ superseded by execve in pid 4061 +++": lambda *at: Superseded(*at, 4061),
    "[ Process PID=4060 runs in 32 bit mode. ]":
        lambda tid, pid, line, time_ns: Mode(line, "[ Process PID=4060 runs in 32 bit mode. ]"),
}


def calls(events) -> list[Call]:
    return [event for event in events if isinstance(event, Call)]


def unknown(events) -> list[Unknown]:
    return [event for event in events if isinstance(event, Unknown)]


# One line

@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("golden", WHOLE, ids=[line[:50] for line, *_ in WHOLE])
def test_whole_call(golden, columns):
    line, name, args, result, errno, detail, flags = golden
    tid, time_ns = COLUMNS[columns]
    call = Parser().feed(columns + line)
    assert isinstance(call, Call)
    assert (call.tid, call.pid, call.line, call.last_line, call.start_ns) == (tid, tid, 1, 1, time_ns)
    assert (call.name, arguments(call.args), call.result, call.errno) == (name, args, result, errno)
    assert (call.detail, call.flags) == (detail, flags)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("line", OTHERS)
def test_line_that_is_no_call(line, columns):
    tid, time_ns = COLUMNS[columns]
    assert Parser().feed(columns + line) == OTHERS[line](tid, tid, 1, time_ns)


@pytest.mark.parametrize("text, duration_ns", [
    (" <0.000012345>", 12_345), (" <0.000012>", 12_000), (" <12.5>", 12_500_000_000), ("", -1)])
def test_duration(text, duration_ns):
    assert calls(parse(["close(3) = 0" + text]))[0].duration_ns == duration_ns


@pytest.mark.parametrize("golden", WHOLE, ids=[line[:50] for line, *_ in WHOLE])
def test_torn_call_is_unknown_or_wants_only_what_follows_its_result(golden):
    line = LAST + golden[0]
    whole = Parser().feed(line)
    for end in range(len(line)):
        events = list(parse([line[:end]]))
        for call in calls(events):
            assert (call.tid, call.name, call.args) == (whole.tid, whole.name, whole.args)
        assert len(events) == 1


@pytest.mark.parametrize("line", OTHERS)
def test_torn_line_that_is_no_call_is_unknown(line):
    for end in range(len(LAST + line)):
        parser = Parser()
        assert parser.feed((LAST + line)[:end]) == Unknown(1, (LAST + line)[:end])
        assert parser.unknown == 1


@pytest.mark.parametrize("text", [
    "", " ", "hello", "4060", "open(", 'write(1, "x', 'write(1, "x <unfinished ...>', "<... read", "(", ") = 0", "= 0",
    "close(3) = ", "close(3) = -", "close(3) = 3x", "close(3)", "close(3) = 08", "close(3) = 0x", "close(3) = 0xg",
    "close(3) = " + "9" * 5000, "9" * 5000 + " close(3) = 0", "1" * 30 + ".5 close(3) = 0", "+++ exited with x +++",
    "٣ close(3) = 0", "--- ---", "+++ +++", "<... read resumed>", "read(3</a, 1", "\0", "\ud800", "read(\ud800"])
def test_line_that_is_not_understood_is_counted(text):
    parser = Parser()
    assert parser.feed(text) == Unknown(1, text)
    assert parser.unknown == parser.lines == 1
    assert parser.finish() == []


# Calls of two lines

def test_block_has_no_unknown_lines():
    for block in BLOCKS.values():
        assert not unknown(parse(block.splitlines()))


@pytest.mark.parametrize("name", BLOCKS)
def test_lines_may_end_with_a_newline(name):
    assert list(parse(BLOCKS[name].splitlines(keepends=True))) == list(parse(BLOCKS[name].splitlines()))


@pytest.mark.parametrize("name", BLOCKS)
def test_torn_block_has_the_same_beginning(name):
    lines = BLOCKS[name].splitlines()
    for n in range(len(lines)):
        parser = Parser()
        before = [parser.feed(line) for line in lines[:n]]
        for end in range(0, len(lines[n]), 7):
            events = list(parse([*lines[:n], lines[n][:end]]))
            assert events[:n - before.count(None)] == [event for event in before if event]


def test_parts_of_a_call_are_joined():
    call = calls(parse([
        "7  1700000000.000000001 accept4(3<TCP:[127.0.0.1:80]>,  <unfinished ...>",
        "8  1700000000.000000002 getpid() = 8 <0.000000100>",
        "7  1700000000.0000005 <... accept4 resumed>{sa_family=AF_INET}, [9], 0) = 4<TCP:[a->b]> <0.00000045>"]))[-1]
    assert call == Call(7, 7, 1, 3, 1_700_000_000_000_000_001, 450, "accept4",
                        "3<TCP:[127.0.0.1:80]>, {sa_family=AF_INET}, [9], 0", 4, "", "<TCP:[a->b]>", SPLIT)


@pytest.mark.parametrize("first, second, args", [
    ("read(3,  <unfinished ...>", '<... read resumed>"a", 1) = 1', '3, "a", 1'),
    ("read(3,  <unfinished ...>", '<... read resumed> "a", 1) = 1', '3, "a", 1'),  # until strace 5.2
    ("close(3 <unfinished ...>", "<... close resumed>) = 0", "3"),
    ("close(3 <unfinished ...>", "<... close resumed> ) = 0", "3"),
    ("pause( <unfinished ...>", "<... pause resumed>) = 0", ""),
    ("clone3({flags=0} <unfinished ...>", "<... clone3 resumed> => {parent_tid=[0]}, 88) = 4",
     "{flags=0} => {parent_tid=[0]}, 88"),
    ("close(3 <unfinished ...>", "<... close resumed> <unfinished ...>) = ?", "3"),
])
def test_arguments_of_two_lines(first, second, args):
    assert [call.args for call in parse([first, second])] == [args]


def test_duration_of_two_lines_without_durations_is_their_difference():
    lines = ["7 1700000000.25 close(3 <unfinished ...>", "7 1700000000.5 <... close resumed>) = 0"]
    assert calls(parse(lines))[0].duration_ns == 250_000_000


def test_resumed_line_may_end_unfinished_again():
    lines = ["7 read(3,  <unfinished ...>", '7 <... read resumed>"a", <unfinished ...>', "7 <... read resumed>1) = 1"]
    assert [(call.line, call.last_line, call.args) for call in parse(lines)] == [(1, 3, '3, "a",1')]


def test_return_without_entry_began_before_the_trace():
    call = calls(parse(["7 1700000000.5 <... read resumed>1) = 1 <0.25>"]))[0]
    assert (call.start_ns, call.flags) == (1_700_000_000_250_000_000, SPLIT | RESUMING)


def test_return_of_another_call_is_not_understood():
    events = list(parse(["7 read(3, <unfinished ...>", "7 <... write resumed>1) = 1"]))
    assert [type(event) for event in events] == [Unknown, Call]
    assert events[1].flags == SPLIT | NO_RETURN


def test_call_whose_return_was_lost_is_counted():
    parser = Parser()
    assert parser.feed("7 read(3, <unfinished ...>") is None
    assert parser.feed("7 close(3) = 0").name == "close"
    assert parser.unknown == 1
    assert [(call.name, call.flags) for call in parser.finish()] == [("read", SPLIT | NO_RETURN)]


def test_open_calls_come_last_and_in_order_of_entry():
    parser = Parser()
    for tid in (9, 7, 8):
        parser.feed(f"{tid} read(3,  <unfinished ...>")
    assert sorted(parser.open_calls) == [7, 8, 9]
    assert [(call.tid, call.line, call.flags) for call in parser.finish()] == [
        (9, 1, SPLIT | NO_RETURN), (7, 2, SPLIT | NO_RETURN), (8, 3, SPLIT | NO_RETURN)]
    assert not parser.open_calls and parser.lines == 3
    assert parser.finish() == []


def test_counts_outlive_the_end():
    parser = Parser()
    parser.feed("what?")
    parser.feed("7 clone(child_stack=NULL, flags=SIGCHLDstrace: Process 8 attached")  # and never the rest of that line
    parser.finish()
    assert (parser.lines, parser.unknown) == (2, 2)


def test_killed_in_the_midst_of_calls():
    events = list(parse(BLOCKS["killed"].splitlines()))
    assert [(call.name, call.result, call.flags) for call in calls(events)] == [
        ("pselect6", None, SPLIT | NO_RETURN), ("read", None, SPLIT | NO_RETURN)]
    assert [event.signal for event in events if isinstance(event, Exit)] == ["SIGKILL", "SIGKILL"]


def test_detached_in_the_midst_of_calls():
    events = calls(parse(BLOCKS["detached"].splitlines()))
    assert [(call.tid, call.flags) for call in events if call.flags] == [
        (12347, DETACHED | NO_RETURN), (12350, SPLIT | NO_RETURN), (12348, SPLIT | NO_RETURN)]


def test_exec_in_a_thread_goes_on_as_its_leader():
    events = list(parse(BLOCKS["exec in a thread"].splitlines()))
    superseded = next(event for event in events if isinstance(event, Superseded))
    assert superseded == Superseded(4060, 4060, 10, 1_795_477_143_800_759_042, 4061)
    by_name = {call.name: call for call in calls(events)}
    assert {call.pid for call in by_name.values()} == {4060}  # rseq too, which comes before clone3 has returned
    assert by_name["execve"][:4] == (4060, 4060, 8, 11)
    assert by_name["execve"].duration_ns == 1_720_780
    assert by_name["pause"].flags == SPLIT | NO_RETURN


def test_trace_on_stderr_names_threads_only_while_there_are_several():
    events = list(parse(BLOCKS["on stderr"].splitlines()))
    assert [(call.tid, call.name, call.result) for call in calls(events)] == [
        (0, "execve", 0), (12287, "vfork", 12288), (12288, "execve", 0), (12288, "exit_group", None),
        (12287, "wait4", 12288), (0, "clone", 12289), (12289, "exit_group", None), (0, "exit_group", None)]


# Restarted calls

@pytest.mark.parametrize("name", REISSUES)
def test_call_that_the_kernel_repeats_is_marked(name):
    events = calls(parse(BLOCKS[name].splitlines()))
    assert [(call.name, REISSUED) for call in events if call.flags & REISSUED] == REISSUES[name]


INTERRUPTED = "7 wait4(-1, 0x7ffe, 0, NULL) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)"
AGAIN = "7 wait4(-1, NULL, 0, NULL) = 8"
SIGNAL = "7 --- SIGALRM {si_signo=SIGALRM, si_code=SI_KERNEL} ---"


@pytest.mark.parametrize("lines, reissued", [
    ([INTERRUPTED, SIGNAL, AGAIN, AGAIN], [3]),
    ([INTERRUPTED, SIGNAL, "8 wait4(-1, NULL, 0, NULL) = 9", AGAIN], [4]),  # another thread
    ([INTERRUPTED, SIGNAL, "7 close(3) = 0", AGAIN, "7 rt_sigreturn({mask=[]}) = 61", AGAIN], [6]),  # a handler's own
    ([INTERRUPTED, SIGNAL, "7 rt_sigreturn({mask=[]}) = -1 EINTR (Interrupted system call)", AGAIN], []),
    ([INTERRUPTED, SIGNAL, "7 read(5, 0x1, 1) = ? ERESTARTSYS (To be restarted)", SIGNAL,  # a signal in a handler
      "7 close(3) = 0", "7 rt_sigreturn({mask=[]}) = 0", '7 read(5, "a", 1) = 1', "7 rt_sigreturn({mask=[]}) = 61",
      AGAIN], [7, 9]),
    ([INTERRUPTED, SIGNAL, "7 close(3 <unfinished ...>", "7 <... close resumed>) = 0", "7 rt_sigreturn({mask=[]}) = 61",
      "7 wait4(-1,  <unfinished ...>", "7 <... wait4 resumed>NULL, 0, NULL) = 8"], [6]),
    ([INTERRUPTED, SIGNAL, 'execve("/x", [], NULL) = 0', '7 execve("/x", [], NULL) = 0', AGAIN], []),
    ([INTERRUPTED, SIGNAL, "7 +++ killed by SIGALRM +++", AGAIN], []),
    (["7 read(3<TCP:[9]>, 0x1, 9) = ? ERESTARTSYS (To be restarted)", '7 read(3<TCP:[a->b]>, "x", 9) = 1'], [2]),
    (["7 read(3, 0x1, 9) = ? ERESTARTSYS (To be restarted)", '7 read(4, "x", 9) = 1'], []),
])
def test_reissued(lines, reissued):
    assert [call.line for call in calls(parse(lines)) if call.flags & REISSUED] == reissued


# Threads and processes

THREAD = "clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0}"
FORK = "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD"


@pytest.mark.parametrize("lines, pids", [
    ([f"7 {THREAD}, 88) = 8", "8 getpid() = 7"], {7: 7, 8: 7}),
    ([f"7 {FORK}) = 8", "8 getpid() = 8"], {7: 7, 8: 8}),
    (["7 vfork() = 8", "8 getpid() = 8"], {7: 7, 8: 8}),
    ([f"7 {THREAD} <unfinished ...>", "8 getpid() = 7"], {8: 7}),
    ([f"7 {FORK} <unfinished ...>", "8 getpid() = 8"], {8: 8}),
    ([f"7 {THREAD}, 88) = 8", f"8 {THREAD}, 88) = 9", "9 getpid() = 7"], {7: 7, 8: 7, 9: 7}),
    ([f"7 {THREAD}, 88) = 8", f"8 {FORK}) = 9", f"9 {THREAD}, 88) = 10", "10 getpid() = 9"], {7: 7, 8: 7, 9: 9, 10: 9}),
    ([f"7 {THREAD}, 88) = 8", "8 +++ exited with 0 +++", "8 getpid() = 8"], {7: 7, 8: 8}),  # a number comes again
    ([f"7 {THREAD} <unfinished ...>", "8 +++ exited with 0 +++", "7 <... clone3 resumed>, 88) = 8", "8 getpid() = 8"],
     {7: 7, 8: 8}),
    ([f"7 {THREAD}, 88) = -1 EAGAIN (Resource temporarily unavailable)", "8 getpid() = 8"], {7: 7, 8: 8}),
])
def test_process_of_a_thread(lines, pids):
    parser = Parser()
    events = [parser.feed(line) for line in lines]
    assert {event.tid: event.pid for event in events if event is not None} == pids


def test_wrong_guess_is_corrected_when_clones_return_and_counted():
    parser = Parser()
    lines = ["6 getpid() = 6", f"7 {THREAD} <unfinished ...>", f"6 {FORK} <unfinished ...>", "9 getpid() = 9"]
    assert [parser.feed(line) for line in lines][3].pid == 7  # taken for the thread of 7, which began first
    assert parser.feed("6 <... clone resumed>) = 9").pid == 6
    assert (parser.pid_of(9), parser.parent_of(9), parser.misplaced) == (9, 6, 1)
    parser.feed("7 <... clone3 resumed>, 88) = 8")
    assert (parser.pid_of(8), parser.pid_of(9), parser.misplaced) == (7, 9, 1)


def test_stranger_is_no_child():
    """Threads of a process that strace attaches to may be seen first while a clone has not returned."""
    parser = Parser()
    for line in (f"7 {FORK} <unfinished ...>", "9 getpid() = 9", "7 <... clone resumed>) = 8"):
        parser.feed(line)
    assert (parser.pid_of(8), parser.parent_of(8), parser.pid_of(9), parser.parent_of(9)) == (8, 7, 9, 0)


# Interleavings: what strace writes for the calls of several threads depends on who is scheduled when

class Traced(NamedTuple):
    """A call as its thread makes it."""

    name: str
    before: list[str]  # arguments that are known on entry
    after: list[str]  # and on return
    result: str


HOSTILE = ['") = 3', "<unfinished ...>", "<... read resumed>", ">", "<", "]>", "->", " ", "\\", "a", "0", ", ", "é"]
texts = st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=4).map("".join)


def quoted(text: str, also: str = "") -> str:
    """As strace escapes: bytes that do not print, quotes and backslashes."""
    return "".join(f"\\{byte:03o}" if not 32 <= byte < 127 or chr(byte) in also
                   else "\\" + chr(byte) if chr(byte) in '"\\' else chr(byte) for byte in text.encode())


paths = texts.map(lambda text: f"</{quoted(text, '<>')}>")
sockets = st.sampled_from(["<TCP:[127.0.0.1:1->127.0.0.1:2]>", "<TCPv6:[[::1]:1]>", "<pipe:[9]>",
                           "</dev/null<char 1:3>>"])
annotations = paths | sockets | texts.map(lambda text: f'<UNIX-STREAM:[1->2,"{quoted(text)}"]>') | st.just("")
strings = texts.map(lambda text: f'"{quoted(text)}"')
simple = st.sampled_from(["NULL", "0x7ffe /* 35 vars */", "{a=htons(1), b=[1, 2]}", "[128 => 16]",
                          "1<<CAP_KILL|1<<CAP_FOWNER"])
args = strings | simple | annotations.map("3{}".format)
results = st.sampled_from(["0", "-1 EAGAIN (Resource temporarily unavailable)", "0x7f00", "0 (Timeout)"]) | \
    annotations.map("3{}".format)
traced = st.builds(Traced, st.sampled_from(["read", "openat", "futex", "syscall_0x1d3"]), st.lists(args, max_size=3),
                   st.lists(args, max_size=2), results) | st.just("--- SIGUSR1 {si_signo=SIGUSR1} ---")
threads = st.lists(st.lists(traced, max_size=5), min_size=1, max_size=4)


class Strace:
    """Renders calls and signals as strace does: a line is left unfinished when another thread has something to tell."""

    def __init__(self) -> None:
        self.text, self._writing, self._ns = "", 0, 1_700_000_000_000_000_000

    def _begin(self, tid: int, text: str) -> None:
        self.text += " <unfinished ...>\n" if self._writing else ""
        self._ns += 1000
        self.text += f"{tid} {self._ns // 10**9}.{self._ns % 10**9:09} {text}"
        self._writing = tid

    def _end(self, text: str) -> None:
        self.text += text + "\n"
        self._writing = 0

    def enter(self, tid: int, call: Traced) -> None:
        self._begin(tid, f"{call.name}({', '.join(call.before)}{', ' if call.before and call.after else ''}")

    def leave(self, tid: int, call: Traced) -> None:
        if self._writing != tid:
            self._begin(tid, f"<... {call.name} resumed>")
        self._end(f"{', '.join(call.after)}) = {call.result} <0.000000100>")

    def tell(self, tid: int, text: str) -> None:
        self._begin(tid, text)
        self._end("")


def steps(strace: Strace, tid: int, made: list):
    for each in made:
        if isinstance(each, Traced):
            yield lambda each=each: strace.enter(tid, each)
            yield lambda each=each: strace.leave(tid, each)
        else:
            yield lambda each=each: strace.tell(tid, each)
    yield lambda: strace.tell(tid, "+++ exited with 0 +++")


def rendered(made: list[list], schedule: list[int]) -> list[str]:
    """All threads' steps: by the schedule, then one after the other."""
    strace = Strace()
    waiting = {tid: steps(strace, tid, each) for tid, each in enumerate(made, 100)}
    for turn in itertools.chain(schedule, itertools.repeat(0)):
        if not waiting:
            return strace.text.splitlines()
        tid = list(waiting)[turn % len(waiting)]
        step = next(waiting[tid], None)
        if step is None:
            del waiting[tid]
        else:
            step()
    raise AssertionError("unreachable")


def of_threads(lines: list[str]) -> dict[int, list]:
    """What each thread did, without when."""
    told: dict[int, list] = {}
    for event in parse(lines):
        changed = event._replace(line=0)
        if isinstance(event, Call):
            changed = changed._replace(last_line=0, start_ns=0, flags=event.flags & ~SPLIT)
        else:
            changed = changed._replace(time_ns=0)
        told.setdefault(event.tid, []).append(changed)
    return told


@given(threads, st.lists(st.integers(0, 3), max_size=40))
def test_events_do_not_depend_on_the_interleaving(made, schedule):
    assert of_threads(rendered(made, schedule)) == of_threads(rendered(made, []))


@given(traced.filter(lambda each: isinstance(each, Traced)))
def test_parsed_call_is_what_was_rendered(call):
    event = next(parse(rendered([[call]], [])))
    assert (event.name, event.args) == (call.name, ", ".join(call.before + call.after))
    assert arguments(event.args) == call.before + call.after


# Arbitrary text

PIECES = [line for line, *_ in WHOLE] + [line for block in BLOCKS.values() for line in block.splitlines()]
cut_lines = st.builds(lambda a, b, i, j: a[:i] + b[j:], st.sampled_from(PIECES), st.sampled_from(PIECES),
                      st.integers(0, 200), st.integers(0, 200))


@settings(max_examples=300)
@given(st.lists(st.text() | texts | cut_lines | st.sampled_from(PIECES), max_size=12))
def test_no_text_raises_and_no_line_is_passed_over(lines):
    parser = Parser()
    events = [event for line in lines if (event := parser.feed(line))]
    assert parser.lines == len(lines)
    assert len(unknown(events)) <= parser.unknown
    parser.finish()
    assert not parser.open_calls


@given(st.text() | texts | cut_lines)
def test_no_argument_raises(text):
    arguments(text), descriptor(text), text_of(text), text_of(f'"{text}"')


# Arguments

@pytest.mark.parametrize("argument, value", [
    ("3", (3, "")), ("-1", (-1, "")), ("3<TCP:[a:1->b:2]>", (3, "TCP:[a:1->b:2]")), ("AT_FDCWD", (-100, "")),
    ("AT_FDCWD</srv>", (-100, "/srv")), (r"16</a b\74c>(deleted)", (16, r"/a b\74c")),
    ("18</dev/null<char 1:3>>", (18, "/dev/null<char 1:3>")),
    ('8<UNIX-STREAM:[1->2,"/]>x"]>', (8, 'UNIX-STREAM:[1->2,"/]>x"]')),
    ("0x3", None), ("NULL", None), ("", None), ("3</a", None), ("3</a>x", None), ("fd=3", None), ("3, 4", None)])
def test_descriptor(argument, value):
    assert descriptor(argument) == value


@pytest.mark.parametrize("argument, text", [
    ('"/srv"', "/srv"), ('""', ""), ('"a"...', "a"), (r'"a\"b\\c\n\t\r\v\f\0"', 'a"b\\c\n\t\r\v\f\0'),
    (r'"\303\251\3031"', "é\udcc31"), (r'"\xc3\xa9"', "é"), (r'"\1\0012"', "\1\0012"), (r'"\777\8\q"', "\udcff8q"),
    ("NULL", None), ('"a', None), ('a"', None), ('"a"b', None), ('@"a"', None), ("", None)])
def test_text_of(argument, text):
    assert text_of(argument) == text


@given(st.text(st.characters(codec="utf-8")))
def test_text_of_undoes_the_escapes(text):
    assert text_of(f'"{quoted(text)}"') == text


@pytest.mark.parametrize("text, parts", [
    ("", []), ("3", ["3"]), ("1, [2, {3, 4}], f(5)", ["1", "[2, {3, 4}]", "f(5)"]), ('"a, b", 1', ['"a, b"', "1"]),
    ("3</a, b>, 1", ["3</a, b>", "1"]), ("0x1 /* 3, 4 */, 2", ["0x1 /* 3, 4 */", "2"]), ("3, ", ["3", ""]),
    ("1)], 2", ["1)]", "2"]), ('3, "torn, 4', ["3", '"torn', "4"])])
def test_arguments(text, parts):
    assert arguments(text) == parts


# Memory

def peak_bytes(n_lines: int) -> int:
    tracemalloc.start()
    try:
        assert sum(1 for _ in parse(server_trace(n_lines))) > n_lines // 2
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_trace():
    peak_bytes(100)
    assert peak_bytes(30_000) - peak_bytes(3_000) < 10_000


def test_memory_does_not_grow_with_threads_that_have_ended():
    parser = Parser()
    for tid in range(1000, 3000):
        for line in (f"7 {THREAD} <unfinished ...>", f"{tid} read(3, 0x1, 9) = ? ERESTARTSYS (To be restarted)",
                     f"7 <... clone3 resumed>, 88) = {tid}", f"{tid} read(3,  <unfinished ...>",
                     f"{tid} +++ exited with 0 +++"):
            parser.feed(line)
    parser.take_abandoned()
    kept = {name: len(value) for name, value in vars(parser).items() if isinstance(value, dict | set | list) and value}
    assert kept == {"_leaders": 1}
