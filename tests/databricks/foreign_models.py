"""Other people's MLflow models, as their flavors save them, with what MLflow itself answers.

`python -m tests.databricks.foreign_models FOLDER` makes them: in a process of its own, because importing so many
libraries warns, and MLflow's addresses are a setting of the whole process.

The rule to keep: the answers are those of the functions that `mlflow models serve` answers by.
"""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.serving import NO_TELEMETRY, ROOT

QUIET = NO_TELEMETRY | {"TQDM_DISABLE": "1"}
COLUMNS, N_ROWS = list("abcd"), 40
TREE = ["sklearn.tree._tree.Tree"]

# A Python function whose answer, and end, its first column chooses.
PYFUNC = '''
import os, sys, time
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Chosen(PythonModel):
    def load_context(self, context):
        print("loading on stdout")
        self.limit = float(os.environ.get("FOREIGN_LIMIT", "1e9"))

    def predict(self, context, model_input, params=None):
        first = model_input["a"]
        print("predicting", len(first), "rows")
        if (first == -1.0).any():
            os._exit(9)
        if (first == -2.0).any():
            raise ValueError(f"secret {list(first)}")
        if (first == -3.0).any():
            time.sleep(3600)
        return first * (params or {}).get("factor", 2.0)

set_model(Chosen())
'''


class Foreign(NamedTuple):
    """The models made in a folder."""

    folder: Path          # each in a folder of its name
    env: dict[str, str]   # for processes that look into the registry
    answers: dict         # by name: [body of a request, what MLflow answers]
    run: str              # the address runs:/… of a model

    def path(self, name: str) -> Path:
        return self.folder / name


@functools.cache
def made() -> Foreign:
    """Made once a process; its folder lives as long as that."""
    folder = Path(tempfile.mkdtemp(prefix="foreign-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    env = QUIET | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                   "MLFLOW_REGISTRY_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.databricks.foreign_models", folder], cwd=ROOT,
                          env=os.environ | env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    said = json.loads((folder / "made.json").read_text())
    return Foreign(folder, env, said["answers"], said["run"])


# --- in the process that makes them -----------------------------------------------------------------------------

def main(folder: Path) -> None:
    import lightgbm
    import mlflow
    import numpy as np
    import pandas
    import xgboost
    from mlflow.models import infer_signature
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import RadiusNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(5)
    X = pandas.DataFrame(rng.normal(size=(300, 4)), columns=COLUMNS)
    y, value = (X.a + X.b > 0).astype(int), X.a * 2 + X.c
    words, kinds = np.where(y, "yes", "no"), y + (X.c > 1)
    quiet = {"verbose": -1, "n_jobs": 1}
    labels, values = infer_signature(X, y), infer_signature(X, value)
    options: dict = {"pip_requirements": ["mlflow"]}
    pickled = options | {"serialization_format": "cloudpickle"}
    forest = RandomForestClassifier(8, max_depth=4, random_state=0).fit(X, y)
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, words)
    rounds = xgboost.XGBRegressor(n_estimators=12, max_depth=3, early_stopping_rounds=2, learning_rate=0.9, n_jobs=1)
    rounds.fit(X, value, eval_set=[(X[:80], -value[:80])], verbose=False)
    assert rounds.best_iteration < rounds.get_booster().num_boosted_rounds() - 1
    booster = lightgbm.train({"objective": "binary", **quiet}, lightgbm.Dataset(X, y), 6)

    def save(flavor, model, name, **given):
        flavor.save_model(model, folder / name, **(options | given))

    save(mlflow.sklearn, forest, "forest-skops", signature=labels, skops_trusted_types=TREE)
    save(mlflow.sklearn, logistic, "words-pickle", signature=infer_signature(X, words), **pickled)
    save(mlflow.sklearn, forest, "probabilities", pyfunc_predict_fn="predict_proba", **pickled,
         signature=infer_signature(X, forest.predict_proba(X)))
    save(mlflow.sklearn, RandomForestClassifier(3, max_depth=3, random_state=1).fit(X, y == 1), "booleans", **pickled)
    save(mlflow.sklearn, RadiusNeighborsRegressor(9.0).fit(X, value), "neighbors", signature=values, **pickled)
    save(mlflow.lightgbm, booster, "lgb-booster", signature=infer_signature(X, value))
    save(mlflow.lightgbm, lightgbm.LGBMClassifier(n_estimators=6, **quiet).fit(X, kinds), "lgb-classifier",
         signature=labels)
    save(mlflow.xgboost, xgboost.train({"max_depth": 3}, xgboost.DMatrix(X, value), 5), "xgb-booster", signature=values)
    save(mlflow.xgboost, xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(X, y), "xgb-classifier", signature=labels)
    save(mlflow.xgboost, xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(X, kinds), "xgb-kinds", signature=labels,
         model_format="json")
    save(mlflow.xgboost, rounds, "xgb-best", signature=values)
    _save_onnx(folder, forest, save, labels)
    (folder / "chosen.py").write_text(PYFUNC)
    mlflow.pyfunc.save_model(folder / "pyfunc", python_model=str(folder / "chosen.py"), **options,
                             signature=infer_signature(X, value, params={"factor": 2.0}))
    mlflow.pyfunc.save_model(folder / "unsigned", python_model=str(folder / "chosen.py"), **options)
    run = _register(folder, booster, logistic, labels, options, pickled)

    rows = np.round(rng.normal(size=(N_ROWS, 4)), 3).tolist()
    body = json.dumps({"dataframe_split": {"columns": COLUMNS, "data": rows}})
    names = sorted(path.parent.name for path in folder.glob("*/MLmodel"))
    answers = {name: [body, answer_of(folder / name, body)] for name in names}
    (folder / "made.json").write_text(json.dumps({"answers": answers, "run": run}))


def _save_onnx(folder: Path, forest, save, signature) -> None:
    import mlflow
    import numpy as np
    from skl2onnx import to_onnx
    graph = to_onnx(forest, np.zeros((1, 4), np.float32))
    save(mlflow.onnx, graph, "onnx", signature=signature, size_threshold=0)


def _register(folder: Path, booster, logistic, signature, options: dict, pickled: dict) -> str:
    """The registered model "credit": version 1 a booster, version 2 a pickle, champion is the first."""
    import mlflow
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("foreign", str(folder / "artifacts")))
    with mlflow.start_run() as run:
        mlflow.lightgbm.log_model(booster, name="light", registered_model_name="credit", signature=signature, **options)
        mlflow.sklearn.log_model(logistic, name="words", registered_model_name="credit", signature=signature, **pickled)
    mlflow.MlflowClient().set_registered_model_alias("credit", "champion", "1")
    return f"runs:/{run.info.run_id}/light"


def answer_of(folder: Path, body: str) -> dict:
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server
    model = mlflow.pyfunc.load_model(str(folder))
    found = scoring_server.invocations(body.encode(), "application/json", model, model.metadata.get_input_schema())
    return json.loads(found.response)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
