"""Tree ensembles compiled to data that one kernel walks: thresholds become small whole numbers, exactly.

The rule to keep: a decision is what `ensemble.TreeEnsemble` says, for every value. For each feature that is compared
with the thresholds e_0 < e_1 < … a row has a **column**, the number of thresholds below its value; then x <= e_k is
column <= k. Whatever a library does with missing values or categories happens when columns are made:
a feature has a column for each of its rules for missing values, and one of 0 and 1 for each set of its categories.

A step "trees" holds, columns first (one spec each), then nodes, tree after tree, each in breadth-first order, so
that the two children of the k-th inner node of a tree are its nodes 2k + 1 and 2k + 2: nothing can be a cycle.
"""

from typing import NamedTuple

import numpy as np

from kernels import ensemble as source
from kernels.ensemble import (
    AVERAGE, MAX, MIN, NAN_IS_ZERO, NAN_LEFT, SUM, ZERO_LEFT, ZERO_RIGHT, ZERO_THRESHOLD, TreeEnsemble,
)
from kernels.errors import ModelError
from kernels.step import Step, take_array, take_number

# A spec is (feature, rule, n_edges, n_columns). Its rule is one of NAN_RIGHT … ZERO_LEFT, with n_edges thresholds and
# one column; or CATEGORY + EXACT …, with n_edges categories and a column for each of n_columns sets.
CATEGORY = 8
RULES = {source.NAN_RIGHT, NAN_LEFT, NAN_IS_ZERO, ZERO_RIGHT, ZERO_LEFT,
         CATEGORY + source.EXACT, CATEGORY + source.TRUNCATED, CATEGORY + source.TRUNCATED_POSITIVE}
FEATURE, RULE, N_EDGES, N_COLUMNS = range(4)
ARRAYS = "specs edges tables node_columns node_ranks tree_sizes first_output output_width values base cover"

MAX_EDGES = 65_534          # a column is 16 bits: 0 … n_edges, and a leaf's rank, which no column exceeds, is LEAF
LEAF = 65_535
MAX_TREE_NODES = 1 << 24    # a node has 24 bits for its left child and 24 for twice its column
MAX_COLUMNS = 1 << 22
MAX_DEPTH = 65_535
MAX_TABLE_BYTES = 1 << 28   # of the category tables, which are categories × sets
CHUNK_VALUES = 1 << 22      # numbers at a time in numpy


def compile_ensemble(ensemble: TreeEnsemble) -> dict[str, np.ndarray]:
    """The arrays of a step "trees" for this ensemble; raises ModelError for one that is not sound."""
    ensemble.check()
    order, sizes = _breadth_first(ensemble)
    inner = ensemble.feature[order] >= 0
    nodes = order[inner]
    specs, edges, tables, columns, ranks = _columns(ensemble, nodes)
    node_columns = np.full(len(order), -1, np.int32)
    node_columns[inner] = columns
    node_ranks = np.full(len(order), LEAF, np.uint16)
    node_ranks[inner] = ranks
    leaves = order[~inner]
    widths = np.repeat(ensemble.output_width, sizes)[~inner]
    arrays = {
        "specs": specs, "edges": edges, "tables": tables, "node_columns": node_columns, "node_ranks": node_ranks,
        "tree_sizes": sizes, "first_output": np.asarray(ensemble.first_output, np.int64),
        "output_width": np.asarray(ensemble.output_width, np.int64),
        "values": ensemble.leaf_values[_ranges(ensemble.leaf[leaves], widths)],
        "base": np.asarray(ensemble.base, np.float64),
    }
    if ensemble.cover is not None:
        arrays["cover"] = np.asarray(ensemble.cover, np.float64)[order]
    return arrays


def numbers_of(ensemble: TreeEnsemble) -> dict[str, float]:
    """The numbers of a step "trees" for this ensemble."""
    return {"aggregate": ensemble.aggregate, "rounds_inputs": int(ensemble.rounds_inputs),
            "rounds_sums": int(ensemble.rounds_sums)}


def _ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers first[i] … first[i] + lengths[i] − 1, for each i in turn."""
    starts = np.cumsum(lengths) - lengths
    return np.repeat(first - starts, lengths) + np.arange(lengths.sum())


def _breadth_first(ensemble: TreeEnsemble) -> tuple[np.ndarray, np.ndarray]:
    """(nodes in the order of the step, nodes of each tree)."""
    level, trees = np.asarray(ensemble.root, np.int64), np.arange(len(ensemble.root))
    levels, of_tree = [level], [trees]
    while True:
        inner = ensemble.feature[level] >= 0
        if not inner.any():
            break
        parents, trees = level[inner], np.repeat(trees[inner], 2)
        level = np.stack([ensemble.left[parents], ensemble.right[parents]], axis=1).ravel()
        levels.append(level)
        of_tree.append(trees)
        if len(levels) > MAX_DEPTH:
            raise ModelError(f"expected trees of at most {MAX_DEPTH} levels")
    nodes, trees = np.concatenate(levels), np.concatenate(of_tree)
    return nodes[np.argsort(trees, kind="stable")], np.bincount(trees, minlength=len(ensemble.root))


def _columns(ensemble: TreeEnsemble, nodes: np.ndarray):
    """→ specs, edges, tables, and of these inner nodes the column and the rank."""
    is_category = np.zeros(len(nodes), bool)
    if ensemble.category_set is not None:
        is_category = ensemble.category_set[nodes] >= 0
    columns, ranks = np.zeros(len(nodes), np.int64), np.zeros(len(nodes), np.int64)
    numeric = nodes[~is_category]
    specs, edges, columns[~is_category], ranks[~is_category] = _numeric_columns(ensemble, numeric)
    category_specs, categories, tables, column = _category_columns(ensemble, nodes[is_category])
    columns[is_category] = column + len(specs)
    return (np.concatenate([specs, category_specs]), np.concatenate([edges, categories]), tables, columns, ranks)


def _numeric_columns(ensemble: TreeEnsemble, nodes: np.ndarray):
    """→ specs, edges, and of these nodes the column and the rank of the threshold in it."""
    feature, rule, threshold = ensemble.feature[nodes], ensemble.missing[nodes], ensemble.threshold[nodes]
    order = np.lexsort((threshold, rule, feature))
    feature, rule, threshold = feature[order], rule[order], threshold[order] + 0.0  # −0.0 is 0.0
    new_group = np.ones(len(nodes), bool)
    new_group[1:] = (feature[1:] != feature[:-1]) | (rule[1:] != rule[:-1])
    new_edge = new_group.copy()
    new_edge[1:] |= threshold[1:] != threshold[:-1]
    edge = np.cumsum(new_edge) - 1
    place = edge - np.maximum.accumulate(np.where(new_group, edge, 0))  # of the edge in its group
    new_column = new_edge & (place % MAX_EDGES == 0)  # more edges than a column can tell apart: one more column
    column = np.cumsum(new_column) - 1
    columns, ranks = np.empty(len(nodes), np.int64), np.empty(len(nodes), np.int64)
    columns[order], ranks[order] = column, place % MAX_EDGES
    n_edges = np.bincount(column[new_edge], minlength=int(new_column.sum()))
    specs = np.stack([feature[new_column], rule[new_column], n_edges, np.ones_like(n_edges)], axis=1)
    return specs.astype(np.int64), threshold[new_edge], columns, ranks


def _category_columns(ensemble: TreeEnsemble, nodes: np.ndarray):
    """→ specs, categories, tables, and of these nodes the column, counted from 0."""
    specs, categories, tables, columns, n_columns, n_bytes = [], [], [], np.zeros(len(nodes), np.int64), 0, 0
    if not len(nodes) or ensemble.category_set is None:
        return np.empty((0, 4), np.int64), np.empty(0), np.empty(0, np.uint8), np.zeros(0, np.int64)
    for feature in np.unique(ensemble.feature[nodes]):
        of_feature = ensemble.feature[nodes] == feature
        splits = np.stack([ensemble.category_set[nodes[of_feature]], ensemble.missing[nodes[of_feature]]], axis=1)
        splits, column = np.unique(splits, axis=0, return_inverse=True)
        sets = [ensemble.sets[number] for number in splits[:, 0]]
        found = np.unique(np.concatenate(sets))
        n_bytes += (len(found) + 2) * len(splits)
        if n_bytes > MAX_TABLE_BYTES:
            raise ModelError(f"expected fewer categories: sets × categories is more than {MAX_TABLE_BYTES:,}")
        table = np.ones((len(found) + 2, len(splits)), np.uint8)  # 0 = left: in the set
        for j, (members, missing) in enumerate(zip(sets, splits[:, 1], strict=True)):
            table[np.searchsorted(found, members), j] = 0
            table[len(found), j] = missing != NAN_LEFT
        specs.append((feature, CATEGORY + ensemble.category_rule, len(found), len(splits)))
        categories.append(found)
        tables.append(table.ravel())
        columns[of_feature] = n_columns + column.ravel()
        n_columns += len(splits)
    return np.array(specs, np.int64), np.concatenate(categories), np.concatenate(tables), columns


# ---- check -------------------------------------------------------------------------------------------------

def check(step: Step, widths: list[int]) -> None:
    """Raise ModelError unless the step's arrays fit each other and its input."""
    if len(widths) != 1:
        raise ModelError("expected one input")
    take_number(step, "aggregate", SUM, MAX)
    take_number(step, "rounds_inputs", 0, 1)
    take_number(step, "rounds_sums", 0, 1)
    n_ranks = _check_specs(step, widths[0])
    n_columns = len(n_ranks)
    sizes = take_array(step, "tree_sizes", np.int64, (None,))
    node_columns = take_array(step, "node_columns", np.int32, (None,))
    node_ranks = take_array(step, "node_ranks", np.uint16, node_columns.shape)
    n_trees, n_nodes = len(sizes), len(node_columns)
    _expect(n_trees > 0 and (sizes > 0).all() and (sizes < MAX_TREE_NODES).all() and sizes.sum() == n_nodes,
            f"trees of {n_nodes} nodes in all")
    inner = node_columns >= 0
    _expect((node_columns >= -1).all() and (node_columns < n_columns).all(), f"columns from 0 to {n_columns - 1}")
    _expect((node_ranks[~inner] == LEAF).all() and (node_ranks[inner] < n_ranks[node_columns[inner]]).all(),
            "a rank among its column's edges for each inner node")
    _check_trees(inner, sizes)
    _depths(_inner_before(inner), np.cumsum(sizes) - sizes, sizes)
    first = take_array(step, "first_output", np.int64, (n_trees,))
    width = take_array(step, "output_width", np.int64, (n_trees,))
    _expect((first >= 0).all() and (width > 0).all() and (width <= step.width).all()
            and (first <= step.width - width).all(), f"outputs from 0 to {step.width - 1}")
    tree = np.repeat(np.arange(n_trees), sizes)
    values = take_array(step, "values", np.float64, (int(width[tree[~inner]].sum()),))
    base = take_array(step, "base", np.float64, (step.width,))
    largest = np.finfo(np.float32 if step.numbers["rounds_sums"] else np.float64).max
    _expect(bool((np.abs(values) <= largest).all() and (np.abs(base) <= largest).all()), "finite leaf values")
    if "cover" in step.arrays:
        cover = take_array(step, "cover", np.float64, (n_nodes,))
        _expect(bool(np.isfinite(cover).all() and (cover >= 0).all()), "covers that are not negative")


def _check_specs(step: Step, n_features: int) -> np.ndarray:
    """→ (n_columns) int64: how many ranks a node may have in each column."""
    specs = take_array(step, "specs", np.int64, (None, 4))
    edges = take_array(step, "edges", np.float64, (None,))
    tables = take_array(step, "tables", np.uint8, (None,))
    feature, rule, n_edges, n_columns = specs.T
    _expect((feature >= 0).all() and (feature < n_features).all(), f"features from 0 to {n_features - 1}")
    _expect(set(rule.tolist()) <= RULES, "a known rule for missing values")
    _expect((n_edges >= 0).all() and (n_edges <= len(edges)).all() and n_edges.sum() == len(edges), "all edges used")
    is_category = rule >= CATEGORY
    _expect((n_edges[~is_category] <= MAX_EDGES).all() and (n_columns[~is_category] == 1).all(),
            f"at most {MAX_EDGES} edges a column")
    _expect((n_columns >= 1).all() and (n_columns <= MAX_COLUMNS).all() and n_columns.sum() <= MAX_COLUMNS,
            f"at most {MAX_COLUMNS} columns")
    n_bytes = ((n_edges[is_category] + 2).astype(object) * n_columns[is_category]).sum()
    _expect(n_bytes == len(tables) and tables.max(initial=0) <= 1, "tables of 0 and 1 for all categories")
    starts = np.cumsum(n_edges) - n_edges
    rising = np.ones(len(edges), bool)
    rising[1:] = edges[1:] > edges[:-1]
    rising[starts[n_edges > 0]] = True
    _expect(not np.isnan(edges).any() and bool(rising.all()), "edges in ascending order")
    return np.repeat(np.where(is_category, 1, n_edges), n_columns)


def _check_trees(inner: np.ndarray, sizes: np.ndarray) -> None:
    """In breadth-first order a tree is whole when each prefix leaves a node to come and all of it leaves none."""
    starts = np.cumsum(sizes) - sizes
    open_nodes = np.cumsum(np.where(inner, 1, -1))  # 1 + this, from a tree's start, is how many are still to come
    before = open_nodes[starts] - np.where(inner[starts], 1, -1)
    open_nodes = open_nodes + 1 - np.repeat(before, sizes)
    is_last = np.zeros(len(inner), bool)
    is_last[starts + sizes - 1] = True
    _expect(bool((open_nodes[is_last] == 0).all() and (open_nodes[~is_last] > 0).all()), "whole trees")


def _expect(condition: bool | np.bool_, what: str) -> None:
    if not condition:
        raise ModelError(f"expected {what}")


# ---- the trees as they are walked --------------------------------------------------------------------------

class Forest(NamedTuple):
    """The nodes of a step, derived from its compact arrays."""

    roots: np.ndarray   # (n_trees) int64: first node of each tree
    depths: np.ndarray  # (n_trees) int64: steps from the root to the deepest leaf
    left: np.ndarray    # (n_nodes) int64: the left child, counted from the root; the right one follows it; a leaf's own
    place: np.ndarray   # (n_nodes) int64: a leaf's place in values; an inner node's is that of the next leaf


def forest_of(step: Step) -> Forest:
    """Derive the nodes of a checked step."""
    sizes, inner = step.arrays["tree_sizes"], step.arrays["node_columns"] >= 0
    roots = np.cumsum(sizes) - sizes
    tree = np.repeat(np.arange(len(sizes)), sizes)
    number = np.arange(len(inner)) - roots[tree]
    n_inner = _inner_before(inner)
    left = np.where(inner, 2 * (n_inner[:-1] - n_inner[roots][tree]) + 1, number)
    widths = np.where(inner, 0, step.arrays["output_width"][tree])
    return Forest(roots, _depths(n_inner, roots, sizes), left, np.cumsum(widths) - widths)


def _inner_before(inner: np.ndarray) -> np.ndarray:
    """How many inner nodes there are before each node, and in all."""
    return np.concatenate([[0], np.cumsum(inner)])


def _depths(n_inner: np.ndarray, roots: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Levels below the root of each tree; n_inner[i]: inner nodes before node i."""
    depths, end = np.zeros(len(roots), np.int64), np.ones(len(roots), np.int64)  # end of a level, from the root
    trees = np.arange(len(roots))
    for depth in range(MAX_DEPTH + 1):
        deeper = end < sizes[trees]  # the children of the nodes before `end` are those up to the end of the next level
        trees, end = trees[deeper], end[deeper]
        if not len(trees):
            return depths
        depths[trees] = depth + 1
        end = 1 + 2 * (n_inner[roots[trees] + end] - n_inner[roots[trees]])
    raise ModelError(f"expected trees of at most {MAX_DEPTH} levels")


# ---- in numpy ----------------------------------------------------------------------------------------------

def run(step: Step, values: list[np.ndarray]) -> np.ndarray:
    """The outputs (n, width) for rows (n, n_features)."""
    forest = forest_of(step)
    x, outputs = values[0], np.empty((len(values[0]), step.width))
    n_rows = max(1, CHUNK_VALUES // max(len(forest.roots), int(step.arrays["specs"][:, N_COLUMNS].sum()), 1))
    for first in range(0, len(x), n_rows):
        columns = columns_of(step, x[first:first + n_rows])
        outputs[first:first + n_rows] = _aggregate(step, forest, _walk(step, forest, columns))
    return outputs


def columns_of(step: Step, x: np.ndarray) -> np.ndarray:
    """The columns (n, n_columns) uint16 of rows (n, n_features)."""
    if step.numbers["rounds_inputs"]:
        x = x.astype(np.float32).astype(np.float64)
    columns, edge, byte = [np.zeros((len(x), 0), np.uint16)], 0, 0
    for feature, rule, n_edges, n_columns in step.arrays["specs"].tolist():
        edges, value = step.arrays["edges"][edge:edge + n_edges], x[:, feature]
        edge += n_edges
        if rule >= CATEGORY:
            table = step.arrays["tables"][byte:byte + (n_edges + 2) * n_columns].reshape(-1, n_columns)
            byte += table.size
            columns.append(table[_categories(value, rule - CATEGORY, edges)].astype(np.uint16))
        else:
            columns.append(_numeric(value, rule, edges).astype(np.uint16)[:, None])
    return np.concatenate(columns, axis=1)


def _numeric(x: np.ndarray, rule: int, edges: np.ndarray) -> np.ndarray:
    missing = np.isnan(x)
    if rule == NAN_IS_ZERO:
        x, missing = np.where(missing, 0.0, x), np.zeros(len(x), bool)
    elif rule in (ZERO_RIGHT, ZERO_LEFT):
        missing |= np.abs(x) <= ZERO_THRESHOLD
    rank = np.searchsorted(edges, x, side="left")
    return np.where(missing, 0 if rule in (NAN_LEFT, ZERO_LEFT) else len(edges), rank)


def _categories(x: np.ndarray, rule: int, found: np.ndarray) -> np.ndarray:
    """Each value's row of the table."""
    none = np.isnan(x)
    if rule == source.TRUNCATED_POSITIVE:
        x = np.where(x < 0, -1.0, x)
    if rule != source.EXACT:
        x = np.trunc(x)
    place = np.searchsorted(found, x)
    is_found = np.append(found, np.nan)[place] == x
    return np.where(none, len(found), np.where(is_found, place, len(found) + 1))


def _walk(step: Step, forest: Forest, columns: np.ndarray) -> np.ndarray:
    """The leaf (n, n_trees) that each row comes to in each tree, as a node number."""
    node_columns, ranks = np.maximum(step.arrays["node_columns"], 0), step.arrays["node_ranks"]
    if not columns.shape[1]:
        columns = np.zeros((len(columns), 1), np.uint16)
    at = np.broadcast_to(forest.roots, (len(columns), len(forest.roots)))
    rows = np.arange(len(columns))[:, None]
    for _ in range(int(forest.depths.max())):
        at = forest.roots + forest.left[at] + (columns[rows, node_columns[at]] > ranks[at])
    return at


def _aggregate(step: Step, forest: Forest, leaves: np.ndarray) -> np.ndarray:
    aggregate, base = int(step.numbers["aggregate"]), step.arrays["base"]
    kind = np.float32 if step.numbers["rounds_sums"] else np.float64
    start = {MIN: np.inf, MAX: -np.inf}.get(aggregate, 0.0)
    total = np.full((len(leaves), step.width), start, kind)
    if step.numbers["rounds_sums"] and aggregate == SUM:
        total += base.astype(kind)
    join = {MIN: np.minimum, MAX: np.maximum}.get(aggregate, np.add)
    trees = zip(step.arrays["first_output"].tolist(), step.arrays["output_width"].tolist(), strict=True)
    for t, (first, width) in enumerate(trees):
        leaf = step.arrays["values"][forest.place[leaves[:, t]][:, None] + np.arange(width)]
        total[:, first:first + width] = join(total[:, first:first + width], leaf.astype(kind))
    return _finish(total, aggregate, base, len(forest.roots), bool(step.numbers["rounds_sums"]))


def _finish(total: np.ndarray, aggregate: int, base: np.ndarray, n_trees: int, rounds: bool) -> np.ndarray:
    if aggregate in (MIN, MAX):
        total = np.where(np.isinf(total), 0.0, total)  # no tree has this output
    if aggregate == AVERAGE:
        total = total / total.dtype.type(n_trees)
    if rounds and aggregate == SUM:
        return total.astype(np.float64)  # the base came first
    return (total + base.astype(total.dtype)).astype(np.float64)


# ---- fewer thresholds --------------------------------------------------------------------------------------

def with_fewer_edges(step: Step, most: int) -> Step:
    """The step with at most `most` edges a numeric column: those that share out the column's nodes evenly.

    The nodes of an edge that is left out take the nearest one that stays.
    """
    arrays = dict(step.arrays)
    specs, columns, ranks = arrays["specs"].copy(), arrays["node_columns"], arrays["node_ranks"].copy()
    first_edge, first_column = np.cumsum(specs[:, N_EDGES]) - specs[:, N_EDGES], np.cumsum(specs[:, N_COLUMNS])
    edges = np.split(arrays["edges"], first_edge[1:])
    by_column = np.argsort(columns, kind="stable")
    bounds = np.searchsorted(columns[by_column], np.arange(int(specs[:, N_COLUMNS].sum()) + 1))
    for i, (rule, n_edges) in enumerate(specs[:, [RULE, N_EDGES]].tolist()):
        if rule >= CATEGORY or n_edges <= most:
            continue
        column = int(first_column[i]) - 1
        nodes = by_column[bounds[column]:bounds[column + 1]]
        if not len(nodes):  # any will do
            edges[i], specs[i, N_EDGES] = edges[i][:most], most
            continue
        share = np.linspace(0, len(nodes) - 1, most).astype(np.int64)
        kept = np.unique(np.sort(ranks[nodes])[share])
        nearest = _nearest(edges[i][kept], edges[i])
        ranks[nodes] = nearest[ranks[nodes]]
        edges[i], specs[i, N_EDGES] = edges[i][kept], len(kept)
    return step._replace(arrays=arrays | {"specs": specs, "node_ranks": ranks, "edges": np.concatenate(edges)})


def _nearest(kept: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """For each edge the place of the nearest one kept."""
    above = np.searchsorted(kept, edges).clip(1, len(kept) - 1) if len(kept) > 1 else np.zeros(len(edges), np.int64)
    below = np.maximum(above - 1, 0)
    with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞; farther apart than float64 reaches
        is_nearer = edges - kept[below] <= kept[above] - edges
    return np.where(is_nearer | (edges == kept[below]), below, above)


# ---- in files ----------------------------------------------------------------------------------------------

def pack(step: Step) -> Step:
    """The step as files have it: ranks of inner nodes only, which fit fewer bits than a leaf's."""
    arrays = dict(step.arrays)
    arrays["inner_ranks"] = arrays.pop("node_ranks")[arrays["node_columns"] >= 0]
    return step._replace(arrays=arrays)


def unpack(step: Step) -> Step:
    """The reverse of `pack`; raises ModelError where the ranks do not fit the nodes."""
    arrays = dict(step.arrays)
    columns = take_array(step, "node_columns", np.int32, (None,))
    inner = columns >= 0
    ranks = np.full(len(columns), LEAF, np.uint16)
    ranks[inner] = take_array(step, "inner_ranks", np.uint16, (int(inner.sum()),))
    del arrays["inner_ranks"]
    return step._replace(arrays=arrays | {"node_ranks": ranks})
