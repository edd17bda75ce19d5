"""What a line of strace can tell.

The rule to keep: these are plain tuples, made hundreds of thousands of times a second; they know nothing.
"""

from typing import NamedTuple

# Of a call. SPLIT: its return has a line of its own. NO_RETURN: it ended without a result ("= ?"), or it was open when
# the trace ended or its thread went on. REISSUED: the kernel's repetition of a call that a signal interrupted, not the
# program's. RESUMING: began before strace attached. The others are strace's own words.
SPLIT, NO_RETURN, REISSUED, INJECTED, DELAYED, DETACHED, RESUMING = 1, 2, 4, 8, 16, 32, 64


class Call(NamedTuple):
    """One system call, from its entry to its return."""

    tid: int  # 0 where the trace has none
    pid: int  # of its process: the thread-group leader, as far as the trace tells; else tid
    line: int  # on which it entered, from 1
    last_line: int  # on which it returned
    start_ns: int  # of entry, since 1970 (since midnight where the trace has clock times); 0 where it has no times
    duration_ns: int  # -1: not known
    name: str
    args: str  # between the parentheses, parts of entry and of return joined
    result: int | None  # None: "?", or none
    errno: str  # "ENOENT", "ERESTARTSYS", or ""; "(errno 530)" where it has no name
    detail: str  # what strace wrote behind the result: "<TCP:[…]>", "(Timeout)"
    flags: int


class Signal(NamedTuple):
    """Delivered to, or (text "stopped") stopping, a thread."""

    tid: int
    pid: int
    line: int
    time_ns: int
    name: str
    text: str


class Exit(NamedTuple):
    """The end of a thread."""

    tid: int
    pid: int
    line: int
    time_ns: int
    status: int | None
    signal: str
    core: bool


class Superseded(NamedTuple):
    """Thread `by` called execve and goes on under the number `tid` of its leader."""

    tid: int
    pid: int
    line: int
    time_ns: int
    by: int


class Mode(NamedTuple):
    """A process runs in another mode ("32 bit") than strace."""

    line: int
    text: str


class Unknown(NamedTuple):
    """A line that is not understood."""

    line: int
    text: str


Event = Call | Signal | Exit | Superseded | Mode | Unknown
