"""LightGBM's text models (`Booster.save_model`) without LightGBM.

The rule to keep: a row gets what LightGBM (src/io/tree.cpp, include/LightGBM/tree.h, src/boosting/gbdt_model_text.cpp,
release 4) gives after it has loaded the same text, to the last comparison; the text is untrusted, so nothing is
allocated by a count in it before as many numbers were seen.

    tree / version=v4 / key=value …   the header, up to an empty line
    Tree=0 / key=value … / Tree=1 …   a tree of L leaves: L − 1 inner nodes, child c ≥ 0 inner, c < 0 leaf −1 − c
    end of trees
    parameters: / [key: value] … / pandas_categorical:JSON
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.ensemble import (
    AVERAGE, NAN_IS_ZERO, NAN_LEFT, NAN_RIGHT, SUM, TRUNCATED, ZERO_LEFT, ZERO_RIGHT, ZERO_THRESHOLD, Booster,
    TreeEnsemble,
)
from kernels.errors import ModelError

MAGIC = (b"tree\n", b"tree\r\n")
VERSIONS = (b"v2", b"v3", b"v4")
ENDS_OF_FIELDS = (b"Tree=", b"end of trees", b"feature importances:", b"feature_importances:")

# objective → link, whether a classifier
OBJECTIVES = {
    "regression": ("identity", False), "regression_l1": ("identity", False), "huber": ("identity", False),
    "fair": ("identity", False), "quantile": ("identity", False), "mape": ("identity", False),
    "poisson": ("exp", False), "gamma": ("exp", False), "tweedie": ("exp", False),
    "binary": ("sigmoid", True), "multiclass": ("softmax", True), "multiclassova": ("sigmoid", True),
    "cross_entropy": ("sigmoid", False), "cross_entropy_lambda": ("log1p_exp", False),
    "lambdarank": ("identity", False), "rank_xendcg": ("identity", False),
    "custom": ("identity", False), "none": ("identity", False),
}
WITH_SQRT = ("regression", "regression_l1", "fair", "quantile", "mape")  # "sqrt" makes the link "signed_square"
WITH_FACTOR = ("binary", "multiclassova")
WITH_OUTPUTS = ("multiclass", "multiclassova", "custom", "none")  # one score or more; all others have one

# decision_type: bit 0 a category split, bit 1 missing values go left, bits 2 and 3 what is missing
CATEGORY, DEFAULT_LEFT, MISSING_TYPE_SHIFT = 1, 2, 2
MISSING = np.array([[NAN_IS_ZERO, NAN_IS_ZERO], [ZERO_RIGHT, ZERO_LEFT], [NAN_RIGHT, NAN_LEFT]], np.uint8)

HEADER_KEYS = (b"version", b"num_tree_per_iteration", b"max_feature_idx", b"objective", b"feature_names",
               b"feature_infos", b"tree_sizes", b"average_output")
INNER_COLUMNS = {b"split_feature": np.int64, b"threshold": np.float64, b"decision_type": np.int64,
                 b"left_child": np.int64, b"right_child": np.int64}
TREE_KEYS = (*INNER_COLUMNS, b"num_leaves", b"num_cat", b"leaf_value", b"internal_count", b"leaf_count",
             b"cat_boundaries", b"cat_threshold", b"is_linear")

Fields = dict[bytes, bytes]


def read(text: bytes | memoryview | str, name: str) -> Booster:
    """The booster in a text model; `name` is the file's, for messages.

    Raises ModelError for linear trees, an objective that LightGBM does not have, and any text that is not sound.
    """
    try:
        return _booster(text.encode() if isinstance(text, str) else bytes(text))
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    except UnicodeError:
        raise ModelError(f"{name}: expected UTF-8") from None


def _booster(text: bytes) -> Booster:
    if not text.startswith(MAGIC):
        raise ModelError("expected a LightGBM text model, whose first line is 'tree'")
    lines = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    header, ended = _fields(lines, HEADER_KEYS)
    if header.get(b"version") not in VERSIONS:
        raise ModelError("expected version v2, v3 or v4 of LightGBM's text models")
    trees: list[_Tree] = []
    while ended.startswith(b"Tree="):
        if ended != b"Tree=%d" % len(trees):
            raise ModelError(f"expected Tree={len(trees)} next")
        fields, ended = _fields(lines, TREE_KEYS)
        trees.append(_tree(fields, len(trees)))
    if not ended:
        raise ModelError(f"expected 'end of trees' after {len(trees)} trees: the file is cut short")
    if len(header.get(b"tree_sizes", b"").split()) not in (0, len(trees)):
        raise ModelError("expected as many trees as in tree_sizes")

    names = _feature_names(header)
    n_outputs = _integer(header, b"num_tree_per_iteration")
    if not 1 <= n_outputs <= len(trees) or len(trees) % n_outputs:
        raise ModelError(f"expected num_tree_per_iteration trees for each of one iteration or more, "
                         f"found {len(trees)} trees")
    ensemble = _ensemble(trees, len(names), n_outputs, averages=b"average_output" in header)
    ensemble.check()
    link, factor, n_classes = _objective(header.get(b"objective", b"none").decode(), n_outputs)
    return Booster(ensemble, link, "lightgbm", n_classes, factor, names, _categories(lines, header, len(names)))


# ---- lines -------------------------------------------------------------------------------------------------

def _fields(lines: Iterator[bytes], keys: Sequence[bytes]) -> tuple[Fields, bytes]:
    """What the next lines say of `keys`, and the line that ended them: b"" at the end of the file."""
    fields: Fields = {}
    for line in lines:
        if line.startswith(ENDS_OF_FIELDS):
            return fields, line
        key, _, value = line.partition(b"=")
        if key in keys:
            if key in fields:
                raise ModelError(f"expected {key.decode()} once")
            fields[key] = value
    return fields, b""


def _integer(fields: Fields, key: bytes) -> int:
    return int(_numbers(fields, key, np.int64, 1)[0])


def _numbers(fields: Fields, key: bytes, dtype: type, count: int) -> np.ndarray:
    """(count) dtype."""
    tokens = fields.get(key, b"").split()
    if len(tokens) != count:
        raise ModelError(f"expected {key.decode()} with {count} numbers, found {len(tokens)}")
    try:
        return np.array([*map(int if dtype is np.int64 else float, tokens)], dtype)
    except (ValueError, OverflowError):
        raise ModelError(f"expected {key.decode()} with numbers") from None


def _feature_names(header: Fields) -> tuple[str, ...]:
    names = tuple(header.get(b"feature_names", b"").decode().split(" "))
    if len(names) != _integer(header, b"max_feature_idx") + 1:
        raise ModelError(f"expected max_feature_idx + 1 feature_names, found {len(names)}")
    if len(set(names)) != len(names):
        raise ModelError("expected feature_names without repetition")
    return names


def _objective(text: str, n_outputs: int) -> tuple[str, float, int]:
    """The link, its factor, and the number of classes."""
    objective, *rest = text.split(" ")
    parameters = dict(token.partition(":")[::2] for token in rest)
    if objective not in OBJECTIVES:
        raise ModelError(f"expected one of LightGBM's objectives: {', '.join(OBJECTIVES)}")
    link, classifies = OBJECTIVES[objective]
    if n_outputs > 1 and objective not in WITH_OUTPUTS:
        raise ModelError(f"expected one tree an iteration with {objective}, found {n_outputs}")
    if objective.startswith("multiclass") and parameters.get("num_class") != str(n_outputs):
        raise ModelError(f"expected {objective} with num_class:{n_outputs}, the number of trees an iteration")
    if objective in WITH_SQRT and "sqrt" in parameters:
        link = "signed_square"
    factor = _factor(objective, parameters.get("sigmoid", "")) if objective in WITH_FACTOR else 1.0
    return link, factor, max(2, n_outputs) if classifies else 0


def _factor(objective: str, text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ModelError(f"expected {objective} with sigmoid: and a number above 0")
    return factor


# ---- trees -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Tree:
    """One tree of the file; L leaves, L − 1 inner nodes, S category sets."""

    inner: tuple[np.ndarray, ...]      # INNER_COLUMNS: (L − 1) each
    leaf_value: np.ndarray             # (L) float64
    counts: np.ndarray | None          # (2L − 1) float64: rows at inner nodes, then at leaves
    boundaries: np.ndarray             # (S + 1) int64: set s is words[boundaries[s]:boundaries[s + 1]]
    words: np.ndarray                  # (n) int64: 32 categories each, the lowest bit first


def _tree(fields: Fields, number: int) -> _Tree:
    try:
        return _tree_of(fields)
    except ModelError as error:
        raise ModelError(f"tree {number}: {error}") from None


NO_SETS = (np.zeros(1, np.int64), np.zeros(0, np.int64))


def _tree_of(fields: Fields) -> _Tree:
    if fields.get(b"is_linear", b"0").strip() != b"0":
        raise ModelError("expected constant leaves, found a linear tree: train with linear_tree=false")
    n_leaves, n_sets = _integer(fields, b"num_leaves"), _integer(fields, b"num_cat")
    leaf_value = _numbers(fields, b"leaf_value", np.float64, n_leaves)
    if n_leaves < 1:
        raise ModelError("expected one leaf or more")
    inner = tuple(_numbers(fields, key, dtype, n_leaves - 1) for key, dtype in INNER_COLUMNS.items())
    for child in inner[-2:]:
        if ((child < -n_leaves) | (child >= n_leaves - 1)).any():
            raise ModelError(f"expected children from {-n_leaves} to {n_leaves - 2}")
    sets = _set_words(fields, n_sets) if n_sets else NO_SETS
    _check_decisions(inner[1], inner[2], n_sets)
    return _Tree(inner, leaf_value, _counts(fields, n_leaves), *sets)


def _set_words(fields: Fields, n_sets: int) -> tuple[np.ndarray, np.ndarray]:
    if n_sets < 0:
        raise ModelError("expected num_cat of 0 or more")
    boundaries = _numbers(fields, b"cat_boundaries", np.int64, n_sets + 1)
    words = _numbers(fields, b"cat_threshold", np.int64, len(fields.get(b"cat_threshold", b"").split()))
    if boundaries[0] != 0 or boundaries[-1] != len(words) or (boundaries[1:] <= boundaries[:-1]).any():
        raise ModelError("expected cat_boundaries that rise from 0 to the length of cat_threshold")
    if ((words < 0) | (words >= 1 << 32)).any():
        raise ModelError("expected 32 bits in each number of cat_threshold")
    return boundaries, words


def _check_decisions(threshold: np.ndarray, decision_type: np.ndarray, n_sets: int) -> None:
    if ((decision_type < 0) | (decision_type >= len(MISSING) << MISSING_TYPE_SHIFT)).any():
        raise ModelError(f"expected decision types from 0 to {(len(MISSING) << MISSING_TYPE_SHIFT) - 1}")
    set_number = threshold[decision_type & CATEGORY == 1]
    if not ((set_number >= 0) & (set_number < n_sets) & (set_number == np.floor(set_number))).all():
        raise ModelError("expected num_cat and, as thresholds of category splits, numbers of sets below it")


def _counts(fields: Fields, n_leaves: int) -> np.ndarray | None:
    """What LightGBM's and shap's Shapley values weigh nodes by: (2L − 1) float64; None where the file has none."""
    if n_leaves == 1:
        return np.ones(1)  # older releases write none or 0; a tree without splits is a constant whatever its weight
    if b"leaf_count" not in fields or b"internal_count" not in fields:
        return None
    return np.concatenate([_numbers(fields, b"internal_count", np.float64, n_leaves - 1),
                           _numbers(fields, b"leaf_count", np.float64, n_leaves)])


def _ensemble(trees: list[_Tree], n_features: int, n_outputs: int, averages: bool) -> TreeEnsemble:
    """Inner nodes, then leaves, tree after tree."""
    n_trees = len(trees)
    n_leaves = np.array([len(tree.leaf_value) for tree in trees])
    root = np.cumsum(2 * n_leaves - 1) - (2 * n_leaves - 1)
    n_nodes = int(root[-1] + 2 * n_leaves[-1] - 1)
    inner = _places(n_leaves - 1, root)
    leaves = _places(n_leaves, root + n_leaves - 1)
    split_feature, threshold, decision_type, *children = (
        np.concatenate(column) for column in zip(*(tree.inner for tree in trees), strict=True))
    leaf_values = np.concatenate([tree.leaf_value for tree in trees])
    if averages and n_outputs > 1:  # LightGBM divides by the iterations; AVERAGE by the trees, n_outputs times as many
        with np.errstate(over="ignore"):
            leaf_values *= n_outputs

    def of_nodes(at: np.ndarray, values: np.ndarray, rest: int) -> np.ndarray:
        array = np.full(n_nodes, rest, values.dtype)
        array[at] = values
        return array

    is_category = decision_type & CATEGORY == 1
    missing = MISSING[decision_type >> MISSING_TYPE_SHIFT, (decision_type & DEFAULT_LEFT) // DEFAULT_LEFT]
    missing[is_category] = NAN_RIGHT
    first_inner, first_leaf = np.repeat(root, n_leaves - 1), np.repeat(root + n_leaves - 1, n_leaves - 1)
    left, right = (np.where(child >= 0, first_inner + child, first_leaf + ~child) for child in children)
    category_set, sets = _category_sets(trees, n_leaves - 1, is_category, threshold)
    return TreeEnsemble(
        n_features, n_outputs, root=root, first_output=np.arange(n_trees) % n_outputs,
        output_width=np.ones(n_trees, np.int64), feature=of_nodes(inner, split_feature, -1),
        threshold=of_nodes(inner, np.where(is_category, 0.0, _around_zero(threshold)), 0),
        left=of_nodes(inner, left, 0), right=of_nodes(inner, right, 0), missing=of_nodes(inner, missing, NAN_RIGHT),
        leaf=of_nodes(leaves, np.arange(len(leaves)), 0), leaf_values=leaf_values, base=np.zeros(n_outputs),
        category_set=None if category_set is None else of_nodes(inner, category_set, -1), sets=sets,
        category_rule=TRUNCATED, cover=_cover(trees), aggregate=AVERAGE if averages else SUM)


def _places(counts: np.ndarray, first: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1 … (counts[0] of them), first[1] …"""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(first - before, counts)


def _around_zero(threshold: np.ndarray) -> np.ndarray:
    """Thresholds that decide on each x as near to zero as they do on 0, which is how LightGBM reads a row."""
    near = np.abs(threshold) <= ZERO_THRESHOLD
    return np.where(near, np.where(threshold < 0, np.nextafter(-ZERO_THRESHOLD, -1), ZERO_THRESHOLD), threshold)


def _category_sets(
    trees: list[_Tree], n_inner: np.ndarray, is_category: np.ndarray, threshold: np.ndarray,
) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
    """For each inner node its set or −1, and the sets; None where no node has one."""
    if not is_category.any():
        return None, ()
    n_sets = np.array([len(tree.boundaries) - 1 for tree in trees])
    first_set = np.cumsum(n_sets) - n_sets
    set_number = np.where(is_category, threshold, 0).astype(np.int64) + np.repeat(first_set, n_inner)
    n_words = np.array([len(tree.words) for tree in trees])
    first_word = np.cumsum(n_words) - n_words
    starts = 32 * np.concatenate([tree.boundaries[:-1] + first
                                  for tree, first in zip(trees, first_word.tolist(), strict=True)])
    words = np.concatenate([tree.words for tree in trees]).astype("<u4")
    bits = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
    sets = tuple(np.split(bits.astype(np.float64), np.searchsorted(bits, starts[1:])))
    for categories, start in zip(sets, starts.tolist(), strict=True):
        categories -= start
    return np.where(is_category, set_number, -1), sets


def _cover(trees: list[_Tree]) -> np.ndarray | None:
    counts = [tree.counts for tree in trees if tree.counts is not None]
    return np.concatenate(counts) if len(counts) == len(trees) else None


# ---- categories --------------------------------------------------------------------------------------------

def _categories(lines: Iterator[bytes], header: Fields, n_features: int) -> tuple[tuple | None, ...] | None:
    """What the codes of each feature stand for, by `pandas_categorical`, whose lists follow the order of columns.

    Which columns these were is told by the parameters and `feature_infos`: a pandas category that LightGBM took
    as a number (an ordered one) is in the list and nowhere else, so such a model is refused and never guessed.
    """
    lists, parameter = b"", b""
    for line in lines:
        key, _, value = line.partition(b":")
        lists = value if key == b"pandas_categorical" else lists
        parameter = value.strip(b" ]") if key == b"[categorical_feature" else parameter
    try:
        categories = json.loads(lists or b"null") or []
    except (ValueError, RecursionError):
        raise ModelError("expected JSON in pandas_categorical") from None
    if not categories:
        return None
    infos = header.get(b"feature_infos", b"").split(b" ")
    columns = {column for column, info in enumerate(infos[:n_features]) if info not in (b"", b"none")
               and not info.startswith(b"[")}
    columns |= {int(column) for column in parameter.split(b",") if column.isdigit() and len(column) < 10}
    if not isinstance(categories, list) or len(categories) != len(columns) or max(columns) >= n_features:
        raise ModelError(f"expected a list in pandas_categorical for each of {len(columns)} categorical features: "
                         "train with unordered pandas categories and categorical_feature='auto', or with codes alone")
    result: list[tuple | None] = [None] * n_features
    for column, values in zip(sorted(columns), categories, strict=True):
        result[column] = _category_values(values)
        codes = infos[column].split(b":") if column < len(infos) else []
        if any(code.isdigit() and (len(code) > 10 or int(code) >= len(values)) for code in codes):
            raise ModelError("expected pandas_categorical with a value for each category in feature_infos")
    return tuple(result)


def _category_values(values: object) -> tuple[str, ...] | tuple[float, ...]:
    """All strings, or all numbers; booleans are 0 and 1."""
    if not isinstance(values, list):
        raise ModelError("expected lists in pandas_categorical")
    if not all(isinstance(value, str) for value in values):
        try:
            values = [float(value) if isinstance(value, int | float) else math.nan for value in values]
        except OverflowError:
            raise ModelError("expected numbers of float64 in pandas_categorical") from None
        if not all(map(math.isfinite, values)):
            raise ModelError("expected strings alone or numbers alone for a feature in pandas_categorical")
    if len(set(values)) != len(values):
        raise ModelError("expected categories without repetition in pandas_categorical")
    return tuple(values)
