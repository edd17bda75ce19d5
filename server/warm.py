"""`python -m server warm [MODEL ...]`: compile ahead what serving these models needs, with progress on stderr."""

import sys
import time
from pathlib import Path

from kernels import ModelError
from server import models


def main(arguments: list[str]) -> int:
    """→ exit status: 0, or 3 for a model that cannot be read."""
    from server.event_loop import Native
    start = time.perf_counter()

    def progress(step: str) -> None:
        print(f"{time.perf_counter() - start:5.1f} s  {step}", file=sys.stderr, flush=True)
    try:
        served = models.load([Path(argument) for argument in arguments], native=True)
    except (ModelError, OSError) as error:
        print(f"server: error: {error}", file=sys.stderr)
        return 3
    Native(progress)
    for model in served.by_name.values():
        progress(f"kernel of {model.name}")
        model.native()
    progress("done")
    return 0
