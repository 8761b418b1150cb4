"""`auto` from end to end: plan, hunt, choice, and the winner's way to publication."""

from datetime import UTC, datetime

from app.catalogue.trials import prune
from app.domain.errors import DatasetUnfit, JobFailure, OctetError, SandboxUnavailable, ToolchainFailed
from app.domain.recipes import Auto
from app.domain.recipes.summary import summary
from workers.jobs.bench import Bench
from workers.jobs.publishing import refuse_unmeasured
from workers.jobs.search.choice import eligible, measured, pick, shortlist
from workers.jobs.search.ending import Ending
from workers.jobs.search.hunt import Hunt
from workers.jobs.search.plan import make_plan, trials_of
from workers.jobs.transforming import bring_float32


async def search(bench: Bench, request: Auto) -> str:
    """Find, prove and publish the best variant under the budget; return its name.

    The rows that choose are not those of the final score. A winner that keeps the budget on the first and misses it on
    the second is published all the same, and its verdict says so: a second choice would be made by the rows that judge.

    Raises:
        DoesNotFit: it needs more than there is.
        BudgetMissed: nothing keeps the budget; what was found is kept with the job.
    """
    async with bench.step("planning", until=4):
        await prune(bench.workshop.store, now=datetime.now(UTC))
        plan = await make_plan(bench, request)
        await bring_float32(bench, plan.order)
    hunt = Hunt(bench, plan)
    try:
        ending = Ending(bench, plan, hunt, ended=await hunt.run())
    except DatasetUnfit as failure:
        await refuse_unmeasured(bench, failure, plan.order)
        raise
    if not measured(hunt.trials()):
        raise await ending.nothing_made()
    good = eligible(hunt.trials(), request.budget)
    if not good:
        raise await ending.nothing_kept()
    finalists = await ending.timed_again(shortlist(good))
    while True:
        chosen = pick(finalists)
        try:
            return await ending.published(chosen, finalists)
        except SandboxUnavailable:
            raise
        except JobFailure as error:
            await bench.log(f"{summary(chosen.recipe)} was given up: {error.message}")
            hunt.give_up(chosen, error.message)
            finalists = [trial for trial in finalists if trial is not chosen]
            if finalists and isinstance(error, ToolchainFailed):
                continue  # it breaks on a row of the final score: then it is no winner
            await ending.without_proof(error)
            raise


async def tidy_up(bench: Bench, request: Auto) -> None:
    """Drop the trials of a search that an earlier attempt published, and whose worker was lost before it did so."""
    try:
        trials = await trials_of(bench, request)
    except OctetError as error:  # what is published stands, and `prune` deletes the rest
        await bench.log(f"the trials of the search were not deleted: {error.message}")
        return
    await trials.drop()
