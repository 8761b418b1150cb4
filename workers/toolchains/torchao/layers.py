"""Which layer of the uploaded program is which node of the float32 graph: counted, their weights compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import onnx
import torch
from torch.fx import Graph, Node

from app.domain.errors import ToolchainFailed
from workers.toolchains.torchao import operators

_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Shape = tuple[int, ...]
AnyNode = TypeVar("AnyNode", onnx.NodeProto, Node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(Generic[AnyNode]):
    """A convolution or matrix product with constant weights, or an embedding.

    Attributes:
        shape: of its weight, ascending and without ones, since exporters transpose and unsqueeze; None if not known.
    """

    node: AnyNode
    shape: Shape | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers(Generic[AnyNode]):
    """A program's or a graph's layers of both kinds, in its own order."""

    computing: list[Layer[AnyNode]]
    embeddings: list[Layer[AnyNode]]


def of_program(graph: Graph) -> Layers[Node]:
    """Return the layers of an ATen program."""
    return Layers(
        computing=[_of_program(*found) for found in operators.weighted_layers(graph)],
        embeddings=[_of_program(*found) for found in operators.tables(graph)],
    )


def of_onnx(graph: onnx.GraphProto) -> Layers[onnx.NodeProto]:
    """Return the layers of an ONNX graph."""
    constants = _constants(graph)
    return Layers(
        computing=[
            Layer(node=node, shape=shapes[0])
            for node in graph.node
            if node.op_type in _COMPUTE
            and len(shapes := [constants[name] for name in node.input[:2] if name in constants]) == 1
        ],
        embeddings=[
            Layer(node=node, shape=shape)
            for node in graph.node
            if node.op_type == "Gather" and node.input[1] not in constants and (shape := constants.get(node.input[0]))
        ],
    )


def in_float(names: tuple[str, ...], graph: onnx.GraphProto, program: Graph) -> tuple[frozenset[Node], list[str]]:
    """Find the layers to leave in float in the program, by the names of the graph's nodes.

    Returns:
        The program's layers, and the names of nodes that are no layer with weights.

    Raises:
        ToolchainFailed: the program's layers are not those of the graph.
    """
    if not names:
        return frozenset(), []
    there, here = of_onnx(graph), of_program(program)
    pairs = [*_paired(names, there.computing, here.computing), *_paired(names, there.embeddings, here.embeddings)]
    found = {name for name, _ in pairs}
    return frozenset(node for _, node in pairs), [name for name in names if name not in found]


def _paired(
    names: tuple[str, ...], there: list[Layer[onnx.NodeProto]], here: list[Layer[Node]]
) -> list[tuple[str, Node]]:
    if not any(layer.node.name in names for layer in there):
        return []
    if not match(there, here):
        raise ToolchainFailed(
            "The layers of the .pt2 are not those of its float32 graph one by one, so float_layers cannot name them: "
            "leave float_layers out, or set toolchain to nncf."
        )
    return [(a.node.name, b.node) for a, b in zip(there, here, strict=True) if a.node.name in names]


def match(these: Sequence[Layer[Any]], those: Sequence[Layer[Any]]) -> bool:
    """Whether two lists name the same layers: as many, with weights of the same shapes."""
    return len(these) == len(those) and all(
        a.shape is None or b.shape is None or a.shape == b.shape for a, b in zip(these, those, strict=True)
    )


def rename(made: onnx.GraphProto, float32: onnx.GraphProto) -> bool:
    """Call the layers of the made graph as those of the float32 graph; return False if they are not the same layers."""
    new, old = of_onnx(made), of_onnx(float32)
    kinds = [(new.computing, old.computing), (new.embeddings, old.embeddings)]
    pairs = [pair for these, those in kinds if match(these, those) for pair in zip(these, those, strict=True)]
    taken = {layer.node.name for _, layer in pairs}
    for node in made.node:
        while node.name in taken:
            node.name += "_"
    for layer, named in pairs:
        layer.node.name = named.node.name
    return match(new.computing, old.computing)


def _constants(graph: onnx.GraphProto) -> Mapping[str, Shape | None]:
    """Return what is made of weights alone, with the shape of the first weight in it."""
    found: dict[str, Shape | None] = {tensor.name: _plain(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((name, None) for name in node.output)
        elif node.input and all(name in found for name in node.input if name):
            found.update((name, found[node.input[0]]) for name in node.output)
    return found


def _of_program(node: Node, weight: Node) -> Layer[Node]:
    return Layer(node=node, shape=_plain(operators.shape_of(weight)))


def _plain(sizes: Iterable[int | torch.SymInt]) -> Shape:
    return tuple(sorted(size for size in sizes if isinstance(size, int) and size != 1))
