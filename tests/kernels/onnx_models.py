"""ONNX models built in memory for the tests."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, ML_OPSET = 22, 4


def type_of(array: np.ndarray) -> int:
    return onnx.TensorProto.STRING if array.dtype.kind in "OU" else helper.np_dtype_to_tensor_dtype(array.dtype)


def info(name: str, like: np.ndarray | int, shape: Any = None) -> onnx.ValueInfoProto:
    """What a model says of an input or output: its type, and a shape if given."""
    return helper.make_tensor_value_info(name, like if isinstance(like, int) else type_of(like), shape)


def model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray] | None = None,
          opset: int = OPSET, ml_opset: int = ML_OPSET, **fields: Any) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml_opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **fields)


def one_node(op_type: str, inputs: list[np.ndarray | None], n_outputs: int = 1, opset: int = OPSET,
             output_types: list[int] | None = None, domain: str = "", **attributes: Any) -> onnx.ModelProto:
    """A model of one operator: inputs x0, x1 … (None = left out), outputs y0 … (if not given of the first's type)."""
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(inputs)]
    types = output_types or [type_of(inputs[0])] * n_outputs  # type: ignore[arg-type]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(n_outputs)], domain=domain, **attributes)
    return model([node], [info(name, array, array.shape) for name, array in zip(names, inputs) if array is not None],
                 [info(f"y{i}", data_type) for i, data_type in enumerate(types)], opset=opset)


def mlp() -> onnx.ModelProto:
    """A small network with what a file can have: constants of both kinds, attributes of most types, metadata."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], "dense", alpha=1.0, transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32([2.0]))),
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("Mul", ["r", "two"], ["m"]),
        helper.make_node("MatMul", ["m", "w1"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        helper.make_node("ReduceSum", ["p", "axes"], ["sum"], keepdims=0),
        helper.make_node("ArgMax", ["p"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["labels", "best"], ["label"]),
    ]
    constants = {"w0": rng.normal(size=(4, 3)).astype(np.float32), "b0": rng.normal(size=4).astype(np.float32),
                 "w1": rng.normal(size=(4, 2)).astype(np.float32), "labels": np.array(["no", "yes"], object)}
    built = model(nodes, [info("x", onnx.TensorProto.FLOAT, ["n", 3])],
                  [info("p", onnx.TensorProto.FLOAT, ["n", 2]), info("sum", onnx.TensorProto.FLOAT, ["n"]),
                   info("label", onnx.TensorProto.STRING, ["n"])],
                  constants, producer_name="tests", producer_version="1", model_version=7)
    helper.set_model_props(built, {"feature_names": '["a", "b", "c"]'})
    return built


def classifier() -> onnx.ModelProto:
    """What a converter writes for a scaled linear classifier: ai.onnx.ml operators, and a list of maps as output."""
    ml = {"domain": "ai.onnx.ml"}
    nodes = [
        helper.make_node("Scaler", ["x"], ["scaled"], offset=[1.0, 2.0, 3.0], scale=[0.5, 2.0, 1.0], **ml),
        helper.make_node("LinearClassifier", ["scaled"], ["label", "scores"],
                         coefficients=[0.5, -1.0, 2.0, -0.5, 1.0, -2.0],
                         intercepts=[0.25, -0.25], classlabels_strings=["no", "yes"], post_transform="SOFTMAX", **ml),
        helper.make_node("ZipMap", ["scores"], ["probabilities"], classlabels_strings=["no", "yes"], **ml),
    ]
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(
        onnx.TensorProto.STRING, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])))
    return model(nodes, [info("x", onnx.TensorProto.FLOAT, ["n", 3])],
                 [info("label", onnx.TensorProto.STRING, ["n"]), helper.make_value_info("probabilities", maps)])
