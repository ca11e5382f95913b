"""What the links beside Serve carry in every message."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A RayshardError as it crosses a link."""

    error: str  # name of the class in errors.py
    message: str
    field: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where a Gateway replica receives tokens. `server_key` is a capability: never logged."""

    node: str  # address of the Gateway's node
    local_endpoint: str  # loopback, for senders on the same node
    wide_endpoint: str | None  # on the node's own address; None in a cluster of one node
    server_key: str = field(repr=False)
