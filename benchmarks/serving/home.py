"""Where the benchmark keeps what is not the repository's: the peers' virtual environments, the model, the results.

python -m benchmarks.serving install [PEER ...]
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
REPOSITORY = Path(__file__).parents[2]
ENVIRONMENTS = tuple(sorted(file.stem for file in REQUIREMENTS.glob("*.txt")))
"""Virtual environments that peers live in."""


def home() -> Path:
    """Return `$OCTET_BENCH_HOME`, or a folder in the user's cache, made if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("OCTET_BENCH_HOME") or cache / "octet-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def python_of(environment: str) -> Path:
    """Return the interpreter of a peer's virtual environment, whether it is there or not."""
    return home() / "venvs" / environment / "bin" / "python"


def missing(environment: str) -> str:
    """Return why a peer's virtual environment cannot be used, or nothing if it can."""
    mark, failure = _mark(environment), _failure(environment)
    if failure.is_file():
        return f"could not be installed: {failure.read_text()}"
    if not mark.is_file():
        return "not installed"
    current = mark.read_text() == (REQUIREMENTS / f"{environment}.txt").read_text()
    return "" if current else "installed with other versions"


def install(environments: Sequence[str]) -> dict[str, str]:
    """Make the virtual environments that are not there; return the last line of what went wrong, by environment."""
    failures: dict[str, str] = {}
    for environment in environments:
        if missing(environment):
            print(f"installing {environment} ...", file=sys.stderr)
            problem = _install(environment)
            if problem:
                failures[environment] = problem
    return failures


def _install(environment: str) -> str:
    folder = python_of(environment).parents[1]
    wanted = REQUIREMENTS / f"{environment}.txt"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(wanted)], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or ["pip failed and did not say why"])[-1][:200]
        _failure(environment).write_text(reason)
        return reason
    _mark(environment).write_text(wanted.read_text())
    return ""


def _mark(environment: str) -> Path:
    return home() / "venvs" / environment / "installed.txt"


def _failure(environment: str) -> Path:
    return home() / "venvs" / environment / "failed.txt"
