"""The C library as numba functions call it: sockets, epoll, memory, clocks, and atomic counters.

The rule to keep: addresses are plain `intp` numbers, and whoever makes one (`array.ctypes.data`)
proves the length first; nothing here checks. Every call may block only when its caller holds no GIL.

Linux only (epoll); man pages: recv(2), send(2), accept4(2), epoll_ctl(2), epoll_wait(2).
"""

import platform

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from kernels.compiled import inner
from server.memory import address_of

recv = types.ExternalFunction("recv", types.intp(types.int32, types.intp, types.intp, types.int32))
send = types.ExternalFunction("send", types.intp(types.int32, types.intp, types.intp, types.int32))
accept4 = types.ExternalFunction("accept4", types.int32(types.int32, types.intp, types.intp, types.int32))
close = types.ExternalFunction("close", types.int32(types.int32))
shutdown = types.ExternalFunction("shutdown", types.int32(types.int32, types.int32))
read = types.ExternalFunction("read", types.intp(types.int32, types.intp, types.intp))
write = types.ExternalFunction("write", types.intp(types.int32, types.intp, types.intp))
epoll_ctl = types.ExternalFunction(
    "epoll_ctl", types.int32(types.int32, types.int32, types.int32, types.intp))
epoll_wait = types.ExternalFunction(
    "epoll_wait", types.int32(types.int32, types.intp, types.int32, types.int32))
clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
usleep = types.ExternalFunction("usleep", types.int32(types.uint32))
malloc = types.ExternalFunction("malloc", types.intp(types.intp))
free = types.ExternalFunction("free", types.void(types.intp))
memcpy = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))
memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))

MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
SHUT_WR = 1
EINTR, EAGAIN = 4, 11
EPOLL_CTL_ADD, EPOLL_CTL_DEL = 1, 2
EPOLLIN = 1
SOCK_CLOEXEC = 0x80000
CLOCK_MONOTONIC = 1

# struct epoll_event {uint32 events; uint64 data}: packed on x86-64 only. As int32 columns: events, data.
EVENT_INTS = 3 if platform.machine() == "x86_64" else 4
EVENT_DATA = 1 if platform.machine() == "x86_64" else 2


@intrinsic
def errno(typing_context):
    """The thread's error number."""
    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32).as_pointer(), [])
        location = cgutils.get_or_insert_function(builder.module, kind, "__errno_location")
        return builder.load(builder.call(location, []))
    return types.int32(), generate


@intrinsic
def atomic_add(typing_context, array, index, value):
    """array[index] += value for int64 arrays that threads share, in one order for all; gives the value before."""
    def generate(context, builder, signature, args):
        place = builder.gep(make_array(array)(context, builder, args[0]).data, [args[1]])
        return builder.atomic_rmw("add", place, args[2], "seq_cst")
    return types.int64(array, types.intp, types.int64), generate


def view_of(dtype):
    """A function that makes the array that a `layout.SPAN` stands for: its elements are of this dtype."""
    element = from_dtype(np.dtype(dtype))
    array_type = types.Array(element, 1, "C")

    @intrinsic
    def view(typing_context, span):
        def generate(context, builder, signature, args):
            fields = builder.bitcast(args[0], ir.IntType(64).as_pointer())
            address = builder.load(fields)
            length = builder.load(builder.gep(fields, [ir.Constant(ir.IntType(32), 1)]))
            array = make_array(array_type)(context, builder)
            size = context.get_constant(types.intp, np.dtype(dtype).itemsize)
            populate_array(array, data=builder.inttoptr(address, context.get_data_type(element).as_pointer()),
                           shape=[length], strides=[size], itemsize=size, meminfo=None)
            return array._getvalue()
        return array_type(span), generate
    return view


@inner
def now_ns(clock, timespec):
    """Nanoseconds of a clock; `timespec`: (2,) int64 of scratch. Answered by the vDSO, without a system call."""
    clock_gettime(clock, address_of(timespec))
    return timespec[0] * 1_000_000_000 + timespec[1]
