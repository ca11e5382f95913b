"""What a Serve file cannot set for a Router, because it follows from the settings of its model."""

from collections.abc import Iterator

from serve_app.planning.serve_options import DeploymentOptions
from serve_app.planning.setting_problems import Problem, shown

_REMOVE = "where it is placed follows from args.parallel and args.device; remove it"
_INSTEAD = {  # of ray_actor_options of a Router
    **dict.fromkeys(("num_cpus", "num_gpus", "accelerator_type"), "use args.device for its shards"),
    "runtime_env": "write it beside `args`, for the whole application",
}


def router_problems(router: DeploymentOptions, args: object, needed: int, where: str) -> list[Problem]:
    """Every mistake in a Router's entry of `deployments`.

    args: of its application, as they are written. needed: requests that its model's settings let it hold.
    """
    return [
        *_placement_problems(router, where),
        *_requests_problems(router, needed, where),
        *_scaling_problems(router, args, where),
    ]


def _placement_problems(router: DeploymentOptions, where: str) -> Iterator[Problem]:
    derived = [setting for setting in sorted(router.model_fields_set) if setting.startswith("placement_group_")]
    derived += sorted(router.model_fields_set & {"max_replicas_per_node", "gang_scheduling_config"})
    for setting in derived:
        value = shown(getattr(router, setting))
        message = f"{value} cannot be set: placement follows from args.parallel and args.device; remove it"
        yield Problem(f"{where}.{setting}", message)
    actor = router.ray_actor_options
    for setting in sorted(actor.model_fields_set):  # Serve would hold them against the Router's bundle, or wait
        message = f"{shown(getattr(actor, setting))} cannot be set for the Router; {_INSTEAD.get(setting, _REMOVE)}"
        yield Problem(f"{where}.ray_actor_options.{setting}", message)


def _requests_problems(router: DeploymentOptions, needed: int, where: str) -> Iterator[Problem]:
    if router.max_ongoing_requests is not None and router.max_ongoing_requests < needed:
        message = (
            f"{router.max_ongoing_requests} is less than max_num_seqs + max_queued = {needed}; "
            "remove it, or lower args.engine.max_queued"
        )
        yield Problem(f"{where}.max_ongoing_requests", message)


def _scaling_problems(router: DeploymentOptions, args: object, where: str) -> Iterator[Problem]:
    """The number of replicas is set in one place."""
    if not isinstance(args, dict) or args.get("autoscaling") is None:
        return
    for setting in sorted(router.model_fields_set & {"autoscaling_config", "num_replicas"}):
        message = "cannot be set beside args.autoscaling, which it follows from; remove one"
        yield Problem(f"{where}.{setting}", message)
