"""Which integers each activation quantizer of a graph really uses, and scales written back with the bounds they set.

Fewer bits than the type has are a `Clip` in front of the quantizer that ends exactly on levels of its grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from workers.toolchains.graph import replace_constant
from workers.toolchains.octet.rounding.wiring import Wiring, attribute

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Stored = NDArray[np.generic]

_QUANTIZE, _DEQUANTIZE, _CLIP = "QuantizeLinear", "DequantizeLinear", "Clip"
_LOW, _HIGH = 1, 2
_SCALE, _ZERO_POINT = 1, 2

# Of a step: bounds are products in float32, with up to eight bits times a scale.
_ON_A_LEVEL = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """An activation quantizer: `scale * (integer - zero_point)`, `qmin <= integer <= qmax`.

    Attributes:
        dequantizes: all that take what the quantizer gives; they have its scale and zero point.
        scale: float32, of the shape it is stored in: of one element, or one per index along `axis`.
        zero_point: int32, of the scale's shape; zeros where none is stored.
        clip: the node in front that makes the levels fewer than the type has; only the quantizer takes what it gives.
            A Clip that is part of the model, such as ReLU6, is not it: it stays what it is.
    """

    quantize: onnx.NodeProto
    dequantizes: tuple[onnx.NodeProto, ...]
    scale: Floats
    zero_point: Integers
    qmin: int
    qmax: int
    axis: int
    clip: onnx.NodeProto | None

    @property
    def name(self) -> str:
        """The quantizer's name, or its output's where it has none: the key of `levels_of`."""
        return str(self.quantize.name or self.quantize.output[0])

    @property
    def source(self) -> str:
        """The tensor that is quantized, in front of the Clip."""
        return str((self.clip or self.quantize).input[0])

    @property
    def output(self) -> str:
        """The integers."""
        return str(self.quantize.output[0])


def levels_of(wiring: Wiring) -> dict[str, Levels]:
    """Return every activation quantizer by its name, in the order they run in.

    Left out are those without stored scale and zero point, and those whose integers are taken by anything but
    DequantizeLinear with the same two.
    """
    found = (_levels(node, wiring) for node in wiring.nodes if node.op_type == _QUANTIZE)
    return {levels.name: levels for levels in found if levels is not None}


def write_levels(wiring: Wiring, levels: Levels, *, scale: Floats, zero_point: Integers | None = None) -> Levels:
    """Give a quantizer, its dequantizers and its Clip another scale and zero point, and return it as it then is.

    What the stored tensors share with other nodes is parted first: those keep their scale. Shapes and types stay.

    Raises:
        ValueError: a scale that is not finite and above 0, or a zero point outside the levels.
    """
    shape = levels.scale.shape
    steps = np.broadcast_to(np.asarray(scale, np.float32), shape).copy()
    given = levels.zero_point if zero_point is None else zero_point
    zeros = np.broadcast_to(np.asarray(given, np.int32), shape).copy()
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"{levels.name} was given a scale that is not finite and above 0")
    if (zeros < levels.qmin).any() or (zeros > levels.qmax).any():
        raise ValueError(f"{levels.name} was given a zero point outside {levels.qmin} to {levels.qmax}")
    pair = (levels.quantize, *levels.dequantizes)
    _store(wiring, pair, _SCALE, steps)
    if len(levels.quantize.input) > _ZERO_POINT:
        _store(wiring, pair, _ZERO_POINT, zeros)
    made = replace(levels, scale=steps, zero_point=zeros)
    if levels.clip is not None:
        for place, bound in zip((_LOW, _HIGH), bounds(made), strict=True):
            _store(wiring, (levels.clip,), place, bound)
    return made


def bounds(levels: Levels) -> tuple[Floats, Floats]:
    """Return the values of the lowest and the highest level, as scalars: a Clip takes nothing else."""
    scale, zero_point = np.float32(levels.scale.reshape(-1)[0]), int(levels.zero_point.reshape(-1)[0])
    low, high = (np.array((end - zero_point) * scale, np.float32) for end in (levels.qmin, levels.qmax))
    return low, high


def _levels(quantize: onnx.NodeProto, wiring: Wiring) -> Levels | None:
    if quantize.input[0] in wiring.constants or quantize.output[0] in wiring.outputs:
        return None
    scale = _stored(quantize, _SCALE, wiring)
    zero_point = _zero_point(quantize, wiring)
    takers = tuple(wiring.nodes[place] for place in wiring.takers.get(quantize.output[0], []))
    if scale is None or zero_point is None or not all(_undoes(each, quantize, wiring) for each in takers):
        return None
    least, most = _ends(quantize, wiring)
    whole = Levels(
        quantize=quantize,
        dequantizes=takers,
        scale=np.asarray(scale, np.float32),
        zero_point=np.broadcast_to(zero_point.astype(np.int32), scale.shape).copy(),
        qmin=least,
        qmax=most,
        axis=_axis(quantize),
        clip=None,
    )
    return _clipped(whole, wiring)


def _clipped(whole: Levels, wiring: Wiring) -> Levels:
    """Return what a Clip in front leaves of the levels, if it ends on levels and leaves a power of two of them."""
    clip = wiring.maker(whole.quantize.input[0])
    if clip is None or clip.op_type != _CLIP or whole.scale.size != 1:
        return whole
    ends = [_stored(clip, place, wiring) for place in (_LOW, _HIGH)]
    if wiring.only_taker(clip.output[0]) is None or any(end is None or end.size != 1 for end in ends):
        return whole
    exact = [
        float(end.reshape(-1)[0]) / float(whole.scale.reshape(-1)[0]) + int(whole.zero_point.reshape(-1)[0])
        for end in ends
        if end is not None
    ]
    qmin, qmax = (round(end) if np.isfinite(end) else whole.qmax + 1 for end in exact)
    count = qmax - qmin + 1
    on_levels = all(abs(end - near) < _ON_A_LEVEL for end, near in zip(exact, (qmin, qmax), strict=True))
    if not on_levels or qmin < whole.qmin or qmax >= whole.qmax or count <= 1 or count & (count - 1):
        return whole
    return replace(whole, qmin=qmin, qmax=qmax, clip=clip)


def _stored(node: onnx.NodeProto, place: int, wiring: Wiring) -> Stored | None:
    name = node.input[place] if len(node.input) > place else ""
    if name not in wiring.initializers or name in wiring.inputs:
        return None
    values: Stored = numpy_helper.to_array(wiring.initializers[name])
    return values


def _zero_point(node: onnx.NodeProto, wiring: Wiring) -> Stored | None:
    if len(node.input) <= _ZERO_POINT or not node.input[_ZERO_POINT]:
        return np.zeros((), np.int32)
    return _stored(node, _ZERO_POINT, wiring)


def _undoes(node: onnx.NodeProto, quantize: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether a node turns the integers back with the scale and zero point they were made with."""
    if node.op_type != _DEQUANTIZE or _axis(node) != _axis(quantize):
        return False
    pairs = [(_stored(each, _SCALE, wiring), _zero_point(each, wiring)) for each in (node, quantize)]
    (scale, zero), (own_scale, own_zero) = pairs
    if scale is None or own_scale is None or zero is None or own_zero is None:
        return False
    return scale.shape == own_scale.shape and bool((scale == own_scale).all() and (zero == own_zero).all())


def _ends(quantize: onnx.NodeProto, wiring: Wiring) -> tuple[int, int]:
    """Return the least and the largest integer of the type a quantizer gives."""
    kind = attribute(quantize, "output_dtype", 0)
    if len(quantize.input) > _ZERO_POINT and quantize.input[_ZERO_POINT]:
        kind = wiring.initializers[quantize.input[_ZERO_POINT]].data_type
    name = onnx.TensorProto.DataType.Name(kind if isinstance(kind, int) and kind else onnx.TensorProto.UINT8)
    bits = int("".join(filter(str.isdigit, name)))
    return (0, 2**bits - 1) if name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _axis(node: onnx.NodeProto) -> int:
    axis = attribute(node, "axis", 1)
    return axis if isinstance(axis, int) else 1


def _store(wiring: Wiring, nodes: Sequence[onnx.NodeProto], at: int, values: Stored) -> None:
    """Write an input of some nodes, in the type and shape it is stored in, into a tensor that is theirs alone."""
    takers = [node for node in nodes if len(node.input) > at and node.input[at]]
    for name in dict.fromkeys(str(node.input[at]) for node in takers):
        own = [node for node in takers if node.input[at] == name]
        tensor = wiring.initializers[name]
        stored = numpy_helper.to_array(tensor)
        array = np.asarray(values).reshape(stored.shape).astype(stored.dtype)
        if len(wiring.takers[name]) == len(own):
            replace_constant(tensor, array)
        else:
            wiring.part(name, own, array)
