"""Body and answers of Cohere's `POST /v2/chat`.

https://docs.cohere.com/v2/reference/chat
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve_app.gateway.bodies.openai import NaturalInt, Penalty, PositiveInt, Priority, Seed, Tool

CohereSafety = Literal["CONTEXTUAL", "STRICT", "OFF"]
CohereCitations = Literal["ENABLED", "DISABLED", "FAST", "ACCURATE", "OFF"]
CohereToolChoice = Literal["REQUIRED", "NONE"]
CohereFinish = Literal["COMPLETE", "STOP_SEQUENCE", "MAX_TOKENS", "TOOL_CALL", "ERROR"]


class CohereDocument(msgspec.Struct, kw_only=True):
    """What a tool has found."""

    data: dict[str, object] | str
    id: str | None = None


class CoherePart(msgspec.Struct, kw_only=True):
    """One part of a message's content, under the name of its type: text, thinking or document."""

    type: str
    text: str | None = None
    thinking: str | None = None
    document: CohereDocument | str | None = None


class CohereFunction(msgspec.Struct, kw_only=True):
    """The function that a model has called; its arguments are JSON as a text."""

    name: str
    arguments: str | None = None


class CohereCall(msgspec.Struct, kw_only=True):
    """One call of an assistant's message."""

    function: CohereFunction
    id: str | None = None
    type: str | None = None


class CohereMessage(msgspec.Struct, kw_only=True):
    """One message. Keys that are not listed, as the citations of an answer, are taken without effect."""

    role: str  # user, assistant, system or tool
    content: str | list[CoherePart] | None = None
    tool_calls: list[CohereCall] | None = None
    tool_plan: str | None = None
    tool_call_id: str | None = None


class CohereCitationOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`citation_options`."""

    mode: CohereCitations | None = None


class CohereResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`response_format`."""

    type: str  # text or json_object
    json_schema: dict[str, object] | None = None


class CohereThinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`thinking`."""

    type: str  # enabled or disabled
    token_budget: PositiveInt | None = None


class CohereChatBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v2/chat`. None: not given."""

    messages: list[CohereMessage]
    model: str | None = None
    stream: bool | None = None
    tools: list[Tool] | None = None
    strict_tools: bool | None = None
    tool_choice: CohereToolChoice | None = None
    documents: list[object] | None = None  # refused
    citation_options: CohereCitationOptions | None = None
    response_format: CohereResponseFormat | None = None
    safety_mode: CohereSafety | None = None  # OFF alone: nothing is written into prompts
    max_tokens: NaturalInt | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None  # 0: off
    p: Annotated[float, Meta(ge=0, le=1)] | None = None
    logprobs: bool | None = None
    thinking: CohereThinking | None = None
    priority: Priority | None = None


class CohereText(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of an answer: a text or what came before it."""

    type: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET


class CohereCalled(msgspec.Struct, frozen=True, omit_defaults=True):
    """The function of a call, or what its arguments grew by."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CohereToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call of an answer, or what it grew by."""

    function: CohereCalled
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class CohereAnswer(msgspec.Struct, frozen=True):
    """The assistant's message."""

    role: str
    content: list[CohereText] | UnsetType = UNSET
    tool_plan: str | UnsetType = UNSET
    tool_calls: list[CohereToolCall] | UnsetType = UNSET


class CohereUsed(msgspec.Struct, frozen=True):
    """Tokens."""

    input_tokens: int
    output_tokens: int


class CohereUsage(msgspec.Struct, frozen=True):
    """Tokens that went in and came out; `cached_tokens` are those of the prompt that had not to be computed."""

    billed_units: CohereUsed
    tokens: CohereUsed
    cached_tokens: int


class CohereLogprobs(msgspec.Struct, frozen=True):
    """A piece of the answer and its tokens."""

    text: str
    token_ids: list[int]
    logprobs: list[float]


class CohereChat(msgspec.Struct, frozen=True):
    """A whole answer."""

    id: str
    finish_reason: CohereFinish
    message: CohereAnswer
    usage: CohereUsage
    logprobs: list[CohereLogprobs] | UnsetType = UNSET


class CohereDeltaMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the message grew by."""

    role: str | UnsetType = UNSET
    content: CohereText | list[CohereText] | UnsetType = UNSET
    tool_plan: str | UnsetType = UNSET
    tool_calls: CohereToolCall | list[CohereToolCall] | UnsetType = UNSET


class CohereDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event tells."""

    message: CohereDeltaMessage | UnsetType = UNSET
    finish_reason: CohereFinish | UnsetType = UNSET
    usage: CohereUsage | UnsetType = UNSET
    error: str | UnsetType = UNSET


class CohereEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of a streamed answer."""

    type: str
    id: str | UnsetType = UNSET
    index: int | UnsetType = UNSET
    delta: CohereDelta | UnsetType = UNSET
    logprobs: CohereLogprobs | UnsetType = UNSET
