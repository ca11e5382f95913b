"""The settings of one model."""

import re
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.config.autoscaling import AutoscalingConfig, kv_usage_problem
from serve_app.config.base import ConfigModel, Switch, parse_switch
from serve_app.config.compression import QualityConfig, QuantizationConfig
from serve_app.config.engine import (
    DEFAULT_CPU_KV_CACHE_BYTES,
    DEFAULT_CPU_PREFILL_TOKENS,
    AutoParallelConfig,
    DeviceConfig,
    EngineConfig,
    ParallelConfig,
    StandbyShards,
    TimeoutConfig,
    parse_parallel,
    placement_problem,
    standby_problem,
)
from serve_app.config.steps import Step
from serve_app.config.weights import WeightsFiles
from serve_app.types.models import RemoteWeights

Task = Literal["generate", "embed", "classify", "score", "predict"]
Pooling = Literal["mean", "cls", "last", "max", "mean_sqrt_len", "weightedmean"]
_Integers = Literal["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
TensorDtype = Literal[_Integers, "float16", "bfloat16", "float32", "float64"]
ToolParser = Annotated[
    Literal["auto", "off", "hermes", "qwen3_coder", "llama3_json", "mistral", "json"], BeforeValidator(parse_switch)
]
ReasoningParser = Annotated[Literal["auto", "off", "think", "deepseek_r1", "mistral"], BeforeValidator(parse_switch)]


class TensorConfig(ConfigModel):
    """Dtype and shape of one input or output of a module; a dimension is a size, or the name of a varying one."""

    dtype: TensorDtype
    """Of its numbers."""
    shape: list[int | str]
    """Its dimensions: a size, or the name of a varying one; equal names are equal sizes. [size]"""


class ModelConfig(ConfigModel):
    """`args` of a model's application."""

    name: str
    """What clients write as "model"."""
    source: str
    """Directory in Hugging Face's layout, or a hub id (org/name)."""
    revision: str | None = None
    """Commit, branch or tag of a hub id; null: its main branch."""
    weights: WeightsFiles | None = None
    """Files at https URLs in place of the source's weights, or of a part of them; null: those of the source."""
    task: Task = "generate"
    """What comes out: tokens, vectors, labels, a pair's score, or named tensors."""
    architecture: str | None = None
    """package.module:Class of an nn.Module; null: a model of transformers."""
    arguments: dict[str, JsonValue] = {}
    """Of that class's constructor."""
    inputs: dict[str, TensorConfig] | None = None
    """Tensors that the module takes; null: as its class declares."""
    outputs: dict[str, TensorConfig] | None = None
    """Tensors that the module gives; null: as its class declares."""
    batch_dim: int | None = Field(default=0, ge=0, le=7)
    """Dimension of a module's tensors along which requests are joined; null: never. [index]"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations; auto: as the checkpoint is."""
    quantization: QuantizationConfig | None = None
    """What is quantized while the model is loaded; null: it stays as the checkpoint is."""
    quality: QualityConfig | None = None
    """What a compressed model's report must say before it is served; null: nothing."""
    parallel: Annotated[ParallelConfig, BeforeValidator(parse_parallel)] = ParallelConfig()
    """How one copy is split; auto: over the fewest devices that hold it (task generate)."""
    standby_shards: StandbyShards = 0
    """Processes of each copy that wait for the loss of a shard; on cpu only. [processes]"""
    autoscaling: AutoscalingConfig | None = None
    """How many copies there are, and when; null: as Serve's own settings of the Router say."""
    max_model_len: PositiveInt | None = None
    """Longest context, the prompt included; null: the model's own. [tokens]"""
    routing: Literal["prefix", "balanced"] | None = None
    """Of several copies, prefix takes one that holds a prompt's beginning, where that pays; of task generate.

    Null: prefix where there is a prefix cache; balanced takes the least busy one.
    """
    generation_config: Switch = "auto"
    """auto: the sampling settings of generation_config.json are the defaults of requests; of task generate."""
    tool_parser: ToolParser = "auto"
    """How the model writes calls of tools; auto: by its chat template; of task generate."""
    reasoning_parser: ReasoningParser = "auto"
    """How the model marks its reasoning; auto: by its chat template; of task generate."""
    pooling: Pooling | None = None
    """How tokens become one vector; null: as the checkpoint says; of task embed."""
    normalize: bool | None = None
    """Vectors have length 1; null: as the checkpoint says; of task embed."""
    default_prompt_name: str | None = None
    """Which of the checkpoint's prompts goes before texts; "": none; null: as it says; of tasks embed and score."""
    is_multi_label: bool | None = None
    """Several labels may hold at once; null: as the checkpoint says; of task classify."""
    preprocessing: list[Step] = []
    """Steps before the model. See docs/models.md."""
    postprocessing: list[Step] = []
    """Steps after the model, of tasks classify and predict; none: softmax, or sigmoid for several labels."""
    device: DeviceConfig = DeviceConfig()
    """What each shard runs on."""
    engine: EngineConfig = EngineConfig()
    """Batching and KV cache of each copy."""
    timeouts: TimeoutConfig = TimeoutConfig()
    """How long Router and shards wait for one another."""

    @field_validator("name")
    @classmethod
    def _is_plain_name(cls, value: str) -> str:
        part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
        if len(value) > 64 or re.fullmatch(f"{part}(?:/{part})?", value) is None:
            raise ValueError(
                f"name={value[:80]!r} cannot be a model's name; use at most 64 letters, digits, '.', '_', '-' "
                "beginning with a letter or digit, with at most one '/'"
            )
        return value

    @field_validator("architecture")
    @classmethod
    def _is_import_path(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value) is None:
            raise ValueError(f"architecture={value[:80]!r} is not an import path; write it as package.module:Class")
        return value

    @model_validator(mode="after")
    def _can_be_served(self) -> "ModelConfig":
        problem = _task_problem(self) or standby_problem(self.standby_shards, self.parallel, self.device)
        problem = problem or placement_problem(self.parallel, self.device)
        if problem is not None:
            raise ValueError(problem)
        return self

    @field_validator("weights")
    @classmethod
    def _has_files_of_their_own(cls, value: WeightsFiles | None) -> WeightsFiles | None:
        names = [one.sha256.lower() for one in value or ()]
        twice = next((one.url for one in value or () if names.count(one.sha256.lower()) > 1), None)
        if twice is not None:
            raise ValueError(f"weights has the file of {twice[:200]} twice, by its sha256; give each file once")
        return value

    @field_validator("source", "revision")
    @classmethod
    def _is_not_blank(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (not value or value != value.strip() or not value.isprintable()):
            raise ValueError(f"{info.field_name}={value[:80]!r} is blank or has stray spaces; write it without them")
        return value

    @field_validator("device")
    @classmethod
    def _gives_each_shard_a_gpu(cls, value: DeviceConfig, info: ValidationInfo) -> DeviceConfig:
        parallel = info.data.get("parallel")
        if not isinstance(parallel, ParallelConfig) or parallel.num_shards == 1 or value.gpus_per_shard == 1:
            return value
        raise ValueError(
            f"gpus_per_shard={value.gpus_per_shard:g} gives no shard a GPU of its own, and NCCL refuses two of a "
            f"copy's {parallel.num_shards} shards on one; write gpus_per_shard: 1, or one shard (pipeline: 1, "
            "tensor: 1)"
        )

    @field_validator("engine")
    @classmethod
    def _can_multiply(cls, value: EngineConfig, info: ValidationInfo) -> EngineConfig:
        device = info.data.get("device")
        if value.linear_kernel in ("auto", "torch") or not isinstance(device, DeviceConfig) or device.type == "cpu":
            return value
        raise ValueError(f"linear_kernel={value.linear_kernel} is for device.type=cpu; remove it")

    @field_validator("engine")
    @classmethod
    def _can_capture(cls, value: EngineConfig, info: ValidationInfo) -> EngineConfig:
        device = info.data.get("device")
        if "cuda_graphs" in value.model_fields_set and isinstance(device, DeviceConfig) and device.type == "cpu":
            raise ValueError(f"cuda_graphs={value.cuda_graphs} has no effect on device.type=cpu; remove it")
        if "compile" in value.model_fields_set and isinstance(device, DeviceConfig) and device.type == "cuda":
            raise ValueError(f"compile={value.compile} has no effect on device.type=cuda; remove it")
        return value

    @field_validator("engine")
    @classmethod
    def _can_size_cache(cls, value: EngineConfig, info: ValidationInfo) -> EngineConfig:
        device, task = info.data.get("device"), info.data.get("task", "generate")
        if task != "generate":
            value.refuse_kv_cache_settings(f"task={task}")
        if "gpu_memory_utilization" not in value.model_fields_set or not isinstance(device, DeviceConfig):
            return value
        setting = f"gpu_memory_utilization={value.gpu_memory_utilization}"
        if device.type == "cpu":
            raise ValueError(f"{setting} has no effect on device.type=cpu; set kv_cache_bytes instead")
        if value.kv_cache_bytes is not None:
            raise ValueError(f"{setting} has no effect beside kv_cache_bytes={value.kv_cache_bytes}; remove one")
        return value

    @property
    def remote_weights(self) -> tuple[RemoteWeights, ...]:
        """The weights that are not the source's; empty: they are."""
        return tuple(RemoteWeights(one.url, one.sha256.lower(), tuple(one.private_hosts)) for one in self.weights or ())

    @property
    def has_chains(self) -> bool:
        """Whether steps stand before the model or after it."""
        return bool(self.preprocessing or self.postprocessing)

    @property
    def is_prompt_templated(self) -> bool:
        """Whether the steps before the model make a conversation of a prompt."""
        return any(step.name == "chat_template" for step in self.preprocessing)

    @property
    def postprocessing_gives(self) -> str | None:
        """What an answer consists of; None: no steps make it."""
        if not self.postprocessing:
            return None
        return "json" if ":" in self.postprocessing[-1].name else "labels"

    @property
    def is_generative(self) -> bool:
        """Whether it runs step after step; any other task is done after one."""
        return self.task == "generate"

    @property
    def is_routed_by_prefix(self) -> bool:
        """Whether a request goes to the copy that holds its beginning, where that is worth more than balance."""
        return self.is_generative and self.engine.prefix_cache and self.routing != "balanced"

    @property
    def max_ongoing_requests(self) -> int:
        """Requests a Router replica may hold: running and queued."""
        return self.engine.max_num_seqs + self.engine.max_queued

    @property
    def kv_cache_bytes(self) -> int | None:
        """KV cache of one shard; None: to be derived from the GPU's memory."""
        if self.engine.kv_cache_bytes is None and self.device.type == "cpu":
            return DEFAULT_CPU_KV_CACHE_BYTES
        return self.engine.kv_cache_bytes

    @property
    def max_num_prefill_tokens(self) -> int:
        """Tokens of prompts in one step."""
        engine = self.engine
        on_device = DEFAULT_CPU_PREFILL_TOKENS if self.device.type == "cpu" else engine.max_num_batched_tokens
        return min(engine.max_num_prefill_tokens or on_device, engine.max_num_batched_tokens)


def _task_problem(config: ModelConfig) -> str | None:
    """Why settings of a model do not go together."""
    if config.task != "generate" and isinstance(config.parallel, AutoParallelConfig):
        return f"parallel=auto is for task=generate, not {config.task}; write pipeline and tensor, or remove it"
    if config.architecture is None:
        module_only = ("arguments", "inputs", "outputs", "batch_dim")
        given = [name for name in module_only if name in config.model_fields_set]
        if given:
            return f"{given[0]} has no effect without architecture; remove it, or name the module's class"
    elif config.task == "generate":
        return f"task=generate cannot run architecture={config.architecture}; set task to predict, classify or embed"
    elif config.parallel.layers is not None:
        return f"parallel.layers cannot spread architecture={config.architecture}, which has parts; use pipeline alone"
    elif config.parallel.tensor > 1:
        return f"parallel.tensor={config.parallel.tensor} cannot cut architecture={config.architecture}; use pipeline"
    elif "linear_kernel" in config.engine.model_fields_set:
        return f"engine.linear_kernel has no effect on architecture={config.architecture}; remove it"
    if config.task != "generate" and (problem := config.engine.product_problem(f"task={config.task}")):
        return problem
    if config.task != "generate" and (problem := kv_usage_problem(config.autoscaling, f"task={config.task}")):
        return problem
    if config.quantization is not None and config.task != "generate" and "head" in config.quantization.include:
        return f"quantization.include=[head] has no effect on task={config.task}; remove head"
    for name, task in (("pooling", "embed"), ("normalize", "embed"), ("is_multi_label", "classify")):
        if getattr(config, name) is not None and config.task != task:
            return f"{name} has no effect on task={config.task}; remove it"
    for name in ("generation_config", "tool_parser", "reasoning_parser"):
        if getattr(config, name) != "auto" and config.task != "generate":
            return f"{name} has no effect on task={config.task}; remove it"
    if config.routing is not None and config.task != "generate":
        return f"routing has no effect on task={config.task}, whose copies keep nothing of a request; remove it"
    if config.routing == "prefix" and not config.engine.prefix_cache:
        return "routing=prefix has no effect beside engine.prefix_cache=false; remove one of them"
    if config.default_prompt_name is not None and (config.task not in ("embed", "score") or config.architecture):
        return f"default_prompt_name has no effect on task={config.task}; remove it"
    if config.preprocessing and config.task == "predict":
        return "preprocessing has no effect on task=predict, which takes tensors; remove it"
    if config.postprocessing and config.task not in ("classify", "predict"):
        return f"postprocessing has no effect on task={config.task}; remove it"
    if config.postprocessing and config.is_multi_label is not None:
        return "is_multi_label has no effect beside postprocessing; remove it, and use the step sigmoid or softmax"
    return None
