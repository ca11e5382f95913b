"""Who runs next: owners take turns by the tokens they have had, so that a hundred requests of one delay no other.

A virtual token counter for each owner, lifted to that of the last one served when it comes back: Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from serve_app.scheduling.sequence import Sequence as TokenSequence

_MAX_IDLE_OWNERS = 1024


class FairQueue:
    """Sequences that wait: first those that were under way before, then newcomers, each owner's in order of arrival."""

    def __init__(self) -> None:
        self._resuming: deque[TokenSequence] = deque()
        self._newcomers: dict[str, deque[TokenSequence]] = {}  # by owner; none is empty
        self._num_used: dict[str, int] = {}  # tokens, by owner
        self._floor = 0  # what the owner served last had used then

    def __len__(self) -> int:
        return len(self._resuming) + sum(map(len, self._newcomers.values()))

    def __iter__(self) -> Iterator[TokenSequence]:
        yield from self._resuming
        for queue in self._newcomers.values():
            yield from queue

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not (self._resuming or self._newcomers)

    @property
    def head(self) -> TokenSequence | None:
        """The next one; None when nobody waits."""
        if self._resuming:
            return self._resuming[0]
        if not self._newcomers:
            return None
        return self._newcomers[min(self._newcomers, key=self._num_used.__getitem__)][0]

    def add(self, sequences: Sequence[TokenSequence]) -> None:
        """Newcomers, of one owner."""
        owner = sequences[0].owner
        self._queue_of(owner).extend(sequences)

    def add_resumed(self, sequences: Sequence[TokenSequence]) -> None:
        """Those that another copy has run."""
        self._resuming.extend(sequences)

    def put_back(self, sequence: TokenSequence) -> None:
        """One that was pre-empted: it comes before all."""
        self._resuming.appendleft(sequence)

    def stand_back(self, sequence: TokenSequence) -> None:
        """One that has made way for the head: it comes before those of its own, and after the head in any case."""
        head = self.head
        self._queue_of(sequence.owner).appendleft(sequence)
        if head is not None:
            others = self._num_used.get(head.owner, 0)
            self._num_used[sequence.owner] = max(self._num_used[sequence.owner], others)

    def take(self) -> TokenSequence:
        """Remove the head and give it."""
        sequence = self.head
        assert sequence is not None
        if not self._resuming:
            self._floor = max(self._floor, self._num_used[sequence.owner])
        self.remove(sequence)
        return sequence

    def remove(self, sequence: TokenSequence) -> None:
        """One that waits, and has been given up."""
        if sequence in self._resuming:
            self._resuming.remove(sequence)
            return
        queue = self._newcomers[sequence.owner]
        queue.remove(sequence)
        if not queue:
            del self._newcomers[sequence.owner]

    def charge(self, owner: str, num_tokens: int) -> None:
        """Tokens that were computed for an owner."""
        self._num_used[owner] = self._num_used.get(owner, self._floor) + num_tokens
        if len(self._num_used) > len(self._newcomers) + _MAX_IDLE_OWNERS:
            self._forget_idle()

    def is_only(self, owner: str) -> bool:
        """Whether nobody else waits."""
        num_owners = len(self._newcomers)
        is_of_newcomers = num_owners == 0 or (num_owners == 1 and owner in self._newcomers)
        return is_of_newcomers and all(one.owner == owner for one in self._resuming)

    def tokens_had(self, owner: str) -> int:
        """How many tokens count as an owner's."""
        return self._num_used.get(owner, self._floor)

    def ahead_of(self, owner: str) -> list[TokenSequence]:
        """Those that are served before a newcomer of this owner, when each is charged for its prompt."""
        own = self._newcomers.get(owner, ())
        turn = max(self._num_used.get(owner, 0), self._floor) + sum(one.num_prompt_tokens for one in own)
        ahead = [*self._resuming, *own]
        for other, queue in self._newcomers.items():
            num_used = self._num_used[other]
            for sequence in queue if other != owner else ():
                if num_used > turn:
                    break
                ahead.append(sequence)
                num_used += sequence.num_prompt_tokens
        return ahead

    def _queue_of(self, owner: str) -> deque[TokenSequence]:
        if owner not in self._newcomers:
            self._newcomers[owner] = deque()
            self._num_used[owner] = max(self._num_used.get(owner, 0), self._floor)
        return self._newcomers[owner]

    def _forget_idle(self) -> None:
        """Those that have had the most are remembered; of the others one more comes back as a new one does."""
        idle = [owner for owner in self._num_used if owner not in self._newcomers]
        idle.sort(key=self._num_used.__getitem__)
        for owner in idle[: _MAX_IDLE_OWNERS // 2]:
            del self._num_used[owner]
