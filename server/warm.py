"""Compiling ahead: `python -m server warm [MODEL ...]`, and what a first start does before it serves.

Compilation runs in child processes, two at a time because numba compiles under the GIL. The server then loads
the result from the cache: what numba leaves behind when it compiles, 100 MB, is gone with the children.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels import DEFAULT_MODEL, ModelError
from server import models

# Compiling makes a great many objects that all stay: collecting garbage among them is a tenth of its time.
REQUESTS = "import gc; gc.disable(); from server.hotpath import compile_answer; compile_answer()"
REST = ("import gc, sys; gc.disable(); from server.event_loop import compile_all; compile_all()\n"
        "import kernels\nfor path in sys.argv[1:]: kernels.load(path).native()")


def compile_ahead(paths: Sequence[Path], progress: Callable[[str], None]) -> None:
    """Fill the cache where it is empty; whatever fails here is compiled, or reported, by the caller's own use."""
    from kernels.compiled import cache_dir
    folder = cache_dir(Path(__file__).resolve().parent)
    if any(folder.rglob("*.nbi")):
        return
    progress("first start on this machine: compiling, about 10 s; later starts load the compiled code")
    start = time.monotonic()
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(folder.parent)}
    steps = [("requests", [REQUESTS]), ("event loops and models", [REST, *map(str, paths)])]
    try:
        children = [subprocess.Popen([sys.executable, "-c", *arguments], env=environment, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _, arguments in steps]
    except OSError:
        return
    for (step, _), child in reversed(list(zip(steps, children))):
        child.wait()
        progress(f"compiled {step} after {time.monotonic() - start:.1f} s")


def main(arguments: list[str]) -> int:
    """→ exit status: 0, or 3 for a model that cannot be read."""
    from server.event_loop import Native
    paths = [Path(argument) for argument in arguments] or [DEFAULT_MODEL]
    try:
        served = models.load(paths, native=True)
    except (ModelError, OSError) as error:
        print(f"server: error: {error}", file=sys.stderr)
        return 3
    compile_ahead(paths, lambda step: print(step, file=sys.stderr, flush=True))
    Native()
    for model in served.by_name.values():
        model.native()
    print("everything is compiled", file=sys.stderr)
    return 0
