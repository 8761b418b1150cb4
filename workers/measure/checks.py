"""The stage that looks for what makes a report's numbers doubtful: in the rows, in their values, in the layers."""

from collections.abc import Iterator
from pathlib import Path

from app.domain.evidence import Finding
from workers.measure.layer_values import LayerValues, layer_values
from workers.measure.row_identity import ROWS_NAMED, Identity, identify, shared
from workers.measure.row_values import Values, normalisation, ranges, summarize
from workers.stage_records.common import Progress
from workers.stage_records.measuring import CheckResult, CheckSpec

LAYERS_NAMED = 5
_SATURATED_SHARE = 0.01
_DEAD_SHARE = 0.1


def check(spec: CheckSpec, scratch: Path, progress: Progress) -> CheckResult:
    """Compare calibration with evaluation rows, inputs with the preprocessing, and layers' values before and after.

    Raises:
        DatasetUnfit: a row that the model does not take.
    """
    progress(0.0, "checking the rows")
    evaluation = identify(spec.evaluation, scratch=scratch)
    calibration = identify(spec.calibration, scratch=scratch) if spec.calibration else None
    selection = identify(spec.selection, scratch=scratch) if spec.selection else None
    found = [
        *_chose(selection, evaluation),
        *_rows(calibration, evaluation),
        *_classes(calibration, evaluation, names=spec.classes),
    ]
    progress(0.3, "checking the inputs")
    scored = summarize(spec.evaluation, spec.signature, scratch=scratch)
    calibrated = summarize(spec.calibration, spec.signature, scratch=scratch) if spec.calibration else None
    found += _inputs(spec, calibrated, scored)
    progress(0.6, "looking at the layers' values")
    layers = layer_values(spec, scratch=scratch) if spec.variant else ()
    found += [*_saturated(layers), *_dead(layers)]
    histograms = tuple(histogram for layer in layers for histogram in layer.histograms)
    return CheckResult(findings=tuple(found), histograms=histograms)


def _rows(calibration: Identity | None, evaluation: Identity) -> Iterator[Finding]:
    if calibration is not None:
        both = shared(calibration, evaluation)
        if both:
            yield Finding(
                code="calibration_in_evaluation",
                severity="warning",
                message=f"{len(both)} evaluation rows also calibrate, so the score may flatter: send other rows.",
                rows=tuple(both[:ROWS_NAMED]),
            )
        yield from _duplicates(calibration, of="calibration")
    yield from _duplicates(evaluation, of="evaluation")


def _chose(selection: Identity | None, evaluation: Identity) -> Iterator[Finding]:
    both = shared(selection, evaluation) if selection is not None else []
    if both:
        yield Finding(
            code="selection_in_evaluation",
            severity="warning",
            message=f"{len(both)} evaluation rows also chose the variant, so the score may flatter: send other rows.",
            rows=tuple(both[:ROWS_NAMED]),
        )


def _duplicates(identity: Identity, *, of: str) -> Iterator[Finding]:
    if not identity.repeated:
        return
    yield Finding(
        code=f"duplicates_{of}",
        severity="note",
        message=(
            f"{len(identity.repeated)} of {identity.rows} {of} rows repeat an earlier one: they add weight, not "
            "knowledge, and make intervals too narrow."
        ),
        rows=tuple(identity.repeated[:ROWS_NAMED]),
    )


def _classes(calibration: Identity | None, evaluation: Identity, *, names: tuple[str, ...]) -> Iterator[Finding]:
    if calibration is None or not calibration.classes or not evaluation.classes:
        return
    missing = sorted(evaluation.classes - calibration.classes)
    if missing:
        shown = ", ".join(names[each] if each < len(names) else str(each) for each in missing[:LAYERS_NAMED])
        more = f" and {len(missing) - LAYERS_NAMED} more" if len(missing) > LAYERS_NAMED else ""
        yield Finding(
            code="missing_classes",
            severity="warning",
            message=f"No calibration row is of class {shown}{more}: add rows of every class.",
        )


def _inputs(spec: CheckSpec, calibration: Values | None, evaluation: Values) -> Iterator[Finding]:
    preprocessing = spec.evaluation.preprocessing
    yield from normalisation(evaluation, preprocessing, of="evaluation")
    if calibration is not None:
        yield from normalisation(calibration, preprocessing, of="calibration")
        yield from ranges(calibration, evaluation)


def _saturated(layers: tuple[LayerValues, ...]) -> Iterator[Finding]:
    clipped = sorted((layer for layer in layers if layer.clipped > _SATURATED_SHARE), key=lambda each: -each.clipped)
    if clipped:
        yield Finding(
            code="saturated_channels",
            severity="warning",
            message=(
                f"The quantizers before {_named([layer.name for layer in clipped])} cut off over 1 % of the values, up "
                f"to {100 * clipped[0].clipped:.1f} %: calibrate with more rows, or with observer min_max."
            ),
        )


def _dead(layers: tuple[LayerValues, ...]) -> Iterator[Finding]:
    dead = [layer for layer in layers if layer.channels and layer.dead > _DEAD_SHARE * layer.channels]
    if dead:
        total = sum(layer.dead for layer in dead)
        yield Finding(
            code="dead_channels",
            severity="note",
            message=(
                f"{total} channels into {_named([layer.name for layer in dead])} are zero on every row looked at: they "
                "cost time and tell nothing, and could be pruned."
            ),
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - LAYERS_NAMED} more" if len(names) > LAYERS_NAMED else ""
    return ", ".join(name[:80] for name in names[:LAYERS_NAMED]) + more
