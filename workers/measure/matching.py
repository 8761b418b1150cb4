"""Which compute nodes of an ONNX graph an executed layer stands for, by the names that the engine kept."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from onnx import NodeProto

from app.domain.reports import Layer
from workers.measure.layers import COMPUTE, Wiring

ENGINE_COMPUTE = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "FullyConnected",
        "GatherMatMul",
        "MatMul",
        "MHA",
        "RNNCell",
        "RNNSeq",
        "ScaledDotProductAttention",
    }
)
"""The engine's layer types that multiply and add. The rest moves or reshapes data."""

_RECURRENT = ("GRU", "LSTM", "RNN")
_QUANTIZERS = ("DequantizeLinear", "QuantizeLinear")


def matched(layers: Sequence[Layer], wiring: Wiring) -> dict[str, tuple[NodeProto, ...]]:
    """Map the names of layers to the compute nodes they stand for; a layer that stands for none is left out.

    A layer lists the nodes fused into it, with suffixes of the engine's own; it may carry the name of a tensor instead.
    Where it names no compute node at all, it is the nearest one before a node that it does name. Recurrent nodes lose
    their names in OpenVINO, but not their order. A compute node that no computing layer names is looked for among the
    others: loops, and attention made into one kernel, which names its second product and what comes between, but not
    the first.
    """
    computing = [layer for layer in layers if layer.kind in ENGINE_COMPUTE]
    found = {layer.name: nodes for layer in computing if (nodes := _named(layer, wiring))}
    claimed = {node.name for nodes in found.values() for node in nodes}
    for layer in computing:
        nearest = None if layer.name in found else _nearest(layer, wiring)
        if nearest is not None and nearest.name not in claimed:
            found[layer.name] = (nearest,)
            claimed.add(nearest.name)
    found |= _recurrent(computing, wiring, claimed=claimed)
    for layer in layers:
        rest = [node for node in _named(layer, wiring) if node.name not in claimed]
        if layer.kind not in ENGINE_COMPUTE and rest:
            unnamed = [node for node in _feeding(layer, wiring) if node.name not in claimed and node not in rest]
            found[layer.name] = (*unnamed, *rest)
            claimed.update(node.name for node in found[layer.name])
    return found


def known(layer: Layer, wiring: Wiring) -> Iterator[NodeProto]:
    """Yield the nodes of the graph that a layer names, whatever they do."""
    for name in dict.fromkeys((*layer.nodes, layer.name)):
        node = _first(name, wiring.nodes) or _first(name, wiring.makers)
        if node is not None:
            yield node


def _named(layer: Layer, wiring: Wiring) -> tuple[NodeProto, ...]:
    nodes = {node.name: node for node in known(layer, wiring) if node.op_type in COMPUTE}
    return tuple(nodes.values())


def _recurrent(
    layers: Sequence[Layer], wiring: Wiring, *, claimed: Collection[str]
) -> dict[str, tuple[NodeProto, ...]]:
    """Pair recurrent nodes with layers in the order both run, one layer per direction, if there are as many."""
    nodes = [
        node
        for node in wiring.compute()
        if node.op_type in _RECURRENT and node.name not in claimed
        for _ in range(2 if any(each.s == b"bidirectional" for each in node.attribute) else 1)
    ]
    unnamed = [layer for layer in layers if layer.kind == "RNNSeq" and not _named(layer, wiring)]
    if len(nodes) != len(unnamed):
        return {}
    return {layer.name: (node,) for layer, node in zip(unnamed, nodes, strict=True)}


def _feeding(layer: Layer, wiring: Wiring) -> Iterator[NodeProto]:
    """Yield the compute nodes that feed nodes which a layer names, through quantizers or not."""
    for node in known(layer, wiring):
        for name in node.input:
            maker = wiring.makers.get(name)
            while maker is not None and maker.op_type in _QUANTIZERS:
                maker = wiring.makers.get(maker.input[0])
            if maker is not None and maker.op_type in COMPUTE:
                yield maker


def _nearest(layer: Layer, wiring: Wiring) -> NodeProto | None:
    for node in known(layer, wiring):
        nearest = wiring.nearest_compute(node.output[0])
        if nearest is not None:
            return nearest
    return None


def _first(name: str, known_as: Mapping[str, NodeProto]) -> NodeProto | None:
    """Look a name up, and then what is left of it when suffixes such as `/WithoutBiases` are cut off."""
    while name:
        if name in known_as:
            return known_as[name]
        name = name.rpartition("/")[0]
    return None
