"""The Responses API's streamed answers: numbered events that name themselves."""

import itertools
from collections.abc import Iterable

from serve_app.errors import RayshardError
from serve_app.gateway.calls.generation import ChoiceDelta
from serve_app.gateway.http.openai_stream import event_of
from serve_app.gateway.http.responses_answer import GrowingResponse
from serve_app.gateway.http.responses_types import (
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    StreamEvent,
)


class ResponseEvents:
    """Events of `POST /v1/responses`: the response as asked for, what its items grow by, the response."""

    def __init__(self, response: GrowingResponse) -> None:
        self._response = response
        self._numbers = itertools.count()
        self._has_begun = False

    def encode(self, delta: ChoiceDelta) -> bytes:
        """The events of one more piece, after those of the beginning if it is the first."""
        opening: list[StreamEvent] = []
        if not self._has_begun:
            self._has_begun = True
            begun = self._response.begun
            opening = [ResponseCreated(response=begun), ResponseInProgress(response=begun)]
        return self._encoded([*opening, *self._response.feed(delta)])

    def end(self) -> bytes:
        """The last event."""
        kind = ResponseIncomplete if self._response.is_cut else ResponseCompleted
        return self._encoded([kind(response=self._response.ended())])

    def failure(self, error: RayshardError) -> bytes:
        """The last event, when there was an error."""
        return self._encoded([ResponseFailed(response=self._response.failed(error))])

    def _encoded(self, events: Iterable[StreamEvent]) -> bytes:
        pieces: list[bytes] = []
        for event in events:
            event.sequence_number = next(self._numbers)
            pieces += (b"event: ", _name(event), b"\n", event_of(event))
        return b"".join(pieces)


def _name(event: StreamEvent) -> bytes:
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return tag.encode()
