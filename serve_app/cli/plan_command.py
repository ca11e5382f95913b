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
from serve_app.planning.cluster import cluster_problems, read_cluster
from serve_app.planning.device_choice import Surroundings, on_device, stage_devices
from serve_app.planning.device_profiles import find_profile
from serve_app.planning.model_plan import ModelPlan, plan_model
from serve_app.planning.plan_picture import draw_plans
from serve_app.planning.plan_report import plan_json, plan_text
from serve_app.planning.plan_source import directory_to_plan
from serve_app.planning.reservations import num_first_replicas
from serve_app.planning.serve_file import ModelApplication, inspect_serve_file
from serve_app.planning.setting_problems import Problem
from serve_app.planning.uneven_split import GpuKind, may_be_uneven, plan_uneven


@dataclass(frozen=True, slots=True)
class _Planned:
    plans: list[ModelPlan]
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
        report = {"models": [plan_json(plan) for plan in planned.plans], "problems": list(map(str, planned.problems))}
        print(json.dumps(report, indent=2))
    else:
        texts = [*filter(None, map(plan_text, planned.plans)), *planned.remarks]
        if texts:
            print("\n\n".join(texts))
    if arguments.plot is not None:
        _write_picture(arguments.plot, planned.plans)
    sys.stdout.flush()
    print(*planned.problems, sep="\n", end="\n" if planned.problems else "", file=sys.stderr)
    return 1 if planned.problems else 0


def _write_picture(path: Path, plans: list[ModelPlan]) -> None:
    try:
        path.write_text(draw_plans(plans))
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written ({error.strerror}); give another path") from error


def _plan_file(path: Path, around: Surroundings, environment: Environment, kinds: list[GpuKind]) -> _Planned:
    report = inspect_serve_file(path)
    planned = _Planned([], list(report.problems), [])
    for model in report.models:
        if not model.config.is_generative:
            planned.remarks.append(f"{model.config.name}: task={model.config.task} keeps no KV cache; not planned")
            continue
        try:
            plan = _plan_one(model, path.resolve().parent, around, environment, kinds)
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
