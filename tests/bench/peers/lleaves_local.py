"""A LightGBM model compiled by lleaves, in an environment of its own because it needs an old llvmlite.

    python lleaves_local.py MODEL.txt ROWS.npy < numbers

Prints the seconds that compiling took and the first prediction. Then, for each line on stdin, predicts all rows with
one thread and prints the milliseconds that it took.
"""

import sys
import time

import lleaves
import numpy as np


def main() -> None:
    model, rows = lleaves.Model(model_file=sys.argv[1]), np.load(sys.argv[2])
    start = time.perf_counter()
    model.compile()
    print(time.perf_counter() - start, float(model.predict(rows[:1], n_jobs=1)[0]), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        model.predict(rows, n_jobs=1)
        print((time.perf_counter() - start) * 1e3, flush=True)


if __name__ == "__main__":
    main()
