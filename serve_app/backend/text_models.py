"""What surrounds a model's call, the same for a Gateway and a Graph: steps, tokens, entries, and what numbers say."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app.backend.protocol import ModelBackend
from serve_app.backend.time_left import TimeLeft
from serve_app.errors import InternalError
from serve_app.preprocessing.arrays import to_array
from serve_app.preprocessing.model_entries import check_token_ids, label_probabilities
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import TextEncoding, Tokenizer
from serve_app.tracing.attributes import NUM_ENTRIES
from serve_app.tracing.tracing import Tracing, part
from serve_app.types.chains import ChainOutcome, ChainRequest, ChainValue, LabelScore
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, Item

_TEXTS_PER_JOB = 256  # tokenized by one thread at a time, so that others get their turn
_INLINE_CHARS = 64  # encoding this takes less than handing it to a thread

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextEntry:
    """One text, pair of texts or list of token ids, and the field of the request that it came in."""

    text: str | list[int]
    field: str
    pair: str | None = None
    prompt: str = ""  # goes before the (first) text; token ids are taken as they are
    keeps_end: bool = False  # when it is too long
    is_padded: bool = False  # filled up to the model's longest with its pad token


@dataclass(frozen=True, slots=True)
class Call:
    """The request that models are called for."""

    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    queue_timeout_s: float | None = None
    cache_salt: str = ""  # of what generators compute
    owner: str = ""
    priority: int = 0
    time_left: TimeLeft = field(default_factory=TimeLeft)
    session: str = ""  # of what generators answer


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says of entries: labels of each, or the JSON that its postprocessing makes; the other is empty."""

    labels: list[list[LabelScore]]
    json: list[str]


class TextModels:
    """Runs texts and tensors on models."""

    def __init__(self, backend: ModelBackend, pool: TextPool, tracing: Tracing | None = None) -> None:
        self.backend = backend
        self._pool = pool
        self._tracing = tracing
        self._tokenizers: dict[tuple[str, str, int], Tokenizer] = {}  # by name, directory, creation
        self._loading = asyncio.Lock()

    async def tokenizer(self, model: ModelDescription) -> Tokenizer:
        """A model's tokenizer, read once. Raises ConfigError."""
        key = (model.name, model.source_dir, model.created_s)
        if key not in self._tokenizers:
            async with self._loading:
                if key not in self._tokenizers:
                    self._tokenizers[key] = await self._pool.run(Tokenizer.load, model.source_dir)
                    self._forget_old_tokenizers(key)
        return self._tokenizers[key]

    async def encode(
        self, model: ModelDescription, tokenizer: Tokenizer, entries: Sequence[TextEntry], max_tokens: int | None = None
    ) -> list[TextEncoding]:
        """The tokens of each entry, in order; those above max_tokens are cut off. Raises RequestError."""
        with part(self._tracing, "tokenize", {NUM_ENTRIES: len(entries)}):
            return await self._encode(model, tokenizer, entries, max_tokens)

    async def _encode(
        self, model: ModelDescription, tokenizer: Tokenizer, entries: Sequence[TextEntry], max_tokens: int | None
    ) -> list[TextEncoding]:
        if len(entries) == 1 and _num_chars(entries[0]) <= _INLINE_CHARS:
            return _encode(model, tokenizer, entries, max_tokens)
        jobs = [
            self._pool.run(_encode, model, tokenizer, entries[start : start + _TEXTS_PER_JOB], max_tokens)
            for start in range(0, len(entries), _TEXTS_PER_JOB)
        ]
        return [encoding for job in await asyncio.gather(*jobs) for encoding in job]

    async def shortened(self, tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[str]:
        """The texts, each cut behind so many of its tokens."""

        def shorten(some: Sequence[str]) -> list[str]:
            return [tokenizer.shorten(text, max_tokens) for text in some]

        starts = range(0, len(texts), _TEXTS_PER_JOB)
        jobs = [self._pool.run(shorten, texts[start : start + _TEXTS_PER_JOB]) for start in starts]
        return [text for job in await asyncio.gather(*jobs) for text in job]

    async def far_too_long(
        self, tokenizer: Tokenizer, entries: Sequence[TextEntry], max_tokens: int
    ) -> TextEntry | None:
        """The first entry whose text has far more tokens than that, found without tokenizing all of it."""
        for entry in entries:
            texts = [text for text in (entry.text, entry.pair) if isinstance(text, str) and len(text) > max_tokens]
            for text in texts:
                if await self._pool.run(tokenizer.surely_exceeds, text, max_tokens):
                    return entry
        return None

    async def run_items(
        self, call: Call, model: ModelDescription, items: list[Item], *, has_gradients: bool = False
    ) -> list[Item]:
        """The model's outputs for each entry, in order; see InferRequest. Raises a RayshardError."""
        request = InferRequest(
            call.request_id,
            model.name,
            items,
            call.queue_timeout_s,
            call.priority,
            call.time_left.seconds,
            has_gradients=has_gradients,
        )
        return (await self.backend.infer(request)).outputs

    async def run_steps(
        self,
        call: Call,
        model: ModelDescription,
        values: list[ChainValue],
        *,
        has_trace: bool = False,
        is_after: bool = False,
    ) -> list[ChainOutcome]:
        """What the steps before a model, or after it, make of each value. Raises a RayshardError."""
        request = ChainRequest(call.request_id, model.name, values, has_trace, is_after)
        return (await self.backend.run_chain(request)).values

    async def answers(self, call: Call, model: ModelDescription, outputs: list[Item]) -> Answers:
        """What a model's outputs say of each entry; of a module of task predict, by its postprocessing only."""
        if not outputs:
            return Answers([], [])
        if model.postprocessing_gives is None:
            return Answers(label_probabilities(model, output_rows(model, outputs)), [])
        if model.task == "predict":
            values = [ChainValue(tensors=output) for output in outputs]
        else:
            values = [ChainValue(numbers=row) for row in output_rows(model, outputs).tolist()]
        made = [one.value for one in await self.run_steps(call, model, values, is_after=True)]
        labels = [value.labels for value in made if value.labels is not None]
        return Answers(labels, [value.json for value in made if value.json is not None])

    def _forget_old_tokenizers(self, newest: tuple[str, str, int]) -> None:
        current = {(model.name, model.source_dir, model.created_s) for model in self.backend.models()} | {newest}
        self._tokenizers = {key: tokenizer for key, tokenizer in self._tokenizers.items() if key in current}


def output_rows(model: ModelDescription, outputs: list[Item]) -> Vectors:
    """The model's one output for each entry [B, C] float32. Raises InternalError when one is not finite."""
    name = next(iter(model.outputs))
    rows = np.stack([to_array(output[name]).reshape(-1) for output in outputs]).astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        raise InternalError(f"model={model.name} gave an output that is not finite")
    return rows


def input_of(value: ChainValue) -> str | list[int]:
    """What the steps before a model hand to it: a text, or token ids."""
    if value.token_ids is not None:
        return value.token_ids
    text = value.texts[0] if value.texts is not None else value.text
    assert text is not None, "check_chains refuses other ends"
    return text


def fits(shape: tuple[int, ...], declared: tuple[int | str, ...]) -> bool:
    """Whether a tensor's shape is as declared; a name stands for any size."""
    if len(shape) != len(declared):
        return False
    return all(isinstance(size, str) or size == actual for size, actual in zip(declared, shape, strict=True))


def _encode(
    model: ModelDescription, tokenizer: Tokenizer, entries: Sequence[TextEntry], max_tokens: int | None
) -> list[TextEncoding]:
    encodings = []
    for entry in entries:
        if isinstance(entry.text, list):
            token_ids = entry.text
            if max_tokens is not None:
                token_ids = token_ids[-max_tokens:] if entry.keeps_end else token_ids[:max_tokens]
            encodings.append(TextEncoding(token_ids, [0] * len(token_ids)))
        else:
            prompt = entry.prompt or None
            encodings.append(
                tokenizer.encode_entry(
                    entry.text, entry.pair, prompt=prompt, max_tokens=max_tokens, keeps_end=entry.keeps_end
                )
            )
        if entry.is_padded:
            encodings[-1] = tokenizer.padded(encodings[-1], model.max_model_len)
        check_token_ids(encodings[-1].token_ids, model, tokenizer, entry.field)
    return encodings


def _num_chars(entry: TextEntry) -> int:
    return len(entry.text) + len(entry.pair or "") + len(entry.prompt)
