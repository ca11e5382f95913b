"""What `POST /v1/responses` answers: the response, its items, and the events of a stream.

https://platform.openai.com/docs/api-reference/responses
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from serve_app.gateway.bodies.responses import ChosenTool, TextOptions
from serve_app.gateway.http.openai_logprobs import ChatTokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
Nothing = tuple[()]  # a list that is always empty


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """A message's text."""

    text: str
    annotations: Nothing = ()
    logprobs: list[ChatTokenLogprob] = []  # empty where they are not asked for


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """What the model has written before its answer."""

    text: str


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """The assistant's message."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """The reasoning before an answer, as it is and not in summary."""

    id: str
    status: ItemStatus
    content: list[ReasoningText]
    summary: Nothing = ()


class FunctionCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """One call of a function; its arguments are JSON, as the model has written them."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class ShownFunction(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A tool as it was offered."""

    name: str
    description: str | None
    parameters: dict[str, object] | None
    strict: bool | None


class ShownReasoning(msgspec.Struct, frozen=True):
    """What was asked of the reasoning."""

    effort: str | None = None
    summary: str | None = None


class ResponseError(msgspec.Struct, frozen=True):
    """Why a stream that had begun has failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(msgspec.Struct, frozen=True):
    """Of the input those tokens that did not have to be computed: the prefix cache had them."""

    cached_tokens: int
    cache_write_tokens: int = 0  # OpenAI's measure of what it charges for


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """Of the output the tokens of the reasoning and its marks."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class RawMessage(msgspec.Struct, frozen=True):
    """A prompt or an output as the model reads and writes it, special tokens shown."""

    message: str
    tokens: list[int]
    type: Literal["raw_message_tokens"] = "raw_message_tokens"


class ModelResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request, with what was asked. It is not kept."""

    id: str
    object: Literal["response"] = "response"
    created_at: int  # Unix time in seconds
    completed_at: int | None = None
    status: ResponseStatus
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    prompt_cache_key: str | None
    reasoning: ShownReasoning
    safety_identifier: str | None
    temperature: float
    text: TextOptions
    tool_choice: str | ChosenTool
    tools: list[ShownFunction]
    top_logprobs: int
    top_p: float
    user: str | None
    background: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    input_messages: list[RawMessage] | UnsetType = UNSET  # where they are asked for, once it has ended
    output_messages: list[RawMessage] | UnsetType = UNSET


class StreamEvent(msgspec.Struct, kw_only=True, tag_field="type"):
    """One event; they are numbered from 0."""

    sequence_number: int = 0


class ResponseCreated(StreamEvent, kw_only=True, tag="response.created"):
    """The model has begun to answer."""

    response: ModelResponse


class ResponseInProgress(StreamEvent, kw_only=True, tag="response.in_progress"):
    """Its items follow."""

    response: ModelResponse


class ResponseCompleted(StreamEvent, kw_only=True, tag="response.completed"):
    """The last event of an answer that is whole."""

    response: ModelResponse


class ResponseIncomplete(StreamEvent, kw_only=True, tag="response.incomplete"):
    """The last event of an answer that was cut."""

    response: ModelResponse


class ResponseFailed(StreamEvent, kw_only=True, tag="response.failed"):
    """The last event of an answer that could not be ended."""

    response: ModelResponse


class OutputItemAdded(StreamEvent, kw_only=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class OutputItemDone(StreamEvent, kw_only=True, tag="response.output_item.done"):
    """An item has ended."""

    output_index: int
    item: OutputItem


class ItemEvent(StreamEvent, kw_only=True):
    """What all events inside an item say."""

    item_id: str
    output_index: int


class PartEvent(ItemEvent, kw_only=True):
    """What all events inside a part of an item say."""

    content_index: int = 0


class ContentPartAdded(PartEvent, kw_only=True, tag="response.content_part.added"):
    """An item's text begins."""

    part: OutputText | ReasoningText


class ContentPartDone(PartEvent, kw_only=True, tag="response.content_part.done"):
    """An item's text has ended."""

    part: OutputText | ReasoningText


class TextDelta(PartEvent, kw_only=True, tag="response.output_text.delta"):
    """What a message grew by."""

    delta: str
    logprobs: list[ChatTokenLogprob]


class TextDone(PartEvent, kw_only=True, tag="response.output_text.done"):
    """A message's whole text."""

    text: str
    logprobs: list[ChatTokenLogprob]


class ReasoningDelta(PartEvent, kw_only=True, tag="response.reasoning_text.delta"):
    """What a reasoning grew by."""

    delta: str


class ReasoningDone(PartEvent, kw_only=True, tag="response.reasoning_text.done"):
    """The whole reasoning."""

    text: str


class ArgumentsDelta(ItemEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    """What a call's arguments grew by."""

    delta: str


class ArgumentsDone(ItemEvent, kw_only=True, tag="response.function_call_arguments.done"):
    """A call's whole arguments, and the function that it is of."""

    arguments: str
    name: str


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
