"""Prometheus' configuration, alerts and the dashboard: checked by the real promtool, and against docs/metrics.md."""

import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from app.telemetry.instruments import Instruments
from app.telemetry.meters import Outcome, Reason
from app.telemetry.readings import Readings, ReadingsCollector
from tests.contract.dashboard import PanelQuery, panel_queries, panels
from tests.needs import installed

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "octet.json"


@pytest.fixture(scope="module")
def promtool() -> str:
    return installed("promtool", package="prometheus")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[PanelQuery]:
    return panel_queries(DASHBOARD, model=".*", interval="1m")


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return what docs/metrics.md says of every metric: its kind and its labels."""
    row = re.compile(r"^\| `(octet_\w+)` \| (\w+) \| (?:`([\w, ]+)`|-) \| [^|]+ \| [^|]+ \|$", re.MULTILINE)
    found = row.findall((ROOT / "docs" / "metrics.md").read_text())
    return {name: (kind, tuple(labels.split(", ")) if labels else ()) for name, kind, labels in found}


def documented_metrics() -> set[str]:
    return set(documented())


def exposed() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the same of every instrument and every reading."""
    counted = {
        one.name + ("_total" if one.kind == "counter" else ""): (str(one.kind), one.labels)
        for one in Instruments(version="1").descriptions
    }
    read = {family.name: (family.type, tuple(family._labelnames)) for family in ReadingsCollector(Readings()).collect()}
    return counted | read


def metrics_of(expr: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\boctet_\w+", expr)}


def test_prometheus_takes_the_configuration_and_the_rules(promtool: str) -> None:
    run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


def test_the_alerts_fire_when_they_should_and_not_before(promtool: str) -> None:
    run(promtool, "test", "rules", PROMETHEUS / "alerts_test.yml")


def test_every_alert_is_tested() -> None:
    tested = set(re.findall(r'expr: \'ALERTS\{alertname="(\w+)"', (PROMETHEUS / "alerts_test.yml").read_text()))
    assert tested == {alert["alert"] for alert in alerts()}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning"}, alert["alert"]
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}, alert["alert"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_uses_documented_metrics_only(alert: dict[str, Any]) -> None:
    assert metrics_of(alert["expr"]) <= documented_metrics()


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.title)
def test_a_panel_uses_documented_metrics_only(query: PanelQuery) -> None:
    assert metrics_of(query.expr)
    assert metrics_of(query.expr) <= documented_metrics()


def test_every_metric_is_documented_with_its_kind_and_labels_and_what_to_do() -> None:
    assert documented() == exposed()


def test_every_reason_and_outcome_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) - documented_metrics() == set(get_args(Reason))
    assert all(f"`{outcome}`" in text for outcome in get_args(Outcome))


def test_the_dashboard_shows_every_documented_metric() -> None:
    shown = {name for query in queries() for name in metrics_of(query.expr)}
    assert shown == documented_metrics()


def test_prometheus_takes_every_panels_query(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query.expr} for number, query in enumerate(queries())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", file)


def test_no_variable_of_grafanas_is_left_in_a_query() -> None:
    assert [query for query in queries() if "$" in query.expr] == []


@pytest.mark.parametrize("panel", panels(DASHBOARD), ids=lambda panel: panel["title"])
def test_a_panel_has_all_that_a_reader_needs(panel: dict[str, Any]) -> None:
    shown = panel["fieldConfig"]["defaults"]
    assert panel["description"]
    assert shown["unit"]
    assert shown["thresholds"]["steps"][0]["value"] is None
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["legendFormat"] for target in panel["targets"])
    assert panel["type"] != "timeseries" or panel["options"]["legend"]["showLegend"]


def test_panels_and_queries_have_ids_of_their_own() -> None:
    everything = panels(DASHBOARD)
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    for panel in everything:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_no_panel_covers_another_or_leaves_the_grid() -> None:
    cells: list[set[tuple[int, int]]] = []
    for panel in panels(DASHBOARD):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells.append({(at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])})
    assert not any(one & other for one, other in combinations(cells, 2))


def test_every_row_of_panels_is_full_and_none_is_taller_than_its_neighbours() -> None:
    lines: dict[int, list[dict[str, int]]] = {}
    for panel in panels(DASHBOARD):
        lines.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    assert all(sum(at["w"] for at in line) == 24 for line in lines.values())
    assert all(len({at["h"] for at in line}) == 1 for line in lines.values())


def test_a_panel_of_seconds_bytes_or_rows_says_so() -> None:
    units = {panel["title"]: panel["fieldConfig"]["defaults"]["unit"] for panel in panels(DASHBOARD)}
    for query in queries():
        if query.expr.startswith("histogram_quantile") and "_seconds_" in query.expr:
            assert units[query.title] == "s", query.title
        if "_bytes{" in query.expr and "/" not in query.expr:
            assert units[query.title] == "bytes", query.title


def test_the_dashboard_begins_with_the_provisioned_data_source() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert f'"value": "{provisioned["datasources"][0]["uid"]}"' in DASHBOARD.read_text()
