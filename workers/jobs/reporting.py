"""From measurements to report.json: one record of all that was found out about a variant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.domain.diagnosis import diagnose
from app.domain.errors import JobFailure
from app.domain.evidence import DataUse, Finding, LayerReceipt, LayerSensitivity, Receipt, Verdict
from app.domain.reports import ConversionCheck, Report, Size
from app.domain.search import Search
from app.domain.training import Training
from app.domain.variants import Variant
from workers.jobs.gallery import as_images
from workers.jobs.measuring import BFLOAT16, Costs
from workers.stage_records.measuring import CheckResult, ScoreResult

_LAYERS_NAMED = 5
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found out about a variant before it is published, as far as it goes.

    Attributes:
        training: only of a variant that was trained.
        findings: of what was looked at before anything was measured.
        failure: why there is no score; then the variant is not published.
    """

    costs: Costs
    score: ScoreResult | None = None
    check: CheckResult | None = None
    sensitivity: tuple[LayerSensitivity, ...] = ()
    calibration: DataUse | None = None
    evaluation: DataUse | None = None
    conversion: ConversionCheck | None = None
    verdict: Verdict | None = None
    search: Search | None = None
    training: Training | None = None
    findings: tuple[Finding, ...] = ()
    failure: JobFailure | None = None


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
        made_with: versions of the libraries that made the artifact, as the process that did it says: of a library that
            measured as well, the version that was seen counts.
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
        environment=replace(costs.environment, libraries={**(made_with or {}), **costs.environment.libraries}),
        notes=(*notes, *_notes(evidence)),
        created_at=datetime.now(UTC),
        execution=variant.execution,
        metrics=score.metrics if score else (),
        verdict=evidence.verdict,
        receipt=costs.receipt,
        findings=(*evidence.findings, *(score.findings if score else ()), *(check.findings if check else ())),
        invariance=score.invariance if score else None,
        histograms=check.histograms if check else (),
        sensitivity=evidence.sensitivity,
        gallery=as_images(score.gallery) if score else (),
        search=evidence.search,
        training=evidence.training,
    )
    return replace(report, diagnosis=diagnose(report))


def _notes(evidence: Evidence) -> tuple[str, ...]:
    notes: list[str] = [evidence.failure.message] if evidence.failure else []
    score, use = evidence.score, evidence.evaluation
    if score is not None and score.accuracy is None:
        notes.append("The evaluation rows have no class labels that fit the first output, so there is no accuracy.")
    if use is not None and use.source == "held_out":
        left = "training" if evidence.training else "calibration"
        notes.append(f"No evaluation dataset was given: rows that {left} left over scored.")
    if not any(form.execution.float_precision == BFLOAT16 for form in evidence.costs.forms):
        notes.append("The engine does not compute in bfloat16 on this CPU, so float32 and the variant stand alone.")
    return (*notes, *_untraced(evidence.costs.receipt))


def _untraced(receipt: Receipt | None) -> tuple[str, ...]:
    """Name the layers of which the receipt cannot say what they ran in."""
    lost = [layer.name[:_LONGEST_NAME] for layer in (receipt.layers if receipt else ()) if _is_untraced(layer)]
    if not lost:
        return ()
    more = f" and {len(lost) - _LAYERS_NAMED} more" if len(lost) > _LAYERS_NAMED else ""
    named = ", ".join(lost[:_LAYERS_NAMED]) + more
    return (f"{len(lost)} quantized layers could not be traced in the engine's graph: {named}.",)


def _is_untraced(layer: LayerReceipt) -> bool:
    return layer.quantized and layer.variant is None
