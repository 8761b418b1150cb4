"""Why a variant that was made is not published all the same."""

from dataclasses import replace

import pytest

from app.domain.errors import LargerThanFloat
from app.domain.evidence import Receipt
from app.domain.recipes import Cast, PtqDynamic, PtqStatic, Single
from app.domain.reports import Kernels
from app.domain.variants import Artifact
from workers.jobs import refusals


def receipt(*fallbacks: str) -> Receipt:
    return Receipt(layers=(), fallbacks=fallbacks, conversion_share=0.0, conversions=())


def said(recipe: Single, *fallbacks: str) -> str | None:
    failure = refusals.fallen_back(recipe, receipt(*fallbacks))
    return failure.message if failure else None


def test_layers_that_fell_back_are_counted_and_the_first_five_named() -> None:
    message = said(PtqStatic(), *(f"conv{number}" for number in range(7)))
    assert message is not None
    assert "7 layers" in message
    assert "'conv4' and 2 more" in message
    assert "float_layers" in message
    assert 'fallback to "keep"' in message


def test_a_dynamic_recipe_has_no_fallback_to_keep() -> None:
    message = said(PtqDynamic(), "matmul")
    assert message is not None
    assert "keep" not in message


def test_fallbacks_that_may_be_kept_become_a_note() -> None:
    recipe = PtqStatic(fallback="keep")
    assert said(recipe, "conv1") is None
    assert "1 layer ('conv1')" in (refusals.fallback_note(recipe, receipt("conv1")) or "")


def test_a_recipe_that_promises_no_int8_is_never_refused_for_float() -> None:
    kernels = Kernels(layers=(), int8_layers=0, float_layers=3, int8_share=0.0)
    assert said(Cast(), "conv1") is None
    assert refusals.without_int8(Cast(), kernels) is None
    assert refusals.without_int8(PtqStatic(), kernels) is not None


def test_an_artifact_as_large_as_float32_is_refused() -> None:
    same = Artifact(file="a.onnx", size_bytes=100, sha256="0" * 64)
    with pytest.raises(LargerThanFloat, match="too small to gain from int8"):
        refusals.check_smaller(same, same, name="int8")
    refusals.check_smaller(replace(same, size_bytes=99), same, name="int8")
    failure = refusals.larger(same, same, name="int8")
    assert failure is not None
    assert failure.code == "larger_than_float"
