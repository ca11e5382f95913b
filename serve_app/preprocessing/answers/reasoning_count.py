"""How many tokens of an answer are reasoning, its marks included."""

from collections.abc import Callable, Sequence

from serve_app.preprocessing.answers.parts import AnswerParts


class ReasoningCount:
    """Counts while an answer is taken apart, whether its reasoning is shown or not."""

    def __init__(self, end: str, text_of: Callable[[int], str]) -> None:
        """end: the mark behind reasoning. text_of: what a token writes."""
        self.num_tokens = 0
        self._end = end
        self._text_of = text_of
        self._waiting: list[int] = []  # nothing has come of them yet
        self._has_begun = False
        self._is_over = False

    def feed(self, token_ids: Sequence[int], parts: AnswerParts, *, is_ended: bool) -> None:
        """Take more tokens, and what has become certain with them."""
        if self._is_over:
            return
        self._waiting += token_ids
        has_more = bool(parts.content or parts.calls)
        if not (has_more or parts.reasoning or is_ended):
            return
        self._has_begun = self._has_begun or bool(parts.reasoning)
        if self._has_begun:
            self.num_tokens += self._num_until_end(has_more) if has_more or is_ended else len(self._waiting)
        self._waiting = []
        self._is_over = has_more

    def _num_until_end(self, has_more: bool) -> int:
        """Those up to the end's mark, whose text is held back until something follows it."""
        seen = ""
        for index, token_id in enumerate(self._waiting):
            seen += self._text_of(token_id)
            if self._end in seen:
                return index + 1
        return max(0, len(self._waiting) - 1) if has_more else len(self._waiting)  # its mark has begun earlier
