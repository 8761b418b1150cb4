"""`If` nodes whose condition is constant: the branch that runs takes the node's place."""

import onnx
from onnx import helper, numpy_helper

from workers import graphs
from workers.toolchains import graph as onnx_graph


def inline_constant_branches(graph: onnx.GraphProto, *, keep: frozenset[str]) -> bool:
    """Put the branches that always run in the place of their `If`; return whether there was any."""
    known = onnx_graph.constants(graph)
    nodes: list[onnx.NodeProto] = []
    inlined = False
    for node in graph.node:
        if node.op_type == "If" and node.name not in keep and node.input[0] in known:
            taken = bool(numpy_helper.to_array(known[node.input[0]]).reshape(-1)[0])
            nodes.extend(_inlined(graph, node, branch="then_branch" if taken else "else_branch"))
            inlined = True
        else:
            nodes.append(node)
    if inlined:
        onnx_graph.keep_nodes(graph, nodes)
        graphs.name_nodes(graph)
    return inlined


def _inlined(graph: onnx.GraphProto, node: onnx.NodeProto, *, branch: str) -> list[onnx.NodeProto]:
    """Return the branch's nodes, and one `Identity` for each output; its weights become the graph's."""
    inner = onnx.GraphProto()
    inner.CopyFrom(next(attribute.g for attribute in node.attribute if attribute.name == branch))
    own = [tensor.name for tensor in inner.initializer]
    own += [name for each in inner.node for name in each.output if name]
    renamed = {name: onnx_graph.free_name(graph, f"{node.name}_{name}") for name in own}
    _rename(inner, renamed)
    graph.initializer.extend(inner.initializer)
    for each in inner.node:
        each.name = f"{node.name}_{each.name or each.op_type}"
    results = [
        helper.make_node("Identity", [renamed.get(value.name, value.name)], [name], name=f"{node.name}_{name}")
        for value, name in zip(inner.output, node.output, strict=True)
        if name
    ]
    return [*inner.node, *results]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give the tensors of a graph other names, wherever in it they are read."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for node in graphs.nodes_of(graph):
        node.input[:] = [names.get(name, name) for name in node.input]
    for each in graphs.graphs_of(graph):
        if each is not graph:
            for value in each.output:
                value.name = names.get(value.name, value.name)
