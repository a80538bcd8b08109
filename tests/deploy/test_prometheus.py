"""Rules, alerts and the dashboard: as files, as promtool sees them, and against a server that Prometheus scrapes."""
import json
import math
import re
import time

import pytest
import yaml
from conftest import DEPLOY, ROOT, run
from test_chart import render

RULE_FILES = ["recording.yml", "alerts.yml"]
RULES = [rule for name in RULE_FILES
         for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana/expertd.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OWN_METRIC = re.compile(r"\b(?:expertd|process)_[a-z_]+\b")


def metrics_of(expression):
    """The metrics that an expression names outside of label matchers, without recorded series."""
    bare = re.sub(r"\{[^}]*\}|(?:by|on) \([^)]*\)", "", expression)
    return {name for name in OWN_METRIC.findall(re.sub(r"\b[a-z_]+:\S+", "", bare))}


def as_query(expression):
    """What Grafana sends for an expression of the dashboard."""
    return expression.replace("$__rate_interval", "2m").replace("$job", "expertd").replace("$instance", ".*")


def test_promtool_accepts_configuration_rules_and_unit_tests():
    for command in (["check", "config", DEPLOY / "prometheus/prometheus.yml"],
                    ["test", "rules", ROOT / "tests/deploy/rules_test.yml"]):
        done, text = run("promtool", *command)
        assert done.returncode == 0, text


def test_every_alert_is_unit_tested_and_has_its_section_in_the_runbook():
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    tests = yaml.safe_load((ROOT / "tests/deploy/rules_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    assert fired == alerts
    sections = set(re.findall(r"^## (Expertd\w+)$", (DEPLOY / "prometheus/RUNBOOK.md").read_text(), re.M))
    assert sections == alerts
    for rule in RULES:
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"RUNBOOK.md#{rule['alert'].lower()}"


def test_panels_do_not_overlap():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_of_the_dashboard_has_an_answer(panel, prometheus):
    assert panel["targets"]
    for target in panel["targets"]:
        result = prometheus.query(as_query(target["expr"]))
        assert result, target["expr"]
        for series in result:
            assert math.isfinite(float(series["value"][1])), (target["expr"], series)
            for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                assert label in series["metric"], (target["legendFormat"], series)


def test_the_dashboards_variables_and_annotations_have_answers(prometheus):
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
            values = {found["metric"].get(label) for found in prometheus.query(as_query(series))}
            assert values and None not in values, variable
    for annotation in DASHBOARD["annotations"]["list"]:
        assert prometheus.query(as_query(annotation["expr"])) == []  # nothing has restarted


def test_every_rule_evaluates_and_every_recorded_series_exists(prometheus):
    groups = prometheus.api("rules")["groups"]
    for group in groups:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
    for rule in RULES:
        if "record" in rule:
            assert prometheus.query(rule["record"]), rule


def test_the_autoscalers_query_has_an_answer(prometheus):
    scaled = render({"pools": {"cpu": {"autoscaling": {"type": "keda"}}}})[("ScaledObject", "moe-expertd-cpu")]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    here = re.sub(r',namespace="[^"]*",pod=~"[^"]*"', "", query)  # labels that only Kubernetes gives
    assert here != query
    answer = prometheus.query(here)
    assert len(answer) == 1 and 0 <= float(answer[0]["value"][1]) < 60


def test_rules_name_only_metrics_that_the_server_has(prometheus, secured_metrics):
    """Series of certificates and tokens exist only where there are some."""
    known = set(prometheus.api("label/__name__/values"))
    known |= set(re.findall(r"^(expertd_\w+)\{?", secured_metrics, re.M))
    for rule in RULES:
        assert metrics_of(rule["expr"]) <= known, rule
    wanted = {"expertd_requests_total"}
    assert metrics_of('sum by (job, expertd_x) (rate(expertd_requests_total{job="expertd_y"}[5m])) > a:expertd_b:c') == wanted


def test_a_certificates_expiry_and_a_failed_reload_are_told_as_the_alerts_expect(secured_metrics):
    (expiry,) = re.findall(r"^expertd_tls_certificate_expiry_timestamp_seconds (\S+)$", secured_metrics, re.M)
    assert 9 * 86400 < float(expiry) - time.time() <= 10 * 86400
    assert re.search(r'^expertd_credential_reloads_total\{(?=.*what="tokens")(?=.*result="failed").*\} [1-9]', secured_metrics, re.M)
