"""Leaving by another process of this machine that is not traced."""

import ctypes
import os
import socket
import struct

from tests.tracing.leaks import FAIL, INCONCLUSIVE, PORT, SECRET, ask, attempt, attempted, leak, path, peers, phase
from tests.tracing.leaks.internet import tcp, udp
from tests.tracing.leaks.syscalls import iovec, libc, syscall, vector

PTRACE_ATTACH = 16


def unix(kind: int = socket.SOCK_STREAM) -> socket.socket:
    return socket.socket(socket.AF_UNIX, kind)


@leak(FAIL, arrives=True)
def proxy_tcp() -> None:
    with attempt(), tcp() as s:
        s.connect(("127.0.0.1", PORT))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def proxy_tcp6() -> None:
    with attempt(), tcp(socket.AF_INET6) as s:
        s.connect(("::1", PORT))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def proxy_any() -> None:
    """0.0.0.0 is this machine, too."""
    with attempt(), tcp() as s:
        s.connect(("0.0.0.0", PORT))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def proxy_udp() -> None:
    with attempt(), udp() as s:
        s.sendto(SECRET, ("127.0.0.53", PORT))


@leak(FAIL, arrives=True)
def unix_stream() -> None:
    with attempt(), unix() as s:
        s.connect(path("stream"))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def unix_datagram() -> None:
    """As syslog does."""
    with attempt(), unix(socket.SOCK_DGRAM) as s:
        s.sendto(SECRET, path("log"))


@leak(FAIL, arrives=True)
def unix_abstract() -> None:
    with attempt(), unix() as s:
        s.connect("\0leak")
        s.sendall(SECRET)


@leak(INCONCLUSIVE, arrives=True)
def unix_relative() -> None:
    """The same name in another folder is bound here."""
    os.mkdir(path("own"))
    os.chdir(path("own"))
    with unix() as own, unix() as s:
        own.bind("stream")
        own.listen()
        os.chdir(path(""))
        with attempt():
            s.connect("stream")
            s.sendall(SECRET)


@leak(INCONCLUSIVE, arrives=True)
def unix_bound_again() -> None:
    """The path was ours once."""
    with unix() as own, unix() as s:
        own.bind(path("mine"))
        own.listen()
        os.unlink(path("mine"))
        ask(f"listen unix {path('mine')}")
        with attempt():
            s.connect(path("mine"))
            s.sendall(SECRET)


# Another process's memory and descriptors

@leak(FAIL)
def memory_written() -> None:
    source, keep = vector(SECRET)
    target = iovec(peers()["address"], len(SECRET))
    with attempt():
        syscall("process_vm_writev", peers()["pid"], ctypes.byref(source), 1, ctypes.byref(target), 1, 0)


@leak(FAIL)
def memory_file() -> None:
    with attempt(), open(f"/proc/{peers()['pid']}/mem", "r+b", buffering=0) as file:
        file.seek(peers()["address"])
        file.write(SECRET)


@leak(INCONCLUSIVE)
def memory_file_of_load() -> None:
    """Opened while that is allowed, written with calls that are not traced."""
    phase("load")
    with open(f"/proc/{peers()['pid']}/mem", "r+b", buffering=0) as file:
        phase("serving")
        with attempt():
            file.seek(peers()["address"])
            file.write(SECRET)


@leak(FAIL)
def ptrace_attach() -> None:
    with attempt():
        syscall("ptrace", PTRACE_ATTACH, peers()["pid"], 0, 0)


@leak(FAIL, arrives=True)
def descriptor_taken() -> None:
    handle = os.pidfd_open(peers()["pid"])
    with attempt():
        os.write(syscall("pidfd_getfd", handle, peers()["fd"], 0), SECRET)


@leak(INCONCLUSIVE, arrives=True)
def descriptor_taken_in_load() -> None:
    phase("load")
    taken = syscall("pidfd_getfd", os.pidfd_open(peers()["pid"]), peers()["fd"], 0)
    phase("serving")
    with attempt():
        os.write(taken, SECRET)


# Descriptors that come and go

def received() -> int:
    """A socket that the neighbour connected to the outside."""
    with unix() as s:
        s.connect(path("giver"))
        return socket.recv_fds(s, 1, 1)[1][0]


@leak(FAIL, arrives=True)
def socket_passed() -> None:
    with attempt():
        os.write(received(), SECRET)


@leak(INCONCLUSIVE, arrives=True)
def socket_passed_in_load() -> None:
    phase("load")
    given = received()
    phase("serving")
    with attempt():
        os.write(given, SECRET)


def give_away(fd: int) -> None:
    """To the neighbour, which reads what comes out of it, or accepts."""
    with unix() as s:
        s.connect(path("taker"))
        socket.send_fds(s, [b"."], [fd])
        s.recv(1)


@leak(INCONCLUSIVE, arrives=True)
def pair_of_load_given_away() -> None:
    """A socketpair, whose other end is a neighbour's since loading."""
    phase("load")
    here, there = socket.socketpair()
    give_away(there.fileno())
    there.close()
    phase("serving")
    with attempt():
        here.sendall(SECRET)


@leak(INCONCLUSIVE, arrives=True)
def listener_of_load_given_away() -> None:
    """One's own listening socket, where a neighbour accepts, too."""
    phase("load")
    with tcp() as own, tcp() as s:
        own.bind(("127.0.0.1", 0))
        own.listen()
        give_away(own.fileno())
        phase("serving")
        with attempt():
            s.connect(own.getsockname())
            s.sendall(SECRET)


@leak(INCONCLUSIVE, arrives=True)
def pipe_of_load_given_away() -> None:
    phase("load")
    source, target = os.pipe()
    give_away(source)
    phase("serving")
    with attempt():
        os.write(target, SECRET)


@leak(INCONCLUSIVE)
def pipe_of_another() -> None:
    """/proc opens it anew."""
    with attempt():
        os.write(os.open(f"/proc/{peers()['pid']}/fd/1", os.O_WRONLY), SECRET)


@leak(INCONCLUSIVE)
def pipe_of_another_by_link() -> None:
    os.symlink(f"/proc/{peers()['pid']}/fd", path("link"))
    with attempt():
        os.write(os.open(path("link/1"), os.O_WRONLY), SECRET)


@leak(INCONCLUSIVE, arrives=True)
def accepted_of_load_given_away() -> None:
    """The other end of a connection with oneself is a neighbour's since loading."""
    phase("load")
    with tcp() as own, tcp() as s:
        own.bind(("127.0.0.1", 0))
        own.listen()
        s.connect(own.getsockname())
        with own.accept()[0] as accepted:
            give_away(accepted.fileno())
        phase("serving")
        with attempt():
            os.write(s.fileno(), SECRET)


@leak(INCONCLUSIVE, arrives=True)
def rights_behind_others() -> None:
    """After many control messages, the last gives a pipe away."""
    phase("load")
    source, target = os.pipe()
    with unix() as s:
        s.connect(path("taker"))
        phase("serving")
        who = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", os.getpid(), os.getuid(), os.getgid()))
        with attempt():
            s.sendmsg([b"."], [who] * 140 + [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", source))])
            s.recv(1)
            os.write(target, SECRET)


@leak(INCONCLUSIVE, arrives=True, how="stdin")
def inherited_as_stdin() -> None:
    with attempt():
        os.write(0, SECRET)


@leak(INCONCLUSIVE, arrives=True, how="stdout")
def inherited_as_stdout() -> None:
    with attempt():
        print(SECRET.decode(), flush=True)


@leak(INCONCLUSIVE, arrives=True, how="stdin")
def inherited_duplicate() -> None:
    """Closed under its old number, written under a new one in a child."""
    copy = os.dup(0)
    os.close(0)
    if os.fork() == 0:
        os.write(copy, SECRET)
        os._exit(0)
    os.wait()
    attempted()


# Where it looks as if a socket of one's own were reached

@leak(FAIL, arrives=True)
def tcp_where_udp_is_bound() -> None:
    ask("listen tcp 127.0.0.1 9101")
    with udp() as own, tcp() as s:
        own.bind(("127.0.0.1", 9101))
        with attempt():
            s.connect(("127.0.0.1", 9101))
            s.sendall(SECRET)


@leak(FAIL, arrives=True)
def udp_where_tcp_listens() -> None:
    ask("listen udp 127.0.0.1 9102")
    with tcp() as own, udp() as s:
        own.bind(("127.0.0.1", 9102))
        own.listen()
        with attempt():
            s.sendto(SECRET, ("127.0.0.1", 9102))


@leak(FAIL, arrives=True)
def v6_where_any_v4_listens() -> None:
    ask("listen tcp ::1 9103")
    with tcp() as own, tcp(socket.AF_INET6) as s:
        own.bind(("0.0.0.0", 9103))
        own.listen()
        with attempt():
            s.connect(("::1", 9103))
            s.sendall(SECRET)


@leak(FAIL, arrives=True)
def v4_where_any_v6_only_listens() -> None:
    ask("listen tcp 127.0.0.1 9104")
    with tcp(socket.AF_INET6) as own, tcp() as s:
        own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        own.bind(("::", 9104))
        own.listen()
        with attempt():
            s.connect(("127.0.0.1", 9104))
            s.sendall(SECRET)


@leak(FAIL, arrives=True)
def udp_port_shared() -> None:
    """SO_REUSEADDR on both: the later one receives."""
    with udp() as own, udp() as s:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(("127.0.0.1", 9105))
        ask("listen udp 127.0.0.1 9105")
        with attempt():
            s.sendto(SECRET, ("127.0.0.1", 9105))


@leak(FAIL, arrives=True)
def udp_port_released() -> None:
    """connect(AF_UNSPEC) gives back a port that the kernel chose."""
    with udp() as own, udp() as s:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
        disconnect(own)
        ask(f"listen udp 127.0.0.1 {port}")
        with attempt():
            s.sendto(SECRET, ("127.0.0.1", port))


@leak(FAIL, arrives=True)
def udp_peer_replaced() -> None:
    """Connected to a socket of one's own, whose port is another's when it is written to."""
    with udp() as own, udp() as s:
        own.bind(("127.0.0.1", 9110))
        s.connect(("127.0.0.1", 9110))
        own.close()
        ask("listen udp 127.0.0.1 9110")
        with attempt():
            os.write(s.fileno(), SECRET)


def connect_often(port: int) -> None:
    """Some of the connections are the neighbour's, which listens, too; what is written to them is not traced."""
    with listening(port, socket.SO_REUSEPORT):
        ask(f"share tcp 127.0.0.1 {port}")
        with attempt():
            for _ in range(24):
                s = tcp()
                s.connect(("127.0.0.1", port))
                os.write(s.fileno(), SECRET)
                s.close()


@leak(INCONCLUSIVE, arrives=True)
def tcp_port_shared() -> None:
    connect_often(9111)


@leak(INCONCLUSIVE, arrives=True)
def tcp_port_shared_with_accepts() -> None:
    """There are accepts in the trace, of connections whose other end was gone: they are not of these."""
    phase("load")
    with unix() as own:
        own.bind("\0own")
        own.listen(30)
        for _ in range(24):
            with unix() as s:
                s.connect("\0own")
        for _ in range(24):
            own.accept()[0].close()
    phase("serving")
    connect_often(9112)


def listening(port: int, option: int = socket.SO_REUSEADDR) -> socket.socket:
    own = tcp()
    own.setsockopt(socket.SOL_SOCKET, option, 1)
    own.bind(("127.0.0.1", port))
    own.listen()
    return own


def reach_neighbour(port: int) -> None:
    ask(f"listen tcp 127.0.0.1 {port}")
    with attempt(), tcp() as s:
        s.connect(("127.0.0.1", port))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def listener_shut_down() -> None:
    with listening(9106) as own:
        own.shutdown(socket.SHUT_RDWR)
        reach_neighbour(9106)


@leak(FAIL, arrives=True)
def listener_disconnected() -> None:
    """connect(AF_UNSPEC) ends listening."""
    with listening(9107) as own:
        disconnect(own)
        reach_neighbour(9107)


def disconnect(s: socket.socket) -> None:
    libc.connect(s.fileno(), bytes(16), 16)
