"""One prediction: resolve, parse, infer, measure. What every inference protocol has in common."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.api.arrays import Array, as_numbers
from app.api.bodies import Parse
from app.api.dependencies import Services
from app.api.intake import Held
from app.api.resolution import Resolved, Resolver
from app.domain.errors import DeadlineExceeded, QueueFull, RequestInvalid
from app.domain.names import Reference
from app.domain.variants import Variant
from app.serving.pool import Room
from app.telemetry.meters import VariantMeters

LEAST_ROOM_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a variant answered; bfloat16 outputs as float32. `labels` name its classes, if the model has names."""

    variant: Variant
    outputs: dict[str, Array]
    queue_seconds: float
    compute_seconds: float
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a request asks for beside its answer.

    Attributes:
        timeout_seconds: how long the answer may take, from the request's first byte on; None for as long as the service
            allows.
        priority: higher ones are computed first; 0 is the usual one.
        affinity: the same key is answered by the same variant where weights decide.
    """

    timeout_seconds: float | None = None
    priority: int = 0
    affinity: str | None = None


NO_WISHES = Wishes()


def reference_of(model: str | None, variant: str | None) -> Reference:
    """Return what a request asks for.

    Raises:
        RequestInvalid: it names no model, or two variants.
    """
    if model is None:
        raise RequestInvalid("The request names no model: add ?model=name, or a member 'model' in a JSON body.")
    reference = Reference.parse(model)
    if variant is None or reference.variant == variant:
        return reference
    if reference.variant is not None:
        raise RequestInvalid(
            f"The request asks for two variants, {reference.variant!r} and {variant[:80]!r}: pick one."
        )
    return Reference(name=reference.name, version=reference.version, variant=variant)


async def predict(
    services: Services,
    resolver: Resolver,
    reference: Reference,
    *,
    parse: Parse,
    held: Held,
    began: float,
    wishes: Wishes = NO_WISHES,
) -> Prediction:
    """Answer with the variant that a reference means.

    Args:
        held: counts the request's bytes, which become the variant's.
        began: `time.perf_counter()` when the request's first byte was read.
    """
    resolved = await resolver.resolve(reference, affinity=wishes.affinity)
    held.assign(resolved.variant.key)
    return await answer(services, resolved, parse=parse, began=began, wishes=wishes)


async def answer(
    services: Services,
    resolved: Resolved,
    *,
    parse: Parse,
    began: float,
    wishes: Wishes = NO_WISHES,
    room: Room | None = None,
) -> Prediction:
    """Answer with a variant.

    Args:
        room: in which the body may lie already.

    Raises:
        DeadlineExceeded: it came, or was answered, too late.
    """
    variant = resolved.variant
    with _meters(services, variant).prediction(began=began) as observed:
        inputs = await parse(variant.signature)
        inference = await services.pool.infer(
            variant,
            inputs,
            preprocessing=resolved.preprocessing,
            timeout_seconds=_left_seconds(wishes, began=began),
            priority=wishes.priority,
            room=room,
        )
        observed.answered(
            queue_seconds=inference.queue_seconds, compute_seconds=inference.compute_seconds, rows=inference.rows
        )
    dtypes = {spec.name: spec.dtype for spec in variant.signature.outputs}
    return Prediction(
        variant=variant,
        outputs={name: as_numbers(array, dtypes[name]) for name, array in inference.outputs.items()},
        queue_seconds=inference.queue_seconds,
        compute_seconds=inference.compute_seconds,
        labels=resolved.labels,
    )


@contextmanager
def room_for(
    services: Services,
    resolved: Resolved,
    *,
    held: Held,
    size_bytes: int,
    lead_bytes: int,
    wishes: Wishes,
    began: float,
) -> Iterator[Room | None]:
    """Lend shared memory for a body that is long enough to gain by it; first see whether it is worth reading.

    Raises:
        QueueFull, DeadlineExceeded: its answer would come too late.
    """
    held.assign(resolved.variant.key)
    try:
        services.pool.check_wait(resolved.variant, timeout_seconds=_left_seconds(wishes, began=began))
    except (QueueFull, DeadlineExceeded) as error:
        _meters(services, resolved.variant).refused(error, began=began)
        raise
    if not LEAST_ROOM_BYTES <= size_bytes <= services.limits.max_predict_bytes:
        yield None
        return
    with services.pool.room(resolved.variant, size_bytes=size_bytes, lead_bytes=lead_bytes) as room:
        held.room = room.memory
        yield room


def _left_seconds(wishes: Wishes, *, began: float) -> float | None:
    """Return how much is left of the time that a request gives; None if it gives none.

    Raises:
        DeadlineExceeded: nothing.
    """
    if wishes.timeout_seconds is None:
        return None
    left = wishes.timeout_seconds - (time.perf_counter() - began)
    if left <= 0:
        raise DeadlineExceeded(
            f"The request took more than {1000 * wishes.timeout_seconds:g} ms to come, all the time that it gives: "
            "send it faster, or give it more."
        )
    return left


def _meters(services: Services, variant: Variant) -> VariantMeters:
    """Return what observes a variant. Only here may a name become a label: it exists."""
    return services.instruments.meters((variant.model, str(variant.version), variant.name))
