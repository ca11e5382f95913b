"""Ollama's answers, whole and as lines of JSON."""

import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from serve_app.errors import RayshardError, RequestError
from serve_app.gateway.bodies.json_body import parse_json_value
from serve_app.gateway.bodies.ollama import (
    OllamaAnswer,
    OllamaFunction,
    OllamaLogprob,
    OllamaPiece,
    OllamaToolCall,
    OllamaTopLogprob,
)
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.generation import GenerationCall, PromptRun
from serve_app.gateway.calls.ollama import shown_time
from serve_app.gateway.failures import told_message
from serve_app.gateway.http.errors import ProtocolError
from serve_app.gateway.http.openai_logprobs import chat_logprobs
from serve_app.gateway.http.openai_responses import GrowingAnswer
from serve_app.gateway.http.openai_stream import line_of
from serve_app.gateway.http.sse import StreamStyle
from serve_app.gateway.request_notes import arrival_s
from serve_app.preprocessing.answers.parts import CallDelta
from serve_app.types.generation import FinishReason, TokenLogprobs


def _error_line(error: RayshardError) -> bytes:
    return line_of(ProtocolError(told_message(error)))


LINES = StreamStyle(
    _error_line, keep_alive=b" ", media_type="application/x-ndjson"
)  # before a line a space changes nothing


class OllamaTimes:
    """What an answer's parts have taken. clock: seconds; by default the one of arrivals."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._arrived_s = arrival_s()
        self._started_s = clock()
        self._first_s: float | None = None

    def see(self) -> None:
        """A piece has come."""
        if self._first_s is None:
            self._first_s = self._clock()

    def since_arrival_ns(self) -> int:
        """All of it."""
        return _ns(self._clock() - self._arrived_s)

    def last_piece(self, piece: OllamaPiece, run: PromptRun, finish: FinishReason | None) -> OllamaPiece:
        """The piece as an answer's last one."""
        now_s = self._clock()
        first_s = now_s if self._first_s is None else self._first_s
        return msgspec.structs.replace(
            piece,
            done=True,
            done_reason="length" if finish == "length" else "stop",
            total_duration=self.since_arrival_ns(),
            load_duration=0,
            prompt_eval_count=len(run.request.prompt_token_ids),
            prompt_eval_duration=_ns(first_s - self._started_s),
            eval_count=run.num_output_tokens,
            eval_duration=_ns(now_s - first_s),
        )


def ollama_answer(
    answer: GrowingAnswer, call: GenerationCall, run: PromptRun, times: OllamaTimes, *, is_chat: bool
) -> bytes:
    """The finished answer as JSON."""
    message = answer.message()
    given = [] if message.tool_calls is UNSET else message.tool_calls
    calls, content = [], message.content or ""
    for index, one in enumerate(given):
        found = _read_call(index, one.id, one.function.name, one.function.arguments)
        if isinstance(found, str):
            content += found
        else:
            calls.append(found)
    thinking = message.reasoning_content or UNSET
    piece = _piece(call, content, thinking, calls, answer.logprobs, is_chat=is_chat)
    return msgspec.json.encode(times.last_piece(piece, run, answer.finish_reason))


def loaded_answer(model: str, *, is_chat: bool) -> bytes:
    """The answer to a request for nothing."""
    message = OllamaAnswer("assistant", "") if is_chat else UNSET
    response = UNSET if is_chat else ""
    now = shown_time(time.time())
    return line_of(
        OllamaPiece(model=model, created_at=now, done=True, message=message, response=response, done_reason="load")
    )


class OllamaEvents:
    """Lines of `POST /api/chat` or `/api/generate`: a call comes when it is whole."""

    def __init__(self, call: GenerationCall, run: PromptRun, times: OllamaTimes, *, is_chat: bool) -> None:
        self._call = call
        self._run = run
        self._times = times
        self._is_chat = is_chat
        self._finish: FinishReason | None = None
        self._begun: CallDelta | None = None  # the call that grows
        self._arguments: list[str] = []

    def encode(self, delta: ChoiceDelta) -> bytes:
        """One line; none while only a call grows."""
        self._times.see()
        thinking, content = "", delta.text
        calls: list[OllamaToolCall] = []
        given = [] if delta.parts is None else delta.parts.calls
        if delta.parts is not None:
            thinking = delta.parts.reasoning
        found = [self._grow(call) for call in given]
        if delta.finish_reason is not None:
            self._finish = delta.finish_reason
            found.append(self._end_call())
        for one in found:
            if isinstance(one, str):
                content += one
            elif one is not None:
                calls.append(one)
        if not (content or thinking or calls or delta.logprobs):
            return b""
        return line_of(
            _piece(self._call, content, thinking or UNSET, calls, delta.logprobs or [], is_chat=self._is_chat)
        )

    def end(self) -> bytes:
        """The last line."""
        piece = _piece(self._call, "", UNSET, [], None, is_chat=self._is_chat)
        return line_of(self._times.last_piece(piece, self._run, self._finish))

    def _grow(self, call: CallDelta) -> OllamaToolCall | str | None:
        """The call before, where another begins."""
        if call.id is None:
            self._arguments.append(call.arguments)
            return None
        ended = self._end_call()
        self._begun, self._arguments = call, [call.arguments]
        return ended

    def _end_call(self) -> OllamaToolCall | str | None:
        call, self._begun = self._begun, None
        if call is None:
            return None
        return _read_call(call.index, call.id or "", call.name or "", "".join(self._arguments))


def _read_call(index: int, call_id: str, name: str, arguments: str) -> OllamaToolCall | str:
    """A call with the object that the model gives it; its text, where the model has written none or broken off."""
    try:
        given = parse_json_value(arguments.encode()) if arguments.strip() else {}
    except RequestError:
        given = None
    if isinstance(given, dict):
        return OllamaToolCall(call_id, OllamaFunction(index, name, given))
    return f'{{"name": "{name}", "arguments": {arguments}'


def _piece(
    call: GenerationCall,
    content: str,
    thinking: str | UnsetType,
    calls: list[OllamaToolCall],
    entries: Sequence[TokenLogprobs] | None,
    *,
    is_chat: bool,
) -> OllamaPiece:
    shown = None if entries is None else chat_logprobs(entries, call)
    logprobs: list[OllamaLogprob] | UnsetType = UNSET
    if shown is not None:
        logprobs = [
            OllamaLogprob(
                one.token,
                one.logprob,
                one.bytes,
                [OllamaTopLogprob(top.token, top.logprob, top.bytes) for top in one.top_logprobs] or UNSET,
            )
            for one in shown.content
        ]
    return OllamaPiece(
        model=call.model.description.name,
        created_at=shown_time(time.time()),
        done=False,
        message=OllamaAnswer("assistant", content, thinking, calls or UNSET) if is_chat else UNSET,
        response=UNSET if is_chat else content,
        thinking=UNSET if is_chat else thinking,
        logprobs=logprobs,
    )


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
