"""Eight of everything as one value that numba code can hold: what hides the latency of walks and searches.

The rule to keep: what happens to one of the eight depends on that one alone, so that a processor works on all at
once. An operation is written once, for lane k, and repeated by its intrinsic: written out in Python, the same would
take numba twice as long to compile.

Addresses are plain integers, `intp`; nothing is aligned and nothing is checked: the caller has done both.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

N = 8
eight_ints = types.UniTuple(types.intp, N)
eight_floats = types.UniTuple(types.float64, N)

_i16, _i64, _f32, _f64 = ir.IntType(16), ir.IntType(64), ir.FloatType(), ir.DoubleType()
RANK_BITS, COLUMN_BITS = 16, 24  # of a node, as tree_kernels.py has it: rank, column × 2, distance of the left child
COLUMN_BYTES = 16  # of a column of eight rows


def _load(builder, address, llvm_type):
    loaded = builder.load(builder.inttoptr(address, llvm_type.as_pointer()))
    loaded.align = 1
    return loaded


def _store(builder, value, address):
    stored = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    stored.align = 1


def _plus(builder, address, n):
    return builder.add(address, _i64(n))


def _lanes(builder, eight):
    return cgutils.unpack_tuple(builder, eight, N)


@intrinsic
def same_eight(typingctx, value):
    """The integer, eight times."""
    def codegen(context, builder, signature, args):
        return cgutils.pack_array(builder, [args[0]] * N)
    return eight_ints(types.intp), codegen


@intrinsic
def load_eight(typingctx, address):
    """Eight int64 side by side."""
    def codegen(context, builder, signature, args):
        return cgutils.pack_array(builder, [_load(builder, _plus(builder, args[0], 8 * k), _i64) for k in range(N)])
    return eight_ints(types.intp), codegen


@intrinsic
def store_eight(typingctx, address, eight):
    """Write eight int64 side by side."""
    def codegen(context, builder, signature, args):
        for k, lane in enumerate(_lanes(builder, args[1])):
            _store(builder, lane, _plus(builder, args[0], 8 * k))
        return context.get_dummy_value()
    return types.void(types.intp, eight_ints), codegen


@intrinsic
def sum_eight(typingctx, eight):
    """The sum of the eight."""
    def codegen(context, builder, signature, args):
        first, *others = _lanes(builder, args[0])
        for lane in others:
            first = builder.add(first, lane)
        return first
    return types.intp(eight_ints), codegen


@intrinsic
def step_eight(typingctx, nodes, columns, lane_bytes, eight):
    """The child that each of eight walks goes to from its node; walk k has its columns k · lane_bytes on.

    child = node + distance of the left child + (column > rank); a leaf leads to itself.
    """
    def codegen(context, builder, signature, args):
        nodes, columns, lane_bytes, eight = args
        children = []
        for k, node in enumerate(_lanes(builder, eight)):
            bits = _load(builder, builder.add(nodes, builder.shl(node, _i64(3))), _i64)
            place = builder.and_(builder.lshr(bits, _i64(RANK_BITS)), _i64((1 << COLUMN_BITS) - 1))
            at = builder.add(columns, builder.mul(place, _i64(COLUMN_BYTES // 2)))
            column = _load(builder, builder.add(at, builder.mul(lane_bytes, _i64(k))), _i16)
            goes_right = builder.icmp_unsigned(">", column, builder.trunc(bits, _i16))
            child = builder.add(node, builder.lshr(bits, _i64(RANK_BITS + COLUMN_BITS)))
            children.append(builder.add(child, builder.zext(goes_right, _i64)))
        return cgutils.pack_array(builder, children)
    return eight_ints(types.intp, types.intp, types.intp, eight_ints), codegen


@intrinsic
def load_features(typingctx, row, offsets, rounds):
    """Eight float64 of a row, at the eight int64 `offsets` in bytes; rounded to float32 where it `rounds`."""
    def codegen(context, builder, signature, args):
        row, offsets, rounds = args
        values = []
        for k in range(N):
            offset = _load(builder, _plus(builder, offsets, 8 * k), _i64)
            value = _load(builder, builder.add(row, offset), _f64)
            values.append(builder.select(rounds, builder.fpext(builder.fptrunc(value, _f32), _f64), value))
        return cgutils.pack_array(builder, values)
    return eight_floats(types.intp, types.intp, types.boolean), codegen


@intrinsic
def halve_eight(typingctx, places, values, half):
    """Eight binary searches halve what is left: a place moves on by `half` bytes where the float64 before is below.

    LLVM would make branches of conditional moves, and nobody can predict those; so a mask passes through nothing.
    """
    def codegen(context, builder, signature, args):
        half, opaque = args[2], ir.InlineAsm(ir.FunctionType(_i64, [_i64]), "", "=r,0")
        moved = []
        for place, value in zip(_lanes(builder, args[0]), _lanes(builder, args[1]), strict=True):
            edge = _load(builder, builder.sub(builder.add(place, half), _i64(8)), _f64)
            below = builder.sext(builder.fcmp_ordered("<", edge, value), _i64)
            moved.append(builder.add(place, builder.and_(half, builder.call(opaque, [below]))))
        return cgutils.pack_array(builder, moved)
    return eight_ints(eight_ints, eight_floats, types.intp), codegen


@intrinsic
def store_columns(typingctx, columns, places, edges, values, zeros, missing):
    """Write eight columns: how many edges (8 bytes each) lie between the addresses at `edges` and the `places`.

    Where a value is NaN, or no farther from zero than the float64 at `zeros` says, it is the int64 at `missing`.
    """
    def codegen(context, builder, signature, args):
        columns, places, edges, values, zeros, missing = args
        fabs = builder.module.declare_intrinsic("llvm.fabs", [_f64])
        for k, (place, value) in enumerate(zip(_lanes(builder, places), _lanes(builder, values), strict=True)):
            first, zero, other = (_load(builder, _plus(builder, at, 8 * k), kind)
                                  for at, kind in ((edges, _i64), (zeros, _f64), (missing, _i64)))
            rank = builder.lshr(builder.sub(place, first), _i64(3))
            is_missing = builder.fcmp_unordered("<=", builder.call(fabs, [value]), zero)
            column = builder.trunc(builder.select(is_missing, other, rank), _i16)
            _store(builder, column, _plus(builder, columns, COLUMN_BYTES * k))
        return context.get_dummy_value()
    return types.void(types.intp, eight_ints, types.intp, eight_floats, types.intp, types.intp), codegen


def _pick(builder, table, place):
    return _load(builder, builder.add(table, builder.shl(place, _i64(3))), _f64)


@intrinsic
def add_picked(typingctx, out, table, eight):
    """Add to eight float64 side by side those at eight places of a table, each to its own."""
    def codegen(context, builder, signature, args):
        out, table, eight = args
        for k, place in enumerate(_lanes(builder, eight)):
            at = _plus(builder, out, 8 * k)
            _store(builder, builder.fadd(_load(builder, at, _f64), _pick(builder, table, place)), at)
        return context.get_dummy_value()
    return types.void(types.intp, types.intp, eight_ints), codegen


@intrinsic
def sum_picked(typingctx, total, table, eight):
    """Add the float64 at eight places of a table to a total, one after the other."""
    def codegen(context, builder, signature, args):
        total, table, eight = args
        for place in _lanes(builder, eight):
            total = builder.fadd(total, _pick(builder, table, place))
        return total
    return types.float64(types.float64, types.intp, eight_ints), codegen
