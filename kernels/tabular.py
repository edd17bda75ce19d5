"""Tabular models, linear and multi-layer perceptrons: a GGUF file checked once, then rows in and numbers out.

The rule to keep: after `load` the file has been checked whole, so that the kernels need not check anything.

The file, GGUF v3 with general.architecture = "tabular":

    general.name, general.version    strings
    tabular.task                     "score" | "regression" | "classification"
    tabular.layer_widths             [n_features, hidden …, n_out]
    tabular.activations              a string a layer: relu tanh logistic identity softmax
    tabular.feature_names            optional, n_features strings
    tabular.classes                  of a classification: strings, or integers
    tabular.fill_values              optional, n_features float64: taken in the place of missing values
    dense.{i}.weight                 (n_out, n_in padded with zeros to whole 32s) F32, F16, Q8_0 or Q4_0
    dense.{i}.bias                   (n_out) F32
    input.offset, input.scale        optional, (n_features) F64: x' = (x − offset) · scale
"""

import ctypes
import functools
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kernels import dense_numpy, gguf, quants
from kernels.errors import ModelError
from kernels.gguf import F32, F64, FORMATS, GGUFFile, Tensor
from kernels.native import (
    ACTIVATIONS, BINARY, IDENTITY, LAYER, MODEL, MULTICLASS, SCORE, VALUE, NativeModel,
)

ARCHITECTURE = "tabular"
HIDDEN_ACTIVATIONS = ("relu", "tanh", "logistic", "identity")
OUTPUTS = {  # (task, last activation) → what becomes of the last layer's sums
    ("score", "identity"): SCORE,
    ("classification", "logistic"): BINARY,
    ("classification", "softmax"): MULTICLASS,
} | {("regression", activation): VALUE for activation in HIDDEN_ACTIVATIONS}
MIN_THREAD_WORK = 1_000_000  # multiplications worth a thread, which costs about 50 µs to start

PREDICT_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_ssize_t] * 6)


class Layer(NamedTuple):
    """One dense layer as the file has it."""

    weight: Tensor  # (n_out, n_in_padded)
    bias: np.ndarray  # (n_out) float64
    activation: str


@dataclass(frozen=True)
class Signature:
    """What a row must hold and what comes out."""

    n_features: int
    feature_names: tuple[str, ...] | None
    classes: tuple[str, ...] | tuple[int, ...] | None
    task: str  # score, regression or classification


class TabularModel:
    """A model that predicts from rows of numbers; safe to call from several threads."""

    kind = "tabular"

    def __init__(self, file: GGUFFile, threads: int, native: bool) -> None:
        fields = _Fields(file)
        self.path = file.path
        self.name = fields.string("general.name")
        self.version = fields.string("general.version")
        self.size_bytes = file.size_bytes
        self.layers = _read_layers(fields)
        self.signature = _read_signature(fields, self.layers)
        self.fill_values = fields.fill_values(self.n_features)
        self.offset = fields.vector("input.offset", self.n_features, F64, default=0.0)
        self.scale = fields.vector("input.scale", self.n_features, F64, default=1.0)
        self.output = _output(self.signature.task, self.layers)
        self._threads = threads
        self._native = native
        self._lock = threading.Lock()
        self._labels = None if self.signature.classes is None else _label_array(self.signature.classes)

    @classmethod
    def load(cls, path: str | Path, threads: int = 1, native: bool = True) -> "TabularModel":
        """The model in the GGUF file at `path`; raises as `kernels.load` does."""
        if threads < 1:
            raise ModelError(f"expected 1 thread or more, found {threads}")
        file = gguf.read(path)
        try:
            return cls(file, threads, native)
        except ModelError as error:
            raise ModelError(f"{file.path.name}: {error}") from None

    @property
    def n_features(self) -> int:
        """How many numbers a row has."""
        return self.signature.n_features

    @property
    def n_classes(self) -> int:
        """The width of a row of probabilities; 0 for a regression."""
        if self.signature.classes is not None:
            return len(self.signature.classes)
        return 2 if self.output == SCORE else 0

    @property
    def model_type(self) -> str:
        """linear, or mlp with hidden layers."""
        return "linear" if len(self.layers) == 1 else "mlp"

    @property
    def takes_missing(self) -> bool:
        """Whether NaN in a row stands for a missing value."""
        return self.fill_values is not None

    def predict(self, X) -> np.ndarray:
        """The class label, value or score of every row: (n, n_features) → (n,).

        Raises ModelError for rows of another shape, rows with an infinity, with NaN where the model takes no
        missing values, and numbers so large that a score overflows.
        """
        predictions, _ = self._run(X, n_columns=0)
        return predictions if self._labels is None else self._labels[predictions.astype(np.intp)]

    def predict_proba(self, X) -> np.ndarray:
        """The probability of every class: (n, n_features) → (n, n_classes).

        Raises ModelError as `predict` does, and for a regression.
        """
        if not self.n_classes:
            raise ModelError("a regression has no probabilities")
        _, probabilities = self._run(X, n_columns=self.n_classes)
        return probabilities

    @property
    def kernel(self) -> str:
        """The weights' format, or "mixed": models of one kernel share its compiled code."""
        found = {FORMATS[layer.weight.tensor_type].name for layer in self.layers}
        return found.pop() if len(found) == 1 else "mixed"

    def native(self) -> NativeModel:
        """The compiled form; compiles, or loads from the cache, on the first call."""
        with self._lock:
            return self._native_model

    @functools.cached_property
    def _native_model(self) -> NativeModel:
        from kernels.dense import compile_predict  # numba takes half a second to import
        kernel = compile_predict(frozenset(layer.weight.tensor_type for layer in self.layers))
        fill_values = np.full(self.n_features, np.nan) if self.fill_values is None else self.fill_values
        return NativeModel(
            predict_address=kernel.address,
            state=self._state(fill_values),
            n_features=self.n_features,
            n_classes=self.n_classes,
            labels=_json_labels(self.signature.classes),
            takes_missing=self.takes_missing,
            scratch_doubles=3 * self._width,
            owners=(kernel, self.layers, fill_values, self.offset, self.scale),
        )

    @property
    def _width(self) -> int:
        return max(_padded(n) for layer in self.layers for n in (layer.weight.shape[1], len(layer.bias)))

    def _state(self, fill_values: np.ndarray) -> np.ndarray:
        """The MODEL record and the LAYER records, as native.py has them."""
        n_inputs = [self.n_features] + [len(layer.bias) for layer in self.layers[:-1]]
        state = np.zeros(MODEL.itemsize + len(self.layers) * LAYER.itemsize, np.uint8)
        state[:MODEL.itemsize].view(MODEL)[0] = (
            len(self.layers), self.n_features, self.n_classes, self.output, self._width,
            fill_values.ctypes.data, self.offset.ctypes.data, self.scale.ctypes.data,
        )
        state[MODEL.itemsize:].view(LAYER)[:] = [
            (weight.data.ctypes.data, bias.ctypes.data, n_in, weight.shape[0],
             weight.data.shape[1], weight.tensor_type, activation)
            for (weight, bias, _), n_in, activation in zip(self.layers, n_inputs, self._activation_codes, strict=True)
        ]
        return state

    @property
    def _activation_codes(self) -> list[int]:
        """The activation of every layer; a classifier's last one happens when probabilities are wanted."""
        codes = [ACTIVATIONS[layer.activation] for layer in self.layers]
        return codes if self.output == VALUE else codes[:-1] + [IDENTITY]

    def _run(self, X, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (n) and probabilities (n, n_columns); without columns they are not computed."""
        rows = self._checked_rows(X)
        predictions = np.empty(len(rows))
        probabilities = np.empty((len(rows), n_columns))
        run = self._run_native if self._native else self._run_numpy
        if not run(rows, predictions, probabilities):
            raise ModelError("the inputs are too large: a score overflows")
        return predictions, probabilities

    def _checked_rows(self, X) -> np.ndarray:
        try:
            rows = np.ascontiguousarray(X, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ModelError(f"expected rows of {self.n_features} numbers") from None
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ModelError(f"expected rows of {self.n_features} features, "
                             f"found an array of shape {rows.shape}")
        refused = np.isinf(rows) if self.takes_missing else ~np.isfinite(rows)
        if refused.any():
            row, feature = np.argwhere(refused)[0].tolist()
            raise ModelError(f"expected finite numbers: row {row}, feature {feature} is {rows[row, feature]}")
        return rows

    def _run_native(self, rows: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> bool:
        """Fill the outputs; whether every score is finite."""
        native = self.native()
        predict = PREDICT_TYPE(native.predict_address)  # ctypes lets go of the GIL for the call
        shares = self._shares(len(rows))
        statuses = [1] * len(shares)

        def run_share(i: int) -> None:
            first, last = shares[i]
            scratch = np.empty(native.scratch_doubles)
            wanted = probabilities[first:last].ctypes.data if probabilities.size else 0
            statuses[i] = predict(native.state_address, rows[first:last].ctypes.data, last - first,
                                  predictions[first:last].ctypes.data, wanted, scratch.ctypes.data)

        others = [threading.Thread(target=run_share, args=(i,)) for i in range(1, len(shares))]
        for thread in others:
            thread.start()
        run_share(0)
        for thread in others:
            thread.join()
        return not any(statuses)

    def _shares(self, n_rows: int) -> list[tuple[int, int]]:
        """The rows of each thread, [first, last)."""
        work = n_rows * sum(layer.weight.shape[0] * layer.weight.shape[1] for layer in self.layers)
        n = min(self._threads, 1 + work // MIN_THREAD_WORK)
        return [(n_rows * i // n, n_rows * (i + 1) // n) for i in range(n)]

    def _run_numpy(self, rows: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> bool:
        """As `_run_native`, to the bit."""
        with np.errstate(all="ignore"):
            scores = self._scores_numpy(rows)
            if not np.isfinite(scores).all():
                return False
            if self.output == BINARY:
                predictions[:] = scores[:, 0] > 0
            elif self.output == MULTICLASS:
                predictions[:] = scores.argmax(axis=1)
            else:
                predictions[:] = scores[:, 0]
            if probabilities.size:
                several = self.output == MULTICLASS
                probabilities[:] = dense_numpy.softmax(scores) if several else dense_numpy.binary(scores)
        return True

    def _scores_numpy(self, rows: np.ndarray) -> np.ndarray:
        if self.fill_values is not None:
            rows = np.where(np.isnan(rows), self.fill_values, rows)
        values = (rows - self.offset) * self.scale
        steps = zip(self.layers, self._weights, self._activation_codes, strict=True)
        for layer, weights, activation in steps:
            x = np.zeros((len(rows), weights.shape[1]))
            x[:, :values.shape[1]] = values
            values = dense_numpy.ACTIVATE[activation](dense_numpy.matvec(weights, layer.bias, x))
        return values

    @functools.cached_property
    def _weights(self) -> list[np.ndarray]:
        return [quants.dequantize(layer.weight.data, layer.weight.tensor_type) for layer in self.layers]


def _label_array(classes: tuple[str, ...] | tuple[int, ...]) -> np.ndarray:
    """Labels to index by class; as objects where numpy's own strings would lose trailing NULs."""
    labels = np.array(classes)
    return labels if labels.tolist() == list(classes) else np.array(classes, object)


def _json_labels(classes: tuple[str, ...] | tuple[int, ...] | None) -> tuple[bytes, ...] | None:
    return None if classes is None else tuple(json.dumps(label).encode() for label in classes)


def _padded(n: int) -> int:
    return -(-n // quants.BLOCK) * quants.BLOCK


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
        values = data.view({F32: "<f4", F64: "<f8"}[tensor_type]).astype(np.float64)
        if not np.isfinite(values).all():
            raise ModelError(f"expected finite numbers in {name}")
        return values


def _read_layers(fields: _Fields) -> tuple[Layer, ...]:
    widths = fields.integers("tabular.layer_widths")
    activations = fields.strings("tabular.activations")
    if len(widths) < 2 or min(widths) < 1:
        raise ModelError(f"expected positive numbers, two or more, in tabular.layer_widths, "
                         f"found {str(widths):.60}")
    if len(activations) != len(widths) - 1:
        raise ModelError(f"expected {len(widths) - 1} names in tabular.activations, found {len(activations)}")
    for activation in activations[:-1]:
        if activation not in HIDDEN_ACTIVATIONS:
            raise ModelError(f"expected {', '.join(HIDDEN_ACTIVATIONS)} in tabular.activations, "
                             f"found {activation!r:.40}")
    layers = zip(widths, widths[1:], activations, strict=False)
    return tuple(_read_layer(fields, i, *layer) for i, layer in enumerate(layers))


def _read_layer(fields: _Fields, i: int, n_in: int, n_out: int, activation: str) -> Layer:
    weight = fields.tensor(f"dense.{i}.weight", (n_out, _padded(n_in)), tuple(quants.CODECS))
    if not quants.all_finite(weight.data, weight.tensor_type):
        raise ModelError(f"expected finite numbers in {weight.name}")
    return Layer(weight, fields.vector(f"dense.{i}.bias", n_out, F32), activation)


def _read_signature(fields: _Fields, layers: tuple[Layer, ...]) -> Signature:
    n_features = fields.integers("tabular.layer_widths")[0]
    task = fields.string("tabular.task")
    n_out = len(layers[-1].bias)
    if task not in ("score", "regression", "classification"):
        raise ModelError(f"expected score, regression or classification in tabular.task, found {task!r:.40}")
    if task != "classification" and n_out != 1:
        raise ModelError(f"expected one output for tabular.task {task!r}, found {n_out}")
    classes = _read_classes(fields, layers[-1]) if task == "classification" else None
    return Signature(n_features, _read_feature_names(fields, n_features), classes, task)


def _read_feature_names(fields: _Fields, n_features: int) -> tuple[str, ...] | None:
    if "tabular.feature_names" not in fields.file.metadata:
        return None
    names = fields.strings("tabular.feature_names")
    if len(names) != n_features or len(set(names)) != n_features:
        raise ModelError(f"expected {n_features} different strings in tabular.feature_names")
    return tuple(names)


def _read_classes(fields: _Fields, last: Layer) -> tuple[str, ...] | tuple[int, ...]:
    key, n_out = "tabular.classes", len(last.bias)
    expected = 2 if last.activation == "logistic" else n_out
    classes: tuple[str, ...] | tuple[int, ...]
    if isinstance(fields.file.metadata.get(key), list):
        classes = tuple(fields.strings(key))
    else:
        classes = numbers = tuple(fields.integers(key))
        if any(number > np.iinfo(np.int64).max for number in numbers):
            raise ModelError(f"expected labels of at most 64 bits, signed, in {key}")
    if len(classes) != expected or len(set(classes)) != len(classes) or expected < 2:
        raise ModelError(f"expected {max(expected, 2)} different labels in {key}, found {len(classes)}")
    return classes


def _output(task: str, layers: tuple[Layer, ...]) -> int:
    last, n_out = layers[-1].activation, len(layers[-1].bias)
    if (task, last) not in OUTPUTS:
        raise ModelError(f"expected a last one in tabular.activations that fits tabular.task {task!r}, "
                         f"found {last!r:.40}")
    if last == "logistic" and n_out != 1:
        raise ModelError(f"expected one output with 'logistic' in tabular.activations, found {n_out} "
                         "(softmax takes more)")
    return OUTPUTS[task, last]
