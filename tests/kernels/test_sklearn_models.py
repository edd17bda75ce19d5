"""Estimators and pipelines that `kernels.from_sklearn` converts through skl2onnx, against scikit-learn's answers."""

import sys

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn import datasets, linear_model, svm
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (AdaBoostClassifier, BaggingClassifier, BaggingRegressor, GradientBoostingClassifier,
                              HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor,
                              StackingClassifier, StackingRegressor, VotingClassifier, VotingRegressor)
from sklearn.feature_selection import RFE, SelectKBest
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (Binarizer, FunctionTransformer, KBinsDiscretizer, MaxAbsScaler, MinMaxScaler,
                                   OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler, TargetEncoder)
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

import kernels
from kernels import ModelError, TabularModel
from kernels.sklearn_models import MISSING

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CANCER, WINE, DIABETES = (load(return_X_y=True) for load in
                          (datasets.load_breast_cancer, datasets.load_wine, datasets.load_diabetes))
RNG = np.random.default_rng(5)
WITH_MISSING = np.where(RNG.random(CANCER[0].shape) < 0.1, np.nan, CANCER[0])


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):  # BLAS threads that spin for each other are slow on a busy machine
        yield


def answers(model, X) -> list[np.ndarray]:
    return [model.predict(X)] + ([model.predict_proba(X)] if hasattr(model, "predict_proba") else [])


def check(estimator, *several, atol: float = 1e-9) -> TabularModel:
    """Labels are equal and numbers within the tolerance, of the largest one; numpy's way of running."""
    model = kernels.from_sklearn(estimator, native=False)
    for X in several:
        expected, *expected_p = answers(estimator, X)
        found = model.predict(X)
        if model.signature.classes is not None:
            assert found.tolist() == expected.tolist()
            assert model.signature.classes == tuple(estimator.classes_.tolist())
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol * np.abs(expected).max())
        assert bool(expected_p) == bool(model.n_classes)
        if expected_p:
            np.testing.assert_allclose(model.predict_proba(X), expected_p[0], rtol=0, atol=atol)
    return model


def check_saved(folder, estimator, X) -> None:
    """Kernels, numpy and the saved file give the same bits."""
    portable, native = kernels.from_sklearn(estimator, native=False), kernels.from_sklearn(estimator)
    path = folder / "m.gguf"
    kernels.save(native, path)
    for other in (native, kernels.load(path)):
        assert np.array_equal(other.predict(X), portable.predict(X))
        assert np.array_equal(other.takes_missing_in, portable.takes_missing_in)
        assert repr(other.signature) == repr(portable.signature)  # NaN is not itself
        if portable.n_classes:
            assert np.array_equal(other.predict_proba(X), portable.predict_proba(X))


# ---- estimators --------------------------------------------------------------------------------------------

LOG = LogisticRegression()
CLASSIFIERS = {
    "logistic": LOG,
    "logistic, cross-validated": linear_model.LogisticRegressionCV(
        Cs=2, cv=2, l1_ratios=(0,), use_legacy_attributes=False, scoring="accuracy"),
    "stochastic gradient, hinge": SGDClassifier(random_state=0),
    "perceptron": linear_model.Perceptron(),
    "ridge": linear_model.RidgeClassifier(),
    "linear SVM": svm.LinearSVC(),
    "discriminant": LinearDiscriminantAnalysis(),
    "discriminant, shrunk": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    **{f"network, {one}": MLPClassifier((6, 5), activation=one, max_iter=30, random_state=0)
       for one in ("relu", "tanh", "logistic", "identity")},
    "calibrated": CalibratedClassifierCV(LOG, cv=2),
    "stacked": StackingClassifier([("a", LOG), ("b", LogisticRegression(C=0.1))], cv=2),
    "grid": GridSearchCV(LOG, {"C": [0.1, 1.0]}, cv=2),
}
REGRESSORS = {
    **{type(one).__name__: one for one in (
        LinearRegression(), Ridge(), linear_model.Lasso(), linear_model.ElasticNet(), linear_model.BayesianRidge(),
        linear_model.HuberRegressor(), linear_model.PoissonRegressor(), linear_model.GammaRegressor(),
        linear_model.TweedieRegressor(), SGDRegressor(), svm.LinearSVR())},
    **{f"network, {one}": MLPRegressor(hidden_layer_sizes=(6,), activation=one, max_iter=30, random_state=0)
       for one in ("relu", "tanh", "logistic")},
    "stacked": StackingRegressor([("a", Ridge()), ("b", LinearRegression())], cv=2),
    "voting": VotingRegressor([("a", Ridge()), ("b", LinearRegression())]),
    "two numbers": MultiOutputRegressor(Ridge()),
    "two numbers, linear": LinearRegression(),
}


@pytest.mark.parametrize("data", ["cancer", "wine"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_answers_as_scikit_learn_does(name, data):
    X, y = CANCER if data == "cancer" else WINE
    y = np.array(["none", "some", "most"])[y]
    check(CLASSIFIERS[name].fit(StandardScaler().fit_transform(X), y), StandardScaler().fit_transform(X))


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressor_answers_as_scikit_learn_does(name):
    X, y = DIABETES
    y = np.stack([y, -y], axis=1) if name.startswith("two") else y
    model = check(REGRESSORS[name].fit(X, y), X)
    assert model.n_outputs == (2 if name.startswith("two") else 1)


SVMS = {**{f"{kernel}": svm.SVC(kernel=kernel) for kernel in ("rbf", "linear", "poly", "sigmoid")},
        "probabilities": svm.SVC(probability=True, random_state=0), "nu": svm.NuSVC(nu=0.2)}


@pytest.mark.filterwarnings("ignore:The `probability` parameter")
@pytest.mark.parametrize("data", ["cancer", "wine"])
@pytest.mark.parametrize("name", SVMS)
def test_support_vector_classifiers(name, data):
    X, y = CANCER if data == "cancer" else WINE
    check(make_pipeline(StandardScaler(), SVMS[name]).fit(X[::2], y[::2]), X, atol=1e-6)


@pytest.mark.parametrize("estimator", [svm.SVR(), svm.NuSVR(), svm.SVR(kernel="linear")], ids=str)
def test_support_vector_regressors(estimator):
    X, y = DIABETES
    check(make_pipeline(StandardScaler(), estimator).fit(X, y), X, atol=1e-6)


@pytest.mark.parametrize("labels", [[3, 7], [-1, 1], [0.0, 1.0], [False, True], ["b", "c"], ["é", "日本"]])
@pytest.mark.parametrize("estimator", [LOG, linear_model.RidgeClassifier(), SGDClassifier()], ids=str)
def test_labels_of_every_kind(estimator, labels):
    X, y = CANCER
    X = StandardScaler().fit_transform(X)
    check(estimator.fit(X, np.array(labels)[y]), X)


# ---- pipelines of numbers ------------------------------------------------------------------------------------

FRONTS = {
    "scaler": StandardScaler(), "scaler without mean": StandardScaler(with_mean=False),
    "range": MinMaxScaler(clip=True), "robust": RobustScaler(), "largest": MaxAbsScaler(),
    "binary": Binarizer(threshold=1.0),
    "bins": KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf"),
    "hot bins": KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"),
    "best": SelectKBest(k=5),
    "eliminated": RFE(LogisticRegression(), n_features_to_select=4), "PCA": PCA(3),
    "SVD": TruncatedSVD(3), "union": FeatureUnion([("a", StandardScaler()), ("b", MinMaxScaler())]),
    "nothing": FunctionTransformer(), "passthrough": "passthrough", "None": None,
    "nested": make_pipeline("passthrough", make_pipeline(StandardScaler(), make_pipeline(MinMaxScaler(), PCA(4)))),
}
ENDS = {
    "logistic": LogisticRegression(), "forest": RandomForestClassifier(4, max_depth=4, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=4), "histogram": HistGradientBoostingClassifier(max_iter=4),
    "network": MLPClassifier((5,), max_iter=20, random_state=0),
}


@pytest.mark.parametrize(("name", "end"), [(name, end) for name in FRONTS for end in ("logistic", "forest")]
                         + [("nested", end) for end in ENDS])
def test_pipeline_of_numbers(name, end):
    X, y = WINE
    check(make_pipeline(FRONTS[name], ENDS[end]).fit(X, y), X)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("imputer", [
    SimpleImputer(), SimpleImputer(strategy="median"), SimpleImputer(strategy="most_frequent"),
    SimpleImputer(strategy="constant", fill_value=0.1), SimpleImputer(keep_empty_features=True)], ids=str)
def test_imputed_numbers(imputer, end):
    model = check(make_pipeline(imputer, StandardScaler(), ENDS[end]).fit(WITH_MISSING, CANCER[1]), WITH_MISSING)
    assert model.takes_missing_in.all()


def test_fill_values_are_exact_where_a_threshold_is_near(tmp_path):
    X = np.array([[0.1, np.nan, 0.30000000000000004, 0.5]]).T  # their mean is no float32
    pipeline = make_pipeline(SimpleImputer(), RandomForestRegressor(1, bootstrap=False)).fit(X, [1.0, 2.0, 3.0, 4.0])
    check(pipeline, X)
    fills = kernels.from_sklearn(pipeline, native=False).program.steps[0].arrays["fill_values"]
    assert fills.tolist() == pipeline[0].statistics_.tolist() != np.float32(fills).tolist()


@pytest.mark.parametrize("end", [LogisticRegression(), GradientBoostingClassifier(n_estimators=4)], ids=str)
def test_missing_numbers_are_refused_where_scikit_learn_refuses_them(end):
    X, y = CANCER
    model = kernels.from_sklearn(make_pipeline(StandardScaler(), end).fit(X, y), native=False)
    assert not model.takes_missing
    with pytest.raises(ModelError, match="finite numbers: row 0, feature"):
        model.predict(WITH_MISSING)


@pytest.mark.parametrize("make", [lambda: lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1),
                                  lambda: xgboost.XGBClassifier(n_estimators=4, n_jobs=1),
                                  lambda: HistGradientBoostingClassifier(max_iter=4)])
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")  # LightGBM's, of arrays
def test_missing_numbers_reach_trees_that_take_them(make):
    pipeline = make_pipeline(StandardScaler(), make()).fit(WITH_MISSING, CANCER[1])
    model = check(pipeline, WITH_MISSING, atol=1e-6 if "XGB" in str(pipeline) else 1e-9)
    assert model.takes_missing_in.all()


# ---- strings -----------------------------------------------------------------------------------------------

def payments(n: int = 400) -> pd.DataFrame:
    return pd.DataFrame({
        "amount": RNG.lognormal(3, 1, n), "country": RNG.choice(["ES", "FR", "DE", "nan"], n),
        "hour": RNG.integers(0, 24, n), "kind": RNG.choice(["card", "wire"], n), "ok": RNG.random(n) < 0.5,
        "unused": RNG.choice(["x", "y"], n)})


TRAIN = payments()
TARGET = np.where((TRAIN.amount > 30) & (TRAIN.kind == "wire"), "fraud", "fine")
STRINGS, NUMBERS = ["country", "kind"], ["amount", "hour"]


def holes(rows: pd.DataFrame, value: object = np.nan) -> pd.DataFrame:
    rows = rows.astype({"country": object, "kind": object})
    for column in STRINGS:
        rows.loc[RNG.random(len(rows)) < 0.2, column] = value
    return rows


HOLES, UNKNOWN = holes(TRAIN), holes(holes(TRAIN, "??"), "")

IGNORE = {"handle_unknown": "ignore"}
CODE = {"handle_unknown": "use_encoded_value", "unknown_value": -1}
LENIENT = {
    "one hot": OneHotEncoder(**IGNORE), "one hot, dense": OneHotEncoder(**IGNORE, sparse_output=False),
    "one hot but one": OneHotEncoder(**IGNORE, drop="first"), "ordinal": OrdinalEncoder(**CODE),
    "ordinal, missing": OrdinalEncoder(**CODE, encoded_missing_value=-2), "target": TargetEncoder(cv=2),
}
STRICT = {"one hot": OneHotEncoder(), "one hot but one": OneHotEncoder(drop="first"),
          "one hot, pairs": OneHotEncoder(drop="if_binary"), "ordinal": OrdinalEncoder()}
IMPUTERS = {"most frequent": SimpleImputer(strategy="most_frequent"),
            "constant": SimpleImputer(strategy="constant", fill_value="?")}
MODELS = {"logistic": LogisticRegression(max_iter=1000), "forest": RandomForestClassifier(4, random_state=0)}


def by_column(*strings, model, numbers=NUMBERS):
    """Numbers as they are, strings through these steps, then the model."""
    prepare = ColumnTransformer([("n", StandardScaler(), numbers), ("s", make_pipeline(*strings), STRINGS)])
    return Pipeline([("prepare", prepare), ("model", MODELS[model])])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", LENIENT)
@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_strings_unknown_or_missing_in_rows_alone(name, model):
    pipeline = by_column(LENIENT[name], model=model).fit(TRAIN, TARGET)
    check(pipeline, TRAIN, UNKNOWN, HOLES, TRAIN[TRAIN.columns[::-1]])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", [name for name in LENIENT if name != "ordinal"])
@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_strings_missing_in_training(name, model):
    pipeline = by_column(LENIENT[name], model=model).fit(HOLES, TARGET)
    found = check(pipeline, TRAIN, UNKNOWN, HOLES)
    assert MISSING in found.signature.categories[found.signature.feature_names.index("kind")]


@pytest.mark.parametrize("train", [TRAIN, HOLES], ids=["whole", "holes"])
@pytest.mark.parametrize("imputer", IMPUTERS)
@pytest.mark.parametrize("name", LENIENT)
@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_imputed_strings(name, imputer, train):
    pipeline = by_column(IMPUTERS[imputer], LENIENT[name], model="forest").fit(train, TARGET)
    check(pipeline, TRAIN, UNKNOWN, HOLES)  # an empty string is a string like any other


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", STRICT)
def test_unknown_strings_are_refused_where_scikit_learn_refuses_them(name, model):
    pipeline = by_column(STRICT[name], model=model).fit(TRAIN, TARGET)
    found = check(pipeline, TRAIN)
    for rows in (TRAIN[:1].assign(kind="cash"), TRAIN[:1].assign(country=""), HOLES[HOLES.kind.isna()][:1]):
        with pytest.raises(ValueError, match="unknown categories"):
            pipeline.predict(rows)
        with pytest.raises(ModelError):
            found.predict(rows)
    imputed = by_column(IMPUTERS["constant"], STRICT[name], model=model).fit(TRAIN, TARGET)
    found = kernels.from_sklearn(imputed, native=False)
    for rows in (TRAIN[:1].assign(kind="?"), TRAIN[:1].assign(kind=None)):
        with pytest.raises(ModelError):  # the constant is no category that training had
            found.predict(rows)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_strings_of_arrays(missing):
    X = TRAIN[STRINGS].to_numpy(object)
    X[::7, 0] = missing
    imputer = SimpleImputer(missing_values=missing, strategy="most_frequent")
    pipeline = make_pipeline(imputer, OneHotEncoder(), MODELS["forest"])
    check(pipeline.fit(X, TARGET), X)
    check(make_pipeline(OneHotEncoder(), MODELS["logistic"]).fit(X, TARGET), X)


def columns(*transformers, **options):
    return ColumnTransformer(list(transformers), **options)


HOT, SCALED = ("s", OneHotEncoder(**IGNORE), STRINGS), ("n", StandardScaler(), NUMBERS)
COLUMNS = {
    "the rest dropped": columns(HOT, SCALED),
    "the rest kept": columns(HOT, ("u", "drop", ["unused"]), remainder="passthrough"),
    "the rest scaled": columns(HOT, ("u", "drop", ["unused"]), remainder=StandardScaler()),
    "chosen by type": columns(("s", OneHotEncoder(**IGNORE), make_column_selector(dtype_exclude=np.number)),
                              ("n", StandardScaler(), make_column_selector(dtype_include=np.number))),
    "by number": columns(("s", OneHotEncoder(**IGNORE), [1, -3]), ("n", StandardScaler(), slice(0, 3, 2))),
    "by mask": columns(HOT, ("n", StandardScaler(), [True, False, True, False, False, False])),
    "twice": columns(HOT, SCALED, ("o", OrdinalEncoder(**CODE), ["kind"]), ("m", MinMaxScaler(), NUMBERS)),
    "weighted": columns(HOT, SCALED, transformer_weights={"n": 3.0}),
    "nested": columns(("a", columns(HOT, remainder="passthrough"), [*STRINGS, "hour"]), SCALED),
    "numbers as categories": columns(("h", OneHotEncoder(**IGNORE), ["hour"]), SCALED),
    "truths as categories": columns(("h", OneHotEncoder(**IGNORE), ["ok"]), SCALED),
    "both in one": columns(("h", OneHotEncoder(**IGNORE), ["hour", "kind"]), ("n", StandardScaler(), ["amount"])),
    "nothing": columns(SCALED, ("p", "passthrough", ["ok"]), ("none", StandardScaler(), [])),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_columns_chosen(name, model):
    pipeline = make_pipeline(COLUMNS[name], MODELS[model]).fit(TRAIN, TARGET)
    odd = TRAIN.assign(hour=TRAIN.hour + np.where(RNG.random(len(TRAIN)) < 0.3, 0.5, 0.0))  # no category
    found = check(pipeline, TRAIN, odd)
    mixed = TRAIN[TRAIN.columns[::-1]].assign(more=1)
    assert found.predict(mixed).tolist() == pipeline.predict(TRAIN).tolist()


def test_dropped_columns_are_not_asked_for():
    found = check(make_pipeline(COLUMNS["the rest dropped"], MODELS["forest"]).fit(TRAIN, TARGET), TRAIN)
    assert set(found.signature.feature_names) == {*STRINGS, *NUMBERS}
    found.predict(TRAIN[STRINGS + NUMBERS])
    with pytest.raises(ModelError, match="expected a column 'kind'"):
        found.predict(TRAIN.drop(columns="kind"))


@pytest.mark.parametrize("rows", [TRAIN[STRINGS], TRAIN[STRINGS].to_numpy(object)], ids=["frame", "array"])
@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder()], ids=str)
def test_strings_alone(encoder, rows):
    for model in MODELS.values():
        found = check(make_pipeline(encoder, model).fit(rows, TARGET), rows)
        assert found.signature.categories == (("DE", "ES", "FR", "nan"), ("card", "wire"))


def test_names_of_a_matrix_are_kept():
    rows = pd.DataFrame(CANCER[0], columns=[f"f{i}" for i in range(30)])
    for end in (MODELS["logistic"], MODELS["forest"]):
        found = check(make_pipeline(StandardScaler(), end).fit(rows, CANCER[1]), rows)
        assert found.signature.feature_names == tuple(rows.columns)


def test_encodings_are_exact():
    pipeline = by_column(TargetEncoder(cv=2), model="logistic").fit(TRAIN, TARGET)
    check(pipeline, TRAIN, atol=1e-14)


SAVED = {
    "linear": (make_pipeline(StandardScaler(), LogisticRegression()), CANCER),
    "ridge": (linear_model.RidgeClassifier(), WINE), "discriminant": (LinearDiscriminantAnalysis(), CANCER),
    "network": (make_pipeline(StandardScaler(), MLPClassifier((5,), max_iter=20)), WINE),
    "imputed forest": (make_pipeline(SimpleImputer(), MODELS["forest"]), (WITH_MISSING, CANCER[1])),
    "support vectors": (svm.SVR(), DIABETES), "two numbers": (Ridge(), (DIABETES[0], DIABETES[0][:, :2])),
    "strings, lenient": (by_column(IMPUTERS["constant"], LENIENT["one hot"], model="forest"), (HOLES, TARGET)),
    "strings, strict": (by_column(STRICT["ordinal"], model="logistic"), (TRAIN, TARGET)),
    "boosting": (make_pipeline(COLUMNS["twice"], lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1)),
                 (TRAIN, TARGET)),
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")  # LightGBM's, of arrays
def test_kernels_numpy_and_the_saved_file_give_the_same_bits(tmp_path, name):
    estimator, (X, y) = SAVED[name]
    check_saved(tmp_path, estimator.fit(X, y), X)


# ---- refused -----------------------------------------------------------------------------------------------

def squared() -> LogisticRegression:
    """One that has other probabilities than skl2onnx knows of."""
    estimator = LogisticRegression().fit(StandardScaler().fit_transform(CANCER[0]), CANCER[1])
    estimator.predict_proba = lambda X: LogisticRegression.predict_proba(estimator, X) ** 2
    return estimator


def scaled(*steps, X=CANCER[0], y=CANCER[1]):
    return make_pipeline(StandardScaler(), *steps).fit(X, y)


TREE = DecisionTreeClassifier(max_depth=2)
PAIR = [("a", LogisticRegression()), ("b", TREE)]
REFUSED = {
    "not an estimator": (lambda: 3, "fitted int"),
    "empty pipeline": (lambda: Pipeline([("a", "passthrough")]), "one step or more"),
    "not fitted": (LogisticRegression, "fitted LogisticRegression: it has no n_features_in_"),
    "step not fitted": (lambda: make_pipeline(StandardScaler(), Ridge()), "fitted StandardScaler"),
    "search not done": (lambda: GridSearchCV(Ridge(), {}), "fitted GridSearchCV"),
    "model in between": (lambda: scaled(LinearDiscriminantAnalysis(), TREE), "found LinearDiscriminantAnalysis before"),
    **{f"trees in {type(one).__name__}": (lambda one=one: scaled(one), "trees as the last step, one of Dec")
       for one in (BaggingClassifier(TREE, 2), BaggingRegressor(n_estimators=2), StackingClassifier(PAIR, cv=2))},
    "calibrated trees": (lambda: scaled(CalibratedClassifierCV(TREE, cv=2)), "CalibratedClassifierCV: "),
    **{type(one).__name__: (lambda one=one: scaled(one), "not supported|cannot convert")
       for one in (AdaBoostClassifier(n_estimators=2), VotingClassifier([PAIR[0]], voting="soft"), GaussianNB(),
                   KNeighborsClassifier(), OneVsRestClassifier(LogisticRegression()), KNNImputer())},
    "threshold of its own": (lambda: scaled(FixedThresholdClassifier(LogisticRegression(), threshold=0.3)),
                             "without a threshold of its own, found FixedThreshold"),
    "imputer with an indicator": (lambda: make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()).fit(
        WITH_MISSING, CANCER[1]), "without add_indicator"),
    "imputer of -1": (lambda: make_pipeline(SimpleImputer(missing_values=-1), LogisticRegression()).fit(*CANCER),
                      "cannot convert this SimpleImputer"),
    "imputers that are one in float32": (lambda: make_pipeline(
        columns(("a", SimpleImputer(strategy="constant", fill_value=0.1), [0]),
                ("b", SimpleImputer(strategy="constant", fill_value=0.1 + 1e-12), [1])), TREE).fit(*CANCER),
        "float32 can tell apart"),
    "function": (lambda: make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(*CANCER),
                 "cannot convert this FunctionTransformer"),
    "rare categories": (lambda: by_column(OneHotEncoder(min_frequency=300), model="forest").fit(TRAIN, TARGET),
                        "not supported|cannot convert"),
    "missing without a code": (lambda: by_column(OrdinalEncoder(), model="forest").fit(HOLES, TARGET),
                               "behind an imputer, or with an encoded_missing_value"),
    "broken numbers as categories": (lambda: make_pipeline(OneHotEncoder(**IGNORE), MODELS["forest"]).fit(
        DIABETES[0][:, :1], DIABETES[1] > 100), "cannot convert this OneHotEncoder"),
    "two labels": (lambda: MLPClassifier((2,), max_iter=5).fit(CANCER[0], CANCER[0][:, :2] > 10), "one label a row"),
    "two labels of a ridge": (lambda: linear_model.RidgeClassifier().fit(CANCER[0], CANCER[0][:, :2] > 10),
                              "one output, found 2"),
    "two numbers of a network": (lambda: MLPRegressor(hidden_layer_sizes=2, max_iter=5).fit(
        CANCER[0], CANCER[0][:, :2]), "MLPRegressor: operator"),
    "labels of 64 bits": (lambda: LogisticRegression().fit(CANCER[0], CANCER[1] * 2**40), "whole numbers of 32 bits"),
    "other probabilities": (squared, "expected the answers of LogisticRegression: .* for rows of numbers"),
    "modified Huber of three": (
        lambda: scaled(SGDClassifier(loss="modified_huber", random_state=0), X=WINE[0], y=WINE[1]),
        "expected the answers of SGDClassifier: .* for rows of numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_answer_as_scikit_learn_is_refused_by_name(case):
    make, expected = REFUSED[case]
    estimator = make()
    with pytest.raises(ModelError, match=expected):
        kernels.from_sklearn(estimator)


def test_skl2onnx_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    kernels.from_sklearn(RandomForestClassifier(2).fit(*CANCER), native=False)
    with pytest.raises(ModelError, match=r"needs skl2onnx: pip install 'testigo\[sklearn\]'"):
        kernels.from_sklearn(LogisticRegression().fit(*CANCER))


def test_the_estimator_is_left_as_it_was():
    pipeline = by_column(IMPUTERS["constant"], OneHotEncoder(), model="forest").fit(HOLES, TARGET)
    before = pipeline.predict_proba(HOLES)
    kernels.from_sklearn(pipeline, native=False)
    imputer = pipeline[0].transformers_[1][1][0]
    assert np.isnan(imputer.missing_values)
    assert np.array_equal(pipeline.predict_proba(HOLES), before)


def test_name_version_and_type():
    pipeline = scaled(LogisticRegression())
    model = kernels.from_sklearn(pipeline, name="cancer", version="7", native=False)
    assert (model.name, model.version, model.model_type) == ("cancer", "7", "pipeline")
    assert kernels.from_sklearn(pipeline, native=False).name == "LogisticRegression"
    alone = kernels.from_sklearn(LogisticRegression().fit(*CANCER), native=False)
    assert (alone.model_type, alone.signature.task) == ("linear", "classification")


STAMPS = np.random.default_rng(3).normal(size=(400, 3)) * 1000 + 1.7e9  # float32 has 128 steps between them


@pytest.mark.parametrize("estimator, expected", [
    (svm.SVC(), "near its support vectors"), (svm.SVR(C=100), "near its support vectors"),
    (make_pipeline(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), RandomForestClassifier(3)),
     "float32 can tell apart"),
    (make_pipeline(KBinsDiscretizer(encode="ordinal", quantile_method="averaged_inverted_cdf"),
                   RandomForestClassifier(3)), "others for rows"),
], ids=["SVC", "SVR", "ordinal", "bins"])
def test_what_float32_would_change_is_refused(estimator, expected):
    X = np.round(STAMPS) if "ordinal" in str(estimator).lower() else STAMPS
    with pytest.raises(ModelError, match=expected):
        kernels.from_sklearn(estimator.fit(X, np.random.default_rng(4).integers(0, 2, len(X))))


def test_broken_ties_are_refused():
    X = np.random.default_rng(0).normal(size=(90, 2))
    with pytest.raises(ModelError, match="break_ties"):
        kernels.from_sklearn(svm.SVC(break_ties=True, decision_function_shape="ovr").fit(X, np.arange(90) % 3))


def test_missing_value_of_an_imputer_is_exact():
    X = np.round(np.random.default_rng(0).normal(size=(300, 3)) * 3) / 10
    estimator = make_pipeline(SimpleImputer(missing_values=0.1), LogisticRegression()).fit(X, (X[:, 0] > 0).astype(int))
    model = kernels.from_sklearn(estimator)
    np.testing.assert_allclose(model.predict_proba(X), estimator.predict_proba(X), rtol=1e-9)


def test_whole_numbers_as_categories_are_exact():
    X = np.random.default_rng(0).integers(0, 50, (300, 2)) * 2 + 2.0**24  # float32 has every second whole number here
    estimator = make_pipeline(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
                              RandomForestClassifier(5)).fit(X, (X[:, 0] > 2.0**24 + 50).astype(int))
    near = np.concatenate([X, X + 1, X - 1])
    assert (kernels.from_sklearn(estimator).predict(near) == estimator.predict(near)).all()
