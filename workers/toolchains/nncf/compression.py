"""Weights into few bits: by NNCF where its ONNX side can, by `storing` where it cannot."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nncf
import numpy as np
import onnx
from nncf.onnx.graph.model_metadata import MetadataKey, get_metadata, remove_metadata
from nncf.onnx.quantization.backend_parameters import BackendParameters
from nncf.quantization.advanced_parameters import AdvancedCompressionParameters
from onnx import numpy_helper, version_converter

from app.domain.errors import ToolchainFailed
from workers import graphs
from workers.toolchains.nncf import weights
from workers.toolchains.nncf.aside import weights_aside
from workers.toolchains.nncf.awq import scale_channels
from workers.toolchains.nncf.calibration import CalibrationRows
from workers.toolchains.nncf.constants import only_inputs, share_transposed
from workers.toolchains.nncf.failures import ERRORS, nncf_failures, said, settle
from workers.toolchains.nncf.storing import Storage, store
from workers.toolchains.nncf.weights import Weight

# From here on DequantizeLinear takes 4-bit integers, and one scale per group.
_OPSET_OF_INT4 = 21
_IR_OF_INT4 = 10
_MATRIX_RANK = 2
_LEAST_GROUP, _LARGEST_GROUP = 16, 4096
_MODES = {
    (8, True): nncf.CompressWeightsMode.INT8_SYM,
    (8, False): nncf.CompressWeightsMode.INT8_ASYM,
    (4, True): nncf.CompressWeightsMode.INT4_SYM,
    (4, False): nncf.CompressWeightsMode.INT4_ASYM,
}
INT8 = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What scales are learned from, and how."""

    rows: CalibrationRows
    awq: bool
    scale_estimation: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Which weights of a graph are stored how.

    Attributes:
        kinds: operators whose weights are stored.
        float_layers: names of nodes whose weights stay in float; one that another layer shares stays too.
    """

    storage: Storage
    kinds: tuple[str, ...]
    float_layers: tuple[str, ...]

    def of(self, graph: onnx.ModelProto) -> list[Weight]:
        """Return the weights of the graph that are to be stored and are not yet."""
        return [
            weight
            for weight in weights.weights_of(graph)
            if weight.kind in self.kinds
            and not set(weight.layers) & set(self.float_layers)
            and self.storage.pays(weight)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What came of it.

    Attributes:
        weights: what was stored, as it was before.
        notes: sentences for the report.
    """

    graph: onnx.ModelProto
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


def compress(
    graph: onnx.ModelProto, compression: Compression, *, scratch: Path, learning: Learning | None = None
) -> Compressed:
    """Store weights as integers, each turned back by a DequantizeLinear in front of the layer.

    NNCF stores the matrices that layers of the outer graph take directly: its ONNX side writes groups along the first
    axis whatever the layer sums along, and knows neither convolutions, nor recurrent layers, nor inner graphs.

    Raises:
        ToolchainFailed: nothing to store, a group size that does not divide, weights that are not finite, or NNCF
            cannot learn on this graph.
    """
    graph = _with_int4(graph, compression.storage)
    only_inputs(graph)
    estimates = learning is not None and learning.scale_estimation
    # NNCF does not find a weight behind a Transpose; where it has nothing to learn, nothing is lost without it
    shared = not estimates and share_transposed(graph.graph)
    found = compression.of(graph)
    _check(found, compression.storage)
    kinds = tuple(dict.fromkeys(weight.kind for weight in found))
    notes = _scaled(graph, found, compression, learning, scratch)
    graph, more = (graph, ()) if shared else _by_nncf(graph, compression, learning, scratch)
    for weight in compression.of(graph):
        store(weight, compression.storage)
    return Compressed(graph=graph, kinds=kinds, notes=(*notes, *more))


def _with_int4(graph: onnx.ModelProto, storage: Storage) -> onnx.ModelProto:
    if storage.bits == INT8:
        return graph
    try:
        if graphs.opset(graph) < _OPSET_OF_INT4:
            graph = version_converter.convert_version(graph, _OPSET_OF_INT4)
    except graphs.CONVERT_ERRORS as error:
        raise ToolchainFailed(
            f"4-bit weights need opset {_OPSET_OF_INT4}, and the graph cannot be raised to it ({said(error)}): "
            "export the model with a newer opset, or take 8 bits."
        ) from error
    graph.ir_version = max(graph.ir_version, _IR_OF_INT4)
    return graph


def _check(found: list[Weight], storage: Storage) -> None:
    if not found:
        raise ToolchainFailed(
            "The graph has no weights that would get smaller in few bits: name fewer float_layers, or keep the model."
        )
    for weight in found:
        if not np.isfinite(numpy_helper.to_array(weight.tensor)).all():
            raise ToolchainFailed(
                f"Layer {weight.layers[0]!r} has weights that are not finite numbers: name it in float_layers."
            )
        if storage.group_size is not None and weight.input_axis is not None:
            _check_divides(weight, weight.shape[weight.input_axis], storage.group_size)


def _check_divides(weight: Weight, length: int, group_size: int) -> None:
    if length % group_size == 0:
        return
    fitting = [size for size in range(_LEAST_GROUP, min(length, _LARGEST_GROUP) + 1) if length % size == 0]
    instead = f"take one of {', '.join(map(str, fitting[:12]))}" if fitting else "take null"
    raise ToolchainFailed(
        f"group_size {group_size} does not divide layer {weight.layers[0]!r}, whose input axis has {length} weights: "
        f"{instead}, or name the layer in float_layers."
    )


def _by_nncf(
    graph: onnx.ModelProto, compression: Compression, learning: Learning | None, scratch: Path
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Let NNCF store what it can. Where it learns nothing, rounding without it comes to the same; where it does, it
    must not fail."""
    taken = _for_nncf(graph, compression)
    if not taken:
        return graph, ()
    settle()
    if learning is not None and learning.scale_estimation:
        with nncf_failures():
            return _called(graph, compression.storage, taken, learning, scratch), ()
    try:
        return _called(graph, compression.storage, taken, None, scratch), ()
    except ERRORS as error:
        return graph, (
            f"NNCF does not read this graph ({said(error)}): its weights were rounded to nearest without it.",
        )


def _scaled(
    graph: onnx.ModelProto, found: list[Weight], compression: Compression, learning: Learning | None, scratch: Path
) -> tuple[str, ...]:
    if learning is None or not learning.awq:
        return ()
    settle()
    with nncf_failures():
        scaled = scale_channels(graph, found, compression.storage, learning.rows, scratch=scratch)
    return () if scaled else ("awq changed nothing: no matrix product has weights of its own that it would help.",)


def _for_nncf(graph: onnx.ModelProto, compression: Compression) -> set[str]:
    """Return the names of the layers whose weights NNCF can store."""
    inner = {
        name
        for each in graphs.graphs_of(graph.graph)
        if each is not graph.graph
        for node in each.node
        for name in node.input
    }
    names: set[str] = set()
    for weight in compression.of(graph):
        plain = weight.graph is graph.graph and weight.direct and len(weight.shape) == _MATRIX_RANK
        grouped = compression.storage.group_size is not None
        known = weight.kind == "MatMul" and weight.input_axis == 0 if grouped else weight.kind in _NNCF_KINDS
        if plain and known and weight.tensor.name not in inner:
            names.update(weight.layers)
    return names


_NNCF_KINDS = (*weights.MATRIX_PRODUCTS, *weights.LOOKUPS)


def _called(
    graph: onnx.ModelProto, storage: Storage, taken: Iterable[str], learning: Learning | None, scratch: Path
) -> onnx.ModelProto:
    left = [node.name for node in graph.graph.node if node.op_type in weights.KINDS and node.name not in taken]
    options = {} if storage.bits == INT8 else {"group_size": storage.group_size or -1, "all_layers": True, "ratio": 1.0}
    if learning is not None:
        options |= {
            "dataset": nncf.Dataset(learning.rows),
            "subset_size": len(learning.rows),
            "scale_estimation": learning.scale_estimation,
        }
    with weights_aside(graph, scratch) as light:
        folder = get_metadata(light, MetadataKey.EXTERNAL_DATA_DIR)
        remove_metadata(light, MetadataKey.EXTERNAL_DATA_DIR)
        made: onnx.ModelProto = nncf.compress_weights(
            light,
            mode=_MODES[storage.bits, storage.symmetric],
            ignored_scope=nncf.IgnoredScope(names=left) if left else None,
            advanced_parameters=AdvancedCompressionParameters(
                backend_params={BackendParameters.EXTERNAL_DATA_DIR: folder}
            ),
            **options,
        )
    return made
