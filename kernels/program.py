"""A tabular model as a program: steps that each make one value a row from values made before.

The rule to keep: a `Program` that exists has been checked whole, so that neither the numpy ops nor the kernels check
anything. Value 0 is the row itself; step i makes value i + 1. A value is `width` float64 a row, whatever the
training library calls its type: float32 is float64 rounded (`rounds`), an integer or a boolean is a whole number, a
string is its place in a table.
"""

from dataclasses import dataclass, field

import numpy as np

from kernels.errors import ModelError
from kernels.row_ops import OPS
from kernels.step import MAX_WIDTH, Step


@dataclass(frozen=True)
class Program:
    """Steps, and which values are the answer. Checked on construction; raises ModelError."""

    n_features: int
    steps: tuple[Step, ...]
    prediction: int           # the value that is predicted: of a classifier, one number, the class's index
    probabilities: int        # the value of n_classes float64; 0 = the model has none
    n_prediction_steps: int   # how many of the steps predictions need; the others make probabilities
    checked: tuple[int, ...]  # values of those steps that must be finite, or the row has no answer
    widths: tuple[int, ...] = field(init=False)  # of every value

    def __post_init__(self) -> None:
        if not 1 <= self.n_features <= MAX_WIDTH:
            raise ModelError(f"expected from 1 to {MAX_WIDTH} features")
        widths = [self.n_features]
        for i, step in enumerate(self.steps):
            try:
                if step.op not in OPS:
                    raise ModelError(f"expected one of {', '.join(OPS)}, found {step.op!r:.40}")
                if not 1 <= step.width <= MAX_WIDTH:
                    raise ModelError(f"expected a width from 1 to {MAX_WIDTH}")
                if not all(0 <= value <= i for value in step.inputs):
                    raise ModelError("expected inputs made by steps before")
                _check_names(step)
                OPS[step.op].check(step, [widths[value] for value in step.inputs])
            except ModelError as error:
                raise ModelError(f"step {i} ({step.op:.20}): {error}") from None
            widths.append(step.width)
        if sum(widths) > MAX_WIDTH:
            raise ModelError(f"expected at most {MAX_WIDTH} numbers a row in all values together")
        object.__setattr__(self, "widths", tuple(widths))
        self._check_answer()

    def _check_answer(self) -> None:
        n = len(self.steps)
        if not 0 <= self.n_prediction_steps <= n:
            raise ModelError(f"expected at most {n} steps for predictions")
        if not 0 < self.prediction <= self.n_prediction_steps:
            raise ModelError("expected a prediction made by a step for predictions")
        if not 0 <= self.probabilities <= n:
            raise ModelError("expected probabilities made by a step")
        if not self.checked or not all(0 < value <= self.n_prediction_steps for value in self.checked):
            raise ModelError("expected values to check, made by steps for predictions")


def _check_names(step: Step) -> None:
    """What a check does not know, it has not checked: a kernel might read it."""
    op = OPS[step.op]
    for held, known in ((step.numbers, op.numbers), (step.arrays, op.arrays)):
        for name in held:
            if name not in known.split():
                raise ModelError(f"expected one of {known or 'none'}, found {name!r:.40}")


class Builder:
    """Collects the steps of a program; values are known by their numbers."""

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self.steps: list[Step] = []
        self.widths = [n_features]

    def add(self, op: str, inputs: tuple[int, ...] | list[int], width: int, *,
            numbers: dict[str, float] | None = None, arrays: dict[str, np.ndarray] | None = None) -> int:
        """Append a step; → the number of the value that it makes."""
        made = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        self.steps.append(Step(op, tuple(inputs), int(width), dict(numbers or {}), made))
        self.widths.append(int(width))
        return len(self.steps)

    def finish(self, prediction: int, probabilities: int, checked: tuple[int, ...]) -> Program:
        """The program of these steps, those that only probabilities need behind the others, unneeded ones left out."""
        for_predictions = self._needed({prediction, *checked})
        others = self._needed({probabilities} - {0}) - for_predictions
        order = sorted(for_predictions) + sorted(others)
        number = {0: 0} | {old: new for new, old in enumerate(order, 1)}
        steps = [self.steps[old - 1] for old in order]
        steps = [step._replace(inputs=tuple(number[value] for value in step.inputs)) for step in steps]
        return Program(self.n_features, tuple(steps), number[prediction], number[probabilities],
                       len(for_predictions), tuple(sorted({number[value] for value in checked})))

    def _needed(self, values: set[int]) -> set[int]:
        needed, open_values = set(), set(values)
        while open_values:
            value = open_values.pop()
            if value and value not in needed:
                needed.add(value)
                open_values |= set(self.steps[value - 1].inputs)
        return needed
