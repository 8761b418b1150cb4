"""Datasets: upload and look up."""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request, Response

from app.api import examples
from app.api.dependencies import Served
from app.api.documentation import answers, form_body
from app.api.references import plain_reference
from app.api.schemas.catalogue import DatasetList, DatasetVersion
from app.api.strictness import StrictRoute
from app.api.uploads import announce_dataset, check_length, incoming, receive
from app.catalogue.shelf import Entry

router = APIRouter(tags=["catalogue"], route_class=StrictRoute)

_FORM = form_body(
    examples.DATASET_FORM,
    text={"name": "The dataset's name; else the file's."},
    files={"file": "A `.npz`, a `.safetensors`, or a `.zip` with a folder of images per class."},
    required=["file"],
    raw=True,
)


@router.post(
    "/v1/datasets",
    summary="Upload a dataset",
    status_code=201,
    response_model=DatasetVersion,
    responses=answers(examples.UPLOADED_DATASET, status=201, errors=(413, 503)),
    openapi_extra=_FORM,
)
async def upload_dataset(
    request: Request, response: Response, services: Served, name: str | None = None, filename: str | None = None
) -> DatasetVersion:
    """Stream a dataset to the store, as a form or as the raw body with its fields in the query; then import it."""
    check_length(request, limit=services.limits.max_upload_bytes)
    await services.live.check()
    async with AsyncExitStack() as undo:
        came = await incoming(request, query={"name": name, "filename": filename}, text=("name",))
        upload = await receive(services, services.datasets, came.file, name=came.fields.get("name"), undo=undo)
        await came.finish()
        await announce_dataset(services, upload, undo=undo)
        undo.pop_all()
    response.headers["Location"] = f"/v1/datasets/{upload.name}:{upload.version}"
    return DatasetVersion.of(Entry(upload=upload))


@router.get(
    "/v1/datasets",
    summary="List the newest version of every dataset",
    responses=answers({"datasets": [examples.DATASET]}, errors=(503,)),
)
async def list_datasets(services: Served) -> DatasetList:
    """List the newest version of every dataset, sorted by name."""
    newest = [await services.datasets.versions(name) for name in await services.datasets.names()]
    return DatasetList(datasets=[DatasetVersion.of(versions[-1]) for versions in newest if versions])


@router.get(
    "/v1/datasets/{dataset}", summary="Look up a dataset", responses=answers(examples.DATASET, errors=(404, 503))
)
async def get_dataset(dataset: str, services: Served) -> DatasetVersion:
    """Return `name:version`, or the newest ready version of `name`."""
    return DatasetVersion.of(await services.datasets.resolve(plain_reference(dataset)))
