"""What the command line shows beside the facts, where nobody sits at a terminal."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.client import console
from app.client.commands.uploads import name_of
from app.domain.errors import SignatureMismatch
from app.domain.jobs import Job, JobKind, JobState
from app.domain.names import check_name

NOW = datetime(2026, 1, 2, tzinfo=UTC)
QUEUED = Job(id="0" * 32, kind=JobKind.QUANTIZE, created_at=NOW, model="m:1")
RUNNING = replace(QUEUED, state=JobState.RUNNING, percent=40.0, step="calibrate", attempt=1, started_at=NOW)
DONE = RUNNING.succeed(NOW + timedelta(seconds=12))


def test_progress_is_a_line_per_step_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    again = replace(RUNNING, percent=41.0)
    assert console.show_live(QUEUED, changes=[QUEUED, RUNNING, again, DONE]) is DONE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "  0 % quantize m:1: queued",
        " 40 % quantize m:1: calibrate",
        "quantize m:1 succeeded in 12.0 s",
    ]


def test_the_trials_of_a_search_are_shown_as_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    trials = [replace(RUNNING, percent=30.0 + n, step=f"trial {n}: nncf ptq_static") for n in (1, 2)]
    console.show_live(QUEUED, changes=[*trials, DONE])
    shown = capsys.readouterr().err
    assert " 31 % quantize m:1: trial 1: nncf ptq_static\n 32 % quantize m:1: trial 2: nncf ptq_static\n" in shown


def test_a_second_attempt_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_live(QUEUED, changes=[replace(RUNNING, attempt=2)])
    assert "calibrate (attempt 2)" in capsys.readouterr().err


def test_an_error_is_one_line_with_its_code_and_brackets_kept(capsys: pytest.CaptureFixture[str]) -> None:
    error = SignatureMismatch("The model takes float32[N, 3]: " + "send that. " * 20)
    error.add_note("request id: r-17")
    console.print_error(error)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error [signature_mismatch]: The model takes float32[N, 3]")
    assert line.endswith("(request id: r-17)")


@pytest.mark.parametrize(
    ("file", "name"), [("My Model.pt2", "my-model"), ("resnet20.onnx", "resnet20"), ("_x.npz", "x")]
)
def test_a_file_name_gives_a_usable_name(file: str, name: str) -> None:
    assert name_of(Path(file)) == name
    check_name(name)
