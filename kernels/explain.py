"""Exact Shapley values: how much each feature of a row moved the model's raw score away from what is expected.

The rule to keep: exact or refused, never approximated. The game is stated: its players are the features of a row as
the model takes them (not the columns that it makes of them), its payoff is the raw score, before any link function;
a feature that is not in the coalition is

- with a background set: what it is in a background row, all rows alike (interventional, the marginal expectation);
- without one, of trees: unknown, so that each split on it sends on the share of the training rows that went each way
  (path-dependent), which the model's file must tell.

Lundberg et al., From local explanations to global understanding with explainable AI for trees (2020).
"""

import ctypes
import functools
import threading
from dataclasses import dataclass, replace

import numpy as np

from kernels import quants, trees
from kernels.ensemble import AVERAGE, NAN_IS_ZERO, NAN_LEFT, SUM, ZERO_LEFT, ZERO_RIGHT
from kernels.errors import ModelError
from kernels.native import IDENTITY
from kernels.row_ops import REDUCE_CODES, run_steps
from kernels.step import Step
from kernels.tabular import Signature, TabularModel

MAX_STACK_BYTES = 1 << 26  # what a walk remembers
MAX_DISTINCT = 512        # features above a leaf: the tables of weights grow with the square
SHARE_TOLERANCE = 1e-3    # XGBoost's covers are sums in float32
KERNEL_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_ssize_t] * 6)
ARRANGE_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_ssize_t)

CONSTANT, MIXED = -1, -2  # where a column comes from, if not from one feature

# What may stand before the score, column by column, and after it, where it makes predictions of scores.
BY_COLUMN = {"prepare", "unary", "binary", "where", "lookup"}
LINK_OPS = {"unary", "binary", "where", "lookup", "scale", "move", "reduce"}
CHOICES = {REDUCE_CODES[name] for name in ("argmax", "argmin", "argmax_last", "argmin_last")}


@dataclass(frozen=True)
class Explanation:
    """values.sum(axis=1) + base_values is the raw score, of every row and output."""

    values: np.ndarray       # (n, n_features, n_outputs) float64
    base_values: np.ndarray  # (n_outputs) float64: the score that is expected when nothing of a row is known
    scores: np.ndarray       # (n, n_outputs) float64: the model's own raw scores


def explain(model: TabularModel, X, background=None) -> Explanation:
    """The Shapley values of the rows X (n, n_features) of a model, against background rows (k, n_features) if given.

    Raises as `Explainer` and its `explain` do.
    """
    return Explainer(model).explain(X, background)


def reason_codes(values: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The k features of largest value, whatever its sign: (feature, value), largest first, equal ones in order.

    `values` (n_features) are of one row and output.
    """
    order = np.argsort(-np.abs(values), kind="stable")[:k]
    return [(int(feature), float(values[feature])) for feature in order]


class Explainer:
    """Explains one model; safe to call from several threads.

    Raises ModelError for a model that has no exact explanation: anything but one sum or average of trees, or one
    linear layer, after steps that each make a column from one feature, and before link functions only.
    """

    def __init__(self, model: TabularModel) -> None:
        if not isinstance(model, TabularModel):
            raise ModelError("this kind of model has no exact explanation")
        program = model.program
        number = _score_of(model)
        step = program.steps[number - 1]
        sources = _sources(program.n_features, program.steps[:number - 1])
        self.n_features, self.n_outputs = program.n_features, step.width
        self._model, self._before = model, program.steps[:number - 1]
        self._input, features = step.inputs[0], sources[step.inputs[0]]
        if (features == MIXED).any():
            raise _refusal("a column is made of several features")
        scored = step._replace(numbers=step.numbers | {"activation": IDENTITY}) if step.op == "dense" else step
        steps = (*self._before, scored)
        names, categories = model.signature.feature_names, model.signature.categories
        signature = Signature(model.n_features, names, None, "regression", categories, model.signature.unknown)
        self._scorer = TabularModel(model.name, model.version, model.model_type, signature, replace(
            program, steps=steps, prediction=number, probabilities=0, n_prediction_steps=number, checked=(number,)),
            takes_missing_in=model.takes_missing_in)
        self._game: _Linear | _Trees = (_Linear if step.op == "dense" else _Trees)(step, features, self.n_features)

    @property
    def needs_background(self) -> bool:
        """Whether the model's file alone does not say what is expected."""
        return self._game.needs_background

    def work(self, n_rows: int, n_background: int) -> int:
        """About how many nanoseconds so many rows take, against so many background rows; 0 = none."""
        return n_rows * self._game.work(n_background)

    def explain(self, X, background=None) -> Explanation:
        """The Shapley values of the rows X (n, n_features), against background rows (k, n_features) if given.

        Raises ModelError as `TabularModel.predict` does, and where a background set is needed or empty.
        """
        if background is None and self.needs_background:
            raise ModelError("expected background rows: the model's file alone does not say what is expected of a row")
        scores = self._scores(X)
        x, base = self._inputs(X), self._game.base
        others = x[:0]
        with np.errstate(over="ignore", invalid="ignore"):
            if background is not None:
                base, others = self._scores(background).mean(axis=0), self._inputs(background)
            values = self._game.values(x, others)
        if not (np.isfinite(values).all() and np.isfinite(base).all()):
            raise ModelError("the inputs are too large: a value overflows")
        return Explanation(values, base, scores)

    def _scores(self, X) -> np.ndarray:
        scores = self._scorer.predict(X).reshape(-1, self.n_outputs)
        if not len(scores):
            raise ModelError("expected one row or more")
        return scores

    def _inputs(self, X) -> np.ndarray:
        """What the score is made of: (n, width) float64."""
        is_numbers = isinstance(X, np.ndarray) and X.dtype.kind in "fiu"
        rows = X.astype(np.float64) if is_numbers else self._model.encode(X)
        return np.ascontiguousarray(run_steps(self._before, [rows])[self._input])


# ---- which models ------------------------------------------------------------------------------------------

def _refusal(why: str) -> ModelError:
    return ModelError(f"the model has no exact explanation: {why}")


def _score_of(model: TabularModel) -> int:
    """The number of the value that is the raw score."""
    steps = model.program.steps
    numbers = [i for i, step in enumerate(steps, 1) if step.op in ("dense", "trees")]
    if len(numbers) != 1:
        raise _refusal("it is not one sum of trees or one linear layer")
    number = numbers[0]
    for i, step in enumerate(steps[number:], number + 1):
        if step.op not in LINK_OPS or not all(value >= number for value in step.inputs):
            raise _refusal("its scores are not what its predictions are made of alone")
        is_for_prediction = i <= model.program.n_prediction_steps  # probabilities may be made to add up to 1
        if is_for_prediction and step.op == "reduce" and int(step.numbers["function"]) not in CHOICES:
            raise _refusal("its scores are joined")
    if model.program.prediction < number:
        raise _refusal("its scores are not what its predictions are made of alone")
    step = steps[number - 1]
    if step.op == "trees" and int(step.numbers["aggregate"]) not in (SUM, AVERAGE):
        raise _refusal("its trees are not added")
    if step.op == "dense" and step.width != len(step.arrays["bias"]):
        raise _refusal("it is not one linear layer")
    return number


def _sources(n_features: int, steps: tuple[Step, ...]) -> list[np.ndarray]:
    """For each value the feature that each of its columns is made of, (width) int64, or CONSTANT or MIXED."""
    sources = [np.arange(n_features)]
    for step in steps:
        inputs = [sources[value] for value in step.inputs]
        sources.append(_source(step, inputs))
    return sources


def _source(step: Step, inputs: list[np.ndarray]) -> np.ndarray:
    if step.op == "move":
        every = [*inputs, np.full(len(step.arrays["constants"]), CONSTANT)]
        return np.concatenate([every[source][first:first + n] for source, first, n in step.arrays["runs"].tolist()])
    if step.op == "onehot":
        return np.repeat(inputs[0], int(step.numbers["group"]))
    if step.op in BY_COLUMN:
        return functools.reduce(_join, inputs)
    return np.full(step.width, MIXED)


def _join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a == b, a, np.where(b == CONSTANT, a, np.where(a == CONSTANT, b, MIXED)))


# ---- linear models -----------------------------------------------------------------------------------------

class _Linear:
    """w · (x − the mean of the background), column by column."""

    needs_background = True
    base = np.empty(0)

    def __init__(self, step: Step, features: np.ndarray, n_features: int) -> None:
        weights = quants.dequantize(step.arrays["weights"], int(step.numbers["tensor_type"]))
        self.weights = weights[:, :len(features)]  # (n_outputs, width)
        self.features, self.n_features = features, n_features

    def work(self, n_background: int) -> int:
        return 10 * self.weights.size

    def values(self, x: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n, n_features, n_outputs) of the rows x (n, width) against `others` (k, width)."""
        of_columns = (x - others.mean(axis=0))[:, :, None] * self.weights.T
        if np.array_equal(self.features, np.arange(self.n_features)):
            return of_columns
        values = np.zeros((len(x), self.n_features, len(self.weights)))
        for column, feature in enumerate(self.features.tolist()):
            if feature != CONSTANT:
                values[:, feature] += of_columns[:, column]
        return values


# ---- trees -------------------------------------------------------------------------------------------------

_COMPILING = threading.Lock()


def _kernels():
    """The C callbacks that arrange edges, and that play the path-dependent and the interventional game."""
    with _COMPILING:
        return _compiled()


@functools.cache
def _compiled():
    from kernels import explain_kernels as native  # numba takes half a second to import
    from kernels.compiled import cfunc
    return (cfunc(native.ARRANGE_SIGNATURE)(native.run_arrange),
            cfunc(native.EXPLAIN_SIGNATURE)(native.run_path_dependent),
            cfunc(native.EXPLAIN_SIGNATURE)(native.run_interventional))


class _Trees:
    """Sums of trees, by the kernels of `explain_kernels`."""

    def __init__(self, step: Step, features: np.ndarray, n_features: int) -> None:
        from kernels import explain_kernels as native
        arrays, forest = step.arrays, trees.forest_of(step)
        self.step, self.columns = step, _Columns(step)
        self.n_features = n_features + 1  # what is constant differs nowhere: it may pass for one more feature
        self.scale = 1.0 / len(forest.roots) if step.numbers["aggregate"] == AVERAGE else 1.0
        cover = _usable_cover(step, forest)
        self.needs_background = cover is None
        specs, self.trees = arrays["specs"], np.zeros(len(forest.roots), native.TREE)
        self.trees["root"], self.trees["depth"] = forest.roots, forest.depths
        self.trees["first_output"], self.trees["width"] = arrays["first_output"], arrays["output_width"]
        features = np.where(features == CONSTANT, n_features, features)
        columns = np.repeat(features[specs[:, trees.FEATURE]], specs[:, trees.N_COLUMNS])
        expected, edges = np.zeros(step.width), np.zeros(len(arrays["node_columns"]), native.EDGE)
        ranges, ranks, thresholds = _thresholds(step, len(columns))
        pointed: dict[str, np.ndarray] = {
            "trees": self.trees, "nodes": _packed(step, forest), "places": forest.place, "values": arrays["values"],
            "features": columns, "ranges": ranges, "ranks": ranks, "thresholds": thresholds, "expected": expected,
            "edges": edges}
        if cover is not None:
            pointed["cover"] = cover
        self.owners: list[object] = [pointed]
        self.game = np.zeros(1, native.GAME)
        self.game["n_trees"], self.game["n_outputs"] = len(self.trees), step.width
        self.game["n_features"], self.game["column_bytes"] = self.n_features, 2 * len(columns)
        self.game["n_columns"], self.n_thresholds = len(columns), len(ranks)
        for name, array in pointed.items():
            self.game[name] = array.ctypes.data
        game, scratch = self._with_scratch((int(forest.depths.max()) + 2) * native.ARRANGE_LEVEL_BYTES)
        ARRANGE_TYPE(_kernels()[0].address)(game.ctypes.data)
        del scratch
        self.base = expected * self.scale + arrays["base"]
        self.leaf_levels = int(edges["depth"][edges["leaf"] >= 0].sum())
        self.n_vectors = -(-self.trees["n_distinct"] // 16)  # (n_trees): 16 features need a vector of points
        self._make_tables(int(self.trees["n_distinct"].max()))

    def _make_tables(self, n_distinct: int) -> None:
        """Quadrature rules, and the weights of the interventional game."""
        if n_distinct > MAX_DISTINCT:
            raise _refusal(f"more than {MAX_DISTINCT} features decide on the way to a leaf")
        rules = {n: _quadrature(n) for n in np.unique(self.n_vectors).tolist() if n}
        addresses = np.zeros(max(rules, default=1), np.int64)
        for n, rule in rules.items():
            addresses[n - 1] = rule.ctypes.data
        weights = _pair_weights(n_distinct)
        self.game["rules"], self.game["weights"] = addresses.ctypes.data, weights.ctypes.data
        self.game["n_weights"] = n_distinct + 1
        self.owners += [rules, addresses, weights]

    def work(self, n_background: int) -> int:
        """Nanoseconds a row, as measured."""
        n_edges, width = self.trees["n_edges"], self.trees["width"]
        of_trees = (n_edges * self.n_vectors * (20 + 8 * width)).sum()
        if n_background:
            of_block = 40 * n_edges.sum() + self.leaf_levels * (2 + width.max())
            of_trees = -(-n_background // 64) * of_block
        return int(of_trees) + 10 * self.n_features * self.step.width

    def values(self, x: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n, n_features, n_outputs) of the rows x (n, width) against `others` (k, width), or none: path-dependent."""
        from kernels import explain_kernels as native
        columns, background = self.columns.of(x), self.columns.of(others)
        level = 8 * (self.trees["n_distinct"] + 1)
        if not len(others):
            level = native.VECTOR * (3 + self.trees["width"]) * self.n_vectors
        game, scratch = self._with_scratch(int(((native.LEVEL_BYTES + level) * (self.trees["depth"] + 3)).max()))
        out = np.zeros((len(x), self.n_features, self.step.width))
        kernel = KERNEL_TYPE(_kernels()[2 if len(others) else 1].address)  # ctypes lets go of the GIL for the call
        kernel(game.ctypes.data, columns.ctypes.data, len(x), background.ctypes.data, len(background), out.ctypes.data)
        del scratch
        return out[:, :-1] * (self.scale / max(len(background), 1))

    def _with_scratch(self, stack_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        """(the GAME with scratch for one call, the scratch)."""
        if stack_bytes > MAX_STACK_BYTES:
            raise _refusal(f"its trees are too deep and wide: {MAX_STACK_BYTES:,} bytes hold no walk")
        game, n = self.game.copy(), self.n_features + self.n_thresholds
        scratch = np.zeros(n + stack_bytes // 8)
        game["marks"], game["masks"] = scratch.ctypes.data, scratch[self.n_features:].ctypes.data
        game["stack"] = scratch[n:].ctypes.data
        return game, scratch


def _thresholds(step: Step, n_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the thresholds of each column begin, (n_columns + 1), their ranks, and that of each inner node; int64."""
    columns = step.arrays["node_columns"].astype(np.int64)
    inner, thresholds = columns >= 0, np.zeros(len(columns), np.int64)
    keys, thresholds[inner] = np.unique(columns[inner] << 16 | step.arrays["node_ranks"][inner], return_inverse=True)
    return np.searchsorted(keys, np.arange(n_columns + 1) << 16), keys & 0xFFFF, thresholds


def _packed(step: Step, forest: trees.Forest) -> np.ndarray:
    """The nodes as the kernels read them, (n_nodes) uint64."""
    columns = np.maximum(step.arrays["node_columns"], 0).astype(np.uint64)
    left = forest.left.astype(np.uint64)
    return left << np.uint64(40) | columns << np.uint64(16) | step.arrays["node_ranks"].astype(np.uint64)


class _Columns:
    """`trees.columns_of` for a few rows: one search for all specs of numbers, whose edges are keys (spec, edge)."""

    def __init__(self, step: Step) -> None:
        specs, edges = step.arrays["specs"], step.arrays["edges"]
        is_category = specs[:, trees.RULE] >= trees.CATEGORY
        of_category = np.repeat(is_category, specs[:, trees.N_EDGES])
        self.is_category = np.repeat(is_category, specs[:, trees.N_COLUMNS])
        self.others = step._replace(arrays=step.arrays | {"specs": specs[is_category], "edges": edges[of_category]})
        self.feature, self.rule, self.n_edges, _ = specs[~is_category].T
        self.spec, self.first = np.arange(len(self.feature)), np.cumsum(self.n_edges) - self.n_edges
        self.keys = _pairs(np.repeat(self.spec, self.n_edges), edges[~of_category])
        self.goes_left = np.isin(self.rule, (NAN_LEFT, ZERO_LEFT))
        self.zero_is_missing = np.isin(self.rule, (ZERO_LEFT, ZERO_RIGHT))
        self.rounds = bool(step.numbers["rounds_inputs"])

    def of(self, x: np.ndarray) -> np.ndarray:
        """The columns (n, n_columns) uint16 of rows (n, width)."""
        columns = np.empty((len(x), len(self.is_category)), np.uint16)
        if self.is_category.any():
            columns[:, self.is_category] = trees.columns_of(self.others, x)
        value = x[:, self.feature]
        if self.rounds:
            value = value.astype(np.float32).astype(np.float64)
        is_nan = np.isnan(value)
        value = np.where(is_nan, 0.0, value)
        missing = np.where(self.zero_is_missing, np.abs(value) <= trees.ZERO_THRESHOLD, is_nan)
        rank = np.searchsorted(self.keys, _pairs(np.broadcast_to(self.spec, value.shape), value)) - self.first
        is_missing = missing & (self.rule != NAN_IS_ZERO)
        columns[:, ~self.is_category] = np.where(is_missing, np.where(self.goes_left, 0, self.n_edges), rank)
        return columns


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Complex numbers, which numpy orders by the first and then the second of their parts."""
    pairs = np.empty(second.shape, np.complex128)
    pairs.real, pairs.imag = first, second
    return pairs


def _usable_cover(step: Step, forest: trees.Forest) -> np.ndarray | None:
    """The training rows at each node, (n_nodes) float64; None unless they add up at every split."""
    cover = step.arrays.get("cover")
    if cover is None:
        return None
    inner = np.flatnonzero(step.arrays["node_columns"] >= 0)
    left = np.repeat(forest.roots, step.arrays["tree_sizes"])[inner] + forest.left[inner]
    parents = cover[inner]
    with np.errstate(over="ignore"):
        adds_up = np.abs(cover[left] + cover[left + 1] - parents) <= SHARE_TOLERANCE * parents
    return np.ascontiguousarray(cover) if (adds_up & (parents > 0)).all() else None


def _quadrature(n_vectors: int) -> np.ndarray:
    """Gauss and Legendre's rule on [0, 1] of 8 · n_vectors points: (3, points) weights, 1 − t, t."""
    x, w = np.polynomial.legendre.leggauss(8 * n_vectors)
    return np.array([w, 1 - x, 1 + x]) / 2


def _pair_weights(n: int) -> np.ndarray:
    """(p − 1)! q! / (p + q)! at [p, q], (n + 1, n + 1) float64; 0 where p is."""
    p, weights = np.arange(1, n + 1), np.zeros((n + 1, n + 1))
    weights[1:, 0] = 1 / p
    for q in range(1, n + 1):
        weights[1:, q] = weights[1:, q - 1] * q / (p + q)
    return weights
