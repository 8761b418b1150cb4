"""From forms to numbers: the measuring steps that importing, quantizing and evaluating share."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import JobFailure, SandboxUnavailable
from app.domain.evidence import Receipt
from app.domain.models import ModelManifest
from app.domain.reports import Environment, Kernels, Latency, Memory
from app.domain.tensors import Signature
from app.domain.variants import FLOAT32, Execution
from workers.jobs.bench import Bench
from workers.jobs.files import bring_rows
from workers.jobs.rows import Chosen
from workers.stage_records.measuring import Form, ScoreResult, ScoreSpec, TimeResult, TimeSpec, WeighResult, WeighSpec

BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What every form costs: time, kernels, memory.

    Attributes:
        forms: those that this CPU runs: what else is measured is measured of them.
    """

    forms: tuple[Form, ...]
    latency: dict[str, Latency]
    kernels: dict[str, Kernels]
    memory: dict[str, Memory]
    environment: Environment
    receipt: Receipt | None = None


def forms_beside(float32: str, *, variant: Form | None = None, others: Sequence[Form] = ()) -> tuple[Form, ...]:
    """Return what is measured side by side: float32, bfloat16 where the engine computes in it, and the variant.

    Args:
        float32: path of the float32 artifact, relative to the scratch folder.
        variant: what is compared with it; a bfloat16 variant stands for itself.
        others: forms that the variant itself is compared with.
    """
    forms = [Form(name=FLOAT32, artifact=float32, execution=Execution())]
    is_bfloat16 = variant is not None and variant.execution.float_precision == BFLOAT16
    if not is_bfloat16:
        execution = Execution(float_precision="bfloat16")
        forms.append(Form(name=BFLOAT16, artifact=float32, execution=execution, optional=True))
    forms += others
    if variant is not None:
        forms.append(variant)
    return tuple(forms)


async def measure_costs(bench: Bench, forms: Sequence[Form], signature: Signature, *, until: float) -> Costs:
    """Time the forms interleaved in one process, then weigh each in a process of its own."""
    half = (bench.job.percent + until) / 2
    async with bench.step("measuring latency", until=half):
        spec = TimeSpec(forms=tuple(forms), signature=signature)
        timed = await bench.stage("time", spec, gives=TimeResult, until=half)
    ran = tuple(form for form in forms if form.name in timed.latency)
    memory: dict[str, Memory] = {}
    async with bench.step("measuring memory", until=until):
        for form in ran:
            weigh = WeighSpec(form=form, signature=signature)
            weighed = await bench.stage("weigh", weigh, gives=WeighResult, until=until)
            memory[form.name] = weighed.memory
    return Costs(
        forms=ran,
        latency=timed.latency,
        kernels=timed.kernels,
        memory=memory,
        environment=timed.environment,
        receipt=timed.receipt,
    )


async def measure_score(
    bench: Bench, forms: Sequence[Form], model: ModelManifest, *, evaluation: Chosen, until: float
) -> ScoreResult:
    """Answer the evaluation rows with every form."""
    async with bench.step("measuring accuracy", until=until):
        rows = await bring_rows(bench, evaluation, preprocessing=model.preprocessing)
        spec = ScoreSpec(
            forms=tuple(forms), signature=model.signature, evaluation=rows, classes=evaluation.dataset.classes
        )
        return await bench.stage("score", spec, gives=ScoreResult, until=until)


async def try_score(
    bench: Bench, forms: Sequence[Form], model: ModelManifest, *, evaluation: Chosen, until: float
) -> tuple[ScoreResult | None, JobFailure | None]:
    """Answer the evaluation rows; where that fails, return why, so that what else was measured is kept."""
    try:
        return await measure_score(bench, forms, model, evaluation=evaluation, until=until), None
    except SandboxUnavailable:
        raise
    except JobFailure as failure:
        return None, failure
