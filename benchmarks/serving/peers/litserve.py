"""LitServe: a batch of up to 8 in a worker process; with two streams a batch's rows run side by side."""

from typing import Annotated

import numpy as np
import openvino as ov
from fastapi import Depends, Request, Response
from litserve import LitAPI, LitServer  # type: ignore[import-not-found]

from benchmarks.serving.peers.engine import Array, Settings, array_of, compiled

BATCH, WAIT_SECONDS = 8, 0.001
settings = Settings()


class Body:
    """A body whose text is short: LitServe writes every request into its debug log, wanted or not."""

    def __init__(self, media: str, data: bytes) -> None:
        self.media, self.data = media, data

    def __repr__(self) -> str:
        return "Body()"


async def read(request: Request) -> Body:
    """Take the body as it is."""
    return Body(request.headers["content-type"], await request.body())


class Mobilenet(LitAPI):  # type: ignore[misc]
    """One worker; one call of the engine for a batch, or a queue of two streams."""

    def setup(self, device: str) -> None:  # noqa: ARG002  (LitServe's name for it)
        self.model = compiled(settings.artifact, streams=settings.streams, pixels=settings.pixels)
        self.request = self.model.create_infer_request()
        self.queue = ov.AsyncInferQueue(self.model, BATCH)
        self.queue.set_callback(self._keep)
        self.answers: list[bytes] = []

    def decode_request(self, request: Annotated[Body, Depends(read)]) -> Array:
        return array_of(request.media, request.data)

    def batch(self, inputs: list[Array]) -> list[Array]:
        return inputs

    def predict(self, x: list[Array]) -> list[bytes]:
        if settings.streams == 1:
            self.request.infer([np.concatenate(x) if len(x) > 1 else x[0]], share_inputs=True)
            return [row.tobytes() for row in self.request.get_output_tensor(0).data]
        self.answers = [b""] * len(x)
        for number, row in enumerate(x):
            self.queue.start_async([row], number, share_inputs=True)
        self.queue.wait_all()
        return self.answers

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")

    def _keep(self, request: ov.InferRequest, number: int) -> None:
        self.answers[number] = request.get_output_tensor(0).data.tobytes()


if __name__ == "__main__":
    server = LitServer(
        Mobilenet(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS), accelerator="cpu", restart_workers=True
    )
    server.run(host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="warning", access_log=False)
