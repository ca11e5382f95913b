"""Where spans go, and of which requests: the variables of the OpenTelemetry specification that are taken.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables
https://opentelemetry.io/docs/specs/otel/protocol/exporter
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from serve_app.errors import ConfigError

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_TRACES_PATH = "v1/traces"  # behind OTEL_EXPORTER_OTLP_ENDPOINT
_SAMPLER = "OTEL_TRACES_SAMPLER"
_RATIO = "OTEL_TRACES_SAMPLER_ARG"
_RATIO_SAMPLERS = ("traceidratio", "parentbased_traceidratio")
SAMPLERS = ("parentbased_always_on", "always_on", "always_off", "parentbased_always_off", *_RATIO_SAMPLERS)
_ONLY = {  # what else may be asked for, and the one thing that there is
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    "OTEL_TRACES_EXPORTER": "otlp",
}
_PROPAGATORS = "OTEL_PROPAGATORS"
_TRACE_CONTEXT = "tracecontext"


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Of all processes of one server."""

    endpoint: str  # URL that spans are posted to, as OTLP in protobuf
    sampler: str = SAMPLERS[0]  # of the Gateways; the others do as they are told
    ratio: float = 1.0  # of the traces that a sampler by ratio takes


def read_tracing(variables: Mapping[str, str]) -> TracingSettings | None:
    """What the OTEL_ variables ask for; None: no endpoint is named, or nothing is wanted. Raises ConfigError."""
    is_off = variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_off or variables.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    name, endpoint = _TRACES_ENDPOINT, variables.get(_TRACES_ENDPOINT, "").strip()
    if not endpoint:
        name, endpoint = _ENDPOINT, variables.get(_ENDPOINT, "").strip()
    if not endpoint:
        return None
    _check_url(name, endpoint)
    if name == _ENDPOINT:
        endpoint = f"{endpoint.rstrip('/')}/{_TRACES_PATH}"
    for variable, value in _ONLY.items():
        asked = variables.get(variable, "").strip()
        if asked not in ("", value):
            raise ConfigError(f"{variable}={asked[:80]} is not supported; set it to {value}, or leave it out")
    asked = variables.get(_PROPAGATORS, "").strip()
    if asked and _TRACE_CONTEXT not in [one.strip() for one in asked.split(",")]:
        raise ConfigError(f"{_PROPAGATORS}={asked[:80]}: only {_TRACE_CONTEXT} is taken; add it, or leave it out")
    sampler = variables.get(_SAMPLER, "").strip().lower() or SAMPLERS[0]
    if sampler not in SAMPLERS:
        raise ConfigError(f"{_SAMPLER}={sampler[:80]} is not a sampler; use one of {', '.join(SAMPLERS)}")
    return TracingSettings(endpoint, sampler, _ratio(sampler, variables.get(_RATIO, "").strip()))


def _check_url(name: str, value: str) -> None:
    try:
        url = urlsplit(value)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"{name}={value[:80]} is not the URL of a collector; set one like http://127.0.0.1:4318")


def _ratio(sampler: str, asked: str) -> float:
    if sampler not in _RATIO_SAMPLERS or not asked:
        return 1.0
    try:
        ratio = float(asked)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"{_RATIO}={asked[:80]} is not a share of traces; set it to a number from 0 to 1")
    return ratio
