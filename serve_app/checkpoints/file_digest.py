"""Digests that tell a model's files apart: of a large file only pieces are read, as many as a change will meet."""

from hashlib import blake2b
from pathlib import Path

_DIGEST_BYTES = 16
_WHOLE_BYTES = 4 << 20  # a file of up to that is read as a whole
_NUM_PIECES = 64
_PIECE_BYTES = 16 << 10
_SIZE_BYTES = 8  # of the length that a safetensors file begins with


def file_digest(path: Path) -> str:
    """Of a file's size and content; of a large safetensors file its header, and pieces that are spread over it.

    Training changes nearly all of a file, so that a piece shows it. A few numbers that were changed by hand may be
    missed.
    """
    num_bytes = path.stat().st_size
    digest = blake2b(num_bytes.to_bytes(_SIZE_BYTES, "little"), digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        if num_bytes <= _WHOLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        header_bytes = int.from_bytes(file.read(_SIZE_BYTES), "little")
        digest.update(file.read(min(header_bytes, num_bytes)))
        last_bytes = num_bytes - _PIECE_BYTES
        for number in range(_NUM_PIECES):
            file.seek(last_bytes * number // (_NUM_PIECES - 1))
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()
