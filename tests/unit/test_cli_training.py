"""Training on the command line: recipes, and how a job that trains is shown."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from app.client import console, training_progress
from app.client.cli import app
from app.client.client import Octet
from app.client.commands.recipes import make_recipe, recipe_options, technique_for
from app.client.commands.uploads import dataset_for
from app.client.transport import read_as
from app.domain.errors import RecipeInvalid, Unavailable
from app.domain.jobs import Job
from app.domain.recipes import Auto, Budget, PtqStatic, Qat
from app.domain.training import TrainingProgress
from tests.trained import NOW, PROGRESS, training_job

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


def at(step: int, *, score: float | None = None) -> TrainingProgress:
    return replace(PROGRESS, step=step, score=score)


def shown(capsys: pytest.CaptureFixture[str], *changes: Job) -> list[str]:
    console.show_live(changes[0], changes=changes)
    return capsys.readouterr().err.splitlines()


def test_rows_to_train_on_ask_for_training() -> None:
    assert make_recipe(None, {}, default=technique_for("rows")) == Qat()
    assert make_recipe(None, {}, default=technique_for(None)) == PtqStatic()


def test_a_technique_that_is_named_wins_over_the_rows() -> None:
    assert make_recipe(None, {"technique": "ptq_static"}, default="qat") == PtqStatic()
    assert make_recipe(None, {"budget": {"max_drop": 0.1}}, default="qat") == Auto(budget=Budget(max_drop=0.1))


def test_options_reach_the_training() -> None:
    options = recipe_options(auto=False, bits=4, steps=100, optimizer="sgd", flip=True, technique="qat", epochs=None)
    assert make_recipe(None, options) == Qat(weight_bits=4, steps=100, optimizer="sgd", flip=True)


def test_a_file_reaches_every_field_of_a_training(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text('{"technique": "qat", "looks": 5, "checkpoint_seconds": 10, "weight_bits": 4}')
    assert make_recipe(file, {"warmup": 0.1}) == Qat(looks=5, checkpoint_seconds=10, weight_bits=4, warmup=0.1)


def test_a_training_option_does_not_go_with_another_technique() -> None:
    with pytest.raises(RecipeInvalid, match="ptq_static has no epochs"):
        make_recipe(None, recipe_options(auto=False, bits=None, epochs=3))


@pytest.mark.parametrize(
    "words",
    [
        ["quantize", "m", "--training", "rows", "--loss", "guess"],
        ["quantize", "m", "--training", "rows", "--epochs", "1", "--steps", "2"],
        ["quantize", "m", "--training", "rows", "--compression", "int8"],
    ],
    ids=" ".join,
)
def test_a_wrong_training_ends_with_2(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["--url", NOBODY, *words]).exit_code == 2


def test_a_file_without_rows_that_a_recipe_needs_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"x")
    result = CliRunner().invoke(app, ["--url", NOBODY, "quantize-file", str(model), "-o", str(tmp_path)])
    assert (result.exit_code, "name a file with --calibration" in result.stderr) == (2, True)


def test_a_word_names_a_dataset_unless_it_is_a_file_of_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.npz").write_bytes(b"PK")
    with Octet(NOBODY) as octet:
        assert [dataset_for(octet, word) for word in (None, "cifar:1", str(tmp_path))] == [
            None,
            "cifar:1",
            str(tmp_path),
        ]
        with pytest.raises(Unavailable):  # it would be sent
            dataset_for(octet, str(tmp_path / "rows.npz"))


def test_training_has_a_panel_of_its_own() -> None:
    assert "─ Training: technique qat ─" in CliRunner().invoke(app, ["quantize", "--help"]).stdout


def test_a_log_gets_a_line_when_the_held_out_rows_were_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    looks = [(0, 0.5), (10, 0.4), (20, 0.4), (39, 0.4), (40, 0.3), (60, 0.3)]
    lines = shown(capsys, *(training_job(at(step, score=score)) for step, score in looks))
    assert [line.split(", ")[1] for line in lines[:-1]] == ["step 0 of 400", "step 20 of 400", "step 40 of 400"]


def test_a_training_of_many_looks_fills_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, *(training_job(at(step, score=1 / (step + 1))) for step in range(401)))
    assert len(lines) == 22  # one at the start, one each 5 %, and how it ended


def test_a_line_of_training_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    line, _ = shown(capsys, replace(training_job(), attempt=2))
    assert line == (
        " 45 % quantize m:1: training, step 120 of 400, loss 0.0312, held-out 0.0288, best 0.0285, "
        "learning rate 8.7e-05, 2,310 rows/s, 1 min 20 s left (attempt 2)"
    )


def test_an_attempt_that_resumes_earlier_is_shown_again(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, training_job(at(200)), training_job(at(150)))
    assert [line.split(", ")[1] for line in lines[:-1]] == ["step 200 of 400", "step 150 of 400"]


def test_what_follows_training_is_shown_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    after = replace(training_job(), step="measuring latency", percent=60.0)
    assert shown(capsys, training_job(), after)[1] == " 60 % quantize m:1: measuring latency"


def on_a_terminal(*changes: Job) -> str:
    """Return what a terminal shows last."""
    terminal = Console(file=StringIO(), force_terminal=True, width=120)
    console.show_live(changes[0], changes=changes, on=terminal)
    assert isinstance(terminal.file, StringIO)
    return terminal.file.getvalue()


def test_a_terminal_gets_a_bar_of_steps_and_a_line_of_losses() -> None:
    text = on_a_terminal(training_job())
    assert "quantize m:1: step 120 of 400" in text
    assert "1 min 20 s left" in text
    assert "held-out 0.0288, best 0.0285" in text


def test_the_losses_go_away_with_the_training() -> None:
    assert "held-out" not in on_a_terminal(training_job(), training_job().succeed(NOW))


def test_what_is_not_known_yet_is_left_out() -> None:
    begun = replace(PROGRESS, loss=None, score=None, best_score=None)
    assert training_progress.numbers(begun) == "learning rate 8.7e-05, 2,310 rows/s"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_the_time_left_is_short(seconds: float, words: str) -> None:
    assert training_progress.left(replace(PROGRESS, seconds_left=seconds)) == words


def test_the_client_reads_a_job_that_trains() -> None:
    body = (
        b'{"id":"00","kind":"quantize","created_at":"2026-01-02T00:00:00Z","training":"rows:1","state":"running",'
        b'"recipe":{"technique":"qat","steps":400},"training_progress":{"step":1,"steps":400,"loss":null,"score":0.5,'
        b'"best_score":0.5,"learning_rate":0.0001,"rows_per_second":10.0,"seconds_left":40.0}}'
    )
    job = read_as(Job, body)
    assert (job.training, job.recipe) == ("rows:1", Qat(steps=400))
    assert job.training_progress is not None
    assert job.training_progress.best_score == 0.5
