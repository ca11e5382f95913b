"""The times of one traced call on a copy of a model: noted while it runs, made spans of when it has ended."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from serve_app.tracing import attributes as names
from serve_app.tracing.tracing import Tracing

_MAX_STEPS = 64  # that one call shows


@dataclass(slots=True)
class TimedStep:
    """A step whose stages tell how long they computed; times by time.monotonic."""

    step_id: int
    sent_s: float
    num_rows: int | None = None  # of a generator: sequences
    num_tokens: int | None = None
    ended_s: float | None = None  # None: its output is not there
    busy_s: dict[int, float] = field(default_factory=dict)  # by stage; of its ranks, the slowest


class CallTrace:
    """Of one call. work: what follows the queue: `prefill` of a generator, which `decode` follows, or `run`."""

    def __init__(
        self,
        tracing: Tracing,
        span: Span,
        work: str,
        arrived_ns: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """arrived_ns: since 1970, where the span begins."""
        self._tracing = tracing
        self.span = span
        self._work = work
        self._clock = clock
        self._arrived_s = clock()
        self._offset_ns = arrived_ns - _ns(self._arrived_s)
        self._started_s: float | None = None
        self._first_token_s: float | None = None
        self._steps: list[TimedStep] = []

    def start(self, now_s: float) -> None:
        """It is in a step; the first time counts."""
        if self._started_s is None:
            self._started_s = now_s

    def see_token(self, now_s: float) -> None:
        """A token is there; the first one counts."""
        if self._first_token_s is None:
            self._first_token_s = now_s

    def add_step(self, step: TimedStep) -> None:
        """It was in this step."""
        if len(self._steps) < _MAX_STEPS:
            self._steps.append(step)

    def end(self) -> None:
        """Hand all spans on."""
        end_s = self._clock()
        started_s, token_s = self._started_s, self._first_token_s
        self._add("queue", self._arrived_s, end_s if started_s is None else started_s)
        if started_s is not None:
            self._add(self._work, started_s, end_s if token_s is None else token_s)
        if token_s is not None:
            self._add("decode", token_s, end_s)
        for step in self._steps:
            if step.ended_s is not None:
                self._add("step", step.sent_s, step.ended_s, _attributes(step))
        self.span.end(self._offset_ns + _ns(end_s))

    def _add(self, name: str, start_s: float, end_s: float, attributes: names.Attributes | None = None) -> None:
        offset_ns = self._offset_ns
        self._tracing.add_past(self.span, name, offset_ns + _ns(start_s), offset_ns + _ns(end_s), attributes or {})


def _attributes(step: TimedStep) -> names.Attributes:
    found: dict[str, names.Value] = {names.STEP: step.step_id}
    if step.num_rows is not None and step.num_tokens is not None:
        found |= {names.STEP_ROWS: step.num_rows, names.STEP_TOKENS: step.num_tokens}
    if step.busy_s:
        found[names.STAGE_BUSY] = [step.busy_s[stage] for stage in sorted(step.busy_s)]
    return found


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
