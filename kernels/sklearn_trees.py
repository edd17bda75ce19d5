"""scikit-learn's tree ensembles, and LightGBM's and XGBoost's estimators, as boosters: exactly, in double.

The rule to keep: estimators are read by their fitted attributes, and scikit-learn is never imported. What cannot be
read exactly is left to the caller (None), or refused by name.

https://scikit-learn.org/stable/auto_examples/tree/plot_unveil_tree_structure.html
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kernels import lightgbm_text, xgboost_json
from kernels.ensemble import AVERAGE, NAN_LEFT, NAN_RIGHT, SUM, Booster, TreeEnsemble
from kernels.errors import ModelError


class Tree(NamedTuple):
    """One tree: arrays over its nodes; values (n_nodes, width), of which those of leaves count."""

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray    # −1 = a leaf
    threshold: np.ndarray
    missing: np.ndarray    # NAN_LEFT or NAN_RIGHT
    cover: np.ndarray
    values: np.ndarray     # (n_nodes, width) float64


def booster_of(estimator: Any) -> Booster | None:
    """The booster of a fitted estimator of a known kind, or None for any other.

    Its link "sigmoid", "softmax" or "identity" tells what `predict_proba` makes of the scores; n_classes is 0 for a
    regressor. Raises ModelError for an estimator that is not fitted and for options that are not supported.
    """
    read = READERS.get(type(estimator).__name__)
    if read is None:
        return None
    try:
        return read(estimator)
    except AttributeError as error:
        raise ModelError(f"expected a fitted {type(estimator).__name__}: it has no {error.name}") from None


def _ensemble(trees: list[Tree], first_outputs: list[int], n_features: int, n_outputs: int,
              **options: Any) -> TreeEnsemble:
    sizes = [len(tree.feature) for tree in trees]
    roots = np.cumsum(sizes) - sizes
    widths = np.array([tree.values.shape[1] for tree in trees], np.int64)
    values = np.concatenate([tree.values.ravel() for tree in trees])
    first_value = np.cumsum(np.array(sizes) * widths) - np.array(sizes) * widths
    leaf = np.concatenate([first + width * np.arange(size)
                           for first, width, size in zip(first_value, widths, sizes, strict=True)])
    moved = [(tree.left + root, tree.right + root) for tree, root in zip(trees, roots, strict=True)]
    return TreeEnsemble(
        n_features=n_features, n_outputs=n_outputs, root=roots, first_output=np.array(first_outputs, np.int64),
        output_width=widths, feature=np.concatenate([tree.feature for tree in trees]).astype(np.int64),
        threshold=np.concatenate([tree.threshold for tree in trees]).astype(np.float64),
        left=np.concatenate([left for left, _ in moved]).astype(np.int64),
        right=np.concatenate([right for _, right in moved]).astype(np.int64),
        missing=np.concatenate([tree.missing for tree in trees]).astype(np.uint8), leaf=leaf.astype(np.int64),
        leaf_values=values, cover=np.concatenate([tree.cover for tree in trees]).astype(np.float64),
        **{"base": np.zeros(n_outputs)} | options)


def _read_tree(tree: Any, values: np.ndarray) -> Tree:
    """One fitted `tree_`, with these values (n_nodes, width)."""
    is_leaf = tree.children_left < 0
    goes_left = getattr(tree, "missing_go_to_left", np.zeros(len(is_leaf), np.uint8))
    return Tree(tree.children_left, tree.children_right, np.where(is_leaf, -1, tree.feature), tree.threshold,
                np.where(goes_left, NAN_LEFT, NAN_RIGHT), tree.weighted_n_node_samples, values)


# ---- averaged trees ----------------------------------------------------------------------------------------

def _read_forest(estimator: Any) -> Booster:
    """RandomForest, ExtraTrees and single trees: the mean of the trees' probabilities, or values."""
    trees = [member.tree_ for member in getattr(estimator, "estimators_", [estimator])]
    if estimator.n_outputs_ != 1:
        raise ModelError(f"expected an estimator with one output, found {estimator.n_outputs_}")
    n_classes = len(estimator.classes_) if hasattr(estimator, "classes_") else 0
    read = [_read_tree(tree, _shares(tree.value[:, 0, :]) if n_classes else tree.value[:, 0, :]) for tree in trees]
    ensemble = _ensemble(read, [0] * len(read), estimator.n_features_in_, max(n_classes, 1), aggregate=AVERAGE,
                         rounds_inputs=True)
    return _booster(estimator, ensemble, "identity", n_classes)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Each class's share, which `value` holds since release 1.3; weights of rows before."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total != 0)


# ---- boosted trees -----------------------------------------------------------------------------------------

def _read_gradient_boosting(estimator: Any) -> Booster:
    stages = estimator.estimators_  # (n_estimators, n_outputs)
    if estimator.init_ != "zero" and type(estimator.init_).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise ModelError(f"expected a {type(estimator).__name__} without an init estimator of its own")
    trees = [_read_tree(member.tree_, member.tree_.value[:, 0, :] * estimator.learning_rate)
             for member in stages.ravel()]
    n_outputs = stages.shape[1]
    base = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), np.float32))[0]
    ensemble = _ensemble(trees, list(range(n_outputs)) * len(stages), estimator.n_features_in_, n_outputs,
                         aggregate=SUM, rounds_inputs=True, base=np.asarray(base, np.float64))
    if not hasattr(estimator, "classes_"):
        return _booster(estimator, ensemble, "identity", 0)
    factor = 2.0 if estimator.loss == "exponential" else 1.0
    link = "sigmoid" if n_outputs == 1 else "softmax"
    return replace(_booster(estimator, ensemble, link, len(estimator.classes_)), link_factor=factor)


def _read_hist_gradient_boosting(estimator: Any) -> Booster:
    if getattr(estimator, "is_categorical_", None) is not None:
        raise ModelError(f"expected a {type(estimator).__name__} without categorical features: encode them in a "
                         "pipeline before it")
    rounds = estimator._predictors
    trees = [_read_predictor(predictor.nodes) for each in rounds for predictor in each]
    n_outputs = estimator.n_trees_per_iteration_
    ensemble = _ensemble(trees, list(range(n_outputs)) * len(rounds), estimator.n_features_in_, n_outputs,
                         aggregate=SUM, base=np.ravel(estimator._baseline_prediction).astype(np.float64))
    if hasattr(estimator, "classes_"):
        return _booster(estimator, ensemble, "sigmoid" if n_outputs == 1 else "softmax", len(estimator.classes_))
    link = {"poisson": "exp", "gamma": "exp"}.get(estimator.loss, "identity")
    return _booster(estimator, ensemble, link, 0)


def _read_predictor(nodes: np.ndarray) -> Tree:
    is_leaf = nodes["is_leaf"] != 0
    return Tree(nodes["left"].astype(np.int64), nodes["right"].astype(np.int64),
                np.where(is_leaf, -1, nodes["feature_idx"]), np.where(is_leaf, 0.0, nodes["num_threshold"]),
                np.where(nodes["missing_go_to_left"], NAN_LEFT, NAN_RIGHT), nodes["count"].astype(np.float64),
                nodes["value"][:, None].astype(np.float64))


def _booster(estimator: Any, ensemble: TreeEnsemble, link: str, n_classes: int) -> Booster:
    names = getattr(estimator, "feature_names_in_", None)
    return Booster(ensemble, link, "trees", n_classes, feature_names=None if names is None else tuple(map(str, names)))


# ---- LightGBM's and XGBoost's estimators ---------------------------------------------------------------

def _read_lightgbm(estimator: Any) -> Booster:
    text = estimator.booster_.model_to_string(num_iteration=estimator.best_iteration_ or None)
    return lightgbm_text.read(text, "model")


def _read_xgboost(estimator: Any) -> Booster:
    if not (estimator.missing is None or np.isnan(estimator.missing)):
        raise ModelError(f"expected a {type(estimator).__name__} to which NaN alone is missing: make it NaN before "
                         "training")
    booster = estimator.get_booster()
    if booster.attr("best_iteration") is not None:
        booster = booster[:estimator.best_iteration + 1]
    read = xgboost_json.read(bytes(booster.save_raw("ubj")), "model")
    if hasattr(estimator, "classes_") and read.link == "sigmoid" and read.ensemble.n_outputs > 1:
        raise ModelError(f"expected an estimator with one output, found {read.ensemble.n_outputs}")
    return read


READERS: dict[str, Callable[[Any], Booster]] = {
    "DecisionTreeClassifier": _read_forest, "DecisionTreeRegressor": _read_forest,
    "ExtraTreeClassifier": _read_forest, "ExtraTreeRegressor": _read_forest,
    "RandomForestClassifier": _read_forest, "RandomForestRegressor": _read_forest,
    "ExtraTreesClassifier": _read_forest, "ExtraTreesRegressor": _read_forest,
    "GradientBoostingClassifier": _read_gradient_boosting, "GradientBoostingRegressor": _read_gradient_boosting,
    "HistGradientBoostingClassifier": _read_hist_gradient_boosting,
    "HistGradientBoostingRegressor": _read_hist_gradient_boosting,
    "LGBMClassifier": _read_lightgbm, "LGBMRegressor": _read_lightgbm, "LGBMRanker": _read_lightgbm,
    "XGBClassifier": _read_xgboost, "XGBRegressor": _read_xgboost, "XGBRanker": _read_xgboost,
    "XGBRFClassifier": _read_xgboost, "XGBRFRegressor": _read_xgboost,
}
