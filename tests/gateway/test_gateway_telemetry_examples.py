"""The dashboard and the alert rules: well-formed, and of metrics and labels that exist as docs/observability.md has them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ostiary.core.families import Family
from ostiary.core.metrics import Registry
from ostiary.gateway.metrics import GatewayMetrics
from ostiary.link.health_metrics import HealthMetrics
from ostiary.link.journal_shipper import ShipperMetrics
from ostiary.link.snapshots import SnapshotMetrics

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(ostiary_[a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\| .+ \|$", re.MULTILINE)
SELECTOR = re.compile(r"\b((?:ostiary_[a-z_]+)|up)\b(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")
ADDED = {"le", "instance", "job"}
"""Labels of every series: a histogram's buckets', and Prometheus's own."""


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels by the name of the family."""
    rows = ROW.findall((ROOT / "docs/observability.md").read_text())
    found = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(found) == len(rows)
    return found


def series(name: str) -> str:
    """The family of a series' name."""
    known = documented()
    return name if name in known else re.sub("_(bucket|sum|count)$", "", name)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "deploy/grafana/ostiary.json").read_text())
    return found


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    groups = yaml.safe_load((ROOT / "deploy/prometheus/ostiary.rules.yml").read_text())["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    text = (ROOT / "deploy/prometheus/ostiary.rules.yml").read_text()
    alerts = re.findall(r"expr: (?:\|\n)?((?:.+\n)(?: {10,}.+\n)*)", text)
    assert len(alerts) == text.count("- alert:")
    return shown + alerts


def test_the_table_has_every_metric_of_a_worker_and_of_the_link_with_its_labels() -> None:
    registry = Registry()
    ShipperMetrics(registry)
    SnapshotMetrics(registry)
    families: list[Family] = [*GatewayMetrics().report(), *registry.report(), *HealthMetrics().families([], [])]
    table = documented()
    for family in families:
        name = family.name + ("_total" if family.kind == "counter" else "")
        assert table[name] == (family.kind, set(family.label_names)), name


@pytest.mark.parametrize("query", queries())
def test_every_query_is_of_metrics_and_labels_that_exist(query: str) -> None:
    table = documented()
    labels: set[str] = set()
    for name, selector in SELECTOR.findall(query):
        known = ADDED if name == "up" else table[series(name)][1] | ADDED
        labels |= known
        asked = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector))
        assert asked <= known, f"{name} has no {asked - known}"
    assert labels, "no metric"
    for group in GROUPING.findall(query):
        assert {label.strip() for label in group.split(",")} <= labels


@pytest.mark.parametrize("query", queries())
def test_every_query_is_promql(query: str) -> None:
    parser = pytest.importorskip("promql_parser")
    parser.parse(query.replace("$__rate_interval", "5m"))


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) > 10
    for rule in found:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        groups = [{label.strip() for label in group.split(",")} for group in GROUPING.findall(rule["expr"])]
        kept = set.intersection(*groups) if groups else ADDED
        assert told <= kept, f"{rule['alert']} tells of {told - kept}, which its query leaves out"


def test_the_example_scrape_loads_the_rules() -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (rule_file,) = found["rule_files"]
    assert (ROOT / "deploy/prometheus" / rule_file).is_file()
    (scrape,) = found["scrape_configs"]
    assert scrape["job_name"] == "ostiary"


def test_the_dashboard_has_no_panel_twice_and_none_over_another() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert {one["name"] for one in dashboard()["templating"]["list"]} == {"datasource", "provider", "model"}
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


def test_every_metric_of_the_page_is_on_the_dashboard_or_not_worth_a_panel() -> None:
    shown = {series(name) for query in queries() for name, _ in SELECTOR.findall(query)}
    assert set(documented()) - shown == {
        "ostiary_link_journals",
        "ostiary_link_journals_adopted_total",
        "ostiary_link_torn_tails_total",
    }
