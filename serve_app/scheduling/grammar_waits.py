"""Sequences that wait until the shard that draws has compiled their grammars; all others go on meanwhile.

What that shard keeps is decided here, so that it is the same after any history: a grammar stays there as long as a
sequence that has not ended is held to it, pre-empted ones too, and of the others the latest.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.waiting_queue import WaitingQueue
from serve_app.types.steps import GrammarChange

MAX_UNUSED = 64  # kept for requests to come


@dataclass(slots=True)
class _Grammar:
    number: int
    text: str
    is_ready: bool = False
    num_users: int = 0
    waiting: list[TokenSequence] = field(default_factory=list)


class GrammarWaits:
    """The grammars that the shards of one epoch know. Has no clock, no thread."""

    def __init__(self, queue: WaitingQueue) -> None:
        """queue: where sequences go that wait no more."""
        self._queue = queue
        self._by_text: dict[str, _Grammar] = {}
        self._by_number: dict[int, _Grammar] = {}
        self._unused: OrderedDict[int, _Grammar] = OrderedDict()  # the latest last
        self._changes: list[GrammarChange] = []
        self.has_changes = False  # that `take_changes` has not given yet
        self._num_known = 0

    def __len__(self) -> int:
        return sum(len(grammar.waiting) for grammar in self._by_number.values())

    def __iter__(self) -> Iterator[TokenSequence]:
        """Those that wait."""
        for grammar in self._by_number.values():
            yield from grammar.waiting

    def hold(self, sequences: Sequence[TokenSequence]) -> bool:
        """Take note of a request's sequences; whether they wait here. If not, their place is in the queue."""
        text = sequences[0].params.grammar
        if text is None:
            return False
        grammar = self._by_text.get(text) or self._prepare(text)
        self._unused.pop(grammar.number, None)
        grammar.num_users += len(sequences)
        if not grammar.is_ready:
            grammar.waiting += sequences
        return not grammar.is_ready

    def take_ready(self, number: int) -> None:
        """The shard has compiled a grammar, or found that it cannot: its sequences are queued, and will hear of it."""
        grammar = self._by_number.get(number)
        if grammar is None:
            return  # forgotten meanwhile
        grammar.is_ready = True
        waiting, grammar.waiting = grammar.waiting, []
        for sequence in waiting:
            if sequence.is_resumed:
                self._queue.add_resumed([sequence])
            else:
                self._queue.add([sequence])

    def remove(self, sequence: TokenSequence) -> bool:
        """Let go of one that is given up; False where it does not wait here."""
        grammar = self._grammar_of(sequence)
        if grammar is None or sequence not in grammar.waiting:
            return False
        grammar.waiting.remove(sequence)
        return True

    def release(self, sequence: TokenSequence) -> None:
        """A sequence has ended."""
        grammar = self._grammar_of(sequence)
        if grammar is None:
            return
        grammar.num_users -= 1
        if grammar.num_users:
            return
        self._unused[grammar.number] = grammar
        if len(self._unused) > MAX_UNUSED:
            number, oldest = self._unused.popitem(last=False)
            del self._by_text[oldest.text], self._by_number[number]
            self._change(GrammarChange(number, None))

    def take_changes(self) -> list[GrammarChange]:
        """What the shards are to be told, in order, before the next step."""
        changes, self._changes, self.has_changes = self._changes, [], False
        return changes

    def _prepare(self, text: str) -> _Grammar:
        grammar = _Grammar(self._num_known, text)
        self._num_known += 1
        self._by_text[text] = self._by_number[grammar.number] = grammar
        self._change(GrammarChange(grammar.number, text))
        return grammar

    def _change(self, change: GrammarChange) -> None:
        self._changes.append(change)
        self.has_changes = True

    def _grammar_of(self, sequence: TokenSequence) -> _Grammar | None:
        text = sequence.params.grammar
        return None if text is None else self._by_text.get(text)
