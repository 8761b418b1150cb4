"""Reads a `.zip` of one `.onnx` and the files its weights are in."""

from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper

from app.domain.errors import UploadRefused, UploadUnreadable
from workers import archives
from workers.formats.onnx_file import as_original, parse
from workers.formats.original import Original
from workers.formats.tidy import MAX_FILE_BYTES, refuse_custom_operators
from workers.graphs import is_external, tensors_of


def read(upload: Path, temporary: Path) -> Original:
    """Read an archive with one `.onnx`.

    Raises:
        UploadUnreadable: a broken archive or graph, or a data file that is missing or too short.
        UploadRefused: a name or a weight's location that leaves the archive, or weights beyond one file.
    """
    folder = temporary / "archive"
    with archives.open_archive(upload, limits=archives.MODELS) as archive:
        archives.unpack(archive, folder, limits=archives.MODELS)
    source = next(path for path in folder.rglob("*") if path.suffix.lower() == ".onnx")
    graph = parse(source)
    refuse_custom_operators(graph)
    outside = [tensor for tensor in tensors_of(graph) if is_external(tensor)]
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
    if archives.leads_outside(location):
        raise UploadRefused(
            f"The weights of tensor {tensor.name!r} are said to be in {location!r}, outside the archive: "
            "save the data file beside the .onnx."
        )
    if not (folder / location).is_file():
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
