"""Models that say back what they were given: for tests of how rows get to a model, whatever it may be.

The rule to keep: a number comes out for every number that goes in, so that no two rows are answered alike.
`python -m tests.server.stand_in [small] [frame NAME]` serves them; with a frame its model is the default one.
"""

import functools
import json
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import types

import kernels
from kernels import simd
from kernels.compiled import cfunc
from kernels.native import NativeModel
from server.schema import Schema

MISSING = -0.25  # comes out where nothing goes in


@dataclass(frozen=True)
class Signature:
    """As `kernels.tabular.Signature`."""

    n_features: int
    feature_names: tuple[str, ...] | None = None
    classes: tuple | None = None
    task: str = "score"
    categories: tuple[tuple[str, ...] | None, ...] | None = None
    unknown: float = float("nan")


@dataclass(frozen=True)
class StandIn:
    """What the server takes a model for. A row's probabilities are its values, in turns where there are more classes.

    Its prediction is a number from all its values, or which of the labels is this number.
    """

    name: str
    signature: Signature
    takes_missing_in: np.ndarray  # (n_features) bool
    n_outputs: int = 1
    n_classes: int = 0
    native_too: bool = True
    version: str = "1"
    kind: str = "tabular"
    model_type: str = "echo"
    kernel: str = "dense"
    path = kernels.DEFAULT_MODEL
    size_bytes: int = 0

    @property
    def n_features(self) -> int:
        return self.signature.n_features

    @property
    def takes_missing(self) -> bool:
        return bool(self.takes_missing_in.any())

    def predict(self, rows: np.ndarray) -> np.ndarray:
        totals = np.zeros(len(rows))
        for values in self._values(rows).T:
            totals = totals * 0.5 + values
        if not np.isfinite(totals).all():
            raise kernels.ModelError("too large")
        if self.signature.classes is None:
            predictions = totals[:, None] + np.arange(self.n_outputs)
            return predictions[:, 0] if self.n_outputs == 1 else predictions
        labels = np.array(self.signature.classes, object)
        return labels[np.fmod(np.floor(np.abs(totals)), len(labels)).astype(int)]

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return self._values(rows)[:, np.arange(self.n_classes) % self.n_features]

    def _values(self, rows: np.ndarray) -> np.ndarray:
        assert rows.shape == (len(rows), self.n_features) and rows.dtype == np.float64
        if np.isnan(rows[:, ~self.takes_missing_in]).any():
            raise kernels.ModelError("missing")
        return np.where(np.isnan(rows), MISSING, rows)

    def encode(self, cells: np.ndarray) -> np.ndarray:
        """(n, n_features) objects → float64: a string's place, NaN for None. ValueError where a number is expected."""
        places = [None if texts is None else {text: i for i, text in enumerate(texts)}
                  for texts in self.signature.categories or ()]
        return np.array([[np.nan if cell is None else float(cell) if place_of is None else
                          place_of.get(cell, self.signature.unknown) for cell, place_of in zip(row, places)]
                         for row in cells.tolist()])

    def native(self) -> NativeModel | None:
        if not self.native_too:
            return None
        signature, kernel = self.signature, echo_kernel()
        counts = self.n_features, self.n_classes, len(signature.classes or ()), self.n_outputs
        state = np.array([*counts, *~self.takes_missing_in], np.float64)
        categories = signature.categories and tuple(encoded(strings, str) for strings in signature.categories)
        return NativeModel(
            predict_address=kernel.address, state=state.view(np.uint8), n_features=self.n_features,
            n_outputs=self.n_outputs, n_classes=self.n_classes, labels=encoded(signature.classes, json.dumps),
            takes_missing=self.takes_missing, feature_names=encoded(signature.feature_names, str),
            categories=categories, unknown=signature.unknown, scratch_doubles=1, owners=(kernel,))


def encoded(texts: tuple | None, as_text) -> tuple[bytes, ...] | None:
    return None if texts is None else tuple(as_text(text).encode() for text in texts)


def echo(state, rows, n_rows, predictions, probabilities, scratch):
    """`StandIn` as a kernel; state: float64, four counts and for each feature whether it is never missing."""
    n_features, n_classes, n_labels = int(simd.load(state)), int(simd.load(state + 8)), simd.load(state + 16)
    n_outputs = int(simd.load(state + 24))
    for i in range(n_rows):
        row, total = rows + i * n_features * 8, 0.0
        for j in range(n_features):
            value = simd.load(row + j * 8)
            if np.isnan(value):
                if simd.load(state + 32 + j * 8) != 0:
                    return 1
                value = MISSING
            total = total * 0.5 + value
        if not np.isfinite(total):
            return 1
        if n_labels > 0:
            total = np.fmod(np.floor(np.abs(total)), n_labels)
        for k in range(n_outputs):
            simd.store(predictions + (i * n_outputs + k) * 8, total + k)
        if probabilities != 0:
            for k in range(n_classes):
                value = simd.load(row + k % n_features * 8)
                simd.store(probabilities + (i * n_classes + k) * 8, MISSING if np.isnan(value) else value)
    return 0


@functools.cache
def echo_kernel():
    return cfunc(types.int32(*[types.intp] * 6))(echo)


def stand_in(name: str, names: str | tuple[str, ...] | int, *, categories: dict[int, tuple[str, ...]] | None = None,
             missing: tuple[int, ...] = (), classes: tuple | None = None, unknown: float = float("nan"),
             n_outputs: int = 1, n_classes: int = 0, native: bool = True) -> StandIn:
    """A model of these names (or of so many nameless features); `categories` and `missing` by feature."""
    feature_names = tuple(names.split()) if isinstance(names, str) else None if isinstance(names, int) else names
    n = names if isinstance(names, int) else len(feature_names or ())
    signature = Signature(n, feature_names, classes, "score" if classes is None else "classification", None if
                          categories is None else tuple(categories.get(i) for i in range(n)), unknown)
    return StandIn(name, signature, np.isin(np.arange(n), missing), n_outputs,
                   n_classes or len(classes or ()), native)


COLOURS = ("red", "green", "", "blaß\u2028", 'a "quoted" \\ one', "grün", "\u0000\t\x7f", "🙂", "r", "re")


def stand_ins(large: bool = True) -> list[StandIn]:
    """Models that differ in all that rows, labels and buffers depend on."""
    thirds = {i: ("x", "y", f"z{i}") for i in range(0, 300, 3)}
    small = [
        stand_in("plain", 3),
        stand_in("shop", "amount colour hour country", categories={1: COLOURS, 3: ("DE", "FR", "ES")},
                 missing=(0, 1, 2), unknown=-1.0, n_classes=4),
        stand_in("strict", ("größe", "", 'say "no"', "colour"), categories={3: ("red", "green")}, n_classes=2,
                 classes=(0.5, -1e300)),
        stand_in("nameless", 2, categories={0: COLOURS, 1: ()}, missing=(1,), n_classes=2),
        stand_in("twins", ("a", "b", "a"), n_classes=3),
        stand_in("several", "x", n_outputs=5),
        stand_in("slow", "x y", categories={1: ("a", "b")}, missing=(1,), n_classes=2, native=False),
    ]
    return small if not large else [
        *small,
        stand_in("wide", tuple(f"f{i}" for i in range(300)), categories=thirds, missing=tuple(range(300)),
                 n_classes=300),
        stand_in("long", 1, classes=("a" * 70_000, "ü" * 500, "no")),
        stand_in("many", "x", n_classes=20_000),
    ]


# --- frames -------------------------------------------------------------------------------------

class Frame(NamedTuple):
    """A model and its schema as MLmodel has it."""

    model: StandIn
    schema: Schema
    is_hot: bool  # whether the hot path answers for it at /invocations


def frame(model: StandIn, columns: str | list[dict] | None = None, flavor: str = "", is_hot: bool = True,
          **more) -> Frame:
    """`columns`: "name:type …", the inputs as MLmodel has them, or None for a plain file; `more`: as `Schema.of`."""
    if isinstance(columns, str):
        columns = [dict(zip(("name", "type"), column.split(":"))) for column in columns.split()]
    mlflow = None if columns is None and not more else {"inputs": columns, **more}
    return Frame(model, Schema.of(mlflow, model, flavor), is_hot)


def flag(default: bool) -> dict:
    return {"name": "return_probabilities", "type": "boolean", "default": default, "shape": None}


def tensor(dtype: str, *shape: int) -> list[dict]:
    return [{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}]


def frames() -> dict[str, Frame]:
    """Models and schemas that differ in all that /invocations depends on, by name."""
    odd_names, unnamed = ("größe", "", 'say "no"', "a\\b"), [{"type": "double"}] * 3
    shop = stand_in("frame", "amount colour hour ratio country count", categories={1: COLOURS, 4: ("DE", "FR")},
                    missing=(0, 1, 3), unknown=-1.0, n_classes=4)
    abc, nameless, two = (stand_in("frame", names, missing=(0,), n_classes=2) for names in ("a b c", 3, "a b"))
    to_abc = "a:double b:double c:double"
    return {
        "typed": frame(shop, "count:integer hour:long country:string amount:double colour:string ratio:float"),
        "names": frame(stand_in("frame", odd_names), [{"type": "double", "name": name} for name in odd_names[::-1]]),
        "ours": frame(shop), "plain": frame(nameless), "one": frame(stand_in("frame", "x")),
        "usual": frame(abc, to_abc, "sklearn"), "lost": frame(nameless, "x:double y:float z:long", "sklearn"),
        "renamed": frame(abc, "x:double y:double z:double", "xgboost", is_hot=False),
        "place": frame(abc, "c:double a:double b:double", "lightgbm"),
        "unnamed": frame(abc, unnamed, "sklearn"), "booster": frame(abc, unnamed, "xgboost", is_hot=False),
        "float64": frame(nameless, tensor("float64", -1, 3), "sklearn"),
        "float32": frame(nameless, tensor("float32", -1, 3), "sklearn"),
        "int64": frame(abc, tensor("int64", -1, 3), "sklearn"), "int32": frame(nameless, tensor("int32", -1, 3)),
        "uint8": frame(nameless, tensor("uint8", -1, 3), is_hot=False),
        "cube": frame(nameless, tensor("float64", -1, 3, 1), is_hot=False),
        "labels": frame(stand_in("frame", "a b", classes=("no", 'a "quoted" ü')), "b:double a:double"),
        "truths": frame(stand_in("frame", "a b", classes=(0, 1)), "a:double b:double", is_hot=False,
                        outputs=[{"type": "boolean"}]),
        "several": frame(stand_in("frame", "a b", n_outputs=5), "a:double b:double"),
        "boolean": frame(two, "a:double b:boolean", is_hot=False),
        "text": frame(two, "a:double b:string", is_hot=False),
        "extra": frame(two, "a:double b:double c:double", is_hot=False),
        "onnx": frame(two, "a:double b:double", "onnx", is_hot=False),
        "free": frame(two, None, "sklearn", is_hot=False, outputs=None),
        "proba": frame(abc, to_abc, "sklearn", is_hot=False, predict_fn="predict_proba"),
        "ours, packaged": frame(abc, to_abc, "testigo", params=[flag(False)]),
        "ours, for probabilities": frame(abc, to_abc, "testigo", is_hot=False, params=[flag(True)]),
        "slow": frame(stand_in("frame", "a b", native=False), "a:double b:double", is_hot=False),
    }


def main(arguments: list[str]) -> None:
    """Serve these models beside those of the command line."""
    from server import __main__ as command
    from server import models
    small, load = arguments[:1] == ["small"], models.load
    arguments, first = arguments[small:], []
    if arguments[:1] == ["frame"]:
        first, arguments = [frames()[arguments[1]]], arguments[2:]

    def load_all(*given) -> models.ServedModels:
        by_name = {one.model.name: one.model for one in first} | load(*given).by_name
        return models.ServedModels(by_name | {model.name: model for model in stand_ins(not small)},
                                   schemas={one.model.name: one.schema for one in first})
    models.load = load_all
    command.main(arguments)


STAND_INS = (sys.executable, "-m", "tests.server.stand_in")

if __name__ == "__main__":
    main(sys.argv[1:])
