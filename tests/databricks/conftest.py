"""What tests of MLflow and Databricks share: a store of their own, and processes outside the repository."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.serving import NO_TELEMETRY, START_S

os.environ |= NO_TELEMETRY
collect_ignore_glob = [] if find_spec("mlflow") else ["test_*.py"]
if find_spec("mlflow"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it warns of its own type hints
        import mlflow.pyfunc  # noqa: F401


class Store(NamedTuple):
    """An MLflow store: where tracking and registry are, the folder of it and of its artifacts, and what names it."""
    uri: str
    folder: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An empty store; this process's MLflow uses it, and so do processes that are started with this environment."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri,
           "_MLFLOW_SERVER_ARTIFACT_ROOT": str(folder / "artifacts")}  # beside the store, not in the current folder
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy warns of how MLflow declares its tables
            mlflow.MlflowClient().search_experiments()
        yield Store(uri, folder, env)


class Outside(NamedTuple):
    """Runs Python as one would who has the installed packages but neither this repository nor its `kernels`."""
    folder: Path
    env: dict[str, str]

    def run(self, *args: str | Path, path: tuple[Path, ...] = (), **env: str) -> subprocess.CompletedProcess:
        """`python` with these arguments to its end → status, stdout and stderr; `path` goes first on sys.path."""
        return subprocess.run([sys.executable, *map(str, args)], cwd=self.folder, env=self.environment(path, **env),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S)

    def environment(self, path: tuple[Path, ...] = (), **env: str) -> dict[str, str]:
        return self.env | {"PYTHONPATH": os.pathsep.join(map(str, (*path, self.folder)))} | env


# Takes away what an editable installation of this repository adds to every process.
SITE = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__edit")]
sys.path[:] = [entry for entry in sys.path if "__editable__" not in entry]
"""


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """Processes outside the repository, without the store of `mlflow_store` unless it is given to them."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "sitecustomize.py").write_text(SITE)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW", "_MLFLOW"))}
    programs = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])  # mlflow starts uvicorn
    return Outside(folder, env | NO_TELEMETRY | {"PATH": programs})


@pytest.fixture(scope="session")
def run_outside(outside: Outside) -> Callable[..., str]:
    """Run a script outside, with arguments → what it prints; it must end well."""
    def run(script: str, *args: str | Path, path: tuple[Path, ...] = (), **env: str) -> str:
        done = outside.run("-c", script, *args, path=path, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> str:
    """10 · a + b, which shows every number that comes in."""
    import pandas
    from sklearn.linear_model import LinearRegression

    import kernels
    path = tmp_path_factory.mktemp("line") / "line.gguf"
    frame = pandas.DataFrame({"a": [0.0, 1.0, 0.0, 2.0], "b": [0.0, 0.0, 1.0, 1.0]})
    kernels.save(kernels.from_sklearn(LinearRegression().fit(frame, [0.0, 10.0, 1.0, 21.0])), path)
    return str(path)
