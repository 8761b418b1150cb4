"""Signatures, recipes and preprocessing are valid by construction, and datasets fit models or say why not."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from app.domain.datasets import ArraySpec, DatasetFormat, DatasetManifest
from app.domain.errors import RecipeInvalid, RequestInvalid, SignatureMismatch
from app.domain.fit import check_fit
from app.domain.models import ModelFormat, ModelManifest, Upload
from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import TECHNIQUES, Cast, PtqStatic
from app.domain.tensors import DType, Signature, TensorSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
X = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 3, 8, 8))
LOGITS = TensorSpec(name="logits", dtype=DType.FLOAT32, shape=(None, 4))
UPLOAD = Upload(name="m", version=1, file="m.onnx", size_bytes=1, sha256="0" * 64, created_at=NOW, job="0" * 32)
MODEL = ModelManifest(
    name="m",
    version=1,
    format=ModelFormat.ONNX,
    upload=UPLOAD,
    signature=Signature(inputs=(X,), outputs=(LOGITS,)),
    preprocessing=None,
    original_batch=None,
    parameters=1,
    imported_at=NOW,
    imported_with={},
)
DATASET = DatasetManifest(
    name="d",
    version=1,
    format=DatasetFormat.NPZ,
    upload=UPLOAD,
    rows=10,
    arrays=(ArraySpec(name="x", dtype="float32", row_shape=(3, 8, 8)),),
    labelled=False,
    classes=(),
    imported_at=NOW,
)
IMAGES = replace(DATASET, format=DatasetFormat.IMAGE_FOLDER, arrays=(), classes=("a", "b"))


def test_a_tensor_spec_takes_any_batch_and_no_other_shape() -> None:
    X.check("float32", (7, 3, 8, 8))
    for dtype, shape in (("float64", (1, 3, 8, 8)), ("float32", (1, 3, 8, 9)), ("float32", (3, 8, 8))):
        with pytest.raises(SignatureMismatch, match=r"float32\[N, 3, 8, 8\]"):
            X.check(dtype, shape)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(SignatureMismatch):
        Signature(inputs=(X, X), outputs=(LOGITS,))


def test_an_unknown_input_is_named_with_those_there_are() -> None:
    with pytest.raises(SignatureMismatch, match=r"no input 'y'.*inputs are x"):
        MODEL.signature.input("y")


@pytest.mark.parametrize("rows", [0, 100_001])
def test_a_recipe_keeps_its_limits(rows: int) -> None:
    with pytest.raises(RecipeInvalid, match="take 1 to 100000"):
        PtqStatic(calibration_rows=rows)


@pytest.mark.parametrize("names", [("n",) * 1001, ("n" * 201,)], ids=["too many", "too long"])
def test_the_layers_that_a_recipe_names_are_bounded(names: tuple[str, ...]) -> None:
    with pytest.raises(RecipeInvalid, match="float_layers"):
        PtqStatic(float_layers=names)


def test_every_technique_names_its_variant() -> None:
    assert {PtqStatic().default_name, Cast().default_name} == {"int8", "bfloat16"}
    assert all(recipe().technique == name for name, recipe in TECHNIQUES.items())


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (PtqStatic(weight_bits=4, activation_bits=4), "w4a4"),
        (PtqStatic(weight_bits=2), "w2a8"),
        (PtqStatic(activation_bits=4), "w8a4"),
    ],
)
def test_a_variant_of_fewer_bits_says_so_in_its_name(recipe: PtqStatic, name: str) -> None:
    assert (recipe.default_name, recipe.narrow) == (name, True)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"activation_bits": 4, "activation_granularity": "per_channel"}, "set activation_granularity to per_tensor"),
        ({"weight_bits": 2, "weights": "asymmetric"}, "set weights to symmetric"),
        ({"activation_bits": 4, "toolchain": "torchao"}, "take nncf or ort for that"),
        ({"int8_layers": ("fc",)}, "while all have 8"),
        ({"weight_bits": 2, "int8_layers": ("fc",), "float_layers": ("fc",)}, "name it in one"),
    ],
)
def test_fewer_bits_that_do_not_go_together_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeInvalid, match=says):
        PtqStatic(**changed)


def test_preprocessing_wants_a_mean_per_channel() -> None:
    with pytest.raises(RequestInvalid, match="needs 1 values"):
        ImagePreprocessing(colour="grey")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "may be zero"),
        ({"scale": 0.0}, "may be zero"),
        ({"scale": float("inf")}, "finite"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "finite"),
        ({"resize": 0}, "take 1 to 8192"),
        ({"resize": 10, "crop": 11}, "crop at most resize"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestInvalid, match=says):
        ImagePreprocessing(**changed)


def test_rows_that_match_the_signature_fit() -> None:
    check_fit(DATASET, MODEL)
    check_fit(IMAGES, replace(MODEL, preprocessing=ImagePreprocessing()))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (ArraySpec(name="y", dtype="float32", row_shape=(3, 8, 8)), "no array 'x'"),
        (ArraySpec(name="x", dtype="float64", row_shape=(3, 8, 8)), "float64"),
        (ArraySpec(name="x", dtype="float32", row_shape=(8, 8, 3)), r"\[8, 8, 3\]"),
        (ArraySpec(name="x", dtype="float32", row_shape=(8, 8)), r"\[8, 8\]"),
    ],
)
def test_rows_that_do_not_match_are_refused_with_both_sides(array: ArraySpec, says: str) -> None:
    with pytest.raises(SignatureMismatch, match=says):
        check_fit(replace(DATASET, arrays=(array,)), MODEL)


def test_images_need_a_preprocessing() -> None:
    with pytest.raises(SignatureMismatch, match="preprocessing"):
        check_fit(IMAGES, MODEL)
