"""What a model of MLflow's takes: its signature as the scoring protocol enforces it, or one inferred from our own.

The rule to keep: this file reads what MLmodel says and holds no value of a request; `scoring_api` does the enforcing.

https://mlflow.org/docs/latest/ml/model/signatures/
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import kernels

# MLflow's names of types: what a column of that type becomes.
DTYPES: dict[str, np.dtype] = {
    "boolean": np.dtype(bool), "integer": np.dtype(np.int32), "long": np.dtype(np.int64), "float": np.dtype(np.float32),
    "double": np.dtype(np.float64), "string": np.dtype(object), "binary": np.dtype(object),
    "datetime": np.dtype("datetime64[ns]")}
PREDICT, PROBABILITIES, LOG_PROBABILITIES, LABELS = "predict", "predict_proba", "predict_log_proba", "labels"
BOOSTERS = ("lightgbm", "xgboost")
CHECKS_NAMES = ("sklearn", "xgboost")  # libraries that refuse columns of other names than they were fitted with
OURS = "testigo"  # the flavor of a model that databricks/register.py packaged
RETURN_PROBABILITIES, THREADS = "return_probabilities", "threads"  # its parameters


@dataclass(frozen=True)
class Column:
    """A column of a data frame."""
    name: str | None  # None in a signature without names
    type: str         # a key of DTYPES, or array, object, map, any
    required: bool = True


@dataclass(frozen=True)
class Tensor:
    """An input that is an array: `shape` with -1 where any length goes."""
    name: str | None
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Param:
    """A parameter of `params`; `shape` is None for one value, (-1,) for a list."""
    name: str
    type: str
    default: Any
    shape: tuple[int, ...] | None = None


OUR_PARAMS = Param(RETURN_PROBABILITIES, "boolean", False), Param(THREADS, "integer", 1)


@dataclass(frozen=True)
class Output:
    """What an ONNX graph gives: `kind` is label, scores (n, width), or maps (a dict a row, as ZipMap makes)."""
    name: str
    kind: str


@dataclass(frozen=True)
class Schema:
    """The signature of a served model. Without `columns` and `tensors` there is none: rows go to the model as they are.

    `flavor` is whose library answers in MLflow ("" for a plain file); `answer` is which of PREDICT, PROBABILITIES,
    LOG_PROBABILITIES, LABELS (of the highest probability) it gives; `dtype` is what predictions are, where the model's
    own labels are of another kind (True for 1).
    """
    columns: tuple[Column, ...] | None = None
    tensors: tuple[Tensor, ...] | None = None
    params: tuple[Param, ...] | None = None
    flavor: str = ""
    answer: str = PREDICT
    dtype: np.dtype | None = None
    outputs: tuple[Output, ...] = ()  # of an ONNX graph
    model_class: str = ""  # of a booster: its library's own class, whose rules for names and infinities differ

    @property
    def is_ours(self) -> bool:
        """Whether no other library's rules hold: our models take no rows, and no column where none is a must."""
        return self.flavor in ("", OURS)

    @property
    def named(self) -> bool:
        """Whether the inputs have names."""
        return all(one.name is not None for one in self.columns or self.tensors or ())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of a signature that has them."""
        return tuple(one.name for one in self.columns or self.tensors or () if one.name is not None)

    @staticmethod
    def of(mlflow: dict | None, model: Any, flavor: str = "") -> "Schema":
        """The schema of a served model.

        `mlflow` holds the lists "inputs", "outputs" and "params" of an MLmodel's signature, each None where it is not
        given, and may hold "predict_fn" and "model_class" as MLmodel's flavors name them; None for a plain file, whose
        schema is `model`'s own. Raises kernels.ModelError for what is no signature.
        """
        if mlflow is None:
            return Schema(columns=_inferred_columns(model), params=OUR_PARAMS, flavor=flavor)
        try:
            inputs, outputs, params = (_listed(mlflow.get(key)) for key in ("inputs", "outputs", "params"))
            is_tensor = inputs is not None and any(spec["type"] == "tensor" for spec in inputs)
            answer = _answer(mlflow, model, flavor, outputs)
            return Schema(
                columns=None if inputs is None or is_tensor else tuple(map(_column, inputs)),
                tensors=tuple(map(_tensor, inputs)) if is_tensor and inputs else None,
                params=None if params is None else tuple(map(_param, params)),
                flavor=flavor,
                answer=answer,
                dtype=_label_dtype(model, outputs) if answer == PREDICT else None,
                outputs=_graph_outputs(model) if flavor == "onnx" else (),
                model_class=mlflow.get("model_class") or "")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise kernels.ModelError("expected a signature as MLflow writes it in MLmodel") from None


def _listed(specs: Any) -> Sequence[dict] | None:
    """MLmodel holds each list as a string of JSON."""
    return json.loads(specs) if isinstance(specs, str) else specs


def _column(spec: dict) -> Column:
    name = spec.get("name")
    required = spec.get("required", not spec.get("optional", False))
    return Column(None if name is None else str(name), str(spec["type"]), required)


def _tensor(spec: dict) -> Tensor:
    tensor = spec["tensor-spec"]
    return Tensor(spec.get("name"), np.dtype(tensor["dtype"]), tuple(map(int, tensor["shape"])))


def _param(spec: dict) -> Param:
    shape = spec.get("shape")
    return Param(str(spec["name"]), spec.get("type") or spec["dtype"], spec["default"],
                 None if shape is None else tuple(map(int, shape)))


def _inferred_columns(model: Any) -> tuple[Column, ...] | None:
    """Of a model of ours: numbers and strings, which may be left out where values may be missing."""
    if not hasattr(model, "signature"):
        return None
    signature = model.signature
    names = signature.feature_names or (None,) * signature.n_features
    categories = signature.categories or (None,) * signature.n_features
    may_be_missing = model.takes_missing_in.tolist()
    return tuple(Column(name, "double" if texts is None else "string", not may) for name, texts, may in
                 zip(names, categories, may_be_missing))


def _answer(mlflow: dict, model: Any, flavor: str, outputs: Sequence[dict] | None) -> str:
    wanted = mlflow.get("predict_fn") or PREDICT
    if wanted not in (PREDICT, PROBABILITIES, LOG_PROBABILITIES):
        raise kernels.ModelError(f"expected one of predict, predict_proba, predict_log_proba, found {wanted!r:.40}")
    if wanted == PREDICT and flavor in BOOSTERS and getattr(model, "n_classes", 0) and model.signature.classes is None:
        of_class = mlflow.get("model_class")  # a booster's file does not say whether a classifier or it is loaded
        is_classifier = of_class.endswith("Classifier") if of_class else _kind(outputs) == "i"
        return LABELS if is_classifier else PREDICT
    return wanted


def _kind(outputs: Sequence[dict] | None) -> str | None:
    """The numpy kind of the one output that there is."""
    if not outputs or len(outputs) != 1:
        return None
    spec = outputs[0]
    dtype = spec["tensor-spec"]["dtype"] if spec["type"] == "tensor" else DTYPES.get(spec["type"], np.dtype(object))
    return np.dtype(dtype).kind


def _label_dtype(model: Any, outputs: Sequence[dict] | None) -> np.dtype | None:
    """Labels that are booleans or floats are whole numbers in our models."""
    classes = model.signature.classes if hasattr(model, "signature") else None
    kind = _kind(outputs) if classes and all(type(label) is int for label in classes) else None
    return {"b": np.dtype(bool), "f": np.dtype(np.float64)}.get(kind or "")


def _graph_outputs(model: Any) -> tuple[Output, ...]:
    """Of a model that was read from an ONNX file."""
    path = getattr(model, "path", None)
    if path is None or path.suffix != ".onnx":
        return ()
    from kernels import onnx_graph
    return tuple(Output(info.name, "maps" if info.kind != onnx_graph.TENSOR else
                        "scores" if info.dtype.kind == "f" else "label") for info in onnx_graph.read(path).outputs)
