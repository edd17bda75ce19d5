"""The GGUF reader: everything the format can hold, and files that lie."""

import os
import random
import struct
import tracemalloc

import gguf as gguf_package
import numpy as np
import pytest

import kernels
from kernels import DEFAULT_MODEL, ModelError, gguf
from tests.kernels import gguf_bytes as g

EDGES = {
    g.U8: [0, 255], g.I8: [-128, 127], g.U16: [0, 65535], g.I16: [-32768, 32767], g.U32: [0, 2**32 - 1],
    g.I32: [-2**31, 2**31 - 1], g.F32: [-1.5, 3.0], g.BOOL: [False, True], g.U64: [0, 2**64 - 1],
    g.I64: [-2**63, 2**63 - 1], g.F64: [-0.1, 1e308],
}


def read(tmp_path, data: bytes) -> gguf.GGUFFile:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return gguf.read(path)


@pytest.mark.parametrize("value_type", EDGES)
def test_scalars_of_every_type_are_read(tmp_path, value_type):
    pairs = [g.pair(f"key{i}", value_type, item) for i, item in enumerate(EDGES[value_type])]
    assert list(read(tmp_path, g.gguf(pairs)).metadata.values()) == EDGES[value_type]


@pytest.mark.parametrize("value_type", EDGES)
def test_arrays_of_every_type_are_read(tmp_path, value_type):
    array = read(tmp_path, g.gguf([g.pair("key", g.ARRAY, (value_type, EDGES[value_type]))])).metadata["key"]
    assert array.tolist() == EDGES[value_type]
    assert array.dtype.newbyteorder("<") == np.dtype(g.LAYOUTS[value_type])


def test_strings_and_arrays_of_strings_and_of_arrays_are_read(tmp_path):
    nested = (g.ARRAY, [(g.STRING, ["a", "", "é"]), (g.U32, [1, 2]), (g.ARRAY, [(g.BOOL, [True])])])
    file = read(tmp_path, g.gguf([g.pair("text", g.STRING, "naïve"), g.pair("nested", g.ARRAY, nested)]))
    strings, numbers, deeper = file.metadata["nested"]
    assert file.metadata["text"] == "naïve"
    assert (strings, numbers.tolist(), deeper[0].tolist()) == (["a", "", "é"], [1, 2], [True])


def test_empty_file_of_no_pairs_and_no_tensors_is_read(tmp_path):
    file = read(tmp_path, g.gguf([])[:24])
    assert (file.metadata, file.tensors) == ({}, {})


def test_tensors_are_read_only_views_of_the_file_with_rows_first(tmp_path):
    content = bytes(range(2 * 34))
    file = read(tmp_path,
                g.gguf_of([], {"w": ((2, 32), gguf.Q8_0, content), "b": ((3,), gguf.F32, bytes(12))}))
    assert file.tensors["w"].shape == (2, 32)
    assert file.tensors["w"].data.tobytes() == content
    assert file.tensors["b"].data.shape == (1, 12)
    assert not file.tensors["w"].data.flags.writeable
    assert not file.tensors["w"].data.flags.owndata


def test_alignment_of_the_metadata_moves_the_tensors(tmp_path):
    pairs = [g.pair("general.alignment", g.U32, 64)]
    infos = [g.tensor_info("a", (2,), gguf.F32, 0), g.tensor_info("b", (2,), gguf.F32, 64)]
    data = struct.pack("<2f", 1, 2) + bytes(56) + struct.pack("<2f", 3, 4)
    file = read(tmp_path, g.gguf(pairs, infos, data, alignment=64))
    assert file.alignment == 64
    assert file.tensors["b"].data.view("<f4").tolist() == [[3.0, 4.0]]


def test_formats_are_those_of_the_reference_package():
    reference = {int(t): (t.name, *sizes) for t, sizes in gguf_package.GGML_QUANT_SIZES.items()}
    assert {t: tuple(row) for t, row in gguf.FORMATS.items()} == reference


def test_reader_agrees_with_the_reference_reader():
    ours, reference = gguf.read(DEFAULT_MODEL), gguf_package.GGUFReader(DEFAULT_MODEL)
    for tensor in reference.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(tensor.shape.tolist()[::-1])
        assert found.tensor_type == tensor.tensor_type
        assert found.offset == tensor.data_offset
        assert found.data.tobytes() == tensor.data.tobytes()
    for key in ours.metadata:
        ours_value, theirs = ours.metadata[key], reference.get_field(key).contents()
        assert (ours_value.tolist() if isinstance(ours_value, np.ndarray) else ours_value) == theirs


F32_4 = g.tensor_info("t", (4,), gguf.F32, 0)
HOSTILE = {
    "empty file": (b"", "GGUF file"),
    "three bytes": (b"GGU", "GGUF file"),
    "another magic": (g.gguf([], magic=b"GGML"), "GGUF file"),
    "no version": (b"GGUF", "the version"),
    "version 2": (g.gguf([], version=2), "expected GGUF version 3, found 2"),
    "big endian": (g.gguf([], version=3 << 24), "big-endian"),
    "no counts": (g.gguf([])[:16], "the number of metadata pairs"),
    "huge number of tensors": (g.gguf([], n_tensors=2**63), "expected 9223372036854775808 tensors"),
    "huge number of pairs": (g.gguf([], n_pairs=2**64 - 1), "metadata pairs"),
    "one pair too many": (g.gguf([g.pair("a", g.U8, 1)], n_pairs=2), "an empty string"),
    "huge key": (g.gguf([struct.pack("<QIB", 2**40, 0, 0)]), "at most 65535 bytes of a metadata key"),
    "huge string": (g.gguf([g.string("k") + struct.pack("<IQ", g.STRING, 2**60)]), "bytes of 'k'"),
    "string past the end": (g.gguf([g.string("k") + struct.pack("<IQ", g.STRING, 20)]), "the file ends at"),
    "huge array": (g.gguf([g.string("k") + struct.pack("<IIQ", g.ARRAY, g.F64, 2**61)]), "items of 'k'"),
    "huge array of strings": (g.gguf([g.string("k") + struct.pack("<IIQ", g.ARRAY, g.STRING, 2**61)]),
                              "items of 'k'"),
    "key not UTF-8": (g.gguf([g.pair(b"\xff", g.U8, 1)]), "UTF-8 in a metadata key"),
    "string not UTF-8": (g.gguf([g.pair("k", g.STRING, b"\xc3(")]), "UTF-8 in 'k'"),
    "unknown value type": (g.gguf([g.string("k") + struct.pack("<IQ", 13, 0)]),
                           "value type from 0 to 12 for 'k'"),
    "unknown item type": (g.gguf([g.string("k") + struct.pack("<IIQ", g.ARRAY, 99, 0)]),
                          "item type from 0 to 12"),
    "bool of 2": (g.gguf([g.string("k") + struct.pack("<IB", g.BOOL, 2)]), "expected 0 or 1 for 'k'"),
    "bools of 2": (g.gguf([g.string("k") + struct.pack("<IIQ2B", g.ARRAY, g.BOOL, 2, 1, 2)]),
                   "0 or 1 for every item"),
    "key twice": (g.gguf([g.pair("k", g.U8, 1)] * 2), "'k' twice"),
    "arrays ten deep": (g.gguf([g.string("k") + struct.pack("<I", g.ARRAY)
                                + struct.pack("<IQ", g.ARRAY, 1) * 10 + struct.pack("<IQ", g.U8, 0)]),
                        "levels of arrays"),
    "alignment 0": (g.gguf([g.pair("general.alignment", g.U32, 0)]), "power of two"),
    "alignment 48": (g.gguf([g.pair("general.alignment", g.U32, 48)]), "power of two"),
    "alignment 4": (g.gguf([g.pair("general.alignment", g.U32, 4)]), "power of two"),
    "alignment a string": (g.gguf([g.pair("general.alignment", g.STRING, "32")]), "power of two"),
    "alignment true": (g.gguf([g.pair("general.alignment", g.BOOL, True)]), "power of two"),
    "long tensor name": (g.gguf([], [g.tensor_info("t" * 65, (4,), 0, 0)], bytes(16)), "at most 64 bytes"),
    "no dimensions": (g.gguf([], [g.tensor_info("t", (), 0, 0)], bytes(99)),
                      "1 to 4 dimensions of 't', found 0"),
    "five dimensions": (g.gguf([], [g.tensor_info("t", (1,) * 5, 0, 0)], bytes(4)), "1 to 4 dimensions"),
    "huge number of dimensions": (g.gguf([], [g.string("t") + struct.pack("<IQQ", 2**32 - 1, 1, 1)]),
                                  "dimensions"),
    "dimension of 0": (g.gguf([], [g.tensor_info("t", (0, 4), 0, 0)], bytes(16)), "found shape"),
    "unknown tensor type": (g.gguf([], [g.tensor_info("t", (4,), 4, 0)], bytes(16)), "known tensor type"),
    "part of a block": (g.gguf([], [g.tensor_info("t", (2, 33), gguf.Q8_0, 0)], bytes(99)),
                        "whole blocks of 32"),
    "huge tensor": (g.gguf([], [g.tensor_info("t", (2**63, 2**63, 4), 0, 0)], bytes(16)), "the file ends at"),
    "tensor past the end": (g.gguf([], [F32_4], bytes(15)), "the file ends at"),
    "huge offset": (g.gguf([], [g.tensor_info("t", (4,), 0, 2**64 - 32)], bytes(16)), "the file ends at"),
    "odd offset": (g.gguf([], [g.tensor_info("t", (4,), 0, 8)], bytes(64)), "multiple of 32"),
    "tensors that overlap": (g.gguf([], [g.tensor_info("a", (9,), 0, 0), g.tensor_info("b", (9,), 0, 32)],
                                    bytes(99)),
                             "do not overlap"),
    "tensors in one place": (g.gguf([], [g.tensor_info("a", (4,), 0, 0), g.tensor_info("b", (4,), 0, 0)],
                                    bytes(99)),
                             "do not overlap"),
    "tensor name twice": (g.gguf([], [F32_4, g.tensor_info("t", (4,), 0, 32)], bytes(99)), "'t' twice"),
    "tensor name not UTF-8": (g.gguf([], [g.tensor_info(b"\xff\xfe", (4,), 0, 0)], bytes(16)), "UTF-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_gets_one_clear_error_and_little_memory(tmp_path, case):
    data, expected = HOSTILE[case]
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as raised:
            read(tmp_path, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert expected in str(raised.value)
    assert str(raised.value).startswith("file.gguf: expected")
    assert peak < 1_000_000


def test_file_cut_anywhere_is_refused(tmp_path):
    data = DEFAULT_MODEL.read_bytes()
    tensors_end = max(t.offset + t.data.size for t in gguf.read(DEFAULT_MODEL).tensors.values())
    for size in range(tensors_end):
        with pytest.raises(ModelError):
            read(tmp_path, data[:size])


def test_folder_and_pipe_are_refused_and_a_missing_file_is_an_os_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelError, match="regular file"):
            gguf.read(path)
    with pytest.raises(FileNotFoundError):
        gguf.read(tmp_path / "missing")


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The file with one to three accidents: bytes changed, counts changed, cut, grown."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        match rng.randrange(5):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at:at + 8] = struct.pack("<Q",
                                             rng.choice([0, 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            case 2:
                out[at:at + 4] = struct.pack("<I", rng.randrange(0, 48))
            case 3:
                del out[at:at + rng.randint(1, 40)]
                out = out or bytearray(b"G")
            case 4:
                out[at:at] = rng.randbytes(rng.randint(1, 40))
    return bytes(out)


def test_mutated_models_are_refused_or_predict_the_same_both_ways(tmp_path):
    from kernels.export import save_dense
    path = tmp_path / "sound.gguf"
    values = np.random.default_rng(0).normal(size=(3, 3))
    save_dense(path, [(values, values[0]), (values[:2], values[0, :2])], ["tanh", "softmax"],
               name="n", version="1", task="classification", classes=["no", "yes"],
               feature_names=["a", "b", "c"], fill_values=[0.5] * 3,
               input_offset=[1, 2, 3], input_scale=[0.1, 10, 1])
    rng, survivors, path_mutated = random.Random(7), 0, tmp_path / "mutated.gguf"
    sources = [path.read_bytes(), DEFAULT_MODEL.read_bytes()]
    for i in range(6000):
        path_mutated.unlink(missing_ok=True)
        path_mutated.write_bytes(mutated(rng, sources[i % 2]))
        try:
            models = [kernels.load(path_mutated, native=native) for native in (True, False)]
        except ModelError:
            continue
        survivors += 1
        X = np.arange(2 * models[0].n_features, dtype=float).reshape(2, -1) - 1.5
        assert outcome(models[0], X) == outcome(models[1], X)
    assert survivors > 100


def outcome(model: kernels.TabularModel, X: np.ndarray) -> object:
    try:
        return model.predict(X).tolist(), model.predict_proba(X).tobytes() if model.n_classes else None
    except ModelError as error:
        return str(error)
