"""OpenAI's requests to internal ones: prompts become tokens, limits are checked against the model."""

import secrets
from dataclasses import replace
from typing import Any

from serve_app.errors import ContextLengthError, RequestError
from serve_app.gateway.bodies.openai import (
    ChatBody,
    CompletionBody,
    SamplingBody,
    TokenizeBody,
)
from serve_app.gateway.caller import cache_salt, output_allowance, owner, priority, session
from serve_app.gateway.calls.chat_messages import check_messages, last_answer, template_message
from serve_app.gateway.calls.chat_tools import answer_format, check_tools, shown_tools
from serve_app.gateway.calls.choice import OutputOptions
from serve_app.gateway.calls.generation import GenerationCall
from serve_app.gateway.calls.held_answers import HeldAnswers
from serve_app.gateway.calls.logprob_limits import check_logprobs, num_of
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.calls.params import OutputLimit, check_token_ids, fit_output, sampling_params
from serve_app.gateway.calls.prompt_steps import PromptSteps
from serve_app.gateway.calls.thinking import effort_variables, reasoning_budget
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.pii import restore
from serve_app.preprocessing.stop_strings import StopStrings
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.tracing.attributes import INPUT_TOKENS
from serve_app.tracing.tracing import Tracing, part
from serve_app.types.generation import GenerateRequest

MAX_PROMPTS = 1024
MAX_SEQUENCES = 1024  # prompts times n
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
INLINE_CHARS = 64  # encoding this takes the 0.1 ms that handing it to a thread would cost
_RESERVED_VARIABLES = ("messages", "add_generation_prompt")


class RequestReader:
    """Turns checked bodies into GenerationCalls."""

    def __init__(
        self,
        steps: PromptSteps,
        pool: TextPool,
        renderer: ChatTemplateRenderer,
        held_answers: HeldAnswers,
        queue_timeout_s: float | None,
        tracing: Tracing | None = None,
    ) -> None:
        self._held_answers = held_answers
        self._steps = steps
        self._pool = pool
        self._renderer = renderer
        self._queue_timeout_s = queue_timeout_s
        self._tracing = tracing

    async def completion(
        self, body: CompletionBody, model: ServedModel, *, is_open_ended: bool = False
    ) -> GenerationCall:
        """One GenerateRequest for each prompt. Raises RequestError.

        is_open_ended: an answer whose length is not asked for ends as a conversation's does, not after a few tokens.
        """
        options = _output_options(
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
        token_lists = [await self._prompt_tokens(prompt, body, model) for prompt in prompts]
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
                [prompt] if isinstance(prompt, str) and is_given else await self._decode_each(token_ids, model, options)
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
        options = _output_options(body, model, num_logprobs=num_logprobs, is_prompt_only=is_prompt_only)
        redactions = await self._steps.change_messages(body.messages, model.description)
        text = await self.chat_text(body, model)
        grammar = await self._held_answers.grammar_of(body, model, text)
        await self._refuse_long(text, body, model, "messages")
        if has_parts:
            options = replace(
                options,
                answer_format=answer_format(body, model.description, text),
                max_reasoning_tokens=reasoning_budget(body, model.description, grammar),
            )
        token_ids = await self.encode(text, model.tokenizer, is_special_added=bool(body.add_special_tokens))
        check_token_ids(token_ids, model, "messages")
        token_ids = _cut(token_ids, body)
        default_tokens = _default_tokens(model, token_ids, options)
        field = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
        limit = OutputLimit(getattr(body, field), default_tokens, field, "messages", fits_context)
        request = self._request(body, model, token_ids, options, limit, grammar)
        echoed = [[last_answer(body.messages)]] if body.echo else []
        return GenerationCall(model, [request], echoed, options, [redactions] if options.restores_redactions else [])

    async def chat_text(self, body: ChatBody | TokenizeBody, model: ServedModel) -> str:
        """The conversation in the model's own template."""
        tools = body.tools if isinstance(body, TokenizeBody) else shown_tools(body)
        template = model.tokenizer.tool_template if tools else model.tokenizer.chat_template
        if template is None:
            raise RequestError(
                f"model={model.description.name} has no chat template; use /v1/completions", field="model"
            )
        check_messages(body.messages or [])
        is_continued = bool(body.continue_final_message)
        if is_continued and body.add_generation_prompt is not False:
            message = "continue_final_message=true needs add_generation_prompt=false"
            if body.add_generation_prompt:
                message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            raise RequestError(message, field="continue_final_message")
        with part(self._tracing, "chat_template"):
            return await self._renderer.render(
                template,
                [template_message(message, template) for message in body.messages or []],
                add_generation_prompt=body.add_generation_prompt is not False,
                continue_final_message=is_continued,
                variables=_template_variables(body, tools or None, model.tokenizer, template),
            )

    async def encode(self, text: str, tokenizer: Tokenizer, *, is_special_added: bool) -> list[int]:
        """Token ids of a text; a long one in a thread."""
        with part(self._tracing, "tokenize") as span:
            if len(text) <= INLINE_CHARS:
                token_ids = tokenizer.encode(text, add_special_tokens=is_special_added)
            else:
                token_ids = await self._pool.run(tokenizer.encode, text, add_special_tokens=is_special_added)
            if span is not None:
                span.set_attribute(INPUT_TOKENS, len(token_ids))
            return token_ids

    async def _refuse_long(self, text: str, body: SamplingBody, model: ServedModel, field: str) -> None:
        """Raises ContextLengthError for a text that is far too long, before all of it is tokenized."""
        context = model.max_context_tokens
        if body.truncate_prompt_tokens is not None or len(text) <= context:
            return
        if await self._pool.run(model.tokenizer.surely_exceeds, text, context):
            raise ContextLengthError(
                f"{field}: a text of {len(text)} characters has more tokens than this model's context of {context}; "
                "send less",
                field=field,
            )

    async def _decode_each(self, token_ids: list[int], model: ServedModel, options: OutputOptions) -> list[str]:
        is_skipped = options.skip_special_tokens
        return await self._pool.run(model.tokenizer.decode_each, token_ids, skip_special_tokens=is_skipped)

    async def _prompt_tokens(self, prompt: str | list[int], body: CompletionBody, model: ServedModel) -> list[int]:
        if isinstance(prompt, str):
            is_special_added = body.add_special_tokens is not False
            if model.description.is_prompt_templated:  # the template has written them
                is_special_added = bool(body.add_special_tokens)
            await self._refuse_long(prompt, body, model, "prompt")
            token_ids = await self.encode(prompt, model.tokenizer, is_special_added=is_special_added)
        else:
            token_ids = prompt
        check_token_ids(token_ids, model, "prompt")
        return _cut(token_ids, body)

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


def _output_options(
    body: SamplingBody,
    model: ServedModel,
    *,
    num_logprobs: int | None,
    has_echo: bool = False,
    is_prompt_only: bool = False,
) -> OutputOptions:
    is_stream = bool(body.stream)
    if body.stream_options is not None and not is_stream:
        raise RequestError("stream_options needs stream=true", field="stream_options")
    if body.prompt_logprobs is not None and is_stream:
        raise RequestError("prompt_logprobs does not work with stream=true; send stream=false", field="prompt_logprobs")
    if body.restore_redactions:
        _check_restoring(body, model, num_logprobs)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    has_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return OutputOptions(
        stops=StopStrings(
            stops,
            include_in_output=bool(body.include_stop_str_in_output),
            special_tokens=model.tokenizer.table.special_tokens.values(),
        ),
        num_choices=body.n or 1,
        skip_special_tokens=body.skip_special_tokens is not False,
        is_stream=is_stream,
        has_usage=has_usage,
        has_continuous_usage=has_usage and bool(body.stream_options and body.stream_options.continuous_usage_stats),
        num_logprobs=num_logprobs,
        compares_tokens=bool(body.logprob_token_ids),
        num_prompt_logprobs=num_of(body.prompt_logprobs, model),
        has_token_ids=bool(body.return_token_ids),
        names_tokens_by_id=bool(body.return_tokens_as_token_ids),
        has_echo=has_echo,
        is_prompt_only=is_prompt_only,
        restores_redactions=bool(body.restore_redactions),
        shows_reasoning=body.include_reasoning is not False,
    )


def _check_restoring(body: SamplingBody, model: ServedModel, num_logprobs: int | None) -> None:
    field = "restore_redactions"
    if not model.description.has_preprocessing:
        raise RequestError(f"{field}: model={model.description.name} redacts nothing; leave it out", field=field)
    if num_logprobs is not None or body.prompt_logprobs is not None or body.return_token_ids:
        raise RequestError(
            f"{field} does not work with log-probabilities and token ids, which are those of the redacted text; "
            "send one of them",
            field=field,
        )


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


def _cut(token_ids: list[int], body: SamplingBody) -> list[int]:
    """Keeps the last tokens, as vLLM does, or the first."""
    limit = body.truncate_prompt_tokens
    if limit is None:
        return token_ids
    return token_ids[:limit] if body.truncation_side == "right" else token_ids[-limit:]


def _template_variables(
    body: ChatBody | TokenizeBody, tools: list[dict[str, Any]] | None, tokenizer: Tokenizer, template: str
) -> dict[str, Any]:
    extra = body.chat_template_kwargs or {}
    for name in _RESERVED_VARIABLES:
        if name in extra:
            raise RequestError(f"chat_template_kwargs.{name} is set by the server", field="chat_template_kwargs")
    if isinstance(body, ChatBody) and body.reasoning_effort is not None:
        extra = {**effort_variables(body.reasoning_effort, template), **extra}
    return {"tools": tools, "documents": None, **tokenizer.special_tokens, **extra}
