"""Calls of Anthropic's Messages API by those of chat completions: the same prompts, limits and answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_app.errors import RequestError
from serve_app.gateway.bodies.anthropic import CountTokensBody, MessagesBody, MessagesTool, MessagesToolChoice, Thinking
from serve_app.gateway.bodies.openai import ChatBody, ChosenFunction, FunctionDefinition, Tool, ToolChoice
from serve_app.gateway.bodies.structured import JsonSchemaFormat, ResponseFormat
from serve_app.gateway.calls.anthropic_turns import chat_messages
from serve_app.gateway.calls.chat_tools import check_tools
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.calls.generation import GenerationCall, PromptRun, run_call
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.calls.prompt_steps import PromptSteps
from serve_app.gateway.calls.thinking_budget import bounded, within_budget
from serve_app.types.models import ModelDescription

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SAME_KEYS = (
    *("max_tokens", "stream", "temperature", "top_p", "top_k", "seed", "priority"),
    *("cache_salt", "prompt_cache_key", "restore_redactions"),
)
_CHATS_WORDS = (  # of its refusals, and how this API says the same
    (re.compile(r"\.function\.parameters\b"), ".input_schema"),
    (re.compile(r"(?<=\])\.function\."), "."),
    (re.compile(r"\btool_choice\.function\.name\b"), "tool_choice.name"),
    (re.compile(r'tool_choice: "required"'), 'tool_choice: {"type": "any"}'),
    (re.compile(r'tool_choice: "none"'), 'tool_choice: {"type": "none"}'),
    (re.compile(r"\bresponse_format\.json_schema\.schema\b"), "output_config.format.schema"),
    (re.compile(r"^continue_final_message=true: (.*); send false$"), r"messages: \1; end with one of the user's"),
    (re.compile(r"^continue_final_message$"), "messages"),
    (re.compile(r"^stop(?=\[| has )"), "stop_sequences"),
)


@dataclass(frozen=True, slots=True)
class MessagesCall:
    """A checked request."""

    generation: GenerationCall
    max_tokens: int  # that were asked for; the context may have had less room
    has_thinking_text: bool  # whether reasoning is shown, or only that there was some


class MessagesCalls:
    """What the routes of the Messages API ask of the models."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._steps = PromptSteps(plane.backend)

    async def generation(self, body: MessagesBody) -> MessagesCall:
        """The call that answers a conversation. Raises RequestError."""
        model = await self._plane.models.find(body.model)
        chat = _chat_body(body, model.description)
        if body.thinking is not None:
            _check_thinking(body.thinking, body, model.description)
        try:
            call = await self._plane.reader.chat(chat, model, has_parts=True, fits_context=True)
        except RequestError as error:
            raise _reworded(error) from error
        thinking = body.thinking or Thinking(type="adaptive")
        call = bounded(call, thinking.budget_tokens)
        return MessagesCall(call, body.max_tokens, thinking.display != "omitted")

    async def run(self, call: MessagesCall, run: PromptRun, emit: Callable[[int, ChoiceDelta], None]) -> None:
        """Run the call's one prompt; see run_call."""
        await run_call(call.generation, [run], within_budget(self._plane.backend, call.generation), emit)

    async def count_tokens(self, body: CountTokensBody) -> int:
        """How many tokens the prompt of such a conversation has. Raises RequestError."""
        model = await self._plane.models.find(body.model)
        chat = _chat_body(body, model.description)
        try:
            check_tools(chat, model.description)
            return len(await self._prompt(chat, model))
        except RequestError as error:
            raise _reworded(error) from error

    async def _prompt(self, chat: ChatBody, model: ServedModel) -> list[int]:
        await self._steps.change_messages(chat.messages, model.description)
        text = await self._plane.prompts.chat_text(chat, model)
        return await self._plane.prompts.encode(text, model.tokenizer, is_special_added=False)


def _chat_body(body: CountTokensBody, model: ModelDescription) -> ChatBody:
    """The same as a chat completion's body. Raises RequestError."""
    messages = chat_messages(body.messages, body.system)
    is_continued = messages[-1].role == "assistant"
    choice = body.tool_choice
    config = body.output_config
    return ChatBody(
        **{key: getattr(body, key) for key in _SAME_KEYS if hasattr(body, key)},
        model=model.name,
        messages=messages,
        stop=body.stop_sequences if isinstance(body, MessagesBody) else None,
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or [])] or None,
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        continue_final_message=True if is_continued else None,
        add_generation_prompt=False if is_continued else None,
        chat_template_kwargs={**_switches(body.thinking), **(body.chat_template_kwargs or {})} or None,
        reasoning_effort=None if config is None else config.effort,
        response_format=None
        if config is None or config.format is None
        else ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=config.format.schema)),
        include_reasoning=False if body.thinking is not None and body.thinking.type == "disabled" else None,
    )


def _tool(tool: MessagesTool, where: str) -> Tool:
    if tool.defer_loading:
        raise RequestError(
            f"{where}.defer_loading=true: all tools are shown to the model; leave it out",
            field=f"{where}.defer_loading",
        )
    if tool.allowed_callers not in (None, [], ["direct"]):
        raise RequestError(
            f"{where}.allowed_callers: the model alone calls tools here; leave it out, or send direct",
            field=f"{where}.allowed_callers",
        )
    if tool.eager_input_streaming is False:
        raise RequestError(
            f"{where}.eager_input_streaming=false: input is streamed as the model writes it; leave it out",
            field=f"{where}.eager_input_streaming",
        )
    schema: dict[str, Any] = dict(tool.input_schema)
    if tool.input_examples:
        schema["examples"] = [*_listed(schema.get("examples")), *tool.input_examples]
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=schema, strict=tool.strict or None
    )
    return Tool(function=function)


def _choice(choice: MessagesToolChoice) -> str | ToolChoice:
    if choice.type != "tool":
        if choice.name is not None:
            raise RequestError(
                f"tool_choice.name is for type=tool, not {choice.type}; leave it out", field="tool_choice"
            )
        return _CHOICES[choice.type]
    if choice.name is None:
        raise RequestError("tool_choice.name is missing: type=tool calls one tool", field="tool_choice.name")
    return ToolChoice(function=ChosenFunction(name=choice.name))


def _switches(thinking: Thinking | None) -> dict[str, object]:
    """What chat templates of models that may reason look at."""
    if thinking is None:
        return {}
    is_on = thinking.type != "disabled"
    return {"enable_thinking": is_on, "thinking": is_on}


def _check_thinking(thinking: Thinking, body: MessagesBody, model: ModelDescription) -> None:
    field = "thinking.budget_tokens"
    if thinking.type != "enabled":
        if thinking.budget_tokens is not None:
            raise RequestError(f"{field} is for type=enabled, not {thinking.type}; leave it out", field=field)
        return
    if model.reasoning_parser is None:
        message = f"thinking.type=enabled: model={model.name} writes no reasoning apart; leave thinking out"
        raise RequestError(message, field="thinking.type")
    if body.tool_choice is not None and body.tool_choice.type in ("any", "tool"):
        message = (
            f"thinking.type=enabled does not go with tool_choice.type={body.tool_choice.type}, as a budget may cut an "
            "answer in two; send auto, or adaptive"
        )
        raise RequestError(message, field="thinking.type")
    if body.output_config is not None and body.output_config.format is not None:
        message = "thinking.type=enabled does not go with output_config.format, which holds the whole answer; send one"
        raise RequestError(message, field="thinking.type")
    if any(tool.strict for tool in body.tools or []):
        message = (
            "thinking.type=enabled does not go with strict tools, as a budget may cut an answer in two; send adaptive"
        )
        raise RequestError(message, field="thinking.type")
    if thinking.budget_tokens is None:
        raise RequestError(f"{field} is missing; send it, or type=adaptive", field=field)
    if thinking.budget_tokens >= body.max_tokens:
        message = f"{field}={thinking.budget_tokens} leaves nothing of max_tokens={body.max_tokens}; send less"
        raise RequestError(message, field=field)


def _reworded(error: RequestError) -> RequestError:
    """A refusal of the chat's in this API's words."""
    message, field = error.message, error.field or ""
    for pattern, word in _CHATS_WORDS:
        message, field = pattern.sub(word, message), pattern.sub(word, field)
    return type(error)(message, field=field or None, retry_after_s=error.retry_after_s)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
