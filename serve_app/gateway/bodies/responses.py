"""Bodies of OpenAI's Responses API: types and ranges.

An unknown key is an error, but inside items and tools: clients send back what they have received, from whomever.
Keys that are not OpenAI's mean what they mean in chat completions.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from serve_app.gateway.bodies.openai import (
    MAX_LOGPROBS,
    Bias,
    NaturalInt,
    Penalty,
    PositiveInt,
    Priority,
    Seed,
)


class InputPart(msgspec.Struct, kw_only=True):
    """One part of an item: input_text, output_text, reasoning_text or summary_text, or a refusal."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct, kw_only=True):
    """One item of a history: a message, a function_call, a function_call_output or a reasoning, each with its keys."""

    type: str | None = None  # None: a message
    role: str | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | dict[str, object] | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    encrypted_content: str | None = None


class FunctionTool(msgspec.Struct, kw_only=True):
    """One entry of `tools`."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, object] | None = None  # a JSON schema of an object; None: it takes nothing
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class AllowedTool(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of the tools that may be called."""

    type: str
    name: str | None = None


class ChosenTool(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`tool_choice` of one function, or of some of the tools."""

    type: str
    name: str | None = None
    mode: str | None = None  # with allowed_tools: auto or required
    tools: list[AllowedTool] | None = None


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`text.format`: text, json_object, or json_schema with a name and a schema."""

    type: str
    name: str | None = None
    schema: dict[str, object] | None = None
    description: str | None = None
    strict: bool | None = None  # without effect: every schema is kept


class TextOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`reasoning`."""

    effort: str | None = None  # for chat templates that know it
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class ResponseStreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`stream_options`."""

    include_obfuscation: bool | None = None  # padding against traffic analysis: harmless to leave out


class ResponsesBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/responses`."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: PositiveInt | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    include: list[str] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | ChosenTool | None = None  # none, auto, required, one function, or some tools
    parallel_tool_calls: bool | None = None  # False: an answer ends with its first call
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    prompt_cache_key: str | None = None  # requests with one go to one copy of the model where that pays
    metadata: dict[str, str] | None = None  # from here on: shown in the answer, without other effect
    user: str | None = None
    safety_identifier: str | None = None
    max_tool_calls: PositiveInt | None = None  # of built-in tools, of which there are none
    service_tier: str | None = None  # from here on: taken and without effect
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, object] | None = None
    request_id: str | None = None
    priority: Priority | None = None  # from here on: as in chat completions
    seed: Seed | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-6, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None
    min_tokens: NaturalInt | None = None
    stop: str | list[str] | None = None
    cache_salt: str | None = None
    restore_redactions: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    enable_response_messages: bool | None = None  # the answer shows prompt and output as text and tokens, as vLLM does
