"""Reasoning within a budget of tokens: what has used it up is closed, and the answer goes on behind that.

Budget forcing, as in s1 (https://arxiv.org/abs/2501.19393).
"""

import secrets
from dataclasses import dataclass, replace

from serve_app.backend.protocol import TakeChunk
from serve_app.gateway.calls.generation import GenerationCall, Generator
from serve_app.gateway.time_limits import time_left
from serve_app.preprocessing.answers.answer_parser import AnswerFormat
from serve_app.preprocessing.answers.formats import ReasoningFormat
from serve_app.preprocessing.detokenizer import IncrementalDetokenizer
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.generation import GenerateRequest, OutputChunk

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """How many tokens the reasoning of one answer may take, its marks included."""

    num_tokens: int
    answer_format: AnswerFormat  # which has reasoning
    tokenizer: Tokenizer


def bounded(call: GenerationCall, num_tokens: int | None) -> GenerationCall:
    """A call of one choice whose reasoning may take so many tokens; None: as many as it takes."""
    return replace(call, options=replace(call.options, max_reasoning_tokens=num_tokens))


def within_budget(backend: Generator, call: GenerationCall) -> Generator:
    """What runs a call: the backend itself where reasoning has no budget."""
    num_tokens, answer_format = call.options.max_reasoning_tokens, call.options.answer_format
    if num_tokens is None or answer_format is None or answer_format.reasoning is None:
        return backend
    return BudgetedGenerator(backend, ThinkingBudget(num_tokens, answer_format, call.model.tokenizer))


class BudgetedGenerator:
    """Generates one choice as its backend does, with a budget for reasoning.

    A request whose reasoning is cut is ended; a second one goes on behind what was drawn and the mark that closes it.
    """

    def __init__(self, backend: Generator, budget: ThinkingBudget) -> None:
        self._backend = backend
        self._budget = budget

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """See ModelBackend.generate."""
        assert request.num_choices == 1
        reasoning = self._budget.answer_format.reasoning
        assert reasoning is not None
        closing = self._budget.tokenizer.encode(f"\n{reasoning.end}\n\n", add_special_tokens=False)
        room = request.params.max_tokens - len(closing) - 1  # an answer has at least one token
        if room < 1:
            await self._backend.generate(model, request, take)
            return
        cut = _Cut(min(self._budget.num_tokens, room), self._watch(request, reasoning), take)
        await self._backend.generate(model, request, cut.take)
        if not cut.is_made:
            return
        num_before = len(cut.token_ids) + len(closing)
        if not take(OutputChunk(choice=0, first_index=len(cut.token_ids), token_ids=closing)):
            return
        rest = replace(
            request,
            request_id=secrets.token_hex(16),
            prompt_token_ids=[*request.prompt_token_ids, *cut.token_ids, *closing],
            params=replace(
                request.params,
                max_tokens=request.params.max_tokens - num_before,
                seed=(request.params.seed + 1) % _SEEDS,  # positions begin again, and draws shall not
                num_prompt_logprobs=None,  # they have come
            ),
            time_left_s=time_left().seconds,
        )

        def take_rest(chunk: OutputChunk) -> bool:
            return take(replace(chunk, first_index=chunk.first_index + num_before, num_cached_tokens=0))

        await self._backend.generate(model, rest, take_rest)

    def _watch(self, request: GenerateRequest, reasoning: ReasoningFormat) -> "_Watch":
        given = self._budget.answer_format
        detokenizer = self._budget.tokenizer.detokenizer(after=request.prompt_token_ids, shown=given.marks)
        return _Watch(detokenizer, reasoning, is_begun=given.starts_in_reasoning)


class _Cut:
    """Hands chunks on until reasoning has taken so many tokens."""

    def __init__(self, max_tokens: int, watch: "_Watch", take: TakeChunk) -> None:
        self.is_made = False
        self.token_ids: list[int] = []  # handed on, while reasoning may still be cut
        self._max_tokens = max_tokens
        self._watch = watch
        self._take = take

    def take(self, chunk: OutputChunk) -> bool:
        """False: no more is wanted."""
        if self._watch.is_over:
            return self._take(chunk)
        for index, token_id in enumerate(chunk.token_ids):
            self._watch.push(token_id)
            if self._watch.is_over:
                break
            self.token_ids.append(token_id)
            is_last = chunk.finish_reason is not None and index == len(chunk.token_ids) - 1
            if len(self.token_ids) == self._max_tokens and not is_last:
                kept = replace(chunk, token_ids=chunk.token_ids[: index + 1], finish_reason=None, stop_token_id=None)
                self.is_made = self._take(kept)
                return False
        return self._take(chunk)


class _Watch:
    """Whether an answer is in its reasoning."""

    def __init__(self, detokenizer: IncrementalDetokenizer, reasoning: ReasoningFormat, *, is_begun: bool) -> None:
        self.is_over = False  # it has ended, or there is none
        self._detokenizer = detokenizer
        self._reasoning = reasoning
        self._is_begun = is_begun
        self._text = ""  # in which a mark may still become whole

    def push(self, token_id: int) -> None:
        """One more token of the answer."""
        self._text += self._detokenizer.push(token_id)
        begin, end = self._reasoning.begin, self._reasoning.end
        if not self._is_begun:
            self._text = self._text.lstrip()
            self._is_begun = self._text.startswith(begin)
            self.is_over = not self._is_begun and not begin.startswith(self._text)
        if self._is_begun:
            self.is_over = end in self._text
            self._text = self._text[1 - len(end) :]
