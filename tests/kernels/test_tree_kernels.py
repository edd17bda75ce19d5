"""The native walk of trees, its numpy twin and the slow oracle: the same bits around every threshold."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kernels import ModelError, trees
from kernels.ensemble import (AVERAGE, EXACT, MAX, MIN, NAN_IS_ZERO, NAN_LEFT, NAN_RIGHT, SUM, TRUNCATED,
                              TRUNCATED_POSITIVE, ZERO_LEFT, ZERO_RIGHT, TreeEnsemble)
from kernels.program import Builder, Program
from kernels.step import Step
from tests import naive_trees
from tests.kernels.test_row_ops import assert_same, guarded_call, model_of

ZERO = float(np.float32(1e-35))
THRESHOLDS = [-math.inf, -1e308, -2.0, -1.0, -1e-30, -ZERO, -1e-36, -5e-324, -0.0, 0.0, 5e-324, 1e-310, 1e-36, ZERO,
              1e-30, 0.1, float(np.float32(0.1)), 0.5, 1.0, 1 + 2**-52, 1 + 2**-30, 2.0, 3e38, 1e39, 1e308, math.inf]
RULES = [NAN_RIGHT, NAN_LEFT, NAN_IS_ZERO, ZERO_RIGHT, ZERO_LEFT]
SETS = (np.empty(0), np.array([0.0]), np.array([-3.0, 0.0, 2.0, 1e9]), np.array([0.5, 1.0, 7.0]), np.arange(40.0),
        np.array([-1e300, 3.0]), np.array([2.0**53, 1e300, math.inf]))
CATEGORIES = [-3.5, -3.0, -1.0, -0.5, -0.0, 0.2, 0.5, 1.0, 2.0, 2.9, 3.0, 7.0, 7.5, 39.0, 39.9, 40.0, 1e9, 2.0**53,
              1e300]


def random_ensemble(seed: int, n_trees: int = 11, n_features: int = 4, n_outputs: int = 1, depth: int = 5,
                    categories: float = 0.3, width: int | None = None, **fields) -> TreeEnsemble:
    """Trees with every kind of split and threshold; `width` of leaves random where None."""
    rng = np.random.default_rng(seed)
    nodes: list[list[float]] = []  # feature, threshold, left, right, missing, leaf, category set
    roots, first, widths, values = [], [], [], []

    def grow(levels: int) -> int:
        node = len(nodes)
        nodes.append([-1, math.nan, -9, -9, 0, -9, -1])
        if levels == 0 or rng.random() < 0.15:
            nodes[node][5] = len(values)
            values.extend(rng.normal(size=widths[-1]) * 10.0 ** rng.integers(-3, 4))
            return node
        is_category = rng.random() < categories
        rule, which = (rng.integers(2), rng.integers(len(SETS))) if is_category else (rng.choice(RULES), -1)
        nodes[node][:2] = rng.integers(n_features), rng.choice(THRESHOLDS)
        nodes[node][4], nodes[node][6] = rule, which
        nodes[node][2], nodes[node][3] = grow(levels - 1), grow(levels - 1)
        return node

    for _ in range(n_trees):
        widths.append(int(rng.integers(1, n_outputs + 1)) if width is None else width)
        first.append(int(rng.integers(n_outputs - widths[-1] + 1)))
        roots.append(grow(depth))
    columns = [np.array(column) for column in zip(*nodes, strict=True)]
    feature, left, right, leaf, category_set = (columns[i].astype(np.int64) for i in (0, 2, 3, 5, 6))
    return TreeEnsemble(n_features, n_outputs, np.array(roots), np.array(first), np.array(widths), feature,
                        columns[1].astype(float), left, right, columns[4].astype(np.uint8), leaf, np.array(values),
                        rng.normal(size=n_outputs), category_set, SETS, **fields)


def plain(feature, threshold, left, right, leaf_values, **fields) -> TreeEnsemble:
    """One tree of one output, missing values to the right; leaves numbered as they come."""
    feature = np.array(feature)
    leaf = np.where(feature < 0, np.cumsum(feature < 0) - 1, -9)
    one = np.zeros(1, np.int64)
    return replace(TreeEnsemble(
        int(max(feature.max(), 0)) + 1, 1, one, one, one + 1, feature, np.array(threshold, float), np.array(left),
        np.array(right), np.zeros(len(feature), np.uint8), leaf, np.array(leaf_values, float), np.zeros(1)), **fields)


def program_of(ensemble: TreeEnsemble) -> Program:
    builder = Builder(ensemble.n_features)
    value = builder.add("trees", (0,), ensemble.n_outputs, numbers=trees.numbers_of(ensemble),
                        arrays=trees.compile_ensemble(ensemble))
    return builder.finish(value, 0, (value,))


def step_of(ensemble: TreeEnsemble) -> Step:
    return program_of(ensemble).steps[0]


def rows_around(ensemble: TreeEnsemble, seed: int = 0, n: int = 60) -> np.ndarray:
    """Values at, just below and just above every threshold and category, zeros, infinities and NaN, in random rows."""
    rng = np.random.default_rng(seed)
    X = np.empty((n, ensemble.n_features))
    for i in range(ensemble.n_features):
        at = ensemble.threshold[(ensemble.feature == i) & ~np.isnan(ensemble.threshold)]
        if len(at) > n:
            at = rng.choice(at, n)
        near = [at, np.nextafter(at, -math.inf), np.nextafter(at, math.inf), np.float32(np.clip(at, -3e38, 3e38))]
        extreme = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, ZERO, -ZERO, np.nextafter(ZERO, 1), 1e-36]
        found = np.concatenate([*near, extreme, CATEGORIES])
        X[:, i] = rng.choice(found, n)
        k = min(n, len(found))
        X[rng.permutation(n)[:k], i] = rng.permutation(found)[:k]
    return X


def assert_all_agree(ensemble: TreeEnsemble, X: np.ndarray) -> np.ndarray:
    """Kernel (many rows, eight, one), numpy and oracle, to the bit → the scores (n, n_outputs)."""
    program = program_of(ensemble)
    compiled, portable = model_of(program), model_of(program, native=False)
    expected = naive_trees.raw_scores(ensemble, X)
    assert_same(portable.predict(X).reshape(expected.shape), expected)
    assert_same(compiled.predict(X).reshape(expected.shape), expected)
    for n in (1, 7, 8, 9):
        assert_same(compiled.predict(X[:n]).reshape(-1, ensemble.n_outputs), expected[:n])
    one_by_one = np.concatenate([compiled.predict(X[i:i + 1]) for i in range(len(X))])
    assert_same(one_by_one.reshape(expected.shape), expected)
    predictions, _, status = guarded_call(compiled, X[:29], wanted=False)
    assert status == 0
    assert_same(predictions, expected[:29])
    return expected


@pytest.mark.parametrize("seed", range(12))
def test_every_kind_of_split_is_the_oracles(seed):
    ensemble = random_ensemble(seed, category_rule=[EXACT, TRUNCATED, TRUNCATED_POSITIVE][seed % 3])
    scores = assert_all_agree(ensemble, rows_around(ensemble, seed, 100))
    assert len(np.unique(scores)) > 10


@pytest.mark.parametrize("rule", RULES)
def test_rule_for_missing_values_is_the_oracles(rule):
    ensemble = random_ensemble(1, n_trees=40, n_features=1, depth=3, categories=0.0)
    ensemble = replace(ensemble, missing=np.full_like(ensemble.missing, rule))
    X = np.concatenate([rows_around(ensemble, seed) for seed in range(3)])
    assert_all_agree(ensemble, X)


@pytest.mark.parametrize("rule", [EXACT, TRUNCATED, TRUNCATED_POSITIVE])
@pytest.mark.parametrize("missing", [NAN_RIGHT, NAN_LEFT])
def test_category_of_every_value_is_the_oracles(rule, missing):
    ensemble = random_ensemble(2, n_trees=30, n_features=2, depth=3, categories=1.0, category_rule=rule)
    ensemble = replace(ensemble, missing=np.full_like(ensemble.missing, missing))
    assert_all_agree(ensemble, rows_around(ensemble, 3, 120))


@pytest.mark.parametrize("rounds_sums", [False, True])
@pytest.mark.parametrize("rounds_inputs", [False, True])
@pytest.mark.parametrize("aggregate", [SUM, MIN, MAX])
@pytest.mark.parametrize(("n_outputs", "width"), [(1, 1), (3, 1), (3, None), (9, 9)])
def test_leaves_are_joined_as_the_oracle_does(n_outputs, width, aggregate, rounds_inputs, rounds_sums):
    fields = {"aggregate": aggregate, "rounds_inputs": rounds_inputs, "rounds_sums": rounds_sums}
    ensemble = random_ensemble(n_outputs, n_outputs=n_outputs, width=width, **fields)
    if rounds_sums:  # what is not a sum is not rounded by the oracle
        ensemble = replace(ensemble, base=np.float32(ensemble.base).astype(float),
                           leaf_values=np.float32(ensemble.leaf_values).astype(float))
    if rounds_sums and aggregate != SUM:
        ensemble = replace(ensemble, base=np.zeros(n_outputs))
    assert_all_agree(ensemble, rows_around(ensemble, n_outputs, 70))


@pytest.mark.parametrize(("n_outputs", "width"), [(1, 1), (4, None)])
def test_average_is_over_all_trees(n_outputs, width):
    ensemble = random_ensemble(5, n_outputs=n_outputs, width=width, aggregate=AVERAGE)
    assert_all_agree(ensemble, rows_around(ensemble))


def test_average_in_float32_divides_once():
    ensemble = random_ensemble(6, aggregate=AVERAGE, rounds_sums=True, rounds_inputs=True)
    X = rows_around(ensemble)
    sums = naive_trees.raw_scores(replace(ensemble, aggregate=SUM, base=np.zeros(1)), X)
    expected = np.float32(np.float32(sums) / np.float32(11)) + np.float32(ensemble.base)
    for native in (True, False):
        assert_same(model_of(program_of(ensemble), native=native).predict(X), expected[:, 0])


@pytest.mark.parametrize("n_trees", [1, 2, 7, 8, 9, 15, 16, 17, 63, 65])
def test_any_number_of_trees(n_trees):
    ensemble = random_ensemble(n_trees, n_trees=n_trees, depth=3)
    assert_all_agree(ensemble, rows_around(ensemble, n_trees, 30))


@pytest.mark.parametrize("n_trees", [1, 8, 11])
def test_trees_that_are_one_leaf(n_trees):
    ensemble = random_ensemble(0, n_trees=n_trees, depth=0)
    scores = assert_all_agree(ensemble, rows_around(ensemble, n=30))
    assert len(np.unique(scores)) == 1


def test_trees_of_one_leaf_among_others():
    ensemble = random_ensemble(3, n_trees=24, depth=4)
    leaf_only = random_ensemble(4, n_trees=9, depth=0)
    n, n_values = len(ensemble.feature), len(ensemble.leaf_values)

    def both(name, shift=0):
        return np.concatenate([getattr(ensemble, name), getattr(leaf_only, name) + shift])
    order = np.random.default_rng(0).permutation(33)
    joined = replace(ensemble, **{name: both(name)[order] for name in ("first_output", "output_width")},
                     root=both("root", n)[order], leaf=both("leaf", n_values), leaf_values=both("leaf_values"),
                     **{name: both(name) for name in ("feature", "threshold", "left", "right", "missing",
                                                      "category_set")})
    assert_all_agree(joined, rows_around(joined))


@pytest.mark.parametrize("to_left", [True, False])
@pytest.mark.parametrize("depth", [15, 16, 17, 33, 101, 300])
def test_chain(depth, to_left):
    """Every inner node has a leaf on one side: as deep as it has thresholds."""
    thresholds = np.arange(depth, 0.0, -1.0) if to_left else np.arange(1.0, depth + 1)
    chain, leaves = np.arange(depth + 1) * 2, np.arange(depth) * 2 + 1  # inner nodes are even, their leaves odd
    n = 2 * depth + 1
    feature, threshold, left, right = np.full(n, -1), np.full(n, math.nan), np.full(n, -9), np.full(n, -9)
    inner = chain[:-1]
    feature[inner], threshold[inner] = 0, thresholds
    (left if to_left else right)[inner], (right if to_left else left)[inner] = chain[1:], leaves
    values = np.random.default_rng(depth).normal(size=depth + 1)
    ensemble = plain(feature, threshold, left, right, values)
    X = np.concatenate([np.arange(0, depth + 2, 0.5)[:, None], [[math.nan], [math.inf], [-math.inf]]])
    scores = assert_all_agree(ensemble, X)
    assert len(np.unique(scores)) == depth + 1


def test_chains_beside_bushes():
    """Eight rows, or eight trees, of very different depths at once."""
    ensemble = random_ensemble(7, n_trees=20, depth=7, categories=0.1)
    for node in range(60):  # the first leaves become chains of 60 levels
        leaf = int(np.flatnonzero(ensemble.feature < 0)[0]) if node % 20 == 0 else len(ensemble.feature) - 1
        n = len(ensemble.feature)
        feature, left, right = ensemble.feature.copy(), ensemble.left.copy(), ensemble.right.copy()
        threshold, place = ensemble.threshold.copy(), ensemble.leaf[leaf]
        feature[leaf], left[leaf], right[leaf], threshold[leaf] = 0, n, n + 1, -1.0 - node
        ensemble = replace(
            ensemble, feature=np.append(feature, [-1, -1]), left=np.append(left, [-9, -9]),
            right=np.append(right, [-9, -9]), threshold=np.append(threshold, [math.nan, math.nan]),
            missing=np.append(ensemble.missing, [0, 0]), category_set=np.append(ensemble.category_set, [-1, -1]),
            leaf=np.append(ensemble.leaf, [place, len(ensemble.leaf_values)]),
            leaf_values=np.append(ensemble.leaf_values, node / 7))
    X = rows_around(ensemble, n=80)
    X[::2, 0] = np.arange(40) * -2.0
    assert_all_agree(ensemble, X)


def test_more_thresholds_than_a_column_can_tell_apart():
    n = trees.MAX_EDGES + 2000
    rng = np.random.default_rng(0)
    edges = np.sort(rng.normal(size=n))
    feature, threshold, left, right = [], [], [], []

    def grow(low: int, high: int) -> int:  # a balanced tree over edges[low:high]
        node = len(feature)
        for column in (feature, threshold, left, right):
            column.append(-1)
        if low < high:
            middle = (low + high) // 2
            feature[node], threshold[node] = 0, edges[middle]
            left[node], right[node] = grow(low, middle), grow(middle + 1, high)
        return node

    grow(0, n)
    ensemble = plain(feature, threshold, left, right, np.arange(n + 1.0))
    ensemble.check()
    step = step_of(ensemble)
    assert step.arrays["specs"][:, trees.N_EDGES].tolist() == [trees.MAX_EDGES, 2000]
    at = edges[np.concatenate([[0, 1, trees.MAX_EDGES - 1, trees.MAX_EDGES, trees.MAX_EDGES + 1, n - 1],
                               rng.integers(0, n, 200)])]
    X = np.concatenate([at, np.nextafter(at, -9), np.nextafter(at, 9), [math.nan, math.inf, -math.inf]])[:, None]
    scores = assert_all_agree(ensemble, X)
    numbers = X[:-3, 0]
    assert scores[:-3, 0].tolist() == np.searchsorted(edges, numbers).tolist()  # the leaf is the number of edges below


@pytest.mark.parametrize("n_edges", [1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 256, 257])
def test_number_of_thresholds_around_powers_of_two(n_edges):
    edges = np.concatenate([[-math.inf, math.inf], np.random.default_rng(n_edges).normal(size=n_edges)])[-n_edges:]
    feature = np.arange(2 * n_edges + 1) % 2 - 1
    feature = np.where(np.arange(2 * n_edges + 1) < n_edges, 0, -1)
    left = np.where(feature == 0, 2 * np.arange(2 * n_edges + 1) + 1, -9)
    ensemble = plain(feature, np.append(edges, np.full(n_edges + 1, math.nan)), left, np.where(left >= 0, left + 1, -9),
                     np.arange(n_edges + 1.0))
    for rule in RULES:
        assert_all_agree(replace(ensemble, missing=np.full(len(feature), rule, np.uint8)), rows_around(ensemble, n=40))


def test_many_features_with_few_thresholds_each():
    ensemble = random_ensemble(8, n_trees=60, n_features=37, depth=6)
    assert_all_agree(ensemble, rows_around(ensemble, n=70))


def test_feature_that_no_tree_reads_may_be_anything():
    ensemble = replace(random_ensemble(9), n_features=9)
    X = rows_around(ensemble)
    expected = assert_all_agree(ensemble, X)
    X[:, 4:] = math.nan
    assert_same(model_of(program_of(ensemble)).predict(X), expected[:, 0])


def test_block_of_trees_in_threads_is_the_same(monkeypatch):
    ensemble = random_ensemble(10, n_trees=30, n_outputs=2)
    X = rows_around(ensemble, n=1003)
    program = program_of(ensemble)
    alone, shared = model_of(program), model_of(program, threads=3)
    monkeypatch.setattr("kernels.tabular.MIN_THREAD_WORK", 1)
    assert_same(shared.predict(X), alone.predict(X))
    assert_same(alone.predict(X)[500:600], alone.predict(X[500:600]))


# ---- unsound ensembles and steps ---------------------------------------------------------------------------

def changed(ensemble: TreeEnsemble, name: str, place, value) -> TreeEnsemble:
    array = getattr(ensemble, name).copy()
    array[place] = value
    return replace(ensemble, **{name: array})


def test_unsound_ensembles_are_refused():
    ensemble = random_ensemble(0, category_rule=EXACT)
    inner, leaf = int(ensemble.root[0]), int(np.flatnonzero(ensemble.feature < 0)[0])
    numeric = int(np.flatnonzero((ensemble.feature >= 0) & (ensemble.category_set < 0))[0])
    for name, place, value in [
        ("left", inner, inner), ("left", inner, len(ensemble.feature)), ("right", inner, -1), ("feature", inner, 4),
        ("feature", inner, -2), ("threshold", numeric, math.nan), ("leaf", leaf, len(ensemble.leaf_values)),
        ("leaf", leaf, -1), ("leaf_values", 0, math.inf), ("base", 0, math.nan), ("root", 0, -1), ("root", 1, 0),
        ("first_output", 0, 1), ("output_width", 0, 0), ("missing", inner, 5), ("category_set", inner, len(SETS)),
    ]:
        with pytest.raises(ModelError, match="expected"):
            trees.compile_ensemble(changed(ensemble, name, place, value))


STEP_CHANGES = [
    ("specs", (0, 0), -1), ("specs", (0, 0), 4), ("specs", (0, 1), 5), ("specs", (0, 1), 11), ("specs", (0, 2), 2**40),
    ("specs", (0, 2), -1), ("specs", (0, 3), 2), ("specs", (-1, 3), 0), ("specs", (-1, 3), 2**40),
    ("edges", 0, math.nan),
    ("edges", 0, math.inf), ("edges", 1, -math.inf), ("tables", 0, 2), ("node_columns", 0, -2),
    ("node_columns", 0, 10**6),
    ("node_columns", 0, -1), ("node_ranks", 0, 65535), ("node_ranks", 0, 65534), ("node_ranks", -1, 3),
    ("tree_sizes", 0, 0), ("tree_sizes", 0, -1), ("tree_sizes", 0, 2**62), ("tree_sizes", slice(2), 1),
    ("first_output", 0, -1), ("first_output", 0, 1), ("first_output", 0, 2**62), ("output_width", 0, 0),
    ("output_width", 0, 2), ("output_width", 0, 2**62), ("values", 0, math.nan), ("values", -1, math.inf),
    ("base", 0, -math.inf), ("cover", 0, -1.0), ("cover", 0, math.nan),
]


@pytest.mark.parametrize(("name", "place", "value"), STEP_CHANGES)
def test_step_with_an_unsound_array_is_refused(name, place, value):
    ensemble = random_ensemble(0)
    step = step_of(replace(ensemble, cover=np.ones(len(ensemble.feature))))
    assert step.arrays["node_columns"][-1] == -1
    array = step.arrays[name].copy()
    array[place] = value
    with pytest.raises(ModelError, match="expected"):
        Program(4, (step._replace(arrays=step.arrays | {name: array}),), 1, 0, 1, (1,))


@pytest.mark.parametrize("name", trees.ARRAYS.split())
def test_step_with_an_array_of_another_length_or_type_is_refused(name):
    ensemble = random_ensemble(0)
    step = step_of(replace(ensemble, cover=np.ones(len(ensemble.feature))))
    array = step.arrays[name]
    every_second = np.repeat(array, 2, axis=0)[::2] if len(array) > 1 else array[:0]
    for other in (array[:-1], np.concatenate([array, array[-1:]]), array.astype(object), array[None], every_second):
        with pytest.raises(ModelError, match="expected"):
            Program(4, (step._replace(arrays=step.arrays | {name: other}),), 1, 0, 1, (1,))


@pytest.mark.parametrize("name", ["aggregate", "rounds_inputs", "rounds_sums"])
@pytest.mark.parametrize("number", [-1, 4, 0.5, math.nan, math.inf, 10**400, True, "0", None])
def test_step_with_an_unsound_number_is_refused(name, number):
    step = step_of(random_ensemble(0))
    with pytest.raises(ModelError, match="expected"):
        Program(4, (step._replace(numbers=step.numbers | {name: number}),), 1, 0, 1, (1,))


@pytest.mark.parametrize("name", ["values", "base"])
def test_sums_in_float32_take_no_number_beyond_it(name):
    step = step_of(random_ensemble(0, rounds_sums=True))
    array = step.arrays[name].copy()
    array[0] = 3.5e38
    with pytest.raises(ModelError, match="finite leaf values"):
        Program(4, (step._replace(arrays=step.arrays | {name: array}),), 1, 0, 1, (1,))


def test_deep_tree_among_many_small_ones_is_measured_in_time_that_adds():
    # Levels × trees would be 4 · 10⁹ steps: this would not end.
    depth, n_trees = 60_000, 70_000
    inner = np.concatenate([np.arange(2 * depth + 1) % 2 == 0, np.zeros(n_trees, bool)])
    inner[[2 * depth]] = False
    inner[:2 * depth + 1] = np.append(np.tile([True, False], depth), False)
    sizes = np.append(2 * depth + 1, np.ones(n_trees, np.int64))
    n_inner = np.append(0, np.cumsum(inner))
    depths = trees._depths(n_inner, np.cumsum(sizes) - sizes, sizes)
    assert depths[0] == depth and not depths[1:].any()


# ---- fewer thresholds --------------------------------------------------------------------------------------

def fewer(ensemble: TreeEnsemble, most: int) -> Step:
    step = trees.with_fewer_edges(step_of(ensemble), most)
    Program(ensemble.n_features, (step,), 1, 0, 1, (1,))  # still sound
    return step


@pytest.mark.parametrize("most", [1, 2, 5, 255])
def test_fewer_edges_are_some_of_the_edges_and_enough(most):
    ensemble = random_ensemble(0, n_trees=30, n_features=2)
    before, after = step_of(ensemble), fewer(ensemble, most)
    assert set(after.arrays["edges"]) <= set(before.arrays["edges"])
    numeric = after.arrays["specs"][after.arrays["specs"][:, trees.RULE] < trees.CATEGORY]
    assert numeric[:, trees.N_EDGES].max() <= most
    if most == 255:
        assert all(np.array_equal(before.arrays[name], after.arrays[name]) for name in before.arrays)


def test_fewer_edges_keep_every_edge_that_they_keep_where_it_is():
    at = np.array([-math.inf, -1.0, 0.0, 0.4, 5.0, math.inf])
    assert at[[0, 3, 5]][trees._nearest(at[[0, 3, 5]], at)].tolist() == [-math.inf, 0.4, 0.4, 0.4, 0.4, math.inf]
    assert trees._nearest(at[[2]], at).tolist() == [0] * 6


def test_fewer_edges_of_a_column_that_no_node_reads():
    step = step_of(random_ensemble(0))
    arrays = dict(step.arrays)
    arrays["specs"] = np.concatenate([[[0, 0, 9, 1]], arrays["specs"]])
    arrays["edges"] = np.concatenate([np.arange(9.0), arrays["edges"]])
    arrays["node_columns"] = np.where(arrays["node_columns"] < 0, -1, arrays["node_columns"] + 1).astype(np.int32)
    smaller = trees.with_fewer_edges(step._replace(arrays=arrays), 4)
    Program(4, (smaller,), 1, 0, 1, (1,))
    assert smaller.arrays["specs"][0].tolist() == [0, 0, 4, 1]


def test_fewer_edges_of_trees_that_have_none():
    ensemble = random_ensemble(0, depth=0)
    assert fewer(ensemble, 2).arrays["edges"].tolist() == []
