"""The core ONNX operators on numpy arrays: one function an operator, in the table CORE_OPS.

The rule to keep: an operator gives the standard's dtype, not numpy's, and no result larger than MAX_ELEMENTS; whatever
else does not fit may raise any of Python's arithmetic, lookup, type or value errors, which `onnx_graph.run_node`
makes a ModelError. numpy's floating-point warnings are off where operators run.

https://github.com/onnx/onnx/blob/main/docs/Operators.md
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.errors import ModelError

MAX_ELEMENTS = 2**30  # of one value: a small file can ask for any shape


@dataclass(frozen=True)
class Node:
    """One operator of a graph."""

    op_type: str
    domain: str                 # "" or "ai.onnx.ml"
    name: str                   # its first output's where it has none
    inputs: tuple[str, ...]     # "" = left out
    outputs: tuple[str, ...]    # "" = not wanted
    attributes: dict[str, Any]  # int, float, str, ndarray for tensors, and lists of them; those that are given
    version: int                # opset version of its domain


Arrays = tuple[np.ndarray, ...]
Op = Callable[[Node, list[Any]], Arrays]


@functools.cache
def find_dtype(data_type: int) -> np.dtype:
    """The numpy type of an ONNX one (TensorProto.DataType): object for strings. Raises ModelError for none."""
    import onnx
    if data_type == onnx.TensorProto.STRING:
        return np.dtype(object)
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    except (KeyError, TypeError):
        raise ModelError(f"expected a known type of elements, found {data_type}") from None


def check_size(shape: tuple[int, ...]) -> None:
    """Raise ModelError unless a value of this shape may be made."""
    if math.prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"expected at most {MAX_ELEMENTS} elements, found {math.prod(shape):.3g}")


def check_dtypes(arrays: list[Any]) -> None:
    """Raise ModelError unless all have one dtype."""
    for array in arrays[1:]:
        if array.dtype != arrays[0].dtype:
            raise ModelError(f"expected inputs of one type, found {arrays[0].dtype} and {array.dtype}")


def elementwise(function: Callable[[Any], Any]) -> Op:
    """An operator of one input."""
    return lambda node, inputs: (np.asarray(function(inputs[0])),)


def broadcasting(function: Callable[[Any, Any], Any]) -> Op:
    """An operator of two inputs of one dtype, each stretched to the shape of both."""
    def op(node: Node, inputs: list[Any]) -> Arrays:
        check_dtypes(inputs)
        return np.asarray(function(*_aligned(node, inputs))),
    return op


def _aligned(node: Node, inputs: list[Any]) -> list[Any]:
    """Two inputs that numpy can broadcast: before version 7 `axis` says where the second one's shape belongs."""
    a, b = inputs
    axis = node.attributes.get("axis")
    if node.version < 7 and axis is not None:
        b = b.reshape(b.shape + (1,) * (a.ndim - _axis(axis, a.ndim) - b.ndim))
    check_size(np.broadcast_shapes(a.shape, b.shape))
    return [a, b]


def folding(function: Callable[[Any, Any], Any]) -> Op:
    """An operator of one or more inputs of one dtype, all stretched to one shape."""
    def op(node: Node, inputs: list[Any]) -> Arrays:
        check_dtypes(inputs)
        check_size(np.broadcast_shapes(*(array.shape for array in inputs)))
        return np.asarray(functools.reduce(function, inputs)),
    return op


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ModelError(f"expected an axis from {-ndim} to {ndim - 1}, found {axis}")
    return axis % ndim


def _axes(node: Node, inputs: list[Any], since: int) -> list[int] | None:
    """`axes`, an attribute before version `since`, then the second input."""
    if node.version < since:
        return node.attributes.get("axes")
    return inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else None


def _divide(a: Any, b: Any) -> Any:
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)  # the standard's rounds towards zero


def _power(node: Node, inputs: list[Any]) -> Arrays:
    base, exponent = _aligned(node, inputs)
    dtype = base.dtype
    if dtype.kind in "iu" and exponent.dtype.kind in "iu" and exponent.min(initial=0) < 0:
        base = base.astype(np.float64)
    return np.asarray(np.power(base, exponent)).astype(dtype),


def _sigmoid(x: Any) -> Any:
    return (1 / (1 + np.exp(-x))).astype(x.dtype)


def _arg(function: Callable[..., Any]) -> Op:
    def op(node: Node, inputs: list[Any]) -> Arrays:
        x = inputs[0]
        axis = _axis(node.attributes.get("axis", 0), x.ndim)
        if node.attributes.get("select_last_index", 0):
            index = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            index = function(x, axis=axis)
        if node.attributes.get("keepdims", 1):
            index = np.expand_dims(index, axis)
        return np.asarray(index, np.int64),
    return op


def _reduction(function: Callable[..., Any], since: int) -> Op:
    """An operator that folds axes, which are an input since version `since`."""
    def op(node: Node, inputs: list[Any]) -> Arrays:
        x, axes = inputs[0], _axes(node, inputs, since)
        if not axes and node.attributes.get("noop_with_empty_axes", 0):
            return x,
        over = tuple(_axis(axis, x.ndim) for axis in axes) if axes else None
        result = function(x, axis=over, keepdims=bool(node.attributes.get("keepdims", 1)))
        return np.asarray(result).astype(x.dtype, copy=False),
    return op


def _max(x: Any, axis: tuple[int, ...] | None, keepdims: bool) -> Any:
    if x.size:
        return np.max(x, axis=axis, keepdims=keepdims)
    if x.dtype.kind == "b":
        lowest: Any = False
    else:
        lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    return np.max(x, axis=axis, keepdims=keepdims, initial=lowest)


def _mean(x: Any, axis: tuple[int, ...] | None, keepdims: bool) -> Any:
    """numpy's own warns where there is nothing to average."""
    wide = np.dtype(np.float64 if x.dtype.kind in "iu" else np.float32 if x.dtype.itemsize < 4 else x.dtype)
    count = math.prod(x.shape if axis is None else (x.shape[i] for i in axis))
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=wide) / np.asarray(count, wide)


def _softmax(node: Node, inputs: list[Any]) -> Arrays:
    x = inputs[0]
    axis = _axis(node.attributes.get("axis", 1 if node.version < 13 else -1), x.ndim)
    rows, over = (x, axis) if node.version >= 13 else (_flattened(x, axis), 1)
    exp = np.exp(rows - rows.max(axis=over, keepdims=True, initial=-np.inf))
    return (exp / exp.sum(axis=over, keepdims=True)).astype(x.dtype, copy=False).reshape(x.shape),


def _flattened(x: Any, axis: int) -> Any:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _flatten(node: Node, inputs: list[Any]) -> Arrays:
    x, axis = inputs[0], node.attributes.get("axis", 1)
    return _flattened(x, axis if axis == x.ndim else _axis(axis, x.ndim)),


def _cast(node: Node, inputs: list[Any]) -> Arrays:
    x, dtype = inputs[0], find_dtype(node.attributes["to"])
    if dtype == object:
        return _strings(x),
    if x.dtype == object:
        x = _numbers(x, dtype)
    if dtype.name == "float8_e8m0fnu":
        import onnx
        return onnx.numpy_helper.to_float8e8m0(x, bool(node.attributes.get("saturate", 1)),
                                               node.attributes.get("round_mode", "up")),
    if dtype.name.startswith("float8") and node.attributes.get("saturate", 1):
        import onnx
        return np.asarray(onnx.numpy_helper.saturate_cast(x, dtype)),
    return x.astype(dtype),


def _strings(x: Any) -> np.ndarray:
    """Numbers as text, with the digits that ONNX Runtime gives."""
    if x.dtype == object:
        return x
    spell: Callable[[Any], str] = str
    if x.dtype.kind == "b":
        spell = lambda item: str(int(item))  # noqa: E731
    elif x.dtype.kind not in "iu":
        spell = lambda item: _FLOATS.get(text := format(float(item), ".8g"), text)  # noqa: E731
    out = np.empty(x.size, object)
    out[:] = [spell(item) for item in x.reshape(-1).tolist()]
    return out.reshape(x.shape)


_FLOATS = {"nan": "NaN", "inf": "INF", "-inf": "-INF"}


def _numbers(x: Any, dtype: np.dtype) -> np.ndarray:
    """Text as numbers: float64, or int64 for an integer type."""
    parse = int if dtype.kind in "iu" else float
    if any("_" in item for item in x.flat):  # Python's own: "1_000"
        raise ModelError("expected strings that are numbers")
    return np.array([parse(item) for item in x.flat], np.int64 if parse is int else np.float64).reshape(x.shape)


def _clip(node: Node, inputs: list[Any]) -> Arrays:
    x = inputs[0]
    if node.version < 11:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    else:
        low, high = [*inputs[1:], None, None][:2]
    if x.dtype.kind == "f":  # a bound left out is the type's: an infinity becomes its largest number
        limits = np.finfo(x.dtype)
        low, high = limits.min if low is None else low, limits.max if high is None else high
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype))
    if high is not None:
        x = np.minimum(x, np.asarray(high, x.dtype))
    if x.shape != inputs[0].shape:
        raise ModelError("expected scalars as bounds")
    return np.asarray(x),


def _concat(node: Node, inputs: list[Any]) -> Arrays:
    check_dtypes(inputs)
    axis = _axis(node.attributes.get("axis", 1), inputs[0].ndim)
    check_size((sum(array.size for array in inputs),))
    return np.concatenate(inputs, axis=axis),


def _constant(node: Node, inputs: list[Any]) -> Arrays:
    if len(node.attributes) != 1:
        raise ModelError(f"expected one value, found {len(node.attributes)}")
    (name, value), = node.attributes.items()
    dtypes: dict[str, Any] = {"float": np.float32, "floats": np.float32, "int": np.int64, "ints": np.int64,
                              "string": object, "strings": object}
    return value if name == "value" else np.array(value, dtypes[name.removeprefix("value_")]),


def _gather(node: Node, inputs: list[Any]) -> Arrays:
    x, index = inputs
    axis = _axis(node.attributes.get("axis", 0), x.ndim)
    check_size(x.shape[:axis] + index.shape + x.shape[axis + 1:])
    return np.asarray(np.take(x, index, axis=axis), x.dtype),


def _gemm(node: Node, inputs: list[Any]) -> Arrays:
    """alpha · A · B + beta · C"""
    check_dtypes([array for array in inputs if array is not None])
    a, b, c = [*inputs, None][:3]
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    if a.ndim != 2 or b.ndim != 2:
        raise ModelError(f"expected two matrices, found {a.ndim} and {b.ndim} dimensions")
    check_size((len(a), b.shape[1]))
    out = np.matmul(a, b)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if alpha != 1:
        out = out * alpha
    if c is not None:
        out = out + np.broadcast_to(c if beta == 1 else c * beta, out.shape)
    return out.astype(a.dtype, copy=False),


def _matmul(node: Node, inputs: list[Any]) -> Arrays:
    check_dtypes(inputs)
    a, b = inputs
    check_size((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *a.shape[-2:-1], *b.shape[-1:] * (b.ndim > 1)))
    return np.asarray(np.matmul(a, b)),


def _reshape(node: Node, inputs: list[Any]) -> Arrays:
    x, shape = inputs[0], node.attributes["shape"] if node.version < 5 else inputs[1].tolist()
    if not node.attributes.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    if min(shape, default=0) < -1:
        raise ModelError(f"expected dimensions from -1, found {min(shape)}")
    if -1 in shape and not x.size:  # numpy refuses to guess; the others' product may still say it
        return x.reshape([0 if n == -1 else n for n in shape]),
    return x.reshape(shape),


def _squeeze(node: Node, inputs: list[Any]) -> Arrays:
    x, axes = inputs[0], _axes(node, inputs, 13)
    return x.squeeze(None if axes is None else tuple(_axis(axis, x.ndim) for axis in axes)),


def _unsqueeze(node: Node, inputs: list[Any]) -> Arrays:
    axes = _axes(node, inputs, 13) or []
    return np.expand_dims(inputs[0], tuple(axes)),


def _top_k(node: Node, inputs: list[Any]) -> Arrays:
    """Values and indices of the k largest or smallest; the lower index first among equals."""
    x = inputs[0]
    k = node.attributes["k"] if node.version < 10 else int(inputs[1].reshape(1)[0])
    axis = _axis(node.attributes.get("axis", -1), x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ModelError(f"expected k from 0 to {x.shape[axis]}, found {k}")
    if node.attributes.get("largest", 1):  # backwards twice: descending, and still stable
        index = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        index = np.argsort(x, axis=axis, kind="stable")
    index = np.take(index, np.arange(k), axis=axis)
    return np.take_along_axis(x, index, axis), index.astype(np.int64, copy=False)


def _transpose(node: Node, inputs: list[Any]) -> Arrays:
    return inputs[0].transpose(node.attributes.get("perm")),


def _where(node: Node, inputs: list[Any]) -> Arrays:
    condition, a, b = inputs
    check_dtypes([a, b])
    check_size(np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition, a, b),


def _equal(a: Any, b: Any) -> Any:
    return np.asarray(np.equal(a, b), bool)


CORE_OPS: dict[str, Op] = {
    "Abs": elementwise(np.abs),
    "Add": broadcasting(np.add),
    "And": broadcasting(np.logical_and),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Div": broadcasting(_divide),
    "Equal": broadcasting(_equal),
    "Exp": elementwise(np.exp),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": broadcasting(np.greater),
    "GreaterOrEqual": broadcasting(np.greater_equal),
    "Identity": lambda node, inputs: (inputs[0],),
    "Less": broadcasting(np.less),
    "LessOrEqual": broadcasting(np.less_equal),
    "Log": elementwise(np.log),
    "MatMul": _matmul,
    "Max": folding(np.maximum),
    "Min": folding(np.minimum),
    "Mul": broadcasting(np.multiply),
    "Neg": elementwise(np.negative),
    "Not": elementwise(np.logical_not),
    "Or": broadcasting(np.logical_or),
    "Pow": _power,
    "ReduceMax": _reduction(_max, 18),
    "ReduceMean": _reduction(_mean, 18),
    "ReduceSum": _reduction(np.sum, 13),
    "Relu": elementwise(lambda x: np.maximum(x, x.dtype.type(0))),
    "Reshape": _reshape,
    "Sigmoid": elementwise(_sigmoid),
    "Softmax": _softmax,
    "Sqrt": elementwise(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": broadcasting(np.subtract),
    "Sum": folding(np.add),
    "Tanh": elementwise(np.tanh),
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
