"""`GET /metrics` of a Gateway on a real socket after a short load: what is counted, under which labels, who sees it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from serve_app.backend.protocol import HealthReport
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import QueueFullError, ShardLostError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from serve_app.metrics import families
from tests.fakes import NO_TLS, ScriptedBackend, serving

COMPLETIONS = "/v1/completions"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = build_http_app(DataPlane(backend, GatewayConfig(), "g1"))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url, timeout=20) as client:
        yield client


def prompt_body(**keys: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [64, 65], "ignore_eos": True, **keys}


async def scraped(client: httpx.AsyncClient) -> Series:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


async def test_a_stream_s_tokens_and_times_are_counted(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.step_s = 0.02
    answer = await client.post(COMPLETIONS, json=prompt_body(stream=True, max_tokens=5))
    assert answer.text.endswith("[DONE]\n\n")
    found = await scraped(client)
    at = {"gateway": "g1", "model": "tiny"}
    assert value(found, "rayshard_generation_tokens_total", **at) == 5
    assert value(found, "rayshard_prompt_tokens_total", **at) == 2
    assert value(found, "rayshard_time_to_first_token_seconds_count", **at) == 1
    assert value(found, "rayshard_inter_token_latency_seconds_count", **at) == 4
    assert value(found, "rayshard_inter_token_latency_seconds_sum", **at) >= 4 * 0.02
    assert value(found, "rayshard_inter_token_latency_seconds_bucket", **at, le="0.015") == 0
    assert value(found, "rayshard_requests_total", **at, route=COMPLETIONS, status="2xx") == 1
    assert value(found, "rayshard_e2e_request_latency_seconds_count", **at, route=COMPLETIONS) == 1
    latency_s = value(found, "rayshard_e2e_request_latency_seconds_sum", **at, route=COMPLETIONS)
    assert latency_s >= value(found, "rayshard_time_to_first_token_seconds_sum", **at) + 4 * 0.02


async def test_each_choice_has_gaps_of_its_own(client: httpx.AsyncClient) -> None:
    await client.post(COMPLETIONS, json=prompt_body(max_tokens=3, n=2, temperature=1))
    found = await scraped(client)
    at = {"gateway": "g1", "model": "tiny"}
    assert value(found, "rayshard_generation_tokens_total", **at) == 6
    assert value(found, "rayshard_inter_token_latency_seconds_count", **at) == 4
    assert value(found, "rayshard_time_to_first_token_seconds_count", **at) == 1


async def test_a_prompt_that_is_only_scored_generates_nothing(client: httpx.AsyncClient) -> None:
    await client.post(COMPLETIONS, json=prompt_body(max_tokens=0, echo=True, logprobs=1))
    found = await scraped(client)
    assert value(found, "rayshard_generation_tokens_total", gateway="g1", model="tiny") == 0


@pytest.mark.parametrize(
    ("path", "body", "route", "model", "status", "reason"),
    [
        (COMPLETIONS, {"prompt": "x", "model": "no such"}, COMPLETIONS, "", "4xx", "model_not_found"),
        (COMPLETIONS, {"prompt": "x", "model": "tiny", "n": -1}, COMPLETIONS, "", "4xx", "invalid"),
        ("/v2/models/tiny/infer", {"inputs": []}, "/v2/models/{name:path}/infer", "tiny", "4xx", "invalid"),
    ],
)
async def test_a_refusal_is_counted_by_route_and_reason(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], route: str, model: str, status: str, reason: str
) -> None:
    assert (await client.post(path, json=body)).status_code // 100 == 4
    found = await scraped(client)
    assert value(found, "rayshard_requests_total", gateway="g1", route=route, model=model, status=status) == 1
    assert value(found, "rayshard_requests_refused_total", gateway="g1", model=model, reason=reason) == 1


async def test_a_path_of_the_client_s_own_is_no_label(client: httpx.AsyncClient) -> None:
    for path in ("/secret-1", "/secret-2", "/v1/models/secret-3"):
        assert (await client.get(path)).status_code == 404
    found = await scraped(client)
    assert "secret" not in str(found)
    at = {"gateway": "g1", "model": "", "status": "4xx"}
    assert value(found, "rayshard_requests_total", **at, route="other") == 2
    assert value(found, "rayshard_requests_total", **at, route="/v1/models/{name:path}") == 1


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (QueueFullError("full", retry_after_s=1.0), "queue_full", "4xx"),
        (ShardLostError("gone", retry_after_s=1.0), "shard_lost", "5xx"),
    ],
)
@pytest.mark.parametrize("fail_at_step", [None, 2])
async def test_a_model_that_fails_is_counted_also_in_a_stream_that_has_begun(
    client: httpx.AsyncClient,
    backend: ScriptedBackend,
    error: Exception,
    reason: str,
    status: str,
    fail_at_step: int | None,
) -> None:
    backend.error, backend.fail_at_step = error, fail_at_step  # type: ignore[assignment]
    await client.post(COMPLETIONS, json=prompt_body(stream=True, max_tokens=5))
    found = await scraped(client)
    assert value(found, "rayshard_requests_refused_total", gateway="g1", model="tiny", reason=reason) == 1
    assert value(found, "rayshard_requests_total", gateway="g1", model="tiny", route=COMPLETIONS, status=status) == 1
    assert not any(name.startswith("rayshard_e2e") for name, _labels in found)


async def test_a_client_that_leaves_is_counted_as_such(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.step_s = 0.05
    async with client.stream("POST", COMPLETIONS, json=prompt_body(stream=True, max_tokens=50)) as response:
        await anext(response.aiter_lines())
    labels = frozenset({"gateway": "g1", "model": "tiny", "reason": "aborted"}.items())
    async with asyncio.timeout(10):
        while (await scraped(client)).get(("rayshard_requests_refused_total", labels)) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_copies_are_told_of_in_the_same_scrape(client: httpx.AsyncClient) -> None:
    found = await scraped(client)
    copy = {"model": "tiny", "copy": "replica-1"}
    assert value(found, "rayshard_replicas", **copy, state="ready") == 1
    assert value(found, "rayshard_kv_cache_usage_ratio", **copy) == 0
    assert value(found, "rayshard_request_queue_seconds_bucket", **copy, le="+Inf") == 0
    assert value(found, "rayshard_model_ready", gateway="g1", model="tiny") == 1
    assert value(found, "rayshard_link_bytes_total", link="calls", process="g1") == 0


async def test_a_model_without_a_ready_copy_shows(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.is_healthy = False
    found = await scraped(client)
    assert value(found, "rayshard_model_ready", gateway="g1", model="tiny") == 0
    assert value(found, "rayshard_replicas", model="tiny", copy="replica-1", state="failed") == 1


class SharedCopyBackend(ScriptedBackend):
    """Two models on one copy."""

    def health(self) -> HealthReport:
        """The copy under both names."""
        report = super().health()
        (copies,) = report.models.values()
        return replace(
            report,
            models={"a": copies, "b": copies},
            num_resumes={"a": 2, "b": 2},
            num_choices={"a": {"prefix": 3}},
            num_call_bytes=7,
        )


async def test_a_copy_that_models_share_is_counted_once(model_dir: Path) -> None:
    app = build_http_app(DataPlane(SharedCopyBackend(model_dir), GatewayConfig(), "g1"))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        found = await scraped(client)
    copies = [labels for name, labels in found if name == "rayshard_replicas"]
    assert copies == [frozenset({"model": "a,b", "copy": "replica-1", "state": "ready"}.items())]
    for model in ("a", "b"):
        assert value(found, "rayshard_model_ready", gateway="g1", model=model) == 1
        assert value(found, "rayshard_stream_resumes_total", gateway="g1", model=model) == 2
    assert value(found, "rayshard_copy_choices_total", gateway="g1", model="a", reason="prefix") == 3
    assert value(found, "rayshard_link_bytes_total", link="calls", process="g1") == 7


async def test_every_family_is_in_a_scrape_of_both_formats(client: httpx.AsyncClient) -> None:
    await client.post(COMPLETIONS, json=prompt_body(max_tokens=2))
    await client.post(COMPLETIONS, json=prompt_body(max_tokens=-1))
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    wide = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert wide.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    expected = {family.name.removesuffix("_total"): family.kind for family in families.ALL}
    parsed_wide = parse_openmetrics(wide.text)  # type: ignore[no-untyped-call]
    for parsed in (text_string_to_metric_families(plain.text), parsed_wide):
        assert {family.name: family.type for family in parsed} == expected


# Keys


@pytest.mark.parametrize(
    ("is_admin", "is_open", "has_key", "status"),
    [
        (True, False, True, 200),
        (False, False, True, 403),
        (False, False, False, 401),
        (False, True, False, 200),
        (False, True, True, 200),
    ],
)
async def test_where_keys_are_used_metrics_are_for_administrators_unless_opened(
    backend: ScriptedBackend, tmp_path: Path, is_admin: bool, is_open: bool, has_key: bool, status: int
) -> None:
    key, line = new_key("name=ops admin" if is_admin else "name=ops")
    path = tmp_path / "keys.txt"
    path.write_text(line + "\n")
    config = GatewayConfig(api_keys_file=str(path), open_metrics=is_open)
    headers = {"authorization": f"Bearer {key}"} if has_key else {}
    app = build_http_app(DataPlane(backend, config))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url, headers=headers) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == status
    if status == 403:
        assert "--admin" in answer.text
        assert "open_metrics" in answer.text
