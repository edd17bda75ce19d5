"""The ai.onnx.ml operators on numpy arrays: one function an operator, in the table ML_OPS.

The rule to keep: results are the specification's, and where it is silent (class chosen, layout of scores) those of ONNX
Runtime, which models are tested with when they are exported; what both leave undefined is 0 here or a ModelError. Where
ONNX Runtime breaks the specification, and so differs: labels of two-class trees that are not 0 and 1, base values of
outputs that a row gets no leaf weight for, the numbers of SOFTMAX and LOGISTIC in TreeEnsemble.
Specification: https://onnx.ai/onnx/operators/index.html, domain ai.onnx.ml.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from kernels.ensemble import MAX, MIN, TreeEnsemble
from kernels.errors import ModelError
from kernels.onnx_ops import Node
from kernels.onnx_trees import (POST_TRANSFORMS, TreeClassifier, classifier_of, ensemble_of, floats, integers,
                                labels_of, presence_of)
from kernels.svm import coupled
from kernels.trees_numpy import raw_scores

T = TypeVar("T")

NUMBERS = "fiu"  # numpy's kinds
MIN_PROBABILITY = np.float32(1e-7)


def _expect(condition: Any, what: str) -> None:
    if not condition:
        raise ModelError(f"expected {what}")


def _rows(x: np.ndarray, dtype: Any = None) -> np.ndarray:
    """An input of shape (n_features) or (n, n_features) as a matrix; ai.onnx.ml takes a vector as one row."""
    _expect(x.ndim in (1, 2), f"a matrix of rows, found {x.ndim} dimensions")
    _expect(x.dtype.kind in NUMBERS, f"numbers, found {x.dtype}")
    with np.errstate(over="ignore"):
        return x.reshape(1 if x.ndim == 1 else len(x), x.shape[-1]).astype(dtype or x.dtype, copy=False)


def _read_once(node: Node, key: Any, build: Callable[[], T]) -> T:
    """What `build` makes of the node's attributes: kept in the node, which is not changed after it was read."""
    kept = vars(node).setdefault("_read", {})
    if key not in kept:
        kept[key] = build()
    return kept[key]


def _strings(node: Node, name: str) -> list[str]:
    values = node.attributes.get(name) or []
    _expect(isinstance(values, list) and all(isinstance(one, str) for one in values), f"strings in {name}")
    return values


def _choice(node: Node, name: str, choices: tuple[str, ...]) -> str:
    value = node.attributes.get(name, choices[0])
    _expect(value in choices, f"{name} as one of {', '.join(choices)}")
    return value


# --- scores and labels ---

def post_transform(scores: np.ndarray, transform: str) -> np.ndarray:
    """NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO or PROBIT of each row of scores: (n, k) → (n, k) float32."""
    with np.errstate(all="ignore"):
        return _TRANSFORMS[transform](scores.astype(np.float32)).astype(np.float32)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True, initial=np.finfo(np.float32).min))
    return powers / powers.sum(axis=1, keepdims=True)


def _softmax_zero(x: np.ndarray) -> np.ndarray:
    """Softmax over the scores that are not zero; those that are stay zero."""
    largest = x.max(axis=1, keepdims=True, initial=np.finfo(np.float32).min).astype(np.float64)
    zero = np.abs(x) <= np.float32(1e-7)
    powers = np.where(zero, 0.0, np.exp(x - largest))
    return np.where(zero, x * np.exp(-largest), powers) / powers.sum(axis=1, keepdims=True)


def _probit(p: np.ndarray) -> np.ndarray:
    """√2 · erf⁻¹(2p − 1) by Winitzki's approximation with a = 0.147, as ONNX Runtime has it; NaN outside [0, 1]."""
    x = 2 * p.astype(np.float64) - 1
    log = np.log((1 - x) * (1 + x))
    v = 2 / (3.14159 * 0.147) + 0.5 * log
    root = np.sqrt(-v + np.sqrt(v * v - log / 0.147))
    return 1.41421356 * np.copysign(root, x)


_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NONE": lambda x: x, "LOGISTIC": _logistic, "SOFTMAX": _softmax, "SOFTMAX_ZERO": _softmax_zero, "PROBIT": _probit,
}


def _only_probit(scores: np.ndarray, transform: str) -> np.ndarray:
    """What ONNX Runtime does to scores of one column, (n, 1): no transform but PROBIT."""
    return post_transform(scores, transform if transform == "PROBIT" else "NONE")


def classify(scores: np.ndarray, present: np.ndarray, classifier: TreeClassifier) -> tuple[np.ndarray, np.ndarray]:
    """Class and scores of each row as TreeEnsembleClassifier gives them.

    scores (n, n_classes) are the trees' sums without base values, in float32 or, for float64 inputs, float64; present
    (n, n_classes) bool says for which classes a row got an entry. Returns indices into the labels, (n) int64, and
    (n, n_classes) float32.

    Three classes or more: the first of the largest scores among the classes present. Two classes: ONNX Runtime looks at
    one number s, that of class 1 if present, else that of class 0; the class is 1 where s > 0.5, if all weights are of
    one class and none is negative, else where s > 0. Where class 1 is absent (exporters put a binary score on class 0)
    the scores are made of s: with LOGISTIC [1 − σ(s), σ(s)], else [1 − s, s] in the first case, [−s, s] in the other.
    """
    if len(classifier.labels) == 1:
        scores = scores + _as(scores, classifier.base_values.sum())
        return (scores[:, 0] > 0).astype(np.int64), _only_probit(scores, classifier.post_transform)
    if len(classifier.labels) == 2:
        return _classify_binary(scores, present, classifier)
    if len(classifier.base_values):
        scores, present = scores + _as(scores, classifier.base_values), np.ones_like(present)
    scores = np.where(present, scores, _as(scores, 0))
    index = np.argmax(np.where(present, scores, -np.inf), axis=1)
    return index, post_transform(scores, classifier.post_transform)


def _as(like: np.ndarray, value: Any) -> np.ndarray:
    return np.asarray(value, like.dtype)


def _classify_binary(
        scores: np.ndarray, present: np.ndarray, classifier: TreeClassifier) -> tuple[np.ndarray, np.ndarray]:
    base, transform = _as(scores, classifier.base_values), classifier.post_transform
    s0, s1 = scores[:, 0], scores[:, 1]
    has0, has1 = present[:, 0], present[:, 1]
    if len(base) == 1:
        s0 = s0 + base[0]
    elif len(base) == 2:
        # ONNX Runtime adds class 0's sum, not class 1's, where both have one
        s0, s1 = np.where(has1, -(base[1] + s0), s0 + base[0]), base[1] + s0
    zero = _as(scores, 0)
    s = np.where(has1, s1, np.where(has0, s0, zero))
    one_class = classifier.scored.sum() == 1
    as_probability = one_class and classifier.all_positive
    index = (s > (0.5 if as_probability else 0)).astype(np.int64)
    both = post_transform(np.stack([np.where(has0, s0, zero), np.where(has1, s1, zero)], axis=1), transform)
    if len(base) == 2:
        return index, both
    s = s.astype(np.float32)
    if transform == "PROBIT" or (len(base) == 1 and not one_class):
        single = np.stack([_only_probit(s[:, None], transform)[:, 0], np.zeros_like(s)], axis=1)  # undefined: 0
    elif as_probability or transform == "LOGISTIC":
        single = _two_columns(s[:, None], transform)
    else:
        single = np.stack([-s, s], axis=1)
    return index, np.where(has1[:, None], both, single)


# --- trees ---

def _in_precision(scores: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float64 sums as ONNX Runtime has them for an input of this dtype."""
    with np.errstate(over="ignore"):
        return scores if x.dtype == np.float64 else scores.astype(np.float32)


def tree_ensemble_classifier(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = _rows(inputs[0])
    classifier = _read_once(node, x.dtype.str, lambda: classifier_of(node, x.dtype))
    scores = _in_precision(raw_scores(classifier.ensemble, x), x)
    if classifier.presence is None:
        present = np.tile(classifier.scored, (len(x), 1))
    else:
        present = raw_scores(classifier.presence, x) > 0
    index, scores = classify(scores, present, classifier)
    return (index if len(classifier.labels) == 1 else classifier.labels[index]), scores


def _regress(node: Node, x: np.ndarray) -> np.ndarray:
    """Aggregated scores (n, n_outputs) float64."""
    def build() -> tuple[TreeEnsemble, TreeEnsemble | None]:
        ensemble = ensemble_of(node, x.dtype)
        return ensemble, presence_of(node, x.dtype) if ensemble.aggregate in (MIN, MAX) else None
    ensemble, presence = _read_once(node, x.dtype.str, build)
    scores = raw_scores(ensemble, x)
    return scores if presence is None else np.where(raw_scores(presence, x) > 0, scores, ensemble.base)


def tree_ensemble_regressor(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = _rows(inputs[0])
    transform = _choice(node, "post_transform", POST_TRANSFORMS)
    scores = _in_precision(_regress(node, x), x)
    return (_only_probit(scores, transform) if scores.shape[1] == 1 else post_transform(scores, transform),)


def tree_ensemble(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = _rows(inputs[0])
    _expect(x.dtype.kind == "f", f"floating-point numbers, found {x.dtype}")
    number = node.attributes.get("post_transform", 0)
    _expect(number in range(len(POST_TRANSFORMS)), f"post_transform from 0 to {len(POST_TRANSFORMS) - 1}")
    transform = POST_TRANSFORMS[number]
    scores = _regress(node, x)
    if scores.shape[1] == 1 and transform != "PROBIT":
        transform = "NONE"
    with np.errstate(over="ignore"):
        return ((scores if transform == "NONE" else post_transform(scores, transform)).astype(x.dtype),)


# --- linear models ---

def _linear_scores(x: np.ndarray, coefficients: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """x (n, n_features) · coefficients (k · n_features)ᵀ + intercepts (k): rounded to float32 once, at the end."""
    k = len(intercepts)
    _expect(len(coefficients) == k * x.shape[1], f"coefficients for {k} outputs of {x.shape[1]} features")
    with np.errstate(all="ignore"):
        return (_rows(x, np.float32).astype(np.float64) @ coefficients.reshape(k, -1).T + intercepts).astype(np.float32)


def linear_classifier(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    intercepts, coefficients = floats(node, "intercepts"), floats(node, "coefficients")
    labels, transform = labels_of(node, "classlabels_ints"), _choice(node, "post_transform", POST_TRANSFORMS)
    single = len(intercepts) == 1 and len(labels) == 2
    _expect(single or len(intercepts) == len(labels), f"{len(labels)} intercepts, or one for two classes")
    scores = _linear_scores(_rows(inputs[0]), coefficients, intercepts)
    if not single:
        return labels[np.argmax(scores, axis=1)], post_transform(scores, transform)
    _expect(transform != "PROBIT", "another post_transform than PROBIT for two classes with one intercept")
    return labels[(scores[:, 0] > 0).astype(np.int64)], _two_columns(scores, transform)


def _two_columns(scores: np.ndarray, transform: str) -> np.ndarray:
    """[1 − s, s] of scores (n, 1), or with LOGISTIC [1 − σ(s), σ(s)]."""
    if transform == "LOGISTIC":
        return post_transform(np.concatenate([-scores, scores], axis=1), transform)
    return np.concatenate([1 - scores, scores], axis=1)


def linear_regressor(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    targets = node.attributes.get("targets", 1)
    coefficients, intercepts = floats(node, "coefficients"), floats(node, "intercepts")
    _expect(isinstance(targets, int) and 1 <= targets <= len(coefficients),
            "targets from 1 to the number of coefficients")
    intercepts = intercepts if len(intercepts) == targets else np.zeros(targets)
    scores = _linear_scores(_rows(inputs[0]), coefficients, intercepts)
    transform = _choice(node, "post_transform", POST_TRANSFORMS)
    return (_only_probit(scores, transform) if targets == 1 else post_transform(scores, transform),)


# --- support vector machines ---

def _kernel(node: Node, x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The kernel function of rows x (n, n_features) and support vectors (k, n_features): (n, k) float64."""
    kernel_type = _choice(node, "kernel_type", ("LINEAR", "POLY", "RBF", "SIGMOID"))
    params = floats(node, "kernel_params")
    _expect(len(params) in (0, 3), "gamma, coef0 and degree in kernel_params")
    gamma, coef0, degree = params if len(params) else (0.0, 0.0, 0.0)
    with np.errstate(all="ignore"):
        if kernel_type == "RBF":
            return np.exp(-gamma * _squared_distances(x, vectors))
        products = x @ vectors.T
        if kernel_type == "LINEAR":
            return products
        products = gamma * products + coef0
        return np.tanh(products) if kernel_type == "SIGMOID" else products ** degree


def _squared_distances(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n, n_features), (k, n_features) → (n, k): from differences, since |x|² + |v|² − 2xv cancels."""
    distances = np.zeros((len(x), len(vectors)))
    for column, other in zip(x.T, vectors.T):
        distances += np.square(column[:, None] - other)
    return distances


def _support_vectors(node: Node, n_vectors: int, n_features: int) -> np.ndarray:
    vectors = floats(node, "support_vectors")
    _expect(len(vectors) == n_vectors * n_features, f"support_vectors for {n_vectors} vectors of {n_features} features")
    return vectors.reshape(n_vectors, n_features)


def svm_regressor(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = _rows(inputs[0], np.float32).astype(np.float64)
    coefficients, rho = floats(node, "coefficients"), floats(node, "rho")
    n_vectors = node.attributes.get("n_supports", 0)
    _expect(isinstance(n_vectors, int) and 0 <= n_vectors <= len(coefficients), "n_supports up to len(coefficients)")
    _expect(len(rho) > 0, "rho")
    if n_vectors:
        _expect(len(coefficients) == n_vectors, f"{n_vectors} coefficients")
        products = _kernel(node, x, _support_vectors(node, n_vectors, x.shape[1]))
    else:
        _expect(len(coefficients) == x.shape[1], f"{x.shape[1]} coefficients")
        products = x
    with np.errstate(all="ignore"):
        scores = (products @ coefficients + rho[0]).astype(np.float32)[:, None]
    return (np.where(scores > 0, np.float32(1), np.float32(-1)) if node.attributes.get("one_class") else scores,)


def svm_classifier(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    """libsvm's classifiers of each two classes, by votes, or without `vectors_per_class` liblinear's of each class."""
    x = _rows(inputs[0], np.float32).astype(np.float64)
    labels, transform = labels_of(node, "classlabels_ints"), _choice(node, "post_transform", POST_TRANSFORMS)
    coefficients, rho = floats(node, "coefficients"), floats(node, "rho")
    prob_a, prob_b = floats(node, "prob_a"), floats(node, "prob_b")
    _expect(len(prob_a) == len(prob_b), "as many elements in prob_a and prob_b")
    n_vectors = integers(node, "vectors_per_class")
    _expect((n_vectors >= 0).all() and (n_vectors <= len(coefficients)).all(), "vectors_per_class from 0")
    if not n_vectors.sum():
        return _svm_linear(x, labels, transform, coefficients, rho, len(prob_a) > 0)
    k = len(labels)
    _expect(len(n_vectors) == k and k >= 2, f"vectors_per_class of {max(k, 2)} classes")
    total = int(n_vectors.sum())
    pairs = k * (k - 1) // 2
    _expect(len(coefficients) == (k - 1) * total, f"{(k - 1) * total} coefficients")
    _expect(len(rho) == pairs and len(prob_a) in (0, pairs), f"{pairs} elements in rho, and in prob_a and prob_b")
    products = _kernel(node, x, _support_vectors(node, total, x.shape[1]))
    scores, winner = _svm_votes(products, coefficients.reshape(k - 1, total), rho, n_vectors)
    if len(prob_a):
        scores = coupled(_pairwise(scores, prob_a.astype(np.float32), prob_b.astype(np.float32), k))
    elif k == 2:
        return labels[winner], _svm_two_columns(scores, transform)
    return labels[winner], post_transform(scores, transform)


def _svm_linear(x: np.ndarray, labels: np.ndarray, transform: str, coefficients: np.ndarray, rho: np.ndarray,
                has_probabilities: bool) -> tuple[np.ndarray, np.ndarray]:
    k = len(labels)
    _expect(len(rho) > 0 and k >= 2, "rho, and two classes or more")
    scores = _linear_scores(x, coefficients, np.full(k, rho[0]))
    index = np.argmax(scores, axis=1)
    if k == 2 and not has_probabilities:
        largest = scores.max(axis=1)
        index[largest >= 0.5 if (coefficients >= 0).all() else largest > 0] = 1
    return labels[index], post_transform(scores, transform)


def _svm_votes(products: np.ndarray, coefficients: np.ndarray, rho: np.ndarray,
               n_vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of each two classes i < j, (n, pairs) float32, and the class with most votes, (n).

    products (n, total), coefficients (k − 1, total): row j − 1 of class i's vectors weighs them against class j.
    """
    k, ends = len(n_vectors), np.cumsum(n_vectors)
    of = [slice(end - count, end) for end, count in zip(ends, n_vectors)]
    votes = np.zeros((len(products), k), np.int64)
    scores = np.empty((len(products), len(rho)), np.float32)
    rows = np.arange(len(products))
    pair = 0
    with np.errstate(all="ignore"):
        for i in range(k - 1):
            for j in range(i + 1, k):
                score = (products[:, of[i]] @ coefficients[j - 1, of[i]] + products[:, of[j]] @ coefficients[i, of[j]]
                         + rho[pair])
                votes[rows, np.where(score > 0, i, j)] += 1
                scores[:, pair] = score
                pair += 1
    return scores, np.argmax(votes, axis=1)


def _svm_two_columns(scores: np.ndarray, transform: str) -> np.ndarray:
    """Of one classifier's scores (n, 1), two columns: SOFTMAX and SOFTMAX_ZERO are as [1 − s, s]."""
    if transform == "PROBIT":
        return np.concatenate([_only_probit(scores, transform), np.zeros_like(scores)], axis=1)  # undefined: 0
    return np.concatenate([-scores, scores], axis=1) if transform == "NONE" else _two_columns(scores, transform)


def _pairwise(scores: np.ndarray, prob_a: np.ndarray, prob_b: np.ndarray, k: int) -> np.ndarray:
    """P(i | i or j) by Platt's sigmoid: (n, pairs) float32 → (n, k, k) float32."""
    r = np.zeros((len(scores), k, k), np.float32)
    low, high = np.triu_indices(k, 1)
    with np.errstate(all="ignore"):
        value = scores * prob_a + prob_b
        p = 1 / (1 + np.exp(-np.abs(value)))
        p = np.where(value < 0, p, 1 - p)
    p = np.clip(p, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    r[:, low, high] = p
    r[:, high, low] = 1 - p
    return r


# --- preprocessing ---

def scaler(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    _expect(x.ndim > 0 and x.dtype.kind in NUMBERS, "numbers of one dimension or more")
    offset, scale = floats(node, "offset"), floats(node, "scale")
    _expect(len(offset) == len(scale) > 0, "as many elements in offset and scale, one or more")
    _expect(len(scale) == 1 or (x.ndim <= 2 and len(scale) == x.shape[-1]), f"1 or {x.shape[-1]} elements in scale")
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        return (((x.astype(dtype) - offset.astype(dtype)) * scale.astype(dtype)).astype(np.float32),)


def normalizer(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = _rows(inputs[0])
    norm = _choice(node, "norm", ("MAX", "L1", "L2"))
    with np.errstate(all="ignore"):
        single = x.astype(np.float32)
        if norm == "MAX":
            by = np.fmax.reduce(single, axis=1, keepdims=True, initial=np.finfo(np.float32).min)
        elif norm == "L1":
            by = np.abs(x).astype(np.float32).sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        else:
            squares = np.square(x).astype(np.float32)
            by = squares.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        divided = np.copysign(np.sqrt(squares / by), single) if norm == "L2" else single / by
        return (np.where(by != 0, divided, single).reshape(inputs[0].shape),)


def imputer(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    _expect(x.ndim > 0 and x.dtype.kind in NUMBERS, "numbers of one dimension or more")
    if x.dtype.kind == "f":
        values = floats(node, "imputed_value_floats")
        replaced = np.float32(node.attributes.get("replaced_value_float", 0))
    else:
        values, replaced = integers(node, "imputed_value_int64s"), node.attributes.get("replaced_value_int64", 0)
    _expect(len(values) == 1 or len(values) == x.shape[-1] > 0, f"1 or {x.shape[-1]} imputed values for {x.dtype}")
    if x.dtype.kind != "f":
        limits = np.iinfo(x.dtype)
        _expect((values >= limits.min).all() and (values <= limits.max).all(), f"imputed values that are {x.dtype}")
    hit = np.isnan(x) if x.dtype.kind == "f" and np.isnan(replaced) else x == replaced
    return (np.where(hit, values.astype(x.dtype), x),)


def binarizer(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    _expect(x.dtype.kind in NUMBERS and not (x.dtype.kind == "f" and np.isnan(x).any()), "numbers, not NaN")
    return ((x > np.float32(node.attributes.get("threshold", 0.0))).astype(x.dtype),)


def array_feature_extractor(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x, chosen = inputs[0], inputs[1].reshape(-1)
    _expect(x.ndim > 0 and len(chosen) > 0 and chosen.dtype.kind in "iu", "one dimension or more, and indices")
    _expect((chosen >= 0).all() and (chosen < x.shape[-1]).all(), f"indices from 0 to {x.shape[-1] - 1}")
    return ((x[None] if x.ndim == 1 else x)[..., chosen],)


def feature_vectorizer(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    """The inputs side by side, (n, sum of inputdimensions) float32: each cut, or filled up with 0, to its dimension."""
    widths = integers(node, "inputdimensions")
    _expect(len(widths) == len(inputs) > 0, f"{len(inputs)} inputdimensions")
    parts = []
    for x, width in zip(inputs, widths):
        _expect(x is not None and x.ndim > 0 and x.dtype.kind in NUMBERS, "inputs of numbers")
        with np.errstate(over="ignore"):
            rows = x.reshape(1 if x.ndim == 1 else len(x), -1 if x.size else 0)[:, :max(width, 0)].astype(np.float32)
        _expect(0 <= width <= rows.shape[1] + MAX_PADDING, f"inputdimensions from 0 to {rows.shape[1] + MAX_PADDING}")
        parts.append(np.pad(rows, ((0, 0), (0, width - rows.shape[1]))))
    _expect(len({len(part) for part in parts}) == 1, "inputs with the same number of rows")
    return (np.concatenate(parts, axis=1),)


MAX_PADDING = 1 << 16


# --- categories ---

def _positions(keys: Any, x: np.ndarray, last: bool, nan_equals: bool = True) -> np.ndarray:
    """Where each value of x is among the keys, −1 if nowhere; of equal keys the first, or the last."""
    if x.dtype.kind in "OU":
        pairs = enumerate(keys) if last else reversed(list(enumerate(keys)))
        places = {key: i for i, key in pairs}
        return np.fromiter((places.get(value, -1) for value in x.flat), np.int64, x.size).reshape(x.shape)
    keys = np.asarray(keys)
    if not len(keys):
        return np.full(x.shape, -1)
    order = np.argsort(keys, kind="stable")  # NaN last
    ranked = keys[order]
    place = np.searchsorted(ranked, x, side="right" if last else "left") - last
    place = np.clip(place, 0, len(keys) - 1)
    equal = ranked[place] == x
    if x.dtype.kind == "f" and nan_equals:
        equal |= np.isnan(ranked[place]) & np.isnan(x)
    return np.where(equal, order[place], -1)


def _mapped(values: np.ndarray, default: Any, places: np.ndarray) -> np.ndarray:
    """values[places], the default where a place is −1."""
    table = np.concatenate([values, np.array([default], values.dtype)])
    return table[places]


def one_hot_encoder(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    strings, numbers = _strings(node, "cats_strings"), integers(node, "cats_int64s")
    _expect((len(strings) > 0) != (len(numbers) > 0), "either cats_strings or cats_int64s")
    _expect(x.ndim <= 2, f"a matrix or a vector, found {x.ndim} dimensions")
    _expect((x.dtype.kind in "OU") == bool(strings), "an input of the categories' type")
    if x.dtype.kind == "f":  # to integers; NaN and what is too large are no category
        with np.errstate(invalid="ignore"):
            whole = (x >= -2.0 ** 63) & (x < 2.0 ** 63)
            places = np.where(whole, _positions(numbers, np.where(whole, x, 0).astype(np.int64), last=True), -1)
    else:
        places = _positions(strings or numbers, x, last=True)
    known = places >= 0
    _expect(node.attributes.get("zeros", 1) or known.all(), "known categories, since zeros is 0")
    encoded = np.zeros((*x.shape, len(strings) or len(numbers)), np.float32)
    encoded[known, places[known]] = 1
    return (encoded,)


LABEL_TYPES: dict[str, tuple[str, Any, Any]] = {
    "strings": ("string", "_Unused", object), "int64s": ("int64", -1, np.int64), "floats": ("float", -0.0, np.float32)}
DEFAULTS = {"O": "_Unused", "i": -1, "f": -0.0}  # of values_tensor


def label_encoder(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    if node.version == 1:
        classes = np.array(_strings(node, "classes_strings"), object)
        if x.dtype.kind in "OU":
            default = node.attributes.get("default_int64", -1)
            return (_mapped(np.arange(len(classes)), default, _positions(classes, x, last=True)),)
        default = node.attributes.get("default_string", "_Unused")
        return (_mapped(classes, default, np.where((x >= 0) & (x < len(classes)), x, -1)),)
    keys, _ = label_column(node, "keys")
    values, default = label_column(node, "values")
    _expect(len(keys) == len(values), "as many keys as values")
    x = x.astype(object) if x.dtype.kind == "U" else x
    _expect(x.dtype == keys.dtype, f"an input of the keys' type {keys.dtype}, found {x.dtype}")
    return (_mapped(values, default, _positions(keys, x, last=False, nan_equals=node.version >= 4)),)


def label_column(node: Node, name: str) -> tuple[np.ndarray, Any]:
    """The keys or values, (n) of their dtype, and the default for that dtype."""
    given = [kind for kind in (*LABEL_TYPES, "tensor") if node.attributes.get(f"{name}_{kind}") is not None]
    _expect(len(given) == 1, f"one attribute of {name}")
    values = node.attributes[f"{name}_{given[0]}"]
    if given[0] != "tensor":
        of, default, dtype = LABEL_TYPES[given[0]]
        column = np.array(values if dtype is not object else _strings(node, f"{name}_strings"), dtype)
        default = node.attributes.get(f"default_{of}", default)
    else:
        _expect(values.dtype.kind in DEFAULTS, f"strings or numbers in {name}_tensor")
        column, default = values.reshape(-1), DEFAULTS[values.dtype.kind]
    tensor = node.attributes.get("default_tensor")
    if name == "values" and tensor is not None:
        _expect(tensor.size == 1 and tensor.dtype == column.dtype, f"one {column.dtype} in default_tensor")
        default = tensor.reshape(-1)[0]
    return column, default


def category_mapper(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    strings, numbers = np.array(_strings(node, "cats_strings"), object), integers(node, "cats_int64s")
    _expect(len(strings) == len(numbers), "as many cats_strings as cats_int64s")
    if x.dtype.kind in "OU":
        return (_mapped(numbers, node.attributes.get("default_int64", -1), _positions(strings, x, last=True)),)
    _expect(x.dtype == np.int64, f"strings or int64, found {x.dtype}")
    return (_mapped(strings, node.attributes.get("default_string", "_Unused"), _positions(numbers, x, last=True)),)


def dict_vectorizer(node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
    """A dict's values in the order of the vocabulary, (1, len(vocabulary)); 0 or "" where it has no such key."""
    given = inputs[0]
    _expect(isinstance(given, dict), "a dict")
    vocabulary = _strings(node, "string_vocabulary") or integers(node, "int64_vocabulary").tolist()
    dtypes = {np.asarray(value).dtype for value in given.values()}
    if any(dtype.kind in "OU" for dtype in dtypes):
        return (np.array([[given.get(key, "") for key in vocabulary]], object),)
    python_floats = any(type(value) is float for value in given.values())
    dtype = np.float32 if python_floats or not dtypes else np.result_type(*dtypes)
    return (np.array([[given.get(key, 0) for key in vocabulary]], dtype),)


def zip_map(node: Node, inputs: list[Any]) -> tuple[Any, ...]:
    """A list of n dicts {label: score}."""
    x = _rows(inputs[0], np.float32)
    _expect(bool(node.attributes.get("classlabels_strings")) != bool(node.attributes.get("classlabels_int64s")),
            "either classlabels_strings or classlabels_int64s")
    labels = labels_of(node, "classlabels_int64s").tolist()
    _expect(x.shape[1] == len(labels), f"{len(labels)} columns")
    return ([dict(zip(labels, row)) for row in x.tolist()],)


ML_OPS: dict[str, Callable[[Node, list[Any]], tuple[Any, ...]]] = {
    "ArrayFeatureExtractor": array_feature_extractor,
    "Binarizer": binarizer,
    "CategoryMapper": category_mapper,
    "DictVectorizer": dict_vectorizer,
    "FeatureVectorizer": feature_vectorizer,
    "Imputer": imputer,
    "LabelEncoder": label_encoder,
    "LinearClassifier": linear_classifier,
    "LinearRegressor": linear_regressor,
    "Normalizer": normalizer,
    "OneHotEncoder": one_hot_encoder,
    "SVMClassifier": svm_classifier,
    "SVMRegressor": svm_regressor,
    "Scaler": scaler,
    "TreeEnsemble": tree_ensemble,
    "TreeEnsembleClassifier": tree_ensemble_classifier,
    "TreeEnsembleRegressor": tree_ensemble_regressor,
    "ZipMap": zip_map,
}
