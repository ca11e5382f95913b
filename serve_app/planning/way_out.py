"""What to change in the settings of a model that does not fit, the cheapest first."""

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.compression import QuantizationConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.memory_plan import MemoryPlan, plan_memory
from serve_app.planning.planner import check_split, readable_bytes, weigh_as_served
from serve_app.planning.splits import fewest_devices, has_room

_MIN_CONTEXT_TOKENS = 256  # below which no shorter context is proposed


def memory_problem(
    spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan, device: str
) -> str | None:
    """Why a copy does not fit its devices, and what would make it fit; None: it does."""
    if not memory.missing_bytes and memory.num_blocks and (config.max_model_len is None or memory.max_sequences):
        return None
    return room_problem(spec, config, profile, memory, device)


def room_problem(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan, device: str) -> str:
    """What a copy lacks that does not fit, or whose KV cache holds no sequence of the longest; and the way out."""
    ways = _ways_out(spec, config, profile, memory)
    if ways:
        advice = f"the cheapest change that fits: {ways[0]}" + "".join(f"; or {way}" for way in ways[1:])
    else:
        advice = (
            "no split, int8 or shorter context would make it fit; take devices with more memory, or a smaller model"
        )
    return f"{_shortage(config, memory, device)}; {advice}"


def _shortage(config: ModelConfig, memory: MemoryPlan, device: str) -> str:
    fullest = max(memory.shards, key=lambda one: one.fixed_bytes - memory.share_of(one.shard))
    if memory.stage_devices:
        device = memory.stage_devices[fullest.shard.stage].name
    parts = (
        f"weights {readable_bytes(fullest.weights_bytes)}, activations {readable_bytes(fullest.activation_bytes)}, "
        f"reserve {readable_bytes(fullest.reserve_bytes)}"
    )
    where = f"stage {fullest.shard.stage} rank {fullest.shard.rank}"
    share = f"{readable_bytes(memory.share_of(fullest.shard))} of {device}"
    if memory.missing_bytes:
        kept = f", KV cache {readable_bytes(fullest.kv_cache_bytes)}" if fullest.kv_cache_bytes else ""
        others = "" if memory.num_on_device == 1 else f", one of {memory.num_on_device} shards on a node,"
        return f"{config.name} does not fit: {where}{others} takes {parts}{kept}, which is more than {share}"
    return (
        f"{config.name} does not fit: beside {parts} on {where}, {share} has room for {memory.kv_cache_tokens} tokens "
        f"of KV cache, fewer than max_model_len={memory.max_model_len}"
    )


def _ways_out(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> list[str]:
    """Changes that fit, each alone: those that need no other devices first. With named GPUs none is looked for."""
    if memory.stage_devices:
        return []
    found = (
        _shorter_context(spec, config, profile, memory),
        _smaller_cache(config, memory),
        _int8(spec, config, profile, memory),
        _more_devices(spec, config, profile, memory),
    )
    return [way for way in found if way is not None]


def _shorter_context(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> str | None:
    if memory.missing_bytes:
        return None
    num_tokens = memory.kv_cache_tokens
    if num_tokens < _MIN_CONTEXT_TOKENS:
        return None
    shorter = config.model_copy(update={"max_model_len": num_tokens})
    if not has_room(plan_memory(spec, shorter, memory.weights, profile, memory.device_bytes), shorter):
        return None
    return f"max_model_len: {num_tokens}"


def _smaller_cache(config: ModelConfig, memory: MemoryPlan) -> str | None:
    """Of a model whose weights alone have room."""
    if not memory.missing_bytes or not memory.num_blocks:
        return None
    left_bytes = max(one.kv_cache_bytes for one in memory.shards) - -(-memory.missing_bytes // memory.num_on_device)
    block_bytes = max(one.kv.block_bytes(memory.block_size) for one in memory.shards)
    wanted = -(-(config.max_model_len or memory.block_size) // memory.block_size)
    return f"engine.kv_cache_bytes: {left_bytes}" if left_bytes >= wanted * block_bytes else None


def _int8(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> str | None:
    if config.quantization is not None or spec.quantization is not None:
        return None
    smaller = config.model_copy(update={"quantization": QuantizationConfig(scheme="int8")})
    if check_split(spec, smaller):
        return None
    weights = weigh_as_served(spec, smaller)
    if not has_room(plan_memory(spec, smaller, weights, profile, memory.device_bytes), smaller):
        return None
    return "quantization: {scheme: int8}"


def _more_devices(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> str | None:
    if profile.type == "cpu" or config.device.gpus_per_shard < 1:
        return None
    parallel = fewest_devices(spec, config, memory.weights, profile, memory.device_bytes)
    if parallel is None:
        return None
    return f"parallel: {{pipeline: {parallel.pipeline}, tensor: {parallel.tensor}}} ({parallel.num_shards} devices)"
