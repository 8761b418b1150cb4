"""One attempt at a job: from `queued` to a final record, whatever happens on the way."""

import errno
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

from app.catalogue.checkpoints import Checkpoints, prune
from app.catalogue.shelf import fail_upload
from app.domain.errors import (
    InternalFailure,
    JobFailure,
    OctetError,
    OutOfDisk,
    QueueUnavailable,
    WorkerLost,
)
from app.domain.jobs import Job, JobError, JobKind, JobState
from app.domain.recipes import Qat
from workers.jobs.bench import Bench, Workshop
from workers.jobs.evaluate import evaluate
from workers.jobs.imports import import_upload
from workers.jobs.patience import AttemptLost, patiently
from workers.jobs.quantize import quantize
from workers.jobs.scratch import scratch_folder

log = logging.getLogger(__name__)

KINDS: dict[JobKind, Callable[[Bench], Awaitable[str | None]]] = {
    JobKind.IMPORT: import_upload,
    JobKind.QUANTIZE: quantize,
    JobKind.EVALUATE: evaluate,
}
"""What each kind of job does; the answer is the name of the variant it published, if any."""


async def attempt(job_id: str, workshop: Workshop) -> None:
    """Run a job once and finish it. A job that is final already, or unknown, is left alone.

    Raises:
        AttemptLost: what an earlier attempt left cannot be read now, so the job is left for another attempt.
        Unavailable: the store or Redis is away for more than a minute.
    """
    job = await patiently(lambda: workshop.history.get(job_id))
    if job is not None:
        await patiently(partial(workshop.live.save, job))
        return
    job = await patiently(lambda: workshop.live.get(job_id))
    if job is None or job.state.final:
        return
    job = job.start(datetime.now(UTC))
    await patiently(partial(workshop.live.save, job))
    await _finish(await _run(job, workshop), workshop)
    await prune(workshop.store, workshop.history, now=datetime.now(UTC))


async def lose(job_id: str, workshop: Workshop) -> None:
    """Finish a job whose worker was lost too often."""
    job = await patiently(lambda: workshop.live.get(job_id))
    if job is None or job.state.final:
        return
    message = f"The worker was lost {job.attempt} times while it did this job: it may need more memory than there is."
    await _finish(job.fail(datetime.now(UTC), JobError(code=WorkerLost.code, message=message)), workshop)


async def _run(job: Job, workshop: Workshop) -> Job:
    bench = Bench(job, workshop)
    try:
        with scratch_folder(workshop.scratch, job=job.id) as bench.scratch:
            variant = await KINDS[job.kind](bench)
    except OctetError as error:
        return bench.job.fail(datetime.now(UTC), JobError(code=error.code, message=error.message))
    except AttemptLost:
        log.warning("attempt %d at job %s is given up: another may take it over", job.attempt, job.id)
        raise
    except Exception as error:  # the job's boundary: a bug must not take the worker with it
        log.exception("job %s failed inside Octet", job.id)
        failure = _failure_of(error, job)
        return bench.job.fail(datetime.now(UTC), JobError(code=failure.code, message=failure.message))
    return bench.job.succeed(datetime.now(UTC), variant=variant)


def _failure_of(error: Exception, job: Job) -> JobFailure:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutOfDisk("The worker's disk is full: free some space below OCTET_DATA_DIR and run the job again.")
    return InternalFailure(f"Octet failed inside: look for job {job.id} in the worker's log and report it.")


async def _finish(job: Job, workshop: Workshop) -> None:
    """Write the final record, unless another attempt is under way that may still succeed."""
    if job.state is JobState.FAILED:
        now = await patiently(lambda: workshop.live.get(job.id))
        if now is not None and now.attempt > job.attempt:
            log.warning("attempt %d at job %s failed, but another is under way", job.attempt, job.id)
            return
    kept_log = await _log_of(job, workshop)
    final = await patiently(lambda: workshop.history.finish(job, log=kept_log))
    if isinstance(job.recipe, Qat):
        await Checkpoints(workshop.store, job.id).drop()
    await patiently(lambda: fail_upload(final, models=workshop.models, datasets=workshop.datasets))
    await patiently(lambda: workshop.live.save(final))
    await patiently(lambda: workshop.live.drop_log(job.id))


async def _log_of(job: Job, workshop: Workshop) -> str:
    try:
        return await workshop.live.log(job.id)
    except QueueUnavailable as error:
        return f"The log was lost: {error.message}\n"
