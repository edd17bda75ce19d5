"""Runs a notebook in Databricks' source format as "Run all" does: its cells in order, with what Databricks provides.

The rule to keep: what would not run there does not run here. A cell is Python or one magic, `restartPython` forgets
every variable, a widget must be made before it is read.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

FIRST, BETWEEN, MAGIC = "# Databricks notebook source\n", "\n# COMMAND ----------\n", "# MAGIC"


@dataclass
class Run:
    """What a run showed and asked for."""
    displayed: list[pd.DataFrame] = field(default_factory=list)
    installed: list[str] = field(default_factory=list)  # what follows %pip
    printed: str = ""


class Widgets:
    """`dbutils.widgets`: the defaults of the notebook, or the values that a user has set."""

    def __init__(self, given: Mapping[str, str]):
        self._given, self._values = given, {}

    def text(self, name: str, default: str, label: str = "") -> None:
        self._values.setdefault(name, self._given.get(name, default))

    def dropdown(self, name: str, default: str, choices: list[str], label: str = "") -> None:
        self.text(name, default, label)
        assert {default, self._values[name]} <= set(choices), name

    def get(self, name: str) -> str:
        return self._values[name]


class Library:
    """`dbutils.library`."""
    restarted = False

    def restartPython(self) -> None:
        self.restarted = True


def run(path: Path, spark: Any, widgets: Mapping[str, str] | None = None, skip: Collection[int] = ()) -> Run:
    """Run all cells, in the notebook's folder, but those under the headings of these numbers.

    Raises what a cell raises, and ValueError for what is no notebook.
    """
    done = Run()

    def display(shown: Any) -> None:
        done.displayed.append(shown if isinstance(shown, pd.DataFrame) else shown.limit(1000).toPandas())
    dbutils = SimpleNamespace(widgets=Widgets(widgets or {}), library=Library())
    provided = {"spark": spark, "display": display, "dbutils": dbutils, "__name__": "__main__"}
    namespace, printed, section = dict(provided), io.StringIO(), 0
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (magic, text) in enumerate(cells(path.read_text("utf-8"))):
            if magic == "md" and (heading := re.search(r"^## (\d+)\. ", text, re.MULTILINE)):
                section = int(heading[1])
            if section in skip:
                continue
            if magic == "pip":
                done.installed.append(re.sub(r"\$(\w+)", lambda match: str(namespace[match[1]]), text))
            elif magic == "sql":
                display(spark.sql(text))
            elif magic is None:
                exec(compile(text, f"{path.name}, cell {i}", "exec"), namespace)
            if dbutils.library.restarted:
                dbutils.library.restarted, namespace = False, dict(provided)
    done.printed = printed.getvalue()
    return done


def cells(source: str) -> list[tuple[str | None, str]]:
    """A notebook's text → the cells: (name of the magic or None for Python, what it is given)."""
    if not source.startswith(FIRST):
        raise ValueError(f"expected {FIRST.strip()!r} as the first line")
    return [_cell(cell) for cell in source.removeprefix(FIRST).split(BETWEEN)]


def _cell(text: str) -> tuple[str | None, str]:
    lines = [line for line in text.splitlines() if line.strip()]
    magics = [line.removeprefix(MAGIC).removeprefix(" ") for line in lines if line.startswith(MAGIC)]
    if not magics:
        return None, text
    match = re.match(r"%(md|pip|sql)\b ?", magics[0])
    if len(magics) < len(lines) or match is None:
        raise ValueError("expected a cell to be Python, or one of %md, %pip and %sql alone")
    return match[1], "\n".join([magics[0][match.end():], *magics[1:]])
