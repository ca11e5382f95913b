"""A step while it is put together, and afterwards the record of which sequences are in it."""

from dataclasses import dataclass, field

from serve_app.scheduling.sequence import Sequence
from serve_app.types.steps import DRAWN_BEFORE, PromptTargets, SequenceStart, StepInput


@dataclass(slots=True)
class Step:
    """The columns of a StepInput, one entry for each sequence."""

    step_id: int
    sent_s: float = 0.0  # by the clock of the scheduler's owner
    sequences: list[Sequence] = field(default_factory=list)
    starts: list[SequenceStart] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_computed: list[int] = field(default_factory=list)
    new_blocks: list[list[int]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    prompt_targets: dict[int, PromptTargets] = field(default_factory=dict)
    moved: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    keyed_blocks: list[tuple[Sequence, int]] = field(default_factory=list)  # that others may find, filled by this step

    def move(self, sequence: Sequence, copies: list[tuple[int, int]]) -> None:
        """The sequence that is put next has other blocks, with the contents of those it had."""
        self.moved.append(len(self.sequences))
        self.copies += copies
        self.keyed_blocks += [(sequence, new) for _old, new in copies]
        sequence.num_sent_blocks = 0

    def start(self, sequence: Sequence) -> None:
        """Tell the shards which sequence has taken a slot row."""
        params = sequence.params
        first = 0 if params.has_penalties else sequence.num_prompt_tokens
        has_history = params.has_penalties or params.grammar is not None
        self.starts.append(
            SequenceStart(
                slot_row=sequence.slot_row,
                choice=sequence.choice,
                params=params,
                end_token_ids=sorted(sequence.end_token_ids),
                num_outputs=sequence.num_outputs,
                history_token_ids=sequence.token_ids[first:] if has_history else [],
                num_history_prompt_tokens=sequence.num_prompt_tokens - first,
            )
        )

    def put(self, sequence: Sequence, num_tokens: int) -> None:
        """Add a sequence's next tokens; its blocks are there."""
        start, end = sequence.num_scheduled, sequence.num_scheduled + num_tokens
        is_last_chunk = end >= len(sequence.token_ids)
        if sequence.params.num_prompt_logprobs is not None:
            targets = _prompt_targets(sequence, start, end)
            if targets is not None:
                self.prompt_targets[len(self.sequences)] = targets
        self.sequences.append(sequence)
        self.num_tokens.append(num_tokens)
        self.num_computed.append(start)
        self.new_blocks.append(sequence.block_table[sequence.num_sent_blocks :])
        self.token_ids.extend(sequence.token_ids[start:end])
        if end > len(sequence.token_ids):
            self.token_ids.append(DRAWN_BEFORE)
        self.samples.append(is_last_chunk)
        sequence.num_sent_blocks = len(sequence.block_table)
        sequence.num_scheduled = end
        sequence.last_step_id = self.step_id
        sequence.num_steps_in_flight += 1
        sequence.num_draws_in_flight += is_last_chunk

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of those that take more than one."""
        return sum(count for count in self.num_tokens if count > 1)

    def end_of(self, index: int) -> int:
        """Position behind the last token that the step has taken of a sequence."""
        return self.num_computed[index] + self.num_tokens[index]

    def to_input(self) -> StepInput:
        """The step as it is sent to the shards."""
        return StepInput(
            step_id=self.step_id,
            starts=self.starts,
            slot_rows=[sequence.slot_row for sequence in self.sequences],
            num_tokens=self.num_tokens,
            num_computed=self.num_computed,
            new_blocks=self.new_blocks,
            token_ids=self.token_ids,
            samples=self.samples,
            prompt_targets=self.prompt_targets,
            moved=self.moved,
            copies=self.copies,
        )


def _prompt_targets(sequence: Sequence, start: int, end: int) -> PromptTargets | None:
    """Prompt tokens that the positions [start, end) predict and whose log-probability is still missing."""
    if sequence.params.num_prompt_logprobs is None or sequence.choice != 0:
        return None
    first = max(start, sequence.num_prompt_logprobs_sent)  # those before were sent before a pre-emption
    token_ids = sequence.token_ids[first + 1 : min(end + 1, sequence.num_prompt_tokens)]
    if not token_ids:
        return None
    sequence.num_prompt_logprobs_sent = first + len(token_ids)
    return PromptTargets(first - start, token_ids, sequence.params.num_prompt_logprobs)
