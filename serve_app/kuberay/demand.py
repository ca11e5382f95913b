"""What each application of a Serve file asks of the pods: copies, shards, their memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.checkpoints.safetensors_header import read_safetensors_header
from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.device_choice import Surroundings, on_device
from serve_app.planning.model_plan import plan_model
from serve_app.planning.plan_source import directory_to_plan
from serve_app.planning.serve_options import DeploymentOptions

MIB = 1024**2
UNKNOWN_MEMORY = 2**50  # of CPU nodes: a pod gets what its shards need
_GPU_PROCESS_BYTES = 4096 * MIB  # host memory of a shard on a GPU: libraries, the driver's share, pinned buffers
_GPU_THREADS = 2  # of a shard whose GPU computes
_STEP_BYTES = 512 * MIB  # of a batch model's largest step
_WIDEST = 4  # bytes of a number: what is stored in 16 bits may be served in float32
_AUTO_REPLICAS = (1, 100)  # Serve's own bounds of num_replicas: auto


@dataclass(frozen=True, slots=True)
class Copies:
    """How many replicas of a deployment there may be."""

    least: int
    first: int
    most: int


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """The copies of one application's models, which share their shards."""

    name: str
    config: ModelConfig  # of the first of them, with its split
    copies: Copies
    shard_bytes: int  # of a pod's memory, each
    num_threads: int  # that a shard computes with; on a CPU it has as many cores
    device: str  # as the table of devices calls it

    @property
    def num_shards(self) -> int:
        """Shards of a copy, and those that stand by."""
        return self.config.parallel.num_shards + self.config.standby_shards

    @property
    def is_on_gpu(self) -> bool:
        """Whether its shards have GPUs."""
        return self.config.device.type == "cuda"


def copies_of(options: DeploymentOptions | None) -> Copies:
    """The replicas that Serve may run of a deployment; None: the file does not mention it."""
    if options is None:
        return Copies(1, 1, 1)
    scaling = options.autoscaling_config
    if options.num_replicas == "auto":
        given = set() if scaling is None else scaling.model_fields_set
        least, most = _AUTO_REPLICAS
        if scaling is not None:
            least = scaling.min_replicas if "min_replicas" in given else least
            most = scaling.max_replicas if "max_replicas" in given else most
        first = least if scaling is None or scaling.initial_replicas is None else scaling.initial_replicas
        return Copies(least, first, max(first, most))
    if scaling is None:
        number = options.num_first_replicas
        return Copies(number, number, number)
    return Copies(scaling.min_replicas, options.num_first_replicas, max(scaling.max_replicas, scaling.min_replicas))


def demand_of(
    name: str,
    configs: Sequence[ModelConfig],
    copies: Copies,
    base_dir: Path,
    environment: Environment,
    around: Surroundings,
) -> ModelDemand:
    """What the models of one application ask, whose sources are those of this machine. Raises ConfigError."""
    config = configs[0]
    moved, device = on_device(config, around)
    if config.is_generative:
        plan = plan_model(
            read_model_spec(directory_to_plan(config, base_dir, environment)), moved, device, copies.first
        )
        if plan.problems:
            raise ConfigError("\n".join(plan.problems))
        assert plan.memory is not None
        held = max(shard.total_bytes for shard in plan.memory.shards)
    else:
        stored = sum(_stored_bytes(directory_to_plan(one, base_dir, environment)) for one in configs)
        held = stored * 5 // 4 // config.parallel.num_shards + _STEP_BYTES + device.profile.reserve
    is_on_gpu = config.device.type == "cuda"
    threads = config.device.cpu_threads or (_GPU_THREADS if is_on_gpu else math.ceil(config.device.cpus_per_shard))
    return ModelDemand(name, config, copies, _GPU_PROCESS_BYTES if is_on_gpu else held, threads, device.name)


def _stored_bytes(directory: Path) -> int:
    """What a directory's tensors take in the widest dtype."""
    headers = [read_safetensors_header(path) for path in sorted(directory.rglob("*.safetensors"))]
    return sum(max(tensor.num_bytes, tensor.num_elements * _WIDEST) for header in headers for tensor in header.values())
