"""An ONNX backend: `prepare(model).run(inputs)`, for what speaks `onnx.backend.base`, its test suite among them.

The rule to keep: nothing is computed here; `onnx_graph` reads and runs. The classes are made on first use, because
their bases are the onnx package's.

https://github.com/onnx/onnx/blob/main/docs/ImplementingAnOnnxBackend.md
"""

import functools
from collections.abc import Mapping
from typing import Any

from kernels.errors import ModelError
from kernels.onnx_graph import VERSIONS, from_model, read_node
from kernels.onnx_graph import run_node as run_read_node

CPU = "CPU"


def supports_device(device: str) -> bool:
    """Whether `prepare` takes this device: "CPU" alone."""
    return device == CPU


def prepare(model: Any, device: str = CPU, **options: Any) -> Any:
    """A BackendRep of an onnx.ModelProto without external data; `options` of other backends are not read.

    Its `run` takes the inputs in order, or a dict by name, and gives a tuple of the outputs. Raises ModelError for a
    model that is malformed or not supported, and for another device.
    """
    _check_device(device)
    return _classes()["BackendRep"](from_model(model, None))


def run_model(model: Any, inputs: Any, device: str = CPU, **options: Any) -> tuple[Any, ...]:
    """The outputs of an onnx.ModelProto. Raises ModelError."""
    return prepare(model, device, **options).run(inputs)


def run_node(node: Any, inputs: Any, device: str = CPU, outputs_info: Any = None, **options: Any) -> tuple[Any, ...]:
    """The outputs of an onnx.NodeProto for the inputs in order, None or none for those left out. Raises ModelError.

    `opset_version=` is the version of its domain, else the newest that is supported.
    """
    _check_device(device)
    newest = {domain: options.get("opset_version", last) for domain, (_, last) in VERSIONS.items()}
    read = read_node(node, newest)
    if len(inputs) > len(read.inputs):
        raise ModelError(f"expected at most {len(read.inputs)} inputs, found {len(inputs)}")
    given = [*inputs, *[None] * (len(read.inputs) - len(inputs))]
    return run_read_node(read, given)


def _check_device(device: str) -> None:
    if not supports_device(device):
        raise ModelError(f"expected the device {CPU}, found {device!r:.40}")


def __getattr__(name: str) -> Any:
    if name in ("Backend", "BackendRep"):
        return _classes()[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")


@functools.cache
def _classes() -> dict[str, type]:
    import onnx.backend.base

    class BackendRep(onnx.backend.base.BackendRep):
        def __init__(self, graph: Any) -> None:
            self.graph = graph

        def run(self, inputs: Any, **options: Any) -> tuple[Any, ...]:
            """The outputs for inputs in order (a list, a tuple; one array for one input) or by name."""
            if not isinstance(inputs, Mapping):
                in_order = inputs if isinstance(inputs, (list, tuple)) else [inputs]
                names = [info.name for info in self.graph.inputs]
                if len(in_order) != len(names):
                    raise ModelError(f"expected {len(names)} inputs, found {len(in_order)}")
                inputs = dict(zip(names, in_order))
            outputs = self.graph.run(inputs)
            return onnx.backend.base.namedtupledict("Outputs", list(outputs))(*outputs.values())

    class Backend(onnx.backend.base.Backend):
        prepare = staticmethod(prepare)
        run_model = staticmethod(run_model)
        run_node = staticmethod(run_node)
        supports_device = staticmethod(supports_device)

    return {"Backend": Backend, "BackendRep": BackendRep}
