"""Fitted scikit-learn models on real data, for tests of exporting, serving and packaging.

Each function gives (estimator, X_test, y_test), the same on every call; about a second in all.
"""

import functools

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

Fitted = tuple[object, np.ndarray, np.ndarray]


def _fit(estimator, X: np.ndarray, y: np.ndarray) -> Fitted:
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0)
    with threadpool_limits(1):  # BLAS threads that spin for each other are slow on a busy machine
        return estimator.fit(X_train, y_train), X_test, y_test


def _breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return data.data, data.target_names[data.target]  # labels "malignant" and "benign"


@functools.cache
def breast_cancer_logistic() -> Fitted:
    """StandardScaler → LogisticRegression: 30 features, two classes of strings."""
    return _fit(make_pipeline(StandardScaler(), LogisticRegression()), *_breast_cancer())


@functools.cache
def breast_cancer_mlp() -> Fitted:
    """StandardScaler → MLPClassifier with 32 and 16 ReLU units: one logistic output."""
    mlp = MLPClassifier((32, 16), max_iter=1000, random_state=0)
    return _fit(make_pipeline(StandardScaler(), mlp), *_breast_cancer())


@functools.cache
def digits_logistic() -> Fitted:
    """StandardScaler → LogisticRegression: 64 features, ten classes of integers."""
    return _fit(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
                *load_digits(return_X_y=True))


@functools.cache
def digits_mlp() -> Fitted:
    """StandardScaler → MLPClassifier with 64 tanh units: ten softmax outputs."""
    mlp = MLPClassifier((64,), activation="tanh", max_iter=1000, random_state=0)
    return _fit(make_pipeline(StandardScaler(), mlp), *load_digits(return_X_y=True))


@functools.cache
def breast_cancer_with_missing_values() -> Fitted:
    """SimpleImputer(median) → StandardScaler → LogisticRegression; a tenth of the values are NaN."""
    X, y = _breast_cancer()
    X = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    return _fit(make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression()), X, y)


@functools.cache
def diabetes_ridge() -> Fitted:
    """Ridge: ten features, one number out."""
    return _fit(Ridge(), *load_diabetes(return_X_y=True))


@functools.cache
def diabetes_mlp() -> Fitted:
    """StandardScaler → MLPRegressor with 16 logistic units."""
    mlp = MLPRegressor(hidden_layer_sizes=(16,), activation="logistic", solver="lbfgs", alpha=30.0,
                       max_iter=5000, random_state=0)
    return _fit(make_pipeline(StandardScaler(), mlp), *load_diabetes(return_X_y=True))
