"""Bodies and answers of Ollama's API.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve_app.gateway.bodies.openai import Penalty, PositiveInt, Priority, Seed, Tool

Count = Annotated[int, Meta(ge=-2, le=2**31 - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


class OllamaOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`options`. None: not given. Those of how a model is loaded are refused, unless they say nothing."""

    num_predict: Count | None = None  # -1 and -2: to the context's end
    num_ctx: PositiveInt | None = None  # prompt and answer together
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None  # 0: off
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None  # -1: another each time
    stop: list[str] | None = None
    repeat_penalty: Annotated[float, Meta(ge=1e-6, le=2)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1)] | None = None  # -1: all tokens; 0: no penalty
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    penalize_newline: bool | None = None
    num_keep: int | None = None
    numa: bool | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    embedding_only: bool | None = None
    num_thread: int | None = None


class OllamaBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all calls of a model have in common."""

    model: str | None = None
    options: OllamaOptions | None = None
    keep_alive: float | str | None = None  # models stay, so that only 0 is refused
    priority: Priority | None = None


class OllamaTextBody(OllamaBody):
    """What both calls that generate have in common."""

    stream: bool | None = None  # None: yes
    format: str | dict[str, object] | None = None  # "json", or a schema
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaCalled(msgspec.Struct, kw_only=True):
    """The function of a call, and the object that it is given."""

    name: str
    arguments: dict[str, object] | None = None


class OllamaCall(msgspec.Struct, kw_only=True):
    """One call of an assistant's message."""

    function: OllamaCalled
    id: str | None = None


class OllamaMessage(msgspec.Struct, kw_only=True):
    """One message. Keys that are not listed are taken without effect."""

    role: str  # system, user, assistant or tool
    content: str | None = None
    thinking: str | None = None
    images: list[object] | None = None  # refused
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatBody(OllamaTextBody):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] | None = None
    tools: list[Tool] | None = None


class OllamaGenerateBody(OllamaTextBody):
    """`POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None  # the prompt is not put into the model's template
    suffix: str | None = None  # this one and those below are refused
    template: str | None = None
    context: list[int] | None = None
    images: list[object] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


class OllamaEmbedBody(OllamaBody):
    """`POST /api/embed`."""

    input: str | list[str]
    truncate: bool | None = None  # None: yes
    dimensions: PositiveInt | None = None


class OllamaShowBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None  # as model, of clients from before it
    verbose: bool | None = None


class OllamaFunction(msgspec.Struct, frozen=True):
    """A function that the model calls, and with what."""

    index: int
    name: str
    arguments: dict[str, object]


class OllamaToolCall(msgspec.Struct, frozen=True):
    """One call of an answer."""

    id: str
    function: OllamaFunction


class OllamaAnswer(msgspec.Struct, frozen=True):
    """The assistant's message, or what it grew by."""

    role: str
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaToolCall] | UnsetType = UNSET


class OllamaTopLogprob(msgspec.Struct, frozen=True):
    """One alternative of a token."""

    token: str
    logprob: float
    bytes: list[int]


class OllamaLogprob(OllamaTopLogprob, frozen=True):
    """One token of an answer."""

    top_logprobs: list[OllamaTopLogprob] | UnsetType = UNSET


class OllamaPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a streamed answer, or a whole one. Durations are in nanoseconds, as the Gateway has seen them."""

    model: str
    created_at: str
    done: bool
    message: OllamaAnswer | UnsetType = UNSET  # of a chat
    response: str | UnsetType = UNSET  # in place of it, of a prompt
    thinking: str | UnsetType = UNSET  # beside response
    logprobs: list[OllamaLogprob] | UnsetType = UNSET
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class OllamaEmbeddings(msgspec.Struct, frozen=True):
    """`POST /api/embed`: vectors of length one, in the order of the texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaDetails(msgspec.Struct, frozen=True):
    """What is known of its files."""

    format: str = "safetensors"


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `GET /api/tags`."""

    name: str
    model: str
    modified_at: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct, frozen=True):
    """`GET /api/tags`."""

    models: list[OllamaModel]


class OllamaRunning(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `GET /api/ps`; it does not expire."""

    name: str
    model: str
    context_length: int | UnsetType = UNSET
    details: OllamaDetails


class OllamaProcesses(msgspec.Struct, frozen=True):
    """`GET /api/ps`: the models of which a copy is ready."""

    models: list[OllamaRunning]


class OllamaShown(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /api/show`."""

    modified_at: str
    parameters: str  # a line for each sampling setting that the model has
    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: list[str]
