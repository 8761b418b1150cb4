"""ONNX graphs as strangers write them: operators, shapes and habits that none of Octet's own exports has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.graphs import Shape, drawn, small

node = helper.make_node
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A graph and how to draw its rows.

    Attributes:
        shapes: of one row of each input, without the batch.
        indices: for whole-number inputs: how many numbers there are to choose from.
    """

    graph: onnx.ModelProto
    shapes: dict[str, tuple[int, ...]]
    indices: dict[str, int] = field(default_factory=dict)

    def rows(self, count: int, *, seed: int = 0) -> Arrays:
        """Draw rows: arrays with the batch first."""
        rng = np.random.default_rng(seed)
        return {
            name: rng.integers(0, self.indices[name], (count, *shape))
            if name in self.indices
            else rng.normal(0, 1, (count, *shape)).astype(np.float32)
            for name, shape in self.shapes.items()
        }


def one(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], *, shape: tuple[int, ...], out: Shape, opset: int = 17
) -> Stranger:
    """Build a graph with one input `x` and one output `y`."""
    graph = small(nodes, inputs={"x": ("n", *shape)}, outputs={"y": out}, weights=weights, opset=opset)
    return Stranger(graph=graph, shapes={"x": shape})


def whole(*numbers: int) -> npt.NDArray[np.int64]:
    """Return a constant of whole numbers, as shapes and axes are written."""
    return np.array(numbers, np.int64)


def recurrent(kind: str, *, directions: int = 1) -> Stranger:
    """Build a recurrent layer that reads float32[N, time, 8], with weights sliced and joined as torch writes them."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("Slice", ["w", "zero", "half", "one"], ["w_top"]),
        node("Slice", ["w", "half", "end", "one"], ["w_bottom"]),
        node("Concat", ["w_top", "w_bottom"], ["w_all"], axis=1),
        node(kind, ["t", "w_all", "r", "b"], ["h", "last"], name="cell", hidden_size=8,
             direction="bidirectional" if directions == 2 else "forward"),
        node("ReduceMean", ["last"], ["row"], axes=[0], keepdims=0),
        node("Gemm", ["row", "v"], ["y"], name="head"),
    ]  # fmt: skip
    weights = {
        "w": drawn(directions, gates * 8, 8, scale=0.4),
        "r": drawn(directions, gates * 8, 8, scale=0.4, seed=1),
        "b": drawn(directions, 2 * gates * 8, scale=0.2, seed=2),
        "v": drawn(8, 5, seed=3),
        "zero": whole(0),
        "half": whole(gates * 4),
        "end": whole(gates * 8),
        "one": whole(1),
    }
    graph = small(nodes, inputs={"x": ("n", "time", 8)}, outputs={"y": ("n", 5)}, weights=weights, opset=17)
    return Stranger(graph=graph, shapes={"x": (6, 8)})


def computed_branch() -> Stranger:
    """Build an `If` on what the input holds, with a convolution in each branch."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        weight = numpy_helper.from_array(drawn(8, 8, 3, 3, seed=seed), f"{name}_w")
        layer = node("Conv", ["c", f"{name}_w"], [f"{name}_y"], name=f"{name}_conv", pads=[1, 1, 1, 1])
        return helper.make_graph([layer], name, [], [value], [weight])

    nodes = [
        node("Conv", ["x", "w"], ["c"], name="stem", pads=[1, 1, 1, 1]),
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["high"]),
        node("If", ["high"], ["d"], name="if", then_branch=branch("then", 1), else_branch=branch("else", 2)),
        node("Relu", ["d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["y"]),
    ]
    weights = {"w": drawn(8, 3, 3, 3), "zero": np.float32(0)}
    return one(nodes, weights, shape=(3, 8, 8), out=("n", 8, 1, 1))


def loop() -> Stranger:
    """Build a `Loop` that adds the same product three times; the body reads a weight from outside."""
    values = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
    ]
    results = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
    ]
    body = [
        node("Identity", ["go"], ["go_on"]),
        node("MatMul", ["state", "w"], ["p"], name="inner"),
        node("Tanh", ["p"], ["next"]),
    ]
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="outer"),
        node("Loop", ["three", "", "a"], ["b"], name="loop", body=helper.make_graph(body, "body", values, results)),
        node("Gemm", ["b", "v"], ["y"], name="head"),
    ]
    weights = {"w": drawn(16, 16), "v": drawn(16, 5, seed=1), "three": np.int64(3)}
    return one(nodes, weights, shape=(16,), out=("n", 5))


def scan() -> Stranger:
    """Build a `Scan` over time, as some recurrent cells are written."""
    state, item = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "item"))
    new, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("new", "out"))
    body = [
        node("MatMul", ["item", "w"], ["p"], name="inner"),
        node("Add", ["p", "state"], ["q"]),
        node("Tanh", ["q"], ["new"]),
        node("Identity", ["new"], ["out"]),
    ]
    nodes = [
        node("ReduceMean", ["x"], ["start"], axes=[1], keepdims=0),
        node("Scan", ["start", "x"], ["end", "all"], name="scan", num_scan_inputs=1, scan_input_axes=[1],
             body=helper.make_graph(body, "body", [state, item], [new, out])),
        node("Gemm", ["end", "v"], ["y"], name="head"),
    ]  # fmt: skip
    weights = {"w": drawn(16, 16), "v": drawn(16, 5, seed=1)}
    return one(nodes, weights, shape=(6, 16), out=("n", 5))


def listed_weights() -> Stranger:
    """Build a graph whose weights are also listed as inputs, as before IR version 4."""
    made = residual()
    for tensor in made.graph.graph.initializer:
        made.graph.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    made.graph.ir_version = 3
    return made


def residual() -> Stranger:
    """Build two convolutions around a shortcut, with batch normalizations, as ResNets are."""
    norm = {
        f"{what}{number}": np.abs(drawn(8, scale=0.2, seed=number)) + 0.5 if what in ("g", "v") else drawn(8, scale=0.2)
        for number in (1, 2)
        for what in ("g", "o", "m", "v")
    }
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "g1", "o1", "m1", "v1"], ["n1"], name="bn1"),
        node("Relu", ["n1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c2", "g2", "o2", "m2", "v2"], ["n2"], name="bn2"),
        node("Add", ["n2", "r1"], ["s"], name="join"),
        node("Relu", ["s"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    weights = {"w1": drawn(8, 3, 3, 3), "w2": drawn(8, 8, 3, 3, seed=1), **norm}
    return one(nodes, weights, shape=(3, 8, 8), out=("n", 8), opset=13)


def shared_weights() -> Stranger:
    """Build one weight read by a MatMul, by a Gemm turned round, and as a lookup table."""
    nodes = [
        node("Gather", ["w", "ids"], ["e"], name="lookup"),
        node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "w"], ["logits"], name="tied", transB=1),
        node("MatMul", ["logits", "w"], ["back"], name="again"),
        node("Add", ["back", "m"], ["y"]),
    ]
    graph = small(
        nodes,
        inputs={"ids": ("n", 5)},
        outputs={"y": ("n", 16), "logits": ("n", 64)},
        weights={"w": drawn(64, 16)},
        opset=17,
        types={"ids": TensorProto.INT64},
    )
    return Stranger(graph=graph, shapes={"ids": (5,)}, indices={"ids": 64})


def no_weights() -> Stranger:
    """Build a graph without a single weight."""
    nodes = [node("Relu", ["x"], ["a"]), node("Softmax", ["a"], ["y"])]
    return one(nodes, {}, shape=(6,), out=("n", 6))


def several() -> Stranger:
    """Build two inputs and three outputs, one of them in the middle of the graph and read on."""
    nodes = [
        node("Conv", ["image", "w"], ["features"], name="conv", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["features"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Concat", ["f", "numbers"], ["both"], axis=1),
        node("Gemm", ["both", "v"], ["y"], name="head"),
        node("Sigmoid", ["y"], ["share"]),
    ]
    graph = small(
        nodes,
        inputs={"image": ("n", 3, 8, 8), "numbers": ("n", 4)},
        outputs={"features": ("n", 8, 8, 8), "y": ("n", 5), "share": ("n", 5)},
        weights={"w": drawn(8, 3, 3, 3), "v": drawn(12, 5)},
        opset=17,
    )
    return Stranger(graph=graph, shapes={"image": (3, 8, 8), "numbers": (4,)})


def attention() -> Stranger:
    """Build self-attention over a sequence of any length, with an additive mask of minus infinity."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="lookup"),
        *(node("MatMul", ["e", f"w{name}"], [name], name=f"{name}_proj") for name in ("q", "k", "v")),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        node("Equal", ["ids", "padding"], ["is_padding"]),
        node("Where", ["is_padding", "never", "always"], ["mask"]),
        node("Unsqueeze", ["mask", "axis"], ["wide"]),
        node("Add", ["scores", "wide"], ["masked"]),
        node("Softmax", ["masked"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"], name="mix"),
        node("ReduceMean", ["mixed"], ["y"], axes=[1], keepdims=0),
    ]
    weights = {
        "table": drawn(32, 16, scale=1),
        **{f"w{name}": drawn(16, 16, seed=seed, scale=0.25) for seed, name in enumerate("qkv")},
        "padding": np.int64(0),
        "never": np.float32(-np.inf),
        "always": np.float32(0),
        "axis": whole(1),
    }
    graph = small(
        nodes,
        inputs={"ids": ("n", "length")},
        outputs={"y": ("n", 16)},
        weights=weights,
        opset=17,
        types={"ids": TensorProto.INT64},
    )
    return Stranger(graph=graph, shapes={"ids": (7,)}, indices={"ids": 32})


def empty_part() -> Stranger:
    """Build a graph that joins a zero-size tensor to what it computes."""
    nodes = [
        node("Gemm", ["x", "w"], ["a"], name="first"),
        node("Slice", ["a", "end", "end", "axis"], ["nothing"]),
        node("Concat", ["a", "nothing"], ["b"], axis=1),
        node("Gemm", ["b", "v"], ["y"], name="second"),
    ]
    weights = {"w": drawn(8, 6), "v": drawn(6, 5), "end": whole(6), "axis": whole(1)}
    return one(nodes, weights, shape=(8,), out=("n", 5))


def empty_weight() -> Stranger:
    """Build a matrix product over nothing, which OpenVINO does not take."""
    nodes = [
        node("Slice", ["x", "end", "end", "axis"], ["nothing"]),
        node("MatMul", ["nothing", "none"], ["zeros"], name="empty"),
        node("Add", ["x", "zeros"], ["y"]),
    ]
    weights = {"none": np.zeros((0, 8), np.float32), "end": whole(8), "axis": whole(1)}
    return one(nodes, weights, shape=(8,), out=("n", 8))


def mobile() -> Stranger:
    """Build an inverted residual: 1x1, depthwise, 1x1, with ReLU6."""
    bounds = ["low", "high"]
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="expand"),
        node("Clip", ["c1", *bounds], ["a1"]),
        node("Conv", ["a1", "w2", "b2"], ["c2"], name="depthwise", group=24, pads=[1, 1, 1, 1]),
        node("Clip", ["c2", *bounds], ["a2"]),
        node("Conv", ["a2", "w3", "b3"], ["c3"], name="project"),
        node("Add", ["c3", "x"], ["y"]),
    ]
    weights = {
        "w1": drawn(24, 8, 1, 1), "b1": drawn(24, scale=0.1), "w2": drawn(24, 1, 3, 3), "b2": drawn(24, scale=0.1),
        "w3": drawn(8, 24, 1, 1), "b3": drawn(8, scale=0.1), "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    return one(nodes, weights, shape=(8, 8, 8), out=("n", 8, 8, 8))


def shuffle() -> Stranger:
    """Build grouped convolutions with a channel shuffle between them."""
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="conv1", group=4, pads=[1, 1, 1, 1]),
        node("Reshape", ["c1", "apart"], ["s1"]),
        node("Transpose", ["s1"], ["s2"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["s2", "together"], ["s3"]),
        node("Relu", ["s3"], ["r"]),
        node("Conv", ["r", "w2"], ["c2"], name="conv2", group=4, pads=[1, 1, 1, 1]),
        node("Split", ["c2"], ["left", "right"], axis=1),
        node("Concat", ["right", "left"], ["y"], axis=1),
    ]
    weights = {
        "w1": drawn(16, 4, 3, 3), "w2": drawn(16, 4, 3, 3, seed=1),
        "apart": whole(0, 4, 4, 8, 8), "together": whole(0, 16, 8, 8),
    }  # fmt: skip
    return one(nodes, weights, shape=(16, 8, 8), out=("n", 16, 8, 8))


def segmentation() -> Stranger:
    """Build down and up again: strided convolution, transposed convolution in groups, Resize, a skip."""
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="down", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("LeakyRelu", ["c1"], ["r1"], alpha=0.1),
        node("ConvTranspose", ["r1", "w2", "b2"], ["u1"], name="up", strides=[2, 2], group=2),
        node("Resize", ["r1", "", "scales"], ["u2"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Concat", ["u1", "u2"], ["both"], axis=1),
        node("Conv", ["both", "w3"], ["y"], name="head"),
    ]
    weights = {
        "w1": drawn(8, 3, 3, 3), "w2": drawn(8, 4, 2, 2), "b2": drawn(8, scale=0.1), "w3": drawn(4, 16, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    return one(nodes, weights, shape=(3, 16, 16), out=("n", 4, 16, 16))


def super_resolution() -> Stranger:
    """Build convolutions and a pixel shuffle to twice the size, PRelu between."""
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[2, 2, 2, 2]),
        node("PRelu", ["c1", "slope"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        node("DepthToSpace", ["c2"], ["y"], blocksize=2, mode="CRD"),
    ]
    weights = {"w1": drawn(8, 1, 5, 5), "slope": np.full((8, 1, 1), 0.2, np.float32), "w2": drawn(4, 8, 3, 3)}
    return one(nodes, weights, shape=(1, 12, 12), out=("n", 1, 24, 24))


def recommendation() -> Stranger:
    """Build sums of embeddings beside numbers, and two layers on top."""
    nodes = [
        node("Gather", ["users", "user"], ["u"], name="user_table"),
        node("Gather", ["items", "basket"], ["b"], name="item_table"),
        node("ReduceSum", ["b", "axis"], ["s"], keepdims=0),
        node("Concat", ["u", "s", "numbers"], ["c"], axis=1),
        node("Gemm", ["c", "w1", "b1"], ["h"], name="hidden"),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w2"], ["y"], name="score"),
    ]
    weights = {
        "users": drawn(100, 16, scale=0.5), "items": drawn(200, 16, scale=0.5), "axis": whole(1),
        "w1": drawn(36, 16, scale=0.2), "b1": drawn(16, scale=0.1), "w2": drawn(16, 1, scale=0.3),
    }  # fmt: skip
    graph = small(
        nodes,
        inputs={"user": ("n",), "basket": ("n", 5), "numbers": ("n", 4)},
        outputs={"y": ("n", 1)},
        weights=weights,
        opset=17,
        types={"user": TensorProto.INT64, "basket": TensorProto.INT64},
    )
    return Stranger(
        graph=graph, shapes={"user": (), "basket": (5,), "numbers": (4,)}, indices={"user": 100, "basket": 200}
    )


def keyword_spotting() -> Stranger:
    """Build 1-D convolutions over sound, dilated, with a strided pool."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", strides=[2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], name="conv2", dilations=[2], group=8),
        node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["m"], kernel_shape=[2], strides=[2]),
        node("ReduceMean", ["m"], ["p"], axes=[2], keepdims=0),
        node("MatMul", ["p", "w3"], ["l"], name="head"),
        node("Add", ["l", "b3"], ["y"]),
    ]
    weights = {
        "w1": drawn(8, 1, 9), "b1": drawn(8, scale=0.1), "w2": drawn(8, 1, 5), "w3": drawn(8, 6),
        "b3": drawn(6, scale=0.1),
    }  # fmt: skip
    return one(nodes, weights, shape=(1, 64), out=("n", 6), opset=13)


def half_precision() -> Stranger:
    """Build weights stored in float16 and cast before use, as size-conscious exporters do."""
    nodes = [
        node("Cast", ["h1"], ["w1"], to=TensorProto.FLOAT),
        node("Conv", ["x", "w1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Cast", ["h2"], ["w2"], to=TensorProto.FLOAT),
        node("Gemm", ["f", "w2"], ["y"], name="head"),
    ]
    weights = {"h1": drawn(16, 3, 3, 3).astype(np.float16), "h2": drawn(16, 5).astype(np.float16)}
    return one(nodes, weights, shape=(3, 8, 8), out=("n", 5))


def half_arithmetic() -> Stranger:
    """Build a graph that computes in float16 between two casts."""
    nodes = [
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        node("MatMul", ["h", "w"], ["p"], name="product"),
        node("Relu", ["p"], ["r"]),
        node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    return one(nodes, {"w": drawn(16, 12).astype(np.float16)}, shape=(16,), out=("n", 12))


def written_constants() -> Stranger:
    """Build weights written as Constant nodes, a scalar bias, a row of three axes, a product from the left."""
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(drawn(16, 12))),
        node("Constant", [], ["left"], value=numpy_helper.from_array(drawn(4, 6))),
        node("Constant", [], ["b"], value_float=0.5),
        node("MatMul", ["x", "w"], ["p"], name="product"),
        node("Add", ["p", "b"], ["q"]),
        node("MatMul", ["left", "q"], ["y"], name="from_left"),
    ]
    return one(nodes, {}, shape=(6, 16), out=("n", 4, 12))


STRANGERS: dict[str, Callable[[], Stranger]] = {
    "LSTM": lambda: recurrent("LSTM"),
    "LSTM both ways": lambda: recurrent("LSTM", directions=2),
    "GRU": lambda: recurrent("GRU"),
    "If": computed_branch,
    "Loop": loop,
    "Scan": scan,
    "weights listed as inputs": listed_weights,
    "shared weights": shared_weights,
    "no weights": no_weights,
    "several inputs and outputs": several,
    "attention over any length": attention,
    "zero-size dimension": empty_part,
    "depthwise": mobile,
    "channel shuffle": shuffle,
    "segmentation": segmentation,
    "super-resolution": super_resolution,
    "recommendation": recommendation,
    "keyword spotting": keyword_spotting,
    "float16 weights": half_precision,
    "float16 arithmetic": half_arithmetic,
    "constants as nodes": written_constants,
}
