"""Batches of each owner on disk. Everything here blocks: it is run in threads.

Who holds a batch's lock writes its batch.json, and nobody else does. The lock is the kernel's (flock): it is free as
soon as the process that held it is gone, however it went.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from serve_app.errors import RequestError
from serve_app.gateway.batches.file_store import DAY_S
from serve_app.gateway.batches.paging import Page, Paging, page_of
from serve_app.gateway.batches.places import (
    BATCH_PREFIX,
    FILE_PREFIX,
    Places,
    make_folder,
    names_in,
    new_id,
    no_such,
    read_object,
    remove_folder,
    write_atomically,
)
from serve_app.gateway.bodies.batches import Batch, BatchBody, BatchStatus

STATE, CANCEL, LOCK = "batch.json", "cancel", "lock"
ENDED: frozenset[BatchStatus] = frozenset({"completed", "failed", "expired", "cancelled"})
_MAKING_S = 600.0  # by then a batch is made, or never will be
_STOPPABLE: frozenset[BatchStatus] = frozenset({"validating", "in_progress"})


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk of a batch: as its owner sees it, and what only the server needs."""

    batch: Batch
    output_id: str  # of the files that results are appended to; their owner sees them in the end
    error_id: str
    output_keep_s: int | None = None
    ends_as: BatchStatus = "completed"  # once it is finalized


@dataclass(frozen=True, slots=True)
class QueuedBatch:
    """A batch that has not ended."""

    owner: str
    batch_id: str


class BatchStore:
    """Adds, finds, cancels and claims batches."""

    def __init__(self, places: Places, clock: Callable[[], float] = time.time) -> None:
        self.places = places
        self.clock = clock

    def create(self, owner: str, body: BatchBody) -> Batch:
        """A batch that waits to be worked."""
        now_s = self.clock()
        batch = Batch(
            id=new_id(BATCH_PREFIX, now_s),
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            created_at=int(now_s),
            expires_at=int(now_s) + DAY_S,
            metadata=body.metadata,
        )
        keep_s = None if body.output_expires_after is None else body.output_expires_after.seconds
        state = BatchState(
            batch=batch,
            output_id=new_id(FILE_PREFIX, now_s),
            error_id=new_id(FILE_PREFIX, now_s),
            output_keep_s=keep_s,
        )
        make_folder(self.places.queue)
        make_folder(self.places.batch(owner, batch.id))
        write_atomically(self.places.queue / batch.id, owner.encode())  # first: what is not in the queue never ends
        self.save(owner, state)
        return batch

    def load(self, owner: str, batch_id: str) -> BatchState:
        """Raises NotFoundError."""
        found = self._found(owner, batch_id)
        if found is None:
            raise no_such("batch", batch_id)
        return found

    def save(self, owner: str, state: BatchState) -> None:
        """Write down where a batch stands; by the holder of its lock."""
        write_atomically(self.places.batch(owner, state.batch.id) / STATE, msgspec.json.encode(state))

    def describe(self, owner: str, batch_id: str) -> Batch:
        """As its owner sees it. Raises NotFoundError."""
        return self._shown(owner, self.load(owner, batch_id).batch)

    def page(self, owner: str, paging: Paging) -> Page[Batch]:
        """Batches of an owner."""

        def load(batch_id: str) -> Batch | None:
            found = self._found(owner, batch_id)
            return None if found is None else self._shown(owner, found.batch)

        return page_of(names_in(self.places.batches(owner), BATCH_PREFIX), paging, load)

    def cancel(self, owner: str, batch_id: str) -> Batch:
        """Ask whoever works a batch to end it. Raises NotFoundError, RequestError when it has ended."""
        status = self.load(owner, batch_id).batch.status
        if status not in (*_STOPPABLE, "cancelling"):
            message = f"batch {batch_id} is {status}; only one that is validating or in_progress can be cancelled"
            raise RequestError(message, field="batch_id")
        path = self.places.batch(owner, batch_id) / CANCEL
        if not path.exists():
            write_atomically(path, b"")
        return self.describe(owner, batch_id)

    def queued(self) -> list[QueuedBatch]:
        """Batches that have not ended, the oldest first."""
        found = []
        for batch_id in names_in(self.places.queue, BATCH_PREFIX):
            with contextlib.suppress(FileNotFoundError):
                found.append(QueuedBatch((self.places.queue / batch_id).read_text(), batch_id))
        return found

    def users_of(self, owner: str, file_id: str) -> list[str]:
        """Batches that have not ended and need this file."""
        states = [self._found(one.owner, one.batch_id) for one in self.queued() if one.owner == owner]
        return [
            state.batch.id
            for state in states
            if state is not None
            and state.batch.status not in ENDED
            and file_id in (state.batch.input_file_id, state.output_id, state.error_id)
        ]

    def claim(self, queued: QueuedBatch) -> "Claim | None":
        """The right to work a batch, of this process alone; None: another has it, or it has ended.

        Raises OSError when the filesystem has no locks, or the batch cannot be read.
        """
        folder = self.places.batch(queued.owner, queued.batch_id)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            self._forget(queued, None)
            return None
        with contextlib.ExitStack() as unless_claimed:
            unless_claimed.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            state = self._found(queued.owner, queued.batch_id)
            if state is None or state.batch.status in ENDED:  # read under the lock: it may just have ended
                self._forget(queued, state)
                return None
            unless_claimed.pop_all()
            return Claim(self, queued, state, descriptor)

    def remove(self, owner: str, batch_id: str) -> None:
        """Delete whatever there is of a batch."""
        remove_folder(self.places.batch(owner, batch_id), STATE)

    def _forget(self, queued: QueuedBatch, state: BatchState | None) -> None:
        """Take a batch out of the queue; one that is not there may only just be being made."""
        entry = self.places.queue / queued.batch_id
        with contextlib.suppress(FileNotFoundError):
            if state is not None or entry.stat().st_mtime < self.clock() - _MAKING_S:
                entry.unlink()

    def _found(self, owner: str, batch_id: str) -> BatchState | None:
        return read_object(self.places.batch(owner, batch_id) / STATE, BatchState)

    def _shown(self, owner: str, batch: Batch) -> Batch:
        """With what has been asked for and is not done yet."""
        if batch.status not in _STOPPABLE:
            return batch
        try:
            asked_s = (self.places.batch(owner, batch.id) / CANCEL).stat().st_mtime
        except FileNotFoundError:
            return batch
        return replace(batch, status="cancelling", cancelling_at=int(asked_s))


class Claim:
    """A batch that this process works."""

    def __init__(self, store: BatchStore, queued: QueuedBatch, state: BatchState, descriptor: int) -> None:
        self.owner, self.batch_id, self.state = queued.owner, queued.batch_id, state
        self._store = store
        self._queued = queued
        self._descriptor: int | None = descriptor

    @property
    def folder(self) -> Path:
        """Of the batch."""
        return self._store.places.batch(self.owner, self.batch_id)

    def update(self, change: Callable[[BatchState], BatchState]) -> None:
        """Write down where the batch stands; one that has ended leaves the queue. In one thread at a time."""
        assert self._descriptor is not None, "another process may work the batch now"
        state = change(self.state)
        self._store.save(self.owner, state)
        self.state = state
        if state.batch.status in ENDED:
            (self._store.places.queue / self.batch_id).unlink(missing_ok=True)

    def is_cancel_asked(self) -> bool:
        """Whether its owner wants it to end."""
        return (self.folder / CANCEL).exists()

    def release(self) -> None:
        """Let others claim it; this process will not write it any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
