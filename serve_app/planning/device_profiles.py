"""What a kind of device holds and how fast it is: a packaged table, which a file of the same form extends."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from serve_app.config.base import ByteSize, ConfigModel
from serve_app.errors import ConfigError
from serve_app.planning.setting_problems import problems_of, shown
from serve_app.planning.yaml_document import read_document
from serve_app.types.shards import GPU_RESERVE_BYTES


class DeviceProfile(ConfigModel):
    """One kind of device; of type cpu: a node's, which its shards share."""

    type: Literal["cpu", "cuda"] = "cuda"
    """What it is; of type cpu: a node's, which its shards share."""
    accelerator_types: list[str] = Field(default_factory=list)
    """What Ray calls it."""
    memory: ByteSize | None = None
    """Memory of each device; null: that of the machine that asks."""
    memory_bandwidth: PositiveFloat
    """How fast its memory is read. [bytes/s]"""
    flops: dict[str, PositiveFloat]
    """Products and sums by dtype, dense. [1/s]"""
    link_bandwidth: PositiveFloat
    """To a neighbour within a node, one way. [bytes/s]"""
    network_bandwidth: PositiveFloat
    """Between nodes, for each device. [bytes/s]"""
    link_latency_s: PositiveFloat = 1e-5
    """Of one message, or one sum over ranks."""
    devices_per_node: PositiveInt = 1
    """Devices of a node, within which tensor ranks stay. [devices]"""
    memory_share: float = Field(default=0.75, gt=0, le=1)
    """How much of memory_bandwidth kernels reach. [share]"""
    compute_share: float = Field(default=0.5, gt=0, le=1)
    """How much of flops kernels reach. [share]"""
    reserve: ByteSize = GPU_RESERVE_BYTES
    """Memory of each shard beside weights, KV cache and activations."""
    layer_overhead_s: float = Field(default=1e-5, ge=0)
    """Of each layer in each step, beside reading and computing."""
    sequence_overhead_s: float = Field(default=0.0, ge=0)
    """Of each layer, for each sequence of a step."""
    weights_s_per_gb: dict[str, dict[PositiveInt, PositiveFloat]] = Field(default_factory=dict)
    """Measured, in place of bandwidth and rate: time for 1 GB of weights of a dtype, by the inputs' rows. [s]"""
    attention_s_per_gb: dict[str, dict[PositiveInt, PositiveFloat]] = Field(default_factory=dict)
    """The same of attention: time for 1 GB of keys and values of a dtype, by the queries that each meets. [s]"""

    def rate(self, dtype: str) -> float:
        """Products and sums each second that kernels reach; a dtype that is not listed is computed in the widest."""
        return self.compute_share * self.flops.get(dtype, min(self.flops.values()))

    def weights_s(self, dtype: str, rows: float, num_bytes: float) -> float | None:
        """Seconds to read and multiply weights by so many rows, between those that were measured; None: none were."""
        return _between(self.weights_s_per_gb.get(dtype, {}), rows, num_bytes)

    def attention_s(self, dtype: str, rows: float, num_bytes: float) -> float | None:
        """Seconds to attend keys and values that meet so many queries each, in the same way."""
        return _between(self.attention_s_per_gb.get(dtype, {}), rows, num_bytes)

    @property
    def read_rate(self) -> float:
        """Bytes each second that kernels reach."""
        return self.memory_share * self.memory_bandwidth


def _between(curve: dict[int, float], rows: float, num_bytes: float) -> float | None:
    points = sorted(curve.items())
    if not points:
        return None
    if rows >= points[-1][0]:  # all of it is computing
        return points[-1][1] * rows / points[-1][0] * num_bytes / 1e9
    after = next(index for index, (count, _) in enumerate(points) if rows < count)
    (low, low_s), (high, high_s) = points[max(0, after - 1)], points[after]
    share = 0.0 if high == low else max(0.0, (rows - low) / (high - low))
    return (low_s + share * (high_s - low_s)) * num_bytes / 1e9


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """A kind of device and its memory."""

    name: str
    profile: DeviceProfile
    memory_bytes: int


def load_profiles(*more: Path) -> dict[str, DeviceProfile]:
    """All known devices by name; later files replace earlier ones'. Raises ConfigError that names every mistake."""
    with as_file(files("serve_app.planning").joinpath("devices.yaml")) as packaged:
        profiles = _read(packaged)
    for path in more:
        profiles |= _read(path)
    return profiles


def measured_profile(known: DeviceProfile, values: dict[str, object]) -> DeviceProfile:
    """A device with what a measurement says, through JSON, in place of what was known. Raises ValueError."""
    measured = _with_rows(values)
    assert isinstance(measured, dict)
    return DeviceProfile.model_validate({**known.model_dump(), **measured})


def find_profile(profiles: dict[str, DeviceProfile], name: str) -> DeviceProfile:
    """The profile of a name, or of a type of Ray's. Raises ConfigError with the names there are."""
    return profiles[find_name(profiles, name)]


def is_called(name: str, profile: DeviceProfile, wanted: str) -> bool:
    """Whether a device is meant by a name, or a type of Ray's."""
    return wanted.lower() in (name.lower(), *map(str.lower, profile.accelerator_types))


def find_name(profiles: dict[str, DeviceProfile], name: str) -> str:
    """What the table calls a device. Raises ConfigError with the names there are."""
    for key, profile in profiles.items():
        if is_called(key, profile, name):
            return key
    raise ConfigError(f"device {shown(name)} is not known; use {', '.join(profiles)}, or describe it by --devices FILE")


def _read(path: Path) -> dict[str, DeviceProfile]:
    document = read_document(path)
    problems = [str(one) for one in document.problems]
    entries = document.value
    if not isinstance(entries, dict):
        raise ConfigError("\n".join(problems or [f"{path} has no devices; write `name: {{memory: ..., ...}}`"]))
    profiles: dict[str, DeviceProfile] = {}
    for name, values in entries.items():
        try:
            profiles[str(name)] = DeviceProfile.model_validate(_with_rows(values))
        except ValidationError as error:
            problems += [f"{path}: {one}" for one in problems_of(error, DeviceProfile, str(name))]
    if problems:
        raise ConfigError("\n".join(problems))
    return profiles


def _with_rows(values: object) -> object:
    """Numbers of rows as integers where JSON has made text of them."""
    if not isinstance(values, dict):
        return values
    return values | {
        name: {dtype: _curve_with_rows(curve) for dtype, curve in values[name].items()}
        for name in ("weights_s_per_gb", "attention_s_per_gb")
        if isinstance(values.get(name), dict)
    }


def _curve_with_rows(curve: object) -> object:
    if not isinstance(curve, dict):
        return curve
    return {int(rows) if str(rows).isdigit() else rows: seconds for rows, seconds in curve.items()}
