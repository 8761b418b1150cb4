"""What a stage that trains may write: its state, as often as its recipe says, beyond what any stage may."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.errors import OutOfDisk
from tests.needs import absent
from tests.running import program
from workers import usage
from workers.limits import Limits

STATE_BYTES = 2**20
LIMITS = Limits(memory_bytes=2**30, scratch_bytes=2 * STATE_BYTES, seconds=60)
TRAINS = replace(LIMITS, state="state", state_seconds=1.0)

WRITES = f"""
import os, sys
for number in range(int(sys.argv[1])):
    with open("new", "wb") as file:
        file.write(os.urandom({STATE_BYTES}))
        file.flush()
        os.fsync(file.fileno())
    os.rename("new", "state")
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def written(scratch: Path, states: int) -> Iterator[int]:
    """Give the id of a process that has replaced its state so many times, and waits."""
    command = [sys.executable, "-c", WRITES, str(states)]
    with program(command, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if usage.written_bytes(process.pid) < states * STATE_BYTES:
            absent("a disk behind the folder for temporary files, and a kernel that counts what is written to it")
        yield process.pid


def test_a_stage_that_trains_may_replace_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "age_seconds", lambda _pid: 20.0)
    with written(tmp_path, 20) as pid:
        assert TRAINS.broken_by(pid, tmp_path) is None
        assert isinstance(LIMITS.broken_by(pid, tmp_path), OutOfDisk)


def test_it_may_not_replace_it_more_often_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "age_seconds", lambda _pid: 5.0)
    with written(tmp_path, 20) as pid:
        assert isinstance(TRAINS.broken_by(pid, tmp_path), OutOfDisk)


def test_a_link_in_the_place_of_the_state_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(STATE_BYTES))
    (tmp_path / "state").symlink_to(tmp_path / "large")
    assert usage.file_bytes(tmp_path / "large") == STATE_BYTES
    assert usage.file_bytes(tmp_path / "state") == 0


def test_a_process_has_an_age() -> None:
    with program(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as younger:
        assert 0 <= usage.age_seconds(younger.pid) <= usage.age_seconds(1)
        younger.kill()
        younger.wait()
        assert usage.age_seconds(younger.pid) == 0
