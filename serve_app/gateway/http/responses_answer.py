"""The response object: what was asked, beside the items of the answer."""

import time

import msgspec
from msgspec import UNSET, UnsetType

from serve_app.errors import QueueFullError, RayshardError, RequestError
from serve_app.gateway.bodies.responses import FunctionTool, ReasoningOptions, ResponsesBody, TextFormat, TextOptions
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.generation import GenerationCall, PromptRun
from serve_app.gateway.failures import told_message
from serve_app.gateway.http.middleware import new_id
from serve_app.gateway.http.responses_output import GrowingOutput
from serve_app.gateway.http.responses_types import (
    IncompleteDetails,
    InputTokensDetails,
    ModelResponse,
    OutputTokensDetails,
    RawMessage,
    ResponseError,
    ResponseUsage,
    ShownFunction,
    ShownReasoning,
)


class GrowingResponse:
    """The response to one request."""

    def __init__(self, body: ResponsesBody, call: GenerationCall, run: PromptRun) -> None:
        self._run = run
        self.output = GrowingOutput(call)  # what is fed with the answer
        self.begun = _begun(body, call)  # before its items
        self._tokenizer = call.model.tokenizer if body.enable_response_messages else None

    def add(self, _prompt_index: int, delta: ChoiceDelta) -> None:
        """Take one more piece of the one answer that there is."""
        self.output.feed(delta)

    def ended(self) -> ModelResponse:
        """With all its items."""
        is_cut = self.output.is_cut
        return msgspec.structs.replace(
            self.begun,
            status="incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails() if is_cut else None,
            completed_at=None if is_cut else int(time.time()),
            output=self.output.items,
            usage=self._usage(),
            input_messages=self._raw(self._run.request.prompt_token_ids),
            output_messages=self._raw(self.output.token_ids),
        )

    def failed(self, error: RayshardError) -> ModelResponse:
        """With what there is of it."""
        told = ResponseError("server_error", told_message(error))
        if isinstance(error, QueueFullError):
            told = ResponseError("rate_limit_exceeded", told.message)
        elif isinstance(error, RequestError):
            told = ResponseError("invalid_prompt", told.message)
        return msgspec.structs.replace(
            self.begun, status="failed", error=told, output=self.output.items, usage=self._usage()
        )

    def _raw(self, token_ids: list[int]) -> list[RawMessage] | UnsetType:
        if self._tokenizer is None:
            return UNSET
        return [RawMessage(self._tokenizer.decode(token_ids, skip_special_tokens=False), token_ids)]

    def _usage(self) -> ResponseUsage:
        num_input, num_output = len(self._run.request.prompt_token_ids), self._run.num_output_tokens
        return ResponseUsage(
            input_tokens=num_input,
            input_tokens_details=InputTokensDetails(self._run.num_cached_tokens),
            output_tokens=num_output,
            output_tokens_details=OutputTokensDetails(self._run.num_reasoning_tokens),
            total_tokens=num_input + num_output,
        )


def _begun(body: ResponsesBody, call: GenerationCall) -> ModelResponse:
    params = call.requests[0].params
    text, reasoning = body.text or TextOptions(), body.reasoning or ReasoningOptions()
    return ModelResponse(
        id=new_id("resp_"),
        created_at=int(time.time()),
        status="in_progress",
        model=call.model.description.name,
        output=[],
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=ShownReasoning(reasoning.effort, reasoning.summary or reasoning.generate_summary),
        safety_identifier=body.safety_identifier,
        temperature=params.temperature,
        text=msgspec.structs.replace(text, format=text.format or TextFormat(type="text")),
        tool_choice=body.tool_choice or "auto",
        tools=[_shown(tool) for tool in body.tools or []],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        user=body.user,
    )


def _shown(tool: FunctionTool) -> ShownFunction:
    return ShownFunction(tool.name or "", tool.description, tool.parameters, tool.strict)
