"""The README's main job is run block by block, as it stands, against a running Octet."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples import digits
from tests.running import Service

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: the files of the digits, and the environment's programs."""
    made = tmp_path_factory.mktemp("readme")
    digits.main(made)
    (made / ".venv" / "bin").mkdir(parents=True)
    octet = made / ".venv" / "bin" / "octet"
    octet.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.client.cli "$@"\n')
    octet.chmod(0o755)
    return made


def test_every_block_of_the_main_job_runs(service: Service, folder: Path) -> None:
    blocks = [(match["language"], match["code"]) for match in BLOCK.finditer((ROOT / "README.md").read_text())]
    assert [language for language, _ in blocks] == ["bash", "bash", "bash", "python", "bash"]
    said = "".join(run(language, code, service=service, folder=folder) for language, code in blocks)
    assert "int8" in said
    assert "<html" in (folder / "report.html").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["kernels"]["int8"]["int8_layers"] > 0
    assert (folder / "digits-int8.onnx").stat().st_size == report["size"]["bytes"]


def run(language: str, code: str, *, service: Service, folder: Path) -> str:
    """Run one block in the folder; return what it printed."""
    bash = shutil.which("bash") or "/bin/bash"
    command = [bash, "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    environment = os.environ | {"OCTET_URL": service.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout
