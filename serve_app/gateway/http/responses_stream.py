"""The Responses API's streamed answers: numbered events that name themselves, most encoded beforehand."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.errors import RayshardError
from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.http.openai_stream import event_of, json_text
from serve_app.gateway.http.responses_answer import GrowingResponse
from serve_app.gateway.http.responses_items import GrowingMessage
from serve_app.gateway.http.responses_types import (
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    StreamEvent,
)

_TEXT, _NUMBER = "@text@", b'"sequence_number":'


@dataclass(frozen=True, slots=True)
class _PlainEvent:
    """What stands around number and text in the events of one message's pieces."""

    message: GrowingMessage
    head: bytes
    middle: bytes
    tail: bytes

    @staticmethod
    def of(message: GrowingMessage) -> "_PlainEvent":
        """Cut from an encoded event."""
        head, _number, rest = _event(message.piece(_TEXT)).partition(_NUMBER + b"0")
        middle, _text, tail = rest.rpartition(json_text(_TEXT))
        return _PlainEvent(message, head + _NUMBER, middle, tail)


class ResponseEvents:
    """Events of `POST /v1/responses`: the response as asked for, what its items grow by, the response."""

    def __init__(self, response: GrowingResponse) -> None:
        self._response = response
        self._numbers = itertools.count()
        self._has_begun = False
        self._plain: _PlainEvent | None = None

    def encode(self, delta: ChoiceDelta) -> bytes:
        """The events of one more piece, after those of the beginning if it is the first."""
        message = self._response.output.feed_plain(delta)
        if message is not None:
            plain = self._plain
            if plain is None or plain.message is not message:
                plain = self._plain = _PlainEvent.of(message)
            return b"%b%d%b%b%b" % (plain.head, next(self._numbers), plain.middle, json_text(delta.text), plain.tail)
        opening: list[StreamEvent] = []
        if not self._has_begun:
            self._has_begun = True
            begun = self._response.begun
            opening = [ResponseCreated(response=begun), ResponseInProgress(response=begun)]
        return self._encoded([*opening, *self._response.output.feed(delta)])

    def end(self) -> bytes:
        """The last event."""
        kind = ResponseIncomplete if self._response.output.is_cut else ResponseCompleted
        return self._encoded([kind(response=self._response.ended())])

    def failure(self, error: RayshardError) -> bytes:
        """The last event, when there was an error."""
        return self._encoded([ResponseFailed(response=self._response.failed(error))])

    def _encoded(self, events: Iterable[StreamEvent]) -> bytes:
        pieces = []
        for event in events:
            event.sequence_number = next(self._numbers)
            pieces.append(_event(event))
        return b"".join(pieces)


def _event(event: StreamEvent) -> bytes:
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return b"event: %b\n%b" % (tag.encode(), event_of(event))
