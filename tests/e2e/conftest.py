"""What end-to-end tests start from: a client, and a model that is ready in both variants."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from app.client import Octet
from app.domain.recipes import PtqStatic
from tests import graphs
from tests.running import Service, running_service

SIDE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model with its float32 and int8 variants, and rows it has answers for."""

    name: str
    calibration: str
    x: npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def octet(service: Service) -> Iterator[Octet]:
    with Octet(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An Octet of one module's own, whose processes its tests may kill."""
    with running_service(tmp_path_factory.mktemp("own")) as started:
        yield started


@pytest.fixture(scope="module")
def client(own: Service) -> Iterator[Octet]:
    with Octet(own.url) as opened:
        yield opened


@pytest.fixture(scope="session")
def prepared(octet: Octet, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(octet, tmp_path_factory.mktemp("prepared"))


def prepare(octet: Octet, folder: Path) -> Prepared:
    """Upload a small classifier and labelled rows, and quantize it."""
    name = f"classifier-{secrets.token_hex(4)}"
    octet.upload_model(save_classifier(folder / "classifier.onnx"), name=name)
    octet.wait_model(name)
    x = graphs.rows(400, side=SIDE)
    answers = octet.predict(name, x[:200]).output.argmax(1)
    rest = octet.predict(name, x[200:]).output.argmax(1)
    labels = np.concatenate([answers, rest]).astype(np.int64)
    octet.upload_dataset(graphs.save_dataset(folder / "rows.npz", x, labels), name=name)
    octet.wait_dataset(name)
    octet.wait_success(octet.quantize(name, calibration=name, recipe=PtqStatic()).id, timeout_seconds=120)
    return Prepared(name=name, calibration=name, x=x)


def save_classifier(path: Path, *, width: int = 16) -> Path:
    onnx.save(graphs.conv_classifier(side=SIDE, width=width), str(path))
    return path
