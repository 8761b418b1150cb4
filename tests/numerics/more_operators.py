"""Cases for the operators that ordinary models use beside layers: comparisons, sequences, detections, recurrence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

Case = tuple[str, str, dict[str, Any], list[NDArray[Any]]]


def values(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _case(op_type: str, *arrays: NDArray[Any], title: str = "", **attributes: Any) -> Case:
    return title, op_type, attributes, list(arrays)


X = values(2, 4, 6, 5)
OTHER, NONE = values(2, 4, 6, 5, seed=1), np.array([], np.float32)
SEQUENCE = values(5, 2, 3)


def _recurrent(op_type: str, gates: int, directions: int, **attributes: Any) -> Case:
    way = "bidirectional" if directions == 2 else "forward"
    weights = [values(directions, gates * 4, 3, seed=1), values(directions, gates * 4, 4, seed=2)]
    weights.append(values(directions, gates * 8, seed=3))
    return _case(op_type, SEQUENCE, *weights, title=way, hidden_size=4, direction=way, **attributes)


MORE: list[Case] = [
    *[_case(name, np.round(X), np.round(OTHER)) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")],
    *[_case(name, X > 0, OTHER > 0) for name in ("And", "Or")],
    _case("Not", X > 0),
    _case("IsNaN", np.array([np.nan, 1.0, np.inf], np.float32)),
    _case("Mod", whole(-7, 7, 5), whole(3, -3, 3)),
    _case("Mod", X, OTHER, title="of floats", fmod=1),
    _case("Sum", X, OTHER, X),
    _case("Einsum", values(2, 3, 4), values(2, 5, 4), equation="bij,bkj->bik"),
    _case("CumSum", X, np.array(1, np.int64)),
    _case("CumSum", X, np.array(-1, np.int64), title="backwards", exclusive=1, reverse=1),
    *[_case(name, X * 3) for name in ("Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Softsign", "Mish", "Selu")],
    _case("Round", np.array([0.5, 1.5, 2.5, -0.5], np.float32), title="halves"),
    _case("Celu", X, alpha=0.5),
    _case("LogSoftmax", X, axis=1),
    *[_case(name, X, whole(-1, 1)) for name in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")],
    _recurrent("LSTM", 4, 1),
    _recurrent("LSTM", 4, 2),
    _recurrent("GRU", 3, 1, linear_before_reset=1),
    _recurrent("GRU", 3, 2, linear_before_reset=1),
    _case("SpaceToDepth", values(2, 3, 4, 6), blocksize=2),
    _case("MaxPool", X, title="ceil", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    _case("Pad", X, whole(0, 1, 2, 3, 0, 2, 3, 1), title="reflected", mode="reflect"),
    _case("Pad", X, whole(0, 1, 2, 3, 0, 5, 1, 0), title="edge", mode="edge"),
    _case("Tile", values(2, 3), whole(2, 2)),
    _case("Range", np.array(2, np.int64), np.array(9, np.int64), np.array(3, np.int64)),
    _case("ConstantOfShape", whole(2, 3), value=numpy_helper.from_array(whole(7))),
    _case("Trilu", X, np.array(1, np.int64)),
    _case("Trilu", X, title="lower", upper=0),
    _case("GatherElements", X, np.array([[[[0, -1]]]], np.int64), axis=3),
    _case("TopK", X, whole(3), axis=1),
    _case("TopK", X, whole(2), title="smallest", largest=0),
    _case("ArgMax", X, axis=2, keepdims=0),
]
