"""Requests for models that are done after one step, and their entries while they wait."""

from collections import deque
from dataclasses import dataclass, field

from serve_app.errors import RayshardError
from serve_app.scheduling.batch_items import Sizes
from serve_app.types.tensors import InferRequest, InferResult, Item


@dataclass(slots=True, eq=False)
class Job:
    """One request."""

    request: InferRequest
    outputs: list[Item | None]
    num_left: int
    deadline_s: float | None = None  # by the clock of the scheduler's owner
    entries: "list[Entry]" = field(default_factory=list)
    is_begun: bool = False
    is_over: bool = False  # failed, or given up: what is left of it is dropped


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a request has ended."""

    job: Job
    result: InferResult | None
    error: RayshardError | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """One entry of a request."""

    job: Job
    index: int  # in the request
    model: int
    item: Item
    sizes: Sizes
    arrival: int = 0  # how many have come before it
    num_losses: int = 0
    is_alone: bool = False  # a step that it was in has failed, or has not come back
    queue: "EntryQueue | None" = None  # where it waits

    @property
    def num_tokens(self) -> int:
        """Tokens, or rows: what a step's size is counted in."""
        return max(self.sizes.values())


@dataclass(slots=True, eq=False)
class EntryQueue:
    """Entries of one priority that can be joined. The counts are of those whose request has not ended."""

    priority: int
    key: object
    entries: deque[Entry] = field(default_factory=deque)
    num_rows: int = 0
    num_tokens: int = 0

    def add(self, entry: Entry, *, is_first: bool) -> None:
        """One more that waits, at either end."""
        if is_first:
            self.entries.appendleft(entry)
        else:
            self.entries.append(entry)
        entry.queue = self
        self.num_rows += entry.sizes["batch"]
        self.num_tokens += entry.num_tokens

    def take(self) -> Entry:
        """Remove the first and give it."""
        entry = self.entries.popleft()
        self.leave_out(entry)
        return entry

    def leave_out(self, entry: Entry) -> None:
        """Count one no more."""
        if entry.queue is self:
            entry.queue = None
            self.num_rows -= entry.sizes["batch"]
            self.num_tokens -= entry.num_tokens

    def drop_ended(self) -> None:
        """Remove those at the head whose request has ended."""
        while self.entries and self.entries[0].job.is_over:
            self.take()
