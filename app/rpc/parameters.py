"""What a request asks for beside its tensors: how urgently, until when, and of whom."""

from collections.abc import Mapping

from app.api.predictions import Wishes
from app.api.resolution import checked_affinity
from app.domain.errors import RequestInvalid
from app.domain.serving import priority_of
from app.rpc.calls import Call
from app.rpc.open_inference_pb2 import InferParameter, ModelInferRequest, ModelRepositoryParameter

PRIORITY, TIMEOUT = "priority", "timeout"
_SHARED_MEMORY = "shared_memory_region"
_SEQUENCE = "sequence_id"
_LEAST_SECONDS = 0.001  # not 0, which would mean no limit
_LARGEST_PRIORITY = 2**31 - 1
_LONGEST_TIMEOUT_MICROSECONDS = 24 * 3600 * 1_000_000

Value = bool | int | float | str | bytes
Parameter = InferParameter | ModelRepositoryParameter


def wishes_of(asked: ModelInferRequest, call: Call) -> Wishes:
    """Read what a request and its call ask for beside the answer.

    Raises:
        RequestInvalid: a parameter has a value that it cannot have, or asks for what Octet does not do.
    """
    given = values_of(asked.parameters)
    if given.get(_SEQUENCE):
        raise RequestInvalid("The request belongs to a sequence, but Octet's models keep no state: send it without.")
    if any(_SHARED_MEMORY in each.parameters for tensors in (asked.inputs, asked.outputs) for each in tensors):
        raise RequestInvalid("The request has tensors in shared memory, which Octet does not map: send their bytes.")
    return Wishes(
        timeout_seconds=_shortest(
            _whole(given, TIMEOUT, most=_LONGEST_TIMEOUT_MICROSECONDS) / 1e6, call.seconds_left()
        ),
        priority=priority_of(_whole(given, PRIORITY, most=_LARGEST_PRIORITY)),
        affinity=checked_affinity(call.affinity),
    )


def _shortest(asked: float, left: float | None) -> float | None:
    """Return the shorter of what a request asks for, where 0 is nothing, and of what its client has left."""
    times = [max(seconds, _LEAST_SECONDS) for seconds in (asked or None, left) if seconds is not None]
    return min(times, default=None)


def values_of(parameters: Mapping[str, InferParameter] | Mapping[str, ModelRepositoryParameter]) -> dict[str, Value]:
    """Return parameters as plain values; one without a value is left out."""
    return {name: value for name in parameters if (value := _value(parameters[name])) is not None}


def _value(parameter: Parameter) -> Value | None:
    field = parameter.WhichOneof("parameter_choice")
    value: Value | None = None if field is None else getattr(parameter, field)
    return value


def _whole(given: Mapping[str, Value], name: str, *, most: int) -> int:
    value = given.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RequestInvalid(f"The parameter {name!r} must be a whole number from 0 to {most}: send such a one.")
    return value
