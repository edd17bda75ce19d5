"""Tree ensembles of scikit-learn, LightGBM and XGBoost estimators through `kernels.from_sklearn`, against their own."""

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn import datasets, dummy
from sklearn.ensemble import (ExtraTreesClassifier, ExtraTreesRegressor, GradientBoostingClassifier,
                              GradientBoostingRegressor, HistGradientBoostingClassifier,
                              HistGradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

import kernels
from kernels import ModelError, TabularModel
from kernels.sklearn_trees import READERS

RNG = np.random.default_rng(3)


def cancer():
    return datasets.load_breast_cancer(return_X_y=True)


def wine():
    X, y = datasets.load_wine(return_X_y=True)
    return X, np.array(["barbera", "barolo", "grignolino"])[y]


def with_missing():
    X, y = cancer()
    return np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X), y


def extreme():
    """Numbers from 1e-30 to 1e30, and many that are equal."""
    X = RNG.choice([-1.0, 0.0, 1.0], (300, 4)) * 10.0 ** RNG.integers(-30, 31, (300, 4))
    return X, (X[:, 0] > X[:, 1]).astype(int)


def unbalanced():
    """A long thin tree: each split takes one row away."""
    X = np.arange(300.0)[:, None]
    return X, np.arange(300) % 2


def ties():
    """Classes that no feature tells apart: every score is in the middle."""
    return np.ones((40, 2)), np.arange(40) % 2


def rounded():
    X, y = cancer()
    return X[:, :3].round(1), y


def diabetes():
    X, y = datasets.load_diabetes(return_X_y=True)
    return X, y / 100


ROWS = {one.__name__: one for one in (cancer, wine, with_missing, extreme, unbalanced, ties, rounded)}
FEW = {"n_estimators": 5}
LIGHT = {"n_estimators": 5, "verbose": -1, "n_jobs": 1}
XG = {"n_estimators": 5, "n_jobs": 1}

CLASSIFIERS = {
    "tree": lambda: DecisionTreeClassifier(random_state=0),
    "extra tree": lambda: ExtraTreeClassifier(random_state=0),
    "forest": lambda: RandomForestClassifier(5, random_state=0),
    "shallow forest": lambda: RandomForestClassifier(7, max_depth=3, class_weight="balanced", random_state=0),
    "extra trees": lambda: ExtraTreesClassifier(5, random_state=0),
    "gradient boosting": lambda: GradientBoostingClassifier(**FEW, random_state=0),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2),
    "LightGBM": lambda: lightgbm.LGBMClassifier(**LIGHT, min_child_samples=2),
    "XGBoost": lambda: xgboost.XGBClassifier(**XG),
    "XGBoost forest": lambda: xgboost.XGBRFClassifier(**XG),
}
REGRESSORS = {
    "tree": lambda: DecisionTreeRegressor(random_state=0),
    "extra tree": lambda: ExtraTreeRegressor(random_state=0),
    "forest": lambda: RandomForestRegressor(5, random_state=0),
    "Poisson forest": lambda: RandomForestRegressor(5, criterion="poisson", random_state=0),
    "extra trees": lambda: ExtraTreesRegressor(5, random_state=0),
    **{f"gradient boosting, {loss}": lambda loss=loss: GradientBoostingRegressor(**FEW, loss=loss)
       for loss in ("squared_error", "absolute_error", "huber", "quantile")},
    "gradient boosting from zero": lambda: GradientBoostingRegressor(**FEW, init="zero"),
    **{f"histogram, {loss}": lambda loss=loss: HistGradientBoostingRegressor(
        max_iter=5, loss=loss, quantile=0.3 if loss == "quantile" else None)
       for loss in ("squared_error", "absolute_error", "poisson", "gamma", "quantile")},
    **{f"LightGBM, {one}": lambda one=one: lightgbm.LGBMRegressor(**LIGHT, objective=one)
       for one in ("regression", "poisson", "huber", "tweedie")},
    **{f"XGBoost, {one}": lambda one=one: xgboost.XGBRegressor(**XG, objective=one)
       for one in ("reg:squarederror", "count:poisson", "reg:tweedie")},
    "XGBoost forest": lambda: xgboost.XGBRFRegressor(**XG),
}


def check(folder, estimator, X) -> TabularModel:
    """Answers are the estimator's own; kernels, numpy and the saved file give the same bits."""
    model = kernels.from_sklearn(estimator)
    atol = 1e-6 if type(estimator).__name__.startswith("XGB") else 1e-9
    expected, found = estimator.predict(X), model.predict(X)
    path = folder / "m.gguf"
    kernels.save(model, path)
    others = [kernels.from_sklearn(estimator, native=False), kernels.load(path)]
    for other in others:
        assert np.array_equal(other.predict(X), found)
        assert np.array_equal(other.takes_missing_in, model.takes_missing_in)
        assert repr(other.signature) == repr(model.signature)  # NaN is not itself
    if hasattr(estimator, "classes_"):
        assert found.tolist() == expected.tolist()
        assert model.signature.classes == tuple(estimator.classes_.tolist())
        p = model.predict_proba(X)
        np.testing.assert_allclose(p, estimator.predict_proba(X), rtol=0, atol=atol)
        assert all(np.array_equal(other.predict_proba(X), p) for other in others)
    else:
        np.testing.assert_allclose(found, expected, rtol=atol, atol=atol)
    return model


def labels_of(name: str, y: np.ndarray) -> np.ndarray:
    return np.unique(y, return_inverse=True)[1] if name.startswith("XGBoost") else y  # it takes 0, 1, … alone


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_answers_as_the_library_does(tmp_path, name, rows):
    X, y = ROWS[rows]()
    y = labels_of(name, y)
    if rows == "with_missing" and name == "gradient boosting":
        X = np.nan_to_num(X, nan=-7.0)
    check(tmp_path, CLASSIFIERS[name]().fit(X, y), X)


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressor_answers_as_the_library_does(tmp_path, name):
    X, y = diabetes()
    model = check(tmp_path, REGRESSORS[name]().fit(X, y), X)
    assert (model.signature.task, model.n_classes) == ("regression", 0)


def test_every_kind_is_tested():
    kinds = {type(make()).__name__ for make in (*CLASSIFIERS.values(), *REGRESSORS.values())}
    assert kinds | {"LGBMRanker", "XGBRanker"} == set(READERS)


@pytest.mark.parametrize("make", [lambda: lightgbm.LGBMRanker(**LIGHT), lambda: xgboost.XGBRanker(**XG)])
def test_ranker_gives_its_scores(tmp_path, make):
    X, y = diabetes()
    ids = {"group": [26] * 17} if "LGBM" in str(make()) else {"qid": np.repeat(np.arange(17), 26)}
    check(tmp_path, make().fit(X, (y > 1).astype(int), **ids), X)


WEIGHED = {name: CLASSIFIERS[name] for name in CLASSIFIERS if "XGBoost" not in name}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_of_rows(tmp_path, name):
    X, y = wine()
    check(tmp_path, WEIGHED[name]().fit(X, y, sample_weight=RNG.random(len(y))), X)


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "gradient boosting"])
def test_missing_values_that_training_did_not_have(tmp_path, name):
    estimator = CLASSIFIERS[name]().fit(*cancer())
    model = check(tmp_path, estimator, with_missing()[0])
    assert model.takes_missing_in.all()


@pytest.mark.parametrize("estimator", [GradientBoostingClassifier(**FEW), GradientBoostingRegressor(**FEW)])
def test_gradient_boosting_takes_no_missing_values(tmp_path, estimator):
    X, y = cancer()
    model = kernels.from_sklearn(estimator.fit(X, y))
    kernels.save(model, tmp_path / "m.gguf")
    for one in (model, kernels.load(tmp_path / "m.gguf"), kernels.from_sklearn(estimator, native=False)):
        assert not one.takes_missing
        with pytest.raises(ModelError, match="finite numbers: row 0"):
            one.predict(with_missing()[0])


@pytest.mark.parametrize("loss", ["log_loss", "exponential"])
@pytest.mark.parametrize("init", [None, "zero", dummy.DummyClassifier(strategy="prior")])
def test_losses_and_starts_of_gradient_boosting(tmp_path, loss, init):
    X, y = rounded()
    if loss == "log_loss" or not isinstance(init, dummy.DummyClassifier):
        check(tmp_path, GradientBoostingClassifier(**FEW, loss=loss, init=init).fit(X, y), X)


OPTIONS = {
    "several classes of their own": lambda: lightgbm.LGBMClassifier(**LIGHT, objective="multiclassova"),
    "dropped trees": lambda: lightgbm.LGBMClassifier(**LIGHT, boosting_type="dart"),
    "random forest": lambda: lightgbm.LGBMClassifier(
        **LIGHT, boosting_type="rf", bagging_fraction=0.5, bagging_freq=1),
    "softmax": lambda: xgboost.XGBClassifier(**XG, objective="multi:softmax"),
    "parallel trees": lambda: xgboost.XGBClassifier(**XG, num_parallel_tree=3),
    "dropped trees of XGBoost": lambda: xgboost.XGBClassifier(**XG, booster="dart", rate_drop=0.5),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_objectives_and_kinds_of_boosting(tmp_path, name):
    X, y = datasets.load_wine(return_X_y=True)
    check(tmp_path, OPTIONS[name]().fit(X, y), X)


def test_cross_entropy_of_two_classes(tmp_path):
    X, y = cancer()
    check(tmp_path, lightgbm.LGBMClassifier(**LIGHT, objective="cross_entropy").fit(X, y), X)


@pytest.mark.parametrize("labels", [["no", "yes"], [5, 9], [-1, 1], [2**40, 2**41], [0.0, 1.0], [False, True]])
@pytest.mark.parametrize("name", ["forest", "gradient boosting", "histogram", "LightGBM"])
def test_labels_of_every_kind(tmp_path, name, labels):
    X, y = rounded()
    check(tmp_path, CLASSIFIERS[name]().fit(X, np.array(labels)[y]), X)


def test_labels_that_are_no_whole_numbers_are_refused():
    estimator = RandomForestClassifier(2).fit(*cancer())
    estimator.classes_ = np.array([0.5, 1.5])
    with pytest.raises(ModelError, match="strings or whole numbers"):
        kernels.from_sklearn(estimator)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set'")  # what older releases take
def test_early_stopping_keeps_the_best_round(tmp_path):
    X, y = cancer()
    seen, unseen = slice(0, None, 2), slice(1, None, 2)
    light = lightgbm.LGBMClassifier(n_estimators=300, learning_rate=0.5, verbose=-1, n_jobs=1)
    light.fit(X[seen], y[seen], eval_set=[(X[unseen], y[unseen])],
              callbacks=[lightgbm.early_stopping(3, verbose=False)])
    xg = xgboost.XGBClassifier(n_estimators=300, learning_rate=0.5, early_stopping_rounds=3, n_jobs=1)
    xg.fit(X[seen], y[seen], eval_set=[(X[unseen], y[unseen])], verbose=False)
    for estimator, best in ((light, light.best_iteration_), (xg, xg.best_iteration + 1)):
        assert best < 50
        model = check(tmp_path, estimator, X)
        assert len(model.program.steps[0].arrays["tree_sizes"]) == best


def frame() -> tuple[pd.DataFrame, np.ndarray]:
    rows = pd.DataFrame({"kind": RNG.choice(list("abc"), 300), "amount": RNG.normal(size=300)})
    return rows.astype({"kind": "category"}), (rows.amount + (rows.kind == "a") > 0).to_numpy().astype(int)


@pytest.mark.parametrize("make", [lambda: lightgbm.LGBMClassifier(**LIGHT),
                                  lambda: xgboost.XGBClassifier(**XG, enable_categorical=True)])
def test_categories_of_data_frames_are_strings(tmp_path, make):
    X, y = frame()
    model = check(tmp_path, make().fit(X, y), X)
    assert model.signature.feature_names == ("kind", "amount")
    assert model.signature.categories == (("a", "b", "c"), None)


def test_data_frames_columns_are_chosen_by_name(tmp_path):
    X, y = with_missing()
    rows = pd.DataFrame(X, columns=[f"f{i}" for i in range(30)])
    for make in (CLASSIFIERS["histogram"], CLASSIFIERS["forest"], CLASSIFIERS["LightGBM"], CLASSIFIERS["XGBoost"]):
        model = check(tmp_path, make().fit(rows, y), rows)
        assert model.predict(rows[rows.columns[::-1]].assign(more=1)).tolist() == model.predict(X).tolist()
        with pytest.raises(ModelError, match="column 'f3'"):
            model.predict(rows.drop(columns="f3"))


# ---- covers ------------------------------------------------------------------------------------------------

def trees_step(model: TabularModel):
    return next(step for step in model.program.steps if step.op == "trees")


COVERED = {
    "tree": lambda one: [one.tree_.weighted_n_node_samples],
    "forest": lambda one: [member.tree_.weighted_n_node_samples for member in one.estimators_],
    "gradient boosting": lambda one: [member.tree_.weighted_n_node_samples for member in one.estimators_.ravel()],
    "histogram": lambda one: [predictor.nodes["count"] for each in one._predictors for predictor in each],
}


@pytest.mark.parametrize("name", COVERED)
def test_covers_are_the_weights_of_training_rows(tmp_path, name):
    X, y = cancer()
    weights = {} if name == "histogram" else {"sample_weight": RNG.random(len(y))}
    estimator = CLASSIFIERS[name]().fit(X, y, **weights)
    model = check(tmp_path, estimator, X)
    expected = np.concatenate(COVERED[name](estimator)).astype(np.float64)
    for one in (model, kernels.load(tmp_path / "m.gguf")):
        assert np.sort(trees_step(one).arrays["cover"]).tolist() == np.sort(expected).tolist()


# ---- refused -----------------------------------------------------------------------------------------------

BINARY = cancer()
TWO_OUTPUTS = np.stack([BINARY[1], 1 - BINARY[1]], axis=1)


def fitted(estimator, X=BINARY[0], y=BINARY[1]):
    return estimator.fit(X, y)


def custom_loss(y, scores):
    return 1 / (1 + np.exp(-scores)) - y, np.full(len(y), 0.25)


REFUSED = {
    "not fitted": (lambda: RandomForestClassifier(), "fitted RandomForestClassifier: it has no"),
    "boosting not fitted": (lambda: HistGradientBoostingRegressor(), "fitted HistGradientBoostingRegressor: it has no"),
    "LightGBM not fitted": (lambda: lightgbm.LGBMClassifier(), "fitted LGBMClassifier"),
    "XGBoost not fitted": (lambda: xgboost.XGBClassifier(), "fitted XGBClassifier"),
    "two outputs": (lambda: fitted(RandomForestClassifier(2), y=TWO_OUTPUTS), "one output, found 2"),
    "two numbers": (lambda: fitted(DecisionTreeRegressor(max_depth=2), y=TWO_OUTPUTS), "one output, found 2"),
    "two labels of XGBoost": (lambda: fitted(xgboost.XGBClassifier(**XG), y=TWO_OUTPUTS), "one output, found 2"),
    "start of its own": (lambda: fitted(GradientBoostingRegressor(**FEW, init=DecisionTreeRegressor())),
                         "without an init estimator"),
    "categories": (lambda: fitted(HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]),
                                  np.arange(40.0)[:, None] % 3, np.arange(40) % 2), "without categorical features"),
    "categories of a frame": (lambda: fitted(HistGradientBoostingClassifier(max_iter=2), *frame()),
                              "without categorical features"),
    "linear leaves": (lambda: fitted(lightgbm.LGBMClassifier(**LIGHT, linear_tree=True)), "constant leaves"),
    "loss of its own": (lambda: fitted(lightgbm.LGBMClassifier(**LIGHT, objective=custom_loss)),
                        "LGBMClassifier with an objective that gives"),
    "regression of classes": (lambda: fitted(lightgbm.LGBMClassifier(**LIGHT, objective="regression")),
                              "LGBMClassifier with an objective that gives"),
    "hinge": (lambda: fitted(xgboost.XGBClassifier(**XG, objective="binary:hinge")), "with an objective"),
    "raw scores": (lambda: fitted(xgboost.XGBClassifier(**XG, objective="binary:logitraw")), "with an objective"),
    "missing -1": (lambda: fitted(xgboost.XGBClassifier(**XG, missing=-1.0)), "NaN alone is missing"),
    "linear booster": (lambda: fitted(xgboost.XGBClassifier(**XG, booster="gblinear")), "found 'gblinear'"),
    **{f"one class of {name}": (lambda make=make: fitted(make(), y=np.zeros(len(BINARY[1]), int)),
                                "two classes or more, found 1")
       for name, make in CLASSIFIERS.items() if name != "gradient boosting"},
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_exact_is_refused_by_name(case):
    make, expected = REFUSED[case]
    estimator = make()
    with pytest.raises(ModelError, match=expected):
        kernels.from_sklearn(estimator)
