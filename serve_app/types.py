"""Frozen structures that cross modules and processes.

Standard library only: the engine runs with nothing but torch and transformers installed.
"""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are drawn. Values are already checked; `seed` is always set."""

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # top alternatives beside the chosen token; 0: the chosen one only; None: off
    num_prompt_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether the draw depends on the tokens before it."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation request as it enters a Router: tokens only."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    num_choices: int = 1
    queue_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability (natural) of one token and of the most probable alternatives, under the unmodified logits."""

    token_id: int
    logprob: float
    rank: int  # 1: the most probable token
    top_token_ids: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """New tokens of one choice of one request, in order."""

    choice: int
    first_index: int  # index of token_ids[0] among the choice's outputs: a gap shows as a jump
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one per token, when asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # prompt tokens 1..; sent in pieces with choice 0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it; the last of token_ids


@dataclass(frozen=True, slots=True)
class Completion:
    """What a Router's unary call returns when a request has ended: counts to check the stream against."""

    num_prompt_tokens: int
    num_output_tokens: list[int]  # per choice
    finish_reasons: list[FinishReason]  # per choice


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where a Gateway replica receives tokens. `server_key` is a capability: never logged."""

    node: str  # address of the Gateway's node
    local_endpoint: str  # loopback, for senders on the same node
    wide_endpoint: str | None  # on the node's own address; None in a cluster of one node
    server_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are: a directory of every node, or a hub repository at one commit."""

    directory: str  # absolute, on the Router's node
    hub_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a Router tells a Gateway about its model."""

    name: str
    task: str
    source_dir: str  # absolute; tokenizer and chat template are read from it
    max_model_len: int
    max_request_tokens: int  # prompt + output that fit the KV cache
    vocab_size: int
    eos_token_ids: list[int]
    created_s: int  # Unix time
    source: ModelSource | None = None  # to find the files on a node that has no source_dir


@dataclass(frozen=True, slots=True)
class CopyState:
    """Health of one model copy."""

    replica_id: str
    state: Literal["ready", "rebuilding", "failed"]
    detail: str
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard: stage `stage` of `num_stages`, rank `rank` of `num_ranks`, layers [first_layer, end_layer)."""

    stage: int
    num_stages: int
    rank: int
    num_ranks: int
    first_layer: int
    end_layer: int

    @property
    def is_first(self) -> bool:
        """Whether it holds the embeddings' stage."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether it holds the head's stage."""
        return self.stage == self.num_stages - 1

    @property
    def index(self) -> int:
        """Position in the group: stages outermost."""
        return self.stage * self.num_ranks + self.rank


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """How one shard is to be made."""

    shard: ShardSpec
    source_dir: str
    dtype: str
    device: Literal["cpu", "cuda"]
    num_threads: int
    block_size: int
    kv_cache_bytes: int | None  # None: what gpu_memory_utilization leaves
    gpu_memory_utilization: float
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class ShardLocation:
    """The process that holds a shard."""

    node: str  # address
    pid: int


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a loaded shard holds, and how many KV blocks it has room for."""

    parameter_bytes: int
    num_blocks: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the shards of a group meet: the store's address, and the limits of waiting."""

    host: str
    port: int
    rendezvous_s: float
    collective_s: float


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes that scheduler and shards must agree on."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int  # tokens in a KV block
    num_blocks: int

    @property
    def max_blocks_per_seq(self) -> int:
        """Blocks of a sequence at its longest."""
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True, slots=True)
class SequenceStart:
    """Sent once when a sequence gets a row, again after a pre-emption; the last stage samples by it."""

    row: int
    choice: int
    params: SamplingParams
    end_token_ids: list[int]  # tokens that end the sequence; suppressed below min_tokens
    num_outputs: int  # tokens drawn before this start
    history_token_ids: list[int]  # prompt then outputs so far; empty when params has no penalties
    num_history_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class PromptTargets:
    """Prompt tokens whose log-probability is wanted: the token after each of a sequence's step tokens from `offset`."""

    offset: int
    token_ids: list[int]
    num_top: int


@dataclass(frozen=True, slots=True)
class StepInput:
    """One forward of the whole model: B sequences, T tokens in all."""

    step_id: int
    starts: list[SequenceStart]
    rows: list[int]  # [B] row of each sequence in the shards' block tables
    num_tokens: list[int]  # [B] tokens of this step
    num_computed: list[int]  # [B] tokens already in the cache: position of the first token
    new_blocks: list[list[int]]  # [B] blocks appended to the row's table before the step
    token_ids: list[int]  # [T]
    samples: list[bool]  # [B] whether a token is drawn after the row's last token
    prompt_targets: dict[int, PromptTargets] = field(default_factory=dict)  # by index b


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the last stage drew: one token for each True of StepInput.samples, in order."""

    step_id: int
    token_ids: list[int]  # -1: the row's logits were not finite
    logprobs: list[TokenLogprobs | None] | None = None  # beside token_ids, when any row asks
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)  # by index b
