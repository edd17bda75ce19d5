"""ONNX models that ONNX Runtime computes in the place of our kernels: what `--engine onnxruntime` asks for.

The rules to keep: ONNX Runtime is given bytes that were looked through here, and opens no other file than external
data in the model's folder. Rows hold places of strings, so a model is refused that does more with a string than
compare it as a whole. Operators, and the memory that they take, are ONNX Runtime's affair.

https://onnxruntime.ai/docs/api/python/api_summary.html
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kernels import onnx_graph
from kernels.errors import ModelError
from kernels.native import NativeModel
from kernels.onnx_graph import ExternalData, Graph, TensorInfo, read_tensor
from kernels.onnx_lowering import MAX_CATEGORIES, Features, read_features
from kernels.program import Program
from kernels.tabular import Labels, Signature, TabularModel, label_array

CHUNK_ROWS = 1 << 16
MAX_TRIED = 1 << 12  # features that are tried one by one for missing values: n rows of n numbers
MAX_ARGS = 1 << 16   # classes that are but numbers: their count is only declared
QUIET = 4            # log severity: fatal errors alone
OPTIONS = {"session.load_model_format": "ONNX", "session.intra_op.allow_spinning": "0",
           "session.inter_op.allow_spinning": "0"}
FOLDER = "session.model_external_initializers_file_folder_path"

NUMBERS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
WHOLE = {"tensor(bool)": np.bool_, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(int16)": np.int16,
         "tensor(uint16)": np.uint16, "tensor(int32)": np.int32, "tensor(uint32)": np.uint32,
         "tensor(int64)": np.int64, "tensor(uint64)": np.uint64}
STRINGS = "tensor(string)"
TYPES = {**NUMBERS, **WHOLE, STRINGS: np.object_}  # ONNX Runtime's name of a type → numpy's
SCORES = {**NUMBERS, "tensor(float16)": np.float16}

# Operators that compare whole strings, and their attributes that hold the strings.
COMPARING = {"OneHotEncoder": ("cats_strings",), "LabelEncoder": ("keys_strings", "keys_tensor", "classes_strings"),
             "CategoryMapper": ("cats_strings",), "Equal": ()}
# Operators that move strings about.
MOVING = {"ArrayFeatureExtractor", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
          "Squeeze", "Transpose", "Unsqueeze", "Where"}
DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
# Operators that give their first input's elements, perhaps as another type.
PASSING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
CLASS_LABELS = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


@dataclass(frozen=True)
class Answer:
    """Which outputs say what."""

    label: str | None   # the output of class labels
    scores: str | None  # the output of numbers: probabilities, or predictions where there is no label
    are_maps: bool      # the scores are a list of {label: score}
    classes: Labels | None


class OnnxRuntimeModel(TabularModel):
    """A tabular model that ONNX Runtime computes; safe to call from several threads. It has no program."""

    kernel = "onnxruntime"  # type: ignore[assignment]

    def __init__(self, session: Any, graph: Graph, features: Features, answer: Answer,
                 categories: tuple[tuple[str, ...] | None, ...] | None, path: Path) -> None:
        self._session, self._features, self._answer = session, features, answer
        self._run_options = _run_options()
        self.name, self.version = graph.metadata.get("name") or path.stem, str(graph.model_version or 1)
        self.model_type, self.path, self.size_bytes = "onnx", path, graph.size_bytes
        task = "regression" if answer.classes is None else "classification"
        self.signature = Signature(features.n, features.names, answer.classes, task, categories, -1.0)
        self._labels = None if answer.classes is None else label_array(answer.classes)
        self._place_of_label = {label: i for i, label in enumerate(answer.classes or ())}
        self.n_features, self._one_row = features.n, (1, features.n)
        self._native = False  # what TabularModel asks, before it uses its compiled form
        self._tables = {i: _table(texts) for i, texts in enumerate(categories or ()) if texts is not None}
        self.n_classes, self.n_outputs = 0, 1
        self._n_scores: int | None = None  # a row; None until the first
        self.takes_missing_in = np.zeros(self.n_features, bool)
        self._try()

    def native(self) -> NativeModel:
        """None: there is no compiled form, and the server answers in Python."""
        return None  # type: ignore[return-value]

    @property
    def program(self) -> Program:  # type: ignore[override]
        raise ModelError("expected a model of our own kernels: ONNX Runtime computes this one")

    def _try(self) -> None:
        """Learn how wide the scores are and what may be missing, from rows of ones and of strings that are known."""
        row = np.ones(self._one_row)
        row[:, list(self._tables)] = 0
        _, scores = self._outputs(row)
        classes, self._n_scores = self._answer.classes, scores.shape[1]
        if classes is None:
            self.n_outputs = self._n_scores
        elif self._n_scores == len(classes):
            self.n_classes = len(classes)
        elif self._n_scores > 1 or self._n_scores == 1 and len(classes) > 2:
            raise ModelError(f"expected {len(classes)} probabilities, found {self._n_scores}")
        tried = range(self.n_features) if self.n_features <= MAX_TRIED else [slice(None)]
        for columns in tried:
            missing = row.copy()
            missing[0, columns] = np.nan
            try:
                self._run(missing, wanted=False)
                self.takes_missing_in[columns] = True
            except ModelError:
                pass

    def _run(self, X, wanted: bool) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (n, n_outputs) and probabilities (n, n_classes), or (n, 0) when they are not wanted."""
        rows = self._checked_rows(X)
        predictions = np.empty((len(rows), self.n_outputs))
        probabilities = np.empty((len(rows), self.n_classes if wanted else 0))
        size = 1 if self._features.one_row else CHUNK_ROWS
        for first in range(0, len(rows), size):
            chunk = rows[first:first + size]
            places, scores = self._outputs(chunk)
            if not np.isfinite(scores).all():
                raise self._no_score(chunk)
            predictions[first:first + size] = scores if places is None else places
            if probabilities.size:
                probabilities[first:first + size] = scores
        return predictions, probabilities

    def _outputs(self, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """The labels' places (n, 1), None where there are none, and the scores (n, width) float64."""
        answer = self._answer
        wanted = [name for name in (answer.label, answer.scores) if name is not None]
        feeds = self._feeds(rows)
        try:
            found = dict(zip(wanted, self._session.run(wanted, feeds, self._run_options), strict=True))
        except Exception as error:  # ONNX Runtime's own classes, and what C++ throws
            raise ModelError(f"ONNX Runtime cannot compute these rows: {_spelled(error)}") from None
        scores = np.empty((len(rows), 0)) if answer.scores is None else self._scores(found[answer.scores], len(rows))
        return None if answer.label is None else self._places_of_labels(found[answer.label], len(rows)), scores

    def _scores(self, found: Any, n_rows: int) -> np.ndarray:
        if self._answer.are_maps:
            found = np.array([[scores[label] for label in self._answer.classes or ()] for scores in found], np.float64)
        if len(found) != n_rows or not found.size:
            raise ModelError(f"expected scores of {n_rows} rows, found an array of shape {found.shape}")
        scores = found.reshape(n_rows, -1).astype(np.float64)
        if self._n_scores not in (None, scores.shape[1]):
            raise ModelError(f"expected {self._n_scores} scores a row, found {scores.shape[1]}")
        return scores

    def _places_of_labels(self, found: np.ndarray, n_rows: int) -> np.ndarray:
        if found.size != n_rows:
            raise ModelError(f"expected a label for each of {n_rows} rows, found an array of shape {found.shape}")
        try:
            return np.array([[self._place_of_label[label]] for label in found.ravel().tolist()], np.float64)
        except KeyError:
            raise ModelError("expected labels that are among the model's classes") from None

    def _feeds(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        feeds, first = {}, 0
        for info, shape in self._features.inputs:
            n = math.prod(shape)
            block = rows[:, first:first + n]
            if info.dtype == object:
                block = np.stack([self._strings_of(rows, first + i) for i in range(n)], axis=1)
            elif info.dtype.kind == "f":
                with np.errstate(over="ignore"):  # a score will not be finite
                    block = block.astype(info.dtype)
            else:
                self._check_whole(rows, first, n, info.dtype)
                block = block.astype(info.dtype)
            feeds[info.name] = np.ascontiguousarray(block).reshape(len(rows), *shape[1:])
            first += n
        return feeds

    def _check_whole(self, rows: np.ndarray, first: int, n: int, dtype: np.dtype) -> None:
        low, high = (-np.inf, np.inf) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
        block = rows[:, first:first + n]
        right = np.isfinite(block) & (block >= low) & (block < high)
        if not right.all():
            row, feature = np.argwhere(~right)[0].tolist()
            raise ModelError(f"expected numbers that {dtype} holds: row {row}, feature {first + feature} is "
                             f"{block[row, feature]}")

    def _strings_of(self, rows: np.ndarray, feature: int) -> np.ndarray:
        """A column's strings; for what is no place of one, a string that the model cannot know."""
        table, column = self._tables[feature], rows[:, feature]
        if np.isnan(column).any():
            raise ModelError(f"expected no missing values of feature {feature}, which takes strings")
        n = len(table) - 1
        is_place = (column >= 0) & (column < n) & (column == np.floor(column))
        return table[np.where(is_place, column, n).astype(np.intp)]


def _table(texts: tuple[str, ...]) -> np.ndarray:
    """(n + 1) objects: the strings, and after them one that is not among them."""
    unknown, known = "?", set(texts)
    while unknown in known:
        unknown += "?"
    table = np.empty(len(texts) + 1, object)
    table[:] = [*texts, unknown]
    return table


# ---- reading -----------------------------------------------------------------------------------------------

def read(path: str | Path, threads: int = 1) -> OnnxRuntimeModel:
    """The model in the ONNX file at `path`, computed by ONNX Runtime on `threads` threads.

    Raises ModelError where the file or its external data is not sound, where ONNX Runtime refuses it, and where its
    outputs are not numbers, or a label of known classes and their scores; OSError when the file cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ModelError(f"{path.name}: expected a regular file")
    if threads < 1:
        raise ModelError(f"expected 1 thread or more, found {threads}")
    size_bytes = path.stat().st_size
    try:
        if size_bytes > onnx_graph.MAX_FILE_BYTES:
            raise ModelError(f"expected at most {onnx_graph.MAX_FILE_BYTES} bytes, found {size_bytes}")
        return _read(path, path.read_bytes(), threads)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None
    except UnicodeDecodeError:  # a string is decoded when it is read
        raise ModelError(f"{path.name}: expected UTF-8 in every string") from None


def _read(path: Path, data: bytes, threads: int) -> OnnxRuntimeModel:
    proto = onnx_graph.parse(data)
    external = ExternalData(path.parent)
    for tensor in _tensors(proto):
        if tensor.data_location == tensor.EXTERNAL:
            read_tensor(tensor, external)
    session = _session(data, path.parent, threads)
    inputs = tuple(_info(one) for one in session.get_inputs())
    metadata = {pair.key: pair.value for pair in proto.metadata_props}
    graph = Graph("", inputs, (), (), {}, metadata, proto.model_version, "", len(data) + external.size_bytes)
    features = read_features(graph)
    nodes = _Nodes(proto)
    return OnnxRuntimeModel(session, graph, features, _answer(session.get_outputs(), nodes),
                            _categories(features, nodes), path)


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors of a message, with those of the graphs in it, however deep."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            values = [value] if hasattr(value, "ListFields") else value
            yield from chain.from_iterable(map(_tensors, values))


def _session(data: bytes, folder: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ModelError("the engine onnxruntime needs its package: pip install 'testigo[onnxruntime]'") from None
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = QUIET
    for key, value in (OPTIONS | {FOLDER: str(folder.resolve())}).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, and what C++ throws
        raise ModelError(f"ONNX Runtime refuses the model: {_spelled(error)}") from None


def _run_options() -> Any:
    import onnxruntime
    options = onnxruntime.RunOptions()
    options.log_severity_level = QUIET
    return options


def _spelled(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.300}"


def _info(given: Any) -> TensorInfo:
    """A session's input in our terms."""
    if given.type not in TYPES:
        raise ModelError(f"input {given.name!r:.80}: expected a tensor of {', '.join(TYPES)}, found {given.type:.80}")
    shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in given.shape)
    return TensorInfo(given.name, np.dtype(TYPES[given.type]), shape)


# ---- nodes -------------------------------------------------------------------------------------------------

class _Nodes:
    """A model's nodes as they come in the file, with their constants."""

    def __init__(self, proto: Any) -> None:
        self.all = [node for node in proto.graph.node if node.op_type != "Constant"]
        self.maker = {name: node for node in self.all for name in node.output}
        self.has_graphs = bool(proto.functions) or any(
            attribute.HasField("g") or attribute.graphs for node in self.all for attribute in node.attribute)
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._made = {node.output[0]: node for node in proto.graph.node if node.op_type == "Constant" and node.output}

    def constant(self, name: str) -> list | None:
        """The elements of a constant, flat; None for what is none."""
        if name in self._tensors:
            return _elements(self._tensors[name])
        if name in self._made:
            return next((values for attribute in self._made[name].attribute for values in [_values(attribute)]), None)
        return None


def _values(attribute: Any) -> list:
    """The strings or numbers of an attribute, flat."""
    if attribute.HasField("t"):
        return _elements(attribute.t)
    single = [getattr(attribute, field) for field in ("s", "i", "f") if attribute.HasField(field)]
    found = [*attribute.strings, *attribute.ints, *attribute.floats] or single
    return [value.decode() if isinstance(value, bytes) else value for value in found]


def _elements(tensor: Any) -> list:
    """A tensor's elements; external data has been checked but is not read: labels and strings are never there."""
    if tensor.data_location == tensor.EXTERNAL:
        return []
    return read_tensor(tensor, ExternalData(None)).ravel().tolist()


def _attribute(node: Any, *names: str) -> list | None:
    """What the first of these attributes holds that the node has."""
    found = {attribute.name: attribute for attribute in node.attribute if attribute.name in names}
    return next((_values(found[name]) for name in names if name in found), None)


def _place(node: Any) -> str:
    return f"operator {node.op_type:.80} (node {node.name!r:.80})"


# ---- strings -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Strings:
    """A tensor of strings that come from these columns; in order: (n, len(columns)), else shaped in any way."""

    columns: tuple[int, ...]
    in_order: bool


def _categories(features: Features, nodes: _Nodes) -> tuple[tuple[str, ...] | None, ...] | None:
    """For each feature of strings those that the model compares it with."""
    known: list[dict[str, None] | None] = []
    strings: dict[str, _Strings] = {}
    for info, shape in features.inputs:
        n = math.prod(shape)
        if info.dtype == object:
            strings[info.name] = _Strings(tuple(range(len(known), len(known) + n)), len(shape) == 2)
        known += [{} if info.dtype == object else None for _ in range(n)]
    if not strings:
        return None
    if nodes.has_graphs:
        raise ModelError("expected no functions and no graphs in operators where inputs are strings")
    n_free, were_read = MAX_CATEGORIES, set[str]()
    for node in nodes.all:
        were_read.update(node.input)
        seen = [strings[name] for name in node.input if name in strings]
        if not seen:
            continue
        columns = set(chain.from_iterable(one.columns for one in seen))
        for text in _compared(node, nodes, strings):
            n_free -= len(columns)
            if n_free < 0:
                raise ModelError(f"expected at most {MAX_CATEGORIES:,} strings of all features together")
            for column in columns:
                known[column][text] = None  # type: ignore[index]
        if node.op_type in MOVING:
            if not were_read.isdisjoint(node.output):
                raise ModelError(f"{_place(node)}: expected nodes in the order in which they run")
            strings |= dict.fromkeys(node.output, _moved(node, nodes, seen))
    return tuple(None if texts is None else tuple(texts) for texts in known)


def _compared(node: Any, nodes: _Nodes, strings: dict[str, _Strings]) -> list[str]:
    """The strings that an operator compares those of its inputs with; refuses one that does anything else with them."""
    if node.domain not in DOMAINS or node.op_type not in COMPARING and node.op_type not in MOVING:
        raise ModelError(f"{_place(node)}: expected an operator that compares whole strings: no other one can be run "
                         "on rows")
    if node.op_type in MOVING:
        return []
    found = [_attribute(node, name) or [] for name in COMPARING[node.op_type]]
    if node.op_type == "Equal":
        others = [nodes.constant(name) for name in node.input if name not in strings]
        if len(others) != 1 or others[0] is None:
            raise ModelError(f"{_place(node)}: expected strings that are compared with constants")
        found = [others[0]]
    return [text for texts in found for text in texts if isinstance(text, str)]


def _moved(node: Any, nodes: _Nodes, seen: list[_Strings]) -> _Strings:
    """What an operator makes of strings: a choice of columns, or all of them in whatever order."""
    columns = tuple(chain.from_iterable(one.columns for one in seen))
    in_order = all(one.in_order for one in seen)
    if node.op_type == "Concat" and len(seen) == len(node.input):
        return _Strings(columns, in_order and _attribute(node, "axis") in ([1], [-1]))
    is_choice = node.op_type == "ArrayFeatureExtractor" or node.op_type == "Gather" and _attribute(node, "axis") == [1]
    if is_choice and in_order:
        places = nodes.constant(node.input[1]) or []
        if places and all(isinstance(i, int) and 0 <= i < len(columns) for i in places):
            return _Strings(tuple(columns[i] for i in places), node.op_type != "Gather")  # which may drop the axis
    return _Strings(columns, in_order and node.op_type == "Identity")


# ---- outputs -----------------------------------------------------------------------------------------------

def _answer(outputs: list, nodes: _Nodes) -> Answer:
    """Which output is the label, which the scores, and what the classes are."""
    labels = [one for one in outputs if one.type in WHOLE or one.type == STRINGS]
    scores = [one for one in outputs if one.type not in WHOLE and one.type != STRINGS]
    if len(labels) > 1 or len(scores) > 1:
        raise ModelError("expected one output of numbers, or a label and its probabilities: found "
                         f"{len(outputs)} outputs")
    are_maps = any(score.type.startswith("seq(map(") for score in scores)
    for score in scores:
        if not are_maps and score.type not in SCORES:
            raise ModelError(f"output {score.name!r:.80}: expected numbers or ZipMap's, found {score.type:.80}")
    name = next((score.name for score in scores), None)
    if not labels:
        if are_maps:
            raise ModelError("expected a label beside the output of ZipMap")
        return Answer(None, name, False, None)
    label = labels[0]
    if are_maps:
        classes = _attribute(nodes.maker[name], *CLASS_LABELS) if name in nodes.maker else None
    else:
        classes = _classes_of(label.name, scores[0].shape if scores else (), nodes)
    if not classes:
        raise ModelError(f"output {label.name!r:.80}: expected labels of known classes: from a classifier of ai.onnx.ml"
                         ", from a table of constants, or with the output of ZipMap")
    spelled = [_label(one, label.type) for one in classes]
    return Answer(label.name, name, are_maps, tuple(dict.fromkeys(spelled)))


def _label(found: Any, output_type: str) -> Any:
    """A class's label as an output of this type has it."""
    if output_type == STRINGS and isinstance(found, (str, int)):
        return str(found)
    if output_type != STRINGS and isinstance(found, (int, float)) and float(found).is_integer():
        return int(found)
    raise ModelError("expected labels that are all strings, or all integers")


def _classes_of(name: str, shape: Sequence, nodes: _Nodes) -> list | None:
    """The classes in the order of the scores, from the operators that lead to the label; None where they do not say."""
    tables, steps = [], len(nodes.all)
    while name in nodes.maker and steps:
        node, steps = nodes.maker[name], steps - 1
        classes: list | None = _attribute(node, *CLASS_LABELS)
        if node.op_type in ("ArrayFeatureExtractor", "Gather"):
            classes = nodes.constant(node.input[0])
        if node.op_type in ("ArgMax", "ArgMin") and shape and shape[-1] in range(1, MAX_ARGS):
            classes = list(range(shape[-1]))
        if node.op_type == "LabelEncoder" and not classes:
            tables.append(_encoder(node))
        elif classes or node.op_type not in PASSING:
            for keys, default in reversed(tables):
                classes = None if classes is None else [keys.get(one, default) for one in classes]
            return classes
        name = node.input[0]
    return None


def _encoder(node: Any) -> tuple[dict, Any]:
    """What a LabelEncoder makes of its keys, and of anything else."""
    keys = _attribute(node, "keys_strings", "keys_int64s", "keys_floats", "keys_tensor") or []
    values = _attribute(node, "values_strings", "values_int64s", "values_floats", "values_tensor") or []
    default = _attribute(node, "default_string", "default_int64", "default_float", "default_tensor") or [None]
    return dict(zip(keys, values, strict=False)), default[0]
