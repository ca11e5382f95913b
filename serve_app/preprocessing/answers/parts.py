"""What an answer's text is made of: reasoning, content, calls of tools."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What one call grew by: its beginning, which has an id and a name, or a piece of its arguments."""

    index: int  # of the call within its answer
    id: str | None = None
    name: str | None = None
    arguments: str = ""  # of JSON, as the model writes it


@dataclass(slots=True)
class AnswerParts:
    """What an answer grew by."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def add(self, other: "AnswerParts") -> None:
        """What it grew by after that."""
        self.content += other.content
        self.reasoning += other.reasoning
        self.calls += other.calls

    def add_arguments(self, index: int, text: str) -> None:
        """One more piece of a call's arguments; pieces that follow each other are one."""
        last = self.calls[-1] if self.calls else None
        if last is not None and last.index == index and last.name is None:
            self.calls[-1] = CallDelta(index, arguments=last.arguments + text)
        elif text:
            self.calls.append(CallDelta(index, arguments=text))
