"""Runs a graph piece by piece on the calibration rows: what lives between two pieces is kept in files, not in memory.

Every node runs about once per row, and memory holds one batch and the weights of one piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from app.domain.errors import ToolchainFailed
from workers.toolchains.finish import ONNXRUNTIME_ERRORS
from workers.toolchains.octet.rounding.threads import session_options
from workers.toolchains.octet.rounding.wiring import Wiring, used_by

Arrays = dict[str, NDArray[Any]]


class Playback:
    """One graph on the same rows, from its inputs towards its outputs.

    Attributes:
        place: nodes before it have run; their tensors that are used later lie in files.
        written_bytes: of all files so far.
    """

    def __init__(self, model: onnx.ModelProto, *, folder: Path, rows: Iterator[Arrays]) -> None:
        self.model = model
        self.wiring = Wiring(model.graph)
        self.place = 0
        self.written_bytes = 0
        self._folder = folder
        self._kept_until: dict[str, int] = {}
        self._names = sorted(self.wiring.inputs - set(self.wiring.initializers))
        folder.mkdir(parents=True)
        self.batches = 0
        for batch in rows:
            self._write(self.batches, {name: batch[name] for name in self._names})
            self.batches += 1

    def keep(self, name: str, *, until: int) -> None:
        """Keep a tensor in reach until the nodes before `until` have run, even if no node takes it."""
        self._kept_until[name] = max(until, self._kept_until.get(name, 0))

    def values(self, wanted: Sequence[str], *, place: int) -> Iterator[Arrays]:
        """Yield the wanted tensors batch by batch, once the nodes before `place` have run. Writes nothing."""
        piece = self._piece(wanted, place=max(place, self.place))
        for batch in range(self.batches):
            yield piece(self.read(batch))

    def advance(self, place: int) -> None:
        """Run up to `place` and keep what is used from there on.

        Raises:
            ToolchainFailed: ONNX Runtime cannot run the piece.
        """
        if place <= self.place:
            return
        live = self.live(place)
        piece = self._piece(live, place=place)
        for batch in range(self.batches):
            self._write(batch, piece(self.read(batch)))
        self.place, self._names = place, live

    def live(self, place: int) -> list[str]:
        """Return the tensors made before `place` and used from there on, in order of their names."""
        wiring = self.wiring
        made = [name for name, maker in wiring.makers.items() if maker < place]
        given = wiring.inputs - set(wiring.initializers)
        return sorted(
            name
            for name in (*made, *given)
            if name not in wiring.constants and max(wiring.last_use(name), self._kept_until.get(name, -1)) >= place
        )

    def read(self, batch: int) -> Arrays:
        """Return what lives at the present place."""
        with np.load(self._folder / f"{batch}.npz") as held:
            return {name: held[f"a{number}"] for number, name in enumerate(self._names)}

    def close(self) -> None:
        """Remove the files."""
        for batch in range(self.batches):
            (self._folder / f"{batch}.npz").unlink()
        self._folder.rmdir()

    def _write(self, batch: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        path = self._folder / f"{batch}.npz"
        np.savez(path, allow_pickle=False, **{f"a{number}": array for number, array in enumerate(arrays.values())})
        self.written_bytes += path.stat().st_size

    def _piece(self, wanted: Sequence[str], *, place: int) -> "_Piece":
        first = self.read(0) if self.batches else {}
        return _Piece(self.model, self.wiring, given=first, wanted=wanted, before=place)


class _Piece:
    """The part of a graph that leads from some tensors to others."""

    def __init__(
        self, model: onnx.ModelProto, wiring: Wiring, *, given: Arrays, wanted: Sequence[str], before: int
    ) -> None:
        self._wanted = list(wanted)
        self._made = [name for name in dict.fromkeys(wanted) if name not in given]
        self._session: onnxruntime.InferenceSession | None = None
        if self._made:
            part = _part(model, wiring, given=given, wanted=self._made, before=before)
            self._takes = [value.name for value in part.graph.input]
            self._session = open_session(part)

    def __call__(self, arrays: Arrays) -> Arrays:
        made: Arrays = {}
        if self._session is not None:
            try:
                found = self._session.run(self._made, {name: arrays[name] for name in self._takes})
            except ONNXRUNTIME_ERRORS as error:
                raise ToolchainFailed(f"The graph cannot be run on the calibration rows: {str(error)[:200]}") from error
            made = dict(zip(self._made, found, strict=True))
        if not all(isinstance(value, np.ndarray) for value in made.values()):
            raise ToolchainFailed("The graph passes lists of tensors on, which learned rounding cannot keep.")
        return {name: made[name] if name in made else arrays[name] for name in self._wanted}


def run_through(model: onnx.ModelProto, rows: Iterator[Arrays], wanted: Sequence[str]) -> Iterator[Arrays]:
    """Yield some tensors of a graph batch by batch; nothing is kept.

    Raises:
        ToolchainFailed: ONNX Runtime cannot run the graph.
    """
    piece, wiring = None, Wiring(model.graph)
    for batch in rows:
        if piece is None:
            piece = _Piece(model, wiring, given=batch, wanted=wanted, before=len(wiring.nodes))
        yield piece(batch)


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph that nobody but Octet will run.

    Raises:
        ToolchainFailed: ONNX Runtime does not take it.
    """
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
        )
    except ONNXRUNTIME_ERRORS as error:
        raise ToolchainFailed(f"ONNX Runtime does not run a piece of the graph: {str(error)[:200]}") from error


def constant(model: onnx.ModelProto, wiring: Wiring, name: str) -> NDArray[Any]:
    """Return the value of a tensor that follows from the stored ones alone."""
    if name in wiring.initializers:
        stored: NDArray[Any] = numpy_helper.to_array(wiring.initializers[name])
        return stored
    part = _part(model, wiring, given={}, wanted=[name], before=len(wiring.nodes))
    value: NDArray[Any] = open_session(part).run([name], {})[0]
    return value


def _part(
    model: onnx.ModelProto, wiring: Wiring, *, given: Arrays, wanted: Sequence[str], before: int
) -> onnx.ModelProto:
    places, taken = _needed(wiring, given=given, wanted=wanted)
    if any(place >= before and not set(wiring.nodes[place].output) <= wiring.constants for place in places):
        raise ToolchainFailed("The graph's nodes are not in the order they run in: export the model again.")
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(given[name].dtype), [None] * given[name].ndim
        )
        for name in sorted(taken & set(given))
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
    stored = [wiring.initializers[name] for name in sorted(taken) if name in wiring.initializers and name not in given]
    nodes = [wiring.nodes[place] for place in sorted(places)]
    graph = helper.make_graph(nodes, "piece", inputs, outputs, stored)
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def _needed(wiring: Wiring, *, given: Arrays, wanted: Sequence[str]) -> tuple[set[int], set[str]]:
    """Return the places of the nodes that lead to the wanted tensors, and every tensor they take."""
    places: set[int] = set()
    taken: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in given or name not in wiring.makers or wiring.makers[name] in places:
            continue
        places.add(wiring.makers[name])
        used = used_by(wiring.nodes[wiring.makers[name]])
        taken |= used
        waiting.extend(used)
    return places, taken
