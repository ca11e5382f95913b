"""How a shard is made, and what it reports once it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from serve_app.types.tensors import TensorSpec

GPU_RESERVE_BYTES = 256 * 1024**2  # for libraries that come up later, and for room that lies between tensors
LEAVE_S = 3.0  # how long a shard that is to stay may take to leave the group that has lost another
MIN_FLOAT8_CAPABILITY = (8, 9)  # compute capability of GPUs that multiply float8 numbers


EngineKind = Literal["generation", "batch", "module"]  # module: batches of plain modules alone


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
        """Whether it is on the stage of the embeddings."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether it is on the stage of the head."""
        return self.stage == self.num_stages - 1

    @property
    def index(self) -> int:
        """Position in the group: stages outermost."""
        return self.stage * self.num_ranks + self.rank


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How weights are quantized: q = round(w / scale) in `bits` bits, one scale for each output or group of inputs."""

    bits: int = 8
    is_float: bool = False  # float8_e4m3fn instead of integers
    group_size: int | None = None  # inputs that share a scale; None: all of an output
    has_quantized_inputs: bool = False  # inputs are quantized to 8 bits too, each row by its own scale
    block_rows: int | None = None  # outputs that share the scales of their groups; rows of inputs have a scale a group
    has_static_inputs: bool = False  # inputs are quantized by one scale, which the checkpoint holds

    @property
    def has_float8_products(self) -> bool:
        """Whether a GPU is to multiply float8 numbers: blocks are made whole before."""
        return self.is_float and self.has_quantized_inputs and self.block_rows is None


@dataclass(frozen=True, slots=True)
class LoadQuantization:
    """What is quantized while a model is loaded."""

    scheme: WeightScheme
    has_embedding: bool = False
    has_head: bool = False
    ignored: tuple[str, ...] = ()  # modules that are not quantized, by the ends of their names


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
    max_num_seqs: int
    quantization: LoadQuantization | None = None  # None: as the checkpoint is
    max_model_len: int | None = None  # tokens that rotary frequencies are made for; None: each step's own
    linear_kernel: str = "auto"  # that multiplies by weights which are not quantized; auto: the fastest on this CPU
    attention: str = "auto"  # the backend of sequences that decode; auto: the fastest for this device
    has_cuda_graphs: bool = True  # on CUDA
    is_compiled: bool = False  # kernels of steps on CPU are, where a C++ compiler is found
    eos_token_ids: tuple[int, ...] = ()  # that end an answer held to a grammar


@dataclass(frozen=True, slots=True)
class BatchModelSettings:
    """One model of a shard that is done with a request after one step."""

    name: str
    source_dir: str
    task: str
    dtype: str
    shard: ShardSpec  # first_layer and end_layer are 0 for a module: its stages find their own parts
    max_model_len: int = 0  # tokens of one entry; 0: not counted in tokens
    pooling: str | None = None  # None: as the checkpoint says
    normalize: bool | None = None
    architecture: str | None = None  # package.module:Class; None: a transformers model
    arguments: dict[str, object] = field(default_factory=dict)
    inputs: dict[str, TensorSpec] | None = None  # None: as the class declares
    outputs: dict[str, TensorSpec] | None = None
    batch_dim: int | None = 0
    quantization: LoadQuantization | None = None  # None: as the weights are
    linear_kernel: str = "auto"  # of encoders


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
    first_part: int
    end_part: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    gradient_problem: str = ""  # why there are no gradients of its inputs' embeddings; "": there are


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
    load_s: float  # until its tensors were there; 0: they were there before
    models: list[BatchModelReport] = field(default_factory=list)  # of a shard of batch models
    linear_kernel: str = ""  # and why it, for people; "": linear layers are as they come
    attention: str = ""  # and why it, for people; "": the model has no KV cache
    compiled: str = ""  # how kernels of steps on CPU were compiled, or why not; "": the model has no KV cache
    meet_s: float = 0.0  # until all shards of the group had met
    measure_s: float = 0.0  # until the room for KV blocks was known


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Where the time of a group's start went; of what shards do side by side, the slowest counts."""

    num_kept: int = 0  # shards that were there already, with their tensors
    processes_s: float = 0.0  # until each had a process that has imported what it runs
    meet_s: float = 0.0
    load_s: float = 0.0
    measure_s: float = 0.0

    @staticmethod
    def of(num_kept: int, processes_s: float, reports: Sequence[ShardReport]) -> "StartTimes":
        """As the shards have told it."""
        return StartTimes(
            num_kept,
            processes_s,
            max(report.meet_s for report in reports),
            max(report.load_s for report in reports),
            max(report.measure_s for report in reports),
        )


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the shards of a group meet: the store's address, and the limits of waiting."""

    host: str
    port: int
    rendezvous_s: float
    collective_s: float


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token of a shard's KV cache is made of."""

    num_layers: int
    num_heads: int  # key-value heads on one rank
    head_dim: int
    dtype_bytes: int
    value_dim: int | None = None  # None: as wide as keys

    def block_bytes(self, block_size: int) -> int:
        """Keys and values of as many tokens, over all layers."""
        both = self.head_dim + (self.value_dim or self.head_dim)
        return self.num_layers * block_size * self.num_heads * both * self.dtype_bytes


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

    def with_blocks(self, num_blocks: int) -> "EngineLimits":
        """The same with another KV cache."""
        return replace(self, num_blocks=num_blocks)
