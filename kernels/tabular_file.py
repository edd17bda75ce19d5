"""The native file of a tabular model, GGUF v3 with general.architecture = "tabular": dense layers, or a program.

The rule to keep: a file is hostile until checked; after `read` it has been checked whole.

    general.name, general.version    strings
    tabular.task                     "score" | "regression" | "classification"
    tabular.feature_names            optional, n_features strings
    tabular.classes                  of a classification: strings, or integers

Dense layers, written by `export.save_dense`:

    tabular.layer_widths             [n_features, hidden …, n_out]
    tabular.activations              a string a layer: relu tanh logistic identity softmax
    tabular.fill_values              optional, n_features float64: taken in the place of missing values
    dense.{i}.weight                 (n_out, n_in padded with zeros to whole 32s) F64, F32, F16, Q8_0 or Q4_0
    dense.{i}.bias                   (n_out) F32
    input.offset, input.scale        optional, (n_features) F64: x' = (x − offset) · scale

A program, written by `export.save`:

    tabular.program                  JSON: see `program_json`
    step.{i}.{array}                 the arrays of step i, as the JSON says
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kernels import gguf, quants, trees
from kernels.errors import ModelError
from kernels.gguf import F32, F64, FORMATS, GGUFFile, Tensor
from kernels.native import ACTIVATIONS
from kernels.program import Builder, Program
from kernels.row_ops import REDUCE_CODES, SOFTMAX, UNARY_CODES, runs_of
from kernels.step import Step
from kernels.tabular import Labels, Signature, TabularModel, is_unicode

ARCHITECTURE = "tabular"
HIDDEN_ACTIVATIONS = ("relu", "tanh", "logistic", "identity")
OUTPUTS = {("score", "identity"), ("classification", "logistic"), ("classification", "softmax")} | {
    ("regression", activation) for activation in HIDDEN_ACTIVATIONS}  # (task, last activation)

# How an array of a step is stored: integers in the smallest type that holds them.
INTEGERS = {"int8": 24, "uint8": 24, "int16": 25, "uint16": 25, "int32": 26, "int64": 27}  # name: GGUF type
DTYPES = ("float64", "int64", "int32", "uint16", "uint8")  # of arrays in memory
MAX_LENGTH = 1 << 40  # of an array; what is not empty fits its tensor
MAX_WHOLE = 1 << 53   # up to here float64 has every integer
BLOCKS = "blocks"  # in the place of a dtype: rows of a tensor type's blocks, as the file has them


def read(path: str | Path, threads: int = 1, native: bool = True) -> TabularModel:
    """The model in the GGUF file at `path`; raises as `kernels.load` does."""
    file = gguf.read(path)
    try:
        fields = _Fields(file)
        parts = _read_program(fields) if "tabular.program" in file.metadata else _read_dense(fields)
        return TabularModel(fields.string("general.name"), fields.string("general.version"), parts.model_type,
                            parts.signature, parts.program, path=file.path, size_bytes=file.size_bytes,
                            takes_missing_in=parts.takes_missing_in, threads=threads, native=native)
    except ModelError as error:
        raise ModelError(f"{file.path.name}: {error}") from None


class _Parts(NamedTuple):
    model_type: str
    signature: Signature
    program: Program
    takes_missing_in: np.ndarray  # (n_features) bool


class _Fields:
    """Checked reading of a file's metadata and tensors; every error names the field."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        architecture = self.string("general.architecture")
        if architecture != ARCHITECTURE:
            raise ModelError(f"expected general.architecture {ARCHITECTURE!r}, found {architecture!r:.40}")

    def string(self, key: str) -> str:
        value = self.file.metadata.get(key)
        if not isinstance(value, str) or not value:
            raise ModelError(f"expected a string in {key}")
        return value

    def strings(self, key: str) -> list[str]:
        values = self.file.metadata.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ModelError(f"expected an array of strings in {key}")
        return values

    def integers(self, key: str) -> list[int]:
        values = self.file.metadata.get(key)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
            raise ModelError(f"expected an array of integers in {key}")
        return values.tolist()

    def fill_values(self, n: int) -> np.ndarray | None:
        values = self.file.metadata.get("tabular.fill_values")
        if values is None:
            return None
        if not isinstance(values, np.ndarray) or values.dtype != np.float64 or values.shape != (n,):
            raise ModelError(f"expected {n} float64 in tabular.fill_values")
        if not np.isfinite(values).all():
            raise ModelError("expected finite numbers in tabular.fill_values")
        return values.copy()  # a copy is aligned

    def tensor(self, name: str, shape: tuple[int, ...], tensor_types: tuple[int, ...]) -> Tensor:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise ModelError(f"expected a tensor {name}")
        if tensor.shape != shape:
            raise ModelError(f"expected shape {shape} of {name}, found {tensor.shape}")
        if tensor.tensor_type not in tensor_types:
            expected = " or ".join(FORMATS[t].name for t in tensor_types)
            raise ModelError(f"expected {expected} for {name}, found {tensor.format.name}")
        return tensor

    def vector(self, name: str, n: int, tensor_type: int, default: float | None = None) -> np.ndarray:
        """A tensor of n numbers as float64; n times the default where the file has none."""
        if default is not None and name not in self.file.tensors:
            return np.full(n, default)
        data = self.tensor(name, (n,), (tensor_type,)).data[0]
        with np.errstate(invalid="ignore"):  # a NaN that signals
            values = data.view({F32: "<f4", F64: "<f8"}[tensor_type]).astype(np.float64)
        if not np.isfinite(values).all():
            raise ModelError(f"expected finite numbers in {name}")
        return values

    def feature_names(self, n_features: int) -> tuple[str, ...] | None:
        if "tabular.feature_names" not in self.file.metadata:
            return None
        names = self.strings("tabular.feature_names")
        if len(names) != n_features or len(set(names)) != n_features:
            raise ModelError(f"expected {n_features} different strings in tabular.feature_names")
        return tuple(names)

    def classes(self, n: int) -> Labels:
        key = "tabular.classes"
        classes: tuple[str, ...] | tuple[int, ...]
        if isinstance(self.file.metadata.get(key), list):
            classes = tuple(self.strings(key))
        else:
            classes = numbers = tuple(self.integers(key))
            if any(number > np.iinfo(np.int64).max for number in numbers):
                raise ModelError(f"expected labels of at most 64 bits, signed, in {key}")
        if len(classes) != n or len(set(classes)) != len(classes) or n < 2:
            raise ModelError(f"expected {max(n, 2)} different labels in {key}, found {len(classes)}")
        return classes


# ---- dense layers ------------------------------------------------------------------------------------------

def _read_dense(fields: _Fields) -> _Parts:
    widths, activations = _read_shape(fields)
    task, last = fields.string("tabular.task"), activations[-1]
    if task not in ("score", "regression", "classification"):
        raise ModelError(f"expected score, regression or classification in tabular.task, found {task!r:.40}")
    weights = [fields.tensor(f"dense.{i}.weight", (widths[i + 1], _padded(widths[i])), tuple(quants.CODECS))
               for i in range(len(activations))]  # after this the file is as large as the widths say
    builder = Builder(widths[0])
    value, fill_values = _add_prepare(fields, builder)
    for i, activation in enumerate(activations):
        is_last = i + 1 == len(activations)
        applied = "identity" if is_last and task != "regression" else activation
        value = _add_layer(fields, builder, value, i, weights[i], widths[i], applied)
    if task != "classification" and widths[-1] != 1:
        raise ModelError(f"expected one output for tabular.task {task!r}, found {widths[-1]}")
    classes = None
    if task == "classification":
        classes = fields.classes(2 if last == "logistic" else widths[-1])
    if (task, last) not in OUTPUTS:
        raise ModelError(f"expected a last one in tabular.activations that fits tabular.task {task!r}, "
                         f"found {last!r:.40}")
    if last == "logistic" and widths[-1] != 1:
        raise ModelError(f"expected one output with 'logistic' in tabular.activations, found {widths[-1]} "
                         "(softmax takes more)")
    program = finish(builder, value, task, n_classes=widths[-1] if last == "softmax" else 2)
    signature = Signature(widths[0], fields.feature_names(widths[0]), classes, task)
    return _Parts("linear" if len(activations) == 1 else "mlp", signature, program,
                  np.full(widths[0], fill_values is not None))


def finish(builder: Builder, scores: int, task: str, n_classes: int) -> Program:
    """The program that ends with these scores: a value, a score with its logistic, or classes."""
    if task == "regression":
        return builder.finish(scores, 0, (scores,))
    if n_classes > 2 or builder.widths[scores] == 2:
        width = builder.widths[scores]
        probabilities = builder.add("scale", (scores,), width, numbers={"function": SOFTMAX, "group": width})
        prediction = builder.add("reduce", (scores,), 1, numbers={"function": REDUCE_CODES["argmax"], "group": width})
        return builder.finish(prediction, probabilities, (scores,))
    prediction = scores
    if task == "classification":
        prediction = builder.add("unary", (scores,), 1, numbers={"function": UNARY_CODES["positive"]})
    p = builder.add("unary", (scores,), 1, numbers={"function": UNARY_CODES["sigmoid"]})
    return builder.finish(prediction, add_pair(builder, p), (scores,))


def add_pair(builder: Builder, p: int) -> int:
    """[1 − p, p] of a value p of width 1."""
    other = builder.add("unary", (p,), 1, numbers={"function": UNARY_CODES["complement"]})
    return builder.add("move", (other, p), 2, arrays={"runs": runs_of([(0, 0), (1, 0)]), "constants": np.empty(0)})


def _read_shape(fields: _Fields) -> tuple[list[int], list[str]]:
    widths, activations = fields.integers("tabular.layer_widths"), fields.strings("tabular.activations")
    if len(widths) < 2 or min(widths) < 1:
        raise ModelError(f"expected positive numbers, two or more, in tabular.layer_widths, found {str(widths):.60}")
    if len(activations) != len(widths) - 1:
        raise ModelError(f"expected {len(widths) - 1} names in tabular.activations, found {len(activations)}")
    for activation in activations[:-1]:
        if activation not in HIDDEN_ACTIVATIONS:
            raise ModelError(f"expected {', '.join(HIDDEN_ACTIVATIONS)} in tabular.activations, "
                             f"found {activation!r:.40}")
    return widths, activations


def _add_prepare(fields: _Fields, builder: Builder) -> tuple[int, np.ndarray | None]:
    n = builder.n_features
    fill_values = fields.fill_values(n)
    offset, scale = fields.vector("input.offset", n, F64, 0.0), fields.vector("input.scale", n, F64, 1.0)
    if fill_values is None and not offset.any() and (scale == 1).all():
        return 0, None
    filled = np.full(n, np.nan) if fill_values is None else fill_values
    return builder.add("prepare", (0,), n, arrays={"missing": np.full(n, np.nan), "fill_values": filled,
                                                   "offset": offset, "scale": scale}), fill_values


def _add_layer(fields: _Fields, builder: Builder, value: int, i: int, weight: Tensor, n_in: int,
               activation: str) -> int:
    if not quants.all_finite(weight.data, weight.tensor_type):
        raise ModelError(f"expected finite numbers in {weight.name}")
    bias = fields.vector(f"dense.{i}.bias", weight.shape[0], F32)
    return add_dense(builder, value, weight.data, weight.tensor_type, bias, n_in, ACTIVATIONS.get(activation, 0))


def add_dense(builder: Builder, value: int, weights: np.ndarray, tensor_type: int, bias: np.ndarray, n_in: int,
              activation: int = 0, rounds: bool = False) -> int:
    """A step "dense" with these weights, (n_out, row_bytes) uint8; → its value."""
    groups = builder.widths[value] // n_in
    return builder.add("dense", (value,), groups * len(bias), arrays={"weights": weights, "bias": bias},
                       numbers={"n_in": n_in, "tensor_type": tensor_type, "activation": activation,
                                "rounds": int(rounds)})


def _padded(n: int) -> int:
    return -(-n // quants.BLOCK) * quants.BLOCK


# ---- programs ----------------------------------------------------------------------------------------------

def _read_program(fields: _Fields) -> _Parts:
    try:
        content = json.loads(fields.string("tabular.program"), parse_constant=_refuse_constant)
    except ModelError:
        raise
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
        raise ModelError("expected JSON in tabular.program") from None
    content = _expect_type(content, dict, "tabular.program")
    steps = tuple(_read_step(fields, i, _expect_type(step, dict, f"step {i}"))
                  for i, step in enumerate(_take(content, "steps", list)))
    n_features = _take(content, "n_features", int)
    program = Program(n_features, steps, _take(content, "prediction", int), _take(content, "probabilities", int),
                      _take(content, "n_prediction_steps", int), tuple(_integers(content, "checked")))
    task = fields.string("tabular.task")
    classes = None
    if task == "classification":
        classes = fields.classes(_take(content, "n_classes", int))
    takes_missing, missing = np.zeros(n_features, bool), _integers(content, "takes_missing")
    if not all(0 <= feature < n_features for feature in missing):
        raise ModelError("expected features that exist in takes_missing")
    takes_missing[missing] = True
    signature = Signature(n_features, fields.feature_names(n_features), classes, task,
                          _read_categories(content), _read_unknown(content))
    model_type = _take(content, "model_type", str)
    if not is_unicode(model_type):
        raise ModelError("expected Unicode in model_type of tabular.program")
    return _Parts(model_type, signature, program, takes_missing)


def _refuse_constant(_: str):
    raise ModelError("expected finite numbers in tabular.program")


def _expect_type(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise ModelError(f"expected {kind.__name__} in {what}")
    return value


def _take(content: dict, name: str, kind: type) -> Any:
    return _expect_type(content.get(name), kind, f"{name} of tabular.program")


def _integers(content: dict, name: str) -> list[int]:
    return [_expect_type(item, int, f"{name} of tabular.program") for item in _take(content, name, list)]


def _read_unknown(content: dict) -> float:
    unknown = content.get("unknown")
    if unknown is None:
        return float("nan")
    if type(unknown) is not int or abs(unknown) > MAX_WHOLE:
        raise ModelError("expected an integer in unknown of tabular.program")
    return float(unknown)


def _read_categories(content: dict) -> tuple[tuple[str, ...] | None, ...] | None:
    if content.get("categories") is None:
        return None
    features = _take(content, "categories", list)
    return tuple(None if texts is None else tuple(
        _expect_type(text, str, "categories of tabular.program") for text in
        _expect_type(texts, list, "categories of tabular.program")) for texts in features)


def _read_step(fields: _Fields, i: int, content: dict) -> Step:
    numbers = _take(content, "numbers", dict)
    for number in numbers.values():
        if type(number) not in (int, float) or not abs(number) <= sys.float_info.max:
            raise ModelError(f"step {i}: expected finite numbers")
    arrays = {}
    for name, stored in _take(content, "arrays", dict).items():
        arrays[name] = _read_array(fields, f"step.{i}.{name}", _expect_type(stored, dict, f"arrays of step {i}"))
    step = Step(_take(content, "op", str), tuple(_integers(content, "inputs")), _take(content, "width", int),
                numbers, arrays)
    return trees.unpack(step) if step.op == "trees" else step


def _read_array(fields: _Fields, name: str, content: dict) -> np.ndarray:
    dtype, shape = _take(content, "dtype", str), tuple(_integers(content, "shape"))
    if not 1 <= len(shape) <= 2 or min(shape) < 0 or max(shape) > MAX_LENGTH or dtype not in (*DTYPES, BLOCKS):
        raise ModelError(f"expected a dtype and a shape for {name}")
    if 0 in shape:
        return np.empty(shape, dtype if dtype != BLOCKS else np.uint8)
    stored = content.get("stored")
    if dtype == BLOCKS:
        return fields.tensor(name, shape, tuple(quants.CODECS)).data
    if dtype == "float64":
        padded = (*shape[:-1], _padded(shape[-1])) if stored == BLOCKS else shape
        tensor = fields.tensor(name, padded, (F64, F32, gguf.F16, gguf.Q8_0))
        if tensor.tensor_type == F64:
            values = tensor.data.reshape(-1).view("<f8").reshape(shape)
            return values if values.flags.aligned else values.copy()
        values = quants.dequantize(tensor.data, tensor.tensor_type)[:, :shape[-1]].reshape(shape)
        return np.ascontiguousarray(values)
    if not isinstance(stored, str) or stored not in INTEGERS:
        raise ModelError(f"expected an integer type for {name}")
    integers = fields.tensor(name, shape, (INTEGERS[stored],)).data.reshape(-1).view(np.dtype(stored)).reshape(shape)
    limits = np.iinfo(dtype)
    if integers.min() < limits.min or integers.max() > limits.max:
        raise ModelError(f"expected {dtype} in {name}")
    return integers.astype(dtype)
