"""One forward of the whole model, as scheduler and shards exchange it."""

from dataclasses import dataclass, field

from serve_app.types.generation import SamplingParams, TokenLogprobs
from serve_app.types.tensors import Item

NOT_FINITE = -1  # in place of a drawn token: the logits were not finite
NOTHING_FITS = -2  # the same: the grammar's next character is in no token, or finding it takes more than it may
NO_MATCHER = -3  # the same: the shard cannot hold an answer to any grammar
DRAWN_BEFORE = -1  # in place of a token that its shards know first
MAX_LOGPROB_TOKENS = 256  # of a prompt in one step: each needs its logits, a row of the vocabulary


@dataclass(frozen=True, slots=True)
class SequenceStart:
    """Sent once when a sequence gets a slot row, again after a pre-emption; the last stage samples by it."""

    slot_row: int  # the sequence's place in the shards' tables, from 0 to max_num_seqs - 1
    choice: int
    params: SamplingParams
    end_token_ids: list[int]  # tokens that end the sequence; suppressed below min_tokens
    num_outputs: int  # tokens drawn before this start
    history_token_ids: list[int]  # prompt, when params has penalties, then outputs so far, with a grammar too
    num_history_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class GrammarChange:
    """Sent before a step that starts a sequence with this grammar, and answered with its number when it is compiled."""

    number: int  # in one epoch; each is a grammar once
    text: str | None  # None: it is wanted no more


@dataclass(frozen=True, slots=True)
class PromptTargets:
    """Prompt tokens whose log-probability is wanted: the token after each of a sequence's step tokens from `offset`."""

    offset: int
    token_ids: list[int]
    num_top: int


@dataclass(slots=True)  # not frozen: to make one that is takes twice as long, for each token of a lone client
class StepInput:
    """One forward of the whole model: B sequences, T tokens in all. Nobody changes it."""

    step_id: int
    starts: list[SequenceStart]
    slot_rows: list[int]  # [B]
    num_tokens: list[int]  # [B] tokens of this step
    num_computed: list[int]  # [B] tokens already in the cache: position of the first token
    new_blocks: list[list[int]]  # [B] blocks appended to the sequence's table before the step
    token_ids: list[int]  # [T]; DRAWN_BEFORE: what the step before has drawn for this sequence
    samples: list[bool]  # [B] whether a token is drawn after the last one
    prompt_targets: dict[int, PromptTargets] = field(default_factory=dict)  # by index b
    moved: list[int] = field(default_factory=list)  # indices b whose new_blocks are their whole table anew
    copies: list[tuple[int, int]] = field(default_factory=list)  # blocks, from and to: first of all, all reads first
    is_timed: bool = False  # each shard is to tell how long it has computed


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the last stage drew: one token for each True of StepInput.samples, in order."""

    step_id: int
    token_ids: list[int]  # or NOT_FINITE, NOTHING_FITS, NO_MATCHER
    logprobs: list[TokenLogprobs | None] | None = None  # beside token_ids, when any sequence asks
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)  # by index b
    error: str | None = None  # why there are no tokens: every sequence of the step fails of it


@dataclass(frozen=True, slots=True)
class BatchStep:
    """One forward of one batch model: entries joined along the batch dimension."""

    step_id: int
    model: int  # index in BatchShardSettings.models
    inputs: Item
    is_timed: bool = False  # each shard is to tell how long it has computed
    has_gradients: bool = False  # see InferRequest


@dataclass(frozen=True, slots=True)
class BatchStepOutput:
    """The joined outputs of a BatchStep, or why there are none."""

    step_id: int
    outputs: Item
    error: str | None = None  # kind of exception only: its message may quote the input
