"""The charts of a report, each a function from records to a drawing. Colours are classes; the page's style has them."""

from app.web.charts.accuracy import class_chart, drop_chart, interval_chart
from app.web.charts.costs import latency_chart, memory_chart, size_chart
from app.web.charts.curves import agreement_chart, loss_chart, rate_chart
from app.web.charts.front import front_chart
from app.web.charts.histograms import histogram_chart
from app.web.charts.layers import layer_chart, sensitivity_chart

__all__ = [
    "agreement_chart",
    "class_chart",
    "drop_chart",
    "front_chart",
    "histogram_chart",
    "interval_chart",
    "latency_chart",
    "layer_chart",
    "loss_chart",
    "memory_chart",
    "rate_chart",
    "sensitivity_chart",
    "size_chart",
]
