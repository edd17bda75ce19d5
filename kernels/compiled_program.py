"""A program as the server calls it: its kernels compiled, its steps as records, its values' places in scratch.

The rule to keep: whatever a record points into is kept by the `owners` of the NativeModel.
"""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from kernels import dense, row_kernels, svm_kernels, tree_kernels
from kernels.compiled import cache_dir, cfunc, is_compiled
from kernels.native import CALL, PROGRAM
from kernels.program import Program
from kernels.row_kernels import ASK_SIGNATURE, KERNEL_SIGNATURE, PREDICT_SIGNATURE
from kernels.step import Step

BLOCK_ROWS, FOREST_ROWS = 64, 256  # with trees more: each block reads all of them
BLOCK_DOUBLES = 1 << 17  # of scratch at most, 1 MiB, unless one row needs more: it should stay in the cache
# Trees that do not stay there come from farther for each block: 10 µs a row became 4 beside other work, 4.5 alone 3.7.
LARGE_FOREST_NODES, LARGE_FOREST_ROWS, LARGE_FOREST_DOUBLES = 1 << 16, 4096, 1 << 18


@functools.cache
def compiled(function):
    """The C callback of a kernel, compiled or from the cache."""
    return cfunc(KERNEL_SIGNATURE)(function)


@functools.cache
def compiled_driver():
    """The C callback of the driver."""
    return cfunc(PREDICT_SIGNATURE)(row_kernels.run_program)


@functools.cache
def compiled_ask():
    """The C callback that makes the call of an ASK record."""
    return cfunc(ASK_SIGNATURE)(row_kernels.run_ask)


def kernel_of(step: Step):
    """The kernel function of a step."""
    if step.op == "dense":
        return dense.kernel_of(step)
    if step.op == "trees":
        return tree_kernels.run_trees
    if step.op in svm_kernels.KERNELS:
        return svm_kernels.KERNELS[step.op]
    return row_kernels.KERNELS[step.op][0]


# ---- the first time on a machine ---------------------------------------------------------------------------

CHILD = "import sys; from kernels import compiled_program; compiled_program.compile_named(sys.argv[1:])"


def compile_in_two(program: Program) -> None:
    """Compile what the cache lacks, the longest of it in a process of its own: numba compiles under the GIL.

    Whatever fails there is compiled here, when it is needed.
    """
    missing = sorted({kernel_of(step) for step in program.steps}, key=lambda function: function.__name__)
    missing = [function for function in missing if not is_compiled(function)]
    heavy = [function for function in missing if function.__module__ != row_kernels.__name__]
    if not heavy:
        return
    light = [function for function in missing if function not in heavy]
    theirs = heavy[:1] + (light if len(heavy) > 1 else [])
    child = _start_child([f"{function.__module__}:{function.__name__}" for function in theirs])
    compiled_driver()
    compiled_ask()
    for function in missing:
        if function not in theirs:
            compiled(function)
    if child is not None:
        child.wait()


def _start_child(names: list[str]) -> subprocess.Popen | None:
    root = Path(__file__).resolve().parent
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(cache_dir(root).parent)}
    try:
        return subprocess.Popen([sys.executable, "-c", CHILD, *names], cwd=root.parent, env=environment,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def compile_named(names: list[str]) -> None:
    """In the child: compile kernels given as "module:name"."""
    for name in names:
        module, _, function = name.partition(":")
        compiled(getattr(importlib.import_module(module), function))


class CompiledProgram:
    """The state of a program for `PREDICT_SIGNATURE`, over `rows` of float64 or float32."""

    def __init__(self, program: Program, n_outputs: int, n_classes: int, n_labels: int) -> None:
        self.driver = compiled_driver()
        self.owners: list[object] = [self.driver, program]
        self.scratch_widths: list[int] = []  # float64 a row (trees) of each value that is not the program's
        self.fixed: dict[int, int] = {}      # value: float64 in all, however many rows
        calls = np.zeros(len(program.steps), CALL)
        for i, step in enumerate(program.steps):
            kernel = compiled(kernel_of(step))
            state = self._state(step, [program.widths[value] for value in step.inputs], i + 1, len(program.widths))
            calls[i] = (kernel.address, state.ctypes.data)
            self.owners += [kernel, state]
        offsets, self.block_rows, self.scratch_doubles = self._place(program)
        checked = np.array([(value, program.widths[value]) for value in program.checked], np.int64)
        self.states = []
        for float32_rows in (0, 1):
            record = np.zeros(1, PROGRAM)
            record[0] = (program.n_features, n_outputs, n_classes, len(offsets), len(calls), program.n_prediction_steps,
                         len(checked), program.prediction, program.probabilities, self.block_rows, n_labels,
                         float32_rows, calls.ctypes.data, offsets.ctypes.data, checked.ctypes.data)
            self.states.append(record.view(np.uint8))
        self.owners += [calls, offsets, checked, *self.states]

    def _state(self, step: Step, widths: list[int], number: int, n_values: int) -> np.ndarray:
        scratch = n_values + len(self.scratch_widths)
        if step.op == "dense":
            state, owners, self.fixed[scratch] = dense.state_of(step, widths, number, scratch)
            self.scratch_widths.append(0)
        elif step.op == "trees":
            state, owners, width = tree_kernels.state_of(step, widths, number, scratch)
            self.scratch_widths.append(-(-width // 8))
            # eight rows' columns are whole, be there eight rows or one
            self.fixed[scratch] = width + tree_kernels.LEAVES_BYTES // 8
        elif step.op in svm_kernels.KERNELS:
            state, owners, self.fixed[scratch] = svm_kernels.state_of(step, widths, number, scratch)
            self.scratch_widths.append(0)
        else:
            state, owners = row_kernels.state_of(step, widths, number)
        self.owners.append(owners)
        return state

    def _place(self, program: Program) -> tuple[np.ndarray, int, int]:
        """(where each value begins in scratch, rows a block, float64 in all); the addresses come first."""
        widths = np.array([*program.widths, *self.scratch_widths], np.int64)
        fixed = np.array([self.fixed.get(value, 0) for value in range(len(widths))], np.int64)
        n_nodes = sum(len(step.arrays["node_ranks"]) for step in program.steps if step.op == "trees")
        most, doubles = FOREST_ROWS if n_nodes else BLOCK_ROWS, BLOCK_DOUBLES
        if n_nodes >= LARGE_FOREST_NODES:
            most, doubles = LARGE_FOREST_ROWS, LARGE_FOREST_DOUBLES
        rows = int(np.clip((doubles - fixed.sum()) // widths.sum(), 1, most))
        rows -= rows % 8 if rows > 8 else 0
        sizes = -(-(widths * rows + fixed) // 8) * 8
        first = -(-len(widths) // 8) * 8
        return first + np.cumsum(sizes) - sizes, rows, first + int(sizes.sum())
