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
from kernels.simd import (
    is_below, load, load_i64, load_u8, load_u16, record, round_f32, shift_right, store, store_u16,
)
from kernels.step import Step
from kernels.trees import CATEGORY, FEATURE, N_COLUMNS, N_EDGES, RULE, ZERO_THRESHOLD

FOREST = np.dtype([
    ("input", np.int64), ("width", np.int64), ("out", np.int64), ("n_outputs", np.int64),
    ("columns", np.int64),  # number of the scratch value for the columns
    ("column_bytes", np.int64),  # of eight rows
    ("n_eights", np.int64), ("eights", np.int64), ("n_categories", np.int64), ("categories", np.int64),
    ("n_trees", np.int64), ("trees", np.int64),
    ("nodes", np.int64), ("base", np.int64),
    ("is_single", np.int64),  # 1: each tree has one output, and `leaves` its float64 of each node
    ("leaves", np.int64),   # else (n_nodes) int64: where in `values` those of a leaf begin
    ("values", np.int64),
    ("aggregate", np.int64), ("rounds_inputs", np.int64), ("rounds_sums", np.int64),
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
COLUMN = 16  # bytes of a column of eight rows
ROW_LEVELS, TREE_LEVELS = 16, 4  # after so many levels it is looked whether all walks have arrived
RANK_MASK, COLUMN_MASK = 0xFFFF, 0xFFFFFF


# ---- columns -----------------------------------------------------------------------------------------------

@inner
def _row_columns(forest, columns, r):
    """The address of the first column of row r."""
    return columns + (r >> 3) * forest.column_bytes + (r & 7) * 2


@inner
def _feature(eight, lane, rounds, rows):
    x = load(rows + load_i64(eight + lane * 8))
    return round_f32(x) if rounds else x


@inner
def _store_column(eight, lane, x, at, columns):
    column = shift_right(at - load_i64(eight + EDGES_AT + lane * 8), 3)
    if not abs(x) > load(eight + ZEROS_AT + lane * 8):  # so near to zero, or NaN
        column = load_i64(eight + MISSING_AT + lane * 8)
    store_u16(columns + lane * COLUMN, column)


@inner
def _fill_eight(eight, first_half, rounds, rows, columns):
    """Eight columns of a row: how many edges are below the value, by halving, eight searches at a time."""
    xa, xb, xc = _feature(eight, 0, rounds, rows), _feature(eight, 1, rounds, rows), _feature(eight, 2, rounds, rows)
    xd, xe, xf = _feature(eight, 3, rounds, rows), _feature(eight, 4, rounds, rows), _feature(eight, 5, rounds, rows)
    xg, xh = _feature(eight, 6, rounds, rows), _feature(eight, 7, rounds, rows)
    edges = eight + EDGES_AT
    a, b, c, d = load_i64(edges), load_i64(edges + 8), load_i64(edges + 16), load_i64(edges + 24)
    e, f, g, h = load_i64(edges + 32), load_i64(edges + 40), load_i64(edges + 48), load_i64(edges + 56)
    half = first_half
    while half >= 8:
        last = half - 8
        a, b = a + (half & is_below(a + last, xa)), b + (half & is_below(b + last, xb))
        c, d = c + (half & is_below(c + last, xc)), d + (half & is_below(d + last, xd))
        e, f = e + (half & is_below(e + last, xe)), f + (half & is_below(f + last, xf))
        g, h = g + (half & is_below(g + last, xg)), h + (half & is_below(h + last, xh))
        half >>= 1
    _store_column(eight, 0, xa, a + (8 & is_below(a, xa)), columns)
    _store_column(eight, 1, xb, b + (8 & is_below(b, xb)), columns)
    _store_column(eight, 2, xc, c + (8 & is_below(c, xc)), columns)
    _store_column(eight, 3, xd, d + (8 & is_below(d, xd)), columns)
    _store_column(eight, 4, xe, e + (8 & is_below(e, xe)), columns)
    _store_column(eight, 5, xf, f + (8 & is_below(f, xf)), columns)
    _store_column(eight, 6, xg, g + (8 & is_below(g, xg)), columns)
    _store_column(eight, 7, xh, h + (8 & is_below(h, xh)), columns)


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
        out = _row_columns(forest, columns, r) + spec.column * COLUMN
        for j in range(spec.n_columns):
            store_u16(out + j * COLUMN, load_u8(table + j))
        at += forest.width * 8


@inner
def _fill_columns(forest, rows, columns, n_rows):
    for i in range(forest.n_eights):
        eight = forest.eights + i * EIGHT_BYTES
        half = record(eight, EIGHT).half_bytes
        for r in range(n_rows):
            _fill_eight(eight, half, forest.rounds_inputs != 0, rows + r * forest.width * 8,
                        _row_columns(forest, columns, r) + i * 8 * COLUMN)
    for i in range(forest.n_categories):
        _fill_categories(forest, record(forest.categories + i * CATEGORIES_BYTES, CATEGORIES), rows, columns, n_rows)


# ---- walks -------------------------------------------------------------------------------------------------

@inner
def _step(nodes, node, columns):
    """The child to go to from a node; numbers of nodes."""
    bits = load_i64(nodes + node * 8)
    column = load_u16(columns + (shift_right(bits, 16) & COLUMN_MASK) * 8)
    return node + shift_right(bits, 40) + (column > (bits & RANK_MASK))


@inner
def _leaf_value(forest, node):
    """The one value of a leaf, where trees have one output."""
    return load(forest.leaves + node * 8)


@inner
def _add_one(forest, node, out):
    """Add the one value of a leaf to one row's output; sums only."""
    after = load(out) + _leaf_value(forest, node)
    store(out, round_f32(after) if forest.rounds_sums else after)


@inner
def _add_leaf(forest, tree, node, out):
    """Add the values of a leaf of a tree to one row's outputs."""
    out += tree.first_output * 8
    values = forest.leaves + node * 8
    if not forest.is_single:
        values = forest.values + load_i64(values) * 8
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
def _walk(nodes, columns, lane, levels, depth, a, b, c, d, e, f, g, h):
    """Eight walks of at most `depth` steps from the nodes a … h → the leaves; each one's columns are `lane` on."""
    while depth > 0:
        before = a + b + c + d + e + f + g + h  # it only grows, until all have arrived
        for _ in range(min(depth, levels)):
            a = _step(nodes, a, columns)
            b = _step(nodes, b, columns + lane)
            c = _step(nodes, c, columns + 2 * lane)
            d = _step(nodes, d, columns + 3 * lane)
            e = _step(nodes, e, columns + 4 * lane)
            f = _step(nodes, f, columns + 5 * lane)
            g = _step(nodes, g, columns + 6 * lane)
            h = _step(nodes, h, columns + 7 * lane)
        depth -= levels
        if a + b + c + d + e + f + g + h == before:
            break
    return a, b, c, d, e, f, g, h


@inner
def _walk_rows(forest, tree, columns, out):
    """Eight rows through one tree."""
    root, size = tree.root, forest.n_outputs * 8
    a, b, c, d, e, f, g, h = _walk(forest.nodes, columns, 2, ROW_LEVELS, tree.depth,
                                   root, root, root, root, root, root, root, root)
    if forest.is_single and forest.aggregate == SUM:
        out += tree.first_output * 8
        _add_one(forest, a, out)
        _add_one(forest, b, out + size)
        _add_one(forest, c, out + 2 * size)
        _add_one(forest, d, out + 3 * size)
        _add_one(forest, e, out + 4 * size)
        _add_one(forest, f, out + 5 * size)
        _add_one(forest, g, out + 6 * size)
        _add_one(forest, h, out + 7 * size)
    else:
        _add_leaf(forest, tree, a, out)
        _add_leaf(forest, tree, b, out + size)
        _add_leaf(forest, tree, c, out + 2 * size)
        _add_leaf(forest, tree, d, out + 3 * size)
        _add_leaf(forest, tree, e, out + 4 * size)
        _add_leaf(forest, tree, f, out + 5 * size)
        _add_leaf(forest, tree, g, out + 6 * size)
        _add_leaf(forest, tree, h, out + 7 * size)


@inner
def _tree(forest, t):
    return record(forest.trees + t * TREE_BYTES, TREE)


@inner
def _walk_trees(forest, t, columns, out):
    """One row through the eight trees from t on."""
    ta, tb, tc, td = _tree(forest, t), _tree(forest, t + 1), _tree(forest, t + 2), _tree(forest, t + 3)
    te, tf, tg, th = _tree(forest, t + 4), _tree(forest, t + 5), _tree(forest, t + 6), _tree(forest, t + 7)
    depth = max(max(max(ta.depth, tb.depth), max(tc.depth, td.depth)),
                max(max(te.depth, tf.depth), max(tg.depth, th.depth)))
    a, b, c, d, e, f, g, h = _walk(forest.nodes, columns, 0, TREE_LEVELS, depth, ta.root, tb.root, tc.root, td.root,
                                   te.root, tf.root, tg.root, th.root)
    if forest.is_single and forest.n_outputs == 1 and forest.aggregate == SUM and not forest.rounds_sums:
        total = load(out) + _leaf_value(forest, a)
        total = total + _leaf_value(forest, b) + _leaf_value(forest, c) + _leaf_value(forest, d)
        total = total + _leaf_value(forest, e) + _leaf_value(forest, f) + _leaf_value(forest, g)
        store(out, total + _leaf_value(forest, h))
        return
    _add_leaf(forest, ta, a, out)
    _add_leaf(forest, tb, b, out)
    _add_leaf(forest, tc, c, out)
    _add_leaf(forest, td, d, out)
    _add_leaf(forest, te, e, out)
    _add_leaf(forest, tf, f, out)
    _add_leaf(forest, tg, g, out)
    _add_leaf(forest, th, h, out)


@inner
def _walk_one(forest, tree, columns, out):
    node = tree.root
    for _ in range(tree.depth):
        node = _step(forest.nodes, node, columns)
    _add_leaf(forest, tree, node, out)


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
    columns, size = load_i64(values + forest.columns * 8), forest.n_outputs * 8
    _fill_columns(forest, rows, columns, n_rows)
    _start(forest, out, n_rows)
    n_eights = n_rows - n_rows % 8
    if n_eights:
        for t in range(forest.n_trees):
            tree = _tree(forest, t)
            for i in range(0, n_eights, 8):
                _walk_rows(forest, tree, _row_columns(forest, columns, i), out + i * size)
    for i in range(n_eights, n_rows):
        row_columns, row_out = _row_columns(forest, columns, i), out + i * size
        for t in range(0, forest.n_trees - 7, 8):
            _walk_trees(forest, t, row_columns, row_out)
        for t in range(forest.n_trees - forest.n_trees % 8, forest.n_trees):
            _walk_one(forest, _tree(forest, t), row_columns, row_out)
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
    is_single = bool((arrays["output_width"] == 1).all())
    leaves = values[np.minimum(forest.place, len(values) - 1)] if is_single else forest.place
    state = np.zeros(1, FOREST)
    state[0] = (step.inputs[0], widths[0], number, step.width, scratch, n_columns * COLUMN,
                len(eights), eights.ctypes.data, len(categories), categories.ctypes.data,
                len(tree_records), tree_records.ctypes.data, nodes.ctypes.data, base.ctypes.data,
                is_single, leaves.ctypes.data, values.ctypes.data,
                int(step.numbers["aggregate"]), int(step.numbers["rounds_inputs"]), int(step.numbers["rounds_sums"]))
    owners = (eights, categories, owned, tree_records, nodes, leaves, values, base, arrays)
    return state.view(np.uint8), owners, n_columns * COLUMN // 8


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
