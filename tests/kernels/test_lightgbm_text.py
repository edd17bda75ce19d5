"""The LightGBM reader against LightGBM, which loads the same text; and texts that lie."""

import random
import re
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from kernels import ModelError, lightgbm_text
from kernels.ensemble import Booster
from tests import naive_trees

ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold
EXTREMES = [np.nan, 0.0, -0.0, 5e-324, 1e-36, 1e-35, ZERO, np.nextafter(ZERO, 1), 2e-35, 0.5, 0.999, 1.0, 1.5, 2.0, 3.7,
            31.0, 32.0, 33.0, 40.0, 63.0, 64.0, 2.0**31 - 1, 2.0**31, 2.0**31 + 2, 2.0**32, 2.0**32 + 1, 2.0**53, 1e19,
            1e30, 1e300, 1.7e308, np.inf]


def train(X, y, rounds: int = 20, weight=None, categorical="auto", **parameters) -> lightgbm.Booster:
    parameters = {"objective": "regression", "verbose": -1, "num_threads": 1, "seed": 1} | parameters
    data = lightgbm.Dataset(X, y, weight=weight, categorical_feature=categorical, params={"verbose": -1})
    return lightgbm.train(parameters, data, rounds)


def predict(booster: Booster, X) -> np.ndarray:
    return naive_trees.apply_link(booster, naive_trees.raw_scores(booster.ensemble, X))


def assert_same(text: str, X: np.ndarray) -> Booster:
    """What is read from `text` predicts as LightGBM does that has loaded it, but for sizes that edits made wrong."""
    text = re.sub("tree_sizes=.*\n", "", text)
    ours, theirs = lightgbm_text.read(text, "model.txt"), lightgbm.Booster(model_str=text)
    np.testing.assert_allclose(predict(ours, X), theirs.predict(X, num_threads=1), rtol=1e-12, atol=1e-14)
    return ours


def extreme_rows(n_features: int, n: int, seed: int = 0) -> np.ndarray:
    """(n, n_features): each value extreme, its sign random."""
    rng = np.random.default_rng(seed)
    return rng.choice(EXTREMES, (n, n_features)) * rng.choice([-1.0, 1.0], (n, n_features))


def generated(n: int = 600, n_features: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with missing values and zeros, and a target that depends on them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features))
    X[rng.random(X.shape) < 0.2] = np.nan
    X[rng.random(X.shape) < 0.2] = 0.0
    y = np.where(np.isnan(X), 0.7, np.where(X == 0, -0.3, X)) @ np.arange(1, n_features + 1)
    return X, y + rng.normal(size=n) * 0.1


# ---- objectives --------------------------------------------------------------------------------------------

REGRESSIONS = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "poisson", "gamma", "tweedie")


@pytest.mark.parametrize("reg_sqrt", [False, True])
@pytest.mark.parametrize("objective", REGRESSIONS)
def test_regressions(objective, reg_sqrt):
    X, y = datasets.load_diabetes(return_X_y=True)
    booster = assert_same(train(X, y, objective=objective, reg_sqrt=reg_sqrt).model_to_string(), X[:150])
    assert booster.n_classes == 0


@pytest.mark.parametrize("objective", [*REGRESSIONS, "lambdarank", "rank_xendcg", "cross_entropy_lambda"])
def test_sqrt_after_any_objective(objective):
    X, y = generated(100)
    text = train(X, y / 20, 3).model_to_string()
    assert_same(text.replace("objective=regression\n", f"objective={objective} sqrt\n", 1), X)


@pytest.mark.parametrize("objective, n_classes", [("binary", 2), ("cross_entropy", 0), ("cross_entropy_lambda", 0)])
def test_two_classes(objective, n_classes):
    X, y = datasets.load_breast_cancer(return_X_y=True)
    booster = assert_same(train(X, y, objective=objective, sigmoid=0.7).model_to_string(), X[:150])
    assert booster.n_classes == n_classes


@pytest.mark.parametrize("objective", ["multiclass", "multiclassova"])
@pytest.mark.parametrize("load, n_classes", [(datasets.load_wine, 3), (datasets.load_digits, 10)])
def test_many_classes(load, n_classes, objective):
    X, y = load(return_X_y=True)
    model = train(X, y, 8, objective=objective, num_class=n_classes, sigmoid=1.3)
    assert assert_same(model.model_to_string(), X[:60]).n_classes == n_classes


@pytest.mark.parametrize("objective", ["lambdarank", "rank_xendcg"])
def test_rankings(objective):
    X, y = generated()
    data = lightgbm.Dataset(X, np.digitize(y, [-5, 0, 5]), group=[60] * 10, params={"verbose": -1})
    model = lightgbm.train({"objective": objective, "verbose": -1, "num_threads": 1}, data, 10)
    assert assert_same(model.model_to_string(), X[:100]).n_classes == 0


def test_own_objective_gives_raw_scores():
    X, y = generated()
    model = train(X, y, objective=lambda score, data: (score - data.get_label(), np.ones(len(score))))
    assert "objective=" not in model.model_to_string().split("Tree=0")[0]
    assert assert_same(model.model_to_string(), X[:100]).link == "identity"


def test_own_objective_with_many_outputs_gives_raw_scores():
    X, y = generated()
    model = train(X, y, 5, objective=lambda score, data: (score - data.get_label()[:, None], np.ones_like(score)),
                  num_class=3)
    assert assert_same(model.model_to_string(), X[:100]).ensemble.n_outputs == 3


@pytest.mark.parametrize("boosting", ["gbdt", "dart", "rf"])
@pytest.mark.parametrize("objective, n_classes", [("regression", 1), ("binary", 1), ("multiclass", 3)])
def test_ways_of_boosting(objective, n_classes, boosting):
    X, y = generated()
    y = y if objective == "regression" else np.digitize(y, [0, 5][:max(1, n_classes - 1)])
    model = train(X, y, 7, objective=objective, num_class=n_classes, boosting=boosting, bagging_freq=1,
                  bagging_fraction=0.6)
    assert_same(model.model_to_string(), X[:100])


# ---- decisions ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("missing", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=str)
def test_missing_and_extreme_values(missing):
    X, y = generated()
    text = train(X, y, **missing).model_to_string()
    assert_same(text, np.concatenate([X[:200], extreme_rows(5, 300)]))


def numeric_text() -> str:
    """A model whose inner nodes come with each missing type and default direction."""
    rng, (X, y) = random.Random(0), generated()
    text = train(X, y, num_leaves=15).model_to_string()
    return re.sub(r"(?<=decision_type=).*", lambda line: re.sub(
        r"\d+", lambda _: str(rng.choice([0, 2, 4, 6, 8, 10])), line[0]), text)


def test_each_missing_type_and_default_direction():
    assert_same(numeric_text(), np.concatenate([generated()[0][:200], extreme_rows(5, 300)]))


def test_values_around_zero_are_zero():
    rng = random.Random(0)
    edges = [0.0, -0.0, 1e-36, -1e-36, ZERO, -ZERO, np.nextafter(ZERO, 1), np.nextafter(ZERO, 0),
             -np.nextafter(ZERO, 1), -np.nextafter(ZERO, 0), 5e-324, -5e-324, 1e300, -1e300]
    text = re.sub(r"(?<=threshold=).*", lambda line: re.sub(
        r"\S+", lambda _: repr(float(rng.choice(edges))), line[0]), numeric_text())
    values = np.array([x for edge in [*edges, np.nan, np.inf, -np.inf] for x in (edge, np.nextafter(edge, 1))])
    assert_same(text, np.random.default_rng(0).choice(values, (500, 5)))


def categorical_model(**parameters) -> tuple[str, np.ndarray]:
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.integers(0, 70, 1500), rng.integers(0, 4, 1500), rng.normal(size=1500)]).astype(float)
    X[rng.random(X.shape) < 0.1] = np.nan
    effect = rng.normal(size=71) * 3
    y = effect[np.nan_to_num(X[:, 0], nan=70).astype(int)] + (X[:, 1] == 2) + np.nan_to_num(X[:, 2])
    model = train(X, y, categorical=[0, 1], min_data_per_group=5, cat_smooth=1, min_data_in_leaf=3, **parameters)
    return model.model_to_string(), X


@pytest.mark.parametrize(
    "parameters", [{}, {"use_missing": False}, {"zero_as_missing": True}, {"max_cat_to_onehot": 99}], ids=str)
def test_categories(parameters):
    text, X = categorical_model(**parameters)
    booster = assert_same(text, np.concatenate([X[:200], extreme_rows(3, 400)]))
    assert (max(map(len, booster.ensemble.sets)) == 1) == ("max_cat_to_onehot" in parameters)
    assert booster.categories is None


def test_category_splits_send_missing_values_right_whatever_their_bits():
    text, X = categorical_model()
    rng = random.Random(1)
    text = re.sub(r"(?<=decision_type=).*", lambda line: re.sub(
        r"\d+", lambda bits: str(int(bits[0]) & 1 | rng.choice([0, 2, 4, 6, 8, 10])), line[0]), text)
    assert_same(text, np.concatenate([X[:200], extreme_rows(3, 400)]))


# ---- shapes of trees ---------------------------------------------------------------------------------------

def test_unbalanced_trees_and_weights():
    X, y = generated(1500)
    rng = np.random.default_rng(0)
    y = y + np.where(rng.random(1500) < 0.01, rng.normal(size=1500) * 1e6, 0)
    text = train(X, y, 10, weight=rng.random(1500) * 10, num_leaves=800, min_data_in_leaf=1, max_depth=-1,
                 min_sum_hessian_in_leaf=0).model_to_string()
    assert int(re.search(r"num_leaves=(\d+)", text)[1]) > 300
    assert_same(text, np.concatenate([X[:100], extreme_rows(5, 100)]))


def test_trees_of_a_single_leaf():
    X, y = generated(100)
    text = train(X, y, 3, min_data_in_leaf=99).model_to_string()
    booster = assert_same(text, X)
    assert "num_leaves=1\n" in text
    assert (booster.ensemble.feature == -1).all()


def test_single_leaves_among_trees():
    X, y = generated()
    text = train(X, np.digitize(y, [0, 5]), 6, objective="multiclass", num_class=3).model_to_string()
    single = text.replace("\nTree=4\n", "\nTree=4\nnum_leaves=1\nnum_cat=0\nleaf_value=0.25\n\n\nxTree=4\n")
    single = re.sub(r"xTree=4\n.*?\n\n\n", "", single, flags=re.DOTALL)
    assert (assert_same(single, X[:100]).ensemble.cover == 1).sum() == 1


def test_part_of_the_iterations_is_what_the_file_has():
    X, y = generated()
    model = train(X, y > 0, 20, objective="binary")
    text = model.model_to_string(num_iteration=7)
    np.testing.assert_allclose(predict(assert_same(text, X[:100]), X[:100]), model.predict(X[:100], num_iteration=7),
                               rtol=1e-12)


def test_early_stopping_is_followed_by_what_is_saved():
    X, y = generated()
    model = lightgbm.train({"objective": "regression", "verbose": -1, "learning_rate": 0.9, "num_threads": 1},
                           lightgbm.Dataset(X[:400], y[:400]), 200,
                           valid_sets=[lightgbm.Dataset(X[400:], y[400:])],
                           callbacks=[lightgbm.early_stopping(3, verbose=False)])
    booster = lightgbm_text.read(model.model_to_string(), "model.txt")
    assert len(booster.ensemble.root) == model.best_iteration < 200
    np.testing.assert_allclose(predict(booster, X[:100]), model.predict(X[:100]), rtol=1e-12)


def test_cover_is_what_lightgbm_weighs_its_shapley_values_by():
    X, y = generated()
    model = train(X, y, 5, weight=np.random.default_rng(0).random(len(y)))
    ensemble = lightgbm_text.read(model.model_to_string(), "model.txt").ensemble
    leaves, tree = ensemble.feature == -1, np.searchsorted(ensemble.root, np.arange(len(ensemble.feature)), "right") - 1
    share = ensemble.cover / ensemble.cover[ensemble.root[tree]]
    expected = (share[leaves] * ensemble.leaf_values[ensemble.leaf[leaves]]).sum()
    assert expected == pytest.approx(model.predict(X[:1], pred_contrib=True)[0, -1], rel=1e-12)


def test_without_counts_there_is_no_cover():
    X, y = generated()
    text = re.sub("leaf_count=.*\n", "", train(X, y).model_to_string(), count=1)
    assert lightgbm_text.read(text, "model.txt").ensemble.cover is None


# ---- what else the file says -------------------------------------------------------------------------------

def test_feature_names():
    X, y = generated()
    frame = pd.DataFrame(X, columns=["a", "b c", "Größe", "x=y", "e"])
    assert lightgbm_text.read(train(frame, y).model_to_string(), "m").feature_names == ("a", "b_c", "Größe", "x=y", "e")


@pytest.mark.parametrize("as_given", [
    str, str.encode, lambda text: memoryview(text.encode()), lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.replace("version=v4", "version=v3"),
    lambda text: text.replace("end of trees\n\nfeature_importances", "feature importances"),  # release 2.1
])
def test_forms_of_the_same_text(as_given):
    X, y = generated()
    model = train(X, y)
    booster = lightgbm_text.read(as_given(model.model_to_string()), "model.txt")
    np.testing.assert_allclose(predict(booster, X[:50]), model.predict(X[:50]), rtol=1e-12)


def frame_of_categories(n: int = 500) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({
        "amount": rng.normal(size=n),
        "city": pd.Categorical(rng.choice(["b", "é d", 'a"]'], n), categories=["b", "é d", 'a"]', "never"]),
        "code": pd.Categorical(rng.choice([30, 10, 20], n)),
        "plain": rng.integers(0, 3, n),
        "single": pd.Categorical(["z"] * n),
        "flag": pd.Categorical(rng.choice([True, False], n)),
        "share": pd.Categorical(rng.choice([0.5, 0.25, 2], n)),
    })
    frame.loc[::7, "city"] = np.nan
    y = (frame.city == "b") + 2.0 * (frame.code == 20) + frame.flag.astype(float) + frame.amount + (frame.share == 2)
    return frame, y.to_numpy(float)


def encode(frame: pd.DataFrame, booster: Booster) -> np.ndarray:
    """Categories as their codes by what the booster says of them; NaN where it does not know one."""
    columns = []
    for name, values in zip(booster.feature_names, booster.categories, strict=True):
        codes = {} if values is None else {value: float(code) for code, value in enumerate(values)}
        columns.append([x if values is None else codes.get(x, np.nan) for x in frame[name].tolist()])
    return np.array(columns, float).T


PANDAS = {"min_data_per_group": 5, "cat_smooth": 1, "max_cat_to_onehot": 1}


def test_pandas_categories():
    frame, y = frame_of_categories()
    model = train(frame, y, **PANDAS)
    booster = lightgbm_text.read(model.model_to_string(), "model.txt")
    assert booster.categories == (None, ("b", "é d", 'a"]', "never"), (10.0, 20.0, 30.0), None, ("z",), (0.0, 1.0),
                                  (0.25, 0.5, 2.0))
    unseen = frame[:60].copy()
    unseen["city"] = pd.Categorical(["b", "unseen", "never"] * 20)
    unseen["code"] = pd.Categorical([10, 11, 30] * 20)
    for rows in (frame[:200], unseen):
        np.testing.assert_allclose(predict(booster, encode(rows, booster)), model.predict(rows), rtol=1e-12)


def test_pandas_categories_are_found_by_feature_infos_where_parameters_are_gone():
    frame, y = frame_of_categories()
    text = train(frame.drop(columns="single"), y, **PANDAS).model_to_string()
    found = lightgbm_text.read(text, "model.txt").categories
    without = re.sub(r"\[categorical_feature.*\n", "", text)
    assert found[1][0] == "b" and lightgbm_text.read(without, "model.txt").categories == found


def test_pandas_categories_that_cannot_be_placed_are_refused():
    frame, y = frame_of_categories()
    frame["size"] = pd.Categorical(np.where(y > 1, "large", "small"), categories=["small", "large"], ordered=True)
    with pytest.raises(ModelError, match="a list in pandas_categorical for each of 5 categorical features"):
        lightgbm_text.read(train(frame, y).model_to_string(), "model.txt")


# ---- texts that lie ----------------------------------------------------------------------------------------

def test_linear_trees_are_refused():
    X, y = generated()
    with pytest.raises(ModelError, match=r"model\.txt: tree \d: expected constant leaves, found a linear tree"):
        lightgbm_text.read(train(X, y, linear_tree=True).model_to_string(), "model.txt")


@pytest.fixture(scope="module")
def small_text() -> str:
    """Two trees of 6 leaves with category splits, and pandas categories."""
    frame, y = frame_of_categories()
    return train(frame[["city", "amount"]], y, 2, num_leaves=6, **PANDAS).model_to_string()


def set_to(key: str, value: str) -> Callable[[str], str]:
    return lambda text: re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text, count=1)


def set_pandas(value: str) -> Callable[[str], str]:
    return lambda text: re.sub("pandas_categorical:.*", "pandas_categorical:" + value, text)


LIES = [
    (lambda text: "Tree" + text[4:], "a LightGBM text model"),
    (lambda text: "", "a LightGBM text model"),
    (lambda text: "tree\n", "version v2, v3 or v4"),
    (set_to("version", "v9"), "version v2, v3 or v4"),
    (lambda text: text[:text.index("Tree=1")], "the file is cut short"),
    (lambda text: text[:text.index("end of trees")], "the file is cut short"),
    (lambda text: text.replace("Tree=1", "Tree=2"), "Tree=1 next"),
    (lambda text: text.replace("num_leaves=6", "num_leaves=6\nnum_leaves=6"), "num_leaves once"),
    (set_to("tree_sizes", "1 2 3"), "as many trees as in tree_sizes"),
    (set_to("num_leaves", "1000000000"), "leaf_value with 1000000000 numbers, found 6"),
    (set_to("num_leaves", "0"), "leaf_value with 0 numbers"),
    (set_to("num_leaves", "-1"), "leaf_value with -1 numbers"),
    (set_to("num_leaves", "9" * 5000), "num_leaves with numbers"),
    (set_to("num_leaves", "9" * 50), "num_leaves with numbers"),
    (set_to("num_cat", "1000000000"), "cat_boundaries with 1000000001 numbers"),
    (set_to("num_cat", "0"), "num_cat"),
    (set_to("num_cat", "-1"), "num_cat of 0 or more"),
    (set_to("max_feature_idx", "1000000000"), "max_feature_idx \\+ 1 feature_names, found 2"),
    (set_to("feature_names", "a a"), "feature_names without repetition"),
    (set_to("num_tree_per_iteration", "1000000000"), "num_tree_per_iteration trees"),
    (set_to("num_tree_per_iteration", "0"), "num_tree_per_iteration trees"),
    (set_to("num_tree_per_iteration", "2"), "one tree an iteration with regression"),
    (set_to("objective", "regresion"), "one of LightGBM's objectives"),
    (set_to("objective", "binary"), "binary with sigmoid: and a number above 0"),
    (set_to("objective", "binary sigmoid:-1"), "binary with sigmoid: and a number above 0"),
    (set_to("objective", "binary sigmoid:nan"), "binary with sigmoid: and a number above 0"),
    (set_to("objective", "multiclass num_class:3"), "multiclass with num_class:1"),
    (set_to("leaf_value", "1 2 3 4 5 nan"), "finite leaf values"),
    (set_to("leaf_value", "1 2 3 4 5 1e999"), "finite leaf values"),
    (set_to("leaf_value", "1 2 3 4 5 x"), "leaf_value with numbers"),
    (set_to("threshold", "nan nan nan nan nan"), "thresholds"),
    (set_to("split_feature", "0 0 0 0 2"), "features from 0 to 1"),
    (set_to("split_feature", "0 0 0 0 -1"), "one parent|features|every node"),
    (set_to("split_feature", "0 0 0 0 0.5"), "split_feature with numbers"),
    (set_to("decision_type", "2 2 2 2 12"), "decision types from 0 to 11"),
    (set_to("decision_type", "2 2 2 2 -1"), "decision types from 0 to 11"),
    (set_to("left_child", "0 1 2 3 4"), "trees without cycles"),
    (set_to("left_child", "9 1 2 3 4"), "children from -6 to 4"),
    (set_to("right_child", "-7 1 2 3 4"), "children from -6 to 4"),
    (set_to("leaf_count", "1 2 3 4 5 -6"), "a cover"),
    (set_to("internal_count", "1 2 3 4 inf"), "a cover"),
    (set_to("cat_boundaries", "0 99"), "cat_boundaries|num_cat"),
    (set_to("cat_threshold", "4294967296"), "32 bits|cat_boundaries"),
    (set_pandas("[" * 100_000), "JSON"),
    (set_pandas('[[1, "a", "b", "c"]]'), "strings alone"),
    (set_pandas('[[1, NaN, 2, 3]]'), "numbers alone"),
    (set_pandas('[[1, 1, 2, 3]]'), "without repetition"),
    (set_pandas(f"[[1{'0' * 400}]]"), "numbers of float64"),
    (set_pandas('[["a"]]'), "a value for each category"),
    (set_pandas('{"a": 1}'), "a list in pandas_categorical"),
    (set_pandas('7'), "a list in pandas_categorical"),
    (set_pandas('[7]'), "lists in pandas_categorical"),
    (lambda text: text.replace("[categorical_feature: 0]", "[categorical_feature: 9]"), "a list in pandas_categorical"),
    (lambda text: text.replace("feature_names=city", "feature_names=\udc80"), "UTF-8"),
    (lambda text: text.encode().replace(b"feature_names=city", b"feature_names=\xff"), "UTF-8"),
]


@pytest.mark.parametrize("lie, message", LIES, ids=[message[:40] for _, message in LIES])
def test_lie_is_refused(small_text, lie, message):
    assert lie(small_text) != small_text
    with pytest.raises(ModelError, match=f"^model.txt: .*({message})"):
        lightgbm_text.read(lie(small_text), "model.txt")


def test_message_does_not_echo_the_file(small_text):
    with pytest.raises(ModelError) as raised:
        lightgbm_text.read(set_to("objective", "x" * 100_000)(small_text), "model.txt")
    assert len(str(raised.value)) < 500


HEAD = "tree\nversion=v4\nnum_tree_per_iteration=1\nmax_feature_idx=0\nfeature_names=a\n"
LEAF = "num_leaves=1\nnum_cat=0\nleaf_value=0\n"
SPLIT = ("num_leaves=2\nsplit_feature=0\nthreshold=0\ndecision_type=1\nleft_child=-1\nright_child=-2\n"
         "leaf_value=0 1\n")
END = "\nend of trees\n"
BOMBS = {
    "leaves": HEAD + "Tree=0\nnum_leaves=1000000000\nnum_cat=0\nleaf_value=" + "1 " * 100_000,
    "trees": HEAD + "".join(f"Tree={i}\n{LEAF}" for i in range(4_000)) + END,
    "sets": HEAD + f"Tree=0\n{SPLIT}num_cat=20000\ncat_boundaries={' '.join(map(str, range(20_001)))}\n"
    + f"cat_threshold={'0 ' * 20_000}" + END,
    "categories": HEAD + f"Tree=0\n{SPLIT}num_cat=1\ncat_boundaries=0 20000\n"
    + f"cat_threshold={'4294967295 ' * 20_000}" + END,
    "lines": "tree\n" + "ab\n" * 100_000,
    "names": "tree\nversion=v4\nnum_tree_per_iteration=1\nmax_feature_idx=99999\n"
    + f"feature_names={' '.join(map(str, range(100_000)))}\nTree=0\n{LEAF}" + END,
    "json": f"{HEAD}Tree=0\n{LEAF}{END}pandas_categorical:[{'[],' * 100_000}[]]",
}
PARSED = ("names", "trees", "sets", "categories")  # the others are refused


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_is_bounded_by_the_size_of_the_file(bomb):
    text = BOMBS[bomb].encode()
    tracemalloc.start()
    try:
        with nullcontext() if bomb in PARSED else pytest.raises(ModelError):
            lightgbm_text.read(text, "model.txt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(text)


NUMBERS = [b"nan", b"inf", b"-inf", b"1e999", b"-1", b"0", b"1", b"2", b"7", b"31", b"4294967296", b"9" * 30, b"1.5",
           b"", b"x", b"-9223372036854775808", b"1000000000"]


def mutated(rng: random.Random, text: bytes) -> bytes:
    """One to three changes: a byte, a line gone or twice or moved, a number, a cut, a slice of it again."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        kind, at = rng.randrange(6), rng.randrange(len(text))
        lines = text.split(b"\n")
        line = rng.randrange(len(lines))
        if kind == 0:
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1:]
        elif kind == 1:
            text = b"\n".join(lines[:line] + lines[line + 1:]) or b"\n"
        elif kind == 2:
            other = rng.randrange(len(lines))
            text = b"\n".join(lines[:other] + [lines[line]] + lines[other:])
        elif kind == 3:
            number = rng.choice([*re.finditer(rb"-?\d[\d.e+-]*|$", text)])
            text = text[:number.start()] + rng.choice(NUMBERS) + text[number.end():]
        elif kind == 4 and rng.random() < 0.2:
            text = text[:at] or b"\n"
        elif kind == 5:
            text = text[:at] + text[rng.randrange(len(text)):][:rng.randrange(40)] + text[at:]
    return text


def essential(text: str) -> bytes:
    """Without most of the parameters, which nothing reads."""
    return re.sub(r"(?m)^\[(?!categorical_feature).*\n", "", text).encode()


def test_mutations_give_a_model_error_or_a_sound_booster(small_text):
    X, y = generated(200, 2)
    several = train(X, np.digitize(y, [-1, 1]), 2, objective="multiclass", num_class=3, num_leaves=4, boosting="rf",
                    bagging_freq=1, bagging_fraction=0.6)
    starts = [essential(small_text), essential(several.model_to_string())]
    rng, rows, outcomes = random.Random(0), extreme_rows(2, 3), [0, 0]
    for _ in range(4000):
        text = mutated(rng, rng.choice(starts))
        try:
            booster = lightgbm_text.read(text, "model.txt")
        except ModelError as error:
            assert str(error).startswith("model.txt: expected") or "model.txt: tree" in str(error), str(error)
            outcomes[0] += 1
            continue
        outcomes[1] += 1
        booster.ensemble.check()
        if booster.ensemble.n_features == 2:
            with np.errstate(all="ignore"):
                assert predict(booster, rows).shape[0] == 3
        assert booster.categories is None or len(booster.categories) == booster.ensemble.n_features
    assert min(outcomes) > 500, outcomes
