"""The whole main job in one run, through the public HTTP API alone: `make demo`, or `python -m examples.demo`.

Starts an Octet of its own, trains a small CNN on scikit-learn's digits, uploads it with its data, has it quantized,
shows the proof, asks both variants, and stops everything again. `--keep` goes on serving.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import typer
from pydantic_core import to_json
from rich.console import Console
from rich.text import Text

from app.client import Octet
from app.client.console import show_live
from app.client.problems import succeeded
from app.client.report_table import report_view
from app.domain.errors import OctetError
from app.domain.recipes import PtqStatic
from examples.service import OctetDidNotStart, embedded_octet

REPOSITORY = Path(__file__).parent.parent
KEPT = Path("build/demo")
SHADES = " .:-=+*#%@"

console = Console(highlight=False)


def main(*, keep: bool = False) -> None:
    """Run the demo."""
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="octet-demo-") as folder, _training(Path(folder)) as training:
            say("Starting Octet: embedded Redis, local store, one gateway, one worker.")
            with embedded_octet(Path(folder)) as octet:
                say(f"Octet answers at {octet.base_url}. Training a small CNN on scikit-learn's digits.")
                say(f"Trained: {finished(training)}.")
                run(octet, Path(folder))
                say(f"Done in {time.monotonic() - began:.0f} s.")
                if keep:
                    say(f"Octet keeps serving at {octet.base_url}; Ctrl-C stops it.")
                    signal.pause()
            say("Octet has stopped.")
    except (OctetError, OctetDidNotStart) as error:
        console.print(Text(f"The demo failed: {error}", style="red"))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        say("Stopped.")
        raise typer.Exit(130) from None


def run(octet: Octet, folder: Path) -> None:
    """Do the main job: upload, quantize, read the proof, predict, download."""
    model = octet.upload_model(folder / "digits.pt2", name="digits")
    calibration = octet.upload_dataset(folder / "calibration.npz", name="digits-calibration")
    evaluation = octet.upload_dataset(folder / "evaluation.npz", name="digits-evaluation")
    octet.wait_model(model.reference)
    octet.wait_dataset(calibration.reference)
    octet.wait_dataset(evaluation.reference)
    say("Uploaded and imported: the model and two datasets. Quantizing.")

    job = octet.quantize(
        model.reference,
        calibration=calibration.reference,
        evaluation=evaluation.reference,
        recipe=PtqStatic(calibration_rows=300),
    )
    done = succeeded(show_live(job, changes=octet.follow(job.id)))

    variant = f"{done.model}@{done.variant}"
    console.print()
    console.print(report_view(octet.report(variant), width=console.width))
    ask_both(octet, f"{done.model}@float32", variant, np.load(folder / "evaluation.npz"))
    show_where(octet, variant)


def ask_both(octet: Octet, float32: str, variant: str, evaluation: "np.lib.npyio.NpzFile") -> None:
    """Ask `/predict` of both variants for three unseen digits and print what they say below the pictures."""
    images = evaluation["x"][:3]
    answers = {name: octet.predict(name, images).output for name in (float32, variant)}
    console.print()
    for line in zip(*(picture(image[0]) for image in images), strict=True):
        console.print("   ".join(line), markup=False)
    for name, logits in answers.items():
        said = [f"{row.argmax()} ({share:.1%})" for row, share in zip(logits, certainty(logits), strict=True)]
        console.print("   ".join(f"{text:16}" for text in said) + f"   {name}", markup=False)
    console.print()


def show_where(octet: Octet, variant: str) -> None:
    """Keep the artifact and the report, and print where everything is."""
    KEPT.mkdir(parents=True, exist_ok=True)
    report = KEPT / "report.json"
    report.write_bytes(to_json(octet.report(variant), indent=2))
    model, name = variant.split("@")
    url = octet.base_url
    say(f"Artifact   {octet.download(variant, to=KEPT)} (opens in ONNX Runtime and OpenVINO)")
    say(f"Report     {report} ({url}/v1/models/{model}/variants/{name}/report)")
    say(f"Metrics    {url}/metrics")
    say(f"API docs   {url}/docs")


def picture(image: "np.typing.NDArray[np.float32]") -> list[str]:
    """Draw a digit in characters, two per pixel of the original 8x8."""
    shades = (image[::2, ::2] * (len(SHADES) - 1)).astype(int)
    return ["".join(2 * SHADES[shade] for shade in row) for row in shades]


def certainty(logits: "np.typing.NDArray[np.generic]") -> list[float]:
    """Return the softmax of each row's highest logit."""
    scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64))
    return list(scores.max(axis=1) / scores.sum(axis=1))


@contextmanager
def _training(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Train in a process of its own while Octet starts; it ends with the block."""
    command = [sys.executable, "-m", "examples.digits", str(folder)]
    # a session of its own: Ctrl-C reaches the demo alone, which then ends the training
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def finished(training: "subprocess.Popen[str]") -> str:
    """Wait for the training and return what it says about itself."""
    said, _ = training.communicate()
    if training.returncode != 0:
        raise OctetDidNotStart(f"examples/digits.py ended with status {training.returncode}; its messages are above.")
    return said.strip()


def say(sentence: str) -> None:
    """Print one plain line."""
    console.print(sentence, markup=False, soft_wrap=True)


def _as_ctrl_c(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
