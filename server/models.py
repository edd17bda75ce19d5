"""The set of models that this process serves: which there are, which one a request means, what is told of each."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kernels
from server import mlflow_models
from server.errors import ApiError
from server.schema import Schema

if TYPE_CHECKING:  # imported on use: it takes a while
    from kernels.explain import Explainer


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as clients may know it."""

    source: str  # an address of MLflow's, or a file's or folder's name
    flavor: str | None = None  # as MLmodel has it
    why_mlflow: str | None = None  # runs the model, if it does


@dataclass(frozen=True)
class ServedModels:
    """Models by name, in the order of the command line; the first one answers requests that name none."""
    by_name: dict[str, kernels.TabularModel]
    created: int = field(default_factory=lambda: int(time.time()))  # s since 1970: when they were loaded
    schemas: dict[str, Schema] = field(default_factory=dict)  # by name, for /invocations: inferred where not given
    origins: dict[str, Origin] = field(default_factory=dict)  # by name
    _explainers: dict[str, Any] = field(default_factory=dict)  # by name: an Explainer, or why there is none
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for name, model in self.by_name.items():
            if name not in self.schemas:
                self.schemas[name] = Schema.of(None, model)

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

    @cached_property
    def places(self) -> dict[str, tuple[dict[str, int] | None, ...]]:
        """By model's name: for each feature None or what stands in a row for its categories; () where none has any."""
        return {name: tuple(None if categories is None else places(categories)
                            for categories in model.signature.categories or ())
                for name, model in self.by_name.items()}

    def explainer(self, model: kernels.TabularModel) -> "Explainer":
        """Raises ApiError for a model that has no exact explanation."""
        from kernels.explain import Explainer
        with self._lock:
            if model.name not in self._explainers:
                try:
                    self._explainers[model.name] = Explainer(model)
                except kernels.ModelError as error:
                    self._explainers[model.name] = str(error)
        found = self._explainers[model.name]
        if isinstance(found, str):
            raise ApiError(400, "no_explanation", f"Predictions of this model cannot be explained: {found}.", "model")
        return found

    def warm_up(self) -> None:
        """Answer a row with each model, for what its first answer in Python compiles, reads or starts."""
        for model in self.by_name.values():
            if isinstance(model, mlflow_models.ProcessModel):
                continue  # it is loaded, and code that is not ours is not asked what no client did
            with suppress(kernels.ModelError):
                model.predict(np.ones((1, model.n_features)))

    def prepare_explanations(self, compile_first: Callable[[], object] = lambda: None) -> None:
        """Compile and read now what explaining needs, by explaining a row of each model; who asks meanwhile, waits."""
        with self._lock:
            compile_first()
            for model in self.by_name.values():
                with suppress(ApiError, kernels.ModelError):
                    row = np.ones((1, model.n_features))
                    self.explainer(model).explain(row, row)

    def describe(self, model: kernels.TabularModel) -> dict:
        """One entry of `/v1/models`: OpenAI's fields, and what a client must know to ask for predictions."""
        return {"id": model.name, "object": "model", "created": self.created, "owned_by": "testigo",
                "version": model.version, "kind": model.kind, "model_type": model.model_type,
                "n_features": model.n_features, "feature_names": model.signature.feature_names,
                "classes": model.signature.classes, "n_classes": model.n_classes, "takes_missing": model.takes_missing,
                "features": features(model), "explanation": self._explanation(model),
                "size_bytes": model.size_bytes} | self._origin(model)

    def _origin(self, model: kernels.TabularModel) -> dict:
        """Who computes the model, and where it comes from."""
        origin = self.origins.get(model.name)
        engine = {"onnxruntime": "onnxruntime", "mlflow": "mlflow process"}.get(model.kernel, "testigo")
        found = {"engine": engine, "flavor": origin and origin.flavor, "source": origin and origin.source}
        return found | ({"engine_reason": origin.why_mlflow} if origin and origin.why_mlflow else {})

    def _explanation(self, model: kernels.TabularModel) -> dict | None:
        try:
            return {"needs_background": self.explainer(model).needs_background}
        except ApiError:
            return None

    def listing(self) -> dict:
        """`GET /v1/models`: OpenAI's list, and beside it the course's description of the default model."""
        default = self.default
        return {"object": "list", "data": [self.describe(model) for model in self.by_name.values()],
                "name": default.name, "version": default.version, "n_features": default.n_features,
                "model_type": default.model_type}


def places(categories: Sequence[str]) -> dict[str, int]:
    """What stands in a row for each of these strings."""
    return {category: i for i, category in enumerate(categories)}


def features(model: kernels.TabularModel) -> list[dict]:
    """What a row holds: for each feature its name or None, number or string, and whether it may be null."""
    signature = model.signature
    names, categories = signature.feature_names or (), signature.categories or ()
    found = []
    for i, may_be_null in enumerate(model.takes_missing_in.tolist()):
        strings = categories[i] if categories else None
        found.append({"name": names[i] if names else None, "type": "number" if strings is None else "string",
                      "takes_missing": may_be_null} | ({} if strings is None else {"categories": strings}))
    return found


def load(sources: Sequence[str | Path], native: bool, engine: str = "testigo", allow_pickle: bool = False,
         log: Callable[[str], None] = lambda line: None) -> ServedModels:
    """Load the models of these files, folders and addresses of MLflow's, or the embedded one where there are none.

    `engine` is testigo or onnxruntime. `allow_pickle`: MLflow's models may be unpickled, and run code of their own, in
    other processes; `log` is told what those say. Raises kernels.ModelError for what is no such model, and for two
    models of one name.
    """
    by_name: dict[str, kernels.TabularModel] = {}
    schemas: dict[str, Schema] = {}
    origins: dict[str, Origin] = {}
    for source in map(str, sources or [kernels.DEFAULT_MODEL]):
        model, schema, origin = _load(source, native, engine, allow_pickle, log)
        if model.name in by_name:
            raise kernels.ModelError(f"{source}: another model of this command is named {model.name!r} too")
        by_name[model.name], origins[model.name] = model, origin
        schemas[model.name] = schema
    return ServedModels(by_name, schemas=schemas, origins=origins)


def _load(source: str, native: bool, engine: str, allow_pickle: bool,
          log: Callable[[str], None]) -> tuple[kernels.TabularModel, Schema, Origin]:
    shown = mlflow_models.shown(source)
    if not mlflow_models.is_mlflow(source):
        model = kernels.load(Path(source), native=native, engine=engine)
        return model, Schema.of(None, model), Origin(shown)
    found = mlflow_models.resolve(source, allow_pickle=allow_pickle, engine=engine, log=log)
    if found.file is None:
        return (mlflow_models.ProcessModel(found, log), Schema(flavor=found.flavor),
                Origin(shown, found.flavor, found.worker))
    model = kernels.load(found.file, native=native, engine=engine)
    model.name, model.version = found.name, found.version
    return model, Schema.of(found.schema, model, found.flavor), Origin(shown, found.flavor)
