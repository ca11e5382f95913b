"""Models that are done with an entry after one step, as a Gateway calls them: texts to vectors, labels and scores.

Knows no HTTP: every carrier's handler is a thin conversion around this.
"""

from dataclasses import dataclass, replace

import numpy as np

from serve_app.backend.text_models import Call, TextEntry, TextModels, Vectors, input_of, output_rows
from serve_app.errors import RequestError
from serve_app.gateway.caller import priority, reserved
from serve_app.gateway.calls.models import ServedModel
from serve_app.gateway.request_notes import note_run
from serve_app.gateway.time_limits import time_left
from serve_app.preprocessing.model_entries import activated, text_item
from serve_app.preprocessing.tokenizer import TextEncoding
from serve_app.types.chains import ChainOutcome, ChainValue, LabelScore
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item

MAX_ENTRIES = 16_384  # texts of one request
_SHORTEN = (  # vLLM's words, by which its callers know that a prompt is too long
    'Please reduce the length of the input prompt, or send "truncate": true to have its end cut off'
)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The one output of each entry [B, C] float32, and how many tokens went in."""

    values: Vectors
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TextAnswers:
    """Labels of each entry, or the JSON that postprocessing makes of each, and how many tokens went in."""

    labels: list[list[LabelScore]]
    json: list[str]
    num_tokens: int


class InferenceService:
    """Runs entries on models."""

    def __init__(self, models: TextModels, queue_timeout_s: float | None) -> None:
        self._models = models
        self._queue_timeout_s = queue_timeout_s

    async def run_texts(
        self, model: ServedModel, entries: list[TextEntry], max_tokens: int | None, asked_priority: int | None = None
    ) -> Outputs:
        """The model's output for each entry, in order; longer texts are cut to max_tokens. Raises RequestError."""
        items, num_tokens = await self._run(self._call(asked_priority), model, entries, max_tokens)
        return Outputs(output_rows(model.description, items), num_tokens)

    async def answer_texts(
        self, model: ServedModel, entries: list[TextEntry], max_tokens: int | None, asked_priority: int | None = None
    ) -> TextAnswers:
        """What a classifier says of each entry, in order. Raises RequestError."""
        call = self._call(asked_priority)
        items, num_tokens = await self._run(call, model, entries, max_tokens)
        answers = await self._models.answers(call, model.description, items)
        return TextAnswers(answers.labels, answers.json, num_tokens)

    async def answer_item(self, model: ModelDescription, item: Item, asked_priority: int | None = None) -> Item | str:
        """What a module makes of named tensors: tensors again, or the JSON that its postprocessing makes."""
        call = self._call(asked_priority)
        outputs = await self._models.run_items(call, model, [item])
        note_run()
        if model.task != "predict" or model.postprocessing_gives is None:
            return outputs[0]
        return (await self._models.answers(call, model, outputs)).json[0]

    async def run_encodings(
        self, model: ServedModel, encodings: list[TextEncoding], asked_priority: int | None = None
    ) -> Outputs:
        """The model's output for each of some checked inputs, in order."""
        items, num_tokens = await self._run_encodings(self._call(asked_priority), model.description, encodings)
        return Outputs(output_rows(model.description, items), num_tokens)

    async def preprocessed(self, model: ServedModel, entry: TextEntry, asked_priority: int | None = None) -> TextEntry:
        """The entry with what the model's steps make of its texts. Raises RequestError."""
        if not model.description.has_preprocessing:
            return entry
        return (await self._preprocess(self._call(asked_priority), model.description, [entry]))[0]

    async def shortened(self, model: ServedModel, texts: list[str], max_tokens: int) -> list[str]:
        """The texts, each no longer than so many tokens."""
        return await self._models.shortened(model.tokenizer, texts, max_tokens)

    async def trace(self, model: ModelDescription, texts: list[str]) -> list[ChainOutcome]:
        """What each step of a model's preprocessing makes of texts."""
        return await self._models.run_steps(Call(), model, [ChainValue(text=text) for text in texts], has_trace=True)

    def _call(self, asked_priority: int | None) -> Call:
        return Call(queue_timeout_s=self._queue_timeout_s, priority=priority(asked_priority), time_left=time_left())

    async def _run(
        self, call: Call, model: ServedModel, entries: list[TextEntry], max_tokens: int | None
    ) -> tuple[list[Item], int]:
        """The model's outputs, and how many tokens went in."""
        description = model.description
        if len(entries) > MAX_ENTRIES:
            name = entries[0].field.partition("[")[0]
            message = f"{name} has {len(entries)} entries; send at most {MAX_ENTRIES} in one request"
            raise RequestError(message, field=name)
        if description.has_preprocessing:
            entries = await self._preprocess(call, description, entries)
        if max_tokens is None:
            await self._refuse_long(model, entries)
        encodings = await self._models.encode(description, model.tokenizer, entries, max_tokens)
        for entry, encoding in zip(entries, encodings, strict=True):
            _check(entry, encoding, description)
        return await self._run_encodings(call, description, encodings)

    async def run_gradients(
        self, model: ServedModel, items: list[Item], asked_priority: int | None = None
    ) -> tuple[list[Item], int]:
        """GRADIENT_OUTPUTS of each item, in order, and how many tokens went in."""
        num_tokens = sum(item["input_ids"].shape[0] for item in items)
        call = self._call(asked_priority)
        return await self._run_items(call, model.description, items, num_tokens, has_gradients=True), num_tokens

    async def _run_encodings(
        self, call: Call, model: ModelDescription, encodings: list[TextEncoding]
    ) -> tuple[list[Item], int]:
        items = [text_item(encoding, model) for encoding in encodings]
        num_tokens = sum(len(encoding.token_ids) for encoding in encodings)
        return await self._run_items(call, model, items, num_tokens), num_tokens

    async def _run_items(
        self, call: Call, model: ModelDescription, items: list[Item], num_tokens: int, *, has_gradients: bool = False
    ) -> list[Item]:
        with reserved(num_tokens) as use:
            outputs = await self._models.run_items(call, model, items, has_gradients=has_gradients)
            use.num_tokens = num_tokens
        note_run(num_tokens)
        return outputs

    async def _refuse_long(self, model: ServedModel, entries: list[TextEntry]) -> None:
        limit = model.description.max_model_len
        entry = await self._models.far_too_long(model.tokenizer, entries, limit)
        if entry is not None:
            raise RequestError(
                f"{entry.field} has more tokens than the model takes ({limit}). {_SHORTEN}",
                field=entry.field,
            )

    async def _preprocess(self, call: Call, model: ModelDescription, entries: list[TextEntry]) -> list[TextEntry]:
        """The entries with what the model's chain makes of their texts; token ids are taken as they are."""
        texts: list[tuple[int, bool, str]] = []
        for index, entry in enumerate(entries):
            if isinstance(entry.text, str):
                texts.append((index, False, entry.text))
                if entry.pair is not None:
                    texts.append((index, True, entry.pair))
        if not texts:
            return entries
        values = [ChainValue(text=text) for _index, _is_pair, text in texts]
        made = await self._models.run_steps(call, model, values)
        changed = list(entries)
        for (index, is_pair, _text), one in zip(texts, made, strict=True):
            entry, value = changed[index], input_of(one.value)
            if isinstance(value, str):
                changed[index] = replace(entry, pair=value) if is_pair else replace(entry, text=value)
                continue
            if entry.pair is not None or entry.prompt:
                what = "a second text" if entry.pair is not None else "a prompt"
                message = f"model={model.name} makes token ids of a text in its steps, and takes none with {what}"
                raise RequestError(message, field=entry.field)
            changed[index] = replace(entry, text=value)
        return changed


def relevance(model: ModelDescription, logits: Vectors) -> list[float]:
    """A cross-encoder's scores. logits: [B, 1]."""
    return [float(value) for value in activated(model, logits)[:, 0]]


def similarity(model: ModelDescription, first: Vectors, second: Vectors) -> list[float]:
    """How alike vectors are, pair by pair, as the model's files measure it: more is nearer. Both [B, D]."""
    one, two = first.astype(np.float64), second.astype(np.float64)
    if model.similarity == "euclidean":
        return [float(value) for value in -np.linalg.norm(one - two, axis=1)]
    if model.similarity == "manhattan":
        return [float(value) for value in -np.abs(one - two).sum(axis=1)]
    products = (one * two).sum(axis=1)
    if model.similarity == "dot":
        return [float(value) for value in products]
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)  # a zero vector is like nothing
    return [float(value) for value in np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)]


def shorten(vectors: Vectors, dimensions: int, *, is_normalized: bool) -> Vectors:
    """The first dimensions of each vector (Matryoshka, arXiv:2205.13147), of length one again if they were."""
    short = vectors[:, :dimensions]
    if not is_normalized:
        return short
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    scaled: Vectors = np.divide(short, lengths, out=np.zeros_like(short), where=lengths > 0)
    return scaled


def _check(entry: TextEntry, encoding: TextEncoding, model: ModelDescription) -> None:
    num_tokens = len(encoding.token_ids)
    if num_tokens == 0:
        raise RequestError(f"{entry.field} is empty; send some text", field=entry.field)
    if num_tokens > model.max_model_len:
        raise RequestError(
            f"{entry.field} has {num_tokens} tokens, the model takes {model.max_model_len}. {_SHORTEN}",
            field=entry.field,
        )
