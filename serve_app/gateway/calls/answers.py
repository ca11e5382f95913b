"""What classes and vectors look like in an answer, whether a model or a graph gives them."""

import math
from collections.abc import Sequence

import numpy as np

from serve_app.backend.text_models import Vectors
from serve_app.errors import RequestError
from serve_app.gateway.bodies.inference import (
    Classification,
    ClassifyBody,
    Embedding,
    EmbeddingsBody,
    LabelAnswer,
    Prediction,
)
from serve_app.gateway.calls.inference import shorten
from serve_app.gateway.calls.vector_bytes import BYTE_FORMATS, base64_of
from serve_app.preprocessing.model_entries import ranked
from serve_app.types.chains import LabelScore
from serve_app.types.models import ModelDescription

_DEFAULT_THRESHOLD = 0.5


def embeddings(vectors: Vectors, body: EmbeddingsBody) -> list[Embedding]:
    """The vectors [B, D] as the body asks for them, in base64 what is to become bytes. Raises RequestError."""
    if body.dimensions is not None:
        if vectors.size and body.dimensions > vectors.shape[1]:
            message = f"dimensions={body.dimensions} is more than the model's {vectors.shape[1]}; send at most that"
            raise RequestError(message, field="dimensions")
        is_normalized = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3))
        vectors = shorten(vectors, body.dimensions, is_normalized=is_normalized)
    if body.encoding_format == "base64" or body.encoding_format in BYTE_FORMATS:
        dtype, endianness = body.embed_dtype or "float32", body.endianness or "little"
        return [Embedding(index, base64_of(row, dtype, endianness)) for index, row in enumerate(vectors)]
    for name in ("embed_dtype", "endianness"):
        if getattr(body, name) is not None:
            raise RequestError(f"{name} is for encoding_format base64, bytes and bytes_only; leave it out", field=name)
    return [Embedding(index, row.tolist()) for index, row in enumerate(vectors)]


def check_dimensions(dimensions: int | None, model: ModelDescription) -> None:
    """Raises RequestError for a size that the model's vectors have not, or were not trained for."""
    size, sizes = model.embedding_size, model.trained_sizes
    if dimensions is None or size is None or dimensions == size:
        return
    if dimensions > size:
        message = f"dimensions={dimensions} is more than the model's {size}; send at most that"
        raise RequestError(message, field="dimensions")
    if sizes and dimensions not in sizes:
        message = (
            f"dimensions={dimensions} is none of the sizes that the model was trained for; use one of {sizes[:16]}"
        )
        raise RequestError(message, field="dimensions")


def unit_rows(rows: Vectors) -> Vectors:
    """Each row of length one, or all zeros. rows [B, D] -> [B, D]."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Vectors = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return scaled


def classifications(
    entries: Sequence[list[LabelScore]], body: ClassifyBody, *, is_multi_label: bool
) -> list[Classification]:
    """The labels of each entry, given in the model's order. Raises RequestError."""
    if body.threshold is not None and not is_multi_label:
        raise RequestError("threshold is for models of several labels; leave it out", field="threshold")
    least = (_DEFAULT_THRESHOLD if body.threshold is None else body.threshold) if is_multi_label else -math.inf
    data = []
    for index, scores in enumerate(entries):
        shown = [score for score in ranked(scores) if score.score >= least][: body.top_k]
        labels = [LabelAnswer(score.label, score.score) for score in shown]
        label = shown[0].label if shown else None
        data.append(Classification(index, label, [score.score for score in scores], len(scores), labels))
    return data


def prediction(scores: list[LabelScore], *, is_multi_label: bool, top_k: int | None) -> Prediction:
    """The labels of one entry, given in any order; there may be none."""
    order = ranked(scores)
    if not order:
        return Prediction(None, None, {})
    best = order[0]
    is_held = not is_multi_label or best.score >= _DEFAULT_THRESHOLD
    return Prediction(best.label if is_held else None, best.score, {one.label: one.score for one in order[:top_k]})
