"""Turns a program that was exported in training mode into what `module.eval()` would have exported.

torchao's `move_exported_model_to_eval` is for graphs it prepared itself: it gives every batch normalization the default
epsilon, and overlooks those without scale and shift, decomposed programs, and attention's own dropout.
"""

from collections.abc import Mapping
from operator import getitem
from typing import Any

import torch
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, GraphModule, Node

from app.domain.errors import UploadRefused

_aten = torch.ops.aten
_DROPOUTS = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout")
_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
_ATTENTION = (
    "aten.scaled_dot_product_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
)
# Arguments by their names in the operator's schema, and what they are in evaluation mode.
_SWITCHES: dict[str, dict[str, object]] = {
    "aten.batch_norm": {"training": False},
    "aten.instance_norm": {"use_input_stats": False},
    **{name: {"train": False, "dropout": 0.0} for name in _RECURRENT},
    **{name: {"dropout_p": 0.0} for name in _ATTENTION},
}
_NORMS = ("aten.batch_norm", "aten.instance_norm")
_DECOMPOSED_NORMS = (
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_functional",
    "aten.native_batch_norm",
    "aten._batch_norm_with_update",
    "aten._batch_norm_with_update_functional",
)
_EVALUATED_NORM = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
_LEAKY = ("aten.rrelu", "aten.rrelu_with_noise", "aten.rrelu_with_noise_functional")
_NOISE = ("aten.bernoulli",)
_WHAT_TO_DO = "call module.eval() before torch.export.export."


def take(program: torch.export.ExportedProgram) -> bool:
    """Put a program into evaluation mode, in place; say whether it was in training mode.

    Dropout and stochastic depth pass on what they get, normalizations use their running statistics, and what a run
    would write into buffers is forgotten. One without running statistics stays: `eval()` does not change it either.

    Raises:
        UploadRefused: the answer needs what the run writes, or random numbers that are no dropout.
    """
    modules = [each for each in program.graph_module.modules() if isinstance(each, GraphModule)]
    graphs, signature = [each.graph for each in modules], program.graph_signature
    turned = [_turn(graph, node) for graph in graphs for node in list(graph.nodes)]
    writes = bool(signature.buffers_to_mutate) or any(_written(graph, signature.inputs_to_buffers) for graph in graphs)
    noisy = any(_name(node) in _NOISE for graph in graphs for node in graph.nodes)
    if not any(turned) and not writes and not noisy:
        return False
    _forget_writes(program, graphs)
    for graph in graphs:
        _clear(graph)
        _refuse_random(graph)
    for each in modules:
        each.recompile()
    return True


def _forget_writes(program: torch.export.ExportedProgram, graphs: list[Graph]) -> None:
    buffers = program.graph_signature.inputs_to_buffers
    for graph in graphs:
        _clear(graph)
    _forget_recorded_writes(program)
    for graph in graphs:
        others = [_all_reads(each, buffers) for each in graphs if each is not graph]
        _forget_writes_in_place(graph, buffers, elsewhere=set().union(*others))


def _turn(graph: Graph, node: Node) -> bool:
    """Turn one operator, if it has a training mode and is in it."""
    name = _name(node)
    if name in _SWITCHES:
        return _switch(node, name)
    if name in _DROPOUTS:
        return bool(_argument(node, "train")) and _pass_on(node, _tensor(node, 0))
    if name == "aten.native_dropout":
        return _argument(node, "train") is not False and _pass_on_first(node, _tensor(node, 0))
    if name in _DECOMPOSED_NORMS:
        return _turn_decomposed(node)
    if name in _LEAKY:
        return bool(_argument(node, "training")) and _take_mean_slope(graph, node)
    return name in _NOISE and _keep_every_row(node)


def _switch(node: Node, name: str) -> bool:
    if name in _NORMS and _argument(node, "running_mean") is None:
        return False
    changed = False
    for place, argument in enumerate(_schema(node).arguments):
        wanted = _SWITCHES[name].get(argument.name)
        if wanted is not None and place < len(node.args) and node.args[place] != wanted:
            node.update_arg(place, wanted)  # type: ignore[arg-type] # as the schema wants
            changed = True
        elif wanted is not None and node.kwargs.get(argument.name, wanted) != wanted:
            node.update_kwarg(argument.name, wanted)  # type: ignore[arg-type]
            changed = True
    return changed


def _turn_decomposed(node: Node) -> bool:
    if _argument(node, "running_mean") is None or _argument(node, "training") is False:
        return False
    node.args = tuple(_argument(node, each) for each in _EVALUATED_NORM)
    node.kwargs = {}
    node.target = _aten._native_batch_norm_legit_no_training.default
    return True


def _pass_on(node: Node, by: Node) -> bool:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)  # one that works in place is never taken for unused
    return True


def _pass_on_first(node: Node, by: Node) -> bool:
    for user in list(node.users):
        if user.target is getitem and user.args[1] == 0:
            user.replace_all_uses_with(by)
    return True


def _take_mean_slope(graph: Graph, node: Node) -> bool:
    """Write a leaky ReLU of random slope as one of the mean slope (Xu et al. 2015, arXiv:1505.00853)."""
    slope = (_argument(node, "lower") + _argument(node, "upper")) / 2
    with graph.inserting_before(node):
        leaky = graph.call_function(_aten.leaky_relu.default, (_tensor(node, 0), slope))
    leaky.meta["val"] = _tensor(node, 0).meta["val"]
    single = len(_schema(node).returns) == 1
    return _pass_on(node, leaky) if single else _pass_on_first(node, leaky)


def _keep_every_row(noise: Node) -> bool:
    """Take out noise of 0 and 1 over its own mean that something is multiplied with: all ones, once it is evaluated."""
    share, quotients = _argument(noise, "p"), list(noise.users)
    divided = [each for each in quotients if _name(each) == "aten.div" and each.args == (noise, share)]
    products = [each for quotient in divided for each in quotient.users]
    if not quotients or len(divided) != len(quotients) or not all(_is_product(each) for each in products):
        return False
    for product in products:
        _pass_on(product, next(each for each in product.all_input_nodes if each not in divided))
    for each in (*divided, noise):
        each.graph.erase_node(each)
    return True


def _is_product(node: Node) -> bool:
    """Whether it is a product of two tensors, one of which has all of its shape."""
    if _name(node) != "aten.mul" or len(node.all_input_nodes) != 2:  # noqa: PLR2004
        return False
    shapes = [str(each.meta["val"].shape) for each in (node, *node.all_input_nodes)]
    return shapes[0] in shapes[1:]


def _forget_recorded_writes(program: torch.export.ExportedProgram) -> None:
    """Drop the outputs that a decomposed program writes into its buffers."""
    signature, output = program.graph_signature, program.graph.output_node()
    written, specs, values = {}, [], []
    for spec, value in zip(signature.output_specs, output.args[0], strict=True):
        if spec.kind is OutputKind.BUFFER_MUTATION:
            written[value] = spec.target
        else:
            specs.append(spec)
            values.append(value)
    output.args = (tuple(values),)
    signature.output_specs[:] = specs
    _clear(program.graph)
    for node in program.graph.nodes:
        if node in written and node.op != "placeholder":
            raise _needs_state(str(written[node]))


def _forget_writes_in_place(graph: Graph, buffers: Mapping[str, str], *, elsewhere: set[str]) -> None:
    """Erase every operator that writes into a buffer that nothing reads afterwards.

    Args:
        elsewhere: buffers that other graphs of the program read.
    """
    origins = _origins(graph, buffers)
    read = set(elsewhere)
    for node in reversed(list(graph.nodes)):
        if node in origins and _writes(node):
            if origins[node] in read or node.users:
                raise _needs_state(origins[node])
            graph.erase_node(node)
        elif node.users or node.op == "output" or _writes(node):
            read |= _reads(node, origins)


def _origins(graph: Graph, buffers: Mapping[str, str]) -> dict[Node, str]:
    """Return, for every node that gives a buffer or a view of one, that buffer's name."""
    found: dict[Node, str] = {}
    for node in graph.nodes:
        source = _source(node)
        if node.op == "placeholder" and node.name in buffers:
            found[node] = buffers[node.name]
        elif source in found:
            found[node] = found[source]
    return found


def _reads(node: Node, origins: Mapping[Node, str]) -> set[str]:
    """Return the buffers whose values a node needs: a view needs none, and a region's own graph says what it needs."""
    if _source(node) in origins or not (_is_operator(node) or node.target is getitem or node.op == "output"):
        return set()
    return {origins[each] for each in node.all_input_nodes if each in origins}


def _all_reads(graph: Graph, buffers: Mapping[str, str]) -> set[str]:
    origins = _origins(graph, buffers)
    return {name for node in graph.nodes for name in _reads(node, origins)}


def _written(graph: Graph, buffers: Mapping[str, str]) -> bool:
    return any(_writes(node) for node in _origins(graph, buffers))


def _needs_state(name: str) -> UploadRefused:
    return UploadRefused(
        f"The .pt2's answer needs what a run writes into {name!r}, and nothing is kept from run to run: {_WHAT_TO_DO}"
    )


def _refuse_random(graph: Graph) -> None:
    for node in graph.nodes:
        known = _name(node) in _SWITCHES or _name(node) in (*_DROPOUTS, "aten.native_dropout")
        if _is_random(node) and not known:
            raise UploadRefused(
                f"The .pt2 was exported in training mode, and draws random numbers ({_name(node)}): {_WHAT_TO_DO}"
            )


def _clear(graph: Graph) -> None:
    """Erase what nothing reads; random numbers too, which the library takes for an effect."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure() and (_writes(node) or not _is_random(node)))


def _is_random(node: Node) -> bool:
    return _is_operator(node) and torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]


def _writes(node: Node) -> bool:
    return _is_operator(node) and _schema(node).is_mutable and _name(node) != "aten.detach"


def _source(node: Node) -> Node | None:
    """Return what a node gives again: the tensor it views, or writes to."""
    if not _is_operator(node):
        return None
    for place, argument in enumerate(_schema(node).arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and isinstance(given, Node):
            return given
    return None


def _is_operator(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _name(node: Node) -> str:
    """Return the operator's name without its overload; in place or not is the same."""
    return str(node.target.overloadpacket).rstrip("_") if isinstance(node.target, torch._ops.OpOverload) else ""


def _schema(node: Node) -> Any:  # noqa: ANN401 - torch gives it no type
    return node.target._schema  # type: ignore[union-attr] # `_name` has seen that it is an operator


def _argument(node: Node, name: str) -> Any:  # noqa: ANN401 - what the schema says
    """Return an argument by its name in the schema, or its default; None if there is none of that name."""
    for place, argument in enumerate(_schema(node).arguments):
        if argument.name == name:
            given = node.args[place] if place < len(node.args) else argument.default_value
            return node.kwargs.get(name, given)
    return None


def _tensor(node: Node, place: int) -> Node:
    found = node.args[place]
    assert isinstance(found, Node)  # noqa: S101 - for the type checker: the schema wants a tensor
    return found
