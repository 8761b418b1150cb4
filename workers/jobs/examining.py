"""What a closer look at rows and layers adds to the measurements; where it fails, the job goes on without."""

from app.domain.errors import JobFailure, SandboxUnavailable
from app.domain.evidence import Finding, LayerSensitivity, Receipt
from app.domain.models import ModelManifest
from workers.jobs.bench import Bench
from workers.jobs.files import bring_rows
from workers.jobs.rows import Chosen, some_of
from workers.stage_records.measuring import CheckResult, CheckSpec, Form, SenseResult, SenseSpec

SENSE_ROWS = 32
SENSE_SECONDS = 15.0
"""How long a job that was not asked for a search may look at single layers."""


async def measure_checks(
    bench: Bench,
    forms: tuple[Form, ...],
    model: ModelManifest,
    *,
    calibration: Chosen | None,
    evaluation: Chosen,
    selection: Chosen | None = None,
    until: float,
) -> CheckResult:
    """Look for what makes the numbers doubtful. A look that fails is itself only a finding.

    Args:
        forms: float32 and the variant; float32 alone looks at the rows alone.
        selection: rows that chose the variant in a search.
    """
    async with bench.step("checking the rows", until=until):
        learnt = await bring_rows(bench, calibration, preprocessing=model.preprocessing) if calibration else None
        chose = await bring_rows(bench, selection, preprocessing=model.preprocessing) if selection else None
        spec = CheckSpec(
            float32=forms[0].artifact,
            variant=forms[-1].artifact if len(forms) > 1 else None,
            signature=model.signature,
            calibration=learnt,
            evaluation=await bring_rows(bench, evaluation, preprocessing=model.preprocessing),
            classes=evaluation.dataset.classes,
            selection=chose,
        )
        try:
            return await bench.stage("check", spec, gives=CheckResult, until=until)
        except SandboxUnavailable:
            raise
        except JobFailure as error:
            message = f"The rows and the layers' values could not be checked: {error.message}"
            return CheckResult(findings=(Finding(code="not_checked", severity="note", message=message),), histograms=())


async def measure_sensitivity(
    bench: Bench,
    forms: tuple[Form, Form],
    model: ModelManifest,
    *,
    rows: Chosen,
    receipt: Receipt | None,
    metric: str | None = None,
    most_rows: int = SENSE_ROWS,
    seconds: float = SENSE_SECONDS,
    until: float,
) -> tuple[LayerSensitivity, ...]:
    """Quantize one layer at a time on a few rows; nothing where the variant quantizes none, or that fails."""
    costs = costs_in_float(receipt)
    if not costs:
        return ()
    async with bench.step("measuring each layer", until=until):
        few = some_of(rows, most_rows)
        spec = SenseSpec(
            float32=forms[0].artifact,
            variant=forms[-1].artifact,
            signature=model.signature,
            rows=await bring_rows(bench, few, preprocessing=model.preprocessing),
            metric=metric,
            costs=costs,
            seconds=seconds,
        )
        try:
            return (await bench.stage("sense", spec, gives=SenseResult, until=until)).layers
        except SandboxUnavailable:
            raise
        except JobFailure as error:
            await bench.log(f"the layers' sensitivity was not measured: {error.message}")
            return ()


def costs_in_float(receipt: Receipt | None) -> dict[str, float]:
    """Return, by quantized layer, how many microseconds longer it takes in float32 than in the variant."""
    return {
        layer.name: layer.float32.microseconds - layer.variant.microseconds
        for layer in (receipt.layers if receipt else ())
        if layer.quantized and layer.float32 is not None and layer.variant is not None
    }
