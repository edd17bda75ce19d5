"""The command line: what it prints, and that bad input is one line and status 1."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from kernels import DEFAULT_MODEL
from kernels.__main__ import generated_rows, main
from kernels.gguf import FORMATS
from tests import sklearn_models
from tests.kernels import gguf_bytes as g


@pytest.fixture
def model_path(tmp_path) -> Path:
    estimator, _, _ = sklearn_models.breast_cancer_with_missing_values()
    path = tmp_path / "model.gguf"
    kernels.save(kernels.from_sklearn(estimator, name="cancer", version="2"), path, type="f32")
    return path


@pytest.mark.parametrize("tensor_type", ["q8_0", "q4_0", "f16", "f32", "f64"])
def test_quantize_keeps_everything_but_the_weights_format(tmp_path, model_path, capsys, tensor_type):
    target_path = tmp_path / "out.gguf"
    assert main(["quantize", str(model_path), str(target_path), "--type", tensor_type]) == 0
    source, target = kernels.load(model_path, native=False), kernels.load(target_path, native=False)
    assert (target.name, target.version, target.signature.classes, target.signature.n_features) == (
        source.name, source.version, source.signature.classes, source.signature.n_features)
    assert target.takes_missing_in.tolist() == source.takes_missing_in.tolist()
    assert [step.op for step in target.program.steps] == [step.op for step in source.program.steps]
    assert target.program.steps[0].op == "prepare"
    for theirs, ours in zip(source.program.steps, target.program.steps, strict=True):
        for name, array in theirs.arrays.items():
            assert name == "weights" or ours.arrays[name].tobytes() == array.tobytes()
    dense = next(step for step in target.program.steps if step.op == "dense")
    assert FORMATS[dense.numbers["tensor_type"]].name == tensor_type.upper()
    out = capsys.readouterr().out
    assert f"{target.size_bytes:,} bytes" in out
    assert f"{source.size_bytes:,} bytes" in out
    rows = generated_rows(source)
    changed = int((source.predict(rows) != target.predict(rows)).sum())
    assert f"{changed:,} labels changed" in out


def test_inspect_prints_the_metadata_and_the_tensors(capsys):
    assert main(["inspect", str(DEFAULT_MODEL)]) == 0
    out = capsys.readouterr().out
    for line in ["  general.name          fraud-detector", "  tabular.layer_widths  [5, 1]",
                 "  dense.0.weight  Q8_0  1 × 32  34 bytes  at 416"]:
        assert line in out.splitlines()


def test_inspect_sends_no_control_characters_to_the_terminal(tmp_path, capsys):
    path = tmp_path / "hostile.gguf"
    pairs = [g.pair("a\x1b[2J", g.STRING, "b\x07\n" + "x" * 200),
             g.pair("c", g.ARRAY, (g.STRING, ["\x1b"] * 20))]
    path.write_bytes(g.gguf(pairs, [g.tensor_info("\x1bt", (1,), 0, 0)], bytes(4)))
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "… 20 in all]" in out


def test_file_without_metadata_and_tensors_is_inspected(tmp_path, capsys):
    (tmp_path / "empty.gguf").write_bytes(g.gguf([]))
    assert main(["inspect", str(tmp_path / "empty.gguf")]) == 0
    assert "0 metadata pairs" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["inspect"], ["warm"], ["quantize", "OUT", "--type", "f16"]])
@pytest.mark.parametrize(("content", "expected"),
                         [(None, "No such file or directory"), (b"PK", "expected a ")])
def test_bad_file_gets_one_line_and_status_1(tmp_path, capsys, command, content, expected):
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    arguments = [command[0], str(path), *(str(tmp_path / "out") if a == "OUT" else a for a in command[1:])]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kernels: error: ")
    assert expected in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["melt"], ["inspect"], ["quantize", "a", "b"],
                                       ["quantize", "a", "b", "--type", "q9"]])
def test_bad_options_get_status_2(arguments):
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2


def test_version_and_help_are_printed(capsys):
    for option, expected in [("--version", f"testigo {kernels.__version__}"), ("--help", "quantize")]:
        with pytest.raises(SystemExit) as exit_status:
            main([option])
        assert exit_status.value.code == 0
        assert expected in capsys.readouterr().out


SERVER = "import sys; print(*sys.argv[1:]); sys.exit(7)"


@pytest.mark.parametrize("with_server", [False, True])
@pytest.mark.parametrize("models", [[], ["model.gguf"]])
def test_warm_fills_the_cache_and_hands_over_to_the_server_where_there_is_one(tmp_path, with_server, models):
    shutil.copytree(Path(kernels.__file__).parent, tmp_path / "kernels",
                    ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DEFAULT_MODEL, tmp_path / "model.gguf")
    if with_server:
        (tmp_path / "server").mkdir()
        (tmp_path / "server" / "__init__.py").touch()
        (tmp_path / "server" / "__main__.py").write_text(SERVER)
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run([sys.executable, "-m", "kernels", "warm", *models], cwd=tmp_path, env=environment,
                         capture_output=True, text=True)
    assert (models or [DEFAULT_MODEL.name])[0] + " compiled" in ran.stderr
    assert list((tmp_path / "cache").rglob("*run_dense_q8_0*.nbc"))
    assert ran.returncode == (7 if with_server else 0)
    assert ran.stdout.split() == (["warm", *models] if with_server else [])
