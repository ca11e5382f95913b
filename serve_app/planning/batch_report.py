"""The plan of a model that is done after one step, as people read it, and as JSON."""

from serve_app.planning.batch_plan import BatchPlan
from serve_app.planning.memory_plan import ShardMemory
from serve_app.planning.plan_report import bundles_text, counted, devices_text
from serve_app.planning.planner import align, readable_bytes

_HEAD = ("stage", "rank", "layers", "weights", "activations", "reserve", "total")


def batch_text(plan: BatchPlan) -> str:
    """One model's plan for people."""
    rates = plan.rates
    unit = "entries" if rates.tokens is None else f"texts of {rates.tokens} tokens"
    lines = [
        f"{plan.config.name}: {plan.kind}, task {plan.config.task}, {plan.dtype}, "
        f"on {devices_text(plan.memory, plan.device)}",
        align([_HEAD, *map(_row, plan.memory.shards)]),
    ]
    if not plan.problems:
        lines.append(
            f"predicted: {rates.entries_per_s:.1f} {unit} each second in steps of {rates.entries_in_step}, one alone "
            f"after {rates.latency_s:.4f} s, bound by {rates.bound}"
        )
    if plan.is_first:
        lines.append(f"reserved: {counted(plan.num_replicas, 'replica')} x {bundles_text(plan.bundles)}")
    else:
        lines.append("reserved: nothing of its own; it shares the shards of the models beside it")
    return "\n".join([*lines, *plan.notes])


def batch_json(plan: BatchPlan) -> dict[str, object]:
    """One model's plan as JSON; layers are [first, end), both 0 where they are not known."""
    memory = plan.memory
    return {
        "name": plan.config.name,
        "task": plan.config.task,
        "device": plan.device.name,
        "parallel": plan.config.parallel.model_dump(exclude_none=True),
        "shards": [_shard_json(one) for one in memory.shards],
        "device_bytes": memory.device_bytes,
        "usable_bytes": memory.share_bytes,
        "shards_on_device": memory.num_on_device,
        "predicted": None
        if plan.problems
        else {
            "text_tokens": plan.rates.tokens,
            "entries_in_step": plan.rates.entries_in_step,
            "entries_per_s": round(plan.rates.entries_per_s, 2),
            "latency_s": round(plan.rates.latency_s, 6),
            "bound": plan.rates.bound,
        },
        "replicas": plan.num_replicas,
        "bundles": plan.bundles,
        "problems": plan.problems,
        "notes": plan.notes,
    }


def _row(one: ShardMemory) -> tuple[str, ...]:
    shard = one.shard
    layers = f"{shard.first_layer}-{shard.end_layer - 1}" if shard.end_layer else "parts"
    sizes = (one.weights_bytes, one.activation_bytes, one.reserve_bytes, one.total_bytes)
    return (str(shard.stage), str(shard.rank), layers, *map(readable_bytes, sizes))


def _shard_json(one: ShardMemory) -> dict[str, object]:
    return {
        "stage": one.shard.stage,
        "rank": one.shard.rank,
        "layers": [one.shard.first_layer, one.shard.end_layer],
        "weights_bytes": one.weights_bytes,
        "activation_bytes": one.activation_bytes,
        "reserve_bytes": one.reserve_bytes,
        "total_bytes": one.total_bytes,
    }
