"""ONNX Runtime as the judge of a graph: what an uploaded ONNX answers, and whether a rewritten one still does."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from workers.formats.original import Arrays

NAME = f"onnxruntime {onnxruntime.__version__}"
# Everything it may say about a graph or its inputs.
ERRORS: tuple[type[Exception], ...] = (
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoModel,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
    ValueError,
)


class Session:
    """A graph that can be asked."""

    def __init__(self, graph: onnx.ModelProto | Path) -> None:
        """Load a graph, without the rewriting that would change its rounding.

        Raises:
            ERRORS: the engine does not take it.
        """
        source = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._outputs = [each.name for each in self._session.get_outputs()]

    def answer(self, arrays: Arrays) -> Arrays:
        """Run the graph.

        Raises:
            ERRORS: it does not take these arrays.
        """
        answers = self._session.run(self._outputs, arrays)
        return {name: np.asarray(answer) for name, answer in zip(self._outputs, answers, strict=True)}
