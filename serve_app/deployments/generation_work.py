"""Generation on the shards of a model copy: sequences, KV cache, tokens."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from serve_app.deployments.copy_work import Load, QueueTimes, Signals
from serve_app.deployments.step_loop import StepLoop, StepScheduler
from serve_app.deployments.step_traces import StepTraces
from serve_app.errors import ConfigError
from serve_app.planning.generator_plan import GeneratorPlan
from serve_app.planning.memory_plan import useful_blocks
from serve_app.scheduling.grammar_waits import GrammarWaits
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.tracing.tracing import Tracing
from serve_app.types.generation import GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.models import CopyCounts
from serve_app.types.plans import SeenRates
from serve_app.types.shards import EngineKind, EngineLimits, ShardReport, ShardSettings, ShardSpec

logger = logging.getLogger(__name__)


class GenerationWork:
    """CopyWork of a model that generates."""

    engine_kind: EngineKind = "generation"

    def __init__(
        self,
        plan: GeneratorPlan,
        on_outputs: Callable[[list[SequenceOutput]], None],
        tracing: Tracing | None = None,
    ) -> None:
        self.config = plan.config
        self.name = plan.config.name
        self.shards = plan.shards
        self.sources = [plan.source]
        stages = [shard.stage for shard in plan.shards]
        self.traces = None if tracing is None else StepTraces(tracing, "prefill", stages)
        self.max_model_len = plan.max_model_len
        self.max_request_tokens = plan.max_model_len  # prompt and output tokens of the longest sequence that fits
        self._plan = plan
        self._on_outputs = on_outputs
        self._scheduler: Scheduler | None = None
        self._queue_times: QueueTimes[TokenSequence] = QueueTimes()
        self._num_preemptions = 0  # of epochs that are over
        self._warm_up: asyncio.Future[OutputChunk] | None = None  # how the first request of an epoch has ended

    def settings(self, shard: ShardSpec, num_threads: int) -> ShardSettings:
        """How one shard is to be made."""
        return self._plan.settings(shard, num_threads)

    def limits(self, reports: Sequence[ShardReport]) -> EngineLimits:
        """The KV cache that the shard with the least room allows."""
        engine = self.config.engine
        num_blocks = min(report.num_blocks for report in reports)
        if num_blocks < 1:
            raise ConfigError(
                "the memory left for the KV cache holds no block; raise engine.kv_cache_bytes or "
                "engine.gpu_memory_utilization, lower engine.max_num_batched_tokens, or split the model over more "
                "shards",
                field="engine.kv_cache_bytes",
            )
        num_tokens = num_blocks * engine.block_size
        if num_tokens < self.max_model_len:
            if self.config.max_model_len is not None:
                raise ConfigError(
                    f"max_model_len={self.max_model_len} does not fit the KV cache of {num_tokens} tokens; raise "
                    "engine.kv_cache_bytes or engine.gpu_memory_utilization, or lower max_model_len",
                    field="max_model_len",
                )
            logger.warning(
                "KV cache shorter than the context model=%s kv_tokens=%d max_model_len=%d",
                self.name,
                num_tokens,
                self.max_model_len,
            )
        return EngineLimits(
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            block_size=engine.block_size,
            num_blocks=min(num_blocks, useful_blocks(self.config, self.max_model_len)),
        )

    def scheduler(self, _reports: Sequence[ShardReport], limits: EngineLimits | None) -> StepScheduler:
        """A new one for each epoch: the KV cache is gone with the shards."""
        assert limits is not None
        self.max_request_tokens = min(self.max_model_len, limits.num_blocks * limits.block_size)
        self._scheduler = Scheduler(
            limits,
            num_stages=self.config.parallel.pipeline,
            max_queued=self.config.engine.max_queued,
            max_num_prefill_tokens=self.config.max_num_prefill_tokens,
            eos_token_ids=self._plan.facts.end_token_ids,
            has_prefix_cache=self.config.engine.prefix_cache,
            joins_blocks=self.config.device.type == "cpu",
            overlaps_steps=self.config.parallel.pipeline == 1,
            awaits_grammars=bool(self._plan.facts.end_token_ids),  # without one a shard has no matchers
            on_start=self._start,
        )
        return self._scheduler

    @property
    def grammars(self) -> GrammarWaits | None:
        """See CopyWork."""
        return None if self._scheduler is None else self._scheduler.grammars

    async def warm_up(self, loop: StepLoop) -> None:
        """Run one small request, so that the first client finds all warm."""
        assert self._scheduler is not None
        self._warm_up = asyncio.get_running_loop().create_future()
        num_tokens = max(1, min(8, self._scheduler.max_request_tokens - 2))
        params = SamplingParams(max_tokens=2, seed=0, ignore_eos=True)
        self._scheduler.add(GenerateRequest("warm-up", [0] * num_tokens, params))
        loop.wake()
        last = await self._warm_up
        self._warm_up = None
        if last.error is not None:
            raise ConfigError(last.error)
        if last.finish_reason == "error":
            raise ConfigError(
                f"dtype={self.config.dtype}: the model's first output is not finite; its weights are damaged, or it "
                "overflows in float16: set dtype to bfloat16 or float32",
                field="dtype",
            )

    def take(self, outputs: list[SequenceOutput]) -> None:
        """New tokens."""
        if self._warm_up is not None:
            more = outputs[0].more if outputs else None
            if more is not None and more.finish_reason is not None and not self._warm_up.done():
                self._warm_up.set_result(more)
            return
        if self.traces is not None:
            self.traces.see(outputs)
        self._on_outputs(outputs)

    def lose_shards(self) -> None:
        """End all sequences: their keys and values are gone."""
        if self._scheduler is not None:
            self._scheduler.abort_all()
            self._num_preemptions += self._scheduler.num_preemptions
            self._scheduler = None
        if self.traces is not None:
            self.traces.lose_shards()

    def submit(self, request: GenerateRequest) -> list[TokenSequence]:
        """Queue a request; raises what Scheduler.add raises."""
        assert self._scheduler is not None, "the copy is ready"
        sequences = self._scheduler.add(request, time.monotonic())
        self._queue_times.add(*sequences, priority=request.priority)
        return sequences

    def abort(self, sequences: list[TokenSequence]) -> None:
        """End sequences, those of an earlier epoch too."""
        self._queue_times.forget(*sequences)
        if self._scheduler is not None:
            for sequence in sequences:
                if not sequence.is_finished:
                    self._scheduler.abort(sequence)

    def _start(self, sequence: TokenSequence) -> None:
        self._queue_times.start(sequence)
        if self.traces is not None:
            self.traces.start(sequence)

    def load(self) -> Load:
        """Sequences, and blocks of the KV cache."""
        scheduler = self._scheduler
        if scheduler is None:
            return Load()
        return Load(
            scheduler.num_running,
            scheduler.num_waiting,
            scheduler.num_free_blocks,
            scheduler.limits.num_blocks,
            scheduler.num_prompt_tokens,
            scheduler.num_cached_tokens,
            scheduler.waits_for,
        )

    def seen_rates(self) -> SeenRates:
        """Tokens each second of this epoch, of late."""
        return SeenRates() if self._scheduler is None else self._scheduler.seen_rates

    def signals(self) -> Signals:
        """See CopyWork."""
        scheduler = self._scheduler
        if scheduler is None:
            return Signals()
        limits = scheduler.limits
        return Signals(
            max(self._queue_times.oldest_s, scheduler.estimated_backlog_s()),
            scheduler.num_waiting,
            scheduler.num_step_tokens,
            scheduler.num_running / limits.max_num_seqs,
            1 - scheduler.num_free_blocks / limits.num_blocks,
        )

    def counts(self) -> CopyCounts:
        """See CopyWork."""
        now = 0 if self._scheduler is None else self._scheduler.num_preemptions
        return CopyCounts(num_preemptions=self._num_preemptions + now, queue=self._queue_times.times.counts())
