"""Which characters of a text a token was made of, and the words that tokens belong to."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers

Unit = Literal["word", "token"]


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """The characters (code points) [start, end) of one of a model's texts that a token was made of."""

    part: int  # 0: the text; 1: the second one of a pair
    start: int
    end: int
    word: int | None  # as the tokenizer counts words; None: it does not


@dataclass(frozen=True, slots=True)
class PlacedTokens:
    """A model's input, and where each token comes from; None: it stands in no text (special tokens, a prompt)."""

    token_ids: list[int]
    type_ids: list[int]
    places: list[TokenPlace | None]
    num_prompt_tokens: int = 0  # see TextEncoding

    def without_first(self) -> "PlacedTokens":
        """The same without its first token."""
        return PlacedTokens(self.token_ids[1:], self.type_ids[1:], self.places[1:], self.num_prompt_tokens)


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A piece of a text, without white space at its ends, and the indexes of its tokens."""

    part: int
    start: int
    end: int
    tokens: tuple[int, ...]


def placed(encoding: tokenizers.Encoding, num_prompt_chars: int, num_prompt_tokens: int) -> PlacedTokens:
    """A tokenizer's output, of which the first characters are a prompt's."""
    places: list[TokenPlace | None] = []
    columns = (encoding.special_tokens_mask, encoding.sequence_ids, encoding.offsets, encoding.word_ids)
    for is_special, sequence, (start, end), word in zip(*columns, strict=True):
        part = sequence or 0  # None where no template has put the texts together
        shift = 0 if part else num_prompt_chars
        is_outside = is_special or end <= shift
        places.append(None if is_outside else TokenPlace(part, max(0, start - shift), end - shift, word))
    return PlacedTokens(list(encoding.ids), list(encoding.type_ids), places, num_prompt_tokens)


def text_spans(texts: Sequence[str], places: Sequence[TokenPlace | None], unit: Unit) -> list[TextSpan]:
    """The words, or tokens, of texts in their order; every token with a place is in one of them.

    texts: of each part. Tokens that share a character are one span; white space goes with what stands before it. Words
    are the tokenizer's, ended at white space too; in scripts without blanks between words a token is one.
    """
    spans: list[TextSpan] = []
    blanks: list[int] = []  # tokens of white space that nothing stands before
    word: int | None = None
    for index, place in enumerate(places):
        if place is None:
            continue
        text = texts[place.part]
        start, end = _stripped(text, place.start, place.end)
        last = spans[-1] if spans and spans[-1].part == place.part else None
        if start == end:
            if last is None:
                blanks.append(index)
            else:
                spans[-1] = TextSpan(last.part, last.start, last.end, (*last.tokens, index))
            continue
        if last is not None and _is_joined(text, last, start, unit, has_same_word=word == place.word):
            spans[-1] = TextSpan(last.part, last.start, max(last.end, end), (*last.tokens, index))
        else:
            spans.append(TextSpan(place.part, start, end, (*blanks, index)))
            blanks = []
        word = place.word
    return spans


def _is_joined(text: str, last: TextSpan, start: int, unit: Unit, *, has_same_word: bool) -> bool:
    if start < last.end:
        return True
    if unit == "token" or not has_same_word or any(map(str.isspace, text[last.end : start])):
        return False
    return not (_is_unspaced(text[start]) or _is_unspaced(text[last.end - 1]))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _is_unspaced(character: str) -> bool:
    """Whether a letter belongs to a script that puts no blanks between words (Korean does)."""
    if not character.isalpha() or "\uac00" <= character <= "\ud7a3":
        return False
    return unicodedata.east_asian_width(character) in "WF" or "\u0e00" <= character <= "\u0eff"  # Thai, Lao
