"""The README's table of routes names every route there is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from app.api.application import build_api

README = Path(__file__).parents[2] / "README.md"


@asynccontextmanager
async def nothing(_: FastAPI) -> AsyncIterator[None]:
    yield


def test_every_route_stands_in_the_table() -> None:
    table = README.read_text().split("## Routes")[1]
    served = build_api(version="0", lifespan=nothing).openapi()["paths"]
    assert len(served) > 25
    assert [path for path in served if f"`{path.replace('/versions/{version}', '')}`" not in table] == []
