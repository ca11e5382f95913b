"""Which requests a scheduler takes."""

from collections.abc import Sequence

from serve_app.errors import QueueFullError, RequestError, UnavailableError
from serve_app.scheduling.sequence import Sequence as TokenSequence
from serve_app.types.generation import GenerateRequest
from serve_app.types.shards import EngineLimits


def most_request_tokens(limits: EngineLimits) -> int:
    """Prompt and output tokens that one sequence may have."""
    return min(limits.max_model_len, limits.num_blocks * limits.block_size)


def refuse_unfit(request: GenerateRequest, limits: EngineLimits, max_queued: int) -> None:
    """Raises RequestError for a request that can never run."""
    num_tokens, most = len(request.prompt_token_ids) + 1, most_request_tokens(limits)
    if num_tokens > most:
        raise RequestError(
            f"the prompt has {num_tokens - 1} tokens; with one output token at most {most} fit "
            f"(max_model_len={limits.max_model_len}, KV cache of {limits.num_blocks * limits.block_size} tokens); "
            "shorten it, or raise engine.kv_cache_bytes",
            field="prompt",
        )
    if num_tokens == 1:
        raise RequestError("the prompt has no token; send at least one", field="prompt")
    if request.num_choices > max_queued:
        raise RequestError(
            f"n={request.num_choices} is more than engine.max_queued={max_queued} ever takes; ask for fewer",
            field="n",
        )


def refuse_full(request: GenerateRequest, num_waiting: int, max_queued: int) -> None:
    """Raises QueueFullError when too many wait."""
    if num_waiting + request.num_choices > max_queued:
        raise QueueFullError(
            f"{num_waiting} sequences wait and engine.max_queued={max_queued}; try again later", retry_after_s=1.0
        )


def refuse_unfit_resumed(sequences: Sequence[TokenSequence], limits: EngineLimits) -> None:
    """Raises UnavailableError for a request of another copy that has grown beyond what this one holds."""
    most = most_request_tokens(limits)
    if max(len(sequence.token_ids) for sequence in sequences) >= most:
        raise UnavailableError(f"the copy that was to go on with the request holds no more than {most} tokens")
