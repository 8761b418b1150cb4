"""What `/openapi.json` and `/docs` say."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter

from app.api import examples
from app.api.schemas.catalogue import DatasetVersion, ModelVersion, RouteRequest, RoutingState
from app.api.schemas.inference import InferAnswer, InferRequest, ModelMetadata, PredictAnswer, ServerMetadata
from app.api.schemas.jobs import JobRequest
from app.api.schemas.operations import Readiness
from app.api.schemas.recipes import parse_recipe
from app.domain.jobs import Job
from app.domain.recipes import PtqStatic
from app.domain.reports import Report
from app.domain.routing import Route
from app.domain.variants import Variant
from tests.api.harness import Api

PROBLEM = "application/problem+json"


def has_example(content: dict[str, Any]) -> bool:
    return all("example" in media or "examples" in media for media in list(content.values())[:1])


def test_every_operation_has_a_summary_examples_and_problems(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    assert len(paths) > 25
    for path, operations in paths.items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            check_answers(operation["responses"], where)
            if "requestBody" in operation:
                body = operation["requestBody"]["content"]
                assert has_example(body) or "example" in str(body), where


def check_answers(answers: dict[str, Any], where: str) -> None:
    successes = [answer for status, answer in answers.items() if status in ("200", "201", "202")]
    assert successes, where
    assert all(has_example(answer["content"]) for answer in successes), where
    errors = {status: answer for status, answer in answers.items() if status >= "400"}
    assert {"422", "500"} <= set(errors), where
    for status, answer in errors.items():
        if (where, status) == ("get /readyz", "503"):
            continue
        assert list(answer["content"]) == [PROBLEM], (where, status)
        assert answer["content"][PROBLEM]["example"]["status"] == int(status)


EXAMPLES: list[tuple[Any, Any]] = [
    (ModelVersion, examples.MODEL),
    (ModelVersion, examples.UPLOADED_MODEL),
    (DatasetVersion, examples.DATASET),
    (DatasetVersion, examples.UPLOADED_DATASET),
    (Variant, examples.VARIANT),
    (Route, examples.ROUTE),
    (RouteRequest, examples.ROUTE_REQUEST),
    (RoutingState, examples.ROUTING),
    (Job, examples.JOB),
    (JobRequest, examples.QUANTIZE),
    (JobRequest, examples.TRAIN),
    (JobRequest, examples.EVALUATE),
    (Report, examples.REPORT),
    (PredictAnswer, examples.PREDICTION),
    (InferRequest, examples.INFER),
    (InferAnswer, examples.INFERENCE),
    (ModelMetadata, examples.MODEL_METADATA),
    (ServerMetadata, examples.SERVER_METADATA),
    (Readiness, examples.READINESS),
]


@pytest.mark.parametrize(("schema", "example"), EXAMPLES)
def test_every_example_is_valid(schema: Any, example: Any) -> None:
    adapter = TypeAdapter(schema)
    shown = adapter.dump_python(adapter.validate_python(example), mode="json")
    assert set(example) <= set(shown)


def test_the_examples_in_forms_are_valid() -> None:
    assert parse_recipe(examples.QUANTIZE_FORM["recipe"]) == PtqStatic()


def test_the_document_is_what_the_local_page_can_show(api: Api) -> None:
    document = api.client.get("/openapi.json")
    assert document.json()["openapi"] == "3.0.3"
    assert not re.search(r'"(const|prefixItems)":|"type": ?"null"', document.text)


def test_every_reference_in_the_document_leads_somewhere(api: Api) -> None:
    document = api.client.get("/openapi.json")
    schemas = document.json()["components"]["schemas"]
    references = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', document.text))
    assert references <= set(schemas)
    assert '"#/$defs/' not in document.text


def test_the_page_comes_from_this_machine_alone(api: Api) -> None:
    page = api.client.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    assert "https://" not in page.text
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert api.client.get(path).status_code == 200
    assert api.client.get("/redoc").status_code == 404
