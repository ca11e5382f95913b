"""Takes a growing answer apart: reasoning at its beginning, content, calls of tools.

Nothing of the text is lost but marks, what stands between the parts of a call, and blanks beside a mark: what looks
like a call and is none is content.
"""

from collections.abc import Collection
from dataclasses import dataclass

from serve_app.preprocessing.answers.calls_sink import CallsSink, OfferedTools
from serve_app.preprocessing.answers.formats import ReasoningFormat, ToolFormat
from serve_app.preprocessing.answers.parts import AnswerParts, CallDelta
from serve_app.preprocessing.answers.text_reader import BLANKS, Reading, Stops, TextReader

_MAX_HELD_BLANKS = 1024


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the answers of one request may hold beside content."""

    tool_format: ToolFormat | None = None
    tools: OfferedTools | None = None  # beside tool_format
    reasoning: ReasoningFormat | None = None
    starts_in_reasoning: bool = False  # the prompt has begun it

    @property
    def marks(self) -> Collection[str]:
        """Texts that must be seen, though they may be special tokens, which answers do not show."""
        one, other = self.tool_format, self.reasoning
        of_tools = () if one is None else (*one.begins, one.end or "", *one.inner)
        return {*of_tools, *(() if other is None else (other.begin, other.end))} - {""}


class AnswerParser:
    """Takes one answer apart. Each text gives what has become certain with it."""

    def __init__(self, given: AnswerFormat) -> None:
        self._given = given
        self._reader = TextReader()
        self._parts = AnswerParts()
        self._content = _Trimmed()
        self._sink = None if given.tools is None else CallsSink(given.tools, self._begin_call, self._add_arguments)
        self._is_plain = False
        self._running = self._read()
        next(self._running)

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return self._sink is not None and self._sink.num_calls > 0

    @property
    def is_done(self) -> bool:
        """Whether nothing more of the answer is wanted: it has the one call that it may have."""
        return self._sink is not None and self._sink.is_full

    @property
    def is_plain(self) -> bool:
        """Whether all that comes is content as it is, so that it need not come here."""
        return self._is_plain

    def feed(self, text: str) -> AnswerParts:
        """What one more text gives."""
        if self._is_plain:
            return AnswerParts(text)
        if text and not self.is_done:
            self._reader.text += text
            next(self._running, None)
        return self._take()

    def flush(self) -> AnswerParts:
        """What is left at the end."""
        if not self.is_done:
            self._reader.is_ended = True
            next(self._running, None)
            self._parts.content += self._content.flush()
        return self._take()

    def _begin_call(self, delta: CallDelta) -> None:
        self._content.forget()
        self._parts.add_call(delta)

    def _add_arguments(self, index: int, text: str) -> None:
        self._parts.add_arguments(index, text)

    def _take(self) -> AnswerParts:
        parts, self._parts = self._parts, AnswerParts()
        return parts

    def _read(self) -> Reading[None]:
        yield  # it is made before there is a text
        if self._given.reasoning is not None:
            yield from self._read_reasoning(self._given.reasoning)
        if self._given.tool_format is None or self._sink is None:
            yield from self._read_plain()
            return
        yield from self._read_with_calls(self._given.tool_format, self._sink)

    def _read_reasoning(self, marks: ReasoningFormat) -> Reading[None]:
        reader = self._reader
        yield from reader.skip_blanks()
        is_begun = yield from reader.skip(marks.begin)
        if not (is_begun or self._given.starts_in_reasoning):
            reader.position = 0
            return
        yield from reader.skip_blanks()
        reader.take()
        reasoning = _Trimmed()

        def emit(text: str) -> None:
            self._parts.reasoning += reasoning.feed(text)

        end = yield from reader.read_to(Stops([marks.end]), emit)
        if not end:
            self._parts.reasoning += reasoning.flush()
        reader.position = len(end)
        yield from reader.skip_blanks()
        reader.take()

    def _read_plain(self) -> Reading[None]:
        self._is_plain = True
        self._reader.position = len(self._reader.text)
        self._parts.content += self._reader.take()
        yield

    def _read_with_calls(self, given: ToolFormat, sink: CallsSink) -> Reading[None]:
        reader = self._reader
        if given.is_bare:
            yield from self._read_bare(given, sink)
        if not given.begins and not sink.num_calls:
            yield from self._read_plain()
            return
        stops = Stops([*given.begins, *((given.end,) if given.end else ())])
        is_in_block = False  # its end is not seen yet
        while not sink.is_full and (mark := (yield from reader.read_to(stops, self._say))):
            reader.position = len(mark)
            if mark == given.end and is_in_block:
                reader.take()
                self._content.forget()
                is_in_block = False
                continue
            if mark != given.end:
                num_before = sink.num_calls
                yield from given.read(reader, sink)
                if sink.num_calls > num_before:
                    is_in_block = given.end is not None
                    continue
                reader.position = len(mark)
            self._say(reader.take())

    def _read_bare(self, given: ToolFormat, sink: CallsSink) -> Reading[None]:
        """Calls at the beginning of the answer, with or without a fence around them."""
        reader, (opening, closing) = self._reader, given.fence or ("", "")
        yield from reader.skip_blanks()
        is_fenced = bool(opening) and (yield from reader.skip(opening))
        yield from given.read(reader, sink)
        if is_fenced and sink.num_calls and not sink.is_full:
            yield from reader.skip_blanks()
            if (yield from reader.skip(closing)):
                reader.take()
        reader.position = 0

    def _say(self, text: str) -> None:
        self._parts.content += self._content.feed(text)


class _Trimmed:
    """A part of an answer, whose last blanks are held back: they are dropped where a mark follows."""

    def __init__(self) -> None:
        self._blanks = ""
        self._is_behind_mark = False

    def feed(self, text: str) -> str:
        """What may be shown now."""
        text = self._blanks + text
        num_shown = max(len(text.rstrip(BLANKS)), len(text) - _MAX_HELD_BLANKS)
        self._is_behind_mark = self._is_behind_mark and not num_shown
        self._blanks = text[num_shown:]
        return text[:num_shown]

    def forget(self) -> None:
        """A mark follows."""
        self._blanks = ""
        self._is_behind_mark = True

    def flush(self) -> str:
        """What is left at the end."""
        held, self._blanks = self._blanks, ""
        return "" if self._is_behind_mark else held
