"""Spans on their way to a collector: OTLP over HTTP, in batches, by a thread. Imported where tracing is on alone.

OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, _COMPRESSION and _CERTIFICATE, OTEL_BSP_* and OTEL_RESOURCE_ATTRIBUTES are read by
OpenTelemetry's own classes.
"""

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from serve_app.config.tracing import TracingSettings
from serve_app.tracing.tracing import Tracing

_CLOSE_S = 3.0  # that the end of a process waits for its last spans
_UNKNOWN = "unknown_service"  # begins the name that OpenTelemetry gives where none was set


def exporting(process: str, instance: str, settings: TracingSettings, *, is_first: bool) -> Tracing:
    """Spans of this process, which is a `process` called `instance`.

    is_first: requests come to it from outside, and it decides which traces are sampled.
    """
    sampler = sampler_of(settings) if is_first else ParentBased(ALWAYS_OFF)
    provider = TracerProvider(sampler, _resource(process, instance), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.endpoint)))

    def close() -> None:
        closing = threading.Thread(target=provider.shutdown, daemon=True)  # a collector may not answer
        closing.start()
        closing.join(_CLOSE_S)

    return Tracing(provider.get_tracer("rayshard"), close)


def sampler_of(settings: TracingSettings) -> Sampler:
    """What OTEL_TRACES_SAMPLER names."""
    roots: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(settings.ratio),
    }
    root = roots[settings.sampler.removeprefix("parentbased_")]
    return ParentBased(root) if settings.sampler.startswith("parentbased_") else root


def _resource(process: str, instance: str) -> Resource:
    known = Resource.create({SERVICE_INSTANCE_ID: instance})
    if str(known.attributes.get(SERVICE_NAME, _UNKNOWN)).startswith(_UNKNOWN):
        return known.merge(Resource({SERVICE_NAME: f"rayshard-{process}"}))
    return known
