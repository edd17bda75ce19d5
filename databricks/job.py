"""A batch job as it was asked for, what it did, and how it tells of its progress.

The rule to keep: a job's identity depends on what goes into its table and on nothing else, so that a job that is run
again is known.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from databricks.scoring import PREDICT, Scorer

FORMATS, MODES = ("parquet", "delta", "csv"), ("overwrite", "append", "merge")


@dataclass(frozen=True)
class Job:
    """The options of `python -m databricks.batch`, checked, the model as a file."""

    model: str  # a file that kernels.load takes
    input: str  # a path, or with Spark the name of a table
    output: str
    rejects: str
    format: str = "parquet"
    mode: str = "overwrite"
    key: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    prediction_column: str = "prediction"
    threads: int = 1
    answer: str = PREDICT  # and names: as MLflow has them
    names: tuple[str, ...] | None = None

    def scorer(self, text: bool) -> Scorer:
        """The model, loaded; `text`: numbers stand in columns of strings. Raises what Scorer raises."""
        return Scorer(self.model, columns=self.columns, key=self.key, prediction_column=self.prediction_column,
                      text=text, whole_keys=self.mode == "merge", answer=self.answer, names=self.names)

    def identity(self, model_digest: str, inputs: object) -> str:
        """32 hexadecimal digits for this model, these input files and these columns, into this format."""
        content = [model_digest, inputs, self.key, self.columns, self.names, self.prediction_column, self.answer,
                   self.format]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Summary:
    """What a job did; `rows` counts the rejected ones too."""

    rows: int
    rejects: int
    seconds: float
    repeated: bool = False  # the same job had been committed before: nothing was done

    def __str__(self) -> str:
        speed = self.rows / self.seconds if self.seconds else 0.0
        line = f"{self.rows} rows, {self.rejects} rejects, {speed:.0f} rows/s, {self.seconds:.2f} s"
        return line + ", this job is in the table already" * self.repeated


@dataclass
class Progress:
    """Lines for a person who waits: rows, rows/s, time left; one a second at most."""

    total: int | None  # rows in all, where it is known, maybe about
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    started: float = field(default_factory=lambda: time.monotonic())
    _last: float = field(default_factory=lambda: time.monotonic())

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def update(self, rows: int) -> None:
        """So many rows are done by now."""
        now = time.monotonic()
        if now - self._last < 1 or not rows:
            return
        self._last = now
        speed = rows / (now - self.started)
        of, left = "", ""
        if self.total is not None and self.total >= rows:
            of, left = f" of {self.total:,}", f", {(self.total - rows) / speed:.0f} s left"
        self.say(f"{rows:,}{of} rows, {speed:,.0f} rows/s{left}")
