# Databricks notebook source
# MAGIC %md
# MAGIC # Model serving, from training to a table of a million rows
# MAGIC
# MAGIC A random forest is trained, packaged without pickle, registered, served by an endpoint with an A/B split,
# MAGIC queried, and applied to a table with Spark in two ways; at the end stand what each way costs.
# MAGIC
# MAGIC Import the repository as a Git folder, attach this notebook to a cluster with an ML runtime (17.3 or later),
# MAGIC *Run all*. Imported alone, it wants the path of Testigo's wheel in the widget `wheel`. The last cell deletes
# MAGIC what was made.

# COMMAND ----------

dbutils.widgets.text("wheel", "", "1 Testigo's wheel (default: from the Git folder)")
dbutils.widgets.text("model", "testigo_course_forest", "2 Model's name")
dbutils.widgets.text("rows", "20000", "3 Rows")
dbutils.widgets.text("trees", "100", "4 Trees")
dbutils.widgets.dropdown("endpoint", "create", ["create", "do not create"], "5 Endpoint")
dbutils.widgets.text("poll_s", "5", "6 Seconds between two looks at the endpoint")
dbutils.widgets.dropdown("clean_up", "yes", ["yes", "no"], "7 Clean up")

# COMMAND ----------

# MAGIC %md
# MAGIC ## 1. Install
# MAGIC
# MAGIC The wheel brings the native kernels, the server and the tools for Databricks; MLflow, Spark and scikit-learn
# MAGIC are the runtime's.

# COMMAND ----------

import importlib.util
from pathlib import Path

source = Path.cwd().parent.parent
if wheel := dbutils.widgets.get("wheel"):
    requirement = f"{wheel}[gguf]"
elif (source / "databricks" / "register.py").exists():
    requirement = f"{source}[gguf]"
elif importlib.util.find_spec("databricks.register"):
    requirement = "gguf"  # the cluster has the wheel
else:
    raise ValueError("expected the path of Testigo's wheel in the widget 'wheel', or this notebook in a Git folder")

# COMMAND ----------

# MAGIC %pip install --quiet $requirement

# COMMAND ----------

dbutils.library.restartPython()

# COMMAND ----------

# MAGIC %md
# MAGIC ## 2. Train
# MAGIC
# MAGIC Transactions, one in ten a fraud; two forests: the champion, and a deeper challenger.

# COMMAND ----------

import pandas as pd
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

FEATURES = ["amount", "hour", "distance_km", "merchant_age_days", "card_age_days", "payments_today", "refunds",
            "country_risk", "device_risk", "balance"]
n_rows, n_trees = int(dbutils.widgets.get("rows")), int(dbutils.widgets.get("trees"))
X, labels = make_classification(n_rows, n_features=len(FEATURES), n_informative=7, weights=[0.9], random_state=0)
table = pd.DataFrame(X, columns=FEATURES)
X_train, X_test, y_train, y_test = train_test_split(table, labels, random_state=0)
forests = {
    "champion": RandomForestClassifier(n_trees, max_depth=6, n_jobs=-1, random_state=0).fit(X_train, y_train),
    "challenger": RandomForestClassifier(n_trees, max_depth=12, n_jobs=-1, random_state=0).fit(X_train, y_train)}
for alias, forest in forests.items():
    forest.n_jobs = 1  # many threads are slower for one row
    print(f"{alias}: accuracy {forest.score(X_test, y_test):.3f}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## 3. Log and register
# MAGIC
# MAGIC `from_sklearn` turns a forest into a model of the native kernels and checks it against the forest; `log_model`
# MAGIC packages it as code and weights, without pickle, and registers a version with an alias.

# COMMAND ----------

from databricks import register

import kernels
import mlflow

name = dbutils.widgets.get("model")
if mlflow.get_registry_uri().startswith("databricks-uc"):  # models there are catalog.schema.name
    registered_name = ".".join([*spark.sql("SELECT current_catalog(), current_schema()").first(), name])
else:
    registered_name = name
natives, versions, runs = {}, {}, []
for alias, forest in forests.items():
    natives[alias] = kernels.from_sklearn(forest, name=name)
    with mlflow.start_run(run_name=alias) as run:
        mlflow.log_metric("accuracy", forest.score(X_test, y_test))
        logged = register.log_model(natives[alias], name=name, registered_model_name=registered_name, alias=alias)
    versions[alias] = logged.registered_model_version
    runs.append(run.info.run_id)
    print(f"models:/{registered_name}@{alias} is version {versions[alias]}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## 4. Create the endpoint
# MAGIC
# MAGIC Nine requests in ten go to the champion, one to the challenger. An endpoint takes some minutes to deploy;
# MAGIC where none can be created, the reason is printed, and the request that would have been sent.

# COMMAND ----------

import secrets

from databricks import endpoints
from databricks.sdk.errors import DatabricksError

endpoint = f"{name}-{secrets.token_hex(3)}".replace("_", "-")
entities = [endpoints.entity(registered_name, version, name=alias) for alias, version in versions.items()]
traffic = {"champion": 90, "challenger": 10}
patience = endpoints.Patience(poll_s=float(dbutils.widgets.get("poll_s")), say=print)
created, why_not = False, "the widget says so"
try:
    if dbutils.widgets.get("endpoint") == "create":
        workspace = endpoints.connect()
        endpoints.create(workspace, endpoint, entities, traffic, patience=None)
        created = True
        endpoints.wait(workspace, endpoint, patience)
except (endpoints.EndpointError, DatabricksError, OSError) as error:
    why_not = str(error).partition(". Config: ")[0]
    if created:
        endpoints.delete(workspace, endpoint)
        created = False
if not created:
    print(f"No endpoint is created: {why_not}.\nWhat would be sent:")
    endpoints.create(endpoints.DryRun(None, endpoints.connect), endpoint, entities, traffic, patience=None)

# COMMAND ----------

# MAGIC %md
# MAGIC ## 5. Query
# MAGIC
# MAGIC The same requests, in MLflow's format, go to the endpoint and to `python -m server` on this machine.

# COMMAND ----------

import atexit
import http.client
import json
import operator
import re
import subprocess
import sys
import tempfile
from collections import Counter

folder = tempfile.TemporaryDirectory()
kernels.save(natives["champion"], f"{folder.name}/champion.gguf")
server = subprocess.Popen([sys.executable, "-m", "server", f"{folder.name}/champion.gguf", "--port", "0"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
atexit.register(server.kill)  # should a cell below fail
address = re.search(r"http://(\S+?):(\d+)", server.stdout.readline())
connection = http.client.HTTPConnection(address[1], int(address[2]))


def payload(rows: pd.DataFrame) -> dict:
    return {"dataframe_split": {"columns": FEATURES, "data": rows.to_numpy().tolist()}}


def ask_server(rows: pd.DataFrame) -> dict:
    connection.request("POST", "/invocations", json.dumps(payload(rows)), {"Content-Type": "application/json"})
    return json.loads(connection.getresponse().read())


def ask_endpoint(rows: pd.DataFrame) -> dict:
    return endpoints.query(workspace, endpoint, payload(rows))


rows = X_test.head(100)
wanted = forests["champion"].predict(rows).tolist()
right = sum(map(operator.eq, ask_server(rows)["predictions"], wanted))
print(f"the server agrees with scikit-learn on {right} of {len(rows)} rows")
connection.close()  # the next request opens it again; the server closes idle ones
if created:
    answers = [ask_endpoint(X_test.iloc[[i]]) for i in range(100)]
    print("served by", dict(Counter(answer["served-model-name"] for answer in answers)))
    right = sum(answer["predictions"] == forests[answer["served-model-name"]].predict(X_test.iloc[[i]]).tolist()
                for i, answer in enumerate(answers))
    print(f"the endpoint agrees with scikit-learn on {right} of {len(answers)} rows")

# COMMAND ----------

# MAGIC %md
# MAGIC ## 6. Batch: a Spark UDF, and `score`
# MAGIC
# MAGIC `spark_udf` is MLflow's way to apply any registered model. `score` gives each worker the kernels themselves
# MAGIC and Arrow batches; a row that cannot be scored comes back with the reason instead of a guess.

# COMMAND ----------

import time

from databricks.batch import score
from pyspark.sql import functions as F

data = spark.createDataFrame(table.assign(id=range(n_rows), label=labels))
udf = mlflow.pyfunc.spark_udf(spark, f"models:/{registered_name}@champion", result_type="long", env_manager="local")
by_udf = data.withColumn("prediction", udf(F.struct(*FEATURES)))
by_score = score(data, f"models:/{registered_name}@champion")
display(by_score.limit(5))


def run(df) -> tuple[pd.Series, float]:
    """The predictions, and rows/s from the first call to the last row: workers start and load the model meanwhile."""
    start = time.perf_counter()
    predictions = df.select("id", "prediction").toPandas().set_index("id")["prediction"].sort_index()
    return predictions, n_rows / (time.perf_counter() - start)


udf_predictions, udf_speed = run(by_udf)
score_predictions, score_speed = run(by_score)
agree = int((udf_predictions == score_predictions).sum())
print(f"spark_udf and score agree on {agree} of {n_rows} rows")

# COMMAND ----------

# MAGIC %md
# MAGIC ## 7. Accuracy, and the A/B decision
# MAGIC
# MAGIC On rows that were not trained on. Where there is an endpoint, the better version gets all traffic; `roll_back`
# MAGIC would undo that.

# COMMAND ----------

held_out = spark.createDataFrame(X_test.assign(label=y_test))
scored = {alias: score(held_out, f"models:/{registered_name}@{alias}") for alias in versions}
accuracies = {alias: rows.filter("prediction = label").count() / len(X_test) for alias, rows in scored.items()}
display(pd.DataFrame({"version": versions, "accuracy": accuracies}).rename_axis("alias").reset_index())
better = max(accuracies, key=accuracies.get)
if created:
    endpoints.promote(workspace, endpoint, better, patience=patience)
    endpoints.roll_back(workspace, endpoint, patience=patience)
    endpoints.promote(workspace, endpoint, better, patience=patience)
    routes = endpoints.show(workspace, endpoint).config.traffic_config.routes
    print("traffic:", {route.served_model_name: route.traffic_percentage for route in routes})
print(f"{better} is the better one")

# COMMAND ----------

# MAGIC %md
# MAGIC ## 8. Latency and throughput

# COMMAND ----------

loaded = mlflow.pyfunc.load_model(f"models:/{registered_name}@champion")
one_row = X_test.head(1)
ways = {"scikit-learn, in process": forests["champion"].predict, "mlflow.pyfunc, in process": loaded.predict,
        "kernels, in process": natives["champion"].predict, "python -m server, /invocations": ask_server}
if created:
    ways["endpoint"] = ask_endpoint


def latencies(call, times: int = 100) -> list[float]:
    call(one_row)
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        call(one_row)
        measured.append((time.perf_counter() - start) * 1e3)
    return sorted(measured)


measured = {way: latencies(call) for way, call in ways.items()}
display(pd.DataFrame({"one row": list(measured), "p50 ms": [times[50] for times in measured.values()],
                      "p99 ms": [times[99] for times in measured.values()]}))
display(pd.DataFrame({"table": ["spark_udf", "score"], "rows/s": [udf_speed, score_speed]}))

# COMMAND ----------

# MAGIC %md
# MAGIC ## 9. Clean up

# COMMAND ----------

atexit.unregister(server.kill)
server.terminate()
server.wait()
server.stdout.close()
connection.close()
folder.cleanup()
if dbutils.widgets.get("clean_up") == "yes":
    if created:
        endpoints.delete(workspace, endpoint)
    registry = mlflow.MlflowClient()
    for version in versions.values():
        registry.delete_model_version(registered_name, version)
    if not registry.search_model_versions(f"name = '{registered_name}'"):
        registry.delete_registered_model(registered_name)
    for run_id in runs:
        registry.delete_run(run_id)
    print("deleted what was made:", *["the endpoint,"] * created, "the model's versions, the runs")
