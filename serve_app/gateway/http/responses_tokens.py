"""Which tokens of an answer stand for its text."""

from collections.abc import Collection, Iterator, Sequence

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.types.generation import TokenLogprobs


def logprobs_of_text(delta: ChoiceDelta, special_token_ids: Collection[int]) -> list[TokenLogprobs]:
    """Those of the tokens that stand for a piece's text: not of marks, or of the answer's end.

    A token without a text of its own is a part of the next one's character, unless it is special.
    """
    entries = delta.logprobs or []
    if not (delta.text and entries):
        return []
    written = "".join(delta.token_texts)
    for text in (delta.text, delta.text.strip()):
        start = written.find(text)
        if text and start >= 0:
            end = start + len(text)
            return [
                entry
                for entry, place, length in _placed(entries, delta.token_texts)
                if (place < end and place + length > start)
                or (not length and start <= place <= end and entry.token_id not in special_token_ids)
            ]
    return entries


def _placed(entries: Sequence[TokenLogprobs], texts: Sequence[str]) -> Iterator[tuple[TokenLogprobs, int, int]]:
    """Each token with the place of its text among all, and the length of that."""
    place = 0
    for entry, text in zip(entries, texts, strict=True):
        yield entry, place, len(text)
        place += len(text)
