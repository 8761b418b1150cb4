"""Programs that do not start: one sentence that names the cause, no traceback, no end without end."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.supervision import Program, kept_running
from tests.running import clean_environment
from tests.serving import until

GATEWAY, SERVE, WORKER = ("app.launcher", "gateway"), ("app.launcher", "serve"), ("workers",)


def run(program: tuple[str, ...], folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *program]
    variables = clean_environment() | {"OCTET_DATA_DIR": str(folder / "data"), "OCTET_PORT": "0"} | settings
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("program", [GATEWAY, SERVE, WORKER], ids=" ".join)
def test_each_wrong_variable_gets_one_sentence(program: tuple[str, ...], tmp_path: Path) -> None:
    done = run(program, tmp_path, OCTET_PORT="abc", OCTET_JOB_ATTEMPTS="0")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "octet: OCTET_PORT is 'abc', but must be a whole number, at least 0, at most 65535: set it so, or unset it.",
        "OCTET_JOB_ATTEMPTS is '0', but must be a whole number, at least 1: set it so, or unset it.",
    ]


@pytest.mark.parametrize("program", [GATEWAY, WORKER], ids=" ".join)
def test_without_redis_a_gateway_and_a_worker_refuse_alike(program: tuple[str, ...], tmp_path: Path) -> None:
    done = run(program, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "octet: A gateway and a worker need OCTET_REDIS_URL: set it, or run `octet serve`, which brings a Redis."
    ]


def test_octet_does_not_start_on_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = run(SERVE, tmp_path, OCTET_STORE_URL=str(tmp_path / "file"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "file cannot be opened: set OCTET_STORE_URL" in done.stderr


def test_octet_gives_up_on_a_gateway_that_never_starts(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise SystemExit(3)")  # the gateway alone imports it
    done = run(SERVE, tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "the gateway ended 3 times before it was ready: its messages above say why." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_always_ends_becomes_hopeless() -> None:
    async def scenario() -> None:
        program = Program(command=["false"], environment=os.environ, grace=1)
        async with kept_running(program):
            await until(lambda: program.hopeless)

    asyncio.run(scenario())


def test_a_program_is_ended_with_its_block() -> None:
    async def scenario() -> None:
        program = Program(command=["sleep", "1000"], environment=os.environ, grace=10)
        async with kept_running(program):
            pass
        assert (program.early_ends, program.hopeless) == (0, False)

    asyncio.run(scenario())
