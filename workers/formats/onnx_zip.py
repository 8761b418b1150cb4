"""Reads a `.zip` of one `.onnx` and the files its weights are in."""

import zipfile
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, external_data_helper

from app.domain.errors import UploadRefused, UploadUnreadable
from workers.formats import archive
from workers.formats.onnx_file import as_original, parse, tensors_of
from workers.formats.original import Original
from workers.formats.tidy import MAX_FILE_BYTES, refuse_custom_operators


def read(upload: Path, temporary: Path) -> Original:
    """Read an archive with one `.onnx`.

    Raises:
        UploadUnreadable: a broken archive or graph, or a data file that is missing or too short.
        UploadRefused: a name or a weight's location that leaves the archive, or weights beyond one file.
    """
    folder = temporary / "archive"
    with zipfile.ZipFile(upload) as file:
        archive.unpack(file, folder)
    source = next(path for path in folder.rglob("*") if path.suffix.lower() == ".onnx")
    graph = parse(source)
    refuse_custom_operators(graph)
    outside = [tensor for tensor in tensors_of(graph) if tensor.data_location == TensorProto.EXTERNAL]
    for tensor in outside:
        _check_location(tensor, source.parent)
    _check_total(outside)
    try:
        external_data_helper.load_external_data_for_model(graph, str(source.parent))
    except (ValueError, OSError, RuntimeError, onnx.checker.ValidationError) as error:
        raise UploadUnreadable("A data file of the archive is shorter than the .onnx says: pack it again.") from error
    return as_original(graph, source)


def _check_location(tensor: TensorProto, folder: Path) -> None:
    location = _external(tensor).get("location", "")
    path = PurePosixPath(location)
    if path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location or not path.parts:
        raise UploadRefused(
            f"The weights of tensor {tensor.name!r} are said to be in {location!r}, outside the archive: "
            "save the data file beside the .onnx."
        )
    if not (folder / path).is_file():
        raise UploadUnreadable(
            f"The weights of tensor {tensor.name!r} are said to be in {location!r}, which the archive lacks: add it."
        )


def _check_total(tensors: list[TensorProto]) -> None:
    size = sum(int(_external(tensor).get("length", "0") or 0) for tensor in tensors)
    if size > MAX_FILE_BYTES:
        raise UploadRefused(
            f"The model's weights take {size:,} bytes, but one ONNX file holds at most {MAX_FILE_BYTES:,}: "
            "upload a smaller model."
        )


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
