"""The real application behind a real socket, in a thread; what a worker would do is written by hand."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import onnx
import uvicorn
from fastapi import FastAPI
from pydantic import TypeAdapter

from app import __version__
from app.api import examples
from app.api.application import build_api
from app.api.dependencies import Services
from app.api.http_protocol import HTTP_PROTOCOL
from app.bootstrap import open_services
from app.domain.datasets import ArraySpec, DatasetFormat, DatasetManifest
from app.domain.jobs import Job
from app.domain.models import ImportFailure, ModelFormat, ModelManifest, Upload
from app.domain.preprocessing import ImagePreprocessing
from app.domain.reports import Report
from app.domain.variants import Variant
from app.settings import Settings
from tests.graphs import INPUT, conv_classifier
from tests.running import wait_until
from tests.serving import variant_of

T = TypeVar("T")

SECONDS = 60.0
IMPORT_JOB = "0" * 32


@dataclass(kw_only=True)
class Api:
    """A running application, a client for it, and a way to its services."""

    settings: Settings
    app: FastAPI
    port: int = 0
    client: httpx.Client = field(init=False)
    services: Services = field(init=False)
    loop: asyncio.AbstractEventLoop = field(init=False)

    @property
    def store_folder(self) -> Path:
        return Path(self.settings.store)

    def do(self, call: Callable[[Services], Awaitable[T]]) -> T:
        """Call the application's services in its own event loop."""

        async def called() -> T:
            return await call(self.services)

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(SECONDS)

    def stored(self) -> list[str]:
        """Return every file in the store."""
        return sorted(
            str(path.relative_to(self.store_folder)) for path in self.store_folder.rglob("*") if path.is_file()
        )

    def upload_model(self, name: str = "net", content: bytes = b"model") -> dict[str, Any]:
        """Upload a model; it stays `importing`, for there is no worker."""
        answer = self.client.post("/v1/models", params={"name": name, "filename": f"{name}.onnx"}, content=content)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@contextmanager
def running_api(folder: Path, *, redis_url: str, **settings: Any) -> Iterator[Api]:
    """Run the application on a free port."""
    chosen = Settings(data_dir=folder, redis_url=redis_url, **settings)
    holder: list[Api] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(chosen) as services:
            app.state.services = holder[0].services = services
            holder[0].loop = asyncio.get_running_loop()
            yield

    api = Api(settings=chosen, app=build_api(version=__version__, lifespan=lifespan))
    holder.append(api)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        api.port = listener.getsockname()[1]
        with (
            _served(api.app, listener),
            httpx.Client(base_url=f"http://127.0.0.1:{api.port}", timeout=SECONDS, trust_env=False) as client,
        ):
            api.client = client
            yield api


@contextmanager
def _served(app: FastAPI, listener: socket.socket) -> Iterator[None]:
    config = uvicorn.Config(
        app, http=HTTP_PROTOCOL, log_config=None, lifespan="on", ws="none", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the application listens")
        assert server.started
        yield
    finally:
        server.should_exit = True
        thread.join(SECONDS)


def publish_model(
    api: Api,
    folder: Path,
    *,
    name: str = "net",
    graph: onnx.ModelProto | None = None,
    preprocessing: ImagePreprocessing | None = None,
    labels: tuple[str, ...] | None = None,
) -> Variant:
    """Do what an import job does: make the next version of a model ready, with its `float32` variant."""
    graph = graph or conv_classifier()
    made = variant_of(graph, folder)

    async def publish(services: Services) -> Variant:
        version = await services.models.reserve(name)
        upload = replace(await _received(services.models, name, version), labels=labels)
        await services.models.record(upload)
        variant = replace(made, model=name, version=version, created_at=datetime.now(UTC))
        await services.models.publish(
            ModelManifest(
                name=name,
                version=version,
                format=ModelFormat.ONNX,
                upload=upload,
                signature=variant.signature,
                preprocessing=preprocessing,
                original_batch=None,
                parameters=1,
                imported_at=datetime.now(UTC),
                imported_with={},
            )
        )
        await publish_variant(services, variant, folder)
        return variant

    return api.do(publish)


async def publish_variant(services: Services, variant: Variant, folder: Path) -> None:
    """Publish a variant with a report that says nothing true."""
    report = replace(
        TypeAdapter(Report).validate_python(examples.REPORT),
        model=variant.model,
        version=variant.version,
        variant=variant.name,
    )
    with (folder / variant.artifact.file).open("rb") as artifact:
        await services.variants.publish(variant, artifact=artifact, report=report)


def publish_dataset(
    api: Api,
    *,
    name: str = "rows",
    array: str = INPUT,
    row_shape: tuple[int, ...] = (3, 8, 8),
    rows: int = 10,
    labels: ArraySpec | None = None,
    content: bytes = b"bytes",
) -> None:
    """Do what an import job does: make the next version of a dataset ready."""

    async def publish(services: Services) -> None:
        version = await services.datasets.reserve(name)
        upload = await _received(services.datasets, name, version, content=content)
        await services.datasets.record(upload)
        await services.datasets.publish(
            DatasetManifest(
                name=name,
                version=version,
                format=DatasetFormat.NPZ,
                upload=upload,
                rows=rows,
                arrays=(ArraySpec(name=array, dtype="float32", row_shape=row_shape),),
                labelled=labels is not None,
                classes=(),
                imported_at=datetime.now(UTC),
                labels=labels,
            )
        )

    api.do(publish)


def fail_import(api: Api, name: str, version: int) -> None:
    """Do what an import job does with a file that it cannot read."""
    failure = ImportFailure(code="upload_unreadable", message="It is broken.", failed_at=datetime.now(UTC))
    api.do(lambda services: services.models.fail(name, version, failure))


def job_of(api: Api, job: str) -> Job:
    """Return a job's live record."""
    found = api.do(lambda services: services.live.get(job))
    assert found is not None
    return found


async def _received(shelf: Any, name: str, version: int, *, content: bytes = b"bytes") -> Upload:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    written = await shelf.receive(name, version, file="file.bin", chunks=chunks(), limit=100)
    return Upload(
        name=name,
        version=version,
        file="file.bin",
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        created_at=datetime.now(UTC),
        job=IMPORT_JOB,
    )
