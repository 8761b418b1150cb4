"""Folding batch normalizations into the layers before them.

`prepare_pt2e` folds too, but takes a layer that several modules share for one, and overlooks other readers of a
layer's output; one that is left, `convert_pt2e` takes for one that was trained. So none is left.
"""

from dataclasses import dataclass
from operator import attrgetter, getitem

import torch
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from workers.toolchains.torchao import operators
from workers.toolchains.torchao.operators import operand

_aten = torch.ops.aten
_EPSILON = {_aten.batch_norm.default: 7, _aten._native_batch_norm_legit_no_training.default: 6}
_WRITTEN = (("factor", "summand"), (_aten.mul.Tensor, _aten.add.Tensor))
_TRAINING = 5
_BIAS = 2
_MATRIX_AXES = 2


def fold(module: GraphModule) -> None:
    """Put every batch normalization that alone reads a layer into copies of that layer's weight and bias."""
    for norm in _norms(module):
        pair = _Pair.of(module, norm)
        if pair is None:
            write_out(module, norm)
        else:
            pair.fold()
    module.graph.eliminate_dead_code()
    module.recompile()


def write_all_out(module: GraphModule) -> None:
    """Leave every batch normalization where it is, as a product and a sum."""
    for norm in _norms(module):
        write_out(module, norm)
    module.graph.eliminate_dead_code()
    module.recompile()


def write_out(module: GraphModule, norm: Node) -> None:
    """Write a batch normalization as a product and a sum, which engines fuse alike and the library does not look at.

    One that has no statistics of its own stays, kept apart from the layer before it.
    """
    data = operand(norm, 0)
    if data is None or not _has_statistics(norm):
        keep_apart(module, norm)
        return
    value = data.meta["val"]
    with module.graph.inserting_before(norm):
        for name, target, constant in zip(*_WRITTEN, _affine(module, norm), strict=True):
            attribute = f"{norm.name}_{name}"
            module.register_buffer(attribute, constant.reshape([1, -1, *[1] * (value.dim() - 2)]))
            data = module.graph.call_function(target, (data, module.graph.get_attr(attribute)))
            data.meta["val"] = value
    _replace(norm, data)


def _affine(module: GraphModule, norm: Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and summand of every channel (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2)."""
    scale, shift, mean, variance = (tensor_of(module, each) for each in norm.args[1:5])
    assert mean is not None and variance is not None  # noqa: S101, PT018 - for the type checker: it has statistics
    epsilon = norm.args[_EPSILON[norm.target]]  # type: ignore[index] # it is among them
    factor = torch.rsqrt(variance + float(epsilon))  # type: ignore[arg-type] # a number, by the operator's schema
    factor = factor if scale is None else factor * scale
    added = -mean * factor if shift is None else shift - mean * factor
    return factor.detach(), added.detach()


def keep_apart(module: GraphModule, norm: Node) -> None:
    """Put a node that does nothing between a layer and its batch normalization, so that the library folds neither."""
    layer = operand(norm, 0)
    if layer is None:
        return
    with module.graph.inserting_before(norm):
        between = module.graph.call_function(_aten.alias.default, (layer,))
    between.meta["val"] = layer.meta["val"]
    norm.replace_input_with(layer, between)


def tensor_of(module: GraphModule, node: object) -> torch.Tensor | None:
    """Return a stored tensor; None for anything else."""
    found: torch.Tensor | None = attrgetter(str(node.target))(module) if isinstance(node, Node) else None
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A layer and the batch normalization that alone reads it."""

    module: GraphModule
    layer: Node
    norm: Node

    @classmethod
    def of(cls, module: GraphModule, norm: Node) -> "_Pair | None":
        """Return the pair if the two can become one layer."""
        layer = operand(norm, 0)
        if layer is None or len(layer.users) != 1 or layer.target not in operators.COMPUTE:
            return None
        pair = cls(module=module, layer=layer, norm=norm)
        stored = all(_is_stored(each) for each in layer.args[1:3])
        return pair if stored and _has_statistics(norm) and pair._takes_scale() else None

    def _takes_scale(self) -> bool:
        """Whether the layer's output channels are the axis that the normalization scales."""
        kind = operators.COMPUTE[self.layer.target].kind  # type: ignore[index] # it is among them
        if kind == "linear":
            data = operand(self.layer, 0)
            return data is not None and len(operators.shape_of(data)) == _MATRIX_AXES
        transposed = operators.is_transposed(self.layer)
        return kind in ("convolution", "transposed") and not (transposed and operators.groups(self.layer) > 1)

    def fold(self) -> None:
        weight, bias = self.layer.args[1], self.layer.args[_BIAS] if len(self.layer.args) > _BIAS else None
        scale, shift, mean, variance = (tensor_of(self.module, each) for each in self.norm.args[1:5])
        epsilon = self.norm.args[_EPSILON[self.norm.target]]  # type: ignore[index] # it is among them
        old = (tensor_of(self.module, weight), tensor_of(self.module, bias), mean, variance, epsilon, scale, shift)
        if self.layer.target is _aten.linear.default:
            fused = fuse_linear_bn_weights(*old)  # type: ignore[arg-type] # the library's own optional arguments
        else:
            transposed = operators.is_transposed(self.layer)
            fused = fuse_conv_bn_weights(*old, transpose=transposed)  # type: ignore[arg-type]
        self._take(*fused)

    def _take(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        graph, name = self.module.graph, f"folded_{self.layer.name}"
        self.module.register_buffer(f"{name}_weight", weight.detach())
        self.module.register_buffer(f"{name}_bias", bias.detach())
        with graph.inserting_before(self.layer):
            new = [graph.get_attr(f"{name}_weight"), graph.get_attr(f"{name}_bias")]
        for node, old in zip(new, (self.layer.args[1], self.norm.args[3]), strict=True):
            node.meta["val"] = old.meta["val"]  # type: ignore[union-attr] # `of` has seen that they are nodes
        self.layer.args = (self.layer.args[0], *new, *self.layer.args[_BIAS + 1 :])
        _replace(self.norm, self.layer)


def _norms(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.target in _EPSILON]


def _is_stored(argument: object) -> bool:
    return argument is None or (isinstance(argument, Node) and argument.op == "get_attr")


def _has_statistics(norm: Node) -> bool:
    trains = norm.target is _aten.batch_norm.default and bool(norm.args[_TRAINING])
    return not trains and all(map(_is_stored, norm.args[1:5])) and None not in norm.args[3:5]


def _replace(norm: Node, by: Node) -> None:
    """Let the readers of a normalization read another node; a decomposed one is read through `getitem`."""
    direct = norm.target is _aten.batch_norm.default
    for node in [norm] if direct else [user for user in norm.users if user.target is getitem and user.args[1] == 0]:
        node.replace_all_uses_with(by)
