"""Comparing a model with the one that it was made from, which the library that trained it computes in double precision.

The rule to keep: what is expected comes from that library alone, whose own reader opens the original; of what is here
only the types of columns are used, to give the library its rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels import lightgbm_text, model_file, onnxruntime_engine, xgboost_json
from kernels.errors import ModelError
from kernels.tabular import TabularModel

DOUBLE, FLOAT = 1e-9, 1e-6  # tolerances: of models with thresholds and weights of these types
PICKLES = (".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class Expected:
    """What the training library says of rows."""

    library: str                       # its name and version
    predictions: np.ndarray            # (n) labels or values, or (n, n_outputs)
    probabilities: np.ndarray | None   # (n, n_classes)
    has_labels: bool
    is_double: bool


@dataclass(frozen=True)
class Comparison:
    """One kind of answer, row by row: what was found here, and what the library says."""

    what: str               # label, prediction or probability
    found: np.ndarray       # (n) or (n, k)
    expected: np.ndarray    # the same shape
    difference: np.ndarray  # (n) float64: the largest of a row, relative to values above 1; infinite for another label

    def beyond(self, tolerance: float) -> np.ndarray:
        """The numbers of the rows that differ by more than this, in order."""
        return np.flatnonzero(self.difference > tolerance)


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    library: str
    n_rows: int
    tolerance: float
    comparisons: tuple[Comparison, ...]

    @property
    def is_right(self) -> bool:
        return not any(len(one.beyond(self.tolerance)) for one in self.comparisons)


def verify(model: TabularModel, original: str | Path, frame: Any, tolerance: float | None = None,
           allow_pickle: bool = False) -> Report:
    """Compare a model with the file that it was made from, on the rows of a data frame (pandas).

    The original is LightGBM's text, XGBoost's JSON or UBJSON, ONNX, or, where `allow_pickle` says that it is to be
    trusted, a pickled scikit-learn estimator: unpickling runs whatever code the file holds. Without a tolerance it is
    1e-9, or 1e-6 where the original or the model computes in float32. Raises ModelError where the original cannot be
    read or has no answer, where its library is missing, and where the two cannot be compared.
    """
    original = Path(original)
    rows = rows_of(model, frame)
    expected = _read_original(original, allow_pickle)(original, frame)
    comparisons = tuple(_compare(model, rows, expected))
    if tolerance is None:
        tolerance = DOUBLE if expected.is_double and not _computes_in_float(model) else FLOAT
    return Report(expected.library, len(rows), tolerance, comparisons)


def rows_of(model: TabularModel, frame: Any) -> np.ndarray:
    """A data frame's rows as the model takes them, (n, n_features) float64: its columns by name, else all in order."""
    names = column_names(model.signature.feature_names, frame)
    if names is not None:
        frame = frame[list(names)]
    if frame.shape[1] != model.n_features:
        raise ModelError(f"expected {model.n_features} columns in the data, found {frame.shape[1]}")
    try:
        cells = frame.astype(object).where(frame.notna(), None).to_numpy(object)
        return model.encode(cells)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError("expected numbers in the data's columns, and strings where the model takes them") from None


def column_names(names: tuple[str, ...] | None, frame: Any) -> tuple[str, ...] | None:
    """The columns that are a model's features; None for all of them, in order."""
    if names is None or (names == default_names(len(names)) and not set(names) <= set(frame.columns)):
        return None
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ModelError(f"expected the columns {', '.join(missing[:8]):.200} in the data")
    return names


def default_names(n: int) -> tuple[str, ...]:
    """What LightGBM calls columns without names."""
    return tuple(f"Column_{i}" for i in range(n))


# ---- comparing ---------------------------------------------------------------------------------------------

def _compare(model: TabularModel, rows: np.ndarray, expected: Expected) -> list[Comparison]:
    found, classes = model.predict(rows), model.signature.classes
    comparisons = []
    if classes is not None:
        if expected.has_labels:
            comparisons.append(_labels(found, expected.predictions))
        elif expected.probabilities is not None and expected.probabilities.shape[1] == len(classes):
            best = np.argmax(expected.probabilities, axis=1)
            comparisons.append(_labels(found, np.array(classes, object)[best]))
    elif not expected.has_labels:
        comparisons.append(_numbers("prediction", found, expected.predictions))
    if model.n_classes and expected.probabilities is not None:
        comparisons.append(_numbers("probability", model.predict_proba(rows), expected.probabilities))
    if not comparisons:
        raise ModelError("expected two models that both give labels, numbers or probabilities")
    return comparisons


def _labels(found: np.ndarray, expected: np.ndarray) -> Comparison:
    differs = np.array([a != b for a, b in zip(found.tolist(), expected.tolist(), strict=True)], bool)
    return Comparison("label", found, expected, np.where(differs, np.inf, 0.0))


def _numbers(what: str, found: np.ndarray, expected: np.ndarray) -> Comparison:
    if found.shape != expected.shape and found.size == expected.size:
        expected = expected.reshape(found.shape)
    if found.shape != expected.shape:
        raise ModelError(f"expected answers of shape {expected.shape}, found {found.shape}: this is another model's "
                         "original")
    expected = expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    difference = np.where(np.isfinite(difference), difference, np.inf).reshape(len(found), -1)
    return Comparison(what, found, expected, difference.max(axis=1, initial=0.0))


def _computes_in_float(model: TabularModel) -> bool:
    """Whether a step rounds to float32."""
    if model.kernel == "onnxruntime":
        return True
    return any(step.numbers.get(name) for step in model.program.steps
               for name in ("rounds", "rounds_inputs", "rounds_sums"))


# ---- originals ---------------------------------------------------------------------------------------------

def _read_original(path: Path, allow_pickle: bool) -> Callable[[Path, Any], Expected]:
    kind = model_file.kind_of(path)
    if kind == model_file.PICKLE or kind is None and path.suffix in PICKLES:
        if not allow_pickle:
            raise ModelError(f"{path.name}: this looks like a pickle, which runs code of its own when it is loaded: "
                             "compare with it only where you trust whoever made it, with --allow-pickle")
        return _pickle
    if kind not in ORIGINALS:
        raise ModelError(f"{path.name}: expected an original in LightGBM's text, XGBoost's JSON or UBJSON, ONNX, or a "
                         f"pickled scikit-learn estimator, found {kind or 'none of them'}")
    return ORIGINALS[kind]


def _missing(package: str) -> ModelError:
    return ModelError(f"comparing with this original needs its library: pip install {package}")


def _lightgbm(path: Path, frame: Any) -> Expected:
    try:
        import lightgbm
    except ImportError:
        raise _missing("lightgbm") from None
    known = lightgbm_text.read(path.read_bytes(), path.name)
    columns = _columns(path, known.feature_names, known.ensemble.n_features, frame)
    columns = _with_categories(columns, known.categories or ())
    try:
        booster = lightgbm.Booster(model_file=str(path))
        # As numbers where it has no categories of its own: a column's type would not be the training data's.
        found = np.asarray(booster.predict(columns if known.categories else _numbers_of(columns)))
    except (lightgbm.basic.LightGBMError, TypeError, ValueError) as error:
        raise _unanswered(path, "LightGBM", error) from None
    return Expected(f"LightGBM {lightgbm.__version__}", found, _probabilities(found, known.n_classes), False, True)


def _xgboost(path: Path, frame: Any) -> Expected:
    try:
        import xgboost
    except ImportError:
        raise _missing("xgboost") from None
    known = xgboost_json.read(path.read_bytes(), path.name)
    columns = _columns(path, known.feature_names, known.ensemble.n_features, frame)
    options: dict[str, Any] = {"enable_categorical": True}
    try:
        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(bytearray(path.read_bytes()))
        if known.categories:
            data = xgboost.DMatrix(_with_categories(columns, known.categories), **options)
        else:
            data = xgboost.DMatrix(_numbers_of(columns), feature_names=booster.feature_names,
                                   feature_types=booster.feature_types, **options)
        found = booster.predict(data)
        probabilities = _probabilities(found, known.n_classes) if known.link != "hinge" else None
        if known.link == "argmax":
            probabilities = _softmax(booster.predict(data, output_margin=True))
    except (xgboost.core.XGBoostError, TypeError, ValueError) as error:
        raise _unanswered(path, "XGBoost", error) from None
    return Expected(f"XGBoost {xgboost.__version__}", found, probabilities, False, False)


def _onnx(path: Path, frame: Any) -> Expected:
    model = onnxruntime_engine.read(path)
    import onnxruntime
    rows = rows_of(model, frame)
    return Expected(f"ONNX Runtime {onnxruntime.__version__}", model.predict(rows),
                    model.predict_proba(rows) if model.n_classes else None, model.signature.classes is not None, False)


def _pickle(path: Path, frame: Any) -> Expected:
    try:
        import joblib
        import sklearn.base
    except ImportError:
        raise _missing("scikit-learn") from None
    try:
        estimator = joblib.load(path)
    except Exception as error:  # a pickle may raise whatever it likes
        raise ModelError(f"{path.name}: expected a pickled estimator of packages that are installed here: "
                         f"{type(error).__name__}: {' '.join(str(error).split()):.200}") from None
    if not hasattr(estimator, "predict"):
        raise ModelError(f"{path.name}: expected an estimator that predicts, found {type(estimator).__name__:.80}")
    names = getattr(estimator, "feature_names_in_", None)
    n_features = getattr(estimator, "n_features_in_", frame.shape[1])
    columns = _columns(path, None if names is None else tuple(names), n_features, frame)
    rows = columns.to_numpy() if names is None else columns
    try:
        found = np.asarray(estimator.predict(rows))
        probabilities = np.asarray(estimator.predict_proba(rows)) if hasattr(estimator, "predict_proba") else None
    except (TypeError, ValueError) as error:
        raise _unanswered(path, "the estimator", error) from None
    return Expected(f"scikit-learn {sklearn.__version__}", found, probabilities, sklearn.base.is_classifier(estimator),
                    True)


ORIGINALS: dict[str | None, Callable[[Path, Any], Expected]] = {
    model_file.LIGHTGBM: _lightgbm, model_file.XGBOOST_JSON: _xgboost, model_file.XGBOOST_UBJSON: _xgboost,
    model_file.ONNX: _onnx,
}


def _unanswered(path: Path, library: str, error: Exception) -> ModelError:
    return ModelError(f"{path.name}: {library} has no answer for these rows: {' '.join(str(error).split()):.200}")


def _columns(path: Path, names: tuple[str, ...] | None, n_features: int, frame: Any) -> Any:
    """The columns of an original's features."""
    found = column_names(names, frame)
    columns = frame if found is None else frame[list(found)]
    if columns.shape[1] != n_features:
        raise ModelError(f"{path.name}: expected {n_features} columns in the data, found {columns.shape[1]}")
    return columns


def _numbers_of(columns: Any) -> np.ndarray:
    return columns.to_numpy(np.float64, na_value=np.nan)


def _with_categories(columns: Any, categories: tuple) -> Any:
    """The columns with those of categories as pandas' type of that name, which both libraries go by."""
    return columns.assign(**{name: _as_category(columns[name], values)
                             for name, values in zip(columns.columns, categories, strict=False) if values is not None})


def _as_category(column: Any, values: tuple) -> Any:
    """A column of one of these values or none; integers and bools as such, which our readers have as float64."""
    made = column.astype("category")
    kind = bool if made.cat.categories.dtype == bool else int
    return made.cat.set_categories([value if isinstance(value, str) or value != kind(value) else kind(value)
                                    for value in values])


def _probabilities(predictions: np.ndarray, n_classes: int) -> np.ndarray | None:
    """Those of a booster's predictions, which are probabilities themselves: (n) → (n, 2)."""
    if not n_classes:
        return None
    return np.column_stack([1 - predictions, predictions]) if predictions.ndim == 1 else predictions


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
