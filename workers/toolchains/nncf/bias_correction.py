"""NNCF's bias correction, mended where it fails on common graphs, and held to a share of the memory."""

from typing import Any

import onnx
from nncf.quantization.algorithms.bias_correction.algorithm import BiasCorrection

KEPT_BYTES = 64 * 1024 * 1024
"""How much NNCF may keep of calibration rows, as inputs of the layers it has yet to correct."""

SHARE = 0.2
"""Of the calibration rows, what NNCF corrects biases with."""

LEAST_ROWS = 4


class FullBiasCorrection(BiasCorrection):  # type: ignore[misc]
    """Corrects layer after layer on the partly quantized graph (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

    NNCF cuts the graph at layers' inputs and names a tensor twice where two layers take it, as in every residual block
    with a projection; ONNX Runtime does not open such a piece.
    """

    def extract_model(
        self, model: onnx.ModelProto, input_ids: set[tuple[str, int]], output_ids: set[tuple[str, int]]
    ) -> onnx.ModelProto:
        nodes = {node.name: node for node in model.graph.node}
        # by tensor, and sorted: sets of names change their order from process to process
        inputs = {nodes[name].input[port]: (name, port) for name, port in sorted(input_ids)}
        outputs = {nodes[name].output[port]: (name, port) for name, port in sorted(output_ids)}
        cut: onnx.ModelProto = super().extract_model(model, _Ordered(inputs.values()), _Ordered(outputs.values()))
        return cut


class _Ordered(list[Any]):
    """What NNCF makes lists of, in an order that is the same every time."""


def rows_for_full(rows: int, *, row_bytes: int) -> int:
    """Return how many rows full bias correction takes: a fifth, as NNCF does, or as many as fit into `KEPT_BYTES`.

    Args:
        row_bytes: what the inputs of all layers take for one row.
    """
    wanted = max(int(rows * SHARE), 1)
    return max(min(wanted, KEPT_BYTES // max(row_bytes, 1)), min(wanted, LEAST_ROWS))
