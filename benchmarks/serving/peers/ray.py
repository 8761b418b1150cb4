"""Ray Serve: one replica behind its own proxy."""

import ray  # type: ignore[import-not-found]
from ray import serve
from ray.serve.config import HTTPOptions  # type: ignore[import-not-found]
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.peers.engine import FLOAT32, QueueEngine, Settings, array_of

settings = Settings()


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
class Mobilenet:
    """The replica's process."""

    def __init__(self) -> None:
        self.engine = QueueEngine(Settings())

    async def __call__(self, request: Request) -> Response:
        """Answer one row."""
        body = await request.body()
        return Response(await self.engine.infer(array_of(request.headers["content-type"], body)), media_type=FLOAT32)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=settings.port))
    application = Mobilenet.bind()  # type: ignore[attr-defined]
    serve.run(application, route_prefix="/predict", blocking=True)
