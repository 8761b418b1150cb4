"""From a recipe that trains nothing to a variant's graph, in the scratch folder."""

from dataclasses import dataclass, replace

from app.domain.errors import ToolchainFailed
from app.domain.evidence import DataUse
from app.domain.recipes import Single
from app.domain.training import TrainingOutcome
from app.domain.variants import Artifact, Execution
from workers.jobs.bench import Bench
from workers.jobs.files import apart, bring_artifact, bring_rows, bring_upload, hand_over, inspect
from workers.jobs.lookup import Order, starts_from_upload
from workers.outputs import output_path
from workers.stage_records.making import AcceptResult, AcceptSpec, TransformResult, TransformSpec

MOST_CLAIMED_NOTES = 50
"""A report has room for more, but no reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variant's graph, not yet measured.

    Attributes:
        path: relative to the scratch folder.
        artifact: as it will be stored, named by its hash.
        trained: what training it was, if it was trained.
    """

    path: str
    artifact: Artifact
    result: TransformResult
    trained: "Trained | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How a graph was trained, as the process says that did it.

    Attributes:
        start: the post-training quantization that it began from.
        rows, held_out: which rows trained, and which chose the step.
    """

    outcome: TrainingOutcome
    start: Made
    rows: DataUse
    held_out: DataUse


async def transform(
    bench: Bench,
    order: Order,
    recipe: Single,
    *,
    until: float,
    shown: str | None = None,
    seconds: float | None = None,
) -> Made:
    """Carry out a recipe. What may have executed the upload works apart, and what it made is read anew.

    Args:
        shown, seconds: as of `Bench.stage`.

    Raises:
        JobFailure: it cannot be carried out.
    """
    if not starts_from_upload(recipe):
        result = await _run(bench, order, recipe, until=until, shown=shown, seconds=seconds)
        return Made(path=result.artifact, artifact=inspect(bench, result.artifact), result=result)
    with apart(bench) as home:
        result = await _run(bench, order, recipe, until=until, shown=shown, seconds=seconds)
        hand_over(bench, result.artifact, to=home)
    result = checked(result, recipe)
    spec = AcceptSpec(artifact=result.artifact, signature=order.float32.signature)
    accepted = await bench.stage(
        "accept", spec, gives=AcceptResult, until=until, shown=shown or "checking the artifact", seconds=seconds
    )
    return Made(path=accepted.artifact, artifact=inspect(bench, accepted.artifact), result=result)


def checked(result: TransformResult, recipe: Single) -> TransformResult:
    """Take of what a process claims that may have run hostile code no more than an honest one would say.

    Raises:
        ToolchainFailed: the artifact is to run otherwise than the recipe asks for.
    """
    if result.execution != Execution(float_precision=getattr(recipe, "float_precision", "float32")):
        raise ToolchainFailed(
            "The process that read the upload wants its artifact run otherwise than the recipe says: nothing was made."
        )
    return replace(result, notes=result.notes[:MOST_CLAIMED_NOTES])


def put_aside(bench: Bench, made: Made, *, name: str) -> Made:
    """Move an artifact to where the next one made will not replace it."""
    path = f"made/{name}.onnx"
    (bench.scratch / "made").mkdir(exist_ok=True)
    output_path(bench.scratch, made.path).rename(bench.scratch / path)
    return replace(made, path=path)


async def bring_float32(bench: Bench, order: Order) -> str:
    """Copy the float32 artifact into the scratch folder."""
    return await bring_artifact(bench, order.float32)


async def _run(
    bench: Bench, order: Order, recipe: Single, *, until: float, shown: str | None, seconds: float | None
) -> TransformResult:
    chosen = order.calibration if recipe.needs_calibration else None
    spec = TransformSpec(
        artifact=await bring_float32(bench, order),
        signature=order.float32.signature,
        recipe=recipe,
        calibration=await bring_rows(bench, chosen, preprocessing=order.model.preprocessing) if chosen else None,
        upload=await bring_upload(bench, order.model) if starts_from_upload(recipe) else None,
    )
    return await bench.stage("transform", spec, gives=TransformResult, until=until, shown=shown, seconds=seconds)
