"""Whether a graph takes inputs of a shape, asked before OpenVINO runs it.

A signature may leave a size free that the graph does not: `x[n, m]` times weights `[300, 4]`. OpenVINO 2026.4.1 does
not look, and reads on behind an input that is too short, which may hold another request's numbers.
"""

import threading
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import openvino as ov

from app.domain.tensors import Signature

_PROBES = (64, 96)
_MOST_REMEMBERED = 4096

_Sizes = tuple[tuple[str, tuple[int, ...]], ...]


class ShapeCheck:
    """Asks the graph's own shape inference about every new combination of sizes.

    Args:
        model: as it is compiled; kept, with its weights, for as long as this is.
    """

    def __init__(self, model: ov.Model, axes: Mapping[str, int | None]) -> None:
        self._model = model.clone()
        self._axes = axes
        self._known: set[_Sizes] = set()
        self._asking = threading.Lock()

    def check(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Check inputs of any number of rows.

        Raises:
            RuntimeError: the graph cannot take arrays of these shapes.
        """
        sizes = tuple((name, self._row_shape(name, array.shape)) for name, array in sorted(inputs.items()))
        if sizes in self._known:
            return
        with self._asking:
            self._model.reshape(
                {name: ov.PartialShape(self._free(name, array.shape)) for name, array in inputs.items()}
            )
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known.add(sizes)

    def _row_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self._axes[name]
        return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])

    def _free(self, name: str, shape: tuple[int, ...]) -> list[int]:
        return [-1 if axis == self._axes[name] else size for axis, size in enumerate(shape)]


def shape_check(model: ov.Model, signature: Signature, *, pixels: bool) -> ShapeCheck | None:
    """Return what must be asked before a run; None where every size that the signature leaves free is so in the graph.

    That is tried with two sizes. A graph that takes neither is asked about each new shape, which costs the memory
    of its weights once more.
    """
    axes = {spec.name: 0 if pixels else spec.batch_axis for spec in signature.inputs}
    if not any(size is None for spec in signature.inputs for size in spec.row_shape):
        return None
    probe = model.clone()
    try:
        for size in _PROBES:
            probe.reshape({name: _probed(model.input(name), axis, size) for name, axis in axes.items()})
    except RuntimeError:
        return ShapeCheck(model, axes)
    return None


def _probed(port: ov.Output, axis: int | None, size: int) -> ov.PartialShape:
    """Return the input's shape with every free size but the rows' set to `size`."""
    sizes = enumerate(port.partial_shape)
    return ov.PartialShape([-1 if at == axis else size if one.is_dynamic else one.get_length() for at, one in sizes])
