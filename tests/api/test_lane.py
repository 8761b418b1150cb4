"""The short way to inference answers as the documented routes do, whatever is asked."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app.api.application import build_api
from app.api.arrays import to_npy, to_npz
from app.api.dependencies import Services
from app.api.lane import InferenceLane
from tests.api.harness import Api, publish_model, running_api
from tests.api.wire import LENGTH, LONG, content, row, tensor, twice

BINARY, JSON, NPY = {LENGTH: "0"}, {"Content-Type": "application/json"}, {"Content-Type": "application/x-npy"}
X = row(8)
ARRAY = to_npy(X[None])
BODY, JSON_BYTES = content(X)
LARGE, LARGE_JSON_BYTES = content(row(LONG))
INFER = {"inputs": [tensor(X[:2], parameters={}, data=[[1.0, 2.0]])]}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with a model that doubles its rows."""
    folder = tmp_path_factory.mktemp("lane")
    nowhere = f"unix://{folder}/nobody-listens.sock"
    with running_api(folder / "data", redis_url=nowhere, max_predict_bytes=2**19, max_json_bytes=2**16) as running:
        publish_model(running, folder, name="twice", graph=twice())
        yield running


@asynccontextmanager
async def _open(_app: FastAPI) -> AsyncIterator[None]:
    yield


def documented(api: Api, path: str, *, body: bytes, headers: dict[str, str]) -> httpx.Response:
    """Ask the same services through an application that has no short way."""
    app = build_api(version="0", lifespan=_open)
    app.user_middleware = [each for each in app.user_middleware if each.cls is not InferenceLane]  # type: ignore[comparison-overlap]
    app.state.services, app.state.resolver = api.services, api.app.state.resolver

    async def ask(_services: Services) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octet") as client:
            return await client.post(path, content=body, headers=headers)

    return api.do(ask)


def told(answer: httpx.Response) -> tuple[int, str, Any]:
    """Return what an answer says, without what differs from one request to the next."""
    kind = answer.headers.get("content-type", "")
    if not kind.endswith("json"):
        body: Any = answer.content[int(answer.headers.get(LENGTH, 0)) :]
    else:
        body = answer.json()
        for name in ("request_id", "queue_ms", "compute_ms", "parameters"):
            body.pop(name, None)
    return answer.status_code, kind, body


def infer(model: str = "twice", version: str = "") -> str:
    return f"/v2/models/{model}{version}/infer"


ASKED: list[tuple[str, bytes, dict[str, str]]] = [
    (infer(), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer(), LARGE, {LENGTH: str(LARGE_JSON_BYTES)}),
    (infer(version="/versions/1"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer("twice@float32"), json.dumps(INFER).encode(), JSON),
    (infer(), json.dumps(INFER).encode(), {}),
    (infer(), X.tobytes(), BINARY),
    (infer(), BODY, {LENGTH: "x"}),
    (infer(), BODY, {LENGTH: str(JSON_BYTES - 1)}),
    (infer(), BODY, {}),
    (infer(), b"", {}),
    (infer(), b"", BINARY),
    (infer(), b"[]", JSON),
    (infer(), b"x" * 2**20, BINARY),
    (infer(), b" " * 2**17, JSON),
    (infer(), BODY, {LENGTH: str(JSON_BYTES), "X-Request-Timeout-Ms": "nan"}),
    (infer(), BODY, {LENGTH: str(JSON_BYTES), "Octet-Affinity": "a" * 300}),
    (infer(), BODY, {LENGTH: str(JSON_BYTES), "Content-Encoding": "br"}),
    (infer("nobody"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer("twice@int4"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer("TWICE"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer(""), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer("twice%2F1"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer("twice%20"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer(version="/versions/"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer(version="/versions/2"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer(version="/versions/-1"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer("twice:1", version="/versions/1"), BODY, {LENGTH: str(JSON_BYTES)}),
    (infer() + "?colour=red", BODY, {LENGTH: str(JSON_BYTES)}),
    (infer() + "/", BODY, {LENGTH: str(JSON_BYTES)}),
    ("/predict", ARRAY, NPY),
    ("/predict?model=twice", ARRAY, NPY),
    ("/predict?model=twice&variant=float32", ARRAY, NPY),
    ("/predict?model=twice@float32&variant=int8", ARRAY, NPY),
    ("/predict?model=twice&model=nobody", ARRAY, NPY),
    ("/predict?model=", ARRAY, NPY),
    ("/predict?model=twice&variant=", ARRAY, NPY),
    ("/predict?model=tw%69ce", ARRAY, NPY),
    ("/predict?model=%ff", ARRAY, NPY),
    ("/predict?model=twice&colour=red", ARRAY, NPY),
    ("/predict?model=twice&top_k=1", ARRAY, NPY),
    ("/predict?model=twice&", ARRAY, NPY),
    ("/predict?model=twice;variant=float32", ARRAY, NPY),
    (
        "/predict?model=twice",
        to_npz({"x": X[None]}),
        {"Content-Type": "application/x-npz", "Accept": "application/x-npy"},
    ),
    ("/predict?model=twice", b"no image", {"Content-Type": "image/png"}),
    ("/predict?model=twice", ARRAY, {}),
    ("/predict", json.dumps({"model": "twice", "inputs": [[1, 2]]}).encode(), JSON),
    ("/predict?model=twice", json.dumps({"model": "nobody", "inputs": [[1, 2]]}).encode(), JSON),
    ("/predict?model=twice", b'{"inputs": [[NaN]]}', JSON),
    ("/predict?model=twice", b"\xff\xfe", JSON),
    ("/predict/", ARRAY, NPY),
    ("/v1/models/twice/predict", ARRAY, NPY),
    ("/v1/models/twice/predict?variant=float32", ARRAY, NPY),
    ("/v1/models/twice:1/predict", ARRAY[:-1], NPY),
    ("/v1/models//predict", ARRAY, NPY),
    ("/v1/models/twice/predict", to_npy(np.zeros((300, 8), np.float32)), NPY),
]


@pytest.mark.parametrize(("path", "body", "headers"), ASKED)
def test_both_ways_say_the_same(api: Api, path: str, body: bytes, headers: dict[str, str]) -> None:
    short = api.client.post(path, content=body, headers=headers)
    assert told(short) == told(documented(api, path, body=body, headers=headers))
    assert short.status_code < 500
