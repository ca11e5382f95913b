"""Bodies as they were before they were compressed (RFC 9110, 8.4): gzip and deflate, never more than is asked for."""

import zlib

from serve_app.errors import RequestError, UnsupportedEncodingError

ENCODINGS = ("gzip", "deflate")  # as `accept-encoding` of a refusal says them
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_MAX_MEMBERS = 1024  # of one gzip body: each takes a copy of what is left
_SLICE_BYTES = 65_536


class ContentDecoder:
    """Undoes the encoding of one body, piece by piece."""

    def __init__(self, encoding: str) -> None:
        """Raises UnsupportedEncodingError for an encoding that is not undone here."""
        name = encoding.strip().lower()
        self._name = name
        self._num_members = 0
        self._inflater = None
        if name not in ("", "identity"):
            if name not in _WINDOW:
                raise UnsupportedEncodingError(
                    f"content-encoding {name[:16]!r} is not read here; use {' or '.join(ENCODINGS)}, or none",
                    field="content-encoding",
                )
            self._inflater = zlib.decompressobj(_WINDOW[name])

    def feed(self, piece: bytes, room_bytes: int) -> bytes:
        """What the next piece of the body says; more than room_bytes by one byte where it says more than that.

        Raises RequestError when it is not what the encoding writes.
        """
        if self._inflater is None:
            return piece
        inflated = bytearray()
        for start in range(0, len(piece), _SLICE_BYTES):
            rest = piece[start : start + _SLICE_BYTES]
            while rest and len(inflated) <= room_bytes:
                rest = self._inflate(rest, inflated, room_bytes + 1 - len(inflated))
        return bytes(inflated)

    def finish(self) -> None:
        """Raises RequestError when the body has ended before its encoding has."""
        if self._inflater is not None and not self._inflater.eof:
            raise RequestError(f"the {self._name} of the body ends too early", field="body")

    def _inflate(self, rest: bytes, inflated: bytearray, max_bytes: int) -> bytes:
        """Adds up to max_bytes to `inflated`; gives what is left of `rest`."""
        assert self._inflater is not None
        if self._inflater.eof:
            self._num_members += 1
            if self._name == "deflate" or self._num_members >= _MAX_MEMBERS:
                raise RequestError(f"the body goes on after the end of its {self._name}", field="body")
            self._inflater = zlib.decompressobj(_WINDOW[self._name])
        try:
            inflated += self._inflater.decompress(rest, max_bytes)
        except zlib.error:
            raise RequestError(f"the body is not {self._name}", field="body") from None
        return self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
