"""ONNX graphs: read in full, run as ONNX Runtime runs them, and files that lie."""

import os
import random
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels import ModelError, onnx_graph
from kernels.onnx_graph import from_model
from kernels.onnx_ops import CORE_OPS
from tests.kernels.onnx_models import classifier, info, mlp, model, one_node, type_of

F32, F64, I32, I64, TEXT, BOOL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64,
                                  TensorProto.STRING, TensorProto.BOOL)


def onnx_runtime(built: onnx.ModelProto, inputs: dict) -> dict:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def assert_same_as_onnx_runtime(built: onnx.ModelProto, inputs: dict) -> None:
    ours, theirs = from_model(built, None).run(inputs), onnx_runtime(built, inputs)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (expected.dtype, expected.shape)
        if expected.dtype.kind == "f":
            tolerance = 8 * np.finfo(expected.dtype).eps
            np.testing.assert_allclose(ours[name], expected, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(ours[name], expected)


RNG = np.random.default_rng(3)
M = RNG.normal(size=(2, 3, 4))
SIGNED = RNG.integers(-9, 9, size=(2, 3, 4))
ROW = np.array([1.5, -2.0, 0.5, 3.0])
INTS = np.array([2, -3, 1, 4])
NANS = np.float32([[1, np.nan, -np.inf], [np.inf, -0.0, 2]])


def f32(*arrays):
    return [np.asarray(array, np.float32) for array in arrays]


def f64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def i32(*arrays):
    return [np.asarray(array, np.int32) for array in arrays]


def i64(*arrays):
    return [np.asarray(array, np.int64) for array in arrays]


def text(*items):
    return np.array(items, object)


# (operator, inputs, attributes, opset versions, types of outputs or None for the first input's)
CASES = [
    *[(op, one(M), {}, (7, 13, 22), None) for op in ("Abs", "Neg", "Exp", "Tanh", "Sigmoid", "Relu")
      for one in (f32, f64)],
    *[(op, one(np.abs(M)), {}, (7, 13), None) for op in ("Log", "Sqrt") for one in (f32, f64)],
    *[(op, one(SIGNED), {}, (13,), None) for op in ("Abs", "Neg") for one in (i32, i64)],
    ("Relu", i32(SIGNED), {}, (14,), None),
    *[(op, [NANS], {}, (13,), None) for op in ("Abs", "Relu", "Sigmoid", "Tanh", "Exp", "Sqrt")],
    *[(op, one(M, ROW), {}, (7, 13, 14), None) for op in ("Add", "Sub", "Mul", "Div") for one in (f32, f64)],
    *[(op, one(SIGNED, INTS), {}, (7, 14), None) for op in ("Add", "Sub", "Mul", "Div") for one in (i32, i64)],
    *[(op, one(M, ROW), {}, (9, 13), [BOOL]) for op in ("Less", "Greater") for one in (f32, f64)],
    *[(op, one(SIGNED, INTS), {}, (9, 13), [BOOL]) for op in ("Less", "Greater") for one in (i32, i64)],
    *[(op, one(M, ROW), {}, (12, 16), [BOOL]) for op in ("LessOrEqual", "GreaterOrEqual") for one in (f32, f64)],
    *[("Equal", one(SIGNED, INTS), {}, (7, 13), [BOOL]) for one in (i32, i64)],
    ("Equal", f32(M, ROW), {}, (11, 13), [BOOL]),
    ("Equal", [text("a", "b", "é"), text("a")], {}, (19,), [BOOL]),
    *[(op, [SIGNED > 0, INTS > 0], {}, (7,), [BOOL]) for op in ("And", "Or")],
    ("Not", [SIGNED > 0], {}, (1,), [BOOL]),
    *[(op, one(M, ROW, M[:1]), {}, (8, 12, 13), None) for op in ("Max", "Min", "Sum") for one in (f32, f64)
      if not (op == "Sum" and one is f64)],
    *[(op, i64(SIGNED, INTS), {}, (12,), None) for op in ("Max", "Min")],
    *[(op, [NANS, NANS[::-1].copy()], {}, (13,), None) for op in ("Max", "Min")],
    ("Sum", f64(M, ROW), {}, (8, 13), None),
    ("Pow", f32(np.abs(M), ROW), {}, (7, 12, 15), None),
    ("Pow", [*f32(M), *i64([[2]])], {}, (12, 15), None),
    ("Pow", i64(SIGNED, [0, 1, 2, 3]), {}, (12,), None),
    ("Pow", [*i32(SIGNED), *f32(2.5)], {}, (13,), None),
    *[(op, [*one(M)], {"axis": axis, "keepdims": keep}, (11, 13), [I64])
      for op in ("ArgMax", "ArgMin") for one in (f32, f64) for axis, keep in ((0, 1), (-1, 0), (1, 1))],
    *[(op, i32([[3, 3, 1, 1], [0, 2, 2, 0]]), {"axis": 1, "select_last_index": last}, (12, 13), [I64])
      for op in ("ArgMax", "ArgMin") for last in (0, 1)],
    ("Clip", f32(M), {"min": -0.5, "max": 0.25}, (6,), None),
    ("Clip", f32(M), {}, (6, 11), None),
    ("Clip", f32(M, -0.5, 0.25), {}, (11, 12, 13), None),
    ("Clip", [*f32(M), None, *f32(0.25)], {}, (11, 13), None),
    ("Clip", f32(M, 1, -1), {}, (13,), None),
    *[("Clip", [NANS, *f32(*low)], {}, (11, 13), None) for low in ((), (-1,))],
    ("Clip", f64(NANS), {}, (13,), None),
    ("Clip", i64(SIGNED, -2, 3), {}, (12, 13), None),
    *[("Concat", one(M, M[:, :2]), {"axis": axis}, (4, 11, 13), None) for one in (f32, i64) for axis in (1,)],
    ("Concat", f32(M, M), {"axis": -1}, (11, 13), None),
    ("Concat", [text("a", "b"), text("c")], {"axis": 0}, (13,), None),
    *[("Flatten", f32(M), {"axis": axis}, (9, 11, 13), None) for axis in (0, 1, 2, 3)],
    ("Flatten", f32(M), {"axis": -1}, (11, 13), None),
    *[("Gather", [*f32(M), *i64([[0, 1], [1, 0]])], {"axis": axis}, (1, 11, 13), None) for axis in (0, 1, 2)],
    ("Gather", [*f32(M), *i32([-1, 0])], {"axis": -1}, (11, 13), None),
    ("Gather", [text("a", "b"), *i64(1)], {}, (13,), None),
    *[("Gemm", one(M[0], M[1].T, ROW[:3]), {"alpha": 0.5, "beta": 2.0}, (7, 9, 13), None) for one in (f32, f64)],
    ("Gemm", f32(M[0, :2], M[1, :2], np.ones((4, 1))), {"transA": 1}, (7, 13), None),
    ("Gemm", f32(M[0], M[1]), {"transB": 1}, (11, 13), None),
    ("Identity", f32(M), {}, (1, 13, 19), None),
    *[("MatMul", one(M, M.transpose(0, 2, 1)), {}, (9, 13), None) for one in (f32, f64, )],
    ("MatMul", i32(SIGNED, INTS), {}, (9, 13), None),
    ("MatMul", f32(ROW, M.transpose(0, 2, 1)), {}, (13,), None),
    *[(op, one(M), {"keepdims": keep}, (11, 13), None) for op in ("ReduceSum", "ReduceMean", "ReduceMax")
      for one in (f32, f64) for keep in (0, 1)],
    *[(op, i32(SIGNED), {}, (13, ), None) for op in ("ReduceSum", "ReduceMean", "ReduceMax")],
    *[(op, f32(M), {"axes": [0, -1]}, (11,), None) for op in ("ReduceSum", "ReduceMean", "ReduceMax")],
    *[(op, f32(M), {"axes": [1], "keepdims": 0}, (13,), None) for op in ("ReduceMean", "ReduceMax")],
    *[(op, [*f32(M), *i64([0, -1])], {}, (18, 20), None) for op in ("ReduceSum", "ReduceMean", "ReduceMax")],
    *[(op, [*f32(M), np.empty(0, np.int64)], {"noop_with_empty_axes": noop}, (18,), None)
      for op in ("ReduceSum", "ReduceMean", "ReduceMax") for noop in (0, 1)],
    ("Reshape", [*f32(M), *i64([0, -1])], {}, (5, 13, 14), None),
    ("Reshape", [*f32(M), *i64([4, 3, 2, 1])], {}, (13,), None),
    ("Reshape", [np.empty((0, 3), np.float32), *i64([3, 0])], {"allowzero": 1}, (14,), None),
    ("Reshape", [np.empty((0, 3), np.float32), *i64([-1, 3])], {}, (14,), None),
    *[("Softmax", one(M), {"axis": axis}, (9, 11, 12, 13), None) for one in (f32, f64) for axis in (0, 1, 2)],
    ("Softmax", f32(M), {"axis": -2}, (11, 13), None),
    ("Softmax", f32(M), {}, (1, 11, 13), None),
    ("Softmax", f32(M * 500), {}, (13,), None),
    ("Squeeze", f32(M[:1, :, None]), {}, (11, 13), None),
    ("Squeeze", f32(M[:1, :, None]), {"axes": [0, -2]}, (11,), None),
    ("Squeeze", [*f32(M[:1, :, None]), *i64([2])], {}, (13, 21), None),
    ("Unsqueeze", f32(M), {"axes": [0, 2]}, (1, 11), None),
    ("Unsqueeze", [*f32(M), *i64([-1, 0])], {}, (13, 21), None),
    *[("TopK", [*one(SIGNED), *i64([2])], {"axis": axis, "largest": largest}, (11,), [None, I64])
      for one in (f32, f64, i32, i64) for axis in (1, -1) for largest in (0, 1)],
    ("TopK", f32(M), {"k": 2}, (1, 9), [None, I64]),
    ("TopK", [*f32(M), *i64([3])], {"axis": 0 - 1}, (10, 11), [None, I64]),
    ("Transpose", f32(M), {}, (1, 13), None),
    ("Transpose", i64(SIGNED), {"perm": [2, 0, 1]}, (13, 21), None),
    *[("Where", [SIGNED > 0, *one(M * 9, ROW)], {}, (9, 16), out) for one, out in ((f32, [F32]), (i64, [I64]))],
    ("Where", [np.array([True, False]), text("a", "b"), text("c")], {}, (9,), [TEXT]),
    *[("Cast", [array], {"to": to}, (9, 13, 19), [to])
      for array in (*f32(M * 9), *f64(M * 9), *i32(SIGNED), *i64(SIGNED), SIGNED > 0, np.float16(M))
      for to in (F32, F64, I32, I64, BOOL, TensorProto.FLOAT16, TensorProto.INT8, TEXT)
      if not (array.dtype == np.float16 and to == TEXT)],
    *[("Cast", [text("1", "-3", " 12")], {"to": to}, (9, 13), [to]) for to in (I32, I64)],
    *[("Cast", [text("1.5", "-3e-3", "NaN", "inf", "-Inf", "7")], {"to": to}, (9, 13), [to]) for to in (F32, F64)],
    *[("Cast", [one([0.1, 1e20, 1e-7, 123456789.123, np.nan, np.inf, -np.inf, 100, -0.0])[0]], {"to": TEXT}, (9, 13),
       [TEXT]) for one in (f32, f64)],
]


@pytest.mark.parametrize("op, inputs, attributes, versions, types", CASES)
def test_operator_gives_what_onnx_runtime_gives(op, inputs, attributes, versions, types):
    given = [array for array in inputs if array is not None]
    own = type_of(given[0])
    for version in versions:
        built = one_node(op, inputs, len(types or [0]), version, [t or own for t in types or [own]], **attributes)
        assert_same_as_onnx_runtime(built, {f"x{i}": a for i, a in enumerate(inputs) if a is not None})


def test_every_core_operator_is_compared():
    assert set(CORE_OPS) - {case[0] for case in CASES} == {"Constant"}


X = np.float32([[1, 2, 3], [-4, 5, -6]])


def test_graph_says_all_that_the_file_says(tmp_path):
    path = tmp_path / "mlp.onnx"
    path.write_bytes(mlp().SerializeToString())
    graph = onnx_graph.read(path)
    assert (graph.name, graph.producer, graph.model_version) == ("graph", "tests 1", 7)
    assert graph.metadata == {"feature_names": '["a", "b", "c"]'}
    assert graph.size_bytes == path.stat().st_size == from_model(mlp(), None).size_bytes
    assert [(i.name, i.dtype, i.shape, i.kind) for i in graph.inputs] == [("x", np.float32, (None, 3), "tensor")]
    assert [(o.name, o.dtype, o.shape) for o in graph.outputs] == [
        ("p", np.float32, (None, 2)), ("sum", np.float32, (None,)), ("label", object, (None,))]
    assert [node.op_type for node in graph.nodes] == [
        "Gemm", "Relu", "Mul", "MatMul", "Softmax", "ReduceSum", "ArgMax", "Gather"]
    gemm = graph.nodes[0]
    assert (gemm.name, gemm.domain, gemm.version) == ("dense", "", 22)
    assert (gemm.inputs, gemm.outputs, gemm.attributes) == (("x", "w0", "b0"), ("h",), {"alpha": 1.0, "transB": 1})
    assert graph.nodes[1].name == "r"
    assert {name: (array.dtype, array.shape) for name, array in graph.constants.items()} == {
        "w0": (np.float32, (4, 3)), "b0": (np.float32, (4,)), "w1": (np.float32, (4, 2)), "labels": (object, (2,)),
        "two": (np.float32, (1,)), "axes": (np.int64, (1,))}
    assert graph.constants["labels"].tolist() == ["no", "yes"]


def test_network_gives_what_onnx_runtime_gives():
    assert_same_as_onnx_runtime(mlp(), {"x": X})
    assert_same_as_onnx_runtime(mlp(), {"x": X[:0]})


def test_attributes_of_every_type_are_read():
    values = {"value": numpy_helper.from_array(np.float16([1, 2])), "value_float": 1.5, "value_floats": [1.5, 2.5],
              "value_int": -2, "value_ints": [1, 2], "value_string": "é", "value_strings": ["a", "b"]}
    nodes = [helper.make_node("Constant", [], [name], **{name: value}) for name, value in values.items()]
    nodes.append(helper.make_node("Identity", ["value"], ["y"]))
    constants = from_model(model(nodes, [], [info("y", TensorProto.FLOAT16)]), None).constants
    assert {name: (array.dtype, array.tolist()) for name, array in constants.items()} == {
        "value": (np.float16, [1, 2]), "value_float": (np.float32, 1.5), "value_floats": (np.float32, [1.5, 2.5]),
        "value_int": (np.int64, -2), "value_ints": (np.int64, [1, 2]), "value_string": (object, "é"),
        "value_strings": (object, ["a", "b"])}


def test_maps_sequences_and_optional_inputs_are_told_apart():
    make = helper.make_tensor_type_proto
    types = {"a": helper.make_map_type_proto(TEXT, make(F32, [])),
             "c": helper.make_sequence_type_proto(make(I64, None)),
             "b": helper.make_sequence_type_proto(helper.make_map_type_proto(I64, make(F32, []))),
             "d": helper.make_optional_type_proto(make(F32, [2]))}
    infos = [helper.make_value_info(name, proto) for name, proto in types.items()]
    graph = from_model(model([helper.make_node("Identity", ["a"], ["y"])], infos,
                             [helper.make_value_info("y", types["a"])]), None)
    assert [(i.kind, i.dtype, i.key_dtype, i.optional) for i in graph.inputs] == [
        ("map", np.float32, object, False), ("sequence", np.int64, None, False),
        ("sequence of maps", np.float32, np.int64, False), ("tensor", np.float32, None, True)]
    given = {"a": {"k": 1.0}, "b": [{1: 0.5}], "c": [np.int64([1])], "d": None}
    assert graph.run(given) == {"y": {"k": 1.0}}
    for name, wrong in {"a": [], "b": {}, "c": [np.float32([1])], "d": np.float32([1])}.items():
        with pytest.raises(ModelError, match=f"input '{name}': expected"):
            graph.run(given | {name: wrong})


def test_nodes_out_of_order_are_put_in_order():
    built = mlp()
    nodes = list(built.graph.node)
    del built.graph.node[:]
    built.graph.node.extend(nodes[::-1])
    assert from_model(built, None).run({"x": X})["p"].tolist() == from_model(mlp(), None).run({"x": X})["p"].tolist()


def test_one_opset_version_written_twice_is_taken():
    built = mlp()
    built.opset_import.append(helper.make_opsetid("ai.onnx", 22))
    assert from_model(built, None).run({"x": X})["label"].shape == (2,)


def test_inputs_that_are_initializers_are_constants():
    built = mlp()
    built.graph.input.append(info("w0", F32, [4, 3]))
    assert [i.name for i in from_model(built, None).inputs] == ["x"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8,
                                   np.uint16, np.uint32, np.uint64, np.bool_, np.complex64, np.complex128])
def test_tensors_are_read_from_bytes_and_from_fields(dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    flat = array.reshape(-1).tolist()
    for tensor in (numpy_helper.from_array(array, "c"), helper.make_tensor("c", data_type, [2, 3], flat)):
        built = model([helper.make_node("Identity", ["c"], ["y"])], [], [info("y", data_type)])
        built.graph.initializer.append(tensor)
        read = from_model(built, None).run({})["y"]
        assert (read.dtype, read.tolist()) == (array.dtype, array.tolist())


def test_values_are_dropped_after_their_last_use():
    x = np.zeros(1_000_000, np.float32)
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(20)]
    graph = from_model(model(nodes, [info("v0", F32, [None])], [info("v20", F32)]), None)
    tracemalloc.start()
    try:
        graph.run({"v0": x})
        assert tracemalloc.get_traced_memory()[1] < 3 * x.nbytes
    finally:
        tracemalloc.stop()


# edits of the sound network, and what the error says

def replaced(index: int, node: onnx.NodeProto):
    return lambda built: built.graph.node[index].CopyFrom(node)


def with_node(op_type: str, inputs: list[str], outputs: list[str], **attributes):
    return lambda built: built.graph.node.append(helper.make_node(op_type, inputs, outputs, **attributes))


def with_tensor(**fields):
    tensor = TensorProto(**({"name": "t", "data_type": F32, "dims": [2], "raw_data": bytes(8)} | fields))
    return lambda built: built.graph.initializer.append(tensor)


def with_attribute(name: str, **fields):
    attribute = onnx.AttributeProto(name=name, **fields)
    return lambda built: built.graph.node[1].attribute.append(attribute)


EMPTY_GRAPH = helper.make_graph([], "sub", [], [])
FUNCTION = helper.make_function("own", "Twice", ["x"], ["y"], [], [])
NO_TYPE = onnx.ValueInfoProto(name="z")
SPARSE = onnx.SparseTensorProto()
SPARSE_TYPE = helper.make_value_info("z", onnx.TypeProto(sparse_tensor_type=onnx.TypeProto.SparseTensor(elem_type=F32)))
TYPE = onnx.AttributeProto

HOSTILE = {
    "no IR version": (lambda m: m.ClearField("ir_version"), "expected IR version 3 or more, found 0"),
    "old IR version": (lambda m: setattr(m, "ir_version", 2), "IR version 3 or more"),
    "no graph": (lambda m: m.ClearField("graph"), "expected a graph"),
    "functions": (lambda m: m.functions.append(FUNCTION), "no functions"),
    "no opset version": (lambda m: m.ClearField("opset_import"), "opset version of ai.onnx for operator Gemm"),
    "opset version 0": (lambda m: setattr(m.opset_import[0], "version", 0), "1 to 28 of ai.onnx, found 0"),
    "opset version 29": (lambda m: setattr(m.opset_import[0], "version", 29), "1 to 28 of ai.onnx, found 29"),
    "ai.onnx.ml version 99": (lambda m: setattr(m.opset_import[1], "version", 99), "1 to 5 of ai.onnx.ml, found 99"),
    "two opset versions": (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 21)), "one opset version"),
    "operator unknown": (replaced(0, helper.make_node("Conv", ["x", "w0"], ["h"], "conv1")),
                         r"operator Conv \(node 'conv1'\) is not supported; run the model on ONNX Runtime with "
                         "--engine onnxruntime"),
    "operator without a name": (replaced(0, onnx.NodeProto(output=["h"])), r"operator  \(node 'h'\) is not supported"),
    "domain unknown": (replaced(1, helper.make_node("Relu", ["h"], ["r"], domain="com.microsoft")),
                       r"operator com.microsoft.Relu \(node 'r'\) is not supported"),
    "subgraph operator": (with_node("If", ["x"], ["z"], then_branch=EMPTY_GRAPH, else_branch=EMPTY_GRAPH),
                          r"operator If \(node 'z'\) is not supported"),
    "subgraph in another operator": (with_attribute("axis", type=TYPE.GRAPH, g=EMPTY_GRAPH),
                                     "expected numbers, strings or tensors in the attribute 'axis'"),
    "sparse initializer": (lambda m: m.graph.sparse_initializer.append(SPARSE), "no sparse initializers"),
    "sparse constant": (replaced(3, helper.make_node("Constant", [], ["axes"], sparse_value=SPARSE)),
                        "expected numbers, strings or tensors in the attribute 'sparse_value'"),
    "sparse input": (lambda m: m.graph.input.append(SPARSE_TYPE), "'z': expected tensors"),
    "constant without a value": (replaced(3, helper.make_node("Constant", [], ["axes"])), "one value, found 0"),
    "constant of two values": (replaced(3, helper.make_node("Constant", [], ["axes"], value_int=1, value_float=1.0)),
                               "expected one value, found 2"),
    "operator not in its version": (lambda m: (setattr(m.opset_import[0], "version", 8), replaced(
        0, helper.make_node("Where", ["x", "x", "x"], ["h"]))(m)), "in opset version 8"),
    "attribute left out": (with_node("Cast", ["x"], ["z"]), "the attribute to of operator Cast"),
    "attribute of another type": (replaced(6, helper.make_node("Softmax", ["s"], ["p"], axis=1.5)),
                                  "another type of attribute axis"),
    "attribute of no type": (with_attribute("axis", i=1), "numbers, strings or tensors in the attribute 'axis'"),
    "attribute that it has not": (replaced(1, helper.make_node("Relu", ["h"], ["r"], alpha=1.0)), "found 'alpha'"),
    "attribute twice": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("alpha", 2.0)), "unique"),
    "attribute without a name": (with_attribute("", type=TYPE.INT, i=1), "attributes with a name"),
    "attribute of a function": (with_attribute("axis", type=TYPE.INT, ref_attr_name="a"), "and a value"),
    "too many inputs": (replaced(1, helper.make_node("Relu", ["h", "h"], ["r"])), "1 to 1 inputs of operator Relu"),
    "no inputs": (replaced(1, helper.make_node("Relu", [], ["r"])), "1 to 1 inputs of operator Relu"),
    "required input left out": (replaced(1, helper.make_node("Relu", [""], ["r"])), "input X of operator Relu"),
    "no outputs": (replaced(1, helper.make_node("Relu", ["h"], [])), "1 to 1 outputs of operator Relu"),
    "input undefined": (replaced(1, helper.make_node("Relu", ["nowhere"], ["r"])),
                        "the input 'nowhere' of operator Relu"),
    "cycle": (replaced(0, helper.make_node("Gemm", ["m", "w0", "b0"], ["h"])), "a graph without cycles"),
    "node that reads itself": (replaced(1, helper.make_node("Relu", ["r"], ["r"])), "a graph without cycles"),
    "output twice": (with_node("Relu", ["h"], ["r"]), "found 'r' twice"),
    "output named as an input": (with_node("Relu", ["h"], ["x"]), "found 'x' twice"),
    "output named as an initializer": (with_node("Relu", ["h"], ["w0"]), "found 'w0' twice"),
    "initializer twice": (with_tensor(name="w0"), "initializer names to be unique, found 'w0' twice"),
    "initializer without a name": (with_tensor(name=""), "a name for every initializer"),
    "graph input twice": (lambda m: m.graph.input.append(info("x", F32)), "input names to be unique"),
    "graph output twice": (lambda m: m.graph.output.append(info("p", F32)), "output names to be unique"),
    "graph output undefined": (lambda m: m.graph.output.append(info("q", F32)), "the output 'q' to be computed"),
    "no graph outputs": (lambda m: m.graph.ClearField("output"), "one output or more"),
    "input without a type": (lambda m: m.graph.input.append(NO_TYPE), "'z': expected tensors"),
    "input without a name": (lambda m: m.graph.input.append(info("", F32)), "a name for every input and output"),
    "input of unknown elements": (lambda m: m.graph.input.append(info("z", 99)), "'z': expected a known type"),
    "input of negative dimensions": (lambda m: m.graph.input.append(info("z", F32, [-2])),
                                     "'z': expected dimensions from 0, found -2"),
    "input of 65 dimensions": (lambda m: m.graph.input.append(info("z", F32, [1] * 65)), "'z': expected at most 64"),
    "tensor of negative dimensions": (with_tensor(dims=[-2]), "'t': expected dimensions from 0, found -2"),
    "two negative dimensions": (with_tensor(dims=[-2, -1]), "dimensions from 0"),
    "huge tensor without data": (with_tensor(dims=[10**12], raw_data=b""), "'t': expected at most"),
    "large tensor without data": (with_tensor(dims=[10**9], raw_data=b""), "4000000000 bytes of data, found 0"),
    "large tensor of strings": (with_tensor(dims=[10**9], data_type=TEXT, raw_data=None), "elements of data, found 0"),
    "large tensor in a field": (with_tensor(dims=[10**9], raw_data=None), "1000000000 elements of data, found 0"),
    "product that wraps around": (with_tensor(dims=[2**32, 2**32], raw_data=b""), "at most"),
    "huge empty tensor": (with_tensor(dims=[0, 2**62, 2**62], raw_data=b""), "at most"),
    "tensor of 65 dimensions": (with_tensor(dims=[1] * 65, raw_data=bytes(4)), "at most 64 dimensions"),
    "too few bytes": (with_tensor(raw_data=bytes(7)), "8 bytes of data, found 7"),
    "too many bytes": (with_tensor(raw_data=bytes(9)), "8 bytes of data, found 9"),
    "too few nibbles": (with_tensor(data_type=TensorProto.INT4, dims=[5], raw_data=bytes(2)),
                        "3 bytes of data, found 2"),
    "too few in a field": (with_tensor(raw_data=None, float_data=[1]), "2 elements of data, found 1"),
    "wrong field": (with_tensor(raw_data=None, double_data=[1, 2]), "2 elements of data, found 0"),
    "strings in bytes": (with_tensor(data_type=TEXT), "strings in string_data"),
    "string not UTF-8": (with_tensor(data_type=TEXT, raw_data=None, string_data=[b"\xff", b""]), "expected UTF-8"),
    "bool of 2": (with_tensor(data_type=BOOL, raw_data=b"\2\0"), "0 or 1 in every bool"),
    "type of elements unknown": (with_tensor(data_type=99), "'t': expected a known type of elements, found 99"),
    "type of elements left out": (with_tensor(data_type=0), "'t': expected a known type of elements, found 0"),
    "segment": (with_tensor(segment=TensorProto.Segment(begin=0, end=1)), "no segments"),
    "huge tensor in an attribute": (
        replaced(2, helper.make_node("Constant", [], ["two"], value=TensorProto(data_type=F32, dims=[10**12]))),
        "attribute 'value': tensor '': expected at most"),
    "external data without a folder": (with_tensor(raw_data=None, data_location=TensorProto.EXTERNAL),
                                       "no external data"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_model_gets_one_clear_error_and_little_memory(case):
    edit, expected = HOSTILE[case]
    built = mlp()
    edit(built)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=expected) as raised:
            from_model(built, None)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 400


def test_strings_take_the_memory_of_their_own_lengths():
    built = model([helper.make_node("Identity", ["c"], ["y"])], [], [info("y", TEXT)])
    built.graph.initializer.append(TensorProto(name="c", data_type=TEXT, dims=[10_001],
                                               string_data=[b"x" * 100_000] + [b""] * 10_000))
    tracemalloc.start()
    try:
        from_model(built, None)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # numpy's own strings: 4 GB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08", b"\x0a\xff\xff\xff\xff\x0f", b"\x3a\x80\x80" * 1000,
                                  b"GGUF\3\0\0\0" + bytes(16)])
def test_file_that_is_no_model_is_refused(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="^m.onnx: expected"):
        onnx_graph.read(tmp_path / "m.onnx")


def test_folder_pipe_and_giant_are_refused_and_a_missing_file_is_an_os_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelError, match="regular file"):
            onnx_graph.read(path)
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match="giant: expected at most 2147483648 bytes"):
        onnx_graph.read(tmp_path / "giant")
    with pytest.raises(FileNotFoundError):
        onnx_graph.read(tmp_path / "missing")


@pytest.mark.parametrize("name", ["dense", "graph", "h", "alpha", "Relu", "w0", "x", "p", "tests", "feature_names"])
def test_name_that_is_not_utf8_is_refused(tmp_path, name):
    def field(content: bytes) -> bytes:
        return bytes([len(content)]) + content
    data, spoiled = mlp().SerializeToString(), name.encode()[:-1] + b"\xff"
    assert field(name.encode()) in data
    (tmp_path / "m.onnx").write_bytes(data.replace(field(name.encode()), field(spoiled)))
    with pytest.raises(ModelError, match="^m.onnx: expected UTF-8"):
        onnx_graph.read(tmp_path / "m.onnx")


def test_without_the_onnx_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(mlp().SerializeToString())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"needs the onnx package: pip install 'testigo\[onnx\]'"):
        onnx_graph.read(tmp_path / "m.onnx")


# external data

def external(folder: Path, dims=(2, 3), name: str = "t", data_type: int = F32, **entries: object) -> Path:
    """A model in `folder` whose output is a tensor kept outside."""
    folder.mkdir(exist_ok=True)
    built = model([helper.make_node("Identity", [name], ["y"])], [], [info("y", data_type)])
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    built.graph.initializer.append(tensor)
    path = folder / "m.onnx"
    path.write_bytes(built.SerializeToString())
    return path


def test_external_data_in_the_models_folder_is_read(tmp_path):
    values = np.arange(8, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(values.tobytes())
    (tmp_path / "link").symlink_to("sub/w.bin")
    for entries, expected in (({"location": "sub/w.bin", "offset": 8}, values[2:]),
                              ({"location": "./link", "offset": 0, "length": 24}, values[:6])):
        path = external(tmp_path, **entries)
        graph = onnx_graph.read(path)
        assert graph.run({})["y"].tolist() == expected.reshape(2, 3).tolist()
        assert graph.size_bytes == path.stat().st_size + 32
    packed = onnx_graph.read(external(tmp_path, [3], data_type=TensorProto.INT4, location="link", offset=6))
    assert packed.run({})["y"].astype(int).tolist() == [0, -8, -1]  # 1.0 is 00 00 80 3f


OUTSIDE = {
    "absolute": ({"location": "{outside}/secret"}, "in the model's folder, found the location"),
    "dots": ({"location": "../outside/secret"}, "in the model's folder, found the location"),
    "dots inside": ({"location": "sub/../w.bin"}, "in the model's folder, found the location"),
    "link out": ({"location": "link"}, "'link' leads out of it"),
    "folder linked out": ({"location": "folder/secret"}, "'folder/secret' leads out of it"),
    "links in a circle": ({"location": "circle"}, "regular file of external data at 'circle'"),
    "zero byte": ({"location": "w.bin\0"}, "found the location"),
    "no location": ({}, "found the location ''"),
    "folder": ({"location": "sub"}, "regular file"),
    "missing": ({"location": "nothing"}, "regular file"),
    "pipe": ({"location": "pipe"}, "regular file"),
    "name too long": ({"location": "x" * 5000}, "regular file"),
    "offset past the end": ({"location": "w.bin", "offset": 9}, "24 bytes at byte 9 of the external data"),
    "huge offset": ({"location": "w.bin", "offset": 2**59}, "the file ends at 32"),
    "negative offset": ({"location": "w.bin", "offset": -8}, "a number as offset"),
    "offset of other digits": ({"location": "w.bin", "offset": "٨"}, "a number as offset"),
    "wrong length": ({"location": "w.bin", "length": 23}, "24 bytes of external data, found 23"),
    "huge tensor": ({"location": "w.bin", "dims": [10**9]}, "the file ends at 32"),
    "empty file": ({"location": "empty"}, "the file ends at 0"),
    "strings": ({"location": "w.bin", "data_type": TEXT}, "strings to be in the model's own file"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_external_data_anywhere_else_is_refused(tmp_path, case):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for path in (folder, outside, folder / "sub"):
        path.mkdir()
    (outside / "secret").write_bytes(bytes(32))
    (folder / "w.bin").write_bytes(bytes(32))
    (folder / "empty").touch()
    (folder / "link").symlink_to(outside / "secret")
    (folder / "folder").symlink_to(outside)
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    entries, expected = OUTSIDE[case]
    if "location" in entries:
        entries = entries | {"location": entries["location"].format(outside=outside)}
    with pytest.raises(ModelError, match="^m.onnx: ") as raised:
        onnx_graph.read(external(folder, **entries))
    assert expected in str(raised.value)


def test_external_bytes_belong_to_one_tensor(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(32))
    built = onnx.load(external(tmp_path, location="w.bin"), load_external_data=False)
    again = built.graph.initializer.add()
    again.CopyFrom(built.graph.initializer[0])
    again.name = "u"
    with pytest.raises(ModelError, match="'u': expected tensors that do not overlap in the external data"):
        from_model(built, tmp_path)


# runs

@pytest.mark.parametrize("inputs, expected", [
    ({}, "expected the input 'x'"),
    ({"x": X, "y": X}, "expected inputs named x; found 'y'"),
    ({"x": X.astype(np.float64)}, "input 'x': expected float32, found float64"),
    ({"x": X.astype(object)}, "input 'x': expected float32, found strings"),
    ({"x": X[0]}, r"input 'x': expected shape \(n, 3\), found \(3\)"),
    ({"x": X[:, :2]}, r"input 'x': expected shape \(n, 3\), found \(2, 2\)"),
    ({"x": X.tolist()}, "input 'x': expected an array, found list"),
])
def test_inputs_that_the_model_does_not_take_are_refused(inputs, expected):
    with pytest.raises(ModelError, match=expected):
        from_model(mlp(), None).run(inputs)


def test_text_is_taken_from_both_kinds_of_array_and_nothing_else():
    graph = from_model(one_node("Identity", [text("a")]), None)
    assert graph.run({"x0": np.array(["b"])})["y0"].tolist() == graph.run({"x0": text("b")})["y0"].tolist() == ["b"]
    with pytest.raises(ModelError, match="'x0': expected strings"):
        graph.run({"x0": text(b"b")})


def floats(*shape):
    return np.zeros(shape, np.float32)


UNFIT = {
    "shapes": ("Add", [floats(2), floats(3)], {}),
    "types": ("Add", [floats(2), *f64(ROW[:2])], {}),
    "types of three": ("Sum", [floats(2), floats(2), *f64(ROW[:2])], {}),
    "broadcast result": ("Add", [floats(100_000, 1), floats(1, 100_000)], {}),
    "matrix product": ("MatMul", [floats(100_000, 1), floats(1, 100_000)], {}),
    "stack of products": ("MatMul", [floats(100_000, 1, 2, 1), floats(100_000, 1, 2)], {}),
    "Gemm's result": ("Gemm", [floats(100_000, 1), floats(1, 100_000)], {}),
    "Gemm of a vector": ("Gemm", [floats(1), floats(1, 1)], {}),
    "gathered": ("Gather", [floats(1, 100_000), np.zeros(100_000, np.int64)], {}),
    "chosen": ("Where", [floats(100_000, 1) > 0, floats(1, 100_000), floats(1)], {}),
    "largest": ("Max", [floats(100_000, 1), floats(1, 100_000)], {}),
    "powers": ("Pow", [floats(100_000, 1), floats(1, 100_000)], {}),
    "axis": ("Softmax", [floats(2)], {"axis": 2}),
    "axis far off": ("Concat", [floats(2), floats(2)], {"axis": -2**63}),
    "axis of reduction": ("ReduceSum", [floats(2), *i64([7])], {}),
    "axes twice": ("ReduceSum", [floats(2), *i64([0, 0])], {}),
    "index": ("Gather", [floats(2), *i64([2])], {}),
    "index below": ("Gather", [floats(2), *i64([-3])], {}),
    "k": ("TopK", [floats(2), *i64([3])], {}),
    "negative k": ("TopK", [floats(2), *i64([-1])], {}),
    "shape": ("Reshape", [floats(2), *i64([3])], {}),
    "huge shape": ("Reshape", [floats(2), *i64([2**62, 2**62])], {}),
    "shape below -1": ("Reshape", [floats(4), *i64([-2, -2])], {}),
    "shape of what is not there": ("Reshape", [floats(4), *i64([4, 0])], {}),
    "dimension that is not 1": ("Squeeze", [floats(2), *i64([0])], {}),
    "dimension far away": ("Unsqueeze", [floats(2), *i64([2**62])], {}),
    "permutation": ("Transpose", [floats(2, 2)], {"perm": [0, 0]}),
    "words as numbers": ("Cast", [text("one")], {"to": F32}),
    "Python's digits": ("Cast", [text("1_0")], {"to": F32}),
    "number too large": ("Cast", [text("9" * 30)], {"to": I64}),
    "digits without end": ("Cast", [text("9" * 10_000)], {"to": I64}),
    "type unknown": ("Cast", [floats(2)], {"to": 77}),
    "bound of many": ("Clip", [floats(2), floats(3, 1)], {}),
    "negative text": ("Neg", [text("one")], {}),
    "nothing to choose from": ("ArgMax", [floats(0)], {}),
}


@pytest.mark.parametrize("case", UNFIT)
def test_values_that_do_not_fit_an_operator_are_a_model_error(case):
    op, inputs, attributes = UNFIT[case]
    graph = from_model(one_node(op, inputs, 2 if op == "TopK" else 1, **attributes), None)
    with pytest.raises(ModelError, match=rf"^operator {op} \(node 'y0'\): expected "):
        graph.run({f"x{i}": array for i, array in enumerate(inputs)})


def test_few_nodes_cannot_ask_for_much_memory(monkeypatch):
    nodes = [helper.make_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(60)]
    graph = from_model(model(nodes, [info("v0", F32, [None])], [info("v60", F32)]), None)
    monkeypatch.setattr("kernels.onnx_ops.MAX_ELEMENTS", 100_000)
    with pytest.raises(ModelError, match=r"operator Concat \(node 'v15'\): expected at most 100000 elements"):
        graph.run({"v0": floats(4)})
    monkeypatch.setattr("kernels.onnx_graph.MAX_LIVE_BYTES", 1000)
    with pytest.raises(ModelError, match=r"operator Concat \(node 'v6'\): expected values of at most 1000 bytes"):
        graph.run({"v0": floats(4)})


def test_output_of_another_type_than_declared_is_refused():
    graph = from_model(one_node("Abs", [floats(2)], output_types=[I64]), None)
    with pytest.raises(ModelError, match="output 'y0': expected int64, found float32"):
        graph.run({"x0": floats(2)})


# fuzz

def mutated(rng: random.Random, data: bytes) -> bytes:
    """The file with an accident or two: bits, bytes, varints, cuts, growth, pieces moved."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2])):
        at = rng.randrange(len(out))
        match rng.choice([0, 0, 0, 1, 1, 1, 2, 3, 4, 5]):  # what keeps the length is seldom refused at once
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                out[at:at + 1] = rng.choice([b"\0", b"\xff" * 9 + b"\1", b"\x80\x80\x80\x80\x08", b"\x7f"])
            case 3:
                del out[at:at + rng.randint(1, 20)]
                out = out or bytearray(b"\x08")
            case 4:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 5:
                start = rng.randrange(len(out))
                out[at:at] = out[start:start + rng.randint(1, 40)]
    return bytes(out)


VALUES = {int: [0, 1, 2, 3, 7, -1, -2, 20, 2**31 - 1, -2**31], float: [0.0, -1.0, 1e30, float("nan")],
          str: ["x", "x0", "h", "y0", "axis", "Add", "TopK", "", "ai.onnx.ml"],
          bytes: [b"", b"a", b"\xff", bytes(8), bytes(24)]}


def accident(rng: random.Random, message) -> None:
    """Somewhere in the message a field gets another value, or goes, or comes twice."""
    while fields := message.ListFields():
        field, value = rng.choice(fields)
        items = None if field.message_type is None and type(value) in VALUES or hasattr(value, "ListFields") else value
        if field.message_type is not None and rng.random() < 0.9:
            message = value if items is None else rng.choice(items)
        elif items is None and (field.message_type is not None or rng.random() < 0.1):
            return message.ClearField(field.name)
        elif items is None:
            values = VALUES[type(value)] if field.enum_type is None else [v.number for v in field.enum_type.values]
            return setattr(message, field.name, rng.choice(values))
        elif field.message_type is None and rng.random() < 0.6:
            items[rng.randrange(len(items))] = rng.choice(VALUES[type(items[0])])
            return None
        elif rng.random() < 0.5:
            return items.extend([rng.choice(items)])
        else:
            del items[rng.randrange(len(items))]
            return None


def outcome(data: bytes, given: dict) -> str:
    try:
        graph = from_model(onnx_graph.parse(data), None)
    except ModelError:
        return "refused"
    try:
        graph.run(given)
    except ModelError:
        return "does not run"
    return "runs"


def fuzz_sources() -> list[tuple[onnx.ModelProto, dict]]:
    """The network and the classifier again and again, and between them each of CASES."""
    sources = []
    for op, inputs, attributes, versions, types in CASES:
        own = type_of(next(array for array in inputs if array is not None))
        built = one_node(op, inputs, len(types or [0]), versions[-1], [t or own for t in types or [own]], **attributes)
        sources += [(mlp(), {"x": X}), (built, {f"x{i}": array for i, array in enumerate(inputs) if array is not None}),
                    (classifier(), {"x": X})]
    return sources


SOURCES = fuzz_sources()


def test_sound_sources_run():
    assert {outcome(built.SerializeToString(), given) for built, given in SOURCES} == {"runs"}


def test_mutated_bytes_are_refused_or_run():
    rng = random.Random(5)
    seen = Counter(outcome(mutated(rng, built.SerializeToString()), given) for built, given in SOURCES * 16)
    assert seen.total() > 5000 and min(seen["refused"], seen["does not run"], seen["runs"]) > 100


def test_mutated_fields_are_refused_or_run():
    rng, seen = random.Random(6), Counter()
    for source, given in SOURCES * 8:
        built = onnx.ModelProto()
        built.CopyFrom(source)
        for _ in range(rng.randint(1, 3)):
            accident(rng, built)
        seen[outcome(built.SerializeToString(), given)] += 1
    assert seen.total() > 5000 and min(seen["refused"], seen["does not run"], seen["runs"]) > 50
