"""The step loop over the real control link, with shards that are threads of this process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from serve_app.deployments.bubble import BubbleMeter
from serve_app.deployments.stage_times import StageTimes
from serve_app.deployments.step_loop import StepLoop
from serve_app.errors import InternalError, RequestError, ShardLostError
from serve_app.metrics.families import STEPS
from serve_app.metrics.times import Times
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.wire.control_link import ControlServer
from serve_app.wire.links import LOOPBACK
from tests.calm import Calm
from tests.fakes_engine import BEAT_S, CacheOracle, FakeModel, FakeShard, SlowCompiler, run_alone

EOS = frozenset({0})
HEARTBEAT_S = 0.8
LIMITS = EngineLimits(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, block_size=4, num_blocks=24)
MODEL = FakeModel()
SLACK_S = 0.7  # the watch looks four times a second; the rest is for a busy machine


@dataclass(slots=True)
class Group:
    """A step loop with its shards."""

    loop: StepLoop
    scheduler: Scheduler
    shards: list[FakeShard]
    running: asyncio.Task[None]
    bubble: BubbleMeter
    times: Times

    def submit(self, request: GenerateRequest) -> list[Sequence]:
        """Queue a request; raises what the scheduler raises."""
        sequences = self.scheduler.add(request)
        self.loop.wake()
        return sequences

    def abort(self, sequences: list[Sequence]) -> None:
        """End sequences."""
        for sequence in sequences:
            self.scheduler.abort(sequence)
        self.loop.wake()

    async def finish(self, sequences: list[Sequence]) -> None:
        """Wait for the end of these."""
        await until(lambda: all(sequence.is_finished for sequence in sequences), self.running)

    async def loss(self) -> BaseException:
        """Wait for the end of the loop."""
        async with asyncio.timeout(10):
            await asyncio.wait([self.running])
        error = self.running.exception()
        assert error is not None
        return error


async def until(condition: Callable[[], bool], running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            if running.done():
                running.result()
            await asyncio.sleep(0.005)


@asynccontextmanager
async def group_of(
    num_shards: int = 2,
    *,
    num_stages: int = 2,
    step_s: float = 5.0,
    num_absent: int = 0,
    compiler: SlowCompiler | None = None,
) -> AsyncIterator[Group]:
    """All shards but the absent ones are started; a test may start those."""
    control = ControlServer(LOOPBACK, 3, num_shards)
    shards = [FakeShard(control.address, index, num_shards, CacheOracle(LIMITS, MODEL)) for index in range(num_shards)]
    shards[-1].compiler = compiler
    outputs: list[SequenceOutput] = []
    scheduler = Scheduler(
        LIMITS, num_stages=num_stages, max_queued=8, eos_token_ids=EOS, awaits_grammars=compiler is not None
    )
    bubble = BubbleMeter([index * num_stages // num_shards for index in range(num_shards)], time.monotonic())
    times = Times(STEPS.bounds_s)
    loop = StepLoop(
        scheduler,
        control,
        num_shards,
        outputs.extend,
        times,
        bubble,
        StageTimes(),
        grammars=scheduler.grammars,
        heartbeat_s=HEARTBEAT_S,
        step_s=step_s,
    )
    group = Group(loop, scheduler, shards, asyncio.create_task(loop.run()), bubble, times)
    for shard in shards[num_absent:]:
        shard.start()
    try:
        if not num_absent:
            async with asyncio.timeout(10):
                await loop.wait_for_shards()
        yield group
    finally:
        group.running.cancel()
        (end,) = await asyncio.gather(group.running, return_exceptions=True)
        control.send_stop()
        for shard in shards:
            await asyncio.to_thread(shard.join)
        control.close()
    if isinstance(end, asyncio.CancelledError):  # it did not fail
        check_outputs(outputs)


def check_outputs(outputs: list[SequenceOutput]) -> None:
    """What was handed on is what the sequences hold, each token once."""
    seen: dict[Sequence, list[int]] = {}
    for output in outputs:
        tokens = seen.setdefault(output.sequence, [])
        assert output.chunk.first_index == len(tokens)
        tokens += output.chunk.token_ids
    for sequence, tokens in seen.items():
        assert tokens == sequence.token_ids[sequence.num_prompt_tokens :]


def request_of(seed: int, *, num_tokens: int = 5, max_tokens: int = 12, num_choices: int = 1) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=max_tokens > 12)
    return GenerateRequest(f"request-{seed}", list(range(1, num_tokens + 1)), params, num_choices)


def assert_right(request: GenerateRequest, sequences: list[Sequence]) -> None:
    for sequence in sequences:
        reference = run_alone(MODEL, request, sequence.choice, LIMITS.max_model_len, EOS)
        outputs = sequence.token_ids[sequence.num_prompt_tokens :]
        assert (outputs, sequence.finish_reason) == (reference.token_ids, reference.finish_reason)


@pytest.mark.parametrize(("num_shards", "num_stages"), [(1, 1), (2, 2), (4, 2)])
async def test_requests_that_come_at_different_times_get_what_they_get_alone(num_shards: int, num_stages: int) -> None:
    async with group_of(num_shards, num_stages=num_stages) as group:
        requests = [request_of(seed, num_tokens=3 * seed, num_choices=1 + seed % 2) for seed in range(1, 8)]
        submitted: list[list[Sequence]] = []
        for request in requests:
            await until(lambda: group.scheduler.num_waiting < 6, group.running)
            submitted.append(group.submit(request))
            await asyncio.sleep(0.002)
        for request, sequences in zip(requests, submitted, strict=True):
            await group.finish(sequences)
            assert_right(request, sequences)
        await until(lambda: group.scheduler.num_steps_in_flight == 0, group.running)
        assert group.scheduler.num_free_blocks == LIMITS.num_blocks


async def test_requests_that_come_together_start_in_one_step() -> None:
    async with group_of() as group:
        group.shards[-1].is_stuck.set()
        sequences = [group.submit(request_of(seed, num_tokens=2))[0] for seed in (1, 2, 3)]
        assert group.scheduler.num_steps_in_flight == 0
        await until(lambda: group.scheduler.num_steps_in_flight > 0, group.running)
        assert {sequence.last_step_id for sequence in sequences} == {0}
        group.shards[-1].is_stuck.clear()
        group.shards[-1].is_free.set()
        await group.finish(sequences)


async def test_the_loop_tells_which_shards_wait_for_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.deployments.bubble._MIN_S", 0.1)
    async with group_of(num_stages=1) as group:
        assert group.bubble.shares() == [None, None]
        group.shards[1].step_s = 0.03  # the one that answers: the other is done long before
        sequences = group.submit(request_of(1, max_tokens=50))
        await until(lambda: None not in group.bubble.shares(), group.running)
        first, last = group.bubble.shares()
        assert first is not None
        assert last is not None
        assert last < 0.7 < first
        group.shards[1].step_s = 0
        await group.finish(sequences)
        assert group.times.count >= 50
        assert group.times.sum_s > 0.1, "steps are timed from their sending to their outputs"
        assert group.bubble.busy_s > 0


async def test_what_the_scheduler_refuses_reaches_who_submits() -> None:
    async with group_of() as group:
        with pytest.raises(RequestError):
            group.submit(request_of(1, num_choices=9))


async def test_no_step_is_sent_before_all_shards_have_connected() -> None:
    async with group_of(num_absent=1) as group:
        sequences = group.submit(request_of(1))
        await until(lambda: group.loop._greeted == {1}, group.running)
        await asyncio.sleep(0.05)
        assert sequences[0].last_step_id == -1
        group.shards[0].start()
        await group.finish(sequences)
        assert_right(request_of(1), sequences)


async def test_an_abort_frees_blocks_and_the_others_go_on() -> None:
    async with group_of() as group:
        for shard in group.shards:
            shard.step_s = 0.01
        gone = group.submit(request_of(1, max_tokens=50))
        stays = group.submit(request_of(2, num_tokens=30, num_choices=2))
        await until(lambda: gone[0].num_outputs > 3, group.running)
        held = sum(len(sequence.block_table) for sequence in stays)
        group.abort(gone)
        assert group.scheduler.num_free_blocks == LIMITS.num_blocks - held
        num_outputs = gone[0].num_outputs
        await group.finish(stays)
        assert_right(request_of(2, num_tokens=30, num_choices=2), stays)
        assert (gone[0].num_outputs, gone[0].finish_reason) == (num_outputs, "abort")
        await until(lambda: group.scheduler.num_steps_in_flight == 0, group.running)
        assert group.scheduler.num_free_blocks == LIMITS.num_blocks


async def test_an_abort_lets_the_next_in_the_queue_start_at_once() -> None:
    async with group_of() as group:
        group.shards[-1].is_stuck.set()
        running = group.submit(request_of(1, num_tokens=2, num_choices=4))
        waiting = group.submit(request_of(2))
        await until(lambda: group.scheduler.num_running == 4, group.running)
        assert group.scheduler.num_steps_in_flight == 1
        group.abort(running)
        await until(lambda: group.scheduler.num_steps_in_flight == 2, group.running)  # no output has come
        group.shards[-1].is_stuck.clear()
        group.shards[-1].is_free.set()
        await group.finish(waiting)
        assert_right(request_of(2), waiting)


@pytest.mark.parametrize(("num_shards", "num_stages"), [(1, 1), (4, 2)])
async def test_a_slow_grammar_holds_back_its_own_requests_alone(num_shards: int, num_stages: int) -> None:
    compiler = SlowCompiler()
    async with group_of(num_shards, num_stages=num_stages, compiler=compiler) as group:
        running = group.submit(request_of(1, max_tokens=40))
        held_request = request_of(2, num_choices=2)
        held_request = replace(held_request, params=replace(held_request.params, grammar="slow"))
        held = group.submit(held_request)
        await until(compiler.has_begun.is_set, group.running)
        later = group.submit(request_of(3, max_tokens=20))
        await group.finish(running + later)
        assert [sequence.last_step_id for sequence in held] == [-1, -1]
        assert group.scheduler.waits_for == "grammar"
        compiler.finish("slow")
        await group.finish(held)
        for request, sequences in (
            (request_of(1, max_tokens=40), running),
            (held_request, held),
            (request_of(3, max_tokens=20), later),
        ):
            assert_right(request, sequences)
        known = replace(held_request, params=replace(held_request.params, seed=4))
        again = group.submit(known)
        await group.finish(again)
        assert_right(known, again)


# Losses


@pytest.mark.parametrize("index", [0, 1])
async def test_a_shard_that_falls_silent_is_lost_within_the_heartbeat(index: int) -> None:
    async with group_of() as group:
        await asyncio.sleep(3 * BEAT_S)
        group.shards[index].is_silent.set()
        started = time.monotonic()
        async with Calm() as calm:
            error = await group.loss()
            assert calm.lasted_s < HEARTBEAT_S + SLACK_S
        assert time.monotonic() - started > HEARTBEAT_S - 2 * BEAT_S
        assert isinstance(error, ShardLostError)
        assert f"shard {index} has been silent" in error.message


async def test_a_step_that_never_ends_is_a_loss_though_all_shards_beat() -> None:
    async with group_of(step_s=0.6) as group:
        group.shards[0].is_stuck.set()  # the last stage answers: progress is counted where steps end
        sequences = group.submit(request_of(1))
        await group.finish(sequences)
        group.shards[1].is_stuck.set()
        group.submit(request_of(2))
        started = time.monotonic()
        async with Calm() as calm:
            error = await group.loss()
            assert calm.lasted_s < 0.6 + SLACK_S
        assert time.monotonic() - started >= 0.6
        assert isinstance(error, ShardLostError)
        assert "no step has ended for" in error.message


async def test_time_without_work_does_not_count_towards_the_next_step() -> None:
    async with group_of(step_s=1.5) as group:
        await asyncio.sleep(1.8)
        group.shards[-1].step_s = 0.4  # long enough for the watch to look at it
        sequences = group.submit(request_of(1, max_tokens=1))
        await group.finish(sequences)
        assert_right(request_of(1, max_tokens=1), sequences)
        await asyncio.sleep(1.8)
        assert not group.running.done()


async def test_a_group_whose_steps_all_end_is_not_lost_however_long_the_work() -> None:
    async with group_of(step_s=1.5) as group:
        for shard in group.shards:
            shard.step_s = 0.1
        request = request_of(1, max_tokens=20, num_choices=2)  # two steps in flight all the time
        sequences = group.submit(request)
        await group.finish(sequences)
        assert_right(request, sequences)


def stand_still(stall_s: float) -> None:
    """The Router's process does not run."""
    time.sleep(stall_s)


async def test_a_stall_of_the_router_itself_is_not_a_loss_of_shards() -> None:
    async with group_of() as group:
        sequences = group.submit(request_of(1, max_tokens=40))
        await until(lambda: sequences[0].num_outputs > 1, group.running)
        stand_still(1.5 * HEARTBEAT_S)
        await asyncio.sleep(0.4)
        for shard in group.shards:  # what they send during the next stall comes late
            shard.is_silent.set()
        stand_still(1.5 * HEARTBEAT_S)
        await asyncio.sleep(0.4)
        for shard in group.shards:
            shard.is_silent.clear()
        await group.finish(sequences)
        assert_right(request_of(1, max_tokens=40), sequences)
        assert not group.running.done()


async def test_a_step_that_ends_right_after_a_stall_has_not_taken_too_long() -> None:
    async with group_of(step_s=0.5) as group:
        group.shards[-1].is_stuck.set()
        sequences = group.submit(request_of(1))
        await until(lambda: group.scheduler.num_steps_in_flight > 0, group.running)
        stand_still(1.0)
        group.shards[-1].is_stuck.clear()
        group.shards[-1].is_free.set()
        await group.finish(sequences)
        assert_right(request_of(1), sequences)


async def test_a_shard_that_falls_silent_after_a_stall_is_noticed_as_soon_as_ever() -> None:
    async with group_of() as group:
        await asyncio.sleep(0.3)
        stand_still(2.0)  # the beats of that time are read at its end
        group.shards[0].is_silent.set()
        async with Calm() as calm:
            error = await group.loss()
            assert calm.lasted_s < HEARTBEAT_S + 0.25 + SLACK_S
        assert isinstance(error, ShardLostError)


# Its own faults


@pytest.mark.parametrize("how", ["after a request", "after an abort"])
async def test_blocks_out_of_balance_end_the_loop(how: str) -> None:
    async with group_of() as group:
        group.scheduler._blocks.grow([], 1)  # into a table that nobody has
        if how == "after a request":
            group.submit(request_of(1))
        else:
            group.abort([])
        error = await group.loss()
        assert isinstance(error, InternalError)
        assert "KV blocks out of balance" in error.message


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_a_loop_that_has_ended_leaves_nothing_running(how: str) -> None:
    async with group_of() as group:
        if how == "cancelled":
            group.running.cancel()
        else:
            group.scheduler._blocks.grow([], 1)  # into a table that nobody has
            group.abort([])
        await asyncio.gather(group.running, return_exceptions=True)
        await asyncio.sleep(0)
        assert [task for task in asyncio.all_tasks() if "StepLoop" in repr(task.get_coro())] == []
