"""Whether images can become a model's input at all, found out at import rather than by the first request."""

import io

from PIL import Image

from app.domain.errors import ImageInvalid, SignatureMismatch, UploadRefused
from app.domain.preprocessing import ImagePreprocessing
from app.domain.tensors import Signature, TensorSpec
from workers.data.preprocessing import input_size, preprocess, preprocess_for, sides

_ANY_SIDE = 32


def check_preprocessing(preprocessing: ImagePreprocessing, signature: Signature) -> None:
    """Send one blank image through the preprocessing.

    Raises:
        UploadRefused: the model takes several inputs, or one of another shape than the preprocessing makes.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise UploadRefused(
            f"The upload has a preprocessing for images, but the model takes {len(signature.inputs)} inputs ({names}): "
            "upload it without one."
        )
    spec = signature.inputs[0]
    image = _blank(spec, preprocessing)
    try:
        row = preprocess(image, preprocessing, size=input_size(spec, preprocessing))
    except ImageInvalid as error:
        raise UploadRefused(f"No image can become input {spec.name!r} by the preprocessing: {error.message}") from error
    try:
        preprocess_for(spec, image, preprocessing)
    except SignatureMismatch as error:
        raise UploadRefused(
            f"The preprocessing makes rows of {list(row.shape)}, but input {spec.name!r} takes {spec.describe()}: "
            "change its colour, layout or crop."
        ) from error


def _blank(spec: TensorSpec, preprocessing: ImagePreprocessing) -> bytes:
    """Encode a black image that is as large as the input where that is fixed, and at least as the crop."""
    least = preprocessing.crop or 1
    height, width = (max(side or _ANY_SIDE, least) for side in sides(spec, preprocessing))
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()
