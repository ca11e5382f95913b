"""The metrics of a real cluster: by the Gateway's own `/metrics`, and by Ray's exporter under the same names."""

import json
import math
from collections import defaultdict

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from serve_app.metrics import families
from tests.integration.serve_cluster import ServeCluster

pytestmark = pytest.mark.timeout(600)  # the first test of a folder may be the one that starts the cluster

RAYS_INTERVAL_S = 120.0  # its agent has everything after ten seconds or so, on a machine with nothing else to do


def samples(text: str) -> dict[str, list[Sample]]:
    """By name."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append(sample)
    return found


def series_names() -> set[str]:
    """What a scrape holds of our families."""
    endings = {"histogram": ("_bucket", "_count", "_sum")}
    return {family.name + ending for family in families.ALL for ending in endings.get(family.kind, ("",))}


def scrape_gateway(cluster: ServeCluster) -> dict[str, list[Sample]]:
    return samples(httpx.get(f"{cluster.url}/metrics", timeout=20).text)


def scrape_ray(cluster: ServeCluster) -> dict[str, list[Sample]]:
    """Empty until Ray has written where its exporter listens."""
    path = cluster.directory / "ray" / "ray" / "prom_metrics_service_discovery.json"
    if not path.exists():
        return {}
    targets = json.loads(path.read_text())[0]["targets"]  # the node's own, and the dashboard's
    ports = [target.rpartition(":")[2] for target in targets]
    return samples("".join(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text for port in ports))


def of_demo(found: dict[str, list[Sample]], name: str) -> list[Sample]:
    """A series of the demo's: other tests of this cluster serve other models for a while."""
    return [sample for sample in found.get(name, []) if sample.labels["model"] == "demo"]


def is_in(told: dict[str, list[Sample]], own: Sample) -> bool:
    """Whether Ray tells a number of the Gateway's, or a later one."""
    found = told.get(f"ray_{own.name}", [])
    return any(one.value >= own.value and own.labels.items() <= one.labels.items() for one in found)


def test_a_load_shows_in_both_scrapes(cluster: ServeCluster) -> None:
    before = of_demo(scrape_gateway(cluster), "rayshard_generation_tokens_total")
    for _ in range(3):
        assert cluster.complete("demo", "date jan 8 2038 =").status_code == 200
    assert cluster.complete("demo", "x", n=-1).status_code == 400
    own = scrape_gateway(cluster)
    assert {name for name in own if name.startswith("rayshard_")} == series_names()
    (tokens,) = of_demo(own, "rayshard_generation_tokens_total")
    assert tokens.value - sum(sample.value for sample in before) == 3 * len("2038-01-08.")

    def steps() -> float:  # as the copy has told it last
        return sum(one.value for one in of_demo(scrape_gateway(cluster), "rayshard_step_seconds_count"))

    cluster.wait_until(lambda: steps() >= len("2038-01-08."), 10, "a step for each token of a sequence")
    (bubble,) = of_demo(scrape_gateway(cluster), "rayshard_pipeline_bubble_ratio")
    assert 0 < bubble.value < 1, "one sequence cannot fill two stages"

    wanted = {f"ray_{name}" for name in series_names()}
    cluster.wait_until(lambda: wanted <= scrape_ray(cluster).keys(), RAYS_INTERVAL_S, "Ray's exporter")

    last = [tokens, *of_demo(own, "rayshard_inter_token_latency_seconds_bucket")]
    assert len(last) > 2
    seen: dict[str, list[Sample]] = {}

    def is_told() -> bool:  # all of it: a scrape may come while Ray takes the numbers over, one by one
        seen.update(scrape_ray(cluster))
        return all(is_in(seen, of_own) for of_own in last)

    cluster.wait_until(is_told, RAYS_INTERVAL_S, "the last token's count")
    by_gateway: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in of_demo(seen, "ray_rayshard_inter_token_latency_seconds_bucket"):
        by_gateway[one.labels["gateway"]].append((float(one.labels["le"].replace("+Inf", "inf")), one.value))
    assert by_gateway
    for buckets in by_gateway.values():
        buckets.sort()
        counts = [count for _, count in buckets]
        assert counts == sorted(counts), "cumulative, as Prometheus has it"
        assert buckets[-1][0] == math.inf


def test_the_demos_copy_takes_about_what_was_planned(cluster: ServeCluster) -> None:
    assert cluster.complete("demo", "date jan 8 2038 =").status_code == 200
    body = httpx.get(f"{cluster.url}/v1/admin/plan", timeout=20).json()
    (copy,) = body["models"]["demo"]
    assert copy["device"] == "cpu"
    for shard in copy["shards"]:
        predicted, measured = shard["predicted"], shard["measured"]
        assert measured["weights_bytes"] == pytest.approx(predicted["weights_bytes"], rel=0.01)
        assert measured["kv_cache_bytes"] == predicted["kv_cache_bytes"]
        assert measured["total_bytes"] == measured["process_bytes"] > measured["weights_bytes"]
    assert copy["predicted"]["decode_tokens_per_s"] > 0
