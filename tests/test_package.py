"""The project as others install it: outside the repository, read-only, by another user, several at once; and whose
compiled code it trusts.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import serving
from tests.serving import ROOT, predict_request, request

NOBODY = 65534


class Installation(NamedTuple):
    folder: Path  # others may read it
    python: Path

    @property
    def command(self) -> tuple[Path | str, ...]:
        return self.python, "-m", "server"


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    """`pip install .` into an environment of its own, which finds what the project depends on in that of this test."""
    pytest.importorskip("setuptools", minversion="70.1")  # the first that builds wheels alone
    with tempfile.TemporaryDirectory(prefix="installed-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        python = folder / "venv" / "bin" / "python"
        source = folder / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "tests", "*.egg-info"))
        site = Path(subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip())
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
                        "--no-deps", "--no-build-isolation", "--target", site, source], check=True)
        shutil.rmtree(source)
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        yield Installation(folder, python)


@pytest.fixture(scope="module")
def warm_cache(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that four first starts have filled at the same time; each of them must have served."""
    cache, elsewhere = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("elsewhere")

    environment = {"TESTIGO_CACHE_DIR": str(cache)}

    def start(_: int) -> str:
        with serving.start(command=installation.command, cwd=elsewhere, env=environment) as server:
            check_serves(server)
            return server.stderr_text()
    with ThreadPoolExecutor(4) as pool:
        for stderr in pool.map(start, range(4)):
            assert "compiling what is new on this machine" in stderr
    return cache


def check_serves(server: serving.Server) -> None:
    """Everything that needs the package's files, and the hot path."""
    with server.connect() as client:
        assert client.ask(predict_request()).json()["model"] == "fraud-detector"
        assert client.ask(request("GET", "/")).body.startswith(b"<!")
        assert b'path="hot",route="/v1/predict",status="200"} 1.0' in client.ask(request("GET", "/metrics")).body


# --- installed ----------------------------------------------------------------------------------

def test_four_first_starts_at_once_all_serve_and_the_next_one_compiles_nothing(installation, warm_cache, tmp_path):
    environment = {"TESTIGO_CACHE_DIR": str(warm_cache)}
    with serving.start(command=installation.command, cwd=tmp_path, env=environment) as server:
        check_serves(server)
        assert "compiling" not in server.stderr_text()


def test_installed_files_are_those_of_the_package(installation):
    code = "import kernels, server; print(kernels.__file__, server.__file__)"
    found = subprocess.check_output([installation.python, "-c", code], text=True, cwd=installation.folder)
    assert all(name.startswith(str(installation.folder)) for name in found.split())


def test_another_user_serves_from_a_read_only_install_without_a_home(installation):
    as_nobody = as_another_user()
    probe = f"import subprocess; subprocess.run([{str(installation.python)!r}, '-c', 'import numba'], check=True)"
    if subprocess.run([*as_nobody, installation.python, "-c", probe], cwd="/", capture_output=True).returncode:
        pytest.skip("another user cannot run the Python of this environment")
    with tempfile.TemporaryDirectory(prefix="nobody-") as temporary:
        os.chown(temporary, NOBODY, NOBODY)
        with serving.start(command=(*as_nobody, *installation.command), cwd=Path("/"),
                           env={"HOME": "/nonexistent", "TMPDIR": temporary, "TESTIGO_CACHE_DIR": "",
                                "XDG_CACHE_HOME": ""}) as server:
            check_serves(server)
        assert list(Path(temporary).glob(f"testigo-{NOBODY}/*"))


def as_another_user() -> list[str]:
    """The start of a command that runs as nobody, who may read everything (Python may be in a folder of root's)."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can start a process of another user (setpriv)")
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search"]


def test_foreign_kernels_package_is_one_clear_line_and_status_5(installation, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('imported')")
    result = serving.run(command=installation.command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr.count("\n") == 1 and str(tmp_path / "kernels") in result.stderr


# --- compiled code ------------------------------------------------------------------------------

def cache_dir(**environment: str) -> Path:
    """The folder that `doctor` names for the compiled code."""
    result = serving.run("doctor", env={"TESTIGO_CACHE_DIR": "", "XDG_CACHE_HOME": ""} | environment)
    line, = (line for line in result.stdout.splitlines() if "compiled code is kept in" in line)
    return Path(line.rpartition(" in ")[2])


def test_cache_is_kept_where_it_is_asked_for(tmp_path):
    assert cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "a")).parent == tmp_path / "a"
    assert cache_dir(XDG_CACHE_HOME=str(tmp_path / "b")).parent == tmp_path / "b" / "testigo"
    assert cache_dir(HOME=str(tmp_path / "c")).parent == tmp_path / "c" / ".cache" / "testigo"


@pytest.mark.parametrize("who", [0o020, 0o002], ids=["group", "world"])
def test_cache_that_others_can_write_is_not_used(tmp_path, who):
    """Neither the folder itself nor the one in which it could be exchanged."""
    folder = cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache"))
    for shared in (folder, folder.parent):
        shared.chmod(0o755 | who)
        assert not cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache")).is_relative_to(tmp_path / "cache")
        shared.chmod(0o700)
    assert cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache")) == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_cache_of_another_user_is_not_used(tmp_path):
    folder = cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache"))
    for foreign in (folder, folder.parent):
        os.chown(foreign, NOBODY, NOBODY)
        assert not cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache")).is_relative_to(tmp_path / "cache")
        os.chown(foreign, 0, 0)


def test_cache_behind_a_link_is_not_used(tmp_path):
    folder = cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache"))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert not cache_dir(TESTIGO_CACHE_DIR=str(tmp_path / "cache")).is_relative_to(tmp_path)


@pytest.mark.parametrize("keep_bytes", [0, 100])
def test_damaged_cache_does_not_stop_the_server(installation, warm_cache, tmp_path, keep_bytes):
    damaged = tmp_path / "cache"
    shutil.copytree(warm_cache, damaged)
    for path in damaged.rglob("*.nb*"):
        os.truncate(path, keep_bytes)
    with serving.start(command=installation.command, cwd=tmp_path, env={"TESTIGO_CACHE_DIR": str(damaged)}) as server:
        check_serves(server)
