"""Compiling ahead: what is missing, that children compile it, and that explanations do not hold up a first start."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import kernels
from kernels.compiled import cache_dir
from server import __main__ as command
from server import warm
from server.models import ServedModels
from tests import serving
from tests.server import trained_models
from tests.server.stand_in import stand_in

SERVER = Path(warm.__file__).resolve().parent


def silent(step: str) -> None:
    """Nobody is told."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, as this process sees it."""
    folder = tmp_path / "cache" / "digest"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(warm, "cache_dir", lambda package: folder)
    return folder


def model(kernel: str, path: str = "m.gguf") -> SimpleNamespace:
    return SimpleNamespace(kernel=kernel, path=Path(path))


def missing(*models, explanations: bool = False) -> list[tuple[str, str]]:
    return [unit for unit in warm.missing_units(models, explanations) if unit[0] not in ("unit", "entry")]


@pytest.mark.core
def test_each_kernel_is_compiled_once_and_explanations_where_there_are_trees(folder: Path):
    models = [model("dense 8+move", "a"), model("trees+unary", "b"), model("trees+unary", "c"), model("onnxruntime")]
    assert missing(*models) == [("kernel", "a"), ("kernel", "b")]
    assert missing(*models, explanations=True) == [("kernel", "a"), ("kernel", "b"), ("explanations", "b")]


@pytest.mark.core
def test_what_is_marked_is_not_compiled_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    models = [model("trees")]
    for mark in warm.missing_units(models, explanations=True).values():
        mark.touch()
    assert warm.missing_units(models, explanations=True) == {}
    monkeypatch.setattr(warm, "_child", None)
    warm.compile_ahead(models, pytest.fail, explanations=True)


@pytest.mark.core
def test_units_are_compiled_in_children_and_one_that_fails_is_left_to_its_user(
        folder: Path, monkeypatch: pytest.MonkeyPatch):
    units = {unit: folder / f"{unit[1]} compiled" for unit in (("entry", "take"), ("entry", "x"), ("entry", "leave"))}
    monkeypatch.setattr(warm, "missing_units", lambda models, explanations: units)
    said: list[str] = []
    warm.compile_ahead([], said.append)
    assert len(said) == 2 and "later starts load" in said[0] and said[1].startswith("compiled after")
    marked = {path.name for path in folder.parent.rglob("* compiled")}
    assert marked == {"take compiled", "leave compiled"}
    compiled = {path.name.partition("-")[0] for path in folder.parent.rglob("*.nbi")}
    assert compiled == {"event_loop.take", "event_loop.leave"}


@pytest.mark.core
def test_who_asks_for_an_explanation_meanwhile_waits_for_the_compilers():
    plain = stand_in("plain", 2)
    models = ServedModels({"plain": plain})  # type: ignore[dict-item]
    compiling, compiled, events = threading.Event(), threading.Event(), []

    def compile_first() -> None:
        compiling.set()
        assert compiled.wait(serving.WAIT_S)
        events.append("compiled")

    def ask() -> None:
        models.describe(plain)  # type: ignore[arg-type]
        events.append("asked")
    threads = [threading.Thread(target=models.prepare_explanations, args=(compile_first,)),
               threading.Thread(target=ask)]
    threads[0].start()
    assert compiling.wait(serving.WAIT_S)
    threads[1].start()
    compiled.set()
    for thread in threads:
        thread.join(serving.WAIT_S)
    assert events == ["compiled", "asked"]


def application() -> SimpleNamespace:
    return SimpleNamespace(models=ServedModels({}), access_log=SimpleNamespace(message=silent))


@pytest.mark.core
@pytest.mark.parametrize(("native", "now", "is_missing", "beside"), [
    (True, False, True, [warm.NICE]), (True, True, True, []), (True, False, False, []), (False, False, True, [])])
def test_explanations_are_compiled_beside_serving_unless_a_sandbox_closes(
        monkeypatch: pytest.MonkeyPatch, native: bool, now: bool, is_missing: bool, beside: list):
    asked: list[int] = []
    done = threading.Event()

    def compile_ahead(models, progress, explanations: bool, nice: int) -> None:
        assert explanations
        asked.append(nice)
        done.set()
    monkeypatch.setattr(warm, "compile_ahead", compile_ahead)
    monkeypatch.setattr(warm, "missing_units", lambda models, explanations: {"unit": Path()} if is_missing else {})
    later = command.prepare_explanations(application(), native, now)  # type: ignore[arg-type]
    assert asked == []
    later()
    assert not beside or done.wait(serving.WAIT_S)
    assert asked == beside


def test_first_start_with_trees_serves_before_explanations_are_compiled(tmp_path: Path):
    for library in ("lightgbm", "xgboost", "pandas"):
        pytest.importorskip(library)
    path = trained_models.write_all(tmp_path)[0]
    rows = [[31.5, "grün", None, "DE"]]
    body = {"inputs": rows, "parameters": {"explain": True}}
    with serving.start(path) as server:  # fills the cache
        expected = server.ask(serving.predict_request(**body)).json()
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    for package in (SERVER, Path(kernels.__file__).resolve().parent):
        folder = cache_dir(package)
        shutil.copytree(folder, cache / folder.name, dirs_exist_ok=True)
        (cache / folder.name).chmod(0o700)
    marks = list(cache.rglob("* explanations compiled"))
    assert marks
    for mark in marks:
        mark.unlink()
    with serving.start(path, env={"TESTIGO_CACHE_DIR": str(cache)}) as server:
        found = server.ask(serving.predict_request(**body)).json()
        assert found["explanations"] == expected["explanations"]
        said = server.stderr_text()
        assert said.count("compiling what is new") == said.count("compiled after") == 1
    assert list(cache.rglob("* explanations compiled"))


@pytest.mark.core
def test_warming_up_asks_each_model_for_one_row_and_lets_it_refuse():
    asked = []

    def predict(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.shape)
        raise kernels.ModelError("no")
    models = {name: SimpleNamespace(n_features=n, predict=predict) for name, n in (("a", 2), ("b", 3))}
    ServedModels(models).warm_up()  # type: ignore[arg-type]
    assert asked == [(1, 2), (1, 3)]
