"""Every expression of dashboard and alerts finds its series, and the labels it names, in a scrape after a load."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.metrics import families
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving

MONITORING = Path(__file__).parents[3] / "cluster" / "monitoring"
SELECTOR = re.compile(r"(\b[a-z]\w*_\w+)(?:\{([^}]*)\})?(?=[\[\s)]|$)")
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
FUNCTIONS = {"histogram_quantile"}  # their names look like metrics
Labels = dict[str, str]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    return found


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


def alert_expressions() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


EXPRESSIONS = dict([*dashboard_expressions(), *alert_expressions()])


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Metrics of an expression, each with its matchers."""
    found = SELECTOR.findall(expression)
    return [(name, MATCHER.findall(matchers)) for name, matchers in found if name not in FUNCTIONS]


def fits(labels: Labels, matchers: list[tuple[str, str, str]]) -> bool:
    for name, operator, wanted in matchers:
        is_equal = re.fullmatch(wanted if operator == "=~" else re.escape(wanted), labels.get(name, "")) is not None
        if is_equal == (operator == "!="):
            return False
    return True


async def scrape(directory: Path) -> str:
    app = build_http_app(DataPlane(ScriptedBackend(directory), GatewayConfig(), "g1"))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url, timeout=20) as client:
        body = {"model": "tiny", "prompt": [64, 65], "max_tokens": 3}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        return (await client.get("/metrics")).text


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Labels]]:
    text = asyncio.run(scrape(save_model_dir(tmp_path_factory.mktemp("model"))))
    return [(one.name, one.labels) for family in text_string_to_metric_families(text) for one in family.samples]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_finds_its_series_and_labels(name: str, series: list[tuple[str, Labels]]) -> None:
    expression = EXPRESSIONS[name].replace("$model", ".*").replace("$__rate_interval", "5m")
    assert "$" not in expression
    assert expression.count("(") == expression.count(")")
    grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}
    found = selectors(expression)
    assert found, "it names a metric"
    for metric, matchers in found:
        states = [("state", "=~", "ready")] if metric == "rayshard_replicas" else []  # a copy is in one state at a time
        wanted = [matcher for matcher in matchers if not (states and matcher[0] == "state")] + states
        fitting = [labels for at, labels in series if at == metric and fits(labels, wanted)]
        assert fitting, f"{metric} {wanted} is in no scrape"
        assert grouped <= fitting[0].keys(), f"{metric} has labels {sorted(fitting[0])}"


def test_every_family_is_in_the_dashboard() -> None:
    shown = {metric for _name, one in dashboard_expressions() for metric, _matchers in selectors(one)}
    shown = {re.sub("_(bucket|sum|count)$", "", metric) for metric in shown}
    assert shown == {family.name for family in families.ALL}


def test_a_range_is_taken_of_counters_and_buckets_alone() -> None:
    counters = {family.name for family in families.ALL if family.kind == "counter"}
    for expression in EXPRESSIONS.values():
        taken = re.findall(r"\b(rate|increase)\((\w+)(?:\{[^}]*\})?\[", expression)
        ranged = re.findall(r"(\w+)(?:\{[^}]*\})?\[", expression)
        assert len(taken) == len(ranged)
        assert all(metric in counters or metric.endswith("_bucket") for _function, metric in taken), expression


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "model"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-ray.yaml"])
def test_prometheus_reads_the_rules(name: str) -> None:
    config = yaml.safe_load((MONITORING / name).read_text())
    assert config["rule_files"] == ["alerts.yaml"]
    assert (MONITORING / "alerts.yaml").exists()
    relabels = config["scrape_configs"][0].get("metric_relabel_configs", [])
    for relabel in relabels:
        renamed = re.sub(f"^(?:{relabel['regex']})$", r"\1", "ray_rayshard_requests_total")
        assert renamed == families.REQUESTS.name


def test_every_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "action"}
