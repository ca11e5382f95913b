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
class TensorSpec:
    """Dtype, as torch names it, and shape of a named tensor; a dimension is a size or the name of a varying one."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor outside torch: little-endian, in C order."""

    dtype: str  # as torch names it; bool is one byte
    shape: tuple[int, ...]
    data: bytes = field(repr=False)


Item = dict[str, TensorData]  # the named inputs, or outputs, of one entry of a request


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Entries for a model that is done with each after one step."""

    request_id: str
    model: str
    items: list[Item]
    queue_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class InferResult:
    """The outputs of an InferRequest."""

    outputs: list[Item]  # beside the request's items


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of an answer, and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ChainValue:
    """What one step hands to the next: exactly one of these is set, and gives the value's kind."""

    text: str | None = None
    texts: list[str] | None = None
    token_ids: list[int] | None = None
    numbers: list[float] | None = None  # a model's one output for an entry
    tensors: Item | None = None  # a model's outputs for an entry
    labels: list[LabelScore] | None = None
    json: str | None = None  # whatever a class of the user's has made of a model's outputs


@dataclass(frozen=True, slots=True)
class Redaction:
    """Something taken out of a text."""

    placeholder: str  # what stands in its place, such as <EMAIL_1>
    kind: str  # email, phone, card, iban, ip
    original: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """Values to be run through the steps before a model, or through those behind it."""

    request_id: str
    model: str
    values: list[ChainValue]
    has_trace: bool = False  # every step's value is wanted
    is_after: bool = False  # the values are the model's outputs


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What one step made of a value."""

    step: str
    value: ChainValue


@dataclass(frozen=True, slots=True)
class ChainOutcome:
    """What a chain made of one value."""

    value: ChainValue
    redactions: list[Redaction] = field(default_factory=list)
    trace: list[StepTrace] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What a chain made of a ChainRequest."""

    values: list[ChainOutcome]  # beside the request's values


ValueKind = Literal["text", "embedding", "label", "tensors", "json"]


@dataclass(frozen=True, slots=True)
class PipelineValue:
    """What a step of a pipeline gives; the field of its kind has one entry for each text that went in."""

    kind: ValueKind
    is_list: bool = False  # whether entries are shown as a list; otherwise there is one
    texts: list[str] = field(default_factory=list, repr=False)  # of text, and of json
    labels: list[list[LabelScore]] = field(default_factory=list)  # of each entry, in the model's order
    items: list[Item] = field(default_factory=list)  # of embedding and tensors
    is_multi_label: bool = False


@dataclass(frozen=True, slots=True)
class PipelineRequest:
    """Texts for a pipeline."""

    request_id: str
    pipeline: str
    inputs: list[str] = field(repr=False)
    queue_timeout_s: float | None = None
    restores_redactions: bool = False  # texts of the results hold again what steps have taken out


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """What a pipeline makes of one input."""

    results: list[PipelineValue]  # beside the pipeline's outputs


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """The answer to a PipelineRequest."""

    names: list[str]  # of the results; empty: there is one, without a name
    runs: list[PipelineRun]  # one for each input, or one for all
    is_joint: bool  # the pipeline takes the texts of a request together
    num_tokens: int  # that went into models


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A RayshardError as it crosses a link."""

    error: str  # name of the class in errors.py
    message: str
    field: str | None = None
    retry_after_s: float | None = None


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
class RemoteWeights:
    """A safetensors file at an https URL."""

    url: str
    sha256: str  # 64 hexadecimal digits, in small letters
    private_hosts: tuple[str, ...] = ()  # names whose private addresses may be connected to


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are: a directory of every node, or a hub repository at one commit."""

    directory: str  # absolute, on the Router's node
    hub_id: str | None = None
    commit: str | None = None
    weights: RemoteWeights | None = None  # in place of the weights there
    base_directory: str | None = None  # with weights: where the other files are


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
    has_tokenizer: bool = True
    has_preprocessing: bool = False  # a Preprocessor takes its inputs
    is_prompt_templated: bool = False  # its preprocessing makes a conversation of a prompt
    postprocessing_gives: str | None = None  # labels or json; None: nothing is done to its outputs
    labels: list[str] = field(default_factory=list)  # by output index; empty: it has none
    is_multi_label: bool = False
    score_activation: str = "sigmoid"  # of a cross-encoder with one output: sigmoid or identity
    embedding_size: int | None = None
    inputs: dict[str, TensorSpec] = field(default_factory=dict)
    outputs: dict[str, TensorSpec] = field(default_factory=dict)
    pipeline_gives: str | None = None  # of a pipeline: kind of its one result for a text, or "results"; None: a model


@dataclass(frozen=True, slots=True)
class CopyState:
    """Health of one model copy."""

    replica_id: str
    state: Literal["ready", "rebuilding", "failed", "gone"]  # gone: the replica is being taken down
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
class WeightScheme:
    """How weights are quantized: q = round(w / scale) in `bits` bits, one scale for each output or group of inputs."""

    bits: int = 8
    is_float: bool = False  # float8_e4m3fn in place of whole numbers
    group_size: int | None = None  # inputs that share a scale; None: all of an output
    has_quantized_inputs: bool = False  # inputs are quantized to 8 bits too, each row by its own scale


@dataclass(frozen=True, slots=True)
class LoadQuantization:
    """What is quantized while a model is loaded."""

    scheme: WeightScheme
    has_embedding: bool = False
    has_head: bool = False
    ignored: tuple[str, ...] = ()  # modules that stay as they are, by the ends of their names


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
    quantization: LoadQuantization | None = None  # None: as the checkpoint is


@dataclass(frozen=True, slots=True)
class BatchModelSettings:
    """One model of a shard that is done with a request after one step."""

    name: str
    source_dir: str
    task: str
    dtype: str
    shard: ShardSpec  # first_layer and end_layer are 0 for a module: its stages find their own blocks
    max_model_len: int = 0  # tokens of one entry; 0: not counted in tokens
    pooling: str | None = None  # None: as the checkpoint says
    normalize: bool | None = None
    architecture: str | None = None  # package.module:Class; None: a transformers model
    arguments: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, TensorSpec] | None = None  # None: as the class declares
    outputs: dict[str, TensorSpec] | None = None
    batch_dim: int | None = 0
    quantization: LoadQuantization | None = None  # None: as the weights are


@dataclass(frozen=True, slots=True)
class BatchShardSettings:
    """How a shard of batch models is to be made; all models have the same place in the split."""

    shard: ShardSpec
    models: list[BatchModelSettings]
    device: Literal["cpu", "cuda"]
    num_threads: int


@dataclass(frozen=True, slots=True)
class BatchModelReport:
    """What a loaded batch model takes and gives."""

    name: str
    parameter_bytes: int
    first_block: int
    end_block: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


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
    models: list[BatchModelReport] = field(default_factory=list)  # of a shard of batch models


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


@dataclass(frozen=True, slots=True)
class BatchStep:
    """One forward of one batch model: entries joined along the batch dimension."""

    step_id: int
    model: int  # index in BatchShardSettings.models
    inputs: Item


@dataclass(frozen=True, slots=True)
class BatchStepOutput:
    """The joined outputs of a BatchStep, or why there are none."""

    step_id: int
    outputs: Item
    error: str | None = None  # kind of exception only: its message may quote the input
