"""The native form of a tabular model: a function's address and the state that it reads.

The rule to keep: the server's hot path knows a model by `NativeModel` alone. The records below are read by
compiled code by field name; a change of a field is a change of the compiled kernels.

    int32 predict(intp state, intp rows, intp n_rows, intp predictions, intp probabilities, intp scratch)

`rows` is (n_rows, n_features) float64, NaN where missing; `predictions` takes n_rows float64 (the class index
of a classifier); `probabilities` takes (n_rows, n_classes) float64, or is 0 when they are not wanted;
`scratch` is `scratch_doubles` float64 of the calling thread's own. It returns 0, or 1 when a score is not
finite.
"""

from dataclasses import dataclass, field

import numpy as np

IDENTITY, RELU, TANH, LOGISTIC, SOFTMAX = range(5)
ACTIVATIONS = {"identity": IDENTITY, "relu": RELU, "tanh": TANH, "logistic": LOGISTIC, "softmax": SOFTMAX}

# What becomes of the last layer's sums: the number itself, a score with its logistic, two classes, or n.
VALUE, SCORE, BINARY, MULTICLASS = range(4)

# Addresses and counts; the state of a model is one MODEL record, then its LAYER records.
MODEL = np.dtype([
    ("n_layers", np.int64),
    ("n_features", np.int64),
    ("n_classes", np.int64),
    ("output", np.int64),       # VALUE, SCORE, BINARY or MULTICLASS
    ("width", np.int64),        # float64 count of one of the three vectors in scratch: the widest layer, padded
    ("fill_values", np.int64),  # address of (n_features) float64; NaN where missing values are not taken
    ("offset", np.int64),       # address of (n_features) float64
    ("scale", np.int64),        # address of (n_features) float64: x' = (x − offset) · scale
])
LAYER = np.dtype([
    ("weights", np.int64),      # address of (n_out, row_bytes) bytes, blocks of `tensor_type`
    ("bias", np.int64),         # address of (n_out) float64
    ("n_in", np.int64),         # weights in a row, the padding not counted
    ("n_out", np.int64),
    ("row_bytes", np.int64),
    ("tensor_type", np.int64),
    ("activation", np.int64),
])


@dataclass(frozen=True)
class NativeModel:
    """What compiled code needs to call a model, and what must stay alive while it may."""

    predict_address: int
    state: np.ndarray  # uint8; its address is the kernel's first argument
    n_features: int
    n_classes: int  # width of a row of probabilities; 0 = the model has none
    labels: tuple[bytes, ...] | None  # JSON text of each class label; None where predictions are numbers
    takes_missing: bool
    scratch_doubles: int
    owners: tuple[object, ...] = field(repr=False)  # the kernel and the arrays that `state` points into

    @property
    def state_address(self) -> int:
        """The address to pass as `state`."""
        return self.state.ctypes.data
