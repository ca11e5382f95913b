"""Which tokens of an answer are reasoning, and which stand for its text."""

from collections.abc import Collection, Iterator, Sequence

from serve_app.gateway.calls.generation import ChoiceDelta, GenerationCall
from serve_app.types.generation import TokenLogprobs


class ReasoningCount:
    """Counts the tokens of an answer's reasoning and its marks."""

    def __init__(self, call: GenerationCall) -> None:
        answer_format = call.options.answer_format
        marks = None if answer_format is None else answer_format.reasoning
        self._end = "" if marks is None else marks.end
        self._text_of = call.model.tokenizer.table.text_of
        self._is_over = marks is None
        self._has_begun = False
        self.num_tokens = 0

    def feed(self, delta: ChoiceDelta) -> None:
        """Take one more piece."""
        if self._is_over:
            return
        parts = delta.parts
        has_more = bool(delta.text or (parts is not None and parts.calls))
        self._has_begun = self._has_begun or (parts is not None and bool(parts.reasoning))
        if self._has_begun:
            is_last = has_more or delta.finish_reason is not None
            self.num_tokens += self._num_until_end(delta.token_ids, has_more) if is_last else len(delta.token_ids)
        self._is_over = has_more

    def _num_until_end(self, token_ids: Sequence[int], has_more: bool) -> int:
        """Those up to the end's mark, whose text is held back until something follows it."""
        seen = ""
        for index, token_id in enumerate(token_ids):
            seen += self._text_of(token_id)
            if self._end in seen:
                return index + 1
        return max(0, len(token_ids) - 1) if has_more else len(token_ids)  # its mark has begun in an earlier piece


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
