"""Sequences that wait, by priority: the lowest number first, and within one the owners in turns.

No level starves: while others wait, one of so many starts is that of the one among them that has waited longest. A
share, and not an age at which all are equal: it bounds what the first ones lose, too, whatever the numbers and however
full the others are. Whoever is let past keeps the place until it ends: it is not pre-empted for those it went before.
"""

from collections.abc import Iterator, Sequence

from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.sequence import Sequence as TokenSequence

TURNS = 8  # one of so many starts is for those of later levels
_MAX_LEVELS = 16  # more are only kept while somebody waits there


class WaitingQueue:
    """A FairQueue for each priority."""

    def __init__(self) -> None:
        self._levels: dict[int, FairQueue] = {}
        self._num_waiting = 0
        self._num_arrived = 0
        self._num_passed = 0  # starts before those of later levels, since one of them started

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[TokenSequence]:
        for priority in sorted(self._levels):
            yield from self._levels[priority]

    @property
    def priority(self) -> int | None:
        """The best there is of those that wait, at which the head is served; None when nobody waits."""
        return min(self._waiting_levels(), default=None)

    @property
    def head(self) -> TokenSequence | None:
        """The next one; None when nobody waits."""
        levels = sorted(self._waiting_levels())
        if not levels:
            return None
        if len(levels) > 1 and self._num_passed >= TURNS - 1:
            heads = [head for level in levels[1:] if (head := self._levels[level].head) is not None]
            return min(heads, key=lambda one: one.arrival)
        return self._levels[levels[0]].head

    def add(self, sequences: Sequence[TokenSequence]) -> None:
        """Newcomers, of one request."""
        self._arrive(sequences)
        self._level_of(sequences[0]).add(sequences)

    def add_resumed(self, sequences: Sequence[TokenSequence]) -> None:
        """Those that another copy has run: before the newcomers of their level."""
        self._arrive(sequences)
        self._level_of(sequences[0]).add_resumed(sequences)

    def put_back(self, sequence: TokenSequence) -> None:
        """One that was pre-empted: it comes before all of its level."""
        self._num_waiting += 1
        self._level_of(sequence).put_back(sequence)

    def stand_back(self, sequence: TokenSequence) -> None:
        """One that has made way for another owner: it comes before those of its own."""
        self._num_waiting += 1
        self._level_of(sequence).stand_back(sequence)

    def take(self) -> TokenSequence:
        """Remove the head and give it."""
        sequence, levels = self.head, self._waiting_levels()
        assert sequence is not None
        self._levels[sequence.priority].take()
        self._num_waiting -= 1
        if sequence.priority > min(levels):
            sequence.priority = min(levels)
            self._num_passed = 0
        else:
            self._num_passed = self._num_passed + 1 if len(levels) > 1 else 0
        return sequence

    def remove(self, sequence: TokenSequence) -> None:
        """One that waits, and has been given up."""
        self._levels[sequence.priority].remove(sequence)
        self._num_waiting -= 1

    def charge(self, sequence: TokenSequence, num_tokens: int) -> None:
        """Tokens that were computed for a sequence's owner."""
        self._level_of(sequence).charge(sequence.owner, num_tokens)

    def is_only(self, owner: str) -> bool:
        """Whether nobody else waits."""
        return all(level.is_only(owner) for level in self._levels.values())

    def tokens_had(self, owner: str, priority: int) -> int:
        """How many tokens count as an owner's at a priority."""
        return self._levels[priority].tokens_had(owner) if priority in self._levels else 0

    def ahead_of(self, owner: str, priority: int) -> list[TokenSequence]:
        """Those that are served before a newcomer."""
        ahead = [one for level in self._waiting_levels() if level < priority for one in self._levels[level]]
        return ahead + (self._levels[priority].ahead_of(owner) if priority in self._levels else [])

    def _arrive(self, sequences: Sequence[TokenSequence]) -> None:
        self._num_waiting += len(sequences)
        for sequence in sequences:
            sequence.arrival = self._num_arrived
            self._num_arrived += 1

    def _waiting_levels(self) -> list[int]:
        return [priority for priority, level in self._levels.items() if not level.is_empty]

    def _level_of(self, sequence: TokenSequence) -> FairQueue:
        level = self._levels.get(sequence.priority)
        if level is None:
            if len(self._levels) >= _MAX_LEVELS:
                self._levels = {number: one for number, one in self._levels.items() if not one.is_empty}
            level = self._levels[sequence.priority] = FairQueue()
        return level
