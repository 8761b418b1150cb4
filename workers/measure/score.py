"""The stage that answers the evaluation rows with every form and compares the answers: accuracy and fidelity."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from app.domain.errors import ToolchainFailed
from app.domain.tensors import Signature, TensorSpec
from workers.data.batches import Batch, batches
from workers.measure.accuracy import AccuracyTally
from workers.measure.engine import Session
from workers.measure.fidelity import FidelityTally
from workers.stages import Progress, ScoreResult, ScoreSpec

BATCH_ROWS = 32
_CLASSIFIER_AXES = 2

Outputs = list[NDArray[Any]]


def score(spec: ScoreSpec, scratch: Path, progress: Progress) -> ScoreResult:
    """Run every form over the same rows, batch by batch; memory does not grow with the rows but for their answers.

    Raises:
        DatasetUnfit: a row that the model does not take, or a label that is none of its classes.
        ToolchainFailed: a form cannot run, or answers NaN or an infinity where float32 does not.
    """
    core = ov.Core()
    sessions = [Session.open(form, spec.signature, scratch=scratch, core=core) for form in spec.forms]
    tallies = _Tallies(spec)
    done, total = 0, len(spec.evaluation.rows)
    for batch in batches(spec.evaluation, spec.signature, scratch=scratch, size=BATCH_ROWS):
        tallies.add(batch, [session.run(batch.inputs) for session in sessions])
        done += len(batch.rows)
        progress(done / total, f"scored {done} of {total} rows")
    return tallies.result()


class _Tallies:
    """What is kept of all forms' answers."""

    def __init__(self, spec: ScoreSpec) -> None:
        self._signature = spec.signature
        self._names = [form.name for form in spec.forms]
        self._classes = spec.classes
        self._accuracy = AccuracyTally(self._names)
        self._fidelity = [FidelityTally() for _ in self._names[1:]]

    def add(self, batch: Batch, answers: list[Outputs]) -> None:
        rows = [_as_rows(outputs, self._signature, count=len(batch.rows)) for outputs in answers]
        for name, form in zip(self._names[1:], rows[1:], strict=True):
            _check_finite(rows[0], form, name=name, batch=batch)
        for tally, form in zip(self._fidelity, rows[1:], strict=True):
            tally.add(rows[0], form)
        if is_classifier(self._signature.outputs[0], answers[0][0]):
            self._add_answers(batch, [outputs[0] for outputs in answers])

    def _add_answers(self, batch: Batch, logits: Outputs) -> None:
        for tally, form in zip(self._fidelity, logits[1:], strict=True):
            tally.add_logits(logits[0], form)
        if batch.labels is not None:
            self._accuracy.add(logits, labels=batch.labels, rows=batch.rows)

    def result(self) -> ScoreResult:
        fidelity = {name: tally.result() for name, tally in zip(self._names[1:], self._fidelity, strict=True)}
        return ScoreResult(accuracy=self._accuracy.result(self._classes), fidelity=fidelity)


def is_classifier(spec: TensorSpec, output: NDArray[Any]) -> bool:
    """Whether an output scores classes per row: floats, (rows, classes), two classes or more."""
    by_rows = output.ndim == _CLASSIFIER_AXES and spec.batch_axis in (0, None)
    return by_rows and output.dtype.kind == "f" and output.shape[1] > 1


def _as_rows(outputs: Outputs, signature: Signature, *, count: int) -> list[NDArray[np.float64]]:
    """Flatten every output to float64[rows, elements]."""
    return [
        np.moveaxis(output, spec.batch_axis or 0, 0).reshape(count, -1).astype(np.float64)
        for spec, output in zip(signature.outputs, outputs, strict=True)
    ]


def _check_finite(
    reference: list[NDArray[np.float64]], form: list[NDArray[np.float64]], *, name: str, batch: Batch
) -> None:
    for one, other in zip(reference, form, strict=True):
        broken = (np.isfinite(one) & ~np.isfinite(other)).any(axis=1)
        if broken.any():
            row = batch.rows[int(broken.argmax())]
            raise ToolchainFailed(
                f"The {name} form answers NaN or an infinity on evaluation row {row}, where float32 does not: "
                "keep the layers with the widest values in float."
            )
