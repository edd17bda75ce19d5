"""A name server for an isolated process: it remembers which names are asked for, and sends them all nowhere.

Without it only the address of a name server would be seen, not whom a program wanted to reach. The addresses are those
that documentation uses (192.0.2.0/24), one a name, so that a later connect to one tells the name.

The rule to keep: it runs only where `isolation.enter` was called: it takes the place of this machine's name servers.

Source: RFC 1035 section 4.1 (messages), RFC 5737 (the addresses), resolv.conf(5).
"""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import NamedTuple, Self

from tracing import isolation
from tracing.errors import TraceError

PORT = 53
FIRST, LAST = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.254")
HEADER = struct.Struct(">6H")  # id, flags, then how many questions, answers, authorities, additionals
ANSWER = struct.Struct(">HHHIH4s")  # pointer to the question's name, type, class, seconds to live, length, address
QUESTION_AT = 0xC000 | HEADER.size
TYPE_A, CLASS_IN = 1, 1
IS_ANSWER, RECURSION, NO_SUCH_NAME = 0x8000, 0x0180, 3
REVERSE = ".arpa"  # names for addresses: there are none
DEFAULT_SERVER = IPv4Address("127.0.0.1")  # what the resolver asks when resolv.conf names none


class Question(NamedTuple):
    name: str
    type: int
    raw: bytes  # as it came


def servers(resolv_conf: str) -> list[IPv4Address]:
    """The IPv4 name servers that programs here ask."""
    found: dict[IPv4Address, None] = {}
    for named in re.findall(r"^\s*nameserver\s+(\S+)", resolv_conf, re.MULTILINE):
        with contextlib.suppress(AddressValueError):  # one of IPv6, or none at all
            found[IPv4Address(named)] = None
    return list(found) or [DEFAULT_SERVER]


def question_of(message: bytes) -> Question | None:
    """What a query asks; None where it is none."""
    if len(message) < HEADER.size or HEADER.unpack_from(message)[1] & IS_ANSWER:
        return None
    labels, at = [], HEADER.size
    while at < len(message) and message[at]:
        labels.append(message[at + 1:at + 1 + message[at]].decode("latin-1"))
        at += 1 + message[at]
    end = at + 5  # the empty label, type and class
    if end > len(message):
        return None
    return Question(".".join(labels).lower(), int.from_bytes(message[at + 1:at + 3], "big"), message[HEADER.size:end])


def answer(message: bytes, question: Question, address: IPv4Address | None) -> bytes:
    """The response: this address for a question of type A, nothing for others; None: no such name."""
    given = address is not None and question.type == TYPE_A
    flags = IS_ANSWER | RECURSION | (NO_SUCH_NAME if address is None else 0)
    head = HEADER.pack(int.from_bytes(message[:2], "big"), flags, 1, int(given), 0, 0)
    body = ANSWER.pack(QUESTION_AT, TYPE_A, CLASS_IN, 0, 4, address.packed) if address is not None and given else b""
    return head + question.raw + body


class NameServer:
    """Answers until the end of its `with`. `names` has each name that was asked for, and its address."""

    def __init__(self, addresses: Iterable[IPv4Address]):
        self.names: dict[str, IPv4Address | None] = {}
        self._sockets = [self._bind(address, i) for i, address in enumerate(addresses)]
        self._threads = [threading.Thread(target=self._serve, args=[one], daemon=True) for one in self._sockets]

    @classmethod
    def of_this_machine(cls) -> Self:
        """In the place of those that /etc/resolv.conf names."""
        if not isolation.is_isolated():
            raise TraceError("a name server of our own is for an isolated process only")
        conf = Path("/etc/resolv.conf")
        return cls(servers(conf.read_text(errors="replace") if conf.exists() else ""))

    def _bind(self, address: IPv4Address, number: int) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if not address.is_loopback:
                isolation.own(address, number)
            one.bind((str(address), PORT))
        except OSError as error:
            one.close()
            raise TraceError(f"cannot take the place of name server {address}: {error.strerror}") from None
        return one

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.sendto(b"", one.getsockname())
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _serve(self, one: socket.socket) -> None:
        while True:
            message, client = one.recvfrom(4096)
            if client == one.getsockname():  # from `__exit__`
                return
            question = question_of(message)
            if question is not None:
                one.sendto(answer(message, question, self._address_for(question.name)), client)

    def _address_for(self, name: str) -> IPv4Address | None:
        if name not in self.names:
            following = FIRST + sum(address is not None for address in self.names.values())
            self.names[name] = None if name.endswith(REVERSE) or following > LAST else following
        return self.names[name]

    def forget(self) -> None:
        self.names.clear()
