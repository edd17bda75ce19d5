"""Arrow batches scored: against the training libraries' own answers, and each row that has none with its reason."""

from decimal import Decimal
from pathlib import Path

import lightgbm
import numpy as np
import pandas
import pyarrow as pa
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

import kernels
from databricks.scoring import BatchError, Scorer
from tests.server.trained_models import shop_frame, write_all

NAMES = ("alpha", "beta", "gamma")
RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(400, 3))
LABELS = np.array(["no", "yes"])[(ROWS.sum(axis=1) > 0).astype(int)]
FRAME = pandas.DataFrame(ROWS, columns=NAMES)


@pytest.fixture(scope="module")
def forest(tmp_path_factory) -> tuple[RandomForestClassifier, str]:
    """A forest of named columns, with strings for labels."""
    path = tmp_path_factory.mktemp("forest") / "forest.gguf"
    estimator = RandomForestClassifier(10, max_depth=4, random_state=0).fit(FRAME, LABELS)
    kernels.save(kernels.from_sklearn(estimator), path)
    return estimator, str(path)


@pytest.fixture(scope="module")
def boosters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boosters")
    write_all(folder)
    return folder


def batch_of(rows: np.ndarray = ROWS, **more: pa.Array) -> pa.RecordBatch:
    columns = {"id": pa.array(range(len(rows)))} | dict(zip(NAMES, map(pa.array, rows.T.copy()))) | more
    return pa.record_batch(list(columns.values()), names=list(columns))


def test_rows_are_scored_as_the_estimator_does(forest):
    estimator, path = forest
    scored, rejected = Scorer(path, key=["id"]).score(batch_of())
    assert scored["id"].to_pylist() == list(range(len(ROWS))) and not len(rejected)
    assert scored["prediction"].to_pylist() == estimator.predict(FRAME).tolist()


def test_columns_are_found_by_name_in_whatever_order(forest):
    estimator, path = forest
    batch = batch_of().select(["gamma", "alpha", "id", "beta"])
    scored, _ = Scorer(path, key=["id"], prediction_column="said").score(batch)
    assert scored["said"].to_pylist() == estimator.predict(FRAME).tolist()


def test_probabilities_are_a_list_a_row(forest):
    estimator, path = forest
    scored, _ = Scorer(path, answer="predict_proba").score(batch_of())
    assert scored.schema.field("prediction").type == pa.list_(pa.float64())
    assert np.allclose(scored["prediction"].to_pylist(), estimator.predict_proba(FRAME), atol=1e-12)


def test_several_outputs_are_a_list_a_row(boosters):
    path = str(boosters / "three.txt")
    scored, _ = Scorer(path, columns=NAMES).score(batch_of())
    expected = lightgbm.Booster(model_file=path).predict(ROWS, num_threads=1)
    assert np.allclose(scored["prediction"].to_pylist(), expected, atol=1e-12)


def test_single_precision_is_scored_as_the_estimator_does(forest):
    estimator, path = forest
    scored, _ = Scorer(path).score(batch_of(ROWS.astype(np.float32)))
    assert scored["prediction"].to_pylist() == estimator.predict(FRAME.astype(np.float32)).tolist()


@pytest.mark.parametrize("encoded", [False, True])
def test_strings_become_categories_and_null_is_missing(boosters, encoded):
    frame, _ = shop_frame()
    path = str(boosters / "shop.txt")
    table = pa.Table.from_pandas(frame.astype({"colour": str, "country": str}) if not encoded else frame)
    scored, rejected = Scorer(path).score(table.combine_chunks().to_batches()[0])
    expected = lightgbm.Booster(model_file=path).predict(frame, num_threads=1)
    assert np.allclose(scored["prediction"], expected, atol=1e-12)
    assert not len(rejected)


@pytest.mark.parametrize(("column", "numbers"), [
    (pa.array([1, 2, -3], pa.int8()), [1, 2, -3]), (pa.array([1, 2, 3], pa.uint64()), [1, 2, 3]),
    (pa.array([2**53, -2**53, 7], pa.int64()), [2**53, -2**53, 7]), (pa.array([True, False, True]), [1, 0, 1]),
    (pa.array([0.5, 1, 2], pa.float16()), [0.5, 1, 2]), (pa.array([0.5, 1, 2], pa.float32()), [0.5, 1, 2]),
    (pa.array([Decimal("1.25"), Decimal("-2.50"), Decimal("0.10")]), [1.25, -2.5, 0.1]),
    (pa.array([5, 6, 5]).dictionary_encode(), [5, 6, 5]),
], ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "")
def test_each_type_of_numbers_is_taken(line, column, numbers):
    scored, _ = Scorer(line).score(pa.record_batch([column, pa.array([0.0] * 3)], names=["a", "b"]))
    assert np.allclose(scored["prediction"], 10 * np.array(numbers, float), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("column", "reason"), [
    (pa.array([1.0, None, 2.0]), "column 'a' is null"), (pa.array([1.0, np.nan, 2.0]), "column 'a' is null"),
    (pa.array([1, None, 2]), "column 'a' is null"), (pa.array([1.0, np.inf, 2.0]), "column 'a' is infinite"),
    (pa.array([1.0, -np.inf, 2.0], pa.float32()), "column 'a' is infinite"),
    (pa.array([1.0, 1e308, 2.0]), "no finite score"),
    (pa.array([1, 2**53 + 1, 2]), "column 'a' is an integer beyond 2**53"),
    (pa.array([1, -2**60, 2]), "column 'a' is an integer beyond 2**53"),
    (pa.array([1, 2**64 - 1, 2], pa.uint64()), "column 'a' is an integer beyond 2**53"),
])
def test_row_without_a_score_is_rejected_with_its_key_and_reason(line, column, reason):
    batch = pa.record_batch([pa.array(["x", "y", "z"]), column, pa.array([1.0] * 3)], names=["id", "a", "b"])
    scored, rejected = Scorer(line, key=["id"]).score(batch)
    assert scored["id"].to_pylist() == ["x", "z"] and np.allclose(scored["prediction"], [11, 21])
    assert rejected["id"].to_pylist() == ["y"] and rejected["reason"][0].as_py().startswith(reason)


def test_rows_are_rejected_exactly_where_predict_refuses_them_alone(line):
    rows = RNG.choice([1.0, -2.0, np.nan, np.inf, -np.inf, 1e308, 3e307], (500, 2), p=[0.4, 0.4, *[0.04] * 5])
    batch = pa.record_batch([pa.array(range(500)), *map(pa.array, rows.T.copy())], names=["id", "a", "b"])
    scored, rejected = Scorer(line, key=["id"]).score(batch)
    model, expected = kernels.load(line), {}
    for i, row in enumerate(rows):
        try:
            expected[i] = model.predict(row[None]).item()
        except kernels.ModelError:
            continue
    assert dict(zip(scored["id"].to_pylist(), scored["prediction"].to_pylist())) == expected
    assert 0 < len(rejected) and sorted(expected.keys() | rejected["id"].to_pylist()) == list(range(500))
    assert len(rejected) + len(scored) == 500


def test_batch_of_nothing_but_rejects_and_batch_of_nothing(line):
    scorer = Scorer(line, key=["id"])
    nulls = pa.record_batch([pa.array(range(20)), pa.nulls(20), pa.nulls(20, pa.float64())], names=["id", "a", "b"])
    scored, rejected = scorer.score(nulls)
    assert (len(scored), len(rejected)) == (0, 20)
    assert scored.schema == scorer.output_schema(nulls.schema)
    assert rejected.schema == scorer.rejects_schema(nulls.schema)
    assert [len(one) for one in scorer.score(nulls[:0])] == [0, 0]


def test_unknown_category_is_what_the_model_says(boosters, tmp_path):
    frame, said = shop_frame()
    kernels.save(kernels.from_sklearn(_encoded_forest(frame, said)), tmp_path / "strict.gguf")
    batch = pa.record_batch([pa.array(["red", "mauve", "blue"]), pa.array([1.0] * 3)], names=["colour", "amount"])
    scored, rejected = Scorer(str(tmp_path / "strict.gguf"), key=["colour"]).score(batch)
    assert scored["colour"].to_pylist() == ["red", "blue"]
    assert rejected.to_pylist() == [
        {"colour": "mauve", "reason": "column 'colour' is a category that the model does not know"}]


def _encoded_forest(frame: pandas.DataFrame, said: pandas.Series):
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    encoder = ColumnTransformer([("strings", OneHotEncoder(), ["colour"])], remainder="passthrough")
    columns = frame[["colour", "amount"]].astype({"colour": object})
    return make_pipeline(encoder, RandomForestRegressor(3, random_state=0)).fit(columns, said)


def test_numbers_in_text_are_read_and_other_text_is_rejected(line):
    texts = pa.array(["1", " 2.5 ", "-3e1", "", None, "seven", "0x10", "1,5", "nan", ".5", "1e999", "+4"])
    batch = pa.record_batch([texts, pa.array(["0"] * 12)], names=["a", "b"])
    predictions, reasons = Scorer(line, text=True).answers(batch)
    assert [None if one is None else round(one, 9) for one in predictions.to_pylist()] == [
        10, 25, -300, None, None, None, None, None, None, 5, None, 40]
    assert [None if one is None else one.partition(" is ")[2] for one in reasons.to_pylist()] == [
        None, None, None, *["null, and the model needs a value there"] * 2, *["not a number"] * 3,
        "null, and the model needs a value there", None, "infinite or beyond a double", None]


def test_rejects_of_a_job_without_a_key_hold_the_number_of_the_row(line):
    batch = pa.record_batch([pa.array([1.0, None]), pa.array([1.0, 1.0])], names=["a", "b"])
    assert Scorer(line).score(batch, 1000)[1]["row"].to_pylist() == [1001]


def test_key_with_null_is_rejected_where_keys_must_be_whole(line):
    batch = pa.record_batch([pa.array([1, None]), *[pa.array([1.0, 1.0])] * 2], names=["id", "a", "b"])
    _, rejected = Scorer(line, key=["id"], whole_keys=True).score(batch)
    assert rejected.to_pylist() == [{"id": None, "reason": "key column 'id' is null"}]
    assert len(Scorer(line, key=["id"]).score(batch)[0]) == 2


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.drop_columns("beta"), "expected one column 'beta' for feature 1, found none"),
    (lambda t: t.append_column("beta", t["beta"]), "expected one column 'beta' for feature 1, found 2"),
    (lambda t: t.drop_columns("id"), "expected one column 'id' for the key, found none"),
    (lambda t: t.set_column(1, "alpha", pa.array(["1"] * 400)), "expected numbers for feature 0, found string"),
    (lambda t: t.set_column(1, "alpha", pa.array([0] * 400, pa.timestamp("s"))), "expected numbers .* found timestamp"),
    (lambda t: t.set_column(1, "alpha", pa.array([[0]] * 400)), "expected numbers .* found list"),
])
def test_schema_that_does_not_fit_is_refused(forest, change, said):
    with pytest.raises(BatchError, match=said):
        Scorer(forest[1], key=["id"]).check(change(pa.Table.from_batches([batch_of()])).schema)


def test_numbers_for_a_category_are_refused(boosters):
    scorer = Scorer(str(boosters / "shop.txt"))
    schema = pa.schema({"amount": pa.float64(), "colour": pa.int64(), "hour": pa.null(), "country": pa.string()})
    with pytest.raises(BatchError, match="column 'colour': expected strings for feature 1, found int64"):
        scorer.check(schema)
    scorer.check(schema.set(1, pa.field("colour", pa.dictionary(pa.int8(), pa.large_string()))))


@pytest.mark.parametrize(("options", "said"), [
    ({"columns": ["a"]}, "expected 2 different columns"), ({"columns": ["a", "a"]}, "expected 2 different columns"),
    ({"columns": ["a", "c"]}, "'c' is none of them"), ({"key": ["id", "id"]}, "expected different names"),
    ({"key": ["prediction"]}, "expected different names"), ({"key": ["reason"]}, "expected different names"),
    ({"answer": "predict_proba"}, "cannot be given"), ({"answer": "transform"}, "cannot be given"),
])
def test_options_that_do_not_fit_the_model_are_refused(line, options, said):
    with pytest.raises(BatchError, match=said):
        Scorer(line, **options)


def test_columns_of_a_model_with_names_are_its_own_in_its_order(line):
    assert Scorer(line, columns=["b", "a"]).columns == ("a", "b")


def test_model_without_names_needs_columns():
    with pytest.raises(BatchError, match="--columns must name its 5 features"):
        Scorer(str(kernels.DEFAULT_MODEL))
