"""Compiling ahead: `python -m server warm [MODEL ...]`, and what a first start does before it serves.

Compilation runs in child processes, two at a time because numba compiles under the GIL. The server then loads
the result from the cache: what numba leaves behind when it compiles, 100 MB, is gone with the children.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels import DEFAULT_MODEL, ModelError, TabularModel
from server.models import load

# Compiling makes a great many objects that all stay: collecting garbage among them is a tenth of its time.
REQUESTS = "import gc; gc.disable(); from server.hotpath import compile_answer; compile_answer()"
LOOPS = "import gc; gc.disable(); from server.event_loop import compile_all; compile_all()"
KERNEL = "import gc, sys; gc.disable(); import kernels; kernels.load(sys.argv[1]).native()"
EXPLANATIONS = ("import gc, sys; gc.disable(); from pathlib import Path; from server import models;"
                " models.load([Path(sys.argv[1])], native=True).prepare_explanations()")


def compile_ahead(models: Sequence[TabularModel], progress: Callable[[str], None]) -> None:
    """Compile what these models need and the cache lacks; whatever fails here is compiled, or reported, by the
    caller's own use.
    """
    from kernels.compiled import cache_dir
    folder = cache_dir(Path(__file__).resolve().parent)
    units = {"requests": [REQUESTS], "event loops": [LOOPS]}
    for model in models:
        if model.kernel != "onnxruntime":
            units[f"{model.kernel} kernel"] = [KERNEL, str(model.path)]
            units[f"{model.kernel} explanations"] = [EXPLANATIONS, str(model.path)]
    # A file marks what has been compiled: numba's own say which functions there are, not which are needed.
    missing = [unit for unit in units if not (folder / f"{unit} compiled").exists()]
    if not missing:
        return
    progress("compiling what is new on this machine, up to 20 s; later starts load the compiled code")
    start = time.monotonic()
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(folder.parent)}

    def compile_units(names: Sequence[str]) -> None:
        for unit in names:
            try:
                done = subprocess.run([sys.executable, "-c", *units[unit]], env=environment, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            except OSError:
                return
            if done.returncode == 0:
                (folder / f"{unit} compiled").touch()
                progress(f"compiled {unit} after {time.monotonic() - start:.1f} s")

    others = threading.Thread(target=compile_units, args=(missing[1:],))  # the first takes as long as all others
    others.start()
    compile_units(missing[:1])
    others.join()


def main(arguments: list[str]) -> int:
    """→ exit status: 0, or 3 for a model that cannot be read."""
    from server.event_loop import Native
    paths = [Path(argument) for argument in arguments] or [DEFAULT_MODEL]
    try:
        served = load(paths, native=True)
    except (ModelError, OSError) as error:
        print(f"server: error: {error}", file=sys.stderr)
        return 3
    compile_ahead(list(served.by_name.values()), lambda step: print(step, file=sys.stderr, flush=True))
    Native()
    for model in served.by_name.values():
        model.native()
    served.prepare_explanations()
    print("everything is compiled", file=sys.stderr)
    return 0
