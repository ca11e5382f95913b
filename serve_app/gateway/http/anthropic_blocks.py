"""An answer as Anthropic's content blocks, one after the other: thinking, text, calls of tools."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.preprocessing.answers.parts import CallDelta

SIGNATURE = "unsigned"  # of thinking: clients send it back, and nothing here depends on it
_BROKEN = "INVALID_JSON"  # the key of an input that is not the JSON of an object, with its text

BlockKind = Literal["thinking", "text", "tool_use"]


class AnsweredText(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A text."""

    text: str
    citations: None = None


class AnsweredThinking(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """Reasoning."""

    thinking: str
    signature: str


class AnsweredToolUse(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: dict[str, object]


AnsweredBlock = AnsweredText | AnsweredThinking | AnsweredToolUse


@dataclass(frozen=True, slots=True)
class BlockPiece:
    """What one block grew by. is_first: it begins with this, and the block before it has ended."""

    index: int
    kind: BlockKind
    text: str
    is_first: bool
    call_id: str = ""  # of a tool_use that begins, as is its name
    name: str = ""


class BlockSplitter:
    """Cuts what an answer grows by into pieces of blocks."""

    def __init__(self) -> None:
        self._index = -1  # of the block that grows
        self._kind: BlockKind | None = None

    def pieces(self, delta: ChoiceDelta) -> Iterator[BlockPiece]:
        """In the order of the answer."""
        if delta.parts is None:
            if delta.text:
                yield self._piece("text", delta.text)
            return
        if delta.parts.reasoning:
            yield self._piece("thinking", delta.parts.reasoning)
        for part in delta.parts.in_order():
            yield self._piece("text", part) if isinstance(part, str) else self._call_piece(part)

    def _piece(self, kind: BlockKind, text: str) -> BlockPiece:
        is_first = kind != self._kind
        if is_first:
            self._index += 1
            self._kind = kind
        return BlockPiece(self._index, kind, text, is_first)

    def _call_piece(self, call: CallDelta) -> BlockPiece:
        if call.id is None or call.name is None:
            return self._piece("tool_use", call.arguments)
        self._index += 1
        self._kind = "tool_use"
        return BlockPiece(self._index, "tool_use", call.arguments, is_first=True, call_id=call.id, name=call.name)


@dataclass(slots=True)
class _Growing:
    first: BlockPiece
    texts: list[str] = field(default_factory=list)


class BlockList:
    """The blocks of an answer that is given whole."""

    def __init__(self, *, has_thinking_text: bool) -> None:
        self._has_thinking_text = has_thinking_text
        self._splitter = BlockSplitter()
        self._growing: list[_Growing] = []

    def add(self, delta: ChoiceDelta) -> None:
        """Take what the answer grew by."""
        for piece in self._splitter.pieces(delta):
            if piece.is_first:
                self._growing.append(_Growing(piece))
            self._growing[-1].texts.append(piece.text)

    def blocks(self) -> list[AnsweredBlock]:
        """All of them."""
        return [self._block(one.first, "".join(one.texts)) for one in self._growing]

    def _block(self, first: BlockPiece, text: str) -> AnsweredBlock:
        if first.kind == "thinking":
            return AnsweredThinking(text if self._has_thinking_text else "", SIGNATURE)
        if first.kind == "text":
            return AnsweredText(text)
        return AnsweredToolUse(first.call_id, first.name, _input(text))


def _input(text: str) -> dict[str, object]:
    """The object that a call's arguments say; broken JSON is handed on as it is."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {_BROKEN: text}
    return value if isinstance(value, dict) else {_BROKEN: text}
