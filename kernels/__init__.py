"""Native models: a model file becomes an object that predicts.

The rule to keep: importing this package imports neither numba nor any extra; they load on first use.
"""

from pathlib import Path
from typing import Any

from kernels.errors import ModelError
from kernels.export import save
from kernels.model_file import load
from kernels.tabular import TabularModel
from kernels.version import __version__

__all__ = ["DEFAULT_MODEL", "ModelError", "TabularModel", "__version__", "from_sklearn", "load", "save"]

DEFAULT_MODEL = Path(__file__).resolve().parent / "data" / "fraud-detector.gguf"


def from_sklearn(estimator: Any, **options: Any) -> TabularModel:
    """The tabular model of a fitted scikit-learn estimator or pipeline; see `sklearn_models.from_sklearn`."""
    from kernels import sklearn_models
    return sklearn_models.from_sklearn(estimator, **options)
