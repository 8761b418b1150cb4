"""Where activations are quantized: which tensor, on its way to which reader; and which of these share one scale.

Quantizers stand as far up as values are only moved, before a max pooling and not after it: there they serve all
readers, and the layer that made the values writes int8.
"""

from collections.abc import Sequence

import torch
from torch.fx import Graph, Node

from workers.toolchains.torchao import operators

Edge = tuple[Node, Node]
"""A tensor and the node that reads it."""


class Places:
    """The edges that are quantized in a graph.

    Args:
        wanted: the inputs of the layers that multiply and add in int8.
    """

    def __init__(self, graph: Graph, wanted: set[Edge]) -> None:
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        self._edges = set(wanted)
        self._lifted: dict[Edge, Edge] = {}
        self._joins: list[list[Edge]] = []
        for node in reversed(graph.nodes):
            if node.op == "call_function":
                self._visit(node)

    @property
    def edges(self) -> list[Edge]:
        """The edges in the graph's order of readers."""
        return sorted(self._edges, key=lambda edge: (self._order[edge[1]], self._order[edge[0]]))

    @property
    def shared(self) -> list[list[Edge]]:
        """Groups of edges whose scale has to be one and the same, each in the order of `edges`."""
        groups: list[set[Edge]] = []
        for join in self._joins:
            group = {self._resolved(edge) for edge in join}
            apart = [each for each in groups if not each & group]
            groups = [*apart, group.union(*(each for each in groups if each & group))]
        return [[edge for edge in self.edges if edge in group] for group in groups]

    def _visit(self, node: Node) -> None:
        if _moves(node) and self._all_read([node]):
            self._lift([node], above=node)
        elif node.target in operators.SPLITS and self._all_read(list(node.users)):
            self._lift(list(node.users), above=node)
        elif node.target in operators.JOINS and self._all_read([node]) and not _has_constants(node):
            self._lift([node], above=node)
            self._joins.append([(tensor, node) for tensor in operators.tensors(node)])
        elif node.target in operators.AVERAGES and self._some_read([node]):
            self._edges.add((operators.tensors(node)[0], node))
        elif node.target in operators.ELEMENTWISE and self._some_read(_finished(node)):
            self._edges.update(_operands(node))

    def _all_read(self, nodes: Sequence[Node]) -> bool:
        read = [(node, user) in self._edges for node in nodes for user in node.users]
        return bool(read) and all(read)

    def _some_read(self, nodes: Sequence[Node]) -> bool:
        return any((node, user) in self._edges for node in nodes for user in node.users)

    def _lift(self, nodes: Sequence[Node], *, above: Node) -> None:
        below = [(node, user) for node in nodes for user in node.users]
        self._edges.difference_update(below)
        self._edges.update((tensor, above) for tensor in operators.tensors(above))
        self._lifted.update(dict.fromkeys(below, (operators.tensors(above)[0], above)))

    def _resolved(self, edge: Edge) -> Edge:
        while edge in self._lifted:
            edge = self._lifted[edge]
        return edge


def can_be_observed(tensor: Node, reader: Node) -> bool:
    """Whether an observer can stand between the two: a float32 tensor, given by position."""
    value = tensor.meta.get("val")
    by_keyword = any(isinstance(each, Node) for each in reader.kwargs.values())
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32 and not by_keyword


def _moves(node: Node) -> bool:
    if node.target in operators.PADS and node.args[3:4] not in ((), (None,), (0,)):
        return False  # it adds values of its own
    return node.target in operators.MOVES and can_be_observed(operators.tensors(node)[0], node)


def _has_constants(node: Node) -> bool:
    return any(operators.is_constant(each) for each in operators.tensors(node))


def _finished(node: Node) -> list[Node]:
    """Return a sum, or what an activation function makes of it: engines fuse the two."""
    readers = list(node.users)
    return readers if len(readers) == 1 and readers[0].target in operators.ACTIVATIONS else [node]


def _operands(node: Node) -> set[Edge]:
    tensors = operators.tensors(node)
    if _has_constants(node) or not all(can_be_observed(tensor, node) for tensor in tensors):
        return set()
    return {(tensor, node) for tensor in tensors} if len(tensors) > 1 else set()
