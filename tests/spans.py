"""Spans that tests look at, kept by OpenTelemetry's own exporter for that."""

from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import format_span_id, format_trace_id

from serve_app.tracing.tracing import Tracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}


@dataclass(frozen=True)
class KeptSpans:
    """What a Tracing has made."""

    tracing: Tracing
    exporter: InMemorySpanExporter

    @staticmethod
    def make(sampler: Sampler | None = None) -> "KeptSpans":
        """Of all traces that whoever asks has not left out."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler or ParentBased(TraceIdRatioBased(1.0)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return KeptSpans(Tracing(provider.get_tracer("test"), provider.shutdown), exporter)

    @property
    def all(self) -> list[ReadableSpan]:
        """Those that have ended, in that order."""
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """Of all, sorted."""
        return sorted(span.name for span in self.all)

    def named(self, name: str) -> ReadableSpan:
        """The one of this name."""
        (found,) = (span for span in self.all if span.name == name)
        return found

    def parent_of(self, name: str) -> str | None:
        """The name of the span above; "client": that of SAMPLED, None: it has none."""
        parent = self.named(name).parent
        if parent is None:
            return None
        if format_span_id(parent.span_id) == SPAN_ID:
            return "client"
        return next(span.name for span in self.all if span.context.span_id == parent.span_id)


def trace_id_of(span: ReadableSpan) -> str:
    """In hexadecimal."""
    return format_trace_id(span.context.trace_id)


def span_texts(spans: list[ReadableSpan]) -> str:
    """All that is written in spans."""
    return "\n".join(span.to_json() for span in spans)
