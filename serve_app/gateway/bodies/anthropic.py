"""Bodies of Anthropic's Messages API: types and ranges, as the types of its Python client say.

An unknown key is an error, but inside messages: there clients leave what they have received with an answer.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serve_app.gateway.bodies.openai import NaturalInt, PositiveInt, Priority, Seed

MessageRole = Literal["user", "assistant", "system"]
ThinkingType = Literal["enabled", "adaptive", "disabled"]
ThinkingDisplay = Literal["summarized", "omitted"]
ToolChoiceType = Literal["auto", "any", "tool", "none"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
ServiceTier = Literal["auto", "standard_only"]
FormatName = Literal["json_schema"]
CacheControl = dict[str, object]  # what a prompt begins with is cached without being told


class TextBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="text"):
    """A text."""

    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="thinking"):
    """Reasoning of an earlier answer; nothing is checked by its signature."""

    thinking: str
    signature: str | None = None


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a tool that the model has made."""

    id: str
    name: str
    input: dict[str, object]


class ToolResultBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_result"):
    """What a tool has answered."""

    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class Message(msgspec.Struct, kw_only=True):
    """One turn."""

    role: MessageRole
    content: str | list[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock]


class MessagesTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool that the client runs."""

    name: str
    input_schema: dict[str, object]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    input_examples: list[dict[str, object]] | None = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    cache_control: CacheControl | None = None


class MessagesToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`tool_choice`."""

    type: ToolChoiceType
    name: str | None = None  # of the one tool, with type=tool
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`thinking`."""

    type: ThinkingType
    budget_tokens: PositiveInt | None = None  # of reasoning, with type=enabled
    display: ThinkingDisplay | None = None


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer is held to."""

    type: FormatName
    schema: dict[str, object]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`output_config`."""

    effort: Effort | None = None  # for chat templates that know reasoning_effort
    format: OutputFormat | None = None


class MessagesMetadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`metadata`: taken without effect."""

    user_id: str | None = None


class CountTokensBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages/count_tokens`: what makes the prompt. None: not given."""

    messages: Annotated[list[Message], Meta(max_length=100_000)]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, object] | None = None  # as in a chat completion's body
    cache_control: CacheControl | None = None
    user_profile_id: str | None = None  # taken without effect


class MessagesBody(CountTokensBody, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages`. The keys behind `metadata` are those of a chat completion's body."""

    max_tokens: NaturalInt  # 0: the prompt is only read
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    service_tier: ServiceTier | None = None  # taken without effect, as metadata
    metadata: MessagesMetadata | None = None
    seed: Seed | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    prompt_cache_key: str | None = None
    restore_redactions: bool | None = None
