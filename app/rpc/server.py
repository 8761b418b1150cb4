"""The gRPC server of a gateway process: its methods, its limits, its start and its end."""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from app.api.dependencies import Services
from app.api.resolution import Resolver
from app.domain.errors import RequestInvalid
from app.rpc import calls, health, open_inference_pb2
from app.rpc.descriptions import Descriptions
from app.rpc.inference import Inference
from app.rpc.readiness import Readiness
from app.rpc.repository import Repository
from app.rpc.statistics import Statistics

STOP_SECONDS = 10.0
MOST_CALLS = 512
MOST_HEALTH_CALLS = 512
_LOOK_EVERY_SECONDS = 0.1
_FAREWELL_SECONDS = 2 * health.LOOK_EVERY_SECONDS
_REFUSE_SECONDS = 0.3
_CALLS_PER_CONNECTION = 1000
_HEADER_BYTES = 2**20  # names, shapes and parameters around a request's tensors
_METADATA_BYTES = 16 * 1024
_BEING_REFUSED = 64  # calls at once that are told why; gRPC itself refuses any more

Behaviour = Callable[[Any, calls.Call], Any]


@asynccontextmanager
async def rpc_server(
    services: Services,
    resolver: Resolver,
    *,
    host: str,
    port: int,
    shared: bool = False,
    most_calls: int = MOST_CALLS,
    most_health_calls: int = MOST_HEALTH_CALLS,
    stop_seconds: float = STOP_SECONDS,
) -> AsyncIterator[None]:
    """Serve until the process is told to stop or the block ends; then answer the calls under way, and take no more.

    Args:
        most_calls: of the inference service at once, streams included; one more is refused with RESOURCE_EXHAUSTED.
        most_health_calls: of the health service at once, watches included; these take no room from inference.
        shared: several processes listen on the port, and the kernel spreads connections among them. Alone, a process
            must not: it would take a part of another program's connections instead of failing.

    Raises:
        OSError: the port cannot be listened on.
    """
    server = grpc.aio.server(
        options=_options(services.limits.max_predict_bytes + _HEADER_BYTES, shared=shared),
        maximum_concurrent_rpcs=most_calls + most_health_calls + _BEING_REFUSED,
    )
    ending = asyncio.Event()
    quotas = (
        calls.Quota(most_calls, what="calls", advice="make fewer at once, or raise OCTET_GRPC_MAX_CALLS"),
        calls.Quota(most_health_calls, what="calls of the health service", advice="let clients share a watch"),
    )
    server.add_generic_rpc_handlers(_handlers(services, resolver, ending=ending, quotas=quotas))
    _listen(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    await server.start()
    draining = asyncio.create_task(_drain_when_told(server, services.stopping, ending, stop_seconds=stop_seconds))
    try:
        yield
    finally:
        if not services.stopping.is_set():
            draining.cancel()
            ending.set()
            await server.stop(stop_seconds)
        await asyncio.gather(draining, return_exceptions=True)


async def _drain_when_told(
    server: grpc.aio.Server, stopping: asyncio.Event, ending: asyncio.Event, *, stop_seconds: float
) -> None:
    """End soon after the process is told to stop.

    First whoever watches its health learns of it; then requests are refused as clients understand it, for gRPC itself
    tells one that comes while it stops that it was cancelled, which no client sends again.
    """
    while not stopping.is_set():  # noqa: ASYNC110 - a signal handler sets it, and may not wake a task
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    await asyncio.sleep(_FAREWELL_SECONDS)
    ending.set()
    await asyncio.sleep(_REFUSE_SECONDS)
    await server.stop(stop_seconds)


def _listen(server: grpc.aio.Server, address: str) -> None:
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(
            errno.EADDRINUSE,
            f"gRPC cannot listen on {address}: another program does, or the address is not this machine's. Set "
            "OCTET_GRPC_PORT to a free port",
        ) from error


def _options(most_bytes: int, *, shared: bool) -> list[tuple[str, int]]:
    """Return the server's limits: sizes of messages, as received and unpacked, and how often a client may ping."""
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 5),
    ]


def _handlers(
    services: Services, resolver: Resolver, *, ending: asyncio.Event, quotas: tuple[calls.Quota, calls.Quota]
) -> tuple[grpc.GenericRpcHandler, ...]:
    readiness = Readiness(services)
    descriptions = Descriptions(services=services, resolver=resolver, readiness=readiness)
    inference = Inference(services=services, resolver=resolver, ending=ending)
    statistics = Statistics(services=services)
    repository = Repository(services=services)
    standing = health.Health(services=services, resolver=resolver, readiness=readiness)
    return (
        _service(
            open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
            {
                "ServerLive": descriptions.server_live,
                "ServerReady": descriptions.server_ready,
                "ModelReady": descriptions.model_ready,
                "ServerMetadata": descriptions.server_metadata,
                "ModelMetadata": descriptions.model_metadata,
                "ModelInfer": inference.infer,
                "ModelStreamInfer": inference.stream_infer,
                "ModelStatistics": statistics.of_model,
                "RepositoryIndex": repository.index,
                "RepositoryModelLoad": repository.load,
                "RepositoryModelUnload": repository.unload,
            },
            seconds=services.limits.body_timeout_seconds,
            quota=quotas[0],
        ),
        _service(
            health.SERVICE,
            {"Check": standing.check, "List": standing.list, "Watch": standing.watch},
            seconds=services.limits.body_timeout_seconds,
            quota=quotas[1],
        ),
    )


def _service(
    service: ServiceDescriptor, behaviours: Mapping[str, Behaviour], *, seconds: float, quota: calls.Quota
) -> grpc.GenericRpcHandler:
    """Return the handler of a service, every method of which must have its behaviour."""
    handlers = {
        method.name: _handler(method, _wrapped(method, behaviours[method.name], seconds=seconds, quota=quota))
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(method: MethodDescriptor, behaviour: Callable[..., Awaitable[Any]]) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return the handler of a method.

    For gRPC all take streams, if only of one message: a message is then read when the method asks for it, so that how
    long it may take, and what is said about one that cannot be read, is up to us.
    """
    make = grpc.stream_stream_rpc_method_handler if method.server_streaming else grpc.stream_unary_rpc_method_handler
    return make(
        behaviour,
        request_deserializer=_reader(GetMessageClass(method.input_type)),
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _wrapped(
    method: MethodDescriptor, behaviour: Behaviour, *, seconds: float, quota: calls.Quota
) -> Callable[..., Awaitable[Any]]:
    if method.client_streaming:
        return calls.streaming(method.name, behaviour, quota=quota)
    if method.server_streaming:
        return calls.watched(method.name, behaviour, seconds=seconds, quota=quota)
    return calls.unary(method.name, behaviour, seconds=seconds, quota=quota)


def _reader(message: type[Message]) -> Callable[[bytes], Message]:
    def read(data: bytes) -> Message:
        try:
            return message.FromString(data)
        except DecodeError as error:
            raise RequestInvalid(f"The message is no {message.DESCRIPTOR.full_name}: encode it as one.") from error

    return read
