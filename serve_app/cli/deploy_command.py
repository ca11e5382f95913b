"""`rayshard deploy`: hands a Serve file to a running cluster; what ran before comes back when the new does not run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.cli.absolute_paths import with_absolute_paths
from serve_app.cli.clock import Clock
from serve_app.cli.ray_dashboard import DashboardError
from serve_app.cli.rollout import Cluster, Rollout, SupersededError
from serve_app.cli.serve_view import ServeView

_OF_SERVE = ("http_options", "grpc_options", "proxy_location", "controller_options")  # which no deployment changes
_PUT_BACK_S = 120.0  # at least, whatever the new file was given
_INTERRUPTED = 130


def deploy(path: Path, cluster: Cluster, timeout_s: float, clock: Clock) -> int:
    """Submit a file that has been checked, and wait until it runs; gives the exit status.

    Raises DashboardError when the cluster cannot be asked, before anything is changed.
    """
    content = with_absolute_paths(path)
    before = cluster.serve_view()
    submitted = {application["name"]: application for application in content["applications"]}
    for name in before.applications.keys() - submitted.keys():
        if before.applications[name].deployed_app_config is not None:
            print(f"{name} is not in {path}: it ends", flush=True)
    awaited = [name for name in submitted if _is_awaited(submitted[name], before)]
    cluster.put_applications(content)
    try:
        reason = Rollout(cluster, awaited, before, timeout_s, clock).wait()
        if reason is None:
            _tell_done(path, [name for name in submitted if name not in awaited])
            return 0
        print(reason, file=sys.stderr, flush=True)
        again = _put_back(content, cluster, before, max(timeout_s, _PUT_BACK_S), clock)
        print(again, file=sys.stderr, flush=True)
    except SupersededError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("no longer waiting; the cluster goes on, and `rayshard status` shows how far it is", file=sys.stderr)
        return _INTERRUPTED
    return 1


def _is_awaited(submitted: Mapping[str, Any], before: ServeView) -> bool:
    """Whether the file is judged by this application: not by one that is as it was, and did not run then either."""
    known = before.applications.get(submitted["name"])
    return known is None or known.is_running or known.deployed_app_config != submitted


def _tell_done(path: Path, others: list[str]) -> None:
    if others:
        print(f"{path}: deployed; still not running, as before, and not changed: {', '.join(others)}", flush=True)
    else:
        print(f"{path}: every application runs", flush=True)


def _put_back(content: Mapping[str, Any], cluster: Cluster, before: ServeView, timeout_s: float, clock: Clock) -> str:
    """Submit what was there before; says what has become of it."""
    old = [one for one in before.applications.values() if one.deployed_app_config is not None]
    if not old:
        return "Nothing ran before, so that the applications stay as they are; `rayshard status` shows them."
    print("Putting back what ran before ...", flush=True)
    kept: dict[str, Any] = {name: content[name] for name in _OF_SERVE if name in content}
    if before.target_capacity is not None:
        kept["target_capacity"] = before.target_capacity
    try:
        failed = cluster.serve_view()
        cluster.put_applications({**kept, "applications": [one.deployed_app_config for one in old]})
        names = [one.name for one in old if one.is_running]
        reason = Rollout(cluster, names, failed, timeout_s, clock).wait()
    except DashboardError as error:
        return f"What ran before could not be put back: {error.message}"
    if reason is not None:
        return f"What ran before has been put back, and does not run yet: {reason}"
    return f"What ran before runs again: {', '.join(names) or 'nothing did'}."
