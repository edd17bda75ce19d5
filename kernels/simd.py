"""The vector vocabulary of the kernels: eight float64 lanes as a value that numba code can hold.

The rule to keep: every operation rounds once, as written. No flags that let LLVM reassociate or fuse a
multiply with an add, so that numpy gives the same bits. All of it is portable vector IR; LLVM picks the
instructions of the processor (two AVX2 registers, or one of AVX-512, hold the eight lanes).

Addresses are plain integers, `intp`; nothing is aligned and nothing is checked: the caller has done both.

https://numba.readthedocs.io/en/stable/extending/low-level.html, https://llvm.org/docs/LangRef.html
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f32, _f64 = ir.FloatType(), ir.DoubleType()


def _vector(element: ir.Type, n: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, n)


def _splat(element: ir.Type, value: int | float) -> ir.Constant:
    return ir.Constant(_vector(element), [value] * LANES)


class _F64x8(types.Type):
    def __init__(self) -> None:
        super().__init__(name="f64x8")


f64x8 = _F64x8()


@register_model(_F64x8)
class _F64x8Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _vector(_f64))


FLOAT_LANES = 16


class _F32x16(types.Type):
    def __init__(self) -> None:
        super().__init__(name="f32x16")


f32x16 = _F32x16()


@register_model(_F32x16)
class _F32x16Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _vector(_f32, FLOAT_LANES))


def _load(builder, address, llvm_type):
    loaded = builder.load(builder.inttoptr(address, llvm_type.as_pointer()))
    loaded.align = 1
    return loaded


def _broadcast(builder, scalar):
    undefined = ir.Constant(_vector(scalar.type), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(_i32, 0))
    return builder.shuffle_vector(one, undefined, _splat(_i32, 0))


def _extend_f16(builder, half, wide, constant):
    """The float64 of a finite half, given as its 16 bits widened to the 64-bit integer type `wide`.

    A normal half keeps its fraction and has 1023 − 15 added to its exponent. A subnormal one is read as 2^−14
    plus its fraction, and 2^−14 is taken away, which is exact. Needs no F16C and no library call, and no
    float64 here is subnormal: multiplying those is slow, and the scales of small weights are subnormal
    halves.
    """
    real = _vector(_f64) if isinstance(wide, ir.VectorType) else _f64
    magnitude = builder.and_(half, constant(_i64, 0x7FFF))
    sign = builder.shl(builder.and_(half, constant(_i64, 0x8000)), constant(_i64, 63 - 15))
    fraction = builder.shl(magnitude, constant(_i64, 52 - 10))
    normal = builder.add(fraction, constant(_i64, (1023 - 15) << 52))
    above = builder.bitcast(builder.add(fraction, constant(_i64, (1023 - 14) << 52)), real)
    subnormal = builder.bitcast(builder.fsub(above, constant(_f64, 2.0**-14)), wide)
    is_subnormal = builder.icmp_unsigned("<", magnitude, constant(_i64, 0x0400))
    return builder.bitcast(builder.or_(builder.select(is_subnormal, subnormal, normal), sign), real)


@intrinsic
def record(typingctx, address, dtype):
    """The record of a numpy structured dtype that lies at the address; its fields are read by name."""
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))
    return dtype.dtype(types.intp, dtype), codegen


@intrinsic
def load(typingctx, address):
    """One float64."""
    def codegen(context, builder, signature, args):
        return _load(builder, args[0], _f64)
    return types.float64(types.intp), codegen


@intrinsic
def store(typingctx, address, value):
    """Write one float64."""
    def codegen(context, builder, signature, args):
        stored = builder.store(args[1], builder.inttoptr(args[0], _f64.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(types.intp, types.float64), codegen


def _load_integer(llvm_type: ir.IntType, what: str):
    """An intrinsic that loads an unsigned integer, widened to `intp`."""
    @intrinsic
    def load_integer(typingctx, address):
        def codegen(context, builder, signature, args):
            loaded = _load(builder, args[0], llvm_type)
            return loaded if llvm_type == _i64 else builder.zext(loaded, _i64)
        return types.intp(types.intp), codegen
    load_integer.__doc__ = what
    return load_integer


load_u8 = _load_integer(_i8, "One byte.")
load_u16 = _load_integer(_i16, "One uint16.")
load_i64 = _load_integer(_i64, "One int64.")


@intrinsic
def load_one_f32(typingctx, address):
    """One float32, widened."""
    def codegen(context, builder, signature, args):
        return builder.fpext(_load(builder, args[0], _f32), _f64)
    return types.float64(types.intp), codegen


@intrinsic
def store_u16(typingctx, address, value):
    """Write the low 16 bits."""
    def codegen(context, builder, signature, args):
        stored = builder.store(builder.trunc(args[1], _i16), builder.inttoptr(args[0], _i16.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(types.intp, types.intp), codegen


@intrinsic
def store_i64(typingctx, address, value):
    """Write one int64."""
    def codegen(context, builder, signature, args):
        stored = builder.store(args[1], builder.inttoptr(args[0], _i64.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(types.intp, types.intp), codegen


@intrinsic
def shift_right(typingctx, value, n):
    """The bits moved n places down, zeros above."""
    def codegen(context, builder, signature, args):
        return builder.lshr(args[0], args[1])
    return types.intp(types.intp, types.intp), codegen


@intrinsic
def round_f32(typingctx, value):
    """The nearest float32, widened."""
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.fptrunc(args[0], _f32), _f64)
    return types.float64(types.float64), codegen


@intrinsic
def round_f32x8(typingctx, v):
    """The nearest float32 of each lane, widened."""
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.fptrunc(args[0], _vector(_f32)), _vector(_f64))
    return f64x8(f64x8), codegen


@intrinsic
def store_f64(typingctx, address, v):
    """Write eight float64."""
    def codegen(context, builder, signature, args):
        stored = builder.store(args[1], builder.inttoptr(args[0], _vector(_f64).as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(types.intp, f64x8), codegen


def caller_of(result, *arguments):
    """A function that calls C code of this signature through its address: `call(address, (…))`."""
    @intrinsic
    def call(typingctx, address, given):
        def codegen(context, builder, signature, args):
            kind = ir.FunctionType(context.get_value_type(result), [context.get_value_type(a) for a in arguments])
            values = cgutils.unpack_tuple(builder, args[1])
            cast = [context.cast(builder, *each) for each in zip(values, given.types, arguments)]
            return builder.call(builder.inttoptr(args[0], kind.as_pointer()), cast)
        return result(types.intp, given), codegen
    return call


@intrinsic
def zero(typingctx):
    """Eight zeros."""
    def codegen(context, builder, signature, args):
        return _splat(_f64, 0.0)
    return f64x8(), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b, lane by lane."""
    def codegen(context, builder, signature, args):
        return builder.fadd(*args)
    return f64x8(f64x8, f64x8), codegen


@intrinsic
def mul(typingctx, a, b):
    """a · b, lane by lane, rounded before anything is added to it."""
    def codegen(context, builder, signature, args):
        return builder.fmul(*args)
    return f64x8(f64x8, f64x8), codegen


@intrinsic
def sum_lanes(typingctx, v):
    """((v0 + v4) + (v2 + v6)) + ((v1 + v5) + (v3 + v7)): halves on halves, the one order of every sum."""
    def codegen(context, builder, signature, args):
        v = args[0]
        for n in (4, 2, 1):
            low, high = (ir.Constant(_vector(_i32, n), list(range(first, first + n))) for first in (0, n))
            v = builder.fadd(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))
        return builder.extract_element(v, ir.Constant(_i32, 0))
    return types.float64(f64x8), codegen


@intrinsic
def load_f64(typingctx, address):
    """Eight float64."""
    def codegen(context, builder, signature, args):
        return _load(builder, args[0], _vector(_f64))
    return f64x8(types.intp), codegen


@intrinsic
def load_first_f64(typingctx, address, n):
    """The first n of eight float64, zeros behind them; what is not of the n is not read."""
    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _vector(_f64).as_pointer())
        wanted = builder.icmp_signed("<", ir.Constant(_vector(_i64), list(range(LANES))), _broadcast(builder, args[1]))
        kind = ir.FunctionType(_vector(_f64), [pointer.type, _i32, wanted.type, _vector(_f64)])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.load.v8f64.p0")
        return builder.call(function, [pointer, _i32(1), wanted, _splat(_f64, 0.0)])
    return f64x8(types.intp, types.intp), codegen


@intrinsic
def load_f32(typingctx, address):
    """Eight float32, widened."""
    def codegen(context, builder, signature, args):
        return builder.fpext(_load(builder, args[0], _vector(_f32)), _vector(_f64))
    return f64x8(types.intp), codegen


@intrinsic
def load_f16(typingctx, address):
    """Eight finite halves, widened."""
    def codegen(context, builder, signature, args):
        wide = _vector(_i64)
        return _extend_f16(builder, builder.zext(_load(builder, args[0], _vector(_i16)), wide), wide, _splat)
    return f64x8(types.intp), codegen


@intrinsic
def load_scale(typingctx, address):
    """One finite half, a block's scale, in all eight lanes."""
    def codegen(context, builder, signature, args):
        scale = _extend_f16(builder, builder.zext(_load(builder, args[0], _i16), _i64), _i64, ir.Constant)
        return _broadcast(builder, scale)
    return f64x8(types.intp), codegen


@intrinsic
def load_i8(typingctx, address):
    """Eight int8, as float64."""
    def codegen(context, builder, signature, args):
        return builder.sitofp(_load(builder, args[0], _vector(_i8)), _vector(_f64))
    return f64x8(types.intp), codegen


@intrinsic
def load_low_nibbles(typingctx, address):
    """The low four bits of eight bytes, less 8, as float64."""
    def codegen(context, builder, signature, args):
        packed = _load(builder, args[0], _vector(_i8))
        return _nibbles_as_f64(builder, builder.and_(packed, _splat(_i8, 15)))
    return f64x8(types.intp), codegen


@intrinsic
def load_high_nibbles(typingctx, address):
    """The high four bits of eight bytes, less 8, as float64."""
    def codegen(context, builder, signature, args):
        packed = _load(builder, args[0], _vector(_i8))
        return _nibbles_as_f64(builder, builder.lshr(packed, _splat(_i8, 4)))
    return f64x8(types.intp), codegen


def _nibbles_as_f64(builder, nibbles):
    return builder.sitofp(builder.sub(nibbles, _splat(_i8, 8)), _vector(_f64))


@intrinsic
def keep_scalar(typingctx):
    """Keep LLVM from making vectors of the loop around this: it emits nothing, and nothing moves across it.

    Where Intel's SVML is installed, numba lets LLVM turn a loop over `exp` into calls of a vector
    `exp` that rounds differently from the C library's.
    """
    def codegen(context, builder, signature, args):
        barrier = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
        builder.call(barrier, [])
        return context.get_dummy_value()
    return types.void(), codegen


# ---- sixteen float32 ---------------------------------------------------------------------------------------

@intrinsic
def zero_f32x16(typingctx):
    """Sixteen zeros."""
    def codegen(context, builder, signature, args):
        return ir.Constant(_vector(_f32, FLOAT_LANES), [0.0] * FLOAT_LANES)
    return f32x16(), codegen


@intrinsic
def load_f32x16(typingctx, address):
    """Sixteen float32."""
    def codegen(context, builder, signature, args):
        return _load(builder, args[0], _vector(_f32, FLOAT_LANES))
    return f32x16(types.intp), codegen


@intrinsic
def add_products(typingctx, acc, a, b):
    """acc + a · b, lane by lane, each product rounded before it is added."""
    def codegen(context, builder, signature, args):
        return builder.fadd(args[0], builder.fmul(args[1], args[2]))
    return f32x16(f32x16, f32x16, f32x16), codegen


@intrinsic
def add_f32x16(typingctx, a, b):
    """a + b, lane by lane."""
    def codegen(context, builder, signature, args):
        return builder.fadd(*args)
    return f32x16(f32x16, f32x16), codegen


@intrinsic
def relu_f32x16(typingctx, v):
    """0 in the lanes that are not above it; NaN stays NaN."""
    def codegen(context, builder, signature, args):
        nothing = ir.Constant(_vector(_f32, FLOAT_LANES), [0.0] * FLOAT_LANES)
        return builder.select(builder.fcmp_ordered("<=", args[0], nothing), nothing, args[0])
    return f32x16(f32x16), codegen


@intrinsic
def spread_f32(typingctx, address):
    """One float32 in all sixteen lanes."""
    def codegen(context, builder, signature, args):
        undefined = ir.Constant(_vector(_f32, FLOAT_LANES), ir.Undefined)
        one = builder.insert_element(undefined, _load(builder, args[0], _f32), ir.Constant(_i32, 0))
        return builder.shuffle_vector(one, undefined, ir.Constant(_vector(_i32, FLOAT_LANES), [0] * FLOAT_LANES))
    return f32x16(types.intp), codegen


@intrinsic
def lane_f32x16(typingctx, v, lane):
    """One lane, widened."""
    def codegen(context, builder, signature, args):
        return builder.fpext(builder.extract_element(args[0], args[1]), _f64)
    return types.float64(f32x16, types.intp), codegen


@intrinsic
def widen_f32x16(typingctx, v, address):
    """Write sixteen float32 as float64."""
    def codegen(context, builder, signature, args):
        wide = builder.fpext(args[0], _vector(_f64, FLOAT_LANES))
        stored = builder.store(wide, builder.inttoptr(args[1], _vector(_f64, FLOAT_LANES).as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(f32x16, types.intp), codegen


@intrinsic
def narrow_f64(typingctx, source, target):
    """Write the eight float64 at `source` as float32 to `target`."""
    def codegen(context, builder, signature, args):
        narrow = builder.fptrunc(_load(builder, args[0], _vector(_f64)), _vector(_f32))
        stored = builder.store(narrow, builder.inttoptr(args[1], _vector(_f32).as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(types.intp, types.intp), codegen


@intrinsic
def store_one_f32(typingctx, address, value):
    """Write one float64 as float32."""
    def codegen(context, builder, signature, args):
        stored = builder.store(builder.fptrunc(args[1], _f32), builder.inttoptr(args[0], _f32.as_pointer()))
        stored.align = 1
        return context.get_dummy_value()
    return types.void(types.intp, types.float64), codegen
