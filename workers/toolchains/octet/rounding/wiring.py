"""Who makes and who takes each tensor of an ONNX graph, and which tensors never change."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray

from workers.toolchains.graph import add_constant, reads


class Wiring:
    """The outermost level of a graph, its nodes in the order they run in."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes = list(graph.node)
        self.places = {node.name: place for place, node in enumerate(self.nodes)}
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.makers: dict[str, int] = {}
        self.takers: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            self.makers.update((name, place) for name in node.output if name)
            for name in used_by(node):
                self.takers.setdefault(name, []).append(place)

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def constants(self) -> set[str]:
        """Tensors that follow from the stored ones alone."""
        found = set(self.initializers)
        for node in self.nodes:
            if not _random(node) and used_by(node) <= found:
                found.update(name for name in node.output if name)
        return found

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for stored tensors and the graph's inputs."""
        return self.nodes[self.makers[name]] if name in self.makers else None

    def only_taker(self, name: str) -> onnx.NodeProto | None:
        """Return the one node that takes a tensor; None if there are more, or the graph gives it out."""
        takers = self.takers.get(name, [])
        return self.nodes[takers[0]] if len(takers) == 1 and name not in self.outputs else None

    def moving(self, node: onnx.NodeProto) -> set[str]:
        """Return the tensors a node takes that are not constant."""
        return {name for name in used_by(node) if name not in self.constants and self.known(name)}

    def known(self, name: str) -> bool:
        """Whether this level of the graph has such a tensor: names inside a node's own graphs may not."""
        return name in self.makers or name in self.inputs or name in self.initializers

    def part(self, name: str, nodes: Sequence[onnx.NodeProto], values: NDArray[np.generic]) -> None:
        """Give some of the nodes that take a stored tensor one of their own, with other values."""
        own = add_constant(self.graph, values, like=f"{name}_own")
        self.initializers[own] = self.graph.initializer[-1]
        self.constants.add(own)
        moved = [place for place in self.takers[name] if any(self.nodes[place] is node for node in nodes)]
        for node in nodes:
            node.input[:] = [own if each == name else each for each in node.input]
        self.takers[own] = moved
        self.takers[name] = [place for place in self.takers[name] if place not in moved]

    def last_use(self, name: str) -> int:
        """Return the place of the last node that takes a tensor; past the end if the graph gives it out."""
        return len(self.nodes) if name in self.outputs else max(self.takers.get(name, [-1]))


def used_by(node: onnx.NodeProto) -> set[str]:
    """Return the names a node takes, also from within its own graphs."""
    return set(reads(node))


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    """Return an attribute's value, strings as text."""
    for each in node.attribute:
        if each.name == name:
            value: object = onnx.helper.get_attribute_value(each)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _random(node: onnx.NodeProto) -> bool:
    return node.op_type in {"RandomNormal", "RandomUniform"}
