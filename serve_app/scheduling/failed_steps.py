"""What a step that gave no numbers takes with it."""

from collections.abc import Iterable, Sequence

from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.sequence import SequenceState
from serve_app.scheduling.step import Step


def lost_blocks(failed: Step, later: Iterable[Step]) -> set[int]:
    """Blocks with keys that a failed step was to fill, and those that later steps fill after what it was to write."""
    lost = {block for _owner, block in failed.keyed_blocks}
    for step in later:
        for owner, block in step.keyed_blocks:
            if owner in failed.sequences or not _holds_its_blocks(owner) or not lost.isdisjoint(owner.block_table):
                lost.add(block)
    return lost


def sequences_ended_by(failed: Step, later: Iterable[Step], lost: set[int]) -> Sequence[TokenSequence]:
    """Sequences of a failed step, and those of later ones that may read what it was to write; none has ended before."""
    readers = [
        sequence
        for step in later
        for sequence in step.sequences
        if not _holds_its_blocks(sequence) or not lost.isdisjoint(sequence.block_table)
    ]
    return [one for one in dict.fromkeys([*failed.sequences, *readers]) if not one.is_finished]


def _holds_its_blocks(sequence: TokenSequence) -> bool:
    """Whether a sequence of a step still has its blocks; where not, nobody knows whether it reads lost ones."""
    return sequence.state is SequenceState.RUNNING
