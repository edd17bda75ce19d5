"""The steps of support vector machines: to the bit in both ways, and against libsvm through scikit-learn."""

import numpy as np
import pytest
from sklearn import svm as sklearn_svm

from kernels import svm
from kernels.errors import ModelError
from kernels.onnx_ml_ops import _svm_votes
from kernels.program import Builder, Program
from kernels.row_ops import UNARY_CODES
from kernels.step import Step
from kernels.tabular import Signature, TabularModel

RNG = np.random.default_rng(3)


def value_of(width: int, add, rows: np.ndarray) -> np.ndarray:
    """What a step makes of rows, natively and in numpy: the same bits."""
    builder = Builder(width)
    made = add(builder)
    program = builder.finish(made, 0, (made,))
    signature = Signature(width, None, None, "regression")
    found = [TabularModel("m", "1", "svm", signature, program, native=native).predict(rows) for native in (True, False)]
    assert np.array_equal(*found)
    return found[0].reshape(len(rows), -1)


@pytest.mark.parametrize("n_features", [1, 7, 8, 9, 24, 31])
def test_distances(n_features):
    rows, vectors = RNG.normal(size=(70, n_features)), RNG.normal(size=(5, n_features))
    found = value_of(n_features, lambda builder: builder.add(
        "distances", (0,), 5, numbers={"factor": -0.25}, arrays={"vectors": vectors}), rows)
    expected = -0.25 * np.square(rows[:, None] - vectors).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_distance_by_hand():
    found = value_of(2, lambda builder: builder.add(
        "distances", (0,), 2, numbers={"factor": 2.0}, arrays={"vectors": np.array([[1.0, 2.0], [0.0, 0.0]])}),
        np.array([[4.0, 6.0]]))
    assert found.tolist() == [[50.0, 104.0]]


@pytest.mark.parametrize("n_vectors", [[3, 4], [2, 0, 5], [1, 1, 1, 1], [4, 3, 2, 1, 5]])
def test_pairs_votes_and_coupling(n_vectors):
    k, total = len(n_vectors), sum(n_vectors)
    n = svm.n_pairs(k)
    coefficients, rho = RNG.normal(size=(k - 1, total)), RNG.normal(size=n)
    products = RNG.normal(size=(70, total))

    def pairs(builder: Builder) -> int:
        return builder.add("svm_pairs", (0,), n, numbers={"n_classes": k}, arrays={
            "first": np.cumsum([0, *n_vectors]), "coefficients": coefficients, "rho": rho})
    scores, winner = _svm_votes(products, coefficients, rho, np.array(n_vectors))
    np.testing.assert_allclose(value_of(total, pairs, products), scores, atol=1e-6)
    votes = value_of(n, lambda builder: builder.add("svm_votes", (0,), 1, numbers={"n_classes": k}), scores)
    assert votes[:, 0].tolist() == winner.tolist()
    prob_a, prob_b = (RNG.normal(size=n).astype(np.float32) for _ in range(2))
    found = value_of(n, lambda builder: builder.add("svm_coupling", (0,), k, arrays={
        "prob_a": prob_a.astype(np.float64), "prob_b": prob_b.astype(np.float64)}), scores)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    r = np.zeros((70, k, k), np.float32)
    low, high = np.triu_indices(k, 1)
    r[:, low, high] = (1 / (1 + np.exp(scores.astype(np.float64) * prob_a + prob_b))).clip(1e-7, 1 - 1e-7)
    r[:, high, low] = 1 - r[:, low, high]
    np.testing.assert_allclose(found, svm.coupled(r), atol=1e-5)


def test_coupling_of_two_classes_is_the_sigmoid():
    found = value_of(1, lambda builder: builder.add("svm_coupling", (0,), 2, arrays={
        "prob_a": np.array([-1.0]), "prob_b": np.array([0.0])}), np.array([[0.0], [2.0], [-50.0]]))
    np.testing.assert_allclose(found[:, 0], [0.5, 1 / (1 + np.exp(-2.0)), 1e-7], atol=2e-7)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_classifier_of_these_steps_is_libsvm(n_classes):
    X, y = RNG.normal(size=(90, 6)), np.arange(90) % n_classes
    X[:, 0] += y
    estimator = sklearn_svm.SVC(gamma=0.2).fit(X, y)
    builder, total, n = Builder(6), len(estimator.support_vectors_), svm.n_pairs(n_classes)
    value = builder.add("distances", (0,), total, numbers={"factor": -0.2},
                        arrays={"vectors": estimator.support_vectors_})
    value = builder.add("unary", (value,), total, numbers={"function": UNARY_CODES["exp"]})
    # scikit-learn turns the signs of two classes around
    sign = -1.0 if n_classes == 2 else 1.0
    scores = builder.add("svm_pairs", (value,), n, numbers={"n_classes": n_classes}, arrays={
        "first": np.cumsum([0, *estimator.n_support_]), "coefficients": sign * estimator.dual_coef_,
        "rho": sign * estimator.intercept_})
    winner = builder.add("svm_votes", (scores,), 1, numbers={"n_classes": n_classes})
    program = builder.finish(winner, 0, (scores,))
    signature = Signature(6, None, tuple(range(n_classes)), "classification")
    for native in (True, False):
        found = TabularModel("m", "1", "svm", signature, program, native=native).predict(X)
        assert found.tolist() == estimator.predict(X).tolist()


GOOD = {
    "distances": Step("distances", (0,), 2, {"factor": 1.0}, {"vectors": np.zeros((2, 3))}),
    "svm_pairs": Step("svm_pairs", (0,), 3, {"n_classes": 3}, {
        "first": np.array([0, 1, 2, 3]), "coefficients": np.zeros((2, 3)), "rho": np.zeros(3)}),
    "svm_votes": Step("svm_votes", (0,), 1, {"n_classes": 3}, {}),
    "svm_coupling": Step("svm_coupling", (0,), 3, {}, {"prob_a": np.zeros(3), "prob_b": np.zeros(3)}),
}


@pytest.mark.parametrize(("op", "change"), [
    ("distances", {"inputs": (0, 0)}), ("distances", {"numbers": {}}), ("distances", {"numbers": {"factor": np.inf}}),
    ("distances", {"arrays": {"vectors": np.full((2, 3), np.nan)}}), ("distances", {"width": 3}),
    ("svm_pairs", {"numbers": {"n_classes": 2}}), ("svm_pairs", {"width": 2}),
    ("svm_pairs", {"arrays": GOOD["svm_pairs"].arrays | {"first": np.array([0, 2, 1, 3])}}),
    ("svm_pairs", {"arrays": GOOD["svm_pairs"].arrays | {"first": np.array([0, 1, 2, 4])}}),
    ("svm_pairs", {"arrays": GOOD["svm_pairs"].arrays | {"first": np.array([-1, 1, 2, 3])}}),
    ("svm_pairs", {"arrays": GOOD["svm_pairs"].arrays | {"rho": np.full(3, np.inf)}}),
    ("svm_votes", {"numbers": {"n_classes": 4}}), ("svm_votes", {"numbers": {"n_classes": 1}}),
    ("svm_votes", {"width": 2}), ("svm_coupling", {"width": 2}),
    ("svm_coupling", {"arrays": {"prob_a": np.zeros(3), "prob_b": np.full(3, 0.1)}}),
])
def test_step_that_does_not_fit_is_refused(op, change):
    Program(3, (GOOD[op],), 1, 0, 1, (1,))
    with pytest.raises(ModelError, match=f"step 0 .{op}.: expected"):
        Program(3, (GOOD[op]._replace(**change),), 1, 0, 1, (1,))
