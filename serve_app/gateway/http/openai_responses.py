"""OpenAI's whole answers, in vLLM's dialect (token ids, prompt logprobs, stop_reason)."""

from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.generation import GenerationCall, PromptRun
from serve_app.gateway.http.openai_logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    EchoedPrompt,
    PromptTokenLogprobs,
    chat_logprobs,
    completion_logprobs,
    prompt_token_logprobs,
)
from serve_app.preprocessing.answers.parts import CallDelta
from serve_app.types.generation import FinishReason, TokenLogprobs
from serve_app.types.models import ModelDescription


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Of a prompt's tokens those that did not have to be computed: the prefix cache had them."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Of an answer's tokens those of its reasoning, shown or not."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts; every prompt is counted once, whatever n."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # of chats with a model that reasons


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer of a completion, whole or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    prompt_token_ids: list[int] | UnsetType | None = UNSET  # null in whole answers, left out of pieces
    token_ids: list[int] | UnsetType | None = UNSET
    prompt_logprobs: list[PromptTokenLogprobs | None] | UnsetType | None = UNSET


class CompletionResponse(msgspec.Struct, frozen=True):
    """A completion, whole or a piece of it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class CalledFunction(msgspec.Struct, frozen=True):
    """A function that the model calls; its arguments are JSON, as the model has written them."""

    name: str
    arguments: str


class AnsweredCall(msgspec.Struct, frozen=True):
    """One call of a tool."""

    id: str
    function: CalledFunction
    type: str = "function"


class ChatAnswer(msgspec.Struct, frozen=True):
    """The assistant's message."""

    role: str
    content: str | None  # None: it has only calls
    refusal: None = None
    tool_calls: list[AnsweredCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET  # the same, as vLLM names it


ChatFinishReason = FinishReason | Literal["tool_calls"]


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer of a chat completion."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatResponse(msgspec.Struct, frozen=True):
    """A whole chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[PromptTokenLogprobs | None] | None = None


class ModelCard(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`."""

    id: str
    created: int
    max_model_len: int | UnsetType = UNSET  # left out where a model has no limit of its own, as a graph
    object: str = "model"
    owned_by: str = "rayshard"


class ModelList(msgspec.Struct, frozen=True):
    """`GET /v1/models`."""

    data: list[ModelCard]
    object: str = "list"


class VersionStatus(msgspec.Struct, frozen=True):
    """TF Serving's state of one version."""

    version: str
    state: str


class ModelState(ModelCard, frozen=True, kw_only=True):
    """`GET /v1/models/{name}`: OpenAI's card, and what KServe v1 and TF Serving say of a model beside it."""

    name: str
    ready: bool
    model_version_status: list[VersionStatus]


def model_state(description: ModelDescription, *, is_ready: bool) -> ModelState:
    """What clients learn when they ask for one model."""
    card = model_card(description)
    status = VersionStatus("1", "AVAILABLE" if is_ready else "LOADING")
    values = {name: getattr(card, name) for name in card.__struct_fields__}
    return ModelState(**values, name=description.name, ready=is_ready, model_version_status=[status])


def model_card(description: ModelDescription) -> ModelCard:
    """What clients learn of a model; its directory is not theirs to know."""
    return ModelCard(description.name, description.created_s, description.max_model_len or UNSET)


def count_usage(runs: list[PromptRun], *, num_to_come: int = 0) -> Usage:
    """Tokens so far, without those of the answer that are still to come."""
    num_prompt = sum(len(run.request.prompt_token_ids) for run in runs)
    num_output = sum(run.num_output_tokens for run in runs) - num_to_come
    num_cached = sum(run.num_cached_tokens for run in runs)
    details = PromptTokensDetails(num_cached)
    if not any(run.has_reasoning for run in runs):
        return Usage(num_prompt, num_output, num_prompt + num_output, details)
    reasoning = CompletionTokensDetails(sum(run.num_reasoning_tokens for run in runs))
    return Usage(num_prompt, num_output, num_prompt + num_output, details, reasoning)


@dataclass(slots=True)
class GrowingAnswer:
    """What one choice has come to, piece by piece."""

    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    has_calls: bool = False
    reasoning: list[str] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)

    def add(self, delta: ChoiceDelta) -> None:
        """Take one more piece."""
        self.pieces.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or []
        self.token_texts += delta.token_texts
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        self.has_calls = delta.has_calls
        if delta.parts is not None:
            self.reasoning.append(delta.parts.reasoning)
            self.calls += delta.parts.calls

    def message(self, echoed: str = "") -> ChatAnswer:
        """The assistant's message, behind what is echoed."""
        content, reasoning = echoed + "".join(self.pieces), "".join(self.reasoning)
        arguments: dict[int, list[str]] = {}
        for delta in self.calls:
            arguments.setdefault(delta.index, []).append(delta.arguments)
        calls = [
            AnsweredCall(delta.id, CalledFunction(delta.name, "".join(arguments[delta.index])))
            for delta in self.calls
            if delta.id is not None and delta.name is not None
        ]
        return ChatAnswer(
            "assistant",
            None if calls and not content else content,
            tool_calls=calls or UNSET,
            reasoning_content=reasoning or UNSET,
            reasoning=reasoning or UNSET,
        )


class WholeAnswer:
    """Collects a request's answers."""

    def __init__(self, call: GenerationCall, runs: list[PromptRun], response_id: str, created_s: int) -> None:
        self._call = call
        self._runs = runs
        self._id = response_id
        self._created_s = created_s
        self._answers = [[GrowingAnswer() for _ in range(call.options.num_choices)] for _ in runs]

    def add(self, prompt_index: int, delta: ChoiceDelta) -> None:
        """Take one more piece."""
        self._answers[prompt_index][delta.choice].add(delta)

    def completion(self) -> bytes:
        """The finished completion as JSON."""
        choices = [
            self._completion_choice(prompt_index, choice, answer)
            for prompt_index, answers in enumerate(self._answers)
            for choice, answer in enumerate(answers)
        ]
        return msgspec.json.encode(
            CompletionResponse(
                self._id, "text_completion", self._created_s, self._model_name, choices, count_usage(self._runs)
            )
        )

    def chat(self) -> bytes:
        """The finished chat completion as JSON."""
        run = self._runs[0]
        has_token_ids = self._call.options.has_token_ids
        choices = [
            self._chat_choice(prompt_index, choice, answer)
            for prompt_index, answers in enumerate(self._answers)
            for choice, answer in enumerate(answers)
        ]
        return msgspec.json.encode(
            ChatResponse(
                self._id,
                "chat.completion",
                self._created_s,
                self._model_name,
                choices,
                count_usage(self._runs),
                prompt_token_ids=run.request.prompt_token_ids if has_token_ids else None,
                prompt_logprobs=self._prompt_logprobs(run),
            )
        )

    def _chat_choice(self, prompt_index: int, choice: int, answer: GrowingAnswer) -> ChatChoice:
        options, echoed = self._call.options, self._call.prompt_texts
        return ChatChoice(
            index=prompt_index * options.num_choices + choice,
            message=answer.message("".join(echoed[prompt_index]) if echoed else ""),
            logprobs=chat_logprobs(answer.logprobs, self._call),
            finish_reason="tool_calls" if answer.has_calls else answer.finish_reason,
            stop_reason=answer.stop_reason,
            token_ids=answer.token_ids if options.has_token_ids else None,
        )

    def _completion_choice(self, prompt_index: int, choice: int, answer: GrowingAnswer) -> CompletionChoice:
        run, options = self._runs[prompt_index], self._call.options
        echo = self._call.prompt_texts[prompt_index] if options.has_echo else []
        logprobs = completion_logprobs(
            answer.logprobs, answer.token_texts, self._call, EchoedPrompt(run, echo) if options.has_echo else None, 0
        )
        return CompletionChoice(
            index=prompt_index * options.num_choices + choice,
            text="".join((*echo, *answer.pieces)),
            logprobs=logprobs,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
            prompt_token_ids=run.request.prompt_token_ids if options.has_token_ids else None,
            token_ids=answer.token_ids if options.has_token_ids else None,
            prompt_logprobs=self._prompt_logprobs(run),
        )

    def _prompt_logprobs(self, run: PromptRun) -> list[PromptTokenLogprobs | None] | None:
        if self._call.options.num_prompt_logprobs is None:
            return None
        return prompt_token_logprobs(run, self._call)

    @property
    def _model_name(self) -> str:
        return self._call.model.description.name
