"""`rayshard plan`: what a Serve file's models take of given devices, and how fast they will be. No Ray, no torch."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.cli.calibration_process import calibrate
from serve_app.config.environment import Environment, read_environment
from serve_app.errors import ConfigError
from serve_app.planning.auto_parallel import find_surroundings, known_profiles, with_parallel
from serve_app.planning.batch_plan import BatchPlan, plan_batch
from serve_app.planning.batch_report import batch_json, batch_text
from serve_app.planning.cluster import cluster_problems, read_cluster
from serve_app.planning.device_choice import Surroundings, on_device, stage_devices
from serve_app.planning.device_profiles import find_profile
from serve_app.planning.model_plan import ModelPlan, plan_model
from serve_app.planning.plan_picture import draw_plans
from serve_app.planning.plan_report import plan_json, plan_text
from serve_app.planning.plan_source import directory_to_plan, here
from serve_app.planning.reservations import num_first_replicas
from serve_app.planning.serve_file import ModelApplication, inspect_serve_file
from serve_app.planning.served_model import plan_batch_model
from serve_app.planning.setting_problems import Problem
from serve_app.planning.uneven_split import GpuKind, may_be_uneven, plan_uneven


@dataclass(frozen=True, slots=True)
class _Planned:
    plans: list[ModelPlan | BatchPlan]
    problems: list[Problem]
    remarks: list[str]  # lines on what is not planned, and why


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the plan; the exit status: 0 when every model fits. Raises ConfigError."""
    environment = read_environment()
    if arguments.calibrate:
        calibrate(environment.measured_devices_file)
    profiles = known_profiles(environment, arguments.devices)
    if arguments.device is not None:
        find_profile(profiles, arguments.device)
    cluster = None if arguments.cluster is None else read_cluster(arguments.cluster, profiles)
    around = find_surroundings(profiles, arguments.device) if cluster is None else cluster.surroundings
    planned = _plan_file(arguments.file, around, environment, [] if cluster is None else cluster.gpu_kinds)
    if cluster is not None:
        planned.remarks.extend(cluster.remarks)
        planned.problems.extend(
            Problem(str(arguments.cluster), one) for one in cluster_problems(cluster, planned.plans)
        )
    if arguments.json:
        report = {"models": [_json_of(plan) for plan in planned.plans], "problems": list(map(str, planned.problems))}
        print(json.dumps(report, indent=2))
    else:
        texts = [*filter(None, map(_text_of, planned.plans)), *planned.remarks]
        if texts:
            print("\n\n".join(texts))
    if arguments.plot is not None:
        _write_picture(arguments.plot, planned.plans)
    sys.stdout.flush()
    print(*planned.problems, sep="\n", end="\n" if planned.problems else "", file=sys.stderr)
    return 1 if planned.problems else 0


def _text_of(plan: ModelPlan | BatchPlan) -> str:
    return batch_text(plan) if isinstance(plan, BatchPlan) else plan_text(plan)


def _json_of(plan: ModelPlan | BatchPlan) -> dict[str, object]:
    return batch_json(plan) if isinstance(plan, BatchPlan) else plan_json(plan)


def _write_picture(path: Path, plans: list[ModelPlan | BatchPlan]) -> None:
    try:
        path.write_text(draw_plans(plans))
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written ({error.strerror}); give another path") from error


def _plan_file(path: Path, around: Surroundings, environment: Environment, kinds: list[GpuKind]) -> _Planned:
    report = inspect_serve_file(path)
    planned, base_dir = _Planned([], list(report.problems), []), path.resolve().parent
    applications: set[str] = set()
    for model in report.models:
        is_first = model.name not in applications
        applications.add(model.name)
        try:
            plan: ModelPlan | BatchPlan
            if model.config.is_generative:
                plan = _plan_one(model, base_dir, around, environment, kinds)
            else:
                plan = _plan_batch(model, base_dir, around, environment, is_first=is_first)
        except ConfigError as error:
            planned.problems.extend(Problem(model.where, message) for message in error.message.split("\n"))
            continue
        planned.plans.append(plan)
        planned.problems.extend(Problem(model.where, message) for message in plan.problems)
    return planned


def _plan_one(
    model: ModelApplication, base_dir: Path, around: Surroundings, environment: Environment, kinds: list[GpuKind]
) -> ModelPlan:
    failure: ConfigError | None = None
    try:
        even = _plan_even(model, base_dir, around, environment)
        if not even.problems and _has_devices(even, kinds):
            return even
    except ConfigError as error:
        failure = error
    if may_be_uneven(model.config, kinds):
        spec = read_model_spec(directory_to_plan(model.config, base_dir, environment))
        uneven = plan_uneven(spec, model.config, kinds, num_first_replicas(model))
        if uneven is not None:
            return uneven
    if failure is not None:
        raise failure
    return even


def _plan_batch(
    model: ModelApplication, base_dir: Path, around: Surroundings, environment: Environment, *, is_first: bool
) -> BatchPlan:
    config, device = on_device(model.config, around)
    directory = directory_to_plan(config, base_dir, environment)
    found = plan_batch_model(config.model_copy(update=here(directory)), base_dir, environment)
    stages = stage_devices(config, around)
    return plan_batch(found, config, device, num_first_replicas(model), stages, is_first=is_first)


def _plan_even(model: ModelApplication, base_dir: Path, around: Surroundings, environment: Environment) -> ModelPlan:
    """On the devices that the file names, or on those of one kind."""
    split = with_parallel(model.config, base_dir, environment, around)
    config, device = on_device(split, around)
    spec = read_model_spec(directory_to_plan(config, base_dir, environment))
    return plan_model(spec, config, device, num_first_replicas(model), stage_devices(config, around))


def _has_devices(plan: ModelPlan, kinds: list[GpuKind]) -> bool:
    """Whether there are as many devices of the one kind as its replicas need."""
    found = [kind.num_groups(plan.config.parallel.tensor) for kind in kinds if kind.device.name == plan.device.name]
    return not found or found[0] >= plan.num_replicas * plan.config.parallel.pipeline
