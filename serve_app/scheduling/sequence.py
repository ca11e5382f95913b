"""One choice of one request, from its arrival to its last token."""

from dataclasses import dataclass, field
from enum import Enum

from serve_app.scheduling.block_manager import BlockKey
from serve_app.types.generation import FinishReason, GenerateRequest, Progress, SamplingParams


class SequenceState(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, blocks and progress of one choice. Only the scheduler changes it."""

    request_id: str
    choice: int
    params: SamplingParams
    end_token_ids: frozenset[int]
    num_prompt_tokens: int
    token_ids: list[int]  # prompt, then outputs
    state: SequenceState = SequenceState.WAITING
    slot_row: int = -1  # its place in the shards' tables while running
    block_table: list[int] = field(default_factory=list)
    num_sent_blocks: int = 0  # prefix of block_table that the shards know
    num_scheduled: int = 0  # tokens whose keys and values are in the cache, or will be when the steps in flight end
    num_steps_in_flight: int = 0
    last_step_id: int = -1  # the step that took its latest tokens
    num_draws_in_flight: int = 0  # tokens that are being drawn
    num_prompt_logprobs_sent: int = 0
    cache_salt: str = ""
    owner: str = ""
    priority: int = 0  # the lowest comes first; that of those it was let past, from then on
    arrival: int = 0  # how many have come before it
    deadline_s: float | None = None  # by the clock of the scheduler's owner
    block_keys: list[BlockKey] = field(default_factory=list)  # of its full blocks, as far as they were needed
    num_shared_blocks: int = 0  # prefix of block_table that others may find
    num_blocks_to_join: int = 0  # from how many on it is worth while to move them into one run
    num_cached_tokens: int = 0  # of the prompt, which were in the cache when it first ran
    num_preemptions: int = 0
    is_suspect: bool = False  # of a request that a step was lost with, and that has drawn nothing since
    is_on_trial: bool = False  # a suspect in steps that may be lost for its sake: of its prompt, and before its draw
    is_resumed: bool = False  # another copy has run it
    num_replayed: int = 0  # tokens, prompt included, whose outputs are computed one by one
    finish_reason: FinishReason | None = None

    @property
    def num_outputs(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_draw_in_flight(self) -> bool:
        """Whether its next token is being drawn: there is no known one to schedule until it is back."""
        return self.num_draws_in_flight > 0

    @property
    def num_unscheduled(self) -> int:
        """Known tokens that no step has taken yet; -1 where one has taken a token that is not known yet."""
        return len(self.token_ids) - self.num_scheduled

    @property
    def has_run(self) -> bool:
        """Whether any step has had it."""
        return self.last_step_id >= 0

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.state is SequenceState.FINISHED


def sequences_of(
    request: GenerateRequest, eos_token_ids: frozenset[int], deadline_s: float | None = None
) -> list[Sequence]:
    """One sequence for each choice of a request that has not ended."""
    params = request.params
    num_choices = request.num_choices
    progress = request.progress or Progress([[]] * num_choices, [False] * num_choices)
    stop_ids = frozenset(params.stop_token_ids)
    end_token_ids = stop_ids if params.ignore_eos else stop_ids | eos_token_ids
    return [
        Sequence(
            request_id=request.request_id,
            choice=choice,
            params=params,
            end_token_ids=end_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            token_ids=[*request.prompt_token_ids, *progress.token_ids[choice]],
            num_prompt_logprobs_sent=progress.num_prompt_logprobs,
            cache_salt=request.cache_salt,
            owner=request.owner,
            priority=request.priority,
            deadline_s=deadline_s,
            num_replayed=len(request.prompt_token_ids) + len(progress.token_ids[choice]) if progress.is_replayed else 0,
            is_suspect=progress.is_suspect,
            is_resumed=request.progress is not None,
        )
        for choice in range(num_choices)
        if not progress.ended[choice]
    ]
