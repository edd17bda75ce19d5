"""Which descriptor is which file, pipe or socket, in every process of a trace, at every moment.

The rule to keep: this table follows the calls; strace's own annotations only confirm it. They come from a cache and
go stale (a UDP socket that was bound and then connected goes on showing no peer), so they are taken where the table has
nothing, and a contradiction about a socket is reported, never settled silently.

`dup` and `fork` copy descriptors, not what they stand for: one `Description` (open(2): "open file description")
may have many descriptors.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tracing.parse import SPLIT, Call
from tracing.sockets import UNREADABLE, Address, address_of, ends_of
from tracing.syntax import ANNOTATION, arguments, descriptor

FIRST_DESCRIPTOR = re.compile(r"(\d+)<")
RIGHTS = "cmsg_type=SCM_RIGHTS, cmsg_data=["
PASSED_DESCRIPTOR = re.compile(rf"(\d+)({ANNOTATION})?(?:\(deleted\))?(, )?", re.DOTALL)
KEPT_CONTRADICTIONS = 5

# After these errors of connect a socket is what it was before.
NOT_CONNECTED = {"EACCES", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EALREADY", "EBADF", "ECONNABORTED", "ECONNREFUSED",
                 "ECONNRESET", "EFAULT", "EHOSTUNREACH", "EINVAL", "EISCONN", "ENETUNREACH", "ENOENT", "ENOSYS",
                 "ENOTDIR", "ENOTSOCK", "EOPNOTSUPP", "EPERM", "EPROTOTYPE", "ETIMEDOUT"}

# How a description came into the trace.
OPENED, ACCEPTED, PAIRED, INHERITED, PASSED, UNKNOWN = "opened", "accepted", "paired", "inherited", "passed", "unknown"


@dataclass(eq=False)
class Description:
    """An open file, pipe or socket."""

    kind: str  # "socket", "pipe", "anon", "file"
    origin: str
    name: str  # path, or strace's annotation
    line: int  # 0: there before the trace
    family: str = ""  # of a socket, as the rest
    type: str = ""
    local: Address | None = None
    peer: Address | None = None
    listening: bool = False
    shares_port: bool = False  # SO_REUSEADDR, SO_REUSEPORT: others may be bound to the same address
    connected: bool = False  # by a connect of its own
    claimed: bool = False  # its peer should be traced, which an accept has to confirm
    others: bool = False  # passed by a process outside the trace
    twin: "Description | None" = None  # the other end of a pair
    suspect: str = ""  # why whatever is written to it may leave, whoever its peer is

    @property
    def is_connection(self) -> bool:
        return self.origin == ACCEPTED and self.kind == "socket"


@dataclass
class Entry:
    description: Description
    line: int
    closes_on_exec: bool


@dataclass
class Table:
    """The descriptors of one process."""

    entries: dict[int, Entry] = field(default_factory=dict)
    closed: dict[int, Entry] = field(default_factory=dict)  # while a process is being made, which may have a copy
    exec_line: int = 0  # what was open before may have been closed by execve


class Descriptors:
    """The tables of all processes; `apply` every call in order of completion."""

    def __init__(self, creating: Callable[[], bool] = lambda: False) -> None:
        """`creating` tells whether some process is being made."""
        self._creating = creating
        self.tables: dict[int, Table] = {}
        self.contradictions: list[str] = []
        self.n_contradictions = 0
        self.inherited_kind = UNKNOWN  # of what is first seen in use

    # --- processes ---

    def begin(self, pid: int, parent: int | None, shared: bool = False) -> None:
        """A process appears: with a copy of its parent's descriptors, or the very same table."""
        source = self.tables.get(parent or -1)
        if source is None:
            self.tables[pid] = Table()
        elif shared:
            self.tables[pid] = source
        else:
            self.tables[pid] = Table({fd: Entry(e.description, e.line, e.closes_on_exec)
                                      for fd, e in (source.closed | source.entries).items()}, {}, source.exec_line)

    def end(self, pid: int) -> None:
        self.tables.pop(pid, None)

    def forget_closed(self) -> None:
        """No process is being made any more."""
        for table in self.tables.values():
            table.closed.clear()

    def remove(self, pid: int, fd: int) -> Description:
        table = self.table(pid)
        entry = table.entries.pop(fd)
        if self._creating():
            table.closed[fd] = entry
        return entry.description

    def inherit(self, pid: int, fd: int, description: Description) -> None:
        """What the recording says was open before the trace began."""
        self.table(pid).entries[fd] = Entry(description, 0, False)

    def table(self, pid: int) -> Table:
        return self.tables.setdefault(pid, Table())

    def count(self, pid: int) -> int:
        return len(self.table(pid).entries)

    def sockets(self) -> Iterator[Description]:
        """The sockets that are open."""
        for table in self.tables.values():
            for entry in table.entries.values():
                if entry.description.kind == "socket":
                    yield entry.description

    # --- calls ---

    def apply(self, call: Call) -> Description | None:
        """Follow one call → what its first argument stands for, or what it made."""
        follow = FOLLOW.get(call.name)
        if follow is not None:
            return follow(self, call, arguments(call.args))
        if call.result is not None and call.result >= 0 and call.detail.startswith("<"):
            return self.add(call, call.result, described(call.detail[1:-1], OPENED, call.line), call.args)
        return self.used(call)

    def find(self, pid: int, fd: int) -> Description | None:
        entry = self.table(pid).entries.get(fd)
        return entry.description if entry else None

    def add(self, call: Call, fd: int, description: Description, flags: str = "") -> Description:
        self.table(call.pid).entries[fd] = Entry(description, call.last_line, "_CLOEXEC" in flags)
        return description

    def add_end(self, call: Call, fd: int, end: Description, flags: str) -> Description:
        """Add an end of a pair, and tell the other one, if that is known."""
        if end.twin:
            end.twin.twin = end
        return self.add(call, fd, end, flags)

    def used(self, call: Call) -> Description | None:
        """What a call's first argument stands for; the table is held against strace's annotation."""
        if FIRST_DESCRIPTOR.match(call.args) is None:
            return None
        fd, annotation = descriptor(arguments(call.args)[0]) or (-1, "")
        entry = self.table(call.pid).entries.get(fd)
        if entry is None:
            return self.add(call, fd, described(annotation, self.inherited_kind, 0))
        if entry.line >= call.line:
            return entry.description  # the annotation is older than the table
        if call.flags & SPLIT:  # as it was when the call was entered
            _learn(entry.description, annotation)
            return entry.description
        wrong = _contradiction(entry.description, annotation)
        if wrong and entry.line <= self.table(call.pid).exec_line:
            return self.add(call, fd, described(annotation, UNKNOWN, call.line))  # closed by execve, opened unseen
        if wrong:
            self.contradict(f"line {call.line}: descriptor {fd} {wrong}")
            return self.add(call, fd, described(annotation, UNKNOWN, call.line))
        _learn(entry.description, annotation)
        return entry.description

    def contradict(self, text: str) -> None:
        self.n_contradictions += 1
        if len(self.contradictions) < KEPT_CONTRADICTIONS:
            self.contradictions.append(text)


def described(annotation: str, origin: str, line: int) -> Description:
    """A description from strace's annotation alone."""
    ends = ends_of(annotation)
    if ends:
        return Description("socket", origin, annotation, line, ends.family, _type(annotation), ends.local, ends.peer)
    kind = "pipe" if annotation.startswith("pipe:") else "anon" if annotation.startswith("anon_inode:") else "file"
    return Description(kind, origin, annotation, line)


def _type(annotation: str) -> str:
    protocol = annotation.partition(":")[0]
    return "SOCK_DGRAM" if protocol.startswith("UDP") or protocol.endswith("DGRAM") else "SOCK_STREAM"


def _contradiction(known: Description, annotation: str) -> str:
    """Why an annotation cannot be about this description; "" when it can."""
    if not annotation:
        return ""
    ends = ends_of(annotation)
    if (ends is None) != (known.kind != "socket"):
        return f"is {known.kind} {known.name!r} by the calls and {annotation!r} by strace"
    if ends is None or ends.peer is None or known.listening:
        return ""  # a file's name may change; a cached annotation may not show a peer yet
    if known.peer is None:
        return f"has the peer {ends.peer} by strace, and no call that connected it was seen"
    same = known.peer.is_ip and (known.peer.ip, known.peer.port) == (ends.peer.ip, ends.peer.port)
    known_elsewhere = known.peer.is_local and known.peer.is_ip and ends.peer.is_local  # a connect to "any"
    return "" if same or known_elsewhere or known.type == "SOCK_DGRAM" \
        else f"is connected to {known.peer} by the calls and to {ends.peer} by strace"


def _learn(known: Description, annotation: str) -> None:
    """A connected socket's own address, which the kernel chose."""
    ends = ends_of(annotation) if known.kind == "socket" and known.type != "SOCK_DGRAM" else None
    if ends and ends.local and ends.peer and known.peer:
        known.local = ends.local


# --- one function a call ------------------------------------------------------------------------

def _socket(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    if call.result is None or call.result < 0 or len(given) < 3:
        return None
    return table.add(call, call.result, Description(
        "socket", OPENED, call.detail[1:-1], call.line, given[0], given[1].partition("|")[0]), given[1])


def _socketpair(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    twin = None
    for part in arguments(given[3][1:-1]) if call.result == 0 and len(given) == 4 else ():
        fd, annotation = descriptor(part) or (-1, "")
        twin = table.add_end(call, fd, Description("socket", PAIRED, annotation, call.line, given[0],
                                                   given[1].partition("|")[0], twin=twin), given[1])
    return twin


def _pipe(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    twin = None
    for part in arguments(given[0][1:-1]) if call.result == 0 and given else ():
        fd, annotation = descriptor(part) or (-1, "")
        end = Description("pipe", OPENED, annotation, call.line, twin=twin)
        twin = table.add_end(call, fd, end, ", ".join(given[1:]))
    return twin


def _accept(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    listener = table.used(call)
    if call.result is None or call.result < 0:
        return listener
    made = described(call.detail[1:-1], ACCEPTED, call.line)
    made.kind = "socket"
    if listener:
        made.family, made.type, made.local = listener.family, listener.type, made.local or listener.local
    peer = address_of(given[1]) if len(given) > 1 else None
    made.peer = made.peer or peer
    return table.add(call, call.result, made, given[3] if len(given) > 3 else "")


def _connect(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    socket = table.find(call.pid, (descriptor(given[0]) or (-1, ""))[0]) if given else None
    socket = socket or table.used(call)
    address = address_of(given[1]) if len(given) > 1 else UNREADABLE
    if socket is None or address is None or call.errno in NOT_CONNECTED:
        return socket
    if address.family == "AF_UNSPEC":
        socket.peer, socket.listening, socket.connected = None, False, False
        socket.local = None  # a port that the kernel chose is given back
    else:
        socket.connected, socket.peer = True, address
    return socket


def _bind(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    socket = table.used(call)
    if socket and call.result == 0 and len(given) > 1:
        socket.local = address_of(given[1])
    return socket


def _getsockname(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    """Port 0 was bound: here the real one shows."""
    socket = table.used(call)
    if socket and call.result == 0 and len(given) > 1 and socket.local and socket.local.is_ip:
        socket.local = address_of(given[1])
    return socket


def _listen(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    socket = table.used(call)
    if socket and call.result == 0:
        socket.listening = True
    return socket


def _shutdown(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    socket = table.used(call)
    if socket:
        socket.listening = False
    return socket


def _setsockopt(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    socket = table.used(call)
    if socket and given[2:3] in (["SO_REUSEPORT"], ["SO_REUSEADDR"]):
        socket.shares_port = True
    return socket


def _dup(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    source = table.used(call)
    if source and call.result is not None and call.result >= 0:
        table.add(call, call.result, source, given[2] if len(given) > 2 else "")
    return source


def _fcntl(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    command = given[1] if len(given) > 1 else ""
    if command.startswith("F_DUPFD"):
        return _dup(table, call, [given[0], "", command.replace("F_DUPFD_CLOEXEC", "O_CLOEXEC")])
    used = table.used(call)
    entry = table.table(call.pid).entries.get((descriptor(given[0]) or (-1, ""))[0]) if given else None
    if entry and command == "F_SETFD":
        entry.closes_on_exec = "FD_CLOEXEC" in given[2]
    return used


def _ioctl(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    used = table.used(call)
    entry = table.table(call.pid).entries.get((descriptor(given[0]) or (-1, ""))[0]) if given else None
    if entry and given[1:2] in (["FIOCLEX"], ["FIONCLEX"]):
        entry.closes_on_exec = given[1] == "FIOCLEX"
    return used


def _close(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    fd = (descriptor(given[0]) or (-1, ""))[0] if given else -1
    entries = table.table(call.pid).entries
    entry = entries.get(fd)
    if entry is None or call.errno == "EBADF" or entry.line > call.line:
        return None  # the last: another thread was given the number before this call returned
    _learn(entry.description, (descriptor(given[0]) or (-1, ""))[1])
    return table.remove(call.pid, fd)


def _close_range(table: Descriptors, call: Call, given: list[str]) -> None:
    numbers = [int(text, 0) for text in given[:2] if re.fullmatch(r"\d+|0x[0-9a-f]+", text)]
    if call.result != 0 or len(numbers) != 2:
        return
    entries = table.table(call.pid).entries
    for fd in [fd for fd, entry in entries.items() if numbers[0] <= fd <= numbers[1] and entry.line <= call.line]:
        if "CLOEXEC" in "".join(given[2:]):
            entries[fd].closes_on_exec = True
        else:
            table.remove(call.pid, fd)


def _execve(table: Descriptors, call: Call, given: list[str]) -> None:
    if call.result != 0:
        return
    old = table.table(call.pid)
    table.tables[call.pid] = Table({fd: e for fd, e in old.entries.items() if not e.closes_on_exec}, {}, call.last_line)


def _recvmsg(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    carrier = table.used(call)
    outside = carrier is None or carrier.origin != PAIRED
    for fd, annotation in _rights(table, call) if call.result is not None and call.result >= 0 else ():
        passed = described(annotation, PASSED, call.line)
        passed.others = outside
        table.add(call, fd, passed)
    return carrier


def _sendmsg(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    """What is given to a process outside is not ours alone any more."""
    carrier = table.used(call)
    if carrier is None or carrier.origin != PAIRED:
        for fd, _ in _rights(table, call):
            given_away = table.find(call.pid, fd)
            for one in (given_away, given_away.twin if given_away else None):
                if one:
                    one.others = True
    return carrier


def _rights(table: Descriptors, call: Call) -> Iterator[tuple[int, str]]:
    """The descriptors in a message's SCM_RIGHTS, with their annotations."""
    at = call.args.find(RIGHTS)
    while at >= 0:
        more, at = True, at + len(RIGHTS)
        while more and (found := PASSED_DESCRIPTOR.match(call.args, at)):
            yield int(found[1]), (found[2] or "")[1:-1]
            more, at = found[3] is not None, found.end()
        if more:
            table.contradict(f"line {call.line}: strace left out some of the descriptors that were passed")
        at = call.args.find(RIGHTS, at)


def _pidfd_getfd(table: Descriptors, call: Call, given: list[str]) -> Description | None:
    if call.result is None or call.result < 0:
        return None
    taken = described(call.detail[1:-1], PASSED, call.line)
    taken.others = True
    return table.add(call, call.result, taken, "O_CLOEXEC")


FOLLOW: dict[str, Callable[[Descriptors, Call, list[str]], Description | None]] = {
    "socket": _socket, "socketpair": _socketpair, "pipe": _pipe, "pipe2": _pipe,
    "accept": _accept, "accept4": _accept, "connect": _connect, "bind": _bind, "listen": _listen,
    "getsockname": _getsockname, "shutdown": _shutdown, "setsockopt": _setsockopt,
    "dup": _dup, "dup2": _dup, "dup3": _dup, "fcntl": _fcntl, "ioctl": _ioctl,
    "close": _close, "close_range": _close_range, "execve": _execve, "execveat": _execve,
    "sendmsg": _sendmsg, "sendmmsg": _sendmsg, "recvmsg": _recvmsg, "recvmmsg": _recvmsg, "pidfd_getfd": _pidfd_getfd,
}
