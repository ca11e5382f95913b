"""Generation on the shards of a model copy: sequences, KV cache, tokens."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

from serve_app.checkpoints.generation_config import read_eos_token_ids
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.model import ModelConfig
from serve_app.deployments.copy_work import Load
from serve_app.deployments.step_loop import StepLoop, StepScheduler
from serve_app.errors import ConfigError
from serve_app.planning.planner import plan_shards, served_dtype, served_max_model_len
from serve_app.scheduling.scheduler import Scheduler, SequenceOutput
from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.models import ModelSource
from serve_app.types.shards import EngineLimits, ShardReport, ShardSettings, ShardSpec

logger = logging.getLogger(__name__)


class GenerationWork:
    """CopyWork of a model that generates."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        source: ModelSource,
        on_outputs: Callable[[list[SequenceOutput]], None],
    ) -> None:
        self.config = config
        self.name = config.name
        self.shards = plan_shards(spec, config.parallel.pipeline, config.parallel.tensor).shards
        self.sources = [source]
        self.max_model_len = served_max_model_len(spec, config)
        self.max_request_tokens = self.max_model_len  # prompt and output tokens of the longest sequence that fits
        self.eos_token_ids = frozenset(read_eos_token_ids(spec.source_dir, spec.vocab_size))
        self._spec = spec
        self._on_outputs = on_outputs
        self._scheduler: Scheduler | None = None
        self._warm_up: asyncio.Future[str] | None = None  # how the first request of a life has ended

    def settings(self, shard: ShardSpec, num_threads: int) -> ShardSettings:
        """How one shard is to be made."""
        config = self.config
        return ShardSettings(
            shard=shard,
            source_dir=str(self._spec.source_dir),
            dtype=served_dtype(self._spec, config),
            device=config.device.type,
            num_threads=num_threads,
            block_size=config.engine.block_size,
            kv_cache_bytes=config.kv_cache_bytes,
            gpu_memory_utilization=config.engine.gpu_memory_utilization * config.device.gpus_per_shard,
            max_num_batched_tokens=config.engine.max_num_batched_tokens,
            quantization=None if config.quantization is None else config.quantization.for_loading,
        )

    def limits(self, reports: Sequence[ShardReport]) -> EngineLimits:
        """The KV cache that the shard with the least room allows."""
        engine = self.config.engine
        num_blocks = min(report.num_blocks for report in reports)
        if num_blocks < 1:
            raise ConfigError(
                "the memory left for the KV cache holds no block; raise engine.kv_cache_bytes or "
                "engine.gpu_memory_utilization, or split the model over more shards",
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
        most = engine.max_num_seqs * -(-self.max_model_len // engine.block_size)
        return EngineLimits(
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            block_size=engine.block_size,
            num_blocks=min(num_blocks, most),
        )

    def scheduler(self, _reports: Sequence[ShardReport], limits: EngineLimits | None) -> StepScheduler[object]:
        """A new one for each life: the KV cache is gone with the shards."""
        assert limits is not None
        self.max_request_tokens = min(self.max_model_len, limits.num_blocks * limits.block_size)
        self._scheduler = Scheduler(
            limits,
            num_stages=self.config.parallel.pipeline,
            max_queued=self.config.engine.max_queued,
            eos_token_ids=self.eos_token_ids,
        )
        return self._scheduler

    async def warm_up(self, loop: StepLoop[object]) -> None:
        """Run one small request, so that the first client finds all warm."""
        assert self._scheduler is not None
        self._warm_up = asyncio.get_running_loop().create_future()
        num_tokens = max(1, min(8, self._scheduler.max_request_tokens - 2))
        params = SamplingParams(max_tokens=2, seed=0, ignore_eos=True)
        self._scheduler.add(GenerateRequest("warm-up", [0] * num_tokens, params))
        loop.wake()
        reason = await self._warm_up
        self._warm_up = None
        if reason == "error":
            raise ConfigError(
                f"dtype={self.config.dtype}: the model's first output is not finite; its weights are damaged, or it "
                "overflows in float16: set dtype to bfloat16 or float32",
                field="dtype",
            )

    def take(self, results: object) -> None:
        """New tokens."""
        outputs = cast(list[SequenceOutput], results)
        if self._warm_up is not None:
            reason = outputs[0].chunk.finish_reason if outputs else None
            if reason is not None and not self._warm_up.done():
                self._warm_up.set_result(reason)
            return
        self._on_outputs(outputs)

    def lose_shards(self) -> None:
        """End all sequences: their keys and values are gone."""
        if self._scheduler is not None:
            self._scheduler.abort_all()
            self._scheduler = None

    def submit(self, request: GenerateRequest) -> list[TokenSequence]:
        """Queue a request; raises what Scheduler.add raises."""
        assert self._scheduler is not None, "the copy is ready"
        return self._scheduler.add(request)

    def abort(self, sequences: list[TokenSequence]) -> None:
        """End sequences, those of an earlier life too."""
        if self._scheduler is not None:
            for sequence in sequences:
                if not sequence.is_finished:
                    self._scheduler.abort(sequence)

    def load(self) -> Load:
        """Sequences, and blocks of the KV cache."""
        scheduler = self._scheduler
        if scheduler is None:
            return Load()
        return Load(
            scheduler.num_running, scheduler.num_waiting, scheduler.num_free_blocks, scheduler.limits.num_blocks
        )
