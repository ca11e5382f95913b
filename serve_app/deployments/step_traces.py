"""Which steps of a copy are timed for its traced calls, and what of them is theirs.

Nothing is done for a step while no traced call runs, and nothing for a token but the first of a traced call. A call's
first step is timed, and one a second of those that generators run.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from serve_app.deployments.call_trace import CallTrace, TimedStep
from serve_app.scheduling.jobs import Job
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.tracing.attributes import IS_CANCELLED, Attributes
from serve_app.tracing.tracing import Carrier, Tracing, fail
from serve_app.types.steps import BatchStep, StepInput

StepT = TypeVar("StepT", bound=StepInput | BatchStep)
Queued = TokenSequence | Job

TIMED_INTERVAL_S = 1.0  # between steps that are timed for calls which were in one before


class StepTraces:
    """Of one copy, through all epochs of its shards. stages: of each shard."""

    def __init__(
        self, tracing: Tracing, work: str, stages: Sequence[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tracing = tracing
        self._work = work
        self._stages = stages
        self._clock = clock
        self._calls: dict[Queued, CallTrace] = {}  # of the traced calls that run
        self._unseen: set[Queued] = set()  # of those, sequences without a token
        self._started: list[Queued] = []  # in the step that is put together
        self._timed: dict[int, tuple[TimedStep, list[CallTrace]]] = {}  # in flight, by step
        self._timed_s = -TIMED_INTERVAL_S  # when the last one was sent

    @contextmanager
    def call(self, name: str, carrier: Carrier, attributes: Attributes) -> Iterator[CallTrace | None]:
        """While a call runs; None: its trace is not sampled."""
        arrived_ns = time.time_ns()
        span = self._tracing.begin(name, carrier, attributes, arrived_ns) if carrier else None
        if span is None or not span.is_recording():
            yield None
            return
        trace = CallTrace(self._tracing, span, self._work, arrived_ns, self._clock)
        try:
            yield trace
        except asyncio.CancelledError:
            span.set_attribute(IS_CANCELLED, True)
            raise
        except Exception as error:
            fail(span, error)
            raise
        finally:
            self._remove(trace)
            trace.end()

    def add(self, trace: CallTrace | None, queued: Sequence[Queued]) -> None:
        """A call's sequences, or its job, wait for their first step."""
        if trace is not None:
            self._calls.update(dict.fromkeys(queued, trace))
            self._unseen.update(one for one in queued if isinstance(one, TokenSequence))

    def start(self, queued: Queued) -> None:
        """It is in the step that is put together, for the first time."""
        if queued in self._calls:
            self._started.append(queued)

    def send(self, step: StepT) -> StepT:
        """The step as it is to be sent: timed, or as it is."""
        if not self._calls:
            return step
        now_s = self._clock()
        inside = self._take_started(now_s)
        if isinstance(step, StepInput) and now_s - self._timed_s >= TIMED_INTERVAL_S:
            inside = self._calls_in(step)
        if not inside:
            return step
        self._timed_s = now_s
        timed = TimedStep(step.step_id, now_s)
        if isinstance(step, StepInput):
            timed.num_rows, timed.num_tokens = len(step.slot_rows), len(step.token_ids)
        self._timed[step.step_id] = (timed, inside)
        return replace(step, is_timed=True)

    def hear(self, shard: int, step_id: int, busy_s: float) -> None:
        """A shard has computed for so long in a timed step."""
        timed = self._timed.get(step_id)
        if timed is not None:
            stage = self._stages[shard]
            timed[0].busy_s[stage] = max(busy_s, timed[0].busy_s.get(stage, 0.0))

    def end(self, step_id: int) -> None:
        """A step's output is there. What a shard tells of it may come a little later."""
        timed = self._timed.get(step_id)
        if timed is None:
            return
        step, calls = timed
        step.ended_s = self._clock()
        for call in calls:
            call.add_step(step)
        self._timed = {number: one for number, one in self._timed.items() if number > step_id - len(self._stages)}

    def see(self, outputs: Sequence[SequenceOutput]) -> None:
        """Tokens are there."""
        if not self._unseen:
            return
        now_s = self._clock()
        for output in outputs:
            if output.sequence in self._unseen and output.token_id >= 0:
                self._unseen.discard(output.sequence)
                self._calls[output.sequence].see_token(now_s)

    def lose_shards(self) -> None:
        """The steps in flight are gone."""
        self._timed.clear()
        self._started.clear()

    def _take_started(self, now_s: float) -> list[CallTrace]:
        calls = list(dict.fromkeys(self._calls[one] for one in self._started if one in self._calls))
        self._started.clear()
        for call in calls:
            call.start(now_s)
        return calls

    def _calls_in(self, step: StepInput) -> list[CallTrace]:
        rows = set(step.slot_rows)
        return list(
            dict.fromkeys(
                call
                for one, call in self._calls.items()
                if isinstance(one, TokenSequence) and one.slot_row in rows and not one.is_finished
            )
        )

    def _remove(self, trace: CallTrace) -> None:
        gone = [one for one, call in self._calls.items() if call is trace]
        for one in gone:
            del self._calls[one]
        self._unseen.difference_update(one for one in gone if isinstance(one, TokenSequence))
