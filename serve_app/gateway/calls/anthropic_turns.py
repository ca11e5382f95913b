"""Turns of Anthropic's Messages API as the messages of a chat: results of tools stand apart, calls beside a text."""

from collections.abc import Iterator, Sequence

from serve_app.errors import RequestError
from serve_app.gateway.bodies.anthropic import (
    Message,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from serve_app.gateway.bodies.openai import ChatMessage, FunctionCall, Role, TextPart, ToolCall

_ERROR = "Error: "  # chat templates have no other place for it


def chat_messages(messages: Sequence[Message], system: str | list[TextBlock] | None) -> list[ChatMessage]:
    """The conversation, turns of one role that follow each other joined. Raises RequestError that names the block."""
    if messages and messages[-1].role == "assistant" and not messages[-1].content:
        messages = messages[:-1]  # it begins no answer
    if not messages:
        raise RequestError("messages is empty, or its one message is; send one of the user's", field="messages")
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    made: list[ChatMessage] = [] if not system else [ChatMessage(role="system", content=_content(system))]
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        for one in (
            _assistants(message, where, names) if message.role == "assistant" else _others(message, where, names)
        ):
            if made and made[-1].role == one.role != "tool":
                _join(made[-1], one)
            else:
                made.append(one)
    _check_ending(messages)
    return made


def _assistants(message: Message, where: str, names: dict[str, str]) -> Iterator[ChatMessage]:
    texts: list[TextPart] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(_blocks(message.content)):
        if isinstance(block, TextBlock):
            texts.append(TextPart(type="text", text=block.text))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            names[block.id] = block.name
            calls.append(ToolCall(function=FunctionCall(name=block.name, arguments=block.input), id=block.id))
        else:
            raise _misplaced(f"{where}[{index}]", "tool_result", "user")
    yield ChatMessage(
        role="assistant",
        content=texts or None,
        tool_calls=calls or None,
        reasoning_content="\n".join(filter(None, thoughts)) or None,
    )


def _others(message: Message, where: str, names: dict[str, str]) -> Iterator[ChatMessage]:
    role: Role = "system" if message.role == "system" else "user"
    if not message.content and isinstance(message.content, list):
        raise RequestError(f"{where} is empty; send a text", field=where)
    for index, block in enumerate(_blocks(message.content)):
        if isinstance(block, TextBlock):
            yield ChatMessage(role=role, content=[TextPart(type="text", text=block.text)])
        elif isinstance(block, ToolResultBlock) and role == "user":
            yield _result(block, f"{where}[{index}]", names)
        elif isinstance(block, ToolResultBlock):
            raise _misplaced(f"{where}[{index}]", "tool_result", "user")
        else:
            kind = "thinking" if isinstance(block, ThinkingBlock) else "tool_use"
            raise _misplaced(f"{where}[{index}]", kind, "assistant")


def _result(block: ToolResultBlock, where: str, names: dict[str, str]) -> ChatMessage:
    name = names.get(block.tool_use_id)
    if name is None:
        message = f"{where}.tool_use_id={block.tool_use_id[:80]!r} is the id of no tool_use before it; send one's"
        raise RequestError(message, field=f"{where}.tool_use_id")
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    if block.is_error and not text.lower().startswith("error"):
        text = _ERROR + text
    return ChatMessage(role="tool", content=text, tool_call_id=block.tool_use_id, name=name)


def _join(before: ChatMessage, after: ChatMessage) -> None:
    """Both become one turn."""
    assert not isinstance(before.content, str)
    assert not isinstance(after.content, str)
    before.content = [*(before.content or []), *(after.content or [])] or None
    before.tool_calls = [*(before.tool_calls or []), *(after.tool_calls or [])] or None
    thoughts = [one.reasoning_content for one in (before, after) if one.reasoning_content]
    before.reasoning_content = "\n".join(thoughts) or None


def _check_ending(messages: Sequence[Message]) -> None:
    """An answer goes on behind a text alone: behind calls comes what they gave. Raises RequestError."""
    last, where = messages[-1], f"messages[{len(messages) - 1}].content"
    if last.role != "assistant":
        return
    for index, block in enumerate(_blocks(last.content)):
        if isinstance(block, ToolUseBlock):
            message = f"{where}[{index}]: the tool_use has no tool_result behind it; send one as the user"
            raise RequestError(message, field=f"{where}[{index}]")
    if not any(isinstance(block, TextBlock) for block in _blocks(last.content)):
        raise RequestError(f"{where}: the answer cannot go on behind thinking; leave the message out", field=where)


def _content(system: str | list[TextBlock]) -> list[TextPart]:
    return [TextPart(type="text", text=block.text) for block in _texts(system)]


def _blocks(
    content: str | list[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock],
) -> Sequence[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock]:
    return [TextBlock(text=content)] if isinstance(content, str) else content


def _texts(content: str | list[TextBlock]) -> list[TextBlock]:
    return [TextBlock(text=content)] if isinstance(content, str) else content


def _misplaced(where: str, kind: str, role: str) -> RequestError:
    return RequestError(f"{where}.type={kind} belongs to messages of the {role}; send it there", field=f"{where}.type")
