"""Artifacts that cannot be loaded: refused with a sentence that tells nothing of the machine, and nobody else waits."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import onnx
import pytest
from onnx import helper

from app.domain.errors import VariantNotReady
from app.domain.variants import Artifact
from tests.api.harness import Api, publish_model, publish_variant, running_api
from tests.api.wire import INFER, LONG, check_well, head, refused, request, row, twice, wire
from tests.graphs import small

LOAD = "/v2/repository/models/{}/load"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Api]:
    """The application with `twice`, which is loaded."""
    with running_api(tmp_path / "data", redis_url=f"unix://{tmp_path}/nobody-listens.sock") as running:
        publish_model(running, tmp_path, name="twice", graph=twice())
        check_well(running)
        yield running


def another() -> onnx.ModelProto:
    """Build a graph whose artifact is not in the cache."""
    node = helper.make_node("Neg", ["x"], ["y"])
    return small([node], inputs={"x": ("batch", "m")}, outputs={"y": ("batch", "m")}, weights={})


def check_not_ready(api: Api, model: str, *, words: str) -> None:
    """Load a model, and ask it, short and long; whatever is said is discreet."""
    asked = request(row()), request(row(LONG)), head(0, path=LOAD.format("twice"))
    for sent in asked:
        with wire(api) as connection:
            connection.send(sent.replace(b"twice", model.encode()))
            answer = connection.answer()
            assert refused(VariantNotReady, answer), answer
            assert (words in answer.error, answer.headers["retry-after"].isdecimal()) == (True, True), answer
    check_well(api)


@pytest.mark.parametrize("harm", ["changed", "cut off", "gone", "longer"])
def test_an_artifact_that_is_not_what_it_was_is_not_loaded(target: Api, tmp_path: Path, harm: str) -> None:
    publish_model(target, tmp_path, name="harmed", graph=another())
    (file,) = (target.store_folder / "models" / "harmed").rglob("*.onnx")
    whole = file.read_bytes()
    made = {"changed": whole[:-1] + b"\x00", "cut off": whole[:-1], "longer": whole + b"\x00", "gone": b""}[harm]
    file.write_bytes(made)
    if harm == "gone":
        file.unlink()
    for sent in (request(row(), path=INFER.replace("twice", "harmed")), head(0, path=LOAD.format("harmed"))):
        with wire(target) as connection:
            connection.send(sent)
            answer = connection.answer()
            assert (answer.status in (404, 503), bool(answer.error)) == (True, True), answer
    check_well(target)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x0a" * 1000])
def test_an_artifact_that_no_engine_reads_is_refused(target: Api, tmp_path: Path, content: bytes) -> None:
    made = publish_model(target, tmp_path, name="junk", graph=twice())
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / f"{digest}.onnx").write_bytes(content)
    artifact = Artifact(file=f"{digest}.onnx", size_bytes=len(content), sha256=digest)
    variant = replace(made, name="junk", artifact=artifact, created_at=datetime.now(UTC))
    target.do(lambda services: publish_variant(services, variant, tmp_path))
    check_not_ready(target, "junk@junk", words="cannot be loaded")


def test_a_load_beyond_the_memory_of_all_runners_is_refused(tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/nobody-listens.sock"
    with running_api(tmp_path / "data", redis_url=nowhere, runners_memory_bytes=10 * 2**20) as api:
        publish_model(api, tmp_path, name="twice", graph=twice())
        with wire(api) as connection:
            for sent in (request(row()), request(row(LONG))):
                connection.send(sent)
                answer = connection.answer()
                assert refused(VariantNotReady, answer), answer
                assert "OCTET_RUNNERS_MEMORY_BYTES" in answer.error
                assert "connection" not in answer.headers
            connection.send(b"GET /livez HTTP/1.1\r\nHost: octet\r\n\r\n")
            assert connection.answer().status == 200
