"""One batch from shared memory to answers: inputs, join, engine, split, outputs. Knows no threads and no queue."""

import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.errors import AnswerTooLarge
from app.domain.runners import Answer, Form, Infer, Load
from app.domain.tensors import TensorSpec
from workers.data.preprocessing import pixels_for
from workers.runners.batches import Joiner, split
from workers.runners.segments import lay_out, map_segment, new_segment, view, write

Arrays = Mapping[str, npt.NDArray[Any]]
Compute = Callable[[Form, Arrays], Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request with the memory in which it lies."""

    request: Infer
    segment: mmap.mmap
    arrived_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """Answers of one run of the engine, each with the descriptor of an overflow segment if it needs one.

    Attributes:
        rows: of all requests together.
    """

    answers: tuple[tuple[Answer, int | None], ...]
    rows: int
    queue_ns: int
    input_ns: int
    compute_ns: int
    output_ns: int


class Computer:
    """Computes batches of one lane; the memory for joined rows is its own."""

    def __init__(self, load: Load) -> None:
        self._signature = load.variant.signature
        self._preprocessing = load.variant.preprocessing
        self._max_answer_bytes = load.max_answer_bytes
        specs = (*self._signature.inputs, *self._signature.outputs)
        self._axes = {spec.name: spec.batch_axis or 0 for spec in specs}
        self._joiner = Joiner({spec.name: spec.batch_axis or 0 for spec in self._signature.inputs})
        self._pixels = Joiner({spec.name: 0 for spec in self._signature.inputs})

    def compute(self, asked: Sequence[Asked], run: Compute) -> Computed:
        """Answer requests of one form and one shape of a row with a single run of the engine.

        Raises:
            OctetError: a request among them cannot be answered.
        """
        form, began = asked[0].request.form, time.monotonic_ns()
        joiner = self._joiner if form == "tensors" else self._pixels
        inputs = joiner.join([self._inputs(one) for one in asked])
        ready = time.monotonic_ns()
        outputs = run("tensors" if form == "tensors" else "pixels", inputs)
        ended = time.monotonic_ns()
        rows = [one.request.rows for one in asked]
        shares = split(outputs, rows, self._axes) if len(asked) > 1 else [dict(outputs)]
        for share in shares:  # before any answer is placed: its memory would be nobody's
            self._check_size(share)
        answers: list[tuple[Answer, int | None]] = []
        try:
            for one, share in zip(asked, shares, strict=True):
                waited = began - one.arrived_ns
                answers.append(self._answer(one, share, queue_ns=waited, compute_ns=ended - ready, rows=sum(rows)))
        except BaseException:
            for _, descriptor in answers:
                if descriptor is not None:
                    os.close(descriptor)
            raise
        return Computed(
            answers=tuple(answers),
            rows=sum(rows),
            queue_ns=sum(began - one.arrived_ns for one in asked),
            input_ns=ready - began,
            compute_ns=ended - ready,
            output_ns=time.monotonic_ns() - ended,
        )

    def _inputs(self, asked: Asked) -> dict[str, npt.NDArray[Any]]:
        arrays = {part.name: view(asked.segment, part) for part in asked.request.inputs}
        if asked.request.form != "images":
            return arrays
        spec = self._signature.inputs[0]
        decoded = [self._decoded(spec, array) for array in arrays.values()]
        return {spec.name: np.concatenate(decoded) if len(decoded) > 1 else decoded[0]}

    def _decoded(self, spec: TensorSpec, encoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self._preprocessing is None:
            raise RuntimeError("A gateway sent an image for a model without a preprocessing.")
        return pixels_for(spec, encoded.tobytes(), self._preprocessing)

    def _answer(
        self, asked: Asked, outputs: Arrays, *, queue_ns: int, compute_ns: int, rows: int
    ) -> tuple[Answer, int | None]:
        """Write the outputs behind the inputs, or into a segment of their own if they do not fit, and say where."""
        segment, overflow, overflow_bytes = asked.segment, None, 0
        parts, end = lay_out(outputs, self._signature.outputs, start=asked.request.outputs_at)
        if end > len(segment):
            parts, overflow_bytes = lay_out(outputs, self._signature.outputs, start=0)
            overflow, segment = _overflow(overflow_bytes)
        write(segment, parts, outputs)
        answer = Answer(
            id=asked.request.id,
            outputs=parts,
            overflow_bytes=overflow_bytes,
            queue_seconds=queue_ns / 1e9,
            compute_seconds=compute_ns / 1e9,
            rows=rows,
        )
        return answer, overflow

    def _check_size(self, outputs: Arrays) -> None:
        size = sum(array.nbytes for array in outputs.values())
        if size > self._max_answer_bytes:
            raise AnswerTooLarge(
                f"The answer has {size:,} bytes, over the limit of {self._max_answer_bytes:,}: "
                "send fewer rows, or raise OCTET_MAX_ANSWER_BYTES."
            )


def _overflow(size_bytes: int) -> tuple[int, mmap.mmap]:
    descriptor = new_segment(max(size_bytes, 1))
    return descriptor, map_segment(os.dup(descriptor), max(size_bytes, 1))
