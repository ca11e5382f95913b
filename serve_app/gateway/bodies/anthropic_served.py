"""Bodies of Anthropic's Messages API to typed ones; what is not served is refused by a sentence about it."""

from typing import Any, get_args

import msgspec

from serve_app.errors import RequestError
from serve_app.gateway.bodies.anthropic import CountTokensBody, MessageRole, MessagesBody
from serve_app.gateway.bodies.convert import convert_body

_ROLES = get_args(MessageRole)
_BLOCK_TYPES = {
    "messages": ("text", "thinking", "tool_use", "tool_result"),
    "system": ("text",),
    "result": ("text",),
}
_KEEP_ALL = {"type": "clear_thinking_20251015", "keep": "all"}  # which clears nothing
_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "container": (None,),
    "context_management": (None, {}, {"edits": []}, {"edits": [_KEEP_ALL]}),
    "diagnostics": (None, {}, {"previous_message_id": None}),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "speed": (None, "standard"),
    "thread": (None,),
}


def messages_body(given: dict[str, Any]) -> MessagesBody:
    """The typed body. Raises RequestError that says what cannot be served, or names the field."""
    return convert_body(_served(given), MessagesBody)


def count_tokens_body(given: dict[str, Any]) -> CountTokensBody:
    """The typed body of a call that only counts. Raises RequestError as messages_body does."""
    return convert_body(_served(given), CountTokensBody)


def _served(given: dict[str, Any]) -> dict[str, Any]:
    """`given` without keys that ask for nothing. Raises RequestError for what other servers have and this has not."""
    kept = dict(given)
    for key, allowed in _NEUTRAL_VALUES.items():
        if key in kept and kept.pop(key) not in allowed:
            advice = "send the whole conversation without it" if key == "thread" else "leave it out"
            raise RequestError(f"{key} is not supported; {advice}", field=key)
    for index, message in enumerate(_dicts(given.get("messages"))):
        _check_role(message.get("role"), f"messages[{index}].role")
        _check_blocks(message.get("content"), f"messages[{index}].content", "messages")
    _check_blocks(given.get("system"), "system", "system")
    for index, tool in enumerate(_dicts(given.get("tools"))):
        if tool.get("type") not in (None, "custom"):
            raise RequestError(
                f"tools[{index}].type={_shown(tool['type'])} is a tool of Anthropic's servers or models; "
                "send tools with an input_schema, which the client runs",
                field=f"tools[{index}].type",
            )
    return kept


def _check_role(role: object, field: str) -> None:
    if isinstance(role, str) and role not in _ROLES:
        raise RequestError(f"{field}={_shown(role)} is not known; send {', '.join(_ROLES)}", field=field)


def _check_blocks(content: object, where: str, place: str) -> None:
    for index, block in enumerate(_dicts(content)):
        kind, field = block.get("type"), f"{where}[{index}].type"
        if isinstance(kind, str) and kind not in _BLOCK_TYPES[place]:
            raise RequestError(f"{field}={_shown(kind)} {_why_not(kind, place)}", field=field)
        if kind == "tool_result":
            _check_blocks(block.get("content"), f"{where}[{index}].content", "result")


def _why_not(kind: str, place: str) -> str:
    if kind in ("image", "document"):
        return f"is not read: models here take text; send the {kind}'s text"
    if kind == "redacted_thinking":
        return "can be read by the server alone that wrote it; leave it out"
    if kind == "server_tool_use" or kind.endswith("_tool_result"):
        return "is of a tool that another server ran; send what it found as a text"
    if kind in _BLOCK_TYPES["messages"]:
        return f"does not belong {'in a tool_result' if place == 'result' else 'in system'}; send text"
    return f"is not served; send {', '.join(_BLOCK_TYPES[place])}"


def _dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a list, at their places; an empty one stands for whatever else is there."""
    return [one if isinstance(one, dict) else {} for one in value] if isinstance(value, list) else []


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()[:48]
