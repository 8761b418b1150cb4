"""Who reads what an activation quantizer gives, past what only moves values; and which quantizers must agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from workers.toolchains.octet.rounding.layers import OPERATORS
from workers.toolchains.octet.rounding.levels import Levels
from workers.toolchains.octet.rounding.wiring import Wiring

_CONCAT = "Concat"
_MOVING = frozenset(
    {
        *(_CONCAT, "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """
    Attributes:
        names: of the nodes that compute with a quantizer's values.
        layers: those of them that multiply: convolutions and matrix products.
        concats: names of the Concats that its values go through.
    """

    names: frozenset[str]
    layers: frozenset[str]
    concats: frozenset[str]


def readers_of(levels: Levels, wiring: Wiring) -> Readers:
    """Return who reads a quantizer's values, directly or past nodes that only move them."""
    nodes = _reached([str(node.output[0]) for node in levels.dequantizes], wiring)
    read = [node for node in nodes if node.op_type not in _MOVING]
    return Readers(
        names=frozenset(str(node.name) for node in read),
        layers=frozenset(str(node.name) for node in read if node.op_type in OPERATORS),
        concats=frozenset(str(node.name) for node in nodes if node.op_type == _CONCAT),
    )


def met(found: Mapping[str, Levels], readers: Mapping[str, Readers]) -> list[list[str]]:
    """Group quantizers that share a stored scale, or have equal ones and meet in a Concat; others are alone."""
    groups: list[list[str]] = []
    for name in found:
        joined = [group for group in groups if any(_agree(found, readers, name, other) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([*(each for group in joined for each in group), name])
    return groups


def _agree(found: Mapping[str, Levels], readers: Mapping[str, Readers], one: str, other: str) -> bool:
    first, second = found[one], found[other]
    if first.quantize.input[1] == second.quantize.input[1]:
        return True
    equal = np.array_equal(first.scale, second.scale) and np.array_equal(first.zero_point, second.zero_point)
    return equal and bool(readers[one].concats & readers[other].concats)


def _reached(names: Sequence[str], wiring: Wiring) -> list[onnx.NodeProto]:
    waiting, seen, found = list(names), set(names), dict[int, onnx.NodeProto]()
    while waiting:
        for place in wiring.takers.get(waiting.pop(), []):
            node = wiring.nodes[place]
            found[place] = node
            fresh = [name for name in node.output if name and name not in seen] if node.op_type in _MOVING else []
            waiting += fresh
            seen.update(fresh)
    return list(found.values())
