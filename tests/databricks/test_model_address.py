"""Models of MLflow's as batch jobs take them: what is scored is what `mlflow.pyfunc` answers."""

import json
import os
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pandas
import pyarrow as pa
import pytest

import kernels
from databricks.model_file import model_file
from databricks.resolve import download
from databricks.scoring import BatchError, Scorer
from tests.databricks import foreign_models

RNG = np.random.default_rng(6)
FRAME = pandas.DataFrame(RNG.normal(size=(200, 3)), columns=["age days", "b", "c"])


def predictions(address: Path, frame: pandas.DataFrame, **options) -> list:
    with model_file(str(address), allow_pickle=True) as found:
        scorer = Scorer(found.path, names=found.names, answer=found.answer, **options)
        batch = pa.RecordBatch.from_pandas(frame, preserve_index=False)
        scorer.check(batch.schema)
        scored, rejected = scorer.score(batch)
    assert not len(rejected)
    return scored["prediction"].to_pylist()


@pytest.mark.parametrize("name", ["lgb-classifier", "xgb-classifier", "xgb-booster"])
def test_what_is_scored_is_what_mlflow_answers(name):
    body, answer = foreign_models.made().answers[name]
    rows = json.loads(body)["dataframe_split"]
    found = predictions(foreign_models.made().path(name), pandas.DataFrame(rows["data"], columns=rows["columns"]))
    assert type(found[0]) is type(answer["predictions"][0])
    assert np.allclose(found, answer["predictions"], atol=1e-9)


@pytest.fixture(scope="module")
def booster() -> lightgbm.Booster:
    """LightGBM calls its first feature age_days."""
    return lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(FRAME, FRAME.sum(axis=1) > 0), 5)


def packaged(folder: Path, booster: lightgbm.Booster, names: list[str], predict_fn: str = "predict") -> Path:
    """As MLflow writes it, with these names in its signature."""
    booster.save_model(folder / "model.lgb")
    inputs = json.dumps([{"name": name, "type": "double"} for name in names])
    (folder / "MLmodel").write_text(f"""flavors:
  lightgbm: {{data: model.lgb, lgb_version: 4.0.0, model_class: lightgbm.basic.Booster}}
  python_function: {{loader_module: mlflow.lightgbm, predict_fn: {predict_fn}}}
signature:
  inputs: '{inputs}'
""")
    return folder


@pytest.mark.parametrize("names", [["age days", "b", "c"], ["c", "b", "age days"], ["x", "y", "z"]])
def test_lightgbm_takes_the_columns_of_the_signature_by_their_place(tmp_path, booster, names):
    frame = FRAME.rename(columns=dict(zip(FRAME.columns, "xyz"))) if names[0] == "x" else FRAME
    found = predictions(packaged(tmp_path, booster, names), frame)
    assert np.allclose(found, booster.predict(frame[names].to_numpy()), atol=1e-12)


@pytest.mark.parametrize("answer", ["predict_proba", "predict_log_proba"])
def test_answer_of_mlmodel_is_given(tmp_path, booster, answer):
    expected = booster.predict(FRAME)
    expected = np.stack([1 - expected, expected], axis=1)
    found = predictions(packaged(tmp_path, booster, list(FRAME.columns), answer), FRAME)
    assert np.allclose(found, expected if answer == "predict_proba" else np.log(expected), atol=1e-12)


def test_columns_that_are_none_of_the_signatures_are_refused(tmp_path, booster):
    with pytest.raises(BatchError, match="the model names its features itself, and 'd' is none of them"):
        predictions(packaged(tmp_path, booster, ["a", "b", "c"]), FRAME, columns=["b", "c", "d"])


def test_a_pickle_is_opened_in_another_process_and_only_where_that_is_allowed(tmp_path):
    import cloudpickle
    (tmp_path / "MLmodel").write_text("""flavors:
  sklearn: {pickled_model: model.pkl, serialization_format: cloudpickle, sklearn_version: 1.0.0}
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl}
""")

    class Tells:
        def __reduce__(self):
            return exec, (f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))",)
    (tmp_path / "model.pkl").write_bytes(cloudpickle.dumps(Tells()))
    with pytest.raises(BatchError, match="--model: .*--allow-pickle has it opened"), model_file(str(tmp_path)):
        pass
    assert not (tmp_path / "pid").exists()
    with pytest.raises(BatchError, match="--model: "), model_file(str(tmp_path), allow_pickle=True):
        pass
    assert int((tmp_path / "pid").read_text()) != os.getpid()


@pytest.mark.filterwarnings("ignore:::sqlalchemy", "ignore:::mlflow")
@pytest.mark.parametrize("here", [False, True])
def test_registered_model_is_found_by_this_process_where_that_has_mlflow(monkeypatch, here):
    for name, value in foreign_models.made().env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("databricks.resolve.download", lambda *_: calls.append("here") or download(*_))
    calls: list[str] = []
    if not here:
        monkeypatch.delitem(sys.modules, "mlflow")
    body, answer = foreign_models.made().answers["lgb-booster"]
    rows = json.loads(body)["dataframe_split"]
    found = predictions("models:/credit@champion", pandas.DataFrame(rows["data"], columns=rows["columns"]))
    assert np.allclose(found, answer["predictions"], atol=1e-9) and calls == ["here"] * here
    with pytest.raises((BatchError, kernels.ModelError), match="none") as refused, model_file("models:/none/1"):
        pass
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["-x", "nowhere.gguf"])
def test_address_without_a_model_is_refused_in_one_line(address):
    with pytest.raises(BatchError, match=f"--model: {address}: No such file or directory$"), model_file(address):
        pass
