"""A fitted scikit-learn estimator becomes a tabular model: tree ensembles exactly, all else through skl2onnx.

The rule to keep: nothing is approximated, and nothing trusted. Each step of a pipeline goes through skl2onnx by
itself, in double; a tree ensemble at the end is read as it is; then the model must answer made-up rows as the
estimator does. scikit-learn itself is imported only by skl2onnx.
"""

import copy
import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from kernels import boosters, onnx_graph, onnx_lowering, quants
from kernels.ensemble import AVERAGE, Booster
from kernels.errors import ModelError
from kernels.gguf import F64
from kernels.program import Builder, Program
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, UNARY_CODES, runs_of
from kernels.sklearn_trees import READERS, booster_of
from kernels.tabular import Labels, Signature, TabularModel
from kernels.tabular_file import add_dense, add_pair, finish


def from_sklearn(estimator: Any, *, name: str | None = None, version: str = "1", threads: int = 1,
                 native: bool = True) -> TabularModel:
    """The tabular model of a fitted estimator or pipeline: classifiers and regressors, with what prepares their input.

    `predict` and `predict_proba` are the estimator's own: within 1e-9 for tree ensembles and linear models, 1e-6 where
    skl2onnx or XGBoost rounds to float32 (SVMs). Columns that hold strings are found by the encoders that were fitted
    on them; a missing string is None or NaN in a row, and `MISSING` among its categories. Raises ModelError for an
    estimator that is not fitted, that skl2onnx cannot convert, whose operators are not supported, and for one that
    answers made-up rows differently. Needs the `sklearn` extra, trees alone do not.
    """
    steps = _steps(estimator)
    while len(steps) > 1 and type(steps[0]).__name__ == "SimpleImputer" and string_columns(steps[0]):
        pair = [("imputer", steps[0]), ("next", steps[1])]  # strings are nothing that programs hold between steps
        steps[:2] = [type(_unwrapped(estimator))(pair)]
    last = steps[-1]
    booster = booster_of(last)
    lowered = [_lower(step, is_first=step is steps[0], is_last=step is last)
               for step in (steps if booster is None else steps[:-1])]
    parts = _joined(lowered, last, booster) if lowered or booster is None else _trees_alone(last, booster)
    model_type, signature, program, takes_missing_in = parts
    model = TabularModel(name or type(last).__name__, version, model_type, signature, program, threads=threads,
                         native=native, takes_missing_in=takes_missing_in)
    if lowered:
        _compare(model, _unwrapped(estimator))
    return model


def _unwrapped(estimator: Any) -> Any:
    """What a search found."""
    return getattr(estimator, "best_estimator_", estimator)


def _steps(estimator: Any) -> list[Any]:
    """The steps of a pipeline, and of pipelines in it, that do something; an estimator alone is one step."""
    estimator = _unwrapped(estimator)
    if not hasattr(estimator, "steps"):
        return [estimator]
    steps = [step for _, one in estimator.steps if not (one is None or isinstance(one, str)) for step in _steps(one)]
    if not steps:
        raise ModelError("expected a pipeline of one step or more")
    for step in steps[:-1]:
        if hasattr(step, "predict") and not hasattr(step, "support_"):  # recursive feature elimination predicts, too
            raise ModelError(f"expected a model as the last step alone, found {type(step).__name__} before it")
    return steps


def _names(estimator: Any) -> tuple[str, ...] | None:
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else tuple(map(str, names))


def _labels(estimator: Any) -> Labels | None:
    """The class labels: strings, or whole numbers (booleans are 0 and 1)."""
    if not hasattr(estimator, "classes_"):
        return None
    if isinstance(estimator.classes_, list):
        raise ModelError(f"expected an estimator with one output, found {len(estimator.classes_)}")
    labels = np.asarray(estimator.classes_).tolist()
    if len(labels) < 2:
        raise ModelError(f"expected a {type(estimator).__name__} of two classes or more, found {len(labels)}")
    if all(type(label) is str for label in labels):
        return tuple(labels)
    if all(isinstance(label, (int, float)) and label == int(label) for label in labels):
        return tuple(int(label) for label in labels)
    raise ModelError("expected class labels that are strings or whole numbers")


# ---- programs ----------------------------------------------------------------------------------------------

Parts = tuple[str, Signature, Program, np.ndarray]  # model type, signature, program, where a value may be missing


def _trees_alone(estimator: Any, booster: Booster) -> Parts:
    n = booster.ensemble.n_features
    builder = _CheckingBuilder(n)
    value, strings = boosters.add_codes(builder, booster)
    if not takes_missing(estimator):
        value = builder.add("move", (0,), n, arrays={"runs": np.array([[0, 0, n]]), "constants": np.empty(0)})
        builder.poisons.add(value)
    classes = _labels(estimator)
    program = _with_trees(builder, value, estimator, booster)
    task = "classification" if classes is not None else "score" if booster.n_classes else "regression"
    signature = Signature(n, _names(estimator) or booster.feature_names, classes, task, strings)
    return "trees", signature, program, np.full(n, takes_missing(estimator))


def _joined(lowered: list[onnx_lowering.Lowered], last: Any, booster: Booster | None) -> Parts:
    """The steps one behind the other, the trees at last."""
    first = lowered[0]
    builder, value = _CheckingBuilder(first.program.n_features), 0
    for one in lowered:
        if one.program.n_features != builder.widths[value]:
            raise ModelError(f"expected {one.program.n_features} columns, found {builder.widths[value]}: "
                             "skl2onnx makes something else of the step before")
        numbers = _append(builder, one.program, value)
        value = numbers[one.program.prediction]
        builder.poisons |= {numbers[each] for each in one.program.checked} - {value}
    signature, classes = first.signature, _labels(last)
    if booster is None:
        signature = replace(signature, classes=lowered[-1].signature.classes, task=lowered[-1].signature.task)
        if signature.classes != classes:
            raise ModelError(f"skl2onnx gives {type(last).__name__} other classes: expected strings, or whole numbers "
                             "of 32 bits")
        places = lowered[-1].program.probabilities if hasattr(last, "predict_proba") else 0  # else they are scores
        checked = tuple(numbers[each] for each in lowered[-1].program.checked)
        program = builder.finish(value, numbers[places] if places else 0, checked)
    else:
        if booster.categories is not None:
            raise ModelError("expected categories to be encoded by the pipeline, not inside the trees' library")
        if not takes_missing(last):
            builder.poisons.add(value)
        program = _with_trees(builder, value, last, booster)
        task = "classification" if classes is not None else "score" if booster.n_classes else "regression"
        signature = replace(signature, classes=classes, task=task)
    model_type = first.model_type if booster is None and len(lowered) == 1 else "pipeline"
    return model_type, signature, program, replace(first, program=program).takes_missing_in


def _append(builder: Builder, program: Program, value: int) -> list[int]:
    """Add a program's steps, which begin with this value; → the numbers that its own values have now."""
    numbers = [value]
    for step in program.steps:
        numbers.append(builder.add(step.op, [numbers[each] for each in step.inputs], step.width, numbers=step.numbers,
                                   arrays=step.arrays))
    return numbers


# How a kind of tree ensemble chooses a class, where not by the largest score, or of two the second by a positive one.
BY_PROBABILITY, NOT_NEGATIVE = "the largest probability", "the second where the score is not negative"
DECISIONS = {"GradientBoostingClassifier": NOT_NEGATIVE, "LGBMClassifier": BY_PROBABILITY,
             "XGBClassifier": BY_PROBABILITY, "XGBRFClassifier": BY_PROBABILITY}


def takes_missing(estimator: Any) -> bool:
    """Whether a kind of tree ensemble takes NaN."""
    return not type(estimator).__name__.startswith("GradientBoosting")


class _CheckingBuilder(Builder):
    """A builder whose program checks `poisons`, too: NaN in one of them means a row that has no answer."""

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.poisons: set[int] = set()

    def finish(self, prediction: int, probabilities: int, checked: tuple[int, ...]) -> Program:
        return super().finish(prediction, probabilities, (*checked, *self.poisons))


def _with_trees(builder: Builder, value: int, estimator: Any, booster: Booster) -> Program:
    if builder.widths[value] != booster.ensemble.n_features:
        raise ModelError(f"expected {booster.ensemble.n_features} columns before the trees, "
                         f"found {builder.widths[value]}")
    scores = boosters.add_trees(builder, booster, value)
    classes = _labels(estimator)
    if classes is None:
        return boosters.add_link(builder, booster, scores)
    n = builder.widths[scores]
    if booster.link == "identity" and booster.ensemble.aggregate != AVERAGE:
        raise ModelError(f"expected a {type(estimator).__name__} with an objective that gives probabilities")
    if n != len(classes) and (n, len(classes), booster.link) != (1, 2, "sigmoid"):
        raise ModelError(f"expected a {type(estimator).__name__} with an objective that gives probabilities, "
                         f"found {n} scores of {len(classes)} classes")
    decision = DECISIONS.get(type(estimator).__name__)
    if n > 1:
        probabilities = scores if booster.link == "identity" else boosters.add_probabilities(builder, booster, scores)
        best = probabilities if decision == BY_PROBABILITY else scores
        return builder.finish(_argmax(builder, best), probabilities, (scores,))
    p = boosters.add_probabilities(builder, booster, scores)
    if decision == BY_PROBABILITY:
        above = builder.add("binary", (p,), 1, numbers={"function": BINARY_CODES["sub"]},
                            arrays={"constant": np.full(1, 0.5)})
        prediction = _unary(builder, above, "positive")
    elif decision == NOT_NEGATIVE:
        prediction = _unary(builder, _unary(builder, _unary(builder, scores, "neg"), "positive"), "complement")
    else:
        prediction = _unary(builder, scores, "positive")
    return builder.finish(prediction, add_pair(builder, p), (scores,))


def _unary(builder: Builder, value: int, function: str) -> int:
    return builder.add("unary", (value,), builder.widths[value], numbers={"function": UNARY_CODES[function]})


# ---- linear classifiers ----------------------------------------------------------------------------------------

# Those that skl2onnx does not convert in double, or converts wrongly (two classes of a discriminant analysis).
LINEAR = ("LinearDiscriminantAnalysis", "LinearSVC", "RidgeClassifier", "RidgeClassifierCV")


def _linear(estimator: Any) -> onnx_lowering.Lowered:
    """A class by its linear score, or the largest of several, in double."""
    classes, weights = _labels(estimator) or (), np.atleast_2d(np.asarray(estimator.coef_, np.float64))
    n_scores, n = weights.shape
    if n_scores != (1 if len(classes) == 2 else len(classes)):
        raise ModelError(f"expected an estimator with one output, found {n_scores} of {len(classes)} classes")
    builder = Builder(n)
    padded = np.pad(weights, [(0, 0), (0, -n % quants.BLOCK)])
    bias = np.broadcast_to(np.asarray(estimator.intercept_, np.float64), n_scores)
    scores = add_dense(builder, 0, quants.quantize(padded, F64), F64, bias, n)
    if hasattr(estimator, "predict_proba"):
        program = finish(builder, scores, "classification", len(classes))
    elif n_scores == 1:
        program = builder.finish(_unary(builder, scores, "positive"), 0, (scores,))
    else:
        program = builder.finish(_argmax(builder, scores), 0, (scores,))
    signature = Signature(n, _names(estimator), classes, "classification")
    return onnx_lowering.Lowered(program, signature, "linear", np.ones(n))


def _argmax(builder: Builder, scores: int) -> int:
    return builder.add("reduce", (scores,), 1, numbers={"function": REDUCE_CODES["argmax"],
                                                        "group": builder.widths[scores]})


# ---- missing and unknown strings ----------------------------------------------------------------------------

# ONNX has no missing strings. This one stands for them: what imputers fill and what encoders were fitted on as NaN.
MISSING = "(missing)"


class _Missing(float):
    """NaN among an encoder's categories, which skl2onnx asks for its text."""

    def __str__(self) -> str:
        return MISSING


def _adapted(estimator: Any) -> Any:
    """A copy that skl2onnx converts rightly: what is missing among strings is `MISSING`."""
    copied = copy.deepcopy(estimator)
    for one in _parts(copied):
        kind = type(one).__name__
        if kind == "SimpleImputer" and _holds_strings(one.statistics_) and not isinstance(one.missing_values, str):
            one.missing_values = MISSING
        if kind in ENCODERS:
            _mark_missing(one)
        if kind == "Binarizer":
            one.threshold = np.nextafter(float(one.threshold), np.inf)  # 1 above it: there, also where they are equal
        if kind == "ColumnTransformer":
            names = _names(one)
            one.transformers_ = [(name, inner, [names[i] if names else i for i in _places(one, columns)])
                                 for name, inner, columns in one.transformers_]
    return copied


ENCODERS = ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")


def _mark_missing(encoder: Any) -> None:
    for i, values in enumerate(encoder.categories_):
        missing = [is_missing(value) for value in values]
        if not _holds_strings(values) or not any(missing):
            continue
        if sum(missing) > 1 or MISSING in values:
            raise ModelError(f"expected one missing value among the strings of {type(encoder).__name__}")
        if np.isnan(getattr(encoder, "encoded_missing_value", 0.0)):
            raise ModelError("expected an OrdinalEncoder behind an imputer, or with an encoded_missing_value: skl2onnx "
                             "takes missing strings for a category")
        encoder.categories_[i] = np.array([_Missing("nan") if gone else value
                                           for value, gone in zip(values, missing, strict=True)], object)


def is_missing(value: object) -> bool:
    return value is None or value != value


def _parts(estimator: Any) -> list[Any]:
    """An estimator and the fitted ones in it."""
    inner = [one for _, one in getattr(estimator, "steps", [])]
    inner += [one for _, one, _ in getattr(estimator, "transformers_", [])]
    inner += [one for _, one in getattr(estimator, "transformer_list", [])]
    inner += [one for one in np.ravel(getattr(estimator, "estimators_", [])) if hasattr(one, "get_params")]
    inner += [one.estimator for one in getattr(estimator, "calibrated_classifiers_", [])]
    inner += [getattr(estimator, name) for name in ("best_estimator_", "final_estimator_") if hasattr(estimator, name)]
    return [estimator] + [part for one in inner if not isinstance(one, str) and one is not None for part in _parts(one)]


def strict_columns(estimator: Any) -> dict[int, set[str]]:
    """The columns of which unknown strings are refused, with the strings that are known."""
    found: dict[int, set[str]] = {}

    def add(columns: dict[int, set[str]]) -> None:
        for i, known in columns.items():
            found[i] = found.get(i, known) & known
    if hasattr(estimator, "transformers_"):
        for _, transformer, columns in estimator.transformers_:
            places = _places(estimator, columns)
            add({places[i]: known for i, known in strict_columns(transformer).items()})
    for _, one in getattr(estimator, "transformer_list", []):
        add(strict_columns(one))
    filled: list[Any] = []
    for _, step in getattr(estimator, "steps", []):
        if type(step).__name__ == "SimpleImputer":
            filled = list(step.statistics_)
        elif step is not None and not isinstance(step, str):
            add({i: known | ({MISSING} if filled and str(filled[i]) in known else set())
                 for i, known in strict_columns(step).items()})
            break
    if type(estimator).__name__ in ENCODERS and getattr(estimator, "handle_unknown", "") == "error":
        found |= {i: {MISSING if is_missing(value) else str(value) for value in values}
                  for i, values in enumerate(estimator.categories_) if _holds_strings(values)}
    return found


def _lower(estimator: Any, is_first: bool, is_last: bool) -> onnx_lowering.Lowered:
    """One step as a program; of the first one the columns may have names and strings."""
    if getattr(estimator, "n_features_in_", None) is None:
        raise ModelError(f"expected a fitted {type(estimator).__name__}: it has no n_features_in_")
    _check_parts(estimator)
    if type(estimator).__name__ in LINEAR:
        return _linear(estimator)
    lowered = _lowered(_convert(_adapted(estimator), is_first, is_last), type(estimator).__name__)
    lowered = _with_exact_categories(_with_exact_numbers(lowered, estimator), estimator)
    if any(step.op == "trees" for step in lowered.program.steps):
        raise ModelError(f"expected trees as the last step, one of {', '.join(READERS)}: those in "
                         f"{type(estimator).__name__} would be rounded by skl2onnx")
    return _with_strings(lowered, estimator) if lowered.signature.categories else lowered


def _lowered(graph: onnx_graph.Graph, name: str) -> onnx_lowering.Lowered:
    try:
        return onnx_lowering.lower(graph)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def _with_strings(lowered: onnx_lowering.Lowered, estimator: Any) -> onnx_lowering.Lowered:
    """Begins with steps that give missing strings their place, and check those that must be known."""
    program, categories, n = lowered.program, lowered.signature.categories or (), lowered.program.n_features
    strict = strict_columns(estimator)
    kept = sorted(used_columns(estimator)) if _names(estimator) else list(range(n))
    missing_places = np.full(n, np.nan)
    builder = _CheckingBuilder(n)
    for i, texts in enumerate(categories):
        if texts is not None:
            missing_places[i] = texts.index(MISSING) if MISSING in texts else -1.0
    value = builder.add("prepare", (0,), n, arrays={
        "missing": np.full(n, np.nan), "fill_values": missing_places, "offset": np.zeros(n), "scale": np.ones(n)})
    for i, texts in enumerate(categories):
        if texts is not None and kept[i] in strict:
            known = np.array([place for place, text in enumerate(texts) if text in strict[kept[i]]], np.float64)
            column = builder.add("move", (value,), 1, arrays={"runs": runs_of([(0, i)]), "constants": np.empty(0)})
            builder.poisons.add(builder.add("lookup", (column,), 1, arrays={
                "keys": known, "values": np.append(np.zeros(len(known)), [np.nan, np.nan])}))
    numbers = _append(builder, program, value)
    made = builder.finish(numbers[program.prediction], numbers[program.probabilities] if program.probabilities else 0,
                          tuple(numbers[each] for each in program.checked))
    return replace(lowered, program=made)


# ---- what skl2onnx leaves out --------------------------------------------------------------------------------

# What it converts as the estimator inside.
UNSUPPORTED = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")


def _check_parts(estimator: Any) -> None:
    if type(estimator).__name__ in UNSUPPORTED:
        raise ModelError(f"expected an estimator without a threshold of its own, found {type(estimator).__name__}")
    for one in _parts(estimator):
        if getattr(one, "break_ties", False) and len(one.classes_) > 2:
            raise ModelError(f"expected a {type(one).__name__} without break_ties, which skl2onnx leaves out")
        if type(one).__name__ == "SimpleImputer":
            if not hasattr(one, "statistics_"):
                raise ModelError("expected a fitted SimpleImputer: it has no statistics_")
            if one.add_indicator:
                raise ModelError("expected a SimpleImputer without add_indicator, which skl2onnx leaves out")


def _exact_numbers(estimator: Any) -> dict[tuple[str, str], np.ndarray]:
    """(op, array) → the numbers that skl2onnx rounds to float32, in double, for steps of this kind."""
    fills, missing, encodings, keys = [], [], [], []
    for one in _parts(estimator):
        if type(one).__name__ == "SimpleImputer" and not _holds_strings(one.statistics_):
            fills.append(np.asarray(one.statistics_, np.float64))
            missing.append(np.atleast_1d(np.asarray(one.missing_values, np.float64)))
        if type(one).__name__ == "TargetEncoder":
            encodings += [*one.encodings_, np.ravel(one.target_mean_)]
        if type(one).__name__ in ENCODERS:
            keys += [np.asarray(values, np.float64) for values in one.categories_ if not _holds_strings(values)]
    found = {("prepare", "fill_values"): fills, ("prepare", "missing"): missing, ("lookup", "values"): encodings,
             ("lookup", "keys"): keys, ("onehot", "keys"): keys}
    numbers = {place: np.unique(np.concatenate(each)) for place, each in found.items() if each}
    return {place: each[~np.isnan(each)] for place, each in numbers.items() if not np.isnan(each).all()}


def _with_exact_numbers(lowered: onnx_lowering.Lowered, estimator: Any) -> onnx_lowering.Lowered:
    """Fill values and encodings in double: in ONNX they are float32, and a tree may tell the two apart."""
    steps = list(lowered.program.steps)
    for (op, name), numbers in _exact_numbers(estimator).items():
        rounded = numbers.astype(np.float32).astype(np.float64)
        if (np.diff(rounded) == 0).any():
            raise ModelError("expected imputers and encoders whose values float32 can tell apart")
        for i, step in enumerate(steps):
            if step.op == op:
                found = step.arrays[name]
                place = np.searchsorted(rounded, found).clip(0, len(rounded) - 1)
                exact = np.where(rounded[place] == found, numbers[place], found)
                steps[i] = step._replace(arrays=step.arrays | {name: exact})
    return replace(lowered, program=replace(lowered.program, steps=tuple(steps)))


def _with_exact_categories(lowered: onnx_lowering.Lowered, estimator: Any) -> onnx_lowering.Lowered:
    """Numbers compared with an encoder's categories as they are: skl2onnx takes 2.5 for 2."""
    if not any(type(one).__name__ in ENCODERS for one in _parts(estimator)):
        return lowered
    steps, rounding = list(lowered.program.steps), (UNARY_CODES["trunc"], UNARY_CODES["float32"])
    rounded = {i + 1: step.inputs for i, step in enumerate(steps)
               if step.op == "unary" and step.numbers["function"] in rounding}
    for i, step in enumerate(steps):
        while step.op in ("onehot", "lookup") and step.inputs[0] in rounded:
            step = steps[i] = step._replace(inputs=rounded[step.inputs[0]])
    return replace(lowered, program=replace(lowered.program, steps=tuple(steps)))


# ---- skl2onnx ----------------------------------------------------------------------------------------------

def _convert(estimator: Any, is_first: bool, is_last: bool) -> onnx_graph.Graph:
    """The graph that skl2onnx makes of an estimator, with inputs in double; of the first one with names and strings."""
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import DoubleTensorType, StringTensorType
    except ImportError:
        raise ModelError("converting this estimator needs skl2onnx: pip install 'testigo[sklearn]'") from None
    n, names = estimator.n_features_in_, _names(estimator) if is_first else None
    strings = string_columns(estimator) if is_first else set()
    if len(strings) == n and not hasattr(estimator, "transformers_"):
        types = [("X", StringTensorType([None, n]))]
    elif strings or (names is not None and hasattr(estimator, "transformers_")):
        columns, used = names or tuple(f"x{i}" for i in range(n)), used_columns(estimator)
        types = [(column, (StringTensorType if i in strings else DoubleTensorType)([None, 1]))
                 for i, column in enumerate(columns) if i in used]
    else:
        types = [("X", DoubleTensorType([None, n]))]
    options = {id(estimator): {"zipmap": False}} if is_last and hasattr(estimator, "classes_") else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it reads attributes that scikit-learn deprecates
            model = convert_sklearn(estimator, initial_types=types, options=options)
    except Exception as error:  # whatever it raises: it has no error of its own
        reason = " ".join(str(error).split())
        raise ModelError(f"skl2onnx cannot convert this {type(estimator).__name__}: {reason:.200}") from None
    if types[0][0] == "X" and len(types) == 1 and names is not None:
        _set_names(model, names)
    return onnx_graph.from_model(model, None)


def _set_names(model: Any, names: tuple[str, ...]) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "feature_names", json.dumps(list(names))


def used_columns(estimator: Any) -> set[int]:
    """Which of its input columns, where they have names, an estimator does not drop."""
    if not hasattr(estimator, "transformers_") or _names(estimator) is None:
        return set(range(estimator.n_features_in_))
    return {place for _, transformer, columns in estimator.transformers_ for place in _places(estimator, columns)
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
    if hasattr(estimator, "transformer_list"):
        return {i for _, one in estimator.transformer_list if not isinstance(one, str) for i in string_columns(one)}
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


# ---- made-up rows --------------------------------------------------------------------------------------------

N_ROWS = 16
TOLERANCE = 1e-5  # of the largest answer


def _compare(model: TabularModel, estimator: Any) -> None:
    """Raise ModelError where the model answers rows otherwise than the estimator does; either may refuse them."""
    numpy_model = TabularModel(model.name, model.version, model.model_type, model.signature, model.program,
                               native=False, takes_missing_in=model.takes_missing_in)
    for what, cells in [*_rows(model.signature), *_known_rows(model, estimator)]:
        cells = cells[[answer is not None for answer in _answers(numpy_model, "predict", cells)]]
        if len(cells):
            answers = _answers(estimator, "predict", _as_fitted(estimator, model, cells))
            cells = cells[[answer is not None for answer in answers]]
        if len(cells):
            rows = _as_fitted(estimator, model, cells)
            for ask in ("predict", "predict_proba") if model.n_classes else ("predict",):
                ours, theirs = _answers(numpy_model, ask, cells), _answers(estimator, ask, rows)
                is_label = ask == "predict" and model.signature.classes is not None
                if not (ours == theirs if is_label else _is_close(ours, theirs)):
                    raise ModelError(f"expected the answers of {type(_steps(estimator)[-1]).__name__}: what skl2onnx "
                                     f"makes of the estimator has others for rows {what}")


def _is_close(ours: list, theirs: list) -> bool:
    found, expected = np.array(ours, np.float64), np.array(theirs, np.float64)
    if found.shape != expected.shape:
        return False
    is_finite = np.isfinite(expected)
    errors = np.abs(found - expected)[is_finite]
    return bool((errors <= TOLERANCE * np.abs(expected[is_finite]).max(initial=1.0)).all())


def _rows(signature: Signature) -> list[tuple[str, np.ndarray]]:
    """What they hold, and cells (n, n_features) of objects: numbers of all sizes, whole, missing; strings likewise."""
    random, n = np.random.default_rng(0), signature.n_features
    whole = random.integers(-2, 10, (N_ROWS, n)).astype(np.float64)
    real = random.normal(size=(N_ROWS, n)) * 10.0 ** random.integers(-2, 4, (N_ROWS, 1))
    missing = np.where(random.random((N_ROWS, n)) < 0.3, np.nan, whole)
    rows = {"of numbers": real, "of whole numbers": whole, "with missing values": missing}
    found = []
    for what, numbers in rows.items():
        cells = numbers.astype(object)
        for i, texts in enumerate(signature.categories or ()):
            if texts is not None:
                choice = [text for text in texts if text != MISSING] or ["?"]
                strings = random.choice(np.array(choice, object), N_ROWS)
                cells[:, i] = strings
                cells[np.isnan(numbers[:, i]), i] = None
        found.append((what, cells))
    if signature.categories:
        cells = found[1][1].copy()
        for i, texts in enumerate(signature.categories):
            if texts is not None:
                cells[random.random(N_ROWS) < 0.5, i] = "?" * (1 + max(map(len, texts), default=0))
        found.append(("with unknown strings", cells))
    return found


CLOSE = 1e-6  # relative: float32 tells such neighbours apart, but for the edges of bins not much closer ones
# What an estimator has seen of its columns: an item, or several, a column.
KNOWN = ("categories_", "bin_edges_", "statistics_", "mean_", "center_", "data_min_", "data_max_")


def _known_rows(model: TabularModel, estimator: Any) -> list[tuple[str, np.ndarray]]:
    """Rows of numbers that the first step was fitted on, and of their neighbours, where float32 would show."""
    first, signature, random = _steps(estimator)[0], model.signature, np.random.default_rng(1)
    names = _names(first)
    kept = [names.index(name) for name in signature.feature_names or ()] if names else range(signature.n_features)
    known, cells = _known_numbers(first), _rows(signature)[1][1]
    cells = np.concatenate([cells] * 4)
    for i, column in enumerate(kept):
        if known.get(column) and model.places[i] is None:
            numbers = np.array(known[column])
            near = [numbers, numbers + 1, numbers - 1, numbers * (1 + CLOSE), numbers * (1 - CLOSE)]
            cells[:, i] = random.choice(np.concatenate([numbers, *near]), len(cells))
    found = [("that it was fitted on", cells)]
    vectors = getattr(first, "support_vectors_", None)
    if isinstance(vectors, np.ndarray):
        chosen = vectors[random.integers(len(vectors), size=4 * N_ROWS)]
        chosen = chosen + 0.1 * vectors.std(axis=0) * random.normal(size=chosen.shape)
        found.append(("near its support vectors", chosen.astype(object)))
    return found


def _known_numbers(estimator: Any) -> dict[int, list[float]]:
    """column → numbers that a step was fitted on."""
    found: dict[int, list[float]] = {}
    for _, inner, columns in getattr(estimator, "transformers_", []):
        if not isinstance(inner, str):
            places = _places(estimator, columns)
            for i, numbers in _known_numbers(inner).items():
                found.setdefault(places[i], []).extend(numbers)
    for step in _steps(estimator)[:2] if hasattr(estimator, "steps") else [estimator]:
        for name in KNOWN:
            values: Any = getattr(step, name, None)
            if hasattr(values, "__len__") and len(values) == estimator.n_features_in_:
                for i, each in enumerate(values):
                    numbers = [float(one) for one in np.ravel(each) if isinstance(one, (int, float)) and one == one]
                    found.setdefault(i, []).extend(numbers)
        missing = getattr(step, "missing_values", None)
        if isinstance(missing, (int, float)) and missing == missing:
            for i in range(estimator.n_features_in_):
                found.setdefault(i, []).append(float(missing))
    return found


def _as_fitted(estimator: Any, model: TabularModel, cells: np.ndarray) -> Any:
    """The cells as the estimator takes them: a data frame where it was fitted on one."""
    signature, first = model.signature, _steps(estimator)[0]
    cells, strings = cells.copy(), signature.categories or (None,) * signature.n_features
    if not any(getattr(one, "missing_values", 0) is None for one in _parts(first)):
        cells[[[cell is None for cell in row] for row in cells]] = np.nan
    names = _names(first)
    if names is None:
        return cells if signature.categories else cells.astype(np.float64)
    import pandas as pd  # whose data frames gave it the names
    columns = {name: cells[:, i] if strings[i] is not None else cells[:, i].astype(np.float64)
               for i, name in enumerate(signature.feature_names or names)}
    return pd.DataFrame({name: columns.get(name, np.full(len(cells), np.nan)) for name in names})


def _answers(model: Any, ask: str, rows: Any) -> list[Any]:
    """For each row its label, number or numbers, or None where it is refused."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return np.asarray(getattr(model, ask)(rows)).tolist()
        except Exception:  # a row that is refused refuses all
            if len(rows) == 1:
                return [None]
    return [_answers(model, ask, rows[i:i + 1])[0] for i in range(len(rows))]
