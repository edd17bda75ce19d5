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


def load(path: str | Path, threads: int = 1, native: bool = True, engine: str = "testigo") -> TabularModel:
    """The model in the file at `path`; the file says which kind.

    `threads` is how many threads may share one call of `predict`. `native=False` computes with numpy alone and gives
    the same bits. `engine="onnxruntime"` has an ONNX model computed by ONNX Runtime, an extra. Raises ModelError for a
    file that is not a sound model and OSError for one that cannot be read. A GGUF file stays mapped: replace it by
    renaming, never by writing into it.
    """
    path = Path(path)
    if engine not in ENGINES:
        raise ModelError(f"expected one of {', '.join(ENGINES)} for the engine, found {engine!r:.40}")
    kind = kind_of(path) or (ONNX if path.suffix == ".onnx" else None)  # its fields may come in any order
    if engine == "onnxruntime":
        if kind not in (ONNX, None):
            raise ModelError(f"{path.name}: expected an ONNX file for the engine onnxruntime, found {kind}")
        from kernels import onnxruntime_engine
        return onnxruntime_engine.read(path, threads)
    if kind is None:
        raise ModelError(f"{path.name}: expected a model in GGUF, ONNX, LightGBM's text or XGBoost's JSON or UBJSON")
    return KINDS[kind][1](path, threads, native)


def kind_of(path: Path) -> str | None:
    """Which of KINDS a file is by its first bytes; None for no known one."""
    if path.exists() and not path.is_file():
        raise ModelError(f"{path.name}: expected a regular file")
    with path.open("rb") as file:
        first = file.read(FIRST_BYTES)
    return next((name for name, (is_kind, _) in KINDS.items() if is_kind(first)), None)


def _read_booster(read: Callable[[bytes, str], Booster]) -> Callable[[Path, int, bool], TabularModel]:
    def load_booster(path: Path, threads: int, native: bool) -> TabularModel:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"{path.name}: expected a file of at most {MAX_FILE_BYTES:,} bytes")
        booster = read(path.read_bytes(), path.name)
        try:
            return boosters.model_of(booster, path.stem, path, size, threads, native)
        except ModelError as error:
            raise ModelError(f"{path.name}: {error}") from None
    return load_booster


def _read_onnx(path: Path, threads: int, native: bool) -> TabularModel:
    from kernels import onnx_lowering  # with what it needs a third of the time that importing this package takes
    return onnx_lowering.read(path, threads, native)


def _refuse_pickle(path: Path, threads: int, native: bool) -> TabularModel:
    raise ModelError(f"{path.name}: this looks like a pickle, joblib or skops file, which can run code when it is "
                     "loaded: convert it where it was trained, kernels.save(kernels.from_sklearn(estimator), "
                     "'model.gguf'), or write the library's own format (docs/models.md)")


def _is_pickle(first: bytes) -> bool:
    # pickle protocols 2 and up; zip (skops, torch); what joblib compresses with: zlib, gzip, bz2, xz, lz4
    return first.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"x\x9c",
                             b"x\x01", b"x\xda", b"x^", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22M\x18"))


def _is_onnx(first: bytes) -> bool:
    # ModelProto's first field is ir_version, a small number: key 0x08, value, then another key of the message.
    return len(first) > 2 and first[0] == 0x08 and first[1] < 0x80 and first[2] in ONNX_KEYS


# Keys of ModelProto's fields, which exporters write in ascending order: producer_name … functions.
ONNX_KEYS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA)


def _is_ubjson(first: bytes) -> bool:
    return first[:1] == b"{" and first[1:2] in (b"L", b"l", b"I", b"i", b"U", b"$", b"#")


ENGINES = ("testigo", "onnxruntime")
ONNX, PICKLE, LIGHTGBM = "ONNX", "a pickle, joblib or skops file", "LightGBM's text"
XGBOOST_JSON, XGBOOST_UBJSON = "XGBoost's JSON", "XGBoost's UBJSON"

KINDS: dict[str, tuple[Callable[[bytes], bool], Callable[[Path, int, bool], TabularModel]]] = {
    "GGUF": (lambda first: first.startswith(b"GGUF"), tabular_file.read),
    PICKLE: (_is_pickle, _refuse_pickle),
    LIGHTGBM: (lambda first: first.startswith((b"tree\n", b"tree\r\n")), _read_booster(lightgbm_text.read)),
    XGBOOST_UBJSON: (_is_ubjson, _read_booster(xgboost_json.read)),
    ONNX: (_is_onnx, _read_onnx),
    XGBOOST_JSON: (lambda first: first.lstrip()[:1] == b"{", _read_booster(xgboost_json.read)),
}
