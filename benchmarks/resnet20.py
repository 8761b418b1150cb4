"""CIFAR ResNet-20 through the main job, as `.pt2` and as ONNX: what the report says on the 10,000 test rows.

    python -m benchmarks.resnet20 FOLDER

FOLDER holds `resnet20.safetensors` and `cifar10.npz` (JPEG copies of CIFAR-10's images). 300 rows calibrate.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from app.client import Octet
from app.domain.recipes import PtqStatic
from app.domain.reports import Report
from examples import resnet20
from examples.service import embedded_octet

BATCH = 500


def main(data: Path) -> None:
    """Run both uploads and print a row for each."""
    module, images = resnet20.load(data / "resnet20.safetensors"), np.load(data / "cifar10.npz")
    x, labels = resnet20.preprocess(images["x_test"]), images["y_test"].astype(np.int64)
    with tempfile.TemporaryDirectory(prefix="octet-bench-") as name, embedded_octet(Path(name)) as octet:
        folder = Path(name)
        resnet20.export_pt2(module, folder / "resnet20.pt2", dynamic=False)
        resnet20.export_onnx(module, folder / "resnet20.onnx")
        np.savez(folder / "calibration.npz", x=resnet20.preprocess(images["x_train"][:300]))
        np.savez(folder / "evaluation.npz", x=x, labels=labels)
        octet.upload_dataset(folder / "calibration.npz", name="calibration")
        octet.upload_dataset(folder / "evaluation.npz", name="evaluation")
        print("| upload | float32 | int8 | paired difference (95 %) | agreement | size | p50 | in ONNX Runtime |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for kind in ("pt2", "onnx"):
            report = quantized(octet, folder / f"resnet20.{kind}", name=f"resnet20-{kind}")
            artifact = octet.download(f"resnet20-{kind}@int8", to=folder)
            print(row(kind, report, elsewhere=accuracy_in_onnxruntime(artifact, x, labels)))


def quantized(octet: Octet, upload: Path, *, name: str) -> Report:
    """Upload a model and quantize it; return the report."""
    octet.upload_model(upload, name=name)
    job = octet.quantize(name, calibration="calibration", evaluation="evaluation", recipe=PtqStatic())
    octet.wait_success(job.id)
    return octet.report(f"{name}@int8")


def accuracy_in_onnxruntime(artifact: Path, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Return the artifact's top-1 accuracy in the other engine."""
    session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
    batches = [x[start : start + BATCH] for start in range(0, len(x), BATCH)]
    answers = np.concatenate([session.run(None, {"x": batch})[0].argmax(1) for batch in batches])
    return float((answers == labels).mean())


def row(kind: str, report: Report, *, elsewhere: float) -> str:
    """Write a line of the table."""
    accuracy, agreement = report.accuracy, report.fidelity["int8"].agreement
    if accuracy is None or agreement is None:
        raise ValueError("the report has no accuracy")
    before, after, change = accuracy.measured["float32"], accuracy.measured["int8"], accuracy.difference
    return (
        f"| `.{kind}` | {before.value:.2%} | {after.value:.2%} "
        f"| {100 * change.value:+.2f} points ({100 * change.low:+.2f} to {100 * change.high:+.2f}) "
        f"| {agreement.value:.2%} | {report.size.ratio:.3f} | {report.latency['int8'].speedup:.2f}x faster "
        f"| {elsewhere:.2%} |"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
