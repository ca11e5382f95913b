"""What Ray will find on this machine: CPUs, GPUs and their type."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.environment import Environment

_CAPABILITIES = {  # https://developer.nvidia.com/cuda-gpus
    **dict.fromkeys(("P100",), (6, 0)),
    **dict.fromkeys(("P4", "P40"), (6, 1)),
    **dict.fromkeys(("V100",), (7, 0)),
    **dict.fromkeys(("T4",), (7, 5)),
    **dict.fromkeys(("A100", "A100-40G", "A100-80G", "A30", "A800"), (8, 0)),
    **dict.fromkeys(("A2", "A10", "A10G", "A16", "A40", "RTX-A4000", "RTX-A5000", "RTX-A6000"), (8, 6)),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the models are to run."""

    num_cpus: int
    num_gpus: int | None  # None: there are some, which cannot be counted here
    accelerator_type: str | None = None  # as Ray names its GPUs; None: not known here


def find_machine(environment: Environment) -> Machine | None:
    """This machine as Ray will see it; None: Ray is told something else."""
    if environment.has_own_resources:
        return None
    num_gpus = find_gpus()
    if num_gpus is not None and environment.max_visible_gpus is not None:
        num_gpus = min(num_gpus, environment.max_visible_gpus)
    return Machine(os.cpu_count() or 1, num_gpus, find_accelerator_type())


def find_gpus(devices: Path = Path("/dev")) -> int | None:
    """How many GPUs there are; None: some of another maker, or behind a virtual machine."""
    if (devices / "kfd").exists() or (devices / "dxg").exists():
        return None
    return len([path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])


def find_accelerator_type(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> str | None:
    """The type of the first GPU, which Ray takes for all of a machine; None: the driver does not say."""
    first = min(drivers.glob("*/information"), default=None)
    lines = [] if first is None else first.read_text(errors="replace").splitlines()
    product = next((line.removeprefix("Model:").strip() for line in lines if line.startswith("Model:")), "")
    return None if product in ("", "Unknown") else accelerator_type_of(product)  # it says so of a GPU not yet used


def accelerator_type_of(product: str) -> str:
    """Ray's name for a GPU of NVIDIA: "A100" for "NVIDIA A100-SXM4-40GB"."""
    match = re.match(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)", product)
    if match is not None and len(match[1]) > 1:
        return match[1].replace(" ", "-")
    return re.sub(r"^NVIDIA\s+", "", product).replace(" ", "-")


def capability_of(accelerator_type: str | None) -> tuple[int, int] | None:
    """Compute capability of a type of GPU as Ray names it, of those before float8; None: another, or not known."""
    return None if accelerator_type is None else _CAPABILITIES.get(accelerator_type)


def find_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Bytes of memory that processes here may take, a container's limit counted; None: the system does not say."""
    sizes = []
    if meminfo.is_file():
        match = re.search(r"^MemTotal:\s+([0-9]+) kB$", meminfo.read_text(), re.MULTILINE)
        sizes += [] if match is None else [int(match[1]) * 1024]
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        sizes.append(int(text))
    return min(sizes, default=None)
