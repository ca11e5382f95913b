"""Texts that are filled up, for models that were trained on texts of one length."""

from dataclasses import replace

from serve_app.backend.text_models import TextEntry
from serve_app.errors import RequestError
from serve_app.gateway.calls.models import ServedModel

_MAX_TOKENS = 2**20  # of one request: a few bytes of it would make a server work for long


def padded(entries: list[TextEntry], model: ServedModel) -> list[TextEntry]:
    """The entries, to be filled up to the model's longest text. Raises RequestError."""
    if model.tokenizer.special_id("pad_token") is None:
        message = f"padding=max_length: the tokenizer of model={model.description.name} has no pad_token; leave it out"
        raise RequestError(message, field="padding")
    length = model.description.max_model_len
    if len(entries) * length > _MAX_TOKENS:
        message = (
            f"padding=max_length makes {length} tokens of each of {len(entries)} inputs; send at most "
            f"{_MAX_TOKENS // length} of them"
        )
        raise RequestError(message, field="padding")
    return [replace(entry, is_padded=True) for entry in entries]
