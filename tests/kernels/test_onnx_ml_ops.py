"""The ai.onnx.ml operators against ONNX Runtime, on generated models."""

import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kernels import onnx_backend
from kernels.errors import ModelError
from kernels.onnx_ml_ops import ML_OPS

ML = "ai.onnx.ml"
FLOAT, DOUBLE, FLOAT16 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT64, INT32, INT16, STRING = TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.STRING
TYPES = {np.dtype(dtype): kind for dtype, kind in (
    (np.float32, FLOAT), (np.float64, DOUBLE), (np.float16, FLOAT16), (np.int64, INT64), (np.int32, INT32),
    (np.int16, INT16), (object, STRING))}
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
PROBIT = 2e-3  # ONNX Runtime computes it in float32, where it cancels near one half
NUMBERS = (np.float32, np.float64, np.int64, np.int32)


def make_model(op_type, inputs, outputs, attributes, version):
    """A model of one operator for inputs {name: array} and outputs {name: element type or type}."""
    infos = [helper.make_tensor_value_info(name, TYPES[x.dtype], [None] * x.ndim) if isinstance(x, np.ndarray) else x
             for name, x in inputs.items()]
    outs = [helper.make_tensor_value_info(name, kind, None) if isinstance(kind, int)
            else helper.make_value_info(name, kind) for name, kind in outputs.items()]
    node = helper.make_node(op_type, list(inputs), list(outputs), domain=ML, name="one", **attributes)
    graph = helper.make_graph([node], "test", infos, outs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, ir_version=9, opset_imports=opsets)


def run_ort(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def both(op_type, inputs, outputs, attributes, version=1):
    """(ours, ONNX Runtime's) outputs."""
    if not isinstance(inputs, dict):
        inputs = {"X": inputs}
    if not isinstance(outputs, dict):
        outputs = {"Y": outputs}
    model = make_model(op_type, inputs, outputs, attributes, version)
    return onnx_backend.prepare(model).run(inputs), run_ort(model, inputs)


def assert_same(ours, theirs, tolerance=1e-6):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.dtype == other.dtype and one.shape == other.shape
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        else:
            assert one.tolist() == other.tolist()


def f32(values):
    return [float(one) for one in np.asarray(values, np.float32)]


def tolerance_of(transform):
    return PROBIT if transform == "PROBIT" else 1e-6


def make_labels(n_classes, strings, ints, first=0):
    """The attribute with the class labels, and the outputs of the classifier."""
    if strings:
        return {"classlabels_strings": list("abcdef"[:n_classes])}, {"Y": STRING, "Z": FLOAT}
    return {ints: list(range(first, first + n_classes))}, {"Y": INT64, "Z": FLOAT}


# --- trees ---

class Forest:
    """Random trees in the terms of TreeEnsembleClassifier and TreeEnsembleRegressor, nodes in a random order."""

    def __init__(self, rng, n_trees, n_features, n_outputs, *, modes=("BRANCH_LEQ",), values=None, depth=5,
                 entries="all", signs=True):
        self.nodes, self.entries = [], []  # (tree id, node id, feature, mode, value, true, false, tracks)
        self.rng, self.n_features, self.modes, self.depth = rng, n_features, modes, depth
        self.values = rng.standard_normal(12) if values is None else values
        for tree in rng.permutation(3 * n_trees)[:n_trees].tolist():
            first = len(self.nodes)
            self.grow(tree, first, depth)
            ids = rng.permutation(len(self.nodes) - first).tolist()  # ONNX Runtime wants them below the number of nodes
            self.nodes[first:] = [(tree, ids[node], *split, ids[true], ids[false], tracks)
                                  for _, node, *split, true, false, tracks in self.nodes[first:]]
            leaves = [node for node in self.nodes[first:] if node[3] == "LEAF"]
            one = int(rng.integers(n_outputs))
            for leaf in leaves:
                outputs = {"all": range(n_outputs), "one": [one], "zero": [0],
                           "some": rng.permutation(n_outputs)[:rng.integers(n_outputs + 1)]}[entries]
                for output in outputs:
                    weight = rng.standard_normal() if signs else rng.random()
                    self.entries.append((leaf[0], leaf[1], int(output), float(np.float32(weight / n_trees))))
            rest = self.nodes[first + 1:]  # ONNX Runtime takes a tree's first node for its root
            self.nodes[first + 1:] = [rest[i] for i in rng.permutation(len(rest))]
        self.entries = [self.entries[i] for i in rng.permutation(len(self.entries))]

    def grow(self, tree, first, depth):
        place = len(self.nodes)
        node_id = place - first
        self.nodes.append(None)
        if depth == 0 or (depth < self.depth and self.rng.random() < 0.25):
            self.nodes[place] = (tree, node_id, 0, "LEAF", 0.0, 0, 0, 0)
        else:
            true, false = self.grow(tree, first, depth - 1), self.grow(tree, first, depth - 1)
            mode, value = str(self.rng.choice(self.modes)), float(self.rng.choice(self.values))
            self.nodes[place] = (tree, node_id, int(self.rng.integers(self.n_features)), mode, value, true, false,
                                 int(self.rng.integers(2)))
        return node_id

    def attributes(self, of, tracks=True):
        columns = list(zip(*self.nodes))
        names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
                 "missing_value_tracks_true")
        nodes = {f"nodes_{name}": list(column) for name, column in zip(names, columns) if tracks or name != names[-1]}
        trees, ids, outputs, weights = zip(*self.entries)
        return nodes | {f"{of}_treeids": trees, f"{of}_nodeids": ids, f"{of}_ids": outputs, f"{of}_weights": weights}


def rows(rng, values, n, n_features, dtype=np.float32, nan=True):
    """Rows of numbers, many of them equal to one of `values` or next to it, some NaN or infinite."""
    X = rng.choice(np.concatenate([values, rng.standard_normal(8)]).astype(np.float32), (n, n_features)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        near = rng.random(X.shape) < 0.2
        X[near] = np.nextafter(X[near], rng.choice([-np.inf, np.inf], int(near.sum())).astype(dtype))
        X[rng.random(X.shape) < 0.02] = np.inf
        X[rng.random(X.shape) < 0.02] = -np.inf
        if nan:
            X[rng.random(X.shape) < 0.1] = np.nan
    return X


BRANCHES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("modes", [*((one,) for one in BRANCHES), BRANCHES], ids="-".join)
def test_tree_regressor_takes_the_branches_of_onnx_runtime(modes, dtype):
    rng = np.random.default_rng(len(modes[0]) + 7)
    for n_targets in (1, 3):
        values = np.concatenate([np.arange(-2, 3), rng.standard_normal(6)]).astype(np.float32)
        forest = Forest(rng, 9, 4, n_targets, modes=modes, values=values)
        X = rows(rng, values, 120, 4, dtype)
        for tracks in (True, False):
            attributes = forest.attributes("target", tracks) | {"n_targets": n_targets}
            assert_same(*both("TreeEnsembleRegressor", X, FLOAT, attributes, 3))


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("entries", ["all", "one", "some"])
def test_tree_regressor_aggregates(aggregate, entries):
    rng = np.random.default_rng(3)
    for n_targets, with_base, transform in itertools.product((1, 2, 4), (False, True), TRANSFORMS):
        forest = Forest(rng, 5, 3, n_targets, entries="all" if n_targets == 1 else entries, depth=3,
                        signs=transform != "PROBIT")
        attributes = forest.attributes("target") | {
            "n_targets": n_targets, "aggregate_function": aggregate, "post_transform": transform}
        if with_base and (n_targets == 1 or entries == "all"):  # ONNX Runtime drops the base where a row has no entry
            attributes["base_values"] = f32(rng.random(n_targets) / 4)
        assert_same(*both("TreeEnsembleRegressor", rows(rng, forest.values, 30, 3), FLOAT, attributes, 3),
                    tolerance_of(transform))


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("entries", ["all", "one", "zero", "some"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_tree_classifier_chooses_and_scores_as_onnx_runtime(n_classes, entries, dtype):
    rng = np.random.default_rng(n_classes)
    bases = (0, 1, 2) if n_classes == 2 else (0, n_classes)
    for signs, n_base, transform in itertools.product((True, False), bases, TRANSFORMS):
        forest = Forest(rng, 6, 3, n_classes, entries=entries, signs=signs, depth=3)
        labels, outputs = make_labels(n_classes, rng.random() < 0.5, "classlabels_int64s")
        attributes = forest.attributes("class") | labels | {"post_transform": transform}
        if n_base:
            attributes["base_values"] = f32(rng.random(n_base) / 3)
        X = rows(rng, forest.values, 30, 3, dtype)
        try:
            ours, theirs = both("TreeEnsembleClassifier", X, outputs, attributes, 3)
        except onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException:
            assert n_classes > 2 and entries != "all"  # no class has a score
            continue
        assert_same(ours[:1], theirs[:1])
        defined = slice(None)
        single = n_classes == 2 and n_base < 2 and entries != "all"
        if single and (transform == "PROBIT" or (n_base == 1 and len({one[2] for one in forest.entries}) == 2)):
            defined = slice(1)  # the second column is left as it was in memory
        assert_same([ours[1][:, defined]], [theirs[1][:, defined]], tolerance_of(transform))


def test_tree_classifier_gives_the_labels_of_the_file():
    """ONNX Runtime answers 0 and 1 here, which are no labels of this model: the one difference in labels."""
    X = np.float32([[-1], [1]])
    attributes = stump("class", [(1, 0, 0.2), (1, 1, 0.8), (2, 0, 0.7), (2, 1, -0.3)]) | {"classlabels_int64s": [5, 7]}
    ours, theirs = both("TreeEnsembleClassifier", X, {"Y": INT64, "Z": FLOAT}, attributes, 3)
    assert ours[0].tolist() == [7, 5] and theirs[0].tolist() == [1, 0]
    assert_same(ours[1:], theirs[1:])


def test_tree_regressor_gives_the_base_value_where_no_leaf_has_an_entry():
    """ONNX Runtime leaves the base value out there: the one difference in scores."""
    attributes = stump("target", [(1, 0, 0.25), (2, 1, 0.5)]) | {"n_targets": 2, "base_values": [1.0, 2.0]}
    for aggregate in ("SUM", "MIN", "MAX"):
        ours, theirs = both("TreeEnsembleRegressor", np.float32([[-1], [1]]), FLOAT,
                            attributes | {"aggregate_function": aggregate}, 3)
        assert ours[0].tolist() == [[1.25, 2.0], [1.0, 2.5]]
        assert theirs[0].tolist() == [[1.25, 0.0], [0.0, 2.5]]


def stump(of, entries):
    """x[0] <= 0 → node 1, else node 2; entries (node, output, weight)."""
    nodes, outputs, weights = zip(*entries)
    return {"nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
            "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.0, 0.0, 0.0],
            "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], f"{of}_treeids": [0] * len(nodes),
            f"{of}_nodeids": nodes, f"{of}_ids": outputs, f"{of}_weights": weights}


@pytest.mark.parametrize("label", [{"classlabels_int64s": [4]}, {"classlabels_int64s": [1]}])
def test_tree_classifier_of_one_class(label):
    for base, transform in itertools.product(([], [0.5]), TRANSFORMS[:4]):
        attributes = stump("class", [(1, 0, -0.25), (2, 0, 0.75)]) | label | {"post_transform": transform}
        attributes |= {"base_values": base} if base else {}
        assert_same(*both("TreeEnsembleClassifier", np.float32([[-1], [1]]), {"Y": INT64, "Z": FLOAT}, attributes, 3))


def double_tensor(name, values):
    return helper.make_tensor(name, DOUBLE, [len(values)], np.asarray(values, np.float64))


@pytest.mark.parametrize("of", ["class", "target"])
def test_tree_attributes_as_double_tensors(of):
    rng = np.random.default_rng(11)
    values = rng.standard_normal(9)  # no float32
    for n_outputs in (1, 2, 4):
        n_outputs += of == "class"
        forest = Forest(rng, 5, 3, n_outputs, values=values, modes=BRANCHES,
                        entries="zero" if n_outputs == 2 else "all")
        attributes = forest.attributes(of)
        for name in ("nodes_values", f"{of}_weights"):
            attributes[f"{name}_as_tensor"] = double_tensor(name, attributes.pop(name))
        if n_outputs != 2:
            attributes["base_values_as_tensor"] = double_tensor("base", rng.standard_normal(n_outputs))
        X = rng.choice(values, (80, 3))
        X = np.where(rng.random(X.shape) < 0.3, np.nextafter(X, rng.choice([-9, 9], X.shape)), X)
        outputs = {"Y": INT64, "Z": FLOAT} if of == "class" else FLOAT
        more = {"classlabels_int64s": list(range(n_outputs))} if of == "class" else {"n_targets": n_outputs}
        op_type = "TreeEnsembleClassifier" if of == "class" else "TreeEnsembleRegressor"
        assert_same(*both(op_type, X, outputs, attributes | more, 3))


# --- TreeEnsemble, opset 5 ---

def tree_ensemble_v5(rng, n_trees, n_features, n_targets, dtype, modes, values, members=(0, 1, 2, 3)):
    nodes, leaves, sets, roots = [], [], {}, []

    def grow(depth):
        place = len(nodes)
        nodes.append(None)
        mode = int(rng.choice(modes))
        if mode == 6:
            sets[place] = [float(one) for one in rng.permutation(members)[:rng.integers(1, len(members) + 1)]]
        children = []
        for _ in range(2):
            if depth == 0 or rng.random() < 0.2:
                leaves.append((int(rng.integers(n_targets)), float(rng.standard_normal())))
                children += [len(leaves) - 1, 1]
            else:
                children += [grow(depth - 1), 0]
        nodes[place] = (int(rng.integers(n_features)), mode, float(rng.choice(values)), *children, int(rng.integers(2)))
        return place

    for _ in range(n_trees):
        roots.append(grow(3))
    feature, mode, split, true, true_leaf, false, false_leaf, tracks = zip(*nodes)
    membership = [one for place in sorted(sets) for one in (*sets[place], np.nan)]
    attributes = {
        "n_targets": n_targets, "tree_roots": roots, "nodes_featureids": feature, "nodes_truenodeids": true,
        "nodes_trueleafs": true_leaf, "nodes_falsenodeids": false, "nodes_falseleafs": false_leaf,
        "nodes_missing_value_tracks_true": tracks, "leaf_targetids": [one for one, _ in leaves],
        "nodes_modes": numpy_helper.from_array(np.uint8(mode)),
        "nodes_splits": numpy_helper.from_array(np.asarray(split, dtype)),
        "leaf_weights": numpy_helper.from_array(np.asarray([one for _, one in leaves], dtype))}
    if membership:
        attributes["membership_values"] = numpy_helper.from_array(np.asarray(membership, dtype))
    return attributes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("modes", [(0,), range(6), (6,), range(7)], ids=["leq", "numeric", "member", "all"])
def test_tree_ensemble_of_opset_5(dtype, modes):
    rng = np.random.default_rng(5)
    values = np.concatenate([np.arange(-1, 4), rng.standard_normal(4)]).astype(np.float32)
    sets = itertools.cycle([(0, 1, 2, 3), (0.5, 1.5, 2.5), (100, 200, 300), tuple(range(50, 90))])
    for n_targets, aggregate, transform in itertools.product((1, 3), range(4), range(4)):
        attributes = tree_ensemble_v5(rng, 4, 3, n_targets, dtype, list(modes), values, members := next(sets))
        if 6 in modes:  # ONNX Runtime sends NaN elsewhere where its chain of comparisons is cut
            del attributes["nodes_missing_value_tracks_true"]
        X = rows(rng, np.append(values, members) if 6 in modes else values, 40, 3, dtype, nan=6 not in modes)
        if 6 in modes and members[0] % 1 == 0:
            X = np.trunc(X)  # ONNX Runtime takes 2.25 for a member of {2}
        models = [make_model("TreeEnsemble", {"X": X}, {"Y": TYPES[np.dtype(dtype)]},
                             attributes | {"aggregate_function": aggregate, "post_transform": number}, 5)
                  for number in (transform, (0, 2, 1, 3)[transform])]  # ONNX Runtime's 1 is LOGISTIC, its 2 SOFTMAX
        assert_same(onnx_backend.run_model(models[0], [X]), run_ort(models[1], {"X": X}))


def test_tree_ensemble_of_opset_5_in_float16():
    """Against the same numbers in float32: ONNX Runtime has no float16."""
    rng = np.random.default_rng(6)
    values = rng.standard_normal(6).astype(np.float16).astype(np.float32)
    attributes = tree_ensemble_v5(rng, 4, 3, 2, np.float32, list(range(7)), values)
    halves = dict(attributes)
    for name in ("nodes_splits", "leaf_weights", "membership_values"):
        numbers = numpy_helper.to_array(attributes[name]).astype(np.float16)
        halves[name] = numpy_helper.from_array(numbers)
        attributes[name] = numpy_helper.from_array(numbers.astype(np.float32))
    X = rng.choice(values, (30, 3))
    single, = onnx_backend.run_model(make_model("TreeEnsemble", {"X": X}, {"Y": FLOAT}, attributes, 5), [X])
    X = X.astype(np.float16)
    half, = onnx_backend.run_model(make_model("TreeEnsemble", {"X": X}, {"Y": FLOAT16}, halves, 5), [X])
    assert half.dtype == np.float16 and (half == single.astype(np.float16)).all()


# --- linear models ---

@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("strings", [True, False])
def test_linear_classifier(dtype, strings):
    rng = np.random.default_rng(2)
    for n_classes, one_score, transform in itertools.product((2, 3, 6), (False, True), TRANSFORMS):
        n_scores = 1 if one_score else n_classes
        if one_score and (n_classes > 2 or transform == "PROBIT"):
            continue
        labels, outputs = make_labels(n_classes, strings, "classlabels_ints", 7)
        attributes = {"coefficients": f32(rng.random(4 * n_scores) / 16), "intercepts": f32(rng.random(n_scores) / 8),
                      "post_transform": transform} | labels
        X = (rng.standard_normal((40, 4)) * (4 if np.dtype(dtype).kind == "i" else 1)).astype(dtype)
        assert_same(*both("LinearClassifier", X, outputs, attributes), tolerance_of(transform))


def test_linear_regressor():
    rng = np.random.default_rng(2)
    for targets, with_intercepts, transform in itertools.product((1, 2, 5), (False, True), TRANSFORMS):
        attributes = {"coefficients": f32(rng.random(4 * targets) / 8), "targets": targets, "post_transform": transform}
        if with_intercepts:
            attributes["intercepts"] = f32(rng.random(targets) / 2)
        X = rng.random((30, 4)).astype(np.float32)
        assert_same(*both("LinearRegressor", X, FLOAT, attributes), tolerance_of(transform))


# --- support vector machines ---

KERNELS = [("LINEAR", [0.0, 0.0, 0.0]), ("POLY", [0.3, 0.5, 2.0]), ("POLY", [0.3, 0.5, 3.0]), ("POLY", [0.2, 1.5, 1.0]),
           ("RBF", [0.4, 0.0, 0.0]), ("SIGMOID", [0.2, 0.1, 0.0])]


@pytest.mark.parametrize("kernel, params", KERNELS)
def test_svm_regressor(kernel, params):
    rng = np.random.default_rng(4)
    X = rng.standard_normal((30, 3)).astype(np.float32)
    for one_class in (0, 1):
        attributes = {"kernel_type": kernel, "kernel_params": params, "n_supports": 7, "rho": [0.125],
                      "one_class": one_class, "coefficients": f32(rng.standard_normal(7) / 8),
                      "support_vectors": f32(rng.standard_normal(21))}
        assert_same(*both("SVMRegressor", X, FLOAT, attributes), 2e-6)
    linear = {"rho": [0.125], "coefficients": [0.5, -0.25, 1.0], "kernel_type": "RBF", "kernel_params": params,
              "n_supports": 0}
    assert_same(*both("SVMRegressor", X, FLOAT, linear), 2e-6)


@pytest.mark.parametrize("kernel, params", KERNELS)
@pytest.mark.parametrize("probabilities", [True, False])
def test_svm_classifier(kernel, params, probabilities):
    rng = np.random.default_rng(9)
    for n_classes, strings, transform in itertools.product((2, 3, 5), (False, True), TRANSFORMS):
        per_class = rng.integers(1, 5, n_classes)
        total, pairs = int(per_class.sum()), n_classes * (n_classes - 1) // 2
        labels, outputs = make_labels(n_classes, strings, "classlabels_ints", 4)
        attributes = {"kernel_type": kernel, "kernel_params": params, "vectors_per_class": per_class.tolist(),
                      "coefficients": f32(rng.standard_normal(total * (n_classes - 1)) / 4),
                      "rho": f32(rng.standard_normal(pairs) / 8),
                      "support_vectors": f32(rng.standard_normal(3 * total)), "post_transform": transform} | labels
        if probabilities:
            attributes |= {"prob_a": f32(-rng.random(pairs) - 0.5), "prob_b": f32(rng.standard_normal(pairs) / 8)}
        X = rng.standard_normal((30, 3)).astype(NUMBERS[n_classes % 2])
        ours, theirs = both("SVMClassifier", X, outputs, attributes)
        assert_same(ours[:1], theirs[:1])
        defined = slice(1) if n_classes == 2 and not probabilities and transform == "PROBIT" else slice(None)
        assert_same([ours[1][:, defined]], [theirs[1][:, defined]], PROBIT if transform == "PROBIT" else 2e-6)


def test_svm_classifier_of_liblinear():
    rng = np.random.default_rng(9)
    for n_classes, transform, sign in itertools.product((2, 3), TRANSFORMS, (1, -1)):
        signs = np.where(rng.random(4 * n_classes) < 0.3, sign, 1)
        attributes = {"coefficients": f32(rng.random(4 * n_classes) / 4 * signs), "rho": [0.125],
                      "classlabels_ints": list(range(n_classes)), "post_transform": transform,
                      "kernel_params": [0.0, 0.0, 0.0]}
        for dtype in NUMBERS:
            X = rng.standard_normal((30, 4)).astype(dtype)
            assert_same(*both("SVMClassifier", X, {"Y": INT64, "Z": FLOAT}, attributes), tolerance_of(transform))


# --- preprocessing ---

def table(dtype, n=12, width=4):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, width)) * 5).astype(dtype)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("length", [1, 4])
def test_scaler(dtype, length):
    attributes = {"offset": f32(np.arange(length) * 0.3), "scale": f32(np.arange(1, length + 1) * 0.7)}
    assert_same(*both("Scaler", table(dtype), FLOAT, attributes))
    assert_same(*both("Scaler", table(dtype)[0], FLOAT, attributes))


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(dtype, norm):
    X = table(dtype)
    X[3] = 0
    X[4] = -abs(X[4])
    if X.dtype.kind == "f":
        X[5, 2] = np.nan
    assert_same(*both("Normalizer", X, FLOAT, {"norm": norm}))
    assert_same(*both("Normalizer", X[0], FLOAT, {"norm": norm}))


@pytest.mark.parametrize("replaced", [0.0, float("nan"), 2.5])
@pytest.mark.parametrize("imputed", [[9.5], [1.5, 2.5, 3.5]])
def test_imputer(replaced, imputed):
    X = np.float32([[0, np.nan, 2.5], [-0.0, 1, 2], [np.nan, 2.5, 0]])
    attributes = {"imputed_value_floats": imputed, "replaced_value_float": replaced}
    ours, theirs = both("Imputer", X, FLOAT, attributes)
    assert_same(ours, theirs)
    doubles = make_model("Imputer", {"X": X.astype(np.float64)}, {"Y": DOUBLE}, attributes, 1)
    assert_same(onnx_backend.run_model(doubles, [X.astype(np.float64)]), [theirs[0].astype(np.float64)])
    integers = {"imputed_value_int64s": [int(one) for one in imputed], "replaced_value_int64": 2}
    X = np.int64([[1, 2, 3], [2, 0, -2]])
    ours, theirs = both("Imputer", X, INT64, integers)
    assert_same(ours, theirs)
    narrow = make_model("Imputer", {"X": X.astype(np.int32)}, {"Y": INT32}, integers, 1)
    assert_same(onnx_backend.run_model(narrow, [X.astype(np.int32)]), [theirs[0].astype(np.int32)])


def test_binarizer():
    X = table(np.float32)
    X[0, :2] = 0.5, 0.0
    assert_same(*both("Binarizer", X, FLOAT, {"threshold": 0.5}))
    assert_same(*both("Binarizer", X, FLOAT, {}))
    for dtype, kind in ((np.float64, DOUBLE), (np.int64, INT64), (np.int32, INT32)):
        model = make_model("Binarizer", {"X": X.astype(dtype)}, {"Y": kind}, {"threshold": 0.5}, 1)
        assert_same(onnx_backend.run_model(model, [X.astype(dtype)]), [(X.astype(dtype) > 0.5).astype(dtype)])


@pytest.mark.parametrize("dtype", [*NUMBERS, object])
def test_array_feature_extractor(dtype):
    X = table(np.int64).astype(str).astype(object) if dtype is object else table(dtype)
    for x in (X, X[0], X.reshape(3, 4, 4)):
        assert_same(*both("ArrayFeatureExtractor", {"X": x, "Y": np.int64([3, 0, 0])}, {"Z": TYPES[x.dtype]}, {}))


@pytest.mark.parametrize("dtype", NUMBERS)
def test_feature_vectorizer(dtype):
    inputs = {"A": table(dtype, width=2), "B": table(dtype, width=3), "C": table(dtype, width=1)}
    for dims in ([2, 3, 1], [1, 2, 1]):
        assert_same(*both("FeatureVectorizer", inputs, {"Y": FLOAT}, {"inputdimensions": dims}))


# --- categories ---

WORDS = np.array([["a", "b"], ["", "zz"], ["é", "a"]], object)


def test_one_hot_encoder():
    for cats in (["a", "é", "zz"], ["b", "a", "b"]):
        assert_same(*both("OneHotEncoder", WORDS, FLOAT, {"cats_strings": cats}))
        assert_same(*both("OneHotEncoder", WORDS[:, 0], FLOAT, {"cats_strings": cats}))
    X = np.int64([[1, -3], [7, 2], [0, 1]])
    for cats in ([1, 2, 7], [0, -3, 0]):
        for dtype in (np.int64, np.float32, np.float64):
            assert_same(*both("OneHotEncoder", X.astype(dtype), FLOAT, {"cats_int64s": cats}))
        assert_same(*both("OneHotEncoder", X / 1.7, FLOAT, {"cats_int64s": cats}))
    everything = {"cats_int64s": [1, -3, 7, 2, 0], "zeros": 0}
    assert_same(*both("OneHotEncoder", X, FLOAT, everything))
    with pytest.raises(ModelError, match="known categories"):
        onnx_backend.run_model(make_model("OneHotEncoder", {"X": X}, {"Y": FLOAT}, everything, 1), [X + 1])


COLUMNS = {"strings": (["a", "zz", "a", "é"], WORDS, STRING),
           "int64s": ([7, -2, 7, 0], np.int64([[7, 0], [5, -2]]), INT64),
           "floats": ([0.5, float("nan"), -1.0, 0.0], np.float32([[0.5, np.nan], [-0.0, 3]]), FLOAT)}


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("keys", COLUMNS)
@pytest.mark.parametrize("values", COLUMNS)
def test_label_encoder(version, keys, values):
    defaults = {"strings": {"default_string": "none"}, "int64s": {"default_int64": 77},
                "floats": {"default_float": 1.5}}
    for default in ({}, defaults[values]):
        attributes = {f"keys_{keys}": COLUMNS[keys][0], f"values_{values}": COLUMNS[values][0]} | default
        assert_same(*both("LabelEncoder", COLUMNS[keys][1], COLUMNS[values][2], attributes, version))


def test_label_encoder_of_opset_1():
    for X, kind in ((WORDS, INT64), (np.int64([0, 2, 3, -1]), STRING)):
        for default in ({}, {"default_int64": 5, "default_string": "none"}):
            assert_same(*both("LabelEncoder", X, kind, {"classes_strings": ["zz", "a", "b"]} | default))


def as_tensor(name, values, dtype):
    return numpy_helper.from_array(np.array([str(one) for one in values] if dtype is object else values, dtype), name)


@pytest.mark.parametrize("keys, values", [
    (object, np.int16), (object, np.int64), (object, np.float64), (np.float64, object), (np.float64, np.float64),
    (np.int64, np.float32), (np.int64, np.int64), (np.float32, np.int64), (np.float32, object), (object, object)])
def test_label_encoder_of_tensors(keys, values):
    X = WORDS if keys is object else np.asarray([[3, 1], [0, 2]], keys)
    for default in ({}, {"default_tensor": as_tensor("default", [9], values)}):
        attributes = {"keys_tensor": as_tensor("keys", ["a", "zz", "é"] if keys is object else [1, 0, 3], keys),
                      "values_tensor": as_tensor("values", [4, 5, 6], values)} | default
        assert_same(*both("LabelEncoder", X, TYPES[np.dtype(values)], attributes, 4))


def test_category_mapper():
    attributes = {"cats_strings": ["a", "b", "a", "zz"], "cats_int64s": [1, 2, 3, 2]}
    for default in ({}, {"default_int64": 5}):
        assert_same(*both("CategoryMapper", WORDS, INT64, attributes | default))
    for default in ({}, {"default_string": "none"}):
        assert_same(*both("CategoryMapper", np.int64([1, 2, 3, 4]), STRING, attributes | default))


@pytest.mark.parametrize("key, vocabulary", [(STRING, ["a", "é", "zz", "a"]), (INT64, [4, -1, 0])])
def test_dict_vectorizer(key, vocabulary):
    attributes = {"string_vocabulary" if key == STRING else "int64_vocabulary": vocabulary}

    def model(value):
        kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, []))
        return make_model("DictVectorizer", {"X": helper.make_value_info("X", kind)}, {"Y": value}, attributes, 1)

    keys = [vocabulary[1], "other" if key == STRING else 99]
    given = dict(zip(keys, np.float32([1.5, 2.5])))
    expected = run_ort(model(FLOAT), {"X": given})
    assert_same(onnx_backend.run_model(model(FLOAT), [given]), expected)
    # ONNX Runtime takes no other numbers from Python
    doubles = dict(zip(keys, np.float64([1.5, 2.5])))
    assert_same(onnx_backend.run_model(model(DOUBLE), [doubles]), [expected[0].astype(np.float64)])
    words = onnx_backend.run_model(model(STRING), [dict(zip(keys, ["x", "y"]))])
    assert words[0].tolist() == [["", "x", *[""] * (len(vocabulary) - 2)]]


@pytest.mark.parametrize("labels", [{"classlabels_strings": ["a", "b", "c"]}, {"classlabels_int64s": [4, 5, -6]}])
def test_zip_map(labels):
    X = table(np.float32, width=3)
    key = STRING if "classlabels_strings" in labels else INT64
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(key, helper.make_tensor_type_proto(FLOAT, [])))
    ours, theirs = both("ZipMap", X, {"Z": kind}, labels)
    assert list(ours[0]) == theirs[0]


# --- the standard's own tests ---

def test_node_tests_of_onnx():
    from onnx.backend.test.loader import load_model_tests
    with warnings.catch_warnings():  # of the generation of other tests
        warnings.simplefilter("ignore")
        cases = [case for case in load_model_tests(kind="node") if case.name.startswith("test_ai_onnx_ml")]
    assert len(cases) >= 8
    for case in cases:
        prepared = onnx_backend.prepare(case.model)
        for inputs, outputs in case.data_sets:
            ours = prepared.run([as_objects(one) for one in inputs])
            assert_same(ours, [as_objects(one) for one in outputs], case.rtol)


def as_objects(array):
    return array.astype(object) if array.dtype.kind in "OU" else array


def test_every_operator_is_tested():
    assert set(ML_OPS) == {
        "ArrayFeatureExtractor", "Binarizer", "CategoryMapper", "DictVectorizer", "FeatureVectorizer", "Imputer",
        "LabelEncoder", "LinearClassifier", "LinearRegressor", "Normalizer", "OneHotEncoder", "SVMClassifier",
        "SVMRegressor", "Scaler", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap"}


# --- models of scikit-learn, through its converter ---

@pytest.mark.parametrize("n_classes", [2, 4])
def test_scikit_learn_classifiers(n_classes):
    from skl2onnx import to_onnx
    from sklearn.datasets import make_classification
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    X, y = make_classification(250, 6, n_informative=5, n_redundant=0, n_classes=n_classes, random_state=1)
    X, labels = X.astype(np.float32), np.array(["a", "b", "c", "d"])[y]
    for model in (RandomForestClassifier(10, random_state=0),  # leaves of one class: votes often tie
                  GradientBoostingClassifier(n_estimators=8, random_state=0)):
        model.fit(X, labels)
        exported = to_onnx(model, X[:1], options={"zipmap": False}, target_opset={"": 18, ML: 3})
        test = np.random.default_rng(0).permuted(X, axis=0)
        ours = onnx_backend.prepare(exported).run([test])
        assert ours[0].tolist() == model.predict(test).tolist()
        np.testing.assert_allclose(ours[1], model.predict_proba(test), atol=1e-6)


# --- hostile attributes ---

def regressor(**changes):
    attributes = stump("target", [(1, 0, 0.25), (2, 0, 0.5)]) | {"n_targets": 1} | changes
    model = make_model("TreeEnsembleRegressor", {"X": np.zeros((1, 1), np.float32)}, {"Y": FLOAT},
                       {name: value for name, value in attributes.items() if value is not None}, 3)
    return onnx_backend.prepare(model).run([np.zeros((1, 1), np.float32)])


NAN, INF, HUGE = float("nan"), float("inf"), 2 ** 62


@pytest.mark.parametrize("changes, message", [
    ({"nodes_values": [0.0, 0.0]}, "nodes_\\*"),
    ({"nodes_values": None}, "nodes_\\*"),
    ({"nodes_modes": ["BRANCH_LEQ", "LEAF", "TWIG"]}, "nodes_modes"),
    ({"nodes_modes": ["BRANCH_LEQ", "LEAF", "BRANCH_LEQ"]}, "nodes_truenodeids|cycles|leaves"),
    ({"nodes_modes": ["LEAF", "LEAF", "LEAF"]}, "cycles"),
    ({"nodes_values": [NAN, 0.0, 0.0]}, "NaN"),
    ({"nodes_truenodeids": [0, 0, 0]}, "cycles"),
    ({"nodes_truenodeids": [2, 0, 0]}, "cycles"),
    ({"nodes_truenodeids": [HUGE, 0, 0]}, "nodes_truenodeids"),
    ({"nodes_falsenodeids": [-1, 0, 0]}, "nodes_falsenodeids"),
    ({"nodes_nodeids": [0, 1, 1]}, "distinct"),
    ({"nodes_treeids": [0, 1, 0]}, "nodes_truenodeids"),
    ({"nodes_featureids": [-1, 0, 0]}, "feature ids"),
    ({"nodes_featureids": [HUGE, 0, 0]}, "feature ids"),
    ({"nodes_featureids": [1, 0, 0]}, "2 features"),
    ({"nodes_missing_value_tracks_true": [1]}, "tracks_true"),
    ({"target_weights": [NAN, 0.0]}, "finite leaf weights"),
    ({"target_weights": [0.5]}, "target_\\*"),
    ({"target_ids": [0, 1]}, "outputs from 0 to 0"),
    ({"target_ids": [-1, 0]}, "outputs from 0 to 0"),
    ({"target_nodeids": [1, 1]}, "one weight"),
    ({"target_nodeids": [1, 0]}, "leaves alone"),
    ({"target_treeids": [0, HUGE]}, "target_nodeids"),
    ({"n_targets": HUGE}, "targets or classes"),
    ({"n_targets": 0}, "targets or classes"),
    ({"n_targets": 60000, "target_ids": [0, 59999]}, "far apart"),
    ({"base_values": [1.0, 2.0]}, "base_values"),
    ({"base_values": [NAN]}, "base_values"),
    ({"aggregate_function": "MEDIAN"}, "aggregate_function"),
    ({"post_transform": "TANH"}, "post_transform"),
    ({"nodes_treeids": None, "nodes_nodeids": None}, "nodes_\\*"),
])
def test_malformed_trees(changes, message):
    with pytest.raises(ModelError, match=message):
        regressor(**changes)


def test_sparse_leaves_far_apart_do_not_blow_up():
    n = 3000
    ids = np.arange(2 * n - 1)
    inner = ids < n - 1
    attributes = {
        "nodes_treeids": [0] * len(ids), "nodes_nodeids": ids.tolist(), "nodes_featureids": [0] * len(ids),
        "nodes_modes": ["BRANCH_LEQ" if one else "LEAF" for one in inner], "nodes_values": [0.0] * len(ids),
        "nodes_truenodeids": np.where(inner, 2 * ids + 1, 0).tolist(),
        "nodes_falsenodeids": np.where(inner, 2 * ids + 2, 0).tolist(),
        "target_treeids": [0] * n, "target_nodeids": ids[~inner].tolist(), "target_ids": [0, 60000] * (n // 2),
        "target_weights": [1.0] * n, "n_targets": 60001}
    with pytest.raises(ModelError, match="far apart"):
        regressor(**attributes)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_attributes_give_a_model_error_or_numbers(data):
    rng = np.random.default_rng(0)
    op_type, attributes, version, outputs = data.draw(st.sampled_from(mutants()))
    name = data.draw(st.sampled_from(sorted(attributes)))
    value = attributes[name]
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value).copy()
        array[data.draw(st.integers(0, len(array) - 1))] = data.draw(st.sampled_from([0, 1, 6, 7, 255]))
        value = numpy_helper.from_array(array)
    elif isinstance(value, (list, tuple)) and value:
        value = list(value)
        place = data.draw(st.integers(0, len(value) - 1))
        new = {str: ["", "LEAF", "BRANCH_EQ"], int: [-1, 0, 1, 2, 7, HUGE], float: [NAN, INF, 0.0]}[type(value[0])]
        value[place:place + data.draw(st.integers(0, 2))] = data.draw(st.lists(st.sampled_from(new), max_size=2))
    elif isinstance(value, int):
        value = data.draw(st.sampled_from([-1, 0, 2, 5, HUGE]))
    changed = {key: one for key, one in (attributes | {name: value}).items() if one != []}
    X = rng.standard_normal((2, 3)).astype(np.float32)
    model = make_model(op_type, {"X": X}, outputs, changed, version)
    try:
        results = onnx_backend.prepare(model).run([X])
    except ModelError:
        return
    assert len(results) == len(outputs) and all(len(one) == 2 for one in results)


def mutants():
    rng = np.random.default_rng(1)
    forest = Forest(rng, 2, 3, 2, depth=2, modes=BRANCHES)
    scores = {"Y": INT64, "Z": FLOAT}
    return [
        ("TreeEnsembleClassifier",
         forest.attributes("class") | {"classlabels_int64s": [0, 1], "base_values": [0.5]}, 3, scores),
        ("TreeEnsembleRegressor",
         forest.attributes("target") | {"n_targets": 2, "base_values": [0.5, 1.0]}, 3, {"Y": FLOAT}),
        ("TreeEnsemble", tree_ensemble_v5(rng, 2, 3, 2, np.float32, range(7), [0.0, 1.0]), 5, {"Y": FLOAT}),
        ("SVMClassifier", {"kernel_params": [0.5, 0.0, 2.0], "vectors_per_class": [1, 2], "rho": [0.5],
                           "coefficients": [0.5, 0.25, 1.0], "support_vectors": [0.5] * 9,
                           "prob_a": [-1.0], "prob_b": [0.5], "classlabels_ints": [0, 1]}, 1, scores),
        ("SVMRegressor", {"kernel_params": [0.5, 0.0, 2.0], "n_supports": 2, "coefficients": [0.5, 0.25], "rho": [0.5],
                          "support_vectors": [0.5] * 6}, 1, {"Y": FLOAT}),
        ("LinearClassifier",
         {"coefficients": [0.5] * 6, "intercepts": [0.5, 1.0], "classlabels_ints": [0, 1]}, 1, scores),
        ("LinearRegressor", {"coefficients": [0.5] * 6, "intercepts": [0.5, 1.0], "targets": 2}, 1, {"Y": FLOAT}),
        ("Scaler", {"offset": [0.5] * 3, "scale": [0.5] * 3}, 1, {"Y": FLOAT}),
        ("Imputer", {"imputed_value_floats": [0.5] * 3, "replaced_value_float": 0.0}, 1, {"Y": FLOAT}),
        ("FeatureVectorizer", {"inputdimensions": [3]}, 1, {"Y": FLOAT}),
        ("OneHotEncoder", {"cats_int64s": [0, 1], "zeros": 1}, 1, {"Y": FLOAT}),
        ("LabelEncoder", {"keys_floats": [0.5, 1.0], "values_int64s": [0, 1], "default_int64": 3}, 2, {"Y": INT64}),
    ]
