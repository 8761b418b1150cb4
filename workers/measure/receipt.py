"""The kernel receipt: for every layer that computes, what ran and how long, float32 beside the variant."""

from collections.abc import Iterator, Sequence

import onnx

from app.domain.evidence import LayerReceipt, LayerRun, Receipt
from app.domain.reports import Kernels, Layer
from workers.measure.kernels import is_float
from workers.measure.layers import Wiring, pairs
from workers.measure.matching import ENGINE_COMPUTE, known, matched

MOST_CONVERSIONS = 10
_CONVERTS = frozenset({"Convert", "FakeQuantize", "Reorder", "Transpose"})
_ELEMENTWISE = frozenset({"Eltwise", "Subgraph"})
_QUANTIZERS = frozenset({"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})


def receipt(float32: onnx.ModelProto, variant: onnx.ModelProto, before: Kernels, after: Kernels) -> Receipt:
    """Put what ran beside each other, layer by layer, in the order of the float32 graph.

    Args:
        float32, variant: the graphs, all nodes named.
        before, after: what the engine executed for each.
    """
    one, two = Wiring.of(float32.graph), Wiring.of(variant.graph)
    partner = pairs(one, two)
    ran_before, ran_after = _by_node(before.layers, one), _by_node(after.layers, two)
    layers: list[LayerReceipt] = []
    fallbacks: list[str] = []
    for node in one.compute():
        other = partner.get(node.name)
        runs = ran_after.get(other.name, []) if other is not None else []
        quantized = other is not None and two.quantizes(other)
        if quantized and any(is_float(layer) for layer, _ in runs):
            fallbacks.append(node.name)
        layers.append(
            LayerReceipt(
                name=node.name,
                kind=node.op_type,
                quantized=quantized,
                float32=_run(ran_before.get(node.name, [])),
                variant=_run(runs),
            )
        )
    share, names = _conversions(after.layers, one, two)
    return Receipt(layers=tuple(layers), fallbacks=tuple(fallbacks), conversion_share=share, conversions=names)


Ran = tuple[Layer, int]
"""A layer that ran, and how many compute nodes it stands for."""


def _by_node(layers: Sequence[Layer], wiring: Wiring) -> dict[str, list[Ran]]:
    """Return, by the name of each compute node, the layers that ran it."""
    by_name = {layer.name: layer for layer in layers}
    ran: dict[str, list[Ran]] = {}
    for name, nodes in matched(layers, wiring).items():
        for node in nodes:
            ran.setdefault(node.name, []).append((by_name[name], len(nodes)))
    return ran


def _run(ran: Sequence[Ran]) -> LayerRun | None:
    """Sum up; the time of a kernel that does several nodes at once is shared out evenly among them."""
    if not ran:
        return None
    return LayerRun(
        precision=", ".join(dict.fromkeys(layer.precision for layer, _ in ran)),
        implementation=", ".join(dict.fromkeys(_implementation(layer, nodes) for layer, nodes in ran)),
        microseconds=sum(layer.microseconds / nodes for layer, nodes in ran),
    )


def _implementation(layer: Layer, nodes: int) -> str:
    return layer.implementation if nodes == 1 else f"{layer.implementation} for {nodes} layers at once"


def _conversions(layers: Sequence[Layer], float32: Wiring, variant: Wiring) -> tuple[float, tuple[str, ...]]:
    """Return the share of the time that conversions take, and the names of the dearest."""
    total = sum(layer.microseconds for layer in layers)
    dear = sorted(
        (layer for layer in layers if _converts(layer, float32, variant)), key=lambda layer: -layer.microseconds
    )
    if not total:
        return 0.0, ()
    share = sum(layer.microseconds for layer in dear) / total
    return share, tuple(layer.name for layer in dear if layer.microseconds)[:MOST_CONVERSIONS]


def _converts(layer: Layer, float32: Wiring, variant: Wiring) -> bool:
    """Whether a layer only brings values into another type or order, and not because the model itself says so."""
    if layer.kind in ENGINE_COMPUTE or layer.kind not in _CONVERTS | _ELEMENTWISE:
        return False
    ops = list(_own(layer, float32, variant))
    if layer.kind in _CONVERTS:
        return not ops
    # what the engine made of quantizers alone: every node that it names is one
    return not ops and any(node.op_type in _QUANTIZERS for node in known(layer, variant))


def _own(layer: Layer, float32: Wiring, variant: Wiring) -> Iterator[str]:
    """Yield the operators in a layer that are the model's own work: in float32 too, or new but no quantizers."""
    for node in known(layer, variant):
        if node.name in float32.nodes or node.op_type not in _QUANTIZERS:
            yield node.op_type
