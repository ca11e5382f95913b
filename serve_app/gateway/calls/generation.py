"""One request from tokens to text: detokenising, stop strings, counting. Knows no HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import msgspec

from serve_app.backend.protocol import TakeChunk
from serve_app.errors import InternalError
from serve_app.gateway.caller import reserved
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.request_notes import arrival_s, note_run
from serve_app.gateway.time_limits import time_left, within
from serve_app.metrics.tokens import TokenTimes, UntimedTokens
from serve_app.preprocessing.answers.answer_parser import AnswerFormat, AnswerParser
from serve_app.preprocessing.answers.parts import AnswerParts
from serve_app.preprocessing.answers.reasoning_count import ReasoningCount
from serve_app.preprocessing.pii import Originals, Restorer
from serve_app.preprocessing.stop_strings import StopStrings
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.chains import Redaction
from serve_app.types.generation import LAST_PRIORITY, FinishReason, GenerateRequest, OutputChunk, TokenLogprobs

MAX_CONCURRENT_PROMPTS = 64  # of one request: a long list must not fill the Router's queue by itself


class Generator(Protocol):
    """What generates: the part of a ModelBackend that a generation needs."""

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """See ModelBackend.generate."""
        ...


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How generated tokens are shown."""

    stops: StopStrings
    num_choices: int = 1
    skip_special_tokens: bool = True
    is_stream: bool = False
    has_usage: bool = False  # a last chunk with the counts
    has_continuous_usage: bool = False  # counts in every chunk
    num_logprobs: int | None = None
    compares_tokens: bool = False  # its alternatives are named by the request, and are all shown
    num_prompt_logprobs: int | None = None  # asked for by name, not by echo
    has_token_ids: bool = False
    names_tokens_by_id: bool = False  # in log-probabilities
    has_echo: bool = False
    is_prompt_only: bool = False  # nothing is wanted of the answer
    restores_redactions: bool = False
    answer_format: AnswerFormat | None = None  # what a chat's answer may hold beside content; None: nothing
    shows_reasoning: bool = True
    max_reasoning_tokens: int | None = None  # its marks included; None: as many as it takes


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """A checked request: one GenerateRequest for each prompt."""

    model: ServedModel
    requests: list[GenerateRequest]
    prompt_texts: list[list[str]]  # for echo, what each token adds, or all in one, of a chat its end; empty without
    options: OutputOptions
    redactions: list[list[Redaction]] = field(default_factory=list)  # of each prompt, when they are restored

    def runs(self) -> list["PromptRun"]:
        """A fresh run for each prompt."""
        redactions = self.redactions or [[] for _ in self.requests]
        return [
            PromptRun(request, self.options, self.model, known)
            for request, known in zip(self.requests, redactions, strict=True)
        ]


class ChoiceDelta(msgspec.Struct, frozen=True, gc=False):
    """What one choice grew by. `text` may lag behind `token_ids`."""

    choice: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_texts: list[str]  # beside logprobs: what each token adds to the text; empty without
    parts: AnswerParts | None = None  # beside text, where there is more: reasoning and calls
    has_calls: bool = False  # beside finish_reason: it ends for its calls to be made


class PromptRun:
    """One prompt and its choices while they grow."""

    def __init__(
        self,
        request: GenerateRequest,
        options: OutputOptions,
        model: ServedModel,
        redactions: Sequence[Redaction] = (),
    ) -> None:
        self.request = request
        self._meters = model.meters
        self._times: TokenTimes | UntimedTokens | None = None  # of what runs and is wanted
        self._is_hidden = options.is_prompt_only
        self.prompt_logprobs: list[TokenLogprobs] = []  # prompt tokens 1..
        self.num_cached_tokens = 0  # of the prompt, which had not to be computed
        originals = Originals(redactions) if redactions else None
        self._choices = [
            _Choice(index, request, options, model.tokenizer, Restorer(originals) if originals is not None else None)
            for index in range(request.num_choices)
        ]
        self.has_reasoning = options.answer_format is not None and options.answer_format.reasoning is not None
        self._num_running = request.num_choices
        has_prompt_logprobs = request.params.num_prompt_logprobs is not None
        self._num_awaited_logprobs = len(request.prompt_token_ids) - 1 if has_prompt_logprobs else 0
        self._early: list[ChoiceDelta] = []  # came before the last of the prompt's logprobs

    @property
    def num_output_tokens(self) -> int:
        """Generated so far, over all choices."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def num_reasoning_tokens(self) -> int:
        """Of those, the ones of reasoning and its marks."""
        return sum(choice.num_reasoning_tokens for choice in self._choices)

    async def run(self, backend: Generator, model: str, emit: Callable[[ChoiceDelta], None]) -> None:
        """Generate to the end of all choices; `emit` gets what can be shown. Raises a RayshardError."""

        if not self._is_hidden:
            self._times = self._token_times()

        def take(chunk: OutputChunk) -> bool:
            self._take(chunk, emit)
            return not self._has_all

        await backend.generate(model, replace(self.request, time_left_s=time_left().seconds), take)
        if not self._has_all:
            raise InternalError("the model's output ended before the answer did")

    def _token_times(self) -> TokenTimes | UntimedTokens:
        if self.request.priority == LAST_PRIORITY:
            return UntimedTokens(self._meters)
        return TokenTimes(self._meters, self.request.num_choices, arrival_s())

    @property
    def _has_all(self) -> bool:
        return self._num_running == 0 and self._num_awaited_logprobs <= 0

    def _take(self, chunk: OutputChunk, emit: Callable[[ChoiceDelta], None]) -> None:
        if chunk.num_cached_tokens and chunk.choice == 0:
            self.num_cached_tokens = chunk.num_cached_tokens
        if chunk.prompt_logprobs:
            self.prompt_logprobs.extend(chunk.prompt_logprobs)
            self._num_awaited_logprobs -= len(chunk.prompt_logprobs)
        choice = self._choices[chunk.choice]
        if choice.has_ended or not (chunk.token_ids or chunk.finish_reason):
            deltas = []
        else:
            if chunk.token_ids and self._times is not None:
                self._times.see(chunk.choice, len(chunk.token_ids))
            delta = choice.feed(chunk)
            self._num_running -= choice.has_ended
            deltas = [delta] if delta is not None else []
        if self._num_awaited_logprobs > 0:
            self._early += deltas
            return
        if self._early:
            deltas, self._early = [*self._early, *deltas], []
        for delta in deltas:
            emit(delta)


async def run_call(
    call: GenerationCall, runs: Sequence[PromptRun], backend: Generator, emit: Callable[[int, ChoiceDelta], None]
) -> None:
    """Run all prompts of a request; `emit` gets the prompt's index. The first failure ends them all.

    Raises RateLimitedError before anything runs when the caller has not as many tokens left as it may come to.
    """
    name = call.model.description.name
    turn = asyncio.Semaphore(MAX_CONCURRENT_PROMPTS)

    async def run_one(index: int, run: PromptRun) -> None:
        async with turn:
            await run.run(backend, name, partial(emit, index))

    num_prompt_tokens = sum(len(run.request.prompt_token_ids) for run in runs)
    most_output_tokens = sum(run.request.params.max_tokens * run.request.num_choices for run in runs)
    with reserved(num_prompt_tokens, most_output_tokens) as use:
        try:
            if len(runs) == 1:
                await runs[0].run(backend, name, partial(emit, 0))
            else:
                await _all_or_first_error([run_one(index, run) for index, run in enumerate(runs)])
            note_run(num_prompt_tokens)
        finally:
            use.num_tokens = num_prompt_tokens + sum(run.num_output_tokens for run in runs)


async def stream_call(
    call: GenerationCall, runs: Sequence[PromptRun], backend: Generator, limit_s: float | None
) -> AsyncIterator[list[tuple[int, ChoiceDelta]]]:
    """The answers of a request in pieces, each with its prompt's index; what waits comes together.

    Raises a RayshardError. Closing it ends the request.
    """
    waiting: list[tuple[int, ChoiceDelta]] = []
    has_news = asyncio.Event()

    def add(prompt: int, delta: ChoiceDelta) -> None:
        waiting.append((prompt, delta))
        has_news.set()

    running = asyncio.create_task(within(limit_s, run_call(call, runs, backend, add)))
    running.add_done_callback(lambda _task: has_news.set())
    try:
        while not running.done() or waiting:
            await has_news.wait()
            has_news.clear()
            pieces = list(waiting)
            waiting.clear()
            if pieces:
                yield pieces
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _all_or_first_error(jobs: Sequence[Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Choice:
    """Decodes the tokens of one choice."""

    __slots__ = (
        "_detokenizer",
        "_hidden_tokens",
        "_includes_stop",
        "_index",
        "_is_hidden",
        "_logprobs",
        "_matcher",
        "_params",
        "_parser",
        "_reasoning_count",
        "_restorer",
        "_shows_reasoning",
        "_token_ids",
        "_token_texts",
        "has_ended",
        "num_tokens",
    )

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        options: OutputOptions,
        tokenizer: Tokenizer,
        restorer: Restorer | None,
    ) -> None:
        self.has_ended = False
        self.num_tokens = 0
        self._index = index
        self._params = request.params
        self._detokenizer = tokenizer.detokenizer(
            skip_special_tokens=options.skip_special_tokens,
            after=request.prompt_token_ids,
            shown=() if options.answer_format is None else options.answer_format.marks,
        )
        self._parser = None if options.answer_format is None else AnswerParser(options.answer_format)
        reasoning = None if options.answer_format is None else options.answer_format.reasoning
        self._reasoning_count = None if reasoning is None else ReasoningCount(reasoning.end, tokenizer.table.text_of)
        self._shows_reasoning = options.shows_reasoning
        self._matcher = options.stops.matcher()
        self._hidden_tokens = tokenizer.table.special_tokens if options.stops.has_special else None  # by id
        self._restorer = restorer
        self._includes_stop = options.stops.include_in_output
        self._is_hidden = options.is_prompt_only
        self._token_ids: list[int] = []  # not yet emitted: their text is not certain yet
        self._logprobs: list[TokenLogprobs] = []
        self._token_texts: list[str] | None = None if request.params.num_logprobs is None else []

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far."""
        return 0 if self._reasoning_count is None else self._reasoning_count.num_tokens

    def feed(self, chunk: OutputChunk) -> ChoiceDelta | None:
        """What can be shown now; None while nothing can."""
        if self._is_hidden:
            self.has_ended = True
            logprobs = None if self._params.num_logprobs is None else self._logprobs
            return ChoiceDelta(self._index, "", [], logprobs, "length", None, [])
        text, num_used = self._decode(chunk)
        self._token_ids += chunk.token_ids[:num_used]
        if chunk.logprobs is not None:
            self._logprobs += chunk.logprobs[:num_used]
        finish_reason: FinishReason | None = chunk.finish_reason
        stop_reason: int | str | None = self._stop_reason(chunk)
        if self._matcher is not None and self._matcher.matched is not None:
            finish_reason, stop_reason = "stop", self._matcher.matched
        self.has_ended = finish_reason is not None
        if self._restorer is not None:
            text = self._restorer.feed(text) + (self._restorer.flush() if self.has_ended else "")
        parts, has_calls = None, False
        if self._parser is not None:
            parts = self._take_apart(self._parser, text, chunk.token_ids[:num_used])
            text = parts.content
            has_calls = finish_reason == "stop" and self._parser.has_calls
            if self._parser.is_done:  # with the one call that it may have
                self.has_ended, finish_reason, stop_reason, has_calls = True, "stop", None, True
            elif self._parser.is_plain:
                self._parser = None
            if not (parts.reasoning or parts.calls):
                parts = None
        if not text and parts is None and not self.has_ended:
            return None
        logprobs = None if self._params.num_logprobs is None else self._logprobs
        texts = self._token_texts or []
        delta = ChoiceDelta(
            self._index, text, self._token_ids, logprobs, finish_reason, stop_reason, texts, parts, has_calls
        )
        self._token_ids, self._logprobs = [], []
        if self._token_texts is not None:
            self._token_texts = []
        return delta

    def _take_apart(self, parser: AnswerParser, text: str, token_ids: list[int]) -> AnswerParts:
        parts = parser.feed(text)
        if self.has_ended:
            parts.add(parser.flush())
        if self._reasoning_count is not None:
            self._reasoning_count.feed(token_ids, parts, is_ended=self.has_ended)
        if not self._shows_reasoning:
            parts.reasoning = ""
        return parts

    def _decode(self, chunk: OutputChunk) -> tuple[str, int]:
        """New text, and how many of the chunk's tokens it took: none follow one that completes a stop string."""
        pieces: list[str] = []
        last_index = len(chunk.token_ids) - 1
        is_last_hidden = chunk.finish_reason == "stop" and chunk.stop_token_id is not None and not self._includes_stop
        for index, token_id in enumerate(chunk.token_ids):
            self.num_tokens += 1
            piece = "" if is_last_hidden and index == last_index else self._detokenizer.push(token_id)
            if self._token_texts is not None:
                self._token_texts.append(piece)
            pieces.append(self._filter(piece))
            if self._hidden_tokens is not None and not piece:
                pieces.append(self._filter(self._hidden_tokens.get(token_id, ""), is_hidden=True))
            if self._matcher is not None and self._matcher.matched is not None:
                return "".join(pieces), index + 1
        if chunk.finish_reason is not None:
            piece = self._detokenizer.flush()
            if self._token_texts:
                self._token_texts[-1] += piece
            pieces.append(self._filter(piece))
            if self._matcher is not None:
                pieces.append(self._matcher.flush())
        return "".join(pieces), len(chunk.token_ids)

    def _filter(self, text: str, *, is_hidden: bool = False) -> str:
        """Stop strings count only after min_tokens."""
        if self._matcher is None or self.num_tokens <= self._params.min_tokens:
            return "" if is_hidden else text
        return self._matcher.feed_hidden(text) if is_hidden else self._matcher.feed(text)

    def _stop_reason(self, chunk: OutputChunk) -> int | None:
        return chunk.stop_token_id if chunk.stop_token_id in self._params.stop_token_ids else None
