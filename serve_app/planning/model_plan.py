"""One model of a Serve file planned on its devices: memory, rates, what the cluster must have."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.engine import ParallelConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import PlannedDevice
from serve_app.planning.memory_plan import MemoryPlan, plan_memory
from serve_app.planning.planner import check_split, weigh_as_served
from serve_app.planning.reservations import copy_bundles
from serve_app.planning.roofline import predict_rates
from serve_app.planning.way_out import memory_problem
from serve_app.types.plans import Rates


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model that generates, on its devices."""

    config: ModelConfig
    spec: ModelSpec
    device: PlannedDevice
    num_replicas: int  # that it begins with
    memory: MemoryPlan | None  # None: it cannot be split so
    rates: Rates | None  # None: it does not fit
    problems: list[str]  # empty: it fits, and can be served
    is_chosen_uneven: bool = False  # its stages are on GPUs that planning has chosen, and not the Serve file

    def device_of(self, stage: int) -> PlannedDevice:
        """What a stage is on."""
        stages = () if self.memory is None else self.memory.stage_devices
        return stages[stage] if stages else self.device

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each replica reserves with Ray, all on nodes that have room for a whole bundle."""
        return copy_bundles(self.config.device, self.config.parallel)

    @property
    def notes(self) -> list[str]:
        """What the numbers leave out."""
        spec, found = self.spec, []
        if self.is_chosen_uneven:
            found.append(
                f"note: GPUs differ; write `parallel: {parallel_text(self.config.parallel)}` to have it so: otherwise "
                "stages are even, and on the GPUs that Ray chooses"
            )
        if spec.num_experts is not None and spec.experts_per_token is None:
            found.append("note: config.json does not say how many experts a token goes to; all are counted")
        return found


def parallel_text(parallel: ParallelConfig) -> str:
    """A split as a Serve file has it."""
    parts = [f"pipeline: {parallel.pipeline}", f"tensor: {parallel.tensor}"]
    if parallel.layers is not None:
        parts.append(f"layers: [{', '.join(map(str, parallel.layers))}]")
    if parallel.accelerator_types is not None:
        parts.append(f"accelerator_types: [{', '.join(parallel.accelerator_types)}]")
    return f"{{{', '.join(parts)}}}"


def plan_model(
    spec: ModelSpec,
    config: ModelConfig,
    device: PlannedDevice,
    num_replicas: int,
    stage_devices: Sequence[PlannedDevice] = (),
) -> ModelPlan:
    """The model as `config` splits it, on devices of a kind, or on one of its own for each stage."""
    problems = check_split(spec, config)
    if problems:
        return ModelPlan(config, spec, device, num_replicas, None, None, problems)
    memory = plan_memory(
        spec, config, weigh_as_served(spec, config), device.profile, device.memory_bytes, stage_devices
    )
    problem = memory_problem(spec, config, device.profile, memory, device.name)
    if problem is not None:
        return ModelPlan(config, spec, device, num_replicas, memory, None, [problem])
    rates = predict_rates(spec, config, device.profile, memory)
    return ModelPlan(config, spec, device, num_replicas, memory, rates, [])
