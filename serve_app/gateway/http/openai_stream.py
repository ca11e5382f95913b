"""OpenAI's streamed answers: server-sent events, most of each encoded beforehand."""

import msgspec
from msgspec import UNSET, UnsetType

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.generation import GenerationCall, PromptRun
from serve_app.gateway.http.openai_logprobs import ChatLogprobs, EchoedPrompt, chat_logprobs, completion_logprobs
from serve_app.gateway.http.openai_responses import (
    ChatFinishReason,
    CompletionChoice,
    CompletionResponse,
    Usage,
    count_usage,
)
from serve_app.preprocessing.answers.parts import AnswerParts, CallDelta

DONE = b"data: [DONE]\n\n"
_SEPARATORS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


class FunctionPiece(msgspec.Struct, frozen=True):
    """What a called function grew by: its name comes once, at first."""

    arguments: str
    name: str | UnsetType = UNSET


class CallPiece(msgspec.Struct, frozen=True):
    """What one call of a tool grew by: id and type come once, at first."""

    index: int
    function: FunctionPiece
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chat answer grew by."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, as vLLM names it
    tool_calls: list[CallPiece] | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A piece of one chat answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True):
    """A piece of a chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class _EventEncoder:
    """What both kinds of stream share."""

    _object: str

    def __init__(self, call: GenerationCall, runs: list[PromptRun], response_id: str, created_s: int) -> None:
        options = call.options
        self._call = call
        self._runs = runs
        self._id = response_id
        self._created_s = created_s
        self._name = call.model.description.name
        self._has_continuous_usage = options.has_usage and options.has_continuous_usage
        self._is_plain = not (options.num_logprobs is not None or options.has_token_ids or self._has_continuous_usage)
        self._no_usage: UnsetType | None = None if options.has_usage else UNSET
        self._prefixes: dict[int, bytes] = {}  # of plain events, by choice index; set with a choice's first event
        self._plain_suffix = b""

    def _prepare_plain(self, index: int, event: bytes) -> None:
        """Cut the constant parts out of an encoded event that has _MARK for its text."""
        prefix, _mark, self._plain_suffix = event.rpartition(_MARK)  # the last: a model may have any name
        self._prefixes[index] = prefix

    def _usage_so_far(self, num_to_come: int = 0) -> Usage | UnsetType | None:
        if not self._has_continuous_usage:
            return self._no_usage
        return count_usage(self._runs, num_to_come=num_to_come)

    def _last_usage(self) -> bytes:
        """The event after all choices: counts only."""
        if not self._call.options.has_usage:
            return b""
        usage = count_usage(self._runs)
        return event_of(CompletionResponse(self._id, self._object, self._created_s, self._name, [], usage))

    def end(self) -> bytes:
        """What follows the last choice."""
        return self._last_usage() + DONE


class CompletionEvents(_EventEncoder):
    """Events of `POST /v1/completions`."""

    _object = "text_completion"

    def __init__(self, call: GenerationCall, runs: list[PromptRun], response_id: str, created_s: int) -> None:
        super().__init__(call, runs, response_id, created_s)
        self._text_offsets: dict[int, int] = {}

    def encode(self, prompt_index: int, delta: ChoiceDelta) -> bytes:
        """One event."""
        index = prompt_index * self._call.options.num_choices + delta.choice
        prefix = self._prefixes.get(index)
        if prefix is not None and self._is_plain and delta.finish_reason is None:
            return b"".join((prefix, json_text(delta.text), self._plain_suffix))
        is_first = prefix is None
        if is_first:
            self._prepare_plain(index, self._event(CompletionChoice(index, _MARK.decode()[1:-1], None, None, None)))
        return self._event(self._full_choice(index, prompt_index, delta, is_first=is_first))

    def _full_choice(self, index: int, prompt_index: int, delta: ChoiceDelta, *, is_first: bool) -> CompletionChoice:
        options, run = self._call.options, self._runs[prompt_index]
        is_echoed = is_first and options.has_echo
        prompt_texts = self._call.prompt_texts[prompt_index] if is_echoed else []
        logprobs = completion_logprobs(
            delta.logprobs or [],
            delta.token_texts,
            self._call,
            EchoedPrompt(run, prompt_texts) if is_echoed else None,
            self._text_offsets.get(index, 0),
        )
        if logprobs is not None and logprobs.tokens:
            self._text_offsets[index] = logprobs.text_offset[-1] + len(logprobs.tokens[-1])
        return CompletionChoice(
            index=index,
            text="".join((*prompt_texts, delta.text)),
            logprobs=logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            prompt_token_ids=run.request.prompt_token_ids if is_first and options.has_token_ids else UNSET,
            token_ids=delta.token_ids if options.has_token_ids else UNSET,
        )

    def _event(self, choice: CompletionChoice) -> bytes:
        usage = self._usage_so_far()
        return event_of(CompletionResponse(self._id, self._object, self._created_s, self._name, [choice], usage))


class ChatEvents(_EventEncoder):
    """Events of `POST /v1/chat/completions`: the role first, then text."""

    _object = "chat.completion.chunk"

    def encode(self, prompt_index: int, delta: ChoiceDelta) -> bytes:
        """One event, two for the first, one more for each further part."""
        assert prompt_index == 0
        index = delta.choice
        prefix = self._prefixes.get(index)
        if prefix is not None and self._is_plain and delta.finish_reason is None and delta.parts is None:
            return b"".join((prefix, json_text(delta.text), self._plain_suffix))
        opening = b""
        if prefix is None:
            self._prepare_plain(index, self._event(ChatChunkChoice(index, ChatDelta(content=_MARK.decode()[1:-1]))))
            role = ChatChunkChoice(index, ChatDelta(role="assistant", content=""))
            opening = self._event(role, is_first=True, num_to_come=len(delta.token_ids))
            for texts in self._call.prompt_texts:  # of the one prompt, when it is echoed
                echoed = ChatChunkChoice(index, ChatDelta(content="".join(texts)))
                opening += self._event(echoed, num_to_come=len(delta.token_ids)) if texts[0] else b""
        *early, last = [ChatDelta(content=delta.text or None)] if delta.parts is None else _deltas(delta, delta.parts)
        num_tokens = len(delta.token_ids)
        opening += b"".join(self._event(ChatChunkChoice(index, one), num_to_come=num_tokens) for one in early)
        choice = ChatChunkChoice(
            index=index,
            delta=last,
            logprobs=chat_logprobs(delta.logprobs or [], self._call),
            finish_reason="tool_calls" if delta.has_calls else delta.finish_reason,
            stop_reason=delta.stop_reason,
            token_ids=delta.token_ids if self._call.options.has_token_ids else UNSET,
        )
        return opening + self._event(choice)

    def _event(self, choice: ChatChunkChoice, *, is_first: bool = False, num_to_come: int = 0) -> bytes:
        has_prompt = is_first and self._call.options.has_token_ids
        return event_of(
            ChatChunk(
                self._id,
                self._object,
                self._created_s,
                self._name,
                [choice],
                usage=self._usage_so_far(num_to_come),
                prompt_token_ids=self._runs[0].request.prompt_token_ids if has_prompt else UNSET,
            )
        )


def _deltas(delta: ChoiceDelta, parts: AnswerParts) -> list[ChatDelta]:
    """One for each part, as the model wrote them; an answer that ends with calls has an empty one for its end."""
    shown = [ChatDelta(reasoning_content=parts.reasoning, reasoning=parts.reasoning)] if parts.reasoning else []
    for part in parts.in_order():
        shown.append(ChatDelta(content=part) if isinstance(part, str) else ChatDelta(tool_calls=[_call_piece(part)]))
    return [*shown, ChatDelta()] if parts.calls and delta.finish_reason is not None else shown


def _call_piece(call: CallDelta) -> CallPiece:
    if call.id is None or call.name is None:
        return CallPiece(call.index, FunctionPiece(call.arguments))
    return CallPiece(call.index, FunctionPiece(call.arguments, call.name), call.id, "function")


def event_of(content: msgspec.Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + one_line(msgspec.json.encode(content)) + b"\n\n"


def line_of(content: msgspec.Struct) -> bytes:
    """One line of JSON."""
    return one_line(msgspec.json.encode(content)) + b"\n"


def json_text(text: str) -> bytes:
    """A JSON string on what every client takes for one line."""
    encoded = _ENCODE(text)
    return encoded if text.isascii() else one_line(encoded)


def one_line(encoded: bytes) -> bytes:
    """JSON on what every client takes for one line: some clients break lines at Unicode's separators too."""
    for separator, escape in _SEPARATORS:
        if separator in encoded:
            encoded = encoded.replace(separator, escape)
    return encoded


_MARK = b'"@text@"'
_ENCODE = msgspec.json.Encoder().encode
