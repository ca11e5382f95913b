"""Calls of the Responses API, each answer held against OpenAI's own types."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pydantic
from openai.types.responses import Response, ResponseStreamEvent

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import ScriptedBackend, serving
from tests.openai_calls import RESPONSES, ask, client_of
from tests.unit.gateway.http.openai.test_tool_calls import ANSWERS, backend_of

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "the forecast",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
    "strict": False,
}
THOUGHT = f"<think>\nShall I?\n</think>\n\n{ANSWERS['hermes']}"


@asynccontextmanager
async def sdk_of(backend: ScriptedBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client of a Gateway in this process."""
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        yield sdk


def saying(directory: Path, text: str) -> ScriptedBackend:
    """A backend whose model says this."""
    return backend_of(directory, answer=text)


async def streamed(backend: ScriptedBackend, **body: Any) -> list[dict[str, Any]]:
    """The events, each held against OpenAI's own types, numbered and named."""
    async with client_of(backend) as client:
        response = await client.post(RESPONSES, json={"model": "tiny", "stream": True, **body})
    assert response.status_code == 200, response.text
    events = []
    for number, block in enumerate(response.text.removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The events' names, those in a row that are the same once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for place, name in enumerate(names) if not place or names[place - 1] != name]


async def whole(backend: ScriptedBackend, **body: Any) -> dict[str, Any]:
    """The answer, held against OpenAI's own type."""
    async with client_of(backend) as client:
        answer = await ask(client, RESPONSES, {"model": "tiny", **body})
    Response.model_validate(answer)
    return answer


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not differ from answer to answer."""
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]
