"""Anthropic's client against a Gateway in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import NO_TLS, ScriptedBackend, serving

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "the forecast",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def sdk_of(
    backend: ScriptedBackend, api_key: str = "none", **settings: Any
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """A client that tries nothing again; its `base_url` is the Gateway's."""
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig(**settings)))) as url,
        anthropic.DefaultAsyncHttpxClient(verify=NO_TLS) as http_client,
        anthropic.AsyncAnthropic(base_url=url, api_key=api_key, max_retries=0, http_client=http_client) as sdk,
    ):
        yield sdk
