"""The output of a response while it grows: pieces of an answer become items, and events that tell of them."""

from serve_app.gateway.calls.choice import ChoiceDelta
from serve_app.gateway.calls.generation import GenerationCall
from serve_app.gateway.http.openai_logprobs import chat_logprobs
from serve_app.gateway.http.responses_items import GrowingCall, GrowingItem, GrowingMessage, GrowingReasoning
from serve_app.gateway.http.responses_tokens import logprobs_of_texts
from serve_app.gateway.http.responses_types import ItemStatus, OutputItem, StreamEvent
from serve_app.preprocessing.answers.parts import CallDelta
from serve_app.types.generation import TokenLogprobs


class GrowingOutput:
    """The items of one answer: one of them grows, those before it have ended."""

    def __init__(self, call: GenerationCall) -> None:
        self._call = call
        self._ended: list[OutputItem] = []
        self._growing: GrowingItem | None = None
        self.is_cut = False  # it ended because it may have no more tokens
        self.token_ids: list[int] = []  # of all pieces

    @property
    def items(self) -> list[OutputItem]:
        """All of them; the one that grows is incomplete."""
        return self._ended if self._growing is None else [*self._ended, self._growing.item("incomplete")]

    def feed(self, delta: ChoiceDelta) -> list[StreamEvent]:
        """What one more piece of the answer brings about."""
        events: list[StreamEvent] = []
        self.token_ids += delta.token_ids
        if delta.parts is not None and delta.parts.reasoning:
            events += self._add_reasoning(delta.parts.reasoning)
        texts = [delta.text] if delta.text else []
        pieces: list[str | CallDelta] = [*texts] if delta.parts is None else [*delta.parts.in_order()]
        special_token_ids = self._call.model.tokenizer.table.special_token_ids
        logprobs = logprobs_of_texts(delta, [one for one in pieces if isinstance(one, str)], special_token_ids)
        for piece in pieces:
            events += self._add_call(piece) if isinstance(piece, CallDelta) else self._add_text(piece, next(logprobs))
        if delta.finish_reason is not None:
            self.is_cut = delta.finish_reason == "length"
            if not self.items:  # an answer has an item, though it may say nothing
                events += self._begin(GrowingMessage(0))
            events += self._end("incomplete" if self.is_cut else "completed")
        return events

    def feed_plain(self, delta: ChoiceDelta) -> GrowingMessage | None:
        """Takes a piece that is text alone, where a message grows already: most are. None: it is for `feed`."""
        message = self._growing
        is_plain = delta.parts is None and delta.logprobs is None and delta.finish_reason is None
        if not (is_plain and isinstance(message, GrowingMessage)):
            return None
        self.token_ids += delta.token_ids
        message.add_plain(delta.text)
        return message

    def _add_reasoning(self, text: str) -> list[StreamEvent]:
        item, events = self._growing, list[StreamEvent]()
        if not isinstance(item, GrowingReasoning):
            item = GrowingReasoning(self._next_index)
            events = self._begin(item)
        return [*events, item.add(text)]

    def _add_text(self, text: str, entries: list[TokenLogprobs]) -> list[StreamEvent]:
        item, events = self._growing, list[StreamEvent]()
        if not isinstance(item, GrowingMessage):
            item = GrowingMessage(self._next_index)
            events = self._begin(item)
        logprobs = chat_logprobs(entries, self._call)
        return [*events, item.add(text, [] if logprobs is None else logprobs.content)]

    def _add_call(self, piece: CallDelta) -> list[StreamEvent]:
        item, events = self._growing, list[StreamEvent]()
        if piece.id is not None and piece.name is not None:
            item = GrowingCall(self._next_index, piece.id, piece.name)
            events = self._begin(item)
        assert isinstance(item, GrowingCall), "arguments are of the call that has begun last"
        return [*events, item.add(piece.arguments)] if piece.arguments else events

    @property
    def _next_index(self) -> int:
        return len(self._ended) + (self._growing is not None)

    def _begin(self, item: GrowingItem) -> list[StreamEvent]:
        events = [*self._end("completed"), *item.begin()]
        self._growing = item
        return events

    def _end(self, status: ItemStatus) -> list[StreamEvent]:
        item, self._growing = self._growing, None
        if item is None:
            return []
        self._ended.append(item.item(status))
        return item.end(status)
