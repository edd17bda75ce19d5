"""Which features of a program may be missing: those whose NaN never reaches a value that must be finite.

The rule to keep: an operation that is not in PASSES hands no NaN on, whatever comes in. Where it depends on the other
numbers of the row whether a NaN gets through (a `where`), it does.
"""

from collections.abc import Callable

import numpy as np

from kernels.program import Program
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, UNARY_CODES
from kernels.step import Step

# Functions that make a number of a NaN.
HIDING = {
    "unary": {UNARY_CODES[name] for name in ("not", "bool", "positive")},
    "binary": {BINARY_CODES[name] for name in ("and", "or", "equal", "greater", "greater_or_equal", "less",
                                               "less_or_equal")},
    "reduce": {REDUCE_CODES[name] for name in ("argmax", "argmin", "argmax_last", "argmin_last")},
}


def missing_features(program: Program) -> np.ndarray:
    """(n_features) bool: where a row may hold NaN and still have an answer."""
    reaches = [np.zeros(width, bool) for width in program.widths]  # a NaN there reaches a checked value
    for value in program.checked:
        reaches[value][:] = True
    for i in range(program.n_prediction_steps, 0, -1):  # from the last step back: a step's inputs come before it
        step, after = program.steps[i - 1], reaches[i]
        if after.any() and step.op in PASSES and not _hides(step):
            before = PASSES[step.op](step, after, [program.widths[value] for value in step.inputs])
            for value, mask in zip(step.inputs, before, strict=True):
                reaches[value] |= mask
    return ~reaches[0]


def _hides(step: Step) -> bool:
    return step.numbers.get("function") in HIDING.get(step.op, ())


Masks = list[np.ndarray]  # (width) bool of each input


def _same(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    return [after] * len(widths)


def _where(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    return [np.zeros(widths[0], bool), after, after]


def _move(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    masks, at = [np.zeros(width, bool) for width in widths], 0
    for source, first, n in step.arrays["runs"].tolist():
        if source >= 0:
            masks[source][first:first + n] |= after[at:at + n]
        at += n
    return masks


def _prepare(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    return [after & ~(np.isnan(step.arrays["missing"]) & ~np.isnan(step.arrays["fill_values"]))]


def _groups(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    """A number of each group depends on all of the group."""
    size = int(step.numbers["group"])
    of_group = after.reshape(widths[0] // size, -1).any(axis=1)
    return [np.repeat(of_group, size)]


def _dense(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    n_in = int(step.numbers["n_in"])
    return [np.repeat(after.reshape(widths[0] // n_in, -1).any(axis=1), n_in)]


def _lookup(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    return [after & bool(np.isnan(step.arrays["values"][len(step.arrays["keys"])]))]


def _everything(step: Step, after: np.ndarray, widths: list[int]) -> Masks:
    return [np.ones(width, bool) for width in widths]


PASSES: dict[str, Callable[[Step, np.ndarray, list[int]], Masks]] = {
    "move": _move, "prepare": _prepare, "unary": _same, "binary": _same, "where": _where, "reduce": _groups,
    "scale": _groups, "dense": _dense, "lookup": _lookup, "distances": _everything, "svm_pairs": _everything,
    "svm_coupling": _everything,
}
