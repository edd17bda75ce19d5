"""Native models: a model file becomes an object that predicts.

The rule to keep: importing this package imports neither numba nor any extra; they load on first use.
"""

from pathlib import Path

from kernels.errors import ModelError
from kernels.tabular import TabularModel
from kernels.version import __version__

__all__ = ["DEFAULT_MODEL", "ModelError", "TabularModel", "__version__", "load"]

DEFAULT_MODEL = Path(__file__).resolve().parent / "data" / "fraud-detector.gguf"


def load(path: str | Path, threads: int = 1, native: bool = True) -> TabularModel:
    """The model in the file at `path`; the file says which kind.

    `threads` is how many threads may share one call of `predict`. `native=False` computes with
    numpy alone and gives the same bits. Raises ModelError for a file that is not a sound model and OSError
    for one that cannot be read. The file stays mapped: replace it by renaming, never by writing into it.
    """
    return TabularModel.load(path, threads=threads, native=native)
