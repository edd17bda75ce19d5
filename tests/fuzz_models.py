"""`python -m tests.fuzz_models`: mutated model files against `kernels.load`, in every format that it takes.

The rule to keep: a mutation depends on the seed, the format and its number alone, so that a finding can be made again.

A mutated file is refused with a ModelError that begins with its name, or it is a model: then its kernels and numpy
answer some rows with the same bits or both refuse them, and no byte around the kernel's buffers changes. Anything else
is a finding, as are a warning, too much time, and memory beyond a constant factor of the file's size.
"""

import argparse
import copy
import json
import random
import re
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import kernels
from kernels import ModelError, TabularModel, ubjson
from tests.kernels import gguf_bytes as g

MAX_SECONDS = 10       # of a mutation; the time of a process that shares its processors
MAX_BYTES = 64 << 20   # that loading may take however small the file is …
BYTES_A_BYTE = 200     # … and for each of its bytes
MAX_FINDINGS = 12      # of a format
MAX_ROW_VALUES = 1 << 16  # numbers in the rows that a model is asked for, unless one row has more
INTEGERS = [0, 1, 2, 3, 7, 8, 31, 32, 33, 127, 128, 255, 256, 65534, 65535, 65536, 2**24 - 1, 2**24, 2**31 - 1, 2**31,
            2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [*map(str, INTEGERS), "-1", "-2", "-0.0", "0.5", "1e-45", "1e-310", "1e38", "1e39", "1e308", "1e999",
           "-1e999", "nan", "NaN", "inf", "-Infinity", "1" * 400, "", " ", "0x10", "1_0", "1e", "true", "null",
           "[]", "\"\""]
VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 7, 255, 2**24, 2**31, 2**63, 10**400, -0.5, 0.5, 1e38, 1e308, "",
                     "x", "0", "-1", "1e9", "nan", [], [[]], [0], [-1], {}, {"a": 1}, "\ud800", "[1E0]"]
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Finding(Exception):
    """What is wrong."""


# ---- what mutations start from -----------------------------------------------------------------------------

@dataclass
class Format:
    """The files of a format, how they are mutated besides byte by byte, and what came of it."""

    suffix: str
    originals: list[bytes]
    mutate: Callable[[random.Random, bytes], bytes]
    n: int = 0
    n_refused: int = 0
    n_loaded: int = 0
    n_answered: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    messages: set[str] = field(default_factory=set)


def formats() -> dict[str, Format]:
    """Every format, with small models that have all that a file of it can have."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        texts, documents, binaries = _boosters(folder)
        return {
            "GGUF layers": Format("gguf", _layers(folder), mutate_gguf),
            "GGUF program": Format("gguf", _programs(folder, texts + documents), mutate_gguf),
            "LightGBM text": Format("txt", texts, mutate_lines),
            "XGBoost JSON": Format("json", documents, mutate_json),
            "XGBoost UBJSON": Format("ubj", binaries, mutate_ubjson),
            "ONNX": Format("onnx", _graphs(), mutate_onnx),
        }


def _boosters(folder: Path) -> tuple[list[bytes], list[bytes], list[bytes]]:
    import lightgbm
    import pandas
    import xgboost
    rng = np.random.default_rng(0)
    X = np.where(rng.random((200, 4)) < 0.2, np.nan, rng.normal(size=(200, 4)))
    frame = pandas.DataFrame({"amount": X[:, 0], "kind": pandas.Categorical(rng.choice(["a", "b", "ñ", "d"], 200)),
                              "zero": np.nan_to_num(X[:, 1].round()),
                              "n": pandas.Categorical(rng.integers(0, 40, 200) * 10)})
    y, classes = (np.nan_to_num(X[:, 0]) > frame["zero"]).to_numpy().astype(int), rng.integers(0, 3, 200)
    usual = {"verbose": -1, "num_threads": 1, "min_data_per_group": 2, "min_data_in_leaf": 2, "num_leaves": 5,
             "max_cat_to_onehot": 1}
    texts = [lightgbm.train(usual | {"objective": "binary"}, lightgbm.Dataset(frame, y), 3),
             lightgbm.train(usual | {"objective": "multiclass", "num_class": 3}, lightgbm.Dataset(X, classes), 2),
             lightgbm.train(usual | {"objective": "regression", "zero_as_missing": True}, lightgbm.Dataset(X, y), 2)]
    quiet = {"nthread": 1, "max_depth": 3}
    boosters = [
        xgboost.train(quiet | {"objective": "binary:logistic"}, xgboost.DMatrix(frame, y, enable_categorical=True), 3),
        xgboost.train(quiet | {"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(X, classes), 1),
        xgboost.train(quiet | {"booster": "dart", "rate_drop": 0.5, "objective": "count:poisson"},
                      xgboost.DMatrix(X, y), 3)]
    return ([booster.model_to_string().encode() for booster in texts],
            [bytes(booster.save_raw("json")) for booster in boosters],
            [bytes(booster.save_raw("ubj")) for booster in boosters])


def _layers(folder: Path) -> list[bytes]:
    rng, originals = np.random.default_rng(0), [kernels.DEFAULT_MODEL.read_bytes()]
    from kernels.export import save_dense
    for tensor_type, activation in (("q4_0", "softmax"), ("f32", "logistic")):
        n_out = 3 if activation == "softmax" else 1
        save_dense(folder / "m.gguf", [(rng.normal(size=(4, 3)), rng.normal(size=4)),
                                       (rng.normal(size=(n_out, 4)), rng.normal(size=n_out))], ["tanh", activation],
                   name="m", version="1", task="classification", classes=["a", "b", "c"][:max(n_out, 2)],
                   feature_names=["x", "y", "z"], fill_values=[0.0, 1.0, -1.0], input_offset=[0.5] * 3,
                   input_scale=[2.0] * 3, tensor_type=tensor_type)
        originals.append((folder / "m.gguf").read_bytes())
    return originals


def _programs(folder: Path, others: Sequence[bytes]) -> list[bytes]:
    from tests.kernels.test_program_file import sound_model, support_vectors
    from tests.kernels.test_row_ops import model_of, random_program
    models = [sound_model(), model_of(support_vectors()), *(model_of(random_program(seed)[0]) for seed in (4, 8, 16))]
    for data in others[:1] + others[3:5]:
        path = folder / ("m.txt" if data.startswith(b"tree") else "m.json")
        path.write_bytes(data)
        models.append(kernels.load(path))
    originals = []
    for i, model in enumerate(models):
        kernels.save(model, folder / "m.gguf", type="bin8-q8_0" if i == 5 else "exact")
        originals.append((folder / "m.gguf").read_bytes())
    return originals


def _graphs() -> list[bytes]:
    from skl2onnx import to_onnx
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.svm import SVC
    import pandas
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 3)).astype(np.float32), rng.integers(0, 3, 80)
    frame = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "kind": rng.choice(["x", "y", "z"], 80)})
    columns = make_column_transformer((make_pipeline(SimpleImputer(), StandardScaler()), ["a", "b"]),
                                      (OneHotEncoder(handle_unknown="ignore"), ["kind"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an MLP that has not converged, what skl2onnx says of numpy
        fitted = [(RandomForestClassifier(3, max_depth=3, random_state=0).fit(X, y), X),
                  (GradientBoostingClassifier(n_estimators=2, max_depth=2).fit(X, y > 0), X),
                  (make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=3)).fit(X, y), X),
                  (SVC(random_state=0).fit(X[:20], y[:20]), X),
                  (make_pipeline(columns, LogisticRegression()).fit(frame, y), frame)]
        return [to_onnx(estimator, rows[:1], options={"zipmap": False}).SerializeToString()
                for estimator, rows in fitted]


# ---- mutations ---------------------------------------------------------------------------------------------

def flip(rng: random.Random, data: bytes) -> bytes:
    """Some bits, or bytes, are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed))
        changed[at] = changed[at] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(changed)


def truncate(rng: random.Random, data: bytes) -> bytes:
    """The file ends early, or goes on."""
    if rng.random() < 0.2:
        return data + rng.randbytes(rng.choice((1, 8, 100)))
    return data[:rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes) -> bytes:
    """A piece is left out, repeated, or stands in another place."""
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    last = min(last, first + rng.choice((1, 4, 8, 50, 1000)))
    piece, at = data[first:last], rng.randrange(len(data) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return data[:first] + data[last:]
    if kind == 1:
        return data[:last] + piece * rng.choice((1, 2, 50)) + data[last:]
    if kind == 2:
        return data[:at] + piece + data[at:]
    return data[:at] + piece + data[at + len(piece):]


def put_integer(rng: random.Random, data: bytes) -> bytes:
    """A number as binary formats have it is written over something."""
    size = rng.choice((1, 2, 4, 4, 8, 8))
    number = rng.choice(INTEGERS) & (1 << 8 * size) - 1
    encoded = number.to_bytes(size, rng.choice(("little", "big")))
    if size >= 4 and rng.random() < 0.2:
        special = rng.choice((np.nan, np.inf, -np.inf, -0.0, 1e30))
        encoded = struct.pack(rng.choice("<>") + {4: "f", 8: "d"}[size], special)
    at = rng.randrange(max(1, len(data) - size))
    return data[:at] + encoded + data[at + size:]


def put_number(rng: random.Random, data: bytes) -> bytes:
    """A number as text is another one."""
    found = list(NUMBER.finditer(data))
    if not found:
        return flip(rng, data)
    match = rng.choice(found)
    text = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.choice(found).group().decode()
    return data[:match.start()] + text.encode() + data[match.end():]


ANY = [flip, truncate, splice]


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """LightGBM's text: numbers, lines and the lists in them."""
    kind = rng.randrange(6)
    if kind < 3:
        return put_number(rng, data)
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    if kind == 3:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 4:
        lines[i:i + 1] = [] if rng.random() < 0.5 else [lines[i]] * rng.choice((2, 3, 100))
    else:
        items = lines[i].split(b" ")
        place = rng.randrange(len(items))
        items[place:place + 1] = [] if rng.random() < 0.5 else [items[place]] * rng.choice((2, 1000))
        lines[i] = b" ".join(items)
    return b"\n".join(lines)


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        value = document[key]
        yield document, key
        yield from places(value)


def change(rng: random.Random, document: Any) -> Any:
    """A document with something in it replaced, left out, repeated or exchanged."""
    document = copy.deepcopy(document)
    found = list(places(document))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        container, key = rng.choice(found)
        if not _has(container, key):
            continue  # it was left out
        kind, value = rng.randrange(6), container[key]
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, list):
            container[key:key] = [value] * rng.choice((1, 2, 500))
        elif kind == 2:
            other, place = rng.choice(found)
            if _has(other, place):
                container[key] = copy.deepcopy(other[place])
        elif kind == 3 and isinstance(value, int | float) and abs(value) < 1e300:
            container[key] = type(value)(value + rng.choice((-1, 1, 2, -value, value)))
        else:
            container[key] = rng.choice(VALUES)
    return document


def _has(container: Any, key: Any) -> bool:
    return key < len(container) if isinstance(container, list) else key in container


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return put_number(rng, data)
    return json.dumps(change(rng, json.loads(data))).encode()


def mutate_ubjson(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return put_integer(rng, data)
    return ubjson_of(change(rng, _plain(ubjson.read(data))))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def ubjson_of(value: Any) -> bytes:
    """A document as UBJSON, all containers without a count or a type."""
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        return b"L" + struct.pack(">q", value) if -2**63 <= value < 2**63 else b"D" + struct.pack(">d", 1e308)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"S" + _length(value) + value.encode(errors="surrogatepass")
    if isinstance(value, list):
        return b"[" + b"".join(map(ubjson_of, value)) + b"]"
    return b"{" + b"".join(_length(key) + key.encode() + ubjson_of(item) for key, item in value.items()) + b"}"


def _length(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text.encode(errors="surrogatepass")))


def mutate_gguf(rng: random.Random, data: bytes) -> bytes:
    """Metadata, tensors' shapes, types and bytes; of a program also what its JSON says."""
    if rng.random() < 0.3:
        return put_integer(rng, data)
    pairs, tensors = _taken_apart(data)
    for _ in range(rng.choice((1, 1, 2))):
        if "tabular.program" in pairs and rng.random() < 0.5:
            document = change(rng, json.loads(pairs["tabular.program"][1]))
            pairs["tabular.program"] = (g.STRING, json.dumps(document))
        elif tensors and rng.random() < 0.7:
            name = rng.choice(list(tensors))
            tensors[name] = _changed_tensor(rng, *tensors[name])
        else:
            key = rng.choice(list(pairs))
            pairs[key] = _changed_pair(rng, *pairs[key])
    return g.gguf_of([g.pair(key, *pair) for key, pair in pairs.items()], tensors)


def _taken_apart(data: bytes) -> tuple[dict[str, tuple[int, Any]], dict[str, tuple[Sequence[int], int, bytes]]]:
    from kernels import gguf
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        read = gguf.read(file.name)
        pairs = {key: _pair_of(value) for key, value in read.metadata.items()}
        return pairs, {name: (tensor.shape, tensor.tensor_type, tensor.data.tobytes())
                       for name, tensor in read.tensors.items()}


def _pair_of(value: Any) -> tuple[int, Any]:
    if isinstance(value, str):
        return g.STRING, value
    if isinstance(value, list):
        return g.ARRAY, (g.STRING, value)
    if isinstance(value, np.ndarray):
        return g.ARRAY, (g.F64 if value.dtype.kind == "f" else g.I64, value.tolist())
    return g.U32, int(value)


def _changed_tensor(rng: random.Random, shape: Sequence[int], tensor_type: int, data: bytes):
    kind = rng.randrange(4)
    if kind == 0:
        return shape, rng.choice((0, 1, 2, 8, 24, 25, 26, 27, 28, 99)), data
    if kind == 1:
        return [rng.choice(INTEGERS) if rng.random() < 0.5 else n for n in shape], tensor_type, data
    if kind == 2:
        return [*shape[:-1], max(1, shape[-1] + rng.choice((-32, -1, 1, 32)))], tensor_type, data + bytes(64)
    return shape, tensor_type, put_integer(rng, data) if rng.random() < 0.5 else flip(rng, data)


def _changed_pair(rng: random.Random, value_type: int, value: Any) -> tuple[int, Any]:
    if value_type == g.ARRAY and value[1] and rng.random() < 0.8:
        item_type, items = value[0], list(value[1])
        i = rng.randrange(len(items))
        if rng.random() < 0.3:
            items[i:i + 1] = [] if rng.random() < 0.5 else [items[i]] * 2
        else:
            others = {g.STRING: ["", "softmax", "tanh", "ñ", items[0]], g.F64: [np.nan, np.inf, 1e308, -0.0],
                      g.I64: [-1, 0, 1, 2, 2**24, 2**62]}[item_type]
            items[i] = rng.choice(others)
        return g.ARRAY, (item_type, items)
    return rng.choice([(g.U32, 2**32 - 1), (g.I64, -1), (g.F64, np.nan), (g.STRING, ""), (g.BOOL, True),
                       (g.STRING, "classification"), (g.STRING, "score"), (g.STRING, "regression"),
                       (g.STRING, "1" * 5000), (g.ARRAY, (g.STRING, [])), (g.ARRAY, (g.I64, [3, 1])),
                       (g.ARRAY, (g.F32, [0.5]))])


def mutate_onnx(rng: random.Random, data: bytes) -> bytes:
    """Any field of any message in the protobuf."""
    import onnx
    if rng.random() < 0.2:
        return put_integer(rng, data)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message = rng.choice(list(_messages(model)))
        fields = message.ListFields()
        if fields:
            _change_field(rng, message, *rng.choice(fields))
    return model.SerializeToString()


def _messages(message) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            for inner in value if _is_repeated(descriptor, value) else [value]:
                yield from _messages(inner)


def _is_repeated(descriptor, value) -> bool:
    return hasattr(value, "add") or hasattr(value, "append")


def _change_field(rng: random.Random, message, descriptor, value) -> None:
    name = descriptor.name
    if _is_repeated(descriptor, value):
        i, kind = rng.randrange(len(value)), rng.randrange(4)
        if kind == 0:
            del value[i]
        elif kind == 1 and len(value) < 10_000:
            for _ in range(rng.choice((1, 50))):
                value.append(copy.deepcopy(value[i]) if descriptor.type == descriptor.TYPE_MESSAGE else value[i])
        elif descriptor.type != descriptor.TYPE_MESSAGE:
            value[i] = _scalar(rng, value[i])
        elif len(value) > 1:
            j = rng.randrange(len(value))
            taken = copy.deepcopy(value[i])
            value[i].CopyFrom(value[j])
            value[j].CopyFrom(taken)
    elif descriptor.type == descriptor.TYPE_MESSAGE or rng.random() < 0.2:
        message.ClearField(name)
    else:
        try:
            setattr(message, name, _scalar(rng, value))
        except ValueError:  # no value of an enumeration, or of an int32
            message.ClearField(name)


def _scalar(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bytes):
        others = (b"", b"\xff", b"SUM", b"NONE")
        return put_integer(rng, value) if len(value) > 8 and rng.random() < 0.6 else rng.choice(others)
    if isinstance(value, str):
        return rng.choice(["", "x", "X", "variable", "output_label", "probabilities", "Relu", "Identity", "ZipMap",
                           "ai.onnx.ml"])
    if isinstance(value, float):
        return rng.choice((np.nan, np.inf, -np.inf, -0.0, 1e38, 1e-45, 0.5, value * 2))
    return rng.choice((-1, 0, 1, 2, 3, 7, 16, 255, 2**24, 2**31 - 1, value + 1, value - 1))


def mutated(rng: random.Random, kind: Format) -> bytes:
    """One to four mutations of one of the originals, or of what two of them make together."""
    data = rng.choice(kind.originals)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        try:
            data = (kind.mutate if rng.random() < 0.7 else rng.choice(ANY))(rng, data)
        except Exception:  # after an earlier mutation it is no such file, or has nothing to change
            data = flip(rng, data)
    if rng.random() < 0.03:
        other = rng.choice(kind.originals)
        data = data[:rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)):]
    return data


# ---- what must hold ----------------------------------------------------------------------------------------

def rows_for(rng: random.Random, model: TabularModel) -> np.ndarray:
    """A few rows of usual, missing and extreme numbers."""
    n = max(1, min(9, MAX_ROW_VALUES // model.n_features))
    numbers = np.random.default_rng(rng.getrandbits(32))
    X = numbers.normal(size=(n, model.n_features)) * 3
    special = numbers.choice([0.0, 1.0, 2.0, -1.0, np.nan, 1e30, -0.0, 5e-324], X.shape)
    return np.where(numbers.random(X.shape) < 0.3, special, X)


def answers(model: TabularModel, X: np.ndarray) -> Any:
    """The bits of the predictions and probabilities, or the error."""
    from tests.kernels.test_row_ops import bits
    try:
        predictions = model.predict(X)
        made = bits(predictions) if predictions.dtype == np.float64 else predictions.tolist()
        return made, bits(model.predict_proba(X)) if model.n_classes else None
    except ModelError as error:
        return str(error)


def ask(rng: random.Random, path: Path, model: TabularModel) -> bool:
    """Whether the model answers; raises Finding where kernels and numpy differ or a byte outside a buffer changes."""
    from tests.kernels.test_row_ops import guarded_call
    X = rows_for(rng, model)
    compiled, portable = answers(model, X), answers(kernels.load(path, native=False), X)
    if compiled != portable:
        raise Finding(f"kernels and numpy differ: {compiled!r:.300} and {portable!r:.300}")
    for wanted in (False, model.n_classes > 0):
        guarded_call(model, X, wanted)
    return not isinstance(compiled, str)


def try_file(kind: Format, folder: Path, data: bytes, rng: random.Random) -> None:
    """Load a file and ask the model; raises Finding."""
    path = folder / f"model.{kind.suffix}"
    path.unlink(missing_ok=True)  # an earlier one may still be mapped
    path.write_bytes(data)
    begin = time.thread_time()
    tracemalloc.start(1)
    model = None
    try:
        model = kernels.load(path)
    except ModelError as error:
        if not str(error).startswith(f"{path.name}: ") or len(str(error)) > 1000:
            raise Finding(f"the message is {str(error)!r:.1200}") from None
        kind.n_refused += 1
        kind.messages.add(re.sub(r"\d+|'[^']*'", "…", str(error))[:80])
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    kind.peak_bytes = max(kind.peak_bytes, peak)
    if peak > MAX_BYTES + BYTES_A_BYTE * len(data):
        raise Finding(f"{peak:,} bytes for a file of {len(data):,}")
    if model is not None:
        kind.n_loaded += 1
        kind.n_answered += ask(rng, path, model)
    kind.slowest_s = max(kind.slowest_s, time.thread_time() - begin)
    kind.n += 1


def _too_slow(signal_number, frame) -> None:
    raise Finding(f"it takes more than {MAX_SECONDS} s")


def fuzz(kind: Format, name: str, numbers: Sequence[int], seed: int) -> list[str]:
    """Try the mutations of these numbers → what was found, up to MAX_FINDINGS, each with its number."""
    found: list[str] = []
    before = signal.signal(signal.SIGPROF, _too_slow)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in numbers:
            rng = random.Random(f"{seed} {name} {number}")
            data = mutated(rng, kind)
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # of processor time
            try:
                try_file(kind, Path(folder), data, rng)
            except Exception as error:
                what = str(error) if isinstance(error, Finding) else f"{type(error).__name__}: {error}"
                kept = Path(tempfile.gettempdir()) / f"finding-{seed}-{number}.{kind.suffix}"
                kept.write_bytes(data)
                found.append(f"finding: --seed {seed} --format '{name}' --number {number} ({kept}): {what:.600}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if len(found) == MAX_FINDINGS:
                break
    signal.signal(signal.SIGPROF, before)
    return found


def warm(kinds: dict[str, Format]) -> None:
    """Compile what the models need, so that no mutation takes the time for it."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds.values():
            for i, data in enumerate(kind.originals):
                path = Path(folder) / f"{i}.{kind.suffix}"
                path.write_bytes(data)
                ask(random.Random(0), path, kernels.load(path))


def table(kinds: dict[str, Format]) -> str:
    """What came of it, a line a format."""
    lines = ["| format | mutations | refused | kinds of messages | loaded | answered | slowest | peak of loading |",
             "|---|---|---|---|---|---|---|---|"]
    for name, kind in kinds.items():
        lines.append(f"| {name} | {kind.n:,} | {kind.n_refused:,} | {len(kind.messages)} | {kind.n_loaded:,} | "
                     f"{kind.n_answered:,} | {kind.slowest_s:.2f} s | {kind.peak_bytes / 1e6:.1f} MB |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """→ exit status: 0, or 1 with the findings on stdout."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_models", description="Fuzz the readers of model files.")
    parser.add_argument("--mutations", type=int, default=50_000, metavar="N", help="over all formats")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--format", default="", metavar="NAME", help="only formats whose names begin with this")
    parser.add_argument("--number", type=int, metavar="I", help="only this mutation of each format")
    options = parser.parse_args(arguments)
    kinds = {name: kind for name, kind in formats().items() if name.startswith(options.format)}
    warm(kinds)
    numbers = range(-(-options.mutations // len(kinds)))
    if options.number is not None:
        numbers = range(options.number, options.number + 1)
    findings = [finding for name, kind in kinds.items() for finding in fuzz(kind, name, numbers, options.seed)]
    print(table(kinds))
    print("\n".join(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
