"""The one-shot: model, rows and recipe in one form; the variant's file as the answer, if it is ready in time."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from uuid import uuid4

from app.api.dependencies import Services
from app.api.labels import LABELS, parse_labels
from app.api.multipart import Part
from app.api.orders import Sources, check_possible, check_rows, quantize_job
from app.api.schemas.recipes import parse_preprocessing, parse_recipe
from app.api.submission import submit
from app.api.training import find_teacher
from app.api.uploads import Form, announce_dataset, announce_model, receive
from app.catalogue.shelf import Entry
from app.domain.datasets import DatasetManifest
from app.domain.errors import JobFailure, NameTaken, RequestInvalid, TooMany, failure_of
from app.domain.jobs import Job, JobState
from app.domain.models import Upload
from app.domain.names import Reference, check_name
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import PtqStatic, Recipe
from app.domain.variants import FLOAT32, Variant

LONGEST_WAIT_SECONDS = 600
TEXT = ("name", "recipe", "preprocessing", LABELS, "variant")
FILES = ("model", "calibration", "evaluation", "training")

_WAIT = re.compile(r"wait\s*=\s*\"?(?P<seconds>\d{1,9})\"?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The form's text fields, read."""

    name: str | None
    recipe: Recipe
    preprocessing: ImagePreprocessing | None
    labels: tuple[str, ...] | None
    variant: str | None


def wait_seconds(prefer: str | None) -> int | None:
    """Return the N of `Prefer: wait=N` (RFC 7240), at most 600; None if it is not there."""
    found = [match for part in re.split("[,;]", prefer or "") if (match := _WAIT.fullmatch(part.strip()))]
    return min(int(found[0]["seconds"]), LONGEST_WAIT_SECONDS) if found else None


async def receive_all(services: Services, form: Form, parts: AsyncIterator[Part], *, undo: AsyncExitStack) -> Job:
    """Stream the form's files to the store, then queue their imports and the job that waits for them."""
    options: Options | None = None
    uploads: dict[str, Upload] = {}
    async for part in parts:
        options = options or _read(form.fields)
        if part.name == "model":
            uploads["model"] = await receive(
                services,
                services.models,
                part,
                name=options.name,
                preprocessing=options.preprocessing,
                labels=options.labels,
                undo=undo,
            )
        else:
            uploads[part.name] = await receive(services, services.datasets, part, name=None, undo=undo)
    if options is None or "model" not in uploads:
        raise RequestInvalid(f"The form has no model: send the files {', '.join(FILES)} behind the text fields.")
    check_rows(
        options.recipe,
        calibration="calibration" in uploads,
        evaluation="evaluation" in uploads,
        training="training" in uploads,
    )
    return await _queue(services, options, uploads, undo=undo)


def _read(fields: dict[str, str]) -> Options:
    recipe, preprocessing, variant = fields.get("recipe"), fields.get("preprocessing"), fields.get("variant")
    if variant is not None and check_name(variant, of="variant") == FLOAT32:
        raise NameTaken(f"Every model already has a variant {FLOAT32!r}: choose another name.")
    return Options(
        name=fields.get("name"),
        recipe=PtqStatic() if recipe is None else parse_recipe(recipe),
        preprocessing=None if preprocessing is None else parse_preprocessing(preprocessing),
        labels=parse_labels(fields.get(LABELS)),
        variant=variant,
    )


async def _queue(services: Services, options: Options, uploads: dict[str, Upload], *, undo: AsyncExitStack) -> Job:
    sources = Sources(
        model=Entry(upload=uploads["model"]),
        calibration=_entry(uploads, "calibration"),
        evaluation=_entry(uploads, "evaluation"),
        training=_entry(uploads, "training"),
        teacher=await find_teacher(services, options.recipe),
    )
    after = sources.after()
    check_possible(options.recipe, sources)
    await announce_model(services, uploads["model"], undo=undo)
    for purpose in FILES[1:]:
        if purpose in uploads:
            await announce_dataset(services, uploads[purpose], undo=undo)
    job = quantize_job(uuid4().hex, sources, recipe=options.recipe, variant=options.variant)
    await submit(services, job, after=after, undo=undo)
    return job


def _entry(uploads: dict[str, Upload], purpose: str) -> Entry[DatasetManifest] | None:
    return Entry(upload=uploads[purpose]) if purpose in uploads else None


async def outcome(services: Services, job: Job, *, within_seconds: float) -> Job:
    """Wait for a job; return its latest record.

    It may not be final: when the time is over, the process stops, or too many wait already.
    """
    latest, deadline = job, time.monotonic() + within_seconds
    if within_seconds <= 0:
        return latest
    try:
        async with asyncio.timeout(within_seconds):
            async with aclosing(services.live.follow(job.id)) as events:
                async for event in events:
                    if event is not None:
                        latest = event[1]
                    # the Redis client can swallow a cancellation
                    if services.stopping.is_set() or time.monotonic() >= deadline:
                        return latest
    except (TimeoutError, TooMany):
        return latest
    return latest


async def made_variant(services: Services, job: Job) -> Variant:
    """Return what a finished quantize job published.

    Raises:
        OctetError: it did not succeed; the class is the one that its code names, else JobFailure.
    """
    if job.error is not None:
        raise failure_of(job.error.code, job.error.message)
    if job.state is not JobState.SUCCEEDED or job.model is None or job.variant is None:
        raise JobFailure(f"Job {job.id} was {job.state} before it made a variant: ask again.")
    model = Reference.parse(job.model)
    return await services.variants.get(model.name, model.version or 1, job.variant)
