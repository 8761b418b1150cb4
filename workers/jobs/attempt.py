"""One attempt at a job: from `queued` to a final record, whatever happens on the way."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from app.catalogue.shelf import fail_upload
from app.domain.errors import InternalFailure, OctetError, QueueUnavailable, WorkerLost
from app.domain.jobs import Job, JobError, JobKind
from workers.jobs.bench import Bench, Workshop
from workers.jobs.evaluate import evaluate
from workers.jobs.imports import import_upload
from workers.jobs.quantize import quantize
from workers.jobs.scratch import scratch_folder

log = logging.getLogger(__name__)

KINDS: dict[JobKind, Callable[[Bench], Awaitable[str | None]]] = {
    JobKind.IMPORT: import_upload,
    JobKind.QUANTIZE: quantize,
    JobKind.EVALUATE: evaluate,
}
"""What each kind of job does; the answer is the name of the variant it published, if any."""

_TELL_FOR_SECONDS = 60


async def attempt(job_id: str, workshop: Workshop) -> None:
    """Run a job once and finish it. A job that is final already, or unknown, is left alone."""
    job = await workshop.history.get(job_id)
    if job is not None:
        await workshop.live.save(job)
        return
    job = await workshop.live.get(job_id)
    if job is None or job.state.final:
        return
    job = job.start(datetime.now(UTC))
    await workshop.live.save(job)
    await _finish(await _run(job, workshop), workshop)


async def lose(job_id: str, workshop: Workshop) -> None:
    """Finish a job whose worker was lost too often."""
    job = await workshop.live.get(job_id)
    if job is None or job.state.final:
        return
    message = f"The worker was lost {job.attempt} times while it did this job: it may need more memory than there is."
    await _finish(job.fail(datetime.now(UTC), JobError(code=WorkerLost.code, message=message)), workshop)


async def _run(job: Job, workshop: Workshop) -> Job:
    with scratch_folder(workshop.scratch, job=job.id) as scratch:
        bench = Bench(job, workshop, scratch=scratch)
        try:
            variant = await KINDS[job.kind](bench)
        except OctetError as error:
            return bench.job.fail(datetime.now(UTC), JobError(code=error.code, message=error.message))
        except Exception:  # the job's boundary: a bug must not take the worker with it
            log.exception("job %s failed inside Octet", job.id)
            message = f"Octet failed inside: look for job {job.id} in the worker's log and report it."
            return bench.job.fail(datetime.now(UTC), JobError(code=InternalFailure.code, message=message))
        return bench.job.succeed(datetime.now(UTC), variant=variant)


async def _finish(job: Job, workshop: Workshop) -> None:
    final = await workshop.history.finish(job, log=await _log_of(job, workshop))
    await fail_upload(final, models=workshop.models, datasets=workshop.datasets)
    deadline = asyncio.get_running_loop().time() + _TELL_FOR_SECONDS
    while True:
        try:
            await workshop.live.save(final)
        except QueueUnavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(1)
        else:
            return


async def _log_of(job: Job, workshop: Workshop) -> str:
    try:
        return await workshop.live.log(job.id)
    except QueueUnavailable as error:
        return f"The log was lost: {error.message}\n"
