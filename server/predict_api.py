"""`POST /v1/predict` in Python: the reference for what the hot path answers, and the one place that explains errors.

The rule to keep: for every body that `hotpath` answers, this gives the same bytes but for `latency_ms`.
"""

import json
import time
from typing import Any, NoReturn

import numpy as np

import kernels
from server.errors import ApiError
from server.models import ServedModels

FIELDS = {"inputs", "model", "parameters"}
EXPECTED_ROWS = "'inputs' must be a non-empty list of rows: lists of numbers"


def predict(models: ServedModels, body: bytes) -> tuple[kernels.TabularModel, int, bytes]:
    """Answer one request body → (model, number of rows, response body). Raises ApiError."""
    start = time.perf_counter()
    request = parse_json(body)
    if not isinstance(request, dict):
        raise _invalid("invalid_request", "The body must be a JSON object with 'inputs'.")
    if not request.keys() <= FIELDS:
        raise _invalid("unknown_field", "The body has a field other than 'inputs', 'model' and 'parameters'.")
    model = models.find(_model_name(request))
    wanted = _return_probabilities(request.get("parameters", {}), model)
    if "inputs" not in request:
        raise _invalid("missing_inputs", f"{EXPECTED_ROWS}.", "inputs")
    rows = read_rows(request["inputs"], model)
    response: dict[str, Any] = {}
    try:
        response["predictions"] = model.predict(rows).tolist()
        if wanted:
            response["probabilities"] = model.predict_proba(rows).tolist()
    except kernels.ModelError:
        raise _invalid("result_overflow", "The inputs are so large that the model's result is not a finite number.",
                       "inputs") from None
    response |= {"model": model.name, "version": model.version,
                 "latency_ms": round((time.perf_counter() - start) * 1e3, 4)}
    return model, len(rows), json.dumps(response).encode()


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN or Infinity, no name twice in an object. Every number becomes a float."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid("invalid_json", f"The body is not UTF-8 at byte {error.start}.") from None
    try:
        return json.loads(text, parse_int=float, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        offset = len(text[:error.pos].encode())
        raise _invalid("invalid_json", f"The body is not JSON at byte {offset}.") from None
    except RecursionError:
        raise _invalid("nested_too_deeply", "The body is nested too deeply.") from None


def read_rows(inputs: Any, model: kernels.TabularModel) -> np.ndarray:
    """The rows of a request → (n_rows, n_features) float64, NaN for a missing value."""
    if not isinstance(inputs, list) or not inputs:
        raise _invalid("empty_input" if inputs == [] else "invalid_inputs", f"{EXPECTED_ROWS}.", "inputs")
    if all(type(row) is dict for row in inputs):
        inputs = _rows_of_objects(inputs, model)
    elif not all(type(row) is list for row in inputs):
        raise _invalid("invalid_inputs", f"{EXPECTED_ROWS}, or all objects with the model's feature names.", "inputs")
    _check_widths({len(row) for row in inputs}, model)
    kinds = set().union(*(set(map(type, row)) for row in inputs))
    if not kinds <= ({float, type(None)} if model.takes_missing else {float}):
        raise _not_a_number(kinds, model)
    rows = np.array(inputs, np.float64)
    if np.isinf(rows).any():
        raise _invalid("number_out_of_range", "A number is too large for a double.", "inputs")
    return rows


def _rows_of_objects(inputs: list[dict], model: kernels.TabularModel) -> list[list]:
    names = model.signature.feature_names
    if names is None:
        raise _invalid("no_feature_names", "This model has no feature names: rows must be lists.", "inputs")
    expected = set(names)
    if any(row.keys() != expected for row in inputs):
        raise _invalid("wrong_features", "Each row must have exactly the model's features: " + ", ".join(names) + ".",
                       "inputs")
    return [[row[name] for name in names] for row in inputs]


def _check_widths(widths: set[int], model: kernels.TabularModel) -> None:
    if len(widths) > 1:
        raise _invalid("ragged_rows", f"All rows must have the same length, {model.n_features}.", "inputs")
    if widths != {model.n_features}:
        raise _invalid("wrong_feature_count",
                       f"Each row must have {model.n_features} features; the rows have {widths.pop()}.", "inputs")


def _not_a_number(kinds: set[type], model: kernels.TabularModel) -> ApiError:
    if list in kinds or dict in kinds:
        return _invalid("nested_input", f"{EXPECTED_ROWS}; a row holds a list or an object.", "inputs")
    if type(None) in kinds and not model.takes_missing:
        return _invalid("missing_value", "This model takes no missing values: null is not allowed in a row.", "inputs")
    return _invalid("not_a_number", f"{EXPECTED_ROWS}; a row holds a string or a boolean.", "inputs")


def _model_name(request: dict) -> str | None:
    name = request.get("model")
    if "model" in request and not isinstance(name, str):
        raise _invalid("invalid_model", "'model' must be a string.", "model")
    return name


def _return_probabilities(parameters: Any, model: kernels.TabularModel) -> bool:
    if not isinstance(parameters, dict):
        raise _invalid("invalid_parameters", "'parameters' must be an object.", "parameters")
    if not parameters.keys() <= {"return_probabilities"}:
        raise _invalid("unknown_parameter", "The only parameter is 'return_probabilities'.", "parameters")
    wanted = parameters.get("return_probabilities", False)
    if not isinstance(wanted, bool):
        raise _invalid("invalid_parameters", "'return_probabilities' must be true or false.",
                       "parameters.return_probabilities")
    if wanted and not model.n_classes:
        raise _invalid("no_probabilities", "This model is a regressor: it has no probabilities.",
                       "parameters.return_probabilities")
    return wanted


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid("duplicate_name", "An object in the body has the same name twice.")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise _invalid("invalid_json", "NaN and Infinity are not JSON.")


def _invalid(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(400, code, message, param)
