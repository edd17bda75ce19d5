"""Reader of XGBoost's model files, JSON and UBJSON, as `Booster.save_model` writes them (1.0 to 3.x).

The rule to keep: what XGBoost's own `Booster.predict` decides for a row is what the ensemble decides, bit for bit
in float32: all trees count, whatever `best_iteration` says. What a file may mean besides is refused by name.

https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html, and the schema that it links to
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from kernels import ubjson
from kernels.ensemble import NAN_LEFT, NAN_RIGHT, TRUNCATED_POSITIVE, Booster, TreeEnsemble
from kernels.errors import ModelError

JSON_START = re.compile(rb'\s*\{\s*["}]')  # in UBJSON a length follows the first brace
CATEGORICAL = 1            # split_type
N_CATEGORIES = 1 << 24     # values from here on are no category: float32 has no place for them (InvalidCat)
DELETED = (1 << 31) - 1    # split_indices of nodes that pruning left in the file
MAX_FEATURES = 1 << 24     # a row is this long; the file alone does not bound it
SMALLEST_ODDS = np.float32(1e-6)  # kRtEps: a base score for "logit" is kept from 0 and 1 by this
LAST_UNSORTED = (3, 3)     # later versions sort the quantiles of a row
FIRST_UNCUT = (3, 4)       # earlier versions cut a column's names, as UTF-8, where the characters would end
# `type` in "cats" → the layout of the categories' values; strings have none
CATEGORY_TYPES = {9: "i1", 10: "u1", 11: "i2", 12: "u2", 13: "i4", 14: "u4", 15: "i8", 16: "u8"}

Values = tuple[str, ...] | tuple[float, ...]


class Objective(NamedTuple):
    """What an objective makes of raw scores, and of `base_score` before the trees are added."""

    link: str = "identity"
    base: str = "identity"  # the inverse link: identity, logit, log
    classifies: bool = False


OBJECTIVES = {
    "reg:squarederror": Objective(),
    "reg:linear": Objective(),  # the name of reg:squarederror before 1.0
    "reg:squaredlogerror": Objective(),
    "reg:pseudohubererror": Objective(),
    "reg:absoluteerror": Objective(),
    "reg:quantileerror": Objective(),
    "reg:logistic": Objective("sigmoid", "logit"),
    "reg:gamma": Objective("exp", "log"),
    "reg:tweedie": Objective("exp", "log"),
    "count:poisson": Objective("exp", "log"),
    "survival:cox": Objective("exp", "log"),
    "survival:aft": Objective("exp", "log"),
    "rank:pairwise": Objective(),
    "rank:ndcg": Objective(),
    "rank:map": Objective(),
    "binary:logistic": Objective("sigmoid", "logit", classifies=True),
    "binary:logitraw": Objective(),  # a score: it has no probabilities
    "binary:hinge": Objective("hinge", classifies=True),
    "multi:softmax": Objective("argmax", classifies=True),
    "multi:softprob": Objective("softmax", classifies=True),
}


class Tree(NamedTuple):
    """One tree, in the terms of `TreeEnsemble` but with numbers that count from this tree's own start."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing: np.ndarray
    leaf: np.ndarray
    leaf_values: np.ndarray   # (n_leaves * output_width) float32
    category_set: np.ndarray
    sets: list[np.ndarray]
    cover: np.ndarray | None
    output_width: int


def read(data: bytes, name: str) -> Booster:
    """The booster in the bytes of a model file; `name` is the file's, for messages.

    Trees are gbtree or dart, one output a tree or vectors. Raises ModelError, with what was expected, where the
    bytes are not such a file, where a tree is not one, and on linear boosters and objectives not in OBJECTIVES.
    """
    try:
        return _booster(_document(data))
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None


def _document(data: bytes) -> Any:
    if not JSON_START.match(data):
        if not data.startswith(b"{"):
            raise ModelError("expected XGBoost's JSON or UBJSON, which starts with '{'")
        return ubjson.read(data)
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):  # ValueError: bad UTF-8, bad JSON, a number of thousands of digits
        raise ModelError("expected XGBoost's JSON, found what is not JSON in UTF-8") from None


def _booster(document: Any) -> Booster:
    learner = _at(document, "learner")
    objective_name = _text(_at(learner, "objective", "name"), "the objective's name")
    if objective_name not in OBJECTIVES:
        raise ModelError(f"expected an objective of {', '.join(OBJECTIVES)}; found {objective_name[:40]!r}")
    objective = OBJECTIVES[objective_name]
    parameters = _at(learner, "learner_model_param")
    n_features = _whole(_at(parameters, "num_feature"), "num_feature", 1, MAX_FEATURES)
    model, weight_drop = _trees_of(_at(learner, "gradient_booster"))
    trees = _list(_at(model, "trees"), "trees")
    if len(trees) == 0:
        raise ModelError("expected one tree or more")
    weights = _tree_weights(weight_drop, len(trees))
    read_trees = [_tree(tree, weight) for tree, weight in zip(trees, weights, strict=True)]
    n_outputs = _n_outputs(parameters, objective_name, read_trees)
    if objective_name == "reg:quantileerror" and n_outputs > 1 and _version(document) > LAST_UNSORTED:
        raise ModelError(f"expected one quantile, found {n_outputs}, which this version of XGBoost sorts")
    ensemble = _ensemble(read_trees, _numbers(_at(model, "tree_info"), "tree_info", np.int64), n_features, n_outputs,
                         _base(parameters.get("base_score"), objective.base, n_outputs))
    n_classes = max(2, n_outputs) if objective.classifies else 0
    return Booster(ensemble, objective.link, "xgboost", n_classes,
                   feature_names=_feature_names(learner.get("feature_names"), n_features),
                   categories=_categories(model.get("cats"), n_features, document))


def _trees_of(booster: Any) -> tuple[dict, Any]:
    """The model of trees, and dart's weights of the trees or None, each where a version of XGBoost has it."""
    name = _text(_at(booster, "name"), "the booster's name")
    if name not in ("gbtree", "dart"):
        raise ModelError(f"expected the booster gbtree or dart, found {name[:40]!r}: linear boosters are not read")
    model = _at(booster, "gbtree", "model") if name == "dart" else _at(booster, "model")
    if not isinstance(model, dict):
        raise ModelError("expected an object for model")
    return model, booster.get("weight_drop", model.get("weight_drop"))


def _tree_weights(weight_drop: Any, n_trees: int) -> np.ndarray:
    """(n_trees) float32: what a tree's leaves are multiplied by; trees after the last weight count whole."""
    weights = np.ones(n_trees, np.float32)
    if weight_drop is not None:
        given = _numbers(weight_drop, "weight_drop", np.float32)
        if len(given) > n_trees:
            raise ModelError(f"expected at most {n_trees} numbers in weight_drop")
        weights[:len(given)] = given
    return weights


def _n_outputs(parameters: dict, objective_name: str, trees: list[Tree]) -> int:
    n_classes = _whole(parameters.get("num_class", 0), "num_class", 0, 1 << 31)
    n_targets = _whole(parameters.get("num_target", 1), "num_target", 0, 1 << 31)
    if objective_name.startswith("multi:") and n_classes < 2:
        raise ModelError(f"expected a num_class of 2 or more for {objective_name}, found {n_classes}")
    n_outputs = max(n_classes, n_targets, 1)
    if n_outputs > max(len(trees), *(tree.output_width for tree in trees)):
        raise ModelError(f"expected a tree for each of {n_outputs} outputs, found {len(trees)}")
    return n_outputs


def _base(base_score: Any, inverse_link: str, n_outputs: int) -> np.ndarray:
    """(n_outputs) float64: where the sums start; the file has it as a text: "5E-1", or "[5E-1,1E0]" from 3.1."""
    try:
        given = json.loads(_text(base_score, "base_score"))
    except (ValueError, RecursionError):
        raise ModelError("expected numbers in base_score") from None
    base = _numbers(given if isinstance(given, list) else [given], "base_score", np.float32)
    if len(base) not in (1, n_outputs):
        raise ModelError(f"expected 1 or {n_outputs} numbers in base_score, found {len(base)}")
    if not np.isfinite(base).all() or (inverse_link == "log" and (base <= 0).any()):
        raise ModelError("expected a base_score that is finite, and above 0 where its logarithm is taken")
    return np.broadcast_to(np.array([MARGINS[inverse_link](x) for x in base], np.float64), n_outputs).copy()


def _logit(probability: np.float32) -> np.float32:
    one = np.float32(1)
    kept = min(max(probability, SMALLEST_ODDS), one - SMALLEST_ODDS)
    return -np.float32(math.log(one / kept - one))


MARGINS = {"identity": lambda x: x, "logit": _logit, "log": lambda x: np.float32(math.log(x))}


def _tree(tree: Any, weight: np.float32) -> Tree:
    """A tree of the file, without the nodes that pruning deleted."""
    parameters = _at(tree, "tree_param")
    n_nodes = _whole(_at(parameters, "num_nodes"), "num_nodes", 1, 1 << 31)
    width = max(1, _whole(parameters.get("size_leaf_vector", 1), "size_leaf_vector", 0, 1 << 31))

    def column(name: str, dtype: type) -> np.ndarray:
        return _numbers(_at(tree, name), name, dtype, n_nodes)

    left, right = column("left_children", np.int64), column("right_children", np.int64)
    condition, feature = column("split_conditions", np.float32), column("split_indices", np.int64)
    default_left = column("default_left", np.int64) != 0
    inner, kept = left != -1, feature != DELETED
    if not kept[0]:
        raise ModelError("expected a first node that is not deleted")
    leaf, leaf_values = _leaves(tree, inner, condition, right, width)
    category_set, sets = _category_sets(tree, n_nodes, inner)
    in_set = category_set >= 0
    # A category of the set goes right, and what is not below −inf always does: the children change places.
    swapped = in_set | (condition == -np.inf)
    left, right = np.where(swapped, right, left), np.where(swapped, left, right)
    with np.errstate(over="ignore"):
        below = np.nextafter(condition, np.float32(-np.inf))  # x < c is x <= below
        leaf_values = leaf_values * weight
    below[condition == -np.inf] = np.inf
    below[in_set | ~inner] = 0
    numbers = _renumbered(kept)
    cover = column("sum_hessian", np.float32)[kept] if "sum_hessian" in tree else None
    return Tree(np.where(inner, feature, -1)[kept], below[kept],
                numbers(np.where(inner, left, 0))[kept], numbers(np.where(inner, right, 0))[kept],
                np.where(default_left ^ swapped, NAN_LEFT, NAN_RIGHT)[kept], leaf[kept], leaf_values,
                category_set[kept], sets, cover, width)


def _leaves(tree: dict, inner: np.ndarray, condition: np.ndarray, right: np.ndarray,
            width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each node's values start (0 for inner nodes), and the values; they have three places in the files."""
    if width == 1:
        return np.where(inner, 0, np.cumsum(~inner) - 1), condition[~inner]
    if "leaf_weights" in tree:  # vectors of leaves, from 3.2: the right child is the leaf's number
        values, index = _numbers(tree["leaf_weights"], "leaf_weights", np.float32), right
    else:  # vectors of all nodes
        values, index = _numbers(_at(tree, "base_weights"), "base_weights", np.float32), np.arange(len(inner))
    index = np.where(inner, 0, index)
    if index.min() < 0 or index.max() >= len(values) // width:
        raise ModelError(f"expected {width} values for every leaf")
    return index * width, values


def _renumbered(kept: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from node numbers to those among the kept nodes; it refuses what is no kept node."""
    number = np.where(kept, np.cumsum(kept) - 1, -1)

    def numbers(nodes: np.ndarray) -> np.ndarray:
        if nodes.min() < 0 or nodes.max() >= len(number):
            raise ModelError(f"expected children from 0 to {len(number) - 1}")
        return number[nodes]

    return numbers


def _category_sets(tree: dict, n_nodes: int, inner: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(n_nodes) int64: which set of categories an inner node has, −1 = none; and the sets, each ascending."""
    category_set = np.full(n_nodes, -1)
    if "split_type" not in tree:  # before 1.3
        return category_set, []
    categorical = _numbers(tree["split_type"], "split_type", np.int64, n_nodes) == CATEGORICAL
    nodes = np.flatnonzero(categorical)  # leaves too, where pruning made them
    starts = _numbers(_at(tree, "categories_segments"), "categories_segments", np.int64, len(nodes))
    sizes = _numbers(_at(tree, "categories_sizes"), "categories_sizes", np.int64, len(nodes))
    categories = _numbers(_at(tree, "categories"), "categories", np.int64)
    if not np.array_equal(_numbers(_at(tree, "categories_nodes"), "categories_nodes", np.int64), nodes):
        raise ModelError("expected categories_nodes to be the nodes of split_type 1")
    if not len(nodes):
        return category_set, []
    ends = np.cumsum(sizes)
    if (sizes < 1).any() or (starts != ends - sizes).any() or ends[-1] != len(categories):
        raise ModelError("expected categories_segments that follow each other through categories")
    if categories.min() < 0 or categories.max() >= N_CATEGORIES:
        raise ModelError(f"expected categories from 0 to {N_CATEGORIES - 1}")
    is_first = np.zeros(len(categories), bool)
    is_first[starts] = True
    if (np.diff(categories) <= 0)[~is_first[1:]].any():
        raise ModelError("expected ascending categories in each segment")
    category_set[nodes] = np.arange(len(nodes))
    category_set[~inner] = -1
    return category_set, np.split(categories.astype(np.float64), starts[1:])


def _ensemble(trees: list[Tree], outputs: np.ndarray, n_features: int, n_outputs: int,
              base: np.ndarray) -> TreeEnsemble:
    """The trees one after another, checked."""
    if len(outputs) != len(trees):
        raise ModelError(f"expected {len(trees)} outputs in tree_info, found {len(outputs)}")
    widths = np.array([tree.output_width for tree in trees])
    if ((widths > 1) & (widths != n_outputs)).any():
        raise ModelError(f"expected leaves of {n_outputs} values each, found {widths.max()}")
    n_nodes = [len(tree.feature) for tree in trees]
    node_offset = _starts(n_nodes)
    value_offset = _starts(len(tree.leaf_values) for tree in trees)
    set_offset = _starts(len(tree.sets) for tree in trees)

    def joined(name: str, offsets: np.ndarray | None = None) -> np.ndarray:
        values = np.concatenate([getattr(tree, name) for tree in trees])
        return values if offsets is None else values + np.repeat(offsets, n_nodes)

    category_set = joined("category_set")
    covered = all(tree.cover is not None for tree in trees)
    cover = joined("cover").astype(np.float64) if covered else None
    if cover is not None and not (np.isfinite(cover) & (cover >= 0)).all():
        cover = None  # an objective of the user's own may give what is no weight
    ensemble = TreeEnsemble(
        n_features=n_features, n_outputs=n_outputs, root=node_offset,
        first_output=np.where(widths > 1, 0, outputs), output_width=widths, feature=joined("feature"),
        threshold=joined("threshold").astype(np.float64), left=joined("left", node_offset),
        right=joined("right", node_offset), missing=joined("missing").astype(np.uint8),
        leaf=joined("leaf", value_offset), leaf_values=joined("leaf_values").astype(np.float64), base=base,
        category_set=np.where(category_set >= 0, category_set + np.repeat(set_offset, n_nodes), -1)
        if (category_set >= 0).any() else None,
        sets=tuple(categories for tree in trees for categories in tree.sets), category_rule=TRUNCATED_POSITIVE,
        cover=cover, rounds_inputs=True, rounds_sums=True)
    ensemble.check()
    return ensemble


def _starts(sizes: Iterable[int]) -> np.ndarray:
    ends = np.cumsum(np.fromiter(sizes, np.int64))
    return np.concatenate([[0], ends[:-1]])


def _feature_names(names: Any, n_features: int) -> tuple[str, ...] | None:
    if names is None or len(_list(names, "feature_names")) == 0:
        return None
    if len(names) != n_features or len({_text(name, "a feature's name") for name in names}) != n_features:
        raise ModelError(f"expected {n_features} different feature_names")
    return tuple(names)


def _categories(cats: Any, n_features: int, document: dict) -> tuple[Values | None, ...] | None:
    """For each feature the values of its categories, from 3.1 on where the model was trained on a data frame."""
    columns = _list(_at(cats, "enc"), "cats.enc") if cats is not None else []
    if not columns:
        return None
    if len(columns) != n_features:
        raise ModelError(f"expected categories for {n_features} features, found {len(columns)}")
    is_cut = _version(document) < FIRST_UNCUT
    return tuple(_category_values(column, is_cut) for column in columns)


def _category_values(column: Any, is_cut: bool) -> Values | None:
    codes = _numbers(_at(column, "values"), "cats.values", np.int64)
    values: Values
    if "offsets" in column:
        offsets = _numbers(column["offsets"], "cats.offsets", np.int64)
        text = codes.astype(np.uint8).tobytes()
        if (len(offsets) == 0 and not text) or (is_cut and not text.isascii()):
            return None
        values = _split_text(text, offsets)
    else:
        kind = _whole(_at(column, "type"), "cats.type", min(CATEGORY_TYPES), max(CATEGORY_TYPES))
        values = tuple(codes.astype(CATEGORY_TYPES[kind]).astype(np.float64).tolist())  # UBJSON has no unsigned types
    if len(set(values)) != len(values):
        raise ModelError("expected different values for the categories of a feature")
    return values or None


def _split_text(text: bytes, offsets: np.ndarray) -> tuple[str, ...]:
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
        raise ModelError("expected cats.offsets to divide cats.values")
    bounds = offsets.tolist()
    try:
        return tuple(text[start:end].decode() for start, end in zip(bounds, bounds[1:], strict=False))
    except UnicodeDecodeError:
        raise ModelError("expected UTF-8 in cats.values") from None


def _version(document: dict) -> tuple[int, ...]:
    return tuple(_numbers(_at(document, "version"), "version", np.int64).tolist())[:2]


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ModelError(f"expected the field {'.'.join(keys)}")
        value = value[key]
    return value


def _list(value: Any, what: str) -> list:
    if not isinstance(value, list):
        raise ModelError(f"expected a list for {what}")
    return value


def _text(value: Any, what: str) -> str:
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):  # JSON can hold halves of surrogate pairs, which UTF-8 cannot
        raise ModelError(f"expected a text for {what}") from None
    return value


def _whole(value: Any, what: str, low: int, high: int) -> int:
    """An integer, which XGBoost writes as a text."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if type(number) is not int or not low <= number <= high:
        raise ModelError(f"expected an integer from {low} to {high} for {what}")
    return number


def _numbers(values: Any, what: str, dtype: type, n: int | None = None) -> np.ndarray:
    """A list of numbers as an array of float32 or int64, which holds every number of the list or its rounding."""
    kinds = "iuf" if dtype is np.float32 else "iu"
    if isinstance(values, np.ndarray):
        right = values.dtype.kind in kinds
    else:
        # by type and not by numpy's guess: a list of texts of different lengths would take all of memory
        right = isinstance(values, list) and set(map(type, values)) <= ({int, bool, float} if "f" in kinds
                                                                        else {int, bool})
    if not right or (n is not None and len(values) != n):
        raise ModelError(f"expected a list of {'numbers' if n is None else f'{n} numbers'} for {what}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # to infinity, as XGBoost reads it
            return np.array(values, np.float64 if dtype is np.float32 else np.int64).astype(dtype)
    except OverflowError:
        raise ModelError(f"expected numbers of 64 bits for {what}") from None
