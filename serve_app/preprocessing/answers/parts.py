"""What an answer's text is made of: reasoning, content, calls of tools."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What one call grew by: its beginning, which has an id and a name, or a piece of its arguments."""

    index: int  # of the call within its answer
    id: str | None = None
    name: str | None = None
    arguments: str = ""  # of JSON, as the model writes it
    place: int = field(default=0, compare=False)  # characters of the content that grew with it and come before it


@dataclass(slots=True)
class AnswerParts:
    """What an answer grew by."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def add(self, other: "AnswerParts") -> None:
        """What it grew by after that."""
        self.calls += [replace(call, place=len(self.content) + call.place) for call in other.calls]
        self.content += other.content
        self.reasoning += other.reasoning

    def add_call(self, call: CallDelta) -> None:
        """The beginning of a call, behind the content so far."""
        self.calls.append(replace(call, place=len(self.content)))

    def add_arguments(self, index: int, text: str) -> None:
        """One more piece of a call's arguments; pieces that follow each other are one."""
        last = self.calls[-1] if self.calls else None
        if last is not None and last.index == index and last.name is None:
            self.calls[-1] = replace(last, arguments=last.arguments + text)
        elif text:
            self.calls.append(CallDelta(index, arguments=text, place=len(self.content)))

    def in_order(self) -> Iterator[str | CallDelta]:
        """Content and calls as the model wrote them, one after the other."""
        shown = 0
        for call in self.calls:
            if call.place > shown:
                yield self.content[shown : call.place]
                shown = call.place
            yield call
        if len(self.content) > shown:
            yield self.content[shown:]
