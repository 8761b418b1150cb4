"""The main job with the Python client, in the fewest lines. Octet must be running: `make run`.

    python -m examples.quantize_with_client FOLDER [URL]

FOLDER holds what `python -m examples.digits FOLDER` wrote; the quantized artifact is put beside it.
"""

import sys
from pathlib import Path

import numpy as np

from app.client import Octet
from app.domain.recipes import PtqStatic


def main(folder: Path, url: str) -> None:
    """Upload, quantize, read the report, predict, download."""
    with Octet(url) as octet:
        model = octet.upload_model(folder / "digits.pt2", name="digits")
        calibration = octet.upload_dataset(folder / "calibration.npz", name="digits-calibration")
        evaluation = octet.upload_dataset(folder / "evaluation.npz", name="digits-evaluation")
        octet.wait_model(model.reference)
        octet.wait_dataset(calibration.reference)
        octet.wait_dataset(evaluation.reference)

        job = octet.quantize(
            model.reference,
            calibration=calibration.reference,
            evaluation=evaluation.reference,
            recipe=PtqStatic(calibration_rows=300),
        )
        for now in octet.follow(job.id):
            print(f"{now.percent:3.0f} %  {now.step}")
        done = octet.wait_success(job.id)

        variant = f"{done.model}@{done.variant}"
        report = octet.report(variant)
        if report.accuracy:
            change = report.accuracy.difference
            print(f"accuracy {100 * change.value:+.2f} points ({100 * change.low:+.2f} to {100 * change.high:+.2f})")
        print(f"size     {report.size.ratio:.0%} of float32")
        print(f"latency  {report.latency[report.variant].speedup:.2f} times as fast")

        image = np.load(folder / "evaluation.npz")["x"][:1]
        print(f"answers  {octet.predict(variant, image).output.argmax()}")
        print(f"artifact {octet.download(variant, to=folder)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000")  # noqa: PLR2004 - optional
