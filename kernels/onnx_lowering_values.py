"""What tensors are while an ONNX graph is lowered to a program: constants, or columns of the program's values.

The rule to keep: a tensor that depends on the inputs has exactly one axis along which the rows of a batch lie, and
what is computed for a row comes from that row alone. Moving elements about costs nothing here: a `Row` remembers
where each element lies, and one "move" is made where an operation needs them side by side.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from kernels.errors import ModelError
from kernels.program import Builder
from kernels.row_ops import UNARY_CODES, runs_of
from kernels.step import MAX_WIDTH, Step

FREE_ELEMENTS = 1 << 20  # elements of all tensors of a row together that any model may have …
ELEMENTS_A_BYTE = 64     # … and so many more for each byte of its file
MAX_EXAMPLES = 1 << 12   # features of one row for which an example is noted

# Where an element of a row lies: in a column of a value, or, where `value` is −1, it is `constant`. A string is its
# place in a vocabulary, whose number is `strings`.
ELEMENT = np.dtype([("value", np.int64), ("column", np.int64), ("constant", np.float64), ("strings", np.int64)])


class NotTabular(ModelError):
    """The graph is sound, but its outputs are not functions of each row that a program can compute."""


@dataclass(frozen=True)
class Index:
    """That a tensor of one element a row is looked up in a table."""

    value: int         # of the program: the place in the table
    table: np.ndarray  # (k)


@dataclass(frozen=True)
class Row:
    """A tensor that depends on the row."""

    elements: np.ndarray        # ELEMENT; the tensor's shape, but 1 along `axis`
    axis: int                   # along which the rows lie
    dtype: np.dtype             # object for strings
    index: Index | None = None

    @property
    def width(self) -> int:
        """Elements a row."""
        return self.elements.size

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The tensor's shape, None along the axis of the rows."""
        return tuple(None if i == self.axis else n for i, n in enumerate(self.elements.shape))

    @property
    def rounds(self) -> int:
        """What steps that make this type have for `rounds`."""
        return int(self.dtype == np.float32)


@dataclass(frozen=True)
class Maps:
    """What ZipMap makes: a score for each label."""

    scores: Row
    labels: list


Tensor = Row | np.ndarray | Maps | None


class Lowering:
    """A graph on its way to a program: the steps so far, and the vocabularies of its strings."""

    def __init__(self, n_features: int, size_bytes: int, n_vocabularies: int, one_row: bool) -> None:
        self.builder = Builder(n_features)
        self.one_row = one_row  # the inputs' first dimension is 1, not free
        self.tensors: dict[str, Tensor] = {}
        self.n_uses: Counter[str] = Counter()  # how often the graph reads a tensor
        self.poisons: list[int] = []  # values beside the scores that are not finite where a row has no answer
        self.examples: dict[int, float] = {}  # feature: a number that it may be, where not every number has an answer
        self.n_free = FREE_ELEMENTS + ELEMENTS_A_BYTE * size_bytes
        # The strings of the features that take strings come first: string → place. They grow while the graph is
        # lowered, and join where columns share a table: so a graph with such features is lowered twice.
        self.vocabularies: list[dict[str, int]] = [{} for _ in range(n_vocabularies)]
        self.n_open = n_vocabularies
        self._rounded: dict[int, int] = {}
        self._moves: dict[bytes, int] = {}

    def spend(self, n: int) -> None:
        """Count elements; raise NotTabular where they are too many for a file of this size."""
        self.n_free -= n
        if self.n_free < 0:
            raise NotTabular("expected smaller tensors for a model of this size")

    def is_used_once(self, name: str) -> bool:
        """Whether nothing but one operator reads this tensor, so that its step may become part of the next."""
        return self.n_uses[name] == 1 or isinstance(self.tensors[name], np.ndarray)

    # ---- steps and rows ----

    def add(self, op: str, inputs: list[int], width: int, arrays: dict[str, np.ndarray] | None = None,
            **numbers: float) -> int:
        """Append a step; → the value that it makes."""
        if not 1 <= width <= MAX_WIDTH:
            raise NotTabular(f"expected from 1 to {MAX_WIDTH} numbers a row")
        self.spend(width)
        return self.builder.add(op, inputs, width, numbers=numbers, arrays=arrays)

    def row(self, value: int, like: Row, dtype: np.dtype | type | None = None, shape: tuple[int | None, ...] = (),
            index: Index | None = None) -> Row:
        """The tensor that is all of a value, of the shape and type of `like` if not given."""
        axis, inner = like.axis, like.elements.shape
        if shape:
            axis, inner = shape.index(None), tuple(1 if n is None else n for n in shape)
        self.spend(math.prod(inner))
        elements = np.zeros(inner, ELEMENT)
        elements["value"], elements["strings"] = value, -1
        elements["column"] = np.arange(elements.size).reshape(inner)
        return Row(elements, axis, np.dtype(dtype or like.dtype), index)

    def number(self, row: Row, rounded: bool = True) -> int:
        """The value that holds the row's elements side by side; `rounded`: float inputs are rounded to float32."""
        elements = row.elements.ravel()
        value = elements["value"]
        if rounded and row.dtype == np.float32 and (value == 0).any():
            value = np.where(value == 0, self.round_f32(0), value)
        first = int(value[0]) if len(value) else -1
        if (first >= 0 and len(value) == self.builder.widths[first] and (value == first).all()
                and (elements["column"] == np.arange(len(value))).all()):
            return first
        key = b"".join(part.tobytes() for part in (value, elements["column"], elements["constant"]))
        if key not in self._moves:
            self._moves[key] = self._move(value, elements["column"], elements["constant"])
        return self._moves[key]

    def _move(self, value: np.ndarray, column: np.ndarray, constant: np.ndarray) -> int:
        self.spend(len(value))
        is_constant = value < 0
        inputs = np.unique(value[~is_constant]).tolist() or [0]
        source = np.where(is_constant, -1, np.searchsorted(inputs, value))
        place = np.where(is_constant, np.cumsum(is_constant) - 1, column)
        return self.add("move", inputs, len(value), {
            "runs": runs_of(list(zip(source.tolist(), place.tolist(), strict=True))),
            "constants": constant[is_constant]})

    def round_f32(self, value: int) -> int:
        """The value of these numbers as float32."""
        if value not in self._rounded:
            width = self.builder.widths[value]
            self._rounded[value] = self.add("unary", [value], width, function=UNARY_CODES["float32"])
        return self._rounded[value]

    def maker(self, row: Row, op: str) -> Step | None:
        """The step that makes the row, if it is all of a value made by this operation."""
        value = int(row.elements["value"].flat[0]) if row.width else 0
        if value <= 0 or self.builder.steps[value - 1].op != op or self.number(row) != value:
            return None
        return self.builder.steps[value - 1]

    def constant(self, array: np.ndarray, axis: int) -> Row:
        """The same numbers for every row; `array` has 1 along the axis of the rows."""
        self.spend(array.size)
        elements = np.zeros(array.shape, ELEMENT)
        elements["value"], elements["constant"], elements["strings"] = -1, array, -1
        return Row(elements, axis, array.dtype)

    def set_example(self, row: Row, number: float) -> None:
        """Note for the features that the row is made of, if it is little changed, a number that they may be."""
        for element in row.elements.ravel()[:MAX_EXAMPLES].tolist():
            value, column = element[:2]
            while value > 0 and self.builder.steps[value - 1].op in ("unary", "prepare", "move"):
                value, column = _source(self.builder.steps[value - 1], column)
            if value == 0:
                self.examples.setdefault(column, number)

    # ---- strings ----

    def add_vocabulary(self, strings: list[str]) -> int:
        """A vocabulary of exactly these strings; → its number."""
        self.spend(len(strings))
        self.vocabularies.append({text: i for i, text in enumerate(strings)})
        return len(self.vocabularies) - 1

    def places_of(self, row: Row, strings: list[str]) -> list[int]:
        """The places of strings in the one vocabulary that all elements of the row then share; −2 = it never has it."""
        self.spend(len(strings))
        numbers = np.unique(row.elements["strings"]).tolist()
        found = {id(self.vocabularies[number]): self.vocabularies[number] for number in numbers}
        if len(found) > 1:
            if numbers[-1] >= self.n_open:
                raise NotTabular("expected strings that are inputs, or of one table")
            self._join(list(found.values()))
        shared = self.vocabularies[numbers[0]]
        if numbers[0] < self.n_open:
            for text in strings:
                shared.setdefault(text, len(shared))
        return [shared.get(text, -2) for text in strings]

    def _join(self, several: list[dict[str, int]]) -> None:
        shared, joined = several[0], {id(one) for one in several}
        for other in several[1:]:
            for text in other:
                shared.setdefault(text, len(shared))
        self.vocabularies = [shared if id(one) in joined else one for one in self.vocabularies]


def _source(step: Step, column: int) -> tuple[int, int]:
    """(value, column) that a column of a step comes from; value −1 for constants."""
    if step.op != "move":
        return step.inputs[0], column
    runs = step.arrays["runs"]
    run = int(np.searchsorted(np.cumsum(runs[:, 2]), column, side="right"))
    source, first, _ = runs[run].tolist()
    return step.inputs[source] if source >= 0 else -1, first + column - int(runs[:run, 2].sum())


def with_elements(row: Row, elements: np.ndarray, axis: int | None = None) -> Row:
    """The row with other elements, of which no table is known."""
    return replace(row, elements=elements, axis=row.axis if axis is None else axis, index=None)


def as_strings(row: Row, vocabulary: int) -> Row:
    """The row of places in a vocabulary as the strings that they stand for."""
    elements = row.elements.copy()
    elements["strings"] = vocabulary
    return replace(row, elements=elements, dtype=np.dtype(object))
