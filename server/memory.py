"""Bytes in arrays as native code copies and compares them, many at a time; and words, and the bits of doubles.

The rule to keep: each of these is LLVM code that is written where it is called. A function of its own would cost a
first start about 50 ms, and every caller that it is compiled into some more. Places are the caller's to prove; with
NUMBA_BOUNDSCHECK they are checked here, as numba checks those of arrays.

Arrays are (n,) uint8, contiguous.
"""

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_i1, _i8, _i32, _i64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_bytes = _i8.as_pointer()


def _place(context, builder, array_type, array, at, size):
    """A pointer to array[at]; size: how many bytes will be used from there on."""
    view = make_array(array_type)(context, builder, array)
    if context.enable_boundscheck:
        bound = builder.add(view.nitems, _i64(1))
        for place in (at, builder.add(at, size)):
            cgutils.do_boundscheck(context, builder, place, bound)
    return builder.gep(view.data, [at])


def _whole(context, builder, signature, args, i):
    """The array that is argument i → a pointer to its first byte, its size."""
    view = make_array(signature.args[i])(context, builder, args[i])
    return view.data, view.nitems


def _part(context, builder, signature, args, i):
    """The part of the array that is argument i which the SPAN after it names, as `_whole`."""
    fields = builder.bitcast(args[i + 1], _i64.as_pointer())
    at, size = (builder.load(builder.gep(fields, [_i32(field)])) for field in range(2))
    return _place(context, builder, signature.args[i], args[i], at, size), size


def _put(text):
    def generate(context, builder, signature, args):
        source, size = text(context, builder, signature, args, 2)
        target = _place(context, builder, signature.args[0], args[0], args[1], size)
        cgutils.raw_memcpy(builder, target, source, size, 1)
        return builder.add(args[1], size)
    return generate


@intrinsic
def put(typing_context, out, at, text):
    """out[at:] = text → the place after it."""
    return types.intp(out, types.intp, text), _put(_whole)


@intrinsic
def put_span(typing_context, out, at, text, span):
    """`put` of the part of `text` that a `layout.SPAN` names."""
    return types.intp(out, types.intp, text, span), _put(_part)


def _given(context, builder, signature, args, i):
    """An address and a size, as `_whole`."""
    return builder.inttoptr(args[i], _bytes), args[i + 1]


@intrinsic
def put_from(typing_context, out, at, address, size):
    """`put` of the bytes at an address."""
    return types.intp(out, types.intp, types.intp, types.intp), _put(_given)


def _compare(text, fits):
    def generate(context, builder, signature, args):
        buf, at, end = args[:3]
        wanted, size = text(context, builder, signature, args, 3)
        before, may_be = builder.block, fits(builder, builder.sub(end, at), size)
        with builder.if_then(may_be):
            found = _place(context, builder, signature.args[0], buf, at, size)
            kind = ir.FunctionType(_i32, [_bytes, _bytes, _i64])
            memcmp = cgutils.get_or_insert_function(builder.module, kind, "memcmp")
            same = builder.icmp_signed("==", builder.call(memcmp, [found, wanted, size]), _i32(0))
            after = builder.block
        result = builder.phi(_i1)
        result.add_incoming(_i1(0), before)
        result.add_incoming(same, after)
        return result
    return generate


def _is_all(builder, room, size):
    return builder.icmp_signed("==", room, size)


def _is_front(builder, room, size):
    return builder.icmp_signed(">=", room, size)


@intrinsic
def equals(typing_context, buf, at, end, text):
    """Whether buf[at:end] is exactly `text`."""
    return types.boolean(buf, types.intp, types.intp, text), _compare(_whole, _is_all)


@intrinsic
def equals_span(typing_context, buf, at, end, text, span):
    """`equals` with the part of `text` that a `layout.SPAN` names."""
    return types.boolean(buf, types.intp, types.intp, text, span), _compare(_part, _is_all)


@intrinsic
def starts_with(typing_context, buf, at, end, text):
    """Whether buf[at:end] begins with `text`."""
    return types.boolean(buf, types.intp, types.intp, text), _compare(_whole, _is_front)


@intrinsic
def starts_with_span(typing_context, buf, at, end, text, span):
    """`starts_with` with the part of `text` that a `layout.SPAN` names."""
    return types.boolean(buf, types.intp, types.intp, text, span), _compare(_part, _is_front)


@intrinsic
def address_of(typing_context, array):
    """Where an array's first element is; what `array.ctypes.data` gives in ten times the time to compile."""
    def generate(context, builder, signature, args):
        return builder.ptrtoint(make_array(array)(context, builder, args[0]).data, _i64)
    return types.intp(array), generate


def _in_order(builder, word):
    return word if sys.byteorder == "little" else builder.bswap(word)


@intrinsic
def word_at(typing_context, buf, at):
    """The eight bytes buf[at:at + 8] as a uint64, the first the lowest."""
    def generate(context, builder, signature, args):
        place = _place(context, builder, buf, args[0], args[1], _i64(8))
        word = builder.load(builder.bitcast(place, _i64.as_pointer()))
        word.align = 1
        return _in_order(builder, word)
    return types.uint64(buf, types.intp), generate


@intrinsic
def put_word(typing_context, out, at, word):
    """out[at:at + 8] = the bytes of a uint64, the lowest first."""
    def generate(context, builder, signature, args):
        place = _place(context, builder, out, args[0], args[1], _i64(8))
        stored = builder.store(_in_order(builder, args[2]), builder.bitcast(place, _i64.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(out, types.intp, types.uint64), generate


@intrinsic
def put_byte(typing_context, out, at, byte):
    """out[at] = the lowest byte of a number. numba's own way tests for a place before the start of the array."""
    def generate(context, builder, signature, args):
        builder.store(builder.trunc(args[2], _i8), _place(context, builder, out, args[0], args[1], _i64(1)))
        return context.get_dummy_value()
    return types.void(out, types.intp, types.uint64), generate


@intrinsic
def bits_of(typing_context, value):
    """The bits of a float64 as a uint64."""
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], _i64)
    return types.uint64(types.float64), generate


@intrinsic
def double_of(typing_context, bits):
    """The float64 of these bits, a uint64."""
    if bits != types.uint64:
        return None

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())
    return types.float64(types.uint64), generate
