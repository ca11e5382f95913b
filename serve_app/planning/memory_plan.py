"""What each shard of a model that generates takes on its device, and how much context fits beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.rank_sizes import rank_heads
from serve_app.config.model import ModelConfig
from serve_app.planning.activation_bytes import StepSizes, activation_bytes
from serve_app.planning.device_profiles import DeviceProfile, PlannedDevice
from serve_app.planning.part_weights import ModelWeights
from serve_app.planning.planner import (
    kv_shape_on,
    plan_split,
    served_dtype,
    served_max_model_len,
)
from serve_app.types.shards import KvShape, ShardSpec


@dataclass(frozen=True, slots=True)
class ShardMemory:
    """Bytes of one shard."""

    shard: ShardSpec
    num_heads: int
    kv: KvShape
    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    reserve_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that it takes of its device."""
        return self.fixed_bytes + self.kv_cache_bytes

    @property
    def fixed_bytes(self) -> int:
        """All but the KV cache."""
        return self.weights_bytes + self.activation_bytes + self.reserve_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One copy of a model on its devices."""

    shards: list[ShardMemory]  # ordered by ShardSpec.index
    weights: ModelWeights
    num_blocks: int  # of the KV cache, on each shard; 0: none fits
    block_size: int  # tokens
    max_model_len: int
    max_num_seqs: int
    device_bytes: int  # of one device, or of a node whose shards share its memory
    share_bytes: int  # that one shard may take of its device, or all shards of such a node together
    num_on_device: int  # shards that share those
    stage_devices: tuple[PlannedDevice, ...] = ()  # of each stage where they differ; share_bytes is the first's then
    stage_shares: tuple[int, ...] = ()  # share_bytes of each

    def share_of(self, shard: ShardSpec) -> int:
        """Bytes that it may take of its device."""
        return self.stage_shares[shard.stage] if self.stage_shares else self.share_bytes

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens of all sequences together that the cache holds."""
        return self.num_blocks * self.block_size

    @property
    def max_sequences(self) -> int:
        """Sequences of max_model_len tokens that run at once."""
        return self.sequences_of(self.max_model_len)

    def sequences_of(self, num_tokens: int) -> int:
        """Sequences of so many tokens that run at once."""
        return min(self.max_num_seqs, self.num_blocks // -(-num_tokens // self.block_size))

    @property
    def missing_bytes(self) -> int:
        """What the fullest device lacks; 0: all shards have room."""
        if self.stage_shares:
            return max(0, *(one.total_bytes - self.share_of(one.shard) for one in self.shards))
        totals = [shard.total_bytes for shard in self.shards]
        devices = [
            sum(totals[first : first + self.num_on_device]) for first in range(0, len(totals), self.num_on_device)
        ]
        return max(0, max(devices) - self.share_bytes)


def plan_memory(
    spec: ModelSpec,
    config: ModelConfig,
    weights: ModelWeights,
    profile: DeviceProfile,
    memory_bytes: int,
    stage_devices: Sequence[PlannedDevice] = (),
) -> MemoryPlan:
    """The copy of a model that `config` says, on devices of `memory_bytes`, or on a GPU of its own kind for each stage.

    Raises ConfigError for too many stages.
    """
    dtype, engine = served_dtype(spec, config), config.engine
    plan = plan_split(spec, config.parallel)
    utilization = engine.gpu_memory_utilization if engine.kv_cache_bytes is None else 1.0
    shares = device_shares(config, profile, memory_bytes, len(plan.shards), utilization)
    own = [device_shares(config, one.profile, one.memory_bytes, 1, utilization).of_one for one in stage_devices]
    limits = [own[shard.stage] if own else shares.of_one for shard in plan.shards]
    profiles = [stage_devices[shard.stage].profile if own else profile for shard in plan.shards]
    bare = [_shard_memory(spec, shard, weights, dtype, one) for shard, one in zip(plan.shards, profiles, strict=True)]
    block_bytes = [shard.kv.block_bytes(engine.block_size) for shard in bare]
    if config.kv_cache_bytes is None:
        most = _most_blocks(limits, bare, block_bytes)
    else:
        most = config.kv_cache_bytes // max(block_bytes)
    max_model_len = served_max_model_len(spec, config)
    steps = _largest_steps(config, max_model_len, max(0, most))
    filled = [
        replace(one, activation_bytes=activation_bytes(spec, one.shard, one.kv, one.num_heads, steps)) for one in bare
    ]
    if config.kv_cache_bytes is None:
        most = _most_blocks(limits, filled, block_bytes)
    num_blocks = min(max(0, most), useful_blocks(config, max_model_len))
    return MemoryPlan(
        [replace(one, kv_cache_bytes=num_blocks * block) for one, block in zip(filled, block_bytes, strict=True)],
        weights,
        num_blocks,
        engine.block_size,
        max_model_len,
        engine.max_num_seqs,
        memory_bytes,
        own[0] if own else shares.of_device,
        shares.num_on_device,
        tuple(stage_devices),
        tuple(own),
    )


def useful_blocks(config: ModelConfig, max_model_len: int) -> int:
    """Blocks of the KV cache that all sequences together can fill: the engine makes no more."""
    return config.engine.max_num_seqs * -(-max_model_len // config.engine.block_size)


def _most_blocks(limits: Sequence[int], shards: Sequence[ShardMemory], block_bytes: Sequence[int]) -> int:
    """Blocks that each shard has room for."""
    return min(
        (limit - one.fixed_bytes) // block for limit, one, block in zip(limits, shards, block_bytes, strict=True)
    )


@dataclass(frozen=True, slots=True)
class DeviceShares:
    """What shards may take of their device."""

    of_device: int
    of_one: int
    num_on_device: int


def device_shares(
    config: ModelConfig, profile: DeviceProfile, memory_bytes: int, num_shards: int, utilization: float
) -> DeviceShares:
    """Of devices of `memory_bytes`; utilization: of a GPU's, that a copy may use."""
    if profile.type == "cpu":
        num_on_node = min(num_shards, profile.devices_per_node)
        return DeviceShares(memory_bytes, memory_bytes // num_on_node, num_on_node)
    share = int(memory_bytes * config.device.gpus_per_shard * utilization)
    return DeviceShares(share, share, 1)


def _shard_memory(
    spec: ModelSpec, shard: ShardSpec, weights: ModelWeights, dtype: str, profile: DeviceProfile
) -> ShardMemory:
    """Without its activations and KV cache."""
    num_heads = rank_heads(spec, shard.num_ranks).num_heads
    return ShardMemory(
        shard, num_heads, kv_shape_on(shard, spec, dtype), weights.bytes_on(shard), 0, 0, profile.reserve
    )


def _largest_steps(config: ModelConfig, max_model_len: int, most_blocks: int) -> StepSizes:
    """No context is longer than the cache that there would be if steps took nothing."""
    engine = config.engine
    most_tokens = max(most_blocks * engine.block_size, engine.max_num_batched_tokens)
    return StepSizes(engine.max_num_batched_tokens, engine.max_num_seqs, min(max_model_len, most_tokens))
