"""Every engine takes pixels instead of rows, and answers as it would have answered the rows."""

from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from app.domain.preprocessing import ImagePreprocessing
from app.domain.recipes import PtqStatic
from app.domain.tensors import DType
from app.domain.variants import Engine, Execution
from tests import graphs
from tests.contract import test_toolchains as toolchains
from tests.engines import DTYPES, declared, opened, two_inputs
from workers.pixels import PixelInput
from workers.runners.engines import ENGINES

Array = npt.NDArray[Any]
make_node = helper.make_node


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    name: Engine = request.param
    return name


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Colour = Literal["rgb", "bgr", "grey"]
Layout = Literal["chw", "hwc"]


def declaration(colour: Colour = "rgb", layout: Layout = "chw") -> ImagePreprocessing:
    channels = 1 if colour == "grey" else 3
    return ImagePreprocessing(colour=colour, layout=layout, mean=MEAN[:channels], std=STD[:channels])


def drawn_pixels(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def passing(shape: graphs.Shape, dtype: DType = DType.FLOAT32) -> onnx.ModelProto:
    """Build a graph whose answer is its input, in float32."""
    kinds = {"x": TensorProto.FLOAT if dtype is DType.FLOAT32 else DTYPES[dtype]}
    nodes = [make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), make_node("Neg", ["f"], ["y"])]
    return graphs.small(nodes, inputs={"x": shape}, outputs={"y": shape}, weights={}, types=kinds)


def as_float(array: Array, dtype: DType) -> npt.NDArray[np.float32]:
    numbers = array.view(ml_dtypes.bfloat16) if dtype is DType.BFLOAT16 else array
    return numbers.astype(np.float32)


# Values are below 3 before and after the division; scale, mean and std each round by at most 2^-24 of that, and may be
# folded into two numbers that are rounded themselves.
ROUNDED = 3 * 6 * 2**-24


@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_pixels_become_the_rows_they_would_have_been(
    engine: Engine, colour: Colour, layout: Layout, *, free: bool
) -> None:
    preprocessing = declaration(colour, layout)
    channels = len(preprocessing.mean)
    height, width = ("h", "w") if free else (5, 7)
    shape = ("n", channels, height, width) if layout == "chw" else ("n", height, width, channels)
    graph = passing(shape)
    session = opened(engine, graph, pixels=preprocessing)
    for rows in (1, 3):
        pixels = drawn_pixels(rows, 5, 7, channels, seed=rows)
        wanted = PixelInput.of(declared(graph), preprocessing).array(pixels)
        np.testing.assert_allclose(-session.infer({"x": pixels})["y"], wanted, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("shape", [("n", 3, 5, 7), (1, 3, 5, 7), (3, 5, 7), (3, "n", 5, 7)], ids=str)
def test_pixels_find_the_axis_of_rows(engine: Engine, shape: graphs.Shape) -> None:
    graph, pixels = passing(shape), drawn_pixels(1, 5, 7, 3)
    found = -opened(engine, graph, pixels=declaration()).infer({"x": pixels})["y"]
    wanted = PixelInput.of(declared(graph), declaration()).array(pixels)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("dtype", [each for each in DTYPES if each is not DType.BOOL])
def test_pixels_become_the_inputs_dtype(engine: Engine, dtype: DType) -> None:
    # every step is exact in float32, ties included, and the values go beyond both ends of 8 bits
    preprocessing = ImagePreprocessing(scale=1.5, mean=(130.0,) * 3, std=(0.5, 2.0, 1.0))
    graph, pixels = passing(("n", 3, 5, 7), dtype), drawn_pixels(2, 5, 7, 3)
    found = -opened(engine, graph, pixels=preprocessing).infer({"x": pixels})["y"]
    wanted = as_float(PixelInput.of(declared(graph), preprocessing).array(pixels), dtype)
    # half a step of the type, as an engine may skip rounding to a type that it does not compute in
    rounded = {DType.FLOAT16: 2**-11, DType.BFLOAT16: 2**-8}.get(dtype, 0)
    np.testing.assert_allclose(found, wanted, rtol=rounded, atol=0)


def quantized(folder: Path) -> onnx.ModelProto:
    return toolchains.run(toolchains.fill(folder, program=b""), PtqStatic()).graph


def test_pixels_to_an_int8_graph_may_move_a_value_by_one_step_of_its_quantizer(engine: Engine, tmp_path: Path) -> None:
    graph = quantized(tmp_path)
    preprocessing, pixels = declaration(), drawn_pixels(16, 8, 8, 3)
    plan = PixelInput.of(declared(graph), preprocessing)
    from_rows = opened(engine, graph).infer({graphs.INPUT: plan.array(pixels)})[graphs.OUTPUT].copy()
    found = opened(engine, graph, pixels=preprocessing).infer({graphs.INPUT: pixels})[graphs.OUTPUT]
    # a value in the middle of two of 255 steps may fall to either: one value in a thousand, by a 255th of the range
    assert toolchains.distance(found, from_rows) < 1e-3 * (1 / 255)


@toolchains.needs_bfloat16
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_pixels_to_a_bfloat16_graph_are_rounded_as_rows_are(colour: Colour) -> None:
    kept, execution = np.eye(8, 3, dtype=np.float32).reshape(8, 3, 1, 1), Execution(float_precision="bfloat16")
    shapes: tuple[graphs.Shape, graphs.Shape] = (("n", 3, 5, 7), ("n", 8, 5, 7))
    nodes = [make_node("Conv", ["x", "w"], ["y"])]
    graph = graphs.small(nodes, inputs={"x": shapes[0]}, outputs={"y": shapes[1]}, weights={"w": kept})
    pixels = drawn_pixels(4, 5, 7, 3)
    rows = PixelInput.of(declared(graph), declaration(colour)).array(pixels)
    session = opened("openvino", graph, pixels=declaration(colour), execution=execution)
    # values below 3, rounded to bfloat16 once before the convolution and once behind it
    np.testing.assert_allclose(session.infer({"x": pixels})["y"][:, :3], rows, rtol=0, atol=2 * 4 * 2**-9)


@pytest.mark.parametrize("colour", ["grey", "rgb"])
def test_pixels_that_do_not_fit_the_model_are_refused_at_once(engine: Engine, colour: Colour) -> None:
    graph = two_inputs() if colour == "rgb" else graphs.conv_classifier()
    with pytest.raises(RuntimeError, match="Pixels"):
        opened(engine, graph, pixels=declaration(colour))


@pytest.mark.parametrize(
    "wrong", [drawn_pixels(1, 8, 8, 1), drawn_pixels(1, 3, 8, 8), drawn_pixels(8, 8, 3), graphs.rows(1)], ids=np.shape
)
def test_other_arrays_than_pixels_raise(engine: Engine, wrong: Array) -> None:
    session = opened(engine, graphs.conv_classifier(), pixels=declaration())
    with pytest.raises(RuntimeError):
        session.infer({graphs.INPUT: wrong})
