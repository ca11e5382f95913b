"""Which copy a stream goes on with: one that runs the same model, and none where another is served by its name."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.errors import UnavailableError
from serve_app.types.models import ModelVersion
from tests.fakes_serve import FakeControl, running_backend, states, until
from tests.generator_replica import Generator, begun, expected, request_of, slow_down, tokens_of

FIRST = ModelVersion(tokens="t", weights="w")
TRAINED = ModelVersion(tokens="t", weights="x")
OTHER_TOKENS = ModelVersion(tokens="u", weights="x")
REQUEST = request_of(1, 50)


class Cluster:
    """Copies by the name of one model, and the backend that calls them."""

    def __init__(self, make: Callable[..., Generator], control: FakeControl, backend: ServeBackend) -> None:
        self.backend = backend
        self._make = make
        self._control = control

    async def start(self, name: str, version: ModelVersion) -> Generator:
        """A copy that the backend knows."""
        copy = self._make(name, version=version)
        await copy.replica.start()
        self._control.add("demo", "Router", copy)
        await self.backend._applications.discover()
        copy.links.register(self.backend._own_address())
        await until(lambda: "demo" in self.backend._applications.by_model)
        calls = self.backend._calls("demo", "Router")
        await until(lambda: name in calls._replicas and calls._replicas[name].state == "ready")
        slow_down(copy)
        return copy

    async def drain(self, copy: Generator) -> None:
        """A copy that leaves; it has not ended."""
        await copy.links.drain()
        await until(lambda: "draining" in states(self.backend)["demo"])


@pytest.fixture
async def cluster(generators: Callable[..., Generator]) -> AsyncIterator[Cluster]:
    control = FakeControl()
    async with running_backend(control) as backend:
        yield Cluster(generators, control, backend)


async def test_a_stream_goes_on_with_a_copy_of_its_version(cluster: Cluster) -> None:
    first = await cluster.start("first", FIRST)
    running = await begun(cluster.backend, REQUEST)
    changed, same = await cluster.start("changed", TRAINED), await cluster.start("same", FIRST)
    first.replica.close_now()
    await until(lambda: same.calls._calls)
    assert not changed.calls._calls
    assert await running == expected(REQUEST)


async def test_a_stream_ends_where_only_a_changed_model_is_left(cluster: Cluster) -> None:
    first = await cluster.start("first", FIRST)
    running = await begun(cluster.backend, REQUEST)
    await cluster.start("changed", TRAINED)
    first.replica.close_now()
    with pytest.raises(UnavailableError, match="the model was changed while the request ran"):
        await running


async def test_a_stream_ends_as_soon_as_the_changed_model_runs(cluster: Cluster) -> None:
    first = await cluster.start("first", FIRST)
    running = await begun(cluster.backend, REQUEST)
    first.replica.close_now()
    await asyncio.sleep(0.05)
    assert not running.done()  # the same may come again
    await cluster.start("changed", TRAINED)
    with pytest.raises(UnavailableError, match="the model was changed"):
        await running


async def test_a_copy_that_leaves_is_the_last_of_its_version(cluster: Cluster) -> None:
    first = await cluster.start("first", FIRST)
    running = await begun(cluster.backend, REQUEST)
    await cluster.drain(await cluster.start("leaving", FIRST))
    await cluster.start("changed", TRAINED)
    first.replica.close_now()
    assert await running == expected(REQUEST)


@pytest.mark.parametrize(("version", "is_answered"), [(TRAINED, True), (OTHER_TOKENS, False)])
async def test_a_request_that_has_no_token_yet_needs_the_tokens_alone(
    cluster: Cluster, version: ModelVersion, is_answered: bool
) -> None:
    first = await cluster.start("first", FIRST)
    for shard in first.groups.made[-1].shards:
        shard.is_stuck.set()
    waiting = asyncio.create_task(tokens_of(cluster.backend, REQUEST))
    await until(lambda: first.calls._calls)
    await cluster.start("changed", version)
    first.replica.close_now()
    if is_answered:
        assert await waiting == expected(REQUEST)
        return
    with pytest.raises(UnavailableError, match="the model was changed"):
        await waiting
