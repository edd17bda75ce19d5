"""A small share of `python -m tests.fuzz_models`, and that it sees what is wrong."""

import random
from functools import cache

import numpy as np
import pytest

import kernels
from tests import fuzz_models
from tests.fuzz_models import Format, formats, fuzz, mutated


@cache
def every_format() -> dict[str, Format]:
    return formats()


NAMES = ["GGUF layers", "GGUF program", "LightGBM text", "XGBoost JSON", "XGBoost UBJSON", "ONNX"]
SEED = 20


def test_no_format_is_forgotten():
    assert list(every_format()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_are_refused_or_are_models(name):
    kind = every_format()[name]
    assert fuzz(kind, name, range(120), SEED) == []
    assert kind.n == 120 and kind.n_refused > 20 and kind.n_loaded > 2 and len(kind.messages) > 5
    assert name in fuzz_models.table({name: kind})


def test_mutation_depends_on_the_seed_and_its_number_alone():
    for name, kind in every_format().items():
        for number in range(20):
            first, again = (mutated(random.Random(f"{SEED} {name} {number}"), kind) for _ in range(2))
            assert first == again, (name, number)


def test_most_mutations_change_something():
    for name, kind in every_format().items():
        changed = sum(mutated(random.Random(number), kind) not in kind.originals for number in range(50))
        assert changed > 40, name


def broken_load(what: str):
    load = kernels.load

    def other(path, native=True):
        model = load(kernels.DEFAULT_MODEL, native=native)
        if what == "another error":
            raise IndexError("list index out of range")
        if what == "a message without the file":
            raise kernels.ModelError("expected something")
        if what == "a warning":
            np.log(np.zeros(1))
        if what == "memory":
            np.ones(20 << 20)
        if what == "other bits":
            predict = model.predict
            model.predict = lambda X: predict(X) + native
        return model
    return other


@pytest.mark.parametrize(("what", "said"), [
    ("another error", "IndexError"), ("a message without the file", "the message is"), ("a warning", "RuntimeWarning"),
    ("memory", "bytes for a file of"), ("other bits", "kernels and numpy differ")])
def test_fuzzer_finds(monkeypatch, tmp_path, what, said):
    monkeypatch.setattr(fuzz_models.tempfile, "tempdir", str(tmp_path))
    kind = every_format()["LightGBM text"]
    monkeypatch.setattr(kernels, "load", broken_load(what))
    found = fuzz(kind, "LightGBM text", range(3), SEED)
    assert found and all(said in finding for finding in found)
