"""`/invocations` beside MLflow's own scoring server: the same models, the same requests, the same answers.

All models are in one process of MLflow's, each under a path of its own, and one of them in a real `mlflow models
serve`; ours are answered by `Application`, and one of them by a real server. Statuses, error codes and predictions must
be equal; what is meant to differ is in DIFFERENCES, with both answers.
"""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kernels
from server.access_log import AccessLog
from server.application import Application
from server.connection import Request, Response
from server.http1 import HeadParser
from server.metrics import Metrics
from server.models import ServedModels
from server.schema import Schema
from tests import serving
from tests.serving import NO_TELEMETRY

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
ROUNDING = {"xgboost": 1e-6, "onnx": 1e-6}  # of libraries that compute in float32; others add up in another order
N_ROWS = 300

PEER = """
import os, sys, warnings
warnings.simplefilter("ignore")
import mlflow.pyfunc, socket, uvicorn
from fastapi import FastAPI
from mlflow.pyfunc import scoring_server
app = FastAPI()
for name in sorted(os.listdir(sys.argv[1])):
    app.mount("/" + name, scoring_server.init(mlflow.pyfunc.load_model(os.path.join(sys.argv[1], name))))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listener])
"""


class Case(NamedTuple):
    content_type: str | None
    body: bytes


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)


# --- models -------------------------------------------------------------------------------------

class Saved(NamedTuple):
    """A model saved by MLflow, and ours of it."""

    folder: Path
    model: kernels.TabularModel
    schema: Schema


def save_all(folder: Path) -> dict[str, Saved]:
    """A model of each kind, saved as its owner would."""
    import lightgbm
    import mlflow.lightgbm
    import mlflow.onnx
    import mlflow.sklearn
    import mlflow.xgboost
    import numpy as np
    import pandas as pd
    import xgboost
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec
    from mlflow.types import Schema as Columns
    from skl2onnx import to_onnx
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    rng, found = np.random.default_rng(0), {}
    forest: dict[str, Any] = {"n_estimators": 4, "max_depth": 4, "random_state": 0}
    X = pd.DataFrame(rng.normal(size=(N_ROWS, 3)), columns=list("abc"))
    A, y, three = X.to_numpy(), (X.a + X.b > 0).astype(int), (X.a + X.b > 0).astype(int) + (X.c > 0)

    def sklearn(name: str, estimator: Any, signature: Any, **options: Any) -> None:
        mlflow.sklearn.save_model(estimator, folder / name, signature=signature, pip_requirements=[],
                                  serialization_format="cloudpickle", **options)
        found[name] = with_ours(folder / name, kernels.from_sklearn(estimator, native=False))

    def other(flavor: Any, name: str, model: Any, signature: Any) -> None:
        flavor.save_model(model, folder / name, signature=signature, pip_requirements=[])
        found[name] = with_ours(folder / name, None)

    classifier = RandomForestClassifier(**forest).fit(X, y)
    sklearn("forest", classifier, infer_signature(X, classifier.predict(X)))
    sklearn("unsigned", classifier, None)
    sklearn("probabilities", classifier, infer_signature(X, A), pyfunc_predict_fn="predict_proba")
    tree = DecisionTreeClassifier(random_state=0).fit(X, y)
    sklearn("logarithms", tree, infer_signature(X, A), pyfunc_predict_fn="predict_log_proba")
    sklearn("array", RandomForestRegressor(**forest).fit(A, A.sum(1)), infer_signature(A, A.sum(1)))
    several = LinearRegression().fit(A, A[:, :2] + 1)
    sklearn("several", several, infer_signature(A, several.predict(A)))
    truths = RandomForestClassifier(**forest).fit(A, A[:, 0] > 0)
    sklearn("truths", truths, infer_signature(A, truths.predict(A)))
    sklearn("nameless", RandomForestRegressor(**forest).fit(A, A.sum(1)),
            ModelSignature(inputs=Columns([ColSpec("double"), ColSpec("long"), ColSpec("float")])))

    shop = pd.DataFrame({"colour": rng.choice(["red", "green", "blue"], N_ROWS), "size": rng.normal(size=N_ROWS),
                         "city": rng.choice(["x", "yy"], N_ROWS)})
    says = np.where((shop.colour == "red") ^ (shop["size"] > 0), "yes", "no")
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["colour", "city"]),
                                      (StandardScaler(), ["size"]))
    pipeline = make_pipeline(columns, LogisticRegression()).fit(shop, says)
    sklearn("strings", pipeline, infer_signature(shop, says))

    mixed = pd.DataFrame({"n": rng.integers(0, 50, N_ROWS), "i": rng.integers(0, 9, N_ROWS).astype(np.int32),
                          "f": rng.normal(size=N_ROWS).astype(np.float32), "flag": rng.random(N_ROWS) < 0.5,
                          "o": np.where(rng.random(N_ROWS) < 0.2, np.nan, rng.normal(size=N_ROWS))})
    sklearn("mixed", RandomForestRegressor(**forest).fit(mixed, mixed.n / 10 + mixed.flag + mixed.f), ModelSignature(
        inputs=Columns([ColSpec("long", "n"), ColSpec("integer", "i"), ColSpec("float", "f"),
                        ColSpec("boolean", "flag"), ColSpec("double", "o", required=False)]),
        params=ParamSchema([ParamSpec("k", "long", 3), ParamSpec("t", "double", 0.5),
                            ParamSpec("names", "string", ["a"], (-1,)), ParamSpec("on", "boolean", True)])))

    dated = X.assign(when=pd.date_range("2024-01-01", periods=N_ROWS))
    by_name = make_pipeline(make_column_transformer((StandardScaler(), ["a", "b"])), LogisticRegression()).fit(dated, y)
    sklearn("dates", by_name, infer_signature(dated, y))

    booster = lightgbm.train({"verbose": -1, "objective": "binary", "num_threads": 1}, lightgbm.Dataset(X, y), 6)
    other(mlflow.lightgbm, "lightgbm", booster, infer_signature(X, booster.predict(X)))
    labels = xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1).fit(X, three)
    other(mlflow.xgboost, "xgboost-labels", labels, infer_signature(X, labels.predict(X)))
    scores = xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 3}, xgboost.DMatrix(X, y), 5)
    other(mlflow.xgboost, "xgboost", scores, infer_signature(X, scores.predict(xgboost.DMatrix(X))))
    row, on_arrays = A[:1].astype(np.float32), RandomForestClassifier(**forest).fit(A, y)
    tensors = to_onnx(on_arrays, row, options={"zipmap": False}, target_opset=15)
    other(mlflow.onnx, "onnx", tensors, infer_signature(A.astype(np.float32)))
    other(mlflow.onnx, "onnx-feeds", tensors, infer_signature({"X": A.astype(np.float32)}))
    other(mlflow.onnx, "onnx-maps", to_onnx(on_arrays, row, target_opset=15), infer_signature(X))
    regressor = RandomForestRegressor(**forest).fit(A, A.sum(1))
    other(mlflow.onnx, "onnx-values", to_onnx(regressor, row, target_opset=15), infer_signature(X))
    return found


def with_ours(folder: Path, model: kernels.TabularModel | None) -> Saved:
    """What the server makes of the model in this folder."""
    import yaml
    description = yaml.safe_load((folder / "MLmodel").read_text())
    flavors = description["flavors"]
    flavor = next(name for name in flavors if name != "python_function")
    if model is None:
        model = kernels.load(folder / flavors[flavor]["data"], native=False)
    defaults = {"lightgbm": "lightgbm.basic.Booster", "xgboost": "xgboost.core.Booster"}
    signature = (description.get("signature") or {}) | {
        "predict_fn": flavors["python_function"].get("predict_fn"),
        "model_class": flavors[flavor].get("model_class") or defaults.get(flavor)}
    return Saved(folder, model, Schema.of(signature, model, flavor))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and those that it calls
        return save_all(tmp_path_factory.mktemp("saved"))


# --- both sides ---------------------------------------------------------------------------------

Ask = Callable[[str, Case], Answer]


@pytest.fixture(scope="module")
def mlflow_says(saved: dict[str, Saved]) -> Iterator[Ask]:
    """MLflow's answer of a model to a case."""
    folder = saved["forest"].folder.parent
    process = subprocess.Popen([sys.executable, "-c", PEER, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, env=os.environ | NO_TELEMETRY, cwd=folder.parent)
    try:
        assert process.stdout is not None
        yield asking(int(process.stdout.readline()), "/{}/invocations")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def asking(port: int, path: str) -> Ask:
    """Asks a server on this machine, each on a connection of its own: what is no HTTP to one may close it."""
    def ask(name: str, case: Case) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=serving.WAIT_S)) as connection:
            headers = {} if case.content_type is None else {"Content-Type": case.content_type}
            connection.request("POST", path.format(name), case.body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
    return ask


@pytest.fixture(scope="module")
def we_say(saved: dict[str, Saved]) -> Ask:
    """The answer of ours."""
    applications = {}
    for name, one in saved.items():
        models = ServedModels({name: one.model}, schemas={name: one.schema})
        applications[name] = Application(models, Metrics([name]), AccessLog("text"))

    def ask(name: str, case: Case) -> Answer:
        headers = {} if case.content_type is None else {"Content-Type": case.content_type}
        sent = serving.request("POST", "/invocations", case.body, headers)
        if case.content_type is None:
            sent = sent.replace(b"Content-Type: application/json\r\n", b"")
        parser = HeadParser()
        parser.feed(sent)
        head = parser.head
        assert head is not None
        error = applications[name].check(head)
        response = Response.of_error(error, head.path) if error else applications[name].answer(Request(head, case.body))
        return Answer(response.status, response.body)
    return ask


def difference(theirs: Answer, ours: Answer, rounding: float) -> str | None:
    """In what two answers differ, None where in nothing that a client can rely on."""
    if theirs.status != ours.status:
        return f"{theirs.status} there, {ours.status} here: {theirs.body[-300:]!r} {ours.body!r}"
    if theirs.status == 200:
        return None if same(theirs.content, ours.content, rounding) else f"{theirs.body!r} there, {ours.body!r} here"
    assert ours.content.keys() == {"error_code", "message"}
    if theirs.status == 400 and theirs.content["error_code"] != ours.content["error_code"]:
        return f"{theirs.content['error_code']} there, {ours.body!r} here"
    return None


def same(a: Any, b: Any, rounding: float) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key], rounding) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y, rounding) for x, y in zip(a, b))
    return a == b or (isinstance(a, float) and abs(a - b) <= rounding * max(1.0, abs(a)))


# --- requests -----------------------------------------------------------------------------------

def as_json(*bodies: object) -> list[Case]:
    return [Case(JSON, body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies]


def as_csv(*texts: str | bytes) -> list[Case]:
    return [Case(CSV, text if isinstance(text, bytes) else text.encode()) for text in texts]


def as_parquet(*frames: Any) -> list[Case]:
    """One request for each pandas data frame, whose columns are as given."""
    cases = []
    for frame in frames:
        file = io.BytesIO()
        frame.to_parquet(file)
        cases.append(Case(PARQUET, file.getvalue()))
    return cases


R = [0.1, 0.2, 0.3]
ROW = dict(zip("abc", R))


def split(*rows: object, columns: object = ("a", "b", "c"), **more: object) -> dict:
    return {"dataframe_split": {"columns": columns, "data": rows} | more}


def three_numbers() -> list[Case]:
    """For models of the columns a, b and c."""
    import pandas as pd
    one = pd.DataFrame([R], columns=list("abc"))
    return [*as_json(
        split(R), split(R, R, index=[1, 1]), split(R, index=["x"]), split(), split(R, [1, 2]), split([], R),
        split([1, 2]), split([1, 2, 3, 4]), split(R, 5), split(R, None), split(1, 2), split(ROW), split({"a": 1}),
        split(R, extra=1),
        split(R, columns="abc"), split(R, columns=5), split(R, columns=["c", "b", "a"]), split(R, columns=None),
        split([*R, "x"], columns=["c", "b", "a", "d"]), split(R, columns=["a", "b", "b"]),
        split([*R, 1], columns=["a", "a", "b", "c"]), split(R, columns=["a", "b", "d"]), split(columns=[]),
        split([1, True, "3"]), split(["x", 1, 2]), split([None, 1, 2]), split([None, 1, 2], R), split([[1], 2, 3]),
        {"dataframe_split": {"data": [R]}}, {"dataframe_split": {"columns": ["a"]}}, {"dataframe_split": {}},
        {"dataframe_split": {"columns": ["a", "b", "c"], "data": {"a": [1], "b": [2], "c": [3]}}},
        {"dataframe_split": {"columns": ["a", "b", "c"], "data": {"a": 1, "b": 2, "c": 3}}},
        {"dataframe_split": {"columns": ["a", "b", "c"], "data": None}}, {"dataframe_split": {"data": "abc"}},
        {"dataframe_split": [R]}, {"dataframe_split": None}), *as_json(
        {"dataframe_records": [ROW]}, {"dataframe_records": [ROW, {"c": 1, "b": 2, "a": 3, "d": 5}]},
        {"dataframe_records": [{"a": 1, "b": 2}]}, {"dataframe_records": [ROW, {"a": 1}]}, {"dataframe_records": []},
        {"dataframe_records": {}}, {"dataframe_records": [R]}, {"dataframe_records": [1]},
        {"dataframe_records": [{}]},
        {"dataframe_records": None}, {"dataframe_records": "x"}, {"dataframe_records": [ROW, None]},
        {"dataframe_records": [ROW, R]}), *as_json(
        {"instances": [R]}, {"instances": [R, R]}, {"instances": []}, {"instances": [ROW]},
        {"instances": [ROW, {"a": 1}]},
        {"instances": [ROW | {"a": "x"}]}, {"instances": [ROW | {"a": None, "d": "x"}]}, {"instances": 5},
        {"instances": {"a": [1], "b": [2], "c": [3]}}, {"instances": {"a": [1], "b": [2, 3], "c": [3]}},
        {"instances": None}, {"instances": "x"}, {"instances": [ROW, 5]}, {"instances": [5, ROW]},
        {"instances": [{"a": [1], "b": [2], "c": [3]}]}), *as_json(
        {"inputs": [R]}, {"inputs": R}, {"inputs": [[R]]}, {"inputs": []}, {"inputs": {}}, {"inputs": [R, [1]]},
        {"inputs": {"a": [1], "b": [2], "c": [3]}}, {"inputs": {"c": 1, "a": 2, "b": 3}}, {"inputs": {"a": [1]}},
        {"inputs": {"a": [1, 2], "b": [2, 2], "c": [3]}}, {"inputs": {"a": [1, 2], "b": 2, "c": 3, "d": ["x", "y"]}},
        {"inputs": [ROW]}, {"inputs": [ROW, {"a": 1, "b": 2}]}, {"inputs": {"a": ["x"], "b": [2], "c": [3]}},
        {"inputs": {"a": [[1]], "b": [[2]], "c": [[3]]}}, {"inputs": {"a": ["1"], "b": [True], "c": [None]}},
        {"inputs": 5}, {"inputs": "x"}, {"inputs": None}, {"inputs": {"X": [R]}}, {"inputs": {"X": [[1, 2]]}},
        {"inputs": {"X": R}}, {"inputs": {"Y": [R]}}), *as_json(
        {}, [], "x", 5, {"instances": [R], "inputs": [R]}, {"a": 1}, {"params": {}}, split(R) | {"params": {"z": 1}},
        split(R) | {"client_request_id": "x"}, split(R) | {"params": 5}, split(R) | {"signature_name": "x"},
        {"input": [R]}, {"prompt": "x"}, {"messages": []}, split(R) | {"prompt": "x"},
        b"", b"{", b"\xff", b"null", b"\xef\xbb\xbf{}", json.dumps(split(R)).encode("utf-16"),
        b'{"inputs": [[1, 2, 3]], "inputs": {"a": [1], "b": [2]}}', json.dumps(split(R)).encode() + b"x",
        b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, NaN]]}}',
        b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, Infinity]]}}',
        b'{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 1e999]]}}'), *as_csv(
        "a,b,c\n.1,.2,.3\n", "c,b,a\n1,2.5,3", "a,b,c,d\n1,2.5,3,x\n", "a,b\n1,2\n", "a,b,c\n1,2.5\n", "a,b,c\n1,,3\n",
        "a,b,c\n1,2,3\n1,2,3,4\n", ",a,b,c\n0,1,2.5,3\n", "", "\n", "a,b,c\n1,NA,3\n", "a,b,c\n1,x,3\n",
        '"a","b","c"\n"1","2.5","3"\n', "a,b,c\r\n1,2.5,3\r\n", "a,b,c\n\n1,2.5,3\n\n", "a, b, c\n1,2,3\n",
        'a,b,c\n1,2,"3\n', "a,b,c\n1,2,1e3\n", b"a,b,c\n1,2,\xff\n", "\ufeffa,b,c\n1,2.5,3\n", "a;b;c\n1;2;3"),
        *(Case(content_type, json.dumps(split(R)).encode()) for content_type in (
            "application/json; format=pandas-split", "application/json;charset=utf-8", "", "text/plain",
            "application/json; charset=latin-1", "APPLICATION/JSON", "application/json;",
            'application/json; charset="utf-8"')),
        *as_parquet(one, one[["c", "b", "a"]], one.assign(d="x"), one[["a", "b"]], one.assign(a=5), one.assign(a="x"),
                    one.assign(a=True), one.astype("float32"), one.astype("int32"), one.set_axis(["k"]),
                    pd.concat([one, one.assign(b=None)])),
        Case(PARQUET, b"PAR1"), Case(PARQUET, b"")]


def of_all_types() -> list[Case]:
    """For the columns n long, i integer, f float, flag boolean, o double that may be left out."""
    import pandas as pd
    base = {"n": 1, "i": 2, "f": 0.5, "flag": True, "o": 0.1}
    tried: dict[str, tuple] = {
        "n": (1.0, 1.7, -1.7, "5", "5.5", " 5 ", None, True, 1 << 62, 1 << 64, [1], {}, "x", "1_0"),
        "i": (1.7, (1 << 31) - 1, "3", None), "o": (None, "nan", "1", "", True, [1], "0x10", "١", 1 << 64),
        "f": (1, "0.5", "nan", "inf", None, True, 1e39, 1e300, "1_0", ""),
        "flag": (0, 1, 0.5, "true", "", "False", None)}
    cases = []
    for name, values in tried.items():
        for value in values:
            row = base | {name: value}
            cases += as_json({"dataframe_records": [row]}, {"inputs": [row]}, {"instances": [row]}, {"inputs": row},
                             {"dataframe_records": [base, row]}, {"inputs": {key: [row[key]] for key in row}})
    params = (None, 5, [], {"k": 1}, {"k": 1.0}, {"k": "1"}, {"k": None}, {"k": True}, {"k": [1]}, {"t": 1}, {"t": "x"},
              {"names": ["a", "b"]}, {"names": "a"}, {"names": [1]}, {"names": None}, {"on": 1}, {"z": 1})
    cases += as_json(*({"inputs": [base], "params": given} for given in params))
    short = {name: value for name, value in base.items() if name != "o"}
    cases += as_json({"dataframe_records": [short]}, {"inputs": [short]}, {"instances": [short, base]})
    cases += as_csv("n,i,f,flag\n1,2,.5,True\n", *(f"n,i,f,flag,o\n{line}\n" for line in (
        "1,2,.5,True,.1", "1,2,.5,true,", "1,2,.5,1,", "1,2,.5,2,", "1,2,.5,,", "1,2,.5,yes,", "1.0,2,.5,True,",
        "1.5,2,.5,True,", ",2,.5,True,", "1,3000000000,.5,True,", "1e2,2,.5,TRUE,", "True,2,.5,True,.1")))
    good = pd.DataFrame([base]).astype({"i": "int32", "f": "float32"})
    cases += as_parquet(good, good.drop(columns="o"), *(good.astype({name: kind}) for name, kind in (
        ("i", "int64"), ("n", "int8"), ("n", "uint32"), ("n", "uint64"), ("n", "float64"), ("f", "float64"),
        ("flag", "int64"), ("o", "float32"), ("o", "int64"), ("o", "int16"))))
    return cases


def of_strings() -> list[Case]:
    """For the columns colour and city, of strings, and size, of numbers."""
    import pandas as pd
    base = {"colour": "red", "size": 1, "city": "x"}
    rows: list[dict] = [base] + [base | {"colour": value} for value in (
        "pink", "", "red ", None, 1, True, 1.5, ["red"], {})] + [base | {"size": value} for value in (
            "1", "a", None, True, 1e300, [])] + [base | {"city": None}]
    cases = as_json(*({"dataframe_records": [row]} for row in rows))
    cases += as_json(*({"dataframe_records": [base, row]} for row in rows))
    cases += as_json(*({key: [row]} for row in rows[:8] for key in ("inputs", "instances")),
                     {"inputs": base}, {"inputs": {"colour": ["red", "blue"], "size": [1, 2], "city": ["x", "x"]}},
                     {"inputs": {"colour": [1], "size": [1], "city": ["x"]}}, {"inputs": [["red", 1, "x"]]})
    cases += as_csv(*(f"colour,size,city\n{line}\n" for line in (
        "red,1,x", "1,1,x", ",1,x", "red,,x", '"red",1,"x"', '" red",1,x', "NA,1,x", "red,x,x")))
    cases += as_csv("colour,size\nred,1\n", "city,size,colour\nx,1,red\n")
    frame = pd.DataFrame([base | {"size": 1.0}])
    return cases + as_parquet(frame, frame.assign(size=5), frame.assign(colour=1), frame.assign(colour=None))


def of_dates() -> list[Case]:
    """For the columns a, b, c, and when, a date."""
    import pandas as pd
    base = {"a": 1, "b": 2, "c": 3, "when": "2024-01-01"}
    rows = [base | {"when": value} for value in (
        "2024-01-01T10:00:00", "2024-01-01 10:00", "2024-01-01T10:00:00Z", "2024-01-01T10:00:00+02:00", "x", "", None,
        5, 5.5, True, [], "2024", "2024-13-01", "1500-01-01", "NaT", "2300-01-01", "2024-01-01T10:00:00.5", "2024-01")]
    cases = as_json(*({"dataframe_records": [row]} for row in [base, *rows]), {"dataframe_records": [base, base]})
    cases += as_json(*({key: [row]} for row in (base, rows[4], rows[6]) for key in ("inputs", "instances")))
    cases += as_csv("a,b,c,when\n1,2,3,2024-01-01\n", "a,b,c,when\n1,2,3,x\n", "a,b,c\n1,2,3\n")
    frame = pd.DataFrame([base]).astype({"a": float, "b": float, "c": float})
    dates = frame.assign(when=pd.to_datetime(frame.when))
    return cases + as_parquet(frame, dates, dates.assign(when=dates.when.dt.tz_localize("UTC")), dates.assign(when=1),
                              dates.drop(columns="when"), dates.assign(c="x"), dates.astype({"when": "datetime64[s]"}))


SPECIAL = {"mixed": of_all_types, "strings": of_strings, "dates": of_dates}
NUMERIC = ("array", "forest", "lightgbm", "nameless", "onnx", "onnx-feeds", "onnx-maps", "onnx-values", "probabilities",
           "several", "truths", "unsigned", "xgboost", "xgboost-labels")

INFINITE = b'{"inputs": {"a": [1], "b": [%s], "c": [3]}}'
# model, why, a request, what MLflow says, what we say: predictions, or a status.
DIFFERENCES: list[tuple[str, str, Case, object, object]] = [
    ("forest", "a missing Content-Type is JSON", Case(None, json.dumps(split(R)).encode()), 500, [1]),
    ("logarithms", "JSON has no -Infinity, nor NaN", *as_json(split([9, 9, 9])), [[-float("inf"), 0.0]], [[None, 0.0]]),
    ("forest", "an index of another length is a mistake", *as_json(split(R, index=[1, 2])), [1, 1], 400),
    ("forest", "a name that is a list is the client's", *as_json(split(R, columns=["a", "b", ["c"]])), 500, 400),
    ("mixed", "forests take numbers that float32 does not hold", *as_json(
        {"inputs": {"n": [1], "i": [1], "f": [1], "flag": [True], "o": [1e39]}}), 400, 200),
    ("mixed", "no number wraps around", *as_json({"dataframe_records": [
        {"n": 1, "i": 1 << 40, "f": 0.5, "flag": True, "o": 0.1}]}), 200, 400),
    ("forest", "so is nesting without end", *as_json(b"[" * 100_000), 500, 400),
    ("forest", "so is a number of too many digits", *as_json(INFINITE % (b"1" * 5000)), 500, 400),
    ("forest", "few bytes must not stand for many values",
     *as_json(split([0] * 5000, *[[]] * 5000, columns=None)), 400, 413),
    ("dates", "dates are ISO 8601", *as_json({"dataframe_records": [ROW | {"when": "Jan 5 2024"}]}), [1], 400),
    ("dates", "which may be mixed with times", *as_json({"dataframe_records": [
        ROW | {"when": "2024-01-01"}, ROW | {"when": "2024-01-01T10:00"}]}), 400, [1, 1]),
]


# --- tests --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [*NUMERIC, *SPECIAL])
def test_answers_are_those_of_mlflow(saved: dict[str, Saved], mlflow_says: Ask, we_say: Ask, name: str):
    cases = SPECIAL.get(name, three_numbers)()
    rounding = ROUNDING.get(saved[name].schema.flavor, 1e-12)
    theirs = [mlflow_says(name, case) for case in cases]
    found = {case: difference(answer, we_say(name, case), rounding) for case, answer in zip(cases, theirs)}
    assert {case: what for case, what in found.items() if what is not None} == {}
    assert len(found) >= 35 and sum(answer.status == 200 for answer in theirs) >= 4


@pytest.mark.parametrize(("name", "why", "case", "theirs", "ours"), DIFFERENCES, ids=[one[1] for one in DIFFERENCES])
def test_what_differs_does_so_as_listed(mlflow_says: Ask, we_say: Ask, name: str, why: str, case: Case, theirs: object,
                                        ours: object):
    for answer, expected in (mlflow_says(name, case), theirs), (we_say(name, case), ours):
        assert (answer.status if isinstance(expected, int) else answer.content["predictions"]) == expected


@pytest.mark.parametrize("case", as_json(
    split([4711.5, "4711-x", 1]), {"inputs": {"a": ["4711-x"], "b": [1], "c": [2]}},
    {"dataframe_records": [{"4711-x": 1}]},
    b'{"4711-x'))
def test_only_mlflows_messages_hold_the_clients_values(mlflow_says: Ask, we_say: Ask, case: Case):
    theirs, ours = mlflow_says("forest", case), we_say("forest", case)
    assert theirs.status == ours.status == 400
    assert b"4711" in theirs.body and b"4711" not in ours.body


@contextlib.contextmanager
def models_serve(folder: Path) -> Iterator[tuple[int, subprocess.Popen]]:
    """A real `mlflow models serve` that starts: its port and process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", folder, "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # uvicorn, which that starts
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | NO_TELEMETRY | {"PATH": path}, cwd=folder.parent.parent,
                               start_new_session=True)
    try:
        yield port, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_real_servers_and_mlflows_own_client_agree(saved: dict[str, Saved]):
    import pandas as pd
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient
    folder = saved["forest"].folder
    frame = pd.DataFrame([[0.1, 0.2, 0.3], [-1.5, 2, 1e-3], [3, 3, 3]], columns=list("abc"))
    with models_serve(folder) as (port, process), \
            serving.start(folder, "--allow-pickle", native=False, env=NO_TELEMETRY) as server:
        to_theirs, to_ours = (ScoringServerClient("127.0.0.1", each) for each in (port, server.port))
        to_ours.wait_server_ready(timeout=serving.WAIT_S)
        to_theirs.wait_server_ready(timeout=serving.START_S, scoring_server_proc=process)
        to_ours.ping()
        answer = to_ours.invoke(frame).get_predictions()
        assert len(answer) == len(frame) and answer.equals(to_theirs.invoke(frame).get_predictions())
        theirs, ours = asking(port, "/invocations"), asking(server.port, "/invocations")
        cases = as_json(split(R), {"dataframe_records": [ROW]}, {"inputs": [R]}, {"inputs": [ROW]}, {}, b"{")
        cases += as_csv("a,b,c\n1,2,3\n", "a,b\n1,2\n") + [Case("text/plain", b"x")]
        for case in cases:
            assert difference(theirs("", case), ours("", case), 1e-12) is None
