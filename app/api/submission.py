"""Queues jobs, and calls them off."""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from app.api.dependencies import Services
from app.catalogue.shelf import fail_upload
from app.domain.errors import IllegalTransition, QueueUnavailable
from app.domain.jobs import Job, JobState
from app.domain.recipes import Qat

TRAINING_STEP = "training"
"""What the name of a job's step begins with as long as it trains."""

_log = logging.getLogger("octet.api")


async def submit(services: Services, job: Job, *, after: Sequence[str] = (), undo: AsyncExitStack) -> None:
    """Write a job's record and queue it.

    Args:
        after: jobs that have to end first.
        undo: gets what takes it back.
    """
    undo.push_async_callback(_withdraw, services, job)
    await services.live.save(job)
    await services.queue.submit(job.id, after=after)


async def cancel(services: Services, job: Job) -> Job:
    """Call a job off; return the record that counts.

    Raises:
        IllegalTransition: it is final already.
    """
    if job.state.final:
        raise IllegalTransition(f"Job {job.id} is {job.state} already: only a queued or running job can be cancelled.")
    cancelled = job.cancel(datetime.now(UTC))
    counted = await services.history.finish(cancelled, log=await services.live.log(job.id))
    await fail_upload(counted, models=services.models, datasets=services.datasets)
    await services.queue.stop(job.id)
    await services.live.save(counted)
    await services.live.drop_log(job.id)
    if counted.state is not cancelled.state:
        raise IllegalTransition(f"Job {job.id} is {counted.state} already: it ended before it could be cancelled.")
    return counted


async def ask_to_finish(services: Services, job: Job) -> Job:
    """Ask a job that trains to end its training, and to go on with the best so far; return its record as it is.

    One that runs and does not train yet will end its training at the first look.

    Raises:
        IllegalTransition: it does not train, is not running, or is past its training.
    """
    if not isinstance(job.recipe, Qat):
        raise IllegalTransition(f"Job {job.id} does not train, so there is no best to keep: cancel it without keep.")
    if job.state.final:
        raise IllegalTransition(f"Job {job.id} is {job.state} already: only a running job can end its training.")
    if job.state is not JobState.RUNNING:
        raise IllegalTransition(f"Job {job.id} is {job.state} and has trained nothing yet: cancel it without keep.")
    if _trained(job):
        raise IllegalTransition(
            f"Job {job.id} has ended its training already, and what was best in it is being measured: wait for the "
            "job, or cancel it without keep."
        )
    await services.live.ask_to_finish(job.id)
    return job


def _trained(job: Job) -> bool:
    """Whether a job that runs is past its training; an attempt begins without progress."""
    progress = job.training_progress
    return progress is not None and (progress.step == progress.steps or not job.step.startswith(TRAINING_STEP))


async def _withdraw(services: Services, job: Job) -> None:
    try:
        await services.queue.stop(job.id)
        await services.live.forget(job.id)
    except QueueUnavailable:  # then nobody can take the job either; what is left of it names an upload that is gone
        _log.warning("job could not be withdrawn", extra={"octet": {"job": job.id}})
