"""Every method of every path, with the types of its body and its answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from serve_app.gateway.bodies.anthropic import CountTokensBody, MessagesBody
from serve_app.gateway.bodies.cohere import CohereChat, CohereChatBody, CohereEvent
from serve_app.gateway.bodies.console import ConsoleState
from serve_app.gateway.bodies.explain import ExplainBody, ExplanationAnswer
from serve_app.gateway.bodies.inference import (
    ClassificationList,
    ClassifyBody,
    EmbeddingList,
    EmbeddingsBody,
    PredictBody,
    PreprocessBody,
    PreprocessedList,
    Ranking,
    RerankBody,
    ScoreBody,
    ScoreList,
)
from serve_app.gateway.bodies.known_apis import (
    CohereEmbedBody,
    CohereEmbeddings,
    PooledList,
    PoolingBody,
    TeiEmbedBody,
)
from serve_app.gateway.bodies.ollama import (
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddings,
    OllamaGenerateBody,
    OllamaModels,
    OllamaPiece,
    OllamaProcesses,
    OllamaShowBody,
    OllamaShown,
)
from serve_app.gateway.bodies.open_inference import (
    IndexBody,
    IndexEntry,
    InferBody,
    ServerLive,
    ServerReady,
    ShownAnswer,
    ShownConfig,
    ShownModel,
    ShownServer,
    ShownStats,
)
from serve_app.gateway.bodies.openai import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from serve_app.gateway.bodies.others import (
    DetokenizedText,
    HealthBody,
    Load,
    Ping,
    PlanBody,
    PredictInstancesBody,
    Predictions,
    TokenizedText,
    Version,
)
from serve_app.gateway.bodies.responses import ResponsesBody
from serve_app.gateway.http.aliases import ALIASES, is_protocol_path
from serve_app.gateway.http.anthropic_answers import MessagesAnswer, MessagesEvent, TokenCount
from serve_app.gateway.http.anthropic_errors import MessagesError, is_messages_path
from serve_app.gateway.http.compatible_routes import ModelNames
from serve_app.gateway.http.errors import ErrorBody, ProtocolError
from serve_app.gateway.http.openai_responses import ChatResponse, CompletionResponse, ModelList, ModelState
from serve_app.gateway.http.openai_stream import ChatChunk
from serve_app.gateway.http.refused_routes import REFUSED
from serve_app.gateway.http.responses_types import ModelResponse, ResponseEvent

JSON, _TEXT, EVENTS, _LINES, _BYTES, _HTML = (
    "application/json",
    "text/plain",
    "text/event-stream",
    "application/x-ndjson",
    "application/octet-stream",
    "text/html",
)
_ANY_JSON: dict[str, Any] = {}
_STRING = {"type": "string"}
_WORK_ERRORS = {
    400: "The request is wrong; the message names the field.",
    403: "The host, or the page that sends it, is not allowed.",
    404: "No such model, for this key.",
    408: "The body did not arrive within body_timeout_s.",
    413: "The body is larger than max_request_bytes.",
    415: "Content of a form where JSON is read, or compressed otherwise than by gzip or deflate.",
    422: "Well-formed, but its values cannot be served.",
    431: "The headers are larger than 64 KiB.",
    429: "Too much is waiting, or the key has used what it may; see Retry-After.",
    500: "A fault of the server.",
    503: "No copy of the model can take it now; see Retry-After.",
    504: "It did not end within its time limit.",
}
_LOOK_ERRORS = {status: _WORK_ERRORS[status] for status in (403, 404, 429, 431, 500)}
_NO_KEY = "No API key, or one that is not known (where keys are set)."


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. Contents are by media type: a type of ours, or a JSON schema."""

    method: str
    path: str
    tag: str
    summary: str
    answer: Mapping[str, Any]
    body: Mapping[str, Any] | None = None
    other_answers: Mapping[int, Any] | None = None  # by status: JSON that is no error of ours
    is_open: bool = False  # needs no API key

    @property
    def error_type(self) -> type[msgspec.Struct]:
        """The shape of errors."""
        if is_messages_path(self.path):
            return MessagesError
        return ProtocolError if is_protocol_path(self.path) else ErrorBody

    @property
    def errors(self) -> dict[int, str]:
        """What can go wrong, by status."""
        if self.is_open:
            return {status: _WORK_ERRORS[status] for status in (403, 431, 500)}
        errors = dict(_WORK_ERRORS if self.body is not None else _LOOK_ERRORS)
        if self.body is None and "{name}" not in self.path:
            errors.pop(404)
        return {**errors, 401: _NO_KEY}


def operations() -> list[Operation]:
    """Every method of every path."""
    found = [*_health_operations(), *_generation_operations(), *_inference_operations(), *_known_operations()]
    found += [*_ollama_operations(), *_refused_operations()]
    aliases = [
        replace(operation, path=alias, summary=f"{operation.summary}: as {operation.path}")
        for alias, path in ALIASES.items()
        for operation in found
        if operation.path == path
    ]
    return [*found, *_protocol_operations(), *aliases]


def _health_operations() -> list[Operation]:
    return [
        Operation("GET", "/health", "health", "Whether every model that has run can answer, and the state of each copy",
                  {JSON: HealthBody}, other_answers={503: HealthBody}, is_open=True),
        Operation("GET", "/ping", "health", "Health in TorchServe's words",
                  {JSON: Ping}, other_answers={503: Ping}, is_open=True),
        Operation("GET", "/openapi.json", "health", "This document", {JSON: _ANY_JSON}, is_open=True),
        Operation("GET", "/docs", "health", "This document, to be read", {_HTML: _STRING}, is_open=True),
        Operation("GET", "/version", "health", "The version of this software", {JSON: Version}, is_open=True),
        Operation("GET", "/metrics", "health", "Metrics, as Prometheus scrapes them; for admin keys",
                  {_TEXT: _STRING}),
        Operation("GET", "/v1/admin/plan", "health", "Memory and rates of each copy, predicted and measured; for admin "
                  "keys", {JSON: PlanBody}),
        Operation("GET", "/console/state", "health", "What the console shows: models, their copies, tokens so far",
                  {JSON: ConsoleState}),
        Operation("GET", "/load", "health", "How many requests run or wait", {JSON: Load}),
        Operation("GET", "/models", "models", "Models in TorchServe's words and OpenAI's", {JSON: ModelNames}),
        Operation("GET", "/v1/models", "models", "Models in OpenAI's words", {JSON: ModelList}),
        Operation("GET", "/v1/models/{name}", "models", "One model, in the words of OpenAI, KServe v1 and TF Serving",
                  {JSON: ModelState}),
    ]  # fmt: skip


def _generation_operations() -> list[Operation]:
    return [
        Operation("POST", "/v1/completions", "generation", "Continue texts; streamed with stream=true",
                  {JSON: CompletionResponse, EVENTS: CompletionResponse}, {JSON: CompletionBody}),
        Operation("POST", "/v1/chat/completions", "generation", "Answer a conversation; streamed with stream=true",
                  {JSON: ChatResponse, EVENTS: ChatChunk}, {JSON: ChatBody}),
        Operation("POST", "/v1/responses", "generation", "Answer as OpenAI's Responses do; streamed with stream=true",
                  {JSON: ModelResponse, EVENTS: ResponseEvent}, {JSON: ResponsesBody}),
        Operation("POST", "/v1/messages", "generation", "Answer a conversation as Anthropic's API does; streamed with "
                  "stream=true", {JSON: MessagesAnswer, EVENTS: MessagesEvent}, {JSON: MessagesBody}),
        Operation("POST", "/v1/messages/count_tokens", "generation", "How many tokens such a conversation has",
                  {JSON: TokenCount}, {JSON: CountTokensBody}),
        Operation("POST", "/v1/tokenize", "generation", "Tokens of a text or a conversation",
                  {JSON: TokenizedText}, {JSON: TokenizeBody}),
        Operation("POST", "/v1/detokenize", "generation", "The text of tokens",
                  {JSON: DetokenizedText}, {JSON: DetokenizeBody}),
    ]  # fmt: skip


def _inference_operations() -> list[Operation]:
    given_text = {_TEXT: _STRING, JSON: _ANY_JSON}
    return [
        Operation("POST", "/v1/embeddings", "inference", "Vectors of texts",
                  {JSON: EmbeddingList}, {JSON: EmbeddingsBody}),
        Operation("POST", "/v1/classify", "inference", "Labels of texts",
                  {JSON: ClassificationList}, {JSON: ClassifyBody}),
        Operation("POST", "/v1/score", "inference", "How well pairs of texts fit", {JSON: ScoreList},
                  {JSON: ScoreBody}),
        Operation("POST", "/v1/rerank", "inference",
                  "Documents by their relevance; in text-embeddings-inference's shape where they are called texts",
                  {JSON: Ranking}, {JSON: RerankBody}),
        Operation("POST", "/v1/explain", "inference", "Which words of a text a model's answer hangs on",
                  {JSON: ExplanationAnswer}, {JSON: ExplainBody}),
        Operation("POST", "/v1/preprocess", "inference", "What a model's steps make of texts",
                  {JSON: PreprocessedList}, {JSON: PreprocessBody}),
        Operation("POST", "/predict", "inference",
                  "The label of a text (a list: of each), what a module makes of tensors, what a graph gives",
                  {JSON: _ANY_JSON}, {JSON: PredictBody}),
        *(Operation(method, "/predictions/{name}", "inference", "TorchServe's call: a text, or JSON",
                    {JSON: _ANY_JSON}, given_text) for method in ("POST", "PUT")),
        Operation("POST", "/v1/models/{name}:predict", "inference", "The call of TF Serving and KServe v1",
                  {JSON: Predictions}, {JSON: PredictInstancesBody}),
    ]  # fmt: skip


def _known_operations() -> list[Operation]:
    tag = "other APIs"
    return [
        Operation("POST", "/embed", tag, "Vectors of texts, as text-embeddings-inference gives them",
                  {JSON: list[list[float]]}, {JSON: TeiEmbedBody}),
        Operation("POST", "/v2/chat", tag, "Answer a conversation, as Cohere does; streamed with stream=true",
                  {JSON: CohereChat, EVENTS: CohereEvent}, {JSON: CohereChatBody}),
        Operation("POST", "/v2/embed", tag, "Vectors of texts, as Cohere gives them",
                  {JSON: CohereEmbeddings}, {JSON: CohereEmbedBody}),
        Operation("POST", "/pooling", tag, "Vectors, probabilities or scores of texts, as vLLM gives them",
                  {JSON: PooledList}, {JSON: PoolingBody}),
        Operation("POST", "/invocations", tag, "SageMaker's one path: the body's keys say what is called",
                  {JSON: _ANY_JSON, EVENTS: _ANY_JSON}, {JSON: _ANY_JSON}),
    ]  # fmt: skip


def _ollama_operations() -> list[Operation]:
    tag, lines = "Ollama", {JSON: OllamaPiece, _LINES: _STRING}
    return [
        Operation("POST", "/api/chat", tag, "Answer a conversation; streamed unless stream=false", lines,
                  {JSON: OllamaChatBody}),
        Operation("POST", "/api/generate", tag, "Answer a prompt; streamed unless stream=false", lines,
                  {JSON: OllamaGenerateBody}),
        Operation("POST", "/api/embed", tag, "Vectors of texts, of length one",
                  {JSON: OllamaEmbeddings}, {JSON: OllamaEmbedBody}),
        Operation("GET", "/api/tags", tag, "Models", {JSON: OllamaModels}),
        Operation("GET", "/api/ps", tag, "Models of which a copy is ready", {JSON: OllamaProcesses}),
        Operation("POST", "/api/show", tag, "One model", {JSON: OllamaShown}, {JSON: OllamaShowBody}),
        Operation("GET", "/api/version", tag, "The version of this software", {JSON: Version}, is_open=True),
    ]  # fmt: skip


def _refused_operations() -> list[Operation]:
    """They have no answer."""
    return [
        Operation(method, path.replace(":path", ""), "refused", f"Not served: {reason}", {}, {JSON: _ANY_JSON})
        for (method, path), reason in REFUSED.items()
    ]


def _protocol_operations() -> list[Operation]:
    tag, model = "Open Inference Protocol v2", "/v2/models/{name}"
    found = [
        Operation("GET", "/v2", tag, "The server", {JSON: ShownServer}),
        Operation("GET", "/v2/health/live", tag, "Whether the server answers", {JSON: ServerLive}, is_open=True),
        Operation("GET", "/v2/health/ready", tag, "Whether every model can answer",
                  {JSON: ServerReady}, other_answers={503: ServerReady}, is_open=True),
    ]  # fmt: skip
    found += [
        Operation("GET", "/v2/models/stats", tag, "How often models were called here", {JSON: ShownStats}),
        Operation("POST", "/v2/repository/index", tag, "The models that there are",
                  {JSON: list[IndexEntry]}, {JSON: IndexBody}),
    ]  # fmt: skip
    for path in (model, f"{model}/versions/{{version}}"):
        found += [
            Operation("GET", f"{path}/config", tag, "A model as Triton's clients know it", {JSON: ShownConfig}),
            Operation("GET", f"{path}/stats", tag, "How often a model was called here", {JSON: ShownStats}),
            Operation("GET", path, tag, "What a model takes and gives", {JSON: ShownModel}),
            Operation("GET", f"{path}/ready", tag, "Whether a copy of a model can answer",
                      {JSON: ServerReady}, other_answers={503: ServerReady}),
            Operation("POST", f"{path}/infer", tag, "Run a model on named tensors, as JSON or with bytes after it",
                      {JSON: ShownAnswer, _BYTES: _STRING}, {JSON: InferBody, _BYTES: _STRING}),
        ]  # fmt: skip
    return found
