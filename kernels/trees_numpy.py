"""Tree ensembles walked in numpy, level by level: the reference that the native kernel must equal to the bit.

The rule to keep: every decision and every sum is the one that the docstrings of `kernels/ensemble.py` define, in their
order; speed is bought only by walking many (row, tree) pairs at once.
"""

import numpy as np

from kernels.ensemble import (AVERAGE, MAX, MIN, NAN_IS_ZERO, NAN_LEFT, TRUNCATED, TRUNCATED_POSITIVE, ZERO_LEFT,
                              ZERO_RIGHT, ZERO_THRESHOLD, TreeEnsemble)
from kernels.errors import ModelError

# (row, tree) pairs that are walked at once: about 30 bytes each, so that a block stays in the second-level cache.
PAIRS = 1 << 16


def raw_scores(ensemble: TreeEnsemble, X: np.ndarray) -> np.ndarray:
    """Aggregated leaf values plus base of each row: (n, n_features or more) numbers → (n, n_outputs) float64.

    `ensemble` has passed `check`. AVERAGE divides the sum by the number of trees; MIN and MAX are over the trees
    that write an output, 0 where none does. Raises ModelError where X is no matrix or has too few columns.
    """
    if X.ndim != 2 or X.shape[1] < ensemble.n_features:
        raise ModelError(f"expected a matrix of rows with {ensemble.n_features} features")
    with np.errstate(over="ignore", invalid="ignore"):
        values = X.astype(np.float32).astype(np.float64) if ensemble.rounds_inputs else X.astype(np.float64)
    walk = _Walk(ensemble)
    scores = np.empty((len(values), ensemble.n_outputs))
    n_trees = len(ensemble.root)
    n_rows = max(1, PAIRS // n_trees)
    trees_at_once = min(n_trees, PAIRS)
    for start in range(0, len(values), n_rows):
        rows = values[start:start + n_rows]
        sums = _start(ensemble, len(rows))
        for first in range(0, n_trees, trees_at_once):
            leaves = walk.leaves(rows, slice(first, first + trees_at_once))
            for tree, reached in enumerate(leaves.T, start=first):
                _add(ensemble, sums, tree, reached)
        scores[start:start + n_rows] = _finish(ensemble, sums)
    return scores


def _start(ensemble: TreeEnsemble, n_rows: int) -> np.ndarray:
    first = {MIN: np.inf, MAX: -np.inf}.get(ensemble.aggregate, 0.0)
    sums = np.full((n_rows, ensemble.n_outputs), first, np.float32 if ensemble.rounds_sums else np.float64)
    return sums + ensemble.base.astype(sums.dtype) if _base_is_first(ensemble) else sums


def _base_is_first(ensemble: TreeEnsemble) -> bool:
    return ensemble.rounds_sums and ensemble.aggregate not in (AVERAGE, MIN, MAX)


def _add(ensemble: TreeEnsemble, sums: np.ndarray, tree: int, reached: np.ndarray) -> None:
    """Take what one tree says of each row, (n_rows) leaves reached, into the sums (n_rows, n_outputs)."""
    first, width = ensemble.first_output[tree], ensemble.output_width[tree]
    said = ensemble.leaf_values[ensemble.leaf[reached][:, None] + np.arange(width)]  # (n_rows, width)
    written = sums[:, first:first + width]
    combine = {MIN: np.minimum, MAX: np.maximum}.get(ensemble.aggregate, np.add)
    combine(written, said.astype(sums.dtype), out=written)


def _finish(ensemble: TreeEnsemble, sums: np.ndarray) -> np.ndarray:
    if ensemble.aggregate == AVERAGE:
        sums = sums / sums.dtype.type(len(ensemble.root))
    elif ensemble.aggregate in (MIN, MAX):
        sums = np.where(np.isinf(sums), sums.dtype.type(0), sums)
    return sums if _base_is_first(ensemble) else sums + ensemble.base.astype(sums.dtype)


class _Walk:
    """An ensemble laid out for walking: its category sets as one array, (n_sets + 1) bounds into it."""

    def __init__(self, ensemble: TreeEnsemble):
        self.ensemble = ensemble
        self.inner = ensemble.feature >= 0
        self.members = np.concatenate([np.empty(0), *ensemble.sets])
        self.bounds = np.concatenate([[0], np.cumsum([len(one) for one in ensemble.sets], dtype=np.int64)])

    def leaves(self, rows: np.ndarray, trees: slice) -> np.ndarray:
        """The leaf that each row reaches in each tree: (n_rows, n_features) float64 → (n_rows, n_trees) int64."""
        nodes = np.tile(self.ensemble.root[trees], (len(rows), 1))
        flat = nodes.reshape(-1)
        row_of = np.repeat(np.arange(len(rows)), nodes.shape[1])
        walking = np.flatnonzero(self.inner[flat])
        while len(walking):
            at = flat[walking]
            x = rows[row_of[walking], self.ensemble.feature[at]]
            flat[walking] = np.where(self._goes_left(at, x), self.ensemble.left[at], self.ensemble.right[at])
            walking = walking[self.inner[flat[walking]]]
        return nodes

    def _goes_left(self, at: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Whether values x (n) float64 go left at the inner nodes `at` (n)."""
        ensemble = self.ensemble
        rule = ensemble.missing[at]
        compared = np.where(np.isnan(x) & (rule == NAN_IS_ZERO), 0.0, x)
        left = compared <= ensemble.threshold[at]
        zero_rule = (rule == ZERO_LEFT) | (rule == ZERO_RIGHT)
        if ensemble.category_set is not None:
            which = ensemble.category_set[at]
            categories = np.flatnonzero(which >= 0)
            left[categories] = self._is_member(which[categories], x[categories])
            zero_rule &= which < 0
        missing = np.isnan(compared) | (zero_rule & (np.abs(x) <= ZERO_THRESHOLD))
        return np.where(missing, (rule == NAN_LEFT) | (rule == ZERO_LEFT), left)

    def _is_member(self, which: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Whether values x (n) are in the sets `which` (n): a binary search in each, all a step at a time."""
        if self.ensemble.category_rule in (TRUNCATED, TRUNCATED_POSITIVE):
            below_zero = (x < 0) & (self.ensemble.category_rule == TRUNCATED_POSITIVE)
            x = np.where(below_zero, np.nan, np.trunc(x))
        low, end = self.bounds[which], self.bounds[which + 1]
        high = end.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            above = open_ & (self.members[np.minimum(middle, len(self.members) - 1)] < x)
            low, high = np.where(above, middle + 1, low), np.where(open_ & ~above, middle, high)
        found = low < end
        found[found] = self.members[low[found]] == x[found]
        return found
