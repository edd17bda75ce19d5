"""Support vector machines as steps of a program: distances, scores of each two classes, votes, probabilities; in numpy.

The rule to keep: the kernels of `svm_kernels` compute the same bits. Products with support vectors are a step "dense",
so what is here is what no other step computes. Classes i < j are a pair; pairs come in the order (0, 1), (0, 2) ….

Chang, Lin: LIBSVM, a library for support vector machines, sections 4.1 and 8; Wu, Lin, Weng 2004: probability
estimates for multi-class classification by pairwise coupling, the second method.
"""

import math

import numpy as np

from kernels.errors import ModelError
from kernels.step import MAX_WIDTH, Step, take_array, take_number

LANES = 8
MIN_PROBABILITY = np.float32(1e-7)
MAX_ITERATIONS = 100
CHUNK_VALUES = 1 << 20  # float64 at a time

Values = list[np.ndarray]  # (n, width) float64 of each input


def n_pairs(k: int) -> int:
    """How many pairs k classes make."""
    return k * (k - 1) // 2


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ModelError(f"expected {what}")


def _finite_array(step: Step, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    array = take_array(step, name, np.float64, shape)
    _expect(bool(np.isfinite(array).all()), f"finite numbers in {name}")
    return array


# ---- distances: factor · |x − v|² of each vector v ---------------------------------------------------------------

def check_distances(step: Step, widths: list[int]) -> None:
    """Raise ModelError unless the step holds vectors as wide as its input."""
    _expect(len(widths) == 1, "one input")
    _finite_array(step, "vectors", (step.width, widths[0]))
    factor = step.numbers.get("factor")
    _expect(type(factor) in (int, float) and math.isfinite(factor), "a finite factor")  # type: ignore[arg-type]


def distances(step: Step, values: Values) -> np.ndarray:
    """(n, n_features) → (n, n_vectors)."""
    vectors = step.arrays["vectors"]
    rows = max(1, CHUNK_VALUES // (len(vectors) * LANES))
    out = np.empty((len(values[0]), len(vectors)))
    for first in range(0, len(out), rows):
        out[first:first + rows] = _squared(values[0][first:first + rows], vectors)
    return float(step.numbers["factor"]) * out


def _squared(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    n_whole = x.shape[1] - x.shape[1] % LANES
    acc = np.zeros((len(x), len(vectors), LANES))
    for b in range(0, n_whole, LANES):
        difference = x[:, None, b:b + LANES] - vectors[:, b:b + LANES]
        acc += difference * difference
    acc = acc[..., :4] + acc[..., 4:]
    acc = acc[..., :2] + acc[..., 2:]
    total = acc[..., 0] + acc[..., 1]
    for i in range(n_whole, x.shape[1]):
        difference = x[:, None, i] - vectors[:, i]
        total = total + difference * difference
    return total


# ---- svm_pairs: scores of each two classes -----------------------------------------------------------------------

def check_pairs(step: Step, widths: list[int]) -> None:
    """Raise ModelError unless the step's arrays fit each other and the kernel values that it weighs."""
    _expect(len(widths) == 1, "one input")
    k = take_number(step, "n_classes", 2, MAX_WIDTH)
    _expect(step.width == n_pairs(k), f"a score for each of {n_pairs(k)} pairs")
    first = take_array(step, "first", np.int64, (k + 1,))
    _expect(first[0] == 0 and first[-1] == widths[0] and bool((first[1:] >= first[:-1]).all()), "vectors of each class")
    _finite_array(step, "coefficients", (k - 1, widths[0]))
    _finite_array(step, "rho", (step.width,))


def pairs(step: Step, values: Values) -> np.ndarray:
    """Kernel values of all vectors (n, n_vectors), class after class → (n, n_pairs), float32 numbers."""
    products, first, rho = values[0], step.arrays["first"].tolist(), step.arrays["rho"]
    coefficients, out, k = step.arrays["coefficients"], np.empty((len(values[0]), step.width)), len(first) - 1
    pair = 0
    for i in range(k - 1):
        for j in range(i + 1, k):
            of_i, of_j = slice(first[i], first[i + 1]), slice(first[j], first[j + 1])
            terms = np.concatenate([products[:, of_i] * coefficients[j - 1, of_i],
                                    products[:, of_j] * coefficients[i, of_j]], axis=1)
            total = np.zeros(len(out))
            for term in terms.T:
                total = total + term
            out[:, pair] = total + rho[pair]
            pair += 1
    return out.astype(np.float32).astype(np.float64)


# ---- svm_votes: the class that most pairs choose -----------------------------------------------------------------

def check_votes(step: Step, widths: list[int]) -> None:
    """Raise ModelError unless the step makes one number of the scores of all pairs."""
    k = take_number(step, "n_classes", 2, MAX_WIDTH)
    _expect(widths == [n_pairs(k)] and step.width == 1, f"one number of {n_pairs(k)} scores")


def votes(step: Step, values: Values) -> np.ndarray:
    """Scores of pairs (n, n_pairs), > 0 for the first class → the index of the first class with most votes, (n, 1)."""
    k = int(step.numbers["n_classes"])
    low, high = np.triu_indices(k, 1)
    counts = np.zeros((len(values[0]), k))
    rows = np.arange(len(counts))
    for pair, (i, j) in enumerate(zip(low, high)):
        counts[rows, np.where(values[0][:, pair] > 0, i, j)] += 1
    return np.argmax(counts, axis=1).astype(np.float64)[:, None]


# ---- svm_coupling: probabilities of classes from scores of pairs -------------------------------------------------

def check_coupling(step: Step, widths: list[int]) -> None:
    """Raise ModelError unless the step holds a sigmoid for each pair."""
    _expect(widths == [n_pairs(step.width)] and step.width >= 2, f"scores of the pairs of {step.width} classes")
    for name in ("prob_a", "prob_b"):
        array = _finite_array(step, name, (widths[0],))
        with np.errstate(over="ignore"):
            _expect(bool((array == array.astype(np.float32)).all()), f"float32 numbers in {name}")


def coupling(step: Step, values: Values) -> np.ndarray:
    """Scores (n, n_pairs) → probabilities (n, n_classes), computed in float32 as ONNX Runtime and libsvm do."""
    k, scores = step.width, values[0].astype(np.float32)
    value = scores * step.arrays["prob_a"].astype(np.float32) + step.arrays["prob_b"].astype(np.float32)
    e = np.array([math.exp(-abs(one)) for one in value.ravel().tolist()]).reshape(value.shape).astype(np.float32)
    p = 1 / (1 + e)
    p = np.where(value < 0, p, 1 - p).clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    low, high = np.triu_indices(k, 1)
    r = np.zeros((len(p), k, k), np.float32)
    r[:, low, high], r[:, high, low] = p, 1 - p
    return coupled(r).astype(np.float64)


def coupled(r: np.ndarray) -> np.ndarray:
    """P(i | i or j) of each two classes, (n, k, k) float32 → (n, k) float32.

    In float32 and with libsvm's rule to stop, since where the iteration stops shows in the third digit.
    """
    n, k, _ = r.shape
    p = np.full((n, k), np.float32(1) / np.float32(k), np.float32)
    Q = -r.transpose(0, 2, 1) * r
    Q[:, np.arange(k), np.arange(k)] = np.add.accumulate(r * r, axis=1, dtype=np.float32)[:, -1]
    moving = np.arange(n)
    epsilon = np.float32(0.005) / np.float32(k)
    for _ in range(MAX_ITERATIONS):
        q, x = Q[moving], p[moving]
        Qp = np.add.accumulate(q * x[:, None, :], axis=2, dtype=np.float32)[:, :, -1]
        pQp = np.add.accumulate(x * Qp, axis=1, dtype=np.float32)[:, -1]
        far = (np.abs(Qp - pQp[:, None]) >= epsilon).any(axis=1)
        moving, q, x, Qp, pQp = moving[far], q[far], x[far], Qp[far], pQp[far]
        if not len(moving):
            break
        for i in range(k):
            diff = (pQp - Qp[:, i]) / q[:, i, i]
            x[:, i] += diff
            pQp = (pQp + diff * (diff * q[:, i, i] + 2 * Qp[:, i])) / (1 + diff) / (1 + diff)
            Qp = (Qp + diff[:, None] * q[:, i]) / (1 + diff)[:, None]
            x = x / (1 + diff)[:, None]
        p[moving] = x
    return p
