"""The tables that the Arrow engine reads: Parquet files and folders, CSV, Delta tables, as bounded Arrow batches.

The rule to keep: no more than a batch of a file is held at once, however large its row groups are; every row of the
input comes out, one of CSV that has other columns than the header as a reject. What is no such file at all, or no
UTF-8, ends the job.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq

from databricks.scoring import BatchError

READ_BYTES = 1 << 18  # of a column chunk at a time: there may be a thousand columns
CSV_BLOCK_BYTES = 1 << 21
SAMPLE_BYTES = 1 << 20  # of a CSV file, to tell how many rows it may have
SUFFIXES = {".parquet": "parquet", ".parq": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Part:
    """One file of a table, and the columns whose value stands in its folder's name or in Delta's log."""

    path: Path
    constants: dict[str, object] = field(default_factory=dict)
    row_groups: tuple[int, ...] | None = None  # of Parquet; None = all


@dataclass(frozen=True)
class Table:
    """An input: what its columns are and how its rows are read."""

    kind: str  # parquet, delta or csv
    schema: pa.Schema
    parts: tuple[Part, ...]
    n_rows: int | None  # of CSV about
    version: object = None  # of a Delta table (id, version)

    @property
    def text(self) -> bool:
        """Whether all columns are strings, and the empty ones null."""
        return self.kind == "csv"

    def identity(self) -> object:
        """What is read, for `Job.identity`: a Delta table's version; each file's path, size and time of change."""
        if self.version is not None:
            return self.version
        found = [(part.path, part.path.stat()) for part in self.parts]
        return [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in found]

    def check(self, check: Callable[[pa.Schema], None], key: Sequence[str]) -> None:
        """Have `check` look at the schema of each file; raises BatchError for key columns whose type changes."""
        check(self.schema)
        for part in self.parts if self.kind == "parquet" else ():
            schema = _with_constants(pq.read_schema(part.path), part, self.schema)
            try:
                check(schema)
                for name in key:
                    if schema.field(name).type != self.schema.field(name).type:
                        raise BatchError(f"column {name!r:.60}: expected {self.schema.field(name).type} as in the "
                                         f"first file, found {schema.field(name).type}")
            except BatchError as error:
                raise BatchError(f"{part.path.name}: {error}") from None

    def batches(self, columns: Sequence[str], batch_rows: int,
                reject: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
        """These columns of all rows, in the order of the files; `reject` is told of each row that is none."""
        for part in self.parts:
            if self.kind == "csv":
                yield from _csv_batches(part.path, columns, self.schema, batch_rows, reject)
            else:
                yield from self._parquet_batches(part, columns, batch_rows)

    def _parquet_batches(self, part: Part, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(part.path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            stored = [name for name in columns if name in file.schema_arrow.names and name not in part.constants]
            for batch in file.iter_batches(batch_rows, part.row_groups, stored):
                n = batch.num_rows
                yield pa.RecordBatch.from_arrays([
                    batch.column(name) if name in stored and self.kind != "delta"
                    else batch.column(name).cast(self.schema.field(name).type) if name in stored
                    else pa.repeat(pa.scalar(part.constants.get(name), self.schema.field(name).type), n)
                    for name in columns], names=list(columns))


def pieces_of(table: Table, n_rows: int) -> Iterator[tuple[Table, int]]:
    """Tables of row groups, of about so many rows each, that make up a table of Parquet or Delta, and where they begin.
    """
    first = 0
    for part in table.parts:
        metadata, groups, rows = pq.read_metadata(part.path), list[int](), 0
        for i in range(metadata.num_row_groups):
            groups.append(i)
            rows += metadata.row_group(i).num_rows
            if rows >= n_rows or rows and i == metadata.num_row_groups - 1:
                yield replace(table, parts=(replace(part, row_groups=tuple(groups)),), n_rows=rows), first
                first, groups, rows = first + rows, [], 0


def open_table(path: str) -> Table:
    """The table at `path`: a Parquet or CSV file, a folder of them, a Delta table. Raises BatchError for another."""
    where = Path(path).absolute()
    if "://" in path:
        raise BatchError("--input: expected a path on this machine: what is elsewhere needs --engine spark")
    if not where.exists():
        if re.fullmatch(r"\w+\.\w+(\.\w+)?", path) and where.suffix not in SUFFIXES:
            raise BatchError(f"--input {path:.200}: no such file; a table of a catalog needs --engine spark")
        raise BatchError(f"--input {path:.200}: no such file or folder")
    try:
        if where.is_dir():
            return _open_delta(where) if (where / "_delta_log").is_dir() else _open_folder(where)
        with where.open("rb") as file:
            kind = "parquet" if file.read(4) == b"PAR1" else SUFFIXES.get(where.suffix.lower())
        if kind == "parquet":
            return Table(kind, pq.read_schema(where), (Part(where),), pq.read_metadata(where).num_rows)
        if kind == "csv":
            return _open_csv([where])
    except pa.ArrowException as error:
        raise BatchError(f"--input {path:.200}: {first_line(error)}") from None
    raise BatchError(f"--input {path:.200}: expected Parquet, or CSV in a file named .csv")


def _open_folder(folder: Path) -> Table:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()
             and not any(name.startswith(("_", ".")) for name in path.relative_to(folder).parts)]
    kinds = {SUFFIXES[path.suffix.lower()] for path in files}
    if len(kinds) != 1:
        raise BatchError(f"--input {str(folder):.200}: expected files .parquet, or .csv, in the folder, found "
                         f"{'both' if kinds else 'none'}")
    if kinds == {"csv"}:
        return _open_csv(files)
    found = pa.dataset.dataset([str(path) for path in files], format="parquet", partitioning=pa.dataset.partitioning(
        flavor="hive"), partition_base_dir=str(folder))
    return _table("parquet", found.schema, _parts(found, Path("/")))


def _parts(dataset: pa.dataset.Dataset, root: Path) -> list[Part]:
    return [Part(root / fragment.path, pa.dataset.get_partition_keys(fragment.partition_expression))
            for fragment in dataset.get_fragments()]


def _table(kind: str, schema: pa.Schema, parts: list[Part], version: object = None) -> Table:
    parts = sorted(parts, key=lambda part: part.path)
    return Table(kind, schema, tuple(parts), sum(pq.read_metadata(part.path).num_rows for part in parts), version)


def _open_delta(folder: Path) -> Table:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError
    try:
        table = DeltaTable(folder)
        found = table.to_pyarrow_dataset()
    except DeltaError as error:
        raise BatchError(f"--input {str(folder):.200}: {first_line(error)}") from None
    return _table("delta", found.schema, _parts(found, folder), (str(table.metadata().id), table.version()))


def _with_constants(schema: pa.Schema, part: Part, whole: pa.Schema) -> pa.Schema:
    for name in part.constants:
        if name not in schema.names:
            schema = schema.append(whole.field(name))
    return schema


# ---- CSV ---------------------------------------------------------------------------------------------------

def _open_csv(files: list[Path]) -> Table:
    names = [_header(path) for path in files]
    for path, found in zip(files, names):
        if found != names[0]:
            raise BatchError(f"{path.name}: expected the columns of {files[0].name}")
    rows = sum(_about_rows(path) for path in files)
    return Table("csv", pa.schema([(name, pa.string()) for name in names[0]]), tuple(map(Part, files)), rows)


def _header(path: Path) -> list[str]:
    options = pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False)
    parse = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda row: "skip")
    with pa.csv.open_csv(path, options, parse, _as_text()) as reader:
        return reader.schema.names


def _as_text(columns: Sequence[str] | None = None) -> pa.csv.ConvertOptions:
    types = {name: pa.string() for name in columns or ()}
    return pa.csv.ConvertOptions(include_columns=list(columns or ()), column_types=types, null_values=[""],
                                 strings_can_be_null=True, quoted_strings_can_be_null=False)


def _about_rows(path: Path) -> int:
    with path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
    return int(sample.count(b"\n") * path.stat().st_size / max(1, len(sample)))


def _csv_batches(path: Path, columns: Sequence[str], schema: pa.Schema, batch_rows: int,
                 reject: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
    def odd(row: pa.csv.InvalidRow) -> str:
        reject(f"{path.name}: row {row.number} has {row.actual_columns} columns of {row.expected_columns}")
        return "skip"
    options = pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False)  # with threads rows have no number
    parse = pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=odd)
    with pa.csv.open_csv(path, options, parse, _as_text(columns)) as reader:
        for batch in reader:
            for first in range(0, len(batch), batch_rows):
                yield batch.slice(first, batch_rows)


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
