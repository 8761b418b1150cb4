"""The `octet` command line and the examples against a whole service, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.client import Octet
from tests import graphs
from tests.running import Service, program

ROWS, CLASSES = 80, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Runs `octet` in a folder, against one service."""

    url: str
    folder: Path

    def run(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "app.client.cli", "--url", self.url, *words]

    def json(self, *words: str) -> Any:
        """Run a command with `--json`; return what it printed, after checking that it succeeded."""
        result = self.run(*words, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def terminal(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A terminal in a folder with a model and two datasets."""
    folder = tmp_path_factory.mktemp("cli")
    onnx.save(graphs.conv_classifier(classes=CLASSES), folder / "cli-model.onnx")
    labels = np.arange(ROWS, dtype=np.int64) % CLASSES
    graphs.save_dataset(folder / "cli-calibration.npz", graphs.rows(ROWS, seed=1))
    graphs.save_dataset(folder / "cli-evaluation.npz", graphs.rows(ROWS, seed=2), labels)
    return Terminal(url=service.url, folder=folder)


@pytest.fixture(scope="module")
def report(terminal: Terminal) -> Any:
    """The report of an int8 variant, made with the command line from the uploads on."""
    terminal.json("models", "upload", "cli-model.onnx")
    terminal.json("datasets", "upload", "cli-calibration.npz")
    terminal.json("datasets", "upload", "cli-evaluation.npz")
    return terminal.json(
        "quantize", "cli-model", "--calibration", "cli-calibration", "--evaluation", "cli-evaluation",
        "--calibration-rows", "50", "--bias-correction", "none",
    )  # fmt: skip


@pytest.fixture
def octet(service: Service) -> Iterator[Octet]:
    with Octet(service.url) as client:
        yield client


def test_the_main_job_ends_with_a_report_of_what_was_asked(report: Any) -> None:
    assert (report["model"], report["variant"]) == ("cli-model", "int8")
    assert report["recipe"]["calibration_rows"] == 50
    assert report["accuracy"]["measured"]["int8"]["rows"] == ROWS


@pytest.mark.usefixtures("report")
def test_lists_name_what_was_uploaded(terminal: Terminal) -> None:
    assert "cli-model" in {model["name"] for model in terminal.json("models", "list")}
    assert {"cli-calibration", "cli-evaluation"} <= {dataset["name"] for dataset in terminal.json("datasets", "list")}


@pytest.mark.usefixtures("report")
def test_a_model_is_shown_with_its_signature_and_variants(terminal: Terminal) -> None:
    shown = terminal.run("models", "show", "cli-model").stdout
    for fact in ("cli-model:1", "ready", "x: float32[N, 3, 8, 8]", "int8"):
        assert fact in shown


@pytest.mark.usefixtures("report")
@pytest.mark.parametrize("columns", ["60", "140"])
def test_the_report_is_a_table_in_a_narrow_and_in_a_wide_terminal(terminal: Terminal, columns: str) -> None:
    shown = terminal.run("report", "cli-model@int8", COLUMNS=columns)
    assert shown.returncode == 0
    for word in ("float32", "int8", "agreement", "speed-up", "layers in int8"):
        assert word in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[:8])) <= int(columns)


@pytest.mark.usefixtures("report")
def test_a_download_goes_on_where_it_broke_off(terminal: Terminal, octet: Octet, tmp_path: Path) -> None:
    whole = octet.download("cli-model@int8", to=tmp_path / "whole.onnx").read_bytes()
    artifact = octet.variant("cli-model@int8").artifact
    part = tmp_path / f".resumed.onnx.{artifact.sha256[:16]}.part"
    part.write_bytes(whole[:1000])
    printed = terminal.json("download", "cli-model@int8", "-o", str(tmp_path / "resumed.onnx"))
    assert Path(printed["path"]).read_bytes() == whole
    assert not part.exists()


@pytest.mark.usefixtures("report")
def test_a_damaged_part_never_becomes_the_artifact(terminal: Terminal, octet: Octet, tmp_path: Path) -> None:
    artifact = octet.variant("cli-model@int8").artifact
    (tmp_path / f".a.onnx.{artifact.sha256[:16]}.part").write_bytes(b"x" * 1000)
    result = terminal.run("download", "cli-model@int8", "-o", str(tmp_path / "a.onnx"))
    assert (result.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "SHA-256" in result.stderr


@pytest.mark.usefixtures("report")
@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_a_variant_answers_a_file_of_rows(terminal: Terminal, variant: str) -> None:
    np.save(terminal.folder / "row.npy", graphs.rows(3))
    answer = terminal.json("predict", "cli-model", "row.npy", "--variant", variant)
    assert answer["variant"] == variant
    assert np.shape(answer["outputs"][graphs.OUTPUT]) == (3, CLASSES)


@pytest.mark.usefixtures("report")
def test_rows_by_name_answer_as_rows_alone(octet: Octet) -> None:
    rows = graphs.rows(2)
    alone, named = octet.predict("cli-model@int8", rows), octet.predict("cli-model@int8", {graphs.INPUT: rows})
    assert np.array_equal(alone.output, named.output)


@pytest.mark.usefixtures("report")
def test_a_promoted_variant_answers_when_none_is_named(terminal: Terminal, octet: Octet) -> None:
    terminal.json("models", "promote", "cli-model:1@int8")
    assert terminal.json("models", "routing", "cli-model")["current"]["variant"] == "int8"
    assert octet.predict("cli-model", graphs.rows(1)).variant == "int8"


@pytest.mark.usefixtures("report")
def test_variants_share_the_requests_as_they_are_told(terminal: Terminal, octet: Octet) -> None:
    made = terminal.json("models", "split", "cli-model:1", "float32=1", "int8=3", "--by", "ann", "--note", "a canary")
    assert (made["weights"], made["variant"]) == ({"float32": 1, "int8": 3}, None)
    shown = terminal.run("models", "routing", "cli-model", COLUMNS="200").stdout
    assert all(words in shown for words in ("cli-model:1@float32 25 %, @int8 75 %", "ann", "a canary"))
    names = [{octet.predict("cli-model", graphs.rows(1), affinity=key).variant for _ in range(3)} for key in "abc"]
    assert [len(answered) for answered in names] == [1, 1, 1]


def test_a_model_is_uploaded_with_labels_and_names_its_highest_classes(terminal: Terminal, octet: Octet) -> None:
    (terminal.folder / "labels.txt").write_text("cat\ndog\neel\nfox\n")
    made = terminal.json("models", "upload", "cli-model.onnx", "--name", "cli-labelled", "--labels", "labels.txt")
    assert made["labels"] == ["cat", "dog", "eel", "fox"]
    np.save(terminal.folder / "row.npy", graphs.rows(1))
    answer = terminal.json("predict", "cli-labelled", "row.npy", "--top-k", "1")
    best = int(np.argmax(answer["outputs"][graphs.OUTPUT][0]))
    assert [(found["index"], found["label"]) for found in answer["top"][0]] == [(best, made["labels"][best])]
    top = octet.predict("cli-labelled", {graphs.INPUT: graphs.rows(1)}, top_k=9).top
    assert top is not None
    assert {found.label for found in top[0]} == set(made["labels"])


def test_from_file_to_file_in_one_command(terminal: Terminal, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    made = terminal.json(
        "quantize-file", "cli-model.onnx", "--calibration", "cli-calibration.npz", "-o", str(output),
        "--name", "cli-once", "--calibration-rows", "40", "--bias-correction", "none",
    )  # fmt: skip
    assert made["model"] == "cli-once"
    assert output.stat().st_size == made["size"]["bytes"]


def test_a_file_that_is_no_model_fails_with_1_and_one_line(terminal: Terminal) -> None:
    (terminal.folder / "noise.onnx").write_bytes(b"no model at all")
    result = terminal.run("models", "upload", "noise.onnx", "--name", "cli-noise")
    assert (result.returncode, result.stdout) == (1, "")
    assert "Error [upload_unreadable]" in result.stderr.splitlines()[-1]


def test_an_unknown_model_ends_with_1_and_its_code(terminal: Terminal) -> None:
    result = terminal.run("models", "show", "cli-nobody")
    assert result.returncode == 1
    assert "Error [model_not_found]" in result.stderr


@pytest.mark.usefixtures("report")
def test_a_job_is_shown_with_its_log_and_its_steps(terminal: Terminal) -> None:
    job = next(job for job in terminal.json("jobs", "list") if job["model"] == "cli-model:1" and job["recipe"])
    assert terminal.json("jobs", "show", job["id"])["steps"]
    assert terminal.json("jobs", "follow", job["id"])["state"] == "succeeded"
    assert isinstance(terminal.json("jobs", "log", job["id"])["log"], str)


@pytest.mark.usefixtures("report")
def test_ctrl_c_ends_with_130_and_leaves_the_job_alone(terminal: Terminal, octet: Octet) -> None:
    command = terminal.command("quantize", "cli-model", "--calibration", "cli-calibration", "--variant", "cli-left")
    with program(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first line of progress
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on" in said
    assert "Traceback" not in said
    job = next(job for job in octet.jobs() if job.variant == "cli-left")
    assert octet.wait_success(job.id, timeout_seconds=200)


def test_a_service_that_is_ready_says_so(terminal: Terminal) -> None:
    assert terminal.json("status")["status"] == "ready"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the digits example writes."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, "-m", "examples.digits", str(folder)], check=True, timeout=120)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["examples/quantize_with_curl.sh"], [sys.executable, "-m", "examples.quantize_with_client"]],
    ids=["curl", "client"],
)
def test_an_example_leaves_a_smaller_artifact(service: Service, digits: Path, command: list[str]) -> None:
    before = set(digits.iterdir())
    result = subprocess.run(
        [*command, str(digits), service.url], capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (artifact,) = (path for path in set(digits.iterdir()) - before if path.suffix == ".onnx")
    assert artifact.stat().st_size < (digits / "digits.pt2").stat().st_size / 2
