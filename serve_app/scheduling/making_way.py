"""Who gives up blocks and slot row: for one that runs, for a better priority, or for an owner that runs nothing.

A newcomer comes with an owner, and with the priority that it is served at.
"""

from collections import Counter
from collections.abc import Sequence

from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.sequence import SequenceState
from serve_app.scheduling.trials import is_kept_apart
from serve_app.scheduling.waiting_queue import WaitingQueue


class MakingWay:
    """The sequence that is to give up its place before the next step is filled; it takes part in no further one."""

    def __init__(self, waiting: WaitingQueue, running: Sequence[TokenSequence]) -> None:
        self.sequence: TokenSequence | None = None
        self._waiting = waiting
        self._running = running

    def ask(self) -> None:
        """Let one give its place up for the next that waits, if one is to."""
        newcomer, priority = self._waiting.head, self._waiting.priority
        if self.sequence is not None or newcomer is None or priority is None:
            return
        if not is_kept_apart(newcomer, self._running):
            self.sequence = gives_place(self._running, newcomer.owner, priority)

    def take(self) -> TokenSequence | None:
        """The sequence that is to be pre-empted now; None: nobody is."""
        if self.sequence is None:
            return None
        sequence, newcomer, priority = self.sequence, self._waiting.head, self._waiting.priority
        self.sequence = None
        if newcomer is None or priority is None or sequence.state is not SequenceState.RUNNING:
            return None
        if is_kept_apart(newcomer, self._running):
            return None
        is_wanted = sequence.priority > priority or _is_fair(sequence, self._running, newcomer.owner, priority)
        return sequence if is_wanted else None


def gives_place(running: Sequence[TokenSequence], owner: str, priority: int) -> TokenSequence | None:
    """Who gives its place up for a newcomer: the last of those of a later priority; or, of the owner with the most
    sequences of the same one, the latest, when the newcomer's has none."""
    if not running:
        return None
    if running[-1].priority > priority:
        return running[-1]
    num_running = Counter(one.owner for one in running if one.priority == priority)
    if not num_running or owner in num_running:
        return None
    most, count = num_running.most_common(1)[0]
    if count == 1:
        return None
    return next(one for one in reversed(running) if one.owner == most and one.priority == priority)


def victim_of(after: TokenSequence, running: Sequence[TokenSequence]) -> TokenSequence | None:
    """The last sequence, by priority and admission, that no step holds and that comes after `after`.

    There always is one when no step is in flight and none is being filled, so one always goes on.
    """
    for sequence in reversed(running):
        if sequence is after:
            return None
        if sequence.num_steps_in_flight == 0:
            return sequence
    return None


def _is_fair(sequence: TokenSequence, running: Sequence[TokenSequence], owner: str, priority: int) -> bool:
    """Whether a sequence still makes way for an owner without one; the first to come always goes on."""
    num_running = Counter(one.owner for one in running if one.priority == priority)
    has_more = sequence.priority == priority and num_running[sequence.owner] > 1
    return has_more and owner not in num_running and running[0] is not sequence
