"""The model of a batch job as a file that `kernels.load` takes, and what MLmodel says of it that the file does not.

The rule to keep: no model is unpickled in this process, and what a table is scored with is what `mlflow.pyfunc` of the
same model answers by: its columns and its `predict_fn`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import kernels
from databricks import resolve
from databricks.scoring import PREDICT, BatchError, names_of

ERROR = "resolve: error: "  # what that command's last line starts with


@dataclass(frozen=True)
class ModelFile:
    """What `Scorer` is made of."""

    path: str
    names: tuple[str, ...] | None = None  # of the features in the model's order; None: the file has them, or nobody
    answer: str = PREDICT


@contextmanager
def model_file(model: str, *, allow_pickle: bool = False) -> Iterator[ModelFile]:
    """The model at an address, as `resolve` takes it; what is converted is there as long as the context.

    Raises BatchError with one line where there is no such model, or it cannot be converted; ModelError and OSError.
    """
    if Path(model).is_file():
        yield ModelFile(model)
        return
    with tempfile.TemporaryDirectory(prefix="testigo-batch-") as folder:
        found = _resolved(_on_this_machine(model, Path(folder)), folder, allow_pickle)
        if found.file is None:
            raise BatchError(f"--model: it cannot be converted, which scoring a table needs: {found.worker}")
        yield ModelFile(found.file, _names(found, kernels.load(found.file, native=False)),
                        (found.schema or {}).get("predict_fn") or PREDICT)


def _on_this_machine(model: str, folder: Path) -> str:
    """The model's folder, downloaded here where another process may not: a notebook's mlflow has the credentials."""
    if model.startswith(resolve.URIS) and ("mlflow" in sys.modules or "DATABRICKS_RUNTIME_VERSION" in os.environ):
        return str(resolve.download(model, folder / "download")[0])
    return model


def _resolved(model: str, folder: str, allow_pickle: bool) -> resolve.Resolved:
    command = [sys.executable, "-m", "databricks.resolve", f"--folder={folder}", *["--allow-pickle"] * allow_pickle]
    done = subprocess.run([*command, "--", model], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it cannot be resolved: status {done.returncode}"])[-1]
        raise BatchError(f"--model: {said.removeprefix(ERROR):.400}")
    return resolve.Resolved(**json.loads(done.stdout))


def _names(found: resolve.Resolved, model: kernels.TabularModel) -> tuple[str, ...] | None:
    """The signature's names of the features, where the library takes columns by their place or has lost their names."""
    inputs = (found.schema or {}).get("inputs") or []
    names = tuple(column.get("name") for column in inputs if column.get("type") != "tensor")
    own = names_of(model)
    if len(names) != model.n_features or not all(names):
        return None
    return None if own is not None and set(own) == set(names) and found.flavor != "lightgbm" else names
