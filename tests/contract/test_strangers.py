"""ONNX files by strangers, from import to variant: the right answer, or one clear sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper

from app.domain.datasets import DatasetFormat
from app.domain.errors import OctetError, RecipeInvalid, ToolchainFailed, UploadRefused, UploadUnreadable
from app.domain.recipes import Cast, PtqDynamic, PtqStatic, Single, WeightOnly
from app.domain.tensors import Signature
from tests.strangers import STRANGERS, Arrays, Stranger, empty_weight
from workers.formats import convert
from workers.measure.conversion import verify
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.common import RowSource
from workers.stage_records.importing import ConvertSpec, VerifySpec
from workers.stage_records.making import TransformResult, TransformSpec
from workers.toolchains import transform

ROWS = 64
RECIPES: dict[str, Single] = {
    "nncf static": PtqStatic(),
    "nncf dynamic": PtqDynamic(),
    "nncf int8 weights": WeightOnly(),
    "nncf int4 weights": WeightOnly(bits=4),
    "ort static": PtqStatic(toolchain="ort", activations="asymmetric"),
    "ort static, all options": PtqStatic(toolchain="ort", observer="mse", channel_equalization=True),
    "ort dynamic": PtqDynamic(toolchain="ort"),
    "cast float16": Cast(precision="float16"),
}
# 8 bits leave hundredths of the energy, 4 bits in the weights of so small a graph tenths; a wrong graph, about all.
MOST_NOISE = {"nncf int4 weights": 0.5}
USUAL_NOISE = 0.1


class Imported:
    """A stranger after the import's own stages, and rows for it."""

    def __init__(self, stranger: Stranger, scratch: Path) -> None:
        self.stranger = stranger
        self.scratch = scratch
        onnx.save(stranger.graph, scratch / "upload")
        converted = convert(ConvertSpec(upload="upload"), scratch, _ignore)
        check = VerifySpec(artifact=converted.artifact, samples=converted.samples, original=converted.original)
        self.signature: Signature = verify(check, scratch, _ignore).signature
        arrays: Any = stranger.rows(ROWS, seed=1)
        np.savez(scratch / "cal.npz", **arrays)

    def transform(self, recipe: Single) -> TransformResult:
        source = RowSource(path="cal.npz", format=DatasetFormat.NPZ, rows=tuple(range(ROWS)), preprocessing=None)
        spec = TransformSpec(
            artifact="out/float32.onnx",
            signature=self.signature,
            recipe=recipe,
            calibration=source if recipe.needs_calibration else None,
        )
        return transform(spec, self.scratch, _ignore)


def _ignore(*_: object) -> None:
    return None


def in_onnxruntime(path: Path, rows: Arrays) -> list[npt.NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    found: list[npt.NDArray[Any]] = onnxruntime.InferenceSession(str(path), options).run(None, rows)
    return found


def in_openvino(made: TransformResult, imported: Imported, rows: Arrays) -> list[npt.NDArray[Any]]:
    artifact = (imported.scratch / made.artifact).read_bytes()
    session = OpenVinoSession(artifact, made.execution, imported.signature, 1)
    found = session.infer(rows)
    return [np.array(found[spec.name], copy=True) for spec in imported.signature.outputs]


def distance(found: list[npt.NDArray[Any]], expected: list[npt.NDArray[Any]]) -> float:
    """Return the energy of the difference as a share of what was expected, of the worst output."""
    shares = []
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.isfinite(ours).all()
        shares.append(float(((ours - theirs) ** 2).sum() / max(float((theirs**2).sum()), 1e-12)))
    return max(shares)


def assert_clear(error: OctetError) -> None:
    """One printable sentence that says what to do."""
    assert error.message.isprintable()
    assert 20 < len(error.message) < 500
    assert error.message.rstrip().endswith((".", "?"))


# Where a toolchain has nothing to do, and says so.
NO_WEIGHTS = {"no weights", "float16 arithmetic", "zero-size dimension"}
NO_LAYERS = {"no weights", "float16 arithmetic"}
MAY_REFUSE: dict[str, set[str]] = {
    # no matrix product that has 32 inputs, the size of a group
    "nncf dynamic": set(STRANGERS) - {"recommendation"},
    "nncf static": NO_LAYERS,
    "nncf int8 weights": NO_WEIGHTS,
    "nncf int4 weights": NO_WEIGHTS,
    "ort static": NO_LAYERS,
    "ort static, all options": NO_LAYERS,
    "ort dynamic": NO_LAYERS,
    "cast float16": NO_WEIGHTS,
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_gets_the_right_answer_or_one_clear_sentence(name: str, recipe: str, tmp_path: Path) -> None:
    imported = Imported(STRANGERS[name](), tmp_path)
    try:
        made = imported.transform(RECIPES[recipe])
    except (ToolchainFailed, RecipeInvalid) as error:
        refusal: OctetError | None = error
    else:
        refusal = None
    if refusal is not None:
        assert_clear(refusal)
        assert name in MAY_REFUSE[recipe], refusal.message
        return
    rows = imported.stranger.rows(3, seed=2)
    expected = in_onnxruntime(tmp_path / "out/float32.onnx", rows)
    most = MOST_NOISE.get(recipe, USUAL_NOISE)
    assert distance(in_onnxruntime(tmp_path / made.artifact, rows), expected) < most
    assert distance(in_openvino(made, imported, rows), expected) < most


def test_a_graph_that_the_engine_does_not_take_is_refused_at_the_import(tmp_path: Path) -> None:
    with pytest.raises(UploadUnreadable, match="OpenVINO") as raised:
        Imported(empty_weight(), tmp_path)
    assert_clear(raised.value)


def test_an_operator_that_no_engine_knows_is_named_at_the_import(tmp_path: Path) -> None:
    graph = STRANGERS["depthwise"]().graph
    graph.graph.node[0].domain = "com.somebody"
    graph.opset_import.append(helper.make_opsetid("com.somebody", 1))
    onnx.save(graph, tmp_path / "upload")
    with pytest.raises(UploadRefused, match=r"com.somebody::Conv.*standard operators only") as raised:
        convert(ConvertSpec(upload="upload"), tmp_path, _ignore)
    assert_clear(raised.value)
