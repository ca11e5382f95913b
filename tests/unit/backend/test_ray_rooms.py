"""What Serve's and Ray's lists say of replicas that wait, without a cluster."""

from typing import Any

import pytest
import ray
from ray.serve.schema import ApplicationDetails

from serve_app.backend import ray_rooms
from serve_app.backend.ray_rooms import room_reasons

ROUTER, STAGE = {"CPU": 0.05}, {"CPU": 0.1, "GPU": 2.0}


def application(name: str, deployment: str, replicas: list[dict[str, Any]], **changes: Any) -> ApplicationDetails:
    details = {
        "name": deployment,
        "status": "UPDATING",
        "status_trigger": "CONFIG_UPDATE_STARTED",
        "message": "",
        "deployment_config": {"name": deployment, "ray_actor_options": changes.pop("options", {})},
        "target_num_replicas": 1,
        "required_resources": changes.pop("resources", {"CPU": 0.05}),
        "replicas": [{"replica_id": "1", "start_time_s": 0.0, **replica} for replica in replicas],
    }
    return ApplicationDetails(
        name=name,
        route_prefix=None,
        docs_path=None,
        status="DEPLOYING",
        message="",
        last_deployed_time_s=0.0,
        source="declarative",
        deployments={deployment: details},
        external_scaler_enabled=False,
        deployed_app_config=None,
    )


class FakeRay:
    """Ray's lists, and how often they were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_looks = 0
        self.groups: dict[str, Any] = {}
        self.free = {"a": {"CPU": 8.0, "GPU": 4.0}}
        monkeypatch.setattr(ray, "nodes", self._nodes)
        monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: self.free)
        monkeypatch.setattr(ray_rooms, "placement_group_table", lambda: self.groups)

    def add(self, name: str, state: str, *nodes: str) -> None:
        """A Router's group with a bundle on each of these nodes."""
        self.groups[name] = {
            "name": name,
            "state": state,
            "strategy": "PACK",
            "bundles": {index: STAGE if index else ROUTER for index in range(len(nodes))},
            "bundles_to_node_id": dict(enumerate(nodes)),
        }

    def _nodes(self) -> list[dict[str, Any]]:
        self.num_looks += 1
        gone = {"NodeID": "gone", "Alive": False, "Resources": {"GPU": 64.0, "CPU": 64.0}, "Labels": {}}
        return [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}, "Labels": {"zone": "us"}}, gone]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay(monkeypatch)


def test_ray_is_asked_only_while_a_replica_starts_or_one_is_repaired(fake: FakeRay) -> None:
    running = {"chat": application("chat", "Router", [{"state": "RUNNING", "node_id": "a"}])}
    assert room_reasons(running) == {}
    assert fake.num_looks == 0
    fake.add("SERVE_REPLICA::chat#Router#1", "RESCHEDULING", "a", "gone", "gone", "gone")
    assert room_reasons(running, is_repairing=True) == {
        "chat": "waits for room: a copy needs 6 GPUs, and all nodes together have 4; lower parallel, or add nodes: it "
        "starts by itself then"
    }


def test_a_router_waits_for_what_is_free_and_not_for_what_is_placed(fake: FakeRay) -> None:
    starting = {"chat": application("chat", "Router", [{"state": "STARTING", "node_id": None}])}
    fake.add("SERVE_REPLICA::chat#Router#1", "PENDING", "", "")
    assert room_reasons(starting) == {}
    fake.free["a"]["GPU"] = 1.0
    assert room_reasons(starting)["chat"].startswith(
        "waits for room: a copy needs 2 GPUs, and of 4 in the cluster 1 are"
    )
    fake.groups.clear()
    fake.add("SERVE_REPLICA::chat#Router#1", "CREATED", "a", "a")
    assert room_reasons(starting) == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"resources": {"CPU": 0.05, "memory": 2.0**40}}, "a Gateway needs 1024.0 GiB of memory, and no node has any"),
        ({"resources": {"CPU": 0.05, "disk": 1.0}}, "a Gateway needs 1 of the resource disk, and no node has any"),
        ({"options": {"label_selector": {"zone": "eu"}}}, "a Gateway needs a node with the label zone=eu, and none"),
        ({"options": {"label_selector": {"zone": "us"}}}, None),
        (
            {"options": {"label_selector": {"zone": "eu"}, "fallback_strategy": [{"label_selector": {"zone": "us"}}]}},
            None,
        ),
    ],
)
def test_other_replicas_are_held_against_what_the_nodes_have(
    fake: FakeRay, changes: dict[str, Any], told: str | None
) -> None:
    starting = {"gateway": application("gateway", "Gateway", [{"state": "STARTING", "node_id": None}], **changes)}
    fake.free["a"].clear()  # it may be placed already, which Ray does not say
    reasons = room_reasons(starting)
    assert list(reasons) == ([] if told is None else ["gateway"])
    assert told is None or reasons["gateway"].startswith(f"waits for room: {told}")
