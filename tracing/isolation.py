"""A network namespace of its own for this process and all that it starts: only loopback, and no way out of it.

The rule to keep: either `enter` has returned and nothing started afterwards reaches another machine by network, or it
has raised. Sockets that were open before stay what they were, and so do AF_UNIX paths.

Source: network_namespaces(7), user_namespaces(7), netdevice(7).
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Address

from tracing.errors import TraceError

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
IFF_UP = 1
LOOPBACK = "lo"
FLAGS_REQUEST = "16sH22x"  # struct ifreq: name, flags
ADDRESS_REQUEST = "16sHxx4s16x"  # struct ifreq: name, sockaddr_in without a port
HINT = "run as root, or allow user namespaces (kernel.unprivileged_userns_clone, user.max_net_namespaces)"


def enter() -> None:
    """Leave the network of this machine for good: this process, and what it starts from now on.

    Raises TraceError where the kernel forbids it, and where this process has threads: they would stay behind.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise TraceError(f"cannot isolate this process: it has {threads} threads, which would keep the network")
    try:
        _unshare()
        _raise_loopback()
    except OSError as error:
        raise TraceError(f"cannot make a network namespace ({error.strerror}): {HINT}") from None
    if not is_isolated():
        raise TraceError("the new network namespace has an interface that is up; expected loopback only")


def is_isolated() -> bool:
    """Whether this thread's network has no interface that is up but loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return not any(_flags(control, name) & IFF_UP for name in _interfaces() if name != LOOPBACK)


def own(address: IPv4Address, number: int) -> None:
    """Make an address one of this machine's, in the namespace that `enter` made; `number` tells it from others."""
    name = f"{LOOPBACK}:{number}".encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # The kernel guesses a mask from the address, and would take a whole network for its own.
        for request, value in (SIOCSIFADDR, address.packed), (SIOCSIFNETMASK, b"\xff" * 4):
            fcntl.ioctl(control, request, struct.pack(ADDRESS_REQUEST, name, socket.AF_INET, value))


def _unshare() -> None:
    """Without the right to make a network namespace, in a user namespace of its own, with the same user in it."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        _call_unshare(CLONE_NEWNET)
    except PermissionError:
        _call_unshare(CLONE_NEWUSER | CLONE_NEWNET)
        for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _call_unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = _flags(control, LOOPBACK) | IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack(FLAGS_REQUEST, LOOPBACK.encode(), flags))


def _flags(control: socket.socket, name: str) -> int:
    """An interface's flags; 0 where it is gone."""
    try:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack(FLAGS_REQUEST, name.encode(), 0))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return 0
        raise
    return int(struct.unpack(FLAGS_REQUEST, answer)[1])


def _interfaces() -> list[str]:
    """The names in /proc/net/dev, below its two lines of headings."""
    with open("/proc/thread-self/net/dev") as file:
        return [line.partition(":")[0].strip() for line in file.readlines()[2:]]
