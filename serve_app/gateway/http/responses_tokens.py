"""Which tokens of an answer stand for its text."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.types.generation import TokenLogprobs


def logprobs_of_texts(
    delta: ChoiceDelta, texts: Sequence[str], special_token_ids: Collection[int]
) -> Iterator[list[TokenLogprobs]]:
    """For each text of a piece, in order, those of the tokens that stand for it: not of marks, or of the answer's end.

    A token without a text of its own is a part of the next one's character, unless it is special. A text that began in
    an earlier piece is not among what these tokens wrote: it has those between its neighbours. None is given out twice.
    """
    placed = list(_placed(delta.logprobs or [], delta.token_texts)) if delta.logprobs else []
    places = _places_of(texts, "".join(delta.token_texts))
    first, given = 0, set[int]()
    for number, found in enumerate(places):
        if found is None:
            end = next((later[0] for later in places[number:] if later is not None), None)
            mine = [index for index, one in enumerate(placed) if _is_between(one, first, end)]
        else:
            first = found[1]
            mine = [index for index, one in enumerate(placed) if _is_of(one, *found, special_token_ids)]
        yield [placed[index].entry for index in mine if index not in given]
        given.update(mine)


class _Placed(NamedTuple):
    """A token, the place of its text among all, and the length of that."""

    entry: TokenLogprobs
    place: int
    length: int


def _placed(entries: Sequence[TokenLogprobs], texts: Sequence[str]) -> Iterator[_Placed]:
    place = 0
    for entry, text in zip(entries, texts, strict=True):
        yield _Placed(entry, place, len(text))
        place += len(text)


def _places_of(texts: Sequence[str], written: str) -> list[tuple[int, int] | None]:
    """Where each text, with or without the spaces around it, begins and ends in what was written; None: nowhere."""
    places: list[tuple[int, int] | None] = []
    end = 0
    for text in texts:
        found = next((one for one in (text, text.strip()) if one and written.find(one, end) >= 0), None)
        if found is None:
            places.append(None)
            continue
        start = written.find(found, end)
        end = start + len(found)
        places.append((start, end))
    return places


def _is_of(one: _Placed, start: int, end: int, special_token_ids: Collection[int]) -> bool:
    if one.length:
        return one.place < end and one.place + one.length > start
    return start <= one.place <= end and one.entry.token_id not in special_token_ids


def _is_between(one: _Placed, start: int, end: int | None) -> bool:
    """end: where the next text begins; None: there is none."""
    return start <= one.place and (end is None or (one.place < end and one.place + one.length <= end))
