"""MLflow's scoring protocol: what `POST /invocations` answers, as `mlflow models serve` answers it.

The rule to keep: this is the reference for what the hot path answers to `dataframe_split` and `dataframe_records`; a
message says what was expected and never holds a value of the request. What MLflow does otherwise on purpose is listed
in tests/server/test_scoring_differential.py.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import kernels
from server.errors import ApiError
from server.schema import (
    CHECKS_NAMES, DTYPES, LABELS, LOG_PROBABILITIES, PREDICT, PROBABILITIES, RETURN_PROBABILITIES, THREADS, Column,
    Param, Schema, Tensor,
)
from server.scoring_tables import (
    Table, bad_request, cast, cast_to, check_size, enforce, from_csv, from_parquet, from_records, from_split, infer,
    mismatch,
)

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
UNWRAPPED = ("messages", "prompt", "input")  # keys of a body that is itself the input, as language models take it
# What a value of a parameter may be, beside its own type.
PARAM_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,), "integer": (int,), "long": (int,), "float": (float, int), "double": (float, int),
    "string": (str,)}

NUMBER_CHARACTERS = 32  # that numpy gives a number among texts
NO_CATEGORY = "\ud800"  # a number where strings are expected: what no model has among its categories
# Flavors whose libraries refuse an input without rows, take infinities, and take no column of mixed values.
NEEDS_ROWS, TAKES_INFINITIES = ("sklearn", "lightgbm"), ("lightgbm", "onnx")
NUMBERS_ONLY = ("lightgbm", "xgboost", "onnx")

Data = Table | dict[str, np.ndarray] | np.ndarray | list  # what MLflow makes of a body; a list: of no, or of unnamed


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    rows: int = 0


def invoke(model: Any, schema: Schema, content_type: str | None, body: bytes) -> Answer:
    """The answer to one body. Raises ApiError; a model in a process of its own answers by itself."""
    if hasattr(model, "invoke"):
        status, answer = model.invoke(content_type or JSON, body)
        return Answer(status, answer)
    kind = media_type(content_type)
    if kind == JSON:
        data, params, is_wrapped = read_json(body, schema)
    else:
        data, params, is_wrapped = read_csv(body, schema) if kind == CSV else from_parquet(body), None, True
    data = fit(data, schema)
    given = check_params(params, schema.params)
    if schema.is_ours and given.get(RETURN_PROBABILITIES):
        if not model.n_classes:
            raise bad_request("The parameter 'return_probabilities' must be false: this model has no probabilities.")
        schema = replace(schema, answer=PROBABILITIES)
    threads = given.get(THREADS) if schema.is_ours else None
    if threads is not None and threads < 1:  # how many are used, the server decides
        raise bad_request("The parameter 'threads' must be 1 or more.")
    predictions, n_rows = predict(model, schema, data)
    return Answer(200, json.dumps({"predictions": predictions} if is_wrapped else predictions).encode(), n_rows)


def media_type(content_type: str | None) -> str:
    """JSON, CSV or PARQUET; a missing one is taken as JSON. Raises ApiError 415 for any other."""
    kind, *parameters = [part.strip() for part in (JSON if content_type is None else content_type).split(";")]
    given = dict(pair.partition("=")[::2] for pair in parameters)
    if given.get("charset", "utf-8").lower() != "utf-8":
        raise unsupported("The body must be in UTF-8.")
    if given.keys() - {"charset"}:
        raise unsupported("The only parameter of a Content-Type here is charset=utf-8.")
    if kind not in (JSON, CSV, PARQUET):
        raise unsupported(f"The body must be {JSON}, {CSV} or {PARQUET}.")
    return kind


def unsupported(message: str) -> ApiError:
    return ApiError(415, "BAD_REQUEST", message)


# --- bodies -------------------------------------------------------------------------------------

def read_json(body: bytes, schema: Schema) -> tuple[Data, Any, bool]:
    """(the input, the parameters as given, whether the answer goes under "predictions")."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("The body must be JSON, in UTF-8.") from None
    if not isinstance(content, dict):
        raise bad_request(f"The body must be a JSON object with one of {', '.join(FORMATS)}.")
    if any(key in content for key in UNWRAPPED):
        names = {param.name for param in schema.params or ()}
        params = {name: value for name, value in content.items() if name in names}
        return _unwrapped({name: value for name, value in content.items() if name not in names}, schema), params, False
    given = [key for key in FORMATS if key in content]
    if len(given) != 1:
        raise bad_request(f"The body must have exactly one of {', '.join(FORMATS)}.")
    read = {"dataframe_split": lambda content: _cast_table(from_split(content), schema),
            "dataframe_records": lambda content: _cast_table(from_records(content), schema),
            "instances": lambda content: read_instances(content, schema),
            "inputs": lambda content: read_inputs(content, schema)}[given[0]]
    return read(content[given[0]]), content.get("params"), True


def read_csv(body: bytes, schema: Schema) -> Table:
    if schema.tensors is not None:
        raise bad_request("The model takes arrays, which CSV has not: the body must be JSON.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request("The body must be in UTF-8.") from None
    return from_csv(text, {i if column.name is None else column.name: column.type
                           for i, column in enumerate(schema.columns or ())})


def _unwrapped(content: dict, schema: Schema) -> Data:
    """One row of single values; MLflow has no use for anything else with models of rows."""
    if schema.columns is None or any(isinstance(value, (list, dict)) for value in content.values()):
        refuse = bad_request if schema.columns is None and schema.tensors is None else mismatch
        raise refuse("The model takes no such input.")
    return Table(list(content), [infer([value]) for value in content.values()], 1)


def _cast_table(table: Table, schema: Schema) -> Table:
    """The columns of a JSON table that the signature names, as its types."""
    if schema.columns is not None:
        kinds: list = [(column.name, column.type) for column in schema.columns]
        if not schema.named:
            kinds = [(name, kind) for name, (_, kind) in zip(table.names, kinds)]
    elif schema.tensors is not None:
        kinds = [(one.name, one.dtype) for one in schema.tensors]
        if not schema.named:
            kinds = [(name, schema.tensors[0].dtype) for name in table.names]
    else:
        return table
    columns, wanted = list(table.columns), dict(kinds)
    for i, name in enumerate(table.names):
        if name in wanted:
            columns[i] = _cast_column(columns[i], wanted[name], f"Column '{name:.80}'" if schema.named
                                      else f"Column {i}")
    return Table(table.names, columns, table.n_rows)


def _cast_column(column: np.ndarray, kind: str | np.dtype, place: str) -> np.ndarray:
    try:
        if isinstance(kind, str):
            return cast(column, kind)
        if not len(column):
            raise ValueError("expected a row")
        return column if isinstance(column[0], list) else cast_to(column, kind)
    except (ValueError, TypeError, OverflowError):
        raise bad_request(f"{place} must hold values of type {kind}.") from None


def read_instances(content: Any, schema: Schema) -> Data:
    """`instances`: a list of rows or of objects, or columns by name, which must all be as long."""
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if any(not isinstance(item, dict) for item in content):
            raise bad_request("'instances' must be all objects, or none.")
        values: dict[str, list] = {}
        kinds = _kinds(schema)
        for item in content:
            for name, value in item.items():
                values.setdefault(name, []).append(_array(value, kinds.get(name)))
        data: Data = {name: _stacked(column) for name, column in values.items()}
    else:
        data = read_inputs(content, schema)
    if isinstance(data, dict):
        required = {one.name for one in schema.columns or () if one.required}
        required |= {one.name for one in schema.tensors or ()}
        checked = [value for name, value in data.items() if isinstance(value, np.ndarray)
                   and (not schema.names or name in required)]
        if any(not value.ndim for value in checked) or len({len(value) for value in checked}) > 1:
            raise bad_request("'instances' must have as many values for every input.")
    return data


def read_inputs(content: Any, schema: Schema) -> Data:
    """`inputs`: columns by name, a list of objects, or one array of any depth."""
    names = schema.names
    if len(names) == 1 and isinstance(content, list) and not any(isinstance(item, dict) for item in content):
        content = {names[0]: content}
    elif (schema.columns or schema.tensors) and not schema.named and (content is None or isinstance(content, dict)):
        raise bad_request("The model takes one array, not inputs by name.")
    kinds = _kinds(schema)
    if isinstance(content, dict):
        return {name: _array(value, kinds.get(name)) for name, value in content.items()}
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        return [{name: _array(value, kinds.get(name)) for name, value in item.items()} for item in content]
    first = schema.columns or schema.tensors
    return _array(content, None if not first else _kind(first[0]))


def _kind(one: Column | Tensor) -> np.dtype:
    """The numpy type that MLflow makes values of this column or tensor with."""
    if isinstance(one, Tensor):
        return one.dtype
    special: dict[str, np.dtype] = {"string": np.dtype(str), "binary": np.dtype(bytes)}
    return (DTYPES | special).get(one.type, np.dtype(object))


def _kinds(schema: Schema) -> dict[str, np.dtype]:
    return {one.name: _kind(one) for one in schema.columns or schema.tensors or () if one.name is not None}


def _array(value: Any, dtype: np.dtype | None) -> Any:
    """A list as an array; one value as one of numpy's, or without a type as an array without dimensions."""
    try:
        with np.errstate(all="ignore"):
            if isinstance(value, list) or dtype is None:
                if dtype is None or dtype.kind in "US":
                    _check_room(value)
                return np.array(value, dtype)
            return np.array([value], dtype)[0]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise bad_request("The values must be of the types that the model's signature says, and lists of one"
                          " length.") from None


def _check_room(values: Any) -> None:
    """Raises ApiError where an array of these lists would be far larger: each text has the room of the longest one."""
    n, longest, others, given, rest = 0, 0, 0, 0, [[values]]
    while rest:
        for value in rest.pop():
            if isinstance(value, list):
                rest.append(value)
                continue
            n += 1
            if isinstance(value, str):
                longest, given = max(longest, len(value)), given + len(value)
            else:
                others = NUMBER_CHARACTERS
    if longest:
        check_size(n, max(longest, others), given)


def _stacked(values: list) -> np.ndarray:
    try:
        _check_room([value.tolist() if _is_text(value) else None for value in values])
        return np.array(values)
    except (ValueError, TypeError):
        raise bad_request("'instances' must have values of one shape.") from None


# --- signature ----------------------------------------------------------------------------------

def fit(data: Data, schema: Schema) -> Data:
    """What the signature makes of the input: its columns in its order, or its arrays. Raises ApiError."""
    if schema.columns is not None:
        table = _as_table(data)
        return _named_columns(table, schema) if schema.named else _first_columns(table, schema)
    if schema.tensors is not None:
        return _fit_tensors(data, schema)
    return data


def _as_table(data: Data) -> Table:
    if isinstance(data, Table):
        return data
    if isinstance(data, list):
        names = list(dict.fromkeys(name for row in data for name in row))
        check_size(len(data), len(names), sum(map(len, data)))
        return Table(list(names), [_gathered([row.get(name) for row in data]) for name in names], len(data))
    if not isinstance(data, dict):
        array = np.asarray(data)
        if array.ndim > 2:
            raise mismatch("The model takes a table: rows of values.")
        array = array.reshape(-1, 1) if array.ndim < 2 else array
        return Table(list(range(array.shape[1])), [column.copy() for column in array.T], len(array))
    lengths = {len(value) for value in data.values() if np.ndim(value)}
    if len(lengths) > 1 or any(np.ndim(value) > 1 for value in data.values()):
        raise mismatch("The inputs must be lists of one length, one value a row.")
    if any(isinstance(value, np.ndarray) and not value.ndim for value in data.values()) and not lengths:
        raise mismatch("The inputs must be lists of one length, one value a row.")
    n = lengths.pop() if lengths else 1
    check_size(n, len(data), n)
    return Table(list(data), [_column(value, n) for value in data.values()], n)


def _gathered(values: list) -> np.ndarray:
    """A column of numpy's values, of their type if they have one and none is missing."""
    if all(isinstance(value, np.generic) for value in values) and len({value.dtype for value in values}) == 1:
        return _column(np.array(values), len(values))
    return infer([value.item() if isinstance(value, np.generic) else value for value in values])


def _column(value: Any, n: int) -> np.ndarray:
    """One value a row; strings as objects."""
    if np.ndim(value):
        return value.astype(object) if _is_text(value) else value
    return infer([value.item()] * n) if _is_text(value) else np.full(n, value)


def _is_text(value: Any) -> bool:
    return isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "US"


def _named_columns(table: Table, schema: Schema) -> Table:
    expected = schema.columns or ()
    by_name = dict(zip(table.names, table.columns))
    missing = [column.name for column in expected if column.required and column.name not in by_name]
    if missing:
        raise mismatch(f"The model needs the column '{missing[0]:.80}', one of {len(expected)}.")
    given = [column for column in expected if column.name in by_name]
    if not given and schema.is_ours:  # a row of missing values has an answer, to a question that nobody asked
        raise mismatch(f"The model needs some of its {len(expected)} columns, by name.")
    twice = Counter(table.names)
    if any(twice[column.name] > 1 for column in given):
        raise mismatch("A column of the model is there twice.")
    columns = [_enforced(by_name[column.name], column.type, f"'{column.name:.80}'") for column in given]
    return Table([column.name for column in given], columns, table.n_rows)


def _first_columns(table: Table, schema: Schema) -> Table:
    columns = schema.columns or ()
    if len(table.names) < len(columns):
        raise mismatch(f"The model needs {len(columns)} columns.")
    if len(set(table.names[:len(columns)])) < len(columns):
        raise mismatch("A column of the model is there twice.")
    return Table(table.names[:len(columns)], [_enforced(values, column.type, str(i)) for i, (values, column)
                                              in enumerate(zip(table.columns, columns))], table.n_rows)


def _enforced(column: np.ndarray, kind: str, place: str) -> np.ndarray:
    try:
        return enforce(column, kind)
    except TypeError:
        raise mismatch(f"Column {place} must be of type {kind}, or of one that it holds without loss.") from None


def _fit_tensors(data: Data, schema: Schema) -> Data:
    tensors = schema.tensors or ()
    if not schema.named:
        if isinstance(data, Table):
            return _tensor_of(data, tensors[0])
        if isinstance(data, (dict, list)):
            raise mismatch("The model takes one array.")
        return _checked(np.asarray(data), tensors[0])
    if isinstance(data, Table):
        arrays = {name: column for name, column in zip(data.names, data.columns) if isinstance(name, str)}
    elif isinstance(data, dict):
        arrays = data
    else:
        raise mismatch("The model takes arrays by name.")
    if any(one.name not in arrays for one in tensors):
        raise mismatch(f"The model needs the inputs {', '.join(f'{name:.80}' for name in schema.names)}.")
    return {one.name: _reshaped(arrays[one.name], one) if isinstance(data, Table) else
            _checked(arrays[one.name], one) for one in tensors if one.name is not None}


def _tensor_of(table: Table, tensor: Tensor) -> np.ndarray:
    """The array of a table: its columns side by side, or the lists in its one column."""
    n = len(table.names)
    if not n or not table.n_rows:
        raise mismatch("The table must not be empty.")
    if n == 1:
        return _reshaped(table.columns[0], tensor)
    if len({column.dtype.kind == "b" for column in table.columns}) > 1:
        raise mismatch(f"The model takes an array of {tensor.dtype}.")
    if tensor.shape != (-1, n):
        raise mismatch(f"The model takes an array of shape {_shape(tensor)}.")
    return _checked(np.stack(table.columns, axis=1), tensor)


def _reshaped(column: np.ndarray, tensor: Tensor) -> np.ndarray:
    """A table's column, of single values or of flat lists, in the tensor's shape."""
    if tensor.shape[0] != -1 or -1 in tensor.shape[1:] or not len(column):
        raise mismatch(f"The model takes no table: its input has the shape {_shape(tensor)}.")
    try:
        if not isinstance(column[0], list):
            if tensor.shape not in ((-1,), (-1, 1)):
                raise ValueError
            return _checked(cast_to(column, tensor.dtype).reshape(tensor.shape), tensor)
        array = cast_to(np.vstack(column.tolist()).reshape(tensor.shape), tensor.dtype)
    except (ValueError, TypeError, OverflowError):
        array = None
    if array is None or len(array) != len(column):
        raise mismatch(f"Every value must be a list, of the shape {_shape(tensor)} together.")
    return array


def _checked(array: Any, tensor: Tensor) -> np.ndarray:
    if not isinstance(array, np.ndarray) or len(array.shape) != len(tensor.shape) or any(
            expected not in (-1, found) for expected, found in zip(tensor.shape, array.shape)):
        raise mismatch(f"The model takes an array of shape {_shape(tensor)}.")
    if array.dtype != tensor.dtype and not {array.dtype.kind, tensor.dtype.kind} <= set("USO"):
        raise mismatch(f"The model takes an array of {tensor.dtype}.")
    return array


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join("n" if n < 0 else str(n) for n in tensor.shape) + ")"


# --- parameters ---------------------------------------------------------------------------------

def check_params(given: Any, params: tuple[Param, ...] | None) -> dict[str, Any]:
    """The parameters with their defaults, {} where the model has none; others are ignored, as MLflow does."""
    if params is None:
        return {}
    if not isinstance(given, dict | None):
        raise mismatch("'params' must be an object.")
    return {param.name: _param(given[param.name], param) if given and param.name in given else param.default
            for param in params}


def _param(value: Any, param: Param) -> Any:
    if param.shape is not None:
        if not isinstance(value, list):
            raise mismatch(f"The parameter '{param.name:.80}' must be a list of type {param.type}.")
        return [_param(one, Param(param.name, param.type, None)) for one in value]
    if value is None:
        return None
    if param.type == "datetime":
        is_valid = isinstance(value, str) and _is_datetime(value)
    elif param.type in PARAM_TYPES:
        is_valid = type(value) in PARAM_TYPES[param.type]
    else:
        is_valid = isinstance(value, dict)
    try:
        if is_valid:
            return float(value) if param.type in ("float", "double") else value
    except OverflowError:
        pass
    raise mismatch(f"The parameter '{param.name:.80}' must be of type {param.type}.")


def _is_datetime(text: str) -> bool:
    try:
        return not isinstance(np.datetime64(text).item(), int)
    except ValueError:
        return False


# --- models -------------------------------------------------------------------------------------

def predict(model: kernels.TabularModel, schema: Schema, data: Data) -> tuple[Any, int]:
    """(what goes under "predictions", number of rows). Raises ApiError where MLflow's model would fail."""
    try:
        rows = _rows(model, schema, data)
        takes_infinities = schema.flavor in TAKES_INFINITIES or schema.model_class.startswith("xgboost.sklearn.")
        if (not len(rows) and schema.flavor in NEEDS_ROWS) or (np.isinf(rows).any() and not takes_infinities):
            raise ValueError
        answers = _answers(model, schema, rows)
    except (kernels.ModelError, ValueError, TypeError, OverflowError):
        raise no_answer() from None
    if schema.flavor == "onnx":
        return _graph_answer(model, schema, rows, answers, isinstance(data, Table)), len(rows)
    return without_nan(answers), len(rows)


def no_answer() -> ApiError:
    return bad_request("The model has no answer to this input: it needs its own columns, in its order, and values that"
                       " it takes.")


def _answers(model: kernels.TabularModel, schema: Schema, rows: np.ndarray) -> np.ndarray:
    if schema.answer == PREDICT:
        answers = model.predict(rows)
        return answers if schema.dtype is None else answers.astype(schema.dtype)
    if not model.n_classes:
        raise ValueError
    probabilities = model.predict_proba(rows)
    if schema.answer == LABELS:
        return (probabilities[:, 1] > 0.5).astype(np.int64) if probabilities.shape[1] == 2 else probabilities.argmax(1)
    if schema.answer == LOG_PROBABILITIES:
        with np.errstate(divide="ignore"):
            return np.log(probabilities)
    return probabilities


def _rows(model: kernels.TabularModel, schema: Schema, data: Data) -> np.ndarray:
    """(n, n_features) float64; ValueError for what the library behind MLflow's model would not take."""
    if isinstance(data, Table):
        columns = _features(model, schema, data)
    elif isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == model.n_features and not _needs_names(
            model, schema):
        columns = list(data.T)
    elif isinstance(data, dict) and schema.flavor == "onnx":
        columns = list(_fed(model, data).T)
    else:
        raise ValueError
    texts = model.signature.categories or (None,) * len(columns)
    if not any(texts) and all(column.dtype.kind in "fiub" for column in columns):
        return np.stack(columns, axis=1).astype(np.float64)
    cells = np.empty((len(columns[0]), len(columns)), object)
    for i, column in enumerate(columns):
        if column.dtype.kind == "M" or (column.dtype == object and texts[i] is None and schema.flavor in NUMBERS_ONLY):
            raise ValueError
        cells[:, i] = column if texts[i] is None else [
            NO_CATEGORY if isinstance(value, (int, float, np.number, np.bool)) and value == value else value
            for value in column]
    return model.encode(cells)


def _needs_names(model: kernels.TabularModel, schema: Schema) -> bool:
    """Whether the library knows its columns by name alone: a Booster of XGBoost, a transformer of some columns."""
    signature = model.signature
    return signature.feature_names is not None and (
        (schema.flavor == "sklearn" and signature.categories is not None)
        or schema.model_class == "xgboost.core.Booster")


def _features(model: kernels.TabularModel, schema: Schema, table: Table) -> list[np.ndarray]:
    """The table's columns that the model takes, in its order."""
    names, n = model.signature.feature_names, model.n_features
    are_names = all(isinstance(name, str) for name in table.names)
    if not are_names and (_needs_names(model, schema) or any(isinstance(name, str) for name in table.names)):
        raise ValueError
    if names is None or not are_names or (schema.flavor == "lightgbm" and len(table.names) == n):
        if len(table.names) != n:
            raise ValueError
        return table.columns
    if schema.columns is None and not model.signature.categories and table.names != list(names):
        raise ValueError  # scikit-learn and XGBoost want the columns that they were fitted with, in that order
    by_name = dict(zip(table.names, table.columns))
    missing = [name for name in names if name not in by_name]
    if not missing:
        return [by_name[name] for name in names]
    if schema.columns is not None and len(table.names) == n and schema.flavor not in CHECKS_NAMES:
        return table.columns
    if not schema.is_ours:
        raise ValueError
    return [by_name.get(name, np.full(table.n_rows, np.nan)) for name in names]


def _fed(model: kernels.TabularModel, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The inputs of a graph side by side."""
    names = model.signature.feature_names
    if len(arrays) == 1:
        rows = next(iter(arrays.values()))
    elif names is not None and arrays.keys() == set(names):
        rows = np.hstack([arrays[name].reshape(-1, 1) for name in names])
    else:
        raise ValueError
    if rows.ndim != 2 or rows.shape[1] != model.n_features:
        raise ValueError
    return rows


def _graph_answer(model: kernels.TabularModel, schema: Schema, rows: np.ndarray, answers: np.ndarray,
                  is_table: bool) -> Any:
    """What MLflow makes of an ONNX graph's outputs: records for a table, else arrays by name."""
    outputs: dict[str, Any] = {}
    for output in schema.outputs:
        if output.kind == "label":
            outputs[output.name] = answers
        elif model.n_classes and output.kind == "maps":
            labels = model.signature.classes or range(model.n_classes)
            outputs[output.name] = [dict(zip(map(str, labels), row)) for row in without_nan(model.predict_proba(rows))]
        elif model.n_classes and model.signature.classes is not None:
            outputs[output.name] = model.predict_proba(rows)
        else:
            outputs[output.name] = answers.reshape(len(rows), model.n_outputs)
    if not is_table:
        return {name: without_nan(values) if isinstance(values, np.ndarray) else values
                for name, values in outputs.items()}
    flat = {name: without_nan(values.reshape(-1)) if isinstance(values, np.ndarray) else values
            for name, values in outputs.items()}
    if len({len(values) for values in flat.values()}) > 1:
        raise no_answer()  # MLflow puts probabilities beside labels in a frame, which are more
    return [dict(zip(flat, values)) for values in zip(*flat.values())]


def without_nan(answers: np.ndarray) -> list:
    """As JSON's values: null for NaN and infinities, which JSON has no numbers for."""
    values = answers.tolist()
    if answers.dtype.kind == "f" and not np.isfinite(answers).all():
        return _nulled(values)
    return values


def _nulled(values: list) -> list:
    return [_nulled(value) if isinstance(value, list) else value if math.isfinite(value) else None for value in values]
