"""What one streamed chat gave: its texts, its longest pause, and how it ended."""

import json
from dataclasses import dataclass
from typing import Any

_DATA = "data:"
_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got for one chat."""

    texts: dict[int, str]  # by choice
    num_tokens: int | None  # as the server counts them; None: it did not say
    failure: str | None  # its kind; None: the stream came to its end
    longest_pause_s: float  # before the first event, between two, or before the end


class EventStream:
    """Joins the events of one chat; `sent_s` and all later times are of one clock."""

    def __init__(self, sent_s: float) -> None:
        self._last_event_s = sent_s
        self._longest_pause_s = 0.0
        self._texts: dict[int, str] = {}
        self._num_tokens: int | None = None
        self._error: str | None = None
        self._is_done = False

    def take(self, line: str, now_s: float) -> bool:
        """Take a line in; whether it was an event, which comments and blank lines are not."""
        if not line.startswith(_DATA):
            return False
        self._end_pause(now_s)
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            self._is_done = True
        else:
            self._take_piece(json.loads(data))
        return True

    def answer(self, now_s: float, failure: str | None = None) -> Answer:
        """What has come until the end, for which `failure` is the client's own reason."""
        self._end_pause(now_s)
        if self._error is not None:
            failure = self._error
        elif failure is None and not self._is_done:
            failure = "cut"
        return Answer(self._texts, self._num_tokens, failure, self._longest_pause_s)

    def _take_piece(self, piece: dict[str, Any]) -> None:
        if "error" in piece:
            self._error = f"error {kind_of(piece)}"
            return
        for choice in piece["choices"]:
            text = choice["delta"].get("content") or ""
            self._texts[choice["index"]] = self._texts.get(choice["index"], "") + text
        if piece.get("usage") is not None:
            self._num_tokens = piece["usage"]["completion_tokens"]

    def _end_pause(self, now_s: float) -> None:
        self._longest_pause_s = max(self._longest_pause_s, now_s - self._last_event_s)
        self._last_event_s = now_s


def kind_of(body: Any) -> str:
    """The kind that an error's body names."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("type", "of no kind")) if isinstance(error, dict) else "of no kind"
