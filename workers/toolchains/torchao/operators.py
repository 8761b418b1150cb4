"""What the quantizer knows of ATen's operators: which multiply and add, which only move values, which do neither."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

_aten = torch.ops.aten
Target = Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """An operator that multiplies and adds.

    Attributes:
        data: position of its first operand.
        weight: position of the second: a weight where it is constant, otherwise another activation.
        kind: how the weight's axes are to be read.
    """

    data: int = 0
    weight: int = 1
    kind: str


_CONVOLUTION = Compute(kind="convolution")
_TRANSPOSED = Compute(kind="transposed")
_PRODUCT = Compute(kind="product")

COMPUTE: dict[Target, Compute] = {
    _aten.conv1d.default: _CONVOLUTION,
    _aten.conv2d.default: _CONVOLUTION,
    _aten.conv3d.default: _CONVOLUTION,
    _aten.conv1d.padding: _CONVOLUTION,
    _aten.conv2d.padding: _CONVOLUTION,
    _aten.conv3d.padding: _CONVOLUTION,
    _aten.convolution.default: _CONVOLUTION,
    _aten.conv_transpose1d.default: _TRANSPOSED,
    _aten.conv_transpose2d.input: _TRANSPOSED,
    _aten.conv_transpose3d.input: _TRANSPOSED,
    _aten.linear.default: Compute(kind="linear"),
    _aten.addmm.default: Compute(data=1, weight=2, kind="product"),
    _aten.mm.default: _PRODUCT,
    _aten.bmm.default: _PRODUCT,
    _aten.matmul.default: _PRODUCT,
}

RECURRENT: frozenset[Target] = frozenset(
    {
        _aten.gru.input,
        _aten.lstm.input,
        _aten.rnn_relu.input,
        _aten.rnn_tanh.input,
    }
)

EMBEDDING = _aten.embedding.default

MOVES: frozenset[Target] = frozenset(
    {
        _aten.alias.default,
        _aten.amax.default,
        _aten.amin.default,
        _aten.clone.default,
        _aten.constant_pad_nd.default,
        _aten.contiguous.default,
        _aten.dropout.default,
        _aten.expand.default,
        _aten.flatten.using_ints,
        _aten.flip.default,
        _aten.max_pool1d.default,
        _aten.max_pool2d.default,
        _aten.max_pool3d.default,
        _aten.movedim.int,
        _aten.narrow.default,
        _aten.pad.default,
        _aten.permute.default,
        _aten.pixel_shuffle.default,
        _aten.pixel_unshuffle.default,
        _aten.channel_shuffle.default,
        _aten.repeat.default,
        _aten.reshape.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.t.default,
        _aten.transpose.int,
        _aten.unflatten.int,
        _aten.unsqueeze.default,
        _aten.upsample_nearest1d.vec,
        _aten.upsample_nearest2d.default,
        _aten.upsample_nearest2d.vec,
        _aten.upsample_nearest3d.vec,
        _aten.view.default,
    }
)
"""Every value of the output is one of the input's, or zero: quantizing before is quantizing after."""

PADS: frozenset[Target] = frozenset({_aten.constant_pad_nd.default, _aten.pad.default})

SPLITS: frozenset[Target] = frozenset(
    {
        _aten.adaptive_max_pool1d.default,
        _aten.adaptive_max_pool2d.default,
        _aten.adaptive_max_pool3d.default,
        _aten.chunk.default,
        _aten.max_pool2d_with_indices.default,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.unbind.int,
    }
)
"""The same, with several outputs."""

JOINS: frozenset[Target] = frozenset({_aten.cat.default, _aten.stack.default})
"""Join tensors: their inputs share one scale, or the output would have several."""

AVERAGES: frozenset[Target] = frozenset(
    {
        _aten.adaptive_avg_pool1d.default,
        _aten.adaptive_avg_pool2d.default,
        _aten.adaptive_avg_pool3d.default,
        _aten.avg_pool1d.default,
        _aten.avg_pool2d.default,
        _aten.avg_pool3d.default,
        _aten.mean.default,
        _aten.mean.dim,
    }
)

ELEMENTWISE: frozenset[Target] = frozenset({_aten.add.Tensor, _aten.add_.Tensor, _aten.mul.Tensor, _aten.mul_.Tensor})

ACTIVATIONS: frozenset[Target] = frozenset(
    {
        _aten.clamp.default,
        _aten.clamp_.default,
        _aten.elu.default,
        _aten.gelu.default,
        _aten.hardsigmoid.default,
        _aten.hardswish.default,
        _aten.hardswish_.default,
        _aten.hardtanh.default,
        _aten.hardtanh_.default,
        _aten.leaky_relu.default,
        _aten.leaky_relu_.default,
        _aten.relu.default,
        _aten.relu6.default,
        _aten.relu_.default,
        _aten.sigmoid.default,
        _aten.silu.default,
        _aten.silu_.default,
        _aten.tanh.default,
    }
)
"""What engines fuse into the layer before: nothing is quantized between."""


def compute_layers(graph: Graph) -> Iterator[tuple[Node, Compute]]:
    """Walk the operators that multiply and add, those with constant weights and those without."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in COMPUTE:
            yield node, COMPUTE[node.target]


def operand(node: Node, position: int) -> Node | None:
    """Return the tensor at a position of the arguments; None where there is none."""
    found = node.args[position] if position < len(node.args) else None
    return found if isinstance(found, Node) else None


def tables(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Walk the embeddings with constant tables of float32, and their tables."""
    for node in graph.nodes:
        table = operand(node, 0) if node.op == "call_function" and node.target is EMBEDDING else None
        if table is not None and is_constant(table) and table.meta["val"].dtype is torch.float32:
            yield node, table


def tensors(node: Node) -> list[Node]:
    """Return the tensors that a node reads: not the sizes."""
    return [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor)]


def is_constant(node: Node) -> bool:
    """Whether a tensor is made of weights alone."""
    waiting, seen = [node], set()
    while waiting:
        each = waiting.pop()
        if each in seen or each.op == "get_attr":
            continue
        if each.op != "call_function" or not each.all_input_nodes:
            return False
        seen.add(each)
        waiting.extend(each.all_input_nodes)
    return True


def weighted_layers(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Walk the compute layers with exactly one constant operand, and that operand."""
    for node, compute in compute_layers(graph):
        operands = [operand(node, compute.data), operand(node, compute.weight)]
        constants = [each for each in operands if each is not None and is_constant(each)]
        if len(constants) == 1:
            yield node, constants[0]


def shape_of(node: Node) -> tuple[int | torch.SymInt, ...]:
    """Return a tensor's shape as it was traced."""
    return tuple(node.meta["val"].shape)


def is_transposed(layer: Node) -> bool:
    """Whether a layer is a transposed convolution."""
    if layer.target is _aten.convolution.default:
        return bool(layer.args[6])
    return isinstance(layer.target, torch._ops.OpOverload) and COMPUTE.get(layer.target) is _TRANSPOSED


def groups(layer: Node) -> int:
    """Return a convolution's number of groups."""
    names = [argument.name for argument in layer.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index("groups")
    found = layer.args[position] if position < len(layer.args) else 1
    return found if isinstance(found, int) else 1
