"""Octet's PT2E quantizer: annotates ATen operators, each by itself, so that a module used twice is no obstacle."""

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer, SharedQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY, QuantizationSpecBase

from workers.toolchains.torchao import operators
from workers.toolchains.torchao.operators import Compute, operand
from workers.toolchains.torchao.places import Edge, Places, can_be_observed
from workers.toolchains.torchao.specs import Specs


class AtenQuantizer(Quantizer):  # type: ignore[misc] # the library is not typed
    """Annotates every convolution and matrix product but those left in float, and what stands between them.

    Args:
        in_float: the layers and embeddings that stay in float.
    """

    def __init__(self, specs: Specs, *, in_float: frozenset[Node]) -> None:
        super().__init__()
        self._specs = specs
        self._in_float = in_float
        self.quantized = 0
        """How many layers were annotated."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write what is to be quantized into the nodes' `meta`."""
        weights = dict(operators.weighted_layers(model.graph))
        wanted: set[Edge] = set()
        for node, compute in operators.compute_layers(model.graph):
            if node not in self._in_float:
                wanted |= self._layer(node, compute, weights.get(node))
        for node, table in operators.tables(model.graph):
            if node not in self._in_float:
                _annotate(table, node, self._specs.table)
        places = Places(model.graph, wanted)
        for tensor, reader in places.edges:
            _annotate(tensor, reader, self._specs.activation)
        for first, *others in places.shared:
            for tensor, reader in others:
                _annotate(tensor, reader, SharedQuantizationSpec(first))
        return model

    def validate(self, model: GraphModule) -> None:
        """Do nothing: only what the exporter was seen to express is annotated."""

    def _layer(self, node: Node, compute: Compute, weight: Node | None) -> set[Edge]:
        data, other = operand(node, compute.data), operand(node, compute.weight)
        if data is None or other is None or data is weight or not can_be_observed(data, node):
            return set()
        if weight is None and compute.kind != "product":
            return set()  # a convolution whose weights are computed
        if operators.is_transposed(node) and operators.groups(node) > 1:
            return set()  # OpenVINO has no int8 kernel for it
        self.quantized += 1
        if weight is None:
            return {(data, node), (other, node)}
        _annotate(weight, node, self._specs.weight(node, compute, weight))
        return {(data, node)}


def _annotate(tensor: Node, reader: Node, spec: QuantizationSpecBase) -> None:
    annotation = reader.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
    annotation.input_qspec_map[tensor] = spec
