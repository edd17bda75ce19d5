"""The native form of a tabular model: a function's address and the state that it reads.

The rule to keep: the server's hot path knows a model by `NativeModel` alone. The records below are read by
compiled code by field name; a change of a field is a change of the compiled kernels.

    int32 predict(intp state, intp rows, intp n_rows, intp predictions, intp probabilities, intp scratch)

`rows` is (n_rows, n_features) float64, NaN where missing; `predictions` takes (n_rows, n_outputs) float64 (for a
classifier n_outputs is 1, and the number a class's index); `probabilities` takes (n_rows, n_classes) float64, or is
0 when they are not wanted; `scratch` is `scratch_doubles` float64 of the calling thread's own. It returns 0, or 1
when a score is not finite.
"""

from dataclasses import dataclass, field

import numpy as np

IDENTITY, RELU, TANH, LOGISTIC = range(4)
ACTIVATIONS = {"identity": IDENTITY, "relu": RELU, "tanh": TANH, "logistic": LOGISTIC}

# The state of a model: a PROGRAM record, its CALLs, the offsets of its values, the numbers of those to check.
PROGRAM = np.dtype([
    ("n_features", np.int64), ("n_outputs", np.int64), ("n_classes", np.int64),
    ("n_values", np.int64), ("n_steps", np.int64), ("n_prediction_steps", np.int64), ("n_checked", np.int64),
    ("prediction", np.int64), ("probabilities", np.int64),  # numbers of values; 0 = no probabilities
    ("block_rows", np.int64),   # rows that are computed together
    ("n_labels", np.int64),     # predictions are below this and not below 0, or the row has no answer; 0 = any number
    ("float32_rows", np.int64),  # 1: `rows` is float32, for calls from Python
    ("calls", np.int64),        # address of (n_steps) CALL
    ("offsets", np.int64),      # address of (n_values) int64: where a value is in scratch, in float64
    ("checked", np.int64),      # address of (n_checked, 2) int64: number and width
])
# int32 kernel(intp state, intp values, intp n_rows): `values` is the address of (n_values) addresses of
# (n_rows, width) float64; it returns 0, or 1 when the row has no answer.
CALL = np.dtype([("kernel", np.int64), ("state", np.int64)])

# A call of a model from Python: the kernel and its arguments. One address is passed in a third of the time of six.
ASK = np.dtype([("predict", np.int64), ("state", np.int64), ("rows", np.int64), ("n_rows", np.int64),
                ("predictions", np.int64), ("probabilities", np.int64), ("scratch", np.int64)])


@dataclass(frozen=True)
class NativeModel:
    """What compiled code needs to call a model, and what must stay alive while it may."""

    predict_address: int
    state: np.ndarray  # uint8; its address is the kernel's first argument
    n_features: int
    n_outputs: int  # numbers in a prediction: 1 = a number or a label, more = a list of numbers
    n_classes: int  # width of a row of probabilities; 0 = the model has none
    labels: tuple[bytes, ...] | None  # JSON text of each class label; None where predictions are numbers
    takes_missing: bool  # whether any feature does; where one that does not is missing, the kernel returns 1
    feature_names: tuple[bytes, ...] | None  # UTF-8; rows may be objects with these keys
    # For each feature None, or the strings (UTF-8) that it takes instead of numbers: the row holds the string's place.
    categories: tuple[tuple[bytes, ...] | None, ...] | None
    unknown: float  # what the row holds for a string that is not among its feature's categories
    scratch_doubles: int
    owners: tuple[object, ...] = field(repr=False)  # the kernel and the arrays that `state` points into

    @property
    def state_address(self) -> int:
        """The address to pass as `state`."""
        return self.state.ctypes.data
