"""Prometheus rules and Grafana dashboard: syntax, names, and the conditions of the alerts."""

import subprocess

import promql_parser
import pytest
import yaml

from support.deployment import DASHBOARD, ROOT, RULES, dashboard, queries, rules
from support.monitors import program
from support.promql import selectors

RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yml"
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_rule_is_promql(rule):
    promql_parser.parse(rule["expr"])


@pytest.mark.parametrize(("title", "expression"), queries())
def test_panel_is_promql(title, expression):
    promql_parser.parse(expression)


def test_every_metric_that_panels_and_rules_read_is_recorded():
    expressions = [rule["expr"] for rule in rules()] + [expression for _, expression in queries()]
    read = {name for expression in expressions for name, _ in selectors(expression)}
    own = {name for name in read if ":" in name}
    assert own <= RECORDED
    assert all(
        name.startswith(("nv_", "rerank_", "late_interaction_")) or name in {"up", "ALERTS"} for name in read - own
    )


def test_every_alert_says_what_to_do():
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"warning", "critical"}
            assert {"summary", "action"} == set(rule["annotations"])


def test_every_alert_is_tested_to_fire():
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    fired = {a["alertname"] for test in tests for a in test.get("alert_rule_test", ()) if a.get("exp_alerts")}
    assert fired == ALERTS


def test_promtool_agrees():
    promtool = program("promtool")
    subprocess.run([promtool, "check", "rules", RULES], check=True)
    subprocess.run([promtool, "check", "config", "--syntax-only", RULES.with_name("prometheus.yml")], check=True)
    subprocess.run([promtool, "test", "rules", RULES_TEST], check=True)


def test_panels_lie_beside_each_other():
    positions = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [
        (column, row)
        for position in positions
        for column in range(position["x"], position["x"] + position["w"])
        for row in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(positions)


def test_grafana_finds_dashboard_and_source():
    provisioning = {
        name: yaml.safe_load((DASHBOARD.with_name(f"{name}.yml")).read_text()) for name in ("datasource", "dashboards")
    }
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounted = [volume.split(":")[1] for volume in grafana["volumes"]]
    folder = provisioning["dashboards"]["providers"][0]["options"]["path"]
    assert f"{folder}/{DASHBOARD.name}" in mounted
    source = provisioning["datasource"]["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    used = {panel["datasource"]["uid"] for panel in dashboard()["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
