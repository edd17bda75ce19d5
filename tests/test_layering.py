"""Which module may import which: the directory is the architecture."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parent.parent
NATIVE = {"numpy", "numba", "llvmlite"}
ROOMS = {  # room: what it may import beside the standard library and itself
    "kernels": NATIVE,
    "server": NATIVE | {"kernels", "psutil", "prometheus_client"},
    "tracing": {"psutil", "pytest"},
    "databricks": {"kernels", "mlflow", "numpy", "pyspark", "databricks", "pyarrow"},
}
EXTRAS = {  # imported on use, in this file only
    "databricks/commit.py": {"deltalake"},
    "databricks/register.py": {"pandas"},
    "databricks/resolve.py": {"xgboost", "yaml"},
    "databricks/tables.py": {"deltalake"},
    "kernels/__main__.py": {"pandas", "pyarrow"},
    "kernels/export.py": {"gguf"},
    "kernels/mlflow_model.py": {"mlflow"},
    "kernels/onnx_backend.py": {"onnx"},
    "kernels/onnx_graph.py": {"onnx"},
    "kernels/onnx_ops.py": {"onnx"},
    "kernels/onnxruntime_engine.py": {"onnxruntime"},
    "kernels/sklearn_models.py": {"pandas", "skl2onnx"},
    "kernels/verify.py": {"joblib", "lightgbm", "onnxruntime", "sklearn", "xgboost"},
    "server/scoring_tables.py": {"pyarrow"},
}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path.parent.name != "notebooks"}


def imports(node: ast.AST, on_use: bool = True) -> set[str]:
    """All modules, and names that may be modules, that are imported below; with or without those in functions."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        return {f"{node.module}.{alias.name}" for alias in node.names}
    below = [child for child in ast.iter_child_nodes(node) if on_use or not isinstance(child, ast.FunctionDef)]
    return set().union(*(imports(child, on_use) for child in below))


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_may(module):
    room, tree = module.partition(".")[0], parse(module)
    extras = EXTRAS.get(str(MODULES[module].relative_to(ROOT)), set())
    foreign = packages(imports(tree)) - sys.stdlib_module_names - {room}
    assert foreign <= ROOMS[room] | extras
    assert not extras & packages(imports(tree, on_use=False)), "an extra is imported on use"


def test_there_are_no_import_cycles():
    def local(name: str) -> str | None:
        return name if name in MODULES else name.rpartition(".")[0] if name.rpartition(".")[0] in MODULES else None
    graph = {module: {local(name) for name in imports(parse(module))} - {None, module} for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_modules_were_found():
    assert {"kernels.export", "server.application"} <= set(MODULES)
