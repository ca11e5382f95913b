"""One model of a Serve file planned on its devices: memory, rates, what the cluster must have."""

from dataclasses import dataclass

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.memory_plan import MemoryPlan, plan_memory, weigh_as_served
from serve_app.planning.planner import check_split
from serve_app.planning.reservations import copy_bundles
from serve_app.planning.roofline import predict_rates
from serve_app.planning.way_out import memory_problem
from serve_app.types.plans import Rates


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """A kind of device and its memory."""

    name: str
    profile: DeviceProfile
    memory_bytes: int


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

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each replica reserves with Ray, all on nodes that have room for a whole bundle."""
        return copy_bundles(self.config.device, self.config.parallel.num_shards)

    @property
    def notes(self) -> list[str]:
        """What the numbers leave out."""
        spec = self.spec
        if spec.num_experts is not None and spec.experts_per_token is None:
            return ["note: config.json does not say how many experts a token goes to; all are counted"]
        return []


def plan_model(spec: ModelSpec, config: ModelConfig, device: PlannedDevice, num_replicas: int) -> ModelPlan:
    """The model as `config` splits it, on devices of a kind."""
    problems = check_split(spec, config)
    if problems:
        return ModelPlan(config, spec, device, num_replicas, None, None, problems)
    memory = plan_memory(spec, config, weigh_as_served(spec, config), device.profile, device.memory_bytes)
    problem = memory_problem(spec, config, device.profile, memory, device.name)
    if problem is not None:
        return ModelPlan(config, spec, device, num_replicas, memory, None, [problem])
    rates = predict_rates(spec, config, device.profile, memory)
    return ModelPlan(config, spec, device, num_replicas, memory, rates, [])
