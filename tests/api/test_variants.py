"""Variants: look up and download."""

from pathlib import Path

import pytest

from app.domain.variants import Variant
from tests.api.harness import Api, publish_model

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
    assert (report["model"], report["variant"], report["schema_version"]) == ("net", "float32", 1)


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
