"""Stages on GPUs of several kinds: each takes layers by what its GPUs hold, or by how fast they read.

Tensor ranks share a stage's time in equal parts, so that they stay on GPUs of one kind, within a node.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.engine import AutoParallelConfig, ParallelConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import PlannedDevice
from serve_app.planning.memory_plan import plan_memory
from serve_app.planning.model_plan import ModelPlan, plan_model
from serve_app.planning.part_weights import ModelWeights
from serve_app.planning.planner import check_split, stage_weights, weigh_as_served
from serve_app.planning.roofline import predict_rates
from serve_app.planning.splits import MAX_DEVICES, has_room, split_as
from serve_app.planning.stage_ends import uneven_stage_ends


@dataclass(frozen=True, slots=True)
class GpuKind:
    """GPUs of one kind in a cluster, by node."""

    device: PlannedDevice
    on_nodes: tuple[int, ...]

    def num_groups(self, tensor: int) -> int:
        """Stages of so many tensor ranks that there is room for."""
        return sum(number // tensor for number in self.on_nodes)


def may_be_uneven(config: ModelConfig, kinds: Sequence[GpuKind]) -> bool:
    """Whether planning may spread a model's stages over GPUs of several kinds: the settings leave it open."""
    parallel = config.parallel
    is_open = config.device.accelerator_type is None and parallel.accelerator_types is None and parallel.layers is None
    has_stages = isinstance(parallel, AutoParallelConfig) or parallel.pipeline > 1
    has_whole_gpus = config.device.type == "cuda" and config.device.gpus_per_shard == 1
    return len(kinds) > 1 and has_whole_gpus and is_open and has_stages


def plan_uneven(spec: ModelSpec, config: ModelConfig, kinds: Sequence[GpuKind], num_replicas: int) -> ModelPlan | None:
    """The model over GPUs of several kinds; None: it has no room there either."""
    found = uneven_parallel(spec, config, kinds, num_replicas)
    if found is None:
        return None
    parallel, devices = found
    plan = plan_model(spec, split_as(config, parallel), devices[0], num_replicas, devices)
    return replace(plan, is_chosen_uneven=True)


def uneven_parallel(
    spec: ModelSpec, config: ModelConfig, kinds: Sequence[GpuKind], num_replicas: int
) -> tuple[ParallelConfig, list[PlannedDevice]] | None:
    """The split over GPUs of several kinds, those with the most memory first, and the one of each stage; None: no room.

    The number of stages and ranks is that of `config`; where that is auto, the fewest devices with the most ranks.
    """
    weights = weigh_as_served(spec, split_as(config, ParallelConfig()))
    for pipeline, tensor in _numbers(config, kinds):
        devices = _largest_first(kinds, pipeline, tensor, max(1, num_replicas))
        plain = ParallelConfig(pipeline=pipeline, tensor=tensor)
        if devices is None or check_split(spec, split_as(config, plain)):
            continue
        found = _fastest(spec, config, weights, plain, devices)
        if found is not None:
            return found, devices
    return None


def _numbers(config: ModelConfig, kinds: Sequence[GpuKind]) -> Iterator[tuple[int, int]]:
    """Stages and ranks to be tried."""
    if not isinstance(config.parallel, AutoParallelConfig):
        yield config.parallel.pipeline, config.parallel.tensor
        return
    most_ranks = max(number for kind in kinds for number in kind.on_nodes)
    for num_devices in range(2, MAX_DEVICES + 1):
        for tensor in range(min(num_devices // 2, most_ranks), 0, -1):
            if num_devices % tensor == 0:
                yield num_devices // tensor, tensor


def _largest_first(
    kinds: Sequence[GpuKind], pipeline: int, tensor: int, num_replicas: int
) -> list[PlannedDevice] | None:
    """The device of each stage; None: there are too few for all replicas."""
    ordered = sorted(kinds, key=lambda kind: -kind.device.memory_bytes)
    devices = [kind.device for kind in ordered for _ in range(kind.num_groups(tensor) // num_replicas)]
    return devices[:pipeline] if len(devices) >= pipeline else None


def _fastest(
    spec: ModelSpec,
    config: ModelConfig,
    weights: ModelWeights,
    plain: ParallelConfig,
    devices: list[PlannedDevice],
) -> ParallelConfig | None:
    """Layers by how fast the devices read, or by their memory: of those that have room the one that decodes faster."""
    by_rate = [device.profile.read_rate for device in devices]
    by_memory = [float(device.memory_bytes) for device in devices]
    found: list[tuple[float, ParallelConfig]] = []
    for shares in (by_rate, by_memory):
        parallel = with_layers(spec, plain, shares, devices)
        tried = split_as(config, parallel)
        memory = plan_memory(spec, tried, weights, devices[0].profile, devices[0].memory_bytes, devices)
        if has_room(memory, tried):
            rates = predict_rates(spec, tried, devices[0].profile, memory)
            found.append((rates.total_decode_tokens_per_s, parallel))
    return max(found, key=lambda one: one[0])[1] if found else None


def with_layers(
    spec: ModelSpec, plain: ParallelConfig, shares: Sequence[float], devices: Sequence[PlannedDevice]
) -> ParallelConfig:
    """The split whose stages have layers by these shares, on the GPUs that Ray knows these devices as."""
    ends = uneven_stage_ends(stage_weights(spec, plain.pipeline), shares)
    layers = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    types = [next(iter(device.profile.accelerator_types), device.name) for device in devices]
    return plain.model_copy(update={"layers": layers, "accelerator_types": types})
