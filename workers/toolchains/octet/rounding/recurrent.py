"""ONNX operators in torch: recurrent layers, with the gates and activations that torch's own layers have."""

import onnx
import torch
from torch import Tensor

from workers.toolchains.octet.rounding.pointwise import Inputs, NotTaken, given, needed, whole
from workers.toolchains.octet.rounding.wiring import attribute

_LSTM_GATES = (0, 2, 3, 1)
"""Where torch's gates input, forget, cell, output stand in ONNX's input, output, forget, cell."""
_GRU_GATES = (1, 0, 2)
"""Where torch's gates reset, update, new stand in ONNX's update, reset, hidden."""


def lstm(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    if given(inputs, 7) is not None or whole(node, "input_forget", 0):
        raise NotTaken
    x, directions = needed(inputs, 0), needed(inputs, 1).shape[0]
    start = _start(inputs, 5), _start(inputs, 6)
    y, hidden, cell = torch.lstm(
        x,
        start,
        _weights(node, inputs, _LSTM_GATES),
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=False,
        bidirectional=directions > 1,
        batch_first=False,
    )
    return _apart(y, directions), hidden, cell


def gru(node: onnx.NodeProto, inputs: Inputs) -> tuple[Tensor, ...]:
    if not whole(node, "linear_before_reset", 0):
        raise NotTaken
    x, directions = needed(inputs, 0), needed(inputs, 1).shape[0]
    start = _start(inputs, 5)
    y, hidden = torch.gru(
        x,
        start,
        _weights(node, inputs, _GRU_GATES),
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=False,
        bidirectional=directions > 1,
        batch_first=False,
    )
    return _apart(y, directions), hidden


def _weights(node: onnx.NodeProto, inputs: Inputs, gates: tuple[int, ...]) -> list[Tensor]:
    """Return torch's flat list: for every direction both matrices and both biases."""
    plain = attribute(node, "direction", "forward") != "reverse" and not whole(node, "layout", 0)
    whole_rows = given(inputs, 4) is None or bool((needed(inputs, 4) == needed(inputs, 0).shape[0]).all())
    if not plain or not whole_rows or any(attribute(node, name, None) for name in ("activations", "clip")):
        raise NotTaken
    into, back = needed(inputs, 1), needed(inputs, 2)
    bias = given(inputs, 3)
    bias = into.new_zeros(into.shape[0], 2 * into.shape[1]) if bias is None else bias
    flat = []
    for direction in range(into.shape[0]):
        both = bias[direction].chunk(2)
        flat += [_ordered(each, gates) for each in (into[direction], back[direction], *both)]
    return flat


def _ordered(tensor: Tensor, gates: tuple[int, ...]) -> Tensor:
    parts = tensor.chunk(len(gates))
    return torch.cat([parts[gate] for gate in gates])


def _start(inputs: Inputs, place: int) -> Tensor:
    found, back = given(inputs, place), needed(inputs, 2)
    return back.new_zeros(back.shape[0], needed(inputs, 0).shape[1], back.shape[2]) if found is None else found


def _apart(y: Tensor, directions: int) -> Tensor:
    """Give the directions an axis of their own, as ONNX does."""
    return y.reshape(*y.shape[:2], directions, -1).transpose(1, 2)
