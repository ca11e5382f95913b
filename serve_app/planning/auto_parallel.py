"""What `parallel: auto` means: the fewest devices that hold the model and the KV cache that is wanted.

Asked by `validate`, by `plan` and by what builds the application, so that all three give the same split.
"""

from collections.abc import Mapping
from pathlib import Path

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.config.engine import AutoParallelConfig, ParallelConfig
from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.device_choice import Surroundings, on_device
from serve_app.planning.device_profiles import DeviceProfile, load_profiles
from serve_app.planning.machine import find_accelerator_type, find_memory
from serve_app.planning.memory_plan import plan_memory
from serve_app.planning.plan_source import directory_to_plan
from serve_app.planning.planner import check_split, weigh_as_served
from serve_app.planning.splits import fewest_devices, split_as
from serve_app.planning.way_out import room_problem


def known_profiles(environment: Environment, given: Path | None = None) -> dict[str, DeviceProfile]:
    """The packaged devices, what was measured here, and a file's. Raises ConfigError."""
    measured = environment.measured_devices_file
    return load_profiles(*([measured] if measured.is_file() else []), *([] if given is None else [given]))


def find_surroundings(profiles: Mapping[str, DeviceProfile], device: str | None = None) -> Surroundings:
    """What is known here of where models will run."""
    return Surroundings(dict(profiles), device, find_accelerator_type(), find_memory())


def with_parallel(
    config: ModelConfig, base_dir: Path, environment: Environment, around: Surroundings | None = None
) -> ModelConfig:
    """The settings with a split in place of `parallel: auto`; others as they are.

    Raises ConfigError, of field `parallel` where nothing fits or it is not known on what.
    """
    if not isinstance(config.parallel, AutoParallelConfig):
        return config
    found = around or find_surroundings(known_profiles(environment))
    try:
        planned, device = on_device(config, found)
    except ConfigError as error:
        raise ConfigError(f"parallel=auto: {error.message}", field="parallel") from error
    spec = read_model_spec(directory_to_plan(planned, base_dir, environment))
    whole = split_as(planned, ParallelConfig())
    if check_split(spec, whole):  # it is not served at all, which is told where that is checked
        return split_as(config, ParallelConfig())
    weights = weigh_as_served(spec, whole)
    max_devices = 1 if planned.device.gpus_per_shard < 1 else None  # a share of a GPU is for one shard
    parallel = fewest_devices(spec, whole, weights, device.profile, device.memory_bytes, max_devices)
    if parallel is None:
        memory = plan_memory(spec, whole, weights, device.profile, device.memory_bytes)
        raise ConfigError(
            f"parallel=auto: {room_problem(spec, whole, device.profile, memory, device.name)}", field="parallel"
        )
    return split_as(config, parallel)
