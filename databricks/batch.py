"""Scoring a table in one job: python -m databricks.batch --model M --input PATH --output PATH. From Python, with Spark:
`from databricks.batch import score, score_stream`.

The rule to keep: what is wrong with a job is said in one line before it starts, with exit status 2; with 0 it ends
when every row of the input is in the output or in the rejects.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import kernels
from databricks.job import FORMATS, MODES, Job, Progress, Summary
from databricks.model_file import model_file
from databricks.scoring import BatchError

ENGINES = ("arrow", "spark")
WITH_SPARK = ("score", "score_stream")  # for data frames and streams; Spark is imported when one of them is


def __getattr__(name: str) -> Any:
    if name not in WITH_SPARK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from databricks import spark_engine
    return getattr(spark_engine, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command → its exit status."""
    options = _parser().parse_args(arguments)
    try:
        print(run(options))
    except (BatchError, kernels.ModelError, OSError) as error:
        print(f"python -m databricks.batch: {str(error).replace(chr(10), ' ')}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m databricks.batch", description="Score a table with a model.",
                                     allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="a model file, an MLflow model's folder, models:/name@alias or runs:/…")
    add("--input", required=True, metavar="PATH|TABLE",
        help="Parquet or CSV, a file or a folder, or a Delta table's folder; with --engine spark a table's name too")
    add("--output", required=True, metavar="PATH|TABLE", help="the folder of the table to write")
    add("--format", choices=FORMATS, default="parquet", help="of the output and the rejects (%(default)s)")
    add("--key", type=_names, default=(), metavar="COLS", help="columns that the output keeps: a,b,…")
    add("--mode", choices=MODES, default="overwrite", help="merge is by --key, into Delta tables (%(default)s)")
    add("--engine", choices=ENGINES, default="arrow", help="arrow is this machine alone (%(default)s)")
    add("--columns", type=_names, metavar="COLS", help="the features in order, for a model without names: a,b,…")
    add("--prediction-column", default="prediction", metavar="NAME", help="(%(default)s)")
    add("--rejects", metavar="PATH|TABLE", help="where rows go that cannot be scored (OUTPUT-rejects)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="(%(default)s)")
    add("--allow-pickle", action="store_true", help="convert a pickled MLflow model, in a process of its own")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError("expected different names with commas between them")
    return names


def run(options: argparse.Namespace) -> Summary:
    """Raises BatchError for options that do not go together, and what the engine raises."""
    output = options.output.rstrip("/") or options.output
    job = Job(options.model, options.input, output, options.rejects or f"{output}-rejects", options.format,
              options.mode, options.key, options.columns, options.prediction_column, options.threads)
    _check(job)
    with model_file(job.model, allow_pickle=options.allow_pickle) as found:
        job = replace(job, model=found.path, names=found.names, answer=found.answer)
        if options.engine == "spark":
            from databricks import spark_engine
            return spark_engine.run(job)
        import pyarrow as pa
        from databricks import arrow_engine
        pa.set_cpu_count(job.threads)
        return arrow_engine.run(job, Progress(None))


def _check(job: Job) -> None:
    if job.threads < 1:
        raise BatchError("--threads: expected 1 or more")
    if job.mode == "merge" and not job.key:
        raise BatchError("--mode merge needs --key")
    if job.mode == "merge" and job.format != "delta":
        raise BatchError("--mode merge needs --format delta")


if __name__ == "__main__":
    sys.exit(main())
