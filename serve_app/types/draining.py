"""What a Gateway replica tells the command that ends it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestsLeft:
    """Requests that a replica had taken, and that have not ended."""

    replica: str
    num_requests: int
