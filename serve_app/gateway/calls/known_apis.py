"""Calls that users of Cohere, text-embeddings-inference and vLLM know, by our own."""

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import RequestError
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.inference import ClassifyBody, EmbeddingsBody, RerankBody
from serve_app.gateway.bodies.known_apis import (
    CohereBilled,
    CohereEmbedBody,
    CohereEmbeddings,
    CohereInputPart,
    CohereMeta,
    CohereTokens,
    Pooled,
    PooledList,
    PoolingBody,
    TeiEmbedBody,
    TeiRank,
    TeiRerankBody,
)
from serve_app.gateway.calls.answers import embeddings, unit_rows
from serve_app.gateway.calls.field_names import fields_named
from serve_app.gateway.calls.model_calls import ModelCalls, as_activated
from serve_app.gateway.calls.models import ServedModels
from serve_app.gateway.calls.vector_bytes import base64_of
from serve_app.types.models import ModelDescription

Rows = NDArray[np.float32]

_COHERE_INPUTS = {"search_query": "query", "search_document": "document"}
_UNPROMPTED_INPUTS = frozenset({"classification", "clustering"})


class KnownApiCalls:
    """One method for each call."""

    def __init__(self, calls: ModelCalls, models: ServedModels) -> None:
        self._calls = calls
        self._models = models

    async def cohere_embed(self, body: CohereEmbedBody) -> CohereEmbeddings:
        """Vectors of texts in each of the formats asked for."""
        texts = _cohere_texts(body)
        given: dict[str, object] = {"input": texts, "model": body.model, "dimensions": body.output_dimension}
        given["priority"] = body.priority
        given["input_type"] = self._input_type(body)
        cut: dict[str, object] = {} if body.truncate == "NONE" else {"truncate": True}
        if body.max_tokens is not None:
            cut = {"truncate_prompt_tokens": body.max_tokens}
        if body.truncate == "START":
            cut["truncation_side"] = "left"
        fields = {"input": "texts" if body.inputs is None else "inputs", "dimensions": "output_dimension"}
        with fields_named(fields, {'"truncate": true': '"truncate": "END"'}):
            answer = await self._calls.embed(convert_body({**given, **cut}, EmbeddingsBody))
        rows = np.array([one.embedding for one in answer.data], dtype=np.float32)
        formats = body.embedding_types or ["float"]
        num_tokens = answer.usage.prompt_tokens
        meta = CohereMeta(CohereBilled(num_tokens), CohereTokens(num_tokens))
        vectors = {str(name): _cohere_rows(rows, name) for name in formats}
        return CohereEmbeddings(secrets.token_hex(16), vectors, texts, meta)

    def _input_type(self, body: CohereEmbedBody) -> str | None:
        """What goes before the texts, in the words of EmbeddingsBody. Raises RequestError."""
        asked = body.input_type
        if asked is None or asked in _UNPROMPTED_INPUTS:
            return None
        is_graph = self._models.graph(body.model) is not None
        if asked in _COHERE_INPUTS:
            return None if is_graph else _COHERE_INPUTS[asked]
        if is_graph or asked not in self._models.for_tasks(body.model, ("embed",)).prompts:
            known = ", ".join([*_COHERE_INPUTS, *sorted(_UNPROMPTED_INPUTS)])
            message = f"Unsupported input_type: {asked[:64]!r}; send one of {known}, or the name of one of its prompts"
            raise RequestError(message, field="input_type")
        return asked

    async def tei_embed(self, body: TeiEmbedBody) -> list[list[float]]:
        """Vectors of texts, of length one unless they are wanted as the model gives them."""
        given = {name: getattr(body, name) for name in ("model", "truncate", "dimensions", "prompt_name")}
        given = {name: value for name, value in given.items() if value is not None}
        if body.truncation_direction is not None:
            given["truncation_side"] = body.truncation_direction.lower()
        answer = await self._calls.embed(convert_body({**given, "input": body.inputs}, EmbeddingsBody))
        rows = np.array([one.embedding for one in answer.data], dtype=np.float32)
        if body.normalize is not False:
            rows = unit_rows(rows)
        vectors: list[list[float]] = rows.tolist()
        return vectors

    async def tei_rerank(self, body: TeiRerankBody) -> list[TeiRank]:
        """Texts by their relevance to a query."""
        if not body.texts:
            raise RequestError("texts is empty; send at least one", field="texts")
        if body.truncation_direction in ("Left", "left"):
            message = "truncation_direction: the ends of texts are cut off here; leave it out"
            raise RequestError(message, field="truncation_direction")
        given = {"model": body.model, "query": body.query, "documents": body.texts, "truncate": body.truncate}
        ranking = await self._calls.rerank(convert_body(given, RerankBody))
        return [
            TeiRank(one.index, one.relevance_score, body.texts[one.index] if body.return_text else None)
            for one in ranking.results
        ]

    async def pool(self, body: PoolingBody) -> PooledList:
        """Vectors of a model that embeds, probabilities of one that classifies, scores of a cross-encoder."""
        model = self._models.for_tasks(body.model, ("embed", "classify", "score"))
        _check_task(body.task, model)
        model = as_activated(model, body.use_activation)
        names = ("model", "input", "truncate", "truncate_prompt_tokens", "use_activation", "priority")
        given = {name: getattr(body, name) for name in names}
        if model.task == "embed":
            own = {name: getattr(body, name) for name in EmbeddingsBody.__struct_fields__}
            answer = await self._calls.embed(EmbeddingsBody(**own))
            data = [Pooled(one.index, one.embedding) for one in answer.data]
            return PooledList(answer.model, data, answer.usage)
        for name in ("dimensions", "truncation_side", "padding"):
            if getattr(body, name) not in (None, "do_not_pad"):
                raise RequestError(f"{name} is for models that embed; leave it out", field=name)
        if model.task == "classify":
            classes = await self._calls.classify(convert_body(given, ClassifyBody))
            rows, usage = [one.probs for one in classes.data], classes.usage
        else:
            rows, usage = await self._calls.score_texts(model, body)
        return PooledList(model.name, _pooled(rows, body), usage)


def _check_task(task: str | None, model: ModelDescription) -> None:
    """Raises RequestError, in words that vLLM's callers know, unless the model does what is asked."""
    is_score_wanted = model.task == "score" and task == "classify"  # vLLM's name for a cross-encoder's task
    if task in (None, model.task) or is_score_wanted:
        return
    if task == "plugin":
        message = (
            "No IOProcessor plugin installed. Steps before and after a model stand in its serve file (preprocessing, "
            "postprocessing); leave task out"
        )
        raise RequestError(message, field="task")
    message = f"Unsupported task: {str(task)[:64]!r}, as model={model.name} does {model.task}; leave it out"
    raise RequestError(message, field="task")


def _pooled(rows: Sequence[Sequence[float]], body: PoolingBody) -> list[Pooled]:
    shown = [embeddings(np.array([row], dtype=np.float32), body)[0].embedding for row in rows]
    return [Pooled(index, one) for index, one in enumerate(shown)]


def _cohere_texts(body: CohereEmbedBody) -> list[str]:
    """Raises RequestError."""
    if body.images:
        raise RequestError("images: no model here reads pictures; send texts", field="images")
    if (body.texts is None) == (body.inputs is None):
        raise RequestError("texts or inputs is needed, and not both; send one", field="texts")
    if not (body.texts or body.inputs):
        field = "inputs" if body.texts is None else "texts"
        raise RequestError(f"{field} is empty; send at least one", field=field)
    return body.texts or [
        "\n".join(_cohere_part(part, f"inputs[{index}].content[{place}]") for place, part in enumerate(one.content))
        for index, one in enumerate(body.inputs or [])
    ]


def _cohere_part(part: CohereInputPart, where: str) -> str:
    if part.type != "text":
        raise RequestError(f"{where}.type={part.type[:32]!r} is not read; send text", field=f"{where}.type")
    if part.text is None:
        raise RequestError(f"{where}.text is missing", field=f"{where}.text")
    return part.text


def _cohere_rows(rows: Rows, name: str) -> list[list[int | float] | str]:
    """rows [B, D] in one of Cohere's formats.

    Each row's largest number is 127 in int8, which keeps its direction; uint8 is 128 more. The binary ones hold a bit
    for each number above zero.
    """
    if name == "base64":
        return [base64_of(row) for row in rows]
    if name == "float":
        return list(rows.tolist())
    if name in ("int8", "uint8"):
        largest = np.abs(rows).max(axis=1, keepdims=True)
        scaled = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
        levels = np.rint(scaled * 127).astype(np.int16)
        return list((levels if name == "int8" else levels + 128).tolist())
    packed = np.packbits(rows > 0, axis=1)
    return list(packed.tolist() if name == "ubinary" else (packed.astype(np.int16) - 128).tolist())
