"""Drives a model copy as a Router does, without Ray: its shards in plain processes, or one in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.deployments.step_loop import StepLoop
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.plain_processes import HOST, PlainProcesses
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.planner import plan_shards
from serve_app.scheduling.scheduler import Scheduler, SequenceOutput
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import FinishReason, GenerateRequest, SamplingParams, TokenLogprobs
from serve_app.types.shards import EngineLimits, ShardReport, ShardSettings, ShardSpec
from serve_app.types.steps import StepInput
from serve_app.wire.links import ControlServer

WHOLE = ShardSpec(stage=0, num_stages=1, rank=0, num_ranks=1, first_layer=0, end_layer=4)


@dataclass(frozen=True, slots=True)
class Split:
    """Pipeline x tensor."""

    pipeline: int
    tensor: int

    def __str__(self) -> str:
        return f"{self.pipeline}x{self.tensor}"

    @property
    def num_shards(self) -> int:
        """Processes that it takes."""
        return self.pipeline * self.tensor


@dataclass(slots=True)
class Outcome:
    """What came of one request (of one choice)."""

    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


def greedy(
    request_id: str, prompt: list[int], max_tokens: int, *, with_prompt_logprobs: bool = False
) -> GenerateRequest:
    """A request for so many most probable tokens."""
    num_prompt_logprobs = 0 if with_prompt_logprobs else None
    params = SamplingParams(max_tokens, seed=0, temperature=0.0, num_prompt_logprobs=num_prompt_logprobs)
    return GenerateRequest(request_id, prompt, params)


def load_group(
    pool: PlainProcesses,
    directory: Path,
    split: Split,
    *,
    dtype: str = "float32",
    block_size: int = 16,
    collective_s: float = 60.0,
) -> list[ShardReport]:
    """Load a checkpoint into the pool's first processes, split as the planner says."""
    shards = plan_shards(read_model_spec(directory), split.pipeline, split.tensor).shards
    settings = ShardSettings(
        shard=shards[0],
        source_dir=str(directory),
        dtype=dtype,
        device="cpu",
        num_threads=1,
        block_size=block_size,
        kv_cache_bytes=1 << 20,
        gpu_memory_utilization=0.9,
        max_num_batched_tokens=64,
    )
    return pool.load(settings, shards, collective_s=collective_s)


class PlainCopy:
    """A loaded group under a step loop. Made within a running event loop."""

    def __init__(
        self,
        pool: PlainProcesses,
        split: Split,
        limits: EngineLimits,
        *,
        heartbeat_s: float = 10.0,
        step_s: float = 60.0,
    ) -> None:
        self._pool = pool
        self._num_shards = split.num_shards
        pool.allocate(split.num_shards, limits)
        self._control = ControlServer(HOST, 1, split.num_shards)
        self.scheduler = Scheduler(limits, num_stages=split.pipeline, max_queued=1000)
        self.loop = StepLoop(
            self.scheduler, self._control, split.num_shards, self._take, heartbeat_s=heartbeat_s, step_s=step_s
        )
        self._outcomes: dict[str, Outcome] = {}
        self._news = asyncio.Event()
        pool.run(split.num_shards, self._control.address)
        self.running = asyncio.create_task(self.loop.run())

    def submit(self, request: GenerateRequest) -> Sequence:
        """Queue a request of one choice."""
        self._outcomes[request.request_id] = Outcome()
        (sequence,) = self.scheduler.add(request)
        self.loop.wake()
        return sequence

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """End sequences."""
        for sequence in sequences:
            self.scheduler.abort(sequence)
        self.loop.wake()

    def outcome(self, request_id: str) -> Outcome:
        """What has come of a request so far."""
        return self._outcomes[request_id]

    async def generate(self, requests: Iterable[GenerateRequest], gap_s: float = 0.0) -> list[Outcome]:
        """Run requests that come one after the other, so many seconds apart, to their ends."""
        sequences = []
        for request in requests:
            sequences.append(self.submit(request))
            await asyncio.sleep(gap_s)
        await self.until(lambda: all(sequence.is_finished for sequence in sequences))
        return [self._outcomes[sequence.request_id] for sequence in sequences]

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something that new tokens bring about; raises what ends the step loop."""
        while not is_true():
            self._news.clear()
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait({news, self.running}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            if self.running.done():
                self.running.result()

    async def stop(self) -> None:
        """End the shards' run in good order; the pool can load the next model."""
        self._control.send_stop()
        await asyncio.to_thread(self._pool.wait, self._num_shards)

    async def close(self) -> None:
        """Let go of the step loop and the link, whatever has become of the shards."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self._control.close()

    def _take(self, outputs: list[SequenceOutput]) -> None:
        _collect(self._outcomes, outputs)
        self._news.set()


@asynccontextmanager
async def plain_copy(pool: PlainProcesses, split: Split, limits: EngineLimits) -> AsyncIterator[PlainCopy]:
    """A loaded group under a step loop that is stopped in good order, after a failed assertion too."""
    copy = PlainCopy(pool, split, limits)
    try:
        await copy.loop.wait_for_shards()
        yield copy
    finally:
        if not copy.running.done():
            await copy.stop()
        await copy.close()


def load_runner(
    directory: Path, limits: EngineLimits, runner_class: type[ModelRunner] = ModelRunner, dtype: str = "float32"
) -> ModelRunner:
    """A whole model of four layers in this process."""
    communicator = LoneCommunicator()
    device = torch.device("cpu")
    loaded = load_stage(directory, dtype, WHOLE, communicator, device)
    return runner_class(loaded.stage, limits, communicator, device)


def run_in_process(
    runner: ModelRunner,
    limits: EngineLimits,
    requests: Iterable[GenerateRequest],
    on_step: Callable[[StepInput], None] = lambda _step: None,
) -> list[Outcome]:
    """Run requests that come together through one runner, step after step."""
    scheduler = Scheduler(limits, num_stages=1, max_queued=1000)
    outcomes: dict[str, Outcome] = {}
    for request in requests:
        scheduler.add(request)
        outcomes[request.request_id] = Outcome()
    while (step := scheduler.schedule()) is not None:
        on_step(step)
        output = runner.run(step)
        assert output is not None
        _collect(outcomes, scheduler.update(output))
    scheduler.check()
    assert scheduler.num_free_blocks == limits.num_blocks
    return list(outcomes.values())


def _collect(outcomes: dict[str, Outcome], outputs: list[SequenceOutput]) -> None:
    for output in outputs:
        outcome, chunk = outcomes[output.sequence.request_id], output.chunk
        assert chunk.first_index == len(outcome.token_ids), "no token is lost or sent twice"
        outcome.token_ids += chunk.token_ids
        outcome.prompt_logprobs += chunk.prompt_logprobs or []
        outcome.finish_reason = chunk.finish_reason
