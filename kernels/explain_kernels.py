"""Native kernels of exact Shapley values of trees: against the training rows' own shares, or against background rows.

The rule to keep: both are exact for the game that `explain` names; neither samples, and what is summed is of one sign
wherever that can be. Kernels check nothing, allocate nothing, never raise and never take the GIL.

**Path-dependent.** A leaf of value v is reached, of the features S known, with probability Π_{j∈S} o_j · Π_{j∉S} z_j:
o_j is 1 where the row passes all splits on feature j above the leaf, z_j the share of the training rows that do. Its
Shapley values are integrals of polynomials,

    φ_i = v · (o_i − z_i) · ∫₀¹ Π_{j≠i} (t · o_j + (1 − t) · z_j) dt,

since ∫ tˢ (1 − t)^(m−1−s) dt = s! (m−1−s)! / m!. Gauss and Legendre's rule of n points is exact up to degree 2n − 1:
eight points, the lanes of one vector, do for 16 different features above a leaf. One walk over a tree carries the
product P down and the sum G = Σ v · P of the leaves below up; an edge adds (o − z) · Σ G / f to its feature, f being
its factor of P. Where an edge above has the same feature, f replaces that one's factor below, and so is its share of
φ taken back. As in Yu et al., Linear TreeSHAP (2022), with another basis: every factor lies in (0, 1], which is why
dividing by it is safe.

**Interventional.** Of a row x and a background row b, a leaf is reached by the hybrids that take from x the p
features that only x passes, and from b the q that only b passes: φ_i = v (p−1)! q! / (p+q)! of the former, −v p!
(q−1)! / (p+q)! of the latter (Lundberg et al., From local explanations to global understanding, 2020, alg. 3). Here
64 background rows take one walk: q is the same for all that reach a leaf, and masks say which have which p.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.compiled import inner
from kernels.simd import add, f64x8, load, load_f64, load_i64, load_u16, mul, record, shift_right, store, store_f64
from kernels.simd import store_i64, sum_lanes, zero

LANES = 8
VECTOR = 64  # bytes
LEAF = 65_535  # the rank of leaves
RANK_MASK, COLUMN_MASK = 0xFFFF, 0xFFFFFF

EXPLAIN_SIGNATURE = types.int32(*[types.intp] * 6)  # state, rows, n_rows, background, n_background, out
ARRANGE_SIGNATURE = types.int32(types.intp)

# The state. `rows` and `background` are (n, column_bytes) columns, of uint16 each (`trees.columns_of`); `out` is
# (n_rows, n_features, n_outputs) float64 zeros: what the features add to the sum of the trees, the sum over all
# background rows.
GAME = np.dtype([
    ("n_trees", np.int64), ("trees", np.int64),  # address of (n_trees) TREE
    ("nodes", np.int64),       # address of (n_nodes) int64: bits 0–15 rank, 16–39 column, 40–63 left child
    ("places", np.int64),      # address of (n_nodes) int64: a leaf's place in values
    ("values", np.int64),      # address of float64
    ("column_bytes", np.int64),  # of a row
    ("features", np.int64),    # address of (n_columns) int64: the feature of each column
    ("n_features", np.int64), ("n_outputs", np.int64),
    ("edges", np.int64),       # address of (n_nodes) EDGE
    ("rules", np.int64),       # address of (n_vectors) addresses of quadrature rules, of 1, 2, … vectors
    ("weights", np.int64), ("n_weights", np.int64),  # address of (n, n) float64: (p − 1)! q! / (p + q)!
    ("cover", np.int64),       # address of (n_nodes) float64, or 0
    ("expected", np.int64),    # address of (n_outputs) float64: the sum of the trees, when nothing is known
    ("n_columns", np.int64),
    ("ranges", np.int64),      # address of (n_columns + 1) int64: where a column's thresholds begin
    ("ranks", np.int64),       # address of (n_thresholds) int64, ascending for each column
    ("thresholds", np.int64),  # address of (n_nodes) int64: an inner node's threshold
    ("masks", np.int64),       # scratch: (n_thresholds) int64
    ("marks", np.int64),       # scratch: (n_features) int64
    ("stack", np.int64),       # scratch: what a walk must remember, a level
])
TREE = np.dtype([
    ("root", np.int64),         # number of the first node
    ("depth", np.int64),        # of the deepest leaf
    ("first_output", np.int64), ("width", np.int64),
    ("edges", np.int64), ("n_edges", np.int64),  # address and number; filled by run_arrange, as the next
    ("n_distinct", np.int64),   # most different features between the root and a leaf
])
# One node of a tree but its root, with the split above it; depth first, left before right.
EDGE = np.dtype([
    ("column", np.int32), ("rank", np.int32), ("is_right", np.int32), ("threshold", np.int32),
    ("depth", np.int32),     # 1: below the root
    ("above", np.int32),     # depth of the next edge above that has the same feature; 0 = none
    ("n_distinct", np.int32),  # different features from the root to here
    ("feature", np.int64),
    ("next", np.int64),      # address of the next edge that is not below this one
    ("share", np.float64),   # of the training rows at the node above
    ("passed", np.float64),  # the product of the shares of this feature's edges, from the root to here
    ("reached", np.float64),  # the product of all shares from the root to here
    ("leaf", np.int64),      # place of the leaf's values; −1 = inner
])
# What is known of an edge on the way to where a walk is, or, but for the first two, of the root.
LEVEL = np.dtype([
    ("edge", np.int64),     # its address
    ("passes", np.int64),   # whether the row passes this feature's edges, from the root to here
    ("passing", np.int64),  # which background rows do
    ("feature", np.int64), ("above", np.int64),  # as of the edge
    ("replaced_by", np.int64),  # depth of the next edge below of this feature, if that is still on the way
    ("n_row", np.int64), ("n_other", np.int64),  # features that the row passes, and those that it does not
])
VISIT = np.dtype([("node", np.int64), ("parent", np.int64), ("depth", np.int64)])
EDGE_BYTES, TREE_BYTES, LEVEL_BYTES, VISIT_BYTES = EDGE.itemsize, TREE.itemsize, LEVEL.itemsize, VISIT.itemsize
ARRANGE_LEVEL_BYTES = VISIT_BYTES + 8  # of the stack, for an edge's address
MASK_ROWS = 64  # background rows in a mask


@intrinsic
def divide(typingctx, a, b):
    """a / b, lane by lane."""
    def codegen(context, builder, signature, args):
        return builder.fdiv(*args)
    return f64x8(f64x8, f64x8), codegen


@intrinsic
def splat(typingctx, value):
    """One float64 in all eight lanes."""
    def codegen(context, builder, signature, args):
        kind = ir.VectorType(ir.DoubleType(), LANES)
        undefined, places = ir.Constant(kind, ir.Undefined), ir.VectorType(ir.IntType(32), LANES)
        one = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, undefined, ir.Constant(places, [0] * LANES))
    return f64x8(types.float64), codegen


@intrinsic
def count_ones(typingctx, value):
    """How many bits are 1."""
    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])
    return types.intp(types.intp), codegen


# ---- edges -------------------------------------------------------------------------------------------------

@inner
def _expect_leaf(game, tree, place, reached):
    """Add a leaf to what the trees are expected to say."""
    out = game.expected + tree.first_output * 8
    for k in range(tree.width):
        store(out + k * 8, load(out + k * 8) + reached * load(game.values + (place + k) * 8))


@inner
def _leave_edges(game, path, depth, last, edge_at):
    """Leave the edges from this depth up to the last one."""
    for d in range(depth, last - 1, -1):
        edge = record(load_i64(path + d * 8), EDGE)
        edge.next = edge_at
        store_i64(game.marks + edge.feature * 8, edge.above)


@inner
def _arrange_tree(game, tree, edge_at):
    """Write the edges of a tree, depth first; → the address after them."""
    nodes, places, cover = game.nodes + tree.root * 8, game.places + tree.root * 8, game.cover + tree.root * 8
    thresholds = game.thresholds + tree.root * 8
    stack, path, top = game.stack, game.stack + (tree.depth + 2) * VISIT_BYTES, 0
    depth = 0
    node = 0
    if load_i64(nodes) & RANK_MASK == LEAF:
        _expect_leaf(game, tree, load_i64(places), 1.0)
    while True:
        word = load_i64(nodes + node * 8)
        if word & RANK_MASK != LEAF:  # the right child for later, then the left one
            child = shift_right(word, 40)
            visit = record(stack + top * VISIT_BYTES, VISIT)
            visit.node, visit.parent, visit.depth = child + 1, node, depth + 1
            top += 1
            right, parent, node, new_depth = 0, node, child, depth + 1
        elif top > 0:
            top -= 1
            visit = record(stack + top * VISIT_BYTES, VISIT)
            right, parent, node, new_depth = 1, visit.parent, visit.node, visit.depth
        else:
            _leave_edges(game, path, depth, 1, edge_at)
            return edge_at
        _leave_edges(game, path, depth, new_depth, edge_at)
        depth = new_depth
        edge = record(edge_at, EDGE)
        word = load_i64(nodes + parent * 8)
        edge.column, edge.rank, edge.is_right = shift_right(word, 16) & COLUMN_MASK, word & RANK_MASK, right
        edge.threshold = load_i64(thresholds + parent * 8)
        edge.feature = load_i64(game.features + edge.column * 8)
        edge.depth, edge.above = depth, load_i64(game.marks + edge.feature * 8)
        edge.share = load(cover + node * 8) / load(cover + parent * 8) if game.cover != 0 else 0.0
        edge.passed = edge.share
        if edge.above > 0:
            edge.passed *= record(load_i64(path + edge.above * 8), EDGE).passed
        edge.n_distinct, edge.reached = 1 if edge.above == 0 else 0, edge.share
        if depth > 1:
            edge_above = record(load_i64(path + (depth - 1) * 8), EDGE)
            edge.n_distinct += edge_above.n_distinct
            edge.reached *= edge_above.reached
        tree.n_distinct = max(tree.n_distinct, edge.n_distinct)
        is_leaf = load_i64(nodes + node * 8) & RANK_MASK == LEAF
        edge.leaf = load_i64(places + node * 8) if is_leaf else -1
        if is_leaf:
            _expect_leaf(game, tree, edge.leaf, edge.reached)
        store_i64(game.marks + edge.feature * 8, depth)
        store_i64(path + depth * 8, edge_at)
        edge_at += EDGE_BYTES


def run_arrange(state):
    """Fill the edges of all trees, and what they say of each tree."""
    game = record(state, GAME)
    at = game.edges
    for t in range(game.n_trees):
        tree = record(game.trees + t * TREE_BYTES, TREE)
        tree.edges, tree.n_distinct = at, 0
        at = _arrange_tree(game, tree, at)
        tree.n_edges = (at - tree.edges) // EDGE_BYTES
    return 0


# ---- path-dependent ----------------------------------------------------------------------------------------

# A level of the stack: the LEVEL, then vectors: P, 1/f, what G is multiplied by for φ, and G of
# each output of the tree.
# A quadrature rule: its weights, then 1 − t and t, each n_vectors vectors.

@inner
def _finish_edge(game, tree, row_out, stack, level_bytes, n_bytes, depth):
    """Add to φ what the leaves below the edge at this depth give its feature, and to the G above."""
    at = stack + depth * level_bytes
    edge = record(record(at, LEVEL).edge, EDGE)
    gain, sums = at + LEVEL_BYTES + 2 * n_bytes, at + LEVEL_BYTES + 3 * n_bytes
    sums_above = sums - level_bytes
    gain_above = stack + edge.above * level_bytes + LEVEL_BYTES + 2 * n_bytes
    counts = edge.above == 0 or record(stack + edge.above * level_bytes, LEVEL).passes != 0
    out = row_out + (edge.feature * game.n_outputs + tree.first_output) * 8
    for k in range(tree.width):
        phi = zero()
        for j in range(0, n_bytes, VECTOR):
            g = load_f64(sums + j)
            if counts:
                phi = add(phi, mul(g, load_f64(gain + j)))
                if edge.above > 0:
                    phi = add(phi, mul(g, mul(splat(-1.0), load_f64(gain_above + j))))
            if depth > 1:
                store_f64(sums_above + j, add(load_f64(sums_above + j), g))
        if counts:
            store(out + k * 8, load(out + k * 8) + sum_lanes(phi))
        sums += n_bytes
        sums_above += n_bytes


@inner
def _enter_edge(game, tree, edge_at, columns, stack, level_bytes, n_bytes, rule):
    edge = record(edge_at, EDGE)
    at = stack + edge.depth * level_bytes
    level = record(at, LEVEL)
    level.edge = edge_at
    column = load_u16(columns + edge.column * 2)
    passes = 1 if (column > edge.rank) == (edge.is_right != 0) else 0
    inverse_above, passes_above = stack + edge.above * level_bytes + LEVEL_BYTES + n_bytes, 1
    if edge.above > 0:
        passes_above = record(stack + edge.above * level_bytes, LEVEL).passes
        passes &= passes_above
    level.passes = passes
    at += LEVEL_BYTES
    above = at - level_bytes
    passed, o = edge.passed, float(passes)
    # 1/f of a feature that the row does not pass stands without its share, which may be 0, for −z/f is −1/(1 − t).
    kept, gain = (passed, 1.0 - passed) if passes != 0 else (1.0, -1.0)
    for j in range(0, n_bytes, VECTOR):
        p = load_f64(above + j)
        if passes_above == 0:
            p = mul(p, splat(edge.share))  # the row had not passed before: the factor and 1/f stay as above
        else:
            rest, known = load_f64(rule + n_bytes + j), mul(load_f64(rule + 2 * n_bytes + j), splat(o))  # 1 − t, o · t
            p = mul(p, add(mul(rest, splat(passed)), known))
            if edge.above > 0:
                p = mul(p, load_f64(inverse_above + j))
            inverse = divide(splat(1.0), add(mul(rest, splat(kept)), known))
            store_f64(at + n_bytes + j, inverse)
            store_f64(at + 2 * n_bytes + j, mul(inverse, splat(gain)))
        store_f64(at + j, p)
        sums = at + 3 * n_bytes + j
        for k in range(tree.width):
            value = load(game.values + (edge.leaf + k) * 8) if edge.leaf >= 0 else 0.0
            store_f64(sums + k * n_bytes, mul(p, splat(value)))


@inner
def _explain_tree(game, tree, columns, row_out):
    n_vectors = (tree.n_distinct + 15) // 16
    n_bytes = n_vectors * VECTOR
    level_bytes = LEVEL_BYTES + (3 + tree.width) * n_bytes
    rule, stack = load_i64(game.rules + (n_vectors - 1) * 8), game.stack
    for j in range(0, n_bytes, VECTOR):
        store_f64(stack + LEVEL_BYTES + j, load_f64(rule + j))
    depth = 0
    for i in range(tree.n_edges):
        edge_at = tree.edges + i * EDGE_BYTES
        new_depth = record(edge_at, EDGE).depth
        while depth >= new_depth:
            _finish_edge(game, tree, row_out, stack, level_bytes, n_bytes, depth)
            depth -= 1
        _enter_edge(game, tree, edge_at, columns, stack, level_bytes, n_bytes, rule)
        depth = new_depth
    while depth > 0:
        _finish_edge(game, tree, row_out, stack, level_bytes, n_bytes, depth)
        depth -= 1


def run_path_dependent(state, rows, n_rows, background, n_background, out):
    """Shapley values of the expectation that the training rows' shares give."""
    game = record(state, GAME)
    for _ in range(n_rows):
        for t in range(game.n_trees):
            tree = record(game.trees + t * TREE_BYTES, TREE)
            if tree.n_edges > 0:
                _explain_tree(game, tree, rows, out)
        rows += game.column_bytes
        out += game.n_features * game.n_outputs * 8
    return 0


# ---- interventional ----------------------------------------------------------------------------------------

# A level of the stack: the LEVEL, then n_distinct + 1 masks, of those background rows that may reach the edge in a
# hybrid and of which just 0, 1, … features that the row passes do not pass. Two levels more are room for a list.

@inner
def _fill_masks(game, background, n):
    """Of each threshold, which of up to 64 background rows lie at or below it: one bit a row."""
    for c in range(game.n_columns):
        first, end = load_i64(game.ranges + c * 8), load_i64(game.ranges + c * 8 + 8)
        for i in range(first, end):
            store_i64(game.masks + i * 8, 0)
        for b in range(n):
            column = load_u16(background + b * game.column_bytes + c * 2)
            low, high = first, end
            while low < high:
                middle = (low + high) >> 1
                if load_i64(game.ranks + middle * 8) < column:
                    low = middle + 1
                else:
                    high = middle
            if low < end:
                store_i64(game.masks + low * 8, load_i64(game.masks + low * 8) | 1 << b)
        for i in range(first + 1, end):
            store_i64(game.masks + i * 8, load_i64(game.masks + i * 8) | load_i64(game.masks + i * 8 - 8))


@inner
def _enter_side(game, edge, columns, stack, level_bytes, all_rows):
    """Fill the edge's level; → the background rows that may reach it."""
    at = stack + edge.depth * level_bytes
    level, up = record(at, LEVEL), record(at - level_bytes, LEVEL)
    masks, masks_up = at + LEVEL_BYTES, at - level_bytes + LEVEL_BYTES
    passes = 1 if (load_u16(columns + edge.column * 2) > edge.rank) == (edge.is_right != 0) else 0
    left = load_i64(game.masks + edge.threshold * 8)
    passing = all_rows & ~left if edge.is_right != 0 else left
    passes_above, passing_above = 1, all_rows
    if edge.above > 0:
        above = record(stack + edge.above * level_bytes, LEVEL)
        above.replaced_by = edge.depth
        passes_above, passing_above = above.passes, above.passing
    passes &= passes_above
    level.passes, level.passing, level.above = passes, passing & passing_above, edge.above
    level.feature, level.replaced_by = edge.feature, 0
    level.n_row, level.n_other = up.n_row, up.n_other
    reaching = 0
    if passes != 0:  # rows that do not pass have one feature more that they do not pass
        moved, below = passing_above & ~passing, 0
        if edge.above == 0:
            level.n_row += 1
            store_i64(masks_up + level.n_row * 8, 0)
        for p in range(level.n_row + 1):
            mask = load_i64(masks_up + p * 8)
            store_i64(masks + p * 8, (mask & ~moved) | (below & moved))
            below = mask
            reaching |= mask
        return reaching
    if passes_above != 0:
        level.n_other += 1
        if edge.above > 0:
            level.n_row -= 1
    for p in range(level.n_row + 1):
        mask = load_i64(masks_up + p * 8) & level.passing
        store_i64(masks + p * 8, mask)
        reaching |= mask
    return reaching


@inner
def _list_masks(game, level, masks, listed):
    """List the masks that have rows, and the weight of a feature that the row passes beside each; → how many."""
    n = 0
    for p in range(1, level.n_row + 1):
        mask = load_i64(masks + p * 8)
        if mask != 0:
            store_i64(listed + n * 16, mask)
            store(listed + n * 16 + 8, load(game.weights + (p * game.n_weights + level.n_other) * 8))
            n += 1
    return n


@inner
def _weight_of_others(game, level, masks):
    """What a leaf's value counts for a feature that the row does not pass."""
    weight = 0.0
    if level.n_other > 0:
        for p in range(level.n_row + 1):
            n_rows = count_ones(load_i64(masks + p * 8))
            weight -= load(game.weights + (level.n_other * game.n_weights + p) * 8) * n_rows
    return weight


@inner
def _weigh_leaf(game, tree, edge, stack, level_bytes, row_out):
    """Add a leaf's values, for each background row that may reach it, to the features on the way to it."""
    at = stack + edge.depth * level_bytes
    masks, leaf, listed = at + LEVEL_BYTES, record(at, LEVEL), at + level_bytes
    n_listed = _list_masks(game, leaf, masks, listed)
    weight_of_others = _weight_of_others(game, leaf, masks)
    for depth in range(1, edge.depth + 1):
        level = record(stack + depth * level_bytes, LEVEL)
        last = level.replaced_by
        if last > 0 and last <= edge.depth and record(stack + last * level_bytes, LEVEL).above == depth:
            continue
        weight = weight_of_others
        if level.passes != 0:
            weight, not_passing = 0.0, ~level.passing
            for i in range(0, n_listed * 16, 16):
                weight += load(listed + i + 8) * count_ones(load_i64(listed + i) & not_passing)
        out = row_out + (level.feature * game.n_outputs + tree.first_output) * 8
        for k in range(tree.width):
            store(out + k * 8, load(out + k * 8) + weight * load(game.values + (edge.leaf + k) * 8))


@inner
def _explain_hybrids(game, tree, columns, all_rows, row_out):
    stack, level_bytes = game.stack, LEVEL_BYTES + (tree.n_distinct + 1) * 8
    top = record(stack, LEVEL)
    top.n_row, top.n_other = 0, 0
    store_i64(stack + LEVEL_BYTES, all_rows)
    at, end = tree.edges, tree.edges + tree.n_edges * EDGE_BYTES
    while at < end:
        edge = record(at, EDGE)
        if _enter_side(game, edge, columns, stack, level_bytes, all_rows) == 0:
            at = edge.next
        else:
            if edge.leaf >= 0:
                _weigh_leaf(game, tree, edge, stack, level_bytes, row_out)
            at += EDGE_BYTES


def run_interventional(state, rows, n_rows, background, n_background, out):
    """Shapley values of the expectation over the background rows, times their number."""
    game = record(state, GAME)
    for first in range(0, n_background, MASK_ROWS):
        n = min(MASK_ROWS, n_background - first)
        all_rows = -1 if n == MASK_ROWS else (1 << n) - 1
        _fill_masks(game, background + first * game.column_bytes, n)
        row, row_out = rows, out
        for _ in range(n_rows):
            for t in range(game.n_trees):
                _explain_hybrids(game, record(game.trees + t * TREE_BYTES, TREE), row, all_rows, row_out)
            row += game.column_bytes
            row_out += game.n_features * game.n_outputs * 8
    return 0
