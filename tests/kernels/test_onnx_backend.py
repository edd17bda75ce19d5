"""The ONNX backend: the standard's own tests of every operator that we have, and the backend's interface."""

import warnings
from unittest import TestCase

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.backend.test import BackendTest
from onnx.backend.test.loader import load_model_tests

from kernels import ModelError, onnx_backend
from kernels.onnx_graph import OPERATORS
from tests.kernels.onnx_models import mlp

AT_LEAST = {"node": 510, "simple": 1, "pytorch-converted": 14, "pytorch-operator": 25}  # tests, by kind


def is_supported(test) -> bool:
    nodes = (test.model or onnx.load(f"{test.model_dir}/model.onnx")).graph.node
    return bool(nodes) and all(node.op_type in OPERATORS.get(node.domain, {}) for node in nodes)


def standard_tests() -> tuple[dict[str, list[str]], dict[str, TestCase]]:
    """The names of the tests whose operators we all have, by kind, and the functions that run them, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the test data's own arithmetic
        names = {kind: [f"{test.name}_cpu" for test in load_model_tests(kind=kind) if is_supported(test)]
                 for kind in AT_LEAST}
        suite = BackendTest(onnx_backend.Backend, __name__).test_suite
    return names, {case._testMethodName: case for case in suite}


NAMES, CASES = standard_tests()


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_standard(name):
    getattr(CASES[name], name)()


@pytest.mark.parametrize("kind", AT_LEAST)
def test_standard_tests_were_found(kind):
    assert len(NAMES[kind]) >= AT_LEAST[kind]


X = np.float32([[1, 2, 3], [-4, 5, -6]])


def test_model_runs_with_inputs_in_order_by_name_and_alone():
    prepared = onnx_backend.prepare(mlp())
    by_name = prepared.run({"x": X})
    assert isinstance(prepared, onnx.backend.base.BackendRep)
    assert by_name.label.tolist() == by_name["label"].tolist() == prepared.run([X])[2].tolist()
    assert prepared.run(X)[2].tolist() == onnx_backend.run_model(mlp(), [X])[2].tolist() == by_name[2].tolist()
    assert np.allclose(by_name["sum"], 1)


def test_class_and_module_are_the_same_backend():
    backend = onnx_backend.Backend
    assert issubclass(backend, onnx.backend.base.Backend)
    assert backend.run_model(mlp(), [X])[0].tolist() == onnx_backend.run_model(mlp(), [X])[0].tolist()
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA")
    with pytest.raises(AttributeError, match="no attribute nothing"):
        onnx_backend.nothing


def test_node_runs_alone_in_the_opset_version_asked_for():
    node = helper.make_node("Softmax", ["x"], ["y"])
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    last, = onnx_backend.run_node(node, [x])
    flattened, = onnx_backend.Backend.run_node(node, [x], opset_version=12)
    assert np.allclose(last.sum(-1), 1) and np.allclose(flattened.sum((1, 2)), 1)


def test_node_runs_without_its_optional_inputs():
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    assert onnx_backend.run_node(node, [X, None, np.float32(2)])[0].max() == 2
    assert onnx_backend.run_node(helper.make_node("Clip", ["x", "low"], ["y"]), [X])[0].min() == -6


@pytest.mark.parametrize("call, expected", [
    (lambda: onnx_backend.prepare(mlp(), "CUDA"), "expected the device CPU, found 'CUDA'"),
    (lambda: onnx_backend.run_model(mlp(), []), "expected 1 inputs, found 0"),
    (lambda: onnx_backend.run_node(helper.make_node("Abs", ["x"], ["y"]), [X, X]), "at most 1 inputs, found 2"),
    (lambda: onnx_backend.run_node(helper.make_node("Abs", ["x"], ["y"]), [None]), "operator Abs"),
    (lambda: onnx_backend.run_node(helper.make_node("Conv", ["x", "w"], ["y"]), [X, X]), "operator Conv"),
])
def test_what_it_cannot_do_is_a_model_error(call, expected):
    with pytest.raises(ModelError, match=expected):
        call()
