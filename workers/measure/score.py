"""The stage that answers the evaluation rows with every form and compares the answers: metrics, accuracy, fidelity."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from app.domain.errors import DatasetUnfit, ToolchainFailed
from app.domain.evidence import Finding, Invariance
from app.domain.reports import Fidelity
from workers.data.batches import Batch, Tensors, batches
from workers.measure.accuracy import AccuracyTally
from workers.measure.answers import Answers, rows_first
from workers.measure.engine import Session
from workers.measure.fidelity import FidelityTally
from workers.measure.gallery import MOST_PICTURES, gallery
from workers.measure.invariance import invariance
from workers.measure.metrics import Metrics
from workers.stage_records.common import Progress
from workers.stage_records.measuring import ScoreResult, ScoreSpec

BATCH_ROWS = 32
_LEAST_BATCH_ROWS = 2
_MOST_BATCH_ELEMENTS = 1 << 22
_INNER = 8
"""How many times its inputs' elements a graph is taken to hold inside, per row: every form has an engine of its own."""
_ROWS_NAMED, _ROWS_IN_WORDS = 20, 5

Outputs = list[NDArray[Any]]


def score(spec: ScoreSpec, scratch: Path, progress: Progress) -> ScoreResult:
    """Run every form over the same rows, batch by batch; memory does not grow with the rows but for their answers.

    Raises:
        DatasetUnfit: a row that the model does not take, a label that is none of its classes, or rows on which float32
            itself answers nothing but NaN: whatever is compared with that looks the same.
        ToolchainFailed: a form cannot run, or answers NaN or an infinity where float32 does not.
    """
    core = ov.Core()
    sessions = [Session.open(form, spec.signature, scratch=scratch, core=core) for form in spec.forms]
    tallies = _Tallies(spec)
    done, total = 0, len(spec.evaluation.rows)
    neighbours: Invariance | None = None
    size = _batch_rows(spec, sessions[0], scratch=scratch)
    for batch in batches(spec.evaluation, spec.signature, scratch=scratch, size=size):
        tallies.add(batch, [session.run(batch.inputs) for session in sessions])
        if done == 0:
            neighbours = _neighbours(sessions[-1], spec, batch.inputs, rows=len(batch.rows))
        done += len(batch.rows)
        progress(done / total, f"scored {done} of {total} rows")
    return replace(tallies.result(scratch), invariance=neighbours)


def _batch_rows(spec: ScoreSpec, session: Session, *, scratch: Path) -> int:
    """Choose how many rows to answer at once: fewer where one row alone is large."""
    first = replace(spec.evaluation, rows=spec.evaluation.rows[:1])
    for batch in batches(first, spec.signature, scratch=scratch, size=1):
        inside = _INNER * sum(array.size for array in batch.inputs.values())
        outside = sum(array.size for array in session.run(batch.inputs))
        largest = _MOST_BATCH_ELEMENTS // max(1, inside + outside)
        return min(BATCH_ROWS, max(_LEAST_BATCH_ROWS, largest))
    return BATCH_ROWS


def _neighbours(session: Session, spec: ScoreSpec, inputs: Tensors, *, rows: int) -> Invariance | None:
    return invariance(session, spec.signature, inputs) if rows >= _LEAST_BATCH_ROWS else None


class _Tallies:
    """What is kept of all forms' answers."""

    def __init__(self, spec: ScoreSpec) -> None:
        self._spec = spec
        self._names = [form.name for form in spec.forms]
        self._metrics = Metrics(self._names, rows=len(spec.evaluation.rows))
        self._accuracy = AccuracyTally(self._names)
        self._fidelity = [FidelityTally() for _ in self._names[1:]]
        self._answered = False
        self._unanswered: list[int] = []

    def add(self, batch: Batch, outputs: list[Outputs]) -> None:
        count, signature = len(batch.rows), self._spec.signature
        answers = Answers(
            [rows_first(form, signature, count=count) for form in outputs], labels=batch.labels, rows=batch.rows
        )
        self._answered |= any(output.size == 0 or np.isfinite(output).any() for output in answers.outputs[0])
        for name, form in zip(self._names[1:], answers.outputs[1:], strict=True):
            _check_finite(answers.outputs[0], form, name=name, rows=batch.rows)
        self._unanswered += [row for row, told in zip(batch.rows, answers.answered.tolist(), strict=True) if not told]
        self._metrics.add(answers)
        for tally, close in zip(self._fidelity, answers.closeness, strict=True):
            tally.add(close)
        for tally, divergences in zip(self._fidelity, answers.divergences, strict=False):  # none without class scores
            tally.add_divergence(divergences)
        if answers.classes is not None:
            self._accuracy.add(answers.classes, labels=answers.class_labels, rows=batch.rows)
            for tally, classes in zip(self._fidelity, answers.classes[1:], strict=True):
                tally.add_classes(answers.classes[0][answers.answered], classes[answers.answered])

    def result(self, scratch: Path) -> ScoreResult:
        if not self._answered:
            raise DatasetUnfit(
                "The float32 model itself answers NaN or an infinity to every evaluation row, so no form can be "
                "compared with it: look at the model, or at how the rows are prepared."
            )
        spec = self._spec
        changes = self._accuracy.changes(MOST_PICTURES)
        return ScoreResult(
            accuracy=self._accuracy.result(spec.classes),
            fidelity=self._by_form(),
            metrics=self._metrics.scores(),
            gallery=gallery(changes, spec.evaluation, spec.signature, scratch=scratch, classes=spec.classes),
            findings=self._findings(),
            ahead=self._accuracy.ahead(),
        )

    def _findings(self) -> tuple[Finding, ...]:
        rows = self._unanswered
        if not rows:
            return ()
        named = ", ".join(map(str, rows[:_ROWS_IN_WORDS]))
        more = f" and {len(rows) - _ROWS_IN_WORDS} more" if len(rows) > _ROWS_IN_WORDS else ""
        message = (
            f"Float32 itself answers NaN, or nothing but infinities, to {len(rows)} evaluation rows ({named}{more}): "
            "the agreement leaves them out. Look at the model, or at these rows."
        )
        finding = Finding(
            code="float32_not_finite", severity="warning", message=message, rows=tuple(rows[:_ROWS_NAMED])
        )
        return (finding,)

    def _by_form(self) -> dict[str, Fidelity]:
        return {name: tally.result() for name, tally in zip(self._names[1:], self._fidelity, strict=True)}


def _check_finite(
    reference: Sequence[NDArray[Any]], form: Sequence[NDArray[Any]], *, name: str, rows: Sequence[int]
) -> None:
    for one, other in zip(reference, form, strict=True):
        broken = (np.isfinite(one) & ~np.isfinite(other)).reshape(len(rows), -1).any(axis=1)
        if broken.any():
            raise ToolchainFailed(
                f"The {name} form answers NaN or an infinity on evaluation row {rows[int(broken.argmax())]}, where "
                "float32 does not: keep the layers with the widest values in float."
            )
