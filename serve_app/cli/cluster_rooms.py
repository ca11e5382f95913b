"""The cluster's nodes, and the copies that still wait for a place on them, as Ray's dashboard lists them.

It does not list what is free: what waits only because others are there, the Gateway tells (`/health`).
"""

from typing import Generic, TypeVar

import msgspec

from serve_app.backend.placement import Group, NodeRoom, group_wants, waiting_reasons

NODES = "/api/v0/nodes?detail=true&limit=10000"
GROUPS = "/api/v0/placement_groups?detail=true&limit=10000"
RowT = TypeVar("RowT")


class NodeRow(msgspec.Struct, frozen=True):
    """A node."""

    node_id: str
    state: str
    resources_total: dict[str, float]
    labels: dict[str, str] = {}


class BundleRow(msgspec.Struct, frozen=True):
    """A bundle of a placement group."""

    unit_resources: dict[str, float]
    node_id: str | None = None


class GroupRow(msgspec.Struct, frozen=True):
    """A placement group; its strategy is not listed, and ours is PACK."""

    name: str
    state: str
    bundles: list[BundleRow] | None = None


class _Rows(msgspec.Struct, Generic[RowT], frozen=True):
    result: list[RowT]


class _Data(msgspec.Struct, Generic[RowT], frozen=True):
    result: _Rows[RowT]


class _Answer(msgspec.Struct, Generic[RowT], frozen=True):
    data: _Data[RowT]


def rooms_of(nodes_body: bytes, groups_body: bytes) -> dict[str, str]:
    """By application, why a copy has no place. Bodies: of NODES and GROUPS. Raises msgspec.DecodeError."""
    rows = msgspec.json.decode(nodes_body, type=_Answer[NodeRow]).data.result.result
    living = [row for row in rows if row.state == "ALIVE"]
    nodes = [NodeRoom(row.resources_total, row.resources_total, row.labels) for row in living]
    listed = msgspec.json.decode(groups_body, type=_Answer[GroupRow]).data.result.result
    groups = (
        Group(row.name, row.state, tuple((one.unit_resources, one.node_id) for one in row.bundles or ()))
        for row in listed
    )
    return waiting_reasons(nodes, group_wants(groups, frozenset(row.node_id for row in living)))
