"""What tests of gRPC share: the server beside an application under test, and calls as bare messages."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from app.rpc import open_inference_pb2 as pb
from app.rpc.server import rpc_server
from tests.api.harness import SECONDS, Api, publish_model, running_api
from tests.graphs import rows
from tests.running import free_port

PREFIX = "/inference.GRPCInferenceService/"
ROWS = rows(2)
LIMIT = 100_000
RESPONSES: dict[str, Any] = {"ModelInfer": pb.ModelInferResponse, "RepositoryIndex": pb.RepositoryIndexResponse}


@contextmanager
def running_rpc(api: Api, *, port: int | None = None, **options: Any) -> Iterator[str]:
    """Serve gRPC, on a free port if none is named; yield where, as `host:port`."""
    stack, chosen = AsyncExitStack(), port or free_port()
    api.do(
        lambda services: stack.enter_async_context(
            rpc_server(services, api.app.state.resolver, host="127.0.0.1", port=chosen, **options)
        )
    )
    try:
        yield f"127.0.0.1:{chosen}"
    finally:
        api.do(lambda _services: stack.aclose())


@contextmanager
def serving_net(folder: Path) -> Iterator[Api]:
    """Run the application without Redis, with `net`."""
    nowhere = f"unix://{folder}/nobody-listens.sock"
    limits = {"max_predict_bytes": LIMIT, "max_batch_size": 8, "body_timeout_seconds": 0.5}
    with running_api(folder / "data", redis_url=nowhere, **limits) as running:
        publish_model(running, folder)
        yield running


@contextmanager
def refused(status: StatusCode, words: str = "") -> Iterator[dict[str, Any]]:
    """Expect a call to end with a status and a message; yield what will be its trailers."""
    trailers: dict[str, Any] = {}
    with pytest.raises(grpc.RpcError) as caught:
        yield trailers
    error: Any = caught.value
    assert error.code() is status, error
    assert words in error.details()
    trailers.update(error.trailing_metadata() or ())


def call(channel: grpc.Channel, method: str, request: Any, **options: Any) -> Any:
    response = RESPONSES[method]
    made = channel.unary_unary(
        PREFIX + method,
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return made(request, timeout=options.pop("timeout", SECONDS), **options)


def asked(array: Any = ROWS, **members: Any) -> pb.ModelInferRequest:
    """Ask `net` for an answer to an array as raw bytes."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=array.shape)
    defaults = {"model_name": "net", "inputs": [tensor], "raw_input_contents": [array.tobytes()]}
    return pb.ModelInferRequest(**{**defaults, **members})


def logits(answer: pb.ModelInferResponse) -> Any:
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)


def in_flight(api: Api) -> float:
    """Return how many predictions are under way."""
    (metric,) = api.services.instruments.requests_in_flight.collect()
    return sum(sample.value for sample in metric.samples)
