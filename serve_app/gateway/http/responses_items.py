"""The items of an answer while they grow: what begins, continues and ends each of them in a stream."""

from collections.abc import Sequence
from typing import Protocol

from serve_app.gateway.http.middleware import new_id
from serve_app.gateway.http.openai_logprobs import ChatTokenLogprob
from serve_app.gateway.http.responses_types import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputItemAdded,
    OutputItemDone,
    OutputText,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    StreamEvent,
    TextDelta,
    TextDone,
)


class GrowingItem(Protocol):
    """One item. Its events follow each other as begin, any number of pieces, end."""

    def begin(self) -> list[StreamEvent]:
        """It is there, and empty."""
        ...

    def end(self, status: ItemStatus) -> list[StreamEvent]:
        """It grows no more."""
        ...

    def item(self, status: ItemStatus) -> OutputItem:
        """All of it so far."""
        ...


class GrowingMessage:
    """The answer's text."""

    def __init__(self, index: int) -> None:
        """index: in the output."""
        self._id, self._index = new_id("msg_"), index
        self._pieces: list[str] = []
        self._logprobs: list[ChatTokenLogprob] = []

    def begin(self) -> list[StreamEvent]:
        """See GrowingItem."""
        item, part = MessageItem(self._id, "in_progress", []), OutputText("")
        return [
            OutputItemAdded(output_index=self._index, item=item),
            ContentPartAdded(item_id=self._id, output_index=self._index, part=part),
        ]

    def add(self, text: str, logprobs: Sequence[ChatTokenLogprob]) -> StreamEvent:
        """One more piece."""
        self._logprobs += logprobs
        self.add_plain(text)
        return self.piece(text, logprobs)

    def add_plain(self, text: str) -> None:
        """One more piece, whose event is encoded already."""
        self._pieces.append(text)

    def piece(self, text: str, logprobs: Sequence[ChatTokenLogprob] = ()) -> StreamEvent:
        """The event of a piece."""
        return TextDelta(item_id=self._id, output_index=self._index, delta=text, logprobs=list(logprobs))

    def end(self, status: ItemStatus) -> list[StreamEvent]:
        """See GrowingItem."""
        part = self._part()
        done = TextDone(item_id=self._id, output_index=self._index, text=part.text, logprobs=part.logprobs)
        return [
            done,
            ContentPartDone(item_id=self._id, output_index=self._index, part=part),
            OutputItemDone(output_index=self._index, item=self.item(status)),
        ]

    def item(self, status: ItemStatus) -> OutputItem:
        """See GrowingItem."""
        return MessageItem(self._id, status, [self._part()])

    def _part(self) -> OutputText:
        return OutputText("".join(self._pieces), logprobs=self._logprobs)


class GrowingReasoning:
    """What stands before the answer."""

    def __init__(self, index: int) -> None:
        """index: in the output."""
        self._id, self._index = new_id("rs_"), index
        self._pieces: list[str] = []

    def begin(self) -> list[StreamEvent]:
        """See GrowingItem."""
        item, part = ReasoningItem(self._id, "in_progress", []), ReasoningText("")
        return [
            OutputItemAdded(output_index=self._index, item=item),
            ContentPartAdded(item_id=self._id, output_index=self._index, part=part),
        ]

    def add(self, text: str) -> StreamEvent:
        """One more piece."""
        self._pieces.append(text)
        return ReasoningDelta(item_id=self._id, output_index=self._index, delta=text)

    def end(self, status: ItemStatus) -> list[StreamEvent]:
        """See GrowingItem."""
        part = self._part()
        return [
            ReasoningDone(item_id=self._id, output_index=self._index, text=part.text),
            ContentPartDone(item_id=self._id, output_index=self._index, part=part),
            OutputItemDone(output_index=self._index, item=self.item(status)),
        ]

    def item(self, status: ItemStatus) -> OutputItem:
        """See GrowingItem."""
        return ReasoningItem(self._id, status, [self._part()])

    def _part(self) -> ReasoningText:
        return ReasoningText("".join(self._pieces))


class GrowingCall:
    """One call of a function."""

    def __init__(self, index: int, call_id: str, name: str) -> None:
        """index: in the output."""
        self._id, self._index = new_id("fc_"), index
        self._call_id, self._name = call_id, name
        self._pieces: list[str] = []

    def begin(self) -> list[StreamEvent]:
        """See GrowingItem."""
        return [OutputItemAdded(output_index=self._index, item=self.item("in_progress"))]

    def add(self, arguments: str) -> StreamEvent:
        """One more piece of its arguments."""
        self._pieces.append(arguments)
        return ArgumentsDelta(item_id=self._id, output_index=self._index, delta=arguments)

    def end(self, status: ItemStatus) -> list[StreamEvent]:
        """See GrowingItem."""
        arguments = "".join(self._pieces)
        return [
            ArgumentsDone(item_id=self._id, output_index=self._index, arguments=arguments, name=self._name),
            OutputItemDone(output_index=self._index, item=self.item(status)),
        ]

    def item(self, status: ItemStatus) -> OutputItem:
        """See GrowingItem."""
        return FunctionCallItem(self._id, status, self._call_id, self._name, "".join(self._pieces))
