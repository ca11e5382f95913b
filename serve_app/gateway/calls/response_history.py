"""The items of a Responses request as messages of a chat.

Reasoning, a text and calls that follow each other are one message of the assistant, as chat templates expect them.
"""

from collections.abc import Sequence

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChatMessage, FunctionCall, Role, TextPart, ToolCall
from serve_app.gateway.bodies.responses import InputItem, InputPart

_ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
}
_TEXT_TYPES = ("input_text", "output_text")
_TYPES = ("message", "function_call", "function_call_output", "reasoning")


def messages_of(given: str | list[InputItem], instructions: str | None) -> list[ChatMessage]:
    """The conversation: instructions come first. Raises RequestError that names the item.

    given: what refuse_other_items has let pass.
    """
    messages = [] if instructions is None else [ChatMessage(role="system", content=instructions)]
    if isinstance(given, str):
        return [*messages, ChatMessage(role="user", content=given)]
    if not given:
        raise RequestError("input is empty; send a text, or at least one item", field="input")
    history = _History(messages)
    for index, item in enumerate(given):
        history.add(f"input[{index}]", item)
    return messages


def refuse_other_items(given: object) -> None:
    """Raises RequestError for the first item of an unread body that is of a kind that is not served."""
    for index, item in enumerate(given if isinstance(given, list) else []):
        kind = item.get("type") if isinstance(item, dict) else None
        field = f"input[{index}].type"
        if kind == "item_reference":
            message = f"{field}={kind}: nothing is kept here between requests; send the item itself"
            raise RequestError(message, field=field)
        if isinstance(kind, str) and kind not in _TYPES:
            raise RequestError(
                f"{field}={kind[:64]!r} is not taken: there are no built-in tools here; send items of type "
                f"{', '.join(_TYPES)}",
                field=field,
            )


class _History:
    """Messages, growing."""

    def __init__(self, messages: list[ChatMessage]) -> None:
        self._messages = messages
        self._open: ChatMessage | None = None  # an assistant's, which what follows may belong to
        self._call_ids: set[str] = set()

    def add(self, where: str, item: InputItem) -> None:
        """One more item."""
        if item.type == "reasoning":
            self._add_reasoning(where, item)
        elif item.type == "function_call":
            self._add_call(where, item)
        elif item.type == "function_call_output":
            self._add_output(where, item)
        else:
            self._add_message(where, item)

    def _add_message(self, where: str, item: InputItem) -> None:
        if item.role is None and item.type is None:
            raise RequestError(f"{where} has neither type nor role; send one of them", field=where)
        role = _ROLES.get(item.role or "")
        if role is None:
            shown = "is missing" if item.role is None else f"={item.role[:64]!r} is not known"
            raise RequestError(f"{where}.role {shown}; send one of {', '.join(_ROLES)}", field=f"{where}.role")
        content = _content(f"{where}.content", item.content)
        if role == "assistant" and self._open is not None and self._open.content is None and not self._open.tool_calls:
            self._open.content = content
            return
        self._begin(ChatMessage(role=role, content=content), is_open=role == "assistant")

    def _add_reasoning(self, where: str, item: InputItem) -> None:
        parts = item.content or item.summary or []
        text = parts if isinstance(parts, str) else "\n".join(_reasoning_text(where, part) for part in parts)
        if not text:
            if item.encrypted_content:
                raise RequestError(
                    f"{where}.encrypted_content was encrypted elsewhere and cannot be read; leave the item out",
                    field=f"{where}.encrypted_content",
                )
            return
        self._begin(ChatMessage(role="assistant", reasoning_content=text), is_open=True)

    def _add_call(self, where: str, item: InputItem) -> None:
        name, call_id = _needed(where, "name", item.name), _needed(where, "call_id", item.call_id)
        self._call_ids.add(call_id)
        if self._open is None:
            self._begin(ChatMessage(role="assistant"), is_open=True)
        assert self._open is not None
        function = FunctionCall(name=name, arguments=item.arguments)
        self._open.tool_calls = [*(self._open.tool_calls or []), ToolCall(function=function, id=call_id)]

    def _add_output(self, where: str, item: InputItem) -> None:
        call_id = _needed(where, "call_id", item.call_id)
        if call_id not in self._call_ids:
            raise RequestError(
                f"{where}.call_id={call_id[:64]!r} is of no function_call before it, and nothing is kept here between "
                "requests; send the call too",
                field=f"{where}.call_id",
            )
        output = _content(f"{where}.output", item.output)
        self._begin(ChatMessage(role="tool", content=output, tool_call_id=call_id), is_open=False)

    def _begin(self, message: ChatMessage, *, is_open: bool) -> None:
        self._messages.append(message)
        self._open = message if is_open else None


def _content(where: str, given: str | Sequence[InputPart] | None) -> str | list[TextPart]:
    if given is None:
        raise RequestError(f"{where} is missing; send a text", field=where)
    if isinstance(given, str):
        return given
    return [_text_part(f"{where}[{index}]", part) for index, part in enumerate(given)]


def _text_part(where: str, part: InputPart) -> TextPart:
    if part.type == "refusal":
        return TextPart(type="refusal", refusal=_needed(where, "refusal", part.refusal))
    if part.type not in _TEXT_TYPES:
        raise RequestError(
            f"{where}.type={part.type[:64]!r} is not taken: models here read text alone; send parts of type "
            f"{', '.join(_TEXT_TYPES)}",
            field=f"{where}.type",
        )
    return TextPart(type="text", text=_needed(where, "text", part.text))


def _reasoning_text(where: str, part: InputPart) -> str:
    if part.text is None:
        raise RequestError(f"{where} has a part without a text; leave the part out", field=where)
    return part.text


def _needed(where: str, name: str, value: str | None) -> str:
    if value is None:
        raise RequestError(f"{where}.{name} is missing", field=f"{where}.{name}")
    return value
