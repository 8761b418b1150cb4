"""Import jobs: read what was uploaded, once, in the sandbox; write what Octet will use from then on."""

from datetime import UTC, datetime

from app.domain.datasets import DatasetManifest
from app.domain.models import ModelManifest, Upload
from app.domain.names import Reference
from app.domain.variants import FLOAT32, Execution, Variant
from workers.jobs.bench import Bench
from workers.jobs.files import bring, inspect, keep_only
from workers.jobs.measuring import forms_beside, measure_costs
from workers.jobs.reporting import Evidence, make_report
from workers.outputs import output_path
from workers.stage_records.importing import (
    ConvertResult,
    ConvertSpec,
    DescribeResult,
    DescribeSpec,
    VerifyResult,
    VerifySpec,
)

WAS_TRAINING = (
    "The .pt2 was exported in training mode and taken in evaluation mode: dropout passes everything on, normalizations "
    "use their running statistics, and code of its own that asks for self.training stays as it was exported."
)


async def import_upload(bench: Bench) -> str | None:
    """Read the upload the job names."""
    if bench.job.subject == "model":
        return await _import_model(bench)
    await _import_dataset(bench)
    return None


async def _import_model(bench: Bench) -> str:
    shelf, reference = bench.workshop.models, Reference.parse(bench.job.model or "")
    entry = await shelf.get(reference.name, reference.version or 0)
    async with bench.step("fetching the upload", until=5):
        upload = await bring(bench, shelf.upload_path(entry), name=entry.upload.file, sha256=entry.upload.sha256)
    async with bench.step("converting to ONNX", until=45):
        converted = await bench.stage("convert", ConvertSpec(upload=upload), gives=ConvertResult, until=45)
    keep_only(bench, converted.artifact, converted.samples)  # `convert` may have executed what was uploaded
    async with bench.step("checking against the original", until=60):
        spec = VerifySpec(
            artifact=converted.artifact,
            samples=converted.samples,
            original=converted.original,
            preprocessing=entry.upload.preprocessing,
        )
        verified = await bench.stage("verify", spec, gives=VerifyResult, until=60)
    await _publish(bench, entry.upload, converted, verified)
    return FLOAT32


async def _publish(bench: Bench, upload: Upload, converted: ConvertResult, verified: VerifyResult) -> None:
    """Publish float32 with its report, then the manifest that makes the model ready."""
    artifact = inspect(bench, converted.artifact)
    costs = await measure_costs(bench, forms_beside(converted.artifact), verified.signature, until=95)
    variant = Variant(
        model=upload.name,
        version=upload.version,
        name=FLOAT32,
        artifact=artifact,
        execution=Execution(),
        signature=verified.signature,
        recipe=None,
        job=bench.job.id,
        created_at=datetime.now(UTC),
    )
    evidence = Evidence(costs=costs, conversion=verified.conversion)
    notes = (WAS_TRAINING,) if converted.was_training else ()
    report = make_report(variant, evidence, float32=variant, made_with=converted.libraries, notes=notes)
    async with bench.step("publishing", until=100):
        with output_path(bench.scratch, converted.artifact).open("rb") as file:
            await bench.workshop.variants.publish(variant, artifact=file, report=report)
        await bench.workshop.models.publish(_manifest(upload, converted, verified))


def _manifest(upload: Upload, converted: ConvertResult, verified: VerifyResult) -> ModelManifest:
    return ModelManifest(
        name=upload.name,
        version=upload.version,
        format=converted.format,
        upload=upload,
        signature=verified.signature,
        preprocessing=upload.preprocessing,
        original_batch=converted.original_batch,
        parameters=verified.parameters,
        imported_at=datetime.now(UTC),
        imported_with=converted.libraries,
    )


async def _import_dataset(bench: Bench) -> None:
    shelf, reference = bench.workshop.datasets, Reference.parse(bench.job.dataset or "")
    entry = await shelf.get(reference.name, reference.version or 0)
    async with bench.step("fetching the upload", until=10):
        upload = await bring(bench, shelf.upload_path(entry), name=entry.upload.file, sha256=entry.upload.sha256)
    async with bench.step("reading every row", until=95):
        found = await bench.stage("describe", DescribeSpec(upload=upload), gives=DescribeResult, until=95)
    async with bench.step("publishing", until=100):
        manifest = DatasetManifest(
            name=entry.upload.name,
            version=entry.upload.version,
            format=found.format,
            upload=entry.upload,
            rows=found.rows,
            arrays=found.arrays,
            labelled=found.labelled,
            classes=found.classes,
            labels=found.labels,
            imported_at=datetime.now(UTC),
        )
        await shelf.publish(manifest)
