"""Calls of models that are done with an entry after one step: checked bodies in, answers out.

Knows no carrier: HTTP encodes the answers as JSON, gRPC as its messages.
"""

from dataclasses import dataclass, replace

import msgspec

from serve_app.backend.prompts import default_prompt, named_prompt, typed_prompt
from serve_app.backend.text_models import TextEntry, Vectors
from serve_app.errors import RequestError
from serve_app.gateway.bodies.inference import (
    ClassificationList,
    ClassifyBody,
    EmbeddingList,
    EmbeddingsBody,
    EntriesBody,
    OutputTensor,
    PredictBody,
    PreprocessBody,
    PreprocessedList,
    PreprocessedText,
    RankedDocument,
    Ranking,
    RerankBody,
    ScoreBody,
    ScoreEntry,
    ScoreList,
    ShownRedaction,
    ShownStep,
    ShownValue,
    TensorPrediction,
    TokenUsage,
)
from serve_app.gateway.calls.answers import check_dimensions, classifications, embeddings, prediction
from serve_app.gateway.calls.graph_calls import GraphCalls
from serve_app.gateway.calls.inference import (
    MAX_ENTRIES,
    InferenceService,
    Outputs,
    TextAnswers,
    relevance,
    similarity,
)
from serve_app.gateway.calls.models import ServedModels
from serve_app.gateway.calls.padding import padded
from serve_app.gateway.calls.score_inputs import document_texts, side_of
from serve_app.gateway.calls.tensor_inputs import read_inputs, write_output
from serve_app.types.chains import ChainOutcome, ChainValue
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item


class ModelCalls:
    """One method for each kind of call."""

    def __init__(self, service: InferenceService, models: ServedModels, graphs: GraphCalls) -> None:
        self._service = service
        self._graphs = graphs
        self._models = models

    async def embed(self, body: EmbeddingsBody) -> EmbeddingList:
        """Vectors of texts."""
        graph = self._models.graph(body.model)
        if graph is not None:
            return await self._graphs.embed(body, graph)
        model = self._models.for_tasks(body.model, ("embed",))
        check_dimensions(body.dimensions, model)
        entries = _prompted(entries_of(body.input, "input"), model, body)
        if body.truncation_side == "left":
            entries = [replace(entry, keeps_end=True) for entry in entries]
        if body.padding == "max_length":
            entries = padded(entries, await self._models.with_tokenizer(model))
        outputs = await self._run(model, body, entries)
        return EmbeddingList(model.name, embeddings(outputs.values, body), _usage(outputs))

    async def classify(self, body: ClassifyBody) -> ClassificationList:
        """Labels of texts."""
        graph = self._models.graph(body.model)
        if graph is not None:
            return await self._graphs.classify(body, graph)
        model = as_activated(self._models.for_tasks(body.model, ("classify",)), body.use_activation)
        if body.threshold is not None and not model.is_multi_label:
            raise RequestError("threshold is for models of several labels; leave it out", field="threshold")
        if model.postprocessing_gives == "json":
            message = f"model={model.name} answers what its postprocessing makes, not labels; use /predict"
            raise RequestError(message, field="model")
        entries = _paired(entries_of(body.input, "input"), body.text_pair, "input")
        answers = await self._answer(model, body, _with_prompt(entries, default_prompt(model)))
        data = classifications(answers.labels, body, is_multi_label=model.is_multi_label)
        usage = TokenUsage(answers.num_tokens, answers.num_tokens)
        return ClassificationList(model.name, data, usage)

    async def score(self, body: ScoreBody) -> ScoreList:
        """How well pairs of texts fit: by a cross-encoder, or by the similarity of embeddings."""
        model = as_activated(self._models.for_tasks(body.model, ("score", "embed")), body.use_activation)
        first, one = side_of(body, ("text_1", "queries", "data_1"))
        second, two = side_of(body, ("text_2", "documents", "items", "data_2"))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            message = f"{one} has {len(first)} entries and {two} {len(second)}; send as many, or one {one}"
            raise RequestError(message, field=two)
        prompt = named_prompt(model, body.prompt_name)
        scores, usage = await self._score_pairs(model, body, first, second, _Sides(one, two, prompt, prompt))
        data = [ScoreEntry(index, score) for index, score in enumerate(scores)]
        return ScoreList(model.name, data, usage)

    async def rerank(self, body: RerankBody) -> Ranking:
        """Documents by their relevance to a query."""
        model = as_activated(self._models.for_tasks(body.model, ("score", "embed")), body.use_activation)
        documents = [body.documents] if isinstance(body.documents, str) else body.documents
        texts = document_texts(documents, body.rank_fields)
        if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < 0:
            message = f"max_tokens_per_doc must be a non-negative integer, not {body.max_tokens_per_doc}; 0: whole"
            raise RequestError(message, field="max_tokens_per_doc")
        if body.max_tokens_per_doc:
            served = await self._models.with_tokenizer(model)
            texts = await self._service.shortened(served, texts, body.max_tokens_per_doc)
        queries = [body.query] * len(texts)
        prompts = (default_prompt(model), "")
        if model.task == "embed":
            prompts = (typed_prompt(model, "query"), typed_prompt(model, "document"))
        scores, usage = await self._score_pairs(model, body, queries, texts, _Sides("query", "documents", *prompts))
        order = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n or None]
        results = [RankedDocument(index, scores[index]) for index in order]
        if body.return_documents is not False:
            shown: list[dict[str, object]] = [{"text": one} if isinstance(one, str) else one for one in documents]
            results = [RankedDocument(index, scores[index], shown[index]) for index in order]
        return Ranking(model.name, results, usage)

    async def score_texts(self, model: ModelDescription, body: EmbeddingsBody) -> tuple[list[list[float]], TokenUsage]:
        """A cross-encoder's score of each text alone."""
        outputs = await self._run(model, body, entries_of(body.input, "input"))
        return [[score] for score in relevance(model, outputs.values)], _usage(outputs)

    async def predict(self, body: PredictBody) -> object:
        """The label of a text, or of each of a list; or what a module makes of named tensors."""
        graph = self._models.graph(body.model)
        if graph is not None:
            return await self._graphs.predict(body, graph)
        if body.restore_redactions:
            raise RequestError("restore_redactions is for answers with text; leave it out", field="restore_redactions")
        if (body.text is None) == (body.inputs is None):
            raise RequestError("send either text or inputs", field="text")
        if body.text_pair is not None and body.text is None:
            raise RequestError("text_pair is for text; leave it out beside inputs", field="text_pair")
        if body.inputs is not None:
            model = self._models.for_tasks(body.model, ("predict", "classify", "embed"))
            item = read_inputs(body.inputs, model)
            outputs = await self._service.answer_item(model, item, body.priority)
            if isinstance(outputs, str):
                return msgspec.Raw(outputs.encode())
            answer = {
                name: OutputTensor(tensor.dtype, list(tensor.shape), write_output(tensor))
                for name, tensor in outputs.items()
            }
            return TensorPrediction(answer)
        model = self._models.for_tasks(body.model, ("classify",))
        assert body.text is not None
        entries = _paired(entries_of(body.text, "text"), body.text_pair, "text")
        answers = await self._answer(model, body, _with_prompt(entries, default_prompt(model)))
        predictions: list[object] = [
            prediction(scores, is_multi_label=model.is_multi_label, top_k=body.top_k) for scores in answers.labels
        ]
        predictions += [msgspec.Raw(answer.encode()) for answer in answers.json]
        if isinstance(body.text, str):
            return predictions[0]
        return predictions

    async def run_tensors(self, model: ModelDescription, item: Item, priority: int | None = None) -> Item | str:
        """What a module makes of checked tensors: tensors, or the JSON that its postprocessing makes."""
        return await self._service.answer_item(model, item, priority)

    async def preprocess(self, body: PreprocessBody) -> PreprocessedList:
        """What a model's steps make of texts."""
        model = self._models.for_tasks(body.model, ("generate", "embed", "classify", "score"))
        if not model.has_preprocessing:
            raise RequestError(f"model={model.name} has no preprocessing", field="model")
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts or len(texts) > MAX_ENTRIES:
            raise RequestError(f"input has {len(texts)} entries; send 1 to {MAX_ENTRIES}", field="input")
        made = await self._service.trace(model, texts)
        data = [_shown_text(index, one, has_originals=body.reveal is True) for index, one in enumerate(made)]
        return PreprocessedList(model.name, data)

    async def _run(self, model: ModelDescription, body: EntriesBody, entries: list[TextEntry]) -> Outputs:
        served = await self._models.with_tokenizer(model)
        return await self._service.run_texts(served, entries, max_tokens_of(body, model), body.priority)

    async def _answer(self, model: ModelDescription, body: EntriesBody, entries: list[TextEntry]) -> TextAnswers:
        served = await self._models.with_tokenizer(model)
        return await self._service.answer_texts(served, entries, max_tokens_of(body, model), body.priority)

    async def _score_pairs(
        self,
        model: ModelDescription,
        body: EntriesBody,
        first: list[str],
        second: list[str],
        sides: "_Sides",
    ) -> tuple[list[float], TokenUsage]:
        if model.task == "score":
            pairs = [
                TextEntry(one, f"{sides.second}[{index}]", two, sides.first_prompt)
                for index, (one, two) in enumerate(zip(first, second, strict=True))
            ]
            outputs = await self._run(model, body, pairs)
            return relevance(model, outputs.values), _usage(outputs)
        queries = list(dict.fromkeys(first))  # a query is embedded once
        entries = [TextEntry(text, sides.first, prompt=sides.first_prompt) for text in queries]
        entries += [
            TextEntry(text, f"{sides.second}[{index}]", prompt=sides.second_prompt) for index, text in enumerate(second)
        ]
        outputs = await self._run(model, body, entries)
        places = {text: index for index, text in enumerate(queries)}
        vectors: Vectors = outputs.values[[places[text] for text in first]]
        return similarity(model, vectors, outputs.values[len(queries) :]), _usage(outputs)


@dataclass(frozen=True, slots=True)
class _Sides:
    """The two sides of pairs: their fields in the request, and the prompts before their texts."""

    first: str
    second: str
    first_prompt: str
    second_prompt: str  # of embedders only


def as_activated(model: ModelDescription, use_activation: bool | None) -> ModelDescription:
    """The model, of which the numbers mean themselves where the request wants them so. Raises RequestError."""
    if use_activation is not False:
        return model
    if model.task == "embed" or model.postprocessing_gives is not None:
        whose = "its vectors are what it makes" if model.task == "embed" else "its answers are made by steps behind it"
        raise RequestError(f"use_activation=false: model={model.name}: {whose}; leave it out", field="use_activation")
    return replace(model, score_activation="identity", is_multi_label=False)


def entries_of(given: str | list[str | list[int] | int] | list[str], field: str) -> list[TextEntry]:
    """A text, texts, token ids or lists of them: one entry each. Raises RequestError."""
    if isinstance(given, str):
        return [TextEntry(given, field)]
    if not given:
        raise RequestError(f"{field} is empty; send a text or token ids", field=field)
    kinds = {type(one) for one in given}
    if len(kinds) > 1:
        raise RequestError(f"{field} mixes texts and token ids; send entries of one kind", field=field)
    if kinds == {int}:
        return [TextEntry([one for one in given if isinstance(one, int)], field)]
    return [TextEntry(one, f"{field}[{index}]") for index, one in enumerate(given) if not isinstance(one, int)]


def _prompted(entries: list[TextEntry], model: ModelDescription, body: EmbeddingsBody) -> list[TextEntry]:
    """The entries with the prompt that the body asks for. Raises RequestError."""
    asked = "input_type" if body.input_type is not None else "prompt_name" if body.prompt_name is not None else None
    if body.input_type is not None and body.prompt_name is not None:
        raise RequestError("input_type and prompt_name both choose a prompt; send one of them", field="input_type")
    if asked is not None and isinstance(entries[0].text, list):
        raise RequestError(f"{asked} is for texts, and input holds token ids; leave it out", field=asked)
    if body.input_type is not None:
        return _with_prompt(entries, typed_prompt(model, body.input_type))
    return _with_prompt(entries, named_prompt(model, body.prompt_name))


def _with_prompt(entries: list[TextEntry], prompt: str) -> list[TextEntry]:
    return [replace(entry, prompt=prompt) for entry in entries] if prompt else entries


def _paired(entries: list[TextEntry], pair: str | list[str] | None, field: str) -> list[TextEntry]:
    """The entries with the second text of each. Raises RequestError."""
    if pair is None:
        return entries
    pairs = [pair] if isinstance(pair, str) else pair
    if isinstance(entries[0].text, list):
        raise RequestError(f"text_pair is for texts, and {field} holds token ids; leave it out", field="text_pair")
    if len(pairs) != len(entries):
        message = f"{field} has {len(entries)} entries and text_pair {len(pairs)}; send as many"
        raise RequestError(message, field="text_pair")
    return [replace(entry, pair=two) for entry, two in zip(entries, pairs, strict=True)]


def max_tokens_of(body: EntriesBody, model: ModelDescription) -> int | None:
    """Where longer texts are to be cut; None: they are refused. Raises RequestError."""
    limit = body.truncate_prompt_tokens
    if limit is None:
        return model.max_model_len if body.truncate else None
    if limit == 0:
        raise RequestError(
            "truncate_prompt_tokens=0 leaves nothing; send a number above 0, or -1 for the model's longest",
            field="truncate_prompt_tokens",
        )
    if limit > model.max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens={limit} is greater than max_model_len={model.max_model_len}. "
            "Please request a smaller truncation size. -1 is the model's longest",
            field="truncate_prompt_tokens",
        )
    return model.max_model_len if limit < 1 else limit


def _shown_text(index: int, made: ChainOutcome, *, has_originals: bool) -> PreprocessedText:
    steps = [ShownStep(one.step, _shown_value(one.value)) for one in made.trace]
    redactions = [
        ShownRedaction(one.placeholder, one.kind, one.original if has_originals else msgspec.UNSET)
        for one in made.redactions
    ]
    return PreprocessedText(index, _shown_value(made.value), steps, redactions)


def _shown_value(value: ChainValue) -> ShownValue:
    return ShownValue(value.text, value.texts, value.token_ids)


def _usage(outputs: Outputs) -> TokenUsage:
    return TokenUsage(outputs.num_tokens, outputs.num_tokens)
