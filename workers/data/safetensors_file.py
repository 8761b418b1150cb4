"""`.safetensors` files, read in blocks of rows through the library's own slices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from app.domain.datasets import DatasetFormat
from app.domain.errors import DatasetUnfit, UploadUnreadable
from workers.data.table import Header, Table

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsColumn:
    """One array of the file at `path`."""

    path: Path
    header: Header

    def read(self, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Read a block of rows whenever the last one is used up."""
        start, block = 0, np.empty((0,))
        for number in numbers:
            if number >= start + len(block):
                start, block = number, self._block(number)
            yield block[number - start]

    def _block(self, first: int) -> NDArray[Any]:
        # the file is mapped anew for each block, or the pages once touched would count as ours
        with _opened(self.path) as file:
            end = min(first + self.header.block_rows, self.header.shape[0])
            block: NDArray[Any] = file.get_slice(self.header.name)[first:end]
            return block


def open_safetensors(path: Path) -> Table:
    """Read the file's header.

    Raises:
        UploadUnreadable: not a safetensors file, or a truncated one.
        DatasetUnfit: an array that cannot be read as rows.
    """
    columns: dict[str, SafetensorsColumn] = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - the file is not a mapping
            part = file.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise DatasetUnfit(f"Array {name!r} has dtype {part.get_dtype()}: use one of {', '.join(_DTYPES)}.")
            header = Header(name=name, dtype=_DTYPES[part.get_dtype()], shape=tuple(part.get_shape()))
            columns[name] = SafetensorsColumn(path=path, header=header)
    return Table.of(columns, format=DatasetFormat.SAFETENSORS)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UploadUnreadable(f"The safetensors file cannot be read ({error}): save and send it again.") from error
