"""Reader of ONNX models, and their execution operator by operator with numpy.

The rule to keep: a file is hostile until checked. The onnx package parses it; every count, type, name and length is
then compared with what the standard's own operator schemas and the bytes at hand allow before an array is made, so
memory stays within a constant factor of the file's size, and whatever is wrong is one ModelError.

https://github.com/onnx/onnx/blob/main/docs/IR.md
"""

import graphlib
import math
import mmap
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kernels.errors import ModelError
from kernels.onnx_ml_ops import ML_OPS
from kernels.onnx_ops import CORE_OPS, MAX_ELEMENTS, Node, find_dtype

__all__ = ["Graph", "Node", "TensorInfo", "from_model", "parse", "read", "read_node", "run_node"]

OPERATORS = {"": CORE_OPS, "ai.onnx.ml": ML_OPS}
VERSIONS = {"": (1, 28), "ai.onnx.ml": (1, 5)}  # opset versions whose meaning the operators know
MIN_IR_VERSION = 3       # the first with opset versions
MAX_FILE_BYTES = 2**31   # protobuf's
MAX_RANK = 64            # numpy's
MAX_LIVE_BYTES = 2**35   # of all values that a run holds at once

TENSOR, SEQUENCE, MAP, MAPS = "tensor", "sequence", "map", "sequence of maps"

# What an operator may raise on values that do not fit together.
UNFIT = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)

PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2, "float6_e2m3fn": 6, "float6_e3m2fn": 6}


@dataclass(frozen=True)
class TensorInfo:
    """What goes in or comes out under a name."""

    name: str
    dtype: np.dtype                       # object for strings; a map's values
    shape: tuple[int | None, ...] | None  # None for a dimension or a rank that is not fixed; None for all but tensors
    kind: str = TENSOR                    # an array; SEQUENCE: a list of them; MAP: a dict; MAPS: a list of them
    key_dtype: np.dtype | None = None     # of maps: object (str) or int64
    optional: bool = False                # None may be given


@dataclass(frozen=True)
class Graph:
    """A checked model: operators in an order in which they can run, and all constants."""

    name: str
    inputs: tuple[TensorInfo, ...]  # initializers excluded
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[Node, ...]         # in topological order; Constant nodes are among `constants` instead
    constants: dict[str, np.ndarray]
    metadata: dict[str, str]
    model_version: int
    producer: str
    size_bytes: int                 # with external data

    @cached_property
    def _dropped(self) -> tuple[tuple[str, ...], ...]:
        """For each node the values that nothing reads after it."""
        kept = self.constants.keys() | {info.name for info in self.outputs} | {""}
        dropped = []
        for node in reversed(self.nodes):
            names = set(node.inputs + node.outputs) - kept
            kept |= names
            dropped.append(tuple(names))
        return tuple(reversed(dropped))

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name for the inputs by name, each as its TensorInfo says (an array, a list, a dict).

        Raises ModelError for inputs that are missing, unknown or of another type or shape, and where values do not
        fit an operator.
        """
        values: dict[str, Any] = self.constants | _checked_inputs(self.inputs, inputs)
        live_bytes = sum(_size_bytes(value) for value in values.values())
        for node, dropped in zip(self.nodes, self._dropped):
            results = run_node(node, [values[name] if name else None for name in node.inputs])
            for name, value in zip(node.outputs, results):
                if name:
                    values[name] = value
                    live_bytes += _size_bytes(value)
            if live_bytes > MAX_LIVE_BYTES:
                raise ModelError(f"{_place(node)}: expected values of at most {MAX_LIVE_BYTES} bytes at a time")
            for name in dropped:
                live_bytes -= _size_bytes(values.pop(name))
        return {info.name: _checked_output(info, values[info.name]) for info in self.outputs}


def run_node(node: Node, inputs: list[Any]) -> tuple[Any, ...]:
    """The outputs of one operator, as many as the node names. Raises ModelError where the inputs do not fit it."""
    try:
        with np.errstate(all="ignore"):
            results = OPERATORS[node.domain][node.op_type](node, inputs)
    except ModelError as error:
        raise ModelError(f"{_place(node)}: {error}") from None
    except UNFIT as error:
        raise ModelError(f"{_place(node)}: expected inputs that fit the operator: {str(error):.200}") from None
    if len(results) < len(node.outputs):
        raise ModelError(f"{_place(node)}: expected {len(results)} outputs, found {len(node.outputs)}")
    return results[:len(node.outputs)]


def _place(node: Node) -> str:
    return f"operator {node.op_type:.80} (node {node.name!r:.80})"


def _size_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _checked_inputs(infos: tuple[TensorInfo, ...], inputs: Mapping[str, Any]) -> dict[str, Any]:
    names = {info.name: None for info in infos}
    for name in inputs:
        if name not in names:
            raise ModelError(f"expected inputs named {', '.join(names):.200}; found {name!r:.80}")
    for name in names:
        if name not in inputs:
            raise ModelError(f"expected the input {name!r:.80}")
    return {info.name: _checked_input(info, inputs[info.name]) for info in infos}


def _checked_input(info: TensorInfo, value: Any) -> Any:
    """`value`, an array of strings as one of objects, if it is what `info` says."""
    if info.optional and value is None:
        return value
    if info.kind == TENSOR:
        return _checked_array(info, value)
    expected = dict if info.kind == MAP else list
    if not isinstance(value, expected):
        raise ModelError(f"input {info.name!r:.80}: expected a {expected.__name__}, found {type(value).__name__}")
    if info.kind == MAP:
        return value
    one = replace(info, kind=TENSOR if info.kind == SEQUENCE else MAP, optional=False)
    return [_checked_input(one, item) for item in value]


def _checked_array(info: TensorInfo, value: Any) -> np.ndarray:
    place = f"input {info.name!r:.80}"
    if not isinstance(value, (np.ndarray, np.generic)):
        raise ModelError(f"{place}: expected an array, found {type(value).__name__}")
    value = np.asarray(value)  # numpy's scalars are arrays too
    if info.dtype == object and value.dtype.kind == "U":
        value = value.astype(object)
    if value.dtype != info.dtype:
        raise ModelError(f"{place}: expected {_spelled(info.dtype)}, found {_spelled(value.dtype)}")
    if info.shape is not None and (len(info.shape) != value.ndim
                                   or any(n not in (None, m) for n, m in zip(info.shape, value.shape))):
        raise ModelError(f"{place}: expected shape {_spelled_shape(info.shape)}, found {_spelled_shape(value.shape)}")
    if value.dtype == object and not all(type(item) is str for item in value.flat):
        raise ModelError(f"{place}: expected strings")
    return value


def _checked_output(info: TensorInfo, value: Any) -> Any:
    """`value` if it has the kind and type that the model declares; declared shapes are often wrong, and not used."""
    if isinstance(value, np.ndarray) != (info.kind == TENSOR) and not info.optional:
        raise ModelError(f"output {info.name!r:.80}: expected a {info.kind}, found {type(value).__name__}")
    if isinstance(value, np.ndarray) and value.dtype != info.dtype:
        raise ModelError(f"output {info.name!r:.80}: expected {_spelled(info.dtype)}, found {_spelled(value.dtype)}")
    return value


def _spelled(dtype: np.dtype) -> str:
    return "strings" if dtype == object else str(dtype)


def _spelled_shape(shape: Iterable[int | None]) -> str:
    return f"({', '.join('n' if n is None else str(n) for n in shape):.100})"


def read(path: str | Path) -> Graph:
    """The checked model in the file at `path`; external data only from that file's folder, mapped.

    Raises ModelError naming what was expected and where, OSError when the file cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ModelError(f"{path.name}: expected a regular file")
    size_bytes = path.stat().st_size
    try:
        _expect(size_bytes <= MAX_FILE_BYTES, f"at most {MAX_FILE_BYTES} bytes, found {size_bytes}")
        return _from_proto(parse(path.read_bytes()), path.parent, size_bytes)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise ModelError("reading an ONNX model needs the onnx package: pip install 'testigo[onnx]'") from None
    return onnx


def parse(data: bytes) -> Any:
    """The onnx.ModelProto, unchecked, that a file's bytes hold. Raises ModelError where they hold none."""
    model = _onnx().ModelProto()
    try:
        model.ParseFromString(data)
        return model
    except Exception:  # protobuf's DecodeError; protobuf is the onnx package's affair
        raise ModelError("expected an ONNX model, a protobuf message") from None


def from_model(model: Any, folder: Path | None) -> Graph:
    """The checked graph of an onnx.ModelProto; external data only from below `folder`.

    Raises ModelError for whatever is malformed, and for an operator that is not supported.
    """
    return _from_proto(model, folder, model.ByteSize())


def _from_proto(model: Any, folder: Path | None, size_bytes: int) -> Graph:
    external = ExternalData(folder)
    try:
        graph = _from_model(model, external)
        return replace(graph, size_bytes=size_bytes + external.size_bytes)
    except UnicodeDecodeError:  # protobuf decodes a string when it is read
        raise ModelError("expected UTF-8 in every string") from None


def _from_model(model: Any, external: "ExternalData") -> Graph:
    _expect(model.ir_version >= MIN_IR_VERSION, f"IR version {MIN_IR_VERSION} or more, found {model.ir_version}")
    _expect(model.HasField("graph"), "a graph")
    _expect(not model.functions, "no functions in the model: inline them (onnx.inliner)")
    proto, versions = model.graph, _read_versions(model.opset_import)
    _expect(not proto.sparse_initializer, "no sparse initializers")
    initializers = _read_initializers(proto.initializer, external)
    inputs = tuple(_read_info(info) for info in proto.input if info.name not in initializers)
    outputs = tuple(_read_info(info) for info in proto.output)
    nodes = [_read_node(node, versions, external) for node in proto.node]
    _expect(len(outputs) > 0, "one output or more")
    for what, infos in (("input", inputs), ("output", outputs)):
        _expect_unique((info.name for info in infos), what)
    folded = {node.outputs[0]: run_node(node, [])[0] for node in nodes if node.op_type == "Constant"}
    _expect_unique([*(info.name for info in inputs), *initializers,
                    *(name for node in nodes for name in node.outputs if name)], "value")
    nodes = [node for node in nodes if node.op_type != "Constant"]
    constants = initializers | folded
    given = constants.keys() | {info.name for info in inputs}
    nodes = _sorted(nodes, given)
    computed = given | {name for node in nodes for name in node.outputs}
    for info in outputs:
        _expect(info.name in computed, f"the output {info.name!r:.80} to be computed by a node")
    return Graph(_text(proto.name), inputs, outputs, tuple(nodes), constants,
                 {_text(pair.key): _text(pair.value) for pair in model.metadata_props}, model.model_version,
                 f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(), size_bytes=0)


def _text(value: str | bytes) -> str:
    """A message's string, which protobuf gives as bytes where it is not UTF-8."""
    if isinstance(value, bytes):
        raise ModelError("expected UTF-8 in every string")
    return value


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ModelError(f"expected {what}")


def _expect_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        _expect(name != "", f"a name for every {what}")
        _expect(name not in seen, f"{what} names to be unique, found {name!r:.80} twice")
        seen.add(name)


def _read_versions(imports: Any) -> dict[str, int]:
    """Opset version by domain."""
    versions: dict[str, int] = {}
    for opset in imports:
        domain = _domain(_text(opset.domain))
        _expect(versions.setdefault(domain, opset.version) == opset.version,  # skl2onnx writes a domain twice
                f"one opset version for the domain {domain!r:.80}")
    for domain, (first, last) in VERSIONS.items():
        _expect(first <= versions.get(domain, first) <= last,
                f"opset version {first} to {last} of {domain or 'ai.onnx'}, found {versions.get(domain)}")
    return versions


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _read_initializers(tensors: Any, external: "ExternalData") -> dict[str, np.ndarray]:
    names = [_text(tensor.name) for tensor in tensors]
    _expect_unique(names, "initializer")
    return {name: read_tensor(tensor, external) for name, tensor in zip(names, tensors)}


def _read_info(info: Any) -> TensorInfo:
    _expect(_text(info.name) != "", "a name for every input and output")
    proto, place = info.type, f"{info.name!r:.80}"
    kind, key_dtype, optional = TENSOR, None, proto.WhichOneof("value") == "optional_type"
    try:
        if optional:
            proto = proto.optional_type.elem_type
        if proto.WhichOneof("value") == "sequence_type":
            kind, proto = SEQUENCE, proto.sequence_type.elem_type
        if proto.WhichOneof("value") == "map_type":
            kind, key_dtype = MAP if kind == TENSOR else MAPS, find_dtype(proto.map_type.key_type)
            proto = proto.map_type.value_type
        _expect(proto.WhichOneof("value") == "tensor_type", "tensors, and sequences and maps of them")
        shape = _read_shape(proto.tensor_type) if kind == TENSOR else None
        return TensorInfo(info.name, find_dtype(proto.tensor_type.elem_type), shape, kind, key_dtype, optional)
    except ModelError as error:
        raise ModelError(f"input or output {place}: {error}") from None


def _read_shape(tensor_type: Any) -> tuple[int | None, ...] | None:
    if not tensor_type.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor_type.shape.dim]
    _expect(len(dims) <= MAX_RANK, f"at most {MAX_RANK} dimensions, found {len(dims)}")
    for n in dims:
        _expect(n is None or -1 <= n, f"dimensions from 0, found {n}")
    return tuple(None if n == -1 else n for n in dims)  # older converters write -1 for the number of rows


def read_node(proto: Any, versions: dict[str, int]) -> Node:
    """A checked operator of an onnx.NodeProto, given the opset version of each domain. Raises ModelError."""
    try:
        return _read_node(proto, versions, ExternalData(None))
    except UnicodeDecodeError:
        raise ModelError("expected UTF-8 in every string") from None


def _read_node(proto: Any, versions: dict[str, int], external: "ExternalData") -> Node:
    domain, op_type, outputs = _domain(_text(proto.domain)), _text(proto.op_type), tuple(map(_text, proto.output))
    name = _text(proto.name) or next(iter(outputs), "")
    if op_type not in OPERATORS.get(domain, {}):
        spelled = f"{domain}.{op_type}" if domain else op_type
        raise ModelError(f"operator {spelled:.80} (node {name!r:.80}) is not supported; "
                         "run the model on ONNX Runtime with --engine onnxruntime")
    place = f"operator {op_type} (node {name!r:.80})"
    _expect(domain in versions, f"an opset version of {domain or 'ai.onnx'} for {place}")
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        _expect(attribute.name not in attributes, f"attributes of {place} to be unique")
        attributes[attribute.name] = _read_attribute(attribute, place, external)
    node = Node(op_type, domain, name, tuple(map(_text, proto.input)), outputs, attributes, versions[domain])
    _check_schema(node, {attribute.name: attribute.type for attribute in proto.attribute}, place)
    return node


def _check_schema(node: Node, types: dict[str, int], place: str) -> None:
    """The operator's schema in the standard: counts of inputs and outputs, attributes and their types."""
    defs = _onnx().defs
    try:
        schema = defs.get_schema(node.op_type, node.version, node.domain)
    except defs.SchemaError:
        raise ModelError(f"expected {place} in opset version {node.version}") from None
    _expect(not schema.deprecated, f"no {place} in opset version {node.version}")
    for what, names, least, most in (("input", node.inputs, schema.min_input, schema.max_input),
                                     ("output", node.outputs, max(schema.min_output, 1), schema.max_output)):
        _expect(least <= len(names) <= most, f"{least} to {most} {what}s of {place}, found {len(names)}")
    for i, name in enumerate(node.inputs):
        formal = schema.inputs[min(i, len(schema.inputs) - 1)]
        _expect(name != "" or formal.option == defs.OpSchema.FormalParameterOption.Optional,
                f"input {formal.name} of {place}")
    for name, found in types.items():
        _expect(name in schema.attributes, f"attributes of {place} that it has, found {name!r:.80}")
        _expect(found == int(schema.attributes[name].type.value), f"another type of attribute {name} of {place}")
    for name, attribute in schema.attributes.items():
        _expect(name in types or not attribute.required, f"the attribute {name} of {place}")


def _read_attribute(proto: Any, place: str, external: "ExternalData") -> Any:
    kind = proto.AttributeType.Name(proto.type)
    _expect(_text(proto.name) != "" and not proto.ref_attr_name, f"attributes with a name and a value of {place}")
    if kind not in ATTRIBUTES:
        raise ModelError(f"expected numbers, strings or tensors in the attribute {proto.name!r:.80} of {place}")
    try:
        return ATTRIBUTES[kind](proto, external)
    except ModelError as error:
        raise ModelError(f"{place}, attribute {proto.name!r:.80}: {error}") from None


# type of an attribute → its value; subgraphs, sparse tensors and types are of no operator here
ATTRIBUTES: dict[str, Callable[[Any, "ExternalData"], Any]] = {
    "FLOAT": lambda proto, external: proto.f,
    "INT": lambda proto, external: proto.i,
    "STRING": lambda proto, external: proto.s.decode(),
    "TENSOR": lambda proto, external: read_tensor(proto.t, external),
    "FLOATS": lambda proto, external: list(proto.floats),
    "INTS": lambda proto, external: list(proto.ints),
    "STRINGS": lambda proto, external: [item.decode() for item in proto.strings],
    "TENSORS": lambda proto, external: [read_tensor(tensor, external) for tensor in proto.tensors],
}


def _sorted(nodes: list[Node], given: Set[str]) -> list[Node]:
    """The nodes in an order in which they can run: the file's own where it is one."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    needed = []
    for node in nodes:
        for name in node.inputs:
            _expect(not name or name in given or name in maker,
                    f"the input {name!r:.80} of {_place(node)} to be computed by a node")
        needed.append([maker[name] for name in node.inputs if name in maker])
    if all(earlier < i for i, numbers in enumerate(needed) for earlier in numbers):
        return nodes
    try:
        return [nodes[i] for i in graphlib.TopologicalSorter(dict(enumerate(needed))).static_order()]
    except graphlib.CycleError as error:
        raise ModelError(f"expected a graph without cycles, found one at {_place(nodes[error.args[1][0]])}") from None


def read_tensor(tensor: Any, external: "ExternalData") -> np.ndarray:
    """A tensor's array, read-only where it is a view of its bytes. Raises ModelError naming the tensor."""
    try:
        return _read_checked_tensor(tensor, external)
    except ModelError as error:
        raise ModelError(f"tensor {_text(tensor.name)!r:.80}: {error}") from None


def _read_checked_tensor(tensor: Any, external: "ExternalData") -> np.ndarray:
    dtype, dims = find_dtype(tensor.data_type), tuple(tensor.dims)
    _expect(not tensor.HasField("segment"), "no segments")
    _expect(len(dims) <= MAX_RANK, f"at most {MAX_RANK} dimensions, found {len(dims)}")
    _expect(min(dims, default=0) >= 0, f"dimensions from 0, found {min(dims, default=0)}")
    # Without its zeros too: an empty tensor's other dimensions take no bytes, but numpy and operators multiply them.
    _expect(math.prod(n or 1 for n in dims) <= MAX_ELEMENTS, f"at most {MAX_ELEMENTS} elements")
    size = math.prod(dims)
    n_bytes = -(-size * PACKED_BITS.get(dtype.name, 8 * dtype.itemsize) // 8)
    if tensor.data_location == tensor.EXTERNAL:
        _expect(dtype != object, "strings to be in the model's own file")
        return _from_bytes(dtype, dims, external.take(tensor.external_data, n_bytes))
    if tensor.HasField("raw_data"):
        _expect(dtype != object, "strings in string_data")
        raw = np.frombuffer(tensor.raw_data, np.uint8)
        _expect(len(raw) == n_bytes, f"{n_bytes} bytes of data, found {len(raw)}")
        return _from_bytes(dtype, dims, raw)
    return _from_field(tensor, dtype, dims, n_bytes)


def _from_bytes(dtype: np.dtype, dims: tuple[int, ...], raw: np.ndarray) -> np.ndarray:
    """`raw` (n) uint8, little-endian, as an array; elements of less than a byte become one byte each."""
    if dtype.name in PACKED_BITS:
        proto = _onnx().TensorProto(data_type=_onnx().helper.np_dtype_to_tensor_dtype(dtype), dims=dims,
                                    raw_data=raw.tobytes())
        return _onnx().numpy_helper.to_array(proto)
    _expect(dtype != np.bool_ or raw.max(initial=0) <= 1, "0 or 1 in every bool")
    return raw.view(dtype).reshape(dims)


def _from_field(tensor: Any, dtype: np.dtype, dims: tuple[int, ...], n_bytes: int) -> np.ndarray:
    """The array of a tensor whose elements are in a typed field of the message."""
    size, helper = math.prod(dims), _onnx().helper
    field = getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))
    expected = {n_bytes} if dtype.name in PACKED_BITS else {size * (2 if dtype.kind == "c" else 1)}
    _expect(len(field) in expected, f"{min(expected)} elements of data, found {len(field)}")
    if dtype == object:
        array = np.empty(size, object)
        array[:] = [item.decode() for item in field]  # not through numpy's own strings: all as long as the longest
        return array.reshape(dims)
    try:
        return _onnx().numpy_helper.to_array(tensor)
    except (OverflowError, TypeError, ValueError):
        raise ModelError("expected elements that its type can hold") from None


class ExternalData:
    """The files beside a model that hold its tensors, each mapped once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.maps: dict[Path, np.ndarray] = {}  # (size of the file) uint8
        self.taken: dict[Path, int] = {}        # bytes

    @property
    def size_bytes(self) -> int:
        return sum(len(data) for data in self.maps.values())

    def take(self, entries: Any, n_bytes: int) -> np.ndarray:
        """The `n_bytes` that a tensor's entries (location, offset, length) name: (n_bytes) uint8, a view."""
        pairs = {_text(entry.key): _text(entry.value) for entry in entries}
        path = self._find(pairs.get("location", ""))
        offset, length = (self._number(pairs, key, default) for key, default in (("offset", 0), ("length", n_bytes)))
        _expect(length == n_bytes, f"{n_bytes} bytes of external data, found {length}")
        data = self._map(path)
        _expect(offset + n_bytes <= len(data),
                f"{n_bytes} bytes at byte {offset} of the external data, the file ends at {len(data)}")
        # Each byte belongs to one tensor: or a small model could ask for a large file's size again and again.
        self.taken[path] = self.taken.get(path, 0) + n_bytes
        _expect(self.taken[path] <= len(data), "tensors that do not overlap in the external data")
        return data[offset:offset + n_bytes]

    def _find(self, location: str) -> Path:
        if self.folder is None:
            raise ModelError("expected no external data: the model does not come from a folder")
        relative, place = PurePosixPath(location), f"{location!r:.80}"
        _expect(location != "" and not relative.is_absolute() and ".." not in relative.parts and "\0" not in location,
                f"external data in the model's folder, found the location {place}")
        try:
            folder = self.folder.resolve()
            path = (folder / relative).resolve()
            _expect(path.is_relative_to(folder), f"external data in the model's folder, {place} leads out of it")
            _expect(path.is_file(), f"a regular file of external data at {place}")
        except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
            raise ModelError(f"expected a regular file of external data at {place}") from None
        return path

    def _number(self, pairs: dict[str, str], key: str, default: int) -> int:
        text = pairs.get(key, str(default))
        _expect(re.fullmatch("[0-9]{1,18}", text) is not None,
                f"a number as {key} of external data, found {text!r:.40}")
        return int(text)

    def _map(self, path: Path) -> np.ndarray:
        if path not in self.maps:
            try:
                with path.open("rb") as file:
                    self.maps[path] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except ValueError:  # an empty file cannot be mapped
                self.maps[path] = np.empty(0, np.uint8)
            except OSError as error:
                raise ModelError(f"expected external data that can be read: {error.strerror}") from None
        return self.maps[path]
