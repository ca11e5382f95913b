"""Prometheus evaluates all expressions of dashboard and alerts over a scrape whose counters go on, and fires alerts."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import save_model_dir
from tests.unit.cluster.prometheus import Server, promtool, server_of
from tests.unit.cluster.test_monitoring import MONITORING, alert_expressions, dashboard, dashboard_expressions, scrape

GROWING = ("_total", "_bucket", "_count", "_sum")
INTERVAL_S, NUM_SCRAPES, GROWTH = 15, 41, 3
FIRST_S = 1_760_000_000
LAST_S = FIRST_S + INTERVAL_S * (NUM_SCRAPES - 1)
DASHBOARD = dict(dashboard_expressions())
QUIET = "RayshardNotScraped"  # comes to nothing as long as anything is scraped
COMPARISON = re.compile(r" (==|>) [0-9.]+$")


def samples(text: str) -> str:
    """A scrape as a series of them: what counts grows by as much each time."""
    lines = []
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f"{name}={json.dumps(value)}" for name, value in one.labels.items())
            growth = GROWTH if one.name.endswith(GROWING) else 0
            lines += [
                f"{one.name}{{{labels}}} {one.value + growth * index} {FIRST_S + INTERVAL_S * index}"
                for index in range(NUM_SCRAPES)
            ]
    return "\n".join([*lines, "# EOF\n"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    text = asyncio.run(scrape(save_model_dir(tmp_path_factory.mktemp("model"))))
    with server_of(samples(text), tmp_path_factory.mktemp("prometheus")) as found:
        yield found


@pytest.mark.parametrize("name", DASHBOARD)
def test_a_panel_has_numbers(name: str, server: Server) -> None:
    expression = DASHBOARD[name].replace("$model", ".*").replace("$__rate_interval", "1m")
    found = server.query(expression, LAST_S)
    assert found, f"{expression} comes to nothing"
    assert all(math.isfinite(float(one["value"][1])) for one in found), expression
    legend = re.findall(r"\{\{(\w+)\}\}", legend_of(name))
    assert all(label in one["metric"] for one in found for label in legend), f"its legend wants {legend}"


def legend_of(name: str) -> str:
    (legend,) = (
        target.get("legendFormat", "")
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
        if f"{panel['title']} {target['refId']}" == name
    )
    return str(legend)


@pytest.mark.parametrize("name", [name for name, _expression in alert_expressions() if name != QUIET])
def test_what_an_alert_compares_is_there(name: str, server: Server) -> None:
    expression = dict(alert_expressions())[name]
    compared, num_found = COMPARISON.subn("", expression)
    assert num_found == 1, "it compares with a number in the end"
    if 'state=~"rebuilding|failed"' in compared:  # a copy is in one state at a time
        compared = compared.replace("rebuilding|failed", "ready")
    (one,) = server.query(compared, LAST_S)
    assert math.isfinite(float(one["value"][1]))
    assert one["metric"].keys() == {"model"}


def test_an_expression_that_is_none_would_be_found(server: Server) -> None:
    assert server.query("sum by (model) (rate(rayshard_no_such_total[1m]))", LAST_S) == []
    assert server.query(dict(alert_expressions())[QUIET], LAST_S) == []


def test_each_alert_fires_on_what_it_is_for(tmp_path: Path) -> None:
    path = Path(__file__).parent / "alerts_test.yaml"
    tests: dict[str, Any] = yaml.safe_load(path.read_text())
    fired = {one["alertname"] for test in tests["tests"] for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == {name for name, _expression in alert_expressions()}
    written = tmp_path / path.name
    written.write_text(yaml.safe_dump({**tests, "rule_files": [str(MONITORING / "alerts.yaml")]}))
    assert "SUCCESS" in promtool("test", "rules", str(written))


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-ray.yaml"])
def test_prometheus_takes_the_settings_and_the_rules(name: str) -> None:
    assert "11 rules found" in promtool("check", "config", str(MONITORING / name))
