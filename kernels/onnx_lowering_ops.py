"""How the core ONNX operators become steps of a program: one function an operator, in the table LOWER_CORE.

The rule to keep: results are those of `onnx_ops`, with float32 rounded after every step. An operator's inputs here are
constants and rows, one of them at least a row; what mixes rows, or is not known before a row is, raises NotTabular.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kernels.native import IDENTITY, LOGISTIC, RELU, TANH
from kernels.onnx_graph import run_node
from kernels.onnx_lowering_steps import (FLOATS, WHOLE, binary, cast, chosen, constant_of, dense, embedded, expect,
                                         looked_up, reduce, row_of, scaled, stretched, unary)
from kernels.onnx_lowering_values import Index, Lowering, NotTabular, Row, Tensor, with_elements
from kernels.onnx_ops import Node, find_dtype
from kernels.row_ops import BINARY_CODES, SOFTMAX

Made = tuple[Tensor, ...]
Rule = Callable[[Lowering, Node, list[Tensor]], Made]

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


# ---- moving elements -------------------------------------------------------------------------------------------

def move(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    """An operator that moves elements about: run on the elements' places for a few rows, to see where they go."""
    rows = [tensor for tensor in inputs if isinstance(tensor, Row)]
    expect(len({row.dtype for row in rows}) == 1, "inputs of one type")
    n = _odd_size(inputs)
    pool: list[np.ndarray] = []
    given: list[Any] = []
    n_places = 0
    for tensor in inputs:
        if isinstance(tensor, Row):
            places = np.arange(tensor.width).reshape(tensor.elements.shape) + n_places
            rising = np.arange(n).reshape([n if i == tensor.axis else 1 for i in range(places.ndim)])
            given.append(places * n + rising)
            pool.append(tensor.elements.ravel())
            n_places += tensor.width
        else:
            given.append(tensor)
    low.spend(n_places * n // 2)  # a place is a quarter of an element, and there are two copies
    moved, = run_node(node, given)
    axis = _axis_of_rows(moved % n, n)
    places = np.take(moved // n, [0], axis=axis)
    expect((moved // n == places).all(), "rows that stay apart")
    low.spend(places.size)
    return _moved(rows, np.concatenate(pool)[places], axis),


def _concat(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    rows = [tensor for tensor in inputs if isinstance(tensor, Row)]
    _same_type(inputs)
    expect(low.one_row or len(rows) == len(inputs), "no constants beside rows, whose number is not known")
    return move(low, node, [low.constant(constant_of(tensor, "an input"), rows[0].axis)
                            if not isinstance(tensor, Row) else tensor for tensor in inputs])


def _moved(rows: list[Row], elements: np.ndarray, axis: int) -> Row:
    index = rows[0].index if len(rows) == 1 and elements.size == rows[0].width == 1 else None
    return Row(elements, axis, rows[0].dtype, index)


def _odd_size(inputs: list[Tensor]) -> int:
    """A number of rows that no shape or constant can be mistaken for."""
    numbers = {1}
    for tensor in inputs:
        if isinstance(tensor, Row):
            numbers |= {tensor.width, *tensor.elements.shape}
        elif isinstance(tensor, np.ndarray) and tensor.dtype.kind in "iu":
            numbers |= set(tensor.ravel()[:64].tolist())
    return next((prime for prime in PRIMES if all(number == 0 or number % prime for number in numbers)), 73)


def _axis_of_rows(rows: np.ndarray, n: int) -> int:
    """The axis along which the numbers of rows go from 0 to n − 1."""
    for axis, size in enumerate(rows.shape):
        rising = np.arange(n).reshape([n if i == axis else 1 for i in range(rows.ndim)])
        if size == n and (rows == rising).all():
            return axis
    raise NotTabular("expected rows that stay apart: the result is not one row after another")


def _reshape(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    if low.one_row and len(inputs) > 1:
        inputs = [row, _with_free_rows(row, constant_of(inputs[1], "the shape"))]
    if len(inputs) > 1:
        constant_of(inputs[1], "the shape")
    return move(low, node, inputs)


def _with_free_rows(row: Row, shape: np.ndarray) -> np.ndarray:
    """The shape that a model for one row asks for, its 1 for the rows replaced by a free dimension."""
    before = math.prod(row.elements.shape[:row.axis])
    wanted = np.array([row.elements.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())], np.int64)
    wanted[wanted == -1] = row.width // max(1, abs(math.prod(wanted.tolist())))
    for i in range(len(wanted)):
        if wanted[i] == 1 and math.prod(wanted[:i].tolist()) == before:
            wanted[i] = -1
            return wanted
    return shape


def _gather(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    x, chosen = inputs
    if isinstance(x, Row):
        constant_of(chosen, "the indices")
        return move(low, node, inputs)
    table, row = constant_of(x, "the table"), row_of(chosen)
    axis = node.attributes.get("axis", 0)
    expect(axis in (0, -table.ndim), "a table that is looked up by its first axis")
    if table.ndim == 1:
        return looked_up(low, table, row),
    return embedded(low, table, row),


def identity(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    """The input as it is."""
    return inputs[0],


# ---- what inputs must have in common ---------------------------------------------------------------------------

def _same_type(inputs: list[Tensor]) -> None:
    dtypes = {tensor.dtype for tensor in inputs if isinstance(tensor, (Row, np.ndarray))}
    expect(len(dtypes) == 1, "inputs of one type")


def _axis_attribute(node: Node, inputs: list[Tensor]) -> list[Tensor]:
    """Before version 7 `axis` says where the second one's shape belongs."""
    a, b = inputs
    axis = node.attributes.get("axis")
    if node.version < 7 and axis is not None and isinstance(a, Row) and isinstance(b, np.ndarray):
        b = b.reshape(b.shape + (1,) * (a.elements.ndim - axis % max(1, a.elements.ndim) - b.ndim))
    return [a, b]


# ---- functions of one number -----------------------------------------------------------------------------------

def _unary(function: str, activation: int = IDENTITY) -> Rule:
    def rule(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
        row = row_of(inputs[0])
        expect(row.dtype in FLOATS or function in ("abs", "neg", "relu") and row.dtype in WHOLE, "float or double")
        made = low.maker(row, "dense") if activation and low.is_used_once(node.inputs[0]) else None
        if made is not None and made.numbers["activation"] == IDENTITY:
            numbers = made.numbers | {"activation": activation}
            return low.row(low.add("dense", list(made.inputs), made.width, made.arrays, **numbers), row),
        return unary(low, row, function),
    return rule


def _not(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    return unary(low, row_of(inputs[0]), "not"),


def _cast(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row, dtype = row_of(inputs[0]), find_dtype(node.attributes["to"])
    index = None
    if row.index is not None and dtype != np.float32:
        index = Index(row.index.value, run_node(node, [row.index.table])[0])
    if dtype == row.dtype:
        return row,
    if object in (dtype, row.dtype):
        expect(index is not None, "strings and numbers to become each other only where a table says how")
        return _through(low, row, index),  # type: ignore[arg-type]
    return Row(cast(low, row, dtype).elements, row.axis, dtype, index or _of_bool(low, row, dtype)),


def _through(low: Lowering, row: Row, index: Index) -> Row:
    """The row as its table has it."""
    place = low.row(index.value, row, np.int64)
    return Row(looked_up(low, index.table, place).elements, row.axis, index.table.dtype, index)


def _of_bool(low: Lowering, row: Row, dtype: np.dtype) -> Index | None:
    if row.dtype == np.bool_ and row.width == 1 and dtype.kind in "iu":
        return Index(low.number(row), np.array([0, 1], dtype))
    return None


# ---- functions of two numbers ----------------------------------------------------------------------------------

def _binary(function: str) -> Rule:
    def rule(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
        _same_type(inputs)
        pair = _axis_attribute(node, inputs)
        if function == "add" and all(map(low.is_used_once, node.inputs)):
            fused = _with_bias(low, *pair)
            if fused is not None:
                return fused,
        a, b = stretched(low, pair)
        if a.dtype == object:
            expect(function == "equal", "numbers, found strings")
            return _equal_strings(low, a, b),
        return binary(low, a, b, function),
    return rule


def _with_bias(low: Lowering, a: Tensor, b: Tensor) -> Row | None:
    """The sum of a dense layer and a constant, as a layer with a bias."""
    if isinstance(a, np.ndarray):
        a, b = b, a
    if not isinstance(a, Row) or not isinstance(b, np.ndarray) or b.ndim > a.elements.ndim:
        return None
    made = low.maker(a, "dense")
    if made is None or made.arrays["bias"].any() or made.numbers["activation"] != IDENTITY:
        return None
    n, shape = len(made.arrays["bias"]), np.broadcast_shapes(a.elements.shape, b.shape)
    bias = np.broadcast_to(b, shape).reshape(-1, n) if shape == a.elements.shape else np.empty((0, n))
    if not len(bias) or (bias != bias[0]).any():
        return None
    arrays = made.arrays | {"bias": np.array(bias[0], np.float64)}
    return low.row(low.add("dense", list(made.inputs), made.width, arrays, **made.numbers), a)


def _equal_strings(low: Lowering, a: Row | np.ndarray, b: Row | np.ndarray) -> Row:
    if isinstance(a, np.ndarray):
        a, b = b, a
    row, texts = row_of(a), constant_of(b, "one of two strings that are compared").ravel()  # type: ignore[arg-type]
    flat = row.elements.ravel()
    places = np.zeros(len(texts))
    for i, text in enumerate(texts.tolist()):
        one = Row(flat[i:i + 1], 0, row.dtype)
        places[i] = low.places_of(one, [text])[0]
    return low.row(low.add("binary", [low.number(row)], row.width, {"constant": places},
                           function=BINARY_CODES["equal"]), row, np.bool_)


def _folded(function: str) -> Rule:
    """An operator of any number of inputs."""
    def rule(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
        _same_type(inputs)
        first, *others = stretched(low, inputs)
        expect(first.dtype != object, "numbers, found strings")
        for other in others:
            if isinstance(first, np.ndarray) and isinstance(other, np.ndarray):
                first = {"add": np.add, "max": np.maximum, "min": np.minimum}[function](first, other)
            else:
                first = binary(low, first, other, function)
        return first,
    return rule


def _pow(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    base, exponent = stretched(low, _axis_attribute(node, inputs))
    expect(base.dtype in FLOATS, "powers of float or double")
    if isinstance(exponent, Row):
        exponent = Row(cast(low, exponent, np.float64).elements, exponent.axis, np.dtype(np.float64))
    return binary(low, base, exponent, "pow"),


def _clip(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    bounds = [*inputs[1:], None, None][:2]
    if node.version < 11:
        bounds = [node.attributes.get("min"), node.attributes.get("max")]
    for bound, function in zip(bounds, ("max", "min"), strict=True):
        if bound is not None:
            limit = np.asarray(bound if node.version < 11 else constant_of(bound, "a bound"))
            expect(limit.size == 1, "scalars as bounds")
            row = binary(low, row, np.full(row.elements.shape, limit.astype(row.dtype).reshape(())), function)
    return row,


def _where(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    _same_type(inputs[1:])
    condition, a, b = stretched(low, inputs)
    if a.dtype == object:
        return _chosen_strings(low, condition, a, b),
    return chosen(low, condition, a, b),


def _chosen_strings(low: Lowering, condition: Row | np.ndarray, a: Row | np.ndarray, b: Row | np.ndarray) -> Row:
    """Strings of a row or constant ones: the constants take places in the vocabularies of the row's elements."""
    is_first = isinstance(a, np.ndarray)
    row, texts = row_of(b if is_first else a), constant_of(a if is_first else b, "strings that are constants or inputs")
    places, flat = np.zeros(texts.shape), row.elements.ravel()
    for i, text in enumerate(texts.ravel().tolist()):
        place, = low.places_of(Row(flat[i:i + 1], 0, row.dtype), [text])
        expect(place >= 0, "strings that the input may have")
        places.flat[i] = place
    constant = low.constant(places, row.axis)
    pair = (constant, row) if is_first else (row, constant)
    made = chosen(low, condition, *(replace(one, dtype=np.dtype(object), index=None) for one in pair))
    elements = made.elements.copy()
    elements["strings"] = np.broadcast_to(row.elements["strings"], elements.shape)
    return replace(made, elements=elements, dtype=np.dtype(object))


# ---- over an axis ----------------------------------------------------------------------------------------------

def _axes(node: Node, inputs: list[Tensor], since: int, ndim: int) -> list[int] | None:
    """`axes`, an attribute before version `since`, then the second input."""
    if node.version < since:
        axes = node.attributes.get("axes")
    else:
        axes = constant_of(inputs[1], "the axes").tolist() if len(inputs) > 1 and inputs[1] is not None else None
    return [_axis(axis, ndim) for axis in axes] if axes else None


def _axis(axis: int, ndim: int) -> int:
    expect(-ndim <= axis < ndim, f"an axis from {-ndim} to {ndim - 1}")
    return axis % ndim


def _reduction(function: str, since: int) -> Rule:
    def rule(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
        row = row_of(inputs[0])
        axes = _axes(node, inputs, since, row.elements.ndim)
        if axes is None and node.attributes.get("noop_with_empty_axes", 0):
            return row,
        if axes is None:
            axes = [i for i in range(row.elements.ndim) if i != row.axis or not low.one_row]
        expect(row.dtype in FLOATS or row.dtype in WHOLE and function != "mean", "float or double")
        return reduce(low, row, axes, function, bool(node.attributes.get("keepdims", 1))),
    return rule


def _arg(function: str) -> Rule:
    def rule(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
        row = row_of(inputs[0])
        axis = _axis(node.attributes.get("axis", 0), row.elements.ndim)
        name = f"{function}_last" if node.attributes.get("select_last_index", 0) else function
        made = reduce(low, row, [axis], name, bool(node.attributes.get("keepdims", 1)), np.int64)
        index = Index(low.number(made), np.arange(row.elements.shape[axis])) if made.width == 1 else None
        return Row(made.elements, made.axis, made.dtype, index),
    return rule


def _softmax(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    expect(row.dtype in FLOATS, "float or double")
    ndim = row.elements.ndim
    axis = _axis(node.attributes.get("axis", 1 if node.version < 13 else -1), ndim)
    return scaled(low, row, [axis] if node.version >= 13 else list(range(axis, ndim)), SOFTMAX),


def _top_k(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    """The largest or smallest alone."""
    row = row_of(inputs[0])
    k = node.attributes["k"] if node.version < 10 else constant_of(inputs[1], "k").reshape(1)[0]
    expect(k == 1, "TopK of k = 1")
    axis = _axis(node.attributes.get("axis", -1), row.elements.ndim)
    largest = node.attributes.get("largest", 1)
    return (reduce(low, row, [axis], "max" if largest else "min", True),
            reduce(low, row, [axis], "argmax" if largest else "argmin", True, np.int64))


# ---- matrices --------------------------------------------------------------------------------------------------

def _matmul(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    _same_type(inputs)
    row, weights = row_of(inputs[0], "a product of rows and a constant matrix"), constant_of(inputs[1], "the matrix")
    expect(row.dtype in FLOATS and 1 <= weights.ndim <= 2, "a product of rows and one matrix of float or double")
    if weights.ndim == 2:
        return dense(low, row, weights.T, np.zeros(weights.shape[1])),
    made = dense(low, row, weights[None], np.zeros(1))
    return with_elements(made, made.elements[..., 0]),


def _gemm(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    _same_type(inputs)
    a, b, c = [*inputs, None][:3]
    row, weights = row_of(a, "rows times a constant matrix"), constant_of(b, "the matrix")
    expect(row.dtype in FLOATS and row.elements.ndim == weights.ndim == 2 and not node.attributes.get("transA", 0),
           "a product of rows and one matrix of float or double")
    weights = weights if node.attributes.get("transB", 0) else weights.T
    alpha, beta = (np.float32(node.attributes.get(name, 1.0)).astype(np.float64) for name in ("alpha", "beta"))
    weights = weights if alpha == 1 else weights * alpha
    if isinstance(c, Row):
        made = dense(low, row, weights, np.zeros(len(weights)))
        term, other = stretched(low, [made, c])
        if beta != 1:
            other = binary(low, other, np.full(row_of(other).elements.shape, beta), "mul")
        return binary(low, term, other, "add"),
    bias = np.zeros(len(weights))
    if c is not None:
        given = constant_of(c, "the bias")
        expect(given.ndim <= 1 or len(given) == 1, "a bias that is the same for every row")
        bias = np.broadcast_to(given * beta, (1, len(weights)))[0]
    return dense(low, row, weights, bias),


# ---- the table -------------------------------------------------------------------------------------------------

LOWER_CORE: dict[str, Rule] = {
    "Abs": _unary("abs"),
    "Add": _binary("add"),
    "And": _binary("and"),
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Div": _binary("div"),
    "Equal": _binary("equal"),
    "Exp": _unary("exp"),
    "Flatten": move,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _binary("greater"),
    "GreaterOrEqual": _binary("greater_or_equal"),
    "Identity": identity,
    "Less": _binary("less"),
    "LessOrEqual": _binary("less_or_equal"),
    "Log": _unary("log"),
    "MatMul": _matmul,
    "Max": _folded("max"),
    "Min": _folded("min"),
    "Mul": _binary("mul"),
    "Neg": _unary("neg"),
    "Not": _not,
    "Or": _binary("or"),
    "Pow": _pow,
    "ReduceMax": _reduction("max", 18),
    "ReduceMean": _reduction("mean", 18),
    "ReduceSum": _reduction("sum", 13),
    "Relu": _unary("relu", RELU),
    "Reshape": _reshape,
    "Sigmoid": _unary("sigmoid", LOGISTIC),
    "Softmax": _softmax,
    "Sqrt": _unary("sqrt"),
    "Squeeze": move,
    "Sub": _binary("sub"),
    "Sum": _folded("add"),
    "Tanh": _unary("tanh", TANH),
    "TopK": _top_k,
    "Transpose": move,
    "Unsqueeze": move,
    "Where": _where,
}
