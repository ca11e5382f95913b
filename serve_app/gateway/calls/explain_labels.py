"""Explanations of classifiers and cross-encoders: which words a label's number hangs on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.backend.prompts import default_prompt
from serve_app.backend.text_models import TextEntry, Vectors
from serve_app.errors import RequestError
from serve_app.gateway.bodies.explain import ExplainBody, ModelExplanation
from serve_app.gateway.calls.explained import Explained, output_of, span_scores, unit_of
from serve_app.gateway.calls.gradient_paths import DEFAULT_STEPS, GRADIENT_STANDS, as_encoding, path_items
from serve_app.gateway.calls.hidden_words import OCCLUSION_STANDS, check_copies, choose_stand, hidden_copies, words_of
from serve_app.gateway.calls.inference import InferenceService
from serve_app.gateway.calls.models import ServedModel
from serve_app.preprocessing.model_entries import activated, check_token_ids
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.text_spans import PlacedTokens, TextSpan
from serve_app.preprocessing.tokenizer import TextEncoding
from serve_app.types.models import ModelDescription


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, or pair, as the model's steps have changed it, its tokens, and the words that get scores."""

    texts: list[str]
    tokens: PlacedTokens
    spans: list[TextSpan]


class LabelExplanations:
    """Explains numbers of models that give some for a text."""

    def __init__(self, service: InferenceService, pool: TextPool) -> None:
        self._service = service
        self._pool = pool

    async def by_occlusion(self, body: ExplainBody, model: ServedModel, label: str | int | None) -> Explained:
        """What the number of a label loses with each word: one forward over all copies. Raises RequestError."""
        given = await self._read(body, model)
        stand = choose_stand(model, body.replacement or "auto", OCCLUSION_STANDS)
        copies = await self._pool.run(hidden_copies, given.tokens, given.spans, stand)
        logits, num_tokens = await self._logits(body, model, copies)
        target = target_of(model.description, logits[0], label)
        values = numbers_of(model.description, logits, body)[:, target]
        has_baseline = bool(copies[-1].token_ids)
        scores = (values[0] - values[1 : 1 + len(given.spans)]).tolist()
        answer = ModelExplanation(
            model=model.description.name,
            method="occlusion",
            replacement=stand.name,
            target=label_name(model.description, target),
            target_index=target,
            output=output_of(body),
            value=float(values[0]),
            baseline_value=float(values[-1]) if has_baseline else None,
            convergence_delta=None,
            text=given.texts[0],
            text_pair=given.texts[1] if len(given.texts) > 1 else None,
            tokens=span_scores(given.texts, given.spans, scores),
        )
        return Explained(answer, num_tokens)

    async def by_gradients(self, body: ExplainBody, model: ServedModel, label: str | int | None) -> Explained:
        """The number of a label, spread over the words by integrated gradients. Raises RequestError."""
        given = await self._read(body, model)
        stand = choose_stand(model, body.replacement or "auto", GRADIENT_STANDS)
        logits, num_read = await self._logits(body, model, [as_encoding(given.tokens)])
        target = target_of(model.description, logits[0], label)
        path = path_items(model.description, given.tokens, given.spans, stand, target, body.steps or DEFAULT_STEPS)
        check_copies(len(path.items) * len(given.tokens.token_ids), "send a shorter one, or fewer steps")
        outputs, num_path_tokens = await self._service.run_gradients(model, path.items, body.priority)
        integral = path.integrate(outputs)
        scores = [float(integral.attributions[list(span.tokens)].sum()) for span in given.spans]
        answer = ModelExplanation(
            model=model.description.name,
            method="integrated_gradients",
            replacement=stand.name,
            target=label_name(model.description, target),
            target_index=target,
            output="logit",
            value=integral.value,
            baseline_value=integral.baseline_value,
            convergence_delta=sum(scores) - (integral.value - integral.baseline_value),
            text=given.texts[0],
            text_pair=given.texts[1] if len(given.texts) > 1 else None,
            tokens=span_scores(given.texts, given.spans, scores),
        )
        return Explained(answer, num_read + num_path_tokens)

    async def _logits(self, body: ExplainBody, model: ServedModel, copies: list[TextEncoding]) -> tuple[Vectors, int]:
        """[N, C] of all copies but an empty last one, and how many tokens went in. Raises RequestError."""
        filled = [copy for copy in copies if copy.token_ids]
        if len(filled) < max(1, len(copies) - 1) or not copies[0].token_ids:
            raise RequestError(
                "input is one word, and nothing of it is left without that; send more, or another replacement than "
                "remove",
                field="input",
            )
        check_copies(sum(len(copy.token_ids) for copy in filled))
        outputs = await self._service.run_encodings(model, filled, body.priority)
        return outputs.values, outputs.num_tokens

    async def _read(self, body: ExplainBody, model: ServedModel) -> LabelledText:
        entry = TextEntry(body.input, "input", body.text_pair, default_prompt(model.description))
        entry = await self._service.preprocessed(model, entry, body.priority)
        if not isinstance(entry.text, str):
            message = f"model={model.description.name} makes token ids of a text in its steps, which have no characters"
            raise RequestError(f"{message}; explain a model without tokenize among them", field="model")
        texts = [entry.text] if entry.pair is None else [entry.text, entry.pair]
        limit = model.description.max_model_len
        for text in texts:
            if len(text) > limit and await self._pool.run(model.tokenizer.surely_exceeds, text, limit):
                raise RequestError(f"input has more tokens than the model takes ({limit}); shorten it", field="input")
        tokens = await self._pool.run(model.tokenizer.place_entry, entry.text, entry.pair, prompt=entry.prompt)
        if len(tokens.token_ids) > limit:
            message = f"input has {len(tokens.token_ids)} tokens, the model takes {limit}; shorten it"
            raise RequestError(message, field="input")
        check_token_ids(tokens.token_ids, model.description, model.tokenizer, "input")
        return LabelledText(texts, tokens, words_of(texts, tokens, unit_of(body)))


def numbers_of(model: ModelDescription, logits: Vectors, body: ExplainBody) -> NDArray[np.float64]:
    """What is explained of logits [N, C]: themselves, or the probabilities that they mean."""
    return logits.astype(np.float64) if output_of(body) == "logit" else activated(model, logits)


def target_of(model: ModelDescription, logits: NDArray[np.float32], asked: str | int | None) -> int:
    """The index of the label that was asked for; of the most probable one. logits [C]. Raises RequestError."""
    if asked is None:
        return int(np.argmax(logits))
    if isinstance(asked, int):
        if asked < len(logits):
            return asked
        message = f"target={asked}: model={model.name} gives {len(logits)} numbers; send 0 to {len(logits) - 1}"
        raise RequestError(message, field="target")
    names = _label_names(model, len(logits))
    if asked not in names:
        raise RequestError(
            f"target={asked[:100]!r} is not a label of model={model.name}; send one of {names[:16]}, or an index",
            field="target",
        )
    return names.index(asked)


def label_name(model: ModelDescription, index: int) -> str:
    """A label as answers show it."""
    return model.labels[index] if index < len(model.labels) else f"LABEL_{index}"


def _label_names(model: ModelDescription, num_labels: int) -> Sequence[str]:
    return [label_name(model, index) for index in range(num_labels)]
