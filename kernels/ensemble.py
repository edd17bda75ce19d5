"""Tree ensembles as the libraries that train them have them: what every reader gives and `trees` compiles.

The rule to keep: this is data alone, in the training library's own terms and in float64; a decision is exactly
what the library would decide, and `check` has seen every array before anything walks a tree.
"""

from dataclasses import dataclass, field

import numpy as np

from kernels.errors import ModelError

# What a numeric split does with a value that is missing.
NAN_RIGHT = 0    # NaN goes right
NAN_LEFT = 1     # NaN goes left
NAN_IS_ZERO = 2  # NaN is taken as 0.0 and compared (LightGBM, missing type None)
ZERO_RIGHT = 3   # NaN and |x| <= ZERO_THRESHOLD go right (LightGBM, missing type Zero)
ZERO_LEFT = 4    # NaN and |x| <= ZERO_THRESHOLD go left

ZERO_THRESHOLD = float(np.float32(1e-35))  # LightGBM's kZeroThreshold: what is as near to zero is zero

# How a category is found in a value, before it is looked for in a set.
EXACT = 0               # the value itself (ONNX)
TRUNCATED = 1           # its whole part (LightGBM: -0.5 is category 0)
TRUNCATED_POSITIVE = 2  # the whole part of what is not below zero; anything below is no category (XGBoost)

# What becomes of the raw scores: the training library's own `predict` (n_outputs raw scores → predictions).
LINKS = (
    "identity",       # s
    "sigmoid",        # 1 / (1 + exp(-factor * s)), each score
    "exp",            # exp(s)
    "softmax",        # over the scores
    "log1p_exp",      # log(1 + exp(s))
    "signed_square",  # sign(s) * s²
    "hinge",          # 1 where s > 0, else 0
    "argmax",         # index of the largest score
)

SUM, AVERAGE, MIN, MAX = range(4)


@dataclass(frozen=True)
class TreeEnsemble:
    """Binary decision trees by arrays over all nodes, tree after tree.

    A row at inner node i goes to `left[i]` where `x[feature[i]] <= threshold[i]`, or, where `category_set[i]` is
    not −1, where x[feature[i]] is in that set; else to `right[i]`. A leaf adds `leaf_values[leaf[i] + k]` to
    output `first_output[t] + k` of its tree t, k < `output_width[t]`.
    """

    n_features: int
    n_outputs: int
    root: np.ndarray          # (n_trees) int64: first node of each tree
    first_output: np.ndarray  # (n_trees) int64
    output_width: np.ndarray  # (n_trees) int64, 1 or more
    feature: np.ndarray       # (n_nodes) int64; −1 = a leaf
    threshold: np.ndarray     # (n_nodes) float64; not read at leaves and category splits; may be infinite, never NaN
    left: np.ndarray          # (n_nodes) int64: node numbers; not read at leaves
    right: np.ndarray         # (n_nodes) int64
    missing: np.ndarray       # (n_nodes) uint8: NAN_RIGHT …; of category splits NAN_RIGHT or NAN_LEFT
    leaf: np.ndarray          # (n_nodes) int64: a leaf's place in leaf_values; not read elsewhere
    leaf_values: np.ndarray   # (n) float64
    base: np.ndarray          # (n_outputs) float64: added to the aggregated trees
    category_set: np.ndarray | None = None  # (n_nodes) int64: which of `sets`; −1 = a numeric split
    sets: tuple[np.ndarray, ...] = ()       # each sorted float64 without repetition
    category_rule: int = EXACT
    cover: np.ndarray | None = None         # (n_nodes) float64: weight of the training rows that reached the node
    aggregate: int = SUM
    rounds_inputs: bool = False  # values are rounded to float32 before they are compared
    rounds_sums: bool = False    # scores are summed in float32, `base` first, then tree after tree

    def check(self) -> None:
        """Raise ModelError unless every array fits, every tree is a tree, and no number is NaN."""
        n_nodes, n_trees = len(self.feature), len(self.root)
        if not n_trees or not n_nodes:
            raise ModelError("expected one tree or more")
        if self.n_features < 1 or self.n_outputs < 1:
            raise ModelError("expected one feature and one output or more")
        for name in ("threshold", "left", "right", "missing", "leaf"):
            _expect(len(getattr(self, name)) == n_nodes, f"{n_nodes} nodes in {name}")
        for name in ("first_output", "output_width"):
            _expect(len(getattr(self, name)) == n_trees, f"{n_trees} trees in {name}")
        _expect(len(self.base) == self.n_outputs and np.isfinite(self.base).all(), "a finite base for each output")
        _expect(np.isfinite(self.leaf_values).all(), "finite leaf values")
        inner = self.feature >= 0
        _expect((self.feature < self.n_features).all() and (self.feature >= -1).all(),
                f"features from 0 to {self.n_features - 1} in the trees")
        _expect(not np.isnan(self.threshold[inner]).any(), "thresholds that are numbers")
        _expect((self.missing <= ZERO_LEFT).all(), "a known rule for missing values")
        last_output = self.first_output + self.output_width
        _expect((self.first_output >= 0).all() and (self.output_width >= 1).all()
                and (last_output <= self.n_outputs).all(), f"outputs from 0 to {self.n_outputs - 1} in the trees")
        if self.category_set is not None:
            _expect(len(self.category_set) == n_nodes and (self.category_set >= -1).all()
                    and (self.category_set < len(self.sets)).all(), "category sets that exist")
        if self.cover is not None:
            _expect(len(self.cover) == n_nodes and np.isfinite(self.cover).all() and (self.cover >= 0).all(),
                    f"a cover for each of {n_nodes} nodes")
        self._check_shape(inner)

    def _check_shape(self, inner: np.ndarray) -> None:
        """Every node has one parent or is one tree's root, and every tree is reached from its root."""
        n_nodes = len(self.feature)
        children = np.concatenate([self.left[inner], self.right[inner]])
        _expect(len(children) == 0 or (children.min() >= 0 and children.max() < n_nodes), "children that exist")
        _expect(self.root.min() >= 0 and self.root.max() < n_nodes, "roots that exist")
        parents = np.bincount(np.concatenate([children, self.root]), minlength=n_nodes)
        _expect((parents == 1).all(), "trees without cycles: one parent for every node but the roots")
        widths, level, n_seen = self.output_width, self.root, 0
        while len(level):  # without cycles every node is seen once; a cycle apart from all roots never is
            n_seen += len(level)
            leaves = ~inner[level]
            first = self.leaf[level[leaves]]
            _expect((first >= 0).all() and (first + widths[leaves] <= len(self.leaf_values)).all(),
                    "leaf values that exist")
            nodes, widths = level[~leaves], widths[~leaves]
            level, widths = np.concatenate([self.left[nodes], self.right[nodes]]), np.concatenate([widths, widths])
        _expect(n_seen == n_nodes, "trees without cycles: every node below a root")


def _expect(condition: bool | np.bool_, what: str) -> None:
    if not condition:
        raise ModelError(f"expected {what}")


@dataclass(frozen=True)
class Booster:
    """A tree ensemble read from a training library's file, and what is known of its inputs and outputs."""

    ensemble: TreeEnsemble
    link: str                  # one of LINKS
    model_type: str            # lightgbm, xgboost
    n_classes: int             # columns of predict_proba; 0 = a regression. 2 with one output: [1 − p, p]
    link_factor: float = 1.0   # of "sigmoid"
    feature_names: tuple[str, ...] | None = None
    # For each feature None, or what the codes 0, 1, … of a category stand for (pandas): all strings or all numbers.
    categories: tuple[tuple[str, ...] | tuple[float, ...] | None, ...] | None = None
    version: str = field(default="1")
