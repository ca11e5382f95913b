"""What applications reserve with Ray, and whether this machine has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.planning.serve_file import GraphApplication, ModelApplication
from serve_app.planning.setting_problems import Problem

CPUS_PER_REPLICA = 0.05  # Gateway, Router, Preprocessor, Graph


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the models are to run."""

    num_cpus: int
    num_gpus: int | None  # None: there are some, which cannot be counted here


def find_gpus(devices: Path = Path("/dev")) -> int | None:
    """How many GPUs there are; None: some of another maker, or behind a virtual machine."""
    if (devices / "kfd").exists() or (devices / "dxg").exists():
        return None
    return len([path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])


def machine_problems(
    models: Sequence[ModelApplication], graphs: Sequence[GraphApplication], machine: Machine
) -> list[Problem]:
    """What Ray would wait for without end."""
    problems: list[Problem] = []
    needed = reserved_cpus(models, graphs)
    if needed > machine.num_cpus:
        message = (
            f"the applications reserve {needed:g} CPUs, and this machine has {machine.num_cpus}; lower "
            "device.cpus_per_shard, or serve fewer models or copies (a reservation is no limit: shards may use all "
            "cores)"
        )
        problems.append(Problem("applications", message))
    return problems + _gpu_problems(models, machine)


def reserved_cpus(models: Sequence[ModelApplication], graphs: Sequence[GraphApplication]) -> float:
    """What all applications need to start, with the number of Router replicas they begin with."""
    total = CPUS_PER_REPLICA * (1 + len(graphs))
    for application in _by_application(models):
        shards = _num_shards(application) * application[0].config.device.cpus_per_shard
        total += _num_replicas(application) * (CPUS_PER_REPLICA + shards)
        total += CPUS_PER_REPLICA * any(model.config.has_chains for model in application)
    return round(total, 3)


def _gpu_problems(models: Sequence[ModelApplication], machine: Machine) -> list[Problem]:
    on_gpus = [one for one in _by_application(models) if one[0].config.device.type == "cuda"]
    if machine.num_gpus is None or not on_gpus:
        return []
    if machine.num_gpus == 0:
        message = "type=cuda, and this machine has no GPU that its driver shows; set cpu, or serve where there is one"
        return [Problem(f"{one[0].where}.device", message) for one in on_gpus]
    needed = sum(_num_replicas(one) * _num_shards(one) * one[0].config.device.gpus_per_shard for one in on_gpus)
    if needed <= machine.num_gpus:
        return []
    message = (
        f"the applications reserve {needed:g} GPUs, and this machine has {machine.num_gpus}; lower parallel, "
        "num_replicas or device.gpus_per_shard"
    )
    return [Problem("applications", message)]


def _by_application(models: Sequence[ModelApplication]) -> list[list[ModelApplication]]:
    """Models of one application share its replicas and shards."""
    applications: dict[str, list[ModelApplication]] = {}
    for model in models:
        applications.setdefault(model.name, []).append(model)
    return list(applications.values())


def _num_replicas(application: list[ModelApplication]) -> int:
    router = application[0].router
    return router.num_first_replicas if router is not None else 1


def _num_shards(application: list[ModelApplication]) -> int:
    parallel = application[0].config.parallel
    return parallel.pipeline * parallel.tensor
