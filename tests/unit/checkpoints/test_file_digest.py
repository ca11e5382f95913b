"""Digests of files: the same for the same content wherever it lies, another after a change."""

from pathlib import Path

import pytest

from serve_app.checkpoints.file_digest import file_digest

LARGE_BYTES = 8 << 20
HEADER_BYTES = 300_000


def large_file(path: Path, *changes: tuple[int, bytes]) -> Path:
    """A file of zeros that begins as a safetensors file does, with other bytes at some places."""
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES)
        file.write(HEADER_BYTES.to_bytes(8, "little"))
        for offset, content in changes:
            file.seek(offset)
            file.write(content)
    return path


@pytest.mark.parametrize("content", [b"", b"a text"])
def test_a_small_file_is_its_content(tmp_path: Path, content: bytes) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    first.write_bytes(content)
    again.write_bytes(content)
    other.write_bytes(content + b"\0")
    assert file_digest(first) == file_digest(again) != file_digest(other)


@pytest.mark.parametrize(
    "change",
    [
        (8 + HEADER_BYTES - 1, b"x"),  # the last byte of the header
        (LARGE_BYTES - 1, b"x"),
        (LARGE_BYTES // 2, b"x" * (LARGE_BYTES // 60)),  # one tensor
        (LARGE_BYTES, b"\0"),
    ],
    ids=["header", "end", "tensor", "size"],
)
def test_a_large_file_s_change_shows(tmp_path: Path, change: tuple[int, bytes]) -> None:
    before, again = large_file(tmp_path / "before"), large_file(tmp_path / "again")
    assert file_digest(before) == file_digest(again) != file_digest(large_file(tmp_path / "changed", change))


def test_a_file_that_claims_a_longer_header_than_it_has_is_read_to_its_end(tmp_path: Path) -> None:
    assert file_digest(large_file(tmp_path / "a", (0, b"\xff" * 8))) != file_digest(large_file(tmp_path / "b"))
