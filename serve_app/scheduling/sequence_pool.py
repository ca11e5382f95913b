"""The sequences that have not ended, and what those that run hold: blocks and a slot row each.

Every stage runs the steps in the order in which they were scheduled. So blocks and slot rows go back at once, even when
a step in flight still writes to them: the next owner's step comes later and writes before it reads.
"""

from bisect import insort
from collections.abc import Callable, Sequence

from serve_app.scheduling.block_manager import BlockManager
from serve_app.scheduling.deadlines import Deadlines
from serve_app.scheduling.grammar_waits import GrammarWaits
from serve_app.scheduling.queue_estimate import QueueRecord
from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.scheduling.sequence import SequenceState
from serve_app.scheduling.step import Step
from serve_app.scheduling.waiting_queue import WaitingQueue
from serve_app.types.generation import FinishReason
from serve_app.types.shards import EngineLimits


class SequencePool:
    """Takes each sequence from waiting to running, back when it is pre-empted, and to its end.

    awaits_grammars, on_start: see Scheduler.
    """

    def __init__(
        self, limits: EngineLimits, *, awaits_grammars: bool, on_start: Callable[[TokenSequence], None]
    ) -> None:
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of sequences that have run, whatever became of them
        self.num_cached_tokens = 0  # of those, found in the cache
        self.blocks = BlockManager(limits.num_blocks, limits.block_size)
        self.free_slot_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self.waiting = WaitingQueue()
        self.running: list[TokenSequence] = []  # by priority, then in order of admission: the last is pre-empted first
        self.grammars = GrammarWaits(self.waiting) if awaits_grammars else None
        self.record = QueueRecord()
        self.deadlines: Deadlines[TokenSequence] = Deadlines()
        self._limits = limits
        self._on_start = on_start

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot row."""
        return len(self.waiting) + (0 if self.grammars is None else len(self.grammars))

    def all(self) -> list[TokenSequence]:
        """Those that run, then those that wait."""
        return [*self.running, *self.waiting, *(self.grammars or ())]

    def add(self, sequences: Sequence[TokenSequence]) -> None:
        """Queue the sequences of one request; those of another copy go to the head of their level."""
        if self.grammars is None or not self.grammars.hold(sequences):
            if sequences[0].is_resumed:
                self.waiting.add_resumed(sequences)
            else:
                self.waiting.add(sequences)
        for sequence in sequences:
            self.deadlines.add(sequence)

    def start(self, step: Step, sequence: TokenSequence, found: list[int]) -> None:
        """Give a slot row to one that has been taken from the queue. found: blocks that hold its beginning already."""
        self.blocks.hold(sequence.block_table, found)
        sequence.num_shared_blocks = len(found)
        sequence.num_scheduled = len(found) * self._limits.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_scheduled
            self.num_cached_tokens += sequence.num_scheduled
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self.waiting.charge(sequence, sequence.num_prompt_tokens - sequence.num_cached_tokens)
            self._on_start(sequence)
        sequence.is_on_trial = sequence.is_suspect
        sequence.state = SequenceState.RUNNING
        sequence.slot_row = self.free_slot_rows.pop()
        insort(self.running, sequence, key=lambda one: one.priority)
        step.start(sequence)

    def preempt(self, sequence: TokenSequence, *, is_for_owner: bool = False) -> None:
        """Take blocks and slot row away; prompt and outputs so far are computed again later."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.state = SequenceState.WAITING
        sequence.is_on_trial = False
        sequence.num_scheduled = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if is_for_owner:
            self.waiting.stand_back(sequence)
        else:
            self.waiting.put_back(sequence)

    def finish(self, sequence: TokenSequence, reason: FinishReason) -> None:
        """End one that runs or waits; its blocks and its slot row are free at once."""
        if sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif self.grammars is None or not self.grammars.remove(sequence):
            self.waiting.remove(sequence)
        if sequence.has_run:
            self.waiting.charge(sequence, sequence.num_outputs)
        if reason in ("stop", "length"):
            self.record.take_end(sequence.num_outputs)
        self.deadlines.forget(sequence)
        if self.grammars is not None:
            self.grammars.release(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def finish_passed(self, now_s: float) -> list[TokenSequence]:
        """End those whose time has passed."""
        passed = self.deadlines.take_passed(now_s)
        for sequence in passed:
            self.finish(sequence, "abort")
        return passed

    def check(self) -> None:
        """Verify that no block and no slot row is lost; raises InternalError."""
        self.blocks.check(sequence.block_table for sequence in self.running)
        assert len(self.free_slot_rows) + len(self.running) == self._limits.max_num_seqs

    def _give_back(self, sequence: TokenSequence) -> None:
        self.blocks.release(sequence.block_table)
        self.free_slot_rows.append(sequence.slot_row)
        sequence.slot_row = -1
        sequence.num_sent_blocks = 0
        sequence.num_shared_blocks = 0
        sequence.num_blocks_to_join = 0
