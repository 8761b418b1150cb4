"""What the client sends when a job is to train, or to end its training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pydantic_core import to_json
from typer.testing import CliRunner

from app.client.cli import app
from app.client.client import Octet
from app.domain.errors import IllegalTransition
from app.domain.recipes import Qat
from tests.trained import training_job


class Listener(ThreadingHTTPServer):
    """Answers every request with one job, or with a conflict, and keeps what was asked."""

    def __init__(self, *, conflict: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.conflict = conflict
        self.asked: list[tuple[str, bytes]] = []


class Answering(BaseHTTPRequestHandler):
    """One answer of a `Listener`."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Listener)
        self.server.asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        problem = {"code": "illegal_transition", "detail": "Job 00 is queued and has trained nothing yet."}
        body = json.dumps(problem).encode() if self.server.conflict else to_json(training_job())
        self.send_response(409 if self.server.conflict else 202)
        self.send_header("Content-Type", "application/problem+json" if self.server.conflict else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass


@contextmanager
def listening(*, conflict: bool = False) -> Iterator[tuple[Octet, Listener]]:
    with Listener(conflict=conflict) as listener:
        thread = Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with Octet(f"http://127.0.0.1:{listener.server_port}") as octet:
                yield octet, listener
        finally:
            listener.shutdown()
            thread.join()


def test_a_job_that_trains_names_its_rows() -> None:
    with listening() as (octet, listener):
        octet.quantize("m", training="rows:1", evaluation="others", recipe=Qat(steps=400))
    asked = json.loads(listener.asked[0][1])
    assert (asked["training"], asked["evaluation"], "calibration" in asked) == ("rows:1", "others", False)
    assert (asked["recipe"]["technique"], asked["recipe"]["steps"]) == ("qat", 400)


@pytest.mark.parametrize(("keep_best", "query"), [(True, "?keep=best"), (False, "")])
def test_a_cancel_may_keep_the_best(keep_best: bool, query: str) -> None:  # noqa: FBT001
    with listening() as (octet, listener):
        assert octet.cancel("00", keep_best=keep_best).training_progress is not None
    assert listener.asked[0][0] == f"/v1/jobs/00/cancel{query}"


def test_a_best_that_cannot_be_kept_is_a_conflict() -> None:
    with listening(conflict=True) as (octet, _), pytest.raises(IllegalTransition, match="trained nothing yet"):
        octet.cancel("00", keep_best=True)


def test_one_request_sends_the_rows_that_train_as_a_file(tmp_path: Path) -> None:
    for name in ("m.onnx", "rows.npz"):
        (tmp_path / name).write_bytes(b"x")
    with listening() as (octet, listener):
        octet.quantize_once(tmp_path / "m.onnx", training=tmp_path / "rows.npz", recipe=Qat())
    path, body = listener.asked[0]
    assert path == "/v1/quantize"
    assert b'name="training"; filename="rows.npz"' in body
    assert b'name="calibration"' not in body


def test_the_command_line_keeps_the_best_and_shows_where_training_stands() -> None:
    with listening() as (octet, listener):
        result = CliRunner().invoke(app, ["--url", octet.base_url, "jobs", "cancel", "00", "--keep-best"])
    assert (result.exit_code, listener.asked[0][0]) == (0, "/v1/jobs/00/cancel?keep=best")
    assert "step 120 of 400, loss 0.0312, held-out 0.0288" in " ".join(result.stdout.split())


def test_rows_that_train_make_the_command_ask_for_training() -> None:
    with listening() as (octet, listener):
        CliRunner().invoke(app, ["--url", octet.base_url, "quantize", "m", "--training", "rows", "--detach"])
    asked = json.loads(listener.asked[0][1])
    assert (asked["training"], asked["recipe"]["technique"]) == ("rows", "qat")
