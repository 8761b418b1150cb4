"""Every upload format through the real sandbox: what comes out of a good file, and what a bad one is told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from app.domain.errors import JobFailure
from app.domain.models import ModelFormat
from app.domain.preprocessing import ImagePreprocessing
from tests import graphs
from tests.contract import hostile
from workers.limits import Limits
from workers.sandbox import run_stage
from workers.stage_records.importing import ConvertResult, ConvertSpec, VerifyResult, VerifySpec

LIMITS = Limits(memory_bytes=3 * 2**30, scratch_bytes=2**30, seconds=120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    converted: ConvertResult
    verified: VerifyResult
    graph: onnx.ModelProto

    @property
    def said(self) -> list[str]:
        """Inputs and outputs in words."""
        signature = self.verified.signature
        return [f"{spec.name} {spec.describe()}" for spec in (*signature.inputs, *signature.outputs)]


async def _ignore(*_: object) -> None:
    return None


def _import(upload: Path, *, preprocessing: ImagePreprocessing | None = None) -> Imported:
    async def both() -> tuple[ConvertResult, VerifyResult]:
        scratch = upload.parent
        converted: ConvertResult = await run_stage(
            "convert",
            ConvertSpec(upload=upload.name),
            scratch=scratch,
            limits=LIMITS,
            on_progress=_ignore,
            on_log=_ignore,
        )
        check = VerifySpec(
            artifact=converted.artifact,
            samples=converted.samples,
            original=converted.original,
            preprocessing=preprocessing,
        )
        verified: VerifyResult = await run_stage(
            "verify", check, scratch=scratch, limits=LIMITS, on_progress=_ignore, on_log=_ignore
        )
        return converted, verified

    converted, verified = asyncio.run(both())
    return Imported(converted=converted, verified=verified, graph=onnx.load(upload.parent / converted.artifact))


def _refusal(upload: Path, *, preprocessing: ImagePreprocessing | None = None) -> JobFailure:
    with pytest.raises(JobFailure) as raised:
        _import(upload, preprocessing=preprocessing)
    assert raised.value.message.isprintable()
    assert str(upload.parent) not in raised.value.message
    return raised.value


def _export(path: Path, module: nn.Module, *inputs: torch.Tensor, **options: object) -> Path:
    torch.manual_seed(0)
    torch.export.save(torch.export.export(module, inputs, **options), path)  # type: ignore[arg-type]
    return path


def _fixed(graph: onnx.ModelProto, size: int) -> onnx.ModelProto:
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return graph


def _onnx(path: Path, graph: onnx.ModelProto) -> Path:
    onnx.save(graph, path)
    return path


def _onnx_zip(path: Path) -> Path:
    folder = path.parent / "made"
    folder.mkdir()
    onnx.save(
        graphs.conv_classifier(), folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    return hostile.archive(path, {f"model/{file.name}": file.read_bytes() for file in folder.iterdir()}, packed=True)


GOOD: dict[str, tuple[Callable[[Path], Path], ModelFormat, int | None]] = {
    "pt2, batch of 1": (lambda p: hostile.small_pt2(p / "m.pt2", batch=1), ModelFormat.TORCH_EXPORT, 1),
    "pt2, batch of 4": (lambda p: hostile.small_pt2(p / "m.pt2", batch=4), ModelFormat.TORCH_EXPORT, 4),
    "pt2, symbolic": (lambda p: hostile.small_pt2(p / "upload"), ModelFormat.TORCH_EXPORT, None),
    "onnx, symbolic": (lambda p: _onnx(p / "m.pt2", graphs.conv_classifier()), ModelFormat.ONNX, None),
    "onnx, batch of 1": (lambda p: _onnx(p / "m.onnx", _fixed(graphs.conv_classifier(), 1)), ModelFormat.ONNX, 1),
    "onnx, batch of 2": (lambda p: _onnx(p / "m.onnx", _fixed(graphs.conv_classifier(), 2)), ModelFormat.ONNX, 2),
    "onnx in a zip with its weights": (lambda p: _onnx_zip(p / "m.zip"), ModelFormat.ONNX_ZIP, None),
}


@pytest.mark.parametrize(("make", "kind", "batch"), GOOD.values(), ids=GOOD.keys())
def test_a_good_upload_becomes_one_onnx_file_with_a_symbolic_batch(
    tmp_path: Path, make: Callable[[Path], Path], kind: ModelFormat, batch: int | None
) -> None:
    imported = _import(make(tmp_path))
    assert imported.converted.format is kind
    assert imported.converted.original_batch == batch
    assert [word.partition(" ")[2] for word in imported.said] == ["float32[N, 3, 8, 8]", "float32[N, 4]"]
    assert imported.said[0].startswith("x ")
    assert imported.verified.parameters > 100
    # A few float32 roundings of 2**-24 each; the tolerance of the stage itself is wider.
    assert imported.verified.conversion.max_error < 1e-5


def test_the_artifact_carries_no_notes_of_its_exporter(tmp_path: Path) -> None:
    graph = _import(hostile.small_pt2(tmp_path / "m.pt2")).graph
    assert not graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    assert graph.opset_import[0].version >= 13


class _ManyAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:
        found = self.table(ids) * mask[..., None]
        return {"each": found, "pooled": (found.mean(1), ids.sum(1))}


def test_several_inputs_and_nested_outputs_keep_their_types(tmp_path: Path) -> None:
    dim, length = torch.export.Dim("rows"), torch.export.Dim("length", max=64)
    shapes = ({0: dim, 1: length}, {0: dim, 1: length})
    inputs = (torch.zeros(2, 6, dtype=torch.int64), torch.ones(2, 6))
    said = _import(_export(tmp_path / "m.pt2", _ManyAnswers().eval(), *inputs, dynamic_shapes=shapes)).said
    assert said[:2] == ["ids int64[N, ?]", "mask float32[N, ?]"]
    assert [word.partition(" ")[2] for word in said[2:]] == ["float32[N, ?, 8]", "float32[N, 8]", "int64[N]"]


class _ClassToken(nn.Module):
    """What a vision transformer does with the batch: a token and positions for every row, heads merged into it."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        joined = torch.cat([self.token.expand(rows, -1, -1), x.reshape(rows, 16, 8)], dim=1) + self.positions
        heads = joined.view(rows, 17, 2, 4).transpose(1, 2).reshape(rows * 2, 17, 4)
        return torch.bmm(heads, heads.transpose(1, 2)).reshape(rows, 2, 17, 17).mean(1)[:, 0]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_baked_into_reshapes_and_tokens_becomes_symbolic(tmp_path: Path, rows: int) -> None:
    imported = _import(_export(tmp_path / "m.pt2", _ClassToken().eval(), torch.randn(rows, 2, 8, 8)))
    assert imported.said[0] == "x float32[N, 2, 8, 8]"
    assert imported.converted.original_batch == rows


class _AcrossRows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


def test_a_symbolic_batch_whose_rows_depend_on_each_other_counts_no_rows(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    graph = graphs.small(nodes, inputs={"x": ("n", 4)}, outputs={"y": ("n", 4)}, weights={}, opset=17)
    imported = _import(_onnx(tmp_path / "m.onnx", graph))
    assert imported.said[0] == "x float32[?, 4]"
    assert not imported.verified.signature.batched


class _OneNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean()


@pytest.mark.parametrize("module", [_AcrossRows(), _OneNumber()])
def test_a_model_whose_rows_depend_on_each_other_keeps_its_batch(tmp_path: Path, module: nn.Module) -> None:
    imported = _import(_export(tmp_path / "m.pt2", module.eval(), torch.randn(4, 3)))
    assert imported.said[0] == "x float32[4, 3]"
    assert not imported.verified.signature.batched


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    graph = _tiny(helper.make_node("Twice", ["x"], ["y"], domain="mine"), functions=[twice])
    imported = _import(_onnx(tmp_path / "m.onnx", graph))
    assert [node.op_type for node in imported.graph.graph.node] == ["Add"]


def test_an_old_opset_is_brought_up_to_date(tmp_path: Path) -> None:
    imported = _import(_onnx(tmp_path / "m.onnx", _tiny(helper.make_node("Relu", ["x"], ["y"]), opset=9)))
    assert imported.graph.opset_import[0].version == 13


def _tiny(
    node: onnx.NodeProto,
    *,
    opset: int = 18,
    functions: list[onnx.FunctionProto] | None = None,
    weights: str | None = None,
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if weights is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=weights)
        tensor.external_data.add(key="length", value="16")
    graph = helper.make_graph([node], "tiny", values[:1], values[1:], [tensor] if weights is not None else [])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=8)


def _outside(location: str, **members: bytes) -> Callable[[Path], Path]:
    graph = _tiny(helper.make_node("Add", ["x", "w"], ["y"]), weights=location)
    return lambda folder: hostile.archive(folder / "m.zip", {"m.onnx": graph.SerializeToString(), **members})


def _bytes(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "m.pt2").write_bytes(content)
        return folder / "m.pt2"

    return write


def _truncated(folder: Path) -> Path:
    path = hostile.small_pt2(folder / "m.pt2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


class _Counting(nn.Module):
    """Answers with what it has seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.seen.add_(x.mean(0))  # type: ignore[operator] # a buffer is a tensor


class _Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, self.training) + torch.rand_like(x)


def _trained(module: nn.Module) -> Callable[[Path], Path]:
    return lambda folder: _export(folder / "m.pt2", module.train(), torch.randn(4, 4))


def _script(folder: Path) -> Path:
    return hostile.archive(folder / "m.pt2", {"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/a.py": b""})


_CUSTOM = _tiny(helper.make_node("Secret", ["x"], ["y"], domain="mine", name="layer7"))
_UNKNOWN = _tiny(helper.make_node("NoSuchThing", ["x"], ["y"], name="layer8"))
_BROKEN = _tiny(helper.make_node("Relu", ["nowhere"], ["y"]))
_BESIDE = _tiny(helper.make_node("Add", ["x", "w"], ["y"]), weights="w.bin")
_ONNX = graphs.conv_classifier().SerializeToString()

BAD: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "empty": (_bytes(b""), "upload_unreadable", "is empty"),
    "random bytes": (_bytes(np.random.default_rng(0).bytes(5000)), "upload_unreadable", "neither"),
    "text": (_bytes(b"hello, this is no model"), "upload_unreadable", "neither"),
    "truncated onnx": (_bytes(_ONNX[: len(_ONNX) // 2]), "upload_unreadable", "neither"),
    "truncated pt2": (_truncated, "upload_unreadable", "truncated"),
    "a pickle": (_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00."), "upload_unreadable", "pickle"),
    "a checkpoint": (lambda p: hostile.checkpoint(p / "m.pt2"), "upload_unreadable", "torch.export.save"),
    "torchscript": (_script, "upload_unreadable", "TorchScript"),
    "kept from run to run": (_trained(_Counting()), "upload_refused", "'seen', and nothing is kept from run to run"),
    "noise in training": (_trained(_Noisy()), "upload_refused", "(aten.rand_like): call module.eval()"),
    "zip upwards": (lambda p: hostile.archive(p / "m", {"../m.onnx": _ONNX}), "upload_refused", "../m.onnx"),
    "zip from the root": (lambda p: hostile.archive(p / "m", {"/m.onnx": _ONNX}), "upload_refused", "leads outside"),
    "zip with a link": (lambda p: hostile.archive(p / "m", {"m.onnx": _ONNX}, link="w"), "upload_refused", "link"),
    "zip of nothing": (lambda p: hostile.archive(p / "m", {"readme": b"x"}), "upload_unreadable", "neither"),
    "zip of two": (lambda p: hostile.archive(p / "m", {"a.onnx": _ONNX, "b.onnx": _ONNX}), "upload_refused", "2 .onnx"),
    "zip bomb": (lambda p: hostile.bomb(p / "m", declared_bytes=300 * 2**20), "upload_refused", "bomb"),
    "weights upwards": (_outside("../../etc/passwd"), "upload_refused", "../../etc/passwd"),
    "weights at the root": (_outside("/etc/passwd"), "upload_refused", "/etc/passwd"),
    "weights missing": (_outside("w.bin"), "upload_unreadable", "w.bin"),
    "weights too short": (_outside("w.bin", **{"w.bin": b"\0"}), "upload_unreadable", "shorter"),
    "weights beside": (lambda p: _onnx_bytes(p, _BESIDE), "upload_refused", ".zip"),
    "custom operator": (lambda p: _onnx_bytes(p, _CUSTOM), "upload_refused", "mine::Secret"),
    "unknown operator": (lambda p: _onnx_bytes(p, _UNKNOWN), "upload_refused", "NoSuchThing"),
    "broken graph": (lambda p: _onnx_bytes(p, _BROKEN), "upload_unreadable", "nowhere"),
}


def _onnx_bytes(folder: Path, graph: onnx.ModelProto) -> Path:
    return _bytes(graph.SerializeToString())(folder)


@pytest.mark.parametrize(("make", "code", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_upload_is_told_what_is_wrong(
    tmp_path: Path, make: Callable[[Path], Path], code: str, words: str
) -> None:
    failure = _refusal(make(tmp_path))
    assert failure.code == code
    assert words in failure.message


def test_a_custom_operator_is_named_with_its_node(tmp_path: Path) -> None:
    assert "layer7" in _refusal(_onnx_bytes(tmp_path, _CUSTOM)).message


def test_an_artifact_that_answers_differently_is_a_mismatch(tmp_path: Path) -> None:
    _import(_onnx(tmp_path / "m.onnx", graphs.conv_classifier()))
    onnx.save(graphs.conv_classifier(seed=1), tmp_path / "out" / "float32.onnx")
    check = VerifySpec(artifact="out/float32.onnx", samples="out/samples.npz", original="the first one")
    with pytest.raises(JobFailure, match="the first one") as raised:
        asyncio.run(run_stage("verify", check, scratch=tmp_path, limits=LIMITS, on_progress=_ignore, on_log=_ignore))
    assert raised.value.code == "conversion_mismatch"


GREY = ImagePreprocessing(colour="grey", mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("preprocessing", [ImagePreprocessing(), ImagePreprocessing(resize=10, crop=8)])
@pytest.mark.parametrize("batch", [None, 1])
def test_a_preprocessing_that_makes_the_input_is_taken(
    tmp_path: Path, preprocessing: ImagePreprocessing, batch: int | None
) -> None:
    graph = graphs.conv_classifier()
    upload = _onnx(tmp_path / "m.onnx", graph if batch is None else _fixed(graph, batch))
    assert _import(upload, preprocessing=preprocessing).verified.parameters > 100


@pytest.mark.parametrize(
    ("preprocessing", "made"),
    [
        (GREY, "[1, 8, 8]"),
        (ImagePreprocessing(crop=7), "[3, 7, 7]"),
        (ImagePreprocessing(layout="hwc"), "[3, 8, 3]"),
    ],
)
def test_a_preprocessing_that_fits_no_image_to_the_input_is_refused(
    tmp_path: Path, preprocessing: ImagePreprocessing, made: str
) -> None:
    failure = _refusal(_onnx(tmp_path / "m.onnx", graphs.conv_classifier()), preprocessing=preprocessing)
    assert failure.code == "upload_refused"
    assert f"makes rows of {made}, but input 'x' takes float32[N, 3, 8, 8]" in failure.message


def test_a_model_of_several_inputs_takes_no_images(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "add", values[:2], values[2:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    failure = _refusal(_onnx(tmp_path / "m.onnx", made), preprocessing=ImagePreprocessing())
    assert "takes 2 inputs (a, b)" in failure.message
