"""Requests of OpenAI's Responses API as requests of a chat.

What needs a store, built-in tools or more than text is refused.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.openai import ChatBody, StreamOptions
from serve_app.gateway.bodies.responses import ReasoningOptions, ResponsesBody, TextOptions
from serve_app.gateway.bodies.structured import JsonSchemaFormat, ResponseFormat
from serve_app.gateway.calls.response_history import messages_of, refuse_other_items
from serve_app.gateway.calls.response_tools import chat_choice, chat_tools, offered_tools

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"  # reasoning is shown as it is, and read so in a history
_STORED = "nothing is kept here between requests"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {  # values that ask for nothing; why others are refused
    "background": (
        (None, False),
        "background can only be used when `store` is true, and nothing is kept here; stream=true shows it as it grows",
    ),
    "context_management": ((None, []), "a history is read as it is sent"),
    "conversation": ((None,), f"{_STORED}; send the whole history in input"),
    "moderation": ((None,), "there is no moderation here"),
    "previous_response_id": ((None,), f"{_STORED}; send the whole history in input"),
    "prompt": ((None,), "no prompt templates are kept here; send instructions and input"),
    "store": ((None, False), f"{_STORED}, so that no answer can be fetched later"),
    "truncation": ((None, "disabled"), "an input that is too long is refused, not cut"),
}
_SAME = (  # keys that mean the same in a chat
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "prompt_cache_key",
    "priority",
    "seed",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "stop",
    "cache_salt",
    "restore_redactions",
    "chat_template_kwargs",
)
_CHAT_NAMES = {  # what a chat calls them, and what this API does
    "response_format.json_schema.schema": "text.format.schema",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "tool_choice.function": "tool_choice",
    "messages": "input",
}
_CHAT_NAME = re.compile(rf"(?<![\w.'\"])(?:{'|'.join(re.escape(name) for name in _CHAT_NAMES)})(?![\w'\"])")
_TOOL_PLACE = re.compile(r"(?<![\w.'\"])tools\[(\d+)\](?:\.function)?")


def read_responses_body(given: dict[str, Any]) -> ResponsesBody:
    """The typed body. Raises RequestError that names the field."""
    kept = {}
    for name, value in given.items():
        if name not in _REFUSED:
            kept[name] = value
            continue
        neutral, reason = _REFUSED[name]
        if not any(type(value) is type(one) and value == one for one in neutral):
            allowed = " or ".join(["leave it out", *(f"send {json.dumps(one)}" for one in neutral if one is not None)])
            raise RequestError(f"{name} is not supported: {reason}; {allowed}", field=name)
    refuse_other_items(kept.get("input"))  # their other keys may be of any kind
    return convert_body(kept, ResponsesBody)


def as_chat(body: ResponsesBody) -> ChatBody:
    """The same request as one of a chat. Raises RequestError."""
    _check_include(body)
    text = body.text or TextOptions()
    if text.verbosity not in (None, "medium"):
        raise RequestError(
            f'text.verbosity={text.verbosity[:32]!r} is not supported; leave it out or send "medium"',
            field="text.verbosity",
        )
    if body.enable_response_messages and body.restore_redactions:
        raise RequestError(
            "enable_response_messages shows redacted text, and does not go with restore_redactions; send one of them",
            field="enable_response_messages",
        )
    has_logprobs = LOGPROBS in (body.include or [])
    options = body.stream_options
    return ChatBody(
        messages=messages_of(body.input, body.instructions),
        max_completion_tokens=body.max_output_tokens,
        logprobs=has_logprobs,
        top_logprobs=body.top_logprobs if has_logprobs else None,
        tools=chat_tools(body),
        tool_choice=chat_choice(body),
        response_format=_response_format(text),
        reasoning_effort=_effort(body.reasoning or ReasoningOptions()),
        stream_options=None if options is None else StreamOptions(include_obfuscation=options.include_obfuscation),
        **{name: getattr(body, name) for name in _SAME},
    )


@contextmanager
def in_own_words(body: ResponsesBody) -> Iterator[None]:
    """Errors of the chat that a request has become name the request's own fields."""
    try:
        yield
    except RequestError as error:
        places = offered_tools(body)
        raise type(error)(
            _own_words(error.message, places),
            field=None if error.field is None else _own_words(error.field, places),
            retry_after_s=error.retry_after_s,
        ) from error


def _own_words(text: str, places: list[int]) -> str:
    text = _TOOL_PLACE.sub(lambda found: f"tools[{places[int(found[1])]}]", text)
    return _CHAT_NAME.sub(lambda found: _CHAT_NAMES[found[0]], text)


def _check_include(body: ResponsesBody) -> None:
    for index, name in enumerate(body.include or []):
        if name not in (LOGPROBS, ENCRYPTED_REASONING):
            raise RequestError(
                f"include[{index}]={name[:64]!r} is not supported: there is no such thing in answers here; leave it "
                f"out, or send {LOGPROBS}",
                field=f"include[{index}]",
            )
    if body.top_logprobs and LOGPROBS not in (body.include or []):
        raise RequestError(
            f'top_logprobs={body.top_logprobs} needs include: ["{LOGPROBS}"]; send it too, or leave it out',
            field="top_logprobs",
        )


def _response_format(text: TextOptions) -> ResponseFormat | None:
    given = text.format
    if given is None:
        return None
    field = "text.format"
    is_schema = given.type == "json_schema"
    for name in ("name", "schema"):
        if (getattr(given, name) is None) == is_schema:
            reason = "is missing" if is_schema else "is for type=json_schema; leave it out"
            raise RequestError(f"{field}.{name} {reason}", field=f"{field}.{name}")
    if given.type == "json_schema":
        schema = JsonSchemaFormat(
            name=given.name, description=given.description, schema=given.schema, strict=given.strict
        )
        return ResponseFormat(type="json_schema", json_schema=schema)
    if given.type == "json_object":
        return ResponseFormat(type="json_object")
    if given.type != "text":
        raise RequestError(
            f"{field}.type={given.type[:32]!r} is not known; send text, json_object or json_schema",
            field=f"{field}.type",
        )
    return None


def _effort(given: ReasoningOptions) -> str | None:
    for name, neutral, reason in (
        ("summary", "auto", "reasoning is shown as it is, not in summary"),
        ("generate_summary", "auto", "reasoning is shown as it is, not in summary"),
        ("context", "auto", "the chat template says which reasoning of the history is read"),
        ("mode", "standard", "there is one mode"),
    ):
        value = getattr(given, name)
        if value not in (None, neutral):
            field = f"reasoning.{name}"
            message = f'{field}={value[:32]!r} is not supported: {reason}; leave it out or send "{neutral}"'
            raise RequestError(message, field=field)
    return given.effort
