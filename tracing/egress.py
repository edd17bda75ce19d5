"""What counts as leaving: every way in which a call can hand bytes to something outside the traced processes.

The rule to keep: an attempt counts, whatever it returned; and a socket is judged by where it came from. Sockets come
into a trace only by socket, accept, socketpair, inheritance, SCM_RIGHTS and pidfd_getfd; each is looked at where it
happens, so that a `write` which a recording leaves out cannot matter.

Not leaving: an answer on an accepted connection; a socketpair of traced processes; a connect to an AF_UNIX path that
does not exist (glibc looks for /var/run/nscd/socket), which is noted; and a connection on this machine whose other end
a traced process was seen to accept. That one listens there is not enough: another may have taken its place.
"""

import re
from collections import deque
from collections.abc import Callable, Container, Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import NamedTuple

from tracing import fds
from tracing.fds import Description, Descriptors
from tracing.parse import Call
from tracing.replay import Step
from tracing.sockets import UNREADABLE, Address, address_of
from tracing.syntax import arguments, descriptor, text_of, unescaped

LEAVES, UNPROVEN, NOTED = "leaves", "unproven", "noted"

# (type, protocol) of the Internet sockets whose every way out is a call that is judged here. (SCTP connects in a
# setsockopt.)
PLAIN = {("SOCK_STREAM", "IPPROTO_IP"), ("SOCK_STREAM", "IPPROTO_TCP"), ("SOCK_STREAM", "IPPROTO_MPTCP"),
         ("SOCK_DGRAM", "IPPROTO_IP"), ("SOCK_DGRAM", "IPPROTO_UDP"), ("SOCK_DGRAM", "IPPROTO_UDPLITE")}
JOINS = re.compile(r"IP_ADD_(SOURCE_)?MEMBERSHIP|IPV6_(ADD_MEMBERSHIP|JOIN_\w+)|MCAST_JOIN\w*|PACKET_ADD_MEMBERSHIP")
ROUTES = re.compile(r"\b(IP_OPTIONS|IP_RETOPTS|IPV6_(2292)?RTHDR|IPV6_(2292)?PKTOPTIONS|IPT_SO_SET_REPLACE)\b")
DEVICES = re.compile(r"/dev/(net/tun|vhost-(net|vsock)|k?mem|kmsg|port)$")
NUMBERED = re.compile(r"<(char|block) (\d+:\d+)>")
# /dev/null, zero, full, random, urandom; virtual terminals, tty, console, ptmx; pts
TERMINALS_AND_MEMORY = re.compile(r"1:[35789]|4:(\d|[1-5]\d|6[0-3])|5:[012]|1(3[6-9]|4[0-3]):\d+")
WAYS_OUT = {"10:200", "10:238", "10:241", "1:1", "1:2", "1:4", "1:11"}  # DEVICES by any other name
KERNEL_SETTINGS = re.compile(r"/sys/|/proc/sys/|/proc/sysrq-trigger$")
SAFE_DEVICES = re.compile(r"/dev/(null|zero|full|u?random|tty\d*|console|ptmx|pts/\d+|shm/.*)$", re.DOTALL)
LOCAL_FILESYSTEMS = {"proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "cgroup2", "overlay", "ramfs", "mqueue", "ext4",
                     "xfs", "btrfs", "vfat", "squashfs", "iso9660"}
MOUNTS_NOTHING_NEW = re.compile(r"MS_(BIND|REMOUNT|MOVE|PRIVATE|SLAVE|SHARED|UNBINDABLE)")
UNIX_INODES = re.compile(r"UNIX-\w+:\[(\d+)(?:->(\d+))?")
CONNECTING = {"", "EINPROGRESS", "EINTR", "EALREADY", "EAGAIN"}
KEPT_ACCEPTS = 10_000  # the oldest are forgotten: a connect that waited for one is then not confirmed
MEMORY = re.compile(r"/proc/(\d+)(?:/task/\d+)?/mem$")
OWN_DESCRIPTORS = re.compile(r'"/dev/(std(in|out|err)|fd/\d+)"|"/proc/(self|thread-self|(\d+))/fd/\d+"')
OTHERS_DESCRIPTORS = re.compile(r"/proc/(\d+)/(?:task/\d+/)?(?:fd|map_files)/")
STARTS_HELPERS = re.compile(r"/proc/sys/kernel/(core_pattern|modprobe|hotplug|poweroff_cmd)$|/sys/kernel/uevent_helper$"
                            r"|/proc/sys/fs/binfmt_misc/")
MESSAGE_NAME = re.compile(r"msg_name=(NULL|\{(?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*\}|0x[0-9a-f]+)")
NO_SUCH_PATH = {"ENOENT", "ENOTDIR"}

# Calls without which a recording cannot show what leaves.
NEEDED = tuple("""
    socket connect sendto sendmsg sendmmsg recvmsg recvmmsg accept accept4 bind listen setsockopt socketpair
    getsockname clone clone3 fork vfork execve execveat exit_group splice sendfile process_vm_writev ptrace
    io_uring_setup io_uring_enter io_uring_register io_submit pidfd_getfd open openat openat2 creat access dup
    dup2 dup3 fcntl close close_range prctl seccomp bpf init_module finit_module unshare setns mount fsopen
    request_key shutdown ioctl open_by_handle_at fsconfig kexec_load swapon acct
""".split())


class Finding(NamedTuple):
    kind: str  # LEAVES, UNPROVEN or NOTED
    why: str
    lasts: bool = False  # what it makes possible is not over when the call is


class Claim(NamedTuple):
    """A connect to this machine that stays inside if a traced process accepts it."""

    step: Step
    socket: Description
    inode: str  # of an AF_UNIX socket


class Watch:
    """Examines calls one by one, with the descriptors as they are at that moment."""

    def __init__(self, descriptors: Descriptors, living: Container[int], named: tuple[str, ...] = ()):
        self._descriptors, self._living, self._named = descriptors, living, named
        self._moved = False  # a process went to another network namespace: loopback is not what it was
        self._went_out = False  # some socket has had a peer outside
        self._claims: list[Claim] = []
        self._accepted: deque[tuple[object, int]] = deque(maxlen=KEPT_ACCEPTS)  # other ends, on this machine; lines

    def examine(self, step: Step) -> Finding | None:
        """What is wrong with this call, if anything; call it for every step, also in phases that are not judged."""
        look = EXAMINE.get(step.call.name)
        return look(self, step, arguments(step.call.args)) if look else None

    def still_open(self) -> Iterator[Finding]:
        """What is open now and could be written to unseen; what is closed by now is no more of interest."""
        seen: dict[int, Description] = {}
        for table in self._descriptors.tables.values():
            for fd, entry in table.entries.items():
                finding = self._judge_open(entry.description)
                if finding and id(entry.description) not in seen:
                    yield Finding(UNPROVEN, f"descriptor {fd}: {finding}")
                seen[id(entry.description)] = entry.description
        self._claims = [claim for claim in self._claims if id(claim.socket) in seen]

    def unconfirmed(self) -> Iterator[Step]:
        """When all was seen: connects to this machine that no traced process was seen to accept."""
        accepted: dict[object, list[int]] = {}
        for end, line in self._accepted:
            accepted.setdefault(end, []).append(line)
        for claim in self._claims:
            lines = accepted.get(claim.inode or _end(claim.socket.local), [])
            later = [line for line in lines if line > claim.step.call.line]
            if later:
                lines.remove(later[0])
            else:
                yield claim.step

    def _judge_open(self, one: Description) -> str:
        if "io_uring" in one.name:
            return "an io_uring is there, whose operations are not seen"
        if one.suspect:
            return f"{one.suspect} is open"
        before = one.kind == "file" and one.origin in (fds.INHERITED, fds.UNKNOWN)
        if before and one.name.startswith("/dev/") and not SAFE_DEVICES.match(NUMBERED.sub("", one.name)):
            return f"{one.name} was open before"
        if one.kind == "pipe" and one.others:
            return "the other end of a pipe may be in a process that is not traced"
        if one.kind != "socket" or one.listening or one.claimed:
            return ""
        if one.origin in (fds.INHERITED, fds.UNKNOWN) or one.others:
            return f"a socket ({one.name}) came from outside the trace; what is written to it may leave"
        leaves = self.to(one.peer, one) if one.connected else None
        return f"a socket is connected to {one.peer}; what is written to it may not be seen" if leaves else ""

    # --- addresses ---

    def to(self, address: Address | None, socket: Description | None, errno: str = "") -> Finding | None:
        """Whether bytes sent from a socket to this address leave the traced processes."""
        finding = self._judge(address, socket, errno)
        self._went_out |= finding is not None and finding.kind != NOTED
        return finding

    def _judge(self, address: Address | None, socket: Description | None, errno: str) -> Finding | None:
        if address is None or address.family == "AF_UNSPEC":
            return None
        if address == UNREADABLE:
            return Finding(UNPROVEN, "its address could not be read")
        if any(is_named(address, name) for name in self._named):
            return Finding(NOTED, f"to {address}, which the policy names")
        if address.family == "AF_UNIX" and errno in NO_SUCH_PATH and not address.host.startswith("@"):
            return Finding(NOTED, f"to {address}, which does not exist")
        if socket and socket.claimed and address == socket.peer:
            return None
        if address.family == "AF_UNIX":
            return Finding(LEAVES, f"to {address}: a helper that is not traced")
        if address.is_local:
            inside = socket is not None and socket.type == "SOCK_DGRAM" and self._is_ours(address)
            return None if inside else Finding(LEAVES, f"to {address}: on this machine, but not a traced process")
        if address.is_ip:
            return Finding(LEAVES, f"to {address}" + (" (DNS)" if address.port == 53 else ""))
        return Finding(LEAVES, f"to a {address.family} address")

    def _is_ours(self, address: Address) -> bool:
        """Whether a traced process alone receives the datagrams that are sent to a local address."""
        return not self._moved and any(
            one.type == "SOCK_DGRAM" and not one.shares_port and _covers(one.local, address)
            for one in self._descriptors.sockets())

    def _claims_inside(self, socket: Description, address: Address, errno: str) -> bool:
        """Whether a traced process listens there, so that it may be the one that accepts."""
        if socket.type == "SOCK_DGRAM" or errno not in CONNECTING:
            return False
        if address.family == "AF_UNIX":
            return any(one.listening and one.family == "AF_UNIX" for one in self._descriptors.sockets())
        return not self._moved and address.is_local and any(
            one.listening and _covers(one.local, address) for one in self._descriptors.sockets())

    # --- one function a way out ---

    def _socket(self, step: Step, given: list[str]) -> Finding | None:
        family, kind, protocol = ([*given, "", "", ""])[:3]
        kind = kind.partition("|")[0]
        plain = family in ("AF_INET", "AF_INET6") and (kind, protocol) in PLAIN
        if plain or family in ("AF_UNIX", "AF_ALG"):
            return None
        if family in self._named:
            return Finding(NOTED, f"a socket of family {family}, which the policy names")
        why = f"a {kind} socket for {protocol}" if family in ("AF_INET", "AF_INET6") else f"a socket of family {family}"
        if step.descriptor and step.call.result is not None and step.call.result >= 0:
            step.descriptor.suspect = why
        return Finding(LEAVES, why)

    def _connect(self, step: Step, given: list[str]) -> Finding | None:
        address, socket = address_of(given[1]) if len(given) > 1 else UNREADABLE, step.descriptor
        if address and socket:
            socket.claimed = self._claims_inside(socket, address, step.call.errno)
        if socket and socket.claimed:
            inodes = UNIX_INODES.search(given[0])
            self._claims.append(Claim(step, socket, inodes[1] if inodes else ""))
            return None
        # A datagram socket stays connected when what it is connected to is another's.
        return self.to(address, None, step.call.errno)

    def _accept(self, step: Step, given: list[str]) -> Finding | None:
        one = step.descriptor
        if step.call.result is None or step.call.result < 0 or one is None:
            return None
        inodes = UNIX_INODES.search(step.call.detail)
        end = inodes[2] if inodes else _end(one.peer) if one.peer and one.peer.is_local else None
        if end:
            self._accepted.append((end, step.call.last_line))
        return None

    def _sendto(self, step: Step, given: list[str]) -> Finding | None:
        address = address_of(given[4]) if len(given) > 4 else UNREADABLE
        return self.to(address, step.descriptor, step.call.errno) if address else self._send(step, given)

    def _sendmsg(self, step: Step, given: list[str]) -> Finding | None:
        routes = ROUTES.search(step.call.args)
        if routes:
            return Finding(LEAVES, f"sends by way of other hosts ({routes[0]})")
        names = MESSAGE_NAME.findall(step.call.args)
        if not names:
            return Finding(UNPROVEN, "its messages could not be read")
        carrier = step.descriptor
        if "SCM_RIGHTS" in step.call.args and (carrier is None or carrier.origin != fds.PAIRED):
            return Finding(UNPROVEN, "passes descriptors to a process that may not be traced", lasts=True)
        found = [self.to(address_of(name), carrier, step.call.errno) for name in names if name != "NULL"]
        if "NULL" in names:
            found.append(self._send(step, given))
        return _worst(found)

    def _send(self, step: Step, given: list[str]) -> Finding | None:
        """Bytes for a descriptor, without an address."""
        return self._into(step.descriptor, step.call)

    def _into(self, one: Description | None, call: Call) -> Finding | None:
        if call.errno in ("ENOTCONN", "EBADF", "EDESTADDRREQ", "ENOTSOCK"):
            return None
        if one is None:
            return Finding(UNPROVEN, "it is not known what this descriptor is")
        if one.suspect:
            return Finding(LEAVES, f"into {one.suspect}")
        device = NUMBERED.search(one.name) if one.kind == "file" else None
        if device and not (device[1] == "char" and TERMINALS_AND_MEMORY.fullmatch(device[2])):
            return Finding(UNPROVEN, f"into the device {one.name}")
        if one.kind != "socket" or (one.origin in (fds.ACCEPTED, fds.PAIRED) and not one.connected):
            return None
        if one.origin in (fds.INHERITED, fds.UNKNOWN) or one.others:
            return Finding(UNPROVEN, f"into a socket ({one.name}) that came from outside the trace")
        return self.to(one.peer, one)

    def _sendfile(self, step: Step, given: list[str]) -> Finding | None:
        return self._send(step, given)

    def _splice(self, step: Step, given: list[str]) -> Finding | None:
        fd = (descriptor(given[2]) if len(given) > 2 else None) or (-1, "")
        return self._into(self._descriptors.find(step.call.pid, fd[0]), step.call)

    def _setsockopt(self, step: Step, given: list[str]) -> Finding | None:
        joins, routes = JOINS.search(step.call.args), ROUTES.search(step.call.args)
        if joins:
            return Finding(LEAVES, f"joins a multicast group ({joins[0]}), which is announced", lasts=True)
        return Finding(LEAVES, f"sends by way of other hosts ({routes[0]})", lasts=True) if routes else None

    def _passed(self, step: Step, given: list[str]) -> Finding | None:
        if "SCM_RIGHTS" not in step.call.args:
            return None
        if step.descriptor is None or step.descriptor.origin != fds.PAIRED:
            return Finding(UNPROVEN, "was passed descriptors by a process that may not be traced", lasts=True)
        # Its sender is traced, so it is one that we know; but not which.
        return Finding(UNPROVEN, "was passed descriptors, and some of the program's sockets lead outside", lasts=True) \
            if self._went_out else None

    def _open(self, step: Step, given: list[str]) -> Finding | None:
        path = opened_path(step.call)
        if step.call.name == "open_by_handle_at" and (step.call.result is None or step.call.result < 0):
            return None
        if path is None:
            return Finding(UNPROVEN, "its path could not be read", lasts=True)
        memory = MEMORY.search(path)
        if memory and int(memory[1]) != step.call.pid:
            return Finding(LEAVES, f"opens {path}: another process's memory", lasts=True)
        reading = "O_RDONLY" in opening_flags(step.call, given)
        others = OTHERS_DESCRIPTORS.search(step.call.args)
        if others and int(others[1]) not in self._living:
            return Finding(UNPROVEN, f"opens what process {others[1]}, which is not traced, has open", lasts=True)
        if path.startswith(("pipe:[", "socket:[")) and not OWN_DESCRIPTORS.search(step.call.args):
            return Finding(UNPROVEN, "opens a pipe that another process may have at its other end", lasts=True)
        if STARTS_HELPERS.match(path) and not reading:
            return Finding(LEAVES, f"opens {path} for writing: the kernel starts what stands there", lasts=True)
        if KERNEL_SETTINGS.match(path) and not reading:
            return Finding(UNPROVEN, f"opens {path} for writing: the kernel may act on it", lasts=True)
        if path == "/dev/kmsg" and reading:
            return None
        if any(name.startswith("/") and fnmatchcase(path, name) for name in self._named):
            return Finding(NOTED, f"opens {path}, which the policy names")
        if DEVICES.match(path):
            return Finding(LEAVES, f"opens {path}", lasts=True)
        device = NUMBERED.search(step.call.detail)
        if device is None or (device[1] == "char" and TERMINALS_AND_MEMORY.fullmatch(device[2])):
            return None
        kind = LEAVES if device[2] in WAYS_OUT else UNPROVEN
        return Finding(kind, f"opens {path}, the device {device[2]}", lasts=True)

    def _mount(self, step: Step, given: list[str]) -> Finding | None:
        kind = text_of(given[2]) if len(given) > 3 else None
        if kind in LOCAL_FILESYSTEMS or (len(given) > 3 and MOUNTS_NOTHING_NEW.search(given[3])):
            return None
        return Finding(LEAVES, f"mounts a file system ({kind or 'which is not shown'}): the kernel may connect for it",
                       lasts=True)

    def _foreign(self, step: Step, given: list[str]) -> Finding | None:
        """process_vm_*(pid, …), ptrace(request, pid, …)."""
        if given[:1] == ["PTRACE_TRACEME"]:
            return None
        target = given[1] if step.call.name == "ptrace" and len(given) > 1 else given[0] if given else ""
        pid = int(target) if target.isdigit() else -1
        if pid in self._living:
            return None
        return Finding(LEAVES, f"reaches into process {target}, which is not traced", lasts=True)

    def _always(self, step: Step, given: list[str]) -> Finding | None:
        return Finding(LEAVES, ALWAYS[step.call.name], lasts=True)

    def _ioctl(self, step: Step, given: list[str]) -> Finding | None:
        return Finding(LEAVES, "types into a terminal (TIOCSTI)") if given[1:2] == ["TIOCSTI"] else None

    def _unseen(self, step: Step, given: list[str]) -> Finding | None:
        return Finding(UNPROVEN, "what it writes, and to which descriptors, is not shown")

    def _namespace(self, step: Step, given: list[str]) -> Finding | None:
        if step.call.name == "setns" or "CLONE_NEWNET" in step.call.args:
            self._moved = True
        return None


ALWAYS = {
    "io_uring_setup": "io_uring: its operations are no system calls and cannot be seen",
    "io_uring_enter": "io_uring: its operations are no system calls and cannot be seen",
    "io_uring_register": "io_uring: its operations are no system calls and cannot be seen",
    "pidfd_getfd": "takes a descriptor of another process",
    "bpf": "loads or drives code in the kernel (bpf)",
    "init_module": "loads code into the kernel", "finit_module": "loads code into the kernel",
    "fsopen": "mounts a file system: the kernel may connect for it",
    "fsconfig": "mounts a file system: the kernel may connect for it",
    "kexec_load": "loads another kernel", "kexec_file_load": "loads another kernel",
    "swapon": "has the kernel write memory to a device", "acct": "has the kernel write a file",
    "request_key": "has the kernel start a helper (request_key)",
}

EXAMINE: dict[str, Callable[[Watch, Step, list[str]], Finding | None]] = {
    "socket": Watch._socket, "connect": Watch._connect, "accept": Watch._accept, "accept4": Watch._accept,
    "mount": Watch._mount, "ioctl": Watch._ioctl, "sendto": Watch._sendto,
    "sendmsg": Watch._sendmsg, "sendmmsg": Watch._sendmsg, "sendfile": Watch._sendfile, "splice": Watch._splice,
    "write": Watch._send, "writev": Watch._send, "pwritev2": Watch._send, "vmsplice": Watch._send, "tee": Watch._send,
    "setsockopt": Watch._setsockopt, "recvmsg": Watch._passed, "recvmmsg": Watch._passed,
    "open": Watch._open, "openat": Watch._open, "openat2": Watch._open, "creat": Watch._open,
    "open_by_handle_at": Watch._open,
    "process_vm_writev": Watch._foreign, "process_vm_readv": Watch._foreign, "ptrace": Watch._foreign,
    "io_submit": Watch._unseen, "unshare": Watch._namespace, "setns": Watch._namespace,
    "clone": Watch._namespace, "clone3": Watch._namespace, **dict.fromkeys(ALWAYS, Watch._always),
}


def _worst(found: list[Finding | None]) -> Finding | None:
    for kind in (LEAVES, UNPROVEN, NOTED):
        for one in found:
            if one and one.kind == kind:
                return one
    return None


FLAGS_AT = {"open": 1, "openat": 2, "openat2": 2, "open_by_handle_at": 2}


def opening_flags(call: Call, given: list[str]) -> str:
    """The flags of a call that opens, as strace writes them; never what a path says."""
    if call.name == "creat":
        return "O_CREAT|O_WRONLY|O_TRUNC"
    return "".join(given[FLAGS_AT.get(call.name, 1):][:1])


def _covers(local: Address | None, address: Address) -> bool:
    """Whether a socket that is bound there receives what is sent to this address of the machine."""
    return (local is not None and local.is_ip and address.is_ip and local.port == address.port
            and local.ip.version == address.ip.version and (local.ip == address.ip or local.ip.is_unspecified))


def _end(address: Address | None) -> object:
    """What both ends of a connection show of this one."""
    return (address.ip, address.port) if address and address.is_ip else None


def opened_path(call: Call) -> str | None:
    """The path that an open call is about: as the kernel resolved it where it succeeded; None: not readable."""
    if call.result is not None and call.result >= 0 and call.detail.startswith("<"):
        found = re.fullmatch(r"<(.*?)(?:<(?:char|block) \d+:\d+>)?>(\(deleted\))?", call.detail, re.DOTALL)
        return unescaped(found[1]) if found else None
    given = arguments(call.args)
    at = 1 if call.name.startswith("openat") else 0
    path = text_of(given[at]) if len(given) > at else None
    if path is None or path.startswith("/") or at == 0:
        return path
    folder = descriptor(given[0])
    return f"{unescaped(folder[1])}/{path}" if folder else path


def is_named(address: Address, name: str) -> bool:
    """Whether a policy's name means this address: "unix:/run/*", "10.0.0.0/8", "127.0.0.1:8080", "[::1]:53"."""
    if name.startswith("unix:"):
        return address.family == "AF_UNIX" and fnmatchcase(address.host, name.removeprefix("unix:"))
    if not address.is_ip or name.startswith(("/", "AF_")):
        return name == address.family
    host, port = _host_and_port(name)
    network = ip_network(host)
    return address.ip in network and port in (None, address.port)


def _host_and_port(name: str) -> tuple[str, int | None]:
    """Raises ValueError where the name is no address or network."""
    found = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d+)|(\d+\.\d+\.\d+\.\d+):(\d+)", name)
    if found is None:
        ip_network(name)
        return name, None
    ip_network(found[1] or found[3])
    return found[1] or found[3], int(found[2] or found[4])


def check_name(name: str) -> None:
    """Raises ValueError, saying what was expected, when a policy's name for an address is none."""
    try:
        if not name.startswith(("unix:", "/dev/")) and not re.fullmatch(r"AF_[A-Z0-9]+", name):
            _host_and_port(name)
    except ValueError:
        raise ValueError("expected an address, a network, an address with a port, unix:PATH, /dev/PATH or"
                         " AF_NAME") from None
