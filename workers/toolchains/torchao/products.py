"""Matrix products whose weight is repeated for every row, as decomposed programs write linear layers."""

import torch
from torch.fx import GraphModule, Node

from workers.toolchains.torchao import operators

_aten = torch.ops.aten
_REPEATS = frozenset({_aten.expand.default, _aten.view.default, _aten.unsqueeze.default, _aten.clone.default})
_MATRIX_AXES = 2


def take_weights_once(module: GraphModule) -> None:
    """Multiply with the one matrix instead of its copies, which would be quantized and stored as often as they are."""
    for node in module.graph.nodes:
        if node.target is _aten.bmm.default:
            matrix = _repeated(node.args[1])
            if matrix is not None:
                node.target = _aten.matmul.default
                node.args = (node.args[0], matrix)
    module.graph.eliminate_dead_code()
    module.recompile()


def _repeated(node: Node) -> Node | None:
    """Return the constant matrix that a tensor of three axes repeats along the first."""
    matrix = operators.shape_of(node)[-_MATRIX_AXES:]
    while node.target in _REPEATS and operators.shape_of(node)[-_MATRIX_AXES:] == matrix:
        node = node.args[0]  # type: ignore[assignment] # the first argument of all of them is a tensor
    found = len(operators.shape_of(node)) == _MATRIX_AXES and operators.shape_of(node) == matrix
    return node if found and operators.is_constant(node) else None
