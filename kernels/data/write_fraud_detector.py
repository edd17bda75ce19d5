"""Writes the embedded model: fraud-detector 1.0.0, a linear score over five features. Always the same bytes.

    python -m kernels.data.write_fraud_detector [OUT]
"""

import sys
from pathlib import Path

from kernels import DEFAULT_MODEL
from kernels.export import save_dense

WEIGHTS = [[0.5, -0.3, 0.8, -0.2, 0.4]]
BIAS = [0.1]


def write(path: Path) -> None:
    """Write the model to `path`."""
    save_dense(path, [(WEIGHTS, BIAS)], ["identity"], name="fraud-detector", version="1.0.0", task="score")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_MODEL)
