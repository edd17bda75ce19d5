"""Where compiled code lives: the decorators of every native function, and their cache on disk.

The rule to keep: a cache entry is machine code that we will run, so it is read only from a folder
that this user or root owns and nobody else can write, and only for exactly these sources. numba would compare
the time stamp of a function's own file but not the files of the functions that it calls; the folder's
name therefore holds a digest of the sources, of Python and of numba. The processor is in numba's own index.

https://numba.readthedocs.io/en/stable/developer/caching.html
"""

import atexit
import functools
import gc
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import numba
from numba.core import caching, config


# IEEE arithmetic as it is written; a division by zero gives inf or nan; no reference counts, so no allocation.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": False, "_nrt": False}


def inner(function):
    """Compile `function` into the compiled functions that call it; the GIL is not held while it runs.

    Without the entry points for Python and C that numba would add, a whole compiles in half the time.
    """
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)


class Locator(caching.UserProvidedCacheLocator):
    """Finds entries by the folder's digest of the sources: copies of them, as packaged models have, share entries."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        return Path(py_file).parent.name

    def get_source_stamp(self) -> tuple[int, int]:
        return 0, 0  # copies have times of their own


def cfunc(signature):
    """Compile a C callback of this signature now, or load it from the cache; `.address` is its entry point."""
    def compile_now(function):
        folder = cache_dir(_package_dir(function))
        settings = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES  # type: ignore[attr-defined]
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(folder), f"{__name__}.{Locator.__name__}"
        options = {name: value for name, value in OPTIONS.items() if name != "nogil"}
        collects = gc.isenabled()
        gc.disable()  # compiling makes a great many objects that all stay: looking for garbage is a tenth of its time
        try:
            return numba.cfunc(signature, cache=True, **options)(function)
        except numba.core.errors.NumbaError:
            raise
        except Exception:  # whatever unpickling makes of a damaged entry: a cache may be lost at any time
            for entry in folder.rglob("*.nb?"):
                entry.unlink(missing_ok=True)
            return numba.cfunc(signature, cache=True, **options)(function)
        finally:
            config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = settings
            if collects:
                gc.enable()
    return compile_now


def is_compiled(function) -> bool:
    """Whether the cache has this function's machine code."""
    return any(cache_dir(_package_dir(function)).rglob(f"*.{function.__name__}-*.nbi"))


def _package_dir(function) -> Path:
    return Path(function.__code__.co_filename).resolve().parent


@functools.cache
def cache_dir(package_dir: Path) -> Path:
    """The folder for the compiled code of the package in `package_dir`; it exists and can be written.

    Tried in order: $TESTIGO_CACHE_DIR, the user's cache folder, a folder of this user's in the
    system's temporary folder. Where a trusted folder holds compiled code but is read-only (a container image), its
    content is copied. Where nothing else works the folder lives as long as the process.
    """
    name = _digest(package_dir)
    read_only = None
    for root in _roots():
        folder = root / name
        if _is_private_folder(folder):
            return folder
        if read_only is None and _is_trusted(folder):
            read_only = folder
    folder = _process_root() / name
    if read_only is not None:
        shutil.copytree(read_only, folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _process_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="testigo-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _digest(package_dir: Path) -> str:
    digest = hashlib.sha256()
    bounds_check = config.BOUNDSCHECK  # type: ignore[attr-defined]
    digest.update(f"{sys.version} {numba.__version__} boundscheck={bounds_check}".encode())
    for folder in sorted({Path(__file__).resolve().parent, package_dir}):
        for source in sorted(folder.glob("*.py")):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _roots() -> list[Path]:
    # The only environment variables that kernels/ reads.
    named = os.environ.get("TESTIGO_CACHE_DIR")
    xdg = os.environ.get("XDG_CACHE_HOME")
    user = Path(xdg) if xdg else Path("~/.cache").expanduser()
    shared = Path(tempfile.gettempdir()) / f"testigo-{os.geteuid()}"
    return ([Path(named)] if named else []) + [user / "testigo", shared]


def _is_private_folder(folder: Path) -> bool:
    """Create the folder where it is missing; whether it is ours alone and can be written."""
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # not by `parents`, which goes by the umask
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return _is_trusted(folder) and os.access(folder, os.W_OK | os.X_OK)


def _is_trusted(folder: Path) -> bool:
    """Whether this folder and the one above are real folders that only this user, or root, can write."""
    try:
        found = [os.lstat(folder), os.lstat(folder.parent)]
    except OSError:
        return False
    return all(stat.S_ISDIR(f.st_mode) and f.st_uid in (0, os.geteuid()) and not f.st_mode & 0o022 for f in found)
