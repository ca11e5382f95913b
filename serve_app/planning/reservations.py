"""What applications reserve with Ray, and whether a machine has it."""

from collections.abc import Sequence

from serve_app.config.engine import DeviceConfig, ParallelConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.machine import Machine
from serve_app.planning.serve_file import GraphApplication, ModelApplication
from serve_app.planning.serve_options import DeploymentOptions
from serve_app.planning.setting_problems import Problem
from serve_app.types.shards import EngineKind

CPUS_PER_REPLICA = 0.05  # Gateway, Router, Preprocessor, Graph
_UNITS_PER_GPU = 10_000  # Ray counts shares of a GPU in these


def machine_problems(
    models: Sequence[ModelApplication],
    graphs: Sequence[GraphApplication],
    machine: Machine,
    gateway: DeploymentOptions | None = None,
) -> list[Problem]:
    """What Ray would wait for without end. gateway: None: the file says nothing of its deployment."""
    problems: list[Problem] = []
    applications = _by_application(models)
    needed = reserved_cpus(models, graphs, gateway)
    if needed > machine.num_cpus:
        way_out = (
            "lower device.cpus_per_shard, or serve fewer models or copies (a reservation is no limit: shards may use "
            "all cores)"
        )
        beside = _beside_shards(models, graphs, gateway)
        if beside:
            way_out = f"set ray_actor_options.num_cpus to less ({CPUS_PER_REPLICA:g} is enough), {way_out}"
        problems.append(_shortage(needed, "CPUs", machine.num_cpus, applications, way_out, beside))
    on_gpus = [one for one in applications if one[0].config.device.type == "cuda"]
    if machine.num_gpus == 0:
        return problems + [_without_gpus(one) for one in on_gpus]
    if machine.num_gpus is not None and not _have_room(on_gpus, machine.num_gpus):
        way_out = (
            "lower parallel, num_replicas or device.gpus_per_shard (a shard's share lies on one GPU), or serve fewer "
            "models on GPUs"
        )
        problems.append(_shortage(_reserved_gpus(on_gpus), "GPUs", machine.num_gpus, on_gpus, way_out))
    return problems + _type_problems(on_gpus, machine.accelerator_type)


def reserved_cpus(
    models: Sequence[ModelApplication],
    graphs: Sequence[GraphApplication],
    gateway: DeploymentOptions | None = None,
) -> float:
    """What all applications need to start, with the number of replicas they begin with."""
    total = _deployment_cpus(gateway) + sum(_deployment_cpus(graph.deployment) for graph in graphs)
    for application in _by_application(models):
        config = application[0].config
        shards = (_num_shards(application) + config.standby_shards) * config.device.cpus_per_shard
        total += _num_replicas(application) * (CPUS_PER_REPLICA + shards)
        if any(model.config.has_chains for model in application):
            total += _deployment_cpus(application[0].preprocessor)
    return round(total, 3)


def replica_cpus(options: DeploymentOptions | None) -> float:
    """What a Gateway's, Preprocessor's or Graph's replica reserves: Serve's 1 where its actor's options do not say."""
    if options is None or "ray_actor_options" not in options.model_fields_set:
        return CPUS_PER_REPLICA
    num_cpus = options.ray_actor_options.num_cpus
    return 1.0 if num_cpus is None else num_cpus


def _deployment_cpus(options: DeploymentOptions | None) -> float:
    return (1 if options is None else options.num_first_replicas) * replica_cpus(options)


def copy_bundles(device: DeviceConfig, parallel: ParallelConfig, num_standby: int = 0) -> list[dict[str, float]]:
    """What the placement group of one copy reserves: the Router's bundle, one for each stage, those that stand by.

    A bundle is on one node: the ranks of a stage exchange sums in every layer, stages hidden states once a step. What
    stands by for a rank is in its stage's bundle, what stands by for a stage without ranks anywhere.
    """
    kinds: Sequence[str | None] = parallel.accelerator_types or [device.accelerator_type] * parallel.pipeline
    sizes = stage_sizes(parallel, num_standby)
    stages = [_shard_bundle(device, kind, size) for kind, size in zip(kinds, sizes, strict=False)]
    apart = [_shard_bundle(device, device.accelerator_type)] * (len(sizes) - parallel.pipeline)
    return [{"CPU": CPUS_PER_REPLICA}, *stages, *apart]


def stage_sizes(parallel: ParallelConfig, num_standby: int) -> list[int]:
    """Processes in each bundle but the Router's: those of the stages, then those that stand by apart."""
    if parallel.tensor == 1:
        return [1] * (parallel.pipeline + num_standby)
    each, more = divmod(num_standby, parallel.pipeline)
    return [parallel.tensor + each + (stage < more) for stage in range(parallel.pipeline)]


def bundle_of(place: int, parallel: ParallelConfig) -> int:
    """The bundle of a process of a copy: places are the Router's (0), the shards' and those of what stands by."""
    if place > parallel.num_shards:
        standby = place - parallel.num_shards - 1
        return 1 + (standby % parallel.pipeline if parallel.tensor > 1 else parallel.pipeline + standby)
    return -(-place // parallel.tensor)


def _shard_bundle(device: DeviceConfig, accelerator_type: str | None, num_shards: int = 1) -> dict[str, float]:
    bundle = {"CPU": round(device.cpus_per_shard, 4) * num_shards}
    if device.type == "cuda":
        bundle["GPU"] = device.gpus_per_shard * num_shards
        if accelerator_type is not None:
            bundle[f"accelerator_type:{accelerator_type}"] = 0.001
    return bundle


def cpu_engines(models: Sequence[ModelApplication]) -> list[EngineKind]:
    """The kinds of shards that run on CPU."""
    on_cpu = [one for one in _by_application(models) if one[0].config.device.type == "cpu"]
    return sorted({_engine_kind(application) for application in on_cpu})


def batch_engine_kind(models: Sequence[ModelConfig]) -> EngineKind:
    """The kind of the shards that hold these models, which do not generate."""
    return "module" if all(model.architecture is not None for model in models) else "batch"


def _engine_kind(application: list[ModelApplication]) -> EngineKind:
    if application[0].config.is_generative:
        return "generation"
    return batch_engine_kind([model.config for model in application])


def _reserved_gpus(on_gpus: list[list[ModelApplication]]) -> float:
    return sum(_num_replicas(one) * _num_shards(one) * _units(one) for one in on_gpus) / _UNITS_PER_GPU


def _have_room(on_gpus: list[list[ModelApplication]], num_gpus: int) -> bool:
    """Whether the share of each shard finds one GPU; the largest are placed first, which leaves least unused."""
    free = [_UNITS_PER_GPU] * num_gpus
    for application in sorted(on_gpus, key=_units, reverse=True):
        units = _units(application)
        for _ in range(_num_replicas(application) * _num_shards(application)):
            gpu = next((index for index, left in enumerate(free) if left >= units), None)
            if gpu is None:
                return False
            free[gpu] -= units
    return True


def _units(application: list[ModelApplication]) -> int:
    return max(1, round(application[0].config.device.gpus_per_shard * _UNITS_PER_GPU))


def _shortage(
    needed: float,
    unit: str,
    there: int,
    applications: list[list[ModelApplication]],
    way_out: str,
    beside: Sequence[str] = (),
) -> Problem:
    shares = ", ".join([*(_share(one, unit) for one in applications if _num_replicas(one)), *beside])
    message = f"the applications reserve {needed:g} {unit}, and this machine has {there} ({shares}); {way_out}"
    return Problem("applications", message)


def _beside_shards(
    models: Sequence[ModelApplication], graphs: Sequence[GraphApplication], gateway: DeploymentOptions | None
) -> list[str]:
    """What other replicas reserve, where the file asks for more than they need."""
    options = [gateway, *(one.deployment for one in graphs)]
    options += [one[0].preprocessor for one in _by_application(models) if any(model.config.has_chains for model in one)]
    return [
        f"{one.name}: {_counted(one.num_first_replicas, 'replica')} x {replica_cpus(one):g}"
        for one in options
        if one is not None and replica_cpus(one) > CPUS_PER_REPLICA
    ]


def _without_gpus(application: list[ModelApplication]) -> Problem:
    message = (
        "type=cuda, and this machine has no GPU that its driver and CUDA_VISIBLE_DEVICES show "
        f"({_share(application, 'GPUs')}); set cpu, or serve where there is one"
    )
    return Problem(f"{_args_of(application)}.device", message)


def _type_problems(on_gpus: list[list[ModelApplication]], found: str | None) -> list[Problem]:
    """Of models that ask for another type of GPU than `found`; None: it is not known which there is."""
    problems: list[Problem] = []
    for application in on_gpus:
        config = application[0].config
        wanted = {config.device.accelerator_type, *(config.parallel.accelerator_types or ())} - {None, found}
        for kind in sorted(map(str, wanted)) if found is not None else ():
            message = (
                f"accelerator_type={kind}, and to Ray this machine's GPUs are {found} "
                f"({_share(application, 'GPUs')}); write {found}, remove it, or serve where there is one"
            )
            where = "device.accelerator_type" if config.device.accelerator_type else "parallel.accelerator_types"
            problems.append(Problem(f"{_args_of(application)}.{where}", message))
    return problems


def _share(application: list[ModelApplication], unit: str) -> str:
    """What an application's shards reserve, for people."""
    device = application[0].config.device
    owner = application[0].config.name if len(application) == 1 else f"the models of {application[0].name}"
    each = (
        f"cpus_per_shard={device.cpus_per_shard:g}" if unit == "CPUs" else f"gpus_per_shard={device.gpus_per_shard:g}"
    )
    copies, shards = _counted(_num_replicas(application), "replica"), _counted(_num_shards(application), "shard")
    num_standby = application[0].config.standby_shards
    if num_standby:
        shards = f"({shards} + {num_standby} standby)"
    return f"{owner}: {copies} x {shards} x {each}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _args_of(application: list[ModelApplication]) -> str:
    """Where the settings lie that its models share."""
    return application[0].where.partition(".models[")[0]


def _by_application(models: Sequence[ModelApplication]) -> list[list[ModelApplication]]:
    """Models of one application share its replicas and shards."""
    applications: dict[str, list[ModelApplication]] = {}
    for model in models:
        applications.setdefault(model.name, []).append(model)
    return list(applications.values())


def num_first_replicas(model: ModelApplication) -> int:
    """Copies that a model begins with."""
    if model.config.autoscaling is not None:
        return model.config.autoscaling.num_first_replicas
    return model.router.num_first_replicas if model.router is not None else 1


def _num_replicas(application: list[ModelApplication]) -> int:
    return num_first_replicas(application[0])


def _num_shards(application: list[ModelApplication]) -> int:
    return application[0].config.parallel.num_shards
