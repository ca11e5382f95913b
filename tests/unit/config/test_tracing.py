"""Which OTEL_ variables are taken, and what is said of those that are wrong."""

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.tracing import SAMPLERS, TracingSettings, read_tracing
from serve_app.errors import ConfigError

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
TRACES = "http://127.0.0.1:4318/v1/traces"


@pytest.mark.parametrize(
    ("variables", "settings"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "  "}, None),
        (ENDPOINT, TracingSettings(TRACES)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example.com/otel/"}, TracingSettings("https://c.example.com/otel/v1/traces")),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:9/x"}, TracingSettings("http://[::1]:9/x")),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "otlp"}, TracingSettings(TRACES)),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, TracingSettings(TRACES)),
        ({**ENDPOINT, "OTEL_PROPAGATORS": "baggage, tracecontext"}, TracingSettings(TRACES)),
        ({**ENDPOINT, "OTEL_TRACES_SAMPLER": "ALWAYS_OFF"}, TracingSettings(TRACES, "always_off")),
        (
            {**ENDPOINT, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
            TracingSettings(TRACES, "traceidratio", 0.01),
        ),
        ({**ENDPOINT, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, TracingSettings(TRACES, SAMPLERS[-1])),
    ],
)  # fmt: skip
def test_an_endpoint_turns_tracing_on(variables: dict[str, str], settings: TracingSettings | None) -> None:
    assert read_environment(variables).tracing == settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "is not the URL of a collector; set one like http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", "is not the URL of a collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:b:c", "is not the URL of a collector"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://c:4317", "is not the URL of a collector"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "is not supported; set it to http/protobuf, or leave it out"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "set it to http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "set it to otlp"),
        ("OTEL_PROPAGATORS", "b3", "only tracecontext is taken"),
        ("OTEL_TRACES_SAMPLER", "often", "is not a sampler; use one of parentbased_always_on, "),
    ],
)
def test_what_cannot_take_effect_is_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.*{said}"):
        read_environment({**ENDPOINT, name: value})


@pytest.mark.parametrize("ratio", ["2", "-0.1", "nan", "some"])
def test_a_share_that_is_none_is_refused(ratio: str) -> None:
    variables = {**ENDPOINT, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
    with pytest.raises(ConfigError, match=f"OTEL_TRACES_SAMPLER_ARG={ratio} is not a share .* from 0 to 1"):
        read_tracing(variables)
