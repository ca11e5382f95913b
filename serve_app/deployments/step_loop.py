"""A scheduler and the control link joined: the step loop of a Router, without Ray."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from serve_app.deployments.bubble import BubbleMeter
from serve_app.deployments.stage_times import StageTimes
from serve_app.deployments.step_traces import StepTraces
from serve_app.errors import ShardLostError
from serve_app.metrics.times import Times
from serve_app.scheduling.grammar_waits import GrammarWaits
from serve_app.types.plans import MemoryTaken
from serve_app.types.steps import BatchStep, StepInput
from serve_app.wire.control_link import ControlServer
from serve_app.wire.messages import (
    BatchOutputMessage,
    GrammarReadyMessage,
    HeartbeatMessage,
    HelloMessage,
    OutputMessage,
    ToRouter,
)

_WATCH_INTERVAL_S = 0.25
_OUTPUTS = (OutputMessage, BatchOutputMessage)  # not joined anew for each message


class StepScheduler(Protocol):
    """What the loop asks of a scheduler: of sequences, or of batches."""

    @property
    def num_steps_in_flight(self) -> int:
        """Steps that the shards have and have not answered."""
        ...

    @property
    def last_step_s(self) -> float:
        """From the sending to the output of the step that `update` has taken last."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        ...

    def schedule(self, now_s: float) -> StepInput | BatchStep | None:
        """The next step, of what is wanted still; None when none may be sent now."""
        ...

    def update(self, output: Any, now_s: float) -> object:
        """Take in what a step has come to."""
        ...

    def check(self) -> None:
        """Assert that nothing is held while nothing runs."""
        ...


class StepLoop:
    """Keeps the shards busy: sends a step whenever one may be sent, hands on what comes back.

    `run` raises ShardLostError when a shard falls silent, or a step does not end in time. traces: None: nobody traces.

    grammars: of the scheduler, where sequences wait for theirs.
    """

    def __init__(
        self,
        scheduler: StepScheduler,
        control: ControlServer,
        num_shards: int,
        on_outputs: Callable[[Any], None],
        times: Times,
        bubble: BubbleMeter,
        stage_times: StageTimes,
        traces: StepTraces | None = None,
        grammars: GrammarWaits | None = None,
        *,
        heartbeat_s: float,
        step_s: float,
    ) -> None:
        self.scheduler = scheduler
        self._control = control
        self._on_outputs = on_outputs
        self._times = times  # of steps, from their sending to their outputs
        self._bubble = bubble
        self._is_working = False  # as the bubble was told last
        self._stage_times = stage_times
        self._traces = traces
        self._grammars = grammars
        self._heartbeat_s = heartbeat_s
        self._step_s = step_s
        self.suspects: frozenset[int] = frozenset()  # shards that are to be ended: silent, or all when a step hangs
        self._heard_s = [time.monotonic()] * num_shards
        self._greeted: set[int] = set()
        self._all_greeted = asyncio.Event()
        self._progress_s = time.monotonic()
        self._pump_due = asyncio.Event()
        self._num_shards = num_shards
        self.memory_taken: list[MemoryTaken | None] = [None] * num_shards  # as each shard has told last

    async def run(self) -> None:
        """Run until cancelled or until the group is lost."""
        tasks = [
            asyncio.create_task(work)
            for work in (self._control.deliver(self._hear), self._pump_when_due(), self._watch())
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    @property
    def silent_s(self) -> float:
        """Seconds since the shard was heard that has been silent for longest."""
        return time.monotonic() - min(self._heard_s)

    async def wait_for_shards(self) -> None:
        """Return when all shards have connected."""
        await self._all_greeted.wait()

    def wake(self) -> None:
        """The scheduler's queue has changed: look whether a step may be sent."""
        self._pump_due.set()

    async def _pump_when_due(self) -> None:
        """Schedule after the events at hand, so that requests that come together start together."""
        while True:
            await self._pump_due.wait()
            self._pump_due.clear()
            self._pump()

    def _pump(self) -> None:
        if not self._all_greeted.is_set():
            return
        if self._grammars is not None and self._grammars.has_changes:
            for change in self._grammars.take_changes():
                self._control.send_grammar(change)
        while (step := self.scheduler.schedule(time.monotonic())) is not None:
            if self.scheduler.num_steps_in_flight == 1:
                self._progress_s = time.monotonic()
            if self._traces is not None:
                step = self._traces.send(step)
            self._control.send_step(step)
        is_working = self.scheduler.num_steps_in_flight > 0
        if is_working is not self._is_working:
            self._is_working = is_working
            self._bubble.note(time.monotonic(), is_working=is_working)
        if not is_working and not self.scheduler.has_work:
            self.scheduler.check()

    def _hear(self, message: ToRouter) -> None:
        if isinstance(message, _OUTPUTS):
            self._take(message)
        elif isinstance(message, HeartbeatMessage):
            now_s = self._heard_s[message.shard_index] = time.monotonic()
            self.memory_taken[message.shard_index] = message.memory
            if message.busy_s is not None:
                self._bubble.hear(message.shard_index, message.busy_s, now_s)
                self._stage_times.hear(message.shard_index, message.num_steps_done, message.busy_s)
        elif isinstance(message, HelloMessage):
            self._greet(message.shard_index)
        elif isinstance(message, GrammarReadyMessage):
            self._make_ready(message.number)
        elif self._traces is not None:
            self._traces.hear(message.shard_index, message.step_id, message.busy_s)

    def _make_ready(self, number: int) -> None:
        if self._grammars is not None:
            self._grammars.take_ready(number)
            self._pump()

    def _take(self, message: OutputMessage | BatchOutputMessage) -> None:
        self._progress_s = time.monotonic()
        outputs = self.scheduler.update(message.output, self._progress_s)
        self._times.add(self.scheduler.last_step_s)
        if self._traces is not None:
            self._traces.end(message.output.step_id)
        self._pump()  # first keep the shards busy, then hand the results on
        self._on_outputs(outputs)

    def _greet(self, shard_index: int) -> None:
        self._heard_s[shard_index] = time.monotonic()
        self._greeted.add(shard_index)
        if len(self._greeted) == self._num_shards:
            self._all_greeted.set()
            self._pump_due.set()

    async def _watch(self) -> None:
        """Notice shards that fall silent (killed, stopped) and steps that never end (a collective that hangs)."""
        await self._all_greeted.wait()
        now = time.monotonic()
        self._heard_s = [now] * self._num_shards
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            late_s = time.monotonic() - now - _WATCH_INTERVAL_S
            now = time.monotonic()
            if late_s > _WATCH_INTERVAL_S:  # this process itself stood still: the shards' messages are still unread
                self._heard_s = [min(heard + late_s, now) for heard in self._heard_s]
                self._progress_s = min(self._progress_s + late_s, now)
            self.suspects = frozenset(
                index for index, heard in enumerate(self._heard_s) if now - heard > self._heartbeat_s
            )
            for index in sorted(self.suspects):
                raise ShardLostError(f"shard {index} has been silent for {now - self._heard_s[index]:.1f} s")
            if self.scheduler.num_steps_in_flight and now - self._progress_s > self._step_s:
                self.suspects = frozenset(range(self._num_shards))
                raise ShardLostError(
                    f"no step has ended for {now - self._progress_s:.1f} s; if steps take that long, raise "
                    "timeouts.collective_s or lower engine.max_num_batched_tokens"
                )
