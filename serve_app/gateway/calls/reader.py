"""OpenAI's requests to internal ones, with limits checked against the model."""

import secrets
from dataclasses import replace
from typing import Any

from serve_app.errors import RequestError
from serve_app.gateway.bodies.openai import ChatBody, CompletionBody, SamplingBody
from serve_app.gateway.caller import cache_salt, output_allowance, owner, priority, session
from serve_app.gateway.calls.chat_messages import check_messages, last_answer
from serve_app.gateway.calls.chat_tools import answer_format, check_tools
from serve_app.gateway.calls.choice import OutputOptions
from serve_app.gateway.calls.generation import GenerationCall
from serve_app.gateway.calls.held_answers import HeldAnswers
from serve_app.gateway.calls.logprob_limits import check_logprobs, num_of
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.calls.output_options import output_options
from serve_app.gateway.calls.params import OutputLimit, fit_output, sampling_params
from serve_app.gateway.calls.prompt_encoder import PromptEncoder
from serve_app.gateway.calls.prompt_steps import PromptSteps
from serve_app.gateway.calls.thinking import reasoning_budget
from serve_app.preprocessing.pii import restore
from serve_app.types.generation import GenerateRequest

MAX_PROMPTS = 1024
MAX_SEQUENCES = 1024  # prompts times n
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


class RequestReader:
    """Turns checked bodies into GenerationCalls."""

    def __init__(
        self,
        steps: PromptSteps,
        prompts: PromptEncoder,
        held_answers: HeldAnswers,
        queue_timeout_s: float | None,
    ) -> None:
        self._held_answers = held_answers
        self._steps = steps
        self._prompts = prompts
        self._queue_timeout_s = queue_timeout_s

    async def completion(
        self, body: CompletionBody, model: ServedModel, *, is_open_ended: bool = False
    ) -> GenerationCall:
        """One GenerateRequest for each prompt. Raises RequestError.

        is_open_ended: an answer whose length is not asked for ends as a conversation's does, not after a few tokens.
        """
        options = output_options(
            body,
            model,
            num_logprobs=num_of(body.logprobs, model),
            has_echo=bool(body.echo),
            is_prompt_only=body.max_tokens == 0,
        )
        prompts = _split_prompts(body)
        if len(prompts) * options.num_choices > MAX_SEQUENCES:
            raise RequestError(
                f"n={options.num_choices} for {len(prompts)} prompts is too much; send at most {MAX_SEQUENCES} in all",
                field="n",
            )
        grammar = await self._held_answers.grammar_of(body, model)
        redactions = await self._steps.change_prompts(prompts, model.description)
        token_lists = [await self._prompts.prompt_tokens(prompt, body, model) for prompt in prompts]
        requests = []
        for token_ids in token_lists:
            default_tokens: int | None = DEFAULT_COMPLETION_TOKENS
            if is_open_ended:
                default_tokens = _default_tokens(model, token_ids, options)
            limit = OutputLimit(body.max_tokens, default_tokens, "max_tokens", "prompt")
            requests.append(self._request(body, model, token_ids, options, limit, grammar))
        prompt_texts: list[list[str]] = []
        if options.has_echo:
            is_given = body.truncate_prompt_tokens is None and options.num_logprobs is None
            prompt_texts = [
                [prompt]
                if isinstance(prompt, str) and is_given
                else await self._prompts.decode_each(token_ids, model, is_special_skipped=options.skip_special_tokens)
                for prompt, token_ids in zip(prompts, token_lists, strict=True)
            ]
        if not options.restores_redactions:
            return GenerationCall(model, requests, prompt_texts, options)
        restored = [[restore("".join(text), known)] for text, known in zip(prompt_texts, redactions, strict=False)]
        return GenerationCall(model, requests, restored, options, redactions)

    async def chat(
        self, body: ChatBody, model: ServedModel, *, has_parts: bool = False, fits_context: bool = False
    ) -> GenerationCall:
        """One GenerateRequest for the whole conversation. Raises RequestError.

        has_parts: the answer is taken apart for a caller that can show reasoning and calls beside content.
        fits_context: of the tokens that are asked for only as many are that the context has room for.
        """
        if body.top_logprobs and not body.logprobs:
            raise RequestError(f"top_logprobs={body.top_logprobs} needs logprobs=true", field="top_logprobs")
        if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
            raise RequestError(
                f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} differ; send one",
                field="max_tokens",
            )
        check_messages(body.messages)
        check_tools(body, model.description)
        is_prompt_only = 0 in (body.max_tokens, body.max_completion_tokens)
        num_logprobs = num_of(body.top_logprobs or 0, model) if body.logprobs else None
        options = output_options(body, model, num_logprobs=num_logprobs, is_prompt_only=is_prompt_only)
        redactions = await self._steps.change_messages(body.messages, model.description)
        text = await self._prompts.chat_text(body, model)
        grammar = await self._held_answers.grammar_of(body, model, text)
        await self._prompts.refuse_long(text, body, model, "messages")
        if has_parts:
            options = replace(
                options,
                answer_format=answer_format(body, model.description, text),
                max_reasoning_tokens=reasoning_budget(body, model.description, grammar),
            )
        token_ids = await self._prompts.chat_tokens(text, body, model)
        default_tokens = _default_tokens(model, token_ids, options)
        field = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
        limit = OutputLimit(getattr(body, field), default_tokens, field, "messages", fits_context)
        request = self._request(body, model, token_ids, options, limit, grammar)
        echoed = [[last_answer(body.messages)]] if body.echo else []
        return GenerationCall(model, [request], echoed, options, [redactions] if options.restores_redactions else [])

    def _request(
        self,
        body: SamplingBody,
        model: ServedModel,
        token_ids: list[int],
        options: OutputOptions,
        limit: OutputLimit,
        grammar: str | None,
    ) -> GenerateRequest:
        if not token_ids:
            message = (
                f"{limit.prompt_field} is empty, and this model's tokenizer writes nothing before it; send some text"
            )
            raise RequestError(message, field=limit.prompt_field)
        has_echoed_logprobs = options.has_echo and options.num_logprobs is not None
        asked_logprobs = (options.num_logprobs if has_echoed_logprobs else None, options.num_prompt_logprobs)
        params = sampling_params(
            body,
            model,
            max_tokens=max(1, fit_output(len(token_ids), model, limit)),  # a model reads no prompt without an answer
            num_logprobs=options.num_logprobs,
            num_prompt_logprobs=max((number for number in asked_logprobs if number is not None), default=None),
            grammar=grammar,
        )
        check_logprobs(params, len(token_ids), options.num_choices)
        return GenerateRequest(
            request_id=secrets.token_hex(16),
            prompt_token_ids=token_ids,
            params=params,
            num_choices=options.num_choices,
            queue_timeout_s=self._queue_timeout_s,
            cache_salt=cache_salt(body.cache_salt),
            owner=owner(),
            priority=priority(body.priority),
            session=session(body.prompt_cache_key),
        )


def _default_tokens(model: ServedModel, token_ids: list[int], options: OutputOptions) -> int | None:
    """How long an answer is that may end by itself; None: what is left of the context."""
    given = (model.description.sampling.max_tokens, output_allowance(len(token_ids), options.num_choices))
    return min((number for number in given if number is not None), default=None)


def _split_prompts(body: CompletionBody) -> list[str | list[int]]:
    """A text, texts, token ids or lists of them: one entry for each prompt."""
    if body.prompt is None or isinstance(body.prompt, str):
        prompts: list[Any] = [body.prompt or ""]
    elif body.prompt and all(isinstance(item, int) for item in body.prompt):
        prompts = [body.prompt]
    else:
        prompts = body.prompt
    if not prompts or [] in prompts:
        raise RequestError("prompt is empty; send a text or token ids", field="prompt")
    if len({type(prompt) for prompt in prompts}) > 1 or isinstance(prompts[0], int):
        raise RequestError("prompt mixes texts, token ids and lists; send items of one kind", field="prompt")
    if not isinstance(prompts[0], str) and any(isinstance(item, str | list) for ids in prompts for item in ids):
        raise RequestError("prompt mixes texts, token ids and lists; send items of one kind", field="prompt")
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(f"prompt has {len(prompts)} entries; send at most {MAX_PROMPTS}", field="prompt")
    return prompts
