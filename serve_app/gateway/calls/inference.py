"""Models that are done with an entry after one step, as a Gateway calls them: texts to vectors, labels and scores.

Knows no HTTP: every carrier's handler is a thin conversion around this.
"""

import asyncio
import secrets
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve_app.backend.protocol import GatewayBackend
from serve_app.errors import InternalError, RequestError
from serve_app.gateway.caller import charge
from serve_app.gateway.calls.models import ServedModel
from serve_app.preprocessing.arrays import sigmoid, to_array
from serve_app.preprocessing.model_entries import label_probabilities, text_item
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import TextEncoding
from serve_app.types.chains import ChainOutcome, ChainRequest, ChainValue, LabelScore
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, Item

MAX_ENTRIES = 16_384  # texts of one request
_TEXTS_PER_JOB = 256  # tokenised by one thread at a time, so that others get their turn
_INLINE_CHARS = 64  # encoding this takes less than handing it to a thread

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entry:
    """One text, pair of texts or list of token ids, and the field of the request that it came in."""

    text: str | list[int]
    field: str
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """The one output of each entry [B, C] float32, and how many tokens went in."""

    values: Vectors
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answers:
    """What a classifier says of each entry: its labels, or the JSON that its postprocessing makes."""

    labels: list[list[LabelScore]]  # of each entry
    json: list[str]
    num_tokens: int


class InferenceService:
    """Runs entries on models."""

    def __init__(self, backend: GatewayBackend, pool: TextPool, queue_timeout_s: float | None) -> None:
        self._backend = backend
        self._pool = pool
        self._queue_timeout_s = queue_timeout_s

    async def run_texts(self, model: ServedModel, entries: list[Entry], max_tokens: int | None) -> Outputs:
        """The model's output for each entry, in order; longer ones are cut to max_tokens. Raises RequestError."""
        if len(entries) > MAX_ENTRIES:
            name = entries[0].field.partition("[")[0]
            message = f"{name} has {len(entries)} entries; send at most {MAX_ENTRIES} in one request"
            raise RequestError(message, field=name)
        if model.description.has_preprocessing:
            entries = await self._preprocess(model.description, entries)
        encodings = await self._encode_all(model, entries, max_tokens)
        for entry, encoding in zip(entries, encodings, strict=True):
            _check(entry, encoding, model.description)
        items = [text_item(encoding, model.description) for encoding in encodings]
        outputs = await self.run_items(model.description, items)
        name = next(iter(model.description.outputs))
        values = np.stack([to_array(output[name]).reshape(-1) for output in outputs]).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise InternalError(f"model={model.description.name} gave an output that is not finite")
        num_tokens = sum(len(encoding.token_ids) for encoding in encodings)
        charge(num_tokens)
        return Outputs(values, num_tokens)

    async def answer_texts(self, model: ServedModel, entries: list[Entry], max_tokens: int | None) -> Answers:
        """What a classifier says of each entry, in order. Raises RequestError."""
        outputs = await self.run_texts(model, entries, max_tokens)
        description = model.description
        if description.postprocessing_gives is None:
            return Answers(label_probabilities(description, outputs.values), [], outputs.num_tokens)
        values = [ChainValue(numbers=row) for row in outputs.values.tolist()]
        made = [one.value for one in await self._run_chain(description, values, is_after=True)]
        labels = [value.labels for value in made if value.labels is not None]
        return Answers(labels, [value.json for value in made if value.json is not None], outputs.num_tokens)

    async def answer_item(self, model: ModelDescription, item: Item) -> Item | str:
        """What a module makes of named tensors: tensors again, or the JSON that its postprocessing makes."""
        (outputs,) = await self.run_items(model, [item])
        if model.task != "predict" or model.postprocessing_gives is None:
            return outputs
        (made,) = await self._run_chain(model, [ChainValue(tensors=outputs)], is_after=True)
        assert made.value.json is not None, "check_chains refuses other ends"
        return made.value.json

    async def run_items(self, model: ModelDescription, items: list[Item]) -> list[Item]:
        """The model's outputs for each item, in order."""
        request = InferRequest(secrets.token_hex(8), model.name, items, self._queue_timeout_s)
        return (await self._backend.infer(request)).outputs

    async def trace(self, model: ModelDescription, texts: list[str]) -> list[ChainOutcome]:
        """What each step of a model's preprocessing makes of texts."""
        values = [ChainValue(text=text) for text in texts]
        return await self._run_chain(model, values, has_trace=True)

    async def _run_chain(
        self, model: ModelDescription, values: list[ChainValue], *, has_trace: bool = False, is_after: bool = False
    ) -> list[ChainOutcome]:
        request = ChainRequest(secrets.token_hex(8), model.name, values, has_trace, is_after)
        return (await self._backend.run_chain(request)).values

    async def _preprocess(self, model: ModelDescription, entries: list[Entry]) -> list[Entry]:
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
        made = await self._run_chain(model, values)
        changed = list(entries)
        for (index, is_pair, _text), one in zip(texts, made, strict=True):
            value = one.value.token_ids if one.value.token_ids is not None else one.value.text
            assert value is not None, "check_chains refuses other ends"
            if is_pair and isinstance(value, str):
                changed[index] = replace(changed[index], pair=value)
            elif not is_pair:
                changed[index] = replace(changed[index], text=value)
        return changed

    async def _encode_all(self, model: ServedModel, entries: list[Entry], max_tokens: int | None) -> list[TextEncoding]:
        if len(entries) == 1 and len(entries[0].text) + len(entries[0].pair or "") <= _INLINE_CHARS:
            return _encode(model, entries, max_tokens)
        jobs = [
            self._pool.run(_encode, model, entries[start : start + _TEXTS_PER_JOB], max_tokens)
            for start in range(0, len(entries), _TEXTS_PER_JOB)
        ]
        return [encoding for job in await asyncio.gather(*jobs) for encoding in job]


def relevance(model: ModelDescription, logits: Vectors) -> list[float]:
    """A cross-encoder's scores. logits: [B, 1]."""
    values = logits[:, 0].astype(np.float64) if model.score_activation == "identity" else sigmoid(logits)[:, 0]
    return [float(value) for value in values]


def cosine(first: Vectors, second: Vectors) -> list[float]:
    """Similarity of vectors pair by pair. Both [B, D]; a zero vector is like nothing."""
    one, two = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    products = (one * two).sum(axis=1)
    return [float(value) for value in np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)]


def shorten(vectors: Vectors, dimensions: int, *, is_normalized: bool) -> Vectors:
    """The first dimensions of each vector (Matryoshka, arXiv:2205.13147), of length one again if they were."""
    short = vectors[:, :dimensions]
    if not is_normalized:
        return short
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    scaled: Vectors = np.divide(short, lengths, out=np.zeros_like(short), where=lengths > 0)
    return scaled


def _encode(model: ServedModel, entries: list[Entry], max_tokens: int | None) -> list[TextEncoding]:
    encodings = []
    for entry in entries:
        if isinstance(entry.text, list):
            token_ids = entry.text if max_tokens is None else entry.text[:max_tokens]
            encodings.append(TextEncoding(token_ids, [0] * len(token_ids)))
        else:
            encodings.append(model.tokenizer.encode_entry(entry.text, entry.pair, max_tokens=max_tokens))
    return encodings


def _check(entry: Entry, encoding: TextEncoding, model: ModelDescription) -> None:
    num_tokens = len(encoding.token_ids)
    if num_tokens == 0:
        raise RequestError(f"{entry.field} is empty; send some text", field=entry.field)
    if num_tokens > model.max_model_len:
        raise RequestError(
            f"{entry.field} has {num_tokens} tokens, the model takes {model.max_model_len}; shorten it, or send "
            '"truncate": true to have its end cut off',
            field=entry.field,
        )
    if isinstance(entry.text, list) and max(encoding.token_ids) >= model.vocab_size:
        raise RequestError(
            f"{entry.field} holds token {max(encoding.token_ids)}, but the vocabulary ends at {model.vocab_size - 1}",
            field=entry.field,
        )
