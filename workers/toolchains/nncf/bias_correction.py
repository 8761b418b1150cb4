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

    NNCF cuts the graph at layers' inputs. Where two layers take one tensor, as in every residual block with a
    projection, it names that twice, and ONNX Runtime does not open the piece; where a layer lies behind another cut, it
    looks for a node that is not in the piece.
    """

    def extract_model(
        self, model: onnx.ModelProto, input_ids: set[tuple[str, int]], output_ids: set[tuple[str, int]]
    ) -> onnx.ModelProto:
        piece = self._piece(model, input_ids, output_ids)
        inside = {node.name for node in piece.graph.node}
        unread = {each for each in input_ids if each[0] not in inside}
        if not unread:
            return piece
        # the caller's own set: it feeds the piece by it
        input_ids -= unread
        return self._piece(model, input_ids, output_ids)

    def _piece(
        self, model: onnx.ModelProto, input_ids: set[tuple[str, int]], output_ids: set[tuple[str, int]]
    ) -> onnx.ModelProto:
        nodes = {node.name: node for node in model.graph.node}
        # by tensor, and sorted: sets of names change their order from process to process
        inputs = {nodes[name].input[port]: (name, port) for name, port in sorted(input_ids)}
        outputs = {nodes[name].output[port]: (name, port) for name, port in sorted(output_ids)}
        piece: onnx.ModelProto = super().extract_model(model, _Ordered(inputs.values()), _Ordered(outputs.values()))
        return piece


class _Ordered(list[Any]):
    """What NNCF makes lists of, in an order that is the same every time."""


def rows_for_full(rows: int, *, row_bytes: int) -> int:
    """Return how many rows full bias correction takes: a fifth, as NNCF does, or as many as fit into `KEPT_BYTES`.

    Args:
        row_bytes: what the inputs of all layers take for one row.
    """
    wanted = max(int(rows * SHARE), 1)
    return max(min(wanted, KEPT_BYTES // max(row_bytes, 1)), min(wanted, LEAST_ROWS))
