"""One request's trace through three real processes to a collector, over HTTP and protobuf."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.gateway import GatewayConfig
from serve_app.config.tracing import SAMPLERS, TracingSettings
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.tracing.start import start_tracing
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from tests.fakes import NO_TLS, serving
from tests.fakes_serve import FakeControl, until
from tests.otlp_collector import Collector, collecting
from tests.spans import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED
from tests.traced_replica import READY

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="the exporter is not installed; run: pip install '.[tracing]'"
)
from serve_app.tracing.export import exporting, sampler_of  # it needs the package

ROOT = Path(__file__).parents[3]
CANARY = "canary-4711"
PATH = "/v1/completions"
READY_S = 100.0  # a process that imports torch beside others


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@dataclass
class OtherProcess:
    """A replica that runs elsewhere; it is told of each Gateway through its input."""

    process: asyncio.subprocess.Process

    async def register(self, address: LinkAddress) -> list[ModelDescription]:
        """What it serves."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(address) + b"\n")
        return msgspec.json.decode(await self.process.stdout.readline(), type=list[ModelDescription])


class OtherProcesses(FakeControl):
    """Control over replicas in processes."""

    async def register(self, application: str, deployment: str, address: LinkAddress) -> list[list[ModelDescription]]:
        """See Control."""
        (service,) = self.replicas[application, deployment]
        assert isinstance(service, OtherProcess)
        return [await service.register(address)]


@asynccontextmanager
async def replica(deployment: str, variables: dict[str, str]) -> AsyncIterator[OtherProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.traced_replica", deployment,
        cwd=ROOT, env={**os.environ, **variables}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            assert (await process.stdout.readline()).decode().strip() == READY
        yield OtherProcess(process)
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(READY_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def server(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A Gateway in this process, Router and Preprocessor in others; what they have traced has left in the end."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_EXPORTER_OTLP_HEADERS": "x-team=a"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing = start_tracing("gateway", "g1", is_first=True)
    control = OtherProcesses()
    async with replica("Router", variables) as router, replica("Preprocessor", variables) as steps:
        control.add("demo", "Router", router)  # type: ignore[arg-type]  # it is called elsewhere
        control.add("demo", "Preprocessor", steps)  # type: ignore[arg-type]
        backend = ServeBackend(control, tracing=tracing)
        try:
            await backend.find_running_models()
            await until(lambda: backend.health().is_healthy)
            app = build_http_app(DataPlane(backend, GatewayConfig(), "g1", tracing))
            async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url, timeout=60) as client:
                yield client
        finally:
            backend.close()
            await asyncio.sleep(0)


@pytest.mark.process
async def test_a_request_is_one_trace_through_all_processes(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "demo", "prompt": CANARY, "max_tokens": 4, "ignore_eos": True, "seed": 7}
    async with server(collector, monkeypatch) as client:
        answer = await client.post(PATH, json=body, headers={**SAMPLED, "x-secret": CANARY})
        assert answer.status_code == 200, answer.text
        unseen = await client.post(PATH, json=body, headers=UNSAMPLED)
        assert unseen.status_code == 200
        assert (await client.get("/health")).status_code == 200
    above = {one.span.span_id: one.span.name for one in collector.spans}
    assert {(one.service, one.span.name, above.get(one.span.parent_span_id)) for one in collector.spans} == {
        ("rayshard-gateway", f"POST {PATH}", None),
        ("rayshard-gateway", "preprocess demo", f"POST {PATH}"),
        ("rayshard-preprocessor", "preprocess", "preprocess demo"),
        ("rayshard-gateway", "tokenize", f"POST {PATH}"),
        ("rayshard-gateway", "text_completion demo", f"POST {PATH}"),
        ("rayshard-router", "generate demo", "text_completion demo"),
        ("rayshard-router", "queue", "generate demo"),
        ("rayshard-router", "prefill", "generate demo"),
        ("rayshard-router", "decode", "generate demo"),
        ("rayshard-router", "step", "generate demo"),
    }
    assert {one.span.trace_id.hex() for one in collector.spans} == {TRACE_ID}
    served = collector.named(f"POST {PATH}")
    assert served.span.parent_span_id.hex() == SPAN_ID
    assert served.attributes["http.response.status_code"] == 200
    assert served.attributes["gen_ai.operation.name"] == "text_completion"
    assert collector.named("generate demo").attributes["gen_ai.usage.output_tokens"] == 4
    assert {headers["x-team"] for headers in collector.headers} == {"a"}
    written = "\n".join(str(one.span) for one in collector.spans)
    assert CANARY not in written
    assert answer.json()["choices"][0]["text"] not in written


def test_a_collector_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.tracing.export._CLOSE_S", 0.05)
    tracing = exporting("gateway", "g", TracingSettings("http://127.0.0.1:9/v1/traces"), is_first=True)
    with tracing.serving("served", SAMPLED, {}):
        pass
    tracing.close()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_the_one_of_its_name(name: str) -> None:
    said = sampler_of(TracingSettings("http://127.0.0.1:9", name, 0.25)).get_description()
    root = {"always_on": "AlwaysOnSampler", "always_off": "AlwaysOffSampler", "traceidratio": "TraceIdRatioBased{0.25}"}
    expected = root[name.removeprefix("parentbased_")]
    assert said == expected or said.startswith(f"ParentBased{{root:{expected},")
    assert said.startswith("ParentBased") == name.startswith("parentbased")
