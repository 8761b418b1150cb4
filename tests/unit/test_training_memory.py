"""Rows in files do not cost memory: not when they are read, and not when they are counted."""

from pathlib import Path

import numpy as np
import pytest

from app.domain.datasets import DatasetFormat
from app.domain.errors import RecipeInvalid
from app.domain.recipes import Qat
from app.domain.tensors import DType, Signature, TensorSpec
from workers.stage_records.common import RowSource
from workers.training.memory import Peak, held_bytes
from workers.training.rows import Rows, load, mapped

MEBIBYTE = 2**20


def loaded(folder: Path, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Rows:
    np.savez(folder / "rows.npz", x=np.ones((len(labels), 3), np.float32), labels=labels)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3)),),
        outputs=(TensorSpec(name="y", dtype=DType.FLOAT32, shape=(None, 4)),),
    )
    source = RowSource(path="rows.npz", format=DatasetFormat.NPZ, rows=tuple(range(len(labels))), preprocessing=None)
    return load(source, signature, scratch=folder, folder=folder / "rows")


def test_pages_of_mapped_files_are_not_held(tmp_path: Path) -> None:
    rows = mapped(tmp_path / "rows.npy", np.zeros((1, MEBIBYTE), np.uint8), rows=64)
    before = held_bytes()
    rows[:] = 1
    assert held_bytes() - before < 32 * MEBIBYTE
    assert held_bytes() > MEBIBYTE


def test_the_peak_is_the_most_that_was_seen() -> None:
    peak = Peak()
    before = peak.most_bytes
    held = np.ones(64 * MEBIBYTE, np.uint8)
    peak.look()
    del held
    peak.look()
    assert peak.most_bytes - before > 48 * MEBIBYTE


def test_the_room_of_a_mapped_file_is_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    mapped(path, np.zeros((1, MEBIBYTE), np.uint8), rows=8)
    assert path.stat().st_blocks * 512 >= 8 * MEBIBYTE


def test_labels_of_many_numbers_a_row_lie_in_a_file(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).integers(0, 4, (150, 2, 5))
    rows = loaded(tmp_path, maps)
    assert isinstance(rows.labels, np.memmap)
    np.testing.assert_array_equal(rows.labels, maps)


def test_labels_of_one_number_a_row_stay_in_memory(tmp_path: Path) -> None:
    rows = loaded(tmp_path, np.arange(150) % 4)
    assert not isinstance(rows.labels, np.memmap)
    assert rows.labels is not None
    assert rows.labels.tolist() == [number % 4 for number in range(150)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scales": "observed"}, "Observed scales follow .* each of 2 processes .* take learned or fixed scales"),
        ({"freeze_batch_norm": 0.5}, "Batch statistics follow .* each of 2 processes .* take freeze_batch_norm 0"),
    ],
)
def test_what_follows_the_rows_is_for_one_process(fields: dict[str, str], sentence: str) -> None:
    assert Qat(**fields)  # type: ignore[arg-type] # one of them
    with pytest.raises(RecipeInvalid, match=sentence):
        Qat(**fields, processes=2)  # type: ignore[arg-type]
