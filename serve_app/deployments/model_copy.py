"""One copy of a model through its lives: shards, scheduler and step loop, made anew when a shard is lost."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from serve_app.config import ModelConfig
from serve_app.deployments.shard import ShardActor
from serve_app.deployments.shard_group import ShardGroup
from serve_app.deployments.step_loop import StepLoop
from serve_app.errors import ConfigError, RayshardError, ShardLostError, UnavailableError
from serve_app.planning.generation_config import read_eos_token_ids
from serve_app.planning.model_spec import ModelSpec
from serve_app.planning.planner import served_max_model_len
from serve_app.scheduling.scheduler import Scheduler, SequenceOutput
from serve_app.scheduling.sequence import Sequence
from serve_app.types import CopyState, EngineLimits, GenerateRequest, ModelSource, SamplingParams
from serve_app.wire.links import ControlServer

logger = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 5
_RETRY_S = 1.0
_READY_S = 60.0  # how long a request without queue_timeout_s waits for a rebuild


class ModelCopy:
    """Starts the shards, runs the step loop, and starts anew when a shard dies or hangs."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        source: ModelSource,
        own_node: str,
        on_outputs: Callable[[list[SequenceOutput]], None],
        on_lost: Callable[[RayshardError], None],
        shard_actor: Any = ShardActor,
    ) -> None:
        self.epoch = 0
        self.max_model_len = served_max_model_len(spec, config)
        self.eos_token_ids = frozenset(read_eos_token_ids(spec.source_dir, spec.vocab_size))
        self._config = config
        self._spec = spec
        self._source = source
        self._own_node = own_node
        self._shard_actor = shard_actor
        self._on_outputs = on_outputs
        self._on_lost = on_lost
        self._loop: StepLoop | None = None
        self._group: ShardGroup | None = None
        self._control: ControlServer | None = None
        self._running: list[asyncio.Task[None]] = []
        self._state: Literal["ready", "rebuilding", "failed"] = "rebuilding"
        self._detail = "starting"
        self._warm_up: asyncio.Future[str] | None = None  # how the first request of a life has ended
        self._is_ready = asyncio.Event()
        self._max_request_tokens = self.max_model_len
        self._is_closed = False

    async def start(self) -> None:
        """Bring the first group up; raises when that fails."""
        await self._start_group()

    async def supervise(self) -> None:
        """Watch over the groups, one after the other; returns only when no group can be started any more."""
        num_failed = 0
        while num_failed < _MAX_FAILED_STARTS:
            if self._state == "ready":
                error = await self._wait_for_loss()
                if self._is_closed:
                    return
                self._lose(error)
            try:
                await self._start_group()
                num_failed = 0
            except Exception as failure:  # Ray, zmq, the shards' own: whatever it is, the next start may work
                num_failed += 1
                self._detail = f"start {num_failed} failed: {failure}"
                logger.exception("shard group start failed model=%s attempt=%d", self._config.name, num_failed)
                await asyncio.sleep(_RETRY_S * 2**num_failed)
        self._state = "failed"

    async def wait_until_ready(self, timeout_s: float | None) -> None:
        """Return when requests can be taken; raises UnavailableError when the shards are not up again in time."""
        if self._is_ready.is_set():
            return
        limit_s = _READY_S if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._is_ready.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"model {self._config.name} is {self._state} ({self._detail}), and was not ready within {limit_s:g} s; "
                "try again",
                retry_after_s=1.0,
            ) from error

    def submit(self, request: GenerateRequest) -> list[Sequence]:
        """Queue a request; raises UnavailableError while the shards are being made anew."""
        if self._loop is None or self._state != "ready":
            raise UnavailableError(
                f"model {self._config.name} is {self._state} ({self._detail}); try again", retry_after_s=1.0
            )
        return self._loop.submit(request)

    def abort(self, sequences: list[Sequence]) -> None:
        """End sequences, those of an earlier life too."""
        if self._loop is not None:
            self._loop.abort([sequence for sequence in sequences if not sequence.is_finished])

    @property
    def max_request_tokens(self) -> int:
        """Prompt and output tokens of the longest sequence that fits."""
        return self._max_request_tokens

    def state(self, replica_id: str) -> CopyState:
        """Health, and how full the copy is."""
        scheduler = self._loop.scheduler if self._loop is not None and self._state == "ready" else None
        return CopyState(
            replica_id=replica_id,
            state=self._state,
            detail=self._detail,
            num_running=scheduler.num_running if scheduler else 0,
            num_waiting=scheduler.num_waiting if scheduler else 0,
            num_free_blocks=scheduler.num_free_blocks if scheduler else 0,
            num_blocks=scheduler.limits.num_blocks if scheduler else 0,
        )

    def close(self) -> None:
        """End the group for good."""
        self._is_closed = True
        self._end_group()

    async def _start_group(self) -> None:
        started = time.monotonic()
        self.epoch += 1
        self._group = ShardGroup(self._config, self._spec, self._source, self._own_node, self._shard_actor)
        try:
            async with asyncio.timeout(self._config.timeouts.load_s):
                await self._group.start()
                limits = self._limits(self._group)
                await self._group.allocate(limits)
                await self._start_loop(self._group, limits)
        except TimeoutError as error:
            self._end_group()
            raise UnavailableError(
                f"the model was not ready within timeouts.load_s={self._config.timeouts.load_s:g}; raise it"
            ) from error
        except BaseException:
            self._end_group()
            raise
        self._state, self._detail = "ready", ""
        self._max_request_tokens = min(self.max_model_len, limits.num_blocks * limits.block_size)
        self._is_ready.set()
        logger.info(
            "model copy ready model=%s epoch=%d shards=%d num_blocks=%d kv_tokens=%d start_s=%.1f",
            self._config.name,
            self.epoch,
            len(self._group.shards),
            limits.num_blocks,
            limits.num_blocks * limits.block_size,
            time.monotonic() - started,
        )

    def _limits(self, group: ShardGroup) -> EngineLimits:
        engine = self._config.engine
        num_blocks = min(report.num_blocks for report in group.reports)
        if num_blocks < 1:
            raise ConfigError(
                "the memory left for the KV cache holds no block; raise engine.kv_cache_bytes or "
                "engine.gpu_memory_utilization, or split the model over more shards",
                field="engine.kv_cache_bytes",
            )
        num_tokens = num_blocks * engine.block_size
        if num_tokens < self.max_model_len:
            if self._config.max_model_len is not None:
                raise ConfigError(
                    f"max_model_len={self.max_model_len} does not fit the KV cache of {num_tokens} tokens; raise "
                    "engine.kv_cache_bytes or engine.gpu_memory_utilization, or lower max_model_len",
                    field="max_model_len",
                )
            logger.warning(
                "KV cache shorter than the context model=%s kv_tokens=%d max_model_len=%d",
                self._config.name,
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

    async def _start_loop(self, group: ShardGroup, limits: EngineLimits) -> None:
        """Connect the shards and run one small request through them, so that the first client finds all warm."""
        num_shards = len(group.shards)
        self._control = ControlServer(group.host, self.epoch, num_shards)
        scheduler = Scheduler(
            limits,
            num_stages=self._config.parallel.pipeline,
            max_queued=self._config.engine.max_queued,
            eos_token_ids=self.eos_token_ids,
        )
        timeouts = self._config.timeouts
        self._loop = StepLoop(
            scheduler,
            self._control,
            num_shards,
            self._take_outputs,
            heartbeat_s=timeouts.heartbeat_s,
            step_s=timeouts.collective_s + timeouts.heartbeat_s,
        )
        self._running = [
            asyncio.create_task(group.run(self._control.address)),
            asyncio.create_task(self._loop.run()),
        ]
        warm_up = asyncio.create_task(self._run_warm_up(self._loop))
        limit_s = timeouts.rendezvous_s + timeouts.collective_s
        await asyncio.wait([*self._running, warm_up], return_when=asyncio.FIRST_COMPLETED, timeout=limit_s)
        if not warm_up.done():
            warm_up.cancel()
            raise self._failure()
        await warm_up

    async def _run_warm_up(self, loop: StepLoop) -> None:
        await loop.wait_for_shards()
        self._warm_up = asyncio.get_running_loop().create_future()
        num_tokens = max(1, min(8, loop.scheduler.max_request_tokens - 2))
        params = SamplingParams(max_tokens=2, seed=0, ignore_eos=True)
        loop.submit(GenerateRequest("warm-up", [0] * num_tokens, params))
        reason = await self._warm_up
        self._warm_up = None
        if reason == "error":
            raise ConfigError(
                f"dtype={self._config.dtype}: the model's first output is not finite; its weights are damaged, or it "
                "overflows in float16: set dtype to bfloat16 or float32",
                field="dtype",
            )

    def _take_outputs(self, outputs: list[SequenceOutput]) -> None:
        if self._warm_up is not None:
            reason = outputs[0].chunk.finish_reason if outputs else None
            if reason is not None and not self._warm_up.done():
                self._warm_up.set_result(reason)
            return
        self._on_outputs(outputs)

    async def _wait_for_loss(self) -> RayshardError:
        await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return self._failure()

    def _failure(self) -> RayshardError:
        """Why the group's run has ended."""
        for task in self._running:
            error = task.exception() if task.done() and not task.cancelled() else None
            if isinstance(error, ShardLostError):
                return error
            if error is not None:
                return ShardLostError(f"a shard was lost: {type(error).__name__}: {_first_line(error)}")
        return ShardLostError("a shard ended its run unasked")

    def _lose(self, error: RayshardError) -> None:
        """Take the group out of service; what ran on it ends with the error."""
        self._state, self._detail = "rebuilding", error.message
        self._is_ready.clear()
        logger.error("shard group lost model=%s epoch=%d reason=%s", self._config.name, self.epoch, error.message)
        self._end_group()
        self._on_lost(error)

    def _end_group(self) -> None:
        for task in self._running:
            task.cancel()
        self._running = []
        if self._group is not None:
            self._group.kill()
            self._group = None
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._loop is not None:
            self._loop.scheduler.abort_all()
            self._loop = None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
