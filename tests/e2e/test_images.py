"""Images from end to end: a folder of pictures calibrates, and a picture is predicted on by both variants."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.client import Octet
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import PtqStatic
from tests.e2e.conftest import SIDE, save_classifier

PREPROCESSING = ImagePreprocessing(resize=20, crop=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def name(octet: Octet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of pictures with its int8 variant."""
    folder, name = tmp_path_factory.mktemp("images"), "pictures"
    octet.upload_model(save_classifier(folder / "m.onnx"), name=name, preprocessing=PREPROCESSING)
    octet.upload_dataset(zipped_pictures(folder / "pictures.zip"), name=name)
    octet.wait_success(octet.quantize(name, calibration=name, recipe=PtqStatic()).id, timeout_seconds=120)
    return name


def test_a_folder_of_pictures_calibrates_and_scores_by_class(octet: Octet, name: str) -> None:
    dataset = octet.dataset(name).manifest
    assert dataset is not None
    assert (dataset.rows, dataset.classes) == (80, ("cat", "dog", "eel", "fox"))
    report = octet.report(f"{name}@int8")
    assert report.accuracy is not None
    assert [row.name for row in report.accuracy.classes] == ["cat", "dog", "eel", "fox"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_answered_as_its_preprocessed_pixels_are(octet: Octet, name: str, kind: str) -> None:
    encoded = picture(7, kind=kind)
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).resize((20, 20), Image.Resampling.BILINEAR), np.float32)
    row = ((pixels[2:18, 2:18] / 255 - 0.5) / 0.25).transpose(2, 0, 1)[None]
    for variant in ("float32", "int8"):
        by_picture = octet.predict(f"{name}@{variant}", encoded).output
        by_pixels = octet.predict(f"{name}@{variant}", row.astype(np.float32)).output
        assert np.allclose(by_picture, by_pixels, atol=1e-5)


def zipped_pictures(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(80):
            folder = ("cat", "dog", "eel", "fox")[number % 4]
            archive.writestr(f"{folder}/{number}.png", picture(number, kind="PNG"))
    return path


def picture(seed: int, *, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()
