"""The set of models that this process serves: which there are, which one a request means, what is told of each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import kernels
from server.errors import ApiError


@dataclass(frozen=True)
class ServedModels:
    """Models by name, in the order of the command line; the first one answers requests that name none."""
    by_name: dict[str, kernels.TabularModel]
    created: int = field(default_factory=lambda: int(time.time()))  # s since 1970: when they were loaded

    @property
    def default(self) -> kernels.TabularModel:
        return next(iter(self.by_name.values()))

    def find(self, name: str | None) -> kernels.TabularModel:
        if name is None:
            return self.default
        if name not in self.by_name:
            raise ApiError(404, "model_not_found", "No model of this name is served here; GET /v1/models lists them.",
                           "model")
        return self.by_name[name]

    def describe(self, model: kernels.TabularModel) -> dict:
        """One entry of `/v1/models`: OpenAI's fields, and what a client must know to ask for predictions."""
        return {"id": model.name, "object": "model", "created": self.created, "owned_by": "testigo",
                "version": model.version, "kind": model.kind, "model_type": model.model_type,
                "n_features": model.n_features, "feature_names": model.signature.feature_names,
                "classes": model.signature.classes, "n_classes": model.n_classes, "takes_missing": model.takes_missing,
                "size_bytes": model.size_bytes}

    def listing(self) -> dict:
        """`GET /v1/models`: OpenAI's list, and beside it the course's description of the default model."""
        default = self.default
        return {"object": "list", "data": [self.describe(model) for model in self.by_name.values()],
                "name": default.name, "version": default.version, "n_features": default.n_features,
                "model_type": default.model_type}


def load(paths: Sequence[Path], native: bool) -> ServedModels:
    """Load the models of these files, or the embedded one where there are none.

    Raises kernels.ModelError for a file that is no such model, and for two models of one name.
    """
    by_name: dict[str, kernels.TabularModel] = {}
    for path in paths or [kernels.DEFAULT_MODEL]:
        model = kernels.load(path, native=native)
        if model.name in by_name:
            raise kernels.ModelError(f"{path}: another model of this command is named {model.name!r} too")
        by_name[model.name] = model
    return ServedModels(by_name)
