"""Quantizers that OpenVINO cuts but does not round at: found by asking it.

Where a layer's output is quantized only to be added to something, OpenVINO 2026.4 adds inside the layer's kernel,
before anything is rounded; what is left of the quantizer is that values beyond its range are cut. Trained as if it
rounded, a module would be tuned to an error that it never meets: on ResNet-20 a row in 75 was answered otherwise.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from workers.toolchains.octet.rounding.layers import OPERATORS
from workers.toolchains.octet.rounding.levels import Levels, levels_of
from workers.toolchains.octet.rounding.wiring import Wiring
from workers.training.checking import noise_and_energy


def unrounded(
    wiring: Wiring, answer: Callable[[frozenset[str]], NDArray[np.float32]], engine: NDArray[np.float32]
) -> frozenset[str]:
    """Return the quantizers, by their outputs, that are best taken as not rounding.

    Args:
        answer: what torch answers to some rows with some quantizers not rounding.
        engine: what the engine answers to them.
    """
    best, least = frozenset[str](), np.inf
    for candidate in _candidates(wiring):
        noise, _ = noise_and_energy(answer(candidate), engine)
        if noise < least:
            best, least = candidate, noise
    return best


def _candidates(wiring: Wiring) -> Iterator[frozenset[str]]:
    """Yield none, then all that may be added in a kernel; of two that meet, a kernel takes in the one or the other."""
    by_sum: dict[str, list[str]] = {}
    for levels in levels_of(wiring).values():
        place = _sum_after(levels, wiring)
        if place is not None:
            by_sum.setdefault(place, []).append(levels.output)
    yield frozenset()
    firsts, lasts = (frozenset(each[at] for each in by_sum.values()) for at in (0, -1))
    yield from dict.fromkeys(each for each in (firsts, lasts) if each)


def _sum_after(levels: Levels, wiring: Wiring) -> str | None:
    """Return the Add that alone reads a quantizer, itself the only reader of a layer; None for any other quantizer."""
    layer, readers = wiring.maker(levels.source), levels.dequantizes
    if layer is None or layer.op_type not in OPERATORS or wiring.only_taker(levels.source) is None or len(readers) != 1:
        return None
    reader = wiring.only_taker(readers[0].output[0])
    return str(reader.output[0]) if reader is not None and reader.op_type == "Add" else None
