"""What a model is given for a text, and what its numbers say: the same in a Gateway and in a graph."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import RequestError
from serve_app.preprocessing.arrays import integer_tensor, sigmoid, softmax
from serve_app.preprocessing.tokenizer import TextEncoding, Tokenizer
from serve_app.types.chains import LabelScore
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item


def text_item(encoding: TextEncoding, model: ModelDescription) -> Item:
    """The inputs of one text: its packed tokens [T] int64, and how many they are [1] int64."""
    item = {
        "input_ids": integer_tensor(encoding.token_ids),
        "lengths": integer_tensor([len(encoding.token_ids)]),
    }
    if "token_type_ids" in model.inputs:
        item["token_type_ids"] = integer_tensor(encoding.type_ids)
    if "prompt_lengths" in model.inputs:
        item["prompt_lengths"] = integer_tensor([encoding.num_prompt_tokens])
    return item


def check_token_ids(token_ids: Sequence[int], model: ModelDescription, tokenizer: Tokenizer, field: str) -> None:
    """Raises RequestError unless the model's embedding has a row for every id, whoever has made them."""
    size = model.vocab_size
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < size):
        return
    wrong = next(token_id for token_id in token_ids if not 0 <= token_id < size)
    spelling = tokenizer.token_string(wrong)
    named = f"token {spelling[:64]!r} (id {wrong})" if spelling else f"token id {wrong}"
    message = f"{field}: {named} is not in 0..{size - 1}, so it is out of vocabulary; leave it out"
    raise RequestError(message, field=field)


def activated(model: ModelDescription, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the numbers mean: probabilities, or as the model's files say the numbers themselves. logits: [B, C]."""
    if model.is_multi_label:
        return sigmoid(logits)
    kind = model.score_activation
    if logits.shape[1] > 1 and kind != "identity":
        return softmax(logits)
    if kind == "sigmoid":
        return sigmoid(logits)
    numbers = logits.astype(np.float64)
    return np.tanh(numbers) if kind == "tanh" else numbers


def label_probabilities(model: ModelDescription, logits: NDArray[np.float32]) -> list[list[LabelScore]]:
    """Each entry's labels with their probabilities, in the model's order. logits: [B, C]."""
    probabilities = activated(model, logits)
    labels = model.labels or [f"LABEL_{index}" for index in range(logits.shape[1])]
    return [[LabelScore(labels[index], score) for index, score in enumerate(row)] for row in probabilities.tolist()]


def ranked(scores: list[LabelScore]) -> list[LabelScore]:
    """The most probable label first."""
    return sorted(scores, key=lambda score: -score.score)
