"""Blocks of a graph: what lies between two places where one tensor carries all that layers have computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.toolchains.octet.rounding.activations import ELEMENTWISE
from workers.toolchains.octet.rounding.layers import Layer
from workers.toolchains.octet.rounding.wiring import Wiring


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Nodes of the quantized graph from place `start` up to but not including `end`.

    Attributes:
        output: the tensor that alone leads on from it; None for what follows the last such place.
    """

    start: int
    end: int
    layers: tuple[Layer, ...]
    output: str | None


def blocks_of(layers: Sequence[Layer], wiring: Wiring, known: Wiring) -> list[Block]:
    """Cut the graph wherever it can be cut, with at least one layer between two cuts.

    A residual block falls out as one, for its shortcut lives beside its layers. A cut lies on a tensor that the float
    graph has too. Tensors that no layer has worked on, such as a mask, may live beside it.
    """
    cuts = _cuts(layers, wiring, known)
    places = [wiring.places[layer.name] for layer in layers]
    blocks: list[Block] = []
    start, first = 0, 0
    for number, place in enumerate(places):
        following = places[number + 1] if number + 1 < len(places) else len(wiring.nodes)
        between = [cut for cut in cuts if place <= cut < following]
        if between:
            end = _past_activations(between, wiring)
            output = str(wiring.nodes[end].output[0])
            blocks.append(Block(start=start, end=end + 1, layers=tuple(layers[first : number + 1]), output=output))
            start, first = end + 1, number + 1
    if first < len(layers):
        blocks.append(Block(start=start, end=len(wiring.nodes), layers=tuple(layers[first:]), output=None))
    return blocks


def _past_activations(cuts: Sequence[int], wiring: Wiring) -> int:
    """Return the first cut, or the one behind the activation function that follows it."""
    chosen = cuts[0]
    for cut in cuts[1:]:
        if wiring.nodes[cut].op_type not in ELEMENTWISE:
            break
        chosen = cut
    return chosen


def _cuts(layers: Sequence[Layer], wiring: Wiring, known: Wiring) -> list[int]:
    """Return the places whose node makes the one tensor, of those that layers have worked on, that is used later."""
    worked = _worked_on(layers, wiring)
    live: dict[str, int] = {}
    cuts = []
    for place, node in enumerate(wiring.nodes):
        live.update((name, wiring.last_use(name)) for name in node.output if name in worked)
        live = {name: last for name, last in live.items() if last > place}
        if list(live) == [node.output[0]] and _in_both(place, wiring, known):
            cuts.append(place)
    return cuts


def _worked_on(layers: Sequence[Layer], wiring: Wiring) -> set[str]:
    names = {layer.name for layer in layers}
    worked: set[str] = set()
    for node in wiring.nodes:
        if node.name in names or wiring.moving(node) & worked:
            worked.update(name for name in node.output if name)
    return worked


def _in_both(place: int, wiring: Wiring, known: Wiring) -> bool:
    node = wiring.nodes[place]
    return node.name in known.places and known.nodes[known.places[node.name]].op_type == node.op_type
