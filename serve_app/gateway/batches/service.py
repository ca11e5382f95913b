"""Files and batches of one Gateway replica, as its routes call them."""

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.config.batches import BatchesConfig
from serve_app.errors import QueueFullError, RequestError, UnavailableError
from serve_app.gateway.batches.batch_store import BatchStore
from serve_app.gateway.batches.batch_tools import BatchTools
from serve_app.gateway.batches.callers import owner
from serve_app.gateway.batches.file_store import FileStore, Upload
from serve_app.gateway.batches.paging import Page, Paging
from serve_app.gateway.batches.places import Places
from serve_app.gateway.batches.worker import BatchWorker
from serve_app.gateway.bodies.batches import Batch, BatchBody, FileObject
from serve_app.gateway.open_streams import OpenStreams
from serve_app.preprocessing.text_pool import TextPool

INPUT_PURPOSE = "batch"
_MAX_OPEN_BATCHES = 1000  # of one key
_MAX_UPLOADS_OF_CALLER, _MAX_UPLOADS = 4, 16
_FULL = {errno.ENOSPC, errno.EDQUOT}


class BatchService:
    """Each call is on behalf of the request's caller, who sees nobody else's files and batches."""

    def __init__(
        self,
        directory: Path,
        config: BatchesConfig,
        endpoints: Collection[str],
        tools: Callable[[FileStore, TextPool], BatchTools],
        is_draining: Callable[[], bool],
        *,
        poll_s: float = 2.0,
    ) -> None:
        """endpoints: that batches may call; tools: given files, and a thread to work them in."""
        self.config = config
        self.endpoints = sorted(endpoints)
        self.uploads = OpenStreams(max_of_caller=_MAX_UPLOADS_OF_CALLER, max_in_all=_MAX_UPLOADS)
        places = Places(directory)
        self._files, self._batches = FileStore(places, config), BatchStore(places)
        self._threads = TextPool(2, name="file")
        self._working = TextPool(1, name="batch")
        self._worker = BatchWorker(self._batches, tools(self._files, self._working), is_draining, poll_s=poll_s)

    def start(self) -> None:
        """Begin to work what there is."""
        self._worker.start()

    async def close(self) -> None:
        """Leave off; whoever goes on finds all that was written."""
        await self._worker.close()
        self._threads.close()
        self._working.close(is_waiting=True)  # a lock is let go of last

    @property
    def num_requests_left(self) -> int:
        """Requests of the batches that this replica works which have not ended."""
        return self._worker.num_left

    async def begin_upload(self) -> Upload:
        """A file that is going to arrive. Raises RequestTooLargeError when there is no room."""
        with disk_errors():
            return await self._threads.run(self._files.begin, owner())

    async def write_upload(self, upload: Upload, content: bytes) -> None:
        """Some more of it. Raises RequestTooLargeError, UnavailableError."""
        with disk_errors():
            await self._threads.run(upload.write, content)

    async def finish_upload(self, upload: Upload, filename: str, keep_s: int | None) -> FileObject:
        """It has come whole."""
        with disk_errors():
            return await self._threads.run(upload.finish, filename, INPUT_PURPOSE, keep_s)

    async def drop_upload(self, upload: Upload) -> None:
        """It has not."""
        await self._threads.run(upload.drop)

    async def file(self, file_id: str) -> FileObject:
        """Raises NotFoundError."""
        return await self._threads.run(self._files.describe, owner(), file_id)

    async def file_content(self, file_id: str) -> Path:
        """Where its bytes lie. Raises NotFoundError."""
        return await self._threads.run(self._files.content, owner(), file_id)

    async def files_page(self, paging: Paging, purpose: str | None) -> Page[FileObject]:
        """Files, the newest first unless paging says otherwise."""
        return await self._threads.run(self._files.page, owner(), paging, purpose)

    async def delete_file(self, file_id: str) -> None:
        """Raises NotFoundError, RequestError while a batch needs it."""
        users = await self._threads.run(self._batches.users_of, owner(), file_id)
        if users:
            raise RequestError(
                f"file {file_id} is needed by {users[0]}; cancel that, or wait for its end", field="file_id"
            )
        await self._threads.run(self._files.delete, owner(), file_id)

    async def create_batch(self, body: BatchBody) -> Batch:
        """Raises RequestError, NotFoundError, QueueFullError."""
        self._check(body)
        found = await self.file(body.input_file_id)
        if found.purpose != INPUT_PURPOSE:
            message = f"input_file_id={found.id} has the purpose {found.purpose}; upload one with purpose=batch"
            raise RequestError(message, field="input_file_id")
        queued = await self._threads.run(self._batches.queued)
        if sum(one.owner == owner() for one in queued) >= _MAX_OPEN_BATCHES:
            raise QueueFullError(
                f"{_MAX_OPEN_BATCHES} batches of yours have not ended, as many as may be", retry_after_s=60
            )
        with disk_errors():
            batch = await self._threads.run(self._batches.create, owner(), body)
        self._worker.look_at(batch.id)
        return batch

    async def batch(self, batch_id: str) -> Batch:
        """Raises NotFoundError."""
        return await self._threads.run(self._batches.describe, owner(), batch_id)

    async def batches_page(self, paging: Paging) -> Page[Batch]:
        """Batches, the newest first."""
        return await self._threads.run(self._batches.page, owner(), paging)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Raises NotFoundError, RequestError when it has ended."""
        with disk_errors():
            batch = await self._threads.run(self._batches.cancel, owner(), batch_id)
        self._worker.look_at(batch_id)
        return batch

    def _check(self, body: BatchBody) -> None:
        if body.endpoint not in self.endpoints:
            message = f"endpoint={body.endpoint[:64]!r} is not for batches; send one of {', '.join(self.endpoints)}"
            raise RequestError(message, field="endpoint")
        if body.completion_window != "24h":
            message = f"completion_window={body.completion_window[:16]!r} is not known; send 24h"
            raise RequestError(message, field="completion_window")
        if body.output_expires_after is not None:
            check_anchor(body.output_expires_after.anchor, "output_expires_after.anchor")


def check_anchor(anchor: str, field: str) -> None:
    """From when a file's time counts. Raises RequestError."""
    if anchor != "created_at":
        raise RequestError(f"{field}={anchor[:32]!r} is not known; send created_at", field=field)


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk is told as what it is; other errors of it are faults of the server."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        message = "the disk of batches.directory is full; try again when some files have been deleted"
        raise UnavailableError(message, retry_after_s=60.0) from error
