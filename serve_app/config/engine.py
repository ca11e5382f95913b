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

from serve_app.config.base import ByteSize, ConfigModel

DEFAULT_CPU_KV_CACHE_BYTES = 256 * 1024**2
_KV_CACHE_SETTINGS = (
    "attention",
    "block_size",
    "compile",
    "cuda_graphs",
    "gpu_memory_utilization",
    "kv_cache_bytes",
    "prefix_cache",
)


StandbyShards = Annotated[int, Field(ge=0, le=64)]  # processes of each copy that wait for the loss of a shard


class ParallelConfig(ConfigModel):
    """How one copy of a model is split: pipeline x tensor shards."""

    pipeline: PositiveInt = 1
    tensor: PositiveInt = 1

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
    prefix_cache: bool = True  # what is computed of a prompt's beginning is kept for the next prompt that begins so
    linear_kernel: Literal["auto", "torch", "gemv", "onednn", "fbgemm"] = "auto"  # auto: the fastest on this CPU
    attention: Literal["auto", "reference", "padded", "triton", "varlen"] = "auto"  # of tokens that follow; see docs
    cuda_graphs: Literal["auto", "off"] = "auto"  # cuda only: steps that only decode are launched as one
    compile: Literal["auto", "off"] = "auto"  # cpu only: kernels of steps are, where a C++ compiler is found

    @model_validator(mode="after")
    def _can_step_all_sequences(self) -> "EngineConfig":
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}; "
                f"set max_num_batched_tokens to {self.max_num_seqs} or more, or lower max_num_seqs"
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

    def refuse_kv_cache_settings(self, owner: str) -> None:
        """Raises ValueError where a setting of the KV cache is given; `owner` keeps none."""
        given = [name for name in _KV_CACHE_SETTINGS if name in self.model_fields_set]
        if given:
            has, them = ("has", "it") if len(given) == 1 else ("have", "them")
            raise ValueError(f"{', '.join(given)} {has} no effect on {owner}: no KV cache is kept; remove {them}")


class TimeoutConfig(ConfigModel):
    """How long Router and shards wait for one another."""

    load_s: PositiveFloat = 1800.0
    rendezvous_s: PositiveFloat = 120.0
    collective_s: PositiveFloat = 60.0
    heartbeat_s: PositiveFloat = 3.5


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
