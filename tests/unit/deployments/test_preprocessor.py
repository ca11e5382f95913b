"""A Preprocessor without Serve: its chains are called over the links."""

import asyncio
from pathlib import Path

import pytest

from serve_app.config.model import ModelConfig
from serve_app.deployments.preprocessor import ChainService
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.errors import InternalError
from serve_app.preprocessing.chain_host import ChainHost, ChainSpec
from serve_app.types.chains import ChainRequest, ChainValue
from serve_app.types.links import LinkAddress
from serve_app.wire.links import LOOPBACK
from serve_app.wire.messages import PROTOCOL_VERSION, ChainMessage
from tests.fakes_serve import FakeControl, FakeReplica, running_backend, until
from tests.spans import SAMPLED, KeptSpans, span_texts


async def test_values_go_through_the_steps_of_the_model_that_is_named(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(
        {"name": "m", "source": str(tmp_path), "task": "embed", "preprocessing": ["lowercase", "redact_pii"]}
    )
    host = ChainHost([ChainSpec(config, tmp_path)])
    service = ChainService(ReplicaIdentity("p", "app", "Preprocessor", LOOPBACK), host)
    service.links.start()
    replica, control = FakeReplica("a"), FakeControl()
    control.add("app", "Router", replica)
    control.add("app", "Preprocessor", service)
    async with running_backend(control) as backend:
        await until(lambda: backend.health().is_healthy)
        result = await backend.run_chain(ChainRequest("r", "m", [ChainValue(text="Mail A@B.de, please")]))
        assert [one.value.text for one in result.values] == ["mail <EMAIL_1>, please"]
        assert result.values[0].redactions[0].original == "a@b.de"
        with pytest.raises(InternalError, match="model=other has no steps here"):
            await service._host.run(ChainRequest("r", "other", []))
        service.check()
    await service.close()
    await asyncio.sleep(0)
    with pytest.raises(InternalError, match="a task of the replica's links has ended"):
        service.check()
    replica.links.close()


async def test_a_traced_call_is_a_span_without_its_values(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(
        {"name": "m", "source": str(tmp_path), "task": "embed", "preprocessing": ["lowercase"]}
    )
    spans = KeptSpans.make()
    identity = ReplicaIdentity("p", "app", "Preprocessor", LOOPBACK)
    service = ChainService(identity, ChainHost([ChainSpec(config, tmp_path)]), spans.tracing)
    for trace in ({}, SAMPLED):
        request = ChainRequest("r", "m", [ChainValue(text="Canary"), ChainValue(text="Two")], trace=trace)
        await service._answer(ChainMessage(PROTOCOL_VERSION, 0, 1, LinkAddress("", "", None, ""), request))
    span = spans.named("preprocess")
    assert spans.parent_of(span.name) == "client"
    assert span.attributes is not None
    assert span.attributes["rayshard.request.num_entries"] == 2
    assert "anary" not in span_texts(spans.all)
    await service.close()
