"""The main job on real data: digits always, CIFAR ResNet-20 where its weights are at hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from app.client import Octet
from app.domain.recipes import Cast, PtqStatic
from examples import digits, resnet20
from tests.running import Service, holds

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
MACHINE_LEARNING = ["torch", "torchao", "nncf", "onnx", "onnxruntime", "openvino", "sklearn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("digits")
    digits.main(made)
    return made


def test_the_digits_become_int8_with_proof(octet: Octet, folder: Path) -> None:
    octet.upload_model(folder / "digits.pt2", name="proof")
    octet.upload_dataset(folder / "calibration.npz", name="proof-calibration")
    octet.upload_dataset(folder / "evaluation.npz", name="proof-evaluation")
    job = octet.quantize(
        "proof", calibration="proof-calibration", evaluation="proof-evaluation", recipe=PtqStatic(calibration_rows=300)
    )
    states = list(octet.follow(job.id))
    assert [state.percent for state in states] == sorted(state.percent for state in states)
    assert {"quantizing", "measuring latency", "measuring accuracy"} <= {step.step for step in states[-1].steps}
    report = octet.report("proof@int8")
    assert report.accuracy is not None
    assert report.accuracy.measured["float32"].value > 0.97
    assert report.accuracy.difference.low <= report.accuracy.difference.value <= report.accuracy.difference.high
    assert report.size.ratio < 0.35
    assert {layer.precision for layer in report.kernels["int8"].layers} & {"u8", "i8"}
    assert report.kernels["float32"].int8_layers == 0
    assert set(report.memory) == set(report.latency) >= {"float32", "int8"}
    rows = np.load(folder / "evaluation.npz")
    for variant in ("float32", "int8"):
        answers = octet.predict(f"proof@{variant}", rows["x"][:200]).output.argmax(1)
        assert (answers == rows["labels"][:200]).mean() > 0.95


def test_the_bfloat16_cast_is_half_the_size_or_says_that_the_cpu_cannot(octet: Octet, folder: Path) -> None:
    octet.upload_model(folder / "digits.pt2", name="cast")
    octet.upload_dataset(folder / "evaluation.npz", name="cast-evaluation")
    job = octet.wait(octet.quantize("cast", evaluation="cast-evaluation", recipe=Cast()).id, timeout_seconds=120)
    if "bf16" not in Path("/proc/cpuinfo").read_text():
        assert job.error is not None
        assert job.error.code == "precision_unavailable"
        return
    report = octet.report("cast@bfloat16")
    assert report.size.ratio < 0.55
    assert "bf16" in {layer.precision for layer in report.kernels["bfloat16"].layers}


@pytest.mark.skipif(not CIFAR.exists(), reason="needs ../shared/data/cifar10, which the project does not contain")
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_resnet20_keeps_its_accuracy_in_int8(octet: Octet, tmp_path: Path, kind: str) -> None:
    name, module = f"resnet20-{kind}", resnet20.load(CIFAR / "resnet20.safetensors")
    upload = tmp_path / f"resnet20.{kind}"
    if kind == "pt2":
        resnet20.export_pt2(module, upload, dynamic=False)
    else:
        resnet20.export_onnx(module, upload)
    images = np.load(CIFAR / "cifar10.npz")
    x = resnet20.preprocess(images["x_test"])
    np.savez(tmp_path / "calibration.npz", x=resnet20.preprocess(images["x_train"][:300]))
    np.savez(tmp_path / "evaluation.npz", x=x, labels=images["y_test"].astype(np.int64))
    octet.upload_model(upload, name=name)
    octet.upload_dataset(tmp_path / "calibration.npz", name=f"{name}-calibration")
    octet.upload_dataset(tmp_path / "evaluation.npz", name=f"{name}-evaluation")
    job = octet.quantize(name, calibration=f"{name}-calibration", evaluation=f"{name}-evaluation", recipe=PtqStatic())
    octet.wait_success(job.id, timeout_seconds=250)
    report = octet.report(f"{name}@int8")
    assert report.accuracy is not None
    assert report.accuracy.measured["float32"].rows == 10_000
    assert abs(report.accuracy.difference.value) <= 0.004
    assert report.fidelity["int8"].agreement is not None
    assert report.fidelity["int8"].agreement.value > 0.97
    assert report.size.ratio <= 0.35
    artifact = octet.download(f"{name}@int8", to=tmp_path)
    session = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run(None, {"x": x[i : i + 500]})[0].argmax(1) for i in range(0, 10_000, 500)])
    # the engines round differently where a sum falls between two steps: the same tolerance as against float32
    assert abs(float((answers == images["y_test"]).mean()) - report.accuracy.measured["int8"].value) <= 0.004


def test_a_large_upload_does_not_grow_the_gateway(service: Service, octet: Octet, tmp_path: Path) -> None:
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(2**30)
    (gateway,) = service.children("app.launcher", "gateway")
    before, limit = gateway.memory_info().rss, 50_000_000
    with PeakOf(gateway) as peak:
        octet.upload_model(large, name="large")
    assert peak.bytes - before < limit
    assert octet.wait(octet.model("large").import_job, timeout_seconds=120).state == "failed"


def test_the_gateway_is_small_and_loads_no_machine_learning_library(service: Service) -> None:
    (gateway,) = service.children("app.launcher", "gateway")
    assert gateway.memory_full_info().pss < 150_000_000
    check = "import json, sys, app.main; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, check=True)
    assert set(json.loads(loaded.stdout)).isdisjoint(MACHINE_LEARNING)


class PeakOf:
    """Watches the largest resident size of a process while a block runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.bytes = 0

    def __enter__(self) -> "PeakOf":
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # resets VmHWM
        return self

    def __exit__(self, *_: object) -> None:
        assert holds(self._process, ())
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        self.bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024
