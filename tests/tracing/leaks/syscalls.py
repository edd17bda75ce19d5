"""System calls that Python has no function for, by number (include/uapi/asm-generic/unistd.h, x86 syscall_64.tbl)."""

import ctypes
import os
import platform

NUMBERS = {  # name: (x86-64, others)
    "clone": (56, 220), "sendmmsg": (307, 269), "tee": (276, 77), "vmsplice": (278, 75),
    "process_vm_writev": (311, 271), "finit_module": (313, 273), "seccomp": (317, 277), "bpf": (321, 280), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "close_range": (436, 436), "pidfd_getfd": (438, 438), "ptrace": (101, 117),
    "mount": (165, 40), "unshare": (272, 97), "request_key": (249, 218), "io_setup": (206, 0), "io_submit": (209, 2),
}
COLUMN = 0 if platform.machine() == "x86_64" else 1
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def syscall(name: str, *arguments: object) -> int:
    """Raises OSError as Python's own functions do."""
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name][COLUMN]), *given)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("vector", ctypes.POINTER(iovec)),
                ("vector_length", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
                ("flags", ctypes.c_int)]


class mmsghdr(ctypes.Structure):
    _fields_ = [("header", msghdr), ("sent", ctypes.c_uint)]


def vector(data: bytes) -> tuple[iovec, ctypes.Array]:
    """An iovec of these bytes, and the buffer that must live as long."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return iovec(ctypes.addressof(buffer), len(data)), buffer
