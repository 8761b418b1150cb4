"""Weights and activations of layers, float32 beside variant: histograms, cut-off values, channels that never speak."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from app.domain.evidence import Histogram
from app.domain.tensors import Signature
from workers.data.batches import Tensors, batches
from workers.measure.engine import threads
from workers.stage_records.common import RowSource
from workers.stage_records.measuring import CheckSpec

MOST_LAYERS = 24
"""More pictures than a reader looks at; a deeper model shows layers evenly taken, the first and the last among them."""

MOST_ROWS = 32
BINS = 48
MOST_BYTES = 64 * 2**20
"""Of activations kept at once, over all rows: fewer rows are looked at where layers are large."""

_COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FATAL = 4
_WEIGHT = 1
_CHANNEL_AXIS = 1
_IMAGE_AXES = 3

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerValues:
    """What was seen at one layer.

    Attributes:
        clipped: share of the float32 input's values that the variant's quantizer cuts off, 0 to 1.
        dead, channels: input channels that are zero on every row, of how many; 0 of 0 where channels are not known.
    """

    name: str
    histograms: tuple[Histogram, ...]
    clipped: float
    dead: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer in both graphs: names of the tensors to look at."""

    name: str
    op_type: str
    before: str
    after: str
    weights: tuple[Array, Array] | None


def layer_values(spec: CheckSpec, *, scratch: Path) -> tuple[LayerValues, ...]:
    """Run both graphs on a few evaluation rows, and compare weights and inputs of the layers both have."""
    assert spec.variant is not None  # noqa: S101 - the caller's condition, for the type checker
    float32, variant = onnx.load(scratch / spec.float32), onnx.load(scratch / spec.variant)
    layers = _chosen(list(_layers(float32, variant)))
    if not layers:
        return ()
    rows = _rows(spec.evaluation, spec.signature, scratch=scratch)
    before = _Probe(float32, [layer.before for layer in layers])
    after = _Probe(variant, [layer.after for layer in layers])
    seen: list[tuple[dict[str, Array], dict[str, Array]]] = []
    kept = 0
    for inputs in rows:
        pair = before.run(inputs), after.run(inputs)
        kept += sum(array.nbytes for values in pair for array in values.values())
        if seen and kept > MOST_BYTES:
            break
        seen.append(pair)
    limits = _quantizer_limits(variant)
    return tuple(_summary(layer, seen, limits=limits) for layer in layers)


def _rows(source: RowSource, signature: Signature, *, scratch: Path) -> Iterator[Tensors]:
    every = max(1, len(source.rows) // MOST_ROWS)
    few = RowSource(
        path=source.path,
        format=source.format,
        rows=source.rows[::every][:MOST_ROWS],
        preprocessing=source.preprocessing,
    )
    return (batch.inputs for batch in batches(few, signature, scratch=scratch, size=1))


def _layers(float32: onnx.ModelProto, variant: onnx.ModelProto) -> Iterator[_Layer]:
    """Yield the compute layers that both graphs name alike."""
    quantized = {node.name: node for node in variant.graph.node if node.op_type in _COMPUTE}
    weights = _Weights(float32), _Weights(variant)
    for node in float32.graph.node:
        if node.op_type not in _COMPUTE or node.name not in quantized:
            continue
        other = quantized[node.name]
        one, two = weights[0].of(node.input[_WEIGHT]), weights[1].of(other.input[_WEIGHT])
        both = (one, two) if one is not None and two is not None and one.shape == two.shape else None
        yield _Layer(name=node.name, op_type=node.op_type, before=node.input[0], after=other.input[0], weights=both)


def _chosen(layers: Sequence[_Layer]) -> list[_Layer]:
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    places = np.linspace(0, len(layers) - 1, MOST_LAYERS).round().astype(int)
    return [layers[place] for place in dict.fromkeys(places.tolist())]


class _Weights:
    """Constant weights of a graph, those behind a DequantizeLinear or a Cast as the values they stand for."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self._constants = {tensor.name: tensor for tensor in graph.graph.initializer}
        self._makers = {name: node for node in graph.graph.node for name in node.output}

    def of(self, name: str) -> Array | None:
        """Return a weight as float32; None if it is not constant."""
        if name in self._constants:
            weight: Array = numpy_helper.to_array(self._constants[name]).astype(np.float32)
            return weight
        maker = self._makers.get(name)
        if maker is None or any(each and each not in self._constants for each in maker.input):
            return None
        if maker.op_type == "Cast":
            return self.of(maker.input[0])
        return self._dequantized(maker) if maker.op_type == "DequantizeLinear" else None

    def _dequantized(self, node: onnx.NodeProto) -> Array:
        integers, scale, *zero = (numpy_helper.to_array(self._constants[name]) for name in node.input if name)
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        axis, block = settings.get("axis", 1), settings.get("block_size", 0)

        def spread(array: Array) -> Array:
            if block:
                return np.repeat(array, block, axis=axis)[tuple(map(slice, integers.shape))]
            return array.reshape([-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)])

        values = integers.astype(np.float32)
        if zero:
            values = values - spread(zero[0].astype(np.float32)) if zero[0].ndim else values - np.float32(zero[0])
        dequantized: Array = values * (spread(scale.astype(np.float32)) if scale.ndim else np.float32(scale))
        return dequantized


class _Probe:
    """A graph with inner tensors as further outputs, run row by row in ONNX Runtime."""

    def __init__(self, graph: onnx.ModelProto, names: Sequence[str]) -> None:
        known = {value.name for value in (*graph.graph.output, *graph.graph.input)}
        inputs = {value.name for value in graph.graph.input}
        for name in dict.fromkeys(names):
            if name not in known:
                graph.graph.output.append(helper.make_empty_tensor_value_info(name))
        self._names = [name for name in dict.fromkeys(names) if name not in inputs]
        self._inputs = [name for name in dict.fromkeys(names) if name in inputs]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
        options.log_severity_level = _FATAL
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return the named tensors for one row, copied."""
        values = dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))
        return values | {name: inputs[name] for name in self._inputs}


def _quantizer_limits(variant: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Return, by the name of a DequantizeLinear's output, the least and the largest value its quantizer can say."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in variant.graph.initializer}
    made = {name for node in variant.graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    found: dict[str, tuple[float, float]] = {}
    for node in variant.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in made or len(node.input) <= 2:  # noqa: PLR2004
            continue
        scale, zero = constants.get(node.input[1]), constants.get(node.input[2])
        if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
            continue
        steps = np.iinfo(zero.dtype)
        found[node.output[0]] = (
            float((steps.min - float(zero.item())) * scale.item()),
            float((steps.max - float(zero.item())) * scale.item()),
        )
    return found


def _summary(
    layer: _Layer,
    seen: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]],
    *,
    limits: Mapping[str, tuple[float, float]],
) -> LayerValues:
    before = [one[layer.before] for one, _ in seen]
    after = [other[layer.after] for _, other in seen]
    histograms = [_histogram(layer.name, "activation", _flat(before), _flat(after))]
    if layer.weights is not None:
        histograms.insert(0, _histogram(layer.name, "weight", *(weight.ravel() for weight in layer.weights)))
    dead, channels = _dead(before) if layer.op_type in ("Conv", "ConvTranspose") else (0, 0)
    return LayerValues(
        name=layer.name,
        histograms=tuple(histogram for histogram in histograms if histogram is not None),
        clipped=_clipped(_flat(before), limits.get(layer.after)),
        dead=dead,
        channels=channels,
    )


def _flat(arrays: Sequence[Array]) -> Array:
    flat = np.concatenate([array.ravel() for array in arrays]).astype(np.float32)
    return flat[np.isfinite(flat)]


def _histogram(layer: str, kind: str, before: Array, after: Array) -> Histogram | None:
    if not before.size or not after.size:
        return None
    low = float(min(before.min(), after.min()))
    high = float(max(before.max(), after.max()))
    counts = [np.histogram(values, bins=BINS, range=(low, high))[0] for values in (before, after)]
    return Histogram(
        layer=layer,
        kind="weight" if kind == "weight" else "activation",
        low=low,
        high=high,
        before=tuple(counts[0].tolist()),
        after=tuple(counts[1].tolist()),
    )


def _clipped(values: Array, limits: tuple[float, float] | None) -> float:
    """Return the share of values that lie more than half a step outside what the quantizer can say."""
    if limits is None or not values.size:
        return 0.0
    half = (limits[1] - limits[0]) / 255 / 2
    return float(((values < limits[0] - half) | (values > limits[1] + half)).mean())


def _dead(rows: Sequence[Array]) -> tuple[int, int]:
    """Count channels, (rows, channels, …), that are zero everywhere."""
    if rows[0].ndim < _IMAGE_AXES:
        return 0, 0
    others = tuple(axis for axis in range(rows[0].ndim) if axis != _CHANNEL_AXIS)
    alive = np.any([np.abs(row).max(axis=others) > 0 for row in rows], axis=0)
    return int((~alive).sum()), int(alive.size)
