"""Bodies of OpenAI's endpoints, with vLLM's extensions: types and ranges.

An unknown key is an error, but inside messages: there gateways and agents leave hints for others, and what they have
received.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serve_app.gateway.bodies.structured import ResponseFormat, StructuredOutputs
from serve_app.types.generation import LAST_PRIORITY

MAX_LOGPROBS = 20
MAX_CHOICES = 128

PositiveInt = Annotated[int, Meta(ge=1)]
NaturalInt = Annotated[int, Meta(ge=0)]
NumLogprobs = Annotated[int, Meta(ge=-1, le=MAX_LOGPROBS)]  # -1: of the whole vocabulary
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=-LAST_PRIORITY, le=LAST_PRIORITY)]
TokenIds = Annotated[list[NaturalInt], Meta(max_length=1024)]
ComparedTokenIds = Annotated[list[NaturalInt], Meta(max_length=128)]
AllowedTokenIds = Annotated[list[NaturalInt], Meta(min_length=1, max_length=2**18)]
TruncationSide = Literal["left", "right"]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis: harmless to leave out


class SamplingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions have in common. None: not given."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: NaturalInt | None = None  # 0: the prompt is only read, for its logprobs
    min_tokens: NaturalInt | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None  # 0: the most probable token only
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-6, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None
    seed: Seed | None = None
    allowed_token_ids: AllowedTokenIds | None = None  # nothing else is drawn
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    logprob_token_ids: ComparedTokenIds | None = None  # beside logprobs: alternatives in place of the top ones
    prompt_logprobs: NumLogprobs | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None  # in log-probabilities "token_id:5" in place of the token's text
    truncate_prompt_tokens: PositiveInt | None = None
    truncation_side: TruncationSide | None = None  # what truncate_prompt_tokens leaves out; None: left
    cache_salt: str | None = None  # prompts share what is computed of their beginnings under one salt only
    priority: Priority | None = None  # the lowest number comes first; None: the key's
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, object] | str | bool | None = None  # as structured_outputs, of clients from before it
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    restore_redactions: bool | None = None  # in the answer, what the model's redact_pii has taken out
    prompt_cache_key: str | None = None  # requests with one go to one copy of the model where that pays
    include_reasoning: bool | None = None  # False: a chat's answer is shown without its reasoning
    user: str | None = None  # from here on: taken and without effect
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, object] | None = None
    prediction: dict[str, object] | None = None  # a guess at the answer, which only makes it faster elsewhere
    service_tier: str | None = None
    store: bool | None = None  # whether OpenAI keeps a copy
    request_id: str | None = None


class CompletionBody(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]] | None  # None: as an empty text
    echo: bool | None = None
    logprobs: NumLogprobs | None = None


PartType = Literal["text", "refusal"]
EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]  # the last two: an answer that is not JSON
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
RoleName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]  # a Role, or another that the chat template knows


class TextPart(msgspec.Struct, kw_only=True):
    """One part of a message's content, with its text under the name of its type."""

    type: PartType
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """The function that a model has called, and with what: JSON as a text, or the object itself."""

    name: str
    arguments: str | dict[str, object] | None = None


class ToolCall(msgspec.Struct, kw_only=True):
    """One call of an assistant's message."""

    function: FunctionCall
    id: str | None = None
    type: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message. Keys that are not listed are taken without effect."""

    role: RoleName
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None  # as tool_calls, of clients from before them
    refusal: str | None = None  # in place of content
    reasoning_content: str | None = None  # of an assistant, for chat templates that show it
    reasoning: str | None = None  # another name of it
    audio: None = None


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """A function that a model may call. Keys that are not listed are taken without effect."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None  # a JSON schema of an object; None: it takes nothing
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """One entry of `tools`."""

    function: FunctionDefinition
    type: str = "function"


class ChosenFunction(msgspec.Struct, kw_only=True):
    """The name of the function that is to be called."""

    name: str


class ToolChoice(msgspec.Struct, kw_only=True):
    """`tool_choice` of one function."""

    function: ChosenFunction
    type: str = "function"


class ChatSettings(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """What one conversation and several have in common."""

    echo: bool | None = None  # before the answer, the assistant's message that it goes on behind
    max_completion_tokens: NaturalInt | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    reasoning_effort: str | None = None  # for chat templates that know it
    tools: list[Tool] | None = None
    thinking_token_budget: PositiveInt | None = None  # of reasoning, which is closed when it has taken so many tokens
    tool_choice: str | ToolChoice | None = None  # none, auto, required, or one function
    parallel_tool_calls: bool | None = None  # False: an answer ends with its first call


class ChatBody(ChatSettings, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]


class ChatBatchBody(ChatSettings, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions/batch`: conversations, each of which is answered by itself."""

    messages: Annotated[list[list[ChatMessage]], Meta(min_length=1, max_length=1024)]


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/tokenize`: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    tools: list[dict[str, object]] | None = None  # for chat templates that know them


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/detokenize`."""

    model: str | None = None
    tokens: list[int]
