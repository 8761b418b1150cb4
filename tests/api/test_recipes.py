"""Recipes over HTTP: every technique is taken, and what is wrong or cannot be is refused at once, in a sentence."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import examples
from app.domain.metrics import METRICS
from app.domain.recipes import TECHNIQUES, Budget
from tests.api.harness import Api, publish_dataset, publish_model

API = Path(__file__).parents[2] / "docs" / "api.md"

TAKEN: dict[str, dict[str, Any]] = {
    "static": {"technique": "ptq_static", "toolchain": "ort", "observer": "entropy", "activation_dtype": "int8"},
    "static 4 bits": {"technique": "ptq_static", "weight_bits": 4, "rounding": "brecq", "int8_layers": ["a"]},
    "dynamic": {"technique": "ptq_dynamic", "toolchain": "ort", "weight_granularity": "per_tensor"},
    "weights": {"technique": "weight_only", "bits": 4, "group_size": 32, "scale_estimation": True},
    "cast": {"technique": "cast", "precision": "float16"},
    "trained": {
        "technique": "qat",
        "weight_bits": 2,
        "activation_bits": 4,
        "int8_layers": ["a"],
        "loss": "feature_distillation",
        "steps": 100,
        "optimizer": "sgd",
        "scales": "fixed",
        "patience": 3,
        "processes": 2,
        "compression": "powersgd",
    },
    "auto": {"technique": "auto"},
    "auto with a budget": {
        "technique": "auto",
        "budget": {"metric": "agreement", "max_drop": 0.01, "max_latency_ms": 2.5, "max_size_bytes": 10_000},
        "time_limit_seconds": 60,
    },
}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"technique": "magic"}, "'magic': take one of ptq_static, ptq_dynamic, weight_only, cast, qat, auto"),
    ({"technique": "cast", "bits": 8}, "unknown field 'bits': take technique, toolchain, precision"),
    ({"technique": "weight_only", "bits": 3}, "weight_only recipe is not valid in 'bits'"),
    ({"technique": "weight_only", "bits": 8, "group_size": 32}, "group_size are for 4-bit weights"),
    ({"technique": "ptq_static", "toolchain": "ort", "smooth_quant": 0.5}, "'ort' has no smooth_quant"),
    ({"technique": "ptq_static", "percentile": 99.9}, "percentile goes with the observer 'percentile'"),
    ({"technique": "ptq_dynamic", "calibration_rows": 3}, "unknown field 'calibration_rows'"),
    ({"technique": "qat", "lr": 0.1}, "The qat recipe has an unknown field 'lr': take technique, toolchain"),
    ({"technique": "qat", "loss": "hinge"}, "The qat recipe is not valid in 'loss'"),
    ({"technique": "qat", "epochs": 1, "steps": 1}, "epochs and steps both say how long to train: leave one out"),
    ({"technique": "qat", "batch_size": 5000}, "batch_size is 5000: take 1 to 4096"),
    ({"technique": "qat", "scales": "observed", "processes": 2}, "take learned or fixed scales, or one process"),
    ({"technique": "qat", "freeze_batch_norm": 0.5, "processes": 2}, "take freeze_batch_norm 0, or one process"),
    ({"technique": "qat", "loss": "mse", "teacher": "net"}, "A teacher answers for distillation"),
    ({"technique": "auto", "max_drop": 0.1}, "unknown field 'max_drop'"),
    ({"technique": "auto", "budget": {"drop": 0.1}}, "unknown field 'budget.drop': take metric, max_drop, max_latency"),
    ({"technique": "auto", "budget": {"metric": "kl"}}, "The budget's metric is 'kl': take one of top1"),
    ({"technique": "auto", "budget": {"max_drop": -1}}, "max_drop is -1: take 0 or more"),
    ({"technique": "auto", "budget": None}, "auto recipe is not valid in 'budget'"),
    ({"technique": "auto", "time_limit_seconds": 1}, "time_limit_seconds is 1: take 10 to"),
]


@pytest.fixture
def ready(api: Api, tmp_path: Path) -> Api:
    """An imported ONNX model and rows without labels."""
    publish_model(api, tmp_path)
    publish_dataset(api, rows=100)
    return api


def ask(api: Api, recipe: dict[str, Any], *, model: str = "net") -> httpx.Response:
    return api.client.post(
        "/v1/jobs", json={"kind": "quantize", "model": model, "calibration": "rows", "recipe": recipe}
    )


def ask_at_once(api: Api, recipe: str) -> httpx.Response:
    form = [
        ("recipe", (None, recipe.encode())),
        ("model", ("net.onnx", b"model")),
        ("calibration", ("rows.npz", b"rows")),
    ]
    return api.client.post("/v1/quantize", files=form)


@pytest.mark.parametrize("name", TAKEN)
def test_every_technique_is_taken_and_shown_as_it_was_asked_for(ready: Api, name: str) -> None:
    asked = TAKEN[name]
    answer = ask(ready, asked)
    assert answer.status_code == 202, answer.text
    given = answer.json()["recipe"]
    assert {key: given[key] for key in asked} == asked
    assert ready.client.get(f"/v1/jobs/{answer.json()['id']}").json()["recipe"] == given


def test_the_one_shot_takes_a_search(api: Api) -> None:
    answer = ask_at_once(api, '{"technique": "auto", "budget": {"max_drop": 0.01}}')
    assert answer.status_code == 202, answer.text
    assert answer.json()["recipe"]["budget"]["max_drop"] == 0.01


@pytest.mark.parametrize(("recipe", "sentence"), REFUSED, ids=[str(recipe) for recipe, _ in REFUSED])
def test_a_wrong_recipe_is_refused_with_a_sentence(ready: Api, recipe: dict[str, Any], sentence: str) -> None:
    answer = ask(ready, recipe)
    assert (answer.status_code, answer.json()["code"]) == (422, "recipe_invalid")
    assert sentence in answer.json()["detail"]


def test_the_one_shot_refuses_an_unknown_field_of_a_budget(api: Api) -> None:
    answer = ask_at_once(api, '{"technique": "auto", "budget": {"drop": 1}}')
    assert (answer.status_code, answer.json()["code"]) == (422, "recipe_invalid")
    assert "budget.drop" in answer.json()["detail"]


@pytest.mark.parametrize("imported", [True, False])
def test_a_toolchain_that_starts_from_pt2_refuses_onnx(api: Api, tmp_path: Path, *, imported: bool) -> None:
    publish_dataset(api)
    publish_model(api, tmp_path) if imported else api.upload_model()
    answer = ask(api, {"technique": "ptq_static", "toolchain": "torchao"})
    assert (answer.status_code, answer.json()["code"]) == (422, "recipe_invalid")
    assert "starts from a torch.export file (.pt2), but net:1 was uploaded as" in answer.json()["detail"]


def test_the_one_shot_refuses_it_too_and_leaves_nothing(api: Api) -> None:
    answer = ask_at_once(api, '{"technique": "ptq_static", "toolchain": "torchao"}')
    assert (answer.status_code, answer.json()["code"]) == (422, "recipe_invalid")
    assert api.stored() == []


def test_a_budget_on_labels_that_the_rows_lack_is_refused(ready: Api) -> None:
    answer = ask(ready, {"technique": "auto", "budget": {"metric": "top1"}})
    assert (answer.status_code, answer.json()["code"]) == (422, "dataset_unfit")
    assert "top1" in answer.json()["detail"]


def test_a_search_needs_calibration_rows(ready: Api) -> None:
    asked = {"kind": "quantize", "model": "net", "evaluation": "rows", "recipe": {"technique": "auto"}}
    answer = ready.client.post("/v1/jobs", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, "recipe_invalid")


def test_openapi_knows_every_field_of_every_technique(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for technique, record in TECHNIQUES.items():
        schema = schemas[record.__name__]
        assert set(schema["properties"]) == {field.name for field in fields(record)}
        assert schema["properties"]["technique"]["enum"] == [technique]
    assert set(schemas["Budget"]["properties"]) == {"metric", "max_drop", "max_latency_ms", "max_size_bytes"}
    assert "training" in schemas["QuantizeRequest"]["properties"]
    assert schemas["QuantizeRequest"]["properties"]["recipe"]["discriminator"]["propertyName"] == "technique"


def test_every_recipe_in_the_examples_is_taken(ready: Api) -> None:
    body = ready.client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]
    shown = body["content"]["application/json"]["examples"]
    assert {f"quantize_{name}" for name in examples.RECIPES} <= set(shown)
    answers = {name: ask(ready, recipe).text for name, (_, recipe) in examples.RECIPES.items()}
    refused = {name: answer for name, answer in answers.items() if '"queued"' not in answer}
    assert set(refused) <= {"auto"}  # its budget is on top1, and these rows have no labels


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_field_is_explained(technique: str) -> None:
    section = API.read_text().split(f"### `{technique}`\n")[1].split("\n###")[0]
    names = {field.name for field in fields(TECHNIQUES[technique])} - {"technique"}
    assert sorted(name for name in names if f"`{name}`" not in section) == []


def test_every_metric_is_explained() -> None:
    section = API.read_text().split("### Budget\n")[1].split("\n## ")[0]
    names = {*METRICS, *(field.name for field in fields(Budget))}
    assert sorted(name for name in names if f"`{name}`" not in section) == []
