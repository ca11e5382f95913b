"""What a copy of a model is predicted to take and do where it runs, by the plan that `rayshard plan` makes."""

from dataclasses import dataclass, field

from serve_app.config.environment import Environment
from serve_app.errors import ConfigError
from serve_app.planning.auto_parallel import find_surroundings, known_profiles
from serve_app.planning.batch_plan import plan_batch
from serve_app.planning.device_choice import on_device, stage_devices
from serve_app.planning.generator_plan import GeneratorPlan
from serve_app.planning.memory_plan import MemoryPlan
from serve_app.planning.model_plan import plan_model
from serve_app.planning.served_model import BatchModelPlan
from serve_app.types.plans import (
    CopyAccount,
    EntryRates,
    MeasuredBytes,
    PredictedBytes,
    Rates,
    SeenRates,
    ShardAccount,
)
from serve_app.types.shards import ShardSpec


@dataclass(frozen=True, slots=True)
class CopyPrediction:
    """Of one model of one copy."""

    device: str | None = None  # None: it is not known what it runs on
    shards: list[PredictedBytes] = field(default_factory=list)  # by ShardSpec.index; empty: nothing is predicted
    rates: Rates | None = None
    notes: list[str] = field(default_factory=list)
    entry_rates: EntryRates | None = None  # of a model that is done after one step


def predict_batch(plan: BatchModelPlan, environment: Environment) -> CopyPrediction:
    """Of a model that is done after one step, likewise."""
    try:
        around = find_surroundings(known_profiles(environment))
        config, device = on_device(plan.config, around)
        planned = plan_batch(plan, config, device, 1, stage_devices(config, around))
    except ConfigError as error:
        return CopyPrediction(notes=[error.message])
    notes = [*planned.problems, *planned.notes]
    return CopyPrediction(device.name, predicted_bytes(planned.memory), None, notes, planned.rates)


def predict_generator(plan: GeneratorPlan, environment: Environment) -> CopyPrediction:
    """Of a model that generates, on this machine's kind of device or the one that its settings name."""
    try:
        around = find_surroundings(known_profiles(environment))
        config, device = on_device(plan.config, around)
        planned = plan_model(plan.spec, config, device, 1, stage_devices(config, around))
    except ConfigError as error:
        return CopyPrediction(notes=[error.message])
    shards = [] if planned.memory is None else predicted_bytes(planned.memory)
    return CopyPrediction(device.name, shards, planned.rates, [*planned.problems, *planned.notes])


def predicted_bytes(memory: MemoryPlan) -> list[PredictedBytes]:
    """Of each shard, in the order of ShardSpec.index."""
    return [
        PredictedBytes(one.weights_bytes, one.kv_cache_bytes, one.activation_bytes, one.reserve_bytes, one.total_bytes)
        for one in memory.shards
    ]


def account_of(
    model: str,
    replica_id: str,
    prediction: CopyPrediction,
    shards: list[ShardSpec],
    measured: list[MeasuredBytes | None],
    seen: SeenRates,
) -> CopyAccount:
    """Both side by side; shards and what was measured of them are in one order."""
    predicted: list[PredictedBytes | None] = [*prediction.shards] or [None] * len(shards)
    accounts = [
        ShardAccount(shard.stage, shard.rank, (shard.first_layer, shard.end_layer), planned, taken)
        for shard, planned, taken in zip(shards, predicted, measured, strict=True)
    ]
    rates, entry_rates = prediction.rates, prediction.entry_rates
    return CopyAccount(model, replica_id, prediction.device, accounts, rates, seen, prediction.notes, entry_rates)
