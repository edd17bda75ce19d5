"""How the ai.onnx.ml operators become steps of a program: one function an operator, in the table LOWER_ML.

The rule to keep: results are those of `onnx_ml_ops`, which says where ONNX Runtime and the specification differ.
"""

from typing import Any

import numpy as np

from kernels import trees
from kernels.ensemble import MAX, MIN, TreeEnsemble
from kernels.onnx_graph import run_node
from kernels.onnx_lowering_ops import Made, Rule, move
from kernels.onnx_lowering_steps import (FLOATS, binary, cast, chosen, constant_of, dense, expect, lookup, looked_up,
                                         reduce, row_of, scaled, unary)
from kernels.onnx_lowering_values import Index, Lowering, Maps, NotTabular, Row, Tensor, as_strings, with_elements
from kernels.onnx_ml_ops import label_column
from kernels.onnx_ops import Node
from kernels.onnx_trees import (POST_TRANSFORMS, TreeClassifier, classifier_of, ensemble_of, floats, integers,
                                labels_of, presence_of)
from kernels.row_ops import NORM_L1, NORM_L2, SOFTMAX, SOFTMAX_ZERO
from kernels.svm import n_pairs

F32 = np.dtype(np.float32)
LOWEST = -np.finfo(np.float64).max  # below every score
MAX_PADDING = 1 << 16


def _choice(node: Node, name: str, choices: tuple[str, ...]) -> str:
    value = node.attributes.get(name, choices[0])
    expect(value in choices, f"{name} as one of {', '.join(choices)}")
    return value


def _matrix(tensor: Tensor) -> Row:
    row = row_of(tensor)
    expect(row.dtype != object and row.dtype != np.bool_, "numbers")
    expect(row.axis == 0 and row.elements.ndim == 2, "a matrix of rows")
    return row


def _side_by_side(low: Lowering, rows: list[Row]) -> Row:
    """Matrices of rows as one."""
    low.spend(sum(row.width for row in rows))
    return with_elements(rows[0], np.concatenate([row.elements for row in rows], axis=1))


def _column(row: Row, i: int) -> Row:
    return with_elements(row, row.elements[:, i:i + 1])


def _times(low: Lowering, row: Row, number: float, function: str = "mul") -> Row:
    return binary(low, row, np.full(row.elements.shape, number), function)


# ---- scores and labels -----------------------------------------------------------------------------------------

def post_transform(low: Lowering, scores: Row, transform: str) -> Row:
    """NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO or PROBIT of each row of scores (n, k), in float32."""
    scores = cast(low, scores, F32)
    if transform in ("SOFTMAX", "SOFTMAX_ZERO"):
        return scaled(low, scores, [1], SOFTMAX if transform == "SOFTMAX" else SOFTMAX_ZERO)
    if transform != "PROBIT":
        return scores if transform == "NONE" else unary(low, scores, "sigmoid")
    made = unary(low, scores, "probit")
    low.poisons.append(low.number(made))  # NaN of what is no probability
    return made


def _only_probit(low: Lowering, scores: Row, transform: str) -> Row:
    return post_transform(low, scores, transform if transform == "PROBIT" else "NONE")


def _two_columns(low: Lowering, scores: Row, transform: str) -> Row:
    """[1 − s, s] of scores (n, 1), or with LOGISTIC [1 − σ(s), σ(s)]."""
    if transform == "LOGISTIC":
        return post_transform(low, _side_by_side(low, [unary(low, scores, "neg"), scores]), transform)
    return _side_by_side(low, [unary(low, scores, "complement"), scores])


def labelled(low: Lowering, place: Row, labels: np.ndarray) -> Row:
    """The labels (k) of places (n, 1), as a vector."""
    vector = Row(place.elements[:, 0], 0, np.dtype(np.int64))
    return looked_up(low, labels, vector)


def _best(low: Lowering, scores: Row) -> Row:
    return reduce(low, scores, [1], "argmax", True, np.int64)


def _above(low: Lowering, scores: Row, limit: float) -> Row:
    return cast(low, _times(low, scores, limit, "greater"), np.int64)


# ---- trees -----------------------------------------------------------------------------------------------------

def _scores_of(low: Lowering, row: Row, ensemble: TreeEnsemble) -> Row:
    """A step "trees": (n, n_outputs) float64."""
    expect(ensemble.n_features <= row.width, f"rows of {ensemble.n_features} features")
    arrays = trees.compile_ensemble(ensemble)
    value = low.add("trees", [low.number(row, rounded=not ensemble.rounds_inputs)], ensemble.n_outputs, arrays,
                    **trees.numbers_of(ensemble))
    return low.row(value, row, np.float64, (None, ensemble.n_outputs))


def _in_precision(low: Lowering, scores: Row, row: Row) -> Row:
    return scores if row.dtype == np.float64 else cast(low, scores, F32)


def _tree_classifier(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = _matrix(inputs[0])
    classifier = classifier_of(node, row.dtype)
    scores = _in_precision(low, _scores_of(low, row, classifier.ensemble), row)
    present: list[Row | bool] = classifier.scored.tolist()
    if classifier.presence is not None:
        counts = _times(low, _scores_of(low, row, classifier.presence), 0.0, "greater")
        present = [_column(counts, i) for i in range(counts.width)]
    place, scores = _classified(low, scores, present, classifier)
    labels = classifier.labels if len(classifier.labels) > 1 else np.arange(2)
    return labelled(low, place, labels), scores


def _classified(low: Lowering, scores: Row, present: list[Row | bool],
                classifier: TreeClassifier) -> tuple[Row, Row]:
    """As `onnx_ml_ops.classify`: (the class's place (n, 1), its scores)."""
    base = np.asarray(classifier.base_values, scores.dtype)
    if len(classifier.labels) == 1:
        scores = _plus(low, scores, base.sum())
        return _above(low, scores, 0.0), _only_probit(low, scores, classifier.post_transform)
    if len(classifier.labels) == 2:
        return _classified_binary(low, scores, present, classifier)
    if len(base):
        scores, present = binary(low, scores, base[None], "add"), [True] * len(present)
    zero, columns = np.zeros((1, 1), scores.dtype), [_column(scores, i) for i in range(scores.width)]
    if present == [True] * len(present):
        return _best(low, scores), post_transform(low, scores, classifier.post_transform)
    wanted = _side_by_side(low, [chosen(low, has, column, zero) for has, column in zip(present, columns)])
    lowest = np.full((1, 1), LOWEST)
    competing = [chosen(low, has, column, lowest) for has, column in zip(present, columns)]
    return (_best(low, _side_by_side(low, competing)), post_transform(low, wanted, classifier.post_transform))


def _plus(low: Lowering, scores: Row, number: Any) -> Row:
    return _times(low, scores, number, "add") if number else scores


def _classified_binary(low: Lowering, scores: Row, present: list[Row | bool],
                       classifier: TreeClassifier) -> tuple[Row, Row]:
    base, transform = np.asarray(classifier.base_values, scores.dtype), classifier.post_transform
    s0, s1 = _column(scores, 0), _column(scores, 1)
    has0, has1 = present
    zero = np.zeros((1, 1), scores.dtype)
    if len(base) == 1:
        s0 = _plus(low, s0, base[0])
    elif len(base) == 2:
        s1 = _plus(low, s0, base[1])
        s0 = chosen(low, has1, unary(low, s1, "neg"), _plus(low, s0, base[0]))
    s = chosen(low, has1, s1, chosen(low, has0, s0, zero))
    one_class = classifier.scored.sum() == 1
    as_probability = one_class and classifier.all_positive
    place = _above(low, s, 0.5 if as_probability else 0.0)
    both = _side_by_side(low, [chosen(low, has0, s0, zero), chosen(low, has1, s1, zero)])
    both = post_transform(low, both, transform)
    if len(base) == 2 or has1 is True:
        return place, both
    s = cast(low, s, F32)
    if transform == "PROBIT" or (len(base) == 1 and not one_class):
        single = _side_by_side(low, [_only_probit(low, s, transform), low.constant(np.zeros((1, 1), F32), 0)])
    elif as_probability or transform == "LOGISTIC":
        single = _two_columns(low, s, transform)
    else:
        single = _side_by_side(low, [unary(low, s, "neg"), s])
    if isinstance(has1, Row):
        has1 = _side_by_side(low, [has1, has1])
    return place, chosen(low, has1, both, single)


def _regressed(low: Lowering, node: Node, row: Row) -> Row:
    ensemble = ensemble_of(node, row.dtype)
    scores = _scores_of(low, row, ensemble)
    presence = presence_of(node, row.dtype) if ensemble.aggregate in (MIN, MAX) else None
    if presence is None:
        return scores
    present = _times(low, _scores_of(low, row, presence), 0.0, "greater")
    return chosen(low, present, scores, ensemble.base[None])


def _tree_regressor(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row, transform = _matrix(inputs[0]), _choice(node, "post_transform", POST_TRANSFORMS)
    scores = _in_precision(low, _regressed(low, node, row), row)
    return (_only_probit if scores.width == 1 else post_transform)(low, scores, transform),


def _tree_ensemble(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row, number = _matrix(inputs[0]), node.attributes.get("post_transform", 0)
    expect(row.dtype in FLOATS and number in range(len(POST_TRANSFORMS)), "float or double, and a post_transform")
    transform, scores = POST_TRANSFORMS[number], _regressed(low, node, row)
    if scores.width == 1 and transform != "PROBIT":
        transform = "NONE"
    return cast(low, scores if transform == "NONE" else post_transform(low, scores, transform), row.dtype),


# ---- linear models ---------------------------------------------------------------------------------------------

def _linear_scores(low: Lowering, row: Row, coefficients: np.ndarray, intercepts: np.ndarray) -> Row:
    k = len(intercepts)
    expect(k > 0 and len(coefficients) == k * row.width, f"coefficients for {k} outputs of {row.width} features")
    return dense(low, cast(low, row, F32), coefficients.reshape(k, -1), intercepts)


def _linear_classifier(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    intercepts, coefficients = floats(node, "intercepts"), floats(node, "coefficients")
    labels, transform = labels_of(node, "classlabels_ints"), _choice(node, "post_transform", POST_TRANSFORMS)
    single = len(intercepts) == 1 and len(labels) == 2
    expect(single or len(intercepts) == len(labels), f"{len(labels)} intercepts, or one for two classes")
    if len(intercepts) == 2 and _are_mirrored(coefficients) and _are_mirrored(intercepts):
        score = _linear_scores(low, _matrix(inputs[0]), coefficients[len(coefficients) // 2:], intercepts[1:])
        both = _side_by_side(low, [unary(low, score, "neg"), score])  # exactly what twice the work would give
        return labelled(low, _above(low, score, 0.0), labels), post_transform(low, both, transform)
    scores = _linear_scores(low, _matrix(inputs[0]), coefficients, intercepts)
    if not single:
        return labelled(low, _best(low, scores), labels), post_transform(low, scores, transform)
    expect(transform != "PROBIT", "another post_transform than PROBIT for two classes with one intercept")
    return labelled(low, _above(low, scores, 0.0), labels), _two_columns(low, scores, transform)


def _are_mirrored(numbers: np.ndarray) -> bool:
    """Whether the second half is the first one negated: of two classes, as scikit-learn's are exported."""
    half = len(numbers) // 2
    return len(numbers) == 2 * half and bool((numbers[:half] == -numbers[half:]).all())


def _linear_regressor(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    targets = node.attributes.get("targets", 1)
    coefficients, intercepts = floats(node, "coefficients"), floats(node, "intercepts")
    expect(1 <= targets <= len(coefficients), "targets from 1 to the number of coefficients")
    intercepts = intercepts if len(intercepts) == targets else np.zeros(targets)
    scores = _linear_scores(low, _matrix(inputs[0]), coefficients, intercepts)
    transform = _choice(node, "post_transform", POST_TRANSFORMS)
    return (_only_probit if targets == 1 else post_transform)(low, scores, transform),


# ---- support vector machines -----------------------------------------------------------------------------------

def _kernel_values(low: Lowering, node: Node, row: Row, n_vectors: int) -> Row:
    """The kernel function of each row and support vector: (n, n_vectors) float64."""
    kernel_type, vectors = _vectors_of(node, row, n_vectors)
    params = floats(node, "kernel_params")
    expect(len(params) in (0, 3), "gamma, coef0 and degree in kernel_params")
    gamma, coef0, degree = params if len(params) else (0.0, 0.0, 0.0)
    if kernel_type == "RBF":
        low.spend(vectors.size)
        value = low.add("distances", [low.number(row)], n_vectors, {"vectors": vectors}, factor=float(-gamma))
        return unary(low, low.row(value, row, np.float64, (None, n_vectors)), "exp")
    products = dense(low, cast(low, row, np.float64), vectors, np.zeros(n_vectors))
    if kernel_type == "LINEAR":
        return products
    products = _times(low, _times(low, products, gamma), coef0, "add")
    return unary(low, products, "tanh") if kernel_type == "SIGMOID" else _times(low, products, degree, "pow")


def _vectors_of(node: Node, row: Row, n_vectors: int) -> tuple[str, np.ndarray]:
    """(the kernel function, support vectors (n_vectors, n_features))."""
    vectors = floats(node, "support_vectors")
    expect(len(vectors) == n_vectors * row.width, f"support_vectors for {n_vectors} vectors of {row.width} features")
    return _choice(node, "kernel_type", ("LINEAR", "POLY", "RBF", "SIGMOID")), vectors.reshape(n_vectors, row.width)


def _one_score(low: Lowering, node: Node, row: Row, coefficients: np.ndarray, rho: np.ndarray) -> Row:
    """Kernel values times coefficients (n_vectors) plus rho (1): (n, 1) float32; of the linear kernel one product."""
    kernel_type, vectors = _vectors_of(node, row, len(coefficients))
    if kernel_type == "LINEAR":
        scores = dense(low, cast(low, row, np.float64), coefficients[None] @ vectors, rho)
    else:
        scores = dense(low, _kernel_values(low, node, row, len(coefficients)), coefficients[None], rho)
    return cast(low, scores, F32)


def _svm_regressor(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = cast(low, _matrix(inputs[0]), F32)
    coefficients, rho = floats(node, "coefficients"), floats(node, "rho")
    n_vectors = node.attributes.get("n_supports", 0)
    expect(0 <= n_vectors == len(coefficients) or n_vectors == 0, f"{n_vectors} coefficients")
    expect(len(rho) > 0, "rho")
    if n_vectors:
        scores = _one_score(low, node, row, coefficients, rho[:1])
    else:
        scores = _linear_scores(low, row, coefficients, rho[:1])
    if not node.attributes.get("one_class"):
        return scores,
    low.poisons.append(low.number(scores))
    sign = chosen(low, _times(low, scores, 0.0, "greater"), np.ones((1, 1), F32), -np.ones((1, 1), F32))
    return sign,


def _svm_classifier(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = cast(low, _matrix(inputs[0]), F32)
    labels, transform = labels_of(node, "classlabels_ints"), _choice(node, "post_transform", POST_TRANSFORMS)
    coefficients, rho = floats(node, "coefficients"), floats(node, "rho")
    prob_a, prob_b = floats(node, "prob_a"), floats(node, "prob_b")
    expect(len(prob_a) == len(prob_b), "as many elements in prob_a and prob_b")
    n_vectors = integers(node, "vectors_per_class")
    expect((n_vectors >= 0).all() and (n_vectors <= len(coefficients)).all(), "vectors_per_class from 0")
    if not n_vectors.sum():
        return _svm_linear(low, row, labels, transform, coefficients, rho, len(prob_a) > 0)
    k, total = len(labels), int(n_vectors.sum())
    expect(len(n_vectors) == k >= 2, f"vectors_per_class of {max(k, 2)} classes")
    expect(len(coefficients) == (k - 1) * total, f"{(k - 1) * total} coefficients")
    expect(len(rho) == n_pairs(k) and len(prob_a) in (0, n_pairs(k)),
           f"{n_pairs(k)} elements in rho, and in prob_a and prob_b")
    if k == 2:
        scores = _one_score(low, node, row, coefficients, rho)
        place = cast(low, _times(low, scores, 0.0, "less_or_equal"), np.int64)
    else:
        products = _kernel_values(low, node, row, total)
        scores, place = _svm_scores(low, products, coefficients.reshape(k - 1, total), rho, n_vectors)
    if len(prob_a):
        value = low.add("svm_coupling", [low.number(scores)], k, {"prob_a": prob_a, "prob_b": prob_b})
        scores = low.row(value, scores, F32, (None, k))
    elif k == 2:
        return labelled(low, place, labels), _svm_two_columns(low, scores, transform)
    return labelled(low, place, labels), post_transform(low, scores, transform)


def _svm_scores(low: Lowering, products: Row, coefficients: np.ndarray, rho: np.ndarray,
                n_vectors: np.ndarray) -> tuple[Row, Row]:
    """(scores of each two classes (n, pairs) float32, the place of the class with most votes (n, 1))."""
    k = len(n_vectors)
    value = low.add("svm_pairs", [low.number(products)], len(rho), {
        "first": np.append(0, np.cumsum(n_vectors)), "coefficients": coefficients, "rho": rho}, n_classes=k)
    winner = low.add("svm_votes", [value], 1, n_classes=k)
    return low.row(value, products, F32, (None, len(rho))), low.row(winner, products, np.int64, (None, 1))


def _svm_two_columns(low: Lowering, scores: Row, transform: str) -> Row:
    if transform == "PROBIT":
        return _side_by_side(low, [_only_probit(low, scores, transform), low.constant(np.zeros((1, 1), F32), 0)])
    if transform == "NONE":
        return _side_by_side(low, [unary(low, scores, "neg"), scores])
    return _two_columns(low, scores, transform)


def _svm_linear(low: Lowering, row: Row, labels: np.ndarray, transform: str, coefficients: np.ndarray,
                rho: np.ndarray, has_probabilities: bool) -> Made:
    k = len(labels)
    expect(len(rho) > 0 and k >= 2, "rho, and two classes or more")
    scores = _linear_scores(low, row, coefficients, np.full(k, rho[0]))
    place = _best(low, scores)
    if k == 2 and not has_probabilities:
        largest = reduce(low, scores, [1], "max", True)
        positive = bool((coefficients >= 0).all())
        is_one = _times(low, largest, 0.5 if positive else 0.0, "greater_or_equal" if positive else "greater")
        place = chosen(low, is_one, np.ones((1, 1), np.int64), place)
    return labelled(low, place, labels), post_transform(low, scores, transform)


# ---- preprocessing ---------------------------------------------------------------------------------------------

def _for_each(values: np.ndarray, row: Row) -> np.ndarray:
    """One value, or one for each element of the last axis, for all elements."""
    expect(len(values) == 1 or len(values) == row.elements.shape[-1], f"1 or {row.elements.shape[-1]} values")
    expect(row.axis < row.elements.ndim - 1 or len(values) == 1, "rows that do not lie along the last axis")
    return np.ascontiguousarray(np.broadcast_to(values, row.elements.shape), np.float64).ravel()


def _prepared(low: Lowering, row: Row, missing: float, fill_values: np.ndarray, offset: np.ndarray,
              scale: np.ndarray, merges: bool = True) -> Row:
    low.spend(4 * row.width)
    filled = low.maker(row, "prepare") if merges else None
    if filled is not None and not filled.arrays["offset"].any() and (filled.arrays["scale"] == 1).all():
        arrays = filled.arrays | {"offset": offset, "scale": scale}  # an imputer, then a scaler
        return low.row(low.add("prepare", list(filled.inputs), row.width, arrays, rounds=row.rounds), row)
    value = low.add("prepare", [low.number(row)], row.width, {
        "missing": np.full(row.width, missing), "fill_values": fill_values, "offset": offset, "scale": scale},
        rounds=row.rounds)
    return low.row(value, row)


def _scaler(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row, offset, scale = row_of(inputs[0]), floats(node, "offset"), floats(node, "scale")
    expect(len(offset) == len(scale) > 0, "as many elements in offset and scale, one or more")
    expect(row.elements.ndim <= 2 or len(scale) == 1, "a matrix")
    row = row if row.dtype == np.float64 else cast(low, row, F32)
    nan = np.full(row.width, np.nan)
    return cast(low, _prepared(low, row, np.nan, nan, _for_each(offset, row), _for_each(scale, row)), F32),


def _normalizer(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row, norm = cast(low, _matrix(inputs[0]), F32), _choice(node, "norm", ("MAX", "L1", "L2"))
    if norm != "MAX":
        return scaled(low, row, [1], NORM_L1 if norm == "L1" else NORM_L2),
    largest = reduce(low, row, [1], "max", True)  # of the numbers, not of their magnitudes
    by = with_elements(row, np.broadcast_to(largest.elements, row.elements.shape))
    return chosen(low, _times(low, by, 0.0, "equal"), row, binary(low, row, by, "div")),


def _imputer(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    expect(row.dtype in FLOATS or row.dtype.kind in "iu", "numbers")
    if row.dtype in FLOATS:
        values = floats(node, "imputed_value_floats")
        replaced = np.float32(node.attributes.get("replaced_value_float", 0))
    else:
        values, replaced = integers(node, "imputed_value_int64s"), node.attributes.get("replaced_value_int64", 0)
    zeros = np.zeros(row.width)
    return _prepared(low, row, float(replaced), _for_each(values, row), zeros, zeros + 1, merges=False),


def _binarizer(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    expect(row.dtype != object, "numbers")
    low.poisons.append(low.number(row) or low.add("move", [0], row.width, {
        "runs": np.array([[0, 0, row.width]]), "constants": np.empty(0)}))  # NaN is an error
    above = _times(low, row, float(np.float32(node.attributes.get("threshold", 0.0))), "greater")
    return Row(above.elements, row.axis, row.dtype),


def _extractor(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    x, chosen_places = inputs
    if isinstance(x, Row):
        constant_of(chosen_places, "the indices")
        expect(x.elements.ndim > 1, "a matrix of rows")
        return move(low, node, inputs)
    table, row = constant_of(x, "the values"), row_of(chosen_places)
    expect(table.ndim in (1, 2) and table.size == table.shape[-1] and row.width == 1, "one value of a vector a row")
    found = looked_up(low, table.reshape(-1), Row(row.elements.reshape(1, 1), 1, row.dtype, row.index))
    return found,


def _vectorizer(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    widths = integers(node, "inputdimensions").tolist()
    expect(len(widths) == len(inputs) > 0, f"{len(inputs)} inputdimensions")
    parts = []
    for tensor, width in zip(inputs, widths, strict=True):
        row = row_of(tensor, "inputs that all depend on the row")
        expect(row.axis == 0 and row.elements.ndim > 1, "matrices of rows")
        expect(0 <= width <= row.width + MAX_PADDING, "inputdimensions that fit the rows")
        flat = cast(low, with_elements(row, row.elements.reshape(1, -1)[:, :width]), F32)
        parts += [flat] + [low.constant(np.zeros((1, width - flat.width), F32), 0)] * (width > flat.width)
    return _side_by_side(low, parts),


# ---- categories ------------------------------------------------------------------------------------------------

def _one_hot(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    strings, numbers = node.attributes.get("cats_strings") or [], integers(node, "cats_int64s")
    expect((len(strings) > 0) != (len(numbers) > 0) and (row.dtype == object) == bool(strings),
           "either cats_strings or cats_int64s, as the input is")
    expect(row.elements.ndim <= 2, "a matrix or a vector")
    if row.dtype in FLOATS:
        row = unary(low, row, "trunc")
    keys = low.places_of(row, strings) if strings else numbers.tolist()
    place = {key: i for i, key in enumerate(keys) if not strings or key >= 0}  # of equal ones the last
    group, found = len(keys), sorted(place)
    low.spend(group)
    hot = low.add("onehot", [low.number(row)], row.width * group, {
        "keys": np.array(found, np.float64), "places": np.array([*(place[key] for key in found), -1, -1], np.int64)},
        group=group)
    if not node.attributes.get("zeros", 1):  # an unknown category is an error
        low.poisons.append(lookup(low, row, np.array(found), np.array(found)))
    return low.row(hot, row, F32, (*row.shape, group)),


def _keyed(low: Lowering, node: Node, row: Row, keys: np.ndarray) -> Row:
    """What the operator makes of each of these keys, of NaN, and of everything else."""
    expect(len(keys) > 0, "one key or more")
    low.spend(len(keys))
    probes = np.append(keys, np.array([_no_key(keys)], keys.dtype))
    made = run_node(node, [probes])[0]
    of_nan = np.nan
    if keys.dtype.kind == "f":
        made = np.append(made, run_node(node, [np.array([np.nan], keys.dtype)])[0])
    index = _index_through(node, row)
    vocabulary, codes = -1, made
    if made.dtype == object:
        strings = list(dict.fromkeys(made.tolist()))
        place = {text: i for i, text in enumerate(strings)}
        codes = np.array([place[text] for text in made.tolist()])
        vocabulary = low.add_vocabulary(strings)
    if keys.dtype.kind == "f":
        codes, of_nan = codes[:-1], float(codes[-1])
    places = np.array(low.places_of(row, keys.tolist()) if row.dtype == object else keys, np.float64)
    known = ~np.isnan(places)
    value = lookup(low, row, places[known], codes[:-1][known], of_nan, float(codes[-1]))
    if index is None and row.width == 1 and vocabulary >= 0:
        index = Index(value, np.array(strings, object))
    result = low.row(value, row, made.dtype, index=index)
    return as_strings(result, vocabulary) if vocabulary >= 0 else result


def _no_key(keys: np.ndarray) -> Any:
    """Something that is not among the keys."""
    if keys.dtype == object:
        return max(keys.tolist(), key=len) + "\0"
    if keys.dtype.kind == "f":
        finite = keys[np.isfinite(keys)]
        return next(number for number in range(len(finite) + 1) if not (finite == number).any())
    taken = set(keys.tolist())
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _index_through(node: Node, row: Row) -> Index | None:
    return None if row.index is None else Index(row.index.value, run_node(node, [row.index.table])[0])


def _label_encoder(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    if node.version > 1:
        keys, _ = label_column(node, "keys")
        expect(row.dtype == keys.dtype, f"an input of the keys' type {keys.dtype}")
        return _keyed(low, node, row, keys),
    classes = node.attributes.get("classes_strings") or []
    expect(row.dtype in (object, np.int64), "strings or int64")
    return _keyed(low, node, row, np.array(classes, object) if row.dtype == object else np.arange(len(classes))),


def _category_mapper(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    strings = node.attributes.get("cats_strings") or []
    return _keyed(low, node, row, np.array(strings, object) if row.dtype == object else integers(node, "cats_int64s")),


def _zip_map(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    row = row_of(inputs[0])
    labels = labels_of(node, "classlabels_int64s").tolist()
    expect(row.axis == 0 and row.width == len(labels), f"{len(labels)} columns")
    return Maps(row, labels),


def _refused(low: Lowering, node: Node, inputs: list[Tensor]) -> Made:
    raise NotTabular("expected tensors: a dict has no columns")


LOWER_ML: dict[str, Rule] = {
    "ArrayFeatureExtractor": _extractor,
    "Binarizer": _binarizer,
    "CategoryMapper": _category_mapper,
    "DictVectorizer": _refused,
    "FeatureVectorizer": _vectorizer,
    "Imputer": _imputer,
    "LabelEncoder": _label_encoder,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot,
    "SVMClassifier": _svm_classifier,
    "SVMRegressor": _svm_regressor,
    "Scaler": _scaler,
    "TreeEnsemble": _tree_ensemble,
    "TreeEnsembleClassifier": _tree_classifier,
    "TreeEnsembleRegressor": _tree_regressor,
    "ZipMap": _zip_map,
}
