"""Which running sequences a step may take, in which order, and how much of each."""

from collections.abc import Iterable

from serve_app.scheduling.sequence import Sequence
from serve_app.types.steps import MAX_LOGPROB_TOKENS


def in_turn(sequences: Iterable[Sequence], max_request_tokens: int, *, overlaps_steps: bool) -> list[Sequence]:
    """Those that are ready, first those that decode, then prefills in their own order."""
    ready = [one for one in sequences if _is_ready(one, max_request_tokens, overlaps_steps)]
    if len(ready) > 1:
        ready.sort(key=_turn)
    return ready


def chunk_tokens(sequence: Sequence, budget: int, num_found: int = 0) -> int:
    """Tokens of a sequence that one step may take, without `num_found` that are in the cache already."""
    if sequence.params.num_prompt_logprobs is not None:
        budget = min(budget, MAX_LOGPROB_TOKENS)
    num_tokens = (sequence.num_unscheduled or 1) - num_found  # none is left: the one that is being drawn
    start = sequence.num_scheduled + num_found
    if start < sequence.num_replayed:
        num_tokens = min(num_tokens, max(1, sequence.num_prompt_tokens - start))
    return min(num_tokens, budget)


def _is_ready(sequence: Sequence, max_request_tokens: int, overlaps_steps: bool) -> bool:
    """Whether a step may take a sequence's next token: a known one, or what the step in flight surely draws."""
    if not sequence.is_draw_in_flight:
        return sequence.num_unscheduled > 0
    return (
        overlaps_steps
        and sequence.num_draws_in_flight == 1
        and sequence.num_outputs + 1 < sequence.params.max_tokens
        and len(sequence.token_ids) + 1 < max_request_tokens
    )


def _turn(sequence: Sequence) -> tuple[bool, int]:
    """Of those that decode the one comes first that has waited longest."""
    is_prefilling = sequence.num_unscheduled > 1
    return is_prefilling, 0 if is_prefilling else sequence.last_step_id
