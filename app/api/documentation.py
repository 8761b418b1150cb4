"""What `/docs` and `/openapi.json` say beyond the routes' types: examples, errors, bodies that are streams."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from swagger_ui_bundle import swagger_ui_path

from app.api.errors import MEDIA_TYPE
from app.api.schemas.operations import Problem
from app.catalogue.store import too_large

STATIC = "/docs/static"

_DETAILS = {
    404: ("model_not_found", "There is no model 'resnet18': list them at /v1/models."),
    409: ("model_not_ready", "resnet20:1 is still being imported: wait for job 5f1d7e0c3b2a49d8a1c4e6f708192a3b."),
    413: ("upload_too_large", too_large(4 * 2**30)),
    416: ("range_invalid", "Range 'bytes=9-' is outside the file's 5 bytes: ask for bytes 0 to 4."),
    422: ("request_invalid", "The request has an unknown field 'colour': see /docs for what is known."),
    429: ("too_many", "64 clients follow jobs already, the limit of a gateway process: ask for the job itself."),
    500: ("internal_error", "Octet failed to answer because of a bug: report it with the request id 7c1e."),
    502: ("runner_crashed", "The runner of resnet20:1@int8 died twice on this request."),
    503: ("queue_unavailable", "Redis does not answer, so jobs cannot be seen or started: try again soon."),
    504: ("deadline_exceeded", "resnet20:1@int8 did not answer within 60 s."),
}


def answers(
    example: object,
    *,
    status: int = 200,
    media: str = "application/json",
    errors: Sequence[int] = (),
    also: Mapping[int, Mapping[str, Any]] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses`: its example, and the errors it may give besides 422 and 500."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"content": {media: {"example": example}}, "description": HTTPStatus(status).phrase}
    }
    described |= {other: dict(what) for other, what in (also or {}).items()}
    return described | {error: _problem(error) for error in sorted({*errors, 422, 500})}


def json_body(
    schema: Mapping[str, Any], example: object, *others: tuple[str, str], required: bool = True
) -> dict[str, Any]:
    """Describe a body that the route parses itself: JSON, or binary content as (media type, description)."""
    content: dict[str, Any] = {"application/json": {"schema": dict(schema), "example": example}}
    content |= {media: {"schema": _binary(text)} for media, text in others}
    return {"requestBody": {"required": required, "content": content}}


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema with what it refers to written out, for a body that FastAPI does not know of."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def written_out(node: object) -> object:
        if isinstance(node, list):
            return [written_out(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return written_out(definitions[node["$ref"].rsplit("/", 1)[-1]])
        return {key: written_out(value) for key, value in node.items()}

    return {key: written_out(value) for key, value in schema.items()}


def form_body(
    example: Mapping[str, str], *, text: Mapping[str, str], files: Mapping[str, str], required: Sequence[str], raw: bool
) -> dict[str, Any]:
    """Describe a streamed form, fields in the order they must come, and whether the raw file may be sent instead."""
    fields: dict[str, Any] = {name: {"type": "string", "description": what} for name, what in text.items()}
    fields |= {name: _binary(what) for name, what in files.items()}
    schema = {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}
    content: dict[str, Any] = {"multipart/form-data": {"schema": schema, "example": dict(example)}}
    if raw:
        content["application/octet-stream"] = {"schema": _binary("The file itself, with the fields in the query.")}
    return {"requestBody": {"required": True, "content": content}}


def _binary(text: str) -> dict[str, Any]:
    return {"type": "string", "format": "binary", "description": text}


def _problem(status: int) -> dict[str, Any]:
    code, detail = _DETAILS[status]
    example = {
        "type": f"urn:octet:error:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": "7c1e5a0d9b3f4826a1c4e6f708192a3b",
        "error": detail,
    }
    schema = Problem.model_json_schema()
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }


def install(app: FastAPI) -> None:
    """Serve `/docs` from files of this machine, and `/openapi.json` in a form that those files can show."""
    app.mount(STATIC, StaticFiles(directory=swagger_ui_path), name="documentation")
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Octet",
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{STATIC}/favicon-32x32.png",
        )

    @router.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return app.openapi()

    app.include_router(router)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        app.openapi_schema = {**_as_openapi_3_0(made), "openapi": "3.0.3"}
    return app.openapi_schema


def _as_openapi_3_0(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite the few words of 3.1 that FastAPI uses: the page that is served locally reads 3.0."""
    made = {key: value if key.startswith("example") else _rewritten(value) for key, value in schema.items()}
    if "const" in made:
        made["enum"] = [made.pop("const")]
    if "prefixItems" in made:  # 3.0 knows lists of one kind alone, and so are all of ours
        kinds: Any = made.pop("prefixItems")
        made["items"] = kinds[0]
    options: Any = made.get("anyOf", ())
    if {"type": "null"} in options:
        _make_nullable(made)
    if isinstance(made.get("exclusiveMinimum"), int | float):
        made |= {"minimum": made["exclusiveMinimum"], "exclusiveMinimum": True}
    return made


def _rewritten(node: object) -> object:
    if isinstance(node, list):
        return [_rewritten(item) for item in node]
    return _as_openapi_3_0(node) if isinstance(node, dict) else node


def _make_nullable(schema: dict[str, Any]) -> None:
    others = [option for option in schema.pop("anyOf") if option != {"type": "null"}]
    schema["nullable"] = True
    if len(others) == 1 and "$ref" not in others[0]:
        schema |= others[0]
    else:
        schema["anyOf" if len(others) > 1 else "allOf"] = others
