"""A conversation's messages: what they must hold, the texts in them, and what chat templates are shown of them."""

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChatMessage, FunctionCall, TextPart, ToolCall

_ASKS_FOR_NONE = re.compile(r"""content["'\]]*\s+is\s+(?:not\s+)?none""", re.IGNORECASE)
_TEMPLATE_ROLES = {"function": "tool"}


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raises RequestError for the first that has no content where it needs one: only an assistant's may be without."""
    if not messages:
        raise RequestError("messages is empty; send at least one", field="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        if message.content is None and message.role != "assistant":
            raise RequestError(f"{where} is missing; send a text", field=where)
        parts = message.content if isinstance(message.content, list) else []
        for place, part in enumerate(parts):
            if _part_text(part) is None:
                raise RequestError(f"{where}[{place}].{part.type} is missing", field=f"{where}[{place}].{part.type}")


def content_of(message: ChatMessage) -> str:
    """A message's text, its parts in lines; what an assistant has said in place of an answer; or nothing."""
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        return message.refusal or ""
    return "\n".join(_part_text(part) or "" for part in message.content)


def last_answer(messages: Sequence[ChatMessage]) -> str:
    """What an answer goes on behind: the text of the last message, where it is the assistant's."""
    return content_of(messages[-1]) if messages[-1].role == "assistant" else ""


def texts_of(message: ChatMessage) -> list[str]:
    """The message's text, its reasoning, and what its calls give to functions."""
    reasoning = _reasoning(message)
    arguments = [_arguments_text(call.function) for call in _calls(message)]
    return [content_of(message), *([reasoning] if reasoning else []), *arguments]


def change_texts(message: ChatMessage, texts: Sequence[str]) -> None:
    """Puts other texts in the places of those that texts_of gives."""
    calls = _calls(message)
    if message.content is not None or texts[0]:
        message.content = texts[0]
    has_reasoning = bool(_reasoning(message))
    message.reasoning_content, message.reasoning = texts[1] if has_reasoning else None, None
    message.tool_calls, message.function_call = calls, None
    for call, text in zip(calls, texts[1 + has_reasoning :], strict=True):
        call.function.arguments = text


def template_message(message: ChatMessage, template: str) -> dict[str, Any]:
    """What transformers' templates expect: text content, `system` for those that know no `developer`, calls with their
    arguments as objects. No content beside calls is None for templates that ask for that, and otherwise empty."""
    role: str = _TEMPLATE_ROLES.get(message.role, message.role)
    if role == "developer" and role not in template:
        role = "system"
    calls = _calls(message)
    content: str | None = content_of(message)
    if calls and not content and _ASKS_FOR_NONE.search(template):
        content = None
    shown: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        shown["name"] = message.name
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    if message.role == "assistant" and (reasoning := _reasoning(message)):
        shown["reasoning_content"] = reasoning
    if calls:
        shown["tool_calls"] = [_template_call(call) for call in calls]
    return shown


def _reasoning(message: ChatMessage) -> str:
    return message.reasoning_content or message.reasoning or ""


def _part_text(part: TextPart) -> str | None:
    return part.text if part.type == "text" else part.refusal


def _calls(message: ChatMessage) -> list[ToolCall]:
    if message.tool_calls or message.function_call is None:
        return message.tool_calls or []
    return [ToolCall(function=message.function_call)]


def _arguments_text(function: FunctionCall) -> str:
    arguments = function.arguments
    return msgspec.json.encode(arguments).decode() if isinstance(arguments, dict) else arguments or ""


def _template_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call.function)}
    shown: dict[str, Any] = {"type": call.type or "function", "function": function}
    return shown if call.id is None else {"id": call.id, **shown}


def _arguments(function: FunctionCall) -> object:
    """The object that a text of JSON says; a text that is none stays one, as the model has written it."""
    if not isinstance(function.arguments, str):
        return function.arguments or {}
    if not function.arguments.strip():
        return {}
    try:
        return json.loads(function.arguments)
    except (ValueError, RecursionError):
        return function.arguments
