"""The command line before it reaches the service: usage, exit codes, and where errors go."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.client.cli import app

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


def octet(*words: str) -> Result:
    return CliRunner().invoke(app, ["--url", NOBODY, *words])


@pytest.mark.parametrize(
    "words",
    [
        ["models", "upload"],
        ["models", "upload", "no-such-file.pt2"],
        ["quantize", "m", "--bogus"],
        ["quantize", "m", "--bias-correction", "some"],
        ["quantize", "m", "--technique", "cast", "--seed", "1"],
        ["quantize", "m", "--auto", "--technique", "cast"],
        ["quantize", "m", "--technique", "cast", "--max-drop", "0.1"],
        ["quantize", "m", "--max-drop", "-1"],
        ["quantize", "m", "--technique", "weight_only", "--bits", "3"],
        ["quantize", "Not A Name"],
        ["models", "split", "m", "int8"],
        ["models", "split", "m@int8", "int8=1"],
        ["models", "upload", "no-such-file.pt2", "--labels", "none.txt"],
        ["report", "m"],
        ["jobs", "list", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_request_ends_with_2_and_prints_nothing_on_stdout(words: list[str]) -> None:
    result = octet(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_an_image_of_no_known_kind_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "picture.gif"
    path.write_bytes(b"GIF89a")
    result = octet("predict", "m", str(path))
    assert (result.exit_code, "unsupported_format" in result.stderr) == (2, True)


def test_a_preprocessing_that_is_none_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "p.json", tmp_path / "m.onnx"
    path.write_text('{"crop": "wide"}')
    model.write_bytes(b"x")
    result = octet("models", "upload", str(model), "--preprocessing", str(path))
    assert (result.exit_code, "crop" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["quantize", "quantize-file", "predict", "serve", "gateway", "worker", "status"])
def test_every_command_explains_itself(command: str) -> None:
    result = octet(command, "--help")
    assert (result.exit_code, "Usage" in result.stdout) == (0, True)


def test_the_options_of_a_recipe_stand_in_panels() -> None:
    shown = octet("quantize", "--help").stdout
    for panel in ("Recipe", "Budget: search for the best", "Activations and weights", "Rows and layers"):
        assert f"─ {panel} ─" in shown
