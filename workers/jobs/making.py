"""From a recipe to a variant's graph, by training or without."""

from app.domain.recipes import Qat, Single
from workers.jobs.bench import Bench
from workers.jobs.lookup import Order
from workers.jobs.training.flow import train
from workers.jobs.transforming import Made, transform


async def make(
    bench: Bench,
    order: Order,
    recipe: Single,
    *,
    until: float,
    shown: str | None = None,
    seconds: float | None = None,
) -> Made:
    """Carry out a recipe.

    Args:
        shown, seconds: as of `Bench.stage`.

    Raises:
        JobFailure: it cannot be carried out.
    """
    if isinstance(recipe, Qat):
        return await train(bench, order, recipe, until=until, shown=shown, seconds=seconds)
    return await transform(bench, order, recipe, until=until, shown=shown, seconds=seconds)
