"""What is done to every float32 graph before a toolchain gets it. Its answers stay what they were."""

import onnx

from app.domain.recipes import Cast, Single, StaticQuantization
from workers import graphs
from workers.toolchains import graph as onnx_graph
from workers.toolchains.batch_norm import fold_batch_norms
from workers.toolchains.equalization import equalize
from workers.toolchains.folding import fold
from workers.toolchains.shared_weights import part_by_axis, part_from_inner_graphs


def prepare(graph: onnx.ModelProto, recipe: Single) -> onnx.ModelProto:
    """Return the graph as toolchains take it: what is constant computed, and what the recipe asks for done.

    A node that the recipe names stays, whatever could be done without it.

    Raises:
        ToolchainFailed: the recipe names a node that the graph has not.
    """
    named = {field: getattr(recipe, field, ()) for field in ("float_layers", "int8_layers")}
    before = [node.name for node in graphs.nodes_of(graph.graph)]
    keep = frozenset(name for names in named.values() for name in names)
    fold(graph, keep=keep)
    for field, names in named.items():
        onnx_graph.check_layers(names, (*before, *(node.name for node in graphs.nodes_of(graph.graph))), field=field)
    if not isinstance(recipe, Cast):
        part_by_axis(graph.graph)
    if not isinstance(recipe, StaticQuantization):
        return graph
    part_from_inner_graphs(graph.graph)
    if recipe.fold_batch_norm:
        fold_batch_norms(graph.graph, keep=keep)
    if recipe.channel_equalization:
        equalize(graph.graph)
    return graph
