"""Who answers the training rows for distillation: a float32 graph in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from app.domain.errors import DatasetUnfit, SignatureMismatch, ToolchainFailed
from app.domain.teaching import pair
from app.domain.tensors import Signature
from workers.toolchains.finish import ONNXRUNTIME_ERRORS
from workers.toolchains.octet.rounding.threads import cores
from workers.training.rows import Arrays, Rows, mapped

_MOST_KEPT_BYTES = 2**30
"""Answers up to so many bytes are worked out once and kept in a file; larger ones at every step anew."""


class Teacher:
    """A graph that answers.

    Args:
        renamed: the trained graph's names of inputs and outputs, by the teacher's own; the same for the model itself.
        feature: a tensor to give beside the outputs.

    Raises:
        ToolchainFailed: ONNX Runtime does not open it.
    """

    def __init__(
        self, graph: onnx.ModelProto, *, renamed: Mapping[str, str], feature: str | None = None, threads: int
    ) -> None:
        if feature is not None and feature not in {value.name for value in graph.graph.output}:
            graph.graph.output.append(helper.make_empty_tensor_value_info(feature))
        self._inputs = {renamed.get(value.name, value.name): value.name for value in graph.graph.input}
        self._outputs = [value.name for value in graph.graph.output]
        self._names = [renamed.get(name, name) for name in self._outputs]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # threads that wait busily would take the cores from torch, which runs in between
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except ONNXRUNTIME_ERRORS as error:
            raise ToolchainFailed(f"ONNX Runtime does not open the teacher ({str(error)[:200]}).") from error

    def answer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return its tensors under the trained graph's names.

        Raises:
            DatasetUnfit: it cannot answer the rows.
        """
        try:
            made = self._session.run(self._outputs, {own: inputs[name] for name, own in self._inputs.items()})
        except ONNXRUNTIME_ERRORS as error:
            raise DatasetUnfit(f"The teacher cannot answer the training rows ({str(error)[:200]}).") from error
        return dict(zip(self._names, made, strict=True))


class Answers:
    """A teacher's answers to rows as they are stored, by place.

    Args:
        folder: where they are kept if they are small enough.
    """

    def __init__(self, teacher: Teacher, rows: Rows, *, folder: Path) -> None:
        self._teacher, self._rows = teacher, rows
        first = teacher.answer(rows.take(np.arange(1)))
        size = sum(array.nbytes for array in first.values()) * len(rows)
        counted = all(array.ndim and array.shape[0] == 1 for array in first.values())
        self._kept = self._keep(first, folder) if counted and size <= _MOST_KEPT_BYTES else None

    def take(self, places: NDArray[np.int64]) -> Arrays:
        """Return the answers to some rows."""
        if self._kept is None:
            return self._teacher.answer(self._rows.take(places))
        return {name: array[places] for name, array in self._kept.items()}

    def _keep(self, first: Arrays, folder: Path) -> dict[str, NDArray[Any]]:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {
            name: mapped(folder / f"{number}.npy", array, rows=len(self._rows))
            for number, (name, array) in enumerate(first.items())
        }
        for places in self._rows.in_turn():
            for name, array in self._teacher.answer(self._rows.take(places)).items():
                kept[name][places] = array
        return dict(kept)


def threads_of(processes: int) -> int:
    """Return how many threads each of some processes may use."""
    return max(1, cores() // processes)


def renaming(theirs: Signature, mine: Signature, *, teacher: str) -> dict[str, str]:
    """Return the trained graph's names of inputs and outputs by the teacher's.

    Raises:
        DatasetUnfit: the teacher takes or gives something else.
    """
    try:
        found = pair(theirs, mine, teacher=teacher, model="the model")
    except SignatureMismatch as error:
        raise DatasetUnfit(error.message) from error
    return {**found.inputs, **found.outputs}
