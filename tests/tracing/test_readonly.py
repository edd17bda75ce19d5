"""The policy `readonly` on real programs: no file is written outside one folder."""

import subprocess
import sys
from pathlib import Path

import pytest

WRITES = {  # what a shell does in folder $IN, and in another one, $OUT
    "nothing": ("cat $IN/a", 0),
    "in the folder": ("echo x > $IN/b; mkdir $IN/d; mv $IN/b $IN/d/; ln -s a $IN/l; rm -r $IN/d; touch $IN/a; chmod 600 $IN/a", 0),
    "to /dev/null": ("echo x > /dev/null", 0),
    "elsewhere": ("echo x > $OUT/b", 1),
    "elsewhere, by a relative path": ("cd $OUT && echo x > b", 1),
    "elsewhere, by way of the folder": ("echo x > $IN/../out/b", 1),
    "through a link that leads out": ("ln -s $OUT $IN/l && echo x > $IN/l/b", 1),
    "a folder elsewhere": ("mkdir $OUT/d", 1),
    "removed elsewhere": ("rm $OUT/a", 1),
    "moved out": ("mv $IN/a $OUT/c", 1),
    "moved in": ("mv $OUT/a $IN/c", 1),
    "linked out": ("ln $IN/a $OUT/c", 1),
    "truncated elsewhere": ("truncate -s 0 $OUT/a", 1),
    "touched elsewhere": ("touch $OUT/a", 1),
    "owner changed elsewhere, by descriptor": (f"{sys.executable} -c \"import os; os.fchown(os.open('$OUT/a', os.O_RDONLY), -1, -1)\"", 1),
    "mode changed elsewhere": ("chmod 600 $OUT/a", 1),
    "tried where it is not allowed": ("echo x > /proc/version", 1),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("a")
    return tmp_path


def judged(folder: Path, script: str, policy: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracing", "run", "--policy", policy, "--out", str(folder / "traces"), "--", "sh", "-c",
               f"IN={folder}/in; OUT={folder}/out; {script}"]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("what", WRITES)
def test_writing(folder, what):
    script, status = WRITES[what]
    done = judged(folder, script, f"readonly:{folder}/in")
    assert (done.returncode, done.stdout.splitlines()[-1].split()[0]) == (status, ["PASS", "FAIL"][status]), done.stdout


def test_without_a_folder_nothing_may_be_written(folder):
    assert judged(folder, "cat $IN/a", "readonly").returncode == 0
    assert judged(folder, "echo x > $IN/b", "readonly").returncode == 1
