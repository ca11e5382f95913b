"""What a step's output does to its sequences: they grow by a token, or end."""

from collections.abc import Iterable

from serve_app.scheduling.admission import most_request_tokens
from serve_app.scheduling.failed_steps import lost_blocks, sequences_ended_by
from serve_app.scheduling.output import NOTHING_FITS_ERROR, SequenceOutput, error_output, prompt_output, token_output
from serve_app.scheduling.sequence import Sequence
from serve_app.scheduling.sequence_pool import SequencePool
from serve_app.scheduling.step import Step
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import NOTHING_FITS, StepOutput


class OutputProcessor:
    """Takes outputs in, step after step."""

    def __init__(self, pool: SequencePool, limits: EngineLimits) -> None:
        self._pool = pool
        self._max_request_tokens = most_request_tokens(limits)

    def take(self, step: Step, output: StepOutput) -> list[SequenceOutput]:
        """What is new for each sequence of a step that has not ended."""
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

    def fail(self, step: Step, later: Iterable[Step], error: str) -> list[SequenceOutput]:
        """End all sequences of a step that gave no numbers; nobody finds the blocks that it was to fill.

        later: steps in flight. error: for the clients.
        """
        later = list(later)
        lost = lost_blocks(step, later)
        ended = sequences_ended_by(step, later, lost)
        self._pool.blocks.forget(lost)
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
        self._pool.blocks.forget(sequence.block_table or self._pool.blocks.find(sequence.block_keys))
        self._pool.finish(sequence, "error")
        return error_output(sequence, error, is_request_at_fault=is_request_at_fault)

    def _end_if_due(self, sequence: Sequence, token_id: int) -> int | None:
        """End the sequence after its last token; gives the token that stopped it, if one did."""
        params = sequence.params  # where a grammar leaves nothing but the end, it has come before min_tokens
        is_end_allowed = sequence.num_outputs >= params.min_tokens or params.grammar is not None
        if token_id in sequence.end_token_ids and is_end_allowed:
            self._pool.finish(sequence, "stop")
            return token_id
        if sequence.num_outputs >= params.max_tokens or len(sequence.token_ids) >= self._max_request_tokens:
            self._pool.finish(sequence, "length")
        return None
