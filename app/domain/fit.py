"""Whether a dataset's rows fit a model: the check a job gets before any work starts."""

from app.domain.datasets import ArraySpec, DatasetFormat, DatasetManifest
from app.domain.errors import SignatureMismatch
from app.domain.metrics import METRICS
from app.domain.models import ModelManifest
from app.domain.tensors import TensorSpec
from app.domain.verdicts import require_metric


def check_fit(dataset: DatasetManifest, model: ModelManifest) -> None:
    """Check that every input of the model has a matching array, or that images can become its one input.

    Raises:
        SignatureMismatch: an input has no array, or one of another dtype or row shape; or images are sent to a
            model without preprocessing or with several inputs.
    """
    if dataset.format is DatasetFormat.IMAGE_FOLDER:
        _check_images(dataset, model)
        return
    arrays = {array.name: array for array in dataset.arrays}
    for spec in model.signature.inputs:
        if spec.name not in arrays:
            raise SignatureMismatch(
                f"Dataset {dataset.name!r} has no array {spec.name!r}, which model {model.name!r} takes; "
                f"it has {', '.join(sorted(arrays)) or 'none'}: name the arrays as the model's inputs."
            )
        _check_array(dataset, arrays[spec.name], spec)


def check_metric(metric: str, dataset: DatasetManifest) -> None:
    """Check that a budget's metric has the labels it needs; whether it suits the model's output, only scoring tells.

    Raises:
        DatasetUnfit: the dataset has other labels, or none.
    """
    if METRICS[metric].labels not in ("none", dataset.label_kind):
        require_metric(metric, (), dataset=dataset.name, labels=dataset.label_kind)


def _check_images(dataset: DatasetManifest, model: ModelManifest) -> None:
    if len(model.signature.inputs) != 1 or model.preprocessing is None:
        raise SignatureMismatch(
            f"Dataset {dataset.name!r} holds images, which need a model with one input and a preprocessing: "
            f"upload {model.name!r} with a preprocessing, or send arrays."
        )


def _check_array(dataset: DatasetManifest, array: ArraySpec, spec: TensorSpec) -> None:
    same_rank = len(array.row_shape) == len(spec.row_shape)
    sizes_fit = same_rank and all(
        want is None or want == size for want, size in zip(spec.row_shape, array.row_shape, strict=True)
    )
    if array.dtype != spec.dtype or not sizes_fit:
        raise SignatureMismatch(
            f"Array {array.name!r} of dataset {dataset.name!r} has rows of {array.dtype}{list(array.row_shape)}, "
            f"but the model takes {spec.describe()}: convert it to that dtype and shape."
        )
