"""The splits that a model allows, from the fewest devices up: tensor ranks within a node, stages across nodes."""

from collections.abc import Iterator

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.engine import ParallelConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.memory_plan import MemoryPlan, plan_memory
from serve_app.planning.part_weights import ModelWeights
from serve_app.planning.planner import check_split

MAX_DEVICES = 64  # of one copy that are tried


def possible_splits(
    spec: ModelSpec, config: ModelConfig, devices_per_node: int, max_devices: int
) -> Iterator[ParallelConfig]:
    """Of each number of devices, the split with the most tensor ranks of those that the model allows.

    Ranks that hold the same key-value heads keep more than stages of fewer ranks would: these are tried after them.
    """
    num_kv_heads = min(kind.num_kv_heads for kind in spec.head_kinds)
    for num_devices in range(1, max_devices + 1):
        for tensor in range(min(num_devices, devices_per_node), 0, -1):
            parallel = ParallelConfig(pipeline=num_devices // tensor, tensor=tensor)
            is_even = num_devices % tensor == 0 and devices_per_node % tensor == 0
            if is_even and not check_split(spec, split_as(config, parallel)):
                yield parallel
                if tensor <= num_kv_heads:
                    break


def split_as(config: ModelConfig, parallel: ParallelConfig) -> ModelConfig:
    """The same settings with another split."""
    return config.model_copy(update={"parallel": parallel})


def fewest_devices(
    spec: ModelSpec,
    config: ModelConfig,
    weights: ModelWeights,
    profile: DeviceProfile,
    memory_bytes: int,
    max_devices: int | None = None,
) -> ParallelConfig | None:
    """The split over the fewest devices that hold the model and the KV cache that is wanted; None: none does."""
    if profile.type == "cpu":  # shards of a node share its memory, so that more of them gain none
        max_devices = 1
    for parallel in possible_splits(spec, config, profile.devices_per_node, max_devices or MAX_DEVICES):
        tried = split_as(config, parallel)
        if has_room(plan_memory(spec, tried, weights, profile, memory_bytes), tried):
            return parallel
    return None


def has_room(memory: MemoryPlan, config: ModelConfig) -> bool:
    """Whether there is room for the KV cache that is wanted: one that is set, else for one sequence of the longest."""
    if memory.missing_bytes or not memory.num_blocks:
        return False
    return config.engine.kv_cache_bytes is not None or config.device.type == "cpu" or memory.max_sequences > 0
