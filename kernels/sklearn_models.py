"""A fitted scikit-learn estimator becomes a tabular model: tree ensembles exactly, all else through skl2onnx.

The rule to keep: nothing is approximated. Of a pipeline that ends in a tree ensemble the steps before go through
skl2onnx, in double, and the trees are read as they are; scikit-learn itself is imported only by skl2onnx.
"""

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np

from kernels import boosters, onnx_graph, onnx_lowering
from kernels.ensemble import Booster
from kernels.errors import ModelError
from kernels.program import Builder, Program
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, UNARY_CODES
from kernels.sklearn_trees import booster_of
from kernels.step import Step
from kernels.tabular import Labels, Signature, TabularModel
from kernels.tabular_file import add_pair


def from_sklearn(estimator: Any, *, name: str | None = None, version: str = "1", threads: int = 1,
                 native: bool = True) -> TabularModel:
    """The tabular model of a fitted estimator or pipeline: classifiers and regressors, with what prepares their input.

    `predict` and `predict_proba` are the estimator's own: within 1e-9 for tree ensembles and linear models, 1e-6 where
    skl2onnx rounds to float32 (SVMs). Columns that hold strings are found by the encoders that were fitted on them.
    Raises ModelError for an estimator that is not fitted, that skl2onnx cannot convert, or whose operators are not
    supported. Needs the `sklearn` extra, trees alone do not.
    """
    estimator = _with_empty_strings(getattr(estimator, "best_estimator_", estimator))
    options: dict[str, Any] = {"threads": threads, "native": native}
    title = name or type(_last(estimator)).__name__
    booster = booster_of(_last(estimator))
    if booster is None:
        lowered = _lower(estimator)
        return TabularModel(title, version, lowered.model_type, lowered.signature, lowered.program, **options)
    classes = _labels(_last(estimator))
    front = _front(estimator)
    if front is None:
        n = booster.ensemble.n_features
        builder, value, names, strings = Builder(n), 0, _names(estimator) or booster.feature_names, None
        value, strings = boosters.add_codes(builder, booster)
    else:
        lowered = _lower(front)
        builder, value = _reopened(lowered.program)
        names, strings = lowered.signature.feature_names, lowered.signature.categories
        if booster.categories is not None:
            raise ModelError("expected categories to be encoded by the pipeline, not inside the trees' library")
    program = _with_trees(builder, value, booster, classes)
    task = "classification" if classes is not None else "score" if booster.n_classes else "regression"
    unknown = np.nan if front is None else -1.0
    signature = Signature(builder.n_features, names, classes, task, strings, unknown)
    return TabularModel(title, version, "trees" if front is None else "pipeline", signature, program, **options)


def _last(estimator: Any) -> Any:
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


def _front(estimator: Any) -> Any | None:
    """The steps before the last one, where there are any that do something."""
    steps = [step for _, step in getattr(estimator, "steps", [])[:-1]]
    if all(step is None or step == "passthrough" for step in steps):
        return None
    return estimator[:-1]


def _names(estimator: Any) -> tuple[str, ...] | None:
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else tuple(map(str, names))


def _labels(estimator: Any) -> Labels | None:
    """The class labels: strings, or whole numbers (booleans are 0 and 1)."""
    if not hasattr(estimator, "classes_"):
        return None
    labels = np.asarray(estimator.classes_).tolist()
    if all(type(label) is str for label in labels):
        return tuple(labels)
    if all(isinstance(label, (int, float)) and label == int(label) for label in labels):
        return tuple(int(label) for label in labels)
    raise ModelError("expected class labels that are strings or whole numbers")


def _reopened(program: Program) -> tuple[Builder, int]:
    """A builder that goes on where the program ends, and the value that it predicts."""
    builder = Builder(program.n_features)
    for step in program.steps:
        builder.add(step.op, step.inputs, step.width, numbers=step.numbers, arrays=step.arrays)
    return builder, program.prediction


def _with_trees(builder: Builder, value: int, booster: Booster, classes: Labels | None) -> Program:
    if builder.widths[value] != booster.ensemble.n_features:
        raise ModelError(f"expected {booster.ensemble.n_features} columns before the trees, "
                         f"found {builder.widths[value]}")
    scores = boosters.add_trees(builder, booster, value)
    if classes is None:
        return boosters.add_link(builder, booster, scores)
    n = builder.widths[scores]
    if n == 1:
        scaled = scores
        if booster.link_factor != 1.0:
            scaled = builder.add("binary", (scores,), 1, numbers={"function": BINARY_CODES["mul"]},
                                 arrays={"constant": np.full(1, booster.link_factor)})
        p = builder.add("unary", (scaled,), 1, numbers={"function": UNARY_CODES["sigmoid"]})
        prediction = builder.add("unary", (scores,), 1, numbers={"function": UNARY_CODES["positive"]})
        return builder.finish(prediction, add_pair(builder, p), (scores,))
    prediction = builder.add("reduce", (scores,), 1, numbers={"function": REDUCE_CODES["argmax"], "group": n})
    probabilities = scores if booster.link == "identity" else boosters.add_probabilities(builder, booster, scores)
    return builder.finish(prediction, probabilities, (scores,))


# ---- missing strings ---------------------------------------------------------------------------------------

# ONNX has no missing strings. An encoder that was fitted on them has them as a category of its own, which skl2onnx calls
# "nan"; an imputer of them is converted as one of empty strings. A missing string (NaN in a row) becomes one of the two.
MISSING_STRINGS = ("nan", "")


def _with_empty_strings(estimator: Any) -> Any:
    """The estimator, or a copy in which imputers of missing strings are imputers of empty ones."""
    copied = copy.deepcopy(estimator)
    return copied if any([_empty_strings(imputer) for imputer in _imputers(copied)]) else estimator


def _empty_strings(imputer: Any) -> bool:
    if isinstance(imputer.missing_values, str) or not any(map(_holds_strings, imputer.statistics_)):
        return False
    imputer.missing_values = ""
    return True


def _imputers(estimator: Any) -> list[Any]:
    steps = [step for _, step in getattr(estimator, "steps", [])]
    steps += [step for _, step, _ in getattr(estimator, "transformers_", [])]
    steps += [step for _, step in getattr(estimator, "transformer_list", [])]
    found = [estimator] if type(estimator).__name__ == "SimpleImputer" and hasattr(estimator, "statistics_") else []
    return found + [imputer for step in steps for imputer in _imputers(step)]


def _with_exact_fills(lowered: onnx_lowering.Lowered, estimator: Any) -> onnx_lowering.Lowered:
    """The fill values of numeric imputers in double: in ONNX they are float32, and a tree may tell the two apart."""
    exact: dict[bytes, np.ndarray] = {}
    for imputer in _imputers(estimator):
        if imputer.add_indicator:
            raise ModelError("expected a SimpleImputer without add_indicator, which skl2onnx leaves out")
        if not any(map(_holds_strings, imputer.statistics_)):
            fills = np.asarray(imputer.statistics_, np.float64)
            if exact.setdefault(fills.astype(np.float32).tobytes(), fills).tobytes() != fills.tobytes():
                raise ModelError("expected imputers whose values float32 can tell apart")

    def with_exact(step: Step) -> Step:
        fills = exact.get(step.arrays["fill_values"].astype(np.float32).tobytes()) if step.op == "prepare" else None
        return step if fills is None else step._replace(arrays=step.arrays | {"fill_values": fills})
    program = lowered.program
    return replace(lowered, program=replace(program, steps=tuple(map(with_exact, program.steps))))


def _lower(estimator: Any) -> onnx_lowering.Lowered:
    """The estimator as a program, in which missing strings are what it was fitted on."""
    lowered = _with_exact_fills(onnx_lowering.lower(_convert(estimator)), estimator)
    program, categories = lowered.program, lowered.signature.categories or ()
    places = np.full(program.n_features, np.nan)
    for i, texts in enumerate(categories):
        places[i] = next((texts.index(text) for text in MISSING_STRINGS if text in (texts or ())), np.nan)
    if np.isnan(places).all():
        return lowered
    n = program.n_features
    nothing = np.full(n, np.nan)
    fill = Step("prepare", (0,), n, {}, {"missing": nothing, "fill_values": places, "offset": np.zeros(n),
                                         "scale": np.ones(n)})
    steps = [step._replace(inputs=tuple(value + 1 for value in step.inputs)) for step in program.steps]
    shifted = Program(n, (fill, *steps), program.prediction + 1, program.probabilities + (program.probabilities > 0),
                      program.n_prediction_steps + 1, tuple(value + 1 for value in program.checked))
    return replace(lowered, program=shifted)


# ---- skl2onnx ----------------------------------------------------------------------------------------------

def _convert(estimator: Any) -> onnx_graph.Graph:
    """The graph that skl2onnx makes of an estimator, with inputs in double and strings."""
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import DoubleTensorType, StringTensorType
    except ImportError:
        raise ModelError("converting this estimator needs skl2onnx: pip install 'testigo[sklearn]'") from None
    strings, names, n = string_columns(estimator), _names(estimator), getattr(estimator, "n_features_in_", None)
    if n is None:
        raise ModelError(f"expected a fitted {type(estimator).__name__}: it has no n_features_in_")
    if strings or (names is not None and has_column_transformer(estimator)):
        columns, used = names or tuple(f"x{i}" for i in range(n)), used_columns(estimator)
        types = [(column, (StringTensorType if i in strings else DoubleTensorType)([None, 1]))
                 for i, column in enumerate(columns) if i in used]
    else:
        types = [("X", DoubleTensorType([None, n]))]
    options = {id(_last(estimator)): {"zipmap": False}} if hasattr(_last(estimator), "classes_") else None
    try:
        model = convert_sklearn(estimator, initial_types=types, options=options)
    except Exception as error:  # whatever it raises: it has no error of its own
        reason = " ".join(str(error).split())
        raise ModelError(f"skl2onnx cannot convert this {type(estimator).__name__}: {reason:.200}") from None
    if len(types) == 1 and names is not None and not strings:
        _set_names(model, names)
    return onnx_graph.from_model(model, None)


def _set_names(model: Any, names: tuple[str, ...]) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "feature_names", json.dumps(list(names))


def has_column_transformer(estimator: Any) -> bool:
    """Whether columns are chosen somewhere in it, by name perhaps."""
    if hasattr(estimator, "transformers_"):
        return True
    return any(has_column_transformer(step) for _, step in getattr(estimator, "steps", []))


def used_columns(estimator: Any) -> set[int]:
    """Which of its input columns, where they have names, an estimator does not drop."""
    first = next((step for _, step in getattr(estimator, "steps", []) if not isinstance(step, str)), estimator)
    everything = set(range(estimator.n_features_in_))
    if not hasattr(first, "transformers_") or _names(first) is None:
        return everything
    return {place for _, transformer, columns in first.transformers_ for place in _places(first, columns)
            if not (isinstance(transformer, str) and transformer == "drop")}


def string_columns(estimator: Any) -> set[int]:
    """Which of its input columns an estimator was fitted on as strings."""
    if hasattr(estimator, "transformers_"):
        found: set[int] = set()
        for _, transformer, columns in estimator.transformers_:
            places = _places(estimator, columns)
            if not isinstance(transformer, str):
                found |= {places[i] for i in string_columns(transformer) if i < len(places)}
        return found
    for _, step in getattr(estimator, "steps", []):
        if step is not None and not isinstance(step, str):
            return string_columns(step)  # the first step sees the columns
    for name in ("categories_", "statistics_"):
        fitted = getattr(estimator, name, None)
        if fitted is not None:
            return {i for i, values in enumerate(fitted) if _holds_strings(values)}
    return set()


def _holds_strings(values: Any) -> bool:
    items = np.atleast_1d(np.asarray(values, object)).tolist()
    return any(isinstance(item, str) for item in items)


def _places(transformer: Any, columns: Any) -> list[int]:
    """The numbers of chosen columns."""
    n = transformer.n_features_in_
    names = list(getattr(transformer, "feature_names_in_", ()))
    if isinstance(columns, slice):
        return list(range(n))[columns]
    chosen = [columns] if isinstance(columns, (str, int, np.integer)) else list(columns)
    if chosen and all(isinstance(column, (bool, np.bool_)) for column in chosen):
        return [i for i, column in enumerate(chosen) if column]
    return [names.index(column) if isinstance(column, str) else int(column) % n for column in chosen]
