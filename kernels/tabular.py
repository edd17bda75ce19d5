"""Tabular models: rows in, numbers out, by a checked program that compiled kernels or numpy run.

The rule to keep: a model is made from a checked `Program` and a `Signature` that fits it, whatever file it came
from; the kernels check nothing. Both ways of running give the same bits.
"""

import ctypes
import functools
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels.errors import ModelError
from kernels.missing import missing_features
from kernels.native import ASK, NativeModel
from kernels.program import Program
from kernels.row_ops import run_steps
from kernels.step import Step

MIN_THREAD_WORK = 1_000_000  # multiplications worth a thread, which costs about 50 µs to start
SMALL_ROWS = 64  # so many rows, fewer of wide ones, are answered in buffers that a thread keeps
SMALL_DOUBLES = 1 << 20
CHUNK_DOUBLES = 1 << 22  # of all values together, where numpy runs the program

ASK_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_ssize_t)  # ctypes lets go of the GIL for the call

Labels = tuple[str, ...] | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Signature:
    """What a row must hold and what comes out."""

    n_features: int
    feature_names: tuple[str, ...] | None
    classes: Labels | None
    task: str  # score, regression or classification
    # For each feature None, or the strings that it takes: a row given as numbers holds the string's place.
    categories: tuple[tuple[str, ...] | None, ...] | None = None
    unknown: float = float("nan")  # what stands for a string that is not among its feature's categories

    def __post_init__(self) -> None:
        n, names, classes = self.n_features, self.feature_names, self.classes
        if names is not None and (len(names) != n or len(set(names)) != n):
            raise ModelError(f"expected {n} different feature names")
        if classes is not None and (len(classes) < 1 or len(set(classes)) != len(classes)):
            raise ModelError("expected different class labels")
        if self.task not in ("score", "regression", "classification"):
            raise ModelError(f"expected score, regression or classification for the task, found {self.task!r:.40}")
        if self.categories is not None and len(self.categories) != n:
            raise ModelError(f"expected categories, or none, for {n} features")
        for texts in self.categories or ():
            if texts is not None and len(set(texts)) != len(texts):
                raise ModelError("expected different categories for a feature")
        for strings in (names, classes, *(self.categories or ())):
            if not all(is_unicode(text) for text in strings or () if isinstance(text, str)):
                raise ModelError("expected Unicode in names, labels and categories")


def is_unicode(text: str) -> bool:
    """Whether it holds no half of a character, which JSON's escapes can make and UTF-8 has no bytes for."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


class Asker(threading.local):
    """A thread's own buffers for a few rows, and the records that ask for predictions from them."""

    def __init__(self, model: "TabularModel") -> None:
        native = model._native_here()
        n = model.small_rows
        self.rows = np.empty((n, model.n_features))
        self.predictions = np.empty((n, model.n_outputs))
        self.probabilities = np.empty((n, model.n_classes))
        self.scratch = np.empty(native.scratch_doubles)
        self.asks = np.zeros(2, ASK)  # for predictions; with probabilities
        for wanted, ask in enumerate(self.asks):
            for name in ("rows", "predictions", "scratch"):
                ask[name] = getattr(self, name).ctypes.data
            ask["predict"], ask["state"] = native.predict_address, native.state_address
            ask["probabilities"] = self.probabilities.ctypes.data if wanted else 0
        first = self.asks.ctypes.data
        # What `predict` of one row needs, in one place: an attribute of a thread's own takes 60 ns.
        self.one = (self.rows[:1], first, self.predictions[0] if model.n_outputs == 1 else self.predictions[:1])
        self.asks["n_rows"] = 1
        self.addresses = (first, first + ASK.itemsize)


class TabularModel:
    """A model that predicts from rows; safe to call from several threads.

    `takes_missing_in` (n_features) bool: where NaN stands for a missing value; by the program where None.
    """

    kind = "tabular"

    def __init__(self, name: str, version: str, model_type: str, signature: Signature, program: Program, *,
                 path: Path | None = None, size_bytes: int = 0, takes_missing_in: np.ndarray | None = None,
                 threads: int = 1, native: bool = True) -> None:
        if threads < 1:
            raise ModelError(f"expected 1 thread or more, found {threads}")
        self.name, self.version, self.model_type = name, version, model_type
        self.signature, self.program = signature, program
        self.path, self.size_bytes = path, size_bytes
        self.n_features = signature.n_features
        self.n_outputs = program.widths[program.prediction]  # numbers in a prediction; 1 = a number or a label
        self.n_classes = program.widths[program.probabilities] if program.probabilities else 0
        self._check_fit()
        self.small_rows = min(SMALL_ROWS, max(1, SMALL_DOUBLES // (self.n_features + self.n_outputs + self.n_classes)))
        self._threads, self._native = threads, native
        self._one_row = (1, self.n_features)
        self._lock = threading.Lock()
        self._labels = None if signature.classes is None else label_array(signature.classes)
        self._one_label = [] if self._labels is None else [self._labels[i:i + 1] for i in range(len(self._labels))]
        found = missing_features(program) if takes_missing_in is None else np.asarray(takes_missing_in, bool)
        if found.shape != (self.n_features,):
            raise ModelError(f"expected for each of {self.n_features} features whether it may be missing")
        self.takes_missing_in = found

    def _check_fit(self) -> None:
        classes = self.signature.classes
        if self.program.n_features != self.n_features:
            raise ModelError(f"expected a program of {self.n_features} features, found {self.program.n_features}")
        if classes is not None and self.n_outputs != 1:
            raise ModelError(f"expected one number, a class's index, as the prediction, found {self.n_outputs}")
        if classes is not None and self.n_classes not in (0, len(classes)):
            raise ModelError(f"expected {len(classes)} probabilities, found {self.n_classes}")

    @property
    def takes_missing(self) -> bool:
        """Whether NaN in a row stands for a missing value, of any feature."""
        return bool(self.takes_missing_in.any())

    def predict(self, X) -> np.ndarray:
        """The class label, value or score of every row: (n, n_features) → (n), or (n, n_outputs) of several.

        Raises ModelError for rows of another shape, and for rows that have no finite score: with NaN where the model
        takes no missing values, or with infinities or numbers so large that a score overflows.
        """
        if self._native and type(X) is np.ndarray and X.shape == self._one_row and X.dtype in _ROW_TYPES:
            row, ask, predictions = self._asker.one
            row[...] = X
            if self._ask(ask):
                raise self._no_score(X)
            return predictions.copy() if self._labels is None else self._one_label[int(predictions.item())].copy()
        else:
            predictions, _ = self._run(X, wanted=False)
            if self.n_outputs == 1:
                predictions = predictions[:, 0]
        return predictions if self._labels is None else self._labels[predictions.astype(np.intp)]

    def predict_proba(self, X) -> np.ndarray:
        """The probability of every class: (n, n_features) → (n, n_classes).

        Raises ModelError as `predict` does, and for a regression.
        """
        if not self.n_classes:
            raise ModelError("this model has no probabilities")
        return self._run(X, wanted=True)[1]

    @property
    def kernel(self) -> str:
        """What is compiled for the model: models of one kernel share all of it."""
        kinds = (f"{step.op} {step.numbers['tensor_type']}" if step.op == "dense" else step.op
                 for step in self.program.steps)
        return "+".join(sorted(set(kinds)))

    def native(self) -> NativeModel:
        """The compiled form; compiles, or loads from the cache, on the first call."""
        with self._lock:
            return self._native_model

    @functools.cached_property
    def _compiled(self):
        from kernels.compiled_program import CompiledProgram  # numba takes half a second to import
        return CompiledProgram(self.program, self.n_outputs, self.n_classes, len(self.signature.classes or ()))

    @functools.cached_property
    def _native_model(self) -> NativeModel:
        compiled, signature = self._compiled, self.signature
        names, categories = signature.feature_names, signature.categories
        return NativeModel(
            predict_address=compiled.driver.address,
            state=compiled.states[0],
            n_features=self.n_features,
            n_outputs=self.n_outputs,
            n_classes=self.n_classes,
            labels=None if signature.classes is None else tuple(json.dumps(c).encode() for c in signature.classes),
            takes_missing=self.takes_missing,
            feature_names=None if names is None else tuple(name.encode() for name in names),
            categories=None if categories is None else tuple(
                None if texts is None else tuple(text.encode() for text in texts) for texts in categories),
            unknown=signature.unknown,
            scratch_doubles=compiled.scratch_doubles,
            owners=tuple(compiled.owners),
        )

    @functools.cached_property
    def _ask(self):
        """Makes the call of an ASK record, given by its address → 1 where a row has no answer."""
        from kernels.compiled_program import compiled_ask
        with self._lock:
            return ASK_TYPE(compiled_ask().address)

    def _native_here(self) -> NativeModel:
        """The compiled form for calls from this process, which compiles in two processes where it must."""
        if "_native_model" not in vars(self):
            from kernels.compiled_program import compile_in_two
            with self._lock:
                compile_in_two(self.program)
        return self.native()

    @functools.cached_property
    def _asker(self) -> Asker:
        return Asker(self)

    def _run(self, X, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (n, n_outputs) and probabilities (n, n_classes), or (n, 0) when they are not wanted."""
        rows = self._checked_rows(X)
        if self._native and len(rows) <= self.small_rows:
            return self._run_few(rows, wanted)
        predictions = np.empty((len(rows), self.n_outputs))
        probabilities = np.empty((len(rows), self.n_classes if wanted else 0))
        run = self._run_native if self._native else self._run_numpy
        if not run(rows, predictions, probabilities):
            raise self._no_score(rows)
        return predictions, probabilities

    def _checked_rows(self, X) -> np.ndarray:
        """X as (n, n_features) float64 or float32."""
        if type(X) is not np.ndarray or X.dtype not in _ROW_TYPES or not X.flags.c_contiguous:
            X = self._as_numbers(self._named_columns(X))
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise ModelError(f"expected rows of {self.n_features} features, found an array of shape {X.shape}")
        return X

    def _named_columns(self, X):
        """Of a data frame the model's features, by name; anything else as it is."""
        names = self.signature.feature_names
        if names is None or not hasattr(X, "columns"):
            return X
        missing = [name for name in names if name not in X.columns]
        if missing:
            raise ModelError(f"expected a column {missing[0]!r:.60}, one of {len(names)}")
        return X[list(names)]

    def _as_numbers(self, X) -> np.ndarray:
        try:
            numbers = X if self.signature.categories is None else None
            if isinstance(X, np.ndarray) and X.dtype.kind in "fiub":
                numbers = X
            if numbers is None:
                return self.encode(X)
            found = np.asarray(numbers)
            if found.dtype.kind not in "fiubO":  # numpy would make numbers of texts, dates and complex ones
                raise TypeError
            return np.ascontiguousarray(found, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"expected rows of {self.n_features} numbers"
                             f"{', or strings where the model takes them' * bool(self.signature.categories)}") from None

    def encode(self, X) -> np.ndarray:
        """Rows of numbers and strings, (n, n_features) objects or a data frame, as float64: strings by their places."""
        cells = np.asarray(self._named_columns(X), object)
        if cells.ndim != 2 or cells.shape[1] != self.n_features:
            raise ModelError(f"expected rows of {self.n_features} features, found an array of shape {cells.shape}")
        rows = np.empty(cells.shape)
        for i, places in enumerate(self.places):
            if places is None:
                rows[:, i] = [np.nan if _is_missing(cell) else cell for cell in cells[:, i]]
            else:
                rows[:, i] = [self._place_of(cell, places) for cell in cells[:, i]]
        return rows

    def _place_of(self, cell: object, places: dict[str, int]) -> float:
        if isinstance(cell, str):
            return places.get(cell, self.signature.unknown)
        if _is_missing(cell):
            return np.nan
        raise ModelError("expected strings where the model takes them")

    @functools.cached_property
    def places(self) -> list[dict[str, int] | None]:
        """For each feature the place of every string that it takes; None where it takes numbers."""
        categories = self.signature.categories or (None,) * self.n_features
        return [None if texts is None else {text: i for i, text in enumerate(texts)} for texts in categories]

    def _run_few(self, rows: np.ndarray, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
        """As `_run`, in the thread's own buffers."""
        asker, n = self._asker, len(rows)
        asker.rows[:n] = rows
        asker.asks["n_rows"] = n
        status = self._ask(asker.addresses[wanted])
        asker.asks["n_rows"] = 1
        if status:
            raise self._no_score(rows)
        return asker.predictions[:n].copy(), asker.probabilities[:n if wanted else 0].copy()

    def _run_native(self, rows: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> bool:
        """Fill the outputs; whether every score is finite."""
        shares, native = self._shares(len(rows)), self._native_here()
        state = self._compiled.states[rows.dtype == np.float32].ctypes.data
        statuses = [1] * len(shares)

        def run_share(i: int) -> None:
            first, last = shares[i]
            scratch = np.empty(native.scratch_doubles)
            ask = np.array((native.predict_address, state, rows[first:last].ctypes.data, last - first,
                            predictions[first:last].ctypes.data,
                            probabilities[first:last].ctypes.data if probabilities.size else 0,
                            scratch.ctypes.data), ASK)
            statuses[i] = self._ask(ask.ctypes.data)

        others = [threading.Thread(target=run_share, args=(i,)) for i in range(1, len(shares))]
        for thread in others:
            thread.start()
        run_share(0)
        for thread in others:
            thread.join()
        return not any(statuses)

    def _shares(self, n_rows: int) -> list[tuple[int, int]]:
        """The rows of each thread, [first, last)."""
        work = n_rows * sum(work_of(step) for step in self.program.steps)
        n = min(self._threads, 1 + work // MIN_THREAD_WORK)
        return [(n_rows * i // n, n_rows * (i + 1) // n) for i in range(n)]

    def _run_numpy(self, rows: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> bool:
        """As `_run_native`, to the bit."""
        program = self.program
        size = max(1, CHUNK_DOUBLES // sum(program.widths))
        for first in range(0, len(rows), size):
            chunk = slice(first, first + size)
            values = run_steps(program.steps[:program.n_prediction_steps], [rows[chunk].astype(np.float64)])
            if not all(np.isfinite(values[value]).all() for value in program.checked):
                return False
            predictions[chunk] = values[program.prediction]
            if self._labels is not None and not _are_places(predictions[chunk], len(self._labels)):
                return False
            if probabilities.size:
                run_steps(program.steps[program.n_prediction_steps:], values)
                probabilities[chunk] = values[program.probabilities]
        return True

    def _no_score(self, rows: np.ndarray) -> ModelError:
        refused = np.isinf(rows) | (np.isnan(rows) & ~self.takes_missing_in)
        if refused.any():
            row, feature = np.argwhere(refused)[0].tolist()
            return ModelError(f"expected finite numbers: row {row}, feature {feature} is {rows[row, feature]}")
        return ModelError("the inputs are too large: a score overflows, or a category is unknown")


_ROW_TYPES = (np.dtype(np.float64), np.dtype(np.float32))


def work_of(step: Step) -> int:
    """About how many multiplications a row's step takes the time of."""
    if step.op == "dense":
        return len(step.arrays["bias"]) * int(step.numbers["n_in"])
    if step.op == "trees":
        return 100 * len(step.arrays["tree_sizes"])
    return 4 * step.width


def _is_missing(cell: object) -> bool:
    """None, NaN, or pandas' NA, which is equal to nothing and has no truth."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell


def _are_places(predictions: np.ndarray, n_labels: int) -> bool:
    """Whether all are places of labels: a file's program may end with any number."""
    return bool(((predictions >= 0) & (predictions < n_labels)).all())


def label_array(classes: Labels) -> np.ndarray:
    """Labels to index by class; as objects where numpy's own strings would lose trailing NULs."""
    labels = np.array(classes)
    return labels if labels.tolist() == list(classes) else np.array(classes, object)
