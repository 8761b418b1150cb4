"""Quantize jobs: make a variant, measure it beside its float parent, and publish it only if it is worth it."""

from dataclasses import replace

from app.domain.errors import JobFailure, RecipeInvalid, SandboxUnavailable
from app.domain.recipes import Auto, PtqStatic, Qat, Single
from workers.jobs.bench import Bench
from workers.jobs.lookup import look_up
from workers.jobs.making import make
from workers.jobs.proof import prove
from workers.jobs.publishing import (
    batch_limit,
    publish_or_refuse,
    published_before,
    refuse_unmeasured,
    variant_of,
)
from workers.jobs.search.auto import search, tidy_up
from workers.jobs.training.job import train_and_publish
from workers.jobs.transforming import bring_float32
from workers.stage_records.measuring import Form


async def quantize(bench: Bench) -> str:
    """Make, measure and publish the variant, or search for the best one; return its name."""
    recipe = bench.job.recipe
    if recipe is None:
        raise RecipeInvalid(f"Job {bench.job.id} has no recipe: send one with the job.")
    if bench.job.attempt > 1 and (published := await published_before(bench)) is not None:
        if isinstance(recipe, Auto):
            await tidy_up(bench, recipe)
        return published
    if isinstance(recipe, Auto):
        return await search(bench, recipe)
    return await (train_and_publish(bench, recipe) if isinstance(recipe, Qat) else _carry_out(bench, recipe))


async def _carry_out(bench: Bench, recipe: Single) -> str:
    async with bench.step("fetching the model", until=5):
        order = await look_up(bench, recipe)
        await bring_float32(bench, order)
    try:
        async with bench.step("quantizing", until=40):
            made = await make(bench, order, recipe, until=40)
        variant = variant_of(bench, order, recipe, made, name=bench.job.variant or recipe.default_name)
        form = Form(name=variant.name, artifact=made.path, execution=variant.execution)
        evidence = await prove(bench, order, form, sense=isinstance(recipe, PtqStatic), until=97)
    except SandboxUnavailable:
        raise
    except JobFailure as failure:
        await refuse_unmeasured(bench, failure, order)
        raise
    variant = replace(variant, max_batch_size=batch_limit(evidence, recipe))
    return await publish_or_refuse(bench, order, variant, made, evidence)
