"""Drives a model copy as a Router does, without Ray: its shards in plain processes, or one in this process."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Sequence as Sequenced
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.copy_work import CopyWork
from serve_app.deployments.generation_work import GenerationWork
from serve_app.deployments.model_copy import ModelCopy
from serve_app.deployments.step_loop import StepScheduler
from serve_app.engine.attention.backend import DecodeBackend
from serve_app.engine.attention.choice import DecodeSizes, attention_of
from serve_app.engine.decode_graphs import Capture
from serve_app.engine.grammars import Grammars
from serve_app.engine.launched_step import LaunchedStep
from serve_app.engine.loader import load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.plain_processes import PlainProcesses, ProcessShardGroup
from serve_app.errors import RayshardError
from serve_app.models.compiled.library import CompiledKernels
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.generator_plan import GeneratorPlan, plan_generator
from serve_app.planning.planner import kv_shape_on, plan_shards
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import FinishReason, GenerateRequest, SamplingParams, TokenLogprobs
from serve_app.types.shards import (
    BatchShardSettings,
    EngineLimits,
    LoadQuantization,
    ShardReport,
    ShardSettings,
    ShardSpec,
)
from serve_app.types.steps import StepInput

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
    params = SamplingParams(
        max_tokens, seed=0, temperature=0.0, ignore_eos=True, num_prompt_logprobs=num_prompt_logprobs
    )
    return GenerateRequest(request_id, prompt, params)


def shard_settings(
    directory: Path, split: Split, *, dtype: str = "float32", block_size: int = 16
) -> list[ShardSettings | BatchShardSettings]:
    """Settings of every shard of a checkpoint, split as the planner says."""
    return [
        ShardSettings(
            shard=shard,
            source_dir=str(directory),
            dtype=dtype,
            device="cpu",
            num_threads=1,
            block_size=block_size,
            kv_cache_bytes=1 << 20,
            gpu_memory_utilization=0.9,
            max_num_batched_tokens=64,
            max_num_seqs=8,
            linear_kernel="onednn",  # the same on every CPU
        )
        for shard in plan_shards(read_model_spec(directory), split.pipeline, split.tensor).shards
    ]


def load_group(
    pool: PlainProcesses, directory: Path, split: Split, *, dtype: str = "float32", block_size: int = 16
) -> list[ShardReport]:
    """Load a checkpoint into the pool's first processes."""
    return pool.load_each(shard_settings(directory, split, dtype=dtype, block_size=block_size), 60.0, 60.0)


class DrivenCopy:
    """A ModelCopy on plain processes, and what comes of its requests. Made within a running event loop.

    limits: `num_blocks` is what the largest shard has room for.
    """

    def __init__(
        self, directory: Path, split: Split, limits: EngineLimits, *, heartbeat_s: float = 10.0, step_s: float = 60.0
    ) -> None:
        self.errors: list[RayshardError] = []  # why epochs have ended
        self.groups: list[ProcessShardGroup] = []
        self._outcomes: dict[str, Outcome] = {}
        self._news = asyncio.Event()
        spec = read_model_spec(directory)
        shards = plan_shards(spec, split.pipeline, split.tensor).shards
        block_bytes = max(kv_shape_on(shard, spec, "float32").block_bytes(limits.block_size) for shard in shards)
        config = ModelConfig.model_validate(
            {
                "name": "driven",
                "source": str(directory),
                "dtype": "float32",
                "max_model_len": limits.max_model_len,
                "parallel": {"pipeline": split.pipeline, "tensor": split.tensor},
                "device": {"cpu_threads": 1},
                "engine": {
                    "max_num_seqs": limits.max_num_seqs,
                    "max_num_batched_tokens": limits.max_num_batched_tokens,
                    "block_size": limits.block_size,
                    "kv_cache_bytes": limits.num_blocks * block_bytes,
                    "max_queued": 1000,
                },
                "timeouts": {"heartbeat_s": heartbeat_s, "collective_s": step_s, "rendezvous_s": 60.0},
            }
        )
        plan = plan_generator(config, directory, read_environment({})).refuse_problems()
        self.work = ShownWork(plan, self._take)
        self.copy = ModelCopy(self.work, self._make_group, self._lose, retry_s=0.01)
        self._supervising: asyncio.Task[None] | None = None

    @property
    def scheduler(self) -> Scheduler:
        """Of the epoch at hand."""
        return self.work.schedulers[-1]

    async def start(self) -> None:
        """Bring the first epoch up."""
        await self.copy.start()
        self._supervising = asyncio.create_task(self.copy.supervise())

    def submit(self, request: GenerateRequest) -> Sequence:
        """Queue a request of one choice."""
        self._outcomes[request.request_id] = Outcome()
        (sequence,) = self.work.submit(request)
        self.copy.wake()
        return sequence

    def abort(self, sequences: list[Sequence]) -> None:
        """End sequences."""
        self.work.abort(sequences)
        self.copy.wake()

    def outcome(self, request_id: str) -> Outcome:
        """What has come of a request so far."""
        return self._outcomes[request_id]

    async def generate(self, requests: Iterable[GenerateRequest], gap_s: float = 0.0) -> list[Outcome]:
        """Run requests that come one after the other, that many seconds apart, to their ends."""
        sequences = []
        for request in requests:
            sequences.append(self.submit(request))
            await asyncio.sleep(gap_s)
        await self.until(lambda: all(sequence.is_finished for sequence in sequences))
        return [self._outcomes[sequence.request_id] for sequence in sequences]

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something that new tokens bring about; raises what has ended an epoch meanwhile."""
        num_errors = len(self.errors)
        while not is_true():
            self._news.clear()
            await self._news.wait()
            if len(self.errors) > num_errors:
                raise self.errors[-1]

    async def until_idle(self) -> None:
        """Wait until no step is in flight."""
        await asyncio.wait_for(self.until(lambda: self.scheduler.num_steps_in_flight == 0), timeout=30)

    async def close(self) -> None:
        """End all processes."""
        if self._supervising is not None:
            self._supervising.cancel()
        self.copy.close()
        await asyncio.sleep(0)
        for group in self.groups:
            for process in group.processes:
                await asyncio.to_thread(process.join)

    def _make_group(self, work: CopyWork) -> ProcessShardGroup:
        self.groups.append(ProcessShardGroup([work.settings(shard, 1) for shard in work.shards]))
        return self.groups[-1]

    def _take(self, outputs: list[SequenceOutput]) -> None:
        _collect(self._outcomes, outputs)
        self._news.set()

    def _lose(self, error: RayshardError) -> None:
        self.errors.append(error)
        self._news.set()


class ShownWork(GenerationWork):
    """GenerationWork whose schedulers a test may look at."""

    def __init__(self, plan: GeneratorPlan, on_outputs: Callable[[list[SequenceOutput]], None]) -> None:
        super().__init__(plan, on_outputs)
        self.schedulers: list[Scheduler] = []

    def scheduler(self, reports: Sequenced[ShardReport], limits: EngineLimits | None) -> StepScheduler:
        """See CopyWork."""
        made = super().scheduler(reports, limits)
        assert isinstance(made, Scheduler)
        self.schedulers.append(made)
        return made


@asynccontextmanager
async def driven_copy(
    directory: Path, split: Split, limits: EngineLimits, **settings: float
) -> AsyncIterator[DrivenCopy]:
    """A copy that runs, and is ended after a failed assertion too."""
    driven = DrivenCopy(directory, split, limits, **settings)
    try:
        await driven.start()
        yield driven
    finally:
        await driven.close()


def load_runner(
    directory: Path,
    limits: EngineLimits,
    runner_class: type[ModelRunner] = ModelRunner,
    dtype: str = "float32",
    *,
    attention: str | DecodeBackend = "auto",
    capture: Capture | None = None,
    quantization: LoadQuantization | None = None,
    kernels: CompiledKernels | None = None,
    linear_kernel: str | None = None,
    grammars: Grammars | None = None,
) -> ModelRunner:
    """A whole model of four layers in this process."""
    communicator = LoneCommunicator()
    device = torch.device("cpu")
    stage = load_stage(
        directory, dtype, WHOLE, communicator, device, quantization, linear_kernel=linear_kernel, compiled=kernels
    ).stage
    backend: DecodeBackend | None
    if isinstance(attention, str):
        backend = attention_of(attention, stage, DecodeSizes.within(limits), device, kernels).backend
    else:
        backend = attention
    return runner_class(stage, limits, communicator, device, backend, capture, grammars=grammars)


def run_in_process(
    runner: ModelRunner,
    limits: EngineLimits,
    requests: Iterable[GenerateRequest],
    on_step: Callable[[StepInput], None] = lambda _step: None,
    *,
    joins_blocks: bool = False,
    overlaps_steps: bool = False,
    eos_token_ids: frozenset[int] = frozenset(),
) -> list[Outcome]:
    """Run requests that come together through one runner, step after step.

    overlaps_steps: each step is launched before the tokens of the one before are read.
    """
    scheduler = Scheduler(
        limits,
        num_stages=1,
        max_queued=1000,
        eos_token_ids=eos_token_ids,
        joins_blocks=joins_blocks,
        overlaps_steps=overlaps_steps,
    )
    outcomes: dict[str, Outcome] = {}
    for request in requests:
        scheduler.add(request)
        outcomes[request.request_id] = Outcome()
    launched: deque[LaunchedStep] = deque()
    while True:
        while (step := scheduler.schedule()) is not None:
            on_step(step)
            pending = runner.launch(step)
            assert pending is not None
            launched.append(pending)
        if not launched:
            break
        _collect(outcomes, scheduler.update(launched.popleft().output()))
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
