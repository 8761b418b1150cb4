"""Variants: look up, read the report, download."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from app.api.dependencies import Services
from app.client import Octet
from app.client.cli import app as cli
from app.domain.jobs import Job, JobKind, JobState
from app.domain.recipes import Auto, Budget
from app.domain.variants import Variant
from tests.api.harness import Api, publish_dataset, publish_model, publish_variant
from tests.graphs import INPUT

VARIANTS = "/v1/models/net/variants"


@pytest.fixture
def variant(api: Api, tmp_path: Path) -> Variant:
    return publish_model(api, tmp_path)


@pytest.fixture
def content(variant: Variant, tmp_path: Path) -> bytes:
    return (tmp_path / variant.artifact.file).read_bytes()


def test_variants_are_listed_and_looked_up(api: Api, variant: Variant) -> None:
    listed = api.client.get(VARIANTS).json()["variants"]
    assert listed == [api.client.get(f"{VARIANTS}/float32").json()]
    assert listed[0]["artifact"]["sha256"] == variant.artifact.sha256


@pytest.mark.usefixtures("variant")
def test_a_variant_that_is_not_there_is_said_so(api: Api) -> None:
    assert api.client.get(f"{VARIANTS}/int8").json()["code"] == "variant_not_found"
    assert api.client.get(f"{VARIANTS}/NOT").status_code == 422


def test_a_report_is_read(api: Api, variant: Variant) -> None:
    report = api.client.get(f"{VARIANTS}/{variant.name}/report").json()
    assert (report["model"], report["variant"], report["schema_version"]) == ("net", "float32", 2)


def test_report_json_is_the_report(api: Api, variant: Variant) -> None:
    folder = f"{VARIANTS}/{variant.name}"
    assert api.client.get(f"{folder}/report.json").json() == api.client.get(f"{folder}/report").json()


def test_a_report_is_a_page_that_may_load_and_run_nothing(api: Api, variant: Variant) -> None:
    answer = api.client.get(f"{VARIANTS}/{variant.name}/report.html")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert f"<bdi>net:1@{variant.name}</bdi>" in answer.text


@pytest.mark.usefixtures("variant")
def test_the_page_of_no_variant_is_a_problem(api: Api) -> None:
    answer = api.client.get(f"{VARIANTS}/int8/report.html")
    assert (answer.status_code, answer.json()["code"]) == (404, "variant_not_found")


def test_a_report_validates_against_the_published_schema(api: Api, variant: Variant) -> None:
    published = api.client.get("/v1/report.schema.json")
    assert published.headers["content-type"] == "application/schema+json"
    report = api.client.get(f"{VARIANTS}/{variant.name}/report").json()
    jsonschema.Draft202012Validator(published.json()).validate(report)


def test_a_job_that_measured_has_its_report_and_page(api: Api, variant: Variant) -> None:
    job = Job(id=uuid4().hex, kind=JobKind.EVALUATE, created_at=datetime.now(UTC), state=JobState.SUCCEEDED)

    async def keep(services: Services) -> None:
        await services.history.finish(job)
        await services.history.keep_report(job.id, await services.variants.report(variant))

    api.do(keep)
    folder = f"/v1/jobs/{job.id}"
    assert api.client.get(f"{folder}/report.json").json() == api.client.get(f"{folder}/report").json()
    assert "<h1><bdi>net:1@float32</bdi></h1>" in api.client.get(f"{folder}/report.html").text


def test_the_command_line_saves_the_page(api: Api, variant: Variant, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    words = ["--url", str(api.client.base_url), "report", f"net@{variant.name}", "--html", str(page)]
    result = CliRunner().invoke(cli, words)
    assert (result.exit_code, result.stdout.strip()) == (0, str(page))
    assert page.read_text() == api.client.get(f"{VARIANTS}/{variant.name}/report.html").text


def test_the_client_asks_for_a_search(api: Api, tmp_path: Path) -> None:
    publish_model(api, tmp_path)
    publish_dataset(api)
    with Octet(str(api.client.base_url)) as octet:
        recipe = Auto(budget=Budget(metric="agreement", max_drop=0.01))
        assert octet.quantize("net", calibration="rows", recipe=recipe).recipe == recipe


def test_a_job_without_a_report_has_no_page(api: Api) -> None:
    job = api.upload_model()["import_job"]
    answer = api.client.get(f"/v1/jobs/{job}/report.html")
    assert (answer.status_code, answer.json()["code"]) == (404, "report_not_found")


@pytest.fixture
def one_by_one(api: Api, variant: Variant, tmp_path: Path) -> str:
    """A variant whose answers depend on their neighbours."""
    limited = replace(variant, name="alone", max_batch_size=1)
    api.do(lambda services: publish_variant(services, limited, tmp_path))
    return "net@alone"


def test_a_variant_that_answers_one_row_at_a_time_refuses_two(api: Api, one_by_one: str) -> None:
    body = {"inputs": {INPUT: np.zeros((2, 3, 8, 8), np.float32).tolist()}}
    answer = api.client.post("/predict", params={"model": one_by_one}, json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")
    assert "has 2 rows, but net:1@alone takes at most 1 at once" in answer.json()["detail"]


def test_a_limit_on_rows_is_shown(api: Api, one_by_one: str) -> None:
    assert api.client.get(f"{VARIANTS}/alone").json()["max_batch_size"] == 1
    assert api.client.get(f"/v2/models/{one_by_one}").json()["properties"] == {"max_batch_size": "1"}
    assert api.client.get("/v2/models/net@float32").json()["properties"] == {}


def test_an_artifact_is_downloaded_whole(api: Api, variant: Variant, content: bytes) -> None:
    answer = api.client.get(f"{VARIANTS}/float32/artifact")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["etag"] == f'"{variant.artifact.sha256}"'
    assert answer.headers["accept-ranges"] == "bytes"
    name = f"net-v1-float32-{variant.artifact.sha256[:8]}.onnx"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'


def test_head_says_what_get_would(api: Api, variant: Variant) -> None:
    answer = api.client.head(f"{VARIANTS}/float32/artifact", headers={"Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(variant.artifact.size_bytes)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2-9", 2, 10),
        ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        ("bytes=0-99999999", 0, None),
        ("bytes=-99999999", 0, None),
    ],
)
def test_a_range_is_that_part(api: Api, content: bytes, asked: str, start: int, end: int | None) -> None:
    answer = api.client.get(f"{VARIANTS}/float32/artifact", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, content[start:end])
    first = start % len(content)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(content)}"


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=99999998-99999999", "bytes=-0"])
def test_a_range_outside_is_refused(api: Api, content: bytes, asked: str) -> None:
    answer = api.client.get(f"{VARIANTS}/float32/artifact", headers={"Range": asked})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_invalid")
    assert answer.headers["content-range"] == f"bytes */{len(content)}"


@pytest.mark.parametrize("asked", ["bytes=9-2", "bytes=0-1,4-5", "rows=0-1", "bytes=", "bytes=-", "bytes=a-b"])
def test_a_range_that_is_not_understood_is_ignored(api: Api, content: bytes, asked: str) -> None:
    answer = api.client.get(f"{VARIANTS}/float32/artifact", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize("tags", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
def test_who_has_the_artifact_gets_304(api: Api, variant: Variant, tags: str) -> None:
    asked = {"If-None-Match": tags.format(variant.artifact.sha256), "Range": "bytes=0-1"}
    answer = api.client.get(f"{VARIANTS}/float32/artifact", headers=asked)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{variant.artifact.sha256}"'


def test_who_has_another_artifact_gets_this_one(api: Api, content: bytes) -> None:
    answer = api.client.get(f"{VARIANTS}/float32/artifact", headers={"If-None-Match": '"other"'})
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize(("tag", "status"), [('"{}"', 206), ('W/"{}"', 200), ('"other"', 200)])
def test_a_download_is_resumed_only_if_the_file_is_the_same(api: Api, variant: Variant, tag: str, status: int) -> None:
    asked = {"Range": "bytes=3-", "If-Range": tag.format(variant.artifact.sha256)}
    assert api.client.get(f"{VARIANTS}/float32/artifact", headers=asked).status_code == status


def test_a_lost_artifact_is_said_before_the_download_begins(api: Api, variant: Variant) -> None:
    path = api.services.variants.artifact_path(variant)
    (api.store_folder / path).unlink()
    answer = api.client.get(f"{VARIANTS}/float32/artifact")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
