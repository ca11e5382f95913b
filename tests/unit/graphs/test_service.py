"""A Graph without Serve: it waits for its models, is called over the links, and notices when they do not fit."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.backend import applications
from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.graph import GraphConfig
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.errors import ConfigError, UnavailableError
from serve_app.graphs.deployment import GraphService
from serve_app.preprocessing.text_pool import TextPool
from serve_app.tracing.tracing import Tracing
from serve_app.types.graphs import GraphRequest
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferResult, Item
from serve_app.wire.links import LOOPBACK
from serve_app.wire.messages import PROTOCOL_VERSION, Call, InferMessage, InferReply, Reply
from tests.fakes import save_model_dir
from tests.fakes_graph import answer, described
from tests.fakes_serve import FakeControl, FakeReplica, running_backend, until
from tests.spans import SAMPLED, TRACE_ID, KeptSpans, span_texts

STEPS = [{"name": "vectors", "model": "minilm"}, {"name": "language", "model": "lang"}]


class ModelOf(FakeReplica):
    """A replica of a described model that answers by rule."""

    def __init__(self, description: ModelDescription) -> None:
        super().__init__(description.name, description.name)
        self.description = description

    async def answer(self, call: Call) -> Reply:
        """Numbers that follow from the tokens."""
        assert isinstance(call, InferMessage)
        self.requests.append(call.request)
        name = next(iter(self.description.outputs))
        outputs: list[Item] = [{name: answer(item)[name]} for item in call.request.items]
        return InferReply(PROTOCOL_VERSION, 0, call.stream, InferResult(outputs))


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_DISCOVERY_INTERVAL_S", "_SETTLED_INTERVAL_S", "_REGISTER_INTERVAL_S"):
        monkeypatch.setattr(applications, name, 0.1)


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool(1)
    yield pool
    pool.close()


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[dict[str, ModelOf]]:
    directory = save_model_dir(tmp_path)
    made = {
        "minilm": ModelOf(described(directory, "minilm", "embed")),
        "lang": ModelOf(described(directory, "lang", "classify")),
    }
    yield made
    for one in made.values():
        one.links.close()


def service_of(control: FakeControl, pool: TextPool, tracing: Tracing | None = None) -> GraphService:
    config = GraphConfig.model_validate({"name": "triage", "steps": STEPS, "output": ["vectors", "language"]})
    backend = ServeBackend(control, has_graphs=False, tracing=tracing)
    return GraphService(ReplicaIdentity("g", "triage", "Graph", LOOPBACK), config, backend, pool, tracing)


async def test_a_graph_is_ready_when_its_models_are_known_and_is_called_like_one(
    models: dict[str, ModelOf], pool: TextPool
) -> None:
    control = FakeControl()
    control.add("minilm", "Router", models["minilm"])
    service = service_of(control, pool)
    starting = asyncio.create_task(service.start())
    await asyncio.sleep(0.1)
    assert not starting.done()
    assert service.describe() == []
    control.add("lang", "Router", models["lang"])
    await asyncio.wait_for(starting, 10)
    control.add("triage", "Graph", service)
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        assert backend.model("triage") == service.describe()[0]
        result = await backend.run_graph(GraphRequest("r", "triage", ["one", "two"]))
        assert (result.names, len(result.runs)) == (["vectors", "language"], 2)
        service.check()
    await service.close()


async def test_a_graph_that_its_models_do_not_fit_is_refused(models: dict[str, ModelOf], pool: TextPool) -> None:
    models["lang"].description = replace(models["lang"].description, task="predict", has_tokenizer=False)
    control = FakeControl()
    for name, model in models.items():
        control.add(name, "Router", model)
    service = service_of(control, pool)
    with pytest.raises(ConfigError, match="step language"):
        await service.start()
    await service.close()


async def test_a_model_that_has_changed_so_that_it_does_not_fit_is_told_to_callers(
    models: dict[str, ModelOf], pool: TextPool
) -> None:
    control = FakeControl()
    for name, model in models.items():
        control.add(name, "Router", model)
    service = service_of(control, pool)
    await service.start()
    control.add("triage", "Graph", service)
    changed = replace(models["lang"].description, task="predict", has_tokenizer=False, created_s=9)
    models["lang"].description = changed
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        await until(lambda: service._backend.model("lang") == changed)
        await until(lambda: service._unfit)
        with pytest.raises(UnavailableError, match="the graph cannot run: step language"):
            await backend.run_graph(GraphRequest("r", "triage", ["one"]))
    await service.close()


async def test_what_a_graph_asks_of_its_models_hangs_below_its_own_span(
    models: dict[str, ModelOf], pool: TextPool
) -> None:
    spans, control = KeptSpans.make(), FakeControl()
    for name, model in models.items():
        control.add(name, "Router", model)
    service = service_of(control, pool, spans.tracing)
    await service.start()
    control.add("triage", "Graph", service)
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        await backend.run_graph(GraphRequest("r", "triage", ["canary one"], trace=SAMPLED))
    await service.close()
    assert spans.parent_of("graph") == "client"
    assert [spans.parent_of(name) for name in ("infer minilm", "infer lang")] == ["graph", "graph"]
    told = [request.trace["traceparent"][3:35] for model in models.values() for request in model.requests]
    assert told == [TRACE_ID, TRACE_ID]
    assert "canary" not in span_texts(spans.all)
