"""One request from tokens to text: detokenising, stop strings, counting. Knows no HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from serve_app.backend.protocol import TakeChunk
from serve_app.errors import InternalError
from serve_app.gateway.caller import reserved
from serve_app.gateway.calls.choice import Choice, ChoiceDelta, OutputOptions
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.request_notes import arrival_s, note_run
from serve_app.gateway.time_limits import time_left, within
from serve_app.metrics.tokens import TokenTimes, UntimedTokens
from serve_app.preprocessing.pii import Originals, Restorer
from serve_app.types.chains import Redaction
from serve_app.types.generation import LAST_PRIORITY, GenerateRequest, OutputChunk, TokenLogprobs

MAX_CONCURRENT_PROMPTS = 64  # of one request: a long list must not fill the Router's queue by itself


class Generator(Protocol):
    """What generates: the part of a ModelBackend that a generation needs."""

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """See ModelBackend.generate."""
        ...


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
            Choice(index, request, options, model.tokenizer, Restorer(originals) if originals is not None else None)
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
        request = replace(self.request, time_left_s=time_left().seconds)
        await backend.generate(model, request, partial(self._take, emit))
        if not self._has_all:
            raise InternalError("the model's output ended before the answer did")

    def _token_times(self) -> TokenTimes | UntimedTokens:
        if self.request.priority == LAST_PRIORITY:
            return UntimedTokens(self._meters)
        return TokenTimes(self._meters, self.request.num_choices, arrival_s())

    @property
    def _has_all(self) -> bool:
        return self._num_running == 0 and self._num_awaited_logprobs <= 0

    def _take(self, emit: Callable[[ChoiceDelta], None], chunk: OutputChunk) -> bool:
        """Whether more is wanted."""
        if chunk.num_cached_tokens and chunk.choice == 0:
            self.num_cached_tokens = chunk.num_cached_tokens
        if chunk.prompt_logprobs:
            self.prompt_logprobs.extend(chunk.prompt_logprobs)
            self._num_awaited_logprobs -= len(chunk.prompt_logprobs)
        choice = self._choices[chunk.choice]
        delta: ChoiceDelta | None = None
        if not choice.has_ended and (chunk.token_ids or chunk.finish_reason):
            if chunk.token_ids and self._times is not None:
                self._times.see(chunk.choice, len(chunk.token_ids))
            delta = choice.feed(chunk)
            self._num_running -= choice.has_ended
        if self._num_awaited_logprobs > 0:
            self._early += [] if delta is None else [delta]
            return True
        if self._early:
            early, self._early = self._early, []
            for one in early:
                emit(one)
        if delta is not None:
            emit(delta)
        return self._num_running > 0


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
