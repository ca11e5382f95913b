"""Cohere's chat answers, whole and as server-sent events.

https://docs.cohere.com/v2/docs/streaming
"""

from typing import Literal

import msgspec
from msgspec import UNSET

from serve_app.errors import RayshardError
from serve_app.gateway.bodies.cohere import (
    CohereAnswer,
    CohereCalled,
    CohereChat,
    CohereDelta,
    CohereDeltaMessage,
    CohereEvent,
    CohereFinish,
    CohereLogprobs,
    CohereText,
    CohereToolCall,
    CohereUsage,
    CohereUsed,
)
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.cohere_chat import finish_of
from serve_app.gateway.calls.generation import GenerationCall, PromptRun
from serve_app.gateway.failures import told_message
from serve_app.gateway.http.openai_logprobs import finite
from serve_app.gateway.http.openai_responses import GrowingAnswer
from serve_app.gateway.http.openai_stream import DONE, event_of
from serve_app.preprocessing.answers.parts import CallDelta
from serve_app.types.generation import TokenLogprobs

_Block = Literal["text", "thinking", "call"]


def cohere_answer(answer: GrowingAnswer, call: GenerationCall, run: PromptRun, response_id: str) -> bytes:
    """The finished answer as JSON. What a model with tools reasons is its plan."""
    message = answer.message()
    reasoning = "" if message.reasoning_content is UNSET else message.reasoning_content
    is_planned = _is_planned(call)
    content = [CohereText(type="thinking", thinking=reasoning)] if reasoning and not is_planned else []
    if message.content is not None:
        content.append(CohereText(type="text", text=message.content))
    calls = [] if message.tool_calls is UNSET else message.tool_calls
    shown = CohereAnswer(
        "assistant",
        content or UNSET,
        reasoning if reasoning and is_planned else UNSET,
        [CohereToolCall(CohereCalled(one.function.name, one.function.arguments), one.id, "function") for one in calls]
        or UNSET,
    )
    logprobs = UNSET if call.options.num_logprobs is None else _each(answer)
    finish = finish_of(answer.finish_reason, answer.stop_reason, has_calls=answer.has_calls)
    return msgspec.json.encode(CohereChat(response_id, finish, shown, _usage(run), logprobs))


class CohereEvents:
    """Events of `POST /v2/chat`: a block of content or a call begins, grows and ends before the next."""

    def __init__(self, call: GenerationCall, run: PromptRun, response_id: str) -> None:
        self._run = run
        self._id = response_id
        self._is_planned = _is_planned(call)
        self._is_begun = False
        self._block: _Block | None = None  # that is open
        self._num_blocks = 0  # of content that have ended
        self._call_index = 0  # of the call that is open
        self._finish: CohereFinish = "ERROR"

    def encode(self, delta: ChoiceDelta) -> bytes:
        """The events of one piece."""
        events = [] if self._is_begun else [self._start()]
        reasoning = "" if delta.parts is None else delta.parts.reasoning
        logprobs = None if delta.logprobs is None else _joined(delta.text or reasoning, delta.logprobs)
        if reasoning and self._is_planned:
            events.append(_event("tool-plan-delta", CohereDeltaMessage(tool_plan=reasoning)))
        elif reasoning:
            events += self._grow("thinking", CohereText(thinking=reasoning), None if delta.text else logprobs)
        texts = [delta.text] if delta.text else []
        for part in texts if delta.parts is None else delta.parts.in_order():
            if isinstance(part, str):
                events += self._grow("text", CohereText(text=part), logprobs)
                logprobs = None  # they are of all that is shown, and come once
            else:
                events += self._call(part)
        if delta.finish_reason is not None:
            events += self._finished(delta, logprobs)
        return b"".join(events)

    def end(self) -> bytes:
        """The last event."""
        delta = CohereDelta(finish_reason=self._finish, usage=_usage(self._run))
        return _written(CohereEvent("message-end", id=self._id, delta=delta)) + DONE

    def error(self, error: RayshardError) -> bytes:
        """The last event of an answer that failed."""
        delta = CohereDelta(finish_reason="ERROR", usage=_usage(self._run), error=told_message(error))
        return _written(CohereEvent("message-end", id=self._id, delta=delta)) + DONE

    def _start(self) -> bytes:
        self._is_begun = True
        message = CohereDeltaMessage(role="assistant", content=[], tool_plan="", tool_calls=[])
        return _written(CohereEvent("message-start", id=self._id, delta=CohereDelta(message)))

    def _finished(self, delta: ChoiceDelta, logprobs: CohereLogprobs | None) -> list[bytes]:
        self._finish = finish_of(delta.finish_reason, delta.stop_reason, has_calls=delta.has_calls)
        events = []
        if not delta.text and self._block != "call" and (logprobs is not None and logprobs.token_ids):
            events = self._grow("text", CohereText(text=""), logprobs)  # of tokens that show nothing
        elif self._block is None and not self._num_blocks and not delta.has_calls:
            events = self._open("text")
        return [*events, *self._close()]

    def _grow(
        self, block: Literal["text", "thinking"], content: CohereText, logprobs: CohereLogprobs | None
    ) -> list[bytes]:
        events = self._open(block) if self._block != block else []
        delta = CohereDelta(CohereDeltaMessage(content=content))
        shown = UNSET if logprobs is None else logprobs
        return [*events, _written(CohereEvent("content-delta", index=self._num_blocks, delta=delta, logprobs=shown))]

    def _open(self, block: Literal["text", "thinking"]) -> list[bytes]:
        events = self._close()
        self._block = block
        content = CohereText("text", text="") if block == "text" else CohereText("thinking", thinking="")
        return [*events, _event("content-start", CohereDeltaMessage(content=content), self._num_blocks)]

    def _call(self, call: CallDelta) -> list[bytes]:
        if call.id is None or call.name is None:
            grown = CohereToolCall(CohereCalled(arguments=call.arguments))
            return [_event("tool-call-delta", CohereDeltaMessage(tool_calls=grown), call.index)]
        events = self._close()
        self._block, self._call_index = "call", call.index
        begun = CohereToolCall(CohereCalled(call.name, call.arguments), call.id, "function")
        return [*events, _event("tool-call-start", CohereDeltaMessage(tool_calls=begun), call.index)]

    def _close(self) -> list[bytes]:
        block, self._block = self._block, None
        if block is None:
            return []
        if block == "call":
            return [_written(CohereEvent("tool-call-end", index=self._call_index))]
        self._num_blocks += 1
        return [_written(CohereEvent("content-end", index=self._num_blocks - 1))]


def _event(kind: str, message: CohereDeltaMessage, index: int | None = None) -> bytes:
    return _written(CohereEvent(kind, index=UNSET if index is None else index, delta=CohereDelta(message)))


def _written(event: CohereEvent) -> bytes:
    return b"event: " + event.type.encode() + b"\n" + event_of(event)


def _is_planned(call: GenerationCall) -> bool:
    """Whether an answer may hold calls: what it reasons is a plan of them then."""
    return call.options.answer_format is not None and call.options.answer_format.tools is not None


def _usage(run: PromptRun) -> CohereUsage:
    used = CohereUsed(len(run.request.prompt_token_ids), run.num_output_tokens)
    return CohereUsage(used, used, run.num_cached_tokens)


def _each(answer: GrowingAnswer) -> list[CohereLogprobs]:
    """An entry for each token of a whole answer."""
    pairs = zip(answer.token_texts, answer.logprobs, strict=True)
    return [CohereLogprobs(text, [entry.token_id], [finite(entry.logprob)]) for text, entry in pairs]


def _joined(text: str, entries: list[TokenLogprobs]) -> CohereLogprobs:
    return CohereLogprobs(text, [one.token_id for one in entries], [finite(one.logprob) for one in entries])
