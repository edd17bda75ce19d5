"""The native kernel of a step "trees": thresholds to columns, then eight walks at a time from roots to leaves.

The rule to keep: the same bits as `trees.run`. A walk has no branches: a leaf leads to itself, for its rank is more
than any column. Eight walks that do not wait for each other hide what each step costs, which is a load from memory
that depends on the last: eight rows through one tree, or one row through eight trees.

A node is 64 bits: bits 0–15 rank, 16–39 twice its column, 40–63 how many nodes farther its left child is. The columns
of eight rows lie side by side, 16 bytes a column, so that eight walks need two registers beside their own.
"""

import math

import numpy as np

from kernels import trees
from kernels.compiled import inner
from kernels.ensemble import AVERAGE, EXACT, MAX, MIN, NAN_IS_ZERO, NAN_LEFT, SUM, TRUNCATED_POSITIVE, ZERO_LEFT
from kernels.ensemble import ZERO_RIGHT
from kernels.eights import (
    COLUMN_BYTES, add_picked, halve_eight, load_eight, load_features, same_eight, step_eight, store_columns,
    store_eight, sum_eight, sum_picked,
)
from kernels.simd import load, load_i64, load_u8, record, round_f32, shift_right, store, store_u16
from kernels.step import Step
from kernels.trees import CATEGORY, FEATURE, N_COLUMNS, N_EDGES, RULE, ZERO_THRESHOLD

FOREST = np.dtype([
    ("input", np.int64), ("n_features", np.int64), ("out", np.int64), ("n_outputs", np.int64),
    ("columns", np.int64),  # number of the scratch value for the columns
    ("column_bytes", np.int64),  # of eight rows
    ("n_eights", np.int64), ("eights", np.int64), ("n_categories", np.int64), ("categories", np.int64),
    ("n_trees", np.int64), ("trees", np.int64),
    ("roots", np.int64),   # (n_trees filled up to eights) int64: the first node; after the last tree that of tree 0
    ("depths", np.int64),  # (n_trees / 8, rounded up) int64: the greatest depth of eight trees
    ("nodes", np.int64), ("base", np.int64),
    ("width", np.int64),    # outputs that every tree has; 0 = trees have different ones
    ("leaves", np.int64),   # (n_nodes, width) float64; else (n_nodes) int64: where in `values` those of a leaf begin
    ("values", np.int64),
    ("aggregate", np.int64), ("rounds_inputs", np.int64), ("rounds_sums", np.int64),
    ("is_plain", np.int64),  # 1: sums or averages that are not rounded
    ("is_score", np.int64),  # 1: and there is one output
])
# Eight numeric columns side by side, their edges filled up with infinities to the same power of two.
EIGHT = np.dtype([
    ("feature_bytes", np.int64, 8),  # where the feature is in the row
    ("edges", np.int64, 8),          # addresses
    ("missing", np.int64, 8),        # the column where the value is missing
    ("zeros", np.float64, 8),        # what is no farther from zero than this is missing; −1 = nothing
    ("half_bytes", np.int64),        # half of the edges
])
EDGES_AT, MISSING_AT, ZEROS_AT = 64, 128, 192  # bytes; feature_bytes at 0
CATEGORIES = np.dtype([("feature", np.int64), ("rule", np.int64), ("n_found", np.int64), ("found", np.int64),
                       ("n_columns", np.int64), ("column", np.int64), ("table", np.int64)])
TREE = np.dtype([("root", np.int64), ("depth", np.int64), ("first_output", np.int64), ("width", np.int64)])
EIGHT_BYTES, CATEGORIES_BYTES, TREE_BYTES = EIGHT.itemsize, CATEGORIES.itemsize, TREE.itemsize
MAX_INLINE_WIDTH = 4  # outputs of a leaf that are kept by node, where inner nodes waste as much
LEAVES_BYTES = 64  # of scratch, in front of the columns: where eight walks have ended
ROW_LEVELS, TREE_LEVELS = 16, 4  # after so many levels it is looked whether all walks have arrived


# ---- columns -----------------------------------------------------------------------------------------------

@inner
def _row_columns(forest, columns, r):
    """The address of the first column of row r."""
    return columns + (r >> 3) * forest.column_bytes + (r & 7) * 2


@inner
def _fill_eight(eight, half, rounds, row, columns):
    """Eight columns of a row: how many edges are below the value, by halving."""
    values, places = load_features(row, eight, rounds), load_eight(eight + EDGES_AT)
    while half >= 8:
        places = halve_eight(places, values, half)
        half >>= 1
    places = halve_eight(places, values, 8)
    store_columns(columns, places, eight + EDGES_AT, values, eight + ZEROS_AT, eight + MISSING_AT)


@inner
def _find_category(spec, x):
    """The row of the table for a value."""
    if math.isnan(x):
        return spec.n_found
    rule = spec.rule - CATEGORY
    if rule == TRUNCATED_POSITIVE and x < 0.0:
        x = -1.0
    if rule != EXACT:
        x = math.trunc(x) if abs(x) < 4503599627370496.0 else x  # beyond 2^52 every float64 is whole
    at, n = spec.found, spec.n_found
    while n > 1:
        half = n >> 1
        at += half * 8 if load(at + half * 8) <= x else 0
        n -= half
    return shift_right(at - spec.found, 3) if n == 1 and load(at) == x else spec.n_found + 1


@inner
def _fill_categories(forest, spec, rows, columns, n_rows):
    at = rows + spec.feature * 8
    for r in range(n_rows):
        x = load(at)
        table = spec.table + _find_category(spec, round_f32(x) if forest.rounds_inputs else x) * spec.n_columns
        out = _row_columns(forest, columns, r) + spec.column * COLUMN_BYTES
        for j in range(spec.n_columns):
            store_u16(out + j * COLUMN_BYTES, load_u8(table + j))
        at += forest.n_features * 8


@inner
def _fill_columns(forest, rows, columns, n_rows):
    for i in range(forest.n_eights):
        eight = forest.eights + i * EIGHT_BYTES
        half = record(eight, EIGHT).half_bytes
        for r in range(n_rows):
            _fill_eight(eight, half, forest.rounds_inputs != 0, rows + r * forest.n_features * 8,
                        _row_columns(forest, columns, r) + i * 8 * COLUMN_BYTES)
    for i in range(forest.n_categories):
        _fill_categories(forest, record(forest.categories + i * CATEGORIES_BYTES, CATEGORIES), rows, columns, n_rows)


# ---- walks -------------------------------------------------------------------------------------------------

@inner
def _walk(nodes, columns, lane_bytes, levels, depth, eight):
    """Eight walks of at most `depth` steps from these nodes → the leaves."""
    while depth > 0:
        before = sum_eight(eight)  # it only grows, until all have arrived
        for _ in range(min(depth, levels)):
            eight = step_eight(nodes, columns, lane_bytes, eight)
        depth -= levels
        if sum_eight(eight) == before:
            break
    return eight


@inner
def _tree(forest, t):
    return record(forest.trees + t * TREE_BYTES, TREE)


@inner
def _leaf_values(forest, node):
    """The address of the values of a leaf."""
    if forest.width == 0:
        return forest.values + load_i64(forest.leaves + node * 8) * 8
    return forest.leaves + node * forest.width * 8


@inner
def _add_leaf(forest, tree, node, out):
    """Add the values of a leaf of a tree to one row's outputs."""
    values, out = _leaf_values(forest, node), out + tree.first_output * 8
    for k in range(0, tree.width * 8, 8):
        value, before = load(values + k), load(out + k)
        if forest.aggregate == MIN:
            after = min(before, value)
        elif forest.aggregate == MAX:
            after = max(before, value)
        else:
            after = before + value
        store(out + k, round_f32(after) if forest.rounds_sums else after)


@inner
def _add_plain(forest, tree, node, out):
    """As `_add_leaf`, for sums that are not rounded."""
    values, out = _leaf_values(forest, node), out + tree.first_output * 8
    for k in range(0, tree.width * 8, 8):
        store(out + k, load(out + k) + load(values + k))


@inner
def _walk_rows(forest, tree, columns, leaves, out):
    """Eight rows through one tree."""
    eight = _walk(forest.nodes, columns, 2, ROW_LEVELS, tree.depth, same_eight(tree.root))
    if forest.is_score:
        add_picked(out, forest.leaves, eight)
        return
    store_eight(leaves, eight)
    for k in range(8):
        if forest.is_plain:
            _add_plain(forest, tree, load_i64(leaves + k * 8), out + k * forest.n_outputs * 8)
        else:
            _add_leaf(forest, tree, load_i64(leaves + k * 8), out + k * forest.n_outputs * 8)


@inner
def _walk_trees(forest, t, n, columns, leaves, out):
    """One row through the trees t … t + n − 1, eight at most; what is left of the eight walks nowhere."""
    eight = _walk(forest.nodes, columns, 0, TREE_LEVELS, load_i64(forest.depths + t), load_eight(forest.roots + t * 8))
    if forest.is_score and n == 8:
        store(out, sum_picked(load(out), forest.leaves, eight))
        return
    store_eight(leaves, eight)
    for k in range(n):
        _add_leaf(forest, _tree(forest, t + k), load_i64(leaves + k * 8), out)


# ---- a block of rows ---------------------------------------------------------------------------------------

@inner
def _start(forest, out, n_rows):
    base_first = forest.rounds_sums and forest.aggregate == SUM
    start = math.inf if forest.aggregate == MIN else -math.inf if forest.aggregate == MAX else 0.0
    for _ in range(n_rows):
        for k in range(forest.n_outputs):
            store(out + k * 8, load(forest.base + k * 8) if base_first else start)
        out += forest.n_outputs * 8


@inner
def _finish(forest, out, n_rows):
    if forest.rounds_sums and forest.aggregate == SUM:
        return
    for _ in range(n_rows):
        for k in range(forest.n_outputs):
            total = load(out + k * 8)
            if forest.aggregate == AVERAGE:
                total = total / forest.n_trees
            elif forest.aggregate != SUM and math.isinf(total):  # no tree has this output
                total = 0.0
            if forest.rounds_sums:
                total = round_f32(round_f32(total) + load(forest.base + k * 8))
            else:
                total += load(forest.base + k * 8)
            store(out + k * 8, total)
        out += forest.n_outputs * 8


def run_trees(state, values, n_rows):
    """The kernel (ABI in native.py) of a step "trees"."""
    forest = record(state, FOREST)
    rows, out = load_i64(values + forest.input * 8), load_i64(values + forest.out * 8)
    leaves, size = load_i64(values + forest.columns * 8), forest.n_outputs * 8
    columns = leaves + LEAVES_BYTES
    _fill_columns(forest, rows, columns, n_rows)
    _start(forest, out, n_rows)
    n_eights = n_rows - n_rows % 8
    if n_eights:
        for t in range(forest.n_trees):
            tree = _tree(forest, t)
            for i in range(0, n_eights, 8):
                _walk_rows(forest, tree, _row_columns(forest, columns, i), leaves, out + i * size)
    for i in range(n_eights, n_rows):
        for t in range(0, forest.n_trees, 8):
            _walk_trees(forest, t, min(8, forest.n_trees - t), _row_columns(forest, columns, i), leaves, out + i * size)
    _finish(forest, out, n_rows)
    return 0


# ---- the state ---------------------------------------------------------------------------------------------

def state_of(step: Step, widths: list[int], number: int, scratch: int) -> tuple[np.ndarray, tuple, int]:
    """(FOREST record as bytes, arrays that it points into, float64 of scratch for eight rows) of step `number`."""
    arrays, forest = step.arrays, trees.forest_of(step)
    eights, categories, place_of, owned = _column_records(arrays)
    columns = 2 * place_of[np.maximum(arrays["node_columns"], 0)].astype(np.uint64)
    from_root = np.arange(len(forest.left)) - np.repeat(forest.roots, arrays["tree_sizes"])
    nodes = ((forest.left - from_root).astype(np.uint64) << np.uint64(40) | columns << np.uint64(16)
             | arrays["node_ranks"].astype(np.uint64))
    tree_records = np.zeros(len(forest.roots), TREE)
    for name, array in zip(TREE.names or (), (forest.roots, forest.depths, arrays["first_output"],
                                              arrays["output_width"]), strict=True):
        tree_records[name] = array
    n_columns = -(-(int(place_of.max(initial=0)) + 1) // 8) * 8
    values, base = arrays["values"], arrays["base"]
    if step.numbers["rounds_sums"]:
        values, base = (array.astype(np.float32).astype(np.float64) for array in (values, base))
    fill = -len(forest.roots) % 8
    roots = np.append(forest.roots, np.zeros(fill, np.int64))
    depths = np.append(forest.depths, np.zeros(fill, np.int64)).reshape(-1, 8).max(axis=1)
    width = int(arrays["output_width"][0]) if (arrays["output_width"] == arrays["output_width"][0]).all() else 0
    if width > MAX_INLINE_WIDTH:
        width = 0
    leaves = _by_node(forest.place, values, width) if width else forest.place
    aggregate, rounds_sums = int(step.numbers["aggregate"]), int(step.numbers["rounds_sums"])
    is_plain = aggregate in (SUM, AVERAGE) and not rounds_sums
    state = np.zeros(1, FOREST)
    state[0] = (step.inputs[0], widths[0], number, step.width, scratch, n_columns * COLUMN_BYTES,
                len(eights), eights.ctypes.data, len(categories), categories.ctypes.data,
                len(tree_records), tree_records.ctypes.data, roots.ctypes.data, depths.ctypes.data,
                nodes.ctypes.data, base.ctypes.data,
                width, leaves.ctypes.data, values.ctypes.data,
                aggregate, int(step.numbers["rounds_inputs"]), rounds_sums, is_plain, is_plain and step.width == 1)
    owners = (eights, categories, owned, tree_records, roots, depths, nodes, leaves, values, base, arrays)
    return state.view(np.uint8), owners, n_columns * COLUMN_BYTES // 8


def _by_node(place: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """The values (n_nodes, width) of every node, of which those of leaves count: one access of memory, not two."""
    return values[np.minimum(place[:, None] + np.arange(width), len(values) - 1)]


def _column_records(arrays: dict[str, np.ndarray]):
    """→ EIGHT records, CATEGORIES records, each column's place in a row of columns, arrays that they point into."""
    specs, n_columns = arrays["specs"], arrays["specs"][:, N_COLUMNS]
    first_column, first_edge = np.cumsum(n_columns) - n_columns, np.cumsum(specs[:, N_EDGES]) - specs[:, N_EDGES]
    place_of = np.zeros(max(int(n_columns.sum()), 1), np.int64)
    is_category = specs[:, RULE] >= CATEGORY
    eights: list[np.ndarray] = []
    owned: list[np.ndarray] = []
    numeric = np.flatnonzero(~is_category)
    sizes = 1 << np.ceil(np.log2(np.maximum(specs[numeric, N_EDGES], 1))).astype(np.int64)  # of edges, filled up
    for size in np.unique(sizes):
        same = numeric[sizes == size]
        for first in range(0, len(same), 8):
            chosen = same[first:first + 8]
            place_of[first_column[chosen]] = len(eights) * 8 + np.arange(len(chosen))
            edges = np.full((len(chosen), size), np.inf)
            for row, spec in zip(edges, chosen.tolist(), strict=True):
                n = specs[spec, N_EDGES]
                row[:n] = arrays["edges"][first_edge[spec]:first_edge[spec] + n]
            owned.append(edges)
            eights.append(_eight_record(specs[chosen], edges))
    table_bytes = np.where(is_category, (specs[:, N_EDGES] + 2) * n_columns, 0)
    tables = arrays["tables"].ctypes.data + np.cumsum(table_bytes) - table_bytes
    place, categories = len(eights) * 8, np.zeros(int(is_category.sum()), CATEGORIES)
    for i, spec in enumerate(np.flatnonzero(is_category).tolist()):
        feature, rule, n_found, n = specs[spec].tolist()
        place_of[first_column[spec] + np.arange(n)] = place + np.arange(n)
        found = arrays["edges"].ctypes.data + int(first_edge[spec]) * 8
        categories[i] = (feature, rule, n_found, found, n, place, tables[spec])
        place += n
    return np.array(eights, EIGHT), categories, place_of, owned


def _eight_record(specs: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The EIGHT record of up to eight numeric specs; edges (n, a power of two). What is left over repeats the first."""
    n, lanes = len(specs), np.arange(8)
    lanes[n:] = 0
    specs, lane_edges = specs[lanes], edges[lanes]
    rule, n_edges = specs[:, RULE], specs[:, N_EDGES]
    of_zero = np.minimum((lane_edges < 0.0).sum(axis=1), n_edges)
    missing = np.where(rule == NAN_IS_ZERO, of_zero, np.where((rule == NAN_LEFT) | (rule == ZERO_LEFT), 0, n_edges))
    made = np.zeros((), EIGHT)
    made["feature_bytes"] = specs[:, FEATURE] * 8
    made["edges"] = edges.ctypes.data + lanes * edges.shape[1] * 8
    made["missing"] = missing
    made["zeros"] = np.where((rule == ZERO_RIGHT) | (rule == ZERO_LEFT), ZERO_THRESHOLD, -1.0)
    made["half_bytes"] = edges.shape[1] // 2 * 8
    return made
