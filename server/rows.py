"""What a request's body says: JSON → an object → rows of numbers. The one place that explains what is wrong with it.

The rule to keep: for every body that `hotpath` reads, this reads the same rows.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

import kernels
from server.errors import ApiError

FIELDS = {"inputs", "model", "parameters"}
EXPECTED_ROWS = "'inputs' must be a non-empty list of rows: lists of numbers"
MOST_NAMED = 400  # characters of names in an error
Places = tuple[dict[str, int] | None, ...]  # `ServedModels.places` of one model


def read_request(body: bytes) -> dict:
    """The object with the inputs that a body must be, its fields not looked into."""
    request = parse_json(body)
    if not isinstance(request, dict):
        raise invalid("invalid_request", "The body must be a JSON object with 'inputs'.")
    if not request.keys() <= FIELDS:
        raise invalid("unknown_field", "The body has a field other than 'inputs', 'model' and 'parameters'.")
    return request


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN or Infinity, no name twice in an object. Every number becomes a float."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid("invalid_json", f"The body is not UTF-8 at byte {error.start}.") from None
    try:
        return json.loads(text, parse_int=float, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        offset = len(text[:error.pos].encode())
        raise invalid("invalid_json", f"The body is not JSON at byte {offset}.") from None
    except RecursionError:
        raise invalid("nested_too_deeply", "The body is nested too deeply.") from None


def read_rows(request: dict, model: kernels.TabularModel, places: Places) -> np.ndarray:
    """The inputs of a request → (n_rows, n_features) float64, NaN for a missing value, its place for a category."""
    if "inputs" not in request:
        raise invalid("missing_inputs", f"{EXPECTED_ROWS}.", "inputs")
    if not model.n_features:
        raise invalid("no_rows", "This model takes no rows of numbers: ask it at /invocations.", "inputs")
    inputs: Any = request["inputs"]
    if not isinstance(inputs, list) or not inputs:
        raise invalid("empty_input" if inputs == [] else "invalid_inputs", f"{EXPECTED_ROWS}.", "inputs")
    if all(type(row) is dict for row in inputs):
        inputs = _rows_of_objects(inputs, model)
    elif not all(type(row) is list for row in inputs):
        raise invalid("invalid_inputs", f"{EXPECTED_ROWS}, or all objects with the model's feature names.", "inputs")
    _check_widths({len(row) for row in inputs}, model)
    kinds = set().union(*(set(map(type, row)) for row in inputs))
    if list in kinds or dict in kinds:
        raise invalid("nested_input", f"{EXPECTED_ROWS}; a row holds a list or an object.", "inputs")
    if places:
        inputs = _with_places(inputs, model, places)
    elif not kinds <= {float, type(None)}:
        raise _not_a_number(_feature(model, _column_of(inputs, {str, bool})))
    rows = np.array(inputs, np.float64)
    if np.isinf(rows).any():
        raise invalid("number_out_of_range", "A number is too large for a double.", "inputs")
    missing = np.isnan(rows).any(0) & ~model.takes_missing_in
    if missing.any():
        raise _missing_value(_feature(model, int(missing.argmax())))
    return rows


def _rows_of_objects(inputs: list[dict], model: kernels.TabularModel) -> list[list]:
    names = model.signature.feature_names
    if names is None:
        raise invalid("no_feature_names", "This model has no feature names: rows must be lists.", "inputs")
    expected = set(names)
    if any(row.keys() != expected for row in inputs):
        raise invalid("wrong_features",
                      f"Each row must have exactly the model's features: {shortened(', '.join(names))}.", "inputs")
    return [[row[name] for name in names] for row in inputs]


def _check_widths(widths: set[int], model: kernels.TabularModel) -> None:
    if len(widths) > 1:
        raise invalid("ragged_rows", f"All rows must have the same length, {model.n_features}.", "inputs")
    if widths != {model.n_features}:
        raise invalid("wrong_feature_count",
                      f"Each row must have {model.n_features} features; the rows have {widths.pop()}.", "inputs")


def _with_places(inputs: list[list], model: kernels.TabularModel, places: Places) -> list[tuple]:
    """The rows with a number for each string."""
    unknown, columns = model.signature.unknown, list[tuple]()
    for i, (column, place_of) in enumerate(zip(zip(*inputs), places)):
        kinds = set(map(type, column))
        if place_of is None:
            if not kinds <= {float, type(None)}:
                raise _not_a_number(_feature(model, i))
        elif not kinds <= {str, type(None)}:
            raise invalid("not_a_string", f"{_feature(model, i)} must be a string.", "inputs")
        else:
            if None in column and not model.takes_missing_in[i]:
                raise _missing_value(_feature(model, i))
            column = tuple(np.nan if value is None else place_of.get(value, unknown) for value in column)
            if not model.takes_missing_in[i] and np.isnan(unknown) and np.isnan(column).any():
                raise invalid("unknown_category",
                              f"{_feature(model, i)} must be one of {shortened(', '.join(place_of))}.", "inputs")
        columns.append(column)
    return list(zip(*columns))


def _column_of(inputs: list[list], kinds: set[type]) -> int:
    """The first column that holds a value of one of these types, which there is."""
    return next(i for i, column in enumerate(zip(*inputs)) if not kinds.isdisjoint(map(type, column)))


def _feature(model: kernels.TabularModel, i: int) -> str:
    names = model.signature.feature_names
    return f"Feature {i}" if names is None else f"Feature {i}, '{shortened(names[i])}',"


def _not_a_number(feature: str) -> ApiError:
    return invalid("not_a_number", f"{feature} must be a number, in every row.", "inputs")


def _missing_value(feature: str) -> ApiError:
    return invalid("missing_value", f"{feature} must not be null: the model takes no missing values there.", "inputs")


def shortened(text: str) -> str:
    """A text of the model's that may be long."""
    return text if len(text) <= MOST_NAMED else text[:MOST_NAMED] + "…"


def model_name(request: dict) -> str | None:
    name = request.get("model")
    if "model" in request and not isinstance(name, str):
        raise invalid("invalid_model", "'model' must be a string.", "model")
    return name


def check_parameters(request: dict, known: set[str]) -> dict:
    """The request's parameters, {} where it has none, which may be these."""
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        raise invalid("invalid_parameters", "'parameters' must be an object.", "parameters")
    if not parameters.keys() <= known:
        raise invalid("unknown_parameter", f"The parameters are {', '.join(map(repr, sorted(known)))}.", "parameters")
    return parameters


@contextmanager
def finite_results(model: kernels.TabularModel) -> Iterator[None]:
    """Rows have been checked: what our kernels refuse in here is that a result would not be a finite number."""
    try:
        yield
    except kernels.ModelError:
        if model.kernel == "onnxruntime":  # it has reasons of its own
            raise invalid("no_result", "The model has no result, or none that is finite, for these inputs.",
                          "inputs") from None
        raise invalid("result_overflow", "The inputs are so large that the model's result is not a finite number.",
                      "inputs") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise invalid("duplicate_name", "An object in the body has the same name twice.")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise invalid("invalid_json", "NaN and Infinity are not JSON.")


def invalid(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(400, code, message, param)
