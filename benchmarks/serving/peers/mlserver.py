"""MLServer: a runtime of one's own, asked through the Open Inference Protocol or through a raw handler beside it."""

import asyncio

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings  # type: ignore[import-not-found]
from mlserver import Settings as ServerSettings
from mlserver.codecs import Base64Codec, NumpyCodec  # type: ignore[import-not-found]
from mlserver.handlers import custom_handler  # type: ignore[import-not-found]
from mlserver.settings import ModelParameters  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]
from mlserver.utils import install_uvloop_event_loop  # type: ignore[import-not-found]
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.peers.engine import FLOAT32, FLOATS, QueueEngine, Settings, array_of


class Mobilenet(MLModel):  # type: ignore[misc]
    """The same engine behind both doors."""

    async def load(self) -> bool:
        self.engine = QueueEngine(Settings())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer in base64 what came in base64, in JSON what came in JSON."""
        given = payload.inputs[0]
        in_base64 = given.datatype == "BYTES"
        row = (
            np.frombuffer(Base64Codec.decode_input(given)[0], np.float32).reshape(FLOATS)
            if in_base64
            else NumpyCodec.decode_input(given)
        )
        logits = await self.engine.infer(row)
        codec, value = (
            (Base64Codec, [logits]) if in_base64 else (NumpyCodec, np.frombuffer(logits, np.float32).reshape(1, -1))
        )
        return InferenceResponse(model_name=self.name, outputs=[codec.encode_output("logits", value)])

    @custom_handler(rest_path="/raw")  # type: ignore[untyped-decorator]
    async def raw(self, request: Request) -> Response:
        """Answer one row."""
        body = await request.body()
        logits = await self.engine.infer(array_of(request.headers["content-type"], body))
        return Response(logits, media_type=FLOAT32)


async def main() -> None:
    """Serve, with the model in this process or in a worker process of the server's."""
    settings = Settings()
    server = MLServer(
        ServerSettings(
            host="127.0.0.1",
            http_port=settings.port,
            grpc_port=0,
            metrics_endpoint=None,
            parallel_workers=settings.workers,
            debug=False,
            gzip_enabled=False,
        )
    )
    model = ModelSettings(
        name="mobilenet",
        implementation="benchmarks.serving.peers.mlserver.Mobilenet",
        parameters=ModelParameters(version="1"),
    )
    await server.start([model])


if __name__ == "__main__":
    install_uvloop_event_loop()
    asyncio.run(main())
