"""`python -m databricks.batch`: tables in, tables out, by the Arrow engine; every row once, or one line that says why.

The model is 10 · a + b, so that each prediction tells its row.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

import kernels
from databricks import arrow_engine, batch, commit, job

N = 50_000
RNG = np.random.default_rng(8)
BAD = (7, 20_000, 49_999)  # rows with a null


def table_of(n: int = N, first: int = 0, bad: tuple[int, ...] = ()) -> pa.Table:
    a, b = RNG.normal(size=(2, n))
    mask = np.isin(np.arange(n), bad)
    return pa.table({"b": b, "id": pa.array(range(first, first + n), pa.int64()), "note": ["x"] * n,
                     "a": pa.array(a, mask=mask)})


def expected(table: pa.Table) -> dict:
    return {row["id"]: 10 * row["a"] + row["b"] for row in table.to_pylist() if row["a"] is not None}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, pa.Table]:
    """A Parquet file of several row groups, and what is in it."""
    path, table = tmp_path_factory.mktemp("in") / "in.parquet", table_of(bad=BAD)
    pq.write_table(table, path, row_group_size=17_000)
    return path, table


@pytest.fixture
def score(line, tmp_path, capsys):
    """Run a job → (exit status, the last line of stdout, stderr)."""
    def run(*args: object, output: Path = tmp_path / "out", model: str = line) -> tuple[int, str, str]:
        status = batch.main(["--model", model, "--output", str(output), *map(str, args)])
        said = capsys.readouterr()
        return status, (said.out.splitlines() or [""])[-1], said.err
    return run


def read(path: Path, format_: str = "parquet") -> pa.Table:
    if format_ == "delta":
        return DeltaTable(path).to_pyarrow_table()
    return pa.dataset.dataset(path, format=format_).to_table()


def by_id(table: pa.Table, column: str = "prediction") -> dict:
    assert table.num_rows == len(set(table["id"].to_pylist()))
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist()))


def close(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(abs(found[key] - wanted[key]) < 1e-9 for key in wanted)


# ---- tables in and out -------------------------------------------------------------------------------------

def test_every_row_is_scored_or_rejected_and_counted(score, source, tmp_path):
    path, table = source
    status, last, said = score("--input", path, "--key", "id")
    out, rejects = read(tmp_path / "out"), read(tmp_path / "out-rejects")
    assert status == 0 and out.column_names == ["id", "prediction"] and close(by_id(out), expected(table))
    assert rejects.to_pylist() == [{"id": i, "reason": "column 'a' is null, and the model needs a value there"}
                                   for i in BAD]
    assert re.fullmatch(r"50000 rows, 3 rejects, \d+ rows/s, [\d.]+ s", last)
    assert "kernels compiled, or read from the cache, after" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-rejects"]  # nothing else is left


@pytest.mark.parametrize("format_", ["parquet", "csv", "delta"])
def test_formats_hold_the_same_numbers_to_the_bit(score, source, tmp_path, format_):
    assert score("--input", source[0], "--key", "id", output=tmp_path / "reference")[0] == 0
    assert score("--input", source[0], "--key", "id", "--format", format_)[0] == 0
    reference, found = (by_id(read(*where)) for where in ((tmp_path / "reference",), (tmp_path / "out", format_)))
    assert found == reference
    assert by_id(read(tmp_path / "out-rejects", format_), "reason").keys() == set(BAD)


def test_one_thread_and_many_write_the_same_bytes(score, source, tmp_path):
    for threads in (1, 5):
        assert score("--input", source[0], "--key", "id", "--threads", threads, output=tmp_path / str(threads))[0] == 0
    one, many = (next((tmp_path / name).glob("*.parquet")).read_bytes() for name in ("1", "5"))
    assert one == many


def test_without_a_key_the_output_is_predictions_in_order_and_rejects_hold_row_numbers(score, source, tmp_path):
    assert score("--input", source[0])[0] == 0
    out = read(tmp_path / "out")
    assert out.column_names == ["prediction"]
    assert np.allclose(out["prediction"], list(expected(source[1]).values()), atol=1e-9)
    assert read(tmp_path / "out-rejects")["row"].to_pylist() == list(BAD)


def test_rejects_are_a_table_when_empty_and_replace_those_of_an_earlier_job(score, source, tmp_path):
    pq.write_table(table_of(10), tmp_path / "good.parquet")
    for path in (source[0], tmp_path / "good.parquet"):
        assert score("--input", path, "--key", "id", "--rejects", tmp_path / "refused")[0] == 0
    refused = read(tmp_path / "refused")
    assert refused.num_rows == 0 and refused.column_names == ["id", "reason"]
    assert read(tmp_path / "out").num_rows == 10 and not (tmp_path / "out-rejects").exists()


def test_folder_of_files_with_a_column_in_its_folders_names(score, tmp_path):
    tables = [table_of(100), table_of(100, 100)]
    for day, table in zip(("2026-01-01", "a b"), tables):
        folder = tmp_path / "in" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part.parquet")
    (tmp_path / "in" / "_SUCCESS").touch()
    assert score("--input", tmp_path / "in", "--key", "day,id")[0] == 0
    out = read(tmp_path / "out")
    assert close(by_id(out), expected(pa.concat_tables(tables)))
    assert out["day"].to_pylist() == ["2026-01-01"] * 100 + ["a b"] * 100


def test_delta_table_with_partitions_and_a_column_that_came_later(score, tmp_path):
    first, second = table_of(100), table_of(100, 100).append_column("c", pa.array([1.5] * 100))
    write_deltalake(tmp_path / "in", first.set_column(2, "note", [["x y"] * 100]), partition_by=["note"])
    write_deltalake(tmp_path / "in", second, mode="append", schema_mode="merge")
    assert score("--input", tmp_path / "in", "--key", "id,note,c")[0] == 0
    out = read(tmp_path / "out")
    assert close(by_id(out), expected(pa.concat_tables([first, second.drop_columns("c")])))
    assert by_id(out, "note")[3] == "x y" and by_id(out, "c")[3] is None and by_id(out, "c")[150] == 1.5


def test_csv_rows_are_all_accounted_for(score, tmp_path):
    (tmp_path / "in.csv").write_text('id,a,b,note\n007,1,2,"two\nlines"\n008,x,2,\n009,1,2\n,3,4,"quoted, comma"\n'
                                     '011,,1,-\n')
    status, last, _ = score("--input", tmp_path / "in.csv", "--key", "id")
    assert status == 0 and last.startswith("5 rows, 3 rejects")
    assert [(row["id"], round(row["prediction"], 9)) for row in read(tmp_path / "out").to_pylist()] == [
        ("007", 12), (None, 34)]
    assert read(tmp_path / "out-rejects").to_pylist() == [
        {"id": "008", "reason": "column 'a' is not a number"},
        {"id": "011", "reason": "column 'a' is null, and the model needs a value there"},
        {"id": None, "reason": "in.csv: row 4 has 3 columns of 4"}]


def test_empty_table_becomes_an_empty_table(score, tmp_path):
    pq.write_table(table_of(0), tmp_path / "in.parquet")
    status, last, _ = score("--input", tmp_path / "in.parquet", "--key", "id")
    assert status == 0 and last.startswith("0 rows, 0 rejects")
    assert read(tmp_path / "out").num_rows == 0


def test_columns_of_a_model_without_names_are_read_in_order(score, tmp_path, line):
    pq.write_table(table_of(10), tmp_path / "in.parquet")
    options = ("--input", tmp_path / "in.parquet", "--key", "id")
    status, _, said = score(*options, model=str(kernels.DEFAULT_MODEL))
    assert status == 2 and "--columns must name its 5 features" in said
    table = pa.table({f"c{i}": RNG.normal(size=10) for i in range(5)})
    pq.write_table(table, tmp_path / "five.parquet")
    order = [3, 1, 0, 4, 2]
    assert score("--input", tmp_path / "five.parquet", "--columns", ",".join(f"c{i}" for i in order),
                 model=str(kernels.DEFAULT_MODEL))[0] == 0
    rows = np.stack([table[f"c{i}"].to_numpy() for i in order], axis=1)
    expected = kernels.load(kernels.DEFAULT_MODEL).predict(rows)
    assert read(tmp_path / "out")["prediction"].to_pylist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:::mlflow")
def test_models_of_mlflow_are_read_with_their_columns_and_their_answer(score, tmp_path):
    import mlflow.sklearn
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression
    frame = pandas.DataFrame(RNG.normal(size=(100, 2)), columns=["a", "b"])
    estimator = LogisticRegression().fit(frame.to_numpy(), (frame.a > 0.2).astype(int))
    mlflow.sklearn.save_model(estimator, tmp_path / "model", signature=infer_signature(frame),
                              pyfunc_predict_fn="predict_proba", serialization_format="cloudpickle",
                              pip_requirements=[])
    pq.write_table(pa.table({"b": frame.b, "a": frame.a}), tmp_path / "in.parquet")
    assert score("--input", tmp_path / "in.parquet", "--allow-pickle", model=str(tmp_path / "model"))[0] == 0
    found = read(tmp_path / "out")["prediction"].to_pylist()
    assert np.allclose(found, estimator.predict_proba(frame.to_numpy()), atol=1e-9)


# ---- append and merge --------------------------------------------------------------------------------------

@pytest.mark.parametrize("format_", ["parquet", "csv", "delta"])
def test_appended_once_however_often_the_job_runs(score, tmp_path, format_):
    tables = [table_of(100, bad=(3,)), table_of(100, 100, bad=(5,))]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
    options = ("--key", "id", "--mode", "append", "--format", format_)
    for i in (0, 1, 1, 0):
        status, last, _ = score("--input", tmp_path / f"{i}.parquet", *options)
        assert status == 0
    assert last.endswith("this job is in the table already")
    assert close(by_id(read(tmp_path / "out", format_)), expected(pa.concat_tables(tables)))
    assert by_id(read(tmp_path / "out-rejects", format_), "reason").keys() == {3, 105}


@pytest.mark.parametrize("format_", ["parquet", "csv", "delta"])
def test_appended_again_after_another_job_has_overwritten_the_table(score, tmp_path, format_):
    for i in range(2):
        pq.write_table(table_of(10, 10 * i), tmp_path / f"{i}.parquet")
    for i, mode in ((0, "append"), (1, "overwrite"), (0, "append")):
        assert score("--input", tmp_path / f"{i}.parquet", "--key", "id", "--mode", mode, "--format", format_)[0] == 0
    assert by_id(read(tmp_path / "out", format_)).keys() == set(range(20))


def test_merge_changes_rows_of_the_same_key_and_adds_others(score, tmp_path):
    first, second = table_of(100), table_of(100, 50, bad=(0, 99))
    options = ("--key", "id", "--mode", "merge", "--format", "delta")
    for i, table in enumerate((first, second)):
        pq.write_table(table, tmp_path / f"{i}.parquet")
        assert score("--input", tmp_path / f"{i}.parquet", *options)[0] == 0
    assert close(by_id(read(tmp_path / "out", "delta")), expected(first) | expected(second))
    assert by_id(read(tmp_path / "out-rejects", "delta"), "reason").keys() == {50, 149}


def test_merge_done_again_after_another_one_changes_the_rows_again(score, tmp_path):
    tables = [table_of(10), table_of(10)]
    for i in (0, 1, 0):
        pq.write_table(tables[i], tmp_path / "in.parquet")
        os.utime(tmp_path / "in.parquet", ns=(i, i))  # the same job
        assert score("--input", tmp_path / "in.parquet", "--key", "id", "--mode", "merge", "--format", "delta")[0] == 0
    assert close(by_id(read(tmp_path / "out", "delta")), expected(tables[0]))


def test_merge_refuses_a_key_that_is_there_twice(score, tmp_path):
    pq.write_table(pa.concat_tables([table_of(10), table_of(1)]), tmp_path / "in.parquet")
    status, _, said = score("--input", tmp_path / "in.parquet", "--key", "id", "--mode", "merge", "--format", "delta")
    assert status == 2 and "each key once" in said and not (tmp_path / "out").exists()


# ---- refused -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "said"), [
    (["--key", "nobody"], "expected one column 'nobody' for the key, found none"),
    (["--mode", "merge", "--format", "delta"], "--mode merge needs --key"),
    (["--mode", "merge", "--key", "id"], "--mode merge needs --format delta"),
    (["--threads", "0"], "--threads: expected 1 or more"),
    (["--key", "id", "--prediction-column", "id"], "expected different names"),
    (["--columns", "a"], "expected 2 different columns"),
    (["--rejects", "OUT"], "expected a path beside --output"),
    (["--rejects", "OUT/in"], "expected a path beside --output"),
    (["--rejects", "IN"], "expected paths apart from --input"),
])
def test_job_that_cannot_be_is_refused_in_one_line_before_anything_is_written(score, source, tmp_path, options, said):
    named = {"OUT": str(tmp_path / "out"), "OUT/in": str(tmp_path / "out/in"), "IN": str(source[0])}
    status, out, error = score("--input", source[0], *(named.get(option, option) for option in options))
    assert (status, out) == (2, "") and said in error
    assert len([line for line in error.splitlines() if line.startswith("python -m databricks.batch: ")]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "said"), [
    ("catalog.schema.table", "a table of a catalog needs --engine spark"), ("s3://bucket/x", "needs --engine spark"),
    ("nowhere.parquet", "no such file or folder"), ("folder", "found none"), ("both", "found both"),
    ("text.txt", "expected Parquet"), ("cut.parquet", "Parquet"), ("strings.csv", "expected numbers for feature 0"),
    ("short.csv", "expected one column 'b' for feature 1, found none"), ("twice.csv", "'a' for feature 0, found 2"),
    ("differ", r"2.parquet: column 'id': expected int64 as in the first file, found string"),
    ("lacks", r"2.parquet: expected one column 'a'"),
])
def test_input_that_is_no_table_of_the_model_is_refused(score, tmp_path, name, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "both", "differ", "lacks"):
        Path(folder).mkdir()
    Path("both/a.csv").touch()
    pq.write_table(table_of(3), "both/a.parquet")
    pq.write_table(table_of(3), "differ/1.parquet")
    pq.write_table(table_of(3).set_column(1, "id", [["x"] * 3]), "differ/2.parquet")
    pq.write_table(table_of(3), "lacks/1.parquet")
    pq.write_table(table_of(3).drop_columns("a"), "lacks/2.parquet")
    for file, text in {"text.txt": "a,b\n1,2\n", "cut.parquet": "PAR1", "strings.csv": "id,a,b\n1,x,1\n2,y,2\n",
                       "short.csv": "id,a\n1,1\n", "twice.csv": "id,a,b,a\n1,2,3,4\n"}.items():
        Path(file).write_text(text)
    status, _, error = score("--input", name, "--key", "id")
    assert status == 2 and re.search(said, error) and error.count("python -m databricks.batch") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out-rejects").exists()


def test_damaged_file_leaves_the_table_as_it_was(score, source, tmp_path):
    assert score("--input", source[0], "--key", "id")[0] == 0
    content = bytearray(source[0].read_bytes())
    content[len(content) // 2:len(content) // 2 + 5000] = bytes(5000)
    (tmp_path / "in.parquet").write_bytes(content)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    status, _, error = score("--input", tmp_path / "in.parquet", "--key", "id")
    assert status == 2 and "python -m databricks.batch: " in error.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


@pytest.mark.parametrize(("name", "mode"), [
    ("thesis.tex", "overwrite"), ("thesis.tex", "append"), (".env", "overwrite"), ("raw.csv", "overwrite")])
def test_other_files_are_not_lost(score, source, tmp_path, name, mode):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("x")
    status, _, error = score("--input", source[0], "--key", "id", "--mode", mode)
    assert status == 2 and "other files would be lost" in error
    assert [path.name for path in tmp_path.rglob("*")] == ["out", name]


def test_what_spark_writes_beside_rows_goes_with_them(score, source, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("_SUCCESS", "._SUCCESS.crc", "part-0.snappy.parquet", ".part-0.snappy.parquet.crc"):
        (tmp_path / "out" / name).touch()
    assert score("--input", source[0], "--key", "id")[0] == 0
    assert close(by_id(read(tmp_path / "out")), expected(source[1])) and len(list((tmp_path / "out").iterdir())) == 1


def test_delta_table_is_not_overwritten_with_parquet(score, source, tmp_path):
    write_deltalake(tmp_path / "out", table_of(3))
    status, _, error = score("--input", source[0])
    assert status == 2 and "a Delta table would be lost" in error and DeltaTable(tmp_path / "out").version() == 0


@pytest.mark.parametrize("format_", ["parquet", "csv", "delta"])
def test_append_to_a_table_of_other_columns_is_refused(score, source, tmp_path, format_):
    options = ("--input", source[0], "--format", format_, "--mode", "append")
    assert score(*options, "--key", "id")[0] == 0
    status, _, error = score(*options, "--key", "id,note")
    assert status == 2 and "expects a table of the columns 'id' int64, 'note' string, 'prediction' double" in error


@pytest.mark.parametrize(("format_", "type_"), [("csv", pa.list_(pa.int8())), ("delta", pa.month_day_nano_interval())])
def test_key_that_the_format_cannot_hold_is_refused(score, tmp_path, format_, type_, monkeypatch):
    table = table_of(3).set_column(1, "id", pa.nulls(3, type_))
    if pa.types.is_list(type_):
        pq.write_table(table, tmp_path / "in.parquet")
    else:
        monkeypatch.setattr("databricks.tables.pq.read_schema", lambda path: table.schema)
        pq.write_table(table.drop_columns("id"), tmp_path / "in.parquet")
    status, _, error = score("--input", tmp_path / "in.parquet", "--key", "id", "--format", format_)
    assert status == 2 and f"--format {format_} cannot hold these columns" in error


def test_second_job_of_the_same_output_is_refused_while_the_first_one_runs(score, source, tmp_path):
    from databricks.commit import staging
    with staging(tmp_path / "out"):
        status, _, error = score("--input", source[0])
    assert status == 2 and "another job is writing this table" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_link_to_a_table_stays_one(score, source, tmp_path, mode):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere" / "real")
    assert score("--input", source[0], "--key", "id", "--mode", mode)[0] == 0
    assert (tmp_path / "out").is_symlink() and close(by_id(read(tmp_path / "elsewhere" / "real")), expected(source[1]))
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real"]


def test_table_outlives_a_job_that_dies_where_folders_cannot_be_exchanged_in_one_step(
        score, line, source, tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "_exchange_in_one", lambda one, other: False)
    options = ("--input", source[0], "--key", "id")
    for _ in range(2):
        assert score(*options)[0] == 0
    folder, target = tmp_path / ".out.partial", tmp_path / "out"
    folder.mkdir()
    target.rename(folder / f"output{commit.OLD}")  # and there it died
    with pytest.raises(OSError, match="disk full"), monkeypatch.context() as patch:
        patch.setattr(commit, "Writer", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        arrow_engine.run(job.Job(line, str(source[0]), str(target), str(tmp_path / "out-rejects"), key=("id",)))
    assert close(by_id(read(target)), expected(source[1])) and not folder.exists()


def test_other_writer_of_a_delta_table_is_told_of_in_one_line(score, source, tmp_path, monkeypatch):
    from deltalake.exceptions import CommitFailedError

    def fail(*_, **__):
        raise CommitFailedError("a concurrent transaction\nand more")
    monkeypatch.setattr("deltalake.write_deltalake", fail)
    status, _, error = score("--input", source[0], "--format", "delta")
    assert status == 2 and error.splitlines()[-1].endswith("out-rejects: a concurrent transaction")


# ---- progress and memory -----------------------------------------------------------------------------------

def test_progress_is_told_once_a_second_at_most_with_the_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    progress = job.Progress(10_000)
    for tenth in range(1, 36):
        now[0] = 100 + tenth / 10
        progress.update(100 * tenth)
    assert capsys.readouterr().err.splitlines() == [
        "1,000 of 10,000 rows, 1,000 rows/s, 9 s left", "2,000 of 10,000 rows, 1,000 rows/s, 8 s left",
        "3,000 of 10,000 rows, 1,000 rows/s, 7 s left"]


PEAK = """
import sys
from pathlib import Path
import numpy, pyarrow, pyarrow.parquet, kernels
from databricks import batch
def kib(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")
idle = kib("VmRSS")
assert batch.main(sys.argv[1:]) == 0
print(kib("VmHWM") - idle)
"""


def test_memory_is_bounded_though_the_file_is_one_row_group(line, tmp_path):
    n = 1_000_000
    table = pa.table({"a": RNG.normal(size=n), "b": RNG.normal(size=n),
                      "key": [f"{i:0200}" for i in range(n)]})  # 216 MB
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=n, compression="none", use_dictionary=False)
    assert (tmp_path / "in.parquet").stat().st_size > 200 << 20
    del table
    done = subprocess.run([sys.executable, "-c", PEAK, "--model", line, "--input", tmp_path / "in.parquet", "--output",
                           tmp_path / "out", "--key", "key"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 320 << 10  # KiB, half of it what is compiled and loaded
