"""Surgery on QDQ graphs: the same variant with only some of its layers quantized, the others as in float32."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from workers import graphs
from workers.measure.chains import Chains
from workers.measure.constants import constants
from workers.measure.float_weights import float_weights
from workers.measure.layers import COMPUTE, WEIGHT_INPUTS, Wiring, moved

_LOOKUPS = frozenset({"Gather"})
_ACTIVATIONS = frozenset({"Clip", "Relu"})
_FLOAT = "/octet/float"
_KEPT = "/octet/kept"

Array = NDArray[Any]


class Quantized:
    """A QDQ graph beside its float32 parent. Layers go by their names in the parent.

    A pair of quantizers belongs to the layer it feeds, directly or through nodes that only move values. Where it feeds
    no layer, as before an Add, it belongs to the last quantized layer before it. So every pair has one owner, and
    together the layers are the whole variant.

    Attributes:
        layers: those that compute, or look up, with something quantized, in the order they run.
    """

    def __init__(self, variant: onnx.ModelProto, float32: onnx.ModelProto) -> None:
        self.variant = variant
        self.wiring = Wiring.of(variant.graph)
        self.chains = Chains.of(self.wiring)
        weights = float_weights(float32, variant)
        self.weights = weights.values
        self._parents = {theirs: mine for mine, theirs in weights.names.items()}
        self.owners = {node.name for node in self.wiring.nodes.values() if self._is_layer(node)}
        self.last = _last_owners(self.wiring, self.owners)
        self.activations = _lost_activations(float32, self)
        self._sizes: dict[str, int] = {}
        for (name, _), array in self.weights.items():
            layer = self._parents.get(name, name)
            self._sizes[layer] = max(array.size, self._sizes.get(layer, 0))
        self.layers = tuple(self._parents.get(name, name) for name in self.wiring.nodes if name in self.owners)

    def only(self, layers: Collection[str]) -> onnx.ModelProto:
        """Return the graph in which these layers alone stay quantized.

        With all layers it answers as the variant; with none, as float32.
        """
        wanted = set(layers)
        return _Cut(self, {name for name in self.owners if self._parents.get(name, name) in wanted}).graph()

    def without(self, layers: Collection[str]) -> onnx.ModelProto:
        """Return the graph in which these layers run in float, and the others as in the variant."""
        return self.only(set(self.layers) - set(layers))

    def weight_size(self, layer: str) -> int:
        """Return how many weights a layer has; 0 for a product of two activations."""
        return self._sizes.get(layer, 0)

    def _is_layer(self, node: NodeProto) -> bool:
        if node.op_type not in COMPUTE | _LOOKUPS or node.output[0] in self.wiring.constants:
            return False
        if node.op_type in _LOOKUPS:
            return node.input[0] in self.wiring.quantized & self.wiring.constants
        places = (0, *WEIGHT_INPUTS.get(node.op_type, (1,)))
        return any(node.input[place] in self.wiring.quantized for place in places if place < len(node.input))


def _last_owners(wiring: Wiring, owners: Collection[str]) -> dict[str, str]:
    """Return, by tensor, the last of the owners that it depends on."""
    last: dict[str, str] = {}
    for node in wiring.nodes.values():
        above = [last[name] for name in node.input if name in last]
        owner = node.name if node.name in owners else max(above, key=wiring.position.__getitem__, default=None)
        if owner is not None:
            last.update(dict.fromkeys(node.output, owner))
    return last


def _lost_activations(float32: onnx.ModelProto, quantized: Quantized) -> dict[str, tuple[NodeProto, dict[str, Array]]]:
    """Find activations that the toolchain left to a quantizer's clipping: by the tensor behind that quantizer.

    ONNX Runtime's toolchain drops a Relu where the quantizer after it has no negative values. Without the quantizer it
    has to be there again.
    """
    parent = Wiring.of(float32.graph)
    found: dict[str, tuple[NodeProto, dict[str, Array]]] = {}
    for node in quantized.wiring.nodes.values():
        if node.op_type != "QuantizeLinear":
            continue
        for name in (node.input[0], *quantized.chains.behind.get(node.output[0], ())):
            lost = parent.makers.get(name)
            if lost is not None and lost.op_type in _ACTIVATIONS and lost.name not in quantized.wiring.nodes:
                found[node.output[0]] = lost, constants(float32, parent, lost.input[1:])
    return found


class _Cut:
    """One choice of layers, carried out on a copy of the graph.

    Tensors behind quantizers get a twin that passes them by; whoever does not stay quantized reads the twin.
    """

    def __init__(self, quantized: Quantized, kept: set[str]) -> None:
        self._of = quantized
        self._kept = kept
        self._whole = kept == quantized.owners
        self._copies: dict[str, list[NodeProto]] = {}
        self._plain: dict[str, str] = {}
        self._weights: dict[str, Array] = {}

    def graph(self) -> onnx.ModelProto:
        source = self._of.variant.graph
        nodes = {node.name: self._rewired(node) for node in source.node}
        closing = [helper.make_node("Identity", [self._float(name)], [name]) for name in self._float_outputs()]
        ordered = [each for name, node in nodes.items() for each in (node, *self._copies.get(name, []))]
        away = {end.output[0]: end.output[0] + _KEPT for end in closing}
        for node in ordered if away else ():
            _rename(node, away)
        return self._made(_needed([*ordered, *closing], [value.name for value in source.output]))

    def _made(self, nodes: list[NodeProto]) -> onnx.ModelProto:
        source = self._of.variant
        used = {name for node in nodes for name in (*node.input, *_inner_reads(node))} | {
            value.name for value in source.graph.output
        }
        stored = [tensor for tensor in source.graph.initializer if tensor.name in used]
        added = [numpy_helper.from_array(array, name) for name, array in self._weights.items() if name in used]
        graph = helper.make_graph(
            nodes,
            source.graph.name or "graph",
            source.graph.input,
            source.graph.output,
            [*stored, *added],
            sparse_initializer=source.graph.sparse_initializer,
        )
        return helper.make_model(graph, opset_imports=source.opset_import, ir_version=source.ir_version)

    def _stays(self, owner: str | None) -> bool:
        return self._whole if owner is None else owner in self._kept

    def _owner(self, node: NodeProto, tensor: str) -> str | None:
        if node.name in self._of.owners:
            return str(node.name)
        return self._of.last.get(node.output[0] if tensor in self._of.wiring.constants else tensor)

    def _rewired(self, node: NodeProto) -> NodeProto:
        """Return a copy that reads the float twin of whatever does not stay quantized."""
        made = NodeProto()
        made.CopyFrom(node)
        if self._of.chains.links(node):
            return made
        for index, name in enumerate(node.input):
            if self._stays(self._owner(node, name)):
                continue
            if name in self._of.chains.floats:
                made.input[index] = self._float(name)
            elif (node.name, index) in self._of.weights:
                made.input[index] = self._weight(node, index)
        inner = self._of.chains.floats.intersection(_inner_reads(node))
        _rename_inside(made, {name: self._float(name) for name in inner if not self._stays(self._of.last.get(name))})
        return made

    def _weight(self, node: NodeProto, index: int) -> str:
        name = f"{node.input[index]}{_FLOAT}/{node.name}/{index}"
        self._weights[name] = self._of.weights[node.name, index]
        return name

    def _float(self, tensor: str) -> str:
        """Return the tensor that holds what this one would without quantizers; copy the nodes that move it."""
        if tensor not in self._of.chains.steps:
            return tensor
        if tensor not in self._plain:
            maker = self._of.wiring.makers[tensor]
            if maker.op_type == "DequantizeLinear":
                self._plain[tensor] = self._float(maker.input[0])
            elif maker.op_type == "QuantizeLinear":
                self._plain[tensor] = self._activated(maker)
            else:
                self._copy(maker)
        return self._plain[tensor]

    def _activated(self, quantizer: NodeProto) -> str:
        source = self._float(quantizer.input[0])
        if quantizer.output[0] not in self._of.activations:
            return source
        lost, values = self._of.activations[quantizer.output[0]]
        made = NodeProto()
        made.CopyFrom(lost)
        made.output[0] = quantizer.output[0] + _FLOAT
        made.input[0] = source
        for index, name in enumerate(lost.input[1:], start=1):
            if name:
                made.input[index] = name + _FLOAT
                self._weights[name + _FLOAT] = values[name]
        self._copies.setdefault(quantizer.name, []).append(made)
        return str(made.output[0])

    def _copy(self, mover: NodeProto) -> None:
        made = NodeProto()
        made.CopyFrom(mover)
        made.name = mover.name + _FLOAT
        for index in range(len(moved(mover))):
            made.input[index] = self._float(mover.input[index])
        for index, name in enumerate(mover.output):
            if name:
                made.output[index] = self._plain[name] = name + _FLOAT
        self._copies.setdefault(mover.name, []).append(made)

    def _float_outputs(self) -> Iterator[str]:
        for value in self._of.variant.graph.output:
            if value.name in self._of.chains.floats and not self._stays(self._of.last.get(value.name)):
                yield value.name


def _inside(node: NodeProto) -> Iterator[onnx.GraphProto]:
    """Walk the graphs inside a node, such as the branches of an If."""
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from graphs.graphs_of(inner)


def _inner_reads(node: NodeProto) -> Iterator[str]:
    for inner in _inside(node):
        yield from (name for each in inner.node for name in each.input)
        yield from (value.name for value in inner.output)


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    for places in (node.input, node.output):
        for index, name in enumerate(places):
            places[index] = names.get(name, name)
    _rename_inside(node, names)


def _rename_inside(node: NodeProto, names: Mapping[str, str]) -> None:
    for each in (each for inner in _inside(node) for each in inner.node):
        for index, name in enumerate(each.input):
            each.input[index] = names.get(name, name)


def _needed(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """Leave out what no output depends on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            wanted.update(node.input, _inner_reads(node))
            kept.append(node)
    return kept[::-1]
