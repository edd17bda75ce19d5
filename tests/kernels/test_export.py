"""Exported scikit-learn models on real data: labels, and every score within what the blocks' scales allow."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import kernels
from kernels import ModelError, gguf
from kernels.export import from_sklearn, save_dense
from tests import naive, sklearn_models

CLASSIFIERS = [
    sklearn_models.breast_cancer_logistic, sklearn_models.breast_cancer_mlp,
    sklearn_models.digits_logistic, sklearn_models.digits_mlp,
    sklearn_models.breast_cancer_with_missing_values,
]
REGRESSORS = [sklearn_models.diabetes_ridge, sklearn_models.diabetes_mlp]
STEPS = {"q8_0": 0.5, "q4_0": 1.0}  # the largest error of a weight, in its block's scales; see quants.py


def exported(path, estimator, **arguments) -> kernels.TabularModel:
    save_dense(path, name="m", version="1", **from_sklearn(estimator) | arguments)
    return kernels.load(path)


@pytest.mark.parametrize("fitted", CLASSIFIERS, ids=lambda f: f.__name__)
def test_unquantized_classifier_answers_as_scikit_learn(tmp_path, fitted):
    estimator, X, _ = fitted()
    model = exported(tmp_path / "m.gguf", estimator, tensor_type="f32")
    labels = model.predict(X)
    assert labels.tolist() == estimator.predict(X).tolist()
    assert type(labels.tolist()[0]) is type(estimator.predict(X).tolist()[0])
    assert model.signature.classes == tuple(estimator.classes_.tolist())
    np.testing.assert_allclose(model.predict_proba(X), estimator.predict_proba(X), atol=2e-5)


@pytest.mark.parametrize("fitted", REGRESSORS, ids=lambda f: f.__name__)
def test_unquantized_regressor_answers_as_scikit_learn(tmp_path, fitted):
    estimator, X, _ = fitted()
    found = exported(tmp_path / "m.gguf", estimator, tensor_type="f32").predict(X)
    np.testing.assert_allclose(found, estimator.predict(X), rtol=1e-5)


@pytest.mark.parametrize("fitted", CLASSIFIERS, ids=lambda f: f.__name__)
def test_q8_0_changes_at_most_half_a_percent_of_the_labels(tmp_path, fitted, record_property):
    estimator, X, y = fitted()
    expected = estimator.predict(X)
    for tensor_type in STEPS:
        model = exported(tmp_path / "m.gguf", estimator, tensor_type=tensor_type)
        labels = model.predict(X)
        changed, accuracy, before = np.mean(labels != expected), np.mean(labels == y), np.mean(expected == y)
        print(f"{fitted.__name__} {tensor_type}: accuracy {accuracy:.4f}, scikit-learn {before:.4f}, "
              f"labels changed {changed:.2%}, {model.size_bytes:,} bytes")
        record_property(f"accuracy_{tensor_type}", accuracy)
        assert accuracy >= before - (0.005 if tensor_type == "q8_0" else 0.03)
        if tensor_type == "q8_0":
            assert changed <= 0.005


def scores_of_every_output(path, arguments: dict, X: np.ndarray) -> tuple[np.ndarray, list]:
    """The last layer's sums (n, n_out), by a regression for each output; the layers of each."""
    *hidden, (weights, bias) = arguments["layers"]
    columns, layers = [], []
    for i in range(len(bias)):
        save_dense(path, **arguments | {
            "layers": [*hidden, (weights[i:i + 1], bias[i:i + 1])], "task": "regression", "classes": None,
            "activations": [*arguments["activations"][:-1], "identity"]})
        model = kernels.load(path)
        columns.append(model.predict(X))
        layers.append([gguf.read(path).tensors[f"dense.{layer}.weight"] for layer in range(len(hidden) + 1)])
    return np.stack(columns, axis=1), layers


def weights_and_steps(weight, n_in: int) -> tuple[np.ndarray, np.ndarray]:
    """The stored weights (n_out, n_in) and the scale of each one's block."""
    name = weight.format.name.lower()
    values = np.array([naive.DEQUANTIZE[name](row.tobytes()) for row in weight.data])
    blocks = weight.data.reshape(len(weight.data), -1, weight.format.size_bytes)
    scales = np.abs(blocks[..., :2].copy().view("<f2").astype(float))
    return values[:, :n_in], np.repeat(scales[..., 0], 32, axis=1)[:, :n_in]


@pytest.mark.parametrize("tensor_type", STEPS)
@pytest.mark.parametrize("fitted", [*CLASSIFIERS[:4], sklearn_models.diabetes_mlp], ids=lambda f: f.__name__)
def test_every_score_is_within_what_the_scales_allow(tmp_path, fitted, tensor_type):
    estimator, X, _ = fitted()
    arguments = from_sklearn(estimator) | {"name": "m", "version": "1", "tensor_type": tensor_type}
    found, stored = scores_of_every_output(tmp_path / "m.gguf", arguments, X)
    activate = {"relu": lambda s: np.maximum(s, 0), "tanh": np.tanh,
                "logistic": lambda s: 1 / (1 + np.exp(-s)),
                "identity": lambda s: s, "softmax": lambda s: s}
    prepared = (X - arguments["input_offset"]) * arguments["input_scale"]
    for output in range(found.shape[1]):
        values, bound = prepared, np.zeros_like(prepared)
        for i, (weights, bias) in enumerate(arguments["layers"]):
            last = i == len(arguments["layers"]) - 1
            weights, bias = (weights[output:output + 1], bias[output:output + 1]) if last else (weights, bias)
            quantized, scales = weights_and_steps(stored[output][i], weights.shape[1])
            # |Wx − Ŵx̂| ≤ |W − Ŵ||x| + |Ŵ||x − x̂|; the activations stretch nothing; biases are float32.
            rounding = 1e-12 * (np.abs(values) @ np.abs(weights).T + np.abs(bias)) + 2.0**-24 * np.abs(bias)
            bound = np.abs(values) @ (STEPS[tensor_type] * scales).T + bound @ np.abs(quantized).T + rounding
            sums = values @ weights.T + bias
            values = sums if last else activate[arguments["activations"][i]](sums)
        errors = np.abs(found[:, output] - values[:, 0])
        assert (errors <= bound[:, 0]).all()
    print(f"{fitted.__name__} {tensor_type}: the last output's largest error is {errors.max():.3g}, "
          f"at most {(errors / bound[:, 0]).max():.2f} of its bound")


def test_data_frames_column_names_become_feature_names(tmp_path):
    estimator = LinearRegression().fit(np.eye(3), [1, 2, 3])
    estimator.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    assert exported(tmp_path / "m.gguf", estimator).signature.feature_names == ("a", "b", "c")


X = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
MISSING = np.where(X == 1, np.nan, X)
TARGETS = [1, 2, 3, 4]


@pytest.mark.parametrize("imputer", [SimpleImputer(), SimpleImputer(strategy="median"),
                                     SimpleImputer(strategy="constant", fill_value=7.0)])
@pytest.mark.parametrize("scaler", [StandardScaler(), StandardScaler(with_mean=False),
                                    StandardScaler(with_std=False), "passthrough"])
def test_every_imputer_and_scaler_is_carried_over(tmp_path, imputer, scaler):
    estimator = make_pipeline(imputer, scaler, Ridge()).fit(MISSING, TARGETS)
    model = exported(tmp_path / "m.gguf", estimator, tensor_type="f32")
    assert model.takes_missing
    np.testing.assert_allclose(model.predict(MISSING), estimator.predict(MISSING), rtol=1e-6)


def pipeline(*steps):
    """Fitted to rows with missing values where its imputer comes first, else without."""
    return make_pipeline(*steps).fit(MISSING if isinstance(steps[0], SimpleImputer) else X, TARGETS)


def mlp(estimator, y):
    estimator.set_params(hidden_layer_sizes=(3,), solver="lbfgs", max_iter=2000, random_state=0)
    return estimator.fit(X, y)


def logistic(*labels):
    return LogisticRegression().fit(X, labels)


INFINITE = SimpleImputer(strategy="constant", fill_value=np.inf).fit(X)
INDICATING = SimpleImputer(add_indicator=True).fit(MISSING)
MINUS_ONE = SimpleImputer(missing_values=-1).fit(X)
UNSUPPORTED = {
    "another estimator": (lambda: RandomForestClassifier(3).fit(X, [0, 1, 0, 1]), "RandomForestClassifier"),
    "another scaler": (lambda: pipeline(MinMaxScaler(), Ridge()), "MinMaxScaler → Ridge"),
    "scaler before imputer": (lambda: pipeline(StandardScaler(), SimpleImputer(), Ridge()),
                              "found SimpleImputer → Ridge"),
    "no estimator": (lambda: pipeline(StandardScaler()), "found $"),
    "not an estimator": (lambda: 3, "found int"),
    "not fitted": (Ridge, "fitted Ridge"),
    "imputer not fitted": (lambda: make_pipeline(SimpleImputer(), Ridge()), "fitted SimpleImputer"),
    "imputer with an indicator": (lambda: make_pipeline(INDICATING, Ridge()), "without an indicator"),
    "imputer of -1": (lambda: make_pipeline(MINUS_ONE, Ridge()), "SimpleImputer of NaN"),
    "imputer of infinity": (lambda: make_pipeline(INFINITE, Ridge()), "a number for every feature"),
    "exponential output": (lambda: mlp(MLPRegressor(loss="poisson"), TARGETS), "found 'exp'"),
    "two outputs": (lambda: LinearRegression().fit(X, X), "one output, found 2"),
    "two outputs of an MLP": (lambda: mlp(MLPRegressor(), X), "one output, found 2"),
    "several labels a row": (lambda: mlp(MLPClassifier(), X.astype(int)), "one output, found 2"),
    "labels that are floats": (lambda: logistic(0.0, 1.0, 0.0, 1.0), "labels that are strings"),
    "labels that are bools": (lambda: logistic(True, False, True, False), "labels that are strings"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_estimator_that_cannot_be_exported_is_refused_by_name(case):
    make, expected = UNSUPPORTED[case]
    estimator = make()
    with pytest.raises(ModelError, match=expected):
        from_sklearn(estimator)


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
