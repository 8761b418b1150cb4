"""A job that trains, from end to end."""

from dataclasses import replace

from app.domain.errors import JobFailure, SandboxUnavailable
from app.domain.recipes import Qat
from workers.jobs.bench import Bench
from workers.jobs.lookup import look_up
from workers.jobs.publishing import batch_limit, publish_or_refuse, refuse_unmeasured, variant_of
from workers.jobs.training.flow import train
from workers.jobs.training.overlap import check_overlap
from workers.jobs.training.proof import prove_trained
from workers.jobs.transforming import bring_float32


async def train_and_publish(bench: Bench, recipe: Qat) -> str:
    """Make, train, measure and publish the variant, or what it began from where that is better; return its name."""
    name = bench.job.variant or recipe.default_name
    async with bench.step("fetching the model", until=3):
        order = await look_up(bench, recipe)
        await bring_float32(bench, order)
    try:
        findings = await check_overlap(bench, order, until=5)
        made = await train(bench, order, recipe, until=75)
        proven = await prove_trained(bench, order, recipe, made, name=name, until=97)
    except SandboxUnavailable:
        raise
    except JobFailure as failure:
        await refuse_unmeasured(bench, failure, order)
        raise
    evidence = replace(proven.evidence, findings=findings)
    variant = variant_of(bench, order, recipe, proven.made, name=name)
    variant = replace(variant, max_batch_size=batch_limit(evidence, recipe))
    return await publish_or_refuse(bench, order, variant, proven.made, evidence)
