"""The course's first row: the same linear model as a scikit-learn estimator in this process, no server.

    python scikit_local.py MODEL < numbers

Loads a pickled estimator, predicts a row and prints the score. Then, for each number n on stdin: predicts
a row n times and prints one line of JSON.
"""

import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    model = pickle.loads(Path(sys.argv[1]).read_bytes())
    row = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    print(float(model.predict(row)[0]), flush=True)
    for line in sys.stdin:
        times_ns = np.empty(int(line), np.int64)
        for i in range(len(times_ns)):
            start = time.perf_counter_ns()
            model.predict(row)
            times_ns[i] = time.perf_counter_ns() - start
        p50, p99 = np.percentile(times_ns, [50, 99]) / 1e6
        print(json.dumps({"p50_ms": p50, "p99_ms": p99, "requests_per_s": 1e9 / times_ns.mean()}), flush=True)


if __name__ == "__main__":
    main()
