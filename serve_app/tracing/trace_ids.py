"""Log lines that name the trace and the span of the request that they are about."""

import logging

from opentelemetry import trace


class TraceIds(logging.Filter):
    """Gives each record of a traced request `trace_id` and `span_id`, in hexadecimal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drops nothing."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id = trace.format_trace_id(context.trace_id)
            record.span_id = trace.format_span_id(context.span_id)
        return True


def log_trace_ids() -> None:
    """From now on, in all lines of ours; JsonFormatter shows them."""
    for handler in logging.getLogger("serve_app").handlers:
        handler.addFilter(TraceIds())
