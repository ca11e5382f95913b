"""Whether a process traces: the variables, and the package that an extra brings."""

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from serve_app.config.tracing import TracingSettings
from serve_app.errors import ConfigError
from serve_app.tracing import start
from serve_app.tracing.start import check_exporter, start_tracing


def test_without_an_endpoint_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "serve_app.tracing.export", raising=False)
    assert start_tracing("gateway", "g") is None
    assert "serve_app.tracing.export" not in sys.modules


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    check_exporter(None)
    monkeypatch.setattr(start, "distribution", missing)
    with pytest.raises(ConfigError, match=r"is not installed; run: pip install '\.\[tracing\]', or unset"):
        check_exporter(TracingSettings("http://127.0.0.1:1/v1/traces"))
