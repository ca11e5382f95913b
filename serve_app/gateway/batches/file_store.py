"""Files of each owner on disk. Everything here blocks: it is run in threads."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from serve_app.config.batches import BatchesConfig
from serve_app.errors import RequestTooLargeError
from serve_app.gateway.batches.paging import Page, Paging, page_of
from serve_app.gateway.batches.places import (
    FILE_PREFIX,
    Places,
    made_s,
    make_folder,
    names_in,
    new_id,
    no_such,
    read_object,
    remove_folder,
    sync_folder,
    write_atomically,
)
from serve_app.gateway.bodies.batches import FileObject

CONTENT, META = "content.jsonl", "meta.json"
DAY_S = 86_400


class FileStore:
    """Adds, finds and deletes files."""

    def __init__(self, places: Places, config: BatchesConfig, clock: Callable[[], float] = time.time) -> None:
        self.places = places
        self._config = config
        self._clock = clock

    def begin(self, owner: str) -> "Upload":
        """A file that is going to arrive. Raises RequestTooLargeError when the owner has no room left."""
        limit = self._config.max_stored_bytes
        stored = self.stored_bytes(owner)
        if stored >= limit:
            message = f"your files take {stored} bytes, and max_stored_bytes={limit}; delete some (DELETE /v1/files/ID)"
            raise RequestTooLargeError(message, field="file")
        file_id = new_id(FILE_PREFIX, self._clock())
        return Upload(self, owner, file_id, min(self._config.max_file_bytes, limit - stored))

    def place_of(self, owner: str, file_id: str) -> Path:
        """Where a file's content lies, or will."""
        return self.places.file(owner, file_id) / CONTENT

    def make_room(self, owner: str, file_id: str) -> Path:
        """Where a file's content goes, which is hidden until it is shown."""
        place = self.place_of(owner, file_id)
        make_folder(place.parent)
        return place

    def show(self, owner: str, file_id: str, filename: str, purpose: str, keep_s: int | None = None) -> FileObject:
        """Let a file that is whole on disk be there for its owner. keep_s: None: as long as any is kept."""
        folder = self.places.file(owner, file_id)
        now_s = int(self._clock())
        most_s = int(self._config.keep_days * DAY_S)
        shown = FileObject(
            id=file_id,
            bytes=(folder / CONTENT).stat().st_size,
            created_at=now_s,
            expires_at=now_s + min(most_s, keep_s or most_s),
            filename=filename,
            purpose=purpose,
        )
        sync_folder(folder)
        write_atomically(folder / META, msgspec.json.encode(shown))
        return shown

    def describe(self, owner: str, file_id: str) -> FileObject:
        """Raises NotFoundError."""
        found = self._found(owner, file_id)
        if found is None:
            raise no_such("file", file_id)
        return found

    def content(self, owner: str, file_id: str) -> Path:
        """Where the bytes of a file lie that is there. Raises NotFoundError."""
        self.describe(owner, file_id)
        return self.place_of(owner, file_id)

    def page(self, owner: str, paging: Paging, purpose: str | None) -> Page[FileObject]:
        """Files of an owner; purpose: None: of any."""

        def load(file_id: str) -> FileObject | None:
            found = self._found(owner, file_id)
            return found if found is not None and purpose in (None, found.purpose) else None

        return page_of(names_in(self.places.files(owner), FILE_PREFIX), paging, load)

    def delete(self, owner: str, file_id: str) -> None:
        """Raises NotFoundError."""
        self.describe(owner, file_id)
        self.remove(owner, file_id)

    def remove(self, owner: str, file_id: str) -> None:
        """Delete whatever there is of a file."""
        remove_folder(self.places.file(owner, file_id), META)

    def is_over(self, owner: str, file_id: str, hidden_s: float) -> bool:
        """Whether a file's time has passed; one that is hidden has had hidden_s since it was last written to."""
        if (self.places.file(owner, file_id) / META).exists():
            return self._found(owner, file_id) is None
        content = self.place_of(owner, file_id)
        last_s = content.stat().st_mtime if content.exists() else made_s(file_id)
        return last_s < self._clock() - hidden_s

    def stored_bytes(self, owner: str) -> int:
        """What all files of an owner take, those that arrive among them."""
        total = 0
        for file_id in names_in(self.places.files(owner), FILE_PREFIX):
            with contextlib.suppress(FileNotFoundError):
                total += self.place_of(owner, file_id).stat().st_size
        return total

    def _found(self, owner: str, file_id: str) -> FileObject | None:
        found = read_object(self.places.file(owner, file_id) / META, FileObject)
        return found if found is not None and found.expires_at > self._clock() else None


class Upload:
    """A file while it arrives: finished or dropped in the end. Its threads take turns."""

    def __init__(self, store: FileStore, owner: str, file_id: str, max_bytes: int) -> None:
        self.num_bytes = 0
        self.max_bytes = max_bytes
        self._store = store
        self._owner = owner
        self._file_id = file_id
        self._file: BinaryIO | None = None
        self._turn = threading.Lock()  # a request that is cancelled leaves its thread at work
        self._is_over = False

    def write(self, content: bytes) -> None:
        """Raises RequestTooLargeError before there is more than may be."""
        if self.num_bytes + len(content) > self.max_bytes:
            raise too_large(self.max_bytes)
        with self._turn:
            if not self._is_over:
                self._write(content)

    def finish(self, filename: str, purpose: str, keep_s: int | None) -> FileObject:
        """The file is whole."""
        with self._turn:
            assert self._file is not None
            os.fsync(self._file.fileno())
            self._file.close()
            shown = self._store.show(self._owner, self._file_id, filename, purpose, keep_s)
            self._is_over = True
            return shown

    def drop(self) -> None:
        """The file will not come to its end, unless it has."""
        with self._turn:
            if self._file is not None and not self._is_over:
                self._file.close()
                self._store.remove(self._owner, self._file_id)
            self._is_over = True

    def _write(self, content: bytes) -> None:
        if self._file is None:
            path = self._store.make_room(self._owner, self._file_id)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) :]
        self.num_bytes += len(content)


def too_large(max_bytes: int) -> RequestTooLargeError:
    """That a file is larger than its caller may send."""
    message = f"the file is larger than the {max_bytes} bytes that may be sent; split it (max_file_bytes of batches)"
    return RequestTooLargeError(message, field="file")
