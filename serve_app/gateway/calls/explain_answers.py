"""Explanations of generators: which words of a prompt an answer's log-probability hangs on."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.backend.protocol import ModelBackend
from serve_app.errors import ContextLengthError, RequestError
from serve_app.gateway.bodies.explain import ExplainBody, ModelExplanation, Replacement
from serve_app.gateway.caller import cache_salt, owner, priority
from serve_app.gateway.calls.choice import ChoiceDelta, OutputOptions
from serve_app.gateway.calls.explained import Explained, span_scores, unit_of
from serve_app.gateway.calls.generation import GenerationCall, PromptRun, run_call
from serve_app.gateway.calls.hidden_words import (
    Stand,
    check_copies,
    choose_stand,
    hidden_copies,
    words_of,
)
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.calls.params import check_token_ids
from serve_app.gateway.calls.prompt_steps import PromptSteps
from serve_app.preprocessing.stop_strings import StopStrings
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.text_spans import PlacedTokens, TextSpan
from serve_app.types.generation import GenerateRequest, SamplingParams

_DEFAULT_ANSWER_TOKENS = 16
_STANDS: tuple[Replacement, ...] = ("mask", "unk", "remove", "pad")  # padding may be what ends a text
MAX_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as the model's steps have changed it, its tokens, and the words that get scores."""

    text: str
    tokens: PlacedTokens
    spans: list[TextSpan]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is explained, and how many tokens were read and written to find it."""

    token_ids: list[int]
    text: str
    num_read: int = 0
    num_written: int = 0


class AnswerExplanations:
    """Explains answers of models that generate."""

    def __init__(self, backend: ModelBackend, pool: TextPool, queue_timeout_s: float | None) -> None:
        self._backend = backend
        self._steps = PromptSteps(backend)
        self._pool = pool
        self._queue_timeout_s = queue_timeout_s

    async def by_occlusion(self, body: ExplainBody, model: ServedModel, answer: str | None) -> Explained:
        """What an answer's log-probability loses with each word of the prompt: one prefill of each copy.

        answer: None: what the model says itself. Raises RequestError.
        """
        prompt = await self._read(body, model)
        stand = choose_stand(model, body.replacement or "auto", _STANDS)
        wanted = (
            await self._own_answer(body, model, prompt) if answer is None else await self._given(model, prompt, answer)
        )
        copies = [copy.token_ids for copy in await self._pool.run(hidden_copies, prompt.tokens, prompt.spans, stand)]
        values = await self._logprobs(body, model, copies, wanted, stand)
        explanation = ModelExplanation(
            model=model.description.name,
            method="occlusion",
            replacement=stand.name,
            target=wanted.text,
            target_index=None,
            output="logprob",
            value=values[0],
            baseline_value=values[-1] if copies[-1] else None,
            convergence_delta=None,
            text=prompt.text,
            text_pair=None,
            tokens=span_scores(
                [prompt.text], prompt.spans, [values[0] - value for value in values[1 : 1 + len(prompt.spans)]]
            ),
        )
        num_read = sum(map(len, copies)) + len(values) * len(wanted.token_ids)
        return Explained(explanation, wanted.num_read + num_read, wanted.num_written)

    async def _read(self, body: ExplainBody, model: ServedModel) -> _Prompt:
        prompts: list[str | list[int]] = [body.input]
        await self._steps.change_prompts(prompts, model.description)
        (text,) = prompts
        assert isinstance(text, str)
        context = model.max_context_tokens
        if len(text) > context and await self._pool.run(model.tokenizer.surely_exceeds, text, context):
            raise ContextLengthError(
                f"input: a text of {len(text)} characters has more tokens than this model's context of {context}; "
                "send less",
                field="input",
            )
        has_special = not model.description.is_prompt_templated  # else the template has written them
        tokens = await self._pool.run(model.tokenizer.place, text, add_special_tokens=has_special)
        check_token_ids(tokens.token_ids, model, "input")
        self._check_room(model, len(tokens.token_ids), 1, "input")
        return _Prompt(text, tokens, words_of([text], tokens, unit_of(body)))

    async def _given(self, model: ServedModel, prompt: _Prompt, answer: str) -> _Answer:
        """The tokens of an answer as they follow the prompt, where it ends between two of the whole text's tokens."""
        if not answer:
            raise RequestError("target is empty; send a text, or leave it out", field="target")
        before = prompt.tokens.token_ids
        has_special = not model.description.is_prompt_templated
        whole = await self._pool.run(model.tokenizer.encode, prompt.text + answer, add_special_tokens=has_special)
        if whole[: len(before)] == before and len(whole) > len(before):
            token_ids = whole[len(before) :]
        else:
            token_ids = await self._pool.run(model.tokenizer.encode, answer, add_special_tokens=False)
        if not token_ids:
            raise RequestError("target comes to no token of this model; send another text", field="target")
        if len(token_ids) > MAX_ANSWER_TOKENS:
            message = (
                f"target has {len(token_ids)} tokens, at most {MAX_ANSWER_TOKENS} are explained; send a shorter one"
            )
            raise RequestError(message, field="target")
        check_token_ids(token_ids, model, "target")
        return _Answer(token_ids, answer)

    async def _own_answer(self, body: ExplainBody, model: ServedModel, prompt: _Prompt) -> _Answer:
        """What the model answers when it always draws the most probable token."""
        num_tokens = body.max_tokens or _DEFAULT_ANSWER_TOKENS
        if num_tokens > MAX_ANSWER_TOKENS:
            message = f"max_tokens={num_tokens}: at most {MAX_ANSWER_TOKENS} are explained; send that or less"
            raise RequestError(message, field="max_tokens")
        room = model.max_context_tokens - len(prompt.tokens.token_ids) - 1
        params = SamplingParams(max(1, min(num_tokens, room)), seed=0, temperature=0.0)
        drawn: list[int] = []

        def take(_prompt: int, delta: ChoiceDelta) -> None:
            drawn.extend(delta.token_ids)

        await self._run(body, model, [prompt.tokens.token_ids], params, OutputOptions(StopStrings([])), take)
        num_written = len(drawn)
        if drawn and drawn[-1] in model.description.eos_token_ids:
            drawn.pop()
        if not drawn:
            raise RequestError("the model answers nothing to input; send a target", field="target")
        text = model.tokenizer.decode_after(prompt.tokens.token_ids, drawn)
        return _Answer(drawn, text, len(prompt.tokens.token_ids), num_written)

    async def _logprobs(
        self, body: ExplainBody, model: ServedModel, copies: Sequence[list[int]], answer: _Answer, stand: Stand
    ) -> list[float]:
        """Of the answer after each copy of the prompt, but an empty last one."""
        filled = [copy for copy in copies if copy]
        if len(filled) < len(copies) - 1 or not copies[0]:
            raise RequestError(
                f"input is one word, and nothing is left before the answer without it (replacement={stand.name}); send "
                "a longer prompt",
                field="input",
            )
        self._check_room(model, max(map(len, filled)), len(answer.token_ids) + 1, "target")
        check_copies(sum(map(len, filled)) + len(filled) * len(answer.token_ids))
        params = SamplingParams(1, seed=0, temperature=0.0, num_prompt_logprobs=0)
        options = OutputOptions(StopStrings([]), num_prompt_logprobs=0, is_prompt_only=True)
        prompts = [[*copy, *answer.token_ids] for copy in filled]
        runs = await self._run(body, model, prompts, params, options, lambda _prompt, _delta: None)
        return [sum(entry.logprob for entry in run.prompt_logprobs[-len(answer.token_ids) :]) for run in runs]

    async def _run(
        self,
        body: ExplainBody,
        model: ServedModel,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        options: OutputOptions,
        take: Callable[[int, ChoiceDelta], None],
    ) -> list[PromptRun]:
        requests = [
            GenerateRequest(
                request_id=secrets.token_hex(16),
                prompt_token_ids=token_ids,
                params=params,
                queue_timeout_s=self._queue_timeout_s,
                cache_salt=cache_salt(),
                owner=owner(),
                priority=priority(body.priority),
            )
            for token_ids in prompts
        ]
        call = GenerationCall(model, requests, [], options)
        runs = call.runs()
        await run_call(call, runs, self._backend, take)
        return runs

    def _check_room(self, model: ServedModel, num_prompt_tokens: int, num_more: int, field: str) -> None:
        context = model.max_context_tokens
        if num_prompt_tokens + num_more > context:
            raise ContextLengthError(
                f"{field}: a prompt of {num_prompt_tokens} tokens and {num_more} more exceed this model's context of "
                f"{context} tokens; send less",
                field=field,
            )
