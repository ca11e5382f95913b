"""Ollama's calls by our own: bodies become ours, models are told of in its words."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import numpy as np

from serve_app.errors import RequestError, UnavailableError
from serve_app.gateway.bodies.inference import EmbeddingsBody, Texts
from serve_app.gateway.bodies.ollama import (
    OllamaChatBody,
    OllamaDetails,
    OllamaEmbedBody,
    OllamaGenerateBody,
    OllamaMessage,
    OllamaModel,
    OllamaRunning,
    OllamaShowBody,
    OllamaShown,
    OllamaTextBody,
)
from serve_app.gateway.bodies.openai import ChatBody, ChatMessage, CompletionBody, FunctionCall, Role, ToolCall
from serve_app.gateway.calls.answers import unit_rows
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.field_names import fields_named
from serve_app.gateway.calls.generation import GenerationCall
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.calls.ollama_options import (
    FIELDS,
    check_options,
    context_limit,
    refuse_text_options,
    room_in_context,
    set_sampling,
)
from serve_app.gateway.calls.thinking import thinking_variables
from serve_app.types.models import ModelDescription

_LATEST = ":latest"  # the tag that Ollama's clients put behind a name without one
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_CAPABILITIES = {"generate": "completion", "embed": "embedding"}
_PARAMETERS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_NOT_READ = {
    "suffix": "no model here fills in what lies before it",
    "template": "prompts are put into the model's own template; send raw: true and the whole text",
    "context": "conversations are not handed on as tokens; send them to /api/chat",
    "images": "no model here reads pictures; send text",
    "width": "no model here makes pictures",
    "height": "no model here makes pictures",
    "steps": "no model here makes pictures",
}


class OllamaCalls:
    """One method for each call."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def chat(self, body: OllamaChatBody) -> GenerationCall:
        """The request that a conversation asks for. Raises RequestError in Ollama's words."""
        messages = [_message(message, f"messages[{index}]") for index, message in enumerate(body.messages or [])]
        model = await self._plane.models.find(model_name(body.model))
        own = ChatBody(messages=messages, tools=body.tools)
        return await self._chat(own, body, model)

    async def generate(self, body: OllamaGenerateBody) -> GenerationCall:
        """The request that a prompt asks for. Raises RequestError in Ollama's words."""
        for name, reason in _NOT_READ.items():
            if getattr(body, name):
                raise RequestError(f"{name}: {reason}; leave it out", field=name)
        model = await self._plane.models.find(model_name(body.model))
        prompt = body.prompt or ""
        if body.raw or (model.tokenizer.chat_template is None and not body.system):
            return await self._continue(prompt, body, model)
        system = [ChatMessage(role="system", content=body.system)] if body.system else []
        own = ChatBody(messages=[*system, ChatMessage(role="user", content=prompt)])
        with fields_named({"messages": "prompt"}):
            return await self._chat(own, body, model)

    async def embed(self, body: OllamaEmbedBody) -> tuple[str, list[list[float]], int]:
        """The model's name, vectors of length one, and how many tokens went in. Raises RequestError."""
        options = check_options(body)
        refuse_text_options(options)
        name = model_name(body.model)
        await self._plane.models.meet(name)
        is_cut = body.truncate is not False
        texts: Texts = body.input if isinstance(body.input, str) else [*body.input]
        own = EmbeddingsBody(input=texts, model=name, dimensions=body.dimensions, priority=body.priority)
        own.truncate = is_cut or None
        if options.num_ctx is not None:
            own.truncate = None
            own.truncate_prompt_tokens = self._embedding_context(options.num_ctx, name, is_cut=is_cut)
        answer = await self._plane.calls.embed(own)
        rows = unit_rows(np.array([one.embedding for one in answer.data], dtype=np.float32))
        return answer.model, rows.tolist(), answer.usage.prompt_tokens

    def loaded(self, body: OllamaTextBody) -> str:
        """The name of a model that is asked for nothing but to be there. Raises RequestError, UnavailableError."""
        check_options(body)
        found = self._plane.models.for_tasks(model_name(body.model), ("generate",))
        if not self._is_running(found):
            raise UnavailableError(f"model={found.name} has no copy that is ready; try again", retry_after_s=1.0)
        return found.name

    def models(self) -> list[OllamaModel]:
        """Those that are there for the caller."""
        return [
            OllamaModel(name=one.name, model=one.name, modified_at=shown_time(one.created_s), details=OllamaDetails())
            for one in self._plane.models.all()
        ]

    def running(self) -> list[OllamaRunning]:
        """Those of which a copy is ready."""
        return [
            OllamaRunning(
                name=one.name,
                model=one.name,
                context_length=one.max_model_len or msgspec.UNSET,
                details=OllamaDetails(),
            )
            for one in self._plane.models.all()
            if self._is_running(one)
        ]

    def show(self, body: OllamaShowBody) -> OllamaShown:
        """What a model can do. Raises RequestError, ModelNotFoundError."""
        if body.verbose:
            raise RequestError("verbose=true: vocabularies are not shown here; leave it out", field="verbose")
        name = model_name(body.model or body.name)
        if name is None:
            raise RequestError("model is missing; send its name", field="model")
        found = self._plane.models.describe(name)
        settings = ((key, getattr(found.sampling, own)) for own, key in _PARAMETERS.items())
        return OllamaShown(
            modified_at=shown_time(found.created_s),
            parameters="\n".join(f"{key} {value:g}" for key, value in settings if value is not None),
            details=OllamaDetails(),
            model_info=_model_info(found),
            capabilities=_capabilities(found),
        )

    async def _chat(self, own: ChatBody, body: OllamaTextBody, model: ServedModel) -> GenerationCall:
        set_sampling(own, body)
        own.logprobs, own.top_logprobs = body.logprobs, body.top_logprobs
        variables = thinking_variables(body.think, model, "think", has_tools=bool(own.tools))
        own.chat_template_kwargs = variables or None
        with fields_named(FIELDS):
            call = await self._plane.reader.chat(own, model, has_parts=True)
        return _within_context(call, body)

    async def _continue(self, prompt: str, body: OllamaGenerateBody, model: ServedModel) -> GenerationCall:
        if body.think is not None:
            raise RequestError("think is for prompts in the model's template; leave it out beside raw", field="think")
        if body.raw and body.system:
            raise RequestError("system does not go with raw: true; write it into the prompt", field="system")
        if body.top_logprobs and not body.logprobs:
            raise RequestError(f"top_logprobs={body.top_logprobs} needs logprobs=true", field="top_logprobs")
        own = CompletionBody(prompt=prompt, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        set_sampling(own, body)
        with fields_named(FIELDS):
            call = await self._plane.reader.completion(own, model, is_open_ended=True)
        return _within_context(call, body)

    def _embedding_context(self, asked: int, name: str | None, *, is_cut: bool) -> int | None:
        """What texts are cut to; None: they are not, and the model's own limit is the one asked for."""
        most = self._plane.models.for_tasks(name, ("embed",)).max_model_len
        field = "options.num_ctx"
        if asked > most:
            raise RequestError(f"{field}={asked} is more than the model takes; send at most {most}", field=field)
        if not is_cut and asked < most:
            raise RequestError(
                f"{field}={asked} only cuts texts, which truncate=false rules out; leave it out", field=field
            )
        return asked if is_cut else None

    def _is_running(self, model: ModelDescription) -> bool:
        return any(copy.state == "ready" for copy in self._plane.backend.health().models.get(model.name, []))


def model_name(given: str | None) -> str | None:
    """A model's name here of one there."""
    return None if given is None else given.removesuffix(_LATEST)


def shown_time(unix_s: float) -> str:
    """A time as Ollama writes it (RFC 3339)."""
    return re.sub(r"\+00:00$", "Z", datetime.fromtimestamp(unix_s, UTC).isoformat())


def _within_context(call: GenerationCall, body: OllamaTextBody) -> GenerationCall:
    """The call with no more tokens than `num_ctx` leaves room for. Raises RequestError."""
    options = check_options(body)
    limit = context_limit(options, call.model)
    if limit is None:
        return call
    (request,) = call.requests
    asked = None if options.num_predict is None or options.num_predict < 0 else options.num_predict
    max_tokens = room_in_context(limit, len(request.prompt_token_ids), asked, request.params.max_tokens)
    return replace(call, requests=[replace(request, params=replace(request.params, max_tokens=max_tokens))])


def _message(message: OllamaMessage, where: str) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        shown = f"{where}.role={message.role[:32]!r} is not known; send one of {', '.join(_ROLES)}"
        raise RequestError(shown, field=f"{where}.role")
    if message.images:
        raise RequestError(f"{where}.images: no model here reads pictures; send text", field=f"{where}.images")
    calls = [
        ToolCall(function=FunctionCall(name=call.function.name, arguments=call.function.arguments or {}), id=call.id)
        for call in message.tool_calls or []
    ]
    return ChatMessage(
        role=role,
        content=message.content,
        name=message.tool_name,
        tool_call_id=message.tool_call_id,
        tool_calls=calls or None,
        reasoning_content=message.thinking,
    )


def _capabilities(model: ModelDescription) -> list[str]:
    found = [_CAPABILITIES[model.task]] if model.task in _CAPABILITIES else []
    found += ["tools"] if model.tool_parser is not None else []
    return [*found, *(["thinking"] if model.reasoning_parser is not None else [])]


def _model_info(model: ModelDescription) -> dict[str, str | int]:
    sizes = {
        "context_length": model.max_model_len,
        "embedding_length": model.embedding_size,
        "vocab_size": model.vocab_size,
    }
    return {"general.architecture": "rayshard"} | {f"rayshard.{name}": size for name, size in sizes.items() if size}
