"""Every method of every path, with the types of its body and its answer."""

from dataclasses import replace
from typing import Any

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
from serve_app.gateway.bodies.openai import ChatBatchBody, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
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
from serve_app.gateway.http.aliases import ALIASES
from serve_app.gateway.http.anthropic_answers import MessagesAnswer, MessagesEvent, TokenCount
from serve_app.gateway.http.batch_operations import batch_operations
from serve_app.gateway.http.compatible_routes import ModelNames
from serve_app.gateway.http.openai_responses import ChatResponse, CompletionResponse, ModelList, ModelState
from serve_app.gateway.http.openai_stream import ChatChunk
from serve_app.gateway.http.operation import BYTES, EVENTS, HTML, JSON, LINES, TEXT, Operation
from serve_app.gateway.http.refused_routes import REFUSED
from serve_app.gateway.http.responses_types import ModelResponse, ResponseEvent

_ANY_JSON: dict[str, Any] = {}
_STRING = {"type": "string"}


def operations() -> list[Operation]:
    """Every method of every path."""
    found = [*_health_operations(), *_generation_operations(), *_inference_operations(), *_known_operations()]
    found += [*_ollama_operations(), *_refused_operations()]
    found += batch_operations()
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
        Operation("GET", "/docs", "health", "This document, to be read", {HTML: _STRING}, is_open=True),
        Operation("GET", "/version", "health", "The version of this software", {JSON: Version}, is_open=True),
        Operation("GET", "/metrics", "health", "Metrics, as Prometheus scrapes them; for admin keys",
                  {TEXT: _STRING}),
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
        Operation("POST", "/v1/chat/completions/batch", "generation", "Answer several conversations at once",
                  {JSON: ChatResponse}, {JSON: ChatBatchBody}),
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
        Operation("GET", "/tokenizer_info", "generation", "What the files of a model's tokenizer say, as vLLM tells it",
                  {JSON: _ANY_JSON}, query={"model": _STRING}, more_errors=(400, 404)),
    ]  # fmt: skip


def _inference_operations() -> list[Operation]:
    given_text = {TEXT: _STRING, JSON: _ANY_JSON}
    return [
        Operation("POST", "/v1/embeddings", "inference", "Vectors of texts",
                  {JSON: EmbeddingList, BYTES: _STRING}, {JSON: EmbeddingsBody}),
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
                  {JSON: PooledList, BYTES: _STRING}, {JSON: PoolingBody}),
        Operation("POST", "/invocations", tag, "SageMaker's one path: the body's keys say what is called",
                  {JSON: _ANY_JSON, EVENTS: _ANY_JSON}, {JSON: _ANY_JSON}),
    ]  # fmt: skip


def _ollama_operations() -> list[Operation]:
    tag, lines = "Ollama", {JSON: OllamaPiece, LINES: _STRING}
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
                      {JSON: ShownAnswer, BYTES: _STRING}, {JSON: InferBody, BYTES: _STRING}),
        ]  # fmt: skip
    return found
