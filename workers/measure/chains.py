"""Chains of quantizers in a QDQ graph: QuantizeLinear, DequantizeLinear, and the nodes that only move between them."""

from dataclasses import dataclass

from onnx import NodeProto

from workers.measure.layers import MOVES, Wiring, moved

_FLOATS_ONLY = frozenset({"Pad"})
"""What takes a value of the data's own type besides the data: as integers it is another than in float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """
    Attributes:
        integers: what quantizers make of values that are no constants, and what was only moved since.
        floats: what is dequantized from those, and what was only moved since.
        steps: all of these.
        behind: by the output of a QuantizeLinear, what its DequantizeLinear make.
    """

    integers: frozenset[str]
    floats: frozenset[str]
    steps: frozenset[str]
    behind: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, wiring: Wiring) -> "Chains":
        """Follow the chains in one walk."""
        integers: set[str] = set()
        floats: set[str] = set()
        behind: dict[str, tuple[str, ...]] = {}
        for node in wiring.nodes.values():
            data = moved(node)
            if node.op_type == "QuantizeLinear" and node.input[0] not in wiring.constants:
                integers.update(node.output)
            elif node.op_type == "DequantizeLinear" and node.input[0] in integers:
                floats.update(node.output)
                behind[node.input[0]] = (*behind.get(node.input[0], ()), node.output[0])
            elif node.op_type in MOVES - _FLOATS_ONLY and data and all(name in integers for name in data):
                integers.update(node.output)
            elif node.op_type in MOVES and any(name in floats for name in data):
                floats.update(node.output)
        return cls(
            integers=frozenset(integers), floats=frozenset(floats), steps=frozenset(integers | floats), behind=behind
        )

    def links(self, node: NodeProto) -> bool:
        """Whether a node is a part of a chain: it quantizes, dequantizes or moves what is in one."""
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return True
        return node.op_type in MOVES and any(name in self.steps for name in node.output)
