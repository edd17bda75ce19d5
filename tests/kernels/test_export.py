"""Saved models of scikit-learn on real data: labels, and every score within what the blocks' scales allow."""

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kernels
from kernels import ModelError
from kernels.export import save_dense
from kernels.gguf import FORMATS
from kernels.row_ops import run_steps
from tests import naive, sklearn_models

CLASSIFIERS = [
    sklearn_models.breast_cancer_logistic, sklearn_models.breast_cancer_mlp,
    sklearn_models.digits_logistic, sklearn_models.digits_mlp,
    sklearn_models.breast_cancer_with_missing_values,
]
REGRESSORS = [sklearn_models.diabetes_ridge, sklearn_models.diabetes_mlp]
STEPS = {"q8_0": 0.5, "q4_0": 1.0}  # the largest error of a weight, in its block's scales; see quants.py


def saved(path, estimator, tensor_type: str) -> kernels.TabularModel:
    kernels.save(kernels.from_sklearn(estimator), path, type=tensor_type)
    return kernels.load(path)


@pytest.mark.parametrize("fitted", CLASSIFIERS, ids=lambda f: f.__name__)
def test_unquantized_classifier_answers_as_scikit_learn(tmp_path, fitted):
    estimator, X, _ = fitted()
    model = saved(tmp_path / "m.gguf", estimator, "f32")
    labels = model.predict(X)
    assert labels.tolist() == estimator.predict(X).tolist()
    assert type(labels.tolist()[0]) is type(estimator.predict(X).tolist()[0])
    assert model.signature.classes == tuple(estimator.classes_.tolist())
    np.testing.assert_allclose(model.predict_proba(X), estimator.predict_proba(X), atol=2e-5)


@pytest.mark.parametrize("fitted", REGRESSORS, ids=lambda f: f.__name__)
def test_unquantized_regressor_answers_as_scikit_learn(tmp_path, fitted):
    estimator, X, _ = fitted()
    found = saved(tmp_path / "m.gguf", estimator, "f32").predict(X)
    np.testing.assert_allclose(found, estimator.predict(X), rtol=1e-5)


@pytest.mark.parametrize("fitted", CLASSIFIERS, ids=lambda f: f.__name__)
def test_q8_0_changes_at_most_half_a_percent_of_the_labels(tmp_path, fitted, record_property):
    estimator, X, y = fitted()
    expected = estimator.predict(X)
    for tensor_type in STEPS:
        model = saved(tmp_path / "m.gguf", estimator, tensor_type)
        labels = model.predict(X)
        changed, accuracy, before = np.mean(labels != expected), np.mean(labels == y), np.mean(expected == y)
        print(f"{fitted.__name__} {tensor_type}: accuracy {accuracy:.4f}, scikit-learn {before:.4f}, "
              f"labels changed {changed:.2%}, {model.size_bytes:,} bytes")
        record_property(f"accuracy_{tensor_type}", accuracy)
        assert accuracy >= before - (0.005 if tensor_type == "q8_0" else 0.03)
        if tensor_type == "q8_0":
            assert changed <= 0.005


ACTIVATE = {"relu": lambda s: np.maximum(s, 0), "tanh": np.tanh, "logistic": lambda s: 1 / (1 + np.exp(-s))}


def layers_of(estimator) -> list[tuple[np.ndarray, np.ndarray]]:
    """The fitted weights (n_out, n_in) and biases of each layer; of two classes a score for each."""
    if hasattr(estimator, "coefs_"):
        return [(weights.T, bias) for weights, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True)]
    weights, bias = estimator.coef_, estimator.intercept_
    return [(np.vstack([-weights, weights]), np.append(-bias, bias))] if len(weights) == 1 else [(weights, bias)]


def weights_and_steps(dense) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a step "dense" and the scale of each one's block."""
    block = FORMATS[int(dense.numbers["tensor_type"])]
    rows, n_in = dense.arrays["weights"], int(dense.numbers["n_in"])
    values = np.array([naive.DEQUANTIZE[block.name.lower()](row.tobytes()) for row in rows])
    blocks = rows.reshape(len(rows), -1, block.size_bytes)
    scales = np.abs(blocks[..., :2].copy().view("<f2").astype(float))
    return values[:, :n_in], np.repeat(scales[..., 0], 32, axis=1)[:, :n_in]


@pytest.mark.parametrize("tensor_type", STEPS)
@pytest.mark.parametrize("fitted", [*CLASSIFIERS[:4], sklearn_models.diabetes_mlp], ids=lambda f: f.__name__)
def test_every_score_is_within_what_the_scales_allow(tmp_path, fitted, tensor_type):
    pipeline, X, _ = fitted()
    steps, layers = saved(tmp_path / "m.gguf", pipeline, tensor_type).program.steps, layers_of(pipeline[-1])
    numbers = [i for i, step in enumerate(steps, 1) if step.op == "dense"]
    last = steps[numbers[-1] - 1]
    last = last._replace(numbers=last.numbers | {"activation": 0})  # its score, before any logistic
    found = run_steps((*steps[:numbers[-1] - 1], last), [X])
    values = pipeline[:-1].transform(X)
    bound = np.zeros_like(values)
    for i, (number, (weights, bias)) in enumerate(zip(numbers, layers, strict=True)):
        quantized, scales = weights_and_steps(steps[number - 1])
        # |Wx − Ŵx̂| ≤ |W − Ŵ||x| + |Ŵ||x − x̂|; the activations stretch nothing.
        rounding = 1e-12 * (np.abs(values) @ np.abs(weights).T + np.abs(bias))
        bound = np.abs(values) @ (STEPS[tensor_type] * scales).T + bound @ np.abs(quantized).T + rounding
        sums = values @ weights.T + bias
        values = sums if i == len(layers) - 1 else ACTIVATE[pipeline[-1].activation](sums)
    errors = np.abs(found[numbers[-1]] - values)
    assert (errors <= bound).all()
    print(f"{fitted.__name__} {tensor_type}: the largest error of a score is {errors.max():.3g}, "
          f"at most {(errors / bound).max():.2f} of its bound")


X = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
MISSING = np.where(X == 1, np.nan, X)
TARGETS = [1, 2, 3, 4]


@pytest.mark.parametrize("imputer", [SimpleImputer(), SimpleImputer(strategy="median"),
                                     SimpleImputer(strategy="constant", fill_value=7.0)])
@pytest.mark.parametrize("scaler", [StandardScaler(), StandardScaler(with_mean=False),
                                    StandardScaler(with_std=False), "passthrough"])
def test_every_imputer_and_scaler_is_carried_over(tmp_path, imputer, scaler):
    estimator = make_pipeline(imputer, scaler, Ridge()).fit(MISSING, TARGETS)
    model = saved(tmp_path / "m.gguf", estimator, "f32")
    assert model.takes_missing
    np.testing.assert_allclose(model.predict(MISSING), estimator.predict(MISSING), rtol=1e-6)


SOUND = {"layers": [(np.ones((1, 2)), np.zeros(1))], "activations": ["identity"], "name": "m", "version": "1",
         "task": "regression"}


@pytest.mark.parametrize(("changes", "expected"), [
    ({"tensor_type": "q5_k"}, "f32, f16, q8_0, q4_0 for the tensor type"),
    ({"layers": []}, "one layer or more"),
    ({"layers": [(np.ones((1, 2)), np.zeros(2))]}, "in layer 0"),
    ({"layers": [(np.ones((3, 2)), np.zeros(3)), (np.ones((1, 2)), np.zeros(1))]}, "in layer 1"),
    ({"layers": [(np.ones((1, 2)) * np.nan, np.zeros(1))]}, "finite weights"),
    ({"layers": [(np.ones((1, 2)), np.full(1, 1e300))]}, "finite numbers in dense.0.bias"),
    ({"activations": ["softmax"]}, "tabular.activations"),
    ({"activations": [1]}, "activations"),
    ({"task": "classification", "activations": ["logistic"], "classes": ["a", 1]}, "tabular.classes"),
    ({"task": "classification", "activations": ["logistic"], "classes": []}, "tabular.classes"),
    ({"feature_names": ["a"]}, "tabular.feature_names"),
    ({"fill_values": [0.0, np.inf]}, "tabular.fill_values"),
    ({"input_scale": [1.0]}, "shape .2,. of input.scale"),
    ({"name": ""}, "general.name"),
])
def test_what_the_format_does_not_take_is_refused_and_leaves_no_file(tmp_path, changes, expected):
    with pytest.raises(ModelError, match=expected):
        save_dense(tmp_path / "m.gguf", **SOUND | changes)
    assert list(tmp_path.iterdir()) == []


def test_model_that_is_loaded_survives_its_files_replacement(tmp_path):
    path = tmp_path / "m.gguf"
    save_dense(path, **SOUND)
    model = kernels.load(path)
    save_dense(path, **SOUND | {"layers": [(np.full((1, 2), 9.0), np.zeros(1))], "tensor_type": "f32"})
    assert model.predict([[1.0, 1.0]])[0] == pytest.approx(2, rel=1e-3)
    assert kernels.load(path).predict([[1.0, 1.0]])[0] == 18
