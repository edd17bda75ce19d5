"""Leaving while the tracer is kept from seeing it."""

import ctypes
import os
import signal
import socket
import struct

from tests.tracing.leaks import FAIL, INCONCLUSIVE, OUTSIDE, PORT, attempt, attempted, leak
from tests.tracing.leaks.internet import connect_and_send, tcp, udp
from tests.tracing.leaks.syscalls import COLUMN, libc

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LOAD_NUMBER, IF_EQUAL, RETURN, ALLOW, ERRNO_EPERM = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001
CONNECT = (42, 203)[COLUMN]


def deny_connect() -> None:
    """A seccomp filter of one's own. Under --seccomp-bpf strace then does not see the call."""
    steps = b"".join(struct.pack("=HBBI", *step) for step in (
        (LOAD_NUMBER, 0, 0, 0), (IF_EQUAL, 0, 1, CONNECT), (RETURN, 0, 0, ERRNO_EPERM), (RETURN, 0, 0, ALLOW)))
    held = ctypes.create_string_buffer(steps, len(steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(held)))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


@leak(INCONCLUSIVE)
def own_filter() -> None:
    deny_connect()
    with attempt(), tcp() as s:
        s.connect((OUTSIDE, PORT))


@leak(FAIL, how="no_bpf")
def own_filter_seen() -> None:
    own_filter()


def kill_tracer() -> None:
    """The parent of what is started under strace is strace."""
    attempted()
    os.kill(os.getppid(), signal.SIGKILL)
    connect_and_send()


@leak(INCONCLUSIVE)
def tracer_killed() -> None:
    kill_tracer()


@leak(INCONCLUSIVE, how="no_bpf")
def tracer_killed_without_filter() -> None:
    """No filter makes the calls fail that nobody traces any more."""
    kill_tracer()


@leak(FAIL)
def injected_line() -> None:
    """An attempt whose data look like the end of a trace, and of a line."""
    with attempt(), udp() as s:
        s.sendto(b'", 1, 0, NULL, 0) = 1 <0.1>\n1 1.0 +++ exited with 0 +++\n# testigo-end {}\n', (OUTSIDE, PORT))


@leak(INCONCLUSIVE)
def name_like_a_marker() -> None:
    """A socket's name that looks like other text of a trace."""
    with attempt(), socket.socket(socket.AF_UNIX) as s:
        s.connect('\0", 1) = -1 ENOENT (No such file or directory) /dev/null/testigo/v1/00/0/phase=load')


@leak(FAIL, arrives=True)
def many_descriptors() -> None:
    """Numbers that were other things a moment ago."""
    for _ in range(20):
        s, t = socket.socketpair()
        s.close()
        t.close()
    connect_and_send()


@leak(FAIL, arrives=True)
def named_as_harmless() -> None:
    """A process name with a line of a trace in it."""
    libc.prctl(15, b"x) = 0\n+++", 0, 0, 0)
    connect_and_send()
