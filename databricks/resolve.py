"""A model's address becomes a file that `kernels.load` takes: MLflow's URIs, folders with an MLmodel, plain files.

`python -m databricks.resolve SOURCE --folder D [--allow-pickle]` prints it as one JSON object; exit status 3 with one
line on stderr where there is none. A server runs that, so that it never imports mlflow.

The rule to keep: MLmodel is read as data. Nothing of a model is unpickled, and none of its code runs, unless
`allow_pickle` says that it may; and what is served answers as `mlflow models serve` would, or is not converted.

https://mlflow.org/docs/latest/ml/model/
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kernels
from databricks import child
from kernels import ModelError

URIS = ("models:/", "runs:/")
MLMODEL = "MLmodel"
MAX_MLMODEL_BYTES = 1 << 24
PYFUNC = "python_function"
CUSTOM = ("mlflow.pyfunc.model", "mlflow.pyfunc.loaders.code_model")  # loaders of Python functions of one's own
OURS = "testigo"                # the flavor that `databricks.register` adds: its weights are served, its code not run
BAD_MODEL = 3  # exit status


@dataclass(frozen=True)
class Resolved:
    """Where a model is and what MLmodel says of it."""

    file: str | None       # for kernels.load; None where the model must run in a process of its own
    directory: str | None  # the folder of MLmodel; None for a plain file
    name: str              # "": as the file says
    version: str
    flavor: str            # sklearn, xgboost, lightgbm, onnx, testigo (packaged by us), pyfunc …; "" for a plain file
    schema: dict | None    # MLmodel's "inputs", "outputs", "params": lists or None; and "predict_fn", "model_class"
    worker: str | None     # why the model must run with mlflow, in a process of its own


class Unconvertible(ModelError):
    """A model that only mlflow can run."""


@dataclass(frozen=True)
class Saved:
    """A folder with an MLmodel, and what is to be made of it."""

    directory: Path
    name: str
    version: str
    flavor: str
    conf: dict      # of the flavor
    pyfunc: dict    # of python_function
    signature: dict
    folder: Path    # for what is converted
    allow_pickle: bool
    engine: str

    @property
    def model_class(self) -> str:
        """The class of a booster's flavor, by its full name; "" of another flavor."""
        default = {"lightgbm": LIGHTGBM_BOOSTER, "xgboost": XGBOOST_BOOSTER}.get(self.flavor, "")
        return default and str(self.conf.get("model_class", default))

    @property
    def data(self) -> Path:
        """The file that MLmodel says holds the model; in its own folder, whatever it says."""
        named = self.conf.get("data")
        path = (self.directory / str(named)).resolve()
        if not isinstance(named, str) or not path.is_relative_to(self.directory.resolve()) or not path.is_file():
            raise ModelError(f"{self.name}: expected 'data' of MLmodel's {self.flavor} to name a file in its folder")
        return path

    @property
    def params(self) -> list[str]:
        """The names of the signature's parameters."""
        params = self.signature["params"] or ()
        return [str(param["name"]) for param in params if isinstance(param, dict) and "name" in param]

    def checked(self, path: Path, engine: str = "testigo") -> str:
        """The path of a file of one of our formats, which can be loaded."""
        try:
            kernels.load(path, native=False, engine=engine)
        except ModelError as error:
            raise Unconvertible(str(error)) from None
        return str(path)

    def converted(self, estimator: Any) -> str:
        """The path of a GGUF file with a fitted estimator."""
        path, labels = self.folder / "model.gguf", getattr(estimator, "classes_", None)
        if getattr(getattr(labels, "dtype", None), "kind", None) in ("b", "f") and not self.signature["outputs"]:
            raise Unconvertible("its labels are neither strings nor whole numbers, and no signature says what they are")
        try:
            model = kernels.from_sklearn(estimator, name=self.name, version=self.version, native=False)
            kernels.save(model, path)
        except ModelError as error:
            why = str(error).partition(";")[0]  # what comes then is advice, for files
            raise Unconvertible(f"its {type(estimator).__name__} cannot be converted: {why}") from None
        return str(path)

    def unpickling(self) -> None:
        """Raises ModelError where that is not allowed."""
        if not self.allow_pickle:
            raise ModelError(f"{self.name}: a pickled {self.flavor} model can run code when it is loaded;"
                             " --allow-pickle has it opened, in a process of its own")


# --- flavors --------------------------------------------------------------------------------------------------

def _sklearn(saved: Saved) -> str:
    saved.unpickling()
    import mlflow.sklearn
    estimator = _loaded(mlflow.sklearn.load_model, saved)
    wanted = saved.pyfunc.get("predict_fn", "predict")
    if wanted not in ("predict", "predict_proba", "predict_log_proba"):
        raise Unconvertible(f"its answer is scikit-learn's {wanted}")
    return saved.converted(estimator)


LIGHTGBM_BOOSTER, XGBOOST_BOOSTER = "lightgbm.basic.Booster", "xgboost.core.Booster"
XGBOOST_ESTIMATORS = [f"xgboost.sklearn.{kind}" for kind in (
    "XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor")]
# Parameters of its `predict`, which mlflow gives a signature's; the other flavors take none.
XGBOOST_PARAMS = {"output_margin", "pred_leaf", "pred_contribs", "approx_contribs", "pred_interactions", "base_margin",
                  "validate_features", "training", "iteration_range", "strict_shape"}


def _lightgbm(saved: Saved) -> str:
    if saved.model_class == LIGHTGBM_BOOSTER:
        return saved.checked(saved.data)
    saved.unpickling()
    import mlflow.lightgbm
    return saved.converted(_loaded(mlflow.lightgbm.load_model, saved))


def _xgboost(saved: Saved) -> str:
    path = saved.data
    if not XGBOOST_PARAMS.isdisjoint(saved.params):
        raise Unconvertible("its signature has parameters of xgboost's predict")
    if saved.model_class == XGBOOST_BOOSTER:
        return saved.checked(path)
    if saved.model_class not in XGBOOST_ESTIMATORS:
        raise Unconvertible("its class is none of xgboost's own")
    import xgboost
    # Its labels, and how many of its trees count, are not the booster's.
    estimator = getattr(xgboost, saved.model_class.rpartition(".")[2])()
    try:
        estimator.load_model(path)
    except (xgboost.core.XGBoostError, ValueError) as error:
        raise ModelError(f"{path.name}: xgboost cannot read it: {child.one_line(error)}") from None
    return saved.converted(estimator)


def _our_format(saved: Saved) -> str:
    return saved.checked(saved.data, saved.engine if saved.flavor == "onnx" else "testigo")


def _foreign(saved: Saved) -> str:
    raise Unconvertible(f"it is a model of MLflow's flavor {saved.flavor}")


CONVERTERS: dict[str, Callable[[Saved], str]] = {
    "sklearn": _sklearn, "lightgbm": _lightgbm, "xgboost": _xgboost, "onnx": _our_format, OURS: _our_format}


def _loaded(load: Callable[[str], Any], saved: Saved) -> Any:
    try:
        return load(str(saved.directory))
    except Exception as error:  # unpickling raises what it likes
        raise ModelError(f"{saved.name}: MLflow cannot load it: {child.one_line(error)}") from None


def _runs_code(saved: Saved) -> bool:
    """Whether mlflow runs code of the model's when it loads it: a pickle, or modules that it names or brings.

    A flavor's loader reads the MLmodel beside the file that `python_function` names, which may be another one; and ONNX
    Runtime's options may name libraries.
    """
    is_data = saved.flavor == "onnx" or saved.model_class in (LIGHTGBM_BOOSTER, XGBOOST_BOOSTER, *XGBOOST_ESTIMATORS)
    data, providers, options = (saved.conf.get(key) for key in ("data", "providers", "onnx_session_options"))
    is_beside = saved.pyfunc.get("data", data) == data and Path(str(data)).name == data
    has_names_only = all(isinstance(name, str) for name in (providers if isinstance(providers, list) else ()))
    return not (is_data and is_beside and has_names_only and not options) or any(
        conf.get("code") for conf in (saved.conf, saved.pyfunc))


# --- MLmodel --------------------------------------------------------------------------------------------------

def _read_mlmodel(directory: Path, name: str) -> dict:
    import yaml
    path = directory / MLMODEL
    if not path.is_file():
        raise ModelError(f"{name}: expected a folder with a file {MLMODEL}")
    try:
        if path.stat().st_size > MAX_MLMODEL_BYTES:
            raise ValueError
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        found = None
    flavors = found.get("flavors") if isinstance(found, dict) else None
    if not isinstance(flavors, dict) or not all(isinstance(conf, dict) for conf in flavors.values()):
        raise ModelError(f"{name}: expected {MLMODEL} to be YAML with 'flavors', as MLflow writes it")
    return found


def _flavor(flavors: dict) -> str:
    """Whose answers `mlflow models serve` gives: those of the module that loads the Python function."""
    pyfunc = flavors.get(PYFUNC)
    if pyfunc is None:
        return next((name for name in CONVERTERS if name in flavors), next(iter(flavors), "none"))
    loader = str(pyfunc.get("loader_module"))
    if loader in CUSTOM:
        return OURS if OURS in flavors else "pyfunc"
    name = loader.removeprefix("mlflow.")
    return name if name in flavors and loader == f"mlflow.{name}" else "pyfunc"


def _signature(mlmodel: dict) -> dict:
    """The lists "inputs", "outputs" and "params", each None where it is not given."""
    given = mlmodel.get("signature") or {}
    try:
        return {key: json.loads(given[key]) if given.get(key) else None for key in ("inputs", "outputs", "params")}
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise ModelError(f"expected a signature of JSON in {MLMODEL}, as MLflow writes it") from None


def _of_directory(directory: Path, name: str, version: str, folder: Path, allow_pickle: bool, engine: str) -> Resolved:
    mlmodel = _read_mlmodel(directory, name)
    flavors, signature = mlmodel["flavors"], _signature(mlmodel)
    flavor, pyfunc = _flavor(flavors), flavors.get(PYFUNC, {})
    saved = Saved(directory, name, version, flavor, flavors.get(flavor, pyfunc), pyfunc, signature, folder,
                  allow_pickle, engine)
    schema = signature | {"predict_fn": pyfunc.get("predict_fn"), "model_class": saved.model_class or None}
    file, worker = None, None
    try:
        file = CONVERTERS.get(flavor, _foreign)(saved)
    except ImportError as error:
        raise ModelError(f"{name}: reading this {flavor} model needs the package {error.name}") from None
    except Unconvertible as error:
        worker = str(error)
        if PYFUNC not in flavors:
            raise ModelError(f"{name}: {worker}; and it has no flavor {PYFUNC} for mlflow to run it by") from None
        if _runs_code(saved) and not allow_pickle:
            raise ModelError(f"{name}: {worker}; --allow-pickle runs the model's own code, in a process of its own"
                             " with mlflow") from None
    return Resolved(file, str(directory), name, version, flavor, schema, worker)


# --- addresses ------------------------------------------------------------------------------------------------

def resolve(source: str, *, allow_pickle: bool = False, folder: Path, engine: str = "testigo") -> Resolved:
    """Find the model at an address: `models:/name@alias`, `models:/name/version`, `runs:/run/path`, a folder with an
    MLmodel file, or a file that `kernels.load` takes. Downloads and conversions go to `folder`, an existing one.

    `engine` is who shall compute an ONNX model, as for `kernels.load`. Raises ModelError with one line: no such model,
    a pickle that may not be opened, a model that needs mlflow's own process while `allow_pickle` does not allow it;
    OSError for a file that is not there.
    """
    if source.startswith(URIS):
        directory, name, version = download(source, folder / "mlflow")
    elif Path(source).is_dir():
        directory, name, version = Path(source), Path(source).resolve().name, "1"
    else:
        Path(source).stat()
        return Resolved(source, None, "", "", "", None, None)
    child.before_mlflow()
    return _of_directory(directory, name, version, folder, allow_pickle, engine)


def download(uri: str, folder: Path) -> tuple[Path, str, str]:
    """→ (the folder of MLmodel, the model's name, its version). Raises ModelError. Nothing of the model is opened."""
    child.before_mlflow()
    try:
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise ModelError(f"{uri}: MLflow's addresses need the package {error.name}:"
                         " pip install 'testigo[databricks]'") from None
    try:
        uri, name, version = (_registered if uri.startswith("models:/") else _of_run)(uri)
        folder.mkdir(exist_ok=True)
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))), name, version
    except (MlflowException, OSError) as error:
        raise ModelError(f"{uri}: {child.one_line(error)}") from None


def _registered(uri: str) -> tuple[str, str, str]:
    """→ (the address of one version, whatever an alias says later, the model's name, the version)."""
    from mlflow import MlflowClient
    from mlflow.store.artifact.utils.models import get_model_name_and_version
    client = MlflowClient()
    name, *version = get_model_name_and_version(client, uri)
    if not version:  # models:/m-…, a logged model that need not be registered
        return uri, client.get_logged_model(name).name, name
    return f"models:/{name}/{version[0]}", name, str(version[0])


def _of_run(uri: str) -> tuple[str, str, str]:
    run, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
    if not path:
        raise ModelError(f"{uri}: expected runs:/RUN/PATH")
    return uri, path.rpartition("/")[2], run


# --- command --------------------------------------------------------------------------------------------------

def main(arguments: list[str]) -> int:
    """→ exit status."""
    parser = argparse.ArgumentParser(prog="python -m databricks.resolve", description="Find a model's file.")
    parser.add_argument("source", metavar="SOURCE", help="models:/…, runs:/…, a folder with MLmodel, or a file")
    parser.add_argument("--folder", type=Path, required=True, metavar="D", help="for downloads and conversions")
    parser.add_argument("--allow-pickle", action="store_true", help="open pickles, run the model's own code")
    parser.add_argument("--engine", default="testigo", help="who shall compute ONNX models (default: %(default)s)")
    options = parser.parse_args(arguments)
    answers = child.take_stdout()
    try:
        found = resolve(options.source, allow_pickle=options.allow_pickle, folder=options.folder, engine=options.engine)
    except (ModelError, OSError) as error:
        said = error if isinstance(error, ModelError) else f"{error.filename}: {error.strerror}"
        print(f"resolve: error: {child.one_line(said)}", file=sys.stderr)
        return BAD_MODEL
    answers.write(json.dumps(asdict(found)).encode() + b"\n")
    answers.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
