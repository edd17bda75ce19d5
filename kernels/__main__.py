"""The command line of the model files: quantize, verify, inspect, warm."""

import argparse
import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kernels
from kernels import DEFAULT_MODEL, ModelError, TabularModel, gguf, trees
from kernels.export import TYPES
from kernels.verify import Comparison, rows_of, verify

MAX_SHOWN = 8  # items of an array that `inspect` prints
MAX_ROWS_SHOWN = 10  # rows that differ that `verify` prints


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 for bad input, 2 for bad options."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ModelError, OSError) as error:
        print(f"kernels: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: ModelError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kernels", description="Model files: quantize, verify, inspect, warm.")
    parser.add_argument("--version", action="version", version=f"testigo {kernels.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("quantize", help="write a model again with weights of another format")
    command.add_argument("source", metavar="IN", type=Path)
    command.add_argument("target", metavar="OUT", type=Path)
    command.add_argument("--type", required=True, choices=[name for name in TYPES if name != "exact"],
                         help="what leaves and weights become; bin8-: at most 255 thresholds of each feature, too")
    command.add_argument("--data", type=Path, metavar="X.parquet",
                         help="rows to compare the answers on, Parquet or CSV (default: generated)")
    command.set_defaults(run=_quantize)

    command = commands.add_parser("verify", help="compare a model with the one that it was made from")
    command.add_argument("model", metavar="MODEL", type=Path)
    command.add_argument("--against", required=True, type=Path, metavar="ORIGINAL",
                         help="LightGBM's text, XGBoost's JSON or UBJSON, ONNX, or a pickled scikit-learn estimator;"
                              " its own library answers, in double precision where it has it")
    command.add_argument("--data", required=True, type=Path, metavar="X.parquet", help="rows, Parquet or CSV")
    command.add_argument("--rows", type=_positive, metavar="N", help="compare the first N rows (default: all)")
    command.add_argument("--tolerance", type=_tolerance, metavar="T",
                         help="largest difference of a number, relative to numbers above 1 (default: 1e-9; 1e-6 where"
                              " one of the two computes in float32)")
    command.add_argument("--allow-pickle", action="store_true",
                         help="load a pickled ORIGINAL, which can run any code: only of someone whom you trust")
    command.set_defaults(run=_verify)

    command = commands.add_parser("inspect", help="print the metadata and the tensors of a GGUF file")
    command.add_argument("file", metavar="FILE", type=Path)
    command.set_defaults(run=_inspect)

    command = commands.add_parser("warm", help="compile what models need, so that the first start is quick")
    command.add_argument("models", metavar="MODEL", type=Path, nargs="*", help="default: the embedded model")
    command.set_defaults(run=_warm)
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 63):
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("must be a number from 0")
    return value


# ---- quantize ----------------------------------------------------------------------------------------------

def _quantize(arguments: argparse.Namespace) -> int:
    source = kernels.load(arguments.source)
    kernels.save(source, arguments.target, type=arguments.type)
    target = kernels.load(arguments.target)
    rows = generated_rows(source) if arguments.data is None else read_rows(arguments.data, source)
    print(f"{arguments.source}: {source.size_bytes:,} bytes")
    print(f"{arguments.target}: {target.size_bytes:,} bytes ({target.size_bytes / source.size_bytes:.2f} of the size)")
    print(f"on {len(rows):,} rows: {compare(source.predict(rows), target.predict(rows))}")
    if source.n_classes:
        difference = np.abs(source.predict_proba(rows) - target.predict_proba(rows)).max()
        print(f"largest difference of a probability: {difference:.3g}")
    times = [seconds_of(model, rows) for model in (source, target)]
    print(f"speed: {times[0] / len(rows) * 1e6:.3g} µs a row before, {times[1] / len(rows) * 1e6:.3g} after "
          f"({times[1] / times[0]:.2f} of the time)")
    return 0


def compare(expected: np.ndarray, found: np.ndarray) -> str:
    """How much two arrays of predictions differ: labels that changed, or the largest difference."""
    if expected.dtype.kind in "OU" or found.dtype.kind in "OUi":
        changed = int((expected != found).sum())
        return f"{changed:,} labels changed ({changed / max(len(expected), 1):.2%})"
    return f"largest difference of a prediction: {np.abs(expected - found).max(initial=0.0):.3g}"


def seconds_of(model: TabularModel, rows: np.ndarray, rounds: int = 5) -> float:
    """The shortest of some times to predict these rows."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        model.predict(rows)
        times.append(time.perf_counter() - start)
    return min(times)


def generated_rows(model: TabularModel, n: int = 2000) -> np.ndarray:
    """Rows to try a model with: around its trees' thresholds where it has any, else standard normal."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(n, model.n_features))
    for i, places in enumerate(model.places):
        if places is not None:
            rows[:, i] = random.integers(len(places), size=n)
    step = next((step for step in model.program.steps if step.op == "trees"), None)
    if step is None or step.inputs != (0,):
        return rows
    first = np.cumsum(step.arrays["specs"][:, trees.N_EDGES]) - step.arrays["specs"][:, trees.N_EDGES]
    for (feature, rule, n_edges, _), at in zip(step.arrays["specs"].tolist(), first.tolist(), strict=True):
        edges = step.arrays["edges"][at:at + n_edges]
        edges = edges[np.isfinite(edges)]
        if len(edges):
            chosen = random.integers(len(edges), size=n)
            spread = 0.0 if rule >= trees.CATEGORY else max(float(np.ptp(edges)) / len(edges), 1e-3)
            rows[:, feature] = edges[chosen] + spread * random.normal(size=n)
    return rows


def read_rows(path: Path, model: TabularModel) -> np.ndarray:
    """The rows of a Parquet or CSV file: the columns that the model names, else all of them in order."""
    return rows_of(model, read_frame(path))


def read_frame(path: Path, n_rows: int | None = None) -> Any:
    """The data frame of a Parquet or CSV file, or its first rows."""
    try:
        import pandas
        import pyarrow
    except ImportError:
        raise ModelError("reading rows from a file needs pandas and pyarrow: pip install 'testigo[data]'") from None
    try:
        frame = pandas.read_csv(path, nrows=n_rows) if path.suffix == ".csv" else pandas.read_parquet(path)
    except (ValueError, NotImplementedError, pyarrow.ArrowException):
        raise ModelError(f"expected rows in Parquet, or CSV where the name ends in .csv, in {path.name}") from None
    frame = frame.iloc[:n_rows].reset_index(drop=True)
    if not len(frame):
        raise ModelError(f"expected one row or more in {path.name}")
    return frame


# ---- verify ------------------------------------------------------------------------------------------------

def _verify(arguments: argparse.Namespace) -> int:
    model, frame = kernels.load(arguments.model), read_frame(arguments.data, arguments.rows)
    report = verify(model, arguments.against, frame, arguments.tolerance, arguments.allow_pickle)
    print(f"{arguments.model} against {arguments.against} ({report.library}) on {report.n_rows:,} rows of "
          f"{arguments.data}")
    for one in report.comparisons:
        beyond = one.beyond(report.tolerance)
        worst = int(np.argmax(one.difference))
        if one.what == "label":
            print(f"labels that differ: {len(beyond):,}")
        else:
            print(f"largest difference of a {one.what}: {one.difference[worst]:.3g} (row {worst})")
        for row in beyond[:MAX_ROWS_SHOWN].tolist():
            print(f"  row {row}: {one.what} {_both(one, row)}")
        if len(beyond) > MAX_ROWS_SHOWN:
            print(f"  … {len(beyond):,} rows in all")
    print(f"{'within' if report.is_right else 'not within'} the tolerance of {report.tolerance:g}")
    return 0 if report.is_right else 1


def _both(comparison: Comparison, row: int) -> str:
    """What both say of a row; of several numbers those that differ most."""
    found, expected = comparison.found[row], comparison.expected[row]
    if np.ndim(found) == 0:
        return f"{_value(found)}, expected {_value(expected)}"
    column = int(np.argmax(np.abs(found - expected)))
    return f"{column} is {_value(found[column])}, expected {_value(expected[column])}"


def _value(value: object) -> str:
    return f"{value:.17g}" if isinstance(value, (int, float, np.number)) else f"{_printable(str(value)):.100}"


# ---- inspect -----------------------------------------------------------------------------------------------

def _inspect(arguments: argparse.Namespace) -> int:
    file = gguf.read(arguments.file)
    print(f"{file.path}: GGUF v{gguf.VERSION}, {file.size_bytes:,} bytes, alignment {file.alignment}")
    print(f"\n{len(file.metadata)} metadata pairs")
    _print_table([(_printable(key), _shown(value)) for key, value in file.metadata.items()])
    print(f"\n{len(file.tensors)} tensors")
    _print_table([
        (_printable(tensor.name), tensor.format.name, " × ".join(map(str, tensor.shape)),
         f"{tensor.data.size:,} bytes", f"at {tensor.offset}")
        for tensor in file.tensors.values()
    ])
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(value: object) -> str:
    if isinstance(value, (list, np.ndarray)):
        items = ", ".join(_shown(item) for item in value[:MAX_SHOWN])
        return f"[{items}]" if len(value) <= MAX_SHOWN else f"[{items}, … {len(value):,} in all]"
    text = _printable(str(value))
    return text if len(text) <= 100 else f"{text[:100]}… ({len(text):,} characters)"


def _printable(text: str) -> str:
    """Without the control characters that a hostile file could send to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---- warm --------------------------------------------------------------------------------------------------

def _warm(arguments: argparse.Namespace) -> int:
    for path in arguments.models or [DEFAULT_MODEL]:
        start = time.perf_counter()
        kernels.load(path).native()
        print(f"kernels: {path.name} compiled, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    if importlib.util.find_spec("server") is None:
        return 0
    # In a process of its own: this room never imports the server's.
    command = [sys.executable, "-m", "server", "warm", *map(str, arguments.models)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
