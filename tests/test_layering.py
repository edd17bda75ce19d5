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
    "databricks": {"kernels", "mlflow", "pyspark", "databricks", "pyarrow"},
}
EXTRAS = {"kernels/export.py": {"gguf"}}  # imported on use, in this file only
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def imports(tree: ast.AST) -> set[str]:
    """All modules, and names that may be modules, that are imported anywhere below."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def on_use(tree: ast.Module) -> set[str]:
    """What is imported in functions only."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return set().union(*map(imports, functions), set())


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_may(module):
    room, tree = module.partition(".")[0], parse(module)
    extras = EXTRAS.get(str(MODULES[module].relative_to(ROOT)), set())
    foreign = packages(imports(tree)) - sys.stdlib_module_names - {room}
    assert foreign <= ROOMS[room] | extras
    assert extras & foreign <= packages(on_use(tree)), "an extra is imported on use"


def test_there_are_no_import_cycles():
    def local(name: str) -> str | None:
        return name if name in MODULES else name.rpartition(".")[0] if name.rpartition(".")[0] in MODULES else None
    graph = {module: {local(name) for name in imports(parse(module))} - {None, module} for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_rooms_that_serve_are_known():
    assert {"kernels", "server"} <= packages(set(MODULES))
