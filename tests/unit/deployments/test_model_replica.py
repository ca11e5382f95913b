"""A replica of a generator without Serve or Ray: deaths, hangs, failed starts, draining, as a client sees them."""

import asyncio
from collections.abc import Callable

import pytest

from serve_app.backend import known_replicas
from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.failover import FailoverConfig
from serve_app.errors import ConfigError, InternalError, ShardLostError, UnavailableError
from serve_app.types.plans import MeasuredBytes
from serve_app.types.steps import SequenceStart
from tests.fakes_engine import TAKEN, FakeModel
from tests.fakes_group import FakeGroups
from tests.fakes_serve import FakeControl, running_backend, states, until
from tests.generator_replica import Generator, backend_of, begun, expected, request_of, slow_down, tokens_of


async def draws(generator: Generator, epoch: int) -> None:
    """Returns when the one call of an epoch has drawn a token in it."""
    await until(lambda: generator.replica.copy.epoch == epoch and generator.replica.copy.is_ready)
    slow_down(generator)
    (sequence,) = await until(lambda: generator.calls._calls)
    num_outputs = sequence.num_outputs
    await until(lambda: sequence.num_outputs > num_outputs)


async def die(generator: Generator) -> None:
    """End a replica as SIGKILL would: it says nothing any more."""
    links = generator.links
    for task in links._tasks:
        task.cancel()
    for gateway_s, gateway in links._gateways.values():
        assert gateway_s
        generator.calls._senders.forget(gateway)
    links._gateways.clear()
    generator.calls._calls.clear()
    await asyncio.sleep(0)


async def test_streams_go_on_when_a_shard_dies(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    requests = [request_of(seed, 50) for seed in range(1, 7)]  # two of them wait
    running = [asyncio.create_task(tokens_of(backend, request)) for request in requests]
    await until(lambda: generator.calls.work.load().num_running == 4)
    await begun(backend, request_of(7, 50))
    generator.groups.made[-1].die()
    assert await asyncio.gather(*running) == [expected(request) for request in requests]
    assert generator.replica.copy.epoch == 2
    assert generator.groups.made[0].is_killed
    assert states(backend) == {"demo": ["ready"]}


async def test_what_a_copy_counts_outlives_its_shards(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    await tokens_of(backend, request_of(1, 12))
    await until(lambda: generator.links.state().counts.stage_busy_s > 0)
    before = generator.links.state().counts
    assert sum(before.queue.bucket_counts) == 1
    assert sum(before.steps.bucket_counts) >= 12
    assert before.steps.sum_s >= 12 * 0.02
    assert min(before.num_control_bytes, before.num_token_bytes) > 0
    running = await begun(backend, request_of(2, 50))
    generator.groups.made[-1].die()
    await running
    after = generator.links.state().counts
    assert (before.num_rebuilds, after.num_rebuilds) == (0, 1)
    assert sum(after.queue.bucket_counts) == 3, "a request that goes on waits once more"
    assert after.steps.sum_s > before.steps.sum_s
    now = generator.replica.copy._control
    assert now is not None
    assert after.num_control_bytes > before.num_control_bytes + now.num_sent_bytes
    report = backend.health()
    assert report.num_resumes == {"demo": 1}
    assert report.num_call_bytes > 0
    assert report.models["demo"][0].counts.num_rebuilds == 1


async def test_streams_go_on_when_a_shard_hangs(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator)
    running = await begun(backend, request_of(1, 50))
    generator.groups.made[-1].shards[0].is_silent.set()
    assert await running == expected(request_of(1, 50))
    assert generator.replica.copy.epoch == 2


async def test_a_request_that_kills_the_shards_fails_and_those_beside_it_go_on(
    generators: Callable[..., Generator],
) -> None:
    class Deadly(FakeModel):
        def next_token(self, history: list[int], num_outputs: int, start: SequenceStart) -> int:
            assert start.params.seed != 13 or num_outputs < 5, "the shard dies"
            return super().next_token(history, num_outputs, start)

    generator = generators(groups=FakeGroups(model=Deadly()))
    await generator.replica.start()
    async with backend_of(generator) as backend:
        requests = [request_of(seed, 40) for seed in (1, 2, 3)]
        running = [asyncio.create_task(tokens_of(backend, request)) for request in requests]
        with pytest.raises(InternalError, match="lost twice in a step of this request"):
            await tokens_of(backend, request_of(13, 40))
        assert await asyncio.gather(*running) == [expected(request) for request in requests]
    assert generator.replica.copy.epoch == 3


@pytest.mark.parametrize(("max_resumes", "num_deaths"), [(0, 1), (2, 3)])
async def test_a_request_ends_when_its_copies_were_lost_too_often(
    generators: Callable[..., Generator], max_resumes: int, num_deaths: int
) -> None:
    generator = generators()
    await generator.replica.start()
    async with backend_of(generator, FailoverConfig(max_resumes=max_resumes)) as backend:
        slow_down(generator)
        running = await begun(backend, request_of(1, 50))
        for epoch in range(1, num_deaths + 1):
            await draws(generator, epoch)
            generator.groups.made[-1].die()
        with pytest.raises(ShardLostError, match=r"3 times" if num_deaths > 1 else "try again"):
            await running


async def test_a_pause_has_its_limit(generators: Callable[..., Generator]) -> None:
    generator = generators()
    await generator.replica.start()
    async with backend_of(generator, FailoverConfig(max_pause_s=0.2)) as backend:
        slow_down(generator)
        running = await begun(backend, request_of(1, 50))
        generator.groups.failures = [OSError("no room")] * 5
        generator.groups.made[-1].die()
        with pytest.raises(UnavailableError, match=r"no copy of the model was ready within 0\.2 s"):
            await running


async def test_a_copy_is_not_ready_while_it_is_rebuilt_and_says_why(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    generator.groups.failures = [OSError("no room"), OSError("no room")]
    generator.groups.made[-1].die()
    await until(lambda: states(backend) == {"demo": ["rebuilding"]})
    await until(lambda: states(backend) == {"demo": ["ready"]})
    assert generator.replica.copy.epoch == 4  # two starts failed
    generator.replica.check()


async def test_after_five_failed_starts_serve_shall_replace_the_replica(
    served: tuple[Generator, ServeBackend],
) -> None:
    generator, backend = served
    generator.groups.failures = [OSError("no room")] * 5
    generator.groups.made[-1].die()
    await until(lambda: states(backend) == {"demo": ["failed"]})
    with pytest.raises(InternalError, match="could not be started again"):
        generator.replica.check()
    with pytest.raises(UnavailableError, match=r"within 0\.1 s"):
        await tokens_of(backend, request_of(1, queue_timeout_s=0.1))


async def test_a_first_start_that_fails_raises_its_cause_and_leaves_nothing(
    generators: Callable[..., Generator],
) -> None:
    generator = generators(groups=FakeGroups(failures=[OSError("no room")]))
    with pytest.raises(OSError, match="no room"):
        await generator.replica.start()
    assert generator.groups.made[0].is_killed


async def test_weights_that_give_no_numbers_are_refused_before_anybody_asks(
    generators: Callable[..., Generator],
) -> None:
    class Broken(FakeModel):
        def next_token(self, *_args: object) -> int:
            return -1

    generator = generators(groups=FakeGroups(model=Broken()))
    with pytest.raises(ConfigError, match="first output is not finite"):
        await generator.replica.start()


async def test_a_first_step_without_memory_is_told_as_such(generators: Callable[..., Generator]) -> None:
    generator = generators(groups=FakeGroups(model=FakeModel(has_memory=False)), pipeline=1)
    with pytest.raises(ConfigError, match="the GPU had no memory for a step"):
        await generator.replica.start()


async def test_a_cache_that_holds_no_block_is_refused(generators: Callable[..., Generator]) -> None:
    with pytest.raises(ConfigError, match="holds no block"):
        await generators(groups=FakeGroups(num_blocks=0)).replica.start()


async def test_a_replica_that_shall_leave_lets_its_streams_end(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    slow_down(generator, 0.01)
    request = request_of(1, 50)
    running = await begun(backend, request)
    closing = asyncio.create_task(generator.replica.close())
    await until(lambda: states(backend) == {"demo": ["draining"]})
    assert await running == expected(request)
    await closing
    assert generator.groups.made[-1].is_killed
    await until(lambda: states(backend) == {"demo": []})


async def test_streams_go_on_with_another_copy_when_a_router_dies(
    generators: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_replicas, "FRESH_S", 0.8)
    monkeypatch.setattr(known_replicas, "LOST_S", 1.2)
    first, second = generators("a"), generators("b")
    await first.replica.start()
    control = FakeControl()
    control.add("demo", "Router", first)
    async with running_backend(control) as backend:
        await until(lambda: states(backend).get("demo") == ["ready"])
        slow_down(first, 0.3)
        running = await begun(backend, request_of(1, 50))
        for shard in first.groups.made[-1].shards:
            shard.is_stuck.set()
        waiting = asyncio.create_task(tokens_of(backend, request_of(2)))
        await until(lambda: first.calls.work.load().num_running + first.calls.work.load().num_waiting == 2)
        await second.replica.start()
        control.add("demo", "Router", second)
        second.links.register(backend._own_address())
        await die(first)
        assert await running == expected(request_of(1, 50))
        assert await waiting == expected(request_of(2))
        assert second.calls.work.load().num_running == 0


async def test_a_copy_tells_what_was_planned_and_what_its_shards_take(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    for shard in generator.groups.made[0].shards:
        shard.step_s = 0.001
    (new,) = await backend.accounts()
    assert (new.model, new.replica_id, new.device) == ("demo", "a", "cpu")
    await tokens_of(backend, request_of(max_tokens=40))
    loop = generator.replica.copy._loop
    await until(lambda: loop is not None and None not in loop.memory_taken)
    (account,) = await backend.accounts()
    assert account.notes == []
    assert [(one.stage, one.rank) for one in account.shards] == [(0, 0), (1, 0)]
    assert account.shards[0].layers[1] == account.shards[1].layers[0]
    for one in account.shards:
        assert one.predicted is not None
        assert one.predicted.total_bytes > one.predicted.weights_bytes > 0
        assert one.measured == MeasuredBytes.of(0, TAKEN)
    assert account.predicted is not None
    assert account.predicted.context_tokens == 64
    assert account.measured.decode_sequences == 1
    assert 1 < (account.measured.decode_tokens_per_s or 0) < 1000


async def test_a_copy_that_has_lost_its_shards_tells_what_was_planned(served: tuple[Generator, ServeBackend]) -> None:
    generator, backend = served
    generator.groups.failures = [ShardLostError("no place")]
    generator.replica.copy._retry_s = 10.0
    generator.groups.made[0].die()
    await until(lambda: not generator.groups.failures)
    (account,) = await backend.accounts()
    assert [one.measured for one in account.shards] == [None, None]
    assert all(one.predicted is not None for one in account.shards)
