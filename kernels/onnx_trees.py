"""The tree operators of ai.onnx.ml read as `TreeEnsemble`: TreeEnsembleClassifier, TreeEnsembleRegressor, TreeEnsemble.

The rule to keep: a decision is the one that the specification and ONNX Runtime give for the input's dtype, exactly;
every id in the file is checked before it is an index, and arrays stay within a constant factor of the attributes.
Specification: https://onnx.ai/onnx/operators/index.html, domain ai.onnx.ml.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from kernels.ensemble import AVERAGE, MAX, MIN, NAN_LEFT, NAN_RIGHT, SUM, TreeEnsemble
from kernels.errors import ModelError

LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(8)

# Names of TreeEnsembleClassifier and TreeEnsembleRegressor; TreeEnsemble has the numbers.
MODES = {"BRANCH_LEQ": LEQ, "BRANCH_LT": LT, "BRANCH_GTE": GTE, "BRANCH_GT": GT, "BRANCH_EQ": EQ, "BRANCH_NEQ": NEQ,
         "LEAF": LEAF}
AGGREGATES = {"SUM": SUM, "AVERAGE": AVERAGE, "MIN": MIN, "MAX": MAX}
AGGREGATES_BY_NUMBER = (AVERAGE, SUM, MIN, MAX)
POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")  # in the order of TreeEnsemble's numbers

# Leaf values and outputs that a file may ask for beyond what it holds: sparse leaves are stored as dense rows.
SPARE = 1 << 16
DENSITY = 256


class TreeNode(Protocol):
    """What is read of a graph's node."""

    @property
    def op_type(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class TreeClassifier:
    """A TreeEnsembleClassifier: its trees, and what `onnx_ml_ops.classify_trees` needs to give labels and scores."""

    ensemble: TreeEnsemble         # its base is zero: what base values mean depends on the number of classes
    presence: TreeEnsemble | None  # scores > 0 where a row gets an entry for a class; None = each row as in `scored`
    scored: np.ndarray             # (n_classes) bool: classes for which a leaf has an entry
    labels: np.ndarray             # (n_classes) int64 or object (str)
    base_values: np.ndarray        # (0), (1) or (n_classes) float64
    post_transform: str            # one of POST_TRANSFORMS
    all_positive: bool             # no weight is below zero


def ensemble_of(node: TreeNode, dtype: np.dtype | type = np.float32) -> TreeEnsemble:
    """The trees of a tree node for an input of this dtype, `check`ed; of a classifier without its base values.

    Thresholds are numbers of the input's precision, so that float32 holds them exactly where `rounds_inputs` is set.
    Sums are float64. `n_features` is what the trees read: rows may be wider. Raises ModelError, naming the attribute.
    """
    return _build(_trees_of(node, np.dtype(dtype)))


def classifier_of(node: TreeNode, dtype: np.dtype | type = np.float32) -> TreeClassifier:
    """A TreeEnsembleClassifier node for an input of this dtype. Raises ModelError, naming the attribute."""
    trees = _trees_of(node, np.dtype(dtype))
    post_transform = node.attributes.get("post_transform", "NONE")
    _expect(post_transform in POST_TRANSFORMS, f"post_transform as one of {', '.join(POST_TRANSFORMS)}")
    labels, base = labels_of(node, "classlabels_int64s"), _base_of(node, None)
    _expect(len(labels) > 1 or labels.dtype != object, "two string labels or more")
    _expect(len(base) in ((0, 1) if len(labels) == 1 else (0, 1, 2) if len(labels) == 2 else (0, len(labels))),
            f"base_values for {len(labels)} classes")
    return TreeClassifier(_build(trees), _presence(trees), trees.scored, labels, base, post_transform,
                          bool((trees.entry_value >= 0).all()))


def presence_of(node: TreeNode, dtype: np.dtype | type = np.float32) -> TreeEnsemble | None:
    """An ensemble whose scores are > 0 where a row gets an entry for an output; None if all rows get the same ones.

    An output that a row gets no entry for is 0 in ONNX Runtime's MIN and MAX, and never the class chosen.
    """
    return _presence(_trees_of(node, np.dtype(dtype)))


def _presence(trees: "_Trees") -> TreeEnsemble | None:
    # A tree with as many (distinct) entries for an output as it has leaves has one for it whatever the row.
    pairs, counts = np.unique(trees.tree[trees.entry_node] * trees.n_outputs + trees.entry_output, return_counts=True)
    n_leaves = np.bincount(trees.tree[trees.mode == LEAF], minlength=trees.n_trees)
    whole = np.zeros(trees.n_outputs, bool)
    whole[pairs[counts == n_leaves[pairs // trees.n_outputs]] % trees.n_outputs] = True
    if (whole == trees.scored).all():
        return None
    return _build(replace(trees, entry_value=np.ones(len(trees.entry_value)), base=np.zeros(trees.n_outputs),
                          aggregate=SUM, fill=0.0))


def labels_of(node: TreeNode, ints: str) -> np.ndarray:
    """The class labels of a classifier, (n_classes) int64 or object: from attribute `ints` or classlabels_strings."""
    strings = node.attributes.get("classlabels_strings")
    if strings:
        _expect(all(isinstance(one, str) for one in strings), "strings in classlabels_strings")
        return np.array(strings, object)
    labels = integers(node, ints)
    _expect(len(labels) > 0, f"class labels in {ints} or classlabels_strings")
    return labels


def integers(node: TreeNode, name: str) -> np.ndarray:
    """An attribute of integers, (n) int64; empty where absent. Raises ModelError."""
    values = node.attributes.get(name)
    try:
        array = np.asarray(() if values is None else values).reshape(-1)
        _expect(array.size == 0 or array.dtype.kind in "iu", f"integers in {name}")
        return array.astype(np.int64)
    except (OverflowError, ValueError, TypeError):
        raise ModelError(f"expected integers in {name}") from None


def floats(node: TreeNode, name: str) -> np.ndarray:
    """An attribute of floats, (n) float64: float32 values where it is a list, those of a tensor; empty where absent."""
    values = node.attributes.get(name)
    if isinstance(values, np.ndarray):
        _expect(values.dtype.kind == "f", f"floating-point numbers in {name}")
        return values.astype(np.float64).reshape(-1)
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(() if values is None else values, np.float64).reshape(-1)
            return array.astype(np.float32).astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ModelError(f"expected numbers in {name}") from None


def _expect(condition: Any, what: str) -> None:
    if not condition:
        raise ModelError(f"expected {what}")


@dataclass(frozen=True)
class _Trees:
    """Trees over flat node numbers, each tree's nodes one after another, in ONNX's terms."""

    n_trees: int
    n_outputs: int
    tree: np.ndarray          # (n_nodes) int64, ascending
    mode: np.ndarray          # (n_nodes) int64
    feature: np.ndarray       # (n_nodes) int64
    value: np.ndarray         # (n_nodes) float64: what the input is compared with
    true: np.ndarray          # (n_nodes) int64: next node where the comparison holds
    false: np.ndarray         # (n_nodes) int64
    tracks_true: np.ndarray   # (n_nodes) bool: NaN goes to `true`
    entry_node: np.ndarray    # (n_entries) int64: leaves
    entry_output: np.ndarray  # (n_entries) int64
    entry_value: np.ndarray   # (n_entries) float64
    base: np.ndarray          # (n_outputs) float64
    aggregate: int
    double: bool              # inputs are compared as float64
    fill: float               # of an output that a leaf of the tree has no entry for
    members: tuple[np.ndarray, ...] = ()  # of the MEMBER nodes in their order

    @property
    def scored(self) -> np.ndarray:
        """The outputs for which a leaf has an entry, (n_outputs) bool."""
        return np.bincount(self.entry_output, minlength=self.n_outputs) > 0


def _trees_of(node: TreeNode, dtype: np.dtype) -> _Trees:
    trees = _trees_of_v5(node, dtype) if node.op_type == "TreeEnsemble" else _trees_of_v3(node, dtype)
    bound = len(trees.entry_output) + SPARE
    _expect(1 <= trees.n_outputs <= bound, f"a number of outputs from 1 to {bound} in a tree ensemble of this size")
    _expect(len(trees.entry_node) > 0, "a leaf's weight or more")
    _expect((trees.entry_output >= 0).all() and (trees.entry_output < trees.n_outputs).all(),
            f"outputs from 0 to {trees.n_outputs - 1} in the leaves' ids")
    _expect(np.isfinite(trees.entry_value).all(), "finite leaf weights")
    inner = trees.mode != LEAF
    feature = trees.feature[inner]
    _expect((feature >= 0).all() and (feature < 1 << 31).all(), "feature ids from 0 to 2147483647")
    _expect(not np.isnan(trees.value[inner & (trees.mode != MEMBER)]).any(), "thresholds that are numbers, not NaN")
    _expect((trees.mode[trees.entry_node] == LEAF).all(), "weights at leaves alone")
    keys = np.sort(trees.entry_node * trees.n_outputs + trees.entry_output)
    _expect((keys[1:] != keys[:-1]).all(), "one weight for a leaf and output")
    return trees


def _fill(aggregate: int, dtype: np.dtype) -> float:
    """What takes no part in the aggregate; finite, since leaf values are."""
    largest = float(np.finfo(np.float64 if dtype == np.float64 else np.float32).max)
    return {MIN: largest, MAX: -largest}.get(aggregate, 0.0)


def _base_of(node: TreeNode, n_outputs: int | None) -> np.ndarray:
    """base_values (n) float64; for a regressor (n_outputs), zeros where absent."""
    base = _either(node, "base_values")
    _expect(np.isfinite(base).all(), "finite base_values")
    if n_outputs is None:
        return base
    _expect(len(base) in (0, n_outputs), f"{n_outputs} base_values")
    return base if len(base) else np.zeros(n_outputs)


def _either(node: TreeNode, name: str) -> np.ndarray:
    """The attribute of doubles, or the one of floats."""
    tensor = floats(node, f"{name}_as_tensor")
    return tensor if len(tensor) else floats(node, name)


# --- TreeEnsembleClassifier and TreeEnsembleRegressor: nodes by (tree id, node id), leaves among them ---

def _trees_of_v3(node: TreeNode, dtype: np.dtype) -> _Trees:
    classifier = node.op_type == "TreeEnsembleClassifier"
    of = "class" if classifier else "target"
    tree_id, node_id = integers(node, "nodes_treeids"), integers(node, "nodes_nodeids")
    mode, value, feature = _modes(node), _either(node, "nodes_values"), integers(node, "nodes_featureids")
    true_id, false_id = integers(node, "nodes_truenodeids"), integers(node, "nodes_falsenodeids")
    columns = (node_id, mode, value, feature, true_id, false_id)
    _expect(len(tree_id) > 0 and all(len(one) == len(tree_id) for one in columns),
            "as many elements in each of nodes_*, one or more")
    tracks = _tracks(node, len(tree_id))

    _, first, rank = np.unique(tree_id, return_index=True, return_inverse=True)
    tree = np.argsort(np.argsort(first))[rank]  # trees by their first node in the file
    index = _NodeIndex(tree_id, node_id)
    order = np.argsort(tree, kind="stable")  # our node → the file's
    ours = np.empty_like(order)
    ours[order] = np.arange(len(order))  # the file's node → ours
    inner = mode != LEAF
    true, false = np.zeros_like(tree), np.zeros_like(tree)
    true[inner] = ours[index.find(tree_id[inner], true_id[inner], "nodes_truenodeids")]
    false[inner] = ours[index.find(tree_id[inner], false_id[inner], "nodes_falsenodeids")]

    ids, entry_tree, entry_node = (integers(node, f"{of}_{one}") for one in ("ids", "treeids", "nodeids"))
    weights = _either(node, f"{of}_weights")
    _expect(len(ids) == len(entry_tree) == len(entry_node) == len(weights), f"as many elements in each of {of}_*")
    n_outputs = len(labels_of(node, "classlabels_int64s")) if classifier else _integer(node, "n_targets", 0)
    bound = len(ids) + SPARE
    _expect(1 <= n_outputs <= bound, f"from 1 to {bound} targets or classes in a tree ensemble of this size")
    aggregate = "SUM" if classifier else node.attributes.get("aggregate_function", "SUM")
    _expect(aggregate in AGGREGATES, f"aggregate_function as one of {', '.join(AGGREGATES)}")
    return _Trees(
        len(first), n_outputs, tree[order], mode[order], feature[order], value[order], true[order], false[order],
        tracks[order], ours[index.find(entry_tree, entry_node, f"{of}_nodeids")], ids, weights,
        np.zeros(n_outputs) if classifier else _base_of(node, n_outputs),
        AGGREGATES[aggregate], dtype == np.float64, _fill(AGGREGATES[aggregate], dtype))


def _tracks(node: TreeNode, n_nodes: int) -> np.ndarray:
    """Whether each of the nodes sends NaN to its true branch, (n_nodes) bool."""
    tracks = integers(node, "nodes_missing_value_tracks_true")
    _expect(len(tracks) in (0, n_nodes), f"{n_nodes} elements in nodes_missing_value_tracks_true")
    return tracks == 1 if len(tracks) else np.zeros(n_nodes, bool)


def _modes(node: TreeNode) -> np.ndarray:
    names = node.attributes.get("nodes_modes") or ()
    try:
        return np.fromiter(map(MODES.__getitem__, names), np.int64, len(names))
    except (KeyError, TypeError):
        raise ModelError(f"expected nodes_modes among {', '.join(MODES)}") from None


def _integer(node: TreeNode, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    _expect(isinstance(value, int), f"an integer in {name}")
    return value


class _NodeIndex:
    """Finds nodes by (tree id, node id), both any int64: each id by its rank, so that a pair is one int64 key."""

    def __init__(self, tree_id: np.ndarray, node_id: np.ndarray):
        self.tree_ids, self.node_ids = np.unique(tree_id), np.unique(node_id)
        keys = self._keys(tree_id, node_id, "nodes_nodeids")
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        _expect((self.keys[1:] != self.keys[:-1]).all(), "distinct nodes: no (tree id, node id) twice")

    def find(self, tree_id: np.ndarray, node_id: np.ndarray, name: str) -> np.ndarray:
        """The places in the file of nodes (n), all of which must exist."""
        keys = self._keys(tree_id, node_id, name)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        _expect((self.keys[place] == keys).all(), f"nodes that exist in {name}")
        return self.order[place]

    def _keys(self, tree_id: np.ndarray, node_id: np.ndarray, name: str) -> np.ndarray:
        tree = np.minimum(np.searchsorted(self.tree_ids, tree_id), len(self.tree_ids) - 1)
        node = np.minimum(np.searchsorted(self.node_ids, node_id), len(self.node_ids) - 1)
        known = (self.tree_ids[tree] == tree_id) & (self.node_ids[node] == node_id)
        _expect(known.all(), f"nodes that exist in {name}")
        return tree * len(self.node_ids) + node


# --- TreeEnsemble, opset 5: inner nodes and leaves apart, each by its place ---

def _trees_of_v5(node: TreeNode, dtype: np.dtype) -> _Trees:
    features, roots = integers(node, "nodes_featureids"), integers(node, "tree_roots")
    split, mode = floats(node, "nodes_splits"), integers(node, "nodes_modes")
    next_of = [integers(node, f"nodes_{one}nodeids") for one in ("true", "false")]
    is_leaf = [integers(node, f"nodes_{one}leafs") for one in ("true", "false")]
    n_inner = len(features)
    _expect(n_inner > 0 and all(len(one) == n_inner for one in (split, mode, *next_of, *is_leaf)),
            "as many elements in each of nodes_*, one or more")
    tracks = _tracks(node, n_inner)
    _expect(((mode >= LEQ) & (mode <= MEMBER)).all(), f"nodes_modes from {LEQ} to {MEMBER}")
    targets, weights = integers(node, "leaf_targetids"), floats(node, "leaf_weights")
    _expect(len(targets) == len(weights), "as many elements in leaf_targetids and leaf_weights")
    _expect(len(roots) > 0 and (roots >= 0).all() and (roots < n_inner).all(), "one or more of the nodes in tree_roots")

    leaf_refs = []  # each mention of a leaf becomes a leaf of its own
    nexts = []
    n_nodes = n_inner
    for ids, leafs in zip(next_of, is_leaf):
        to_leaf = leafs != 0
        bounds = np.where(to_leaf, len(targets), n_inner)
        _expect(((ids >= 0) & (ids < bounds)).all(), "branches to nodes and leaves that exist")
        ids = ids.copy()
        leaf_refs.append(ids[to_leaf])
        ids[to_leaf] = n_nodes + np.arange(len(leaf_refs[-1]))
        n_nodes += len(leaf_refs[-1])
        nexts.append(ids)
    leaves = np.concatenate(leaf_refs)
    tree = _tree_of_each(roots, nexts[0], nexts[1], n_nodes)
    order = np.argsort(tree, kind="stable")
    ours = np.empty_like(order)
    ours[order] = np.arange(n_nodes)

    def padded(values: np.ndarray, of_leaves: Any) -> np.ndarray:
        return np.concatenate([values, np.full(len(leaves), of_leaves, values.dtype)])[order]

    n_outputs, aggregate = _integer(node, "n_targets", 0), _integer(node, "aggregate_function", 1)
    bound = len(leaves) + SPARE
    _expect(1 <= n_outputs <= bound, f"n_targets from 1 to {bound} in a tree ensemble of this size")
    _expect(0 <= aggregate < 4, "aggregate_function from 0 to 3")
    aggregate = AGGREGATES_BY_NUMBER[aggregate]
    return _Trees(
        len(roots), n_outputs, tree[order], padded(mode, LEAF), padded(features, 0), padded(split, 0.0),
        padded(ours[nexts[0]], 0), padded(ours[nexts[1]], 0), padded(tracks, False),
        ours[n_inner:], targets[leaves], weights[leaves], np.zeros(n_outputs), aggregate, dtype == np.float64,
        _fill(aggregate, dtype),
        _reordered(_members(node, mode), np.flatnonzero(mode == MEMBER), ours))


def _tree_of_each(roots: np.ndarray, true: np.ndarray, false: np.ndarray, n_nodes: int) -> np.ndarray:
    """The tree of each node (n_nodes), level by level from the roots; inner nodes come first, as many as `true` has."""
    parents = np.bincount(np.concatenate([true, false, roots]), minlength=n_nodes)
    _expect((parents == 1).all(), "trees without cycles: one parent for every node but the roots")
    tree = np.full(n_nodes, -1)
    level, of = roots, np.arange(len(roots))
    while len(level):
        tree[level] = of
        inner = level < len(true)
        level, of = level[inner], of[inner]
        level, of = np.concatenate([true[level], false[level]]), np.concatenate([of, of])
    _expect((tree >= 0).all(), "trees without cycles: every node below a root")
    return tree


def _members(node: TreeNode, mode: np.ndarray) -> tuple[np.ndarray, ...]:
    """The values of each MEMBER node in their order, sorted: membership_values has their lists, each ended by a NaN."""
    values = floats(node, "membership_values")
    ends = np.flatnonzero(np.isnan(values))
    n_members = int((mode == MEMBER).sum())
    if len(ends) == n_members - 1:  # ONNX Runtime lets the last NaN be left out
        ends = np.append(ends, len(values))
    _expect(len(ends) == n_members, f"{n_members} lists in membership_values, each ended by a NaN")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    return tuple(np.unique(values[start:end]) for start, end in zip(starts, ends))


def _reordered(members: tuple[np.ndarray, ...], nodes: np.ndarray, ours: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(members[i] for i in np.argsort(ours[nodes]))


# --- to a TreeEnsemble ---

def _build(trees: _Trees) -> TreeEnsemble:
    leaf = trees.mode == LEAF
    inner = ~leaf
    has_parent = np.zeros(len(leaf), bool)
    has_parent[trees.true[inner]] = True
    has_parent[trees.false[inner]] = True
    root = np.flatnonzero(~has_parent)
    _expect(len(root) == trees.n_trees and (trees.tree[root] == np.arange(trees.n_trees)).all(),
            "trees without cycles: one node of each tree that no branch leads to")
    swapped = (trees.mode == GTE) | (trees.mode == GT) | (trees.mode == NEQ)
    threshold, category_set, sets = _splits(trees)
    # A NaN equals nothing: every comparison but != is false.
    nan_is_true = trees.tracks_true | (trees.mode == NEQ)
    first_output, output_width, place, leaf_values = _leaves(trees, leaf)
    ensemble = TreeEnsemble(
        n_features=int(trees.feature[inner].max(initial=0)) + 1,
        n_outputs=trees.n_outputs,
        root=root,
        first_output=first_output,
        output_width=output_width,
        feature=np.where(leaf, -1, trees.feature),
        threshold=threshold,
        left=np.where(swapped, trees.false, trees.true),
        right=np.where(swapped, trees.true, trees.false),
        missing=np.where(nan_is_true != swapped, NAN_LEFT, NAN_RIGHT).astype(np.uint8),
        leaf=place,
        leaf_values=leaf_values,
        base=trees.base,
        category_set=category_set,
        sets=sets,
        aggregate=trees.aggregate,
        rounds_inputs=not trees.double,
    )
    ensemble.check()
    return ensemble


def _splits(trees: _Trees) -> tuple[np.ndarray, np.ndarray | None, tuple[np.ndarray, ...]]:
    """Thresholds t with `x <= t` for each comparison (or its opposite), category sets of the nodes, and the sets.

    For inputs x that are float32: x <= v is x <= (the largest float32 up to v), x < v is x <= (the largest below v).
    """
    inner = trees.mode != LEAF
    strict = (trees.mode == LT) | (trees.mode == GTE)
    threshold = trees.value.copy()
    if not trees.double:
        with np.errstate(over="ignore"):
            rounded = threshold.astype(np.float32)
        too_large = rounded > threshold
        rounded[too_large] = np.nextafter(rounded[too_large], np.float32(-np.inf))
        below = strict & (rounded == threshold)
        rounded[below] = np.nextafter(rounded[below], np.float32(-np.inf))
        threshold = rounded.astype(np.float64)
    else:
        threshold[strict] = np.nextafter(threshold[strict], -np.inf)
    threshold[~inner] = 0.0
    never = inner & strict & np.isneginf(trees.value)  # nothing is below −inf
    equal = inner & ((trees.mode == EQ) | (trees.mode == NEQ))
    member = trees.mode == MEMBER
    threshold[equal | member | never] = 0.0
    if not (equal | member | never).any():
        return threshold, None, ()
    values, which = np.unique(trees.value[equal], return_inverse=True)
    sets = (np.empty(0), *values.reshape(-1, 1), *trees.members)
    category_set = np.full(len(inner), -1)
    category_set[equal] = 1 + which
    category_set[never] = 0
    category_set[member] = 1 + len(values) + np.arange(int(member.sum()))
    return threshold, category_set, sets


def _leaves(trees: _Trees, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(n_trees) first outputs and widths, (n_nodes) places of leaves, and the leaves' rows of values.

    A tree's rows span from the lowest to the highest output that its leaves have entries for.
    """
    entry_tree = trees.tree[trees.entry_node]
    lowest = np.full(trees.n_trees, trees.n_outputs - 1)
    highest = np.zeros(trees.n_trees, np.int64)
    np.minimum.at(lowest, entry_tree, trees.entry_output)
    np.maximum.at(highest, entry_tree, trees.entry_output)
    empty = np.bincount(entry_tree, minlength=trees.n_trees) == 0  # a tree without any weight
    lowest[empty] = highest[empty] = 0
    width = highest - lowest + 1
    leaves = np.flatnonzero(leaf)
    widths = width[trees.tree[leaves]]
    total = int(widths.sum())
    bound = DENSITY * (len(trees.entry_node) + len(leaves)) + SPARE
    _expect(total <= bound, f"no more than {bound} leaf values in dense rows: leaves name outputs that are far apart")
    place = np.zeros(len(leaf), np.int64)
    place[leaves] = np.cumsum(widths) - widths
    values = np.full(total, trees.fill)
    values[place[trees.entry_node] + trees.entry_output - lowest[entry_tree]] = trees.entry_value
    return lowest, width, place, values
