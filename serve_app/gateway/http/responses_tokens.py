"""Which tokens of an answer stand for its text."""

from collections.abc import Collection, Iterator, Sequence

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.types.generation import TokenLogprobs


def logprobs_of_texts(
    delta: ChoiceDelta, texts: Sequence[str], special_token_ids: Collection[int]
) -> Iterator[list[TokenLogprobs]]:
    """For each text of a piece, in order, those of the tokens that stand for it: not of marks, or of the answer's end.

    A token without a text of its own is a part of the next one's character, unless it is special.
    """
    entries, end = delta.logprobs or [], 0
    written = "".join(delta.token_texts)
    for text in texts:
        found = next((one for one in (text, text.strip()) if one and written.find(one, end) >= 0), None)
        if found is None or not entries:
            yield entries
            continue
        start = written.find(found, end)
        end = start + len(found)
        yield [
            entry
            for entry, place, length in _placed(entries, delta.token_texts)
            if (place < end and place + length > start)
            or (not length and start <= place <= end and entry.token_id not in special_token_ids)
        ]


def _placed(entries: Sequence[TokenLogprobs], texts: Sequence[str]) -> Iterator[tuple[TokenLogprobs, int, int]]:
    """Each token with the place of its text among all, and the length of that."""
    place = 0
    for entry, text in zip(entries, texts, strict=True):
        yield entry, place, len(text)
        place += len(text)
