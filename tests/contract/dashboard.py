"""Reads the Grafana dashboard: its panels, and their queries as Prometheus takes them. Not a test itself."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelQuery:
    """One query of one panel, without Grafana's variables."""

    title: str
    expr: str


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Return the panels that show something: rows are left out."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def panel_queries(dashboard: Path, *, model: str, interval: str) -> list[PanelQuery]:
    """Return every query of every panel.

    Args:
        model: what Grafana would put for the variable `$model`, a regular expression: a name, or `.*`.
        interval: what it would put for its time intervals, such as `1m`; at least two scrapes long.
    """
    variables = {"$__rate_interval": interval, "$__range": interval, "$model": model}
    return [
        PanelQuery(title=panel["title"], expr=_substituted(target["expr"], variables))
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def _substituted(expr: str, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        expr = expr.replace(name, value)
    return expr
