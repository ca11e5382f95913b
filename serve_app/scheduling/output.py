"""What a step has brought to a sequence."""

from dataclasses import dataclass

from serve_app.scheduling.sequence import Sequence
from serve_app.types.generation import OutputChunk
from serve_app.types.steps import StepOutput

NOTHING_FITS_ERROR = (
    "the answer cannot go on as its grammar wants: no token of this model writes its next character, or the grammar "
    "takes too much work there; change the schema, the pattern or the grammar"
)


@dataclass(slots=True)
class SequenceOutput:
    """One plain token, or a chunk that carries more."""

    sequence: Sequence
    first_index: int
    token_id: int = -1
    more: OutputChunk | None = None  # None: nothing but the token

    @property
    def chunk(self) -> OutputChunk:
        """The same as one chunk."""
        return self.more or OutputChunk(self.sequence.choice, self.first_index, [self.token_id])


def prompt_output(sequence: Sequence, output: StepOutput, index: int) -> SequenceOutput | None:
    """What a prefill chunk has brought: log-probabilities of the prompt, or nothing."""
    prompt_logprobs = output.prompt_logprobs.get(index)
    if prompt_logprobs is None:
        return None
    chunk = OutputChunk(sequence.choice, sequence.num_outputs, [], prompt_logprobs=prompt_logprobs)
    return SequenceOutput(sequence, sequence.num_outputs, more=chunk)


def token_output(
    sequence: Sequence, output: StepOutput, index: int, drawn: int, stop_token_id: int | None
) -> SequenceOutput:
    """The token that the step's draw `drawn` has brought; the sequence has it, and has ended if it was its last."""
    first_index, token_id = sequence.num_outputs - 1, output.token_ids[drawn]
    prompt_logprobs = output.prompt_logprobs.get(index)
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


def error_output(sequence: Sequence, error: str | None, *, is_request_at_fault: bool = False) -> SequenceOutput:
    """The end of a sequence that failed; error: for the client."""
    chunk = OutputChunk(
        choice=sequence.choice,
        first_index=sequence.num_outputs,
        token_ids=[],
        finish_reason="error",
        error=error,
        is_request_at_fault=is_request_at_fault,
    )
    return SequenceOutput(sequence, sequence.num_outputs, more=chunk)
