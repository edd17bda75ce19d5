"""Package a model for MLflow, log it and register it: `log_model`, `save_model`, `python -m databricks.register`.

The rule to keep: a packaged model holds no pickle and nothing of the machine it was made on; it loads without this
file, from its own copy of `kernels` and weights in GGUF, which need numpy and numba only.

https://mlflow.org/docs/latest/ml/model/
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import kernels
from kernels import ModelError, TabularModel
from kernels.mlflow_model import WEIGHTS
from kernels.model_file import kind_of

os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"  # before mlflow is imported

import mlflow  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import Model, ModelSignature  # noqa: E402
from mlflow.types.schema import Array, ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec  # noqa: E402
from mlflow.utils import validation  # noqa: E402

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

DataFrame = Any  # pandas', which is imported on use
FLAVOR = "testigo"
REQUIREMENTS = ("mlflow", "numpy", "numba")  # all that loading imports; mlflow brings pandas
BAD_OPTION, BAD_FILE, REFUSED = 2, 3, 4
PARAMETERS = ParamSchema([ParamSpec("return_probabilities", "boolean", False), ParamSpec("threads", "integer", 1)])


def log_model(model: str | Path | TabularModel, *, name: str, registered_model_name: str | None = None,
              alias: str | None = None, input_example: DataFrame | None = None,
              tags: dict[str, Any] | None = None) -> "ModelInfo":
    """Log a model to MLflow, and register it and point an alias at it where asked → MLflow's description of it.

    `model`: a file that `kernels.load` takes, or a loaded model. The registry's version is
    `.registered_model_version`. Raises as `save_model` does, before MLflow knows of the model, ValueError for an alias
    without a registered name, and mlflow.MlflowException for what MLflow refuses.
    """
    if alias is not None and registered_model_name is None:
        raise ValueError("expected registered_model_name beside alias: an alias is a registered model's")
    if alias is not None:  # which MLflow itself looks at when the model is registered
        validation._validate_model_alias_name(alias)
        validation._validate_model_alias_name_reserved(alias)
    package = package_of(model, input_example)
    info = Model.log(None, package, name=name, registered_model_name=registered_model_name, tags=tags,
                     flavor_name=FLAVOR, validate_serving_input=False)
    if alias is not None and registered_model_name is not None:
        mlflow.MlflowClient().set_registered_model_alias(registered_model_name, alias, info.registered_model_version)
    return info


def save_model(model: str | Path | TabularModel, path: str | Path, *,
               input_example: DataFrame | None = None) -> None:
    """Write a model in MLflow's format to the folder at `path`, which must be new or empty.

    `input_example` (n, n_features) is by default a row of zeros and first categories. Raises ModelError for a model
    that is not sound or has no prediction for the example, OSError for a file that cannot be read, and
    mlflow.MlflowException for a folder that holds something.
    """
    package_of(model, input_example).save_model(path)


def package_of(model: str | Path | TabularModel, input_example: DataFrame | None) -> "Package":
    """What is written, checked; raises as `save_model` does."""
    loaded = model if isinstance(model, TabularModel) else kernels.load(model, native=False)
    source = None if isinstance(model, TabularModel) or kind_of(Path(model)) != "GGUF" else Path(model)
    example = example_of(loaded) if input_example is None else input_example
    loaded.predict(example)
    return Package(loaded, source, example)


class Package(NamedTuple):
    """A model about to be written; to `Model.log` it is what a module of MLflow's flavors is."""
    model: TabularModel
    source: Path | None  # where it is GGUF already, which is kept to the byte
    example: DataFrame

    def save_model(self, path: str | Path, mlflow_model: Model | None = None,
                   validate_serving_input: bool = False) -> None:
        """Write it to the folder at `path`. MLflow's own validation would import the copy of the code: refused."""
        if validate_serving_input:
            raise ValueError("expected false for validate_serving_input: the example has been predicted from")
        mlflow_model = Model() if mlflow_model is None else mlflow_model
        folder = Path(kernels.__file__).parent
        with tempfile.TemporaryDirectory() as temporary, without_uv():
            weights = Path(temporary) / "model.gguf"
            if self.source is None:
                kernels.save(self.model, weights)
            else:
                shutil.copyfile(self.source, weights)
            mlflow.pyfunc.save_model(
                str(path), python_model=str(folder / "mlflow_model.py"), artifacts={WEIGHTS: str(weights)},
                code_paths=[str(folder)], signature=signature_of(self.model), input_example=self.example,
                mlflow_model=mlflow_model, pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS])
        strip_paths(mlflow_model)
        mlflow_model.add_flavor(FLAVOR, data=f"artifacts/{weights.name}", testigo_version=kernels.__version__)
        mlflow_model.save(str(Path(path) / "MLmodel"))


@contextmanager
def without_uv() -> Iterator[None]:
    """MLflow would else copy the uv project that happens to be in the current folder."""
    name = "MLFLOW_UV_AUTO_DETECT"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({} if before is None else {name: before})


def strip_paths(mlflow_model: Model) -> None:
    """Take out where on this machine things were copied from, which MLflow records beside where they are now."""
    pyfunc = mlflow_model.flavors["python_function"]
    pyfunc["model_code_path"] = Path(pyfunc["model_code_path"]).name
    for artifact in pyfunc["artifacts"].values():
        artifact["uri"] = artifact["path"]
    mlflow_model.artifact_path = None


def signature_of(model: TabularModel) -> ModelSignature:
    """A model's signature as MLflow has it: a column for each feature, what `predict` gives, and the parameters."""
    signature = model.signature
    names = signature.feature_names or (None,) * model.n_features
    categories = signature.categories or (None,) * model.n_features
    columns: list[ColSpec | TensorSpec] = [
        ColSpec("double" if texts is None else "string", name, required=name is None or not optional)
        for name, texts, optional in zip(names, categories, model.takes_missing_in.tolist())]
    return ModelSignature(Schema(columns), Schema([output_of(model)]), PARAMETERS)


def output_of(model: TabularModel) -> ColSpec:
    """What `predict` gives for a row: a label, a number, or several numbers."""
    if model.n_outputs > 1:
        return ColSpec(Array("double"))  # a tensor, (-1, n), would be a matrix a row to spark_udf
    kinds = {type(label) for label in model.signature.classes or (0.0,)}
    return ColSpec({str: "string", int: "long", float: "double"}[kinds.pop()])


def example_of(model: TabularModel) -> DataFrame:
    """A row of zeros and of the first strings that the model takes."""
    import pandas as pd
    from kernels.sklearn_models import MISSING
    categories = model.signature.categories or (None,) * model.n_features
    row = [0.0 if texts is None else next((text for text in texts if text != MISSING), "") for texts in categories]
    return pd.DataFrame([row], columns=model.signature.feature_names)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        fail(BAD_OPTION, f"{message} (see --help)")


def fail(status: int, message: str) -> NoReturn:
    print(f"register: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def main(argv: Sequence[str]) -> None:
    p = Parser(prog="python -m databricks.register", description="Package a model for MLflow and register it.",
               epilog="Exit status: 0 registered, 2 bad option, 3 unreadable model, 4 refused by MLflow.")
    p.add_argument("model", type=Path, metavar="MODEL", help="a model file")
    p.add_argument("--name", required=True, help="the registered model's, such as fraud or main.ml.fraud")
    p.add_argument("--alias", help="what shall point at the new version, such as champion")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow's server or store (default: as MLflow finds it)")
    options = p.parse_args(argv)
    if options.tracking_uri is not None:
        mlflow.set_tracking_uri(options.tracking_uri)
    try:
        info = log_model(options.model, name=options.name.rpartition(".")[2], registered_model_name=options.name,
                         alias=options.alias)
    except ModelError as error:
        fail(BAD_FILE, str(error))
    except (MlflowException, OSError) as error:
        if isinstance(error, OSError) and str(error.filename) == str(options.model):
            fail(BAD_FILE, f"{options.model}: {error.strerror}")
        fail(REFUSED, str(error).partition("\n")[0])
    number = info.registered_model_version
    uri = f"models:/{options.name}/{number}" if options.alias is None else f"models:/{options.name}@{options.alias}"
    print(f"{uri} version {number}")


if __name__ == "__main__":
    main(sys.argv[1:])
