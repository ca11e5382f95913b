"""Bodies of OpenAI's endpoints, with vLLM's extensions: types and ranges. An unknown key is an error."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_LOGPROBS = 20
MAX_CHOICES = 128

PositiveInt = Annotated[int, Meta(ge=1)]
NaturalInt = Annotated[int, Meta(ge=0)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenIds = Annotated[list[NaturalInt], Meta(max_length=1024)]
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
    max_tokens: PositiveInt | None = None
    min_tokens: NaturalInt | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-6, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: NumLogprobs | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: PositiveInt | None = None
    restore_redactions: bool | None = None  # in the answer, what the model's redact_pii has taken out
    user: str | None = None  # from here on: taken and without effect
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class CompletionBody(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: NumLogprobs | None = None


PartType = Literal["text"]
EncodingFormat = Literal["float", "base64"]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One part of a message's content."""

    type: PartType
    text: str


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message. The last five come back from clients that send on what they received."""

    role: Role
    content: str | list[TextPart]
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[None], Meta(max_length=0)] | None = None
    function_call: None = None
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None


class ChatBody(SamplingBody, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None


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


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/detokenize`."""

    model: str | None = None
    tokens: list[int]
