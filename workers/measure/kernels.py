"""Which kernels ran: the engine's own runtime graph, with the time of every layer. Proof, not a guess from the file."""

from pathlib import Path

import openvino as ov

from app.domain.reports import Kernels, Layer
from app.domain.tensors import Signature
from workers.data.batches import Tensors
from workers.measure.engine import Session
from workers.stages import Form

RUNS = 30
COMPUTE = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "FullyConnected",
        "GatherMatMul",
        "MatMul",
        "MHA",
        "RNNCell",
        "RNNSeq",
        "ScaledDotProductAttention",
    }
)
"""Layer types that multiply and add: only these are counted as int8 or float. The rest moves or reshapes data."""

_INT8 = ("u8", "i8")
_FLOAT = ("f32", "bf16", "f16")
_NOT_EXECUTED = "not_executed"
_NOT_LAYERS = ("Const", "Input", "Output")


def kernels(form: Form, signature: Signature, inputs: Tensors, *, scratch: Path, core: ov.Core) -> Kernels:
    """Compile the form once more, with counters, run it and read what the engine executed.

    A layer counts as int8 when its type is in `COMPUTE` and the engine reports u8 or i8 as the precision it ran in.
    `int8_share` is these layers' share of the time of *all* executed layers, conversions between layouts included.
    """
    session = Session.open(form, signature, scratch=scratch, core=core, profiled=True)
    for _ in range(RUNS):
        session.infer(inputs)
    return summed(_layers(session.compiled.get_runtime_model()))


def summed(layers: tuple[Layer, ...]) -> Kernels:
    """Count the layers by what they computed in."""
    int8 = [layer for layer in layers if layer.kind in COMPUTE and layer.precision in _INT8]
    floats = [layer for layer in layers if layer.kind in COMPUTE and layer.precision in _FLOAT]
    total = sum(layer.microseconds for layer in layers)
    return Kernels(
        layers=layers,
        int8_layers=len(int8),
        float_layers=len(floats),
        int8_share=sum(layer.microseconds for layer in int8) / total if total else 0.0,
    )


def _layers(graph: ov.Model) -> tuple[Layer, ...]:
    return tuple(layer for node in graph.get_ordered_ops() if (layer := _layer(node)) is not None)


def _layer(node: ov.Node) -> Layer | None:
    facts = {name: value.astype(str) for name, value in node.get_rt_info().items()}
    kind, time = facts.get("layerType", ""), facts.get("execTimeMcs", _NOT_EXECUTED)
    if kind in _NOT_LAYERS or (time == _NOT_EXECUTED and kind not in COMPUTE):
        return None
    return Layer(
        name=node.get_friendly_name(),
        kind=kind,
        precision=facts.get("runtimePrecision", ""),
        implementation=facts.get("primitiveType", ""),
        microseconds=0.0 if time == _NOT_EXECUTED else float(time),
    )
