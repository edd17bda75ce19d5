"""Compiling ahead: `python -m server warm [MODEL ...]`, and what a first start does before it serves.

Units are compiled in two child processes, because numba compiles under the GIL. The server then loads the result from
the cache: what numba leaves behind when it compiles, 100 MB, is gone with the children. A unit costs 0.3 to 3 s, a
child 0.7 s before its first: so there are two, and each takes what is left of the units from its own end, where those
stand together that share functions.
"""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from kernels import ModelError, TabularModel
from kernels.compiled import cache_dir
from server import models as served_models
from server.event_loop import ENTRIES, Native, compile_entry
from server.hotpath import UNITS, compile_unit

# Compiling makes a great many objects that all stay: collecting garbage among them is a tenth of its time.
CHILD = "import gc; gc.disable(); from server import warm; warm.compile_asked()"
N_CHILDREN = 2
NICE = 10  # of children that compile while the server serves

Unit = tuple[str, str]  # what to compile, and of which model file: ("unit", "read_body"), ("kernel", "/models/a.gguf")


def _compile_kernel(path: str) -> None:
    served = served_models.load([Path(path)], native=True)
    served.default.native()
    served.warm_up()


def _compile_explanations(path: str) -> None:
    served_models.load([Path(path)], native=True).prepare_explanations()


COMPILERS: dict[str, Callable[[str], object]] = {
    "unit": compile_unit, "entry": compile_entry, "kernel": _compile_kernel, "explanations": _compile_explanations}


def compile_asked() -> None:
    """In a child: compile the units that stdin names, and say of each when it is done."""
    for line in sys.stdin:
        kind, _, name = line.rstrip("\n").partition(" ")
        COMPILERS[kind](name)
        print(flush=True)


def missing_units(models: Sequence[TabularModel], explanations: bool) -> dict[Unit, Path]:
    """What these models need and the cache lacks; for each the file that will say that it is there.

    numba's own files say which functions there are, not which are needed.
    """
    folder = cache_dir(Path(__file__).resolve().parent)
    units = {("unit", name): folder / f"{name} compiled" for name in UNITS}
    for model in models:
        if model.kernel not in ("onnxruntime", "mlflow"):
            units["kernel", str(model.path)] = folder / f"{model.kernel} kernel compiled"
            if explanations and "trees" in model.kernel.split("+"):  # others are explained without compiled code
                units["explanations", str(model.path)] = folder / f"{model.kernel} explanations compiled"
    units |= {("entry", name): folder / f"{name} compiled" for name in ENTRIES}
    once = {mark: unit for unit, mark in reversed(units.items())}  # models of one kernel share all of it
    return {unit: mark for unit, mark in units.items() if once[mark] == unit and not mark.exists()}


def compile_ahead(models: Sequence[TabularModel], progress: Callable[[str], None], explanations: bool = False,
                  nice: int = 0) -> None:
    """Compile what these models need and the cache lacks; whatever fails here is compiled, or reported, by the
    caller's own use.
    """
    marks = missing_units(models, explanations)
    if not marks:
        return
    progress("compiling what is new on this machine, about 10 s; later starts load the compiled code")
    start, left = time.monotonic(), deque(marks)

    def take_from(end: Callable[[], Unit]) -> None:
        with suppress(IndexError, OSError), _child(nice) as child:
            assert child.stdout is not None
            while True:
                unit = end()
                print(*unit, file=child.stdin, flush=True)
                if not child.stdout.readline():
                    return  # it failed, and its message is for who needs this unit
                marks[unit].touch()

    ends = (left.popleft, left.pop)[:min(N_CHILDREN, len(left))]
    others = [threading.Thread(target=take_from, args=(end,)) for end in ends[1:]]
    for thread in others:
        thread.start()
    take_from(ends[0])
    for thread in others:
        thread.join()
    progress(f"compiled after {time.monotonic() - start:.1f} s")


def _child(nice: int) -> subprocess.Popen:
    """It ends when its stdin does, so also when this process is killed."""
    environment = os.environ | {"TESTIGO_CACHE_DIR": str(cache_dir(Path(__file__).resolve().parent).parent)}
    command = [sys.executable, "-c", f"import os; os.nice({nice}); {CHILD}"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


def main(sources: Sequence[str], allow_pickle: bool = False) -> int:
    """→ exit status: 0, or 3 for a model that cannot be read."""
    try:
        served = served_models.load(sources, native=True, allow_pickle=allow_pickle)
    except (ModelError, OSError) as error:
        print(f"server: error: {error}", file=sys.stderr)
        return 3
    compile_ahead(list(served.by_name.values()), lambda step: print(step, file=sys.stderr, flush=True),
                  explanations=True)
    Native()
    for model in served.by_name.values():
        model.native()
    served.warm_up()
    served.prepare_explanations()
    print("everything is compiled", file=sys.stderr)
    return 0
