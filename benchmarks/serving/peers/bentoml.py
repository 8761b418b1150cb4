"""BentoML: a typed API that takes and gives bytes, and a mounted application for the raw body; both in one service."""

import bentoml  # type: ignore[import-not-found]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.serving.peers.engine import FLOAT32, QueueEngine, Settings, array_of

settings = Settings()
engines: list[QueueEngine] = []


async def predict(request: Request) -> Response:
    """Answer one row."""
    body = await request.body()
    return Response(await engines[0].infer(array_of(request.headers["content-type"], body)), media_type=FLOAT32)


raw = Starlette(routes=[Route("/predict", predict, methods=["POST"])])


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1024}, metrics={"enabled": False})
@bentoml.asgi_app(raw, path="/raw")
class Mobilenet:
    """One process, as BentoML advises for a model on the CPU."""

    def __init__(self) -> None:
        engines.append(QueueEngine(settings))

    @bentoml.api(route="/typed")  # type: ignore[untyped-decorator]
    async def typed(self, body: bytes, /) -> bytes:
        return await engines[0].infer(array_of(FLOAT32, body))
