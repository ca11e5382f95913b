"""Who gives up blocks and slot row: for one that runs already, or for an owner that runs nothing."""

from collections import Counter
from collections.abc import Sequence

from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.sequence import SequenceState


class MakingWay:
    """The sequence that is to give up its place as soon as no step holds it; it takes part in no further step."""

    def __init__(self) -> None:
        self.sequence: TokenSequence | None = None

    def ask(self, newcomer: TokenSequence, running: Sequence[TokenSequence]) -> None:
        """Let the owner with the most sequences give one up for one that has none."""
        num_running = Counter(one.owner for one in running)
        if self.sequence is not None or newcomer.owner in num_running:
            return
        owner, count = num_running.most_common(1)[0]
        if count > 1:
            self.sequence = next(one for one in reversed(running) if one.owner == owner)

    def take_due(self, newcomer: TokenSequence | None, running: Sequence[TokenSequence]) -> TokenSequence | None:
        """The sequence that is to be pre-empted now; None: nobody is, or a step still holds it."""
        sequence = self.sequence
        if sequence is None or sequence.num_steps_in_flight:
            return None
        self.sequence = None
        num_running = Counter(one.owner for one in running)
        is_wanted = newcomer is not None and newcomer.owner not in num_running and num_running[sequence.owner] > 1
        is_first = list(running[:1]) == [sequence]  # by now: the first to come always goes on
        is_due = is_wanted and not is_first and sequence.state is SequenceState.RUNNING
        return sequence if is_due else None


def victim_of(after: TokenSequence, running: Sequence[TokenSequence]) -> TokenSequence | None:
    """The latest sequence that no step holds and that was admitted later than `after`.

    There always is one when no step is in flight and none is being filled, so one always goes on.
    """
    for sequence in reversed(running):
        if sequence is after:
            return None
        if sequence.num_steps_in_flight == 0:
            return sequence
    return None
