"""A training library's tree ensemble as a tabular model: its trees, then its link function.

The rule to keep: `predict` gives what the library's own `predict` gives (architecture: the class's label where the
file has labels, else the value), and `predict_proba` the classes' probabilities.
"""

import math
from pathlib import Path

import numpy as np

from kernels import trees
from kernels.ensemble import LINKS, Booster
from kernels.errors import ModelError
from kernels.program import Builder, Program
from kernels.row_ops import BINARY_CODES, REDUCE_CODES, SOFTMAX, UNARY_CODES, runs_of
from kernels.tabular import Signature, TabularModel
from kernels.tabular_file import add_pair

# Links that are one function of each score.
FUNCTIONS = {"sigmoid": "sigmoid", "exp": "exp", "log1p_exp": "log1p_exp", "signed_square": "signed_square",
             "hinge": "positive"}


def model_of(booster: Booster, name: str, path: Path, size_bytes: int, threads: int = 1,
             native: bool = True) -> TabularModel:
    """The tabular model of a booster that was read from the file at `path`."""
    n_features = booster.ensemble.n_features
    builder = Builder(n_features)
    codes, strings = add_codes(builder, booster)
    program = add_link(builder, booster, add_trees(builder, booster, codes))
    task = "score" if booster.n_classes else "regression"
    signature = Signature(n_features, booster.feature_names, None, task, strings)
    return TabularModel(name, booster.version, booster.model_type, signature, program, path=path,
                        size_bytes=size_bytes, takes_missing_in=np.ones(n_features, bool),  # trees take NaN
                        threads=threads, native=native)


def add_trees(builder: Builder, booster: Booster, value: int) -> int:
    """A step "trees" over a value; → its raw scores."""
    ensemble = booster.ensemble
    return builder.add("trees", (value,), ensemble.n_outputs, numbers=trees.numbers_of(ensemble),
                       arrays=trees.compile_ensemble(ensemble))


def add_codes(builder: Builder, booster: Booster) -> tuple[int, tuple[tuple[str, ...] | None, ...] | None]:
    """Numbers that stand for categories become their places; → (the value, the strings that features take)."""
    if booster.categories is None:
        return 0, None
    strings: list[tuple[str, ...] | None] = []
    columns = [(0, i) for i in range(builder.n_features)]
    looked_up = [0]
    for i, found in enumerate(booster.categories):
        texts = tuple(item for item in found or () if isinstance(item, str))
        strings.append(texts if texts else None)
        numbers = np.array([item for item in found or () if not isinstance(item, str)], np.float64)
        if len(numbers):
            order = np.argsort(numbers)
            column = builder.add("move", (0,), 1, arrays={"runs": runs_of([(0, i)]), "constants": np.empty(0)})
            looked_up.append(builder.add("lookup", (column,), 1, arrays={
                "keys": numbers[order], "values": np.append(order.astype(np.float64), [np.nan, np.nan])}))
            columns[i] = (len(looked_up) - 1, 0)
    value = 0
    if len(looked_up) > 1:
        value = builder.add("move", looked_up, builder.n_features,
                            arrays={"runs": runs_of(columns), "constants": np.empty(0)})
    return value, tuple(strings) if any(strings) else None


def add_probabilities(builder: Builder, booster: Booster, scores: int) -> int:
    """The probabilities of several classes: a softmax of the scores, or the logistic of each."""
    rounds = int(booster.ensemble.rounds_sums)
    if booster.link == "sigmoid":
        return _function(builder, scores, "sigmoid", booster.link_factor, rounds)
    return _softmax(builder, scores, rounds)


def add_link(builder: Builder, booster: Booster, scores: int) -> Program:
    """The library's own `predict` of these scores, and its probabilities."""
    link, n, rounds = booster.link, builder.widths[scores], int(booster.ensemble.rounds_sums)
    if link not in LINKS:
        raise ModelError(f"expected one of {', '.join(LINKS)} for the link, found {link!r:.40}")
    probabilities = 0
    if link == "identity":
        prediction = scores
    elif link == "softmax":
        prediction = _softmax(builder, scores, rounds)
    elif link == "argmax":
        prediction = builder.add("reduce", (scores,), 1, numbers={"function": REDUCE_CODES["argmax"], "group": n})
    else:
        prediction = _function(builder, scores, FUNCTIONS[link], booster.link_factor, rounds)
    if booster.n_classes and n == 1:
        p = prediction if link == "sigmoid" else _function(builder, scores, "sigmoid", 1.0, rounds)
        probabilities = add_pair(builder, p)
    elif booster.n_classes:
        probabilities = _softmax(builder, scores, rounds) if link == "argmax" else prediction
    return builder.finish(prediction, probabilities, (scores,))


def _softmax(builder: Builder, scores: int, rounds: int) -> int:
    n = builder.widths[scores]
    return builder.add("scale", (scores,), n, numbers={"function": SOFTMAX, "group": n, "rounds": rounds})


def _function(builder: Builder, scores: int, name: str, factor: float, rounds: int) -> int:
    n = builder.widths[scores]
    if not math.isfinite(factor):
        raise ModelError("expected a finite factor of the link")
    if factor != 1.0:
        scores = builder.add("binary", (scores,), n, numbers={"function": BINARY_CODES["mul"]},
                             arrays={"constant": np.full(n, factor)})
    return builder.add("unary", (scores,), n, numbers={"function": UNARY_CODES[name], "rounds": rounds})
