"""What MLflow runs to load a model that `databricks/register.py` packaged: a model from code, nothing is unpickled.

The rule to keep: a copy of this file runs alone beside the weights, so it imports nothing of ours before it is certain
that the package named `kernels` is ours. Imported as a module it does nothing.

https://mlflow.org/docs/latest/ml/model/models-from-code/
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "model"  # the artifact's name in MLmodel


class PackagedModel:
    """Predicts by the weights, a mapped GGUF file. MLflow has checked the rows and parameters by the signature."""

    _load: Callable[..., Any]  # threads → a model

    def load_context(self, context) -> None:
        """Load and compile now; raises kernels.ModelError for weights that are no sound model."""
        import kernels
        self._load = functools.lru_cache(maxsize=2)(functools.partial(kernels.load, context.artifacts[WEIGHTS]))
        model = self._load(threads=1)
        with suppress(kernels.ModelError):  # it may have no score for this row: it is compiled
            model.predict(np.ones((1, model.n_features)))

    def predict(self, context, model_input, params: dict[str, Any] | None = None) -> np.ndarray:
        """(n) labels, values or scores, or (n, n_outputs); with `return_probabilities` (n, n_classes).

        `model_input` is a data frame; columns that MLmodel says are optional may be missing. `threads` may share the
        call, at most one a core. Raises kernels.ModelError for rows that have no score, and for a parameter that is
        unknown, out of its range, or that the model cannot honour.
        """
        from kernels import ModelError
        params = {"return_probabilities": False, "threads": 1} | (params or {})
        return_probabilities, threads = params.pop("return_probabilities"), params.pop("threads")
        if params:
            raise ModelError("expected no parameters but return_probabilities and threads")
        if threads < 1:
            raise ModelError("expected 1 or more for the parameter threads")
        model = self._load(threads=min(int(threads), os.cpu_count() or 1))
        if return_probabilities and not model.n_classes:
            raise ModelError("expected false for the parameter return_probabilities: this model has no probabilities")
        names = model.signature.feature_names
        if names is not None and hasattr(model_input, "columns"):
            model_input = model_input.reindex(columns=list(names))
        return model.predict_proba(model_input) if return_probabilities else model.predict(model_input)


def check_package() -> None:
    """Raises ImportError where `kernels` is a package of somebody else's, imported before or found first."""
    found = sys.modules.get("kernels") or importlib.util.find_spec("kernels")
    folders = list(getattr(found, "__path__", None) or getattr(found, "submodule_search_locations", None) or [])
    if not any((Path(folder) / "gguf.py").exists() for folder in folders):
        where = [*folders, getattr(found, "__file__", None) or getattr(found, "origin", None)][0]
        raise ImportError(f"the package 'kernels' at {where} is another one of that name, not Testigo's: uninstall it"
                          " (pip uninstall kernels) or load the model in an environment of its own")


def set_model() -> None:
    """Tell MLflow that this file's model is a PackagedModel."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel
    set_model(type("MLflowModel", (PackagedModel, PythonModel), {})())


if __name__ != "kernels.mlflow_model":
    check_package()
    set_model()
