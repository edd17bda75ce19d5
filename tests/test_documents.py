"""The commands in the documents run as they stand and print what the documents say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import serving

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_document(path: Path, folder: Path) -> None:
    """Run all `sh` blocks in one shell; each line of the `text` block that follows must be in what they printed."""
    blocks = BLOCK.findall(path.read_text("utf-8"))
    # Whatever the document leaves running ends with the shell: the shell's own jobs, by their process ids.
    script = ["set -euo pipefail", "trap 'status=$?; set +e; kill $(jobs -p) 2>/dev/null; wait; exit $status' EXIT"]
    for i, (kind, text) in enumerate(blocks):
        if kind == "sh":
            script += [f"echo '--- block {i}'", text.rstrip()]
    text = "\n".join(script)
    for port in sorted(set(re.findall(r"\b80[0-9]{2}\b", text))):
        text = re.sub(rf"\b{port}\b", str(serving.free_port()), text)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=environment, text=True, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    printed = dict(re.findall(r"--- block (\d+)\n(.*?)(?=--- block|\Z)", done.stdout, re.DOTALL))
    for i, (kind, text) in enumerate(blocks):
        if kind == "text":
            for line in text.splitlines():
                assert line in printed[str(i - 1)], (line, done.stdout)


def test_lab_4_3_runs_and_prints_what_it_says(tmp_path):
    for package in ("gguf", "skl2onnx"):
        pytest.importorskip(package)
    run_document(ROOT / "docs" / "labs" / "4.3-serve-a-model.md", tmp_path)


def test_fraud_runs_and_prints_what_it_says(tmp_path):
    for package in ("gguf", "lightgbm", "pyarrow", "skl2onnx"):
        pytest.importorskip(package)
    run_document(ROOT / "docs" / "fraud.md", tmp_path)


def test_lab_4_5_runs_and_prints_what_it_says(tmp_path):
    for package in ("databricks.sdk", "gguf", "mlflow", "pyarrow", "sklearn"):
        pytest.importorskip(package)
    run_document(ROOT / "docs" / "labs" / "4.5-batch-inference.md", tmp_path)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing")
def test_lab_4_8_runs_and_prints_what_it_says(tmp_path):
    run_document(ROOT / "docs" / "labs" / "4.8-validate.md", tmp_path)


@pytest.mark.core
def test_readme_commands_run_and_print_what_they_say(tmp_path):
    run_document(ROOT / "README.md", tmp_path)
