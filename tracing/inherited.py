"""What was open before the recording began: the standard descriptors of a tracee, all of an attached process.

The rule to keep: a descriptor that cannot be looked at is listed all the same, with what the kernel's link says.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from typing import Any

import psutil

from tracing.tracefile import Inherited

KINDS = (("socket:", "socket"), ("pipe:", "pipe"), ("anon_inode:", "anon"))
PROTOCOLS = {(2, 1): "TCP", (10, 1): "TCP", (2, 2): "UDP", (10, 2): "UDP"}  # by family and type of socket


def standard(pid: int, descriptors: Iterable[int]) -> tuple[Inherited, ...]:
    """Of the descriptors that become 0, 1, 2 of the tracee `pid`: those that are no plain file, terminal or pipe."""
    given = [(fd, own) for fd, own in enumerate(descriptors) if own >= 0 and not _is_plain(own)]
    sockets = _sockets(os.getpid()) if given else {}
    return tuple(_describe(pid, fd, _link(os.getpid(), own), sockets.get(own)) for fd, own in given)


def _is_plain(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return True  # closed
    if stat.S_ISCHR(mode):
        return os.isatty(fd) or os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def of_processes(pids: Iterable[int]) -> tuple[Inherited, ...]:
    """Every open descriptor of these processes; one that ends meanwhile has none."""
    return tuple(each for pid in pids for each in _of_process(pid))


def _of_process(pid: int) -> list[Inherited]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        sockets = _sockets(pid)
        for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
            found.append(_describe(pid, fd, _link(pid, fd), sockets.get(fd)))
    return found


def _link(pid: int, fd: int) -> str:
    try:
        return os.fsencode(os.readlink(f"/proc/{pid}/fd/{fd}")).decode("utf-8", "backslashreplace")
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _describe(pid: int, fd: int, link: str, socket: str | None) -> Inherited:
    kind = next((kind for prefix, kind in KINDS if link.startswith(prefix)), "file")
    return Inherited(pid, fd, kind, socket or link)


def _sockets(pid: int) -> dict[int, str]:
    """{descriptor: its ends}. Packet, netlink, raw sockets and those of another network namespace are not in it."""
    try:
        process = psutil.Process(pid)
        look = getattr(process, "net_connections", None) or process.connections  # before psutil 6
        return {each.fd: _ends(each) for each in look(kind="all")}
    except psutil.Error:
        return {}


def _ends(connection: Any) -> str:
    protocol = PROTOCOLS.get((int(connection.family), int(connection.type)))
    if protocol is None:
        return f"UNIX {connection.laddr}".rstrip()
    if connection.status == psutil.CONN_LISTEN:
        return f"{protocol} {_address(connection.laddr)} LISTEN"
    if not connection.raddr:
        return f"{protocol} {_address(connection.laddr)}"
    state = f" {connection.status}" if re.fullmatch(r"[A-Z_0-9]+", connection.status) and protocol == "TCP" else ""
    return f"{protocol} {_address(connection.laddr)} -> {_address(connection.raddr)}{state}"


def _address(address: Any) -> str:
    return f"[{address.ip}]:{address.port}" if ":" in address.ip else f"{address.ip}:{address.port}"
