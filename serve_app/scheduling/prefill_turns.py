"""In which order prefills get a step's tokens: by whose owner has had the fewest; after such a step, as they came.

So an owner with long prompts makes no other wait until they are done, be its request under way or new; and what came
first gets on in every other step at least, whoever comes. Where all are one owner's they run in the order they came in.
"""

from collections.abc import Sequence

from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.waiting_queue import WaitingQueue


class PrefillTurns:
    """Whose turn it is, by the step before. Reads the queue and the running sequences, and changes neither."""

    def __init__(self, waiting: WaitingQueue, running: Sequence[TokenSequence]) -> None:
        self._waiting = waiting
        self._running = running
        self.has_passed = False  # whether somebody in the step has gone before what had come first
        self.is_by_owner = False  # the step at hand; False where all are one owner's, too

    def begin(self, ready: list[TokenSequence]) -> list[TokenSequence]:
        """The sequences for one more step, of which the last are prefills; those in their order in it."""
        self.is_by_owner, self.has_passed = not self.has_passed, False
        num_others = len(ready)
        while num_others and ready[num_others - 1].num_unscheduled > 1:
            num_others -= 1
        prefills, owner = ready[num_others:], ready[-1].owner
        if self._waiting.is_only(owner) and all(one.owner == owner for one in prefills):
            self.is_by_owner = False
        if not self.is_by_owner:
            return ready
        by_owner = sorted(prefills, key=self._turn)
        self.has_passed = any(one is not other for one, other in zip(prefills, by_owner, strict=True))
        return [*ready[:num_others], *by_owner]

    def goes_before(self, newcomer: TokenSequence, prefill: TokenSequence) -> bool:
        """Whether the head of the queue comes before a prefill under way; only that of an owner that runs nothing."""
        priority = self._waiting.priority
        if priority is None or any(one.owner == newcomer.owner for one in self._running):
            return False
        return (priority, self._waiting.tokens_had(newcomer.owner, priority)) < self._turn(prefill)

    def _turn(self, sequence: TokenSequence) -> tuple[int, int]:
        return sequence.priority, self._waiting.tokens_had(sequence.owner, sequence.priority)
