"""A model of every kind that `kernels` loads, with rows that it takes, for tests of packaging."""

from pathlib import Path
from typing import NamedTuple

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from skl2onnx import to_onnx
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import kernels
from kernels import TabularModel
from tests import sklearn_models

N_ROWS = 40


class Case(NamedTuple):
    """What is packaged, a file or a loaded model, and rows for it."""
    source: Path | TabularModel
    rows: pd.DataFrame

    def model(self) -> TabularModel:
        return self.source if isinstance(self.source, TabularModel) else kernels.load(self.source)


def cases(folder: Path) -> dict[str, Case]:
    """By kind; their files are written into `folder`."""
    return {
        "gguf linear": Case(kernels.DEFAULT_MODEL, unnamed(np.random.default_rng(1).normal(size=(N_ROWS, 5)))),
        "gguf mlp": mlp(folder / "mlp.gguf"),
        "lightgbm": lightgbm_classes(folder / "three.txt"),
        "xgboost json": xgboost_value(folder / "value.json"),
        "xgboost ubjson": xgboost_value(folder / "value.ubj"),
        "onnx": onnx_forest(folder / "forest.onnx"),
        "sklearn strings": Case(kernels.from_sklearn(strings_pipeline(), name="strings"), strings_rows()),
    }


def unnamed(rows: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(rows)


def mlp(path: Path) -> Case:
    """String labels from a neural network, as GGUF."""
    estimator, X, _ = sklearn_models.breast_cancer_mlp()
    kernels.save(kernels.from_sklearn(estimator), path, type="f32")
    return Case(path, unnamed(X[:N_ROWS]))


def lightgbm_classes(path: Path) -> Case:
    """Three probabilities a row; named columns, values may be missing."""
    X, y = load_iris(return_X_y=True)
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    rows = lightgbm.Dataset(X, y, feature_name=names, params={"verbose": -1})
    settings = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1, "seed": 1}
    path.write_text(lightgbm.train(settings, rows, 8).model_to_string())
    return Case(path, with_holes(pd.DataFrame(X[::4], columns=names)))


def xgboost_value(path: Path) -> Case:
    """A number a row; named columns, values may be missing."""
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    booster = xgboost.train({"max_depth": 4, "nthread": 1}, xgboost.DMatrix(X, y, nthread=1), 8)
    booster.save_model(path)
    return Case(path, with_holes(X[:N_ROWS].reset_index(drop=True)))


def with_holes(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.copy()
    rows.iloc[1::5, 1] = np.nan
    return rows


def onnx_forest(path: Path) -> Case:
    """Integer labels from a forest."""
    X, y = load_breast_cancer(return_X_y=True)
    forest = RandomForestClassifier(8, max_depth=5, random_state=0).fit(X.astype(np.float32), y)
    path.write_bytes(to_onnx(forest, X[:1].astype(np.float32), options={"zipmap": False}).SerializeToString())
    return Case(path, unnamed(X[:N_ROWS].astype(np.float32).astype(np.float64)))


def strings_rows(n: int = N_ROWS) -> pd.DataFrame:
    """Two columns of strings and two of numbers; one of the numbers may be missing."""
    rng = np.random.default_rng(3)
    return pd.DataFrame({"merchant": rng.choice(["café", "grocer", "travel"], n),
                         "country": rng.choice(["de", "es", "fr"], n), "amount": rng.gamma(2, 40, n).round(2),
                         "age": np.where(rng.random(n) < 0.2, np.nan, rng.integers(18, 90, n))})


def strings_pipeline():
    """A pipeline of encoders and scalers on `strings_rows`, which answers "fraud" or "fine"."""
    X = strings_rows(400)
    y = np.where((X["amount"] > 80) ^ (X["country"] == "es") ^ (X["merchant"] == "travel"), "fraud", "fine")
    prepare = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["merchant", "country"]),
                                      (make_pipeline(SimpleImputer(), StandardScaler()), ["amount", "age"]))
    return make_pipeline(prepare, LogisticRegression()).fit(X, y)
