"""Which file is which: by content, and what is refused with the way out."""

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
import zlib

import pytest

import kernels
from kernels import DEFAULT_MODEL, ModelError

pytestmark = pytest.mark.core


def skops() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("schema.json", "{}")
    return out.getvalue()


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


PICKLED = pickle.dumps(Bomb())
PICKLES = {
    **{f"protocol {protocol}": pickle.dumps(Bomb(), protocol) for protocol in range(2, 6)},
    "zlib": zlib.compress(PICKLED), "zlib 9": zlib.compress(PICKLED, 9), "gzip": gzip.compress(PICKLED),
    "bz2": bz2.compress(PICKLED), "xz": lzma.compress(PICKLED), "skops": skops(),
}


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.onnx"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickle_is_refused_with_the_way_out(tmp_path, name, kind):
    (tmp_path / name).write_bytes(PICKLES[kind])
    with pytest.raises(ModelError, match="from_sklearn") as raised:
        kernels.load(tmp_path / name)
    assert str(raised.value).startswith(f"{name}: ")


@pytest.mark.parametrize("content", [b"", b"x", b"hello world, this is no model", bytes(100), b"\xff" * 100])
def test_unknown_content_is_refused_by_what_was_expected(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelError, match="^m: expected a model in GGUF, ONNX, LightGBM's text or XGBoost's JSON"):
        kernels.load(tmp_path / "m")


def test_folder_and_missing_file(tmp_path):
    with pytest.raises(ModelError, match="regular file"):
        kernels.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        kernels.load(tmp_path / "nothing")


def test_name_of_the_file_does_not_decide(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(DEFAULT_MODEL.read_bytes())
    assert kernels.load(path, native=False).name == "fraud-detector"


def test_unknown_engine_is_refused():
    with pytest.raises(ModelError, match="testigo"):
        kernels.load(DEFAULT_MODEL, engine="tensorflow")
