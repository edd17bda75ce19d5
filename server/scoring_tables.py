"""Tables of the scoring protocol: what JSON, CSV and Parquet say → columns of numpy arrays, as pandas would have them.

The rule to keep: a column gets the type that pandas infers and casts as pandas does (MLflow's answers depend on both),
without pandas: what it accepts is accepted, what it refuses is refused, and no message holds a value.

https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html
"""

import base64
import csv
import io
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.errors import ApiError
from server.schema import DTYPES

MAX_CELLS = 1 << 24  # that few bytes may stand for: missing values of short rows, repeated ones of Parquet
MAX_PARQUET_BYTES, FIXED_BYTES = 1 << 28, "FIXED_LEN_BYTE_ARRAY"  # when it is unpacked; a type of a column
NO_VALUE = frozenset(("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
                      "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"))  # pandas.read_csv's
TRUTHS = {"true": True, "false": False}
NUMBERS = (int, float)
TIME_ZONE = re.compile(r"([Zz]|[+-]\d\d:?\d\d)$")  # after a time, with a colon
MAX_SECONDS = 9_223_372_036  # from 1970, what fits in nanoseconds


@dataclass(frozen=True)
class Table:
    """Named columns of one length: bool, integers, floats, datetime64[ns] or objects (strings, missing, mixed)."""
    names: list[Hashable]  # whole numbers where there were none
    columns: list[np.ndarray]
    n_rows: int


def bad_request(message: str) -> ApiError:
    """The body is none that the protocol knows, or the model has no answer to it."""
    return ApiError(400, "BAD_REQUEST", message)


def mismatch(message: str) -> ApiError:
    """The body is sound but does not fit the model's signature."""
    return ApiError(400, "INVALID_PARAMETER_VALUE", message)


def check_size(n_rows: int, n_columns: int, n_given: int = 0) -> None:
    """Raises ApiError for a table that is far larger than what is given of it."""
    if n_rows * n_columns > MAX_CELLS + 2 * n_given:
        raise ApiError(413, "REQUEST_LIMIT_EXCEEDED", f"A table of more than {MAX_CELLS:,} values or characters must"
                       " give them all.")


# --- JSON ---------------------------------------------------------------------------------------

def from_split(content: Any) -> Table:
    """`dataframe_split`: {"columns": […], "data": [[…]], "index": […]}, of which only data is a must."""
    if not isinstance(content, dict):
        raise bad_request("'dataframe_split' must be an object.")
    if "data" not in content or not content.keys() <= {"columns", "data", "index"}:
        raise bad_request("'dataframe_split' must have 'data', and may have 'columns' and 'index', nothing else.")
    names, data, index = content.get("columns"), content["data"], content.get("index")
    if names is not None and not (isinstance(names, list) and all(_is_scalar(name) for name in names)):
        raise bad_request("'columns' of 'dataframe_split' must be a list of names.")
    if isinstance(data, dict):
        table = _select(_from_lists(data), names)
    elif isinstance(data, list) and data and all(type(row) is dict for row in data):
        table = _select(from_records(data), names)
    elif data is None or isinstance(data, list):
        table = _from_rows(data or [], names, "dataframe_split")
    else:
        raise bad_request("'data' of 'dataframe_split' must be a list of rows.")
    if index is not None and not (isinstance(index, list) and len(index) == table.n_rows):
        raise bad_request("'index' of 'dataframe_split' must be a list with one item a row.")
    return table


def from_records(content: Any) -> Table:
    """`dataframe_records`: [{"name": value, …}, …]; a name that a row lacks is a missing value."""
    if not isinstance(content, list):
        raise bad_request("'dataframe_records' must be a list of objects.")
    if not content or type(content[0]) is not dict:
        return _from_rows(content, None, "dataframe_records")
    if any(type(row) is not dict for row in content):
        raise bad_request("'dataframe_records' must be a list of objects.")
    names = list(dict.fromkeys(name for row in content for name in row))
    check_size(len(content), len(names), sum(map(len, content)))
    return Table(list(names), [infer([row.get(name) for row in content]) for name in names], len(content))


def _from_rows(rows: list, names: list | None, place: str) -> Table:
    """Rows that are lists, of which the short ones lack values; rows that are single values make one column."""
    if not rows:
        return Table(list(names or ()), [infer([]) for _ in names or ()], 0)
    if type(rows[0]) is list:
        if any(type(row) is not list for row in rows):
            raise bad_request(f"The rows of '{place}' must all be lists.")
        width = max(map(len, rows))
        check_size(len(rows), width, sum(map(len, rows)))
        if any(len(row) < width for row in rows):
            rows = [row + [None] * (width - len(row)) for row in rows]
        columns = list(zip(*rows)) if width else []
    else:
        columns, width = [tuple(rows)], 1
    if names is not None and len(names) != width:
        raise bad_request(f"'{place}' has {len(names)} columns; its rows have another number of values.")
    return Table(list(range(width)) if names is None else list(names), [infer(column) for column in columns], len(rows))


def _from_lists(content: dict) -> Table:
    """Columns by name: lists of one length, and single values that hold for every row."""
    lengths = {len(values) for values in content.values() if isinstance(values, list)}
    if len(lengths) > 1 or (content and not lengths) or any(isinstance(values, dict) for values in content.values()):
        raise bad_request("Columns must be lists of the same length.")
    n = lengths.pop() if lengths else 0
    check_size(n, len(content), n)
    return Table(list(content), [infer(values if isinstance(values, list) else [values] * n)
                                 for values in content.values()], n)


def _select(table: Table, names: list | None) -> Table:
    """These columns; one that is not there is missing everywhere."""
    if names is None:
        return table
    check_size(table.n_rows, len(names), table.n_rows * len(table.names))
    by_name = dict(zip(table.names, table.columns))
    return Table(list(names), [by_name[name] if name in by_name else np.full(table.n_rows, np.nan) for name in names],
                 table.n_rows)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def infer(values: Sequence) -> np.ndarray:
    """The column of JSON's values: bool, int64, uint64 or float64 where all are of one kind, else objects.

    null among numbers is NaN. (n) values → (n).
    """
    kinds = set(map(type, values))
    if kinds and kinds <= {int, float, type(None)} and not kinds.isdisjoint(NUMBERS):
        if kinds == {int}:
            try:
                return np.array(values, np.int64)
            except OverflowError:
                if min(values) >= 0 and max(values) < 1 << 64:
                    return np.array(values, np.uint64)
        else:
            try:
                return np.array(values, np.float64)
            except OverflowError:
                pass
    elif kinds == {bool}:
        return np.array(values, bool)
    column = np.empty(len(values), object)
    column[:] = list(values)
    return column


# --- types --------------------------------------------------------------------------------------

def cast(column: np.ndarray, kind: str) -> np.ndarray:
    """A column of JSON as MLflow's type `kind`, as `pandas.Series.astype` casts it.

    Strings are parsed, floats cut to integers, everything has a truth; but no number wraps around, as it does there.
    Raises ValueError, TypeError or OverflowError.
    """
    if kind not in DTYPES or kind == "string":
        return column.astype(object)
    if kind == "binary":
        if not all(isinstance(text, str) for text in column):
            raise TypeError("expected texts of base64")
        return _objects(base64.decodebytes(text.encode()) for text in column)
    if kind == "datetime":
        return _datetimes(column)
    return cast_to(column, DTYPES[kind])


def cast_to(column: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A column as this dtype; raises ValueError, TypeError or OverflowError."""
    if dtype.kind in "US":
        return _objects(str(value) for value in column)
    if dtype.kind in "iu" and column.dtype.kind in "iuf" and len(column):
        limits, least, most = np.iinfo(dtype), column.min().item(), column.max().item()
        if not (limits.min - 1 < least and most < limits.max + 1):  # of NaN, too
            raise OverflowError("expected numbers that the type holds")
    with np.errstate(all="ignore"):  # a double that is no float32 becomes infinite, and is refused later
        return column.astype(dtype)


def enforce(column: np.ndarray, kind: str) -> np.ndarray:
    """A column that has a type already as MLflow's type `kind`: only what loses nothing. Raises TypeError.

    https://mlflow.org/docs/latest/ml/model/signatures/#signature-enforcement
    """
    found, wanted = column.dtype, DTYPES.get(kind, np.dtype(object))
    if found == object and kind not in ("string", "binary"):
        column = infer(column.tolist())
        found = column.dtype
    if found == object and kind == "double" and not all(isinstance(value, str) for value in column):
        return _decimals(column)
    if found == wanted or (kind == "boolean" and found == object):
        return column
    if kind == "datetime" and found.kind == "M":
        return column.astype(wanted)
    if found.kind == wanted.kind and found.kind in "if":
        fits = found.itemsize <= wanted.itemsize
    elif found.kind == "u" and wanted.kind == "i":
        fits = found.itemsize < wanted.itemsize
    elif found.kind in "iu" and kind == "double":
        fits = found.itemsize <= 6
    else:
        fits = False
    if fits or (found == np.int64 and kind in ("float", "double") and np.isin(column, (0, 1)).all()):
        return column.astype(wanted)
    raise TypeError("expected a type that loses nothing")


def _decimals(column: np.ndarray) -> np.ndarray:
    try:
        return np.array([np.nan if value is None else float(value) for value in column])
    except (ValueError, OverflowError):
        raise TypeError("expected decimal numbers") from None


def _objects(values: Any) -> np.ndarray:
    found = list(values)
    column = np.empty(len(found), object)
    column[:] = found
    return column


def _datetimes(column: np.ndarray) -> np.ndarray:
    """ISO 8601 texts, or nanoseconds since 1970, (n) → (n) datetime64[ns]."""
    if column.dtype.kind in "iu":
        return column.astype(np.int64).astype("datetime64[ns]")
    if column.dtype.kind == "f":
        return np.where(np.isnan(column), np.datetime64("NaT"), cast_to(np.nan_to_num(column), np.dtype(np.int64))
                        .astype("datetime64[ns]"))
    if not all(value is None or isinstance(value, str) for value in column):
        raise TypeError("expected ISO 8601 texts")
    texts = ["NaT" if value is None else value.strip() for value in column]
    if any((zone := TIME_ZONE.search(text)) and ":" in text[:zone.start()] for text in texts):
        raise mismatch("Dates and times must have no time zone.")
    found = np.array(texts, "datetime64[s]")
    if (np.abs(found.astype(np.int64)[~np.isnat(found)]) > MAX_SECONDS).any():
        raise ValueError("expected a time between 1678 and 2262")
    return found.astype("datetime64[ns]")


# --- CSV ----------------------------------------------------------------------------------------

def from_csv(text: str, kinds: Mapping[str | int, str]) -> Table:
    """A header and rows as `pandas.read_csv` reads them; `kinds`: MLflow's types by name or place, else inferred."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True) if row]
    except csv.Error:
        raise bad_request("The body must be CSV with a header.") from None
    if not rows:
        raise bad_request("The body must be CSV with a header.")
    header, *rows = rows
    n_index = max(0, len(rows[0]) - len(header)) if rows else 0  # more values than names: the first ones are an index
    width = n_index + len(header)
    if any(len(row) > width for row in rows):
        raise bad_request(f"A line of the CSV has more than {width} values.")
    check_size(len(rows), width, sum(map(len, rows)))
    names = _different(header)
    cells = zip(*(row[n_index:] + [""] * (width - len(row)) for row in rows)) if rows else [()] * len(names)
    columns = [_parsed(f"'{name:.80}'" if name in kinds else str(i), values, kinds.get(name) or kinds.get(i))
               for i, (name, values) in enumerate(zip(names, cells))]
    return Table(list(names), columns, len(rows))


def _different(header: list[str]) -> list[str]:
    """Names as pandas makes them: of the same ones the second is `name.1`, one that is empty `Unnamed: 0`."""
    counts: dict[str, int] = {}
    for i, name in enumerate(header):
        found = name = name or f"Unnamed: {i}"
        while found in counts:
            counts[name] += 1
            found = f"{name}.{counts[name]}"
        counts[found] = 0
    return list(counts)


def _parsed(place: str, values: Sequence[str], kind: str | None) -> np.ndarray:
    texts = [None if text in NO_VALUE else text for text in values]
    if kind is None:
        return _guessed(texts)
    try:
        if kind in ("string", "binary"):
            return _objects(texts)
        if all(text and text.lower() in TRUTHS for text in texts):
            return np.array([_truth(text) for text in texts], DTYPES[kind])
        if kind in ("boolean", "integer", "long"):
            found = np.array([_integral(text) for text in texts], DTYPES["integer" if kind == "boolean" else kind])
            if kind == "boolean" and not np.isin(found, (0, 1)).all():
                raise ValueError("expected truths, or 0 and 1")
            return found.astype(DTYPES[kind])
        if kind == "datetime":
            raise TypeError("expected another type: pandas reads no dates here")
        return cast_to(np.array([_number(text) for text in texts], np.float64), DTYPES[kind])
    except (KeyError, ValueError, TypeError, OverflowError):
        raise bad_request(f"Column {place} must hold values of type {kind}.") from None


def _guessed(texts: list[str | None]) -> np.ndarray:
    """Whole numbers, numbers, truths, or else strings."""
    given = [text for text in texts if text is not None]
    if not texts:
        return _objects(texts)
    for parse, dtype in (_whole, np.int64), (_number, np.float64), (_truth, bool):
        try:
            if given == texts and given:
                return np.array([parse(text) for text in given], dtype)
            if dtype == np.float64:
                return np.array([_number(text) for text in texts], dtype)
        except (KeyError, ValueError, TypeError, OverflowError):
            continue
    return _objects(texts)


def _whole(text: str | None) -> int:
    if text is None or "_" in text:
        raise ValueError("expected a whole number")
    return int(text)


def _integral(text: str | None) -> int:
    """A whole number that may be written as a decimal one."""
    try:
        return _whole(text)
    except ValueError:
        if not _number(text).is_integer():
            raise
        return int(_number(text))


def _number(text: str | None) -> float:
    if text is None:
        return np.nan
    if "_" in text:
        raise ValueError("expected a number")
    return float(text)


def _truth(text: str | None) -> bool:
    return TRUTHS[(text or "").lower()]


# --- Parquet ------------------------------------------------------------------------------------

def from_parquet(body: bytes) -> Table:
    """A Parquet file as pandas reads it: without the columns that were a frame's index. Needs the `data` extra."""
    try:
        import pyarrow
        from pyarrow import parquet
    except (ImportError, OSError):
        raise ApiError(415, "BAD_REQUEST",
                       "This server reads no Parquet: that needs the extra 'data' (pyarrow).") from None
    try:
        found = parquet.read_metadata(pyarrow.BufferReader(body))
        leaves, groups = list(found.schema), [found.row_group(i) for i in range(found.num_row_groups)]
        n_values = [sum(group.column(i).num_values for group in groups) for i in range(len(leaves))]
        check_size(found.num_rows, found.num_columns)
        check_size(sum(n_values), 1)  # a row may be a list
        n_fixed = sum(n * leaf.length for n, leaf in zip(n_values, leaves) if leaf.physical_type == FIXED_BYTES)
        if n_fixed + sum(group.total_byte_size for group in groups) > MAX_PARQUET_BYTES:
            raise ApiError(413, "REQUEST_LIMIT_EXCEEDED", f"A Parquet file may hold {MAX_PARQUET_BYTES:,} bytes.")
        file = parquet.ParquetFile(pyarrow.BufferReader(body), read_dictionary=[leaf.path for leaf in leaves])
        table = file.read(use_threads=False)  # of texts that are the same there is one
        index = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", ())
        names = [name for name in table.column_names if name not in index]
        return Table(list(names), [_from_arrow(table.column(name)) for name in names], table.num_rows)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError,
            RecursionError):
        raise bad_request("The body must be a Parquet file that holds a table.") from None


def _from_arrow(column: Any) -> np.ndarray:
    from pyarrow import types
    if types.is_boolean(column.type) or types.is_integer(column.type) or types.is_floating(column.type):
        if types.is_boolean(column.type) and column.null_count:
            return _objects(column.to_pylist())
        return column.to_numpy()
    if types.is_timestamp(column.type) and column.type.tz is None:
        return column.to_numpy().astype("datetime64[ns]")
    if types.is_dictionary(column.type):
        return np.concatenate([_objects(()), *(_shared(chunk.dictionary, chunk.indices) for chunk in column.chunks)])
    if _holds_texts(column.type):
        raise TypeError("expected a text a row, at most")
    return _objects(column.to_pylist())


def _shared(dictionary: Any, indices: Any) -> np.ndarray:
    """Objects of Arrow's dictionary by index; the same one, however often it is there."""
    return _objects([*dictionary.to_pylist(), None])[indices.fill_null(len(dictionary)).to_numpy()]


def _holds_texts(kind: Any) -> bool:
    from pyarrow import types
    return types.is_dictionary(kind) or any(_holds_texts(kind.field(i).type) for i in range(kind.num_fields))
