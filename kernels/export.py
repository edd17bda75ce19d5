"""Writing tabular models as native files: a loaded model, or arrays of dense layers, become a GGUF file.

The rule to keep: what cannot be written as the format says is refused by name; nothing is dropped. The format
is at the head of tabular_file.py. Writing needs the `gguf` package; scikit-learn itself is never imported.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kernels import gguf as reader
from kernels import quants, tabular_file, trees
from kernels.errors import ModelError
from kernels.step import Step
from kernels.tabular import TabularModel
from kernels.tabular_file import ARCHITECTURE, BLOCKS, HIDDEN_ACTIVATIONS, INTEGERS

ACTIVATIONS = (*HIDDEN_ACTIVATIONS, "softmax")
TENSOR_TYPES = {reader.FORMATS[t].name.lower(): t for t in quants.CODECS}  # f32, f16, q8_0, q4_0

# What `save` may write: what thresholds of trees become, and what numbers (leaves, weights, biases) become.
TYPES = {"exact": (None, None)} | {
    f"{prefix}{name}": (bins, tensor_type)
    for prefix, bins in (("", None), ("bin8-", 255)) for name, tensor_type in
    (("f64", reader.F64), ("f32", reader.F32), ("f16", reader.F16), ("q8_0", reader.Q8_0), ("q4_0", reader.Q4_0))}

DenseLayer = tuple[ArrayLike, ArrayLike]  # weights (n_out, n_in), bias (n_out)


def save_dense(
    path: str | Path,
    layers: Sequence[DenseLayer],
    activations: Sequence[str],
    *,
    name: str,
    version: str,
    task: str,
    classes: Sequence[str] | Sequence[int] | None = None,
    feature_names: Sequence[str] | None = None,
    fill_values: Sequence[float] | None = None,
    input_offset: Sequence[float] | None = None,
    input_scale: Sequence[float] | None = None,
    tensor_type: str = "q8_0",
) -> None:
    """Write a model of dense layers, each (weights (n_out, n_in), bias (n_out)), to the GGUF file at `path`.

    The new file is checked by loading it before it takes its name, in one step, so that a server that has an
    older file of this name mapped is not disturbed. Raises ModelError for what the format does not take.
    """
    if tensor_type not in TENSOR_TYPES:
        raise ModelError(f"expected {', '.join(TENSOR_TYPES)} for the tensor type, found {tensor_type!r:.40}")
    widths = _checked_widths(layers)
    strings = {"general.name": name, "general.version": version, "tabular.task": task}
    arrays = {
        "tabular.layer_widths": widths, "tabular.activations": activations, "tabular.classes": classes,
        "tabular.feature_names": feature_names, "tabular.fill_values": fill_values,
    }
    vectors = {"input.offset": input_offset, "input.scale": input_scale}
    path = Path(path)
    unchecked = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        typed_arrays = {key: _array(key, values) for key, values in arrays.items() if values is not None}
        _write(unchecked, strings, typed_arrays, _tensors(layers, vectors, TENSOR_TYPES[tensor_type]))
        tabular_file.read(unchecked, native=False)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


def _checked_widths(layers: Sequence[DenseLayer]) -> list[int]:
    if not layers:
        raise ModelError("expected one layer or more")
    widths = [np.shape(layers[0][0])[-1]]
    for i, (weights, bias) in enumerate(layers):
        n_out = np.size(bias)
        if np.shape(weights) != (n_out, widths[-1]) or np.shape(bias) != (n_out,) or not n_out:
            raise ModelError(f"expected weights (n_out, {widths[-1]}) and a bias (n_out) in layer {i}, "
                             f"found {np.shape(weights)} and {np.shape(bias)}")
        widths.append(n_out)
    return widths


def _array(key: str, values: Sequence) -> tuple[str, list]:
    """The name of the GGUF type of the items, and the items as plain Python values."""
    items = [value.item() if isinstance(value, np.generic) else value for value in values]
    if key == "tabular.fill_values" and items:
        return "FLOAT64", [float(item) for item in items]
    if items and all(type(item) is str for item in items):
        return "STRING", items
    if items and all(type(item) is int for item in items):
        return "INT64", items
    raise ModelError(f"expected strings, or integers, in {key}")


def _tensors(
    layers: Sequence[DenseLayer], vectors: dict[str, Sequence[float] | None], tensor_type: int,
) -> dict[str, tuple[np.ndarray, int]]:
    """name → (bytes (rows, row_bytes), tensor type)."""
    tensors = {}
    for i, (weights, bias) in enumerate(layers):
        padded = _pad(np.asarray(weights, np.float64))
        tensors[f"dense.{i}.weight"] = quants.quantize(padded, tensor_type), tensor_type
        with np.errstate(over="ignore"):  # the loader refuses an infinite bias
            tensors[f"dense.{i}.bias"] = np.asarray(bias).astype("<f4").view(np.uint8), reader.F32
    for key, values in vectors.items():
        if values is not None:
            tensors[key] = np.asarray(values).astype("<f8").view(np.uint8), reader.F64
    return tensors


def _pad(weights: np.ndarray) -> np.ndarray:
    padding = -weights.shape[1] % quants.BLOCK
    return np.pad(weights, [(0, 0), (0, padding)])


def _write(path: Path, strings: dict[str, str], arrays: dict[str, tuple[str, list]], tensors: dict) -> None:
    try:
        import gguf
    except ImportError:
        raise ModelError("writing a model needs the gguf package: pip install gguf") from None
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    for key, text in strings.items():
        writer.add_string(key, text)
    for key, (item_type, items) in arrays.items():
        writer.add_key_value(key, items, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType[item_type])
    for key, (data, tensor_type) in tensors.items():
        writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType(tensor_type))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


# ---- any tabular model -------------------------------------------------------------------------------------

def save(model: TabularModel, path: str | Path, *, type: str = "exact", name: str | None = None,
         version: str | None = None) -> None:
    """Write a loaded model to the GGUF file at `path`, which starts fast.

    `type`: "exact" keeps every bit; "f32", "f16", "q8_0" or "q4_0" is what leaves and weights become ("q4_0": weights
    only; leaves "q8_0"); "bin8-…" also keeps at most 255 thresholds of each feature, moving the others to the nearest
    one kept. The new file is checked by loading it before it takes its name. Raises ModelError for another type and
    for numbers that do not fit it.
    """
    if type not in TYPES:
        raise ModelError(f"expected one of {', '.join(TYPES)} for the type, found {type!r:.40}")
    bins, tensor_type = TYPES[type]
    signature = model.signature
    strings = {"general.name": name or model.name, "general.version": version or model.version,
               "tabular.task": signature.task}
    arrays = {"tabular.classes": signature.classes, "tabular.feature_names": signature.feature_names}
    steps = [_stored(step, bins, tensor_type) for step in model.program.steps]
    strings["tabular.program"] = json.dumps(_program_json(model, steps))
    tensors = {f"step.{i}.{key}": stored.tensor for i, (_, arrays_) in enumerate(steps)
               for key, stored in arrays_.items() if stored.tensor is not None}
    path = Path(path)
    unchecked = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(unchecked, strings, {key: _array(key, values) for key, values in arrays.items() if values is not None},
               tensors)
        tabular_file.read(unchecked, native=False)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


class _Stored(NamedTuple):
    """An array of a step in the file: what the JSON says, and the tensor, which empty arrays do not need."""

    json: dict[str, object]
    tensor: tuple[np.ndarray, int] | None


def _program_json(model: TabularModel, steps: list[tuple[Step, dict[str, _Stored]]]) -> dict[str, object]:
    program, signature = model.program, model.signature
    categories = signature.categories
    return {
        "n_features": program.n_features, "prediction": program.prediction, "probabilities": program.probabilities,
        "n_prediction_steps": program.n_prediction_steps, "checked": list(program.checked),
        "model_type": model.model_type, "n_classes": len(signature.classes or ()),
        "takes_missing": np.flatnonzero(model.takes_missing_in).tolist(),
        "categories": None if categories is None else [None if texts is None else list(texts) for texts in categories],
        "unknown": None if math.isnan(signature.unknown) else int(signature.unknown),
        "steps": [{"op": step.op, "inputs": list(step.inputs), "width": step.width, "numbers": step.numbers,
                   "arrays": {key: stored.json for key, stored in arrays.items()}} for step, arrays in steps],
    }


def _stored(step: Step, bins: int | None, tensor_type: int | None) -> tuple[Step, dict[str, _Stored]]:
    """The step, and its arrays as they are stored."""
    if step.op == "trees":
        step = trees.pack(step if bins is None else trees.with_fewer_edges(step, bins))
        leaf_type = reader.Q8_0 if tensor_type == reader.Q4_0 else tensor_type
        return step, {key: _stored_array(array, leaf_type if key == "values" else None)
                      for key, array in step.arrays.items()}
    if step.op == "dense" and tensor_type is not None:
        weights = quants.dequantize(step.arrays["weights"], int(step.numbers["tensor_type"]))
        arrays = step.arrays | {"weights": quants.quantize(weights, tensor_type)}
        step = step._replace(arrays=arrays, numbers=step.numbers | {"tensor_type": tensor_type})
    return step, {key: _stored_array(array, None) if key != "weights" else _stored_blocks(step)
                  for key, array in step.arrays.items()}


def _stored_blocks(step: Step) -> _Stored:
    shape = [len(step.arrays["bias"]), -(-int(step.numbers["n_in"]) // quants.BLOCK) * quants.BLOCK]
    return _Stored({"dtype": BLOCKS, "shape": shape}, (step.arrays["weights"], int(step.numbers["tensor_type"])))


def _stored_array(array: np.ndarray, tensor_type: int | None) -> _Stored:
    content: dict[str, object] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if not array.size:
        return _Stored(content, None)
    if array.dtype.kind == "f":
        if tensor_type in (None, reader.F64):
            return _Stored(content, (array.astype("<f8"), reader.F64))
        padded = np.pad(array.astype(np.float64), (0, -len(array) % quants.BLOCK))[None]
        return _Stored(content | {"stored": BLOCKS}, (quants.quantize(padded, tensor_type)[0], tensor_type))
    low, high = int(array.min()), int(array.max())
    stored = next(name for name in INTEGERS if np.iinfo(name).min <= low and high <= np.iinfo(name).max)
    data = array.astype(np.dtype(stored).newbyteorder("<"))
    return _Stored(content | {"stored": stored}, (data.view(f"i{data.itemsize}"), INTEGERS[stored]))
