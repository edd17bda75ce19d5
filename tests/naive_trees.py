"""A slow oracle of tree ensembles: each row walks each tree, by the docstring of `kernels.ensemble` alone.

The rule to keep: it imports nothing of ours, so its constants are copies; what it is given is duck-typed.
"""

import math

import numpy as np

NAN_RIGHT, NAN_LEFT, NAN_IS_ZERO, ZERO_RIGHT, ZERO_LEFT = range(5)
EXACT, TRUNCATED, TRUNCATED_POSITIVE = range(3)
SUM, AVERAGE, MIN, MAX = range(4)
ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold is a float


def raw_scores(ensemble, X: np.ndarray) -> np.ndarray:
    """(n, n_features) → (n, n_outputs) float64: the aggregated leaves and the base."""
    X = np.asarray(X, np.float64)
    if ensemble.rounds_inputs:
        with np.errstate(over="ignore"):
            X = X.astype(np.float32).astype(np.float64)
    trees = _Lists(ensemble)
    return np.array([_row_scores(ensemble, trees, row) for row in X.tolist()]).reshape(len(X), ensemble.n_outputs)


def leaf_nodes(ensemble, X: np.ndarray) -> np.ndarray:
    """(n, n_features) → (n, n_trees) int64: the leaf that each row reaches in each tree."""
    trees = _Lists(ensemble)
    return np.array([[_walk(trees, root, row) for root in trees.root] for row in np.asarray(X, float).tolist()])


class _Lists:
    """The arrays of an ensemble as lists, and its sets as sets: quick to index."""

    def __init__(self, ensemble):
        for name in ("root", "first_output", "output_width", "feature", "threshold", "left", "right", "missing",
                     "leaf", "leaf_values"):
            setattr(self, name, getattr(ensemble, name).tolist())
        self.category_set = [-1] * len(self.feature)
        if ensemble.category_set is not None:
            self.category_set = ensemble.category_set.tolist()
        self.sets = [frozenset(categories.tolist()) for categories in ensemble.sets]
        self.category_rule = ensemble.category_rule


def _row_scores(ensemble, trees: _Lists, row: list[float]) -> list[float]:
    leaves: list[list[float]] = [[] for _ in range(ensemble.n_outputs)]
    for root, first, width in zip(trees.root, trees.first_output, trees.output_width, strict=True):
        at = trees.leaf[_walk(trees, root, row)]
        for k in range(width):
            leaves[first + k].append(trees.leaf_values[at + k])
    return [_aggregate(ensemble, values, base) for values, base in zip(leaves, ensemble.base.tolist(), strict=True)]


def _aggregate(ensemble, values: list[float], base: float) -> float:
    if ensemble.aggregate in (MIN, MAX):
        return (min if ensemble.aggregate == MIN else max)(values, default=0.0) + base
    n = len(ensemble.root) if ensemble.aggregate == AVERAGE else 1  # of all trees, whatever their outputs
    if ensemble.rounds_sums:
        total = np.float32(base)
        for value in values:
            total = np.float32(total + np.float32(value) / np.float32(n))
        return float(total)
    total = 0.0
    for value in values:
        total += value
    return total / n + base


def _walk(trees: _Lists, node: int, row: list[float]) -> int:
    while trees.feature[node] >= 0:
        goes_left = _goes_left(trees, node, row[trees.feature[node]])
        node = trees.left[node] if goes_left else trees.right[node]
    return node


def _goes_left(trees: _Lists, node: int, x: float) -> bool:
    rule = trees.missing[node]
    if trees.category_set[node] >= 0:
        if math.isnan(x):
            return rule == NAN_LEFT
        return _category(trees.category_rule, x) in trees.sets[trees.category_set[node]]
    if rule in (ZERO_RIGHT, ZERO_LEFT) and (math.isnan(x) or abs(x) <= ZERO):
        return rule == ZERO_LEFT
    if math.isnan(x) and rule != NAN_IS_ZERO:
        return rule == NAN_LEFT
    return (0.0 if math.isnan(x) else x) <= trees.threshold[node]


def _category(rule: int, x: float) -> float | None:
    if rule == EXACT or math.isinf(x):
        return x
    if rule == TRUNCATED_POSITIVE and x < 0:
        return None
    return float(math.trunc(x))


def _softmax(raw: np.ndarray) -> np.ndarray:
    e = np.exp(raw - raw.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


LINKS = {
    "identity": lambda s, factor: s,
    "sigmoid": lambda s, factor: 1 / (1 + np.exp(-factor * s)),
    "exp": lambda s, factor: np.exp(s),
    "softmax": lambda s, factor: _softmax(s),
    "log1p_exp": lambda s, factor: np.log1p(np.exp(s)),
    "signed_square": lambda s, factor: np.sign(s) * s * s,
    "hinge": lambda s, factor: np.where(s > 0, 1.0, 0.0),
    "argmax": lambda s, factor: s.argmax(axis=1).astype(float)[:, None],
}


def apply_link(booster, raw: np.ndarray) -> np.ndarray:
    """Raw scores (n, n_outputs) → predictions: (n), or (n, n_outputs) where there are several."""
    with np.errstate(over="ignore"):  # 1 / (1 + inf) is 0
        scores = LINKS[booster.link](raw, booster.link_factor)
    return scores[:, 0] if scores.shape[1] == 1 else scores
