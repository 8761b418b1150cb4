"""Charts of single layers: what ran and how long it took, and how much each loses when quantized alone."""

from collections.abc import Sequence

from markupsafe import Markup

from app.domain.evidence import LayerReceipt, LayerRun, LayerSensitivity
from app.web import wording
from app.web.charts.marks import bar, precision_kind
from app.web.svg import Axis, Row, axis_over, element, joined, rows_chart, titled

MOST_LAYERS = 30
_HEIGHT = 30


def layer_chart(layers: Sequence[LayerReceipt]) -> Markup:
    """Draw every layer's time in float32 above its time in the variant; of many, the dearest, and the rest as one."""
    dearest = sorted(layers, key=lambda layer: -_dearest(layer))
    kept = {id(layer) for layer in dearest[:MOST_LAYERS]}
    shown = [layer for layer in layers if id(layer) in kept]  # in the graph's order
    rest = dearest[MOST_LAYERS:]
    axis = axis_over([_dearest(layer) for layer in shown], label="one row, µs", zero=True)
    rows = [_layer_row(layer, axis) for layer in shown]
    if rest:
        rows.append(_rest_row(rest))
    return rows_chart(rows, axis)


def _dearest(layer: LayerReceipt) -> float:
    return max((run.microseconds for run in (layer.float32, layer.variant) if run is not None), default=0.0)


def _layer_row(layer: LayerReceipt, axis: Axis) -> Row:
    marks = [
        _run_bar(run, axis, y=y, title=f"{layer.name} ({layer.kind}), {which}: {_told(run)}")
        for which, run, y in (("float32", layer.float32, 4), ("variant", layer.variant, 16))
        if run is not None
    ]
    fell_back = layer.quantized and layer.variant is not None and precision_kind(layer.variant.precision) == "float32"
    return Row(
        name=layer.name,
        marks=joined(marks),
        value=f"{_time(layer.float32)} → {_time(layer.variant)}",
        kind="layer fell-back" if fell_back else "layer",
        height=_HEIGHT,
    )


def _run_bar(run: LayerRun, axis: Axis, *, y: float, title: str) -> Markup:
    return bar(0.0, run.microseconds, axis, y=y, height=10, kind=precision_kind(run.precision), title=title)


def _told(run: LayerRun) -> str:
    return f"{wording.digits(run.microseconds)} µs in {run.precision}, {run.implementation}"


def _time(run: LayerRun | None) -> str:
    return "-" if run is None else wording.digits(run.microseconds)


def _rest_row(rest: Sequence[LayerReceipt]) -> Row:
    before = sum(layer.float32.microseconds for layer in rest if layer.float32)
    after = sum(layer.variant.microseconds for layer in rest if layer.variant)
    return Row(
        name=f"{len(rest)} more, together",
        marks="",
        value=f"{wording.digits(before)} → {wording.digits(after)}",
        kind="rest",
        height=_HEIGHT,
    )


def sensitivity_chart(layers: Sequence[LayerSensitivity], *, metric: str | None) -> Markup:
    """Draw the SQNR of the outputs with one layer quantized at a time, the most sensitive first."""
    known = sorted((layer for layer in layers if layer.sqnr_db is not None), key=lambda layer: layer.sqnr_db or 0.0)
    shown = known[:MOST_LAYERS]
    axis = axis_over([layer.sqnr_db or 0.0 for layer in shown], label="SQNR of the outputs, dB: left loses more")
    return rows_chart([_sensitivity_row(layer, axis, metric) for layer in shown], axis)


def _sensitivity_row(layer: LayerSensitivity, axis: Axis, metric: str | None) -> Row:
    sqnr = layer.sqnr_db or 0.0
    place = axis.at(sqnr)
    cost = wording.digits(layer.cost_microseconds)
    title = f"{layer.name} ({layer.kind}): {sqnr:.1f} dB; in float it costs {cost} µs more"
    marks = joined(
        [
            element("line", x1="0%", x2="100%", y1=11, y2=11, class_="stem"),
            element("circle", cx=place, cy=11, r=4.5, class_="dot variant"),
        ]
    )
    value = f"{sqnr:.1f} dB"
    if layer.drop is not None and metric is not None:
        value += f", {wording.worse(metric, layer.drop)}"
    return Row(name=layer.name, marks=titled(marks, title), value=value, kind="layer", height=22)
