"""What names a search: whoever finds its trials has the same model, the same rows and the same numbers in them."""

from dataclasses import replace

import pytest

from app.domain.models import ModelManifest
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import Auto
from app.domain.variants import FLOAT32, Artifact, Execution, Variant
from tests.unit.test_domain_records import DATASET, MODEL, NOW
from workers.jobs.lookup import Order
from workers.jobs.rows import choose_calibration, choose_evaluation
from workers.jobs.search import plan
from workers.jobs.search.plan import search_key

CALIBRATION = choose_calibration(DATASET, rows=4, seed=0, hold_out=True)
SELECTION = choose_evaluation(DATASET, calibration=CALIBRATION, given=False)
PARENT = Variant(
    model=MODEL.name,
    version=MODEL.version,
    name=FLOAT32,
    artifact=Artifact(file="a.onnx", size_bytes=1, sha256="0" * 64),
    execution=Execution(),
    signature=MODEL.signature,
    recipe=None,
    job="j",
    created_at=NOW,
)


def key(model: ModelManifest, *, float32: Variant = PARENT) -> str:
    order = Order(model=model, float32=float32, calibration=CALIBRATION, evaluation=SELECTION)
    return search_key(order, SELECTION, Auto())


def test_another_version_of_the_same_upload_finds_the_trials() -> None:
    assert key(MODEL) == key(replace(MODEL, version=2))


def test_the_same_upload_behind_another_preprocessing_does_not() -> None:
    keys = {
        key(replace(MODEL, preprocessing=each)) for each in (None, ImagePreprocessing(), ImagePreprocessing(scale=1))
    }
    assert len(keys) == 3


def test_another_artifact_does_not() -> None:
    other = replace(PARENT, artifact=replace(PARENT.artifact, sha256="1" * 64))
    assert key(MODEL) != key(MODEL, float32=other)


def test_another_release_of_octet_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(MODEL)
    monkeypatch.setattr(plan, "__version__", "0.0.0")
    assert key(MODEL) != before
