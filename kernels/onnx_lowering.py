"""ONNX models whose outputs are functions of each row become tabular models: a program of native steps.

The rule to keep: the graph is executed once with symbols in the place of rows; an operator either becomes steps that
give what `onnx_graph.Graph.run` gives, or the graph is refused with the operator's name and why (NotTabular).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels import onnx_graph
from kernels.errors import ModelError
from kernels.missing import HIDING, missing_features
from kernels.onnx_graph import Graph, Node, TensorInfo, run_node
from kernels.onnx_lowering_ml import LOWER_ML
from kernels.onnx_lowering_ops import LOWER_CORE
from kernels.onnx_lowering_steps import lookup
from kernels.onnx_lowering_values import ELEMENT, Index, Lowering, Maps, NotTabular, Row, Tensor
from kernels.program import Builder, Program
from kernels.step import Step
from kernels.tabular import Labels, Signature, TabularModel

LOWER = {"": LOWER_CORE, "ai.onnx.ml": LOWER_ML}

MIN_FEATURES = 1 << 12    # features that any model may have; a larger file may have as many as it has bytes
MAX_CATEGORIES = 1 << 22  # strings of all features together

# Steps that may make a finite number of one that is not, beside those of `missing.HIDING`.
ALWAYS_LOSSY = {"lookup", "onehot", "svm_votes", "where"}

UNFIT = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Lowered:
    """A graph as a tabular model is made from it."""

    program: Program
    signature: Signature
    model_type: str  # linear, mlp, trees, svm or pipeline
    example: np.ndarray  # (n_features) float64: a row that has an answer, as far as tables say what is known

    @property
    def takes_missing_in(self) -> np.ndarray:
        """Where a row may hold NaN for a missing value: (n_features) bool."""
        return missing_features(self.program)


def read(path: str | Path, threads: int = 1, native: bool = True) -> TabularModel:
    """The tabular model in the ONNX file at `path`.

    Raises ModelError as `onnx_graph.read` does, and for a graph whose outputs are not functions of each row.
    """
    path = Path(path)
    graph = onnx_graph.read(path)
    try:
        lowered = lower(graph)
        return TabularModel(graph.metadata.get("name") or path.stem, str(graph.model_version or 1), lowered.model_type,
                            lowered.signature, lowered.program, path=path, size_bytes=graph.size_bytes,
                            takes_missing_in=lowered.takes_missing_in, threads=threads, native=native)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None


def lower(graph: Graph) -> Lowered:
    """The program of a graph; raises NotTabular, naming the operator and why, where there is none."""
    features = read_features(graph)
    low = _executed(graph, features, None)
    if low.n_open:  # now that every string is known which a feature is compared with, its places are
        low = _executed(graph, features, low)
    answer = _Answer(low, graph)
    signature = Signature(features.n, features.names, answer.classes, answer.task, _categories(features, low), -1.0)
    example = np.ones(features.n)
    example[list(low.examples)] = list(low.examples.values())
    return Lowered(answer.program, signature, _model_type(graph, answer.program), example)


# ---- inputs ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Features:
    """The columns of the rows."""

    n: int
    names: tuple[str, ...] | None
    inputs: list[tuple[TensorInfo, tuple[int, ...]]]  # with the tensor's shape, 1 for the rows
    one_row: bool


def read_features(graph: Graph) -> Features:
    if not graph.inputs:
        raise NotTabular("expected an input")
    given = _given_names(graph)
    inputs = [(info, _inner_shape(info, given if len(graph.inputs) == 1 else None)) for info in graph.inputs]
    n = sum(math.prod(shape) for _, shape in inputs)
    most = max(MIN_FEATURES, graph.size_bytes)
    if not 1 <= n <= most:
        raise NotTabular(f"expected from 1 to {most} features in a file of this size")
    one_row = any(info.shape is not None and info.shape[0] == 1 for info, _ in inputs)
    names = _names(inputs)
    if given is not None and len(given) == n:
        names = given
    return Features(n, names, inputs, one_row)


def _given_names(graph: Graph) -> tuple[str, ...] | None:
    """The metadata key feature_names."""
    if "feature_names" not in graph.metadata:
        return None
    try:
        names = json.loads(graph.metadata["feature_names"])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError("expected a JSON list of strings in the metadata key feature_names")
    return tuple(names)


def _inner_shape(info: TensorInfo, given: tuple[str, ...] | None) -> tuple[int, ...]:
    """The shape of an input with 1 for the rows, which lie along its first axis."""
    place = f"input {info.name!r:.80}"
    if info.kind != onnx_graph.TENSOR or info.optional or not info.shape or info.shape[0] not in (None, 1):
        raise NotTabular(f"{place}: expected a tensor whose first dimension is free, or 1: the rows")
    if info.dtype not in (np.float32, np.float64) and info.dtype.kind not in "iubO":
        raise NotTabular(f"{place}: expected float, double, integers, bool or strings, found {info.dtype}")
    inner = info.shape[1:]
    if inner == (None,) and given is not None:
        inner = (len(given),)
    if not all(inner):
        raise NotTabular(f"{place}: expected a fixed number of features: export the model with its shape, or list "
                         "their names in the metadata key feature_names")
    return (1, *inner)  # type: ignore[arg-type]


def _names(inputs: list[tuple[TensorInfo, tuple[int, ...]]]) -> tuple[str, ...] | None:
    if len(inputs) == 1 and math.prod(inputs[0][1]) > 1:
        return None
    names: list[str] = []
    for info, shape in inputs:
        n = math.prod(shape)
        names += [info.name] if n == 1 else [f"{info.name}_{i}" for i in range(n)]
    return tuple(names)


def _rows_of(low: Lowering, features: Features) -> dict[str, Tensor]:
    rows: dict[str, Tensor] = {}
    first = n_strings = 0
    for info, shape in features.inputs:
        elements, n = np.zeros(shape, ELEMENT), math.prod(shape)
        elements["column"], elements["strings"] = np.arange(first, first + n).reshape(shape), -1
        if info.dtype == object:
            elements["strings"] = np.arange(n_strings, n_strings + n).reshape(shape)
            n_strings += n
        rows[info.name] = Row(elements, 0, info.dtype)
        first += n
    return rows


def _categories(features: Features, low: Lowering) -> tuple[tuple[str, ...] | None, ...] | None:
    """For each feature the strings that it takes, one tuple for all that share a vocabulary."""
    if not low.n_open:
        return None
    tuples = {id(one): tuple(one) for one in low.vocabularies[:low.n_open]}
    of_strings = iter(low.vocabularies)
    categories: list[tuple[str, ...] | None] = []
    for info, shape in features.inputs:
        for _ in range(math.prod(shape)):
            categories.append(tuples[id(next(of_strings))] if info.dtype == object else None)
    if sum(len(texts or ()) for texts in categories) > MAX_CATEGORIES:
        raise NotTabular(f"expected at most {MAX_CATEGORIES:,} strings of all features together")
    return tuple(categories)


# ---- nodes -----------------------------------------------------------------------------------------------------

def _executed(graph: Graph, features: Features, before: Lowering | None) -> Lowering:
    n_strings = sum(math.prod(shape) for info, shape in features.inputs if info.dtype == object)
    low = Lowering(features.n, graph.size_bytes, n_strings, features.one_row)
    if before is not None:
        low.vocabularies = before.vocabularies[:n_strings]
    low.tensors = {**graph.constants, **_rows_of(low, features)}
    low.n_uses.update(name for node in graph.nodes for name in node.inputs)
    low.n_uses.update(info.name for info in graph.outputs)
    for node in graph.nodes:
        inputs = [low.tensors[name] if name else None for name in node.inputs]
        for name, tensor in zip(node.outputs, _lowered(low, node, inputs), strict=False):
            low.tensors[name] = tensor
    return low


def _lowered(low: Lowering, node: Node, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    place = f"operator {node.op_type:.80} (node {node.name!r:.80})"
    try:
        if all(tensor is None or isinstance(tensor, np.ndarray) for tensor in inputs):
            low.spend(_folded_size(node, [tensor for tensor in inputs if isinstance(tensor, np.ndarray)]))
            return run_node(node, inputs)
        if any(isinstance(tensor, Maps) for tensor in inputs):
            raise NotTabular("expected tensors, found maps")
        if node.op_type not in LOWER[node.domain]:
            raise NotTabular("expected an operator that a program can compute")
        with np.errstate(all="ignore"):
            return LOWER[node.domain][node.op_type](low, node, inputs)
    except ModelError as error:
        raise NotTabular(f"{place}: {error}") from None
    except UNFIT as error:
        raise NotTabular(f"{place}: expected inputs that fit the operator: {str(error):.200}") from None


def _folded_size(node: Node, constants: list[np.ndarray]) -> int:
    """At least as many elements as an operator makes of constants."""
    sizes = [array.size for array in constants]
    if node.op_type in ("Gather", "MatMul", "Gemm", "OneHotEncoder", "ArrayFeatureExtractor", "FeatureVectorizer"):
        return math.prod(max(1, n) for n in sizes) + sum(len(one) for one in node.attributes.values()
                                                         if isinstance(one, list)) * max(sizes, default=0)
    try:
        return max(sum(sizes), math.prod(np.broadcast_shapes(*(array.shape for array in constants))))
    except (RuntimeError, ValueError):  # RuntimeError: numpy broadcasts up to 32 dimensions
        return sum(sizes)


# ---- the answer ------------------------------------------------------------------------------------------------

class _Answer:
    """What the graph's outputs say of a row: a class and its probabilities, or numbers."""

    def __init__(self, low: Lowering, graph: Graph) -> None:
        self.low = low
        labels: list[Row] = []
        numbers: list[Row] = []
        maps: list[Maps] = []
        for info in graph.outputs:
            tensor = low.tensors[info.name]
            if isinstance(tensor, Maps):
                maps.append(tensor)
            elif isinstance(tensor, Row):
                (numbers if tensor.dtype.kind == "f" else labels).append(tensor)
            else:
                raise NotTabular(f"output {info.name!r:.80}: expected a function of the row, found a constant")
        if len(maps) + len(numbers) > 1 or len(labels) > 1:
            raise NotTabular("expected one output of numbers, or a label and its probabilities: "
                             f"found {len(graph.outputs)} outputs")
        self.classes: Labels | None = None
        self.task = "regression"
        prediction = probabilities = 0
        if not labels and maps:
            raise NotTabular("expected a label beside the output of ZipMap")
        if labels and (maps or numbers or labels[0].index is not None or labels[0].dtype == object):
            self.task = "classification"
            scores = maps[0].scores if maps else numbers[0] if numbers else None
            prediction = self._label(labels[0], maps[0].labels if maps else None)
            if scores is not None and scores.width == len(self.classes or ()):  # else scores of pairs of classes
                probabilities = self._made(scores)
        else:
            prediction = self._made((numbers or labels)[0])
        checked = {prediction, *low.poisons} | _origins(low.builder, prediction, self.task == "classification")
        self.program = low.builder.finish(prediction, probabilities, tuple(checked))

    def _made(self, row: Row) -> int:
        """The value that holds the row; the row of inputs itself through a step, as a program's answer must be."""
        value = self.low.number(row)
        if value == 0:
            width = self.low.builder.widths[0]
            return self.low.add("move", [0], width, {"runs": np.array([[0, 0, width]]), "constants": np.empty(0)})
        return value

    def _label(self, row: Row, mapped: list | None) -> int:
        """The value of the class's index; sets the classes, which are those of ZipMap in its order if there is one."""
        if row.width != 1:
            raise NotTabular(f"expected one label a row, found {row.width}")
        index = row.index
        if index is None:
            if mapped is None or row.dtype == object or not all(type(one) is int for one in mapped):
                raise NotTabular("expected labels that are looked up in a table")
            index = Index(self.low.number(row), np.array(mapped))
            keys = index.table.astype(np.float64)
        else:
            keys = np.arange(float(len(index.table)))
        table = [_label(one) for one in index.table.tolist()]
        classes = list(dict.fromkeys(table if mapped is None else [_label(one) for one in mapped]))
        self._check_labels(classes)
        self.classes = tuple(classes)
        place = {label: i for i, label in enumerate(classes)}
        values = np.array([place.get(label, math.nan) for label in table])
        if (values == keys).all() and self._is_bounded(index.value, len(table)):
            return index.value
        one = self.low.row(index.value, row, np.int64, (None, 1))
        return lookup(self.low, one, keys, values)

    def _check_labels(self, classes: list) -> None:
        kinds = {type(one) for one in classes}
        if len(kinds) != 1 or not kinds <= {str, int}:
            raise NotTabular("expected labels that are all strings, or all integers")

    def _is_bounded(self, value: int, n: int) -> bool:
        """Whether a step makes whole numbers from 0 to n − 1 alone."""
        step = self.low.builder.steps[value - 1] if value else None
        if step is None:
            return False
        if step.op == "reduce":
            return step.numbers["function"] in HIDING["reduce"] and step.numbers["group"] <= n
        if step.op == "svm_votes":
            return step.numbers["n_classes"] <= n
        return step.op in HIDING and step.numbers["function"] in HIDING[step.op] and n >= 2


def _label(label: Any) -> Any:
    return int(label) if isinstance(label, bool) else label


def _origins(builder: Builder, prediction: int, is_class: bool) -> set[int]:
    """The scores that a class is chosen from, and what any other choice on the way to a prediction is made from."""
    found: set[int] = set()
    seen: set[tuple[int, bool]] = set()
    open_values = [(prediction, is_class)]
    while open_values:
        value, at_end = open_values.pop()
        if value == 0 or (value, at_end) in seen:
            continue
        seen.add((value, at_end))
        step = builder.steps[value - 1]
        is_lossy = step.op in ALWAYS_LOSSY or step.numbers.get("function") in HIDING.get(step.op, ())
        if step.op == "lookup" and np.isfinite(step.arrays["values"][-2]):
            is_lossy = False  # it says what a missing value means
        if at_end and not is_lossy or not at_end and _chooses(step):
            found |= {value} if at_end else set(step.inputs) - {0}
        open_values += [(one, at_end and is_lossy) for one in step.inputs]
    return found


def _chooses(step: Step) -> bool:
    return step.op == "svm_votes" or step.op == "reduce" and step.numbers["function"] in HIDING["reduce"]


def _model_type(graph: Graph, program: Program) -> str:
    """What the graph holds; a pipeline where inputs are prepared, or models are put together."""
    ops = [step.op for step in program.steps]
    first = next((i for i, op in enumerate(ops) if op in ("dense", "trees", "distances")), len(ops))
    if first == len(ops) or not set(ops[:first]) <= {"move", "unary"} or "trees" in ops and "dense" in ops:
        return "pipeline"
    if any(node.op_type in ("SVMClassifier", "SVMRegressor") for node in graph.nodes):
        return "svm"
    return "trees" if "trees" in ops else "linear" if ops.count("dense") == 1 else "mlp"


__all__ = ["LOWER", "Lowered", "NotTabular", "lower", "read"]
