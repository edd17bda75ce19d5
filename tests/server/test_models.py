"""The set of served models: how it is loaded, and that models of very different sizes fit one server."""

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import kernels
from server import models
from server.errors import ApiError
from server.hotpath import ANSWERED
from server.predict_api import predict
from tests import fuzz, serving
from tests.server.stand_in import stand_in


@pytest.mark.core
@pytest.mark.parametrize("engine", ["testigo", "onnxruntime"])
def test_each_file_is_loaded_by_the_engine_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, engine: str):
    asked = []

    def load(path: Path, **options):
        asked.append((path, options))
        return stand_in(path.stem, 2)
    monkeypatch.setattr(kernels, "load", load)
    served = models.load([Path("a.onnx"), Path("b.onnx")], True, engine)
    expected = {"native": True, "engine": engine}
    assert asked == [(Path("a.onnx"), expected), (Path("b.onnx"), expected)]
    assert list(served.by_name) == ["a", "b"] and served.default.name == "a"


def test_onnxruntime_answers_through_python_as_the_native_engine_does(tmp_path):
    for library in ("onnxruntime", "skl2onnx"):
        pytest.importorskip(library)
    from skl2onnx import to_onnx

    from tests import sklearn_models
    estimator, X, _ = sklearn_models.digits_logistic()
    path, body = tmp_path / "digits.onnx", {"inputs": X[:20].tolist(), "parameters": {"return_probabilities": True}}
    path.write_bytes(to_onnx(estimator, X[:1].astype(np.float32), options={"zipmap": False}).SerializeToString())
    answers = []
    for engine in ("testigo", "onnxruntime"):
        with serving.start(path, "--engine", engine) as server:
            answers.append(server.ask(serving.predict_request(**body)).json())
            metrics = server.ask(serving.request("GET", "/metrics")).body.decode()
        n_hot = re.search(r'path="hot",route="/v1/predict",status="200"} (\S+)', metrics)
        assert n_hot is not None and float(n_hot[1]) == (engine == "testigo")
    native, python = answers
    assert native["predictions"] == python["predictions"] == estimator.predict(X[:20]).tolist()
    assert np.abs(np.subtract(native["probabilities"], python["probabilities"])).max() < 1e-6


@pytest.mark.core
@pytest.mark.parametrize(("kernel", "code"), [("onnxruntime", "no_result"), ("trees+unary", "result_overflow")])
def test_only_our_own_kernels_refuse_rows_for_their_size(kernel: str, code: str):
    def refuse(rows):
        raise kernels.ModelError("no")
    model = stand_in("m", 2)
    served = models.ServedModels({"m": SimpleNamespace(  # type: ignore[dict-item]
        name="m", kernel=kernel, n_features=2, n_classes=0, signature=model.signature,
        takes_missing_in=model.takes_missing_in, predict=refuse)})
    with pytest.raises(ApiError) as refused:
        predict(served, b'{"inputs": [[1, 2]]}')
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, "inputs")
    assert ("large" in refused.value.message) == (code == "result_overflow")


@pytest.mark.core
def test_models_of_very_different_sizes_are_served_side_by_side():
    rng = random.Random(0)
    others = [stand_in(f"m{i}", names, n_classes=n_classes, classes=classes, missing=missing) for i, (
        names, n_classes, classes, missing) in enumerate([
            (1, 0, None, ()), (5000, 0, None, (7,)), (2, 3000, None, ()), (1, 0, ("x" * 3000, "y"), (0,)),
            (tuple(f"a rather long name {k}" for k in range(400)), 5, None, ()), ("a", 1, None, (0,))])]
    with fuzz.Paths(others=others) as paths:
        for _ in range(120):
            model = rng.choice(others)
            size = rng.choice((1, 3)), model.n_features
            rows = np.random.default_rng(rng.randrange(99)).normal(size=size).round(2)
            inputs: list = rows.tolist()
            if model.signature.feature_names:
                inputs = [dict(zip(model.signature.feature_names, row)) for row in inputs]
            wanted = model.n_classes > 0 and rng.random() < 0.7
            body = {"inputs": inputs, "model": model.name, "parameters": {"return_probabilities": wanted}}
            request = fuzz.predict_request(json.dumps(body).encode())
            paths.fit(len(request))
            answer = paths.hot(request)
            assert answer.outcome == ANSWERED
            assert [fuzz.comparable(answer.response)] == list(map(fuzz.comparable, paths.python(request)))
            assert paths.guards_are_intact()
