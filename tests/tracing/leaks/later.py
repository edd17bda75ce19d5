"""Prepared while loading, where that is allowed, and used while serving: often by calls that are not traced."""

import ctypes
import os
import socket
import sys
import threading

from tests.tracing.leaks import FAIL, FULL_PORT, INCONCLUSIVE, OUTSIDE, PORT, SECRET
from tests.tracing.leaks import attempt, attempted, leak, path, phase, wait_for_tracer, wait_until
from tests.tracing.leaks.internet import connect_and_send, connecting, tcp, udp
from tests.tracing.leaks.kernel import ETH_P_IP
from tests.tracing.leaks.neighbours import disconnect, unix
from tests.tracing.leaks.syscalls import libc, syscall, vector

CLONE_FILES, CLOSE_RANGE_UNSHARE, CLONE_VFORK, CLONE_UNTRACED, SIGCHLD = 0x400, 2, 0x4000, 0x800000, 17
SERVE_AND_WRITE = f"""
import os, sys
os.access(f"/dev/null/testigo/v1/{{os.environ['TESTIGO_TRACE']}}/0/phase=serving", os.F_OK)
os.write(int(sys.argv[1]), {SECRET!r})
"""

REACH = """
from tests.tracing import leaks
from tests.tracing.leaks.neighbours import reach_neighbour
leaks.running = "listener_closed_by_exec"
reach_neighbour(9108)
"""


def outward() -> socket.socket:
    """A socket connected to the outside."""
    s = udp()
    s.connect((OUTSIDE, PORT))
    return s


def outward_tcp() -> socket.socket:
    s = tcp()
    s.connect((OUTSIDE, PORT))
    return s


def write_when_serving(fd: int) -> None:
    phase("serving")
    with attempt():
        os.write(fd, SECRET)


# Phases that do not become what they should

@leak(INCONCLUSIVE, arrives=True)
def never_serving() -> None:
    phase("startup")
    phase("load")
    connect_and_send()


@leak(FAIL, arrives=True)
def loading_again() -> None:
    for name in ("load", "serving", "load"):
        phase(name)
    connect_and_send()


@leak(INCONCLUSIVE, arrives=True)
def loading_for_another() -> None:
    """A marker with a nonce that was not given out."""
    os.environ["TESTIGO_TRACE"] = "0123456789abcdef"
    phase("load")
    connect_and_send()


@leak(FAIL, arrives=True)
def while_shutting_down() -> None:
    for name in ("load", "serving", "shutdown"):
        phase(name)
    connect_and_send()


# Sockets

@leak(INCONCLUSIVE, arrives=True)
def connected_in_load() -> None:
    phase("load")
    with outward() as s:
        write_when_serving(s.fileno())


@leak(INCONCLUSIVE, arrives=True)
def tcp_connected_in_load() -> None:
    phase("load")
    with outward_tcp() as s:
        write_when_serving(s.fileno())


@leak(INCONCLUSIVE, arrives=True)
def duplicated() -> None:
    phase("load")
    with outward() as s:
        copy = os.dup2(s.fileno(), 99)
    write_when_serving(copy)


@leak(INCONCLUSIVE, arrives=True)
def unix_connected_in_load() -> None:
    phase("load")
    with unix() as s:
        s.connect(path("stream"))
        write_when_serving(s.fileno())


@leak(INCONCLUSIVE)
def packet_of_load() -> None:
    phase("load")
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as s:
        s.bind(("lo", ETH_P_IP))
        s.connect_ex(("lo", ETH_P_IP))
        write_when_serving(s.fileno())


@leak(INCONCLUSIVE)
def netlink_of_load() -> None:
    phase("load")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        write_when_serving(s.fileno())


@leak(FAIL)
def netlink_of_load_sent() -> None:
    phase("load")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        phase("serving")
        with attempt():
            s.send(SECRET)


@leak(INCONCLUSIVE)
def tun_of_load() -> None:
    phase("load")
    device = os.open("/dev/net/tun", os.O_RDWR)
    write_when_serving(device)


@leak(INCONCLUSIVE)
def begun_in_load() -> None:
    """A connect that blocks while serving begins."""
    phase("load")
    threading.Thread(target=tcp().connect, args=((OUTSIDE, FULL_PORT),), daemon=True).start()
    wait_until(connecting, "a connect to begin")
    phase("serving")
    attempted()
    os._exit(0)


@leak(INCONCLUSIVE, arrives=True)
def connect_finished_elsewhere() -> None:
    """The second connect returns 0, for the first has succeeded; its own address does not matter."""
    phase("load")
    with tcp() as own, tcp() as s:
        own.bind(("127.0.0.1", 0))
        own.listen()
        s.setblocking(False)
        s.connect_ex((OUTSIDE, PORT))
        s.connect(own.getsockname())
        write_when_serving(s.fileno())
        os._exit(0)


@leak(INCONCLUSIVE, arrives=True)
def connect_refused_second() -> None:
    """A second connect, to one's own socket, fails: the first peer stays."""
    phase("load")
    with tcp() as own, outward_tcp() as s:
        own.bind(("127.0.0.1", 0))
        own.listen()
        s.connect_ex(own.getsockname())
        write_when_serving(s.fileno())


@leak(INCONCLUSIVE, arrives=True)
def disconnect_refused() -> None:
    """UNIX sockets do not let go of their peer."""
    phase("load")
    with unix() as s:
        s.connect(path("stream"))
        disconnect(s)
        write_when_serving(s.fileno())


@leak(INCONCLUSIVE, arrives=True)
def accepted_then_connected() -> None:
    """What was accepted once need not stay so."""
    phase("load")
    with tcp() as own, tcp() as client:
        own.bind(("127.0.0.1", 0))
        own.listen()
        client.connect(own.getsockname())
        s = own.accept()[0]
        disconnect(s)
        s.connect((OUTSIDE, PORT))
        write_when_serving(s.fileno())
        os._exit(0)  # no call afterwards that would show the socket


@leak(INCONCLUSIVE, arrives=True)
def pair_then_connected() -> None:
    """Datagram sockets of a pair can be connected elsewhere."""
    phase("load")
    s, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(path("log"))
    write_when_serving(s.fileno())


# Calls that move data to a socket

@leak(FAIL, arrives=True)
def sendfile() -> None:
    phase("load")
    with outward_tcp() as s, open(path("weights"), "rb") as file:
        phase("serving")
        with attempt():
            os.sendfile(s.fileno(), file.fileno(), 0, len(SECRET))


@leak(FAIL, arrives=True)
def splice() -> None:
    phase("load")
    source, target = os.pipe()
    with outward_tcp() as s:
        phase("serving")
        os.write(target, SECRET)
        with attempt():
            os.splice(source, s.fileno(), len(SECRET))


@leak(FAIL, arrives=True)
def vmsplice() -> None:
    phase("load")
    data, keep = vector(SECRET)
    source, target = os.pipe()
    with outward_tcp() as s:
        phase("serving")
        with attempt():
            syscall("vmsplice", target, ctypes.byref(data), 1, 0)
            os.splice(source, s.fileno(), len(SECRET))


@leak(FAIL, arrives=True)
def tee() -> None:
    phase("load")
    source, target = os.pipe()
    source2, target2 = os.pipe()
    with outward_tcp() as s:
        phase("serving")
        os.write(target, SECRET)
        with attempt():
            syscall("tee", source, target2, len(SECRET), 0)
            os.splice(source2, s.fileno(), len(SECRET))


@leak(FAIL, arrives=True)
def sent_in_a_child() -> None:
    phase("load")
    with outward_tcp() as s:
        phase("serving")
        if os.fork() == 0:
            s.send(SECRET)
            os._exit(0)
        os.wait()
    attempted()


# Descriptors that only seem to be gone

@leak(INCONCLUSIVE, arrives=True)
def child_keeps_it() -> None:
    """The parent closes it; the child says nothing until it writes."""
    phase("load")
    wake, waker = os.pipe()
    with outward() as s:
        if os.fork() == 0:
            os.read(wake, 1)
            os.write(s.fileno(), SECRET)
            os._exit(0)
    phase("serving")
    os.write(waker, b".")
    os.wait()
    attempted()


@leak(INCONCLUSIVE, arrives=True)
def child_made_it() -> None:
    """A child that shares the descriptors connects one, and ends."""
    phase("load")
    pid = syscall("clone", CLONE_FILES | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os.dup2(outward().detach(), 99)
        os._exit(0)
    os.waitpid(pid, 0)
    write_when_serving(99)


@leak(INCONCLUSIVE, arrives=True)
def thread_keeps_it() -> None:
    """A thread with descriptors of its own (CLONE_FILES undone)."""
    keep_in_thread(lambda: libc.unshare(CLONE_FILES), lambda s: s.close())


@leak(INCONCLUSIVE, arrives=True)
def thread_keeps_it_from_close_range() -> None:
    keep_in_thread(lambda: None, lambda s: syscall("close_range", s.fileno(), s.detach(), CLOSE_RANGE_UNSHARE))


def keep_in_thread(begin, forget) -> None:
    phase("load")
    s, begun, serving = outward(), threading.Event(), threading.Event()
    fd = s.fileno()

    def write() -> None:
        begin()
        begun.set()
        serving.wait()
        with attempt():
            os.write(fd, SECRET)

    worker = threading.Thread(target=write)
    worker.start()
    begun.wait()
    forget(s)
    phase("serving")
    serving.set()
    worker.join()


def serve_and_write(s: socket.socket) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", SERVE_AND_WRITE, str(s.fileno())]


@leak(INCONCLUSIVE, arrives=True)
def spawned_with_it() -> None:
    """Python clears close-on-exec with an ioctl, which a profile may not trace."""
    phase("load")
    with outward() as s:
        s.set_inheritable(True)
        pid = os.posix_spawn(sys.executable, serve_and_write(s), os.environ)
    os.waitpid(pid, 0)
    attempted()


@leak(INCONCLUSIVE, arrives=True)
def became_with_it() -> None:
    """The same by execve in the process itself, before any mark."""
    s = outward()
    s.set_inheritable(True)
    attempted()
    os.execv(sys.executable, serve_and_write(s))


@leak(FAIL, arrives=True)
def listener_closed_by_exec() -> None:
    """Close-on-exec set by ioctl: the port is free for a neighbour."""
    own = tcp()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    libc.fcntl(own.fileno(), 2, 0)  # F_SETFD: stays open
    own.bind(("127.0.0.1", 9108))
    own.listen()
    own.set_inheritable(False)
    os.execv(sys.executable, [sys.executable, "-c", REACH])


@leak(INCONCLUSIVE, arrives=True)
def untraced_child() -> None:
    """CLONE_UNTRACED: strace is not told of it."""
    phase("load")
    with outward() as s:
        phase("serving")
        pid = syscall("clone", CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os.write(s.fileno(), SECRET)
            os._exit(0)
        os.waitpid(pid, 0)
    attempted()


# Opened before strace attaches

@leak(INCONCLUSIVE, arrives=True, how="attach")
def attached_later() -> None:
    with outward() as s:
        wait_for_tracer()
        with attempt():
            os.write(s.fileno(), SECRET)


@leak(INCONCLUSIVE, arrives=True, how="attach")
def attached_later_to_child() -> None:
    """The socket is a child's; its parent has none."""
    pid = os.fork()
    if pid == 0:
        with outward() as s:
            wait_for_tracer()
            os.write(s.fileno(), SECRET)
            os._exit(0)
    os.waitpid(pid, 0)
    attempted()
