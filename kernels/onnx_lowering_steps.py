"""What the rules of ONNX operators are made of: steps over rows, and rows stretched to one shape.

The rule to keep: a step that makes float32 rounds; what is no float32 yet, an input, is rounded before it is used.
"""

import math

import numpy as np

from kernels.gguf import F32, F64
from kernels.native import IDENTITY
from kernels.onnx_lowering_values import Index, Lowering, NotTabular, Row, Tensor, as_strings, with_elements
from kernels.quants import BLOCK, quantize
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, UNARY_CODES

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
WHOLE = (np.dtype(np.int64), np.dtype(np.int32))


def expect(condition: object, what: str) -> None:
    """Raise NotTabular unless the condition holds."""
    if not condition:
        raise NotTabular(f"expected {what}")


def row_of(tensor: Tensor, what: str = "an input that depends on the row") -> Row:
    """The tensor, if it is a row."""
    if not isinstance(tensor, Row):
        raise NotTabular(f"expected {what}")
    return tensor


def constant_of(tensor: Tensor, what: str) -> np.ndarray:
    """The tensor, if it is a constant."""
    if not isinstance(tensor, np.ndarray):
        raise NotTabular(f"expected {what} to be constant")
    return tensor


def stretched(low: Lowering, inputs: list[Tensor]) -> list[Row | np.ndarray]:
    """All inputs stretched to one shape, in which the rows lie along one axis; constants have 1 there."""
    rows = [tensor for tensor in inputs if isinstance(tensor, Row)]
    from_end = {row.axis - row.elements.ndim for row in rows}
    expect(len(from_end) == 1, "inputs whose rows lie along the same axis")
    shapes = [tensor.elements.shape if isinstance(tensor, Row) else constant_of(tensor, "an input").shape
              for tensor in inputs]
    shape = np.broadcast_shapes(*shapes)
    axis = len(shape) + from_end.pop()
    expect(shape[axis] == 1, "constants that are the same for every row")
    low.spend(math.prod(shape) * len(inputs))
    return [with_elements(tensor, np.broadcast_to(tensor.elements, shape), axis) if isinstance(tensor, Row)
            else np.broadcast_to(constant_of(tensor, "an input"), shape) for tensor in inputs]


def unary(low: Lowering, row: Row, function: str, dtype: np.dtype | type | None = None) -> Row:
    """A step "unary" over a row."""
    made = np.dtype(dtype or row.dtype)
    rounds = int(made == np.float32 and function not in EXACT)
    return low.row(low.add("unary", [low.number(row)], row.width, function=UNARY_CODES[function], rounds=rounds),
                   row, made)


EXACT = ("abs", "neg", "relu", "float32", "trunc", "not", "bool", "positive")  # of float32 they give float32


def cast(low: Lowering, row: Row, dtype: np.dtype | type) -> Row:
    """Numbers as another type of numbers."""
    dtype = np.dtype(dtype)
    expect(dtype in (*FLOATS, *WHOLE, np.bool_), "a cast to float, double, int64, int32, bool or string")
    expect(row.dtype != object, "numbers, found strings")
    if dtype == row.dtype:
        return row
    if dtype == np.bool_:
        return unary(low, row, "bool", dtype)
    if dtype in WHOLE and row.dtype in FLOATS:
        return unary(low, row, "trunc", dtype)
    value = low.number(row)
    if dtype == np.float32 and row.dtype != np.bool_ and not _fits_f32(row.dtype):
        value = low.round_f32(value)
    elif row.dtype != np.float32:
        return Row(row.elements, row.axis, dtype)
    return low.row(value, row, dtype)


def _fits_f32(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" and dtype.itemsize < 4


SWAPPED = {"add": "add", "mul": "mul", "max": "max", "min": "min", "and": "and", "or": "or", "equal": "equal",
           "greater": "less", "less": "greater", "greater_or_equal": "less_or_equal",
           "less_or_equal": "greater_or_equal"}
COMPARING = {"equal", "greater", "greater_or_equal", "less", "less_or_equal", "and", "or"}


def binary(low: Lowering, a: Row | np.ndarray, b: Row | np.ndarray, function: str) -> Row:
    """A step "binary" over two inputs of one shape and type."""
    if isinstance(a, np.ndarray):
        row = row_of(b)
        if function in SWAPPED:
            return binary(low, row, a, SWAPPED[function])
        if function == "sub":  # c − x = −x + c, to the bit
            return binary(low, unary(low, row, "neg"), a, "add")
        return binary(low, low.constant(a, row.axis), row, function)
    dtype = np.dtype(np.bool_) if function in COMPARING else a.dtype
    if function == "div" and a.dtype.kind in "iu":
        function = "whole_div"
    if function == "pow" and isinstance(b, np.ndarray) and (b == 2).all():
        function, b = "mul", a
    inputs = [low.number(one) for one in (a, b) if isinstance(one, Row)]
    arrays = {"constant": np.asarray(b, np.float64).ravel()} if isinstance(b, np.ndarray) else {}
    value = low.add("binary", inputs, a.width, arrays, function=BINARY_CODES[function],
                    rounds=int(dtype == np.float32 and function not in ("max", "min")))
    return low.row(value, a, dtype)


def chosen(low: Lowering, condition: Row | np.ndarray | bool, a: Row | np.ndarray, b: Row | np.ndarray) -> Row:
    """The elements of a where the condition holds, else those of b: of one shape and type, one of them all a row."""
    like = next(one for one in (condition, a, b) if isinstance(one, Row))
    if isinstance(condition, np.ndarray) or isinstance(condition, bool):
        a, b = (one if isinstance(one, Row) else low.constant(one, like.axis) for one in (a, b))
        return with_elements(a, np.where(np.broadcast_to(condition, a.elements.shape), a.elements, b.elements))
    a, b = (one if isinstance(one, Row) else low.constant(one, like.axis) for one in (a, b))
    inputs = [low.number(condition), low.number(a), low.number(b)]
    return low.row(low.add("where", inputs, a.width), like, a.dtype)


def _last(row: Row, axes: list[int]) -> tuple[Row, int]:
    """(the row with these axes behind all others, how many elements they have together)."""
    expect(row.axis not in axes, "an operation within each row, found one over the rows")
    others = [i for i in range(row.elements.ndim) if i not in axes]
    order = others + axes
    return (with_elements(row, row.elements.transpose(order), order.index(row.axis)),
            math.prod(row.elements.shape[i] for i in axes))


def reduce(low: Lowering, row: Row, axes: list[int], function: str, keepdims: bool,
           dtype: np.dtype | type | None = None) -> Row:
    """A step "reduce" over these axes."""
    moved, group = _last(row, axes)
    shape = tuple(n for i, n in enumerate(row.shape) if i not in axes)
    if keepdims:
        shape = tuple(1 if i in axes else n for i, n in enumerate(row.shape))
    made = np.dtype(dtype or row.dtype)
    expect(group > 0, "axes that are not empty")
    value = low.add("reduce", [low.number(moved)], row.width // group, function=REDUCE_CODES[function], group=group,
                    rounds=int(made == np.float32))
    return low.row(value, row, made, shape)


def scaled(low: Lowering, row: Row, axes: list[int], function: int) -> Row:
    """A step "scale" over these axes."""
    moved, group = _last(row, axes)
    value = low.add("scale", [low.number(moved)], row.width, function=function, group=group, rounds=row.rounds)
    others = [i for i in range(row.elements.ndim) if i not in axes]
    back = np.argsort(others + axes)
    made = low.row(value, moved)
    return Row(made.elements.transpose(back), row.axis, row.dtype)


def looked_up(low: Lowering, table: np.ndarray, row: Row) -> Row:
    """table[row] of a table (k) of numbers or strings; a place outside it is no number."""
    expect(len(table) > 0, "a table that is not empty")
    index = None
    if row.width == 1:
        index = Index(low.number(row), table)
        if row.index is not None and _are_places(row.index.table, len(table)):
            index = Index(row.index.value, table[row.index.table.astype(np.int64)])
    if table.dtype != object:
        return low.row(lookup(low, row, np.arange(len(table)), table), row, table.dtype, index=index)
    strings = list(dict.fromkeys(table.tolist()))
    place = {text: i for i, text in enumerate(strings)}
    places = np.array([place[text] for text in table.tolist()])
    found = low.row(lookup(low, row, np.arange(len(table)), places), row, object, index=index)
    return as_strings(found, low.add_vocabulary(strings))


def _are_places(numbers: np.ndarray, n: int) -> bool:
    return numbers.dtype.kind in "iu" and bool((numbers >= 0).all() and (numbers < n).all())


def lookup(low: Lowering, row: Row, keys: np.ndarray, values: np.ndarray, of_nan: float = math.nan,
           of_others: float = math.nan) -> int:
    """A step "lookup"; of equal keys the first counts."""
    keys, first = np.unique(np.asarray(keys, np.float64), return_index=True)
    low.spend(len(keys))
    if len(keys) and math.isnan(of_others):
        low.set_example(row, float(keys[0]))
    table = np.append(np.asarray(values, np.float64)[first], [of_nan, of_others])
    return low.add("lookup", [low.number(row)], row.width, {"keys": keys, "values": table})


def embedded(low: Lowering, table: np.ndarray, row: Row) -> Row:
    """Rows of a matrix (k, d) by index: a one-hot vector times the matrix."""
    expect(table.ndim == 2 and table.dtype in FLOATS and table.size > 0, "a table of numbers of one or two dimensions")
    k = len(table)
    keys = np.arange(k)
    low.poisons.append(lookup(low, row, keys, keys))
    hot = low.add("onehot", [low.number(row)], row.width * k, {
        "keys": keys.astype(np.float64), "places": np.append(keys, [-1, -1])}, group=k)
    wide = low.row(hot, row, table.dtype, (*row.shape, k))
    return dense(low, wide, table.T, np.zeros(table.shape[1]))


def dense(low: Lowering, row: Row, weights: np.ndarray, bias: np.ndarray) -> Row:
    """row (…, n_in) · weights (n_out, n_in)ᵀ + bias (n_out): a step "dense", in the arithmetic of the row's type."""
    n_out, n_in = weights.shape
    expect(n_out > 0 and n_in > 0 and row.elements.shape[-1:] == (n_in,) and row.axis < row.elements.ndim - 1,
           f"rows of {n_in} numbers")
    low.spend(n_out * (n_in + BLOCK))
    padded = np.zeros((n_out, -(-n_in // BLOCK) * BLOCK))
    padded[:, :n_in] = weights
    with np.errstate(over="ignore"):
        tensor_type = F32 if (padded.astype(np.float32) == padded).all() else F64
    rounds_inputs = row.rounds and tensor_type == F32  # computed in float32
    value = low.add("dense", [low.number(row, rounded=not rounds_inputs)], row.width // n_in * n_out, {
        "weights": quantize(padded, tensor_type), "bias": np.asarray(bias, np.float64)},
        n_in=n_in, tensor_type=tensor_type, activation=IDENTITY, rounds=row.rounds)
    return low.row(value, row, shape=(*row.shape[:-1], n_out))
