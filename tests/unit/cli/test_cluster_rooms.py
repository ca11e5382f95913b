"""Nodes and placement groups as Ray's dashboard lists them."""

import json
from typing import Any

import msgspec
import pytest

from serve_app.cli.cluster_rooms import rooms_of

NODES = [
    {"node_id": "a", "state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 1.0}, "labels": {"x": "y"}},
    {"node_id": "b", "state": "DEAD", "resources_total": {"CPU": 8.0, "GPU": 8.0}, "node_ip": "127.0.0.2"},
]


def listed(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps({"result": True, "msg": "", "data": {"result": {"total": 2, "result": rows}}}).encode()


def group(name: str, state: str, *bundles: tuple[dict[str, float], str | None]) -> dict[str, Any]:
    return {
        "name": name,
        "state": state,
        "bundles": [{"unit_resources": one, "node_id": node} for one, node in bundles],
    }


def test_groups_that_wait_are_held_against_the_nodes_that_live() -> None:
    router, stage = {"CPU": 0.05}, {"CPU": 0.1, "GPU": 2.0}
    groups = [
        group("SERVE_REPLICA::new#Router#1", "PENDING", (router, None), (stage, "")),
        group("SERVE_REPLICA::hurt#Router#2", "RESCHEDULING", (router, "a"), (stage, "b")),
        group("SERVE_REPLICA::well#Router#3", "CREATED", (router, "a"), (stage, "a")),
        group("somebody's", "PENDING", (stage, None)),
    ]
    found = rooms_of(listed(NODES), listed(groups))
    told = "waits for room: a stage, whose ranks share a node, needs 2 GPUs on one node, and no node has more than 1; "
    assert {name: reason.startswith(told) for name, reason in found.items()} == {"new": True, "hurt": True}
    with_b = [{**node, "state": "ALIVE"} for node in NODES]
    assert rooms_of(listed(with_b), listed(groups)) == {}


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        rooms_of(b'{"applications": {}}', listed([]))
