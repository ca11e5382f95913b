"""What Ray's nodes have, and which replicas of Serve's still wait for a place on them; blocking."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.serve.schema import ApplicationDetails, DeploymentDetails, ServeInstanceDetails
from ray.util import placement_group_table

from serve_app.backend.placement import REPLICA_PREFIX, Group, NodeRoom, Want, group_wants, waiting_reasons


def listed_applications(client: Any) -> dict[str, ApplicationDetails]:
    """What Serve says of all applications. client: Serve's own."""
    found: dict[str, ApplicationDetails] = ServeInstanceDetails(**client.get_serve_details()).applications
    return found


def room_reasons(applications: Mapping[str, ApplicationDetails], *, is_repairing: bool = False) -> dict[str, str]:
    """By application, why Ray has not placed a replica of it; those that wait for nothing are left out.

    is_repairing: whether a copy may have lost a node. Else Ray is asked only while a replica starts.
    """
    deployments = [one for application in applications.values() for one in application.deployments.values()]
    if not is_repairing and not any(
        replica.state.value == "STARTING" for one in deployments for replica in one.replicas
    ):
        return {}
    living = [node for node in ray.nodes() if node["Alive"]]
    free = ray._private.state.available_resources_per_node()
    nodes = [
        NodeRoom(node["Resources"], free.get(node["NodeID"], node["Resources"]), node.get("Labels") or {})
        for node in living
    ]
    groups = [_group(group) for group in placement_group_table().values()]
    reasons = waiting_reasons(nodes, group_wants(groups, frozenset(node["NodeID"] for node in living)))
    empty = [replace(node, free=node.total) for node in nodes]  # Ray does not say since when an actor waits
    for name, application in applications.items():
        wants = [
            want for deployment in application.deployments.values() for want in actor_wants(name, deployment, groups)
        ]
        reasons = waiting_reasons(empty, wants) | reasons
    return reasons


def _group(listed: Mapping[str, Any]) -> Group:
    nodes = listed["bundles_to_node_id"]
    bundles = tuple((listed["bundles"][index], nodes[index]) for index in sorted(listed["bundles"]))
    return Group(listed["name"], listed["state"], bundles, listed["strategy"])


def actor_wants(application: str, deployment: DeploymentDetails, groups: Sequence[Group]) -> Iterator[Want]:
    """What a deployment's replicas wait for that have no placement group."""
    prefix = f"{REPLICA_PREFIX}{application}#{deployment.name}#"
    if any(group.name.startswith(prefix) for group in groups):
        return
    if any(one.state.value == "STARTING" and one.node_id is None for one in deployment.replicas):
        options = deployment.deployment_config.ray_actor_options
        selector = getattr(options, "label_selector", None) if not getattr(options, "fallback_strategy", None) else None
        yield Want(application, deployment.name, (deployment.required_resources,), (selector or {},))
