"""Continuous batching over a paged KV cache, with up to num_stages steps in flight, or one more.

Requests join and leave between steps; long prompts are prefilled in chunks; when blocks run out the latest
sequence is pre-empted and recomputed later. (Iteration-level scheduling: Orca, OSDI 2022; paged KV cache:
vLLM, SOSP 2023; chunked prefill: Sarathi-Serve, OSDI 2024.)

Every stage runs the steps in the order in which they were scheduled. So blocks and slot rows go back at once, even when
a step in flight still writes to them: the next owner's step comes later and writes before it reads.
"""

from bisect import insort
from collections.abc import Callable

from serve_app.errors import InternalError
from serve_app.scheduling.admission import most_request_tokens, refuse_full, refuse_unfit, refuse_unfit_resumed
from serve_app.scheduling.block_manager import BlockManager
from serve_app.scheduling.deadlines import Deadlines
from serve_app.scheduling.failed_steps import lost_blocks, sequences_ended_by
from serve_app.scheduling.grammar_waits import GrammarWaits
from serve_app.scheduling.making_way import MakingWay, victim_of
from serve_app.scheduling.output import NOTHING_FITS_ERROR, SequenceOutput, error_output, prompt_output, token_output
from serve_app.scheduling.queue_estimate import Places, QueueRecord, refuse_late
from serve_app.scheduling.sequence import Sequence, SequenceState, sequences_of
from serve_app.scheduling.sequence_blocks import SequenceBlocks
from serve_app.scheduling.step import Step
from serve_app.scheduling.trials import end_trials, is_kept_apart
from serve_app.scheduling.turns import chunk_tokens, in_turn
from serve_app.scheduling.waiting_queue import WaitingQueue
from serve_app.types.generation import FinishReason, GenerateRequest
from serve_app.types.models import WaitsFor
from serve_app.types.plans import SeenRates
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import NOTHING_FITS, StepInput, StepOutput


class Scheduler:
    """Decides what each step computes. Has no clock, no thread and no tensor.

    now_s, wherever it is asked for: of a clock that never goes back. Without it no time is measured, and none passes.
    """

    def __init__(
        self,
        limits: EngineLimits,
        *,
        num_stages: int,
        max_queued: int,
        eos_token_ids: frozenset[int] = frozenset(),
        has_prefix_cache: bool = True,
        joins_blocks: bool = False,
        overlaps_steps: bool = False,
        awaits_grammars: bool = False,
        on_start: Callable[[Sequence], None] = lambda _sequence: None,
    ) -> None:
        """overlaps_steps: a step is sent before the tokens of the one before are back; of models on one stage.

        awaits_grammars: sequences wait outside the batch until `grammars` is told that theirs are compiled. Without it
        a shard compiles them in the step that needs them.
        on_start: told of each sequence that is in a step for the first time.
        """
        assert not (overlaps_steps and num_stages > 1), "a first stage does not know what the last one draws"
        self.limits = limits
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of sequences that have run, whatever became of them
        self.num_cached_tokens = 0  # of those, found in the cache
        self.num_step_tokens = 0  # that steps have computed, prompts and outputs
        self._num_stages = num_stages
        self._overlaps_steps = overlaps_steps
        self._max_in_flight = num_stages + overlaps_steps
        self._max_queued = max_queued
        self._on_start = on_start
        self._eos_token_ids = eos_token_ids
        self._blocks = BlockManager(limits.num_blocks, limits.block_size)
        self._tables = SequenceBlocks(
            self._blocks, limits.block_size, has_prefix_cache=has_prefix_cache, joins_blocks=joins_blocks
        )
        self._free_slot_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._waiting = WaitingQueue()
        self.grammars = GrammarWaits(self._waiting) if awaits_grammars else None
        self._deadlines: Deadlines[Sequence] = Deadlines()
        self._record = QueueRecord()
        self.last_step_s = 0.0  # from its sending to its output, of the step that was taken in last
        self._has_block_shortage = False  # whether the head of the queue waits for blocks
        self._running: list[Sequence] = []  # by priority, then in order of admission: the last is pre-empted first
        self._making_way = MakingWay(self._waiting, self._running)
        self._in_flight: dict[int, Step] = {}
        self._next_step_id = 0

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot row."""
        return len(self._waiting) + (0 if self.grammars is None else len(self.grammars))

    @property
    def num_running(self) -> int:
        """Sequences with a slot row."""
        return len(self._running)

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no sequence holds."""
        return self._blocks.num_free

    @property
    def waits_for(self) -> WaitsFor:
        """What the head of the queue needs before it starts: a place among max_num_seqs, blocks, or but the next step.

        `grammar`: all that wait do so for theirs to be compiled.
        `trial`: a request that a step was lost with runs alone until it is known whether it was that.
        """
        head = self._waiting.head
        if head is None:
            return "grammar" if self.num_waiting else ""
        if is_kept_apart(head, self._running):
            return "trial"
        if not self._free_slot_rows:
            return "sequences"
        return "kv_cache" if self._has_block_shortage else "step"

    @property
    def num_steps_in_flight(self) -> int:
        """Steps sent whose output is not back."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self.num_waiting or self._running)

    @property
    def max_request_tokens(self) -> int:
        """Prompt and output tokens that one sequence may have."""
        return most_request_tokens(self.limits)

    def add(self, request: GenerateRequest, now_s: float = 0.0) -> list[Sequence]:
        """Queue a request.

        Raises RequestError when it can never run, QueueFullError when too many wait or its time would pass before its
        turn. One that goes on from another copy has been admitted before: it goes to the head of its level.
        """
        if request.progress is None:
            refuse_unfit(request, self.limits, self._max_queued)
            refuse_full(request, self.num_waiting, self._max_queued)
            if request.time_left_s is not None:
                refuse_late(self.estimated_wait_s(request.owner, request.priority), request.time_left_s)
        deadline_s = None if request.time_left_s is None else now_s + request.time_left_s
        sequences = sequences_of(request, self._eos_token_ids, deadline_s)
        if request.progress is not None:
            refuse_unfit_resumed(sequences, self.limits)
        self._queue(sequences)
        for sequence in sequences:
            self._deadlines.add(sequence)
        return sequences

    def _queue(self, sequences: list[Sequence]) -> None:
        if self.grammars is not None and self.grammars.hold(sequences):
            return
        if sequences[0].is_resumed:
            self._waiting.add_resumed(sequences)
        else:
            self._waiting.add(sequences)

    def estimated_wait_s(self, owner: str, priority: int) -> float:
        """Seconds until a newcomer starts, at least; 0 before anything was measured."""
        return self._record.wait_s(self._waiting, self._running, self._places(), owner, priority)

    def estimated_backlog_s(self) -> float:
        """Seconds until one behind all that waits would start, at least; 0 before anything was measured."""
        return self._record.backlog_s(self._waiting, self._running, self._places())

    def expire(self, now_s: float) -> list[Sequence]:
        """End those whose time has passed: no further step has them. Their callers know the time, too."""
        passed = self._deadlines.take_passed(now_s)
        for sequence in passed:
            self.abort(sequence)
        return passed

    @property
    def seen_rates(self) -> SeenRates:
        """Tokens each second, of late."""
        return self._record.steps.seen

    def abort(self, sequence: Sequence) -> None:
        """End a sequence now; its blocks and its slot row are free at once. Ended ones are left alone."""
        if not sequence.is_finished:
            self._finish(sequence, "abort")

    def abort_all(self) -> None:
        """End everything: the shards are gone."""
        for sequence in [*self._running, *self._waiting, *(self.grammars or ())]:
            self.abort(sequence)

    def schedule(self, now_s: float = 0.0) -> StepInput | None:
        """The next step, or None when nothing can run before a step in flight is back."""
        self.expire(now_s)
        if len(self._in_flight) >= self._max_in_flight:
            return None
        step = self._fill_step()
        if not step.sequences and not self._in_flight and end_trials(self._running):
            step = self._fill_step()
        if not step.sequences:
            return None
        self._next_step_id += 1
        self.num_step_tokens += sum(step.num_tokens)
        self._in_flight[step.step_id] = step
        step.sent_s = now_s
        return step.to_input()

    def _places(self) -> Places:
        num_free = 0 if self._has_block_shortage else len(self._free_slot_rows)
        return Places(num_free, self._num_stages, self.limits.max_num_batched_tokens)

    def _fill_step(self) -> Step:
        step = Step(self._next_step_id)
        self._make_way()
        budget = self._continue_running(step, self.limits.max_num_batched_tokens)
        self._admit_waiting(step, budget)
        return step

    def update(self, output: StepOutput, now_s: float = 0.0) -> list[SequenceOutput]:
        """Take a step's tokens in; gives what is new for each sequence that has not ended. Steps end in order."""
        if output.step_id != next(iter(self._in_flight), None):
            raise InternalError(f"the output of step {output.step_id} came out of turn: one was lost")
        step = self._in_flight.pop(output.step_id)
        self.last_step_s = now_s - step.sent_s
        self._record.steps.take(step.sent_s, now_s, step.num_prompt_tokens, len(step.sequences))
        if output.error is not None:
            return self._fail(step, output.error)
        news: list[SequenceOutput] = []
        num_drawn = 0
        for index, sequence in enumerate(step.sequences):
            sequence.num_steps_in_flight -= 1
            drawn = num_drawn if step.samples[index] else None
            num_drawn += step.samples[index]
            if sequence.is_finished:
                continue  # aborted while the step ran
            if drawn is not None:
                sequence.num_draws_in_flight -= 1
            elif sequence.is_on_trial and step.end_of(index) >= sequence.num_prompt_tokens:
                sequence.is_on_trial = sequence.is_draw_in_flight
            taken = self._take(sequence, output, index, drawn)
            if taken is not None:
                news.append(taken)
        return news

    def check(self) -> None:
        """Verify that no block and no slot row is lost; raises InternalError."""
        self._blocks.check(sequence.block_table for sequence in self._running)
        assert len(self._free_slot_rows) + len(self._running) == self.limits.max_num_seqs

    def _continue_running(self, step: Step, budget: int) -> int:
        """Put running sequences into the step: first those that decode, then prefill chunks of what budget is left."""
        max_sequences = -(-len(self._running) // self._num_stages)  # spread evenly over the steps in flight
        for sequence in in_turn(self._running, self.max_request_tokens, overlaps_steps=self._overlaps_steps):
            if budget == 0 or len(step.sequences) >= max_sequences:
                break
            if sequence.state is not SequenceState.RUNNING or sequence is self._making_way.sequence:
                continue  # pre-empted by one before it, or about to be
            num_tokens = chunk_tokens(sequence, budget)
            if sequence.is_suspect and num_tokens == sequence.num_unscheduled:
                if is_kept_apart(sequence, self._running):
                    continue
                sequence.is_on_trial = True
            if self._make_room(sequence, num_tokens):
                most_tokens = self._most_tokens(sequence)
                if num_tokens == 1:
                    self._tables.join(step, sequence, most_tokens, len(self._running))
                self._tables.put(step, sequence, num_tokens, most_tokens)
                budget -= num_tokens
        return budget

    def _admit_waiting(self, step: Step, budget: int) -> None:
        self._has_block_shortage = False
        while budget > 0 and (sequence := self._waiting.head) is not None:
            if is_kept_apart(sequence, self._running):
                return
            if not self._free_slot_rows:
                return
            if sequence.num_steps_in_flight:  # it made way, and its last token is on its way
                return
            # Room for one more block each keeps the newcomer from being pre-empted at once.
            found = self._tables.find_prefix(sequence)
            num_free = self._blocks.num_free - self._blocks.num_unheld(found)
            num_needed = self._blocks.num_blocks_for(len(sequence.token_ids)) - len(found) + len(self._running)
            if self._running and num_needed > num_free:
                self._has_block_shortage = True
                self._making_way.ask()
                return
            num_found_tokens = len(found) * self.limits.block_size
            num_tokens = chunk_tokens(sequence, budget, num_found_tokens)
            if self._blocks.num_blocks_for(num_found_tokens + num_tokens) - len(found) > num_free:
                return
            self._waiting.take()
            self._start(step, sequence, found)
            self._tables.put(step, sequence, num_tokens, self._most_tokens(sequence))
            budget -= num_tokens

    def _start(self, step: Step, sequence: Sequence, found: list[int]) -> None:
        self._blocks.hold(sequence.block_table, found)
        sequence.num_shared_blocks = len(found)
        sequence.num_scheduled = len(found) * self.limits.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_scheduled
            self.num_cached_tokens += sequence.num_scheduled
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self._waiting.charge(sequence, sequence.num_prompt_tokens - sequence.num_cached_tokens)
            self._on_start(sequence)
        sequence.is_on_trial = sequence.is_suspect
        sequence.state = SequenceState.RUNNING
        sequence.slot_row = self._free_slot_rows.pop()
        insort(self._running, sequence, key=lambda one: one.priority)
        step.start(sequence)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Find blocks for a sequence's next tokens, pre-empting later sequences; False when it must wait a step."""
        while not self._blocks.can_grow(sequence.block_table, sequence.num_scheduled + num_tokens):
            victim = victim_of(sequence, self._running)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _make_way(self) -> None:
        """Pre-empt who is to make way, in steps in flight or not: what they bring is taken in while it waits."""
        if not self._free_slot_rows:
            self._making_way.ask()
        sequence = self._making_way.take()
        if sequence is not None:
            self._preempt(sequence, is_for_owner=sequence.priority == self._waiting.priority)

    def _preempt(self, sequence: Sequence, *, is_for_owner: bool = False) -> None:
        """Take blocks and slot row away; prompt and outputs so far are computed again later."""
        self._running.remove(sequence)
        self._give_back(sequence)
        sequence.state = SequenceState.WAITING
        sequence.is_on_trial = False
        sequence.num_scheduled = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if is_for_owner:
            self._waiting.stand_back(sequence)
        else:
            self._waiting.put_back(sequence)

    def _most_tokens(self, sequence: Sequence) -> int:
        """Tokens that a sequence may come to."""
        return min(sequence.num_prompt_tokens + sequence.params.max_tokens, self.max_request_tokens)

    def _fail(self, step: Step, error: str) -> list[SequenceOutput]:
        """End all sequences of a step that gave no numbers; nobody finds the blocks that it was to fill."""
        assert self._num_stages == 1, "with several stages a later step may have read what this one did not write"
        lost = lost_blocks(step, self._in_flight.values())
        ended = sequences_ended_by(step, self._in_flight.values(), lost)
        self._blocks.forget(lost)
        for sequence in step.sequences:
            sequence.num_steps_in_flight -= 1
        return [self._end_with_error(sequence, error) for sequence in ended]

    def _take(self, sequence: Sequence, output: StepOutput, index: int, drawn: int | None) -> SequenceOutput | None:
        """Append the drawn token, if any, and end the sequence when it is its last."""
        if drawn is None:
            return prompt_output(sequence, output, index)
        token_id = output.token_ids[drawn]
        if token_id == NOTHING_FITS:
            return self._end_with_error(sequence, NOTHING_FITS_ERROR, is_request_at_fault=True)
        if token_id < 0:
            return self._end_with_error(sequence, None)
        sequence.token_ids.append(token_id)
        sequence.is_suspect = sequence.is_on_trial = False
        return token_output(sequence, output, index, drawn, self._end_if_due(sequence, token_id))

    def _end_with_error(
        self, sequence: Sequence, error: str | None, *, is_request_at_fault: bool = False
    ) -> SequenceOutput:
        """End a sequence whose keys and values cannot be relied on; error: for the client."""
        self._blocks.forget(sequence.block_table or self._blocks.find(sequence.block_keys))
        self._finish(sequence, "error")
        return error_output(sequence, error, is_request_at_fault=is_request_at_fault)

    def _end_if_due(self, sequence: Sequence, token_id: int) -> int | None:
        """End the sequence after its last token; gives the token that stopped it, if one did."""
        params = sequence.params  # where a grammar leaves nothing but the end, it has come before min_tokens
        is_end_allowed = sequence.num_outputs >= params.min_tokens or params.grammar is not None
        if token_id in sequence.end_token_ids and is_end_allowed:
            self._finish(sequence, "stop")
            return token_id
        if sequence.num_outputs >= sequence.params.max_tokens or len(sequence.token_ids) >= self.max_request_tokens:
            self._finish(sequence, "length")
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.state is SequenceState.RUNNING:
            self._running.remove(sequence)
            self._give_back(sequence)
        elif self.grammars is None or not self.grammars.remove(sequence):
            self._waiting.remove(sequence)
        if sequence.has_run:
            self._waiting.charge(sequence, sequence.num_outputs)
        if reason in ("stop", "length"):
            self._record.take_end(sequence.num_outputs)
        self._deadlines.forget(sequence)
        if self.grammars is not None:
            self.grammars.release(sequence)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def _give_back(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        self._free_slot_rows.append(sequence.slot_row)
        sequence.slot_row = -1
        sequence.num_sent_blocks = 0
        sequence.num_shared_blocks = 0
        sequence.num_blocks_to_join = 0
