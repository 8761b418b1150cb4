"""What a toolchain's handler gives back."""

from dataclasses import dataclass

import onnx

from app.domain.variants import Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variant's graph before it is finished.

    Attributes:
        execution: how an engine must run it.
        notes: sentences for the report.
    """

    graph: onnx.ModelProto
    execution: Execution
    notes: tuple[str, ...] = ()
