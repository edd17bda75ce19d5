"""Shapley values against their definition, over all coalitions, and against LightGBM, XGBoost and shap."""

import math
import threading
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn import compose, datasets, ensemble, linear_model, pipeline, preprocessing

import kernels
from kernels import ModelError, boosters, explain, lightgbm_text, quants, trees, xgboost_json
from kernels.ensemble import (AVERAGE, MAX, SUM, TRUNCATED, NAN_IS_ZERO, NAN_LEFT, NAN_RIGHT, ZERO_LEFT, ZERO_RIGHT,
                              TreeEnsemble)
from kernels.gguf import F64
from kernels.program import Builder
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, UNARY_CODES, runs_of
from kernels.tabular import Signature, TabularModel
from kernels.tabular_file import add_dense
from tests import naive_trees

with warnings.catch_warnings():  # matplotlib's, which shap imports
    warnings.simplefilter("ignore")
    import shap

NO_CONSTANTS = {"constants": np.empty(0)}


# ---- the definition ----------------------------------------------------------------------------------------

def shapley(payoff, n: int) -> np.ndarray:
    """(n, …) the values of n players; payoff: a set of players → an array."""
    coalitions = [frozenset(players) for size in range(n + 1) for players in combinations(range(n), size)]
    worth = {players: payoff(players) for players in coalitions}
    values = []
    for i in range(n):
        total = 0.0
        for players, value in worth.items():
            if i not in players:
                s = len(players)
                weight = math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n)
                total = total + weight * (worth[players | {i}] - value)
        values.append(total)
    return np.array(values)


def path_payoff(ensemble: TreeEnsemble, row: np.ndarray, players: frozenset) -> np.ndarray:
    """The raw scores (n_outputs) that are expected where only the features of `players` are known."""
    lists = naive_trees._Lists(ensemble)
    scores = np.zeros(ensemble.n_outputs)

    def expected(node: int, width: int) -> np.ndarray:
        if lists.feature[node] < 0:
            return np.array(lists.leaf_values[lists.leaf[node]:][:width])
        left, right = lists.left[node], lists.right[node]
        if lists.feature[node] in players:
            goes_left = naive_trees._goes_left(lists, node, row[lists.feature[node]])
            return expected(left if goes_left else right, width)
        both = [ensemble.cover[child] / ensemble.cover[node] * expected(child, width) for child in (left, right)]
        return both[0] + both[1]

    for root, first, width in zip(lists.root, lists.first_output, lists.output_width):
        scores[first:first + width] += expected(root, width)
    return scores / (len(lists.root) if ensemble.aggregate == AVERAGE else 1) + ensemble.base


def assert_path_dependent(ensemble: TreeEnsemble, X: np.ndarray, found: explain.Explanation) -> None:
    for row, values in zip(X, found.values, strict=True):
        expected = shapley(lambda players: path_payoff(ensemble, row, players), X.shape[1])
        np.testing.assert_allclose(values, expected, rtol=1e-11, atol=1e-13)


def assert_interventional(score, X: np.ndarray, background: np.ndarray, found: explain.Explanation,
                          rtol: float = 1e-11) -> None:
    """Of scores, (n, n_features) → (n, …): the payoff is their mean over the background with the players' features."""
    for row, values in zip(X, found.values, strict=True):
        def payoff(players: frozenset) -> np.ndarray:
            hybrids = background.copy()
            hybrids[:, sorted(players)] = row[sorted(players)]
            return score(hybrids).reshape(len(hybrids), -1).mean(axis=0)
        expected = shapley(payoff, X.shape[1])
        np.testing.assert_allclose(values[:, -expected.shape[1]:], expected, rtol=rtol, atol=rtol / 100)


# ---- models ------------------------------------------------------------------------------------------------

def random_ensemble(seed: int, n_features: int = 5, n_outputs: int = 1, width: int = 1, n_trees: int = 4,
                    depth: int = 6, aggregate: int = SUM, cover: bool = True) -> TreeEnsemble:
    """Unbalanced trees with every rule for missing values, categories, and covers that add up."""
    rng = np.random.default_rng(seed)
    nodes: list[list[float]] = []  # feature, threshold, left, right, missing, category set, cover

    def grow(level: int, weight: float) -> int:
        at = len(nodes)
        nodes.append([-1, 0.0, 0, 0, 0, -1, weight])
        if level < depth and weight > 1 and rng.random() < 0.85:
            share = int(rng.integers(0, weight + 1))
            is_category = rng.random() < 0.25
            rules = [NAN_RIGHT, NAN_LEFT] + [NAN_IS_ZERO, ZERO_RIGHT, ZERO_LEFT] * (not is_category)
            split = [int(rng.integers(n_features)), rng.integers(-2, 3) / 2, 0, 0, rng.choice(rules),
                     int(rng.integers(3)) if is_category else -1, weight]
            if cover:
                share = min(max(share, 1), int(weight) - 1)
            split[2], split[3] = grow(level + 1, share), grow(level + 1, weight - share)
            nodes[at] = split
        return at

    root = [grow(0, 50) for _ in range(n_trees)]
    feature, threshold, left, right, missing, category_set, covers = map(np.array, zip(*nodes))
    leaf = np.cumsum((feature < 0) * width) - width
    return TreeEnsemble(
        n_features, n_outputs, np.array(root), rng.integers(0, n_outputs - width + 1, n_trees), np.full(n_trees, width),
        feature, threshold, left, right, missing.astype(np.uint8), leaf, rng.normal(size=len(nodes) * width),
        rng.normal(size=n_outputs), category_set, (np.array([0.0]), np.array([-1.0, 1.0]), np.array([0.0, 2.0])),
        TRUNCATED, covers.astype(float) if cover else None, aggregate)


def random_rows(seed: int, n: int, n_features: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice([-1.5, -1.0, -0.5, 0.0, 0.5, 0.7, 1.0, 1.5, np.nan], (n, n_features))


def add_trees(builder: Builder, value: int, ensemble: TreeEnsemble) -> int:
    return builder.add("trees", (value,), ensemble.n_outputs, numbers=trees.numbers_of(ensemble),
                       arrays=trees.compile_ensemble(ensemble))


def model_of(builder: Builder, prediction: int, checked: int | None = None) -> TabularModel:
    program = builder.finish(prediction, 0, (prediction if checked is None else checked,))
    signature = Signature(builder.n_features, None, None, "regression")
    return TabularModel("m", "1", "test", signature, program)


def tree_model(ensemble: TreeEnsemble) -> TabularModel:
    builder = Builder(ensemble.n_features)
    return model_of(builder, add_trees(builder, 0, ensemble))


def linear(builder: Builder, value: int, weights: np.ndarray, bias: np.ndarray, activation: int = 0) -> int:
    """A step "dense" of weights (n_out, n_in)."""
    padded = np.zeros((len(weights), -(-weights.shape[1] // quants.BLOCK) * quants.BLOCK))
    padded[:, :weights.shape[1]] = weights
    return add_dense(builder, value, padded.view(np.uint8), F64, bias, weights.shape[1], activation)


def read_lightgbm(booster: lightgbm.Booster) -> TabularModel:
    return boosters.model_of(lightgbm_text.read(booster.model_to_string(), "m"), "m", Path("m"), 1)


def read_xgboost(booster: xgboost.Booster) -> TabularModel:
    return boosters.model_of(xgboost_json.read(bytes(booster.save_raw("json")), "m"), "m", Path("m"), 1)


def of_forest(forest) -> TreeEnsemble:
    """A forest of scikit-learn's as the ensemble of its trees."""
    found = [estimator.tree_ for estimator in forest.estimators_]
    sizes = np.array([tree.node_count for tree in found])
    root = np.cumsum(sizes) - sizes
    width = found[0].value.shape[2]
    feature = np.concatenate([tree.feature for tree in found])
    joined = {name: np.concatenate([getattr(tree, name) + at for tree, at in zip(found, root)])
              for name in ("children_left", "children_right")}
    return TreeEnsemble(
        forest.n_features_in_, width, root, np.zeros(len(root), int), np.full(len(root), width),
        np.maximum(feature, -1), np.concatenate([tree.threshold for tree in found]),
        joined["children_left"], joined["children_right"], np.zeros(len(feature), np.uint8),
        np.arange(len(feature)) * width,
        np.concatenate([tree.value.ravel() for tree in found]), np.zeros(width), aggregate=AVERAGE, rounds_inputs=True,
        cover=np.concatenate([tree.weighted_n_node_samples for tree in found]))


def train_lightgbm(X, y, rounds: int = 20, categorical="auto", **parameters) -> lightgbm.Booster:
    parameters = {"verbose": -1, "num_threads": 1, "seed": 1} | parameters
    data = lightgbm.Dataset(X, y, categorical_feature=categorical, params={"verbose": -1})
    return lightgbm.train(parameters, data, rounds)


def generated(n: int, n_features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with missing values and zeros, and a target of two classes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features))
    score = X @ rng.normal(size=n_features) + 3 * X[:, 0] * X[:, 1]
    X[rng.random(X.shape) < 0.1] = np.nan
    X[rng.random(X.shape) < 0.1] = 0.0
    return X, (score > 0).astype(float)


def assert_adds_up(explanation: explain.Explanation, rtol: float = 1e-11) -> None:
    total = explanation.values.sum(axis=1) + explanation.base_values
    np.testing.assert_allclose(total, explanation.scores, rtol=rtol, atol=rtol)


def shap_values(model, X, background=None):
    """shap's values (n, n_features, n_outputs) and expected values (n_outputs)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perturbation = "tree_path_dependent" if background is None else "interventional"
        explainer = shap.TreeExplainer(model, background, feature_perturbation=perturbation)
        values = np.asarray(explainer.shap_values(X, check_additivity=False))
    return values.reshape(len(X), X.shape[1], -1), np.ravel(explainer.expected_value)


# ---- trees against the definition --------------------------------------------------------------------------

SHAPES = [  # n_features, n_outputs, width, aggregate, depth
    (5, 1, 1, SUM, 6), (3, 1, 1, AVERAGE, 9), (6, 4, 1, SUM, 5), (5, 3, 3, AVERAGE, 6), (5, 4, 2, SUM, 6),
    (1, 1, 1, SUM, 5),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_features, n_outputs, width, aggregate, depth", SHAPES)
def test_path_dependent_values_are_those_of_the_definition(seed, n_features, n_outputs, width, aggregate, depth):
    ensemble = random_ensemble(seed, n_features, n_outputs, width, 4, depth, aggregate)
    X = random_rows(seed, 5, n_features)
    found = explain.explain(tree_model(ensemble), X)
    assert_path_dependent(ensemble, X, found)
    np.testing.assert_allclose(found.base_values, path_payoff(ensemble, X[0], frozenset()), rtol=1e-12)
    np.testing.assert_allclose(found.scores, naive_trees.raw_scores(ensemble, X), rtol=1e-14)
    assert_adds_up(found)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_features, n_outputs, width, aggregate, depth", SHAPES)
def test_interventional_values_are_those_of_the_definition(seed, n_features, n_outputs, width, aggregate, depth):
    ensemble = random_ensemble(seed, n_features, n_outputs, width, 4, depth, aggregate, cover=bool(seed % 2))
    X, background = random_rows(seed, 5, n_features), random_rows(seed + 1, 7, n_features)
    found = explain.explain(tree_model(ensemble), X, background)
    assert_interventional(lambda rows: naive_trees.raw_scores(ensemble, rows), X, background, found)
    assert_adds_up(found)


@pytest.mark.parametrize("n_background", [1, 63, 64, 65, 130])
def test_background_sets_of_any_size(n_background):
    ensemble = random_ensemble(7, 6, depth=8)
    X, background = random_rows(1, 3, 6), random_rows(2, n_background, 6)
    model = tree_model(ensemble)
    one_by_one = [explain.explain(model, X, background[i:i + 1]).values for i in range(n_background)]
    np.testing.assert_allclose(explain.explain(model, X, background).values, np.mean(one_by_one, axis=0),
                               rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_columns_are_those_that_predictions_are_made_of(seed, rounds):
    found = replace(random_ensemble(seed, 6, n_trees=20, depth=8), rounds_inputs=rounds)
    step = tree_model(found).program.steps[0]
    rng = np.random.default_rng(seed)
    X = rng.choice([np.nan, np.inf, 0.0, 1e-36, 1e-35, 2e-35, 0.5, 0.50000000001, 1.0, 7.0, 1e300], (50, 6))
    X *= rng.choice([-1.0, 1.0], X.shape)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(explain._Columns(step).of(X), trees.columns_of(step, X))
    assert set(step.arrays["specs"][:, trees.RULE] >= trees.CATEGORY) == {True, False}


def test_leaves_that_no_training_row_came_to():
    ensemble = random_ensemble(3, 4, depth=5)
    is_leaf = ensemble.feature < 0
    last = np.flatnonzero(~is_leaf & is_leaf[ensemble.left] & is_leaf[ensemble.right])
    ensemble.cover[ensemble.right[last]] += ensemble.cover[ensemble.left[last]]
    ensemble.cover[ensemble.left[last]] = 0.0
    X = random_rows(0, 8, 4)
    assert_path_dependent(ensemble, X, explain.explain(tree_model(ensemble), X))


@pytest.mark.parametrize("n_vectors", [1, 2, 5, 32])
def test_quadrature_is_exact_for_all_weights_that_paths_need(n_vectors):
    weights, rest, t = explain._quadrature(n_vectors)
    degree = 16 * n_vectors - 1
    for s in {0, 1, degree // 3, degree // 2, degree}:
        exact = math.exp(math.lgamma(s + 1) + math.lgamma(degree - s + 1) - math.lgamma(degree + 2))
        assert weights @ (t ** s * rest ** (degree - s)) == pytest.approx(exact, rel=1e-11)


# ---- against the libraries ---------------------------------------------------------------------------------

@pytest.mark.parametrize("parameters", [
    {"objective": "binary"}, {"objective": "binary", "zero_as_missing": True}, {"objective": "regression"},
    {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    {"objective": "multiclass", "num_class": 3}], ids=str)
def test_lightgbm_path_dependent(parameters):
    X, y = generated(500, 12)
    y = np.digitize(X[:, 0], [-0.5, 0.5]) if "num_class" in parameters else y
    booster = train_lightgbm(X, y, **parameters)
    found = explain.explain(read_lightgbm(booster), X[:60])
    theirs = booster.predict(X[:60], pred_contrib=True, num_threads=1).reshape(60, -1, 13)
    scores = booster.predict(X[:60], raw_score=True).reshape(60, -1)
    if "boosting" in parameters:  # LightGBM averages the predictions of a forest, but not these
        theirs, scores = theirs / booster.num_trees(), scores / booster.num_trees()
    np.testing.assert_allclose(found.values, theirs[:, :, :-1].transpose(0, 2, 1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.base_values, theirs[0, :, -1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12)
    assert_adds_up(found)


def test_lightgbm_categories():
    rng = np.random.default_rng(0)
    X, y = generated(800, 6)
    X[:, 2] = rng.integers(0, 20, len(X))
    y = y + np.isin(X[:, 2], [1, 5, 7]) * (np.nan_to_num(X[:, 0]) > 0)
    booster = train_lightgbm(X, y, categorical=[2], objective="regression", min_data_per_group=5, cat_smooth=1)
    X = X[:80].copy()
    X[::7, 2] = np.nan
    X[1::9, 2] = 99
    found = explain.explain(read_lightgbm(booster), X)
    theirs = booster.predict(X, pred_contrib=True, num_threads=1)
    np.testing.assert_allclose(found.values[..., 0], theirs[:, :-1], rtol=1e-9, atol=1e-12)


def test_lightgbm_equals_shap():
    X, y = generated(600, 10)
    booster = train_lightgbm(X, y, objective="binary")
    model = read_lightgbm(booster)
    found, (values, base) = explain.explain(model, X[:50]), shap_values(booster, X[:50])
    np.testing.assert_allclose(found.values, values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.base_values, base, rtol=1e-9)
    found, (values, base) = explain.explain(model, X[:50], X[100:180]), shap_values(booster, X[:50], X[100:180])
    np.testing.assert_allclose(found.values, values, rtol=1e-6, atol=1e-6)  # shap's weights of pairs are float32
    assert_adds_up(found)


@pytest.mark.parametrize("parameters", [{"objective": "binary:logistic"}, {"objective": "reg:squarederror"},
                                        {"objective": "multi:softprob", "num_class": 3},
                                        {"objective": "multi:softprob", "num_class": 3,
                                         "multi_strategy": "multi_output_tree", "tree_method": "hist"}], ids=str)
def test_xgboost(parameters):
    X, y = generated(500, 8)
    y = np.digitize(X[:, 0], [-0.5, 0.5]) if "num_class" in parameters else y
    data = xgboost.DMatrix(X, y)
    booster = xgboost.train({"nthread": 1, "seed": 1} | parameters, data, 15)
    model = read_xgboost(booster)
    rows = xgboost.DMatrix(X[:60])
    scores = booster.predict(rows, output_margin=True).reshape(60, -1)
    found = explain.explain(model, X[:60], X[100:130])
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-6)
    assert_adds_up(found, rtol=1e-5)
    if "multi_strategy" in parameters:  # XGBoost has no contributions of these
        return
    found = explain.explain(model, X[:60])
    theirs = booster.predict(rows, pred_contribs=True).reshape(60, -1, 9)
    np.testing.assert_allclose(found.values, theirs[:, :, :-1].transpose(0, 2, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.base_values, theirs[0, :, -1], rtol=1e-4, atol=1e-5)
    assert_adds_up(found, rtol=1e-5)


@pytest.mark.parametrize("kind", ["classifier", "regressor", "deep"])
def test_scikit_learn_forests_equal_shap(kind):
    if kind == "regressor":
        X, y = datasets.load_diabetes(return_X_y=True)
        forest = ensemble.RandomForestRegressor(10, max_depth=7, random_state=0)
    elif kind == "classifier":
        X, y = datasets.load_wine(return_X_y=True)
        forest = ensemble.RandomForestClassifier(12, max_depth=5, random_state=0)
    else:  # more than 16 and more than 32 features on the way to a leaf
        rng = np.random.default_rng(0)
        X = rng.normal(size=(700, 60))
        y = rng.normal(size=700)
        forest = ensemble.ExtraTreesRegressor(4, max_features=1, random_state=0)
    forest.fit(X, y)
    model = tree_model(of_forest(forest))
    found, (values, base) = explain.explain(model, X[:20]), shap_values(forest, X[:20])
    np.testing.assert_allclose(found.values, values, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.base_values, base, rtol=1e-9)
    assert_adds_up(found)
    found = explain.explain(model, X[:20], X[50:90])
    assert_adds_up(found)
    if kind == "deep":
        assert explain.Explainer(model)._game.trees["n_distinct"].max() > 16
        values, base = shap_values(forest, X[:20], X[50:90])
        np.testing.assert_allclose(found.values, values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.base_values, base, rtol=1e-9)


def test_scikit_learn_forest_with_a_background_set():
    # shap itself differs by 0.1 here: its values do not add up, since it rounds what it compares.
    X, y = datasets.load_diabetes(return_X_y=True)
    X = X[:, 2:9]
    forest = ensemble.RandomForestRegressor(5, max_depth=7, random_state=0).fit(X, y)
    found = explain.explain(tree_model(of_forest(forest)), X[:2], X[50:90])
    assert_interventional(forest.predict, X[:2], X[50:90], found)


def chain(n: int) -> TreeEnsemble:
    """A tree that gives 1 where all of n features are at most 0, half of the training rows at each, else 0."""
    inner, after = np.arange(0, 2 * n, 2), np.arange(2, 2 * n + 2, 2)
    left, right, leaf, feature = np.zeros((4, 2 * n + 1), int)
    left[inner], right[inner] = after, inner + 1
    feature[:], feature[inner] = -1, np.arange(n)
    leaf[-1] = 1
    cover = np.zeros(2 * n + 1)
    cover[0::2] = 0.5 ** np.arange(n + 1)
    cover[inner + 1] = cover[after]
    return TreeEnsemble(n, 1, np.array([0]), np.array([0]), np.array([1]), feature, np.zeros(2 * n + 1), left, right,
                        np.zeros(2 * n + 1, np.uint8), leaf, np.array([0.0, 1.0]), np.zeros(1), cover=cover)


@pytest.mark.parametrize("n", [16, 17, 100, explain.MAX_DISTINCT])
def test_a_chain_with_a_feature_a_level(n):
    model, X = tree_model(chain(n)), -np.ones((1, n))
    found = explain.explain(model, X)
    np.testing.assert_allclose(found.values[0, :, 0], (1 - 0.5 ** n) / n, rtol=1e-11)
    X[0, :10] = 1.0
    found = explain.explain(model, X, -np.ones((3, n)))
    np.testing.assert_allclose(found.values[0, :, 0], [-0.1] * 10 + [0.0] * (n - 10), rtol=1e-12)
    assert_adds_up(found)


# ---- steps before and after --------------------------------------------------------------------------------

def prepared(builder: Builder) -> int:
    """Every kind of step that makes each column of one feature: 4 features → 9 columns, some of one feature."""
    n = builder.n_features
    value = builder.add("prepare", (0,), n, arrays={
        "missing": np.full(n, np.nan), "fill_values": np.full(n, 0.25), "offset": np.full(n, 0.1),
        "scale": np.arange(1.0, n + 1)})
    value = builder.add("unary", (value,), n, numbers={"function": UNARY_CODES["float32"]})
    place = builder.add("move", (0,), 1, arrays={"runs": runs_of([(0, 3)])} | NO_CONSTANTS)
    looked_up = builder.add("lookup", (place,), 1, arrays={
        "keys": np.array([-1.0, 0.0]), "values": np.array([3.0, 1.0, -2.0, 0.5])})
    hot = builder.add("onehot", (place,), 3, numbers={"group": 3}, arrays={
        "keys": np.array([-1.0, 0.0, 0.5]), "places": np.array([0, 1, 2, -1, -1])})
    joined = builder.add("move", (value, looked_up, hot), 9, arrays={
        "runs": runs_of([(0, 2), (0, 0), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (-1, 0)]),
        "constants": np.array([1.5])})
    return builder.add("binary", (joined,), 9, numbers={"function": BINARY_CODES["mul"]},
                       arrays={"constant": np.arange(1.0, 10) / 4})


@pytest.mark.parametrize("kind", ["trees", "dense"])
def test_features_are_those_of_the_row_whatever_columns_are_made_of_them(kind):
    builder = Builder(4)
    value = prepared(builder)
    if kind == "trees":
        score = add_trees(builder, value, random_ensemble(5, 9, 2, 1, 6, 6, cover=False))
        prediction = builder.add("reduce", (score,), 1, numbers={"function": REDUCE_CODES["argmax"], "group": 2})
    else:
        rng = np.random.default_rng(0)
        score = linear(builder, value, rng.normal(size=(2, 9)), np.array([0.5, -1.0]))
        prediction = builder.add("unary", (score,), 2, numbers={"function": UNARY_CODES["sigmoid"]})
    model, scorer = model_of(builder, prediction, score), model_of(builder, score)
    X, background = random_rows(0, 6, 4), random_rows(1, 9, 4)
    found = explain.explain(model, X, background)
    assert_interventional(scorer.predict, X, background, found)
    np.testing.assert_array_equal(found.scores, scorer.predict(X))
    assert_adds_up(found)


def test_path_dependent_values_with_several_columns_of_a_feature():
    ensemble = random_ensemble(11, 4, depth=6)
    builder = Builder(2)
    twice = builder.add("move", (0,), 4, arrays={"runs": runs_of([(0, 1), (0, 0), (0, 1), (0, 0)])} | NO_CONSTANTS)
    model = model_of(builder, add_trees(builder, twice, ensemble))
    X = random_rows(0, 6, 2)
    of_players = {0: {1, 3}, 1: {0, 2}}
    found = explain.explain(model, X)
    for row, values in zip(X, found.values):
        expected = shapley(lambda players: path_payoff(ensemble, row[[1, 0, 1, 0]], frozenset().union(
            *(of_players[player] for player in players))), 2)
        np.testing.assert_allclose(values, expected, rtol=1e-11, atol=1e-13)


ESTIMATORS = [  # (estimator, method that gives its raw score, tolerance: what skl2onnx rounds)
    (ensemble.RandomForestClassifier(8, max_depth=6, random_state=0), "predict_proba", 1e-6),
    (ensemble.GradientBoostingClassifier(n_estimators=8, random_state=0), "decision_function", 1e-6),
    (linear_model.LogisticRegression(), "decision_function", 1e-4),
    (pipeline.make_pipeline(compose.ColumnTransformer([
        ("code", preprocessing.OneHotEncoder(handle_unknown="ignore"), [0]),
        ("scale", preprocessing.StandardScaler(), [1, 2, 3, 4])]), linear_model.LogisticRegression()),
     "decision_function", 1e-4),
]


@pytest.mark.parametrize("estimator, method, rtol", ESTIMATORS, ids=["forest", "boosting", "linear", "pipeline"])
def test_scikit_learn_estimators_are_explained_by_the_features_that_they_take(estimator, method, rtol):
    X, y = datasets.load_breast_cancer(return_X_y=True)
    X = X[:, [0, 1, 4, 7, 9]].astype(np.float32).astype(float)
    X[:, 0] = np.round(X[:, 0] / 4)
    estimator = estimator.fit(X, y)
    X, background = X[:3], X[20:40]
    found = explain.explain(kernels.from_sklearn(estimator), X, background)
    assert_interventional(getattr(estimator, method), X, background, found, rtol)
    assert_adds_up(found, rtol)


def test_the_score_of_a_layer_is_what_its_activation_takes():
    builder = Builder(3)
    weights = np.array([[1.0, -2.0, 0.5]])
    model = model_of(builder, linear(builder, 0, weights, np.array([0.25]), activation=3))
    X = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    found = explain.explain(model, X, np.zeros((4, 3)))
    np.testing.assert_array_equal(found.values[..., 0], X * weights)
    np.testing.assert_array_equal(found.scores, X @ weights.T + 0.25)
    np.testing.assert_array_equal(found.base_values, [0.25])


def test_strings_are_taken_where_the_model_takes_them():
    ensemble = random_ensemble(2, 2, depth=4)
    builder = Builder(2)
    program = builder.finish(add_trees(builder, 0, ensemble), 0, (1,))
    signature = Signature(2, None, None, "regression", (("a", "b", "c"), None))
    model = TabularModel("m", "1", "test", signature, program)
    rows = np.array([["b", 0.5], [None, 1.0]], object)
    found = explain.explain(model, rows, np.array([["c", 0.0]], object))
    expected = explain.explain(model, np.array([[1, 0.5], [np.nan, 1.0]]), np.array([[2, 0.0]]))
    np.testing.assert_array_equal(found.values, expected.values)


# ---- refusals ----------------------------------------------------------------------------------------------

def two_layers() -> TabularModel:
    builder = Builder(3)
    hidden = linear(builder, 0, np.ones((2, 3)), np.zeros(2), activation=1)
    return model_of(builder, linear(builder, hidden, np.ones((1, 2)), np.zeros(1)))


def largest_of_trees() -> TabularModel:
    return tree_model(random_ensemble(0, aggregate=MAX))


def mixed_columns() -> TabularModel:
    builder = Builder(4)
    scaled = builder.add("scale", (0,), 4, numbers={"function": 4, "group": 4})
    return model_of(builder, add_trees(builder, scaled, random_ensemble(0, 4)))


def joined_scores() -> TabularModel:
    builder = Builder(5)
    score = add_trees(builder, 0, random_ensemble(0, n_outputs=2))
    return model_of(builder, builder.add("reduce", (score,), 1, numbers={"function": REDUCE_CODES["sum"], "group": 2}))


def score_beside_features() -> TabularModel:
    builder = Builder(1)
    score = add_trees(builder, 0, random_ensemble(0, 1))
    return model_of(builder, builder.add("binary", (score, 0), 1, numbers={"function": BINARY_CODES["add"]}))


@pytest.mark.parametrize("make", [two_layers, largest_of_trees, mixed_columns, joined_scores, score_beside_features])
def test_models_without_an_exact_explanation_are_refused(make):
    with pytest.raises(ModelError, match="has no exact explanation"):
        explain.Explainer(make())


def test_what_is_no_tabular_model_is_refused():
    with pytest.raises(ModelError, match="no exact explanation"):
        explain.Explainer(object())


@pytest.mark.parametrize("make", [
    lambda: tree_model(random_ensemble(0, cover=False)),
    lambda: model_of(builder := Builder(5), linear(builder, 0, np.ones((1, 5)), np.zeros(1)))])
def test_what_needs_a_background_set_says_so(make):
    explainer = explain.Explainer(make())
    assert explainer.needs_background
    with pytest.raises(ModelError, match="expected background rows"):
        explainer.explain(np.zeros((1, 5)))
    with pytest.raises(ModelError, match="expected one row or more"):
        explainer.explain(np.zeros((1, 5)), np.zeros((0, 5)))


@pytest.mark.parametrize("spoil", [lambda cover: cover * 0, lambda cover: np.ones_like(cover),
                                   lambda cover: cover + 1, lambda cover: np.full_like(cover, 1e308)])
def test_covers_that_do_not_add_up_are_not_used(spoil):
    ensemble = random_ensemble(0)
    ensemble.cover[:] = spoil(ensemble.cover)
    assert explain.Explainer(tree_model(ensemble)).needs_background


def test_rows_that_do_not_fit_are_refused_as_by_predict():
    explainer = explain.Explainer(tree_model(random_ensemble(0)))
    for wrong in (np.zeros((1, 4)), np.zeros(5), [["a"] * 5], np.zeros((1, 5, 1))):
        with pytest.raises(ModelError, match="expected rows of 5"):
            explainer.explain(wrong)
        with pytest.raises(ModelError, match="expected rows of 5"):
            explainer.explain(np.zeros((1, 5)), wrong)


def test_values_that_overflow_are_refused():
    builder = Builder(2)
    model = model_of(builder, linear(builder, 0, np.ones((1, 2)), np.zeros(1)))
    for row, background in ([1e308, 0.0], [[-1e308, 0.0]]), ([0.0, 0.0], [[1e308, 0.0], [1e308, 0.0]]):
        with pytest.raises(ModelError, match="too large"):
            explain.explain(model, np.array([row]), np.array(background))


def test_more_features_on_the_way_to_a_leaf_than_tables_have_room_for():
    with pytest.raises(ModelError, match=f"more than {explain.MAX_DISTINCT} features"):
        explain.Explainer(tree_model(chain(explain.MAX_DISTINCT + 1)))


def test_trees_too_deep_and_wide_to_walk(monkeypatch):
    explainer = explain.Explainer(tree_model(chain(20)))
    monkeypatch.setattr(explain, "MAX_STACK_BYTES", 1000)
    with pytest.raises(ModelError, match="too deep and wide"):
        explainer.explain(np.zeros((1, 20)))


# ---- and the rest ------------------------------------------------------------------------------------------

def test_reason_codes_are_the_largest_of_either_sign_first():
    assert explain.reason_codes(np.array([0.5, -2.0, 0.0, 2.0, 1.0]), 3) == [(1, -2.0), (3, 2.0), (4, 1.0)]
    assert explain.reason_codes(np.array([0.5]), 3) == [(0, 0.5)]


def test_work_grows_with_rows_and_background_rows():
    explainer = explain.Explainer(tree_model(random_ensemble(0)))
    one = explainer.work(1, 0)
    assert one > 0 and explainer.work(7, 0) == 7 * one
    assert explainer.work(1, 64) > one and explainer.work(1, 65) > explainer.work(1, 64) == explainer.work(1, 1)


def test_trees_of_one_leaf_explain_nothing():
    ensemble = random_ensemble(0, depth=0)
    for background in (None, np.zeros((2, 5))):
        found = explain.explain(tree_model(ensemble), np.zeros((1, 5)), background)
        assert not found.values.any()
        np.testing.assert_allclose(found.base_values, found.scores[0], rtol=1e-15)


def test_several_threads_share_an_explainer():
    explainer = explain.Explainer(tree_model(random_ensemble(0, 8, n_trees=30, depth=8)))
    X, background = random_rows(0, 40, 8), random_rows(1, 70, 8)
    expected = [explainer.explain(X).values, explainer.explain(X, background).values]
    wrong = []

    def repeat() -> None:
        for _ in range(10):
            found = [explainer.explain(X).values, explainer.explain(X, background).values]
            wrong.extend(i for i in range(2) if not np.array_equal(found[i], expected[i]))

    threads = [threading.Thread(target=repeat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
