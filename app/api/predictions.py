"""One prediction: resolve, parse, infer, measure. What every inference protocol has in common."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.api.arrays import Array, as_numbers
from app.api.bodies import Parse
from app.api.dependencies import Services
from app.api.resolution import Resolved, Resolver
from app.domain.errors import (
    DeadlineExceeded,
    InvalidInput,
    OctetError,
    RequestInvalid,
    RunnerCrashed,
    TooLarge,
    Unavailable,
)
from app.domain.names import Reference
from app.domain.variants import Variant
from app.serving.terms import Arrays, EncodedImage, Inference

_OUTCOMES: tuple[tuple[type[OctetError], str], ...] = (
    (InvalidInput, "invalid"),
    (TooLarge, "invalid"),
    (Unavailable, "unavailable"),
    (RunnerCrashed, "crashed"),
    (DeadlineExceeded, "timeout"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a variant answered; bfloat16 outputs as float32."""

    variant: Variant
    outputs: dict[str, Array]
    queue_seconds: float
    compute_seconds: float


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
    began: float,
) -> Prediction:
    """Answer with the variant that a reference means.

    Args:
        began: `time.perf_counter()` when the request's first byte was read.
    """
    resolved = await resolver.resolve(reference)
    with _timed(services, resolved.variant, began=began):
        inference = await _infer(services, resolved, await parse(resolved.variant.signature))
    _observe(services, resolved.variant, inference)
    dtypes = {spec.name: spec.dtype for spec in resolved.variant.signature.outputs}
    return Prediction(
        variant=resolved.variant,
        outputs={name: as_numbers(array, dtypes[name]) for name, array in inference.outputs.items()},
        queue_seconds=inference.queue_seconds,
        compute_seconds=inference.compute_seconds,
    )


async def _infer(services: Services, resolved: Resolved, inputs: Arrays | EncodedImage) -> Inference:
    return await services.pool.infer(resolved.variant, inputs, preprocessing=resolved.preprocessing)


@contextmanager
def _timed(services: Services, variant: Variant, *, began: float) -> Iterator[None]:
    """Observe how long a prediction took and how it ended. Only here may a name become a label: it exists."""
    outcome = "error"
    try:
        yield
        outcome = "ok"
    except OctetError as error:
        outcome = next((word for family, word in _OUTCOMES if isinstance(error, family)), "error")
        raise
    finally:
        duration = services.instruments.request_duration.labels(*_labels(variant), outcome)
        duration.observe(time.perf_counter() - began)


def _observe(services: Services, variant: Variant, inference: Inference) -> None:
    instruments, labels = services.instruments, _labels(variant)
    instruments.queue_duration.labels(*labels).observe(inference.queue_seconds)
    instruments.compute_duration.labels(*labels).observe(inference.compute_seconds)
    instruments.batch_size.labels(*labels).observe(inference.rows)


def _labels(variant: Variant) -> tuple[str, str, str]:
    return variant.model, str(variant.version), variant.name
