"""What Serve's list of applications says to a backend."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ApplicationDetails

from serve_app.backend.control import RunningApplication
from serve_app.backend.serve_control import Look, is_quiet, running_application


def deployment(name: str, message: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "status": "UNHEALTHY",
        "status_trigger": "REPLICA_STARTUP_FAILED",
        "message": message,
        "deployment_config": {"name": name},
        "target_num_replicas": 1,
        "required_resources": {},
        "replicas": [],
    }


def application(status: str, message: str = "", **changes: Any) -> ApplicationDetails:
    values = {
        "name": "demo",
        "route_prefix": None,
        "docs_path": None,
        "status": status,
        "message": message,
        "last_deployed_time_s": 0.0,
        "source": "declarative",
        "deployments": {},
        "external_scaler_enabled": False,
        "deployed_app_config": {"name": "demo", "import_path": "serve_app.app:build_model", "args": {}},
    }
    return ApplicationDetails(**{**values, **changes})


def test_where_serve_lists_no_deployment_those_count_that_have_not_ended() -> None:
    app = application("DEPLOY_FAILED", "no such key")
    told = RunningApplication("DEPLOY_FAILED", "no such key", ("Router",), "serve_app.app:build_model")
    assert running_application(app, ["Router"]) == told
    assert running_application(application("DEPLOYING"), []).deployments == ()


def test_what_serve_lists_is_what_runs_and_each_deployment_says_what_is_wrong_with_it() -> None:
    deployments = {"Router": deployment("Router", "ConfigError: no\n"), "Preprocessor": deployment("Preprocessor")}
    app = application("DEPLOY_FAILED", "Failed to update.", deployments=deployments, deployed_app_config=None)
    message = "Failed to update.\nConfigError: no"
    told = RunningApplication("DEPLOY_FAILED", message, ("Router", "Preprocessor"), "", replicas=frozenset())
    assert running_application(app, ["Old"]) == told


def test_replicas_that_run_are_listed() -> None:
    def replica(replica_id: str, state: str) -> dict[str, Any]:
        return {"replica_id": replica_id, "state": state, "start_time_s": 0.0}

    router = deployment("Router") | {"replicas": [replica("a", "RUNNING"), replica("b", "STARTING")]}
    steps = deployment("Preprocessor") | {"replicas": [replica("c", "RUNNING"), replica("d", "STOPPING")]}
    app = application("RUNNING", deployments={"Router": router, "Preprocessor": steps})
    assert running_application(app, ()).replicas == frozenset({"a", "c"})
    assert running_application(application("DEPLOYING"), ["Router"]).replicas is None


@pytest.mark.parametrize("make", [dict, AutoscalingConfig])
def test_a_deployment_that_may_sleep_wakes_until_one_of_its_replicas_runs(make: Callable[..., object]) -> None:
    def waking(state: str, min_replicas: int, num_wanted: int = 1) -> tuple[str, ...]:
        scaling = make(min_replicas=min_replicas, max_replicas=3)
        router = deployment("Router") | {
            "target_num_replicas": num_wanted,
            "deployment_config": {"name": "Router", "autoscaling_config": scaling},
            "replicas": [{"replica_id": "a", "state": state, "start_time_s": 0.0}],
        }
        return running_application(application("RUNNING", deployments={"Router": router}), ()).waking

    assert waking("STARTING", 0) == waking("STOPPING", 0) == ("Router",)
    assert waking("RUNNING", 0) == waking("STARTING", 1) == waking("STOPPING", 0, num_wanted=0) == ()


def test_a_deployment_of_which_serve_wants_no_replica_is_asleep() -> None:
    deployments = {"Router": deployment("Router") | {"target_num_replicas": 0}, "Preprocessor": deployment("P")}
    assert running_application(application("RUNNING", deployments=deployments), ()).asleep == ("Router",)


@pytest.mark.parametrize(
    ("status", "changes", "is_so"),
    [
        ("RUNNING", {}, True),
        ("DEPLOYING", {}, False),
        ("RUNNING", {"status": "UPSCALING"}, False),
        ("RUNNING", {"target_num_replicas": 2}, False),
        ("RUNNING", {"replicas": [{"replica_id": "a", "state": "STOPPING", "start_time_s": 0.0}]}, False),
        ("RUNNING", {"replicas": [], "target_num_replicas": 0}, True),
    ],
)
def test_serve_is_quiet_when_each_deployment_has_what_it_is_to_have(
    status: str, changes: dict[str, Any], *, is_so: bool
) -> None:
    running = {"replicas": [{"replica_id": "a", "state": "RUNNING", "start_time_s": 0.0}], "status": "HEALTHY"}
    router = deployment("Router") | running | changes
    assert is_quiet([application(status, deployments={"Router": router})]) is is_so
    assert not is_quiet([application("RUNNING")]), "what Serve does not list is not known"


def test_what_serve_has_said_holds_while_it_says_the_same_in_short_and_not_for_ever() -> None:
    look = Look(100.0, [b"a", b"b"], {}, {}, is_quiet=True)
    assert look.holds([b"a", b"b"], 105.0)
    assert not look.holds([b"a", b"b"], 106.0)
    assert not look.holds([b"a"], 101.0)
    assert not look.holds([b"a", b"c"], 101.0)
    assert not Look(100.0, [b"a"], {}, {}, is_quiet=False).holds([b"a"], 101.0)
