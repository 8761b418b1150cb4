"""From measurements to report.json: one record of all that was found out about a variant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.domain.diagnosis import diagnose
from app.domain.evidence import DataUse, LayerSensitivity, Verdict
from app.domain.reports import ConversionCheck, Report, Size
from app.domain.search import Search
from app.domain.variants import Variant
from workers.jobs.gallery import as_images
from workers.jobs.measuring import BFLOAT16, Costs
from workers.stages import CheckResult, ScoreResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found out about a variant before it is published, as far as it goes."""

    costs: Costs
    score: ScoreResult | None = None
    check: CheckResult | None = None
    sensitivity: tuple[LayerSensitivity, ...] = ()
    calibration: DataUse | None = None
    evaluation: DataUse | None = None
    conversion: ConversionCheck | None = None
    verdict: Verdict | None = None
    search: Search | None = None


def make_report(
    variant: Variant,
    evidence: Evidence,
    *,
    float32: Variant,
    made_with: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Put what was measured into one record.

    Args:
        made_with: versions of the libraries that made the artifact, which may not be those that measured it.
        notes: what else a reader should know, first of all.
    """
    costs, score, check = evidence.costs, evidence.score, evidence.check
    report = Report(
        model=variant.model,
        version=variant.version,
        variant=variant.name,
        artifact_sha256=variant.artifact.sha256,
        recipe=variant.recipe,
        size=Size(
            bytes=variant.artifact.size_bytes,
            float32_bytes=float32.artifact.size_bytes,
            ratio=round(variant.artifact.size_bytes / float32.artifact.size_bytes, 4),
        ),
        calibration=evidence.calibration,
        evaluation=evidence.evaluation,
        accuracy=score.accuracy if score else None,
        fidelity=score.fidelity if score else {},
        latency=costs.latency,
        memory=costs.memory,
        kernels=costs.kernels,
        conversion=evidence.conversion,
        environment=replace(costs.environment, libraries={**costs.environment.libraries, **(made_with or {})}),
        notes=(*notes, *_notes(evidence)),
        created_at=datetime.now(UTC),
        execution=variant.execution,
        metrics=score.metrics if score else (),
        verdict=evidence.verdict,
        receipt=costs.receipt,
        findings=check.findings if check else (),
        invariance=score.invariance if score else None,
        histograms=check.histograms if check else (),
        sensitivity=evidence.sensitivity,
        gallery=as_images(score.gallery) if score else (),
        search=evidence.search,
    )
    return replace(report, diagnosis=diagnose(report))


def _notes(evidence: Evidence) -> tuple[str, ...]:
    notes: list[str] = []
    score, use = evidence.score, evidence.evaluation
    if score is not None and score.accuracy is None:
        notes.append("The evaluation rows have no class labels that fit the first output, so there is no accuracy.")
    if use is not None and use.source == "held_out":
        notes.append("No evaluation dataset was given: rows that calibration left over scored.")
    if not any(form.execution.float_precision == BFLOAT16 for form in evidence.costs.forms):
        notes.append("The engine does not compute in bfloat16 on this CPU, so float32 and the variant stand alone.")
    return tuple(notes)
