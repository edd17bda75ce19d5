"""Native kernels of the steps of support vector machines.

The rule to keep: the same bits as `svm`, in whose order every sum is made; a float32 operation is one in float64,
rounded, which gives the same number for + − × ÷.
"""

import math

import numpy as np

from kernels.compiled import inner
from kernels.simd import add, keep_scalar, load, load_f64, load_i64, mul, record, round_f32, store, sum_lanes, zero
from kernels.step import Step
from kernels.svm import LANES, MAX_ITERATIONS, MIN_PROBABILITY

SVM = np.dtype([
    ("input", np.int64), ("width", np.int64), ("out", np.int64), ("n_outputs", np.int64),
    ("scratch", np.int64),      # number of the scratch value
    ("n_classes", np.int64),
    ("vectors", np.int64),      # address of (n_outputs, width) float64, negated
    ("factor", np.float64),
    ("coefficients", np.int64), ("first", np.int64), ("rho", np.int64),  # addresses, as `svm.check_pairs` says
    ("prob_a", np.int64), ("prob_b", np.int64),                          # addresses of a float64 for each pair
])
DOUBLE = 8  # bytes of a float64
GROUP = LANES * DOUBLE
LOWEST, HIGHEST = float(MIN_PROBABILITY), float(1 - MIN_PROBABILITY)


@inner
def _value(values, number):
    return load_i64(values + number * 8)


# ---- distances -------------------------------------------------------------------------------------------------

@inner
def _squared_distance(x, negated, n):
    acc = zero()
    n_whole = n - n % LANES
    for at in range(0, n_whole * DOUBLE, GROUP):
        difference = add(load_f64(x + at), load_f64(negated + at))
        acc = add(acc, mul(difference, difference))
    total = sum_lanes(acc)
    for at in range(n_whole * DOUBLE, n * DOUBLE, DOUBLE):
        one = load(x + at) + load(negated + at)
        total += one * one
    return total


def run_distances(state, values, n_rows):
    """factor · |x − v|² of each vector."""
    step = record(state, SVM)
    x, out, row_bytes = _value(values, step.input), _value(values, step.out), step.width * DOUBLE
    for _ in range(n_rows):
        for i in range(step.n_outputs):
            store(out + i * DOUBLE, step.factor * _squared_distance(x, step.vectors + i * row_bytes, step.width))
        x += row_bytes
        out += step.n_outputs * DOUBLE
    return 0


# ---- pairs, votes ----------------------------------------------------------------------------------------------

@inner
def _weighed(total, products, coefficients, first, last):
    for v in range(first * DOUBLE, last * DOUBLE, DOUBLE):
        total += load(products + v) * load(coefficients + v)
    return total


def run_pairs(state, values, n_rows):
    """The score of each two classes."""
    step = record(state, SVM)
    products, out, row_bytes = _value(values, step.input), _value(values, step.out), step.width * DOUBLE
    for _ in range(n_rows):
        rho = step.rho
        for i in range(step.n_classes - 1):
            at_i = step.first + i * 8
            for j in range(i + 1, step.n_classes):
                at_j = step.first + j * 8
                total = _weighed(0.0, products, step.coefficients + (j - 1) * row_bytes,
                                 load_i64(at_i), load_i64(at_i + 8))
                total = _weighed(total, products, step.coefficients + i * row_bytes,
                                 load_i64(at_j), load_i64(at_j + 8))
                store(out, round_f32(total + load(rho)))
                out += DOUBLE
                rho += DOUBLE
        products += row_bytes
    return 0


@inner
def _add_votes(scores, k, counts):
    for i in range(0, k * DOUBLE, DOUBLE):
        store(counts + i, 0.0)
    for i in range(k - 1):
        for j in range(i + 1, k):
            at = counts + (i if load(scores) > 0.0 else j) * DOUBLE
            store(at, load(at) + 1.0)
            scores += DOUBLE


def run_votes(state, values, n_rows):
    """The first class with most votes."""
    step = record(state, SVM)
    scores, out, counts = _value(values, step.input), _value(values, step.out), _value(values, step.scratch)
    for _ in range(n_rows):
        _add_votes(scores, step.n_classes, counts)
        best = 0
        for i in range(1, step.n_classes):
            if load(counts + i * DOUBLE) > load(counts + best * DOUBLE):
                best = i
        store(out, float(best))
        scores += step.width * DOUBLE
        out += DOUBLE
    return 0


# ---- coupling --------------------------------------------------------------------------------------------------

@inner
def _sigmoid(score, a, b):
    value = round_f32(round_f32(round_f32(score) * a) + b)
    p = round_f32(1.0 / round_f32(1.0 + round_f32(math.exp(-abs(value)))))
    if not value < 0.0:
        p = round_f32(1.0 - p)
    return min(max(p, LOWEST), HIGHEST)


@inner
def _fill(step, scores, q):
    """The matrix Q (k, k): −r_ji · r_ij, on the diagonal Σ_j r_ji², from r_ij = P(i | i or j)."""
    k, pair = step.n_classes, 0
    for i in range(k):
        store(q + (i * k + i) * DOUBLE, 0.0)
    for i in range(k - 1):
        for j in range(i + 1, k):
            keep_scalar()
            p = _sigmoid(load(scores + pair), load(step.prob_a + pair), load(step.prob_b + pair))
            other = round_f32(1.0 - p)
            at_ij, at_ji = q + (i * k + j) * DOUBLE, q + (j * k + i) * DOUBLE
            store(at_ij, round_f32(-other * p))
            store(at_ji, round_f32(-p * other))
            # column j takes r_ij for ascending i, column i takes r_ji for ascending j
            at_ii, at_jj = q + (i * k + i) * DOUBLE, q + (j * k + j) * DOUBLE
            store(at_ii, round_f32(load(at_ii) + round_f32(other * other)))
            store(at_jj, round_f32(load(at_jj) + round_f32(p * p)))
            pair += DOUBLE


@inner
def _products(k, q, p, Qp):
    """Q · p into Qp; → p · Q · p."""
    total = 0.0
    for i in range(k):
        one = 0.0
        for j in range(k):
            one = round_f32(one + round_f32(load(q + (i * k + j) * DOUBLE) * load(p + j * DOUBLE)))
        store(Qp + i * DOUBLE, one)
        total = round_f32(total + round_f32(load(p + i * DOUBLE) * one))
    return total


@inner
def _is_far(k, Qp, pQp, epsilon):
    for i in range(k):
        if abs(round_f32(load(Qp + i * DOUBLE) - pQp)) >= epsilon:
            return True
    return False


@inner
def _move(k, q, p, Qp, pQp):
    """One round over all classes."""
    for i in range(k):
        own, row = load(q + (i * k + i) * DOUBLE), q + i * k * DOUBLE
        diff = round_f32(round_f32(pQp - load(Qp + i * DOUBLE)) / own)
        over = round_f32(1.0 + diff)
        store(p + i * DOUBLE, round_f32(load(p + i * DOUBLE) + diff))
        inside = round_f32(round_f32(diff * own) + 2.0 * load(Qp + i * DOUBLE))
        pQp = round_f32(round_f32(round_f32(pQp + round_f32(diff * inside)) / over) / over)
        for j in range(0, k * DOUBLE, DOUBLE):
            moved = round_f32(load(Qp + j) + round_f32(diff * load(row + j)))
            store(Qp + j, round_f32(moved / over))
            store(p + j, round_f32(load(p + j) / over))


def run_coupling(state, values, n_rows):
    """Probabilities of classes from the scores of pairs."""
    step = record(state, SVM)
    scores, p, k = _value(values, step.input), _value(values, step.out), step.n_classes
    q = _value(values, step.scratch)
    Qp, epsilon = q + k * k * DOUBLE, round_f32(round_f32(0.005) / k)
    for _ in range(n_rows):
        _fill(step, scores, q)
        for i in range(0, k * DOUBLE, DOUBLE):
            store(p + i, round_f32(1.0 / k))
        for _ in range(MAX_ITERATIONS):
            pQp = _products(k, q, p, Qp)
            if not _is_far(k, Qp, pQp, epsilon):
                break
            _move(k, q, p, Qp, pQp)
        scores += step.width * DOUBLE
        p += k * DOUBLE
    return 0


# ---- states ----------------------------------------------------------------------------------------------------

KERNELS = {"distances": run_distances, "svm_pairs": run_pairs, "svm_votes": run_votes, "svm_coupling": run_coupling}


def state_of(step: Step, widths: list[int], number: int, scratch: int) -> tuple[np.ndarray, tuple, int]:
    """(SVM record as bytes, arrays that it points into, float64 of scratch a call) of step `number`."""
    arrays = dict(step.arrays)
    if "vectors" in arrays:
        arrays["vectors"] = -arrays["vectors"]
    k = step.width if step.op == "svm_coupling" else int(step.numbers.get("n_classes", 0))
    state = np.zeros(1, SVM)
    given = {"input": step.inputs[0], "width": widths[0], "out": number, "n_outputs": step.width, "scratch": scratch,
             "n_classes": k, "factor": step.numbers.get("factor", 0.0)}
    for name, value in given.items():
        state[0][name] = value
    for name, array in arrays.items():
        state[0][name] = array.ctypes.data
    return state.view(np.uint8), (arrays,), {"svm_coupling": k * k + k, "svm_votes": k}.get(step.op, 0)
