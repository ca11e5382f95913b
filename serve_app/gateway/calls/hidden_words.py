"""A model's input with some of its words hidden, for explanations by occlusion.

Zeiler and Fergus, arXiv:1311.2901; on words Li, Monroe and Jurafsky, arXiv:1612.08220.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from serve_app.errors import RequestError
from serve_app.gateway.bodies.explain import Replacement
from serve_app.gateway.calls.models import ServedModel
from serve_app.preprocessing.text_spans import PlacedTokens, TextSpan, Unit, text_spans
from serve_app.preprocessing.tokenizer import TextEncoding

MAX_SPANS = 512  # each is a text of its own for the model
MAX_TOKENS = 262_144  # of all these texts together
OCCLUSION_STANDS: tuple[Replacement, ...] = ("mask", "unk", "pad", "remove")  # the first that a model has

_ROLES = {"mask": "mask_token", "unk": "unk_token", "pad": "pad_token"}


@dataclass(frozen=True, slots=True)
class Stand:
    """What stands in the place of a hidden token."""

    name: str  # mask, unk, pad, zero (an embedding of zeros) or remove
    token_id: int | None  # None: zero, or remove


def choose_stand(model: ServedModel, asked: Replacement, preferred: Sequence[Replacement]) -> Stand:
    """The one that was asked for, or the first of the preferred that this model has. Raises RequestError.

    preferred: all that the method takes; one of them needs no token, and is always there.
    """
    names = preferred if asked == "auto" else (asked,)
    if asked not in ("auto", *preferred):
        message = f"replacement={asked} does not go with this method; send auto or one of {list(preferred)}"
        raise RequestError(message, field="replacement")
    for name in names:
        if name not in _ROLES:
            return Stand(name, None)
        token_id = model.tokenizer.special_id(_ROLES[name])
        if token_id is not None and token_id < model.description.vocab_size:
            return Stand(name, token_id)
    raise RequestError(
        f"replacement={asked}: model={model.description.name} has no {_ROLES[asked]}; send auto, or another",
        field="replacement",
    )


def words_of(texts: Sequence[str], tokens: PlacedTokens, unit: Unit) -> list[TextSpan]:
    """What gets a score. Raises RequestError when there is nothing, or too much."""
    spans = text_spans(texts, tokens.places, unit)
    if not spans:
        raise RequestError("input holds no word; send some text", field="input")
    if len(spans) > MAX_SPANS:
        way_out = "send a shorter one" if unit == "word" else 'send a shorter one, or "unit": "word"'
        raise RequestError(
            f"input has {len(spans)} {unit}s, at most {MAX_SPANS} are explained; {way_out}", field="input"
        )
    return spans


def hidden_copies(tokens: PlacedTokens, spans: Sequence[TextSpan], stand: Stand) -> list[TextEncoding]:
    """The input as it is, then with each span hidden, then with all of them hidden."""
    everything = [index for span in spans for index in span.tokens]
    hidden: list[Collection[int]] = [(), *(span.tokens for span in spans), everything]
    return [_hide(tokens, set(one), stand) for one in hidden]


def check_copies(num_tokens: int, way_out: str = "send a shorter one") -> None:
    """Raises RequestError when all texts that a model is to read have too many tokens."""
    if num_tokens > MAX_TOKENS:
        message = f"explaining input takes {num_tokens} tokens over all its copies, at most {MAX_TOKENS}; {way_out}"
        raise RequestError(message, field="input")


def _hide(tokens: PlacedTokens, hidden: set[int], stand: Stand) -> TextEncoding:
    columns = list(enumerate(zip(tokens.token_ids, tokens.type_ids, strict=True)))
    if stand.token_id is None:
        kept = [pair for index, pair in columns if index not in hidden]
    else:
        kept = [(stand.token_id if index in hidden else token_id, kind) for index, (token_id, kind) in columns]
    return TextEncoding([token_id for token_id, _kind in kept], [kind for _id, kind in kept], tokens.num_prompt_tokens)
