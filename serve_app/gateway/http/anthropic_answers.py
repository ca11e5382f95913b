"""Answers of Anthropic's Messages API, whole, and as the events of a stream.

https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from typing import Literal

import msgspec

from serve_app.gateway.calls.anthropic import MessagesCall
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.generation import PromptRun
from serve_app.gateway.http.anthropic_blocks import (
    SIGNATURE,
    AnsweredBlock,
    AnsweredText,
    AnsweredThinking,
    AnsweredToolUse,
    BlockList,
    BlockPiece,
    BlockSplitter,
)
from serve_app.gateway.http.openai_stream import json_text, one_line

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessagesUsage(msgspec.Struct, frozen=True):
    """Token counts. What the prefix cache had of a prompt is not among input_tokens."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    service_tier: str = "standard"


class MessagesAnswer(msgspec.Struct, frozen=True):
    """A whole answer; in a stream, what is known of it at its beginning."""

    id: str
    model: str
    content: list[AnsweredBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage
    type: str = "message"
    role: str = "assistant"


class TokenCount(msgspec.Struct, frozen=True):
    """`POST /v1/messages/count_tokens`."""

    input_tokens: int


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """The first event."""

    message: MessagesAnswer


class PingEvent(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Says that the stream is alive."""


class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: AnsweredBlock


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """What a text grew by."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """What reasoning grew by."""

    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag_field="type", tag="signature_delta"):
    """Comes once, when reasoning has ended."""

    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """What the JSON of a call's input grew by."""

    partial_json: str


BlockGrowth = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """A block grew."""

    index: int
    delta: BlockGrowth


class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block has ended."""

    index: int


class Ending(msgspec.Struct, frozen=True):
    """Why the answer has ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """How the answer has ended, and all that it took."""

    delta: Ending
    usage: MessagesUsage


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """The last event."""


MessagesEvent = MessageStart | PingEvent | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class WholeMessage:
    """Collects an answer."""

    def __init__(self, call: MessagesCall, run: PromptRun, message_id: str) -> None:
        self._call = call
        self._run = run
        self._id = message_id
        self._blocks = BlockList(has_thinking_text=call.has_thinking_text)
        self._ending: Ending | None = None

    def add(self, _prompt_index: int, delta: ChoiceDelta) -> None:
        """Take one more piece."""
        self._blocks.add(delta)
        if delta.finish_reason is not None:
            self._ending = ending_of(delta, self._call)

    def answer(self) -> MessagesAnswer:
        """The finished answer."""
        assert self._ending is not None
        name, ending = self._call.generation.model.description.name, self._ending
        blocks = self._blocks.blocks()
        return MessagesAnswer(self._id, name, blocks, ending.stop_reason, ending.stop_sequence, usage_of(self._run))


class MessageEvents:
    """Encodes what an answer grows by as events."""

    def __init__(self, call: MessagesCall, run: PromptRun, message_id: str) -> None:
        self._call = call
        self._run = run
        self._id = message_id
        self._splitter = BlockSplitter()
        self._is_begun = False
        self._open: BlockPiece | None = None  # the first piece of the block that grows
        self._text_prefix = b""  # of a piece of the text that grows; what it says is all that changes

    def encode(self, delta: ChoiceDelta) -> bytes:
        """The events of one piece."""
        if self._text_prefix and delta.parts is None and delta.finish_reason is None:
            return b"".join((self._text_prefix, json_text(delta.text), _TEXT_SUFFIX)) if delta.text else b""
        events = [] if self._is_begun else self._opening(len(delta.token_ids))
        for piece in self._splitter.pieces(delta):
            if piece.is_first:
                events += [*self._closing(), self._start(piece)]
            growth = self._growth(piece)
            if growth is not None:
                events.append(event_of(BlockDelta(piece.index, growth)))
        if delta.finish_reason is not None:
            ending = MessageDelta(ending_of(delta, self._call), usage_of(self._run))
            events += [*self._closing(), event_of(ending), event_of(MessageStop())]
        return b"".join(events)

    def _opening(self, num_to_come: int) -> list[bytes]:
        self._is_begun = True
        name, usage = self._call.generation.model.description.name, usage_of(self._run, num_to_come=num_to_come)
        return [event_of(MessageStart(MessagesAnswer(self._id, name, [], None, None, usage))), PING]

    def _start(self, piece: BlockPiece) -> bytes:
        self._open = piece
        block: AnsweredBlock = AnsweredText("")
        if piece.kind == "thinking":
            block = AnsweredThinking("", "")
        elif piece.kind == "tool_use":
            block = AnsweredToolUse(piece.call_id, piece.name, {})
        else:
            prefix, _mark, _suffix = event_of(BlockDelta(piece.index, TextDelta(_MARK))).rpartition(_MARK.encode())
            self._text_prefix = prefix[:-1]  # without the quotation mark
        return event_of(BlockStart(piece.index, block))

    def _growth(self, piece: BlockPiece) -> BlockGrowth | None:
        if piece.kind == "text":
            return TextDelta(piece.text)
        if piece.kind == "tool_use":
            return InputJsonDelta(piece.text)
        return ThinkingDelta(piece.text) if self._call.has_thinking_text else None

    def _closing(self) -> list[bytes]:
        if self._open is None:
            return []
        index, kind = self._open.index, self._open.kind
        self._open, self._text_prefix = None, b""
        signed = [event_of(BlockDelta(index, SignatureDelta(SIGNATURE)))] if kind == "thinking" else []
        return [*signed, event_of(BlockStop(index))]


def ending_of(delta: ChoiceDelta, call: MessagesCall) -> Ending:
    """Of an answer's last piece."""
    if isinstance(delta.stop_reason, str):
        return Ending("stop_sequence", delta.stop_reason)
    if delta.finish_reason == "length":
        is_cut = call.generation.requests[0].params.max_tokens < call.max_tokens
        return Ending("model_context_window_exceeded" if is_cut else "max_tokens", None)
    return Ending("tool_use" if delta.has_calls else "end_turn", None)


def usage_of(run: PromptRun, *, num_to_come: int = 0) -> MessagesUsage:
    """Tokens so far, without those of the answer that are still to come."""
    num_prompt, num_cached = len(run.request.prompt_token_ids), run.num_cached_tokens
    return MessagesUsage(num_prompt - num_cached, run.num_output_tokens - num_to_come, num_cached)


def event_of(content: MessagesEvent) -> bytes:
    """One server-sent event, named by its type."""
    return named_event(str(content.__struct_config__.tag), msgspec.json.encode(content))


def named_event(name: str, content: bytes) -> bytes:
    """One server-sent event of encoded content."""
    return b"".join((b"event: ", name.encode(), b"\ndata: ", one_line(content), b"\n\n"))


PING = event_of(PingEvent())
_MARK = "@text@"
_TEXT_SUFFIX = b"}}\n\n"
