"""Prompts and conversations to token ids: a model's own template and tokenizer, long texts in a thread."""

from typing import Any

from serve_app.errors import ContextLengthError, RequestError
from serve_app.gateway.bodies.openai import ChatBody, CompletionBody, SamplingBody, TokenizeBody
from serve_app.gateway.calls.chat_messages import check_messages, template_message
from serve_app.gateway.calls.chat_tools import shown_tools
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.calls.params import check_token_ids
from serve_app.gateway.calls.thinking import effort_variables
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.tracing.attributes import INPUT_TOKENS
from serve_app.tracing.tracing import Tracing, part

INLINE_CHARS = 64  # encoding this takes the 0.1 ms that handing it to a thread would cost
_RESERVED_VARIABLES = ("messages", "add_generation_prompt")


class PromptEncoder:
    """Turns texts into what a model reads."""

    def __init__(self, pool: TextPool, renderer: ChatTemplateRenderer, tracing: Tracing | None = None) -> None:
        self._pool = pool
        self._renderer = renderer
        self._tracing = tracing

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

    async def prompt_tokens(self, prompt: str | list[int], body: CompletionBody, model: ServedModel) -> list[int]:
        """Token ids of a prompt, as many as the request wants of them. Raises RequestError."""
        if not isinstance(prompt, str):
            return _checked(prompt, body, model, "prompt")
        is_special_added = body.add_special_tokens is not False
        if model.description.is_prompt_templated:  # the template has written them
            is_special_added = bool(body.add_special_tokens)
        await self.refuse_long(prompt, body, model, "prompt")
        token_ids = await self.encode(prompt, model.tokenizer, is_special_added=is_special_added)
        return _checked(token_ids, body, model, "prompt")

    async def chat_tokens(self, text: str, body: ChatBody, model: ServedModel) -> list[int]:
        """Token ids of a conversation's text, as many as the request wants of them. Raises RequestError."""
        token_ids = await self.encode(text, model.tokenizer, is_special_added=bool(body.add_special_tokens))
        return _checked(token_ids, body, model, "messages")

    async def refuse_long(self, text: str, body: SamplingBody, model: ServedModel, field: str) -> None:
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

    async def decode_each(self, token_ids: list[int], model: ServedModel, *, is_special_skipped: bool) -> list[str]:
        """What each token adds to the text."""
        return await self._pool.run(model.tokenizer.decode_each, token_ids, skip_special_tokens=is_special_skipped)


def _checked(token_ids: list[int], body: SamplingBody, model: ServedModel, field: str) -> list[int]:
    """Known tokens: all, or as many as are kept, the last ones as vLLM does, or the first. Raises RequestError."""
    check_token_ids(token_ids, model, field)
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
