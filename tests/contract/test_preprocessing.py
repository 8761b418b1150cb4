"""Images become rows exactly as declared, checked against the same arithmetic written out in NumPy."""

import io
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.domain.errors import ImageInvalid, SignatureMismatch
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import DType, Signature, TensorSpec
from workers.data.preprocessing import MOST_PIXELS, pixels_for, preprocess, preprocess_for
from workers.pixels import PixelInput

Pixels = npt.NDArray[np.uint8]
PLAIN = ImagePreprocessing(scale=1.0, layout="hwc")
GREY = ImagePreprocessing(scale=1.0, layout="hwc", colour="grey", mean=(0.0,), std=(1.0,))
ORIENTATION = 0x0112


def colours(height: int, width: int, *, channels: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def encode(image: Image.Image | Pixels, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    opened = image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())
    opened.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_scale_mean_std_colour_and_layout_follow_the_declaration(
    layout: Literal["chw", "hwc"], colour: Literal["rgb", "bgr"]
) -> None:
    mean, std, scale, pixels = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1 / 255, colours(5, 7)
    declared = ImagePreprocessing(scale=scale, mean=mean, std=std, layout=layout, colour=colour)
    expected = np.empty((5, 7, 3))
    for channel in range(3):
        source = channel if colour == "rgb" else 2 - channel
        expected[:, :, channel] = (pixels[:, :, source] * scale - mean[channel]) / std[channel]
    row = preprocess(encode(pixels), declared, size=None)
    assert row.dtype == np.float32
    assert row.flags.c_contiguous
    # three float32 operations on values below 2.5: each rounds by at most 2^-24 of its result
    tolerance = 3 * 2.5 * 2**-23
    np.testing.assert_allclose(
        row, expected if layout == "hwc" else expected.transpose(2, 0, 1), rtol=0, atol=tolerance
    )


def test_the_shorter_side_is_resized_and_the_middle_cropped() -> None:
    declared = ImagePreprocessing(resize=6, crop=4, scale=1.0, layout="hwc")
    pixels = colours(12, 20)
    resized = np.asarray(Image.fromarray(pixels).resize((10, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocess(encode(pixels), declared, size=(4, 4)), resized[1:5, 3:7])


def test_without_a_crop_the_image_is_resized_to_the_inputs_size() -> None:
    assert preprocess(encode(colours(12, 20)), PLAIN, size=(5, 9)).shape == (5, 9, 3)


def test_shrinking_averages_the_pixels_it_drops() -> None:
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    row = preprocess(encode(np.repeat(checkers[:, :, None], 3, axis=2).astype(np.uint8)), PLAIN, size=(8, 8))
    assert np.abs(row - 127.5).max() < 4  # without antialiasing it would be all 0 or all 255


def test_the_image_keeps_its_size_when_nothing_says_another() -> None:
    assert preprocess(encode(colours(12, 20)), PLAIN, size=None).shape == (12, 20, 3)


def test_grey_has_one_channel() -> None:
    pixels = colours(4, 5, channels=1)
    np.testing.assert_array_equal(preprocess(encode(pixels), GREY, size=None), pixels)


def test_a_grey_image_fills_all_three_colours() -> None:
    pixels = colours(4, 5, channels=1)
    np.testing.assert_array_equal(preprocess(encode(pixels), PLAIN, size=None), np.repeat(pixels, 3, axis=2))


def test_sixteen_bits_become_eight() -> None:
    wide = np.array([[0, 257, 257 * 128, 65535]], np.uint16)
    np.testing.assert_array_equal(preprocess(encode(Image.fromarray(wide)), GREY, size=None).ravel(), [0, 1, 128, 255])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L"])
def test_every_png_mode_becomes_three_colours(mode: str) -> None:
    image = Image.fromarray(colours(4, 5)).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(preprocess(encode(image), PLAIN, size=None), expected)


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = Image.fromarray(colours(4, 5)).convert("P")
    assert preprocess(encode(image, transparency=b"\x00\x80\xff"), PLAIN, size=None).shape == (4, 5, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_jpeg_mode_becomes_three_colours(mode: str) -> None:
    image = encode(Image.fromarray(colours(16, 16)).convert(mode), "JPEG")
    assert preprocess(image, PLAIN, size=None).shape == (16, 16, 3)


def test_a_photo_is_turned_upright() -> None:
    pixels, exif = colours(4, 6), Image.Exif()
    exif[ORIENTATION] = 6  # stored a quarter turn to the left
    turned = preprocess(encode(pixels, exif=exif), PLAIN, size=None)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    whole = encode(colours(64, 64), kind)
    for size in range(0, len(whole) * 9 // 10, len(whole) // 20):
        with pytest.raises(ImageInvalid, match="cannot be decoded"):
            preprocess(whole[:size], PLAIN, size=None)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageInvalid, match="JPEG or PNG"):
        preprocess(encode(colours(8, 8), kind), PLAIN, size=None)


@pytest.mark.parametrize("scans", [100, 20_000])
def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(scans: int) -> None:
    whole = encode(colours(64, 64), "JPEG", progressive=True)
    end = whole.rindex(b"\xff\xd9")
    last = whole[whole.rindex(b"\xff\xda") : end]
    with pytest.raises(ImageInvalid, match="scans"):
        preprocess(whole[:end] + last * scans + whole[end:], PLAIN, size=None)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}])
def test_what_encoders_write_has_few_enough_scans(options: dict[str, Any]) -> None:
    photo = encode(colours(512, 512), "JPEG", **options)
    whole = photo[:2] + b"\xff\xe1\x80\x00" + b"\xff\xda" * (0x7FFE // 2) + photo[2:]  # an attachment is no scan
    assert preprocess(whole + b"\xff\xda" * 1000, PLAIN, size=None).shape == (512, 512, 3)


def test_a_jpeg_of_too_many_segments_is_refused() -> None:
    whole = encode(colours(8, 8), "JPEG")
    with pytest.raises(ImageInvalid, match="segments"):
        preprocess(whole[:2] + b"\xff\xfe\x00\x02" * 5000 + whole[2:], PLAIN, size=None)


def test_a_refusal_shows_nothing_of_the_process() -> None:
    with pytest.raises(ImageInvalid, match="not a JPEG or PNG image") as raised:
        preprocess(b"no image", PLAIN, size=None)
    assert "0x" not in raised.value.message


@pytest.mark.parametrize("side", [6000, 9000, 12000, 20000])
def test_an_image_of_too_many_pixels_is_refused_from_its_header(side: int) -> None:
    bomb = encode(Image.new("1", (side, side)))
    assert len(bomb) < MOST_PIXELS / 100
    with pytest.raises(ImageInvalid, match="pixels"):
        preprocess(bomb, PLAIN, size=None)


def test_a_thin_image_cannot_be_blown_up() -> None:
    with pytest.raises(ImageInvalid, match="pixels"):
        preprocess(encode(colours(1, 9000)), ImagePreprocessing(resize=8192, crop=8), size=None)


def test_an_image_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(ImageInvalid, match="crops 9"):
        preprocess(encode(colours(8, 20)), ImagePreprocessing(crop=9), size=None)


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8, DType.FLOAT16, DType.FLOAT64])
def test_the_row_takes_the_inputs_dtype(dtype: DType) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=(None, 4, 5, 3))
    pixels = colours(4, 5)
    array = preprocess_for(spec, encode(pixels), PLAIN)
    np.testing.assert_array_equal(array[0], pixels.clip(0, 127) if dtype is DType.INT8 else pixels)
    assert array.dtype == np.dtype(str(dtype))


def test_a_bfloat16_input_gets_its_bits() -> None:
    spec = TensorSpec(name="x", dtype=DType.BFLOAT16, shape=(None, 4, 5, 3))
    array = preprocess_for(spec, encode(colours(4, 5)), PLAIN)
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array.view(ml_dtypes.bfloat16)[0], colours(4, 5).astype(ml_dtypes.bfloat16))


def test_an_image_for_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(SignatureMismatch, match="float32"):
        preprocess_for(TensorSpec(name="x", dtype=DType.FLOAT32, shape=(None, 10)), encode(colours(4, 5)), PLAIN)


def test_a_graph_that_is_fixed_to_one_row_takes_images_too() -> None:
    spec = TensorSpec(name="x", dtype=DType.FLOAT32, shape=(1, 5, 9, 3), batch_axis=None)
    assert preprocess_for(spec, encode(colours(12, 20)), PLAIN).shape == (1, 5, 9, 3)


def written_out(pixels: Pixels, declared: ImagePreprocessing) -> npt.NDArray[np.float32]:
    """Do all channels at once, as published variants' reports were measured."""
    rows = pixels[:, :, ::-1] if declared.colour == "bgr" else pixels
    scaled = rows.astype(np.float32) * np.float32(declared.scale)
    scaled -= np.asarray(declared.mean, np.float32)
    scaled /= np.asarray(declared.std, np.float32)
    return scaled if declared.layout == "hwc" else scaled.transpose(2, 0, 1)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_rows_stay_bit_for_bit(layout: Literal["chw", "hwc"], colour: Literal["rgb", "bgr"]) -> None:
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    declared = ImagePreprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout=layout, colour=colour)
    row = preprocess(encode(pixels), declared, size=None)
    np.testing.assert_array_equal(
        row.view(np.int32), np.ascontiguousarray(written_out(pixels, declared)).view(np.int32)
    )


def image_spec(*shape: int | None, dtype: DType = DType.FLOAT32, axis: int | None = 0) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=shape, batch_axis=axis)


@pytest.mark.parametrize(
    "spec",
    [
        image_spec(None, 3, 4, 6),
        image_spec(None, 3, None, None),
        image_spec(1, 3, 4, 6, axis=None),
        image_spec(3, 4, 6, axis=None),
        image_spec(3, None, 4, 6, axis=1),
        image_spec(None, 3, 4, 6, dtype=DType.UINT8),
        image_spec(None, 3, 4, 6, dtype=DType.BFLOAT16),
    ],
    ids=lambda spec: spec.describe(),
)
def test_pixels_are_what_becomes_the_row(spec: TensorSpec) -> None:
    image, declared = encode(colours(4, 6)), ImagePreprocessing(colour="bgr", mean=(0.5, 0.4, 0.3))
    pixels = pixels_for(spec, image, declared)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 4, 6, 3)
    row = PixelInput.of(Signature(inputs=(spec,), outputs=(spec,)), declared).array(pixels)
    np.testing.assert_array_equal(row, preprocess_for(spec, image, declared))


def test_pixels_are_red_green_and_blue_even_for_a_model_that_takes_blue_first() -> None:
    pixels = colours(4, 6)
    found = pixels_for(image_spec(None, 3, 4, 6), encode(pixels), ImagePreprocessing(colour="bgr"))
    np.testing.assert_array_equal(found[0], pixels)


def test_pixels_are_resized_and_cropped() -> None:
    declared, image = ImagePreprocessing(resize=6, crop=4, layout="hwc"), encode(colours(12, 20))
    wanted = preprocess(image, ImagePreprocessing(resize=6, crop=4, scale=1.0, layout="hwc"), size=None)
    np.testing.assert_array_equal(pixels_for(image_spec(None, 4, 4, 3), image, declared)[0], wanted)


def test_grey_pixels_have_one_channel() -> None:
    pixels = colours(4, 5, channels=1)
    np.testing.assert_array_equal(pixels_for(image_spec(None, 4, 5, 1), encode(pixels), GREY)[0], pixels)


@pytest.mark.parametrize("layout", ["chw", "hwc"])
def test_pixels_of_another_shape_than_the_inputs_are_refused_as_rows_are(layout: Literal["chw", "hwc"]) -> None:
    spec, declared = image_spec(None, 3, 4, 3), ImagePreprocessing(crop=5, resize=5, layout=layout)
    with pytest.raises(SignatureMismatch) as rows:
        preprocess_for(spec, encode(colours(9, 9)), declared)
    with pytest.raises(SignatureMismatch) as pixels:
        pixels_for(spec, encode(colours(9, 9)), declared)
    assert str(pixels.value) == str(rows.value)
