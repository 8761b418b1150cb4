"""Every dataset format behind one interface: what is read, what is refused, and that memory stays flat."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from app.domain.datasets import DatasetFormat, DatasetManifest
from app.domain.errors import DatasetUnfit, JobFailure, UploadRefused, UploadUnreadable
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from workers import archives
from workers.data.batches import Batch, batches
from workers.data.datasets import open_dataset
from workers.data.describe import describe
from workers.stage_records.common import RowSource
from workers.stage_records.importing import DescribeResult, DescribeSpec

Arrays = dict[str, npt.NDArray[np.generic]]
Save = Callable[[Path, Arrays], None]


def save_npz(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def save_deflated(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def save_safetensors(path: Path, arrays: Arrays) -> None:
    save_file(arrays, path)


SAVERS: dict[str, Save] = {"x.npz": save_npz, "deflated.npz": save_deflated, "x.safetensors": save_safetensors}


@pytest.fixture(params=SAVERS)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Arrays], str]:
    """Save arrays in each array format; the answer is the file's name."""

    def save(arrays: Arrays) -> str:
        SAVERS[request.param](tmp_path / request.param, arrays)
        return str(request.param)

    return save


def read(path: Path, name: str) -> DescribeResult:
    return describe(DescribeSpec(upload=name), path, lambda _share, _words: None)


def png(colour: tuple[int, int, int], *, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path / "images.zip", "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return "images.zip"


FOLDERS = {"cat/1.png": png((255, 0, 0)), "cat/2.png": png((0, 255, 0)), "dog/1.png": png((0, 0, 255))}


def test_arrays_are_described(table: Callable[[Arrays], str], tmp_path: Path) -> None:
    name = table({"x": np.ones((5, 3, 4), np.float32), "ids": np.arange(5), "labels": np.arange(5)})
    found = read(tmp_path, name)
    assert (found.rows, found.labelled, found.classes) == (5, True, ())
    assert [(array.name, array.dtype, array.row_shape) for array in found.arrays] == [
        ("ids", "int64", ()),
        ("x", "float32", (3, 4)),
    ]


def test_chosen_rows_are_read_as_they_were_saved(table: Callable[[Arrays], str], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3000, 300)).astype(np.float32)
    chosen = (0, 1, 7, 1500, 1501, 2999)
    dataset = open_dataset(tmp_path / table({"x": x, "labels": np.arange(3000, dtype=np.int32)}))
    rows = list(dataset.read(chosen))
    assert tuple(row.label for row in rows) == chosen
    np.testing.assert_array_equal(np.stack([row.arrays["x"] for row in rows]), x[list(chosen)])


def test_a_dataset_can_be_read_again(table: Callable[[Arrays], str], tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path / table({"x": np.arange(6, dtype=np.float32).reshape(3, 2)}))
    assert [len(list(dataset.read(range(3)))) for _ in range(2)] == [3, 3]


def test_big_endian_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(4, dtype=">f4"))
    (row, *_) = open_dataset(tmp_path / "x.npz").read((3,))
    assert row.arrays["x"] == np.float32(3)
    assert row.arrays["x"].dtype == np.float32


def test_bfloat16_arrays_are_read(tmp_path: Path) -> None:
    save_file({"x": np.ones((2, 2), ml_dtypes.bfloat16)}, tmp_path / "x.safetensors")
    assert read(tmp_path, "x.safetensors").arrays[0].dtype == "bfloat16"


@pytest.mark.parametrize("around", ["", "top/"])
def test_folders_are_classes(around: str, tmp_path: Path) -> None:
    name = zipped(tmp_path, {around + file: data for file, data in FOLDERS.items()} | {"__MACOSX/._1.png": b"x"})
    found = read(tmp_path, name)
    assert (found.format, found.rows, found.classes) == (DatasetFormat.IMAGE_FOLDER, 3, ("cat", "dog"))
    assert [row.label for row in open_dataset(tmp_path / name).read(range(3))] == [0, 0, 1]


@pytest.mark.parametrize("folder", ["", "images/"])
def test_images_in_one_place_have_no_labels(folder: str, tmp_path: Path) -> None:
    name = zipped(tmp_path, {f"{folder}{number}.png": png((number, 0, 0)) for number in range(3)})
    assert not read(tmp_path, name).labelled


LABELS: dict[str, tuple[npt.NDArray[np.generic], str]] = {
    "classes": (np.arange(5), "class"),
    "classes in a column": (np.arange(5)[:, np.newaxis], "class"),
    "maps": (np.array([[[0, 1]], [[2, 255]], [[-1, 0]], [[0, 0]], [[-100, 255]]], np.int16), "class_map"),
    "bool maps": (np.eye(5, 4, dtype=np.bool_), "class_map"),
    "numbers": (np.linspace(-1, 1, 5), "values"),
    "images": (np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float16), "values"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_every_kind_are_read_as_they_were_saved(
    case: str, table: Callable[[Arrays], str], tmp_path: Path
) -> None:
    labels, kind = LABELS[case]
    name = table({"x": np.ones((5, 2), np.float32), "labels": labels})
    found = read(tmp_path, name)
    assert found.labels is not None
    assert (found.labelled, found.labels.label_kind, found.labels.row_shape) == (True, kind, labels.shape[1:])
    source = RowSource(path=name, format=found.format, rows=(0, 2, 3), preprocessing=None)
    (batch,) = batches(source, model(None, 2), scratch=tmp_path, size=8)
    assert batch.labels is not None
    expected = labels[[0, 2, 3]]
    np.testing.assert_array_equal(batch.labels, expected.reshape(3) if kind == "class" else expected)


def test_bfloat16_values_become_float32(tmp_path: Path) -> None:
    save_file(
        {"x": np.ones((2, 2), np.float32), "labels": np.ones((2, 3), ml_dtypes.bfloat16)}, tmp_path / "x.safetensors"
    )
    row = next(iter(open_dataset(tmp_path / "x.safetensors").read((1,))))
    assert read(tmp_path, "x.safetensors").labels is not None
    assert isinstance(row.label, np.ndarray)
    assert row.label.dtype == np.float32


def test_a_manifest_from_before_labels_were_described_is_read() -> None:
    upload = {"name": "d", "version": 1, "file": "d.npz", "size_bytes": 1, "sha256": "0" * 64, "job": "0" * 32}
    old = {
        "name": "d",
        "version": 1,
        "format": "npz",
        "upload": {**upload, "created_at": "2026-01-01T00:00:00Z"},
        "rows": 3,
        "arrays": [],
        "labelled": True,
        "classes": [],
        "imported_at": "2026-01-01T00:00:00Z",
    }
    found = TypeAdapter(DatasetManifest).validate_python(old)
    assert (found.labels, found.label_kind) == (None, "class")


def test_folders_are_labels_too(tmp_path: Path) -> None:
    labels = read(tmp_path, zipped(tmp_path, FOLDERS)).labels
    assert labels is not None
    assert labels.label_kind == "class"


UNFIT: dict[str, tuple[Arrays, str]] = {
    "no rows": ({"x": np.ones((0, 2), np.float32)}, "no rows"),
    "no axes": ({"x": np.float32(1)}, "no axes"),  # type: ignore[dict-item]
    "no elements": ({"x": np.ones((2, 0), np.float32)}, "no elements"),
    "different lengths": ({"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)}, "'a' has 3, 'b' has 4"),
    "labels of another length": ({"x": np.ones(3, np.float32), "labels": np.arange(2)}, "differ in their number"),
    "labels without a number": (
        {"x": np.ones(3, np.float32), "labels": np.array([0, np.nan, 1], np.float32)},
        "labels hold NaN or an infinity in row 1",
    ),
    "a class too large for a map": (
        {"x": np.ones(3, np.float32), "labels": np.full((3, 2), 70_000)},
        "map of row 0 has class 70000: classes in maps are 0 to 65535",
    ),
    "negative labels": ({"x": np.ones(3, np.float32), "labels": np.array([0, -1, 0])}, "row 1 is -1"),
    "labels alone": ({"labels": np.arange(2)}, "holds no array"),
    "NaN": ({"x": np.array([[0, 0], [0, np.nan]], np.float32)}, "'x' holds NaN or an infinity in row 1"),
    "infinity": ({"x": np.array([np.inf, 0])}, "'x' holds NaN or an infinity in row 0"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_arrays_that_are_no_rows_are_refused(case: str, table: Callable[[Arrays], str], tmp_path: Path) -> None:
    arrays, words = UNFIT[case]
    with pytest.raises(DatasetUnfit, match=words):
        read(tmp_path, table({name: np.asarray(array) for name, array in arrays.items()}))


def test_python_objects_are_refused_without_being_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DatasetUnfit, match="Python objects"):
        read(tmp_path, "x.npz")


@pytest.mark.parametrize("array", [np.array(["text"]), np.ones(2, np.complex64), np.ones(2, [("a", "i4")])])
def test_dtypes_that_no_model_takes_are_refused(array: npt.NDArray[np.generic], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(DatasetUnfit, match="has dtype"):
        read(tmp_path, "x.npz")


def test_fortran_order_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.asfortranarray(np.ones((2, 3), np.float32)))
    with pytest.raises(DatasetUnfit, match="ascontiguousarray"):
        read(tmp_path, "x.npz")


@pytest.mark.parametrize("content", [b"", b"\x80\x04random", bytes(range(256)) * 40, b"PK\x03\x04" + b"\0" * 100])
def test_files_that_are_no_dataset_are_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UploadUnreadable):
        read(tmp_path, "x.npz")


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_truncated_files_are_unreadable(kept: float, table: Callable[[Arrays], str], tmp_path: Path) -> None:
    path = tmp_path / table({"x": np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UploadUnreadable):
        read(tmp_path, path.name)


def test_a_flipped_byte_in_an_archive_is_noticed(tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", {"x": np.ones((50, 40), np.float32)})
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UploadUnreadable, match="CRC"):
        read(tmp_path, "x.npz")


@pytest.mark.parametrize("name", [*SAVERS, "images.zip"])
def test_damaged_files_fail_with_a_sentence_or_not_at_all(name: str, tmp_path: Path) -> None:
    if name in SAVERS:
        SAVERS[name](tmp_path / name, {"x": np.ones((6, 4), np.float32), "labels": np.arange(6)})
    else:
        zipped(tmp_path, FOLDERS)
    whole, random, refusals = (tmp_path / name).read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        at = int(random.integers(len(whole)))
        damaged[at : at + int(random.integers(3))] = random.bytes(int(random.integers(3)))
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            read(tmp_path, "damaged")
        except JobFailure as failure:
            refusals += failure.message.endswith(".")
    assert refusals > 0


@pytest.mark.parametrize("rows", [3, 5])
def test_a_header_that_lies_about_its_rows_is_noticed(rows: int, tmp_path: Path) -> None:
    body = io.BytesIO()
    np.lib.format.write_array_header_1_0(body, {"descr": "<f4", "fortran_order": False, "shape": (rows,)})
    body.write(np.ones(4, np.float32).tobytes())
    zipped(tmp_path, {"x.npy": body.getvalue()})
    with pytest.raises(UploadUnreadable, match=r"truncated|longer"):
        read(tmp_path, "images.zip")


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "C:/x.npy", "..\\x.npy"])
def test_paths_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    zipped(tmp_path, {name: b"x"})
    with pytest.raises(UploadRefused, match="leads outside"):
        read(tmp_path, "images.zip")


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat/1.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        made.writestr(link, "/etc/passwd")
    with pytest.raises(UploadRefused, match="a link"):
        read(tmp_path, "x.zip")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "DATASETS", replace(archives.DATASETS, bomb_from_bytes=1 << 20))
    zipped(tmp_path, {"cat/1.png": bytes(2 << 20)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UploadRefused, match="bomb"):
        read(tmp_path, "images.zip")


def test_too_many_members_are_refused_before_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "DATASETS", replace(archives.DATASETS, directory_bytes=100))
    zipped(tmp_path, FOLDERS)
    with pytest.raises(UploadRefused, match="directory takes"):
        read(tmp_path, "images.zip")


UNFIT_IMAGES: dict[str, tuple[dict[str, bytes], str]] = {
    "broken image": ({"cat/1.png": png((1, 2, 3))[:40], "dog/1.png": png((1, 2, 3))}, "Image 'cat/1.png'"),
    "text": ({"cat/1.png": png((1, 2, 3)), "cat/notes.txt": b"hello"}, "'cat/notes.txt', which is no image"),
    "uneven folders": ({"1.png": png((1, 2, 3)), "dog/1.png": png((1, 2, 3))}, "different depth"),
    "only litter": ({"__MACOSX/1.png": b"x"}, "no image"),
}


@pytest.mark.parametrize("case", UNFIT_IMAGES)
def test_image_folders_that_are_none_are_refused(case: str, tmp_path: Path) -> None:
    members, words = UNFIT_IMAGES[case]
    with pytest.raises(DatasetUnfit, match=words):
        read(tmp_path, zipped(tmp_path, members))


def model(*shape: int | None, batch_axis: int | None = 0, dtype: DType = DType.FLOAT32) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape, batch_axis=batch_axis),),
        outputs=(TensorSpec(name="y", dtype=DType.FLOAT32, shape=shape, batch_axis=batch_axis),),
    )


def all_batches(
    path: Path, signature: Signature, *, rows: int, size: int = 2, preprocessing: ImagePreprocessing | None = None
) -> list[Batch]:
    format_ = open_dataset(path).format
    source = RowSource(path=path.name, format=format_, rows=tuple(range(rows)), preprocessing=preprocessing)
    return list(batches(source, signature, scratch=path.parent, size=size))


def test_rows_are_stacked_along_the_batch_axis(tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", {"x": np.ones((3, 4), np.float32), "labels": np.arange(3)})
    made = all_batches(tmp_path / "x.npz", model(4, None, batch_axis=1), rows=3)
    assert [batch.inputs["x"].shape for batch in made] == [(4, 2), (4, 1)]
    assert [batch.rows for batch in made] == [(0, 1), (2,)]
    assert made[1].labels is not None
    assert made[1].labels.tolist() == [2]


@pytest.mark.parametrize("row_shape", [(4,), (1, 4)])
def test_a_model_without_batch_axis_gets_one_row_at_a_time(row_shape: tuple[int, ...], tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", {"x": np.ones((3, *row_shape), np.float32)})
    made = all_batches(tmp_path / "x.npz", model(1, 4, batch_axis=None), rows=3)
    assert [batch.inputs["x"].shape for batch in made] == [(1, 4)] * 3


@pytest.mark.parametrize("signature", [model(None, 3, 4, 6), model(1, 3, 4, 6, batch_axis=None)])
def test_images_become_rows_of_the_input_s_size(signature: Signature, tmp_path: Path) -> None:
    name = zipped(tmp_path, FOLDERS)
    made = all_batches(tmp_path / name, signature, rows=3, size=1, preprocessing=ImagePreprocessing())
    assert [batch.inputs["x"].shape for batch in made] == [(1, 3, 4, 6)] * 3
    assert made[0].inputs["x"][0, :, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("signature", [model(None, 5), model(None, 4, dtype=DType.FLOAT64)])
def test_rows_that_a_model_does_not_take_are_refused(signature: Signature, tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", {"x": np.ones((3, 4), np.float32)})
    with pytest.raises(DatasetUnfit, match="the model takes"):
        all_batches(tmp_path / "x.npz", signature, rows=3)


def test_every_refusal_is_one_sentence_that_names_something(tmp_path: Path) -> None:
    with pytest.raises(JobFailure) as caught:
        read(tmp_path, zipped(tmp_path, {"cat/notes.txt": b"x"}))
    assert caught.value.message.endswith(".")
    assert caught.value.message.count(". ") == 0


READ_ALL = """
import json, sys
from pathlib import Path
from workers.data.describe import describe
from workers.stage_records.importing import DescribeSpec

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

path = Path(sys.argv[1])
before = peak()
found = describe(DescribeSpec(upload=path.name), path.parent, lambda share, words: None)
print(json.dumps({"rows": found.rows, "added": peak() - before}))
"""


@pytest.mark.parametrize("name", SAVERS)
def test_reading_200_megabytes_adds_little_memory(name: str, tmp_path: Path) -> None:
    rows = 2000
    SAVERS[name](tmp_path / name, {"x": np.ones((rows, 25_000), np.float32), "labels": np.zeros(rows, np.int64)})
    ran = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path / name)], capture_output=True, check=True, timeout=200
    )
    measured = json.loads(ran.stdout)
    assert measured["rows"] == rows
    # blocks of a mebibyte, inflated and copied; the whole file would add two hundred
    assert measured["added"] < 30 << 20
