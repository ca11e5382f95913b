"""How a copy of a model is split, where it runs, and what it may hold."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.config.base import ByteSize, ConfigModel, Switch

DEFAULT_CPU_KV_CACHE_BYTES = 256 * 1024**2
DEFAULT_CPU_PREFILL_TOKENS = 512  # where products are bound by computing, so that more of them save nothing
_KV_CACHE_SETTINGS = (
    "attention",
    "block_size",
    "compile",
    "cuda_graphs",
    "gpu_memory_utilization",
    "kv_cache_bytes",
    "max_num_prefill_tokens",
    "prefix_cache",
)


StandbyShards = Annotated[int, Field(ge=0, le=64)]


class ParallelConfig(ConfigModel):
    """How one copy of a model is split: pipeline x tensor shards."""

    pipeline: PositiveInt = 1
    """Stages, each with a run of the model's layers. [stages]"""
    tensor: PositiveInt = 1
    """Ranks of each stage, each with a slice of every matrix; ranks beyond the key-value heads share these. [ranks]"""
    layers: list[PositiveInt] | None = None
    """Layers of each stage, first to last; without it stages are as even as their bytes allow. [layers]"""
    accelerator_types: list[str] | None = None
    """Ray's name of the GPU type of each stage, for nodes of several kinds; without it the device's is all stages'."""

    @model_validator(mode="before")
    @classmethod
    def _counts_stages(cls, value: object) -> object:
        """Lists of stages say how many there are."""
        if not isinstance(value, dict) or "pipeline" in value:
            return value
        lists = (value.get("layers"), value.get("accelerator_types"))
        given = next((one for one in lists if isinstance(one, list | tuple) and one), None)
        return value if given is None else {**value, "pipeline": len(given)}

    @model_validator(mode="after")
    def _has_one_of_each_stage(self) -> "ParallelConfig":
        for name, given in (("layers", self.layers), ("accelerator_types", self.accelerator_types)):
            if given is not None and len(given) != self.pipeline:
                raise ValueError(
                    f"{name}={given} is of {len(given)} stages, and pipeline={self.pipeline}; give one for each stage"
                )
        return self

    @property
    def num_shards(self) -> int:
        """Shards of one copy."""
        return self.pipeline * self.tensor


class AutoParallelConfig(ParallelConfig):
    """`parallel: auto`: a split that planning chooses. It counts as one shard until then."""


def parse_parallel(value: object) -> object:
    """`auto` as the split that it stands for; anything else passes through unchanged."""
    return AutoParallelConfig() if value == "auto" else value


class DeviceConfig(ConfigModel):
    """What each shard runs on."""

    type: Literal["cpu", "cuda"] = "cpu"
    """What computes."""
    gpus_per_shard: float = Field(default=1.0, gt=0)
    """Share of a GPU that a shard reserves, at most 1; below 1 a copy has one shard. [GPUs]"""
    cpu_threads: int | None = Field(default=None, gt=0, le=1024)
    """Threads of torch in each shard; null: the node's cores, shared among its shards."""
    cpus_per_shard: PositiveFloat = 0.1
    """CPUs that Ray reserves for a shard: what decides where it finds room, not what it uses. [CPUs]"""
    accelerator_type: str | None = None
    """Kind of GPU, as Ray calls it (H100, A100-80G); null: any."""

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
    """Sequences, or entries of a batch, that run at once. [sequences]"""
    max_num_batched_tokens: int = Field(default=2048, gt=0, le=1_048_576)
    """Tokens of a step, of prompts and answers together; longer prompts are read in chunks."""
    max_num_prefill_tokens: int | None = Field(default=None, gt=0, le=1_048_576)
    """Tokens of prompts in a step; null: 512 on cpu, on cuda max_num_batched_tokens, which it may not exceed."""
    block_size: int = Field(default=16, gt=0, le=1024)
    """Tokens of a block, the KV cache's page. [tokens]"""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that a shard may fill; on cuda only. [share]"""
    kv_cache_bytes: ByteSize | None = None
    """KV cache of each shard; null: 256 MiB on cpu, on cuda what gpu_memory_utilization leaves."""
    max_queued: int = Field(default=1024, gt=0, le=1_000_000)
    """Sequences that may wait for their turn; further requests are answered 429. [sequences]"""
    prefix_cache: bool = True
    """What is computed of a prompt's beginning is kept for the next prompt that begins so."""
    linear_kernel: Literal["auto", "torch", "gemv", "onednn", "fbgemm", "compiled"] = "auto"
    """Products of weights that are not quantized, on cpu only; auto: the fastest on this CPU."""
    attention: Literal["auto", "reference", "padded", "triton", "varlen"] = "auto"
    """What attends when sequences decode; auto: the fastest that serves the model. See docs/engine.md."""
    cuda_graphs: Switch = "auto"
    """Steps that only decode are launched as one; on cuda only."""
    compile: Switch = "auto"
    """Kernels of steps are compiled where a C++ compiler is found; on cpu only."""

    @model_validator(mode="after")
    def _can_step_all_sequences(self) -> "EngineConfig":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}; "
                f"set max_num_batched_tokens to {self.max_num_seqs} or more, or lower max_num_seqs"
            )
        return self

    @model_validator(mode="after")
    def _can_fill_steps(self) -> "EngineConfig":
        if self.max_num_prefill_tokens is not None and self.max_num_prefill_tokens > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_prefill_tokens={self.max_num_prefill_tokens} is more than a step may have, "
                f"max_num_batched_tokens={self.max_num_batched_tokens}; lower it, or raise max_num_batched_tokens"
            )
        return self

    @model_validator(mode="after")
    def _can_capture(self) -> "EngineConfig":
        if "cuda_graphs" in self.model_fields_set and self.attention == "reference":
            raise ValueError(
                f"cuda_graphs={self.cuda_graphs} has no effect beside attention=reference, which attends each sequence "
                "by itself; remove it, or set attention: auto"
            )
        return self

    @model_validator(mode="after")
    def _can_multiply_compiled(self) -> "EngineConfig":
        if self.linear_kernel == "compiled" and self.compile == "off":
            raise ValueError("linear_kernel=compiled cannot be had beside compile=off; remove one of them")
        return self

    @property
    def may_pack_head(self) -> bool:
        """Whether a kernel on CPU may hold a head in a form of its own, beside the embedding that it is tied to."""
        return self.linear_kernel not in ("torch", "gemv")

    def product_problem(self, owner: str) -> str | None:
        """Why `owner`, which does not generate, cannot have its products computed as they are asked for."""
        if self.linear_kernel == "compiled":
            return f"engine.linear_kernel=compiled is for task=generate, not {owner}; remove it"
        return None

    def refuse_kv_cache_settings(self, owner: str) -> None:
        """Raises ValueError where a setting of the KV cache is given; `owner` keeps none."""
        given = [name for name in _KV_CACHE_SETTINGS if name in self.model_fields_set]
        if given:
            has, them = ("has", "it") if len(given) == 1 else ("have", "them")
            raise ValueError(f"{', '.join(given)} {has} no effect on {owner}: no KV cache is kept; remove {them}")


class TimeoutConfig(ConfigModel):
    """How long Router and shards wait for one another."""

    load_s: PositiveFloat = 1800.0
    """How long a copy may take to start, its weights included."""
    rendezvous_s: PositiveFloat = 120.0
    """How long the shards of a copy may take to meet."""
    collective_s: PositiveFloat = 60.0
    """How long a step may take before the copy is taken to hang, and is started anew."""
    heartbeat_s: PositiveFloat = 3.5
    """Silence after which a shard is taken to be lost, and is replaced."""


def placement_problem(parallel: ParallelConfig, device: DeviceConfig) -> str | None:
    """Why stages cannot be put on the GPUs that are named for them."""
    if parallel.accelerator_types is None:
        return None
    if device.type == "cpu":
        return "parallel.accelerator_types has no effect with device.type=cpu; remove it"
    if device.accelerator_type is not None:
        return (
            f"device.accelerator_type={device.accelerator_type} is for all stages, and parallel.accelerator_types for "
            "each; remove one of them"
        )
    return None


def standby_problem(num_standby: int, parallel: ParallelConfig, device: DeviceConfig) -> str | None:
    """Why so many processes cannot wait for the loss of a shard."""
    if num_standby and device.type == "cuda":
        return (
            f"standby_shards={num_standby} is for device.type=cpu: a process that waits for a shard's GPU would hold "
            "another; remove it"
        )
    if num_standby > parallel.num_shards:
        owner = "shard" if parallel.num_shards == 1 else "shards"
        return (
            f"standby_shards={num_standby} is more than the copy's {parallel.num_shards} {owner}; use at most "
            f"{parallel.num_shards}"
        )
    return None


def _refuse_on_cpu(setting: str, value: object, device_type: object) -> None:
    if device_type == "cpu":
        raise ValueError(f"{setting}={value!r} has no effect on device.type=cpu; remove it, or set type: cuda")
