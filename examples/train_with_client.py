"""Training with the Python client: 4-bit weights that learn from unlabelled rows. Octet must be running: `make run`.

    python -m examples.train_with_client FOLDER [URL]

FOLDER holds what `python -m examples.digits FOLDER` wrote. Only the images of `calibration.npz` train, not its labels.
"""

import sys
from pathlib import Path

from app.client import Octet
from app.domain.jobs import Job
from app.domain.recipes import Qat
from app.domain.reports import Report


def main(folder: Path, url: str) -> None:
    """Upload, train, and print what came of it."""
    with Octet(url) as octet:
        model = octet.upload_model(folder / "digits.pt2", name="digits-to-train")
        training = octet.upload_dataset(folder / "calibration.npz", name="digits-training")
        evaluation = octet.upload_dataset(folder / "evaluation.npz", name="digits-evaluation")
        octet.wait_model(model.reference)
        octet.wait_dataset(training.reference)
        octet.wait_dataset(evaluation.reference)

        job = octet.quantize(
            model.reference,
            training=training.reference,
            evaluation=evaluation.reference,
            recipe=Qat(weight_bits=4, epochs=10, batch_size=32),
        )
        for now in octet.follow(job.id):
            print(f"{now.percent:3.0f} %  {now.step}{losses(now)}")
        done = octet.wait_success(job.id)
        show(octet.report(f"{done.model}@{done.variant}"))


def losses(job: Job) -> str:
    """Return where training stands, while it does."""
    trained = job.training_progress
    if trained is None or trained.loss is None or not job.step.startswith("training"):
        return ""
    return f"  loss {trained.loss:.4g}, held-out {trained.score:.4g}" if trained.score is not None else ""


def show(report: Report) -> None:
    """Print float32, the start and the variant side by side, and how training ended."""
    if report.training is None:
        return
    for form, fidelity in report.fidelity.items():
        if fidelity.agreement:
            print(f"{form:9} answers {fidelity.agreement.value:.2%} of the rows like float32")
    outcome = report.training.outcome
    print(f"{outcome.ended} after {outcome.steps_done} steps; the best was {outcome.best_step}")
    print(report.training.choice)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000")  # noqa: PLR2004 - optional
