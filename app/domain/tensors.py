"""Tensors as a model's signature declares them. Holds no numbers: arrays live at the edges."""

from dataclasses import dataclass
from enum import StrEnum

from app.domain.errors import SignatureMismatch


class DType(StrEnum):
    """Element types, under NumPy's names (`bfloat16` under ml_dtypes')."""

    BOOL = "bool"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


# The Open Inference Protocol's names for the same types.
PROTOCOL_NAMES: dict[DType, str] = {
    DType.BOOL: "BOOL",
    DType.UINT8: "UINT8",
    DType.UINT16: "UINT16",
    DType.UINT32: "UINT32",
    DType.UINT64: "UINT64",
    DType.INT8: "INT8",
    DType.INT16: "INT16",
    DType.INT32: "INT32",
    DType.INT64: "INT64",
    DType.FLOAT16: "FP16",
    DType.BFLOAT16: "BF16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
}


MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        shape: sizes of the axes; None where the size may differ from request to request.
        batch_axis: which axis counts the rows; None if the tensor has none.
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...]
    batch_axis: int | None = 0

    def __post_init__(self) -> None:
        if not self.name.isprintable() or len(self.name) > MAX_NAME_CHARS:
            raise SignatureMismatch(
                f"A tensor's name is not printable or longer than {MAX_NAME_CHARS} characters: "
                f"{self.name[:80]!a}: rename it and export the model again."
            )
        if any(size is not None and size < 0 for size in self.shape):
            raise SignatureMismatch(f"Tensor {self.name!r} declares a negative size in shape {list(self.shape)}.")
        if self.batch_axis is not None and not 0 <= self.batch_axis < len(self.shape):
            raise SignatureMismatch(
                f"Tensor {self.name!r} declares batch axis {self.batch_axis} of {len(self.shape)} axes."
            )

    @property
    def row_shape(self) -> tuple[int | None, ...]:
        """The shape of one row: without the batch axis."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.batch_axis)

    def describe(self) -> str:
        """Write dtype and shape for an error message: `float32[N, 3, 32, 32]`."""
        sizes = [
            "N" if axis == self.batch_axis else "?" if size is None else str(size)
            for axis, size in enumerate(self.shape)
        ]
        return f"{self.dtype}[{', '.join(sizes)}]"

    def check(self, dtype: str, shape: tuple[int, ...]) -> None:
        """Check a whole array, batch axis included, against this spec.

        Raises:
            SignatureMismatch: dtype, number of axes or a size differs.
        """
        fits = len(shape) == len(self.shape) and all(
            want is None or axis == self.batch_axis or want == size
            for axis, (want, size) in enumerate(zip(self.shape, shape, strict=True))
        )
        if dtype != self.dtype or not fits:
            raise SignatureMismatch(
                f"Input {self.name!r} is {dtype}{list(shape)}, but the model takes {self.describe()}: "
                "send that dtype and shape."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise SignatureMismatch("A model needs at least one input and one output.")
        for specs in (self.inputs, self.outputs):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise SignatureMismatch(f"Two tensors of the model share a name: {names}.")

    def input(self, name: str) -> TensorSpec:
        """Return the input called `name`.

        Raises:
            SignatureMismatch: the model has no such input.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        names = ", ".join(spec.name for spec in self.inputs)
        raise SignatureMismatch(f"The model has no input {name[:80]!r}: its inputs are {names}.")

    @property
    def batched(self) -> bool:
        """Whether every input and output counts rows along an axis."""
        return all(spec.batch_axis is not None for spec in (*self.inputs, *self.outputs))
