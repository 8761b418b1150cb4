"""`octet models` before it reaches the service: weights and labels as they are typed, routes as they are shown."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.client.commands.models import answering, read_labels, read_weights
from app.domain.errors import RequestInvalid
from app.domain.routing import Route


def route(**fields: Any) -> Route:
    return Route(number=1, model="net", version=2, created_at=datetime(2026, 1, 1, tzinfo=UTC), **fields)


def test_weights_are_typed_as_pairs() -> None:
    assert read_weights(["float32=0.9", "int8=1e-1"]) == {"float32": 0.9, "int8": 0.1}


@pytest.mark.parametrize("words", [["int8"], ["int8="], ["int8=much"], ["int8=1", "int8=2"]])
def test_weights_typed_otherwise_are_refused(words: list[str]) -> None:
    with pytest.raises(RequestInvalid, match="int8"):
        read_weights(words)


@pytest.mark.parametrize("text", ["cat\nsea lion\n", "cat\nsea lion", "\ufeffcat\r\nsea lion\r\n"])
def test_labels_are_the_lines_of_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    assert read_labels(tmp_path / "labels.txt") == ("cat", "sea lion")


def test_labels_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RequestInvalid, match="not UTF-8"):
        read_labels(tmp_path / "labels.txt")


def test_a_route_is_shown_with_its_shares() -> None:
    assert answering(route(variant="int8")) == "net:2@int8"
    assert answering(route(weights={"int8": 3, "float32": 1, "int4": 0})) == "net:2@float32 25 %, @int8 75 %"
