"""Generations of a backend on copies in this process: each goes where its beginning is held, never to a dead copy."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import count

import pytest

from serve_app.backend.serve_backend import ServeBackend
from serve_app.types.generation import GenerateRequest, OutputChunk
from tests.fakes_serve import FakeControl, running_backend, states, until
from tests.generator_replica import Generator, begun, expected, request_of, slow_down, tokens_of


class Cluster:
    """Three copies, and a backend that knows them."""

    def __init__(self, backend: ServeBackend, copies: list[Generator]) -> None:
        self.backend = backend
        self._seeds = count(100)  # the fake engine tells requests apart by them
        self.copies = {copy.links._identity.replica_id: copy for copy in copies}

    @property
    def choices(self) -> dict[str, int]:
        """By reason, those that were made."""
        return {reason: count for reason, count in self.backend.health().num_choices["demo"].items() if count}

    async def ask(self, request: GenerateRequest) -> tuple[str, int]:
        """The copy that answers, and how many tokens of the prompt it had."""
        request = replace(request, params=replace(request.params, seed=next(self._seeds)))
        before = {name: copy.calls.work.load().num_prompt_tokens for name, copy in self.copies.items()}
        cached: list[int] = []

        def take(chunk: OutputChunk) -> bool:
            cached.append(chunk.num_cached_tokens)
            return True

        async with asyncio.timeout(15):
            await self.backend.generate("demo", request, take)
        (name,) = [
            name for name, copy in self.copies.items() if copy.calls.work.load().num_prompt_tokens != before[name]
        ]
        return name, sum(cached)

    def holder_of(self, request: GenerateRequest) -> str:
        """The copy that a running request is on."""
        (name,) = [
            name
            for name, copy in self.copies.items()
            if any(one.request_id == request.request_id for one in copy.calls._calls)
        ]
        return name


@pytest.fixture
async def cluster(generators: Callable[..., Generator]) -> AsyncIterator[Cluster]:
    control = FakeControl()
    copies = [generators(name) for name in ("a", "b", "c")]
    for copy in copies:
        await copy.replica.start()
        control.add("demo", "Router", copy)
    async with running_backend(control) as backend:
        await until(lambda: states(backend) == {"demo": ["ready"] * 3})
        yield Cluster(backend, copies)


def prompt_of(start: int, num_tokens: int = 20, **changes: object) -> GenerateRequest:
    token_ids = [(start + 7 * index) % 29 for index in range(num_tokens)]
    return replace(request_of(1, 2, **changes), prompt_token_ids=token_ids)


async def test_a_chat_stays_where_its_first_turn_went(cluster: Cluster) -> None:
    for start in range(6):
        first, num_cached = await cluster.ask(prompt_of(start))
        assert num_cached == 0
        assert await cluster.ask(prompt_of(start, 30)) == (first, 20)
    assert cluster.choices == {"hash": 6, "prefix": 6}


async def test_keys_do_not_see_each_others_prompts(cluster: Cluster) -> None:
    first, _ = await cluster.ask(prompt_of(1, cache_salt="mine"))
    assert (await cluster.ask(prompt_of(1, cache_salt="yours")))[1] == 0
    assert await cluster.ask(prompt_of(1, cache_salt="mine")) == (first, 16)
    assert cluster.choices == {"hash": 2, "prefix": 1}


async def test_a_session_goes_to_one_copy(cluster: Cluster) -> None:
    names = {(await cluster.ask(prompt_of(start, session="s")))[0] for start in range(8)}
    assert len(names) == 1
    assert cluster.choices == {"session": 8}


async def test_what_a_copy_held_is_forgotten_with_its_shards(cluster: Cluster) -> None:
    name, _ = await cluster.ask(prompt_of(1))
    copy = cluster.copies[name]
    copy.groups.made[-1].die()
    await until(lambda: copy.replica.copy.epoch == 2 and copy.replica.copy.is_ready)
    calls = cluster.backend._calls("demo", "Router")
    await until(lambda: calls._replicas[name].num_rebuilds == 1 and calls._replicas[name].state == "ready")
    assert await cluster.ask(prompt_of(1)) == (name, 0)
    assert cluster.choices == {"hash": 2}


async def test_a_stream_goes_on_where_its_beginning_is_held_and_not_on_the_dead(cluster: Cluster) -> None:
    for copy in cluster.copies.values():
        slow_down(copy)
    first = replace(prompt_of(1), params=replace(request_of().params, max_tokens=30))
    running = await begun(cluster.backend, first)
    holder = cluster.holder_of(first)
    calls = cluster.backend._calls("demo", "Router")
    others = [name for name in cluster.copies if name != holder]
    calls._replicas[others[0]].num_others = 100  # so that a second copy has it
    calls._replicas[holder].num_others = 100
    assert (await cluster.ask(prompt_of(1)))[0] == others[1]
    for known in calls._replicas.values():
        known.num_others = 0
    cluster.copies[holder].replica.close_now()
    assert await running == expected(first)
    assert cluster.copies[others[0]].calls.work.load().num_prompt_tokens <= 8  # its warm-up
    assert holder not in calls._replicas


async def test_prompts_that_are_computed_whole_go_to_the_least_busy(cluster: Cluster) -> None:
    params = replace(request_of(1, 2).params, num_prompt_logprobs=0)
    await tokens_of(cluster.backend, replace(prompt_of(1), params=params))
    assert cluster.choices == {}


async def test_a_model_whose_routing_is_balanced_goes_by_the_load_alone(cluster: Cluster) -> None:
    application = cluster.backend._applications.by_model["demo"]
    application.descriptions = [replace(one, routed_block_size=None) for one in application.descriptions]
    cluster.backend._applications._index()
    await tokens_of(cluster.backend, prompt_of(1))
    assert cluster.backend.health().num_choices == {}
