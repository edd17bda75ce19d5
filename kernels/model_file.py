"""Which kind of model file this is, by its first bytes, and who reads it.

The rule to keep: nothing is unpickled here, or anywhere: what may hold a pickle is refused with the way out.
"""

from collections.abc import Callable
from pathlib import Path

from kernels import boosters, lightgbm_text, tabular_file, xgboost_json
from kernels.ensemble import Booster
from kernels.errors import ModelError
from kernels.tabular import TabularModel

MAX_FILE_BYTES = 1 << 31  # of a file that is read whole
FIRST_BYTES = 16


def load(path: str | Path, threads: int = 1, native: bool = True) -> TabularModel:
    """The model in the file at `path`; the file says which kind.

    `threads` is how many threads may share one call of `predict`. `native=False` computes with numpy alone and gives
    the same bits. Raises ModelError for a file that is not a sound model and OSError for one that cannot be read. A
    GGUF file stays mapped: replace it by renaming, never by writing into it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ModelError(f"{path.name}: expected a regular file")
    with path.open("rb") as file:
        first = file.read(FIRST_BYTES)
    for is_kind, reader in KINDS:
        if is_kind(first):
            return reader(path, threads, native)
    raise ModelError(f"{path.name}: expected a model in GGUF, ONNX, LightGBM's text or XGBoost's JSON or UBJSON")


def _read_booster(read: Callable[[bytes, str], Booster]) -> Callable[[Path, int, bool], TabularModel]:
    def load_booster(path: Path, threads: int, native: bool) -> TabularModel:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"{path.name}: expected a file of at most {MAX_FILE_BYTES:,} bytes")
        try:
            booster = read(path.read_bytes(), path.stem)
            return boosters.model_of(booster, path.stem, path, size, threads, native)
        except ModelError as error:
            raise ModelError(f"{path.name}: {error}") from None
    return load_booster


def _refuse_pickle(path: Path, threads: int, native: bool) -> TabularModel:
    raise ModelError(f"{path.name}: this looks like a pickle, joblib or skops file, which can run code when it is "
                     "loaded: convert it where it was trained, kernels.save(kernels.from_sklearn(estimator), "
                     "'model.gguf'), or write the library's own format (docs/models.md)")


def _is_pickle(first: bytes) -> bool:
    # pickle protocols 2 and up; zip (skops, torch); what joblib compresses with: zlib, gzip, bz2, xz, lz4
    return first.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"x\x9c",
                             b"x\x01", b"x\xda", b"x^", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22M\x18"))


def _is_ubjson(first: bytes) -> bool:
    return first[:1] == b"{" and first[1:2] in (b"L", b"l", b"I", b"i", b"U", b"$", b"#")


KINDS: list[tuple[Callable[[bytes], bool], Callable[[Path, int, bool], TabularModel]]] = [
    (lambda first: first.startswith(b"GGUF"), tabular_file.read),
    (_is_pickle, _refuse_pickle),
    (lambda first: first.startswith((b"tree\n", b"tree\r\n")), _read_booster(lightgbm_text.read)),
    (_is_ubjson, _read_booster(xgboost_json.read)),
    (lambda first: first.lstrip()[:1] == b"{", _read_booster(xgboost_json.read)),
]
