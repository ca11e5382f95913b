"""Whether this process traces, and how."""

from importlib.metadata import PackageNotFoundError, distribution

from serve_app.config.environment import read_environment
from serve_app.config.tracing import TracingSettings
from serve_app.errors import ConfigError
from serve_app.tracing.trace_ids import log_trace_ids
from serve_app.tracing.tracing import Tracing

_EXPORTER = "opentelemetry-exporter-otlp-proto-http"


def start_tracing(process: str, instance: str, *, is_first: bool = False) -> Tracing | None:
    """Spans of this process as the environment asks for them; None: it does not. See `exporting`.

    Raises ConfigError.
    """
    settings = read_environment().tracing
    check_exporter(settings)
    if settings is None:
        return None
    from serve_app.tracing.export import exporting

    log_trace_ids()
    return exporting(process, instance, settings, is_first=is_first)


def check_exporter(settings: TracingSettings | None) -> None:
    """Raises ConfigError where spans are to be exported and the package that does it is not there."""
    if settings is None:
        return
    try:
        distribution(_EXPORTER)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and {_EXPORTER}, which sends spans there, is not installed; "
            "run: pip install '.[tracing]', or unset the variable"
        ) from error
