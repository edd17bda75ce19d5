"""XGBoost's files against XGBoost itself: raw scores bit for bit, and files that lie."""

import json
import random
import struct
import tracemalloc
from functools import cache

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn import datasets

from kernels import ModelError, ubjson, xgboost_json
from kernels.ensemble import LINKS, Booster
from tests import naive_trees

FLOAT_MAX = float(np.finfo(np.float32).max)
N_ROWS = 120  # that a test compares: the oracle is slow


# --- data, and boosters trained on it -------------------------------------------------------------

@cache
def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, n_features), and labels (n) or (n, n_targets)."""
    rng = np.random.default_rng(0)
    if name == "diabetes01":
        X, y = data("diabetes")
        return X, y / 1000
    if name == "diabetes3":
        X, y = data("diabetes")
        return X, np.column_stack([y, y * y, -y / 100])
    if name == "cancer2":
        X, y = data("cancer")
        return X, np.column_stack([y, X[:, 0] > 14])
    if name == "cancer_holes":
        X, y = data("cancer")
        return np.where(rng.random(X.shape) < 0.2, np.nan, X), y
    if name == "extremes":  # every magnitude of float32, and numbers that only float64 tells apart
        X = rng.choice([-1.0, 1.0], (600, 4)) * 10.0 ** rng.uniform(-44, 38, (600, 4))
        X[rng.random(X.shape) < 0.2] = np.nan
        X[rng.random(X.shape) < 0.1] = -0.0
        X[:2] = FLOAT_MAX, -FLOAT_MAX, 1e-45, -1e-45
        X[2:4] = 1 + 1e-9, 1 - 1e-9, 16777217.0, 0.1
        return X, (X[:, 0] > 0) * 2.0 + (X[:, 1] > 1e-20) + np.nan_to_num(np.abs(X[:, 2]) > 1e5)
    load = {"cancer": datasets.load_breast_cancer, "diabetes": datasets.load_diabetes,
            "digits": datasets.load_digits, "wine": datasets.load_wine}[name]
    return load(return_X_y=True)


# name → data, rounds, parameters
CASES = {
    "regression": ("diabetes", 20, {}),
    "logistic": ("cancer", 30, {"objective": "binary:logistic"}),
    "missing": ("cancer_holes", 30, {"objective": "binary:logistic"}),
    "logitraw": ("cancer", 10, {"objective": "binary:logitraw"}),
    "hinge": ("cancer", 10, {"objective": "binary:hinge"}),
    "rare base": ("cancer", 5, {"objective": "binary:logistic", "base_score": 1e-8}),
    "certain base": ("cancer", 5, {"objective": "binary:logistic", "base_score": 1.0}),
    "given base": ("diabetes", 5, {"base_score": -1e6}),
    "reg:logistic": ("diabetes01", 10, {"objective": "reg:logistic"}),
    "quantiles": ("diabetes", 10, {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}),
    "aft": ("diabetes", 10, {"objective": "survival:aft"}),
    "softprob": ("digits", 6, {"objective": "multi:softprob", "num_class": 10}),
    "softmax": ("wine", 10, {"objective": "multi:softmax", "num_class": 3}),
    "lossguide": ("diabetes", 10, {"grow_policy": "lossguide", "max_leaves": 150, "max_depth": 0}),
    "deep": ("diabetes", 3, {"max_depth": 60, "min_child_weight": 0, "reg_lambda": 0, "tree_method": "exact"}),
    "pruned": ("diabetes", 10, {"tree_method": "exact", "gamma": 30_000.0, "max_depth": 8}),
    "stumps of one leaf": ("diabetes", 3, {"gamma": 1e30}),
    "extremes": ("extremes", 20, {"max_depth": 8, "tree_method": "exact"}),
    "extremes by hist": ("extremes", 20, {"max_depth": 8}),
    "forest": ("cancer", 4, {"objective": "binary:logistic", "num_parallel_tree": 6, "subsample": 0.5}),
    "dart": ("diabetes", 20, {"booster": "dart", "rate_drop": 0.4}),
    "dart softprob": ("wine", 10, {"booster": "dart", "rate_drop": 0.4, "objective": "multi:softprob",
                                   "num_class": 3}),
    "targets": ("diabetes3", 10, {}),
    "labels": ("cancer2", 10, {"objective": "binary:logistic"}),
    "vector leaves": ("diabetes3", 10, {"multi_strategy": "multi_output_tree"}),
    "vector softprob": ("wine", 10, {"multi_strategy": "multi_output_tree", "objective": "multi:softprob",
                                     "num_class": 3}),
} | {objective: ("diabetes01", 8, {"objective": objective}) for objective in (
    "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "reg:gamma", "reg:tweedie", "count:poisson",
    "survival:cox")
} | {objective: ("cancer", 8, {"objective": objective}) for objective in ("rank:pairwise", "rank:ndcg", "rank:map")}

N_CLASSES = {"logistic": 2, "missing": 2, "hinge": 2, "rare base": 2, "certain base": 2, "softprob": 10, "softmax": 3,
             "forest": 2, "dart softprob": 3, "labels": 2, "vector softprob": 3}


def matrix(X: np.ndarray, y: np.ndarray | None = None, **options) -> xgboost.DMatrix:
    return xgboost.DMatrix(X, y, nthread=1, **options)


@cache
def trained(case: str) -> xgboost.Booster:
    name, rounds, parameters = CASES[case]
    X, y = data(name)
    train = matrix(X, y)
    if case == "aft":
        train = matrix(X, label_lower_bound=y, label_upper_bound=y * 1.5)
    return xgboost.train({"nthread": 1, "verbosity": 0, "seed": 1, **parameters}, train, rounds)


def file_of(booster: xgboost.Booster, form: str = "json") -> bytes:
    return bytes(booster.save_raw(form))


def document_of(booster: xgboost.Booster) -> dict:
    return json.loads(file_of(booster))


def trees_of(document: dict) -> list[dict]:
    booster = document["learner"]["gradient_booster"]
    return booster.get("gbtree", booster)["model"]["trees"]


def read_document(document: dict) -> Booster:
    return xgboost_json.read(json.dumps(document).encode(), "m.json")


def loaded(document: dict) -> xgboost.Booster:
    """What XGBoost makes of a document."""
    booster = xgboost.Booster()
    booster.load_model(bytearray(json.dumps(document).encode()))
    return booster


def check_equal(booster: Booster, expected: xgboost.Booster, X: np.ndarray, test: xgboost.DMatrix) -> None:
    """Raw scores are XGBoost's bit for bit; predictions within what float32's exp loses."""
    raw = naive_trees.raw_scores(booster.ensemble, X)
    margins = expected.predict(test, output_margin=True).reshape(len(X), -1)
    assert raw.astype(np.float32).tobytes() == margins.tobytes()
    predictions = naive_trees.apply_link(booster, raw)
    theirs = expected.predict(test)
    np.testing.assert_allclose(predictions.reshape(len(X), -1), theirs.reshape(len(X), -1), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("case", CASES)
def test_predictions_are_xgboosts(case):
    expected = trained(case)
    X = data(CASES[case][0])[0][:N_ROWS]
    booster = xgboost_json.read(file_of(expected), "m.json")
    check_equal(booster, expected, X, matrix(X))
    assert booster.n_classes == N_CLASSES.get(case, 0)
    assert booster.link in LINKS and booster.model_type == "xgboost"


@pytest.mark.parametrize("case", CASES)
def test_ubjson_and_json_of_a_model_give_the_same_ensemble(case):
    one, other = (xgboost_json.read(file_of(trained(case), form), "m") for form in ("json", "ubj"))
    assert one.ensemble.sets == () == other.ensemble.sets
    for name, value in vars(one.ensemble).items():
        np.testing.assert_array_equal(value, getattr(other.ensemble, name), err_msg=name)
    assert (one.link, one.n_classes) == (other.link, other.n_classes)


def test_cases_do_hold_what_they_are_for():
    def total(case: str, field: str) -> int:
        return sum(int(tree["tree_param"][field]) for tree in trees_of(document_of(trained(case))))

    assert total("pruned", "num_deleted") > 0
    assert total("stumps of one leaf", "num_nodes") == 3
    assert len(set(document_of(trained("dart"))["learner"]["gradient_booster"]["weight_drop"])) > 3
    assert "leaf_weights" in trees_of(document_of(trained("vector leaves")))[0]
    depths = [line.count("\t") for line in "\n".join(trained("deep").get_dump()).splitlines()]
    assert max(depths) > 15


def test_every_objective_of_xgboost_is_read_or_refused_by_name():
    tried = {parameters.get("objective", "reg:squarederror") for _, _, parameters in CASES.values()}
    assert tried | {"reg:linear"} == set(xgboost_json.OBJECTIVES)
    document = document_of(trained("regression"))
    document["learner"]["objective"]["name"] = "reg:expectileerror"
    with pytest.raises(ModelError, match="m.json: expected an objective of .*'reg:expectileerror'"):
        read_document(document)


def test_linear_booster_is_refused_by_name():
    linear = xgboost.train({"booster": "gblinear", "nthread": 1, "updater": "coord_descent"},
                           matrix(*data("diabetes")), 2)
    for form in ("json", "ubj"):
        with pytest.raises(ModelError, match="'gblinear': linear boosters are not read"):
            xgboost_json.read(file_of(linear, form), "m")


def test_all_trees_count_after_early_stopping_as_in_booster_predict():
    X, y = data("diabetes")
    early = xgboost.train({"nthread": 1, "eta": 1.0}, matrix(X[:200], y[:200]), 30, early_stopping_rounds=3,
                          evals=[(matrix(X[200:], y[200:]), "v")], verbose_eval=False)
    booster = xgboost_json.read(file_of(early), "m")
    assert early.best_iteration + 1 < len(booster.ensemble.root) == early.num_boosted_rounds()
    check_equal(booster, early, X[:50], matrix(X[:50]))


@pytest.mark.parametrize("case", ["regression", "softprob", "pruned", "vector leaves"])
def test_cover_and_features_are_those_of_the_dump(case):
    ensemble = xgboost_json.read(file_of(trained(case)), "m").ensemble
    if case == "vector leaves":  # XGBoost has no dump of these
        stored = [tree["sum_hessian"] for tree in trees_of(document_of(trained(case)))]
        np.testing.assert_array_equal(ensemble.cover, np.concatenate(stored).astype(np.float32))
        return
    frame = trained(case).trees_to_dataframe().sort_values(["Tree", "Node"])
    np.testing.assert_allclose(ensemble.cover, frame["Cover"], rtol=1e-5)
    names = np.where(ensemble.feature < 0, "Leaf", np.char.add("f", ensemble.feature.astype(str)))
    assert names.tolist() == frame["Feature"].tolist()


def test_names_of_features_are_read():
    X, y = data("diabetes")
    names = [f"α {i}" for i in range(X.shape[1])]
    for form in ("json", "ubj"):
        named = xgboost.train({"nthread": 1}, matrix(X, y, feature_names=names), 1)
        assert xgboost_json.read(file_of(named, form), "m").feature_names == tuple(names)
    assert xgboost_json.read(file_of(trained("regression")), "m").feature_names is None


# --- categories -----------------------------------------------------------------------------------

@cache
def frame() -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Columns of numbers and of categories, the same as codes (n, 4), and labels."""
    rng = np.random.default_rng(1)
    columns = pd.DataFrame({
        "number": rng.normal(size=500),
        "city": pd.Categorical(rng.choice(["Cadiz", "", "a,b", "Z", "x"], 500)),
        "size": pd.Categorical(rng.choice([-7, 300, 70_000], 500)),
        "many": pd.Categorical(rng.choice([f"c{i}" for i in range(90)], 500))})
    codes = np.column_stack([columns["number"]] + [columns[name].cat.codes for name in ("city", "size", "many")])
    labels = columns["number"].to_numpy() + (codes[:, 1] % 2) * 2 + (codes[:, 2] == 1) + np.sin(codes[:, 3])
    for name, column in (("city", 1), ("many", 3)):
        missing = rng.random(500) < 0.15
        columns.loc[missing, name] = None
        codes[missing, column] = np.nan
    return columns, codes, labels


CATEGORICAL = {
    "sets": {}, "one hot": {"max_cat_to_onehot": 200}, "sets of all": {"max_cat_threshold": 100, "max_depth": 9},
    "approx": {"tree_method": "approx"},
    "pruned": {"updater": "grow_quantile_histmaker,prune", "gamma": 5.0, "max_depth": 8},
    "dart": {"booster": "dart", "rate_drop": 0.3},
}


@cache
def categorical(case: str) -> xgboost.Booster:
    columns, _, labels = frame()
    return xgboost.train({"nthread": 1, "verbosity": 0, **CATEGORICAL[case]},
                         matrix(columns, labels, enable_categorical=True), 15)


@pytest.mark.parametrize("form", ["json", "ubj"])
@pytest.mark.parametrize("case", CATEGORICAL)
def test_categorical_splits_are_xgboosts(case, form):
    columns, codes, _ = frame()
    booster = xgboost_json.read(file_of(categorical(case), form), "m")
    assert booster.ensemble.sets
    check_equal(booster, categorical(case), codes[:N_ROWS], matrix(columns[:N_ROWS], enable_categorical=True))


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_values_that_codes_stand_for_are_read(form):
    booster = xgboost_json.read(file_of(categorical("sets"), form), "m")
    columns = frame()[0]
    assert booster.feature_names == tuple(columns)
    assert booster.categories == (None, *(tuple(columns[name].cat.categories) for name in ("city", "size", "many")))


def test_names_that_xgboost_before_3_4_cut_at_wrong_places_are_left_out():
    names = pd.Categorical(["Cádiz", "Zürich", "x", "Cádiz"] * 20)
    columns = pd.DataFrame({"city": names, "other": pd.Categorical(["a", "b"] * 40)})
    model = xgboost.train({"nthread": 1}, matrix(columns, names.codes % 2, enable_categorical=True), 2)
    document = document_of(model)
    assert read_document(document).categories == (None, ("a", "b"))
    text = "".join(names.categories).encode()
    document["version"] = [3, 4, 0]
    document["learner"]["gradient_booster"]["model"]["cats"]["enc"][0] = {
        "offsets": [0, 6, 13, 14], "values": np.frombuffer(text, np.int8).tolist()}
    assert read_document(document).categories == (tuple(names.categories), ("a", "b"))


def test_codes_that_are_no_category_go_where_xgboost_sends_them():
    X = frame()[1][:90].copy()
    X[:, 1] = np.resize([-1, -0.5, 0.5, 1.9, 4, 5, 31, 32, 2.0**24, 2.0**24 - 1, 3e9, -0.0, np.nan], 90)
    X[:, 3] = np.resize([89, 89.99, 90, 95, 96, 1e30, -1e30, 0, -1e-30], 90)
    types = ["q", "c", "c", "c"]
    plain = xgboost.train({"nthread": 1}, matrix(np.abs(frame()[1]), frame()[2], feature_types=types), 15)
    booster = xgboost_json.read(file_of(plain), "m")
    assert booster.categories is None
    check_equal(booster, plain, X, matrix(X, feature_types=types))


# --- forms that other versions write --------------------------------------------------------------

def test_form_of_version_1_0_is_read():
    document = document_of(trained("missing"))
    document["version"] = [1, 0, 0]
    learner = document["learner"]
    learner["learner_model_param"] = {"base_score": "0.250000", "num_class": "0", "num_feature": "30"}
    del learner["feature_names"], learner["feature_types"], learner["gradient_booster"]["model"]["cats"]
    del learner["gradient_booster"]["model"]["iteration_indptr"]
    for tree in trees_of(document):
        for field in ("split_type", "categories", "categories_nodes", "categories_segments", "categories_sizes"):
            del tree[field]
        tree["tree_param"]["size_leaf_vector"] = "0"
        tree["default_left"] = [bool(left) for left in tree["default_left"]]
    X = data("cancer_holes")[0][:N_ROWS]
    check_equal(read_document(document), loaded(document), X, matrix(X))


def test_vector_leaves_of_version_2_are_those_of_all_nodes():
    document = document_of(trained("vector leaves"))
    expected = read_document(document).ensemble
    for tree in trees_of(document):
        leaves = np.flatnonzero(np.array(tree["left_children"]) == -1)
        weights = np.zeros((len(tree["left_children"]), 3))
        weights[leaves] = np.reshape(tree.pop("leaf_weights"), (-1, 3))[np.array(tree["right_children"])[leaves]]
        tree["base_weights"] = weights.ravel().tolist()
        for leaf in leaves:
            tree["right_children"][leaf] = -1
        del tree["sum_hessian"]
    booster = read_document(document)
    X = data("diabetes3")[0][:20]
    assert booster.ensemble.cover is None
    np.testing.assert_array_equal(naive_trees.raw_scores(booster.ensemble, X), naive_trees.raw_scores(expected, X))


def test_dart_weights_beside_the_trees_are_read_and_missing_ones_are_1():
    document = document_of(trained("dart"))
    dart = document["learner"]["gradient_booster"]
    weights = dart["weight_drop"]
    document["learner"]["gradient_booster"] = {
        "name": "gbtree", "model": dart["gbtree"]["model"] | {"weight_drop": weights[:7]}}
    short = read_document(document).ensemble
    dart["weight_drop"] = weights[:7] + [1.0] * (len(weights) - 7)
    document["learner"]["gradient_booster"] = dart
    np.testing.assert_array_equal(short.leaf_values, read_document(document).ensemble.leaf_values)


@pytest.mark.parametrize("version, accepted", [([3, 3, 0], True), ([3, 4, 0], False)])
def test_quantiles_that_later_versions_sort_are_refused(version, accepted):
    document = document_of(trained("quantiles")) | {"version": version}
    if accepted:
        assert read_document(document).ensemble.n_outputs == 3
        return
    with pytest.raises(ModelError, match="expected one quantile, found 3"):
        read_document(document)


@pytest.mark.parametrize("threshold", [0.0, -0.0, 1e-45, -1e-45, FLOAT_MAX, -FLOAT_MAX, float("inf"), float("-inf"),
                                       1.0, 1.1754943508222875e-38, 3.0000001])
@pytest.mark.parametrize("default_left", [0, 1])
def test_values_beside_a_threshold_go_where_xgboost_sends_them(threshold, default_left):
    document = document_of(trained("stumps of one leaf"))
    for tree in trees_of(document):
        tree |= {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "parents": [2147483647, 0, 0],
                 "split_conditions": [threshold, 1.0, 2.0], "split_indices": [3, 0, 0], "split_type": [0] * 3,
                 "default_left": [default_left, 0, 0], "base_weights": [0.0] * 3, "sum_hessian": [2.0, 1.0, 1.0],
                 "loss_changes": [0.0] * 3}
        tree["tree_param"]["num_nodes"] = "3"
    t = np.float32(threshold)
    with np.errstate(all="ignore"):
        near = [t, np.nextafter(t, np.float32(np.inf)), np.nextafter(t, np.float32(-np.inf))]
    values = [x for x in [*near, 0.0, -0.0, FLOAT_MAX, -FLOAT_MAX, np.nan, 3.00000005, 3.0000001] if not np.isinf(x)]
    X = np.zeros((len(values), 10))
    X[:, 3] = values
    check_equal(read_document(document), loaded(document), X, matrix(X))


def test_infinite_values_are_above_and_below_every_finite_threshold():
    booster = xgboost_json.read(file_of(trained("extremes")), "m")  # XGBoost itself refuses infinite values
    X = np.zeros((4, 4))
    X[:, 0] = np.inf, FLOAT_MAX, -np.inf, -FLOAT_MAX
    X[:, 2] = np.inf, 1e300, -np.inf, -1e300
    with np.errstate(over="ignore"):
        raw = naive_trees.raw_scores(booster.ensemble, X)
    assert (raw[0], raw[2]) == (raw[1], raw[3])


# --- files that lie -------------------------------------------------------------------------------

def set_at(value, path: str, new):
    """Put `new` at a path such as learner.gradient_booster.model.trees.0.left_children; `del` takes it away."""
    *parents, last = path.split(".")
    for key in parents:
        value = value[int(key) if isinstance(value, list) else key]
    key = int(last) if isinstance(value, list) else last
    if new is del_:
        del value[key]
    else:
        value[key] = new


del_ = object()
MODEL = "learner.gradient_booster.model."
TREE = MODEL + "trees.0."
PARAMETERS = "learner.learner_model_param."

LIES = [
    ("learner", del_, "the field learner"), ("learner", [], "the field objective.name"),
    ("learner.objective", "x", "the field objective.name"), ("learner.objective.name", 3, "the objective's name"),
    ("learner.objective.name", "reg:new", "an objective of .*'reg:new'"), ("learner.gradient_booster", 1, "name"),
    ("learner.gradient_booster.name", "tree", "gbtree or dart, found 'tree'"), (MODEL + "trees", [], "one tree"),
    (MODEL + "trees", {}, "list for trees"), (MODEL + "trees.0", 5, "tree_param"),
    (MODEL + "trees.1", None, "tree_param"),
    (MODEL + "tree_info", [0], "outputs in tree_info"), (MODEL + "tree_info.1", 1, "outputs from 0 to 0"),
    (MODEL + "tree_info.1", -1, "outputs from 0 to 0"), (MODEL + "weight_drop", [1.0] * 9, "at most 3 numbers"),
    (MODEL + "weight_drop", [1e300], "finite leaf values"),
    (PARAMETERS + "num_feature", "0", "integer from 1"), (PARAMETERS + "num_feature", str(10**12), "integer from 1"),
    (PARAMETERS + "num_feature", "2", "features from 0 to 1"), (PARAMETERS + "num_feature", "9" * 5000, "integer"),
    (PARAMETERS + "num_class", str(10**9), "a tree for each of 1000000000 outputs"),
    (PARAMETERS + "num_target", str(10**9), "a tree for each of 1000000000 outputs"),
    (PARAMETERS + "base_score", "x", "numbers in base_score"),
    (PARAMETERS + "base_score", None, "numbers in base_score"),
    (PARAMETERS + "base_score", "[]", "1 or 1 numbers in base_score, found 0"),
    (PARAMETERS + "base_score", "[1, 2]", "found 2"), (PARAMETERS + "base_score", "NaN", "a base_score that is finite"),
    (PARAMETERS + "base_score", "[" * 10**5, "numbers in base_score"), (PARAMETERS + "base_score", "1e99", "finite"),
    (TREE + "tree_param.num_nodes", str(10**9), "a list of 1000000000 numbers for"),
    (TREE + "tree_param.num_nodes", "-1", "integer from 1"), (TREE + "tree_param.num_nodes", 3.5, "integer from 1"),
    (TREE + "tree_param.size_leaf_vector", str(10**9), "1000000000 values for every leaf"),
    (TREE + "left_children", del_, "the field left_children"), (TREE + "left_children", [], "numbers for left"),
    (TREE + "left_children.0", "1", "numbers for left_children"), (TREE + "left_children.0", 1.0, "numbers for left"),
    (TREE + "left_children.0", 0, "one parent"), (TREE + "left_children.1", 1, "one parent"),
    (TREE + "left_children.0", 10**6, "children from 0"), (TREE + "left_children.0", -2, "children from 0"),
    (TREE + "left_children.0", 2**70, "64 bits for left_children"), (TREE + "right_children.0", 1, "one parent"),
    (TREE + "left_children.0", -1, "one parent"), (TREE + "left_children.0", [1], "numbers for left_children"),
    (TREE + "split_indices.0", 10, "features from 0 to 9"), (TREE + "split_indices.0", -1, "below a root|one parent"),
    (TREE + "split_indices.0", 2**31 - 1, "first node that is not deleted"),
    (TREE + "split_indices.1", 2**31 - 1, "children that exist"),
    (TREE + "split_conditions.0", float("nan"), "numbers"),
    (TREE + "split_conditions.0", None, "numbers for split_conditions"),
    (TREE + "split_conditions.6", float("nan"), "finite leaf values"),
    (TREE + "split_type", [1] * 7, "7 numbers for categories_segments"),
    (TREE + "split_conditions.6", 1e39, "finite leaf values"),
    (TREE + "default_left", None, "numbers for default_left"),
    (TREE + "sum_hessian", [1.0], "7 numbers for sum_hessian"), ("learner.feature_names", ["a"], "10 different"),
    ("learner.feature_names", ["a"] * 10, "10 different"), ("learner.feature_names", "abc", "list for feature_names"),
    ("learner.feature_names", ["\ud800"] * 10, "a text for a feature's name"),
    (MODEL + "cats.enc", [{}], "categories for 10 features"), (MODEL + "cats", 3, "the field enc"),
]


@cache
def small() -> xgboost.Booster:
    """Three trees of seven nodes."""
    return xgboost.train({"nthread": 1, "max_depth": 2}, matrix(*data("diabetes")), 3)


@pytest.mark.parametrize("path, new, expected", LIES, ids=[f"{path}={str(new)[:20]}" for path, new, _ in LIES])
def test_field_that_lies_is_refused_by_name(path, new, expected):
    document = document_of(small())
    assert len(read_document(document).ensemble.root) == 3
    set_at(document, path, new)
    with pytest.raises(ModelError, match=f"^m.json: expected .*{expected}"):
        read_document(document)


CATEGORY_LIES = [
    ("categories_segments.1", 0, "follow each other"), ("categories_sizes.0", 10**9, "follow each other"),
    ("categories_sizes.0", 0, "follow each other"), ("categories.0", 1 << 24, "categories from 0"),
    ("categories.0", -1, "categories from 0"), ("categories.1", 0, "ascending"), ("categories_nodes.0", 1, "nodes of"),
    ("split_type.0", 0, "numbers for categories_segments"), ("categories", [], "follow each other"),
]


@pytest.mark.parametrize("path, new, expected", CATEGORY_LIES)
def test_categories_that_lie_are_refused(path, new, expected):
    document = document_of(categorical("sets"))
    number, tree = next((number, tree) for number, tree in enumerate(trees_of(document))
                        if tree["split_type"][0] and tree["categories"][0] == 0)
    assert len(tree["categories_nodes"]) > 1
    set_at(tree, path, new)
    with pytest.raises(ModelError, match=f"expected .*{expected}"):
        read_document(document)


@pytest.mark.parametrize("path, new, expected", [
    ("1.offsets.1", 99, "cats.offsets to divide"), ("1.values.1", 255, "UTF-8"), ("1.offsets", [], "cats.offsets"),
    ("2.type", 8, "integer from 9 to 16"), ("2.values", [300, 300], "different values"), ("2", 0, "field values"),
])
def test_values_of_categories_that_lie_are_refused(path, new, expected):
    document = document_of(categorical("sets")) | {"version": [3, 4, 0]}
    set_at(document["learner"]["gradient_booster"]["model"]["cats"]["enc"], path, new)
    with pytest.raises(ModelError, match=f"expected .*{expected}"):
        read_document(document)


@pytest.mark.parametrize("data", [
    b"", b"binf\x00\x00", b"[]", b"{", b"{}", b'{"learner": 1', b"{\xff", b'{"\xff": 1}', b"{}{}", b'{"a":' * 10**5,
    b'{"a": 1' + b"0" * 5000 + b"}", b'\xef\xbb\xbf{"a": 1}', "{}".encode("utf-16"), b"{" + b"[" * 10**5])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(ModelError, match="m: expected"):
        xgboost_json.read(data, "m")


def test_memory_is_not_a_product_of_two_lengths():
    document = document_of(small())
    tree = trees_of(document)[0]
    tree["split_conditions"] = ["a" * 50_000] + [""] * 50_000
    tree["tree_param"]["num_nodes"] = "50001"
    tree |= {"left_children": [-1] * 50_001, "right_children": [-1] * 50_001, "split_indices": [0] * 50_001}
    content = json.dumps(document).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="50001 numbers for split_conditions"):
            xgboost_json.read(content, "m")
        assert tracemalloc.get_traced_memory()[1] < 30 * len(content)
    finally:
        tracemalloc.stop()


# --- mutations ------------------------------------------------------------------------------------

VALUES = [None, True, -1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 10**9, 2**63, 2**70, 0.5, -1e300, float("nan"), float("inf"),
          "", "0", "1", "1000000000", "[1,2]", [], {}, [0], [[0]], {"a": 1}, [None], "x" * 50]


def places(value, path=()) -> list[tuple]:
    """Every path in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def write_ubjson(value) -> bytes:
    """A document as UBJSON: lists of whole numbers and of others typed, as XGBoost writes them."""
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        return b"L" + struct.pack(">q", value) if abs(value) < 2**63 else b"Z"
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"SL" + struct.pack(">q", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b"{" + b"".join(write_ubjson(key)[1:] + write_ubjson(item) for key, item in value.items()) + b"}"
    count = b"#L" + struct.pack(">q", len(value))
    if value and set(map(type, value)) == {int} and max(map(abs, value)) < 2**31:
        return b"[$l" + count + np.array(value, ">i4").tobytes()
    if value and set(map(type, value)) == {float}:
        with np.errstate(over="ignore"):
            return b"[$d" + count + np.array(value, ">f8").astype(">f4").tobytes()
    return b"[" + count + b"".join(map(write_ubjson, value))


def read_or_refused(content: bytes) -> bool:
    """Whether a booster came out; a sound one can predict."""
    try:
        booster = xgboost_json.read(content, "m")
    except ModelError as error:
        assert len(str(error)) < 600
        return False
    assert booster.ensemble.n_features < 10**8 and booster.ensemble.n_outputs < 10**4
    if booster.ensemble.n_features < 100:
        row = np.linspace(-1, 3, booster.ensemble.n_features)[None]
        assert naive_trees.raw_scores(booster.ensemble, row).shape == (1, booster.ensemble.n_outputs)
    return True


@pytest.mark.parametrize("source", ["plain", "categorical", "vectors"])
def test_documents_with_wrong_values_are_read_soundly_or_refused(source):
    rng = random.Random(source)
    X, y = data("diabetes3" if source == "vectors" else "diabetes")
    model = {"plain": small, "categorical": lambda: xgboost.train(
        {"nthread": 1, "max_depth": 3}, matrix(frame()[0], frame()[2], enable_categorical=True), 2),
        "vectors": lambda: xgboost.train({"nthread": 1, "multi_strategy": "multi_output_tree", "max_depth": 2},
                                         matrix(X, y), 2)}[source]()
    text = file_of(model)
    all_places = places(json.loads(text))
    n_read = 0
    for turn in range(700):
        document = json.loads(text)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            *parents, last = rng.choice(all_places[1:])
            value = document
            try:
                for key in parents:
                    value = value[key]
                if rng.random() < 0.1:
                    del value[last]
                else:
                    value[last] = rng.choice(VALUES)
            except (TypeError, KeyError, IndexError):
                continue  # an earlier change took this place away
        content = json.dumps(document).encode() if turn % 2 else write_ubjson(document)
        n_read += read_or_refused(content)
    assert 70 < n_read < 690


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_files_with_wrong_bytes_are_read_soundly_or_refused(form):
    rng = random.Random(form)
    model = file_of(small(), form)
    alphabet = b'0123456789-+.eE[]{},:"truefalsnN \x00\xff$#LlUiIdDSTFZ\x7f\x80'
    n_read = 0
    for _ in range(2500):
        content = bytearray(model)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(content))
            if rng.random() < 0.8:
                content[at] = rng.choice(alphabet)
            elif rng.random() < 0.5:
                del content[at:at + rng.choice([1, 2, 8, 200])]
            else:
                content[at:at] = content[rng.randrange(len(content)):][:rng.choice([1, 8, 100])]
        n_read += read_or_refused(bytes(content))
    assert 50 < n_read < 2450


def test_written_ubjson_is_what_xgboost_writes():
    ours, theirs = ubjson.read(write_ubjson(document_of(small()))), ubjson.read(file_of(small(), "ubj"))
    one, other = ours["learner"]["gradient_booster"]["model"], theirs["learner"]["gradient_booster"]["model"]
    np.testing.assert_array_equal(one["trees"][2]["split_conditions"], other["trees"][2]["split_conditions"])
