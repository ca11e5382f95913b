"""Models that are done with an entry after one step, on the shards of a model copy: batches and their results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from serve_app.deployments.copy_work import Load, QueueTimes, Signals
from serve_app.deployments.step_loop import StepLoop, StepScheduler
from serve_app.deployments.step_traces import StepTraces
from serve_app.errors import ConfigError, UnavailableError
from serve_app.planning.reservations import batch_engine_kind
from serve_app.planning.served_model import BatchModelPlan
from serve_app.scheduling.batch_scheduler import BatchModel, BatchScheduler
from serve_app.scheduling.jobs import Job, JobResult
from serve_app.tracing.tracing import Tracing
from serve_app.types.models import CopyCounts, ModelSource, WaitsFor
from serve_app.types.plans import SeenRates
from serve_app.types.shards import (
    BatchModelReport,
    BatchShardSettings,
    EngineKind,
    EngineLimits,
    ShardReport,
    ShardSpec,
)
from serve_app.types.tensors import InferRequest


class BatchWork:
    """CopyWork of one such model, or of several small ones in one shard process."""

    def __init__(
        self,
        plans: list[BatchModelPlan],
        on_results: Callable[[list[JobResult]], None],
        tracing: Tracing | None = None,
    ) -> None:
        self.config = plans[0].config  # models of one application share what counts
        self.name = ",".join(plan.config.name for plan in plans)
        self.engine_kind: EngineKind = batch_engine_kind([plan.config for plan in plans])
        self.shards = plans[0].shards
        stages = [shard.stage for shard in self.shards]
        self.traces = None if tracing is None else StepTraces(tracing, "run", stages)
        self.sources: list[ModelSource] = [plan.source for plan in plans]
        self.reports: dict[str, BatchModelReport] = {}  # by model, when loaded
        self.grammars = None
        self._plans = plans
        self._on_results = on_results
        self._scheduler: BatchScheduler | None = None
        self._queue_times: QueueTimes[Job] = QueueTimes()

    def settings(self, shard: ShardSpec, num_threads: int) -> BatchShardSettings:
        """How one shard is to be made."""
        models = [plan.settings(shard) for plan in self._plans]
        return BatchShardSettings(shard, models, self.config.device.type, num_threads)

    def limits(self, _reports: Sequence[ShardReport]) -> None:
        """There is no cache."""
        return

    def scheduler(self, reports: Sequence[ShardReport], _limits: EngineLimits | None) -> StepScheduler:
        """One for all epochs: what waits goes on when the shards are there again."""
        self.reports = {}
        for told in zip(*(report.models for report in reports), strict=True):  # of one model by all shards
            problem = next((one.gradient_problem for one in told if one.gradient_problem), "")
            self.reports[told[0].name] = replace(told[0], gradient_problem=problem)
        if self._scheduler is None:
            engine = self.config.engine
            models = [
                BatchModel(
                    plan.config.name,
                    self.reports[plan.config.name].inputs,
                    self.reports[plan.config.name].outputs,
                    plan.config.batch_dim,
                )
                for plan in self._plans
            ]
            self._scheduler = BatchScheduler(
                models,
                num_stages=self.config.parallel.pipeline,
                max_rows=engine.max_num_seqs,
                max_tokens=engine.max_num_batched_tokens,
                max_queued=engine.max_queued,
                on_start=self._start,
            )
        return self._scheduler

    async def warm_up(self, loop: StepLoop) -> None:
        """Nothing: what a module takes is its own affair."""
        loop.wake()

    def take(self, results: list[JobResult]) -> None:
        """Requests that have ended."""
        self._on_results(results)

    def lose_shards(self) -> None:
        """What was in flight waits for the next epoch."""
        if self._scheduler is not None:
            self._on_results(self._scheduler.lose_shards())
        if self.traces is not None:
            self.traces.lose_shards()

    def submit(self, request: InferRequest) -> Job:
        """Queue a request, also while the shards are made anew. Raises what BatchScheduler.add raises."""
        if self._scheduler is None:
            raise UnavailableError(f"model {request.model} is starting; try again", retry_after_s=1.0)
        if request.model not in self.reports:
            raise ConfigError(f"model={request.model} is not served by this application")
        job = self._scheduler.add(request, time.monotonic())
        self._queue_times.add(job, priority=request.priority)
        return job

    def cancel(self, job: Job) -> None:
        """Give a request up."""
        self._queue_times.forget(job)
        if self._scheduler is not None:
            self._scheduler.cancel(job)

    def _start(self, job: Job) -> None:
        self._queue_times.start(job)
        if self.traces is not None:
            self.traces.start(job)

    def load(self) -> Load:
        """Entries; there are no blocks."""
        if self._scheduler is None:
            return Load()
        waits_for: WaitsFor = "step" if self._scheduler.num_waiting else ""
        return Load(self._scheduler.num_running, self._scheduler.num_waiting, waits_for=waits_for)

    def seen_rates(self) -> SeenRates:
        """Entries each second, of late."""
        return SeenRates() if self._scheduler is None else self._scheduler.seen_rates

    def signals(self) -> Signals:
        """See CopyWork."""
        scheduler = self._scheduler
        if scheduler is None:
            return Signals()
        delay_s = max(self._queue_times.oldest_s, scheduler.estimated_backlog_s())
        return Signals(delay_s, scheduler.num_waiting, scheduler.num_step_tokens)

    def counts(self) -> CopyCounts:
        """See CopyWork."""
        return CopyCounts(queue=self._queue_times.times.counts())
