"""Reads model uploads of every format in the sandbox: one float32 ONNX file and the original's recorded answers."""

from importlib import import_module, metadata
from pathlib import Path
from typing import cast

import numpy as np

from app.domain.models import ModelFormat
from workers.formats import batch, tidy
from workers.formats.detect import detect
from workers.formats.original import Reader
from workers.stage_records.common import FLOAT32_OUTPUT, SAMPLES_OUTPUT, Progress
from workers.stage_records.importing import ConvertResult, ConvertSpec

# Named, not imported: reading an ONNX file needs no torch.
FORMATS: dict[ModelFormat, str] = {
    ModelFormat.TORCH_EXPORT: "workers.formats.torch_export:read",
    ModelFormat.ONNX: "workers.formats.onnx_file:read",
    ModelFormat.ONNX_ZIP: "workers.formats.onnx_zip:read",
}
LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxscript", "openvino")


def convert(spec: ConvertSpec, scratch: Path, progress: Progress) -> ConvertResult:
    """Write the upload as `out/float32.onnx` and the original's answers to random rows as `out/samples.npz`.

    Raises:
        UploadUnreadable: it is no model of a known format, or broken.
        UploadRefused: it asks for something that cannot be served.
    """
    upload = scratch / spec.upload
    progress(0.0, "reading the upload")
    kind = detect(upload)
    original = _reader(kind)(upload, scratch / "tmp")
    progress(0.6, "making the batch axis symbolic")
    rng = np.random.default_rng(spec.seed)
    converted = batch.make_symbolic(original, rng)
    progress(0.8, "recording the original's answers")
    recorded = batch.record(converted, rng, rows=spec.rows)
    (scratch / "out").mkdir(exist_ok=True)
    tidy.save(recorded.graph, scratch / FLOAT32_OUTPUT)
    np.savez(scratch / SAMPLES_OUTPUT, allow_pickle=False, **recorded.arrays)
    return ConvertResult(
        format=kind,
        artifact=FLOAT32_OUTPUT,
        samples=SAMPLES_OUTPUT,
        original=original.name,
        original_batch=original.batch if isinstance(original.batch, int) else None,
        libraries={name: metadata.version(name) for name in LIBRARIES},
        was_training=original.was_training,
    )


def _reader(kind: ModelFormat) -> Reader:
    module, function = FORMATS[kind].split(":")
    return cast(Reader, getattr(import_module(module), function))
