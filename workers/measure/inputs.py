"""Random input for timing and weighing, where what is in the tensors does not matter, only their shape."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from app.domain.tensors import DType, Signature, TensorSpec
from workers.data.batches import Tensors

FREE_AXIS = 16
"""The size an axis gets that is free and is not the batch."""

_FLOATS = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)


def random_inputs(signature: Signature, *, rows: int, seed: int = 0) -> Tensors:
    """Make one array per input: normal floats; integers 0 and 1, which every embedding has."""
    generator = np.random.default_rng(seed)
    return {spec.name: _random(spec, rows=rows, generator=generator) for spec in signature.inputs}


def _random(spec: TensorSpec, *, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    shape = [
        rows if axis == spec.batch_axis else FREE_AXIS if size is None else size for axis, size in enumerate(spec.shape)
    ]
    if spec.dtype in _FLOATS:
        return generator.standard_normal(shape, np.float32).astype(_numpy(spec.dtype))
    return generator.integers(0, 2, shape).astype(_numpy(spec.dtype))


def _numpy(dtype: DType) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if dtype is DType.BFLOAT16 else dtype.value)
