"""Reads a file of requests line by line; never more than one line at a time, and of a long one its beginning."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import RequestError
from serve_app.gateway.bodies.batches import BatchLine
from serve_app.gateway.bodies.convert import convert_body
from serve_app.gateway.bodies.json_body import parse_json_object

_CHUNK_BYTES = 262_144  # that one turn of a thread reads, or one line if that is longer
_CHUNK_LINES = 1000
_SKIP_BYTES = 65_536
_LONGEST_END = b"\r\n"


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line that is not blank. number: from 1; content: without its end, None when it is too long."""

    number: int
    content: bytes | None


class InputLines:
    """The lines of a file, in order; it is open only while some are taken. max_line_bytes: of what is not too long."""

    def __init__(self, path: Path, max_line_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_line_bytes
        self._position = 0
        self._number = 0

    def take(self) -> list[InputLine] | None:
        """The next lines, some hundred KiB of them or a thousand; None at the end of the file. Blocks."""
        found: list[InputLine] = []
        with self._path.open("rb") as file:
            start = file.seek(self._position)
            while file.tell() - start < _CHUNK_BYTES and len(found) < _CHUNK_LINES:
                if not self._take_one(file, found):
                    break
            self._position = file.tell()
        return found if self._position > start else None

    def _take_one(self, file: BinaryIO, found: list[InputLine]) -> bool:
        """Adds the next line if it is not blank; False at the end."""
        content = file.readline(self._max_bytes + len(_LONGEST_END))
        if not content:
            return False
        self._number += 1
        line = content.rstrip(_LONGEST_END)
        is_whole = content.endswith(b"\n")
        if len(line) > self._max_bytes or (not is_whole and len(content) > self._max_bytes):
            if not is_whole:
                _skip_line(file)
            found.append(InputLine(self._number, None))
        elif line.strip():
            found.append(InputLine(self._number, line))
        return True


def _skip_line(file: BinaryIO) -> None:
    while (piece := file.readline(_SKIP_BYTES)) and not piece.endswith(b"\n"):
        pass


def parse_line(content: bytes) -> BatchLine:
    """The request of a line. Raises RequestError that says what is wrong with it."""
    try:
        given = parse_json_object(content)
    except RequestError as error:
        message = error.message
        raise RequestError(
            f"the line{message.removeprefix('body')}" if message.startswith("body is") else message, field=error.field
        ) from error
    return convert_body(given, BatchLine)


def digest_of(custom_id: str) -> bytes:
    """Stands for a custom_id where many are kept in memory."""
    return blake2b(custom_id.encode(), digest_size=16).digest()
