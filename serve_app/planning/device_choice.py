"""Which kind of device a model of a Serve file is planned on."""

from dataclasses import dataclass

from pydantic import ValidationError

from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.device_profiles import DeviceProfile, PlannedDevice, find_profile, is_called
from serve_app.planning.setting_problems import problems_of


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of where models will run."""

    profiles: dict[str, DeviceProfile]
    device: str | None = None  # that all models are planned on; None: each on what it asks for
    accelerator_type: str | None = None  # of this machine's GPUs; None: it has none
    memory_bytes: int | None = None  # of this machine, or of the smallest node; None: not known
    gpus: tuple[str, ...] = ()  # of a cluster, those with the least memory first; empty: it is not known


def on_device(config: ModelConfig, around: Surroundings) -> tuple[ModelConfig, PlannedDevice]:
    """The settings on the device that the model is planned on, and that device. Raises ConfigError."""
    if around.device is not None:
        profile = find_profile(around.profiles, around.device)
        return _moved(config, profile), _with_memory(around.device, profile, around)
    if config.device.type == "cpu":
        return config, _with_memory("cpu", find_profile(around.profiles, "cpu"), around)
    stages = stage_devices(config, around)
    if stages:
        return config, stages[0]
    wanted = config.device.accelerator_type or around.accelerator_type
    if around.gpus:
        wanted = _of_cluster(config, around)
    if wanted is None:
        raise ConfigError(
            "device.type=cuda does not say which GPU, and none is known here; give --device, or set "
            "device.accelerator_type"
        )
    return config, _with_memory(wanted, find_profile(around.profiles, wanted), around)


def stage_devices(config: ModelConfig, around: Surroundings) -> list[PlannedDevice]:
    """The device of each stage, where the settings name them; empty: all have the same. Raises ConfigError."""
    named = config.parallel.accelerator_types
    if named is None:
        return []
    names = [_in_cluster("parallel.accelerator_types", one, around) if around.gpus else one for one in named]
    return [planned_device(name, around) for name in names]


def planned_device(name: str, around: Surroundings) -> PlannedDevice:
    """A kind of device by its name or Ray's. Raises ConfigError."""
    return _with_memory(name, find_profile(around.profiles, name), around)


def _of_cluster(config: ModelConfig, around: Surroundings) -> str:
    """The kind of GPU that a model is planned on: Ray chooses, so the smallest that it may get."""
    wanted = config.device.accelerator_type
    return around.gpus[0] if wanted is None else _in_cluster("device.accelerator_type", wanted, around)


def _in_cluster(setting: str, wanted: str, around: Surroundings) -> str:
    found = [name for name in around.gpus if is_called(name, around.profiles[name], wanted)]
    if not found:
        raise ConfigError(f"{setting}={wanted}, and the cluster's GPUs are {', '.join(around.gpus)}; write one of them")
    return found[0]


def _with_memory(name: str, profile: DeviceProfile, around: Surroundings) -> PlannedDevice:
    memory_bytes = profile.memory or around.memory_bytes
    if memory_bytes is None:
        raise ConfigError(f"the memory of device {name} is not known here; give it by --devices FILE")
    return PlannedDevice(name, profile, memory_bytes)


def _moved(config: ModelConfig, profile: DeviceProfile) -> ModelConfig:
    """The same model on another kind of device. Raises ConfigError where its settings are for the one it had."""
    if config.parallel.accelerator_types is not None:
        parallel = config.parallel.model_copy(update={"accelerator_types": None})
        config = config.model_copy(update={"parallel": parallel})
    if config.device.type == profile.type:
        if config.device.accelerator_type in (None, *profile.accelerator_types):
            return config
        device = config.device.model_copy(update={"accelerator_type": next(iter(profile.accelerator_types), None)})
        return config.model_copy(update={"device": device})
    values = config.model_dump(exclude_unset=True) | {"parallel": config.parallel}
    values["device"] = {"type": profile.type}
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        found = "; ".join(str(one) for one in problems_of(error, ModelConfig, "args"))
        raise ConfigError(f"it cannot be planned on device.type={profile.type}: {found}") from error
