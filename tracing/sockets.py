"""Socket addresses as strace prints them, in arguments and in descriptor annotations.

The rule to keep: an address that cannot be read is UNREADABLE, which is never taken for a harmless one.

Source: strace(1), --decode-fds; what a family's address holds: unix(7), ip(7), ipv6(7).
"""

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple
from tracing.syntax import text_of


FAMILY = re.compile(r"\{sa_family=(\w+)")
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
HOST = re.compile(r'inet_addr\("([^"]*)"\)|inet_pton\(AF_INET6, "([^"]*)"')
UNIX_PATH = re.compile(r'sun_path=(@?)("(?:[^"\\]|\\.)*")')
ENDS = re.compile(r"(\[[0-9a-f:.%\w]*\]|[\d.]+):(\d+)")
# TCP:[127.0.0.1:80->127.0.0.1:51000]  UDPv6:[[::]:53]  UNIX-STREAM:[12->13,"/run/x"]  NETLINK:[ROUTE:99]  TCP:[4242]
ANNOTATION = re.compile(r"([A-Z][A-Za-z/]*?|socket)(v6)?(-\w+)?:\[(.*)\]$", re.DOTALL)
NOT_SOCKETS = {"anon_inode", "pipe"}
PROTOCOL_FAMILY = {"UNIX": "AF_UNIX", "NETLINK": "AF_NETLINK", "socket": ""}


class Address(NamedTuple):
    """Where a socket is bound, connected or sent to."""

    family: str  # "AF_INET", "AF_INET6", "AF_UNIX", …; "AF_UNSPEC" ends an association
    host: str = ""  # IP address; path for AF_UNIX, with "@" before an abstract name
    port: int = 0

    def __str__(self) -> str:
        if self.family == "AF_INET":
            return f"{self.host}:{self.port}"
        if self.family == "AF_INET6":
            return f"[{self.host}]:{self.port}"
        return f"unix:{self.host}" if self.family == "AF_UNIX" else self.family

    @property
    def is_ip(self) -> bool:
        return self.family in ("AF_INET", "AF_INET6")

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The host; a v4-mapped one as the IPv4 address that the kernel uses."""
        host = ipaddress.ip_address(self.host.partition("%")[0])
        return getattr(host, "ipv4_mapped", None) or host

    @property
    def is_local(self) -> bool:
        """Whether the kernel delivers to this machine: loopback, and what a connect to "any" means."""
        return self.is_ip and (self.ip.is_loopback or self.ip.is_unspecified)


UNREADABLE = Address("unreadable")


def address_of(argument: str) -> Address | None:
    """`{sa_family=AF_INET, …}` → the address; None for NULL; UNREADABLE for a pointer or what is unknown."""
    if argument in ("NULL", "0"):
        return None
    family = FAMILY.match(argument)
    if family is None:
        return UNREADABLE
    if family[1] in ("AF_INET", "AF_INET6"):
        port, host = PORT.search(argument), HOST.search(argument)
        return _ip_address(family[1], host[1] or host[2], int(port[1])) if port and host else UNREADABLE
    if family[1] == "AF_UNIX":
        path = UNIX_PATH.search(argument)
        return Address("AF_UNIX", path[1] + (text_of(path[2]) or "") if path else "")
    return Address(family[1])


def _ip_address(family: str, host: str | None, port: int) -> Address:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return UNREADABLE
    return Address(family, host or "", port)


class Ends(NamedTuple):
    """A socket as an annotation shows it."""

    family: str  # "" where strace could not tell
    protocol: str  # "TCP", "UDP", "UNIX", …
    local: Address | None
    peer: Address | None


@lru_cache(4096)  # a connection has one annotation and many calls
def ends_of(annotation: str) -> Ends | None:
    """A socket's annotation → its ends as far as they are shown; None when it is no socket."""
    found = ANNOTATION.match(annotation)
    if found is None or found[1] in NOT_SOCKETS:
        return None
    protocol, v6, _, inside = found.groups()
    family = PROTOCOL_FAMILY.get(protocol, "AF_INET6" if v6 else "AF_INET")
    if family not in ("AF_INET", "AF_INET6"):
        return Ends(family, protocol, None, None)
    local, _, peer = inside.partition("->")
    return Ends(family, protocol, _end(family, local), _end(family, peer))


def _end(family: str, text: str) -> Address | None:
    found = ENDS.fullmatch(text)
    return _ip_address(family, found[1].strip("[]"), int(found[2])) if found else None


def end_of(text: str) -> Address | None:
    """`127.0.0.1:80` or `[::1]:80`."""
    return _end("AF_INET6" if text.startswith("[") else "AF_INET", text)
