"""LightGBM's and XGBoost's files through `kernels.load`, against the libraries themselves."""

from functools import cache
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn import datasets

import kernels
from kernels import ModelError, TabularModel
from tests.kernels.test_lightgbm_text import REGRESSIONS, categorical_model, extreme_rows, generated
from tests.kernels.test_row_ops import assert_same
from tests.kernels.test_xgboost_json import CASES, N_CLASSES, data, file_of, matrix, trained

N_ROWS = 130


def load(folder: Path, content: str | bytes, name: str, **options) -> TabularModel:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return kernels.load(path, **options)


def both(folder: Path, content: str | bytes, name: str) -> tuple[TabularModel, TabularModel]:
    """The compiled one and the numpy one."""
    return load(folder, content, name), load(folder, content, name, native=False)


def assert_same_answers(compiled: TabularModel, portable: TabularModel, X: np.ndarray) -> None:
    """Kernels and numpy give the same bits, for many rows and for one."""
    expected = portable.predict(X)
    assert_same(compiled.predict(X), expected)
    for n in (1, 7, 8, 9):
        assert_same(compiled.predict(X[:n]), expected[:n])
    if compiled.n_classes:
        assert_same(compiled.predict_proba(X), portable.predict_proba(X))
        assert_same(compiled.predict_proba(X[:1]), portable.predict_proba(X[:1]))


# ---- LightGBM ----------------------------------------------------------------------------------------------

def train(X, y, rounds: int = 12, categorical="auto", group=None, **parameters) -> lightgbm.Booster:
    parameters = {"verbose": -1, "num_threads": 1, "seed": 1} | parameters
    rows = lightgbm.Dataset(X, y, categorical_feature=categorical, group=group, params={"verbose": -1})
    return lightgbm.train(parameters, rows, rounds)


def check_lightgbm(folder: Path, booster: lightgbm.Booster, X: np.ndarray, n_classes: int) -> TabularModel:
    """Predictions are the library's to 1e-12, and probabilities what they mean."""
    compiled, portable = both(folder, booster.model_to_string(), "m.txt")
    expected = booster.predict(X, num_threads=1)
    np.testing.assert_allclose(compiled.predict(X), expected, rtol=1e-12, atol=1e-14)
    assert_same_answers(compiled, portable, X)
    assert (compiled.n_classes, compiled.signature.classes) == (n_classes, None)
    if n_classes:
        p = expected if expected.ndim == 2 else np.column_stack([1 - expected, expected])
        np.testing.assert_allclose(compiled.predict_proba(X), p, rtol=1e-12, atol=1e-14)
    else:
        with pytest.raises(ModelError, match="no probabilities"):
            compiled.predict_proba(X)
    return compiled


@pytest.mark.parametrize("objective", REGRESSIONS)
def test_lightgbm_regressions(tmp_path, objective):
    X, y = datasets.load_diabetes(return_X_y=True)
    model = check_lightgbm(tmp_path, train(X, y, objective=objective), X[:N_ROWS], 0)
    assert (model.signature.task, model.model_type, model.kind) == ("regression", "lightgbm", "tabular")


@pytest.mark.parametrize("objective", ["regression", "quantile"])
def test_lightgbm_roots_are_squared_again(tmp_path, objective):
    X, y = datasets.load_diabetes(return_X_y=True)
    check_lightgbm(tmp_path, train(X, y - 100, objective=objective, reg_sqrt=True), X[:N_ROWS], 0)


@pytest.mark.parametrize(("objective", "n_classes"), [("binary", 2), ("cross_entropy", 0), ("cross_entropy_lambda", 0)])
def test_lightgbm_two_classes(tmp_path, objective, n_classes):
    X, y = datasets.load_breast_cancer(return_X_y=True)
    model = check_lightgbm(tmp_path, train(X, y, objective=objective, sigmoid=0.7), X[:N_ROWS], n_classes)
    assert model.signature.task == ("score" if n_classes else "regression")


@pytest.mark.parametrize("objective", ["multiclass", "multiclassova"])
@pytest.mark.parametrize(("read", "n_classes"), [(datasets.load_wine, 3), (datasets.load_digits, 10)])
def test_lightgbm_many_classes(tmp_path, read, n_classes, objective):
    X, y = read(return_X_y=True)
    booster = train(X, y, 5, objective=objective, num_class=n_classes, sigmoid=1.3)
    assert check_lightgbm(tmp_path, booster, X[:N_ROWS], n_classes).n_outputs == n_classes


@pytest.mark.parametrize("objective", ["lambdarank", "rank_xendcg"])
def test_lightgbm_rankings(tmp_path, objective):
    X, y = generated()
    check_lightgbm(tmp_path, train(X, np.digitize(y, [-5, 0, 5]), group=[60] * 10, objective=objective), X[:N_ROWS], 0)


@pytest.mark.parametrize("boosting", ["dart", "rf"])
def test_lightgbm_ways_of_boosting(tmp_path, boosting):
    X, y = generated()
    booster = train(X, y > 0, 7, objective="binary", boosting=boosting, bagging_freq=1, bagging_fraction=0.6)
    check_lightgbm(tmp_path, booster, X[:N_ROWS], 2)


@pytest.mark.parametrize("missing", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=str)
def test_lightgbm_missing_and_extreme_values(tmp_path, missing):
    X, y = generated()
    extreme = extreme_rows(5, 200)
    rows = np.concatenate([X[:N_ROWS], extreme])
    model = check_lightgbm(tmp_path, train(X, y, objective="regression", **missing), rows, 0)
    assert model.takes_missing


def test_lightgbm_categories_by_number(tmp_path):
    text, X = categorical_model()
    booster = lightgbm.Booster(model_str=text)
    check_lightgbm(tmp_path, booster, np.concatenate([X[:N_ROWS], extreme_rows(3, 200)]), 0)


def test_lightgbm_unbalanced_trees(tmp_path):
    X, y = generated(1500)
    y = y + np.where(np.random.default_rng(0).random(1500) < 0.01, 1e6, 0)
    booster = train(X, y, 10, objective="regression", num_leaves=800, min_data_in_leaf=1, min_sum_hessian_in_leaf=0)
    check_lightgbm(tmp_path, booster, np.concatenate([X[:N_ROWS], extreme_rows(5, 70)]), 0)


def test_float32_rows_are_the_same_numbers(tmp_path):
    X, y = generated()
    compiled, portable = both(tmp_path, train(X, y).model_to_string(), "m.txt")
    narrow = X.astype(np.float32)
    for n in (1, 64, 65, 600):
        assert_same(compiled.predict(narrow[:n]), portable.predict(narrow[:n].astype(float)))


def test_threads_share_the_rows_and_change_nothing(tmp_path):
    X, y = generated(3000)
    text = train(X, y, 60).model_to_string()
    alone, shared = load(tmp_path, text, "m.txt"), load(tmp_path, text, "m.txt", threads=3)
    assert len(shared._shares(3000)) == 3
    assert_same(shared.predict(X), alone.predict(X))


# ---- frames: names and categories --------------------------------------------------------------------------

@cache
def shop() -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers, strings and numbers as categories, missing values; and a target that depends on all."""
    rng = np.random.default_rng(0)
    colour, size = rng.choice(["red", "grün", "blue", "black"], 900), rng.choice([10, 20, 35, 50], 900)
    frame = pd.DataFrame({"amount": rng.lognormal(3, 1, 900), "colour": pd.Categorical(colour),
                          "size": pd.Categorical(size), "hour": rng.integers(0, 24, 900).astype(float)})
    said = (frame["amount"] > 20) ^ (colour == "red") ^ (size == 35) ^ (frame["hour"] > 12)
    for column in ("amount", "colour", "size"):
        frame.loc[rng.random(900) < 0.1, column] = np.nan
    return frame, said.to_numpy().astype(int)


def as_objects(frame: pd.DataFrame) -> list[list]:
    """The rows as JSON has them: strings, numbers, null."""
    return [[None if cell != cell else cell for cell in row] for row in frame.astype(object).to_numpy().tolist()]


def test_lightgbm_categories_are_strings_in_rows(tmp_path):
    frame, y = shop()
    booster = train(frame, y, 30, objective="binary", min_data_per_group=5, cat_smooth=1)
    compiled, portable = both(tmp_path, booster.model_to_string(), "m.txt")
    expected = booster.predict(frame, num_threads=1)
    assert compiled.signature.feature_names == ("amount", "colour", "size", "hour")
    assert compiled.signature.categories == (None, ("black", "blue", "grün", "red"), None, None)
    for model in (compiled, portable):
        np.testing.assert_allclose(model.predict(frame), expected, rtol=1e-12)
        np.testing.assert_allclose(model.predict(as_objects(frame)), expected, rtol=1e-12)
    assert_same(compiled.predict(frame), portable.predict(frame))
    assert len(np.unique(expected)) > 100


def test_lightgbm_string_that_was_not_seen_is_missing(tmp_path):
    frame, y = shop()
    booster = train(frame, y, 20, objective="binary", min_data_per_group=5)
    model = load(tmp_path, booster.model_to_string(), "m.txt")
    other = frame.head(50).copy()
    other["colour"] = pd.Categorical(["mauve"] * 50, ["mauve"])
    expected = booster.predict(other, num_threads=1)
    np.testing.assert_allclose(model.predict(other), expected, rtol=1e-12)
    other["colour"] = np.nan
    np.testing.assert_allclose(model.predict(other), expected, rtol=1e-12)


@pytest.mark.parametrize("form", ["json", "ubj"])
def test_xgboost_categories_are_strings_in_rows(tmp_path, form):
    frame, y = shop()
    frame = frame.assign(colour=frame["colour"].cat.rename_categories({"grün": "green"}))  # XGBoost 3.2 cuts the other
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_cat_to_onehot": 2, "max_depth": 4},
                            xgboost.DMatrix(frame, y, enable_categorical=True), 20)
    compiled, portable = both(tmp_path, bytes(booster.save_raw(form)), f"m.{form}")
    expected = booster.predict(xgboost.DMatrix(frame, enable_categorical=True))
    assert compiled.signature.feature_names == ("amount", "colour", "size", "hour")
    assert compiled.signature.categories == (None, ("black", "blue", "green", "red"), None, None)
    for model in (compiled, portable):
        np.testing.assert_allclose(model.predict(frame), expected, rtol=1e-6)
        np.testing.assert_allclose(model.predict(as_objects(frame)), expected, rtol=1e-6)
    assert_same(compiled.predict(frame), portable.predict(frame))
    assert len(np.unique(expected)) > 100


def test_string_where_a_number_belongs_is_refused(tmp_path):
    frame, y = shop()
    model = load(tmp_path, train(frame, y, 3, objective="binary").model_to_string(), "m.txt")
    for row in (["red", "red", 10, 1.0], [1.0, 2.0, 10, 1.0], [1.0, "red", 10], [1.0, ["red"], 10, 1.0]):
        with pytest.raises(ModelError, match="expected"):
            model.predict([row])


# ---- XGBoost -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["json", "ubj"])
@pytest.mark.parametrize("case", CASES)
def test_xgboost_predictions_are_the_librarys(tmp_path, case, form):
    expected, X = trained(case), data(CASES[case][0])[0][:N_ROWS]
    compiled, portable = both(tmp_path, file_of(expected, form), f"m.{form}")
    theirs = expected.predict(matrix(X))
    np.testing.assert_allclose(compiled.predict(X), theirs, rtol=1e-6, atol=2e-7)
    assert_same_answers(compiled, portable, X)
    n_classes = N_CLASSES.get(case, 0)
    assert (compiled.n_classes, compiled.signature.classes, compiled.model_type) == (n_classes, None, "xgboost")
    if n_classes:
        margins = expected.predict(matrix(X), output_margin=True).astype(float)
        np.testing.assert_allclose(compiled.predict_proba(X), probabilities(case, margins), rtol=1e-5, atol=2e-7)


def probabilities(case: str, margins: np.ndarray) -> np.ndarray:
    """What raw scores (n) or (n, n_outputs) mean."""
    if margins.ndim == 1:
        p = 1 / (1 + np.exp(-margins))
        return np.column_stack([1 - p, p])
    if case == "labels":  # each its own
        return 1 / (1 + np.exp(-margins))
    e = np.exp(margins - margins.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_xgboost_extreme_values_in_double_are_rounded_to_float32(tmp_path):
    expected = trained("extremes")
    rng = np.random.default_rng(1)
    X = rng.choice([-1.0, 1.0], (N_ROWS, 4)) * 10.0 ** rng.uniform(-320, 38, (N_ROWS, 4))
    X[rng.random(X.shape) < 0.2] = np.nan
    X[0], X[1] = 16777217.0, 0.1 + 1e-12
    compiled, portable = both(tmp_path, file_of(expected), "m.json")
    np.testing.assert_allclose(compiled.predict(X), expected.predict(matrix(X)), rtol=1e-6)
    assert_same_answers(compiled, portable, X)


# ---- names -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("content", "name"), [(b"tree\nversion=v4\n", "broken.txt"), (b"{", "broken.json"),
                                               (b'{"learner": {}}', "broken.json"), (b"{L", "broken.ubj")])
def test_error_begins_with_the_files_name_once(tmp_path, content, name):
    with pytest.raises(ModelError) as caught:
        load(tmp_path, content, name)
    assert str(caught.value).startswith(f"{name}: expected") and str(caught.value).count("broken") == 1


def test_model_is_named_after_its_file(tmp_path):
    X, y = generated()
    model = load(tmp_path, train(X, y, 2).model_to_string(), "price-of-things.txt")
    assert (model.name, model.version, model.size_bytes) == ("price-of-things", "1", model.path.stat().st_size)
