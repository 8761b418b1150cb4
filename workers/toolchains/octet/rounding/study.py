"""What learning a graph's rounding works on: both graphs, the layers, and the rows that pass through them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from app.domain.errors import ToolchainFailed
from workers.data.batches import batches
from workers.stage_records.common import Progress, RowSource
from workers.stage_records.making import TransformSpec
from workers.toolchains.octet.rounding.layers import Floats, Grid, Layer, Source, read_grid
from workers.toolchains.octet.rounding.narrow import Bounds
from workers.toolchains.octet.rounding.playback import Arrays, Playback, constant
from workers.toolchains.octet.rounding.samples import Shape
from workers.toolchains.octet.rounding.wiring import Wiring

BATCH = 8
"""Rows that pass through a graph together, and that one step of block reconstruction sees."""

LARGE_BATCH_BYTES = 2**20
"""Of inputs; rows that are larger together go fewer at a time."""

MOST_WRITTEN_BYTES = 4 * 2**30
"""Of activations kept in files while learning, over the whole graph; rows are left out to keep to it."""

_LAYERS_APART = 4
"""After so many layers activations are kept even where several tensors live at once: or all would be run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """
    Attributes:
        model, wiring: the quantized graph, whose integers change while it is learned.
        original, known: the float graph.
        layers: in the order they run in.
        sources: by layer, the weight before rounding.
        bounds: by layer, the least and the largest integer of its grid, where that is narrower than its type.
    """

    model: onnx.ModelProto
    wiring: Wiring
    original: onnx.ModelProto
    known: Wiring
    layers: tuple[Layer, ...]
    sources: Mapping[str, Source]
    bounds: Mapping[str, Bounds]
    spec: TransformSpec
    scratch: Path
    folder: Path
    seed: int
    progress: Progress

    def weight(self, layer: Layer) -> Floats:
        """Return a layer's weight before rounding."""
        return self.sources[layer.name].weight(layer, original=self.original, known=self.known)

    def grid(self, layer: Layer) -> Grid:
        """Return the grid that a layer's integers may be on, whichever of them are in use."""
        grid = read_grid(layer, self.wiring)
        qmin, qmax = self.bounds.get(layer.name, (grid.qmin, grid.qmax))
        return replace(grid, qmin=qmin, qmax=qmax)

    def place(self, layer: Layer) -> int:
        return self.wiring.places[layer.name]

    def float_place(self, layer: Layer) -> int:
        return self.known.places[layer.name]

    def float_output(self, layer: Layer) -> str:
        return str(self.known.nodes[self.float_place(layer)].output[0])

    def bias(self, layer: Layer, *, shape: Shape) -> Floats:
        """Return [groups, outputs]: what the quantized layer adds to its product."""
        groups, outputs, _ = shape
        name = str(layer.node.input[2]) if len(layer.node.input) > 2 else ""  # noqa: PLR2004 - input, weight, bias
        if name not in self.wiring.constants:
            return np.zeros((groups, outputs), np.float32)
        beta = next((each.f for each in layer.node.attribute if each.name == "beta"), 1.0)
        value = constant(self.model, self.wiring, name).astype(np.float32).reshape(-1) * np.float32(beta)
        return np.broadcast_to(value, (groups * outputs,)).reshape(groups, outputs).copy()

    def play_quantized(self, rows: RowSource) -> Playback:
        return Playback(self.model, folder=self.folder / "quantized", rows=self._rows(rows))

    def play_original(self, rows: RowSource) -> Playback:
        return Playback(self.original, folder=self.folder / "float", rows=self._rows(rows))

    def rows(self) -> RowSource:
        """Return the rows to learn from: all of the recipe's, or as many as may be kept in files.

        Raises:
            ToolchainFailed: there are none.
        """
        source = self.spec.calibration
        if source is None or not source.rows:
            raise ToolchainFailed("Learned rounding needs calibration rows: name a calibration dataset.")
        most = max(BATCH, MOST_WRITTEN_BYTES // max(1, self._bytes_per_row(source)))
        stride = -(-len(source.rows) // most)
        return replace(source, rows=source.rows[::stride])

    def milestones(self) -> set[str]:
        """Return the layers before which activations are kept: where one tensor lives, and every few layers."""
        found, since = set[str](), 0
        empty = Playback(self.model, folder=self.folder / "empty", rows=iter(()))
        for layer in self.layers:
            if since == 0 or since >= _LAYERS_APART or len(empty.live(self.place(layer))) == 1:
                found.add(layer.name)
                since = 0
            since += 1
        (self.folder / "empty").rmdir()
        return found

    def _bytes_per_row(self, source: RowSource) -> int:
        one = replace(source, rows=source.rows[:1])
        total, kept = 0, self.milestones()
        for name, model in (("quantized", self.model), ("float", self.original)):
            trial = Playback(model, folder=self.folder / f"trial-{name}", rows=self._rows(one))
            for layer in self.layers:
                if layer.name in kept:
                    trial.advance(trial.wiring.places[layer.name])
            total += trial.written_bytes
            trial.close()
        return total

    def _rows(self, source: RowSource) -> Iterator[Arrays]:
        return batched(source, self.spec, scratch=self.scratch)


def batched(source: RowSource, spec: TransformSpec, *, scratch: Path) -> Iterator[Arrays]:
    """Yield a graph's inputs, as many rows at a time as `BATCH` and `LARGE_BATCH_BYTES` allow."""
    one = replace(source, rows=source.rows[:1])
    first = next(iter(batches(one, spec.signature, scratch=scratch, size=1)))
    row_bytes = sum(array.nbytes for array in first.inputs.values())
    together = min(BATCH, max(1, LARGE_BATCH_BYTES // max(1, row_bytes)))
    for batch in batches(source, spec.signature, scratch=scratch, size=together):
        yield batch.inputs


def until_read(places: Sequence[int]) -> list[int]:
    """Return, place by place, how far a graph has run when it is that place's turn: never back."""
    return list(np.maximum.accumulate(places)) if places else []
