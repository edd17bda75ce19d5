"""The command line of the model files: quantize, inspect, warm."""

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kernels
from kernels import DEFAULT_MODEL, ModelError, TabularModel, gguf, quants

MAX_SHOWN = 8  # items of an array that `inspect` prints


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
    parser = argparse.ArgumentParser(prog="kernels", description="Model files: quantize, inspect, warm.")
    parser.add_argument("--version", action="version", version=f"testigo {kernels.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("quantize", help="write a model again with weights of another format")
    command.add_argument("source", metavar="IN", type=Path)
    command.add_argument("target", metavar="OUT", type=Path)
    command.add_argument("--type", dest="tensor_type", required=True, choices=["q8_0", "q4_0", "f16", "f32"])
    command.set_defaults(run=_quantize)

    command = commands.add_parser("inspect", help="print the metadata and the tensors of a GGUF file")
    command.add_argument("file", metavar="FILE", type=Path)
    command.set_defaults(run=_inspect)

    command = commands.add_parser("warm", help="compile what models need, so that the first start is quick")
    command.add_argument("models", metavar="MODEL", type=Path, nargs="*", help="default: the embedded model")
    command.set_defaults(run=_warm)
    return parser


# ---- quantize ----------------------------------------------------------------------------------------------

def _quantize(arguments: argparse.Namespace) -> int:
    from kernels.export import save_dense
    source = TabularModel.load(arguments.source, native=False)
    save_dense(arguments.target, tensor_type=arguments.tensor_type, **_contents(source))
    target = TabularModel.load(arguments.target, native=False)
    ratio = target.size_bytes / source.size_bytes
    print(f"{arguments.source}: {_formats(source)}, {source.size_bytes:,} bytes")
    print(f"{arguments.target}: {_formats(target)}, {target.size_bytes:,} bytes ({ratio:.2f} of the size)")
    print(f"largest weight error: {_largest_error(source, target):.3g}")
    return 0


def _contents(model: TabularModel) -> dict[str, Any]:
    """The model as the arguments of `save_dense`."""
    widths = [model.n_features] + [len(layer.bias) for layer in model.layers]
    layers = [
        (_weights(layer)[:, :n_in], layer.bias) for layer, n_in in zip(model.layers, widths[:-1], strict=True)
    ]
    signature = model.signature
    return {
        "layers": layers, "activations": [layer.activation for layer in model.layers],
        "name": model.name, "version": model.version, "task": signature.task, "classes": signature.classes,
        "feature_names": signature.feature_names, "fill_values": model.fill_values,
        "input_offset": model.offset if model.offset.any() else None,
        "input_scale": model.scale if (model.scale != 1).any() else None,
    }


def _weights(layer) -> np.ndarray:
    return quants.dequantize(layer.weight.data, layer.weight.tensor_type)


def _formats(model: TabularModel) -> str:
    return ", ".join(sorted({layer.weight.format.name for layer in model.layers}))


def _largest_error(source: TabularModel, target: TabularModel) -> float:
    pairs = zip(source.layers, target.layers, strict=True)
    return max(np.abs(_weights(a) - _weights(b)).max() for a, b in pairs)


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
