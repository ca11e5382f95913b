"""Continuous batching over a paged KV cache, with up to num_stages steps in flight, or one more.

Requests join and leave between steps; long prompts are prefilled in chunks; when blocks run out the latest
sequence is pre-empted and recomputed later. (Iteration-level scheduling: Orca, OSDI 2022; paged KV cache:
vLLM, SOSP 2023; chunked prefill: Sarathi-Serve, OSDI 2024.)

Every stage runs the steps in the order in which they were scheduled. So blocks and slot rows go back at once, even when
a step in flight still writes to them: the next owner's step comes later and writes before it reads.
"""

from collections import Counter
from dataclasses import dataclass

from serve_app.errors import InternalError, QueueFullError, RequestError, UnavailableError
from serve_app.scheduling.block_manager import BlockManager, extend_keys
from serve_app.scheduling.fair_queue import FairQueue
from serve_app.scheduling.sequence import Sequence, SequenceState, sequences_of
from serve_app.scheduling.step import Step, lost_blocks
from serve_app.types.generation import FinishReason, GenerateRequest, OutputChunk
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import MAX_LOGPROB_TOKENS, StepInput, StepOutput

_BLOCKS_BETWEEN_JOINS = 16


@dataclass(slots=True)
class SequenceOutput:
    """What a step has brought to one sequence: one plain token, or a chunk that carries more."""

    sequence: Sequence
    first_index: int
    token_id: int = -1
    more: OutputChunk | None = None  # None: nothing but the token

    @property
    def chunk(self) -> OutputChunk:
        """The same as one chunk."""
        return self.more or OutputChunk(self.sequence.choice, self.first_index, [self.token_id])


class Scheduler:
    """Decides what each step computes. Has no clock, no thread and no tensor."""

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
    ) -> None:
        """overlaps_steps: a step is sent before the tokens of the one before are back; of models on one stage."""
        assert not (overlaps_steps and num_stages > 1), "a first stage does not know what the last one draws"
        self.limits = limits
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of sequences that have run, whatever became of them
        self.num_cached_tokens = 0  # of those, found in the cache
        self._has_prefix_cache = has_prefix_cache
        self._joins_blocks = joins_blocks  # so that attention reads them in place
        self._num_stages = num_stages
        self._overlaps_steps = overlaps_steps
        self._max_in_flight = num_stages + overlaps_steps
        self._max_queued = max_queued
        self._eos_token_ids = eos_token_ids
        self._blocks = BlockManager(limits.num_blocks, limits.block_size)
        self._free_slot_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._waiting = FairQueue()
        self._running: list[Sequence] = []  # in order of admission: the last one is pre-empted first
        self._making_way: Sequence | None = None  # takes part in no further step
        self._in_flight: dict[int, Step] = {}
        self._next_step_id = 0

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot row."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with a slot row."""
        return len(self._running)

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no sequence holds."""
        return self._blocks.num_free

    @property
    def num_steps_in_flight(self) -> int:
        """Steps sent whose output is not back."""
        return len(self._in_flight)

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._waiting or self._running)

    @property
    def max_request_tokens(self) -> int:
        """Prompt and output tokens that one sequence may have."""
        return min(self.limits.max_model_len, self.limits.num_blocks * self.limits.block_size)

    def add(self, request: GenerateRequest) -> list[Sequence]:
        """Queue a request; raises RequestError when it can never run, QueueFullError when too many wait.

        One that goes on from another copy has been admitted before: it goes to the head of the queue.
        """
        if request.progress is not None:
            return self._add_resumed(request)
        num_tokens = len(request.prompt_token_ids) + 1
        if num_tokens > self.max_request_tokens:
            raise RequestError(
                f"the prompt has {num_tokens - 1} tokens; with one output token at most {self.max_request_tokens} fit "
                f"(max_model_len={self.limits.max_model_len}, KV cache of "
                f"{self.limits.num_blocks * self.limits.block_size} tokens); "
                "shorten it, or raise engine.kv_cache_bytes",
                field="prompt",
            )
        if num_tokens == 1:
            raise RequestError("the prompt has no token; send at least one", field="prompt")
        if request.num_choices > self._max_queued:
            raise RequestError(
                f"n={request.num_choices} is more than engine.max_queued={self._max_queued} ever takes; ask for fewer",
                field="n",
            )
        if len(self._waiting) + request.num_choices > self._max_queued:
            raise QueueFullError(
                f"{len(self._waiting)} sequences wait and engine.max_queued={self._max_queued}; try again later",
                retry_after_s=1.0,
            )
        sequences = sequences_of(request, self._eos_token_ids)
        self._waiting.add(sequences)
        return sequences

    def _add_resumed(self, request: GenerateRequest) -> list[Sequence]:
        sequences = sequences_of(request, self._eos_token_ids)
        if max(len(sequence.token_ids) for sequence in sequences) >= self.max_request_tokens:
            raise UnavailableError(
                f"the copy that was to go on with the request holds no more than {self.max_request_tokens} tokens"
            )
        self._waiting.add_resumed(sequences)
        return sequences

    def abort(self, sequence: Sequence) -> None:
        """End a sequence now; its blocks and its slot row are free at once. Ended ones are left alone."""
        if sequence.is_finished:
            return
        if sequence.state is SequenceState.WAITING:
            self._waiting.remove(sequence)
        self._finish(sequence, "abort")

    def abort_all(self) -> None:
        """End everything: the shards are gone."""
        for sequence in [*self._running, *self._waiting]:
            self.abort(sequence)

    def schedule(self) -> StepInput | None:
        """The next step, or None when nothing can run before a step in flight is back."""
        if len(self._in_flight) >= self._max_in_flight:
            return None
        step = self._fill_step()
        if not step.sequences and not self._in_flight and self._end_trials():
            step = self._fill_step()
        if not step.sequences:
            return None
        self._next_step_id += 1
        self._in_flight[step.step_id] = step
        return step.to_input()

    def _fill_step(self) -> Step:
        step = Step(self._next_step_id)
        self._make_way()
        budget = self._continue_running(step, self.limits.max_num_batched_tokens)
        self._admit_waiting(step, budget)
        return step

    def update(self, output: StepOutput) -> list[SequenceOutput]:
        """Take a step's tokens in; gives what is new for each sequence that has not ended. Steps end in order."""
        if output.step_id != next(iter(self._in_flight), None):
            raise InternalError(f"the output of step {output.step_id} came out of turn: one was lost")
        step = self._in_flight.pop(output.step_id)
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
        ready = [sequence for sequence in self._running if self._is_ready(sequence)]
        ready.sort(key=_turn)
        for sequence in ready:
            if budget == 0 or len(step.sequences) >= max_sequences:
                break
            if sequence.state is not SequenceState.RUNNING or sequence is self._making_way:
                continue  # pre-empted by one before it, or about to be
            num_tokens = _chunk_tokens(sequence, budget)
            if sequence.is_suspect and num_tokens == sequence.num_unscheduled:
                if self._is_kept_apart(sequence):
                    continue
                sequence.is_on_trial = True
            if self._make_room(sequence, num_tokens):
                if self._joins_blocks and num_tokens == 1:
                    self._join(step, sequence)
                self._put(step, sequence, num_tokens)
                budget -= num_tokens
        return budget

    def _is_ready(self, sequence: Sequence) -> bool:
        """Whether a step may take a sequence's next token: a known one, or what the step in flight surely draws."""
        if not sequence.is_draw_in_flight:
            return sequence.num_unscheduled > 0
        return (
            self._overlaps_steps
            and sequence.num_draws_in_flight == 1
            and sequence.num_outputs + 1 < sequence.params.max_tokens
            and len(sequence.token_ids) + 1 < self.max_request_tokens
        )

    def _admit_waiting(self, step: Step, budget: int) -> None:
        while budget > 0 and (sequence := self._waiting.head) is not None:
            assert sequence.num_steps_in_flight == 0, "only what no step holds is pre-empted"
            if self._is_kept_apart(sequence):
                return
            if not self._free_slot_rows:
                return
            # Room for one more block each keeps the newcomer from being pre-empted at once.
            found = self._find_prefix(sequence)
            num_free = self._blocks.num_free - self._blocks.num_unheld(found)
            num_needed = self._blocks.num_blocks_for(len(sequence.token_ids)) - len(found) + len(self._running)
            if self._running and num_needed > num_free:
                self._ask_for_room(sequence)
                return
            num_found_tokens = len(found) * self.limits.block_size
            num_tokens = _chunk_tokens(sequence, budget, num_found_tokens)
            if self._blocks.num_blocks_for(num_found_tokens + num_tokens) - len(found) > num_free:
                return
            self._waiting.take()
            self._start(step, sequence, found)
            self._put(step, sequence, num_tokens)
            budget -= num_tokens

    def _is_kept_apart(self, sequence: Sequence) -> bool:
        """Whether a newcomer, or a suspect before its draw, must wait: a lost step shall be of one on trial."""
        return any(one.is_on_trial and one.request_id != sequence.request_id for one in self._running)

    def _end_trials(self) -> bool:
        """Let those go on that wait for one on trial, which waits for their blocks; False: there is none."""
        on_trial = [one for one in self._running if one.is_on_trial]
        for one in on_trial:
            one.is_on_trial = False
        return bool(on_trial)

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a sequence already; its last token is always computed."""
        if not self._has_prefix_cache or sequence.params.num_prompt_logprobs is not None:
            return []
        block_size = self.limits.block_size
        num_blocks = (len(sequence.token_ids) - 1) // block_size
        extend_keys(sequence.block_keys, sequence.token_ids, num_blocks, block_size, sequence.cache_salt)
        return self._blocks.find(sequence.block_keys[:num_blocks])

    def _start(self, step: Step, sequence: Sequence, found: list[int]) -> None:
        self._blocks.hold(sequence.block_table, found)
        sequence.num_shared_blocks = len(found)
        sequence.num_scheduled = len(found) * self.limits.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_scheduled
            self.num_cached_tokens += sequence.num_scheduled
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self._waiting.charge(sequence.owner, sequence.num_prompt_tokens - sequence.num_cached_tokens)
        sequence.is_on_trial = sequence.is_suspect
        sequence.state = SequenceState.RUNNING
        sequence.slot_row = self._free_slot_rows.pop()
        self._running.append(sequence)
        step.start(sequence)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Find blocks for a sequence's next tokens, pre-empting later sequences; False when it must wait a step."""
        while not self._blocks.can_grow(sequence.block_table, sequence.num_scheduled + num_tokens):
            victim = self._victim(after=sequence)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _victim(self, after: Sequence) -> Sequence | None:
        """The latest sequence that no step holds and that was admitted later than `after`.

        There always is one when no step is in flight and none is being filled, so one always goes on.
        """
        for sequence in reversed(self._running):
            if sequence is after:
                return None
            if sequence.num_steps_in_flight == 0:
                return sequence
        return None

    def _ask_for_room(self, newcomer: Sequence) -> None:
        """Let the owner with the most sequences give one up for one that has none."""
        num_running = Counter(one.owner for one in self._running)
        if self._making_way is not None or newcomer.owner in num_running:
            return
        owner, count = num_running.most_common(1)[0]
        if count > 1:
            self._making_way = next(one for one in reversed(self._running) if one.owner == owner)

    def _make_way(self) -> None:
        """Find the sequence that is to make way, and pre-empt it as soon as no step holds it."""
        newcomer = self._waiting.head
        if newcomer is not None and not self._free_slot_rows:
            self._ask_for_room(newcomer)
        sequence = self._making_way
        if sequence is None or sequence.num_steps_in_flight:
            return
        self._making_way = None
        num_running = Counter(one.owner for one in self._running)
        is_wanted = newcomer is not None and newcomer.owner not in num_running and num_running[sequence.owner] > 1
        is_first = self._running[:1] == [sequence]  # by now: the first to come always goes on
        if is_wanted and not is_first and sequence.state is SequenceState.RUNNING:
            self._preempt(sequence, is_for_another=True)

    def _preempt(self, sequence: Sequence, *, is_for_another: bool = False) -> None:
        """Take blocks and slot row away; prompt and outputs so far are computed again later."""
        self._running.remove(sequence)
        self._give_back(sequence)
        sequence.state = SequenceState.WAITING
        sequence.is_on_trial = False
        sequence.num_scheduled = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if is_for_another:
            self._waiting.stand_back(sequence)
        else:
            self._waiting.put_back(sequence)

    def _put(self, step: Step, sequence: Sequence, num_tokens: int) -> None:
        """Add a sequence's next tokens to the step, with blocks for them."""
        end = sequence.num_scheduled + num_tokens
        self._blocks.grow(sequence.block_table, end, self._most_tokens(sequence) - end)
        step.put(sequence, num_tokens)
        num_full = min(sequence.num_scheduled, len(sequence.token_ids)) // self.limits.block_size
        if self._has_prefix_cache and num_full > sequence.num_shared_blocks:
            self._share(step, sequence, num_full)

    def _join(self, step: Step, sequence: Sequence) -> None:
        """Move the blocks of a sequence that decodes into one run, where there is room; again after as many more."""
        table = sequence.block_table
        if len(table) < sequence.num_blocks_to_join:
            return
        if self._blocks.is_run(table):
            sequence.num_blocks_to_join = len(table) + 1  # not looked at again for each token
            return
        sequence.num_blocks_to_join = len(table) + _BLOCKS_BETWEEN_JOINS
        if self._blocks.num_free >= len(table) + len(self._running):
            copies = self._blocks.join(table, self._most_tokens(sequence) - sequence.num_scheduled)
            if copies:
                step.move(sequence, copies)

    def _most_tokens(self, sequence: Sequence) -> int:
        """Tokens that a sequence may come to."""
        return min(sequence.num_prompt_tokens + sequence.params.max_tokens, self.max_request_tokens)

    def _share(self, step: Step, sequence: Sequence, num_full: int) -> None:
        """Let others find the blocks that this step fills: theirs comes after it, or beside it, on every stage."""
        extend_keys(sequence.block_keys, sequence.token_ids, num_full, self.limits.block_size, sequence.cache_salt)
        for index in range(sequence.num_shared_blocks, num_full):
            self._blocks.share(sequence.block_table[index], sequence.block_keys[index])
        step.keyed_blocks += [
            (sequence, block) for block in sequence.block_table[sequence.num_shared_blocks : num_full]
        ]
        sequence.num_shared_blocks = num_full

    def _fail(self, step: Step, error: str) -> list[SequenceOutput]:
        """End all sequences of a step that gave no numbers; nobody finds the blocks that it was to fill."""
        assert self._num_stages == 1, "with several stages a later step may have read what this one did not write"
        lost = lost_blocks(step, self._in_flight.values())
        readers = [
            sequence
            for later in self._in_flight.values()
            for sequence in later.sequences
            if not lost.isdisjoint(sequence.block_table)
        ]
        self._blocks.forget(lost)
        for sequence in step.sequences:
            sequence.num_steps_in_flight -= 1
        ended = [sequence for sequence in dict.fromkeys([*step.sequences, *readers]) if not sequence.is_finished]
        return [self._end_with_error(sequence, error) for sequence in ended]

    def _take(self, sequence: Sequence, output: StepOutput, index: int, drawn: int | None) -> SequenceOutput | None:
        """Append the drawn token, if any, and end the sequence when it is its last."""
        prompt_logprobs = output.prompt_logprobs.get(index)
        first_index = sequence.num_outputs
        if drawn is None:
            if prompt_logprobs is None:
                return None
            chunk = OutputChunk(sequence.choice, first_index, [], prompt_logprobs=prompt_logprobs)
            return SequenceOutput(sequence, first_index, more=chunk)
        token_id = output.token_ids[drawn]
        if token_id < 0:
            return self._end_with_error(sequence, None)
        sequence.token_ids.append(token_id)
        sequence.is_suspect = sequence.is_on_trial = False
        stop_token_id = self._end_if_due(sequence, token_id)
        logprobs = None if output.logprobs is None else output.logprobs[drawn]
        num_cached_tokens = sequence.num_cached_tokens if first_index == 0 else 0
        is_plain = logprobs is None and prompt_logprobs is None and not num_cached_tokens
        if is_plain and sequence.finish_reason is None:
            return SequenceOutput(sequence, first_index, token_id)
        chunk = OutputChunk(
            choice=sequence.choice,
            first_index=first_index,
            token_ids=[token_id],
            logprobs=None if logprobs is None else [logprobs],
            prompt_logprobs=prompt_logprobs,
            finish_reason=sequence.finish_reason,
            stop_token_id=stop_token_id,
            num_cached_tokens=num_cached_tokens,
        )
        return SequenceOutput(sequence, first_index, token_id, chunk)

    def _end_with_error(self, sequence: Sequence, error: str | None) -> SequenceOutput:
        """End a sequence whose keys and values cannot be relied on; error: for the client."""
        self._blocks.forget(sequence.block_table)
        self._finish(sequence, "error")
        first_index = sequence.num_outputs
        chunk = OutputChunk(sequence.choice, first_index, [], finish_reason="error", error=error)
        return SequenceOutput(sequence, first_index, more=chunk)

    def _end_if_due(self, sequence: Sequence, token_id: int) -> int | None:
        """End the sequence after its last token; gives the token that stopped it, if one did."""
        if token_id in sequence.end_token_ids and sequence.num_outputs >= sequence.params.min_tokens:
            self._finish(sequence, "stop")
            return token_id
        if sequence.num_outputs >= sequence.params.max_tokens or len(sequence.token_ids) >= self.max_request_tokens:
            self._finish(sequence, "length")
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.state is SequenceState.RUNNING:
            self._running.remove(sequence)
            self._give_back(sequence)
            self._waiting.charge(sequence.owner, sequence.num_outputs)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason

    def _give_back(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        self._free_slot_rows.append(sequence.slot_row)
        sequence.slot_row = -1
        sequence.num_sent_blocks = 0
        sequence.num_shared_blocks = 0
        sequence.num_blocks_to_join = 0


def _turn(sequence: Sequence) -> tuple[bool, int]:
    """Those that decode come first, the one that has waited longest before all; prefills in order of admission."""
    is_prefilling = sequence.num_unscheduled > 1
    return is_prefilling, 0 if is_prefilling else sequence.last_step_id


def _chunk_tokens(sequence: Sequence, budget: int, num_found: int = 0) -> int:
    """Tokens of a sequence that one step may take, without `num_found` that are in the cache already."""
    if sequence.params.num_prompt_logprobs is not None:
        budget = min(budget, MAX_LOGPROB_TOKENS)
    num_tokens = (sequence.num_unscheduled or 1) - num_found  # none is left: the one that is being drawn
    start = sequence.num_scheduled + num_found
    if start < sequence.num_replayed:
        num_tokens = min(num_tokens, max(1, sequence.num_prompt_tokens - start))
    return min(num_tokens, budget)
