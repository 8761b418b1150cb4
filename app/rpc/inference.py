"""Inference over gRPC: one prediction for a message, or many for a stream of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from app.api.binary_tensors import Inputs
from app.api.bodies import aside
from app.api.dependencies import Services
from app.api.intake import Held
from app.api.model_paths import reference_in
from app.api.predictions import Prediction, predict
from app.api.resolution import Resolver
from app.domain.errors import Unavailable
from app.domain.tensors import Signature
from app.rpc import open_inference_pb2 as pb
from app.rpc.answers import answer_of
from app.rpc.calls import Call, failure_of
from app.rpc.parameters import wishes_of
from app.rpc.streams import in_order, until
from app.rpc.tensors import inputs_of, is_raw

_TYPED_WEIGHT = 8  # a number in a typed field may take one byte on its way, and eight in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """The methods that predict.

    Attributes:
        ending: set when no more requests are taken.
    """

    services: Services
    resolver: Resolver
    ending: asyncio.Event

    async def infer(self, asked: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Answer one request."""
        if self.ending.is_set():
            raise Unavailable("The process is stopping: send the request again, to another one.", retry_after_seconds=1)
        return await self._infer(asked, call)

    async def _infer(self, asked: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        weight = 1 if is_raw(asked) else _TYPED_WEIGHT
        with self.services.instruments.requests_in_flight.track_inprogress(), self.services.intake.held() as held:
            held.add(size_bytes := weight * asked.ByteSize())
            made = await self._predict(asked, call, held=held, size_bytes=0 if is_raw(asked) else size_bytes)
        return answer_of(asked, made)

    async def stream_infer(
        self, asked: AsyncIterator[pb.ModelInferRequest], call: Call
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Answer requests in their order; one that fails fails alone, and the stream goes on until the server ends."""

        async def answer(each: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                return pb.ModelStreamInferResponse(infer_response=await self._infer(each, call.next_message()))
            except Exception as error:  # noqa: BLE001 - the last handler for a message, as `calls` is for a call
                failure = failure_of(error, request_id=call.request_id)
                return pb.ModelStreamInferResponse(
                    error_message=failure.message, infer_response=pb.ModelInferResponse(id=each.id)
                )

        async with aclosing(until(self.ending, asked)) as messages, aclosing(in_order(messages, answer)) as answers:
            async for one in answers:
                yield one

    async def _predict(self, asked: pb.ModelInferRequest, call: Call, *, held: Held, size_bytes: int) -> Prediction:
        async def parse(signature: Signature) -> Inputs:
            return await aside(lambda: inputs_of(asked, signature), size_bytes=size_bytes)

        return await predict(
            self.services,
            self.resolver,
            reference_in(asked.model_name, asked.model_version or None),
            parse=parse,
            held=held,
            began=call.began,
            wishes=wishes_of(asked, call),
        )
