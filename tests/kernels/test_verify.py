"""`python -m kernels verify`: models against the libraries that trained them, and wrong ones that must be found."""

import builtins
import importlib
import pickle
import re
from pathlib import Path

import joblib
import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import kernels
from kernels.__main__ import main

skl2onnx = pytest.importorskip("skl2onnx")

N = 300
RNG = np.random.default_rng(3)


def frame(with_strings: bool = False) -> pd.DataFrame:
    """Rows with missing values; with a column of strings and one of numbers that are categories."""
    rng = np.random.default_rng(1)
    made = pd.DataFrame({"amount": np.where(rng.random(N) < 0.1, np.nan, rng.lognormal(size=N)),
                         "age": rng.integers(18, 80, N), "income": rng.normal(size=N)})
    if with_strings:
        made["city"] = pd.Categorical(rng.choice(["Lima", "Quito", "La Paz"], N))
        made["code"] = pd.Categorical(rng.choice([10, 20, 30], N))
        made["is_new"] = pd.Categorical(rng.random(N) < 0.4)
    return made


def with_unknown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with categories that are missing, and some that were not there when a model was trained."""
    changed = rows.copy()
    for name, unknown in [("city", "Bogotá"), ("code", 40)]:
        if name in rows:
            changed[name] = rows[name].astype(object)
            changed.loc[[3, 5], name] = unknown
            changed.loc[[4, 5], "city"] = None
    return changed


def target(rows: pd.DataFrame) -> np.ndarray:
    score = rows["amount"].fillna(3) + rows["age"] / 40 + rows["income"]
    for name, value in [("city", "Lima"), ("code", 20), ("is_new", True)]:
        score += (rows[name] == value) if name in rows else 0
    return (score > 2.5).to_numpy().astype(int)


def parquet(folder: Path, rows: pd.DataFrame) -> str:
    rows.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def verify(*arguments: object) -> int:
    return main(["verify", *map(str, arguments)])


def largest(out: str) -> list[float]:
    return [float(number) for number in re.findall(r"largest difference of a \w+: (\S+)", out)]


# ---- LightGBM ----------------------------------------------------------------------------------------------

def lightgbm_model(folder: Path, rows: pd.DataFrame, y: np.ndarray, **parameters: object) -> Path:
    data = lightgbm.Dataset(rows, y, params={"verbose": -1})
    booster = lightgbm.train({"verbose": -1, "num_threads": 1, "min_data_in_leaf": 3} | parameters, data, 10)
    booster.save_model(folder / "model.txt")
    return folder / "model.txt"


@pytest.mark.parametrize("parameters", [{"objective": "binary"}, {"objective": "regression"},
                                        {"objective": "multiclass", "num_class": 3}], ids=lambda p: p["objective"])
@pytest.mark.parametrize("with_strings", [False, True])
def test_lightgbm(tmp_path, capsys, parameters, with_strings):
    rows = frame(with_strings)
    y = rows["age"].to_numpy() % 3 if "num_class" in parameters else target(rows)
    path = lightgbm_model(tmp_path, rows, y, **parameters)
    assert verify(path, "--against", path, "--data", parquet(tmp_path, with_unknown(rows))) == 0
    out = capsys.readouterr().out
    assert f"(LightGBM {lightgbm.__version__}) on 300 rows" in out and "within the tolerance of 1e-09" in out
    assert len(largest(out)) == (1 if parameters["objective"] == "regression" else 2)
    assert max(largest(out)) < 1e-12


def planted(path: Path, old: str, new: str) -> Path:
    """The same model with one number changed."""
    text = path.read_text()
    assert old in text
    wrong = path.with_name("wrong" + path.suffix)
    wrong.write_text(text.replace(old, new, 1))
    return wrong


def test_wrong_model_is_reported_with_its_rows(tmp_path, capsys):
    rows = frame()
    path = lightgbm_model(tmp_path, rows, target(rows), objective="binary")
    value = re.search(r"leaf_value=(\S+)", path.read_text())[1]
    wrong = planted(path, f"leaf_value={value} ", f"leaf_value={float(value) + 1e-3} ")
    right_answers, wrong_answers = (kernels.load(one).predict(rows.to_numpy(float)) for one in (path, wrong))
    differs = np.flatnonzero(np.abs(right_answers - wrong_answers) > 1e-9)
    assert 10 < len(differs) < N
    data = parquet(tmp_path, rows)
    assert verify(wrong, "--against", path, "--data", data) == 1
    out = capsys.readouterr().out
    found = re.findall(r"  row (\d+): prediction (\S+), expected (\S+)", out)
    assert [int(row) for row, _, _ in found] == differs[:10].tolist()
    assert [float(value) for _, value, _ in found] == wrong_answers[differs[:10]].tolist()
    np.testing.assert_allclose([float(value) for _, _, value in found], right_answers[differs[:10]], rtol=1e-12)
    assert f"… {len(differs):,} rows in all" in out and "not within the tolerance of 1e-09" in out
    assert largest(out)[0] == pytest.approx(np.abs(right_answers - wrong_answers).max(), rel=1e-2)
    assert verify(wrong, "--against", path, "--data", data, "--tolerance", "0.01") == 0
    assert verify(wrong, "--against", path, "--data", data, "--rows", differs[0]) == 0, "before the first such row"
    assert verify(wrong, "--against", path, "--data", data, "--rows", differs[0] + 1) == 1


def test_columns_are_found_by_name_and_others_left_out(tmp_path):
    rows = frame()
    path = lightgbm_model(tmp_path, rows, target(rows), objective="binary")
    shuffled = rows[["income", "amount", "age"]].assign(more="x")
    assert verify(path, "--against", path, "--data", parquet(tmp_path, shuffled)) == 0
    shuffled.to_csv(tmp_path / "rows.csv", index=False)
    assert verify(path, "--against", path, "--data", tmp_path / "rows.csv") == 0


def test_columns_without_names_are_taken_in_order(tmp_path):
    rows = frame()
    path = lightgbm_model(tmp_path, rows.to_numpy(float), target(rows), objective="binary")
    assert verify(path, "--against", path, "--data", parquet(tmp_path, rows)) == 0


# ---- XGBoost -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("objective", ["binary:logistic", "binary:hinge", "reg:squarederror", "multi:softprob",
                                       "multi:softmax"])
@pytest.mark.parametrize("with_strings", [False, True])
def test_xgboost(tmp_path, capsys, objective, suffix, with_strings):
    rows = frame(with_strings).drop(columns="is_new", errors="ignore")  # XGBoost has no categories of bool
    y = rows["age"].to_numpy() % 3 if objective.startswith("multi") else target(rows)
    options = {"num_class": 3} if objective.startswith("multi") else {}
    booster = xgboost.train({"objective": objective, "nthread": 1, "max_depth": 4} | options,
                            xgboost.DMatrix(rows, y, enable_categorical=True), 8)
    path = tmp_path / f"model.{suffix}"
    booster.save_model(path)
    assert verify(path, "--against", path, "--data", parquet(tmp_path, with_unknown(rows))) == 0
    out = capsys.readouterr().out
    assert f"(XGBoost {xgboost.__version__})" in out and "within the tolerance of 1e-06" in out
    assert len(largest(out)) == (1 if objective in ("reg:squarederror", "binary:hinge") else 2)


def test_xgboost_of_other_data_is_found(tmp_path, capsys):
    rows, y = frame(), target(frame())
    for name, labels in [("model.json", y), ("other.json", 1 - y)]:
        xgboost.train({"objective": "multi:softmax", "num_class": 2, "nthread": 1},
                      xgboost.DMatrix(rows, labels), 4).save_model(tmp_path / name)
    assert verify(tmp_path / "model.json", "--against", tmp_path / "other.json", "--data",
                  parquet(tmp_path, rows)) == 1
    assert re.search(r"  row 0: prediction ([01]), expected (?!\1)[01]\n", capsys.readouterr().out)


# ---- ONNX and scikit-learn -----------------------------------------------------------------------------------

def pipeline() -> tuple[object, pd.DataFrame]:
    rows = frame(True).drop(columns=["code", "is_new"]).fillna({"amount": 0.0})
    rows["city"] = rows["city"].astype(str)
    rows["age"] = rows["age"].astype(float)
    encoder = ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["city"]),
                                 ("n", StandardScaler(), ["amount", "age", "income"])])
    labels = np.array(["good", "fraud"])[target(rows)]
    return make_pipeline(encoder, LogisticRegression()).fit(rows, labels), rows


def onnx_of(estimator: object, rows: pd.DataFrame, path: Path) -> Path:
    types = {"str": skl2onnx.common.data_types.StringTensorType([None, 1])}
    float_type = skl2onnx.common.data_types.FloatTensorType([None, 1])
    converted = skl2onnx.to_onnx(estimator, initial_types=[
        (name, types.get(str(rows[name].dtype), float_type)) for name in rows.columns],
        options={"zipmap": False} if hasattr(estimator, "predict_proba") else {})
    path.write_bytes(converted.SerializeToString())
    return path


def test_pipeline_against_onnxruntime_and_scikit_learn(tmp_path, capsys):
    estimator, rows = pipeline()
    rows.loc[3, "city"] = "Bogotá"  # unknown
    path, data = onnx_of(estimator, rows, tmp_path / "model.onnx"), parquet(tmp_path, rows)
    joblib.dump(estimator, tmp_path / "model.joblib")
    assert verify(path, "--against", path, "--data", data) == 0
    out = capsys.readouterr().out
    assert "(ONNX Runtime " in out and "labels that differ: 0\n" in out and "tolerance of 1e-06" in out
    assert verify(path, "--against", tmp_path / "model.joblib", "--data", data, "--allow-pickle") == 0
    out = capsys.readouterr().out
    assert "(scikit-learn " in out and "labels that differ: 0\n" in out and "tolerance of 1e-06" in out
    assert 0 < max(largest(out)) < 1e-6, "float32 against double"


def test_label_that_differs_is_printed_with_both(tmp_path, capsys):
    estimator, rows = pipeline()
    path = onnx_of(estimator, rows, tmp_path / "model.onnx")
    swapped = onnx.load(path)
    for node in swapped.graph.node:
        for attribute in node.attribute:
            if attribute.name == "classlabels_strings":
                attribute.strings[:] = attribute.strings[::-1]
    onnx.save(swapped, tmp_path / "swapped.onnx")
    assert verify(tmp_path / "swapped.onnx", "--against", path, "--data", parquet(tmp_path, rows)) == 1
    out = capsys.readouterr().out
    label = estimator.predict(rows[:1])[0]
    assert "labels that differ: 300\n" in out
    assert f"  row 0: label {({'good', 'fraud'} - {label}).pop()}, expected {label}\n" in out


def test_doubles_are_held_to_the_double_tolerance(tmp_path, capsys):
    """A pickle of protocol 0, of which the first bytes say nothing."""
    rows = frame()
    estimator = lightgbm.LGBMRegressor(n_estimators=5, n_jobs=1, verbose=-1).fit(rows, 1e3 * rows["income"])
    estimator.booster_.save_model(tmp_path / "model.txt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(estimator, protocol=0))
    command = ["--against", tmp_path / "model.pkl", "--data", parquet(tmp_path, rows), "--allow-pickle"]
    kernels.save(kernels.load(tmp_path / "model.txt"), tmp_path / "model.gguf")
    assert verify(tmp_path / "model.gguf", *command) == 0
    assert "within the tolerance of 1e-09" in capsys.readouterr().out
    kernels.save(kernels.load(tmp_path / "model.txt"), tmp_path / "f16.gguf", type="f16")
    assert verify(tmp_path / "f16.gguf", *command) == 1


# ---- what is refused -----------------------------------------------------------------------------------------

class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("protocol", [0, 5])
def test_pickle_is_not_loaded_without_the_option(tmp_path, monkeypatch, capsys, protocol):
    monkeypatch.chdir(tmp_path)
    rows = frame()
    path = lightgbm_model(tmp_path, rows, target(rows))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Bomb(), protocol))
    assert verify(path, "--against", "model.pkl", "--data", parquet(tmp_path, rows)) == 1
    assert not Path("exploded").exists()
    assert "--allow-pickle" in capsys.readouterr().err


@pytest.mark.parametrize("content", [pickle.dumps({"no": "estimator"}), pickle.dumps(Ridge()), b"\x80\x05broken"])
def test_pickle_of_no_fitted_estimator(tmp_path, capsys, content):
    rows = frame()
    path = lightgbm_model(tmp_path, rows, target(rows))
    (tmp_path / "model.pkl").write_bytes(content)
    assert verify(path, "--against", tmp_path / "model.pkl", "--data", parquet(tmp_path, rows), "--allow-pickle") == 1
    assert "model.pkl: " in one_line(capsys)


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("kernels: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("package, suffix", [("lightgbm", "txt"), ("xgboost", "json"), ("onnxruntime", "onnx"),
                                             ("joblib", "pkl"), ("pandas", "txt")])
def test_missing_package_is_named_with_the_way_to_it(tmp_path, monkeypatch, capsys, package, suffix):
    rows = frame()
    path, data = lightgbm_model(tmp_path, rows, target(rows)), parquet(tmp_path, rows)
    original = tmp_path / f"original.{suffix}"
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, target(rows)), 1)
    {"txt": lambda: original.write_bytes(path.read_bytes()), "json": lambda: booster.save_model(original),
     "onnx": lambda: onnx_of(Ridge().fit(rows[["age"]], target(rows)), rows[["age"]], original),
     "pkl": lambda: original.write_bytes(pickle.dumps(Ridge()))}[suffix]()
    real = builtins.__import__

    def refuse(name: str, *arguments):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    status = verify(path, "--against", original, "--data", data, "--allow-pickle")
    monkeypatch.undo()
    assert status == 1
    expected = {"joblib": "scikit-learn", "pandas": "'testigo[data]'", "onnxruntime": "'testigo[onnxruntime]'"}
    assert f"pip install {expected.get(package, package)}" in one_line(capsys)


BAD_DATA = {
    "not Parquet": ("rows.parquet", b"no", "expected rows in Parquet"),
    "cut": ("rows.parquet", b"PAR1PAR1", "expected rows in Parquet"),
    "not CSV": ("rows.csv", b'a,b\n"1', "expected rows in Parquet"),
    "not UTF-8": ("rows.csv", b"\xff\xfe\x00", "expected rows in Parquet"),
    "empty": ("rows.csv", b"", "expected rows in Parquet"),
    "no rows": ("rows.csv", b"amount,age,income\n", "one row or more"),
    "other columns": ("rows.csv", b"amount,age\n1,2\n", "expected the columns income"),
    "strings": ("rows.csv", b"amount,age,income\n1,2,x\n", "expected numbers"),
    "twice": ("rows.csv", b"amount,age,income,income\n1,2,3,4\n", None),  # pandas names the second one income.1
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(tmp_path, capsys, name):
    file, content, expected = BAD_DATA[name]
    rows = frame()
    path = lightgbm_model(tmp_path, rows, target(rows))
    (tmp_path / file).write_bytes(content)
    status = verify(path, "--against", path, "--data", tmp_path / file)
    assert status == (0 if expected is None else 1)
    if expected is not None:
        assert expected in one_line(capsys)


@pytest.mark.parametrize("original", ["missing.txt", "model.gguf", "noise.txt"])
def test_bad_original(tmp_path, capsys, original):
    rows = frame()
    path = lightgbm_model(tmp_path, rows, target(rows))
    (tmp_path / "model.gguf").write_bytes(kernels.DEFAULT_MODEL.read_bytes())
    (tmp_path / "noise.txt").write_bytes(b"noise")
    assert verify(path, "--against", tmp_path / original, "--data", parquet(tmp_path, rows)) == 1
    assert original in one_line(capsys)


def test_original_of_another_shape(tmp_path, capsys):
    rows = frame()
    path = lightgbm_model(tmp_path, rows, rows["age"] % 3, objective="multiclass", num_class=3)
    path = path.rename(tmp_path / "three.txt")
    other = lightgbm_model(tmp_path, rows, target(rows))
    assert verify(other, "--against", path, "--data", parquet(tmp_path, rows)) == 1
    assert "another model's original" in one_line(capsys)


@pytest.mark.parametrize("option", [["--rows", "0"], ["--rows", "x"], ["--tolerance", "nan"], ["--tolerance", "-1"],
                                    ["--tolerance", "x"]])
def test_bad_options_get_status_2(option):
    with pytest.raises(SystemExit) as status:
        verify("m", "--against", "o", "--data", "d", *option)
    assert status.value.code == 2


def test_library_is_imported_only_when_an_original_needs_it():
    assert not {"lightgbm", "xgboost", "joblib", "pandas"} & set(vars(importlib.import_module("kernels.verify")))
