"""The nodes of a cluster as a file describes them, and what of a Serve file has no room there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from serve_app.config.base import ByteSize, ConfigModel
from serve_app.errors import ConfigError
from serve_app.planning.batch_plan import BatchPlan
from serve_app.planning.device_choice import Surroundings, planned_device
from serve_app.planning.device_profiles import DeviceProfile, find_name
from serve_app.planning.model_plan import ModelPlan
from serve_app.planning.reservations import CPUS_PER_REPLICA
from serve_app.planning.setting_problems import problems_of
from serve_app.planning.uneven_split import GpuKind
from serve_app.planning.yaml_document import read_document


class NodeConfig(ConfigModel):
    """Nodes of one kind."""

    count: PositiveInt = 1
    """How many nodes are alike. [nodes]"""
    cpus: PositiveFloat
    """CPUs of each, as Ray counts them. [CPUs]"""
    memory: ByteSize
    """Memory of each."""
    device: str | None = None
    """Its GPUs, by a name of devices.yaml; null: it has none."""
    devices: PositiveInt = 1
    """GPUs of each. [GPUs]"""


class ClusterConfig(ConfigModel):
    """A cluster: `nodes`, each entry so many alike."""

    nodes: list[NodeConfig] = Field(min_length=1)
    """Kinds of nodes."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster whose devices are known."""

    nodes: list[NodeConfig]
    profiles: dict[str, DeviceProfile]  # all that are known; those of the cluster with its numbers for each node

    @property
    def device_names(self) -> list[str]:
        """Kinds of GPUs, those with the least memory first."""
        names = {node.device for node in self.nodes if node.device is not None}
        return sorted(names, key=lambda name: self.profiles[name].memory or 0)

    @property
    def gpu_kinds(self) -> list[GpuKind]:
        """Its GPUs, those with the least memory first."""
        around = self.surroundings
        return [
            GpuKind(
                planned_device(name, around),
                tuple(node.devices for node in self.nodes for _ in range(node.count) if node.device == name),
            )
            for name in self.device_names
        ]

    @property
    def surroundings(self) -> Surroundings:
        """What models are planned on; shards on CPU may run on the smallest node."""
        least = min(node.memory for node in self.nodes)
        return Surroundings(self.profiles, memory_bytes=least, gpus=tuple(self.device_names))

    @property
    def remarks(self) -> list[str]:
        """What people are to know of the plans."""
        if len(self.device_names) < 2:
            return []
        names = ", ".join(self.device_names)
        return [
            f"GPUs differ ({names}): Ray chooses among them, so models that name none are planned on "
            f"{self.device_names[0]}; where that has no room, stages are planned over several kinds"
        ]


def read_cluster(path: Path, profiles: dict[str, DeviceProfile]) -> Cluster:
    """The cluster of a file. Raises ConfigError that names every mistake."""
    document = read_document(path)
    if document.problems:
        raise ConfigError("\n".join(map(str, document.problems)))
    try:
        config = ClusterConfig.model_validate(document.value)
    except ValidationError as error:
        found = problems_of(error, ClusterConfig, "")
        raise ConfigError("\n".join(f"{path}: {one}" for one in found)) from error
    known, nodes = dict(profiles), []
    for node in config.nodes:
        if node.device is None:
            nodes.append(node)
            continue
        name = find_name(profiles, node.device)
        if profiles[name].type == "cpu":
            raise ConfigError(f"{path}: device {node.device} is a CPU; leave `device` out of nodes without GPUs")
        number = min([node.devices, *(one.devices for one in nodes if one.device == name)])
        known[name] = profiles[name].model_copy(update={"devices_per_node": number})
        nodes.append(node.model_copy(update={"device": name}))
    return Cluster(nodes, known)


def cluster_problems(cluster: Cluster, plans: Sequence[ModelPlan | BatchPlan]) -> list[str]:
    """What the models reserve beyond what the nodes have, placed as a first fit finds it."""
    nodes = [node for node in cluster.nodes for _ in range(node.count)]
    free = [_Free(node, node.cpus, float(node.devices if node.device else 0)) for node in nodes]
    problems = []
    cpus = sum(one.cpus for one in free)
    needed = sum(plan.num_replicas * sum(bundle["CPU"] for bundle in plan.bundles) for plan in plans) + CPUS_PER_REPLICA
    if needed > cpus:
        problems.append(
            f"the models reserve {needed:g} CPUs, and the cluster has {cpus:g}; lower device.cpus_per_shard, or add "
            "nodes"
        )
    for plan in sorted(plans, key=lambda one: -one.config.device.gpus_per_shard):
        if plan.config.device.type == "cuda" and plan.bundles:
            parallel = plan.config.parallel
            stages = range(parallel.pipeline)
            wanted = plan.num_replicas * parallel.num_shards
            placed = sum(_place(free, plan, stage) for _ in range(plan.num_replicas) for stage in stages)
            if placed * parallel.tensor < wanted:
                names = dict.fromkeys(plan.device_of(stage).name for stage in stages)
                together = f" (the {parallel.tensor} of a stage on one node)" if parallel.tensor > 1 else ""
                problems.append(
                    f"{plan.config.name}: {plan.num_replicas} x {parallel.num_shards} shards need {wanted} devices of "
                    f"{' and '.join(names)}{together}, and the cluster has room for {placed * parallel.tensor}; lower "
                    "num_replicas or parallel, or add nodes"
                )
    return problems


@dataclass(slots=True)
class _Free:
    node: NodeConfig
    cpus: float
    devices: float


def _place(free: list[_Free], plan: ModelPlan | BatchPlan, stage: int) -> bool:
    """Whether the shards of a stage find room on one node; what they take is taken."""
    device, num_ranks = plan.config.device, plan.config.parallel.tensor
    devices, cpus = num_ranks * device.gpus_per_shard, num_ranks * device.cpus_per_shard
    is_any = device.accelerator_type is None and plan.config.parallel.accelerator_types is None
    for one in free:
        is_right = is_any or one.node.device == plan.device_of(stage).name
        if is_right and one.devices >= devices and one.cpus >= cpus:
            one.devices -= devices
            one.cpus -= cpus
            return True
    return False
