"""Where a model is, what it takes and gives, and how its copies are."""

from dataclasses import dataclass, field
from typing import Literal

from serve_app.types.generation import SamplingDefaults
from serve_app.types.tensors import TensorSpec


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
    weights: tuple[RemoteWeights, ...] = ()  # in place of the weights there
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
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)  # of requests that do not say
    source: ModelSource | None = None  # to find the files on a node that has no source_dir
    has_tokenizer: bool = True
    has_preprocessing: bool = False  # a Preprocessor takes its inputs
    tool_parser: str | None = None  # how calls of tools stand in its answers; None: it takes no tools
    reasoning_parser: str | None = None  # how reasoning stands in them; None: it is not looked for
    is_prompt_templated: bool = False  # its preprocessing makes a conversation of a prompt
    postprocessing_gives: str | None = None  # labels or json; None: nothing is done to its outputs
    labels: list[str] = field(default_factory=list)  # by output index; empty: it has none
    is_multi_label: bool = False
    score_activation: str = "sigmoid"  # of a lone output: sigmoid, tanh or identity; of several: softmax or identity
    prompts: dict[str, str] = field(default_factory=dict)  # by name: what may be put before a text
    default_prompt_name: str | None = None  # of the one that is, when a request names none
    embedding_size: int | None = None
    trained_sizes: list[int] = field(default_factory=list)  # that vectors may be cut to; empty: to any
    similarity: str = "cosine"  # of two vectors: cosine, dot, euclidean or manhattan
    inputs: dict[str, TensorSpec] = field(default_factory=dict)
    outputs: dict[str, TensorSpec] = field(default_factory=dict)
    routed_block_size: int | None = None  # tokens; a copy is chosen by blocks that it holds; None: the least busy one
    gradient_problem: str = "it has no step that gives them"  # why there are no gradients; "": there are
    graph_gives: str | None = None  # of a graph: kind of its one result for a text, or "results"; None: a model


@dataclass(frozen=True, slots=True)
class TimeCounts:
    """How often durations fell between the bounds of a family of metrics; empty: never."""

    bucket_counts: list[int] = field(default_factory=list)  # the last one is of those above all bounds
    sum_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What one stage of a copy has done since its replica started."""

    num_steps: int = 0
    busy_s: float = 0.0  # from each step's input to its output


@dataclass(frozen=True, slots=True)
class CopyCounts:
    """What a copy has counted since its replica started."""

    num_preemptions: int = 0
    num_rebuilds: int = 0  # times that its shards were lost
    queue: TimeCounts = field(default_factory=TimeCounts)  # from a sequence's arrival to its first step
    steps: TimeCounts = field(default_factory=TimeCounts)  # from a step's sending to its output
    stage_busy_s: float = 0.0  # over all stages: in which their shards computed
    stage_idle_s: float = 0.0  # over all stages: in which they waited while steps were in flight
    num_control_bytes: int = 0  # sent to the shards
    num_token_bytes: int = 0  # sent to Gateways and Graphs
    stages: list[StageCounts] = field(default_factory=list)  # as their shards tell it; empty: they have told nothing


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Tells models of one name apart, by digests: where they are equal, one copy can go on with another's answer."""

    tokens: str  # of what turns a text into tokens
    weights: str  # of what draws the next token: weights, their form, what ends an answer


WaitsFor = Literal["", "kv_cache", "sequences", "trial", "step", "grammar"]  # see Scheduler.waits_for; "": nobody does


@dataclass(frozen=True, slots=True)
class CopyState:
    """Health of one model copy."""

    replica_id: str
    state: Literal["ready", "rebuilding", "failed", "draining", "gone"]  # draining: what runs ends, nothing is taken
    detail: str
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_prompt_tokens: int = 0  # of all requests since its shards were started
    num_cached_tokens: int = 0  # of those, found in the prefix cache
    counts: CopyCounts = field(default_factory=CopyCounts)
    bubble: float | None = None  # share of its working time, of late, that its shards have waited; None: not known yet
    stage_bubbles: list[float | None] = field(default_factory=list)  # the same of each stage
    waits_for: WaitsFor = ""  # what the first of those that wait needs
