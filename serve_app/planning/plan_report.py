"""A plan as people read it, and as JSON."""

from itertools import groupby

from serve_app.architectures.rank_shares import kv_head_range
from serve_app.checkpoints.rank_sizes import has_whole_attention, whole_heads
from serve_app.planning.device_profiles import PlannedDevice
from serve_app.planning.memory_plan import MemoryPlan, ShardMemory
from serve_app.planning.model_plan import ModelPlan
from serve_app.planning.planner import align, readable_bytes, served_dtype

_HEAD = ("stage", "rank", "layers", "heads", "kv heads", "weights", "KV cache", "activations", "reserve", "total")


def plan_text(plan: ModelPlan) -> str:
    """One model's plan for people."""
    config, device, memory = plan.config, plan.device, plan.memory
    if memory is None:
        return ""
    lines = [
        f"{config.name}: {plan.spec.model_type}, {plan.spec.num_layers} layers, {served_dtype(plan.spec, config)}, "
        f"up to {memory.max_model_len} tokens, on {devices_text(memory, device)}",
        align([_HEAD, *(_row(plan, one) for one in memory.shards)]),
    ]
    if not plan.problems:
        lines.append(_fit_line(memory))
    if plan.rates is not None:
        rates = plan.rates
        lines.append(
            f"predicted at {rates.context_tokens} tokens of context: prefill {rates.prefill_tokens_per_s:.0f} "
            f"tokens/s, first token after {rates.time_to_first_token_s:.3f} s; decode "
            f"{rates.decode_tokens_per_s:.1f} tokens/s for one sequence, {rates.total_decode_tokens_per_s:.0f} "
            f"tokens/s for {rates.decode_sequences} at once, bound by {rates.bound}"
        )
    lines.append(f"reserved: {counted(plan.num_replicas, 'replica')} x {bundles_text(plan.bundles)}")
    return "\n".join([*lines, *plan.notes])


def plan_json(plan: ModelPlan) -> dict[str, object]:
    """One model's plan as JSON; layers and heads are [first, end)."""
    memory = plan.memory
    fit: dict[str, object] = {} if memory is None else _fit_json(memory)
    return {
        "name": plan.config.name,
        "device": plan.device.name,
        "parallel": plan.config.parallel.model_dump(exclude_none=True),
        "shards": [] if memory is None else [_shard_json(plan, one) for one in memory.shards],
        "max_sequences": None if memory is None else memory.max_sequences,
        **fit,
        "predicted": None if plan.rates is None else _rates_json(plan),
        "replicas": plan.num_replicas,
        "bundles": plan.bundles,
        "problems": plan.problems,
        "notes": plan.notes,
    }


def devices_text(memory: MemoryPlan, device: PlannedDevice) -> str:
    """What a copy is on, for people."""
    if memory.stage_devices:
        named = [f"{one.name} with {readable_bytes(one.memory_bytes)}" for one in memory.stage_devices]
        runs = [(name, len(list(group))) for name, group in groupby(named)]
        return ", then ".join(f"{counted(number, 'stage')} of {name} each" for name, number in runs)
    kind = "of this node" if device.profile.type == "cpu" else "each"
    return f"{device.name} with {readable_bytes(device.memory_bytes)} {kind}"


def _fit_line(memory: MemoryPlan) -> str:
    held = f"KV cache: {memory.kv_cache_tokens} tokens"
    if not memory.max_sequences:
        return f"{held}, so that no sequence of {memory.max_model_len} tokens fits, but shorter ones"
    at_once = counted(memory.max_sequences, "sequence")
    return f"{held}: {at_once} of {memory.max_model_len} tokens at once (max_num_seqs={memory.max_num_seqs})"


def _fit_json(memory: MemoryPlan) -> dict[str, object]:
    return {
        "max_model_len": memory.max_model_len,
        "kv_cache_tokens": memory.kv_cache_tokens,
        "device_bytes": memory.device_bytes,
        "usable_bytes": memory.share_bytes,
        "shards_on_device": memory.num_on_device,
    }


def _shard_json(plan: ModelPlan, one: ShardMemory) -> dict[str, object]:
    return {
        "stage": one.shard.stage,
        "rank": one.shard.rank,
        "device": plan.device_of(one.shard.stage).name,
        "layers": [one.shard.first_layer, one.shard.end_layer],
        "heads": list(_head_range(plan, one)),
        "kv_heads": list(_kv_head_range(plan, one)),
        "weights_bytes": one.weights_bytes,
        "kv_cache_bytes": one.kv_cache_bytes,
        "activation_bytes": one.activation_bytes,
        "reserve_bytes": one.reserve_bytes,
        "total_bytes": one.total_bytes,
    }


def _rates_json(plan: ModelPlan) -> dict[str, object]:
    rates = plan.rates
    assert rates is not None
    return {
        "context_tokens": rates.context_tokens,
        "prefill_tokens_per_s": round(rates.prefill_tokens_per_s, 1),
        "time_to_first_token_s": round(rates.time_to_first_token_s, 5),
        "decode_tokens_per_s": round(rates.decode_tokens_per_s, 2),
        "decode_sequences": rates.decode_sequences,
        "total_decode_tokens_per_s": round(rates.total_decode_tokens_per_s, 1),
        "bound": rates.bound,
    }


def _row(plan: ModelPlan, one: ShardMemory) -> tuple[str, ...]:
    sizes = (one.weights_bytes, one.kv_cache_bytes, one.activation_bytes, one.reserve_bytes, one.total_bytes)
    return (
        str(one.shard.stage),
        str(one.shard.rank),
        f"{one.shard.first_layer}-{one.shard.end_layer - 1}",
        _shown(_head_range(plan, one)),
        _shown(_kv_head_range(plan, one)),
        *map(readable_bytes, sizes),
    )


def _head_range(plan: ModelPlan, one: ShardMemory) -> tuple[int, int]:
    """First and end of a rank's query heads; all where attention is not cut."""
    first = 0 if has_whole_attention(plan.spec) else one.shard.rank * one.num_heads
    return first, first + one.num_heads


def _kv_head_range(plan: ModelPlan, one: ShardMemory) -> tuple[int, int]:
    """The same of key-value heads, of which several ranks may hold one."""
    num_kv_heads = whole_heads(plan.spec, one.shard.num_ranks).num_kv_heads
    if has_whole_attention(plan.spec):
        return 0, num_kv_heads
    return kv_head_range(num_kv_heads, one.shard.rank, one.shard.num_ranks)


def _shown(heads: tuple[int, int]) -> str:
    return f"{heads[0]}-{heads[1] - 1}" if heads[1] - heads[0] > 1 else str(heads[0])


def bundles_text(bundles: list[dict[str, float]]) -> str:
    """What one replica reserves; of equal bundles, how many."""
    router, *shards = bundles
    runs = [(each, len(list(group))) for each, group in groupby(map(_resources, shards))]
    counted = ", ".join(f"{number} of {each}" for each, number in runs)
    return f"{len(bundles)} bundles (1 of {_resources(router)}, {counted})"


def _resources(bundle: dict[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in bundle.items())


def counted(number: int, noun: str) -> str:
    """As in \"2 stages\"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
