"""A QDQ graph as a torch module that can be trained, and back again: the artifact is what is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from app.domain.errors import ToolchainFailed
from workers.graphs import STANDARD_DOMAINS
from workers.toolchains.octet.rounding.levels import Levels, levels_of, write_levels
from workers.toolchains.octet.rounding.operators import OPERATORS, NotTaken
from workers.toolchains.octet.rounding.wiring import Wiring, used_by
from workers.training.batch_norms import Norm, Statistics
from workers.training.latents import stored_weights
from workers.training.quantizers import ActivationQuantizer, Grid, Scales, WeightQuantizer

TRAINABLE: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "Gather": (0,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
}
"""Which inputs of which operators are parameters where they are stored as float32 in more than one number."""

_IN_TORCH = frozenset(
    getattr(onnx.TensorProto, kind)
    for kind in ("FLOAT", "DOUBLE", "FLOAT16", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16")
)
"""The types of stored tensors that torch takes from NumPy; another one's reader is named when it is reached."""

_BIAS = 2
_NORM = "\0norm"
"""Behind a layer's name: no tensor is called so."""

Run = Callable[[dict[str, Tensor]], None]
_ERRORS = (NotTaken, RuntimeError, TypeError, LookupError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One node: what it runs, and which tensors nobody needs after it."""

    node: onnx.NodeProto
    run: Run
    frees: tuple[str, ...]


class Program(nn.Module):
    """A graph in torch. Its parameters are the stored floats, and the floats behind stored integers.

    Args:
        model: the graph; quantized or float.
        latents: by the name of a stored integer weight, the float weight to begin with; others begin at what their
            integers stand for.
        bounds: by the same names, the bounds of their grids; others have those of their type.
        norms: by the name of a convolution, the folded batch normalization whose statistics move on.
        keep: tensors to return beside the outputs.

    Attributes:
        returns: which of these tensors `forward` gives, all at first.

    Raises:
        ToolchainFailed: an operator that cannot be trained, or nothing that could be.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        latents: Mapping[str, NDArray[np.float32]],
        bounds: Mapping[str, tuple[int, int]],
        scales: Scales,
        norms: Mapping[str, Norm] | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.wiring = Wiring(model.graph)
        self.outputs = [value.name for value in model.graph.output]
        self.returns: tuple[str, ...] = tuple(dict.fromkeys([*self.outputs, *keep]))
        self._frees_none = frozenset(self.returns)
        self._levels = {each.quantize.output[0]: each for each in levels_of(self.wiring).values()}
        self._stored = stored_weights(self.wiring)
        self.weights = nn.ModuleDict()
        self.activations = nn.ModuleDict()
        self.floats = nn.ParameterDict()
        self._keys: dict[str, str] = {}
        self._add_quantizers(latents, bounds, scales)
        self._add_floats()
        self.norms = nn.ModuleDict()
        self._add_norms(norms or {})
        self._constants = self._fold()
        self._steps = self._plan()
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ToolchainFailed("The model has no parameter that could be trained: its graph stores no weights.")

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: every input of the graph by name.

        Returns:
            The outputs, and the tensors to keep, by name.

        Raises:
            ToolchainFailed: a node that torch cannot run.
        """
        values = {**self._constants, **inputs}
        for step in self._steps:
            _carry_out(step.node, step.run, values)
            for name in step.frees:
                del values[name]
        return {name: values[name] for name in self.returns}

    def only_cut(self, outputs: frozenset[str]) -> None:
        """Let these quantizers, by their outputs, cut what is out of range and not round, and all others round."""
        for output in self._levels:
            quantizer = self._activation(output)
            if quantizer is not None:
                quantizer.rounds = output not in outputs

    @property
    def observes(self) -> bool:
        """Whether the scale of any activation follows what it sees, until it is frozen."""
        found = (each for each in self.activations.children() if isinstance(each, ActivationQuantizer))
        return any(quantizer.observes and quantizer.rounds for quantizer in found)

    def freeze(self, *, observers: bool, batch_norm: bool) -> None:
        """Let observed scales, and the statistics of batch normalizations, stand still or move on."""
        for statistics in self.norms.children():
            if isinstance(statistics, Statistics):
                statistics.frozen = batch_norm
        for quantizer in self.activations.children():
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.frozen = observers

    def write(self) -> onnx.ModelProto:
        """Return the graph with what was trained in it: a copy."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        wiring = Wiring(made.graph)
        for output, levels in ((each.quantize.output[0], each) for each in levels_of(wiring).values()):
            quantizer = self._activation(output)
            if quantizer is not None:
                scale = quantizer.scale.detach().numpy().reshape(np.shape(levels.scale))
                zero_point = quantizer.zero_point.numpy().reshape(np.shape(levels.zero_point))
                write_levels(wiring, levels, scale=scale, zero_point=zero_point)
        for name, stored in self._stored.items():
            weight = self._weight(name)
            _replace(wiring.initializers[name], weight.integers().numpy())
            _replace(wiring.initializers[stored.scale], weight.scale.detach().numpy())
        for name, key in self._keys.items():
            if key in self.floats:
                _replace(wiring.initializers[name], self.floats[key].detach().numpy())
        self._fold_norms(wiring)
        return made

    def _weight(self, name: str) -> WeightQuantizer:
        module = self.weights[self._keys[name]]
        assert isinstance(module, WeightQuantizer)  # noqa: S101 - for the type checker
        return module

    def _activation(self, output: str) -> ActivationQuantizer | None:
        key = self._keys.get(output)
        module = self.activations[key] if key is not None and key in self.activations else None
        return module if isinstance(module, ActivationQuantizer) else None

    def _add_quantizers(
        self, latents: Mapping[str, NDArray[np.float32]], bounds: Mapping[str, tuple[int, int]], scales: Scales
    ) -> None:
        for name, stored in self._stored.items():
            integers = numpy_helper.to_array(self.wiring.initializers[name]).astype(np.int32)
            grid = stored.grid(self.wiring, *bounds.get(name, stored.bounds))
            value = stored.value(self.wiring, integers)
            latent = latents.get(name, value)
            key = self._key(name, f"w{len(self.weights)}")
            learned: Scales = "learned" if scales == "learned" else "fixed"
            self.weights[key] = WeightQuantizer(torch.from_numpy(np.array(latent, np.float32)), grid, scales=learned)
        for output, levels in self._levels.items():
            self.activations[self._key(output, f"a{len(self.activations)}")] = ActivationQuantizer(
                _grid(levels), scales=scales
            )

    def _add_floats(self) -> None:
        for node in self.wiring.nodes:
            for place in TRAINABLE.get(node.op_type, ()):
                name = node.input[place] if place < len(node.input) else ""
                tensor = self.wiring.initializers.get(name)
                if tensor is None or name in self._keys or tensor.data_type != onnx.TensorProto.FLOAT:
                    continue
                value: NDArray[np.float32] = numpy_helper.to_array(tensor)
                if value.size > 1:
                    key = self._key(name, f"f{len(self.floats)}")
                    self.floats[key] = nn.Parameter(torch.from_numpy(value.copy()))

    def _add_norms(self, norms: Mapping[str, Norm]) -> None:
        """Let statistics move where they can be folded into the layer for good: with a scale for every channel."""
        for node in self.wiring.nodes:
            norm = norms.get(node.name)
            place = self.wiring.makers.get(node.input[1]) if norm is not None and node.op_type == "Conv" else None
            stored = self._stored.get(self.wiring.nodes[place].input[0]) if place is not None else None
            bias = self._keys.get(node.input[2], "") if len(node.input) > _BIAS else ""
            if norm is not None and stored is not None and stored.axis == 0 and bias in self.floats:
                self.norms[self._key(node.name + _NORM, f"n{len(self.norms)}")] = Statistics(norm)

    def _fold_norms(self, wiring: Wiring) -> None:
        """Put what the statistics do into the scales and biases of a copy of the graph."""
        for node in wiring.nodes:
            key = self._keys.get(node.name + _NORM)
            if key is None:
                continue
            statistics, maker = self.norms[key], wiring.maker(node.input[1])
            assert isinstance(statistics, Statistics) and maker is not None  # noqa: S101, PT018 - for the type checker
            factor, summand = statistics.factor.numpy(), statistics.summand.numpy()
            scale, bias = wiring.initializers[maker.input[1]], wiring.initializers[node.input[2]]
            _replace(scale, numpy_helper.to_array(scale) * factor)
            _replace(bias, numpy_helper.to_array(bias) * factor + summand)

    def _key(self, name: str, key: str) -> str:
        self._keys[name] = key
        return key

    def _fold(self) -> dict[str, Tensor]:
        """Work out what follows from the stored numbers that are not trained."""
        known: dict[str, Tensor] = {
            name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for name, tensor in self.wiring.initializers.items()
            if name not in self._keys and tensor.data_type in _IN_TORCH
        }
        self._folded: set[str] = set()
        for node in self.wiring.nodes:
            if node.name not in self._folded and used_by(node) and used_by(node) <= set(known):
                _carry_out(node, _by_table(node), known)
                self._folded.update(name for name in node.output if name)
        return known

    def _plan(self) -> tuple[_Step, ...]:
        nodes = [node for node in self.wiring.nodes if not set(node.output) <= self._folded]
        runs = [(node, self._run_of(node)) for node in nodes]
        last = {name: place for place, (node, _) in enumerate(runs) for name in used_by(node)}
        kept = {*self._frees_none, *self._constants}
        given = {value.name for value in self.model.graph.input}
        made = {name for node in nodes for name in node.output if name} | given
        frees: dict[int, list[str]] = {}
        for name, place in last.items():
            if name in made and name not in kept:
                frees.setdefault(place, []).append(name)
        return tuple(_Step(node=node, run=run, frees=tuple(frees.get(at, ()))) for at, (node, run) in enumerate(runs))

    def _run_of(self, node: onnx.NodeProto) -> Run:
        output = node.output[0]
        if node.op_type == "QuantizeLinear" and (quantizer := self._activation(output)) is not None:
            return _pass_on(quantizer, node.input[0], output)
        if any(each.clip is not None and each.clip.output[0] == output for each in self._levels.values()):
            return _pass_on(nn.Identity(), node.input[0], output)  # the quantizer's own bounds do it
        if node.op_type == "DequantizeLinear" and node.input[0] in self._levels:
            return _pass_on(nn.Identity(), node.input[0], output)
        if node.op_type == "DequantizeLinear" and node.input[0] in self._stored:
            return _make(self._weight(node.input[0]), output)
        own = {name: self._keys.get(name, "") for name in used_by(node)}
        run = _by_table(node, {name: self.floats[key] for name, key in own.items() if key in self.floats})
        statistics = self._keys.get(node.name + _NORM)
        return run if statistics is None else _followed(run, self.norms[statistics], output)


def _by_table(node: onnx.NodeProto, parameters: Mapping[str, Tensor] | None = None) -> Run:
    if node.domain not in STANDARD_DOMAINS or node.op_type not in OPERATORS:
        raise ToolchainFailed(_cannot(node))
    operator, own = OPERATORS[node.op_type], parameters or {}
    takes, gives = list(node.input), list(node.output)

    def run(values: dict[str, Tensor]) -> None:
        made = operator(node, [(own[name] if name in own else values[name]) if name else None for name in takes])
        values.update((name, tensor) for name, tensor in zip(gives, made, strict=False) if name)

    return run


def _carry_out(node: onnx.NodeProto, run: Run, values: dict[str, Tensor]) -> None:
    try:
        run(values)
    except _ERRORS as error:
        raise ToolchainFailed(_cannot(node)) from error


def _followed(run: Run, module: nn.Module, name: str) -> Run:
    def both(values: dict[str, Tensor]) -> None:
        run(values)
        values[name] = module(values[name])

    return both


def _pass_on(module: nn.Module, source: str, target: str) -> Run:
    def run(values: dict[str, Tensor]) -> None:
        values[target] = module(values[source])

    return run


def _make(module: nn.Module, target: str) -> Run:
    def run(values: dict[str, Tensor]) -> None:
        values[target] = module()

    return run


def _cannot(node: onnx.NodeProto) -> str:
    return (
        f"Torch cannot train the graph's {node.op_type[:80]} ({node.name[:80]!r}): take ptq_static, with learned "
        "rounding where weights have fewer than 8 bits."
    )


def _grid(levels: Levels) -> Grid:
    scale = torch.from_numpy(np.array(levels.scale, np.float32))
    zero_point = torch.from_numpy(np.broadcast_to(np.asarray(levels.zero_point, np.int32), scale.shape).copy())
    axis = levels.axis if scale.numel() > 1 else None
    return Grid(scale=scale, zero_point=zero_point, qmin=levels.qmin, qmax=levels.qmax, axis=axis)


def _replace(tensor: onnx.TensorProto, value: NDArray[np.generic]) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shaped = np.asarray(value.reshape(list(tensor.dims)), kind, order="C")  # and not what makes a scalar a row
    tensor.CopyFrom(numpy_helper.from_array(shaped, tensor.name))
