"""Which entries of which requests make up the next step of models that are done with an entry after one step.

Dynamic batching by tokens: entries that can be joined are taken in their order until a step is full. Up to one step per
stage is in flight. When the shards are lost, what they had goes back to the head of the queue: nothing is drawn, so
running an entry again changes no answer. It runs with nothing beside it then: it may be what the shards died of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.errors import ConfigError, InternalError, QueueFullError, ShardLostError
from serve_app.scheduling.batch_items import cut_outputs, join_items, join_key, joined_sizes
from serve_app.scheduling.deadlines import Deadlines
from serve_app.scheduling.entry_queues import EntryQueues, StepSize
from serve_app.scheduling.jobs import Entry, Job, JobResult
from serve_app.scheduling.queue_estimate import refuse_late
from serve_app.scheduling.step_times import BatchTimes
from serve_app.types.plans import SeenRates
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import GRADIENT_OUTPUTS, InferRequest, InferResult, Item, TensorSpec

_MAX_LOSSES = 2  # an entry that was in flight when the shards died that often is not tried again


@dataclass(frozen=True, slots=True)
class BatchModel:
    """What the scheduler knows of one model."""

    name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    batch_dim: int | None


class BatchScheduler:
    """Queue and steps of one model copy. It is there as long as the Router, through all epochs of its shards.

    now_s, wherever it is asked for: of a clock that never goes back. Without it no time is measured, and none passes.
    """

    def __init__(
        self,
        models: list[BatchModel],
        *,
        num_stages: int,
        max_rows: int,
        max_tokens: int,
        max_queued: int,
        on_start: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        """on_start: told of each request when the first of its entries is in a step for the first time."""
        self.models = models
        self._indexes = {model.name: index for index, model in enumerate(models)}
        self._num_stages = num_stages
        self._size = StepSize(max_rows, max_tokens)
        self._max_queued = max_queued
        self._on_start = on_start
        self._queues = EntryQueues(self._size)
        self._deadlines: Deadlines[Job] = Deadlines()
        self._times = BatchTimes()
        self.last_step_s = 0.0  # from its sending to its output, of the step that was taken in last
        self._sent_s: dict[int, float] = {}  # by step
        self._in_flight: dict[int, list[Entry]] = {}
        self._next_step_id = 0
        self._num_jobs = 0
        self.num_step_tokens = 0  # of all entries that were in a step

    @property
    def num_waiting(self) -> int:
        """Entries that no step holds."""
        return len(self._queues)

    @property
    def num_running(self) -> int:
        """Entries in flight."""
        return sum(map(len, self._in_flight.values()))

    @property
    def num_steps_in_flight(self) -> int:
        """Steps that the shards have not answered yet."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._queues or self._in_flight)

    @property
    def seen_rates(self) -> SeenRates:
        """Entries each second, of late."""
        return self._times.seen

    def add(self, request: InferRequest, now_s: float = 0.0) -> Job:
        """Queue a request.

        Raises QueueFullError when too many wait or its time would pass before its turn, ConfigError for a model that
        is not here.
        """
        if request.model not in self._indexes:
            raise ConfigError(f"model={request.model} is not served by this application")
        if self._num_jobs >= self._max_queued:
            raise QueueFullError(
                f"{self._num_jobs} requests are waiting (engine.max_queued={self._max_queued}); try again later",
                retry_after_s=1.0,
            )
        index = self._indexes[request.model]
        model = self.models[index]
        assert request.items, "a request has entries"
        deadline_s = None
        if request.time_left_s is not None:
            refuse_late(self._wait_s(request, index), request.time_left_s)
            deadline_s = now_s + request.time_left_s
        job = Job(request, [None] * len(request.items), len(request.items), deadline_s)
        self._num_jobs += 1
        self._deadlines.add(job)
        for position, item in enumerate(request.items):
            sizes = joined_sizes(item, model.inputs, model.batch_dim or 0)
            job.entries.append(Entry(job, position, index, item, sizes))
            self._queue(job.entries[-1])
        return job

    def estimated_backlog_s(self) -> float:
        """Seconds that the steps of all that waits take, at least; 0 before anything was measured."""
        return self._queues.num_steps * (self._times.full_step_s or 0.0)

    def expire(self, now_s: float) -> list[Job]:
        """End those whose time has passed: no further step has them. Their callers know the time, too."""
        passed = self._deadlines.take_passed(now_s)
        for job in passed:
            self._end(job)
        return passed

    def cancel(self, job: Job) -> None:
        """Drop a request; what the shards return of it is ignored."""
        self._end(job)

    def schedule(self, now_s: float = 0.0) -> BatchStep | None:
        """The next step, or None when enough are in flight or nothing waits."""
        self.expire(now_s)
        if len(self._in_flight) >= self._num_stages or any(map(_is_suspect, self._in_flight.values())):
            return None
        queue = self._queues.next()
        if queue is None or (self._in_flight and _is_suspect(queue.entries)):
            return None
        entries = self._queues.take(queue)
        step_id, self._next_step_id = self._next_step_id, self._next_step_id + 1
        self._in_flight[step_id] = entries
        self.num_step_tokens += sum(entry.num_tokens for entry in entries)
        self._sent_s[step_id] = now_s
        model = self.models[entries[0].model]
        for entry in entries:
            if not entry.job.is_begun:
                entry.job.is_begun = True
                self._on_start(entry.job)
        joined = join_items([entry.item for entry in entries], model.batch_dim or 0)
        has_gradients = entries[0].job.request.has_gradients
        return BatchStep(step_id, entries[0].model, joined, has_gradients=has_gradients)

    def update(self, output: BatchStepOutput, now_s: float = 0.0) -> list[JobResult]:
        """Take in a step's outputs; gives the requests that have ended with it."""
        assert output.step_id == min(self._in_flight), "steps come back in their order"
        entries = self._in_flight.pop(output.step_id)
        has_gradients = entries[0].job.request.has_gradients
        sent_s = self._sent_s.pop(output.step_id)
        is_half_full = self._size.is_half_full(entries) and not has_gradients  # which tell nothing of others' steps
        self.last_step_s = now_s - sent_s
        self._times.take(sent_s, now_s, is_half_full=is_half_full, num_entries=len(entries))
        model = self.models[entries[0].model]
        if output.error is not None:
            return self._fail_or_separate(entries, f"model={model.name} failed: {output.error}")
        try:
            specs = GRADIENT_OUTPUTS if has_gradients else model.outputs
            parts = cut_outputs(output.outputs, specs, [entry.sizes for entry in entries], model.batch_dim or 0)
        except InternalError as error:
            return self._fail_or_separate(entries, f"model={model.name}: {error.message}")
        results = []
        for entry, part in zip(entries, parts, strict=True):
            job = entry.job
            if job.is_over:
                continue
            job.outputs[entry.index] = part
            job.num_left -= 1
            if job.num_left == 0:
                self._end(job)
                results.append(JobResult(job, InferResult([one for one in job.outputs if one is not None])))
        return results

    def lose_shards(self) -> list[JobResult]:
        """The shards are gone: queue again what they had; gives the requests that are not tried again."""
        lost = [entry for step_id in sorted(self._in_flight) for entry in self._in_flight[step_id]]
        self._in_flight.clear()
        self._sent_s.clear()
        self._next_step_id = 0
        results = []
        for entry in reversed(lost):
            entry.num_losses += 1
            if entry.job.is_over:
                continue
            if entry.num_losses >= _MAX_LOSSES:
                self._end(entry.job)
                error = ShardLostError(f"a shard died {_MAX_LOSSES} times while entry {entry.index} of the request ran")
                results.append(JobResult(entry.job, None, error))
            else:
                entry.is_alone = True
                self._queue(entry, is_first=True)
        return results

    def check(self) -> None:
        """Verify that no request is held while nothing runs."""
        assert self._num_jobs == 0, f"{self._num_jobs} requests are held with nothing queued"

    def _wait_s(self, request: InferRequest, model: int) -> float:
        """Seconds until a newcomer's first step begins, at least; 0 before anything was measured."""
        step_s = self._times.full_step_s
        if step_s is None:
            return 0.0
        key = self._key(model, request.items[0], request.has_gradients)
        return self._queues.num_steps_ahead(request.priority, key) * step_s

    def _queue(self, entry: Entry, *, is_first: bool = False) -> None:
        key = None if entry.is_alone else self._key(entry.model, entry.item, entry.job.request.has_gradients)
        self._queues.add(entry, entry if key is None else key, is_first=is_first)

    def _key(self, model: int, item: Item, has_gradients: bool) -> object | None:
        """What is equal for entries that can be joined; None: this one cannot."""
        dim = self.models[model].batch_dim
        joinable = None if dim is None else join_key(item, dim)
        return None if joinable is None else (model, has_gradients, joinable)

    def _fail_or_separate(self, entries: list[Entry], message: str) -> list[JobResult]:
        """A failed step of several entries is run again one by one, so that only the culprit fails."""
        results = []
        for entry in entries:
            if entry.job.is_over:
                continue
            if len(entries) > 1:
                entry.is_alone = True
                self._queue(entry)
            else:
                self._end(entry.job)
                results.append(JobResult(entry.job, None, InternalError(f"{message} (entry {entry.index})")))
        return results

    def _end(self, job: Job) -> None:
        if not job.is_over:
            job.is_over = True
            self._num_jobs -= 1
            self._deadlines.forget(job)
            for entry in job.entries:
                if entry.queue is not None:
                    entry.queue.leave_out(entry)
            job.entries.clear()  # they know their request: what it has of tensors would wait for a garbage collection


def _is_suspect(entries: Sequence[Entry]) -> bool:
    """Whether shards have died of a step's only entry, or of one beside it."""
    return len(entries) == 1 and entries[0].num_losses > 0
