"""What follows a layer before its output counts: an activation function that works on each element for itself."""

from collections.abc import Callable

import onnx
import torch
from torch import Tensor

from workers.toolchains.octet.rounding.operators import OPERATORS
from workers.toolchains.octet.rounding.playback import constant
from workers.toolchains.octet.rounding.wiring import Wiring

Activation = Callable[[Tensor], Tensor]

ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Elu", "Softplus", "Erf"}
)


def activation_after(name: str, original: onnx.ModelProto, known: Wiring) -> Activation | None:
    """Return the activation function that alone takes a tensor of the float graph, if there is one."""
    node = known.only_taker(name)
    if node is None or node.op_type not in ELEMENTWISE or node.domain:
        return None
    if any(each and each not in known.constants for each in node.input[1:]):
        return None
    rest = [torch.from_numpy(constant(original, known, each)) if each else None for each in node.input[1:]]
    operator = OPERATORS[node.op_type]
    return lambda values: operator(node, [values, *rest])[0]
