"""Tells the format of an upload by its content. Its name is the uploader's claim."""

from pathlib import Path

from app.domain.errors import UploadRefused, UploadUnreadable
from app.domain.models import ModelFormat
from workers import archives

_HOW_TO_EXPORT = "torch.export.save(torch.export.export(module.eval(), example_inputs), 'model.pt2')"
_PICKLE = b"\x80"
_PICKLE_PROTOCOLS = range(2, 6)
# Files people have at hand that hold a model Octet cannot read.
_KNOWN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF", "an HDF5 (Keras) file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (4, b"TFL3", "a TensorFlow Lite file"),
    (8, b'{"', "a safetensors file, which holds weights but no graph"),
)


def detect(upload: Path) -> ModelFormat:
    """Return the format of an upload.

    Raises:
        UploadUnreadable: it is empty, damaged, or of a kind Octet does not take.
        UploadRefused: an archive that would leave its folder or fill the disk.
    """
    with upload.open("rb") as file:
        head = file.read(16)
    if not head:
        raise UploadUnreadable("The upload is empty: send a .pt2, .onnx or .zip file.")
    if head.startswith(b"PK"):
        return _of_archive(upload)
    if head.startswith(_PICKLE) and head[1] in _PICKLE_PROTOCOLS:
        raise UploadUnreadable(
            f"The upload is a Python pickle (such as an old torch.save file), not a model's graph: "
            f"write it with {_HOW_TO_EXPORT}."
        )
    for position, magic, what in _KNOWN:
        if head[position:].startswith(magic):
            raise UploadUnreadable(f"The upload is {what}, which Octet does not read: send a .pt2 or .onnx file.")
    return ModelFormat.ONNX


def _of_archive(upload: Path) -> ModelFormat:
    with archives.open_archive(upload, limits=archives.MODELS) as archive:
        names = [member.filename for member in archives.checked_members(archive, limits=archives.MODELS)]
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return ModelFormat.TORCH_EXPORT
    if "data.pkl" in inner:
        what = "a TorchScript file" if "constants.pkl" in inner else "a torch.save checkpoint, which holds no graph"
        raise UploadUnreadable(f"The upload is {what}: write the module with {_HOW_TO_EXPORT}.")
    return _of_onnx_archive(names)


def _of_onnx_archive(names: list[str]) -> ModelFormat:
    graphs = [name for name in names if name.lower().endswith(".onnx")]
    if len(graphs) == 1:
        return ModelFormat.ONNX_ZIP
    if graphs:
        raise UploadRefused(f"The archive holds {len(graphs)} .onnx files: send one model per archive.")
    raise UploadUnreadable(
        "The archive holds neither a torch.export program nor an .onnx file: send a .pt2, or a .zip of one .onnx "
        "and its data files."
    )
