"""Spans of one process. Where nobody traces there is no Tracing, and nothing of this runs."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.tracing.attributes import ERROR_TYPE, IS_CANCELLED, Attributes

_W3C = TraceContextTextMapPropagator()
Carrier = Mapping[str, str]  # `traceparent` and `tracestate` of a request; empty: it comes with none


class Tracing:
    """Makes spans, which leave this process in the background."""

    def __init__(self, tracer: Tracer, close: Callable[[], None] = lambda: None) -> None:
        """close: sends what has not left yet."""
        self._tracer = tracer
        self.close = close

    def begin(self, name: str, carrier: Carrier, attributes: Attributes, start_ns: int | None = None) -> Span:
        """The span of a request that has come; a recording one if its trace is sampled. To be ended.

        start_ns: since 1970; None: now.
        """
        above = _W3C.extract(carrier, Context())
        return self._tracer.start_span(name, above, SpanKind.SERVER, attributes=dict(attributes), start_time=start_ns)

    @contextmanager
    def serving(self, name: str, carrier: Carrier, attributes: Attributes) -> Iterator[Span]:
        """The same while this task works on it."""
        with self._running(self.begin(name, carrier, attributes)) as span:
            yield span

    @contextmanager
    def part(
        self, name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL
    ) -> Iterator[Span]:
        """A part of what this task works on."""
        with self._running(self._tracer.start_span(name, kind=kind, attributes=dict(attributes or {}))) as span:
            yield span

    def add_past(self, parent: Span, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """A part of a span whose times are known; ns: since 1970, by this machine's clock."""
        below = trace.set_span_in_context(parent, Context())
        span = self._tracer.start_span(name, below, attributes=dict(attributes), start_time=start_ns)
        span.end(end_ns)

    @contextmanager
    def _running(self, span: Span) -> Iterator[Span]:
        # What an exception says may quote the request: neither it nor its traceback is recorded.
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except asyncio.CancelledError:
                span.set_attribute(IS_CANCELLED, True)
                raise
            except Exception as error:
                fail(span, error)
                raise


def part(
    tracing: Tracing | None, name: str, attributes: Attributes | None = None
) -> AbstractContextManager[Span | None]:
    """See Tracing.part; nothing where nobody traces."""
    return nullcontext() if tracing is None else tracing.part(name, attributes)


def serving(
    tracing: Tracing | None, name: str, carrier: Carrier, attributes: Attributes
) -> AbstractContextManager[Span | None]:
    """See Tracing.serving; nothing where nobody traces, or whoever asks does not."""
    return tracing.serving(name, carrier, attributes) if tracing is not None and carrier else nullcontext()


def fail(span: Span, error: BaseException) -> None:
    """The span ends with an error, of which the kind is told."""
    span.set_attribute(ERROR_TYPE, type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))


def work_on(span: Span) -> None:
    """All that this task does from now on is part of a span. It is left with the task."""
    contexts.attach(trace.set_span_in_context(span))


def follow(carrier: Carrier) -> None:
    """All that this task does from now on belongs to the trace of a call: its log lines name it."""
    contexts.attach(_W3C.extract(carrier, Context()))


def carried() -> dict[str, str]:
    """What a request to another process takes along; empty: nothing is traced."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier


def add_event(name: str, attributes: Attributes) -> None:
    """Something that has happened to what this task works on; nothing where that is not traced."""
    trace.get_current_span().add_event(name, dict(attributes))
