"""Which entries of which requests make up the next step of models that are done with an entry after one step.

Dynamic batching by tokens: entries that can be joined are taken in their order until a step is full. Up to one step per
stage is in flight. When the shards are lost, what they had goes back to the head of the queue: nothing is drawn, so
running an entry again changes no answer. It runs with nothing beside it then: it may be what the shards died of.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import ConfigError, InternalError, QueueFullError, RayshardError, ShardLostError
from serve_app.scheduling.batch_items import Sizes, cut_outputs, join_items, join_key, joined_sizes
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorSpec

_MAX_LOSSES = 2  # an entry that was in flight when the shards died that often is not tried again


@dataclass(frozen=True, slots=True)
class BatchModel:
    """What the scheduler knows of one model."""

    name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    batch_dim: int | None


@dataclass(slots=True, eq=False)
class Job:
    """One request."""

    request: InferRequest
    outputs: list[Item | None]
    num_left: int
    is_begun: bool = False
    is_over: bool = False  # failed, or given up: what is left of it is dropped


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a request has ended."""

    job: Job
    result: InferResult | None
    error: RayshardError | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    job: Job
    index: int  # in the request
    model: int
    item: Item
    sizes: Sizes
    num_losses: int = 0
    is_alone: bool = False  # a step that it was in has failed, or has not come back

    @property
    def cost(self) -> int:
        """Tokens, or rows: what a step's size is counted in."""
        return max(self.sizes.values())


class BatchScheduler:
    """Queue and steps of one model copy. It is there as long as the Router, through all epochs of its shards."""

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
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_queued = max_queued
        self._on_start = on_start
        self._queues: OrderedDict[object, deque[_Entry]] = OrderedDict()  # by what can be joined; served in turn
        self._in_flight: dict[int, list[_Entry]] = {}
        self._next_step_id = 0
        self._num_jobs = 0

    @property
    def num_waiting(self) -> int:
        """Entries that no step holds."""
        return sum(map(len, self._queues.values()))

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

    def add(self, request: InferRequest) -> Job:
        """Queue a request; raises QueueFullError, or ConfigError for a model that is not here."""
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
        job = Job(request, [None] * len(request.items), len(request.items))
        self._num_jobs += 1
        for position, item in enumerate(request.items):
            sizes = joined_sizes(item, model.inputs, model.batch_dim or 0)
            self._queue(_Entry(job, position, index, item, sizes))
        return job

    def cancel(self, job: Job) -> None:
        """Drop a request; what the shards return of it is ignored."""
        self._end(job)

    def schedule(self) -> BatchStep | None:
        """The next step, or None when enough are in flight or nothing waits."""
        if len(self._in_flight) >= self._num_stages or any(map(_is_suspect, self._in_flight.values())):
            return None
        entries = self._take_entries()
        if not entries:
            return None
        if _is_suspect(entries) and self._in_flight:
            self._queue(entries[0], is_first=True)
            return None
        step_id, self._next_step_id = self._next_step_id, self._next_step_id + 1
        self._in_flight[step_id] = entries
        model = self.models[entries[0].model]
        for entry in entries:
            if not entry.job.is_begun:
                entry.job.is_begun = True
                self._on_start(entry.job)
        return BatchStep(step_id, entries[0].model, join_items([entry.item for entry in entries], model.batch_dim or 0))

    def update(self, output: BatchStepOutput) -> list[JobResult]:
        """Take in a step's outputs; gives the requests that have ended with it."""
        assert output.step_id == min(self._in_flight), "steps come back in their order"
        entries = self._in_flight.pop(output.step_id)
        model = self.models[entries[0].model]
        if output.error is not None:
            return self._fail_or_separate(entries, f"model={model.name} failed: {output.error}")
        try:
            parts = cut_outputs(output.outputs, model.outputs, [entry.sizes for entry in entries], model.batch_dim or 0)
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

    def _take_entries(self) -> list[_Entry]:
        """The head of the queue whose turn it is, as much as a step holds."""
        while self._queues:
            key, queue = next(iter(self._queues.items()))
            taken: list[_Entry] = []
            num_rows = num_tokens = 0
            while queue:
                entry = queue[0]
                if entry.job.is_over:
                    queue.popleft()
                    continue
                num_rows += entry.sizes["batch"]
                num_tokens += entry.cost
                if taken and (num_rows > self._max_rows or num_tokens > self._max_tokens):
                    break
                taken.append(queue.popleft())
            self._queues.move_to_end(key)
            if not queue:
                del self._queues[key]
            if taken:
                return taken
        return []

    def _queue(self, entry: _Entry, *, is_first: bool = False) -> None:
        dim = self.models[entry.model].batch_dim
        joinable = None if dim is None or entry.is_alone else join_key(entry.item, dim)
        key: object = entry if joinable is None else (entry.model, joinable)
        entries = self._queues.setdefault(key, deque())
        if is_first:
            entries.appendleft(entry)
            self._queues.move_to_end(key, last=False)
        else:
            entries.append(entry)

    def _fail_or_separate(self, entries: list[_Entry], message: str) -> list[JobResult]:
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


def _is_suspect(entries: list[_Entry]) -> bool:
    """Whether shards have died of a step's only entry, or of one beside it."""
    return len(entries) == 1 and entries[0].num_losses > 0
