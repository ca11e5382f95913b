"""Where things lie in the directory of batches, and how they are written there.

    owners/OWNER/files/ID/        content.jsonl, and meta.json from the moment the file is there for its owner
    owners/OWNER/batches/ID/      batch.json, lock, and cancel once its owner has asked for that
    queue/ID                      OWNER of a batch that has not ended

An id begins with the time, so that names sort by age.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from serve_app.errors import NotFoundError

ObjectT = TypeVar("ObjectT")

OPEN_OWNER = "open"  # where no keys are used
_KEY_OWNER = "key-"  # before a key's name
FILE_PREFIX, BATCH_PREFIX = "file-", "batch_"
_ID = re.compile(rf"(?:{FILE_PREFIX}|{BATCH_PREFIX})[0-9a-f]{{32}}")
_TIME_DIGITS, _RANDOM_BYTES = 12, 10


@dataclass(frozen=True, slots=True)
class Places:
    """The paths below one directory."""

    root: Path

    @property
    def owners(self) -> Path:
        """A folder for each owner."""
        return self.root / "owners"

    @property
    def queue(self) -> Path:
        """An entry for each batch that has not ended."""
        return self.root / "queue"

    def files(self, owner: str) -> Path:
        """A folder for each file."""
        return self.owners / owner / "files"

    def batches(self, owner: str) -> Path:
        """A folder for each batch."""
        return self.owners / owner / "batches"

    def file(self, owner: str, file_id: str) -> Path:
        """The folder of one file. Raises NotFoundError for what cannot be an id."""
        return self.files(owner) / _checked(file_id, FILE_PREFIX, "file")

    def batch(self, owner: str, batch_id: str) -> Path:
        """The folder of one batch. Raises NotFoundError for what cannot be an id."""
        return self.batches(owner) / _checked(batch_id, BATCH_PREFIX, "batch")


def owner_of_key(name: str) -> str:
    """The owner's folder of a key of this name."""
    return f"{_KEY_OWNER}{name}"


def key_of_owner(owner: str) -> str | None:
    """The name of the key whose folder this is; None: nobody's, where no keys are used."""
    return owner.removeprefix(_KEY_OWNER) if owner.startswith(_KEY_OWNER) else None


def new_id(prefix: str, now_s: float) -> str:
    """A fresh id that sorts behind those from before."""
    return f"{prefix}{int(now_s * 1000):0{_TIME_DIGITS}x}{secrets.token_hex(_RANDOM_BYTES)}"


def made_s(name: str) -> float:
    """When an id was made, in Unix seconds."""
    digits = name.removeprefix(FILE_PREFIX).removeprefix(BATCH_PREFIX)[:_TIME_DIGITS]
    return int(digits, 16) / 1000


def make_folder(path: Path) -> None:
    """The folder and those above it, which its owner alone can read."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """A file that has its whole content whenever it is there, also after the machine has failed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_object(path: Path, kind: type[ObjectT]) -> ObjectT | None:
    """What write_atomically has written of a kind; None: it is not there. Raises OSError when it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise OSError(errno.EIO, "not what this server writes", str(path)) from error


def sync_folder(path: Path) -> None:
    """Let a folder's entries outlast the machine's failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def names_in(folder: Path, prefix: str) -> list[str]:
    """The ids in a folder, the oldest first."""
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith(prefix) and _ID.fullmatch(name))
    except FileNotFoundError:
        return []


def remove_folder(path: Path, first: str) -> None:
    """Delete a folder, before all else the file that makes it count."""
    with contextlib.suppress(FileNotFoundError):
        (path / first).unlink()
    shutil.rmtree(path, ignore_errors=True)


def _checked(name: str, prefix: str, kind: str) -> str:
    if not name.startswith(prefix) or _ID.fullmatch(name) is None:
        raise no_such(kind, name)
    return name


def no_such(kind: str, name: str) -> NotFoundError:
    """That a file or a batch is not there for its caller."""
    return NotFoundError(f"{kind} {name[:64]!r} is not there; see /v1/{kind}{'es' if kind == 'batch' else 's'}")
