"""The tabular models that are timed, trained once a day of use: a table of name → (our file, ONNX file, estimator).

The rule to keep: a peer's answer is compared with ours before either is timed.
"""

import functools
import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

N_ROWS, N_FEATURES = 20_000, 30


class Trained(NamedTuple):
    """One model in the forms that the peers take."""
    estimator: Any
    onnx: Path
    own: Path  # what `kernels.load` is given: the ONNX file, or the training library's own


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """(rows (N_ROWS, N_FEATURES) float64, labels)."""
    random = np.random.default_rng(0)
    X = random.normal(size=(N_ROWS, N_FEATURES))
    score = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2]) + X[:, 3] ** 2 - X[:, 4] + 0.5 * random.normal(size=N_ROWS)
    return X, (score > 0.5).astype(np.int64)


def _estimators() -> dict[str, Any]:
    from lightgbm import LGBMClassifier
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    return {
        "LogisticRegression": LogisticRegression(),
        "MLP 64-64": MLPClassifier((64, 64), max_iter=5, random_state=0),
        "RandomForest 10 × depth 5": RandomForestClassifier(10, max_depth=5, random_state=0),
        "RandomForest 200 × depth 12": RandomForestClassifier(200, max_depth=12, random_state=0, n_jobs=2),
        "GradientBoosting 200 × depth 4": GradientBoostingClassifier(n_estimators=200, max_depth=4, random_state=0),
        "LightGBM 200 × 63 leaves": LGBMClassifier(n_estimators=200, num_leaves=63, learning_rate=0.05, random_state=0,
                                                   n_jobs=2, verbose=-1),
    }


NAMES = ("LogisticRegression", "MLP 64-64", "RandomForest 10 × depth 5", "RandomForest 200 × depth 12",
         "GradientBoosting 200 × depth 4", "LightGBM 200 × 63 leaves")


@functools.cache
def trained(name: str) -> Trained:
    """The model of this name, from the user's cache folder or trained now."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "testigo-bench"
    folder = cache / hashlib.sha256(Path(__file__).read_bytes() + name.encode()).hexdigest()[:24]
    estimator_path, onnx = folder / "estimator.pickle", folder / "model.onnx"
    if not estimator_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        estimator = _estimators()[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the MLP does not converge in five rounds, and need not
            estimator.fit(*data())
        onnx.write_bytes(_onnx(estimator))
        if hasattr(estimator, "booster_"):
            estimator.booster_.save_model(folder / "model.txt")
        estimator_path.write_bytes(pickle.dumps(estimator))
    own = folder / "model.txt"
    return Trained(pickle.loads(estimator_path.read_bytes()), onnx, own if own.exists() else onnx)


def _onnx(estimator: Any) -> bytes:
    """The estimator for float32 rows, as ONNX Runtime gets it from most people."""
    if hasattr(estimator, "booster_"):
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType as Float
        model = convert_lightgbm(estimator.booster_, initial_types=[("X", Float([None, N_FEATURES]))], zipmap=False)
    else:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
        model = convert_sklearn(estimator, initial_types=[("X", FloatTensorType([None, N_FEATURES]))],
                                options={id(estimator): {"zipmap": False}})
    return model.SerializeToString()


def session(path: Path, threads: int = 1) -> Callable[[np.ndarray], list]:
    """What ONNX Runtime answers for rows of float32: labels, probabilities."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda rows: run.run(None, {name: rows})
