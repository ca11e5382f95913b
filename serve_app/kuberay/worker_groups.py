"""The worker groups that hold a Serve file's models: how large their pods are, and how many there may be.

Ray packs by what is reserved, and a pod has the memory for whatever fits in it by that: on a CPU a shard reserves the
cores that it computes with, on a GPU its share of the GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.kuberay.demand import MIB, Copies, ModelDemand
from serve_app.kuberay.packing import Share, pods_for
from serve_app.planning.device_profiles import DeviceProfile, find_profile
from serve_app.planning.reservations import CPUS_PER_REPLICA, stage_sizes

OBJECT_STORE_BYTES = 200 * MIB  # tokens and activations do not go through it
_MAX_CORES = 16  # of a pod that holds several small copies; a larger copy has a larger pod
_CORES_PER_GPU = 4  # a shard launches kernels from one; tokenizers, Routers and Ray need the others
_CORES_BESIDE = 1  # of a pod, for Serve's replicas and Ray
_RAY_BYTES = 1024 * MIB  # raylet, agents, Serve's proxy
_REPLICA_BYTES = 320 * MIB  # Gateway, Router, Preprocessor, Graph: no torch
_SHARED_BYTES = 64 * MIB  # of /dev/shm, for each shard on a CPU
_SHARED_GPU_BYTES = 1024 * MIB  # for each GPU: NCCL's buffers between neighbours
_FULL = 0.9  # Ray ends processes of a pod that is fuller than 0.95


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Pods that are alike."""

    name: str
    num_cores: int  # of each pod
    num_ray_cpus: int  # what Ray may reserve of them
    num_gpus: int
    memory_bytes: int
    shared_bytes: int  # of /dev/shm, within the memory
    pods: Copies
    num_answering: int  # of the first pods, those with a Serve replica at least: the others only hold shards
    accelerator_type: str | None  # as Ray calls it, where a model asks for it

    @property
    def is_scaled(self) -> bool:
        """Whether the number of pods changes."""
        return self.pods.least < self.pods.most


def worker_groups(
    demands: Sequence[ModelDemand],
    replicas: Copies,
    profiles: dict[str, DeviceProfile],
    gpus_per_pod: int | None,
) -> list[WorkerGroup]:
    """The groups that hold the models; `replicas` are all of Serve's, Routers included. Raises ConfigError."""
    on_cpu = [one for one in demands if not one.is_on_gpu]
    groups = []
    for device in sorted({one.device for one in demands if one.is_on_gpu}):
        on_gpu = [one for one in demands if one.is_on_gpu and one.device == device]
        profile = find_profile(profiles, device)
        groups.append(_gpu_group(device, on_gpu, replicas, profile, gpus_per_pod))
    if on_cpu or not any(group.pods.least for group in groups):  # a Gateway always runs somewhere
        groups.insert(0, _cpu_group(on_cpu, replicas))
    return groups


def _cpu_group(demands: list[ModelDemand], replicas: Copies) -> WorkerGroup:
    largest = max((one.num_shards * one.num_threads for one in demands), default=0)
    at_first = sum(one.copies.first * one.num_shards * one.num_threads for one in demands)
    cores = max(largest, min(at_first, _MAX_CORES), 1)
    num_cores = cores + _CORES_BESIDE
    most_shards = sum(one.copies.most * one.num_shards for one in demands)
    at_most = sum(one.copies.most * one.num_shards * one.shard_bytes for one in demands)
    shared = OBJECT_STORE_BYTES + _SHARED_BYTES * min(num_cores, most_shards)
    beside = _RAY_BYTES + shared + _REPLICA_BYTES * min(replicas.most, math.floor(_CORES_BESIDE / CPUS_PER_REPLICA))
    pods = pods_for([Share(one.copies, _stages_in_cores(one)) for one in demands], cores, least=1)
    memory = _rounded(min(_fullest(demands, num_cores), at_most) + beside)
    return WorkerGroup("cpu", num_cores, num_cores, 0, memory, shared, pods.copies, pods.num_answering, None)


def _fullest(demands: list[ModelDemand], num_cores: int) -> int:
    """Bytes of the largest shards whose cores a pod has."""
    most = [0] * (num_cores + 1)  # by cores
    for cores in range(1, num_cores + 1):
        fitting = (one for one in demands if one.num_threads <= cores)
        most[cores] = max((most[cores - one.num_threads] + one.shard_bytes for one in fitting), default=0)
    return most[num_cores]


def _gpu_group(
    device: str, demands: list[ModelDemand], replicas: Copies, profile: DeviceProfile, gpus_per_pod: int | None
) -> WorkerGroup:
    num_gpus = gpus_per_pod or _default_gpus(demands, profile)
    for one in demands:
        tensor = one.config.parallel.tensor
        if tensor > num_gpus:
            raise ConfigError(
                f"{one.name}: tensor={tensor} keeps its ranks in one pod, and a pod has {num_gpus} GPUs; raise "
                "--gpus-per-pod, or use more stages (pipeline) of fewer ranks"
            )
    pods = pods_for([Share(one.copies, _tensor_groups(one)) for one in demands], num_gpus, least=0)
    shards = num_gpus / min(one.config.device.gpus_per_shard for one in demands)
    shared = OBJECT_STORE_BYTES + _SHARED_GPU_BYTES * num_gpus
    process = max(one.shard_bytes for one in demands)
    memory = _rounded(_RAY_BYTES + shared + shards * process + _REPLICA_BYTES * min(replicas.most, 4 * num_gpus))
    reserved = shards * max(one.config.device.cpus_per_shard for one in demands)
    ray_cpus = math.ceil(reserved + CPUS_PER_REPLICA * min(replicas.most, 4 * num_gpus))
    asked = [one.config.device.accelerator_type for one in demands if one.config.device.accelerator_type]
    cores = max(_CORES_PER_GPU * num_gpus + _CORES_BESIDE, ray_cpus)
    return WorkerGroup(
        f"gpu-{device.lower()}",
        cores,
        ray_cpus,
        num_gpus,
        memory,
        shared,
        pods.copies,
        pods.num_answering,
        asked[0] if asked else None,
    )


def _default_gpus(demands: list[ModelDemand], profile: DeviceProfile) -> int:
    """A whole copy's where a node has them, else as many as make whole tensor groups."""
    wanted = max(math.ceil(one.num_shards * one.config.device.gpus_per_shard) for one in demands)
    if wanted <= profile.devices_per_node:
        return wanted
    tensor = max(one.config.parallel.tensor for one in demands)
    return max(tensor, profile.devices_per_node // tensor * tensor)


def _stages_in_cores(demand: ModelDemand) -> tuple[float, ...]:
    """Cores of each stage of a copy, whose ranks and what stands by for them stay together, and of what is apart."""
    return tuple(
        float(demand.num_threads) * size for size in stage_sizes(demand.config.parallel, demand.config.standby_shards)
    )


def _tensor_groups(demand: ModelDemand) -> tuple[float, ...]:
    """GPUs of each stage of a copy: its ranks stay together."""
    parallel = demand.config.parallel
    return (parallel.tensor * demand.config.device.gpus_per_shard,) * parallel.pipeline


def _rounded(num_bytes: float) -> int:
    """With room to spare, in whole 512 MiB."""
    return math.ceil(num_bytes / _FULL / (512 * MIB)) * 512 * MIB
