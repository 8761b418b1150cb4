"""What training begins from: post-training quantizations, made once and kept in the store for a later attempt."""

from functools import partial

from app.catalogue.checkpoints import Checkpoints, KeptStart, KeptStarts
from app.domain.errors import JobFailure, SandboxUnavailable, Unavailable
from app.domain.recipes import Qat
from app.domain.recipes.summary import summary
from app.domain.variants import Artifact
from workers.jobs.bench import Bench
from workers.jobs.files import inspect
from workers.jobs.lookup import Order
from workers.jobs.patience import taken_over
from workers.jobs.refusals import check_smaller
from workers.jobs.transforming import Made, put_aside, transform
from workers.outputs import output_path
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.making import TransformResult


async def make_starts(
    bench: Bench, order: Order, recipe: Qat, *, until: float, shown: str | None, seconds: float | None
) -> dict[str, Made]:
    """Make what training can begin from, by their recipes' summaries; one that cannot be made is left out.

    Raises:
        JobFailure: none can be made: why the first could not.
    """
    made: dict[str, Made] = {}
    failures: list[JobFailure] = []
    name = (bench.job.variant if order.training is not None else None) or recipe.default_name
    began = bench.job.percent
    for number, start in enumerate(recipe.starts, 1):
        percent = began + (until - began) * number / len(recipe.starts)
        try:
            one = await transform(bench, order, start, until=percent, shown=shown, seconds=seconds)
            check_smaller(one.artifact, order.float32.artifact, name=name)
        except SandboxUnavailable:
            raise
        except JobFailure as failure:
            await bench.log(f"{summary(start)} could not be made to begin from: {failure.message}")
            failures.append(failure)
            continue
        made[summary(start)] = put_aside(bench, one, name=f"start-{number}")
    if not made:
        raise failures[0]
    return made


async def keep_starts(bench: Bench, checkpoints: Checkpoints, starts: dict[str, Made]) -> None:
    """Store what training begins from, if the store can."""
    kept = KeptStarts(starts=tuple(_record(name, made) for name, made in starts.items()))
    try:
        await checkpoints.keep_starts(kept, [output_path(bench.scratch, made.path) for made in starts.values()])
    except Unavailable as error:
        await bench.log(f"what training begins from was not stored: {error.message}")


async def kept_starts(bench: Bench, checkpoints: Checkpoints) -> dict[str, Made] | None:
    """Bring what an earlier attempt began from; None if it is not all there.

    Raises:
        AttemptLost: the store is away.
    """
    kept = await taken_over(checkpoints.starts)
    if kept is None:
        return None
    found = await _brought(bench, checkpoints, kept)
    if found is None:
        await bench.log("what an earlier attempt began from is lost or damaged, and made again")
    return found


async def _brought(bench: Bench, checkpoints: Checkpoints, kept: KeptStarts) -> dict[str, Made] | None:
    (bench.scratch / "made").mkdir(exist_ok=True)
    found: dict[str, Made] = {}
    for number, start in enumerate(kept.starts, 1):
        path = f"made/start-{number}.onnx"
        if not await taken_over(partial(checkpoints.fetch_start, start, bench.scratch / path)):
            return None
        artifact: Artifact = inspect(bench, path)
        result = TransformResult(
            artifact=VARIANT_OUTPUT, execution=start.execution, libraries=start.libraries, notes=start.notes
        )
        found[start.recipe] = Made(path=path, artifact=artifact, result=result)
    return found


def _record(name: str, made: Made) -> KeptStart:
    result = made.result
    return KeptStart(
        recipe=name,
        sha256=made.artifact.sha256,
        execution=result.execution,
        libraries=result.libraries,
        notes=result.notes,
    )
