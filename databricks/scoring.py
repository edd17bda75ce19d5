"""Arrow batches in, predictions and rejected rows out: what both batch engines share.

The rule to keep: every row of a batch comes out once, scored or rejected with a reason; a row is scored exactly where
`predict` of the model takes it alone. What is wrong with the columns is said before the first row.
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import kernels

REASON, ROW = "reason", "row"  # columns of the rejects: why, and without a key the row's number in the input
PREDICT, PROBABILITIES, LOG_PROBABILITIES = ANSWERS = "predict", "predict_proba", "predict_log_proba"
EXACT = 1 << 53  # the integers up to here, and from minus this, are all doubles
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^(?i:[+-]?(nan|inf|infinity))$"  # what Arrow reads as one


class BatchError(ValueError):
    """A batch job that cannot start, or go on, as it was asked for."""


class Scorer:
    """A loaded model and the columns that it reads; `score` may be called from several threads.

    `model` is a file that `kernels.load` takes. `columns` name the features in the model's order, for a model without
    names of its own; `names` are what they are called whatever the file says. `text`: numbers stand in columns of
    strings, as in CSV. `whole_keys`: a row whose key holds a null is rejected. `answer`: predict, or for a list of
    every class's predict_proba or predict_log_proba. Raises BatchError for columns and an answer that do not fit the
    model, and what `kernels.load` raises.
    """

    def __init__(self, model: str, *, columns: Sequence[str] | None = None, key: Sequence[str] = (),
                 prediction_column: str = "prediction", threads: int = 1, text: bool = False,
                 whole_keys: bool = False, answer: str = PREDICT, names: Sequence[str] | None = None) -> None:
        self.file, self.text, self.whole_keys, self.answer = model, text, whole_keys, answer
        self.model = kernels.load(model, threads=threads)
        self.columns = _columns_of(self.model, columns, names)
        if answer not in ANSWERS or answer != PREDICT and not self.model.n_classes:
            raise BatchError(f"the model's answer is {answer!r:.60}, which cannot be given here")
        self._width = self.model.n_outputs if answer == PREDICT else self.model.n_classes
        self._is_list = self._width > 1 or answer != PREDICT
        self.key, self.prediction_column = tuple(key), prediction_column
        categories = self.model.signature.categories or (None,) * self.model.n_features
        self._categories = [None if texts is None else pa.array(texts, pa.string()) for texts in categories]
        taken = (*self.key, prediction_column)
        if len(set(taken)) != len(taken) or REASON in self.key:
            raise BatchError(f"expected different names for the key columns, {prediction_column!r:.60} and {REASON!r}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's file, in hexadecimal digits."""
        with open(self.file, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def needed(self) -> list[str]:
        """The columns of the input that are read."""
        return list(dict.fromkeys((*self.key, *self.columns)))

    @property
    def prediction_type(self) -> pa.DataType:
        """Of the prediction column: the type of the labels; float64, or a list of them, where there are none."""
        if self._is_list:
            return pa.list_(pa.float64())
        label = (self.model.signature.classes or (0.0,))[0]
        return pa.string() if isinstance(label, str) else pa.int64() if isinstance(label, int) else pa.float64()

    def warm_up(self) -> float:
        """Compile the model's kernels, or read them from the cache → seconds."""
        start = time.perf_counter()
        with suppress(kernels.ModelError):
            self.model.predict(np.ones((1, self.model.n_features)))
        return time.perf_counter() - start

    def check(self, schema: pa.Schema) -> None:
        """Raises BatchError for a column that is missing, there twice, or of a type that its feature does not take."""
        for name in self.key:
            _field(schema, name, "the key")
        for i, name in enumerate(self.columns):
            found = _value_type(_field(schema, name, f"feature {i}").type)
            if self._categories[i] is not None:
                expected, fits = "strings", _is_string(found)
            else:
                expected, fits = "numbers", _is_number(found) or self.text and _is_string(found)
            if not fits and not pa.types.is_null(found):
                raise BatchError(f"column {name!r:.60}: expected {expected} for feature {i}, found {found}")

    def check_text(self, batch: pa.RecordBatch) -> None:
        """Raises BatchError for a column of text that holds no number in this first batch, where one is expected."""
        for i, name in enumerate(self.columns):
            column, why = batch.column(name), _Reasons(len(batch))
            if self._categories[i] is None and _is_string(column.type):
                if not self._parsed(column, i, why).is_valid().true_count and why.texts:
                    raise BatchError(f"column {name!r:.60}: expected numbers for feature {i}, found other text")

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Of the scored rows, for an input of this schema: the key columns and the prediction."""
        return pa.schema([*self._key_fields(schema), pa.field(self.prediction_column, self.prediction_type)])

    def rejects_schema(self, schema: pa.Schema) -> pa.Schema:
        """Of the rejected rows: the key columns, or without a key the row's number, and the reason."""
        return pa.schema([*(self._key_fields(schema) or [pa.field(ROW, pa.int64())]), pa.field(REASON, pa.string())])

    def _key_fields(self, schema: pa.Schema) -> list[pa.Field]:
        return [pa.field(name, _value_type(schema.field(name).type)) for name in self.key]

    def score(self, batch: pa.RecordBatch, first_row: int | None = None) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(scored rows, rejected rows) of a batch, in its order, of `output_schema` and `rejects_schema`.

        `first_row` is the number of the batch's first row in the input, which the rejects of a job without a key hold.
        """
        predictions, reasons = self.answers(batch)
        keys = [_decoded(batch.column(name)) for name in self.key]
        scored = pa.RecordBatch.from_arrays([*keys, predictions], schema=self.output_schema(batch.schema))
        if not keys:
            rows = range(first_row or 0, (first_row or 0) + len(batch))
            keys = [pa.array(rows, pa.int64()) if first_row is not None else pa.nulls(len(batch), pa.int64())]
        rejects = pa.RecordBatch.from_arrays([*keys, reasons], schema=self.rejects_schema(batch.schema))
        if reasons.null_count == len(batch):
            return scored, rejects.slice(0, 0)
        return scored.filter(reasons.is_null()), rejects.filter(reasons.is_valid())

    def answers(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
        """(predictions, null where there is none; reasons, string, null where there is a prediction) of every row."""
        why = _Reasons(len(batch))
        for name in self.key if self.whole_keys else ():
            why.add(_mask(batch.column(name).is_null()), f"key column {name!r:.60} is null")
        rows = self._rows(batch, why)
        if not why.texts:
            predictions, scored = self._predict(rows)
            if scored is None:
                return self._as_arrow(predictions), pa.nulls(len(batch), pa.string())
        else:
            candidates = why.codes == 0
            predictions, scored = self._predict(rows[candidates])
            scored = candidates if scored is None else _within(candidates, scored)
        infinite = np.isinf(rows)
        for i in np.flatnonzero(infinite.any(axis=0)).tolist():
            why.add(~scored & infinite[:, i], f"column {self.columns[i]!r:.60} is infinite or beyond a double")
        for mask, text in why.suspects:
            why.add(~scored & mask, text)
        why.add(~scored, "no finite score: its numbers are too large")
        places = np.cumsum(scored) - 1
        return self._as_arrow(predictions).take(pa.array(places, mask=~scored)), why.as_arrow()

    def _rows(self, batch: pa.RecordBatch, why: "_Reasons") -> np.ndarray:
        """(n_rows, n_features) float64, or float32 where all columns are; NaN for a null, its place for a category."""
        columns = [batch.column(name) for name in self.columns]
        single = all(pa.types.is_float32(column.type) for column in columns)
        rows = np.empty((len(batch), len(columns)), np.float32 if single else np.float64)
        for i, column in enumerate(columns):
            categories = self._categories[i]
            rows[:, i] = self._numbers(column, i, why) if categories is None else self._places(column, i, why)
        refused = ~self.model.takes_missing_in
        if len(rows) and refused.any() and np.isnan(rows.min()):  # of NaN and anything the least is NaN
            missing = np.isnan(rows)
            for i in np.flatnonzero(missing.any(axis=0) & refused).tolist():
                why.add(missing[:, i], f"column {self.columns[i]!r:.60} is null, and the model needs a value there")
        return rows

    def _numbers(self, column: pa.Array, i: int, why: "_Reasons") -> np.ndarray:
        column = _decoded(column)
        if _is_string(column.type):
            column = self._parsed(column, i, why)
        if column.type in (pa.int64(), pa.uint64()) and len(column) > column.null_count:
            ends = pc.min_max(column).as_py()
            if ends["min"] < -EXACT or ends["max"] > EXACT:
                inside = pc.less_equal(column, pa.scalar(EXACT, column.type))
                if column.type == pa.int64():
                    inside = pc.and_(inside, pc.greater_equal(column, pa.scalar(-EXACT)))
                why.add(_mask(pc.invert(inside)), f"column {self.columns[i]!r:.60} is an integer beyond 2**53, "
                                                  "which a double does not hold")
        if column.type not in (pa.float64(), pa.float32()):
            column = column.cast(pa.float64(), safe=False)
        return column.to_numpy(zero_copy_only=False)

    def _parsed(self, column: pa.Array, i: int, why: "_Reasons") -> pa.Array:
        """Strings as numbers; what is none becomes null with a reason, an empty one null."""
        trimmed = pc.utf8_trim_whitespace(column)
        trimmed = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
        fits = pc.match_substring_regex(trimmed, NUMBER)
        why.add(_mask(pc.invert(fits)), f"column {self.columns[i]!r:.60} is not a number")
        return pc.if_else(fits, trimmed, None).cast(pa.float64())

    def _places(self, column: pa.Array, i: int, why: "_Reasons") -> np.ndarray:
        texts = _decoded(column).cast(pa.string())
        places = pc.index_in(texts, self._categories[i], skip_nulls=True).cast(pa.float64())
        rows = places.to_numpy(zero_copy_only=False)
        unknown = _mask(pc.and_(texts.is_valid(), places.is_null()))
        if unknown.any():
            text = f"column {self.columns[i]!r:.60} is a category that the model does not know"
            rows = np.where(unknown, self.model.signature.unknown, rows)
            if np.isnan(self.model.signature.unknown) and not self.model.takes_missing_in[i]:
                why.add(unknown, text)
            why.suspects.append((unknown, text))
        return rows

    def _answer(self, rows: np.ndarray) -> np.ndarray:
        if self.answer == PREDICT:
            return self.model.predict(rows)
        probabilities = self.model.predict_proba(rows)
        with np.errstate(divide="ignore"):  # of 0 it is minus infinity, as in scikit-learn
            return np.log(probabilities) if self.answer == LOG_PROBABILITIES else probabilities

    def _predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(predictions of the rows that have one, which rows (n) bool those are, None = all)."""
        if not len(rows):
            return self._nothing, None
        with suppress(kernels.ModelError):
            return self._answer(rows), None
        infinite = np.isinf(rows).any(axis=1)
        waiting = [np.flatnonzero(~infinite), np.flatnonzero(infinite)]
        found: list[tuple[np.ndarray, np.ndarray]] = []
        while waiting:
            places = waiting.pop()
            try:
                found += [(places, self._answer(rows[places]))] if len(places) else []
            except kernels.ModelError:
                waiting += np.array_split(places, 2) if len(places) > 1 else []
        if not found:
            return self._nothing, np.zeros(len(rows), bool)
        order = np.concatenate([places for places, _ in found])
        scored = np.zeros(len(rows), bool)
        scored[order] = True
        return np.concatenate([predictions for _, predictions in found])[np.argsort(order)], scored

    @property
    def _nothing(self) -> np.ndarray:
        return np.empty((0, self._width)) if self._is_list else np.empty(0, object)

    def _as_arrow(self, predictions: np.ndarray) -> pa.Array:
        if predictions.ndim == 1:
            return pa.array(predictions, self.prediction_type)
        offsets = np.arange(len(predictions) + 1, dtype=np.int32) * predictions.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(predictions.ravel()))


class _Reasons:
    """Why rows of a batch are not scored: for each the place of a text, from 1, or 0; the first reason stays."""

    def __init__(self, n_rows: int) -> None:
        self.codes, self.texts = np.zeros(n_rows, np.int32), list[str]()
        self.suspects: list[tuple[np.ndarray, str]] = []  # why rows may turn out to have no score

    def add(self, mask: np.ndarray, text: str) -> None:
        mask = mask & (self.codes == 0)
        if mask.any():
            self.texts.append(text)
            self.codes[mask] = len(self.texts)

    def as_arrow(self) -> pa.Array:
        return pa.array(self.texts, pa.string()).take(pa.array(self.codes - 1, mask=self.codes == 0))


def names_of(model: kernels.TabularModel) -> tuple[str, ...] | None:
    """The features' names; None where there are none but those that LightGBM makes up."""
    names = model.signature.feature_names
    return None if names == tuple(f"Column_{i}" for i in range(model.n_features)) else names


def _columns_of(model: kernels.TabularModel, columns: Sequence[str] | None,
                given: Sequence[str] | None) -> tuple[str, ...]:
    """The table's column for each feature; `given` are the features' names whatever the model says."""
    names, n = names_of(model) if given is None else tuple(given), model.n_features
    if columns is None:
        names = names or model.signature.feature_names
        if names is None:
            raise BatchError(f"the model has no feature names: --columns must name its {n} features, in their order")
        return names
    if len(set(columns)) != n or len(columns) != n:
        raise BatchError(f"--columns: expected {n} different columns, as the model has features, found {len(columns)}")
    if names is not None and set(columns) != set(names):
        unknown = next(name for name in columns if name not in names)
        raise BatchError(f"--columns: the model names its features itself, and {unknown!r:.60} is none of them")
    return names or tuple(columns)


def _field(schema: pa.Schema, name: str, what: str) -> pa.Field:
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        raise BatchError(f"expected one column {name!r:.60} for {what}, found {len(places) or 'none'}")
    return schema.field(places[0])


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_string(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _is_number(type_: pa.DataType) -> bool:
    return (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)
            or pa.types.is_decimal(type_))


def _mask(booleans: pa.Array) -> np.ndarray:
    """(n) bool, false for null."""
    return booleans.fill_null(False).to_numpy(zero_copy_only=False)


def _within(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The rows of `outer` (n) bool whose place among them is set in `inner`."""
    mask = outer.copy()
    mask[outer] = inner
    return mask
