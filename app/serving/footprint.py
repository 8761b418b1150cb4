"""What the runners of a machine take and whether they are in use: asked of them, and reckoned for those that start."""

import asyncio
from collections.abc import Iterable

from app.domain.serving import Knobs, RunnerStatus, Servable
from app.serving.keeper import Keeper
from app.serving.runner import Runner

STATUS_SECONDS = 1.0
OVERHEAD_BYTES = 100 * 2**20
GROWTH = 3
"""A runner is expected to need `OVERHEAD_BYTES` for the engine and `GROWTH` times its artifact."""

Told = dict[Keeper, list[RunnerStatus]]
"""What every keeper's runners said; one that did not say it at once is left out."""


async def ask(keepers: Iterable[Keeper]) -> Told:
    """Ask every ready runner how it fares."""
    asked = [(keeper, runner) for keeper in keepers for runner in keeper.runners]
    said = await asyncio.gather(*(_status(runner) for _, runner in asked))
    told: Told = {keeper: [] for keeper in keepers}
    for (keeper, _), status in zip(asked, said, strict=True):
        if status is not None:
            told[keeper].append(status)
    return told


def expected_bytes(variant: Servable, knobs: Knobs) -> int:
    """Return what all runners of a variant are expected to take."""
    return knobs.instances * (OVERHEAD_BYTES + GROWTH * variant.artifact.size_bytes)


def taken_bytes(keeper: Keeper, told: list[RunnerStatus]) -> int:
    """Return what its runners take, and what those will that did not say so yet."""
    none_comes = keeper.settled and not keeper.runners
    silent = 0 if none_comes else max(0, keeper.knobs.instances - len(told))
    each = expected_bytes(keeper.variant, keeper.knobs) // keeper.knobs.instances
    return sum(status.pss_bytes for status in told) + silent * each


def is_idle(keeper: Keeper, told: list[RunnerStatus]) -> bool:
    """Whether all its runners said that they hold no request; one that is still starting is not idle."""
    return keeper.settled and len(told) == len(keeper.runners) and not any(status.in_flight for status in told)


def last_used_ns(keeper: Keeper, told: list[RunnerStatus]) -> int:
    """Return when it was last asked for or last answered, on the monotonic clock."""
    return max([keeper.used_ns, *(status.last_inference_ns for status in told)])


async def _status(runner: Runner) -> RunnerStatus | None:
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            return await runner.status()
    except TimeoutError:
        return None
