"""Activation-aware scaling of weights before they are rounded (AWQ). Ours: NNCF's ONNX side finds no place for it
behind GELU or a normalization, and where it finds one it scales all readers of the activation, adjusted or not."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from workers import graphs
from workers.toolchains.graph import add_constant, free_name, replace_constant
from workers.toolchains.nncf.aside import weights_aside
from workers.toolchains.nncf.engine import Engine
from workers.toolchains.nncf.storing import Storage, rounded
from workers.toolchains.nncf.weights import Weight

STEPS = 20
MOST_VECTORS = 1024
_OF_ROW = 16
_RIGHT = 1
_MATRIX_RANK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A matrix product whose weight nothing else takes: activation `source`, channels last, times the weight."""

    node: onnx.NodeProto
    source: str
    weight: Weight


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What flowed into some products.

    Attributes:
        total: float64[channels], the sum of magnitudes over all vectors.
        vectors: some of them, float32[at most `MOST_VECTORS`, channels].
    """

    total: NDArray[np.float64]
    count: int
    vectors: list[NDArray[np.float32]]


def scale_channels(
    proto: onnx.ModelProto,
    weights: Iterable[Weight],
    storage: Storage,
    rows: Iterable[Mapping[str, NDArray[Any]]],
    *,
    scratch: Path,
) -> int:
    """Multiply input channels of weights by s, and divide the activation in front by it.

    Lin et al. 2023, arXiv:2306.00978: s = mean|x|^alpha (equation 5); alpha is 0 to 1 in twentieths, the one with the
    least squared error of the products' outputs after rounding. Products of one activation share s. In float the graph
    computes what it did before.

    Returns how many products were scaled.

    Raises:
        ERRORS: the graph does not run.
    """
    by_source: dict[str, list[_Product]] = {}
    for product in _products(proto, weights):
        by_source.setdefault(product.source, []).append(product)
    if not by_source:
        return 0
    with weights_aside(proto, scratch) as light:
        seen = _seen(light, sorted(by_source), rows)
    return sum(_scaled(proto, by_source[name], seen[name], storage) for name in sorted(seen))


def _products(proto: onnx.ModelProto, weights: Iterable[Weight]) -> Iterator[_Product]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graphs.nodes_of(proto.graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outer = {node.name: node for node in proto.graph.node}
    stored = {tensor.name for tensor in proto.graph.initializer}
    for weight in weights:
        plain = weight.graph is proto.graph and weight.direct and len(weight.shape) == _MATRIX_RANK
        alone = readers.get(weight.tensor.name, [])
        if not plain or len(alone) != 1 or weight.input_axis is None or alone[0].name not in outer:
            continue
        node = alone[0]
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        if list(node.input).index(weight.tensor.name) == _RIGHT and not transposed and node.input[0] not in stored:
            yield _Product(node=node, source=node.input[0], weight=weight)


def _seen(light: onnx.ModelProto, names: list[str], rows: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, _Seen]:
    fed = {value.name for value in light.graph.input}
    del light.graph.output[:]
    light.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in fed)
    session = Engine(light) if len(light.graph.output) else None
    seen: dict[str, _Seen] = {}
    for row in rows:
        flowing = {**row, **(session.infer(row) if session else {})}
        for name in names:
            _take(seen, name, np.asarray(flowing[name], np.float32))
    return seen


def _take(seen: dict[str, _Seen], name: str, tensor: NDArray[np.float32]) -> None:
    vectors = tensor.reshape(-1, tensor.shape[-1])
    into = seen.setdefault(name, _Seen(total=np.zeros(vectors.shape[1]), count=0, vectors=[]))
    into.total += np.abs(vectors).sum(axis=0, dtype=np.float64)
    into.count += len(vectors)
    kept = sum(map(len, into.vectors))
    # a few of every row: tokens of one row are alike
    into.vectors.append(vectors[:: max(len(vectors) // _OF_ROW, 1)][: max(MOST_VECTORS - kept, 0)].copy())


def _scaled(proto: onnx.ModelProto, products: list[_Product], seen: _Seen, storage: Storage) -> int:
    scale = _best(_error_of(products, np.concatenate(seen.vectors), storage), seen.total / max(seen.count, 1))
    if scale is None:
        return 0
    for product in products:
        values = numpy_helper.to_array(product.weight.tensor)
        replace_constant(product.weight.tensor, values * _along(scale, product.weight))
    _divide(proto.graph, products, scale)
    return len(products)


def _best(error: Callable[[NDArray[np.float32]], float], magnitudes: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Return the scale with the least error, None where it is all ones."""
    least, best = error(np.ones(len(magnitudes), np.float32)), None
    floor = max(float(magnitudes.max()) * 1e-4, float(np.finfo(np.float32).tiny))
    for step in range(1, STEPS + 1):
        raw = np.maximum(magnitudes, floor) ** (step / STEPS)
        # centred, so that neither weights nor activations leave float32
        scale = (raw / np.sqrt(raw.max() * raw.min())).astype(np.float32)
        if (found := error(scale)) < least:
            least, best = found, scale
    return best


def _error_of(
    products: list[_Product], vectors: NDArray[np.float32], storage: Storage
) -> Callable[[NDArray[np.float32]], float]:
    def error(scale: NDArray[np.float32]) -> float:
        total = 0.0
        for product in products:
            values = numpy_helper.to_array(product.weight.tensor)
            along = _along(scale, product.weight)
            moved = rounded(values * along, product.weight, storage) / along - values
            total += float(np.square(vectors @ (moved if product.weight.input_axis == 0 else moved.T)).sum())
        return total

    return error


def _along(scale: NDArray[np.float32], weight: Weight) -> NDArray[np.float32]:
    return scale[:, np.newaxis] if weight.input_axis == 0 else scale[np.newaxis, :]


def _divide(graph: onnx.GraphProto, products: list[_Product], scale: NDArray[np.float32]) -> None:
    source = products[0].source
    inverse = add_constant(graph, 1 / scale, like=f"{source}_awq_scale")
    name = free_name(graph, f"{source}_awq")
    for product in products:
        product.node.input[0] = name
    first = min(list(graph.node).index(product.node) for product in products)
    graph.node.insert(first, onnx.helper.make_node("Mul", [source, inverse], [name], name=name))
