"""Calls of graphs: called like models, in the ways that fit what they give."""

import secrets

import msgspec
import numpy as np

from serve_app.backend.protocol import ModelBackend
from serve_app.errors import RequestError
from serve_app.gateway.bodies.inference import (
    ClassificationList,
    ClassifyBody,
    EmbeddingList,
    EmbeddingsBody,
    EntriesBody,
    GraphEmbedding,
    GraphResults,
    GraphText,
    OutputTensor,
    PredictBody,
    TensorPrediction,
    TokenUsage,
)
from serve_app.gateway.caller import cache_salt, estimated, owner, priority, reserved, session
from serve_app.gateway.calls.answers import classifications, embeddings, prediction
from serve_app.gateway.calls.inference import MAX_ENTRIES
from serve_app.gateway.calls.tensor_inputs import write_output
from serve_app.gateway.request_notes import note_run
from serve_app.gateway.time_limits import time_left
from serve_app.preprocessing.arrays import to_array
from serve_app.types.graphs import GraphRequest, GraphResult, GraphRun, GraphValue
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item

_CHARS_PER_TOKEN = 4  # about: the models inside a graph have tokenizers of their own


class GraphCalls:
    """One method for each kind of call that graphs take too."""

    def __init__(self, backend: ModelBackend, queue_timeout_s: float | None) -> None:
        self._backend = backend
        self._queue_timeout_s = queue_timeout_s

    async def predict(self, body: PredictBody, graph: ModelDescription) -> object:
        """What the graph makes of a text, or of each of several."""
        if body.text is None or body.inputs is not None:
            raise RequestError(f"model={graph.name} is a graph, which takes text; leave out inputs", field="text")
        texts = _texts(body, body.text, "text")
        result = await self._run(graph, texts, body.priority, restores_redactions=body.restore_redactions is True)
        answers = [_run_answer(result.names, run, body.top_k) for run in result.runs]
        is_one = isinstance(body.text, str) or result.is_joint
        return answers[0] if is_one else answers

    async def classify(self, body: ClassifyBody, graph: ModelDescription) -> ClassificationList:
        """Labels of texts, of a graph that gives one for each."""
        _check_gives(graph, "label")
        result = await self._run(graph, _texts(body, body.input, "input"), body.priority)
        values = [run.results[0] for run in result.runs]
        scores = [scores for value in values for scores in value.labels]
        is_multi_label = any(value.is_multi_label for value in values)
        data = classifications(scores, body, is_multi_label=is_multi_label)
        return ClassificationList(graph.name, data, _usage(result))

    async def embed(self, body: EmbeddingsBody, graph: ModelDescription) -> EmbeddingList:
        """Vectors of texts, of a graph that gives one for each."""
        _check_gives(graph, "embedding")
        result = await self._run(graph, _texts(body, body.input, "input"), body.priority)
        rows = [to_array(item["embedding"]) for run in result.runs for item in run.results[0].items]
        data = embeddings(np.concatenate(rows), body)
        return EmbeddingList(graph.name, data, _usage(result))

    async def _run(
        self,
        graph: ModelDescription,
        texts: list[str],
        asked_priority: int | None,
        *,
        restores_redactions: bool = False,
    ) -> GraphResult:
        request = GraphRequest(
            secrets.token_hex(8),
            graph.name,
            texts,
            self._queue_timeout_s,
            restores_redactions,
            cache_salt(),
            owner(),
            priority(asked_priority),
            time_left().seconds,
            session(),
        )
        with reserved(estimated(sum(len(text) for text in texts) // _CHARS_PER_TOKEN + 1)) as use:
            result = await self._backend.run_graph(request)
            use.num_tokens = result.num_tokens
        note_run(result.num_tokens)
        return result


def _texts(body: EntriesBody, given: object, field: str) -> list[str]:
    """The texts of a body. Raises RequestError."""
    for name in ("prompt_name", "input_type", "text_pair"):
        if getattr(body, name, None) is not None:
            raise RequestError(f"{name} is for one model, and not for graphs; leave it out", field=name)
    if getattr(body, "use_activation", None) is False:
        message = "use_activation=false is for one model, and not for graphs; leave it out"
        raise RequestError(message, field="use_activation")
    if getattr(body, "padding", None) == "max_length":
        raise RequestError("padding=max_length is for one model, and not for graphs; leave it out", field="padding")
    for name in ("truncate", "truncate_prompt_tokens", "truncation_side"):
        if getattr(body, name, None) is not None:
            raise RequestError(f"{name} is not for graphs; put truncate into a chain of its steps", field=name)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{field} holds token ids, and graphs take texts", field=field)
    if not 0 < len(texts) <= MAX_ENTRIES:
        raise RequestError(f"{field} has {len(texts)} entries; send 1 to {MAX_ENTRIES}", field=field)
    return texts


def _check_gives(graph: ModelDescription, kind: str) -> None:
    if graph.graph_gives != kind:
        raise RequestError(
            f"model={graph.name} is a graph and gives {graph.graph_gives}, not one {kind} for each text; use /predict",
            field="model",
        )


def _run_answer(names: list[str], run: GraphRun, top_k: int | None) -> object:
    if not names:
        return _value_answer(run.results[0], top_k)
    return GraphResults({name: _value_answer(value, top_k) for name, value in zip(names, run.results, strict=True)})


def _value_answer(value: GraphValue, top_k: int | None) -> object:
    entries: list[object]
    if value.kind == "text":
        entries = [GraphText(text) for text in value.texts]
    elif value.kind == "json":
        entries = [msgspec.Raw(text.encode()) for text in value.texts]
    elif value.kind == "label":
        entries = [prediction(one, is_multi_label=value.is_multi_label, top_k=top_k) for one in value.labels]
    elif value.kind == "embedding":
        entries = [GraphEmbedding(to_array(item["embedding"]).reshape(-1).tolist()) for item in value.items]
    else:
        entries = [TensorPrediction({name: _tensor(item, name) for name in item}) for item in value.items]
    return entries if value.is_list else entries[0]


def _tensor(item: Item, name: str) -> OutputTensor:
    tensor = item[name]
    return OutputTensor(tensor.dtype, list(tensor.shape), write_output(tensor))


def _usage(result: GraphResult) -> TokenUsage:
    return TokenUsage(result.num_tokens, result.num_tokens)
