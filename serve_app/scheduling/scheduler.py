"""Continuous batching over a paged KV cache, with up to num_stages steps in flight, or one more.

Requests join and leave between steps; long prompts are prefilled in chunks; when blocks run out the latest
sequence is pre-empted and recomputed later. (Iteration-level scheduling: Orca, OSDI 2022; paged KV cache:
vLLM, SOSP 2023; chunked prefill: Sarathi-Serve, OSDI 2024.)
"""

from collections.abc import Callable

from serve_app.errors import InternalError
from serve_app.scheduling.admission import most_request_tokens, refuse_full, refuse_unfit, refuse_unfit_resumed
from serve_app.scheduling.making_way import MakingWay, victim_of
from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.output_processor import OutputProcessor
from serve_app.scheduling.prefill_turns import PrefillTurns
from serve_app.scheduling.queue_estimate import Places, refuse_late
from serve_app.scheduling.sequence import Sequence, SequenceState, sequences_of
from serve_app.scheduling.sequence_blocks import SequenceBlocks
from serve_app.scheduling.sequence_pool import SequencePool
from serve_app.scheduling.step import Step
from serve_app.scheduling.trials import end_trials, is_kept_apart
from serve_app.scheduling.turns import chunk_tokens, in_turn
from serve_app.types.generation import GenerateRequest
from serve_app.types.models import WaitsFor
from serve_app.types.plans import SeenRates
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput


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
        max_num_prefill_tokens: int | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        has_prefix_cache: bool = True,
        joins_blocks: bool = False,
        overlaps_steps: bool = False,
        awaits_grammars: bool = False,
        on_start: Callable[[Sequence], None] = lambda _sequence: None,
    ) -> None:
        """max_num_prefill_tokens: of prompts in one step, so that no answer waits long for them; None: all of it.

        overlaps_steps: a step is sent before the tokens of the one before are back; of models on one stage.

        awaits_grammars: sequences wait outside the batch until `grammars` is told that theirs are compiled. Without it
        a shard compiles them in the step that needs them.
        on_start: told of each sequence that is in a step for the first time.
        """
        assert not (overlaps_steps and num_stages > 1), "a first stage does not know what the last one draws"
        self.limits = limits
        self.max_request_tokens = most_request_tokens(limits)  # prompt and output tokens that one sequence may have
        self.num_step_tokens = 0  # that steps have computed, prompts and outputs
        self._num_stages = num_stages
        self._overlaps_steps = overlaps_steps
        self._max_in_flight = num_stages + overlaps_steps
        self._max_queued = max_queued
        self._max_num_prefill_tokens = min(
            max_num_prefill_tokens or limits.max_num_batched_tokens, limits.max_num_batched_tokens
        )
        self._eos_token_ids = eos_token_ids
        self._pool = pool = SequencePool(limits, awaits_grammars=awaits_grammars, on_start=on_start)
        self._outputs = OutputProcessor(pool, limits)
        self.grammars = pool.grammars
        self._waiting, self._running, self._record = pool.waiting, pool.running, pool.record
        self._blocks, self._free_slot_rows = pool.blocks, pool.free_slot_rows
        self._tables = SequenceBlocks(
            pool.blocks, limits.block_size, has_prefix_cache=has_prefix_cache, joins_blocks=joins_blocks
        )
        self.last_step_s = 0.0  # from its sending to its output, of the step that was taken in last
        self._has_block_shortage = False  # whether the head of the queue waits for blocks
        self._making_way = MakingWay(pool.waiting, pool.running)
        self._prefill_turns = PrefillTurns(pool.waiting, pool.running)
        self._in_flight: dict[int, Step] = {}
        self._next_step_id = 0

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot row."""
        return self._pool.num_waiting

    @property
    def num_running(self) -> int:
        """Sequences with a slot row."""
        return len(self._running)

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no sequence holds."""
        return self._blocks.num_free

    @property
    def num_preemptions(self) -> int:
        """Times that blocks and slot row were taken from a sequence."""
        return self._pool.num_preemptions

    @property
    def num_prompt_tokens(self) -> int:
        """Of sequences that have run, whatever became of them."""
        return self._pool.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens of those that were found in the cache."""
        return self._pool.num_cached_tokens

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
        return bool(self._running or self.num_waiting)

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
        self._pool.add(sequences)
        return sequences

    def estimated_wait_s(self, owner: str, priority: int) -> float:
        """Seconds until a newcomer starts, at least; 0 before anything was measured."""
        return self._record.wait_s(self._waiting, self._running, self._places(), owner, priority)

    def estimated_backlog_s(self) -> float:
        """Seconds until one behind all that waits would start, at least; 0 before anything was measured."""
        return self._record.backlog_s(self._waiting, self._running, self._places())

    def expire(self, now_s: float) -> list[Sequence]:
        """End those whose time has passed: no further step has them. Their callers know the time, too."""
        return self._pool.finish_passed(now_s)

    @property
    def seen_rates(self) -> SeenRates:
        """Tokens each second, of late."""
        return self._record.steps.seen

    def abort(self, sequence: Sequence) -> None:
        """End a sequence now; its blocks and its slot row are free at once. Ended ones are left alone."""
        if not sequence.is_finished:
            self._pool.finish(sequence, "abort")

    def abort_all(self) -> None:
        """End everything: the shards are gone."""
        for sequence in self._pool.all():
            self.abort(sequence)

    def schedule(self, now_s: float = 0.0) -> StepInput | None:
        """The next step, or None when nothing can run before a step in flight is back."""
        if now_s >= self._pool.deadlines.earliest_s:
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
        return Places(num_free, self._num_stages, self._max_num_prefill_tokens)

    def _fill_step(self) -> Step:
        step = Step(self._next_step_id)
        if self._making_way.sequence is not None or not self._free_slot_rows:
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
            assert self._num_stages == 1, "with several stages a later step may have read what this one did not write"
            return self._outputs.fail(step, self._in_flight.values(), output.error)
        return self._outputs.take(step, output)

    def check(self) -> None:
        """Verify that no block and no slot row is lost; raises InternalError."""
        self._pool.check()

    def _continue_running(self, step: Step, budget: int) -> int:
        """Put running sequences into the step: first those that decode, then prefill chunks of what budget is left.

        Gives what is left for the prompts of others.
        """
        max_sequences = -(-len(self._running) // self._num_stages)  # spread evenly over the steps in flight
        ready = in_turn(self._running, self.max_request_tokens, overlaps_steps=self._overlaps_steps)
        is_by_owner = False
        if ready and ready[-1].num_unscheduled > 1:
            ready = self._prefill_turns.begin(ready)
            is_by_owner = self._prefill_turns.is_by_owner
        for sequence in ready:
            if budget == 0 or len(step.sequences) - len(step.starts) >= max_sequences:
                break
            if sequence.state is not SequenceState.RUNNING or sequence is self._making_way.sequence:
                continue  # pre-empted by one before it, or about to be
            if sequence.last_step_id == step.step_id:
                continue  # pre-empted by one before it, and started again by this step
            if sequence.num_unscheduled > 1:
                budget = min(budget, self._max_num_prefill_tokens)  # all that decode are in
            if is_by_owner and sequence.num_unscheduled > 1:
                budget = self._admit_waiting(step, budget, before=sequence)
                if budget == 0:
                    break
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
        return min(budget, self._max_num_prefill_tokens)

    def _admit_waiting(self, step: Step, budget: int, before: Sequence | None = None) -> int:
        """Start those that wait, with what budget is left; gives what is left then.

        before: a prefill that is under way; those that go before it are started.
        """
        self._has_block_shortage = False
        if not self._waiting:
            return budget
        while budget > 0 and (sequence := self._waiting.head) is not None:
            if before is not None and not self._prefill_turns.goes_before(sequence, before):
                break
            if is_kept_apart(sequence, self._running):
                break
            if not self._free_slot_rows:
                break
            if sequence.num_steps_in_flight:  # it made way, and its last token is on its way
                break
            # Room for one more block each keeps the newcomer from being pre-empted at once.
            found = self._tables.find_prefix(sequence)
            num_free = self._blocks.num_free - self._blocks.num_unheld(found)
            num_needed = self._blocks.num_blocks_for(len(sequence.token_ids)) - len(found) + len(self._running)
            if before is not None:
                num_needed += self._num_prefill_blocks()
            if self._running and num_needed > num_free:
                self._has_block_shortage = True
                self._making_way.ask()
                break
            num_found_tokens = len(found) * self.limits.block_size
            num_tokens = chunk_tokens(sequence, budget, num_found_tokens)
            if self._blocks.num_blocks_for(num_found_tokens + num_tokens) - len(found) > num_free:
                break
            if before is not None:
                self._prefill_turns.has_passed = True
            self._waiting.take()
            self._pool.start(step, sequence, found)
            self._tables.put(step, sequence, num_tokens, self._most_tokens(sequence))
            budget -= num_tokens
        return budget

    def _num_prefill_blocks(self) -> int:
        """Blocks that prefills under way have yet to take: without them they would pre-empt each other half done."""
        prefills = (one for one in self._running if one.num_unscheduled > 1)
        missing = (self._blocks.num_blocks_for(len(one.token_ids)) - len(one.block_table) for one in prefills)
        return sum(max(0, count) for count in missing)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Find blocks for a sequence's next tokens, pre-empting later sequences; False when it must wait a step."""
        while not self._blocks.can_grow(sequence.block_table, sequence.num_scheduled + num_tokens):
            victim = victim_of(sequence, self._running)
            if victim is None:
                return False
            self._pool.preempt(victim)
        return True

    def _make_way(self) -> None:
        """Pre-empt who is to make way, in steps in flight or not: what they bring is taken in while it waits."""
        if not self._free_slot_rows:
            self._making_way.ask()
        sequence = self._making_way.take()
        if sequence is not None:
            self._pool.preempt(sequence, is_for_owner=sequence.priority == self._waiting.priority)

    def _most_tokens(self, sequence: Sequence) -> int:
        """Tokens that a sequence may come to."""
        return min(sequence.num_prompt_tokens + sequence.params.max_tokens, self.max_request_tokens)
