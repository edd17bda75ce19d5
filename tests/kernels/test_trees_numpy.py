"""The numpy walk of tree ensembles against a walk of one row and one node at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kernels import ensemble as terms
from kernels import trees_numpy
from kernels.ensemble import TreeEnsemble
from kernels.errors import ModelError

SETS = (np.empty(0), np.array([0.0]), np.array([-3.0, 0.0, 2.0, 1e9]), np.array([0.5, 1.0, 7.0]))
VALUES = np.array([-3.5, -3.0, -1.0, -0.5, -1e-36, -0.0, 0.0, 1e-35, 1e-30, 0.5, 1.0, 1 + 1e-12, 2.9, 7.0, 1e9, 1e300,
                   np.inf, -np.inf, np.nan])


def random_ensemble(rng, n_trees=7, n_features=3, n_outputs=3, depth=4, **fields):
    feature, threshold, left, right, missing, leaf, category_set, values = ([] for _ in range(8))
    roots, first, width = [], [], []

    def grow(depth):
        node = len(feature)
        for column, value in ((feature, -1), (threshold, math.nan), (left, -9), (right, -9), (missing, 0),
                              (leaf, -9), (category_set, -1)):
            column.append(value)
        if depth == 0 or rng.random() < 0.2:
            leaf[node] = len(values)
            values.extend(rng.standard_normal(width[-1]))
            return node
        feature[node], threshold[node] = rng.integers(n_features), rng.choice(VALUES[:-1])
        missing[node] = rng.integers(5)
        if rng.random() < 0.4:
            category_set[node], missing[node] = rng.integers(len(SETS)), rng.integers(2)
        left[node], right[node] = grow(depth - 1), grow(depth - 1)
        return node

    for _ in range(n_trees):
        first.append(rng.integers(n_outputs))
        width.append(rng.integers(1, n_outputs - first[-1] + 1))
        roots.append(grow(depth))
    built = TreeEnsemble(
        n_features, n_outputs, np.array(roots), np.array(first), np.array(width), np.array(feature),
        np.array(threshold), np.array(left), np.array(right), np.array(missing, np.uint8), np.array(leaf),
        np.array(values), rng.standard_normal(n_outputs), np.array(category_set), SETS, **fields)
    built.check()
    return built


def naive_leaf(trees, node, x):
    while trees.feature[node] >= 0:
        value, rule = x[trees.feature[node]], trees.missing[node]
        value = float(np.float32(value)) if trees.rounds_inputs else value
        which = -1 if trees.category_set is None else trees.category_set[node]
        if which >= 0:
            if math.isnan(value):
                goes_left = rule == terms.NAN_LEFT
            else:
                if trees.category_rule != terms.EXACT and math.isfinite(value):
                    none = trees.category_rule == terms.TRUNCATED_POSITIVE and value < 0
                    value = math.nan if none else math.trunc(value)
                goes_left = value in trees.sets[which].tolist()
        else:
            if math.isnan(value) and rule == terms.NAN_IS_ZERO:
                value = 0.0
            if math.isnan(value) or (rule in (terms.ZERO_LEFT, terms.ZERO_RIGHT) and abs(value) <= np.float32(1e-35)):
                goes_left = rule in (terms.NAN_LEFT, terms.ZERO_LEFT)
            else:
                goes_left = value <= trees.threshold[node]
        node = (trees.left if goes_left else trees.right)[node]
    return trees.leaf[node]


def naive_scores(trees, x):
    number = np.float32 if trees.rounds_sums else np.float64
    said = [[] for _ in range(trees.n_outputs)]
    for root, first, width in zip(trees.root, trees.first_output, trees.output_width):
        place = naive_leaf(trees, root, x)
        for k in range(width):
            said[first + k].append(number(trees.leaf_values[place + k]))
    scores = []
    for base, values in zip(trees.base.astype(number), said):
        if trees.aggregate in (terms.MIN, terms.MAX):
            best = min if trees.aggregate == terms.MIN else max
            scores.append(best(values, default=number(0)) + base)
            continue
        first = trees.rounds_sums and trees.aggregate == terms.SUM
        total = base if first else number(0)
        for value in values:
            total = total + value
        if trees.aggregate == terms.AVERAGE:
            total = total / number(len(trees.root))
        scores.append(total if first else total + base)
    return scores


@pytest.mark.parametrize("rounds_sums", [False, True])
@pytest.mark.parametrize("aggregate", [terms.SUM, terms.AVERAGE, terms.MIN, terms.MAX])
@pytest.mark.parametrize("rule", [terms.EXACT, terms.TRUNCATED, terms.TRUNCATED_POSITIVE])
def test_raw_scores_are_the_naive_ones_to_the_bit(rule, aggregate, rounds_sums, monkeypatch):
    rng = np.random.default_rng(rule + 10 * aggregate)
    monkeypatch.setattr(trees_numpy, "PAIRS", int(rng.integers(1, 40)))  # blocks smaller than the ensemble
    trees = random_ensemble(rng, category_rule=rule, aggregate=aggregate, rounds_sums=rounds_sums,
                            rounds_inputs=bool(rng.integers(2)))
    X = rng.choice(VALUES, (50, 4))
    with np.errstate(over="ignore"):
        expected = np.array([naive_scores(trees, x) for x in X], np.float64)
    assert (trees_numpy.raw_scores(trees, X) == expected).all()


def test_trees_of_one_leaf_and_no_rows():
    trees = random_ensemble(np.random.default_rng(0), depth=0)
    assert trees_numpy.raw_scores(trees, np.zeros((0, 3))).shape == (0, 3)
    assert np.unique(trees_numpy.raw_scores(trees, np.zeros((5, 3))), axis=0).shape == (1, 3)
    X, without_sets = np.ones((2, 3)), replace(trees, category_set=None, sets=())
    assert (trees_numpy.raw_scores(without_sets, X) == trees_numpy.raw_scores(trees, X)).all()


def test_integers_are_rows_too():
    trees = random_ensemble(np.random.default_rng(1))
    X = np.random.default_rng(2).integers(-4, 9, (20, 3))
    assert (trees_numpy.raw_scores(trees, X) == trees_numpy.raw_scores(trees, X.astype(np.float64))).all()


@pytest.mark.parametrize("X", [np.zeros(3), np.zeros((2, 2)), np.zeros((1, 2, 3))])
def test_rows_that_do_not_fit(X):
    with pytest.raises(ModelError, match="3 features"):
        trees_numpy.raw_scores(random_ensemble(np.random.default_rng(0)), X)
