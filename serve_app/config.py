"""The settings of our applications, as their `args` in a Serve file give them, and the process environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.types import LoadQuantization, RemoteWeights, WeightScheme

DEFAULT_CPU_KV_CACHE_BYTES = 256 * 1024**2
DEFAULT_GROUP_SIZE = 32  # inputs of an int4 weight that share a scale

Task = Literal["generate", "embed", "classify", "score", "predict"]
_Integers = Literal["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
TensorDtype = Literal[_Integers, "float16", "bfloat16", "float32", "float64"]

_BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(value: object) -> object:
    """Bytes of a size such as "256MiB" or "2GB"; what is no text passes through unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]{1,3})", value)
    if match is None or match[2].upper() not in _BYTE_UNITS:
        raise ValueError(
            f"{value[:80]!r} is not a size; write a number of bytes, or one with a unit like 256MiB or 2GB"
        )
    return int(float(match[1]) * _BYTE_UNITS[match[2].upper()])


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class ConfigModel(BaseModel):
    """Settings: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ParallelConfig(ConfigModel):
    """How one copy of a model is split: pipeline x tensor shards."""

    pipeline: PositiveInt = 1
    tensor: PositiveInt = 1


class DeviceConfig(ConfigModel):
    """What each shard runs on."""

    type: Literal["cpu", "cuda"] = "cpu"
    gpus_per_shard: float = Field(default=1.0, gt=0)
    cpu_threads: int | None = Field(default=None, gt=0, le=1024)  # of torch; None: the node's cores / its shards
    cpus_per_shard: PositiveFloat = 0.1  # what Ray reserves, not what a shard uses
    accelerator_type: str | None = None

    @field_validator("gpus_per_shard")
    @classmethod
    def _can_give_gpus(cls, value: float, info: ValidationInfo) -> float:
        _refuse_on_cpu("gpus_per_shard", value, info.data.get("type"))
        if value > 1:
            raise ValueError(
                f"gpus_per_shard={value}: a shard uses one GPU; use at most 1, and more shards (parallel) for more GPUs"
            )
        return value

    @field_validator("accelerator_type")
    @classmethod
    def _can_choose_accelerator(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _refuse_on_cpu("accelerator_type", value, info.data.get("type"))
        return value


class EngineConfig(ConfigModel):
    """Batching and KV cache of one model copy; sizes in tokens unless said."""

    max_num_seqs: int = Field(default=64, gt=0, le=65_536)
    max_num_batched_tokens: int = Field(default=2048, gt=0, le=1_048_576)
    block_size: int = Field(default=16, gt=0, le=1024)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)  # cuda only
    kv_cache_bytes: ByteSize | None = None  # per shard; None: 256 MiB on cpu, by gpu_memory_utilization on cuda
    max_queued: int = Field(default=1024, gt=0, le=1_000_000)

    @model_validator(mode="after")
    def _can_step_all_sequences(self) -> "EngineConfig":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}; "
                f"set max_num_batched_tokens to {self.max_num_seqs} or more, or lower max_num_seqs"
            )
        return self


class TimeoutConfig(ConfigModel):
    """How long Router and shards wait for one another."""

    load_s: PositiveFloat = 1800.0
    rendezvous_s: PositiveFloat = 120.0
    collective_s: PositiveFloat = 60.0
    heartbeat_s: PositiveFloat = 3.5


def _parse_step(value: object) -> object:
    """A step as `name`, or as `name: {argument: value}`."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1 and "name" not in value:
        ((name, arguments),) = value.items()
        return {"name": name, "arguments": {} if arguments is None else arguments}
    return value


class StepConfig(ConfigModel):
    """One step before or behind a model: one of ours, or `package.module:Class` with its constructor's arguments."""

    name: str = Field(min_length=1)
    arguments: dict[str, JsonValue] = {}


Step = Annotated[StepConfig, BeforeValidator(_parse_step)]


class TensorConfig(ConfigModel):
    """Dtype and shape of one input or output of a module; a dimension is a size, or the name of a varying one."""

    dtype: TensorDtype
    shape: list[int | str]


class WeightsConfig(ConfigModel):
    """A safetensors file at an https URL, in place of the source's weights."""

    url: str
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    private_hosts: list[str] = []  # names whose private addresses may be connected to

    @field_validator("url")
    @classmethod
    def _can_be_fetched(cls, value: str) -> str:
        problem = weights_url_problem(value)
        if problem is not None:
            raise ValueError(f"the URL {problem}")
        return value


class QuantizationConfig(ConfigModel):
    """What is quantized while a model is loaded, shard by shard."""

    scheme: Literal["int8", "int8_weight_only", "int4", "fp8"]
    group_size: int | None = Field(default=None, gt=0, le=4096)  # int4 only; None: 32
    include: list[Literal["embedding", "head"]] = []  # beside the layers' matrices
    ignore: list[str] = []  # modules that stay as they are, by the ends of their names

    @model_validator(mode="after")
    def _can_group(self) -> "QuantizationConfig":
        if self.group_size is not None and self.scheme != "int4":
            raise ValueError(f"group_size={self.group_size} has no effect on scheme={self.scheme}; remove it")
        return self

    @property
    def for_loading(self) -> LoadQuantization:
        """The same as shards take it."""
        schemes = {
            "int8": WeightScheme(8, has_quantized_inputs=True),
            "int8_weight_only": WeightScheme(8),
            "int4": WeightScheme(4, group_size=self.group_size or DEFAULT_GROUP_SIZE),
            "fp8": WeightScheme(8, is_float=True, has_quantized_inputs=True),
        }
        has_embedding, has_head = ("embedding" in self.include, "head" in self.include)
        return LoadQuantization(schemes[self.scheme], has_embedding, has_head, tuple(self.ignore))


class QualityConfig(ConfigModel):
    """The gate: what a compressed model's report must say before it is served."""

    report: str = "compress_report.json"  # beside the model, or a path
    max_perplexity_increase: float | None = Field(default=None, ge=0)  # a share: 0.02 is 2 %
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)
    max_kl: float | None = Field(default=None, ge=0)  # nats for each token

    @model_validator(mode="after")
    def _asks_for_something(self) -> "QualityConfig":
        if self.max_perplexity_increase is None and self.min_top1_agreement is None and self.max_kl is None:
            raise ValueError(
                "quality asks for nothing; set max_perplexity_increase, min_top1_agreement or max_kl, or remove it"
            )
        return self


class ModelConfig(ConfigModel):
    """`args` of a model's application."""

    name: str
    source: str  # directory or hub id
    revision: str | None = None  # of a hub id
    weights: WeightsConfig | None = None  # None: those of the source
    task: Task = "generate"
    architecture: str | None = None  # package.module:Class of an nn.Module; None: a transformers model
    arguments: dict[str, JsonValue] = {}  # of that class's constructor
    inputs: dict[str, TensorConfig] | None = None  # None: as the class declares
    outputs: dict[str, TensorConfig] | None = None
    batch_dim: int | None = Field(default=0, ge=0, le=7)  # requests are joined along it; null: never joined
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: QuantizationConfig | None = None  # None: as the checkpoint is
    quality: QualityConfig | None = None  # None: nothing is asked
    parallel: ParallelConfig = ParallelConfig()
    max_model_len: PositiveInt | None = None  # None: the model's own
    pooling: Literal["mean", "cls", "last"] | None = None  # embed only; None: as the checkpoint says
    normalize: bool | None = None  # embed only; None: as the checkpoint says
    is_multi_label: bool | None = None  # classify only; None: as the checkpoint says
    preprocessing: list[Step] = []
    postprocessing: list[Step] = []  # classify and predict only; []: softmax, or sigmoid for several labels
    device: DeviceConfig = DeviceConfig()
    engine: EngineConfig = EngineConfig()
    timeouts: TimeoutConfig = TimeoutConfig()

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
            raise ValueError(f"architecture={value[:80]!r} is no import path; write it as package.module:Class")
        return value

    @model_validator(mode="after")
    def _can_be_served(self) -> "ModelConfig":
        problem = _task_problem(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    @field_validator("source", "revision")
    @classmethod
    def _is_not_blank(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (not value or value != value.strip() or not value.isprintable()):
            raise ValueError(f"{info.field_name}={value[:80]!r} is blank or has stray spaces; write it without them")
        return value

    @field_validator("engine")
    @classmethod
    def _can_size_cache(cls, value: EngineConfig, info: ValidationInfo) -> EngineConfig:
        device = info.data.get("device")
        if "gpu_memory_utilization" not in value.model_fields_set or not isinstance(device, DeviceConfig):
            return value
        setting = f"gpu_memory_utilization={value.gpu_memory_utilization}"
        if device.type == "cpu":
            raise ValueError(f"{setting} has no effect on device.type=cpu; set kv_cache_bytes instead")
        if value.kv_cache_bytes is not None:
            raise ValueError(f"{setting} has no effect beside kv_cache_bytes={value.kv_cache_bytes}; remove one")
        return value

    @property
    def remote_weights(self) -> RemoteWeights | None:
        """The weights that are not the source's."""
        if self.weights is None:
            return None
        return RemoteWeights(self.weights.url, self.weights.sha256.lower(), tuple(self.weights.private_hosts))

    @property
    def has_chains(self) -> bool:
        """Whether steps stand before the model or behind it."""
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
    def max_ongoing_requests(self) -> int:
        """Requests a Router replica may hold: running and queued."""
        return self.engine.max_num_seqs + self.engine.max_queued

    @property
    def kv_cache_bytes(self) -> int | None:
        """KV cache of one shard; None: to be derived from the GPU's memory."""
        if self.engine.kv_cache_bytes is None and self.device.type == "cpu":
            return DEFAULT_CPU_KV_CACHE_BYTES
        return self.engine.kv_cache_bytes


class ModelSetConfig(ConfigModel):
    """`args` of an application that holds several small models in one shard process."""

    models: list[ModelConfig] = Field(min_length=1, max_length=256)
    device: DeviceConfig = DeviceConfig()
    engine: EngineConfig = EngineConfig()
    timeouts: TimeoutConfig = TimeoutConfig()

    @model_validator(mode="after")
    def _can_share_a_process(self) -> "ModelSetConfig":
        for model in self.models:
            if model.is_generative:
                raise ValueError(f"models: {model.name} has task=generate; give it an application of its own")
            own = sorted(model.model_fields_set & {"parallel", "device", "engine", "timeouts"})
            if own:
                raise ValueError(f"models: {model.name} sets {own[0]}, which all models share; set it beside `models`")
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: name={twice[0]!r} is given more than once; give each model its own name")
        return self

    @property
    def shared_models(self) -> list[ModelConfig]:
        """The models with what they share."""
        shared = {"device": self.device, "engine": self.engine, "timeouts": self.timeouts}
        return [model.model_copy(update=shared) for model in self.models]


class GatewayConfig(ConfigModel):
    """`args` of the Gateway's application."""

    max_request_bytes: ByteSize = 1_048_576
    request_timeout_s: PositiveFloat | None = None
    queue_timeout_s: PositiveFloat | None = 30.0
    tokenizer_threads: int = Field(default=2, gt=0, le=256)
    chat_template_timeout_s: PositiveFloat = 1.0
    chat_template_max_bytes: ByteSize = 1_048_576  # of the rendered prompt
    client_buffer_tokens: PositiveInt = 4096  # a client that leaves more than this unread is aborted
    api_keys_file: str | None = None  # None: everybody may do everything


@dataclass(frozen=True, slots=True)
class Environment:
    """What the project takes from environment variables."""

    hub_cache_dir: Path
    is_hub_offline: bool
    hub_endpoint: str | None  # None: the hub's own
    weights_cache_dir: Path
    openai_api_key: str | None = None  # sent to servers whose models are evaluated


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The environment of this process; `variables` stands in for it in tests."""
    given = os.environ if variables is None else variables
    cache_dir = Path(given.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    home = cache_dir / "huggingface"
    hub_home = Path(given.get("HF_HOME") or home).expanduser()
    offline = {given.get("HF_HUB_OFFLINE", "").upper(), given.get("TRANSFORMERS_OFFLINE", "").upper()}
    return Environment(
        hub_cache_dir=Path(given.get("HF_HUB_CACHE") or hub_home / "hub").expanduser(),
        is_hub_offline=bool(offline & {"1", "ON", "YES", "TRUE"}),
        hub_endpoint=given.get("HF_ENDPOINT") or None,
        weights_cache_dir=cache_dir / "rayshard" / "weights",
        openai_api_key=given.get("OPENAI_API_KEY") or None,
    )


def prepare_ray_client() -> bool:
    """Keep Ray from sending usage reports; whether no cluster is named, so that one must be started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def weights_url_problem(url: str) -> str | None:
    """Why weights cannot come from this URL, whatever answers there; None: they can."""
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        return "is no URL; write https://host/file.safetensors"
    if parts.scheme != "https":
        return f"has scheme {parts.scheme[:20] or 'none'!r}; only https is fetched: write https://host/file.safetensors"
    if not parts.hostname:
        return "names no host; write https://host/file.safetensors"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or password; put the file where none is needed"
    if not url.isprintable() or not url.isascii() or " " in url:
        return "holds a character that is none of a URL's; encode it as %XX"
    return None


def _task_problem(config: ModelConfig) -> str | None:
    """Why settings of a model do not go together."""
    if config.architecture is None:
        module_only = ("arguments", "inputs", "outputs", "batch_dim")
        given = [name for name in module_only if name in config.model_fields_set]
        if given:
            return f"{given[0]} has no effect without architecture; remove it, or name the module's class"
        if config.task == "predict":
            return "task=predict needs architecture: package.module:Class; or choose generate, embed, classify, score"
    elif config.task == "generate":
        return f"task=generate cannot run architecture={config.architecture}; set task to predict, classify or embed"
    elif config.parallel.tensor > 1:
        return f"parallel.tensor={config.parallel.tensor} cannot cut architecture={config.architecture}; use pipeline"
    if config.quantization is not None and config.task != "generate" and "head" in config.quantization.include:
        return f"quantization.include=[head] has no effect on task={config.task}; remove head"
    for name, task in (("pooling", "embed"), ("normalize", "embed"), ("is_multi_label", "classify")):
        if getattr(config, name) is not None and config.task != task:
            return f"{name} has no effect on task={config.task}; remove it"
    if config.preprocessing and config.task == "predict":
        return "preprocessing has no effect on task=predict, which takes tensors; remove it"
    if config.postprocessing and config.task not in ("classify", "predict"):
        return f"postprocessing has no effect on task={config.task}; remove it"
    if config.postprocessing and config.is_multi_label is not None:
        return "is_multi_label has no effect beside postprocessing; remove it, and use the step sigmoid or softmax"
    return None


def _refuse_on_cpu(setting: str, value: object, device_type: object) -> None:
    if device_type == "cpu":
        raise ValueError(f"{setting}={value!r} has no effect on device.type=cpu; remove it, or set type: cuda")
