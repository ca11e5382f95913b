"""`POST /v1/files`: a multipart body (RFC 7578) that goes to disk as it arrives, never whole into memory."""

import asyncio
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serve_app.errors import RequestAbortedError, RequestError, SlowRequestError, UnsupportedMediaTypeError
from serve_app.gateway.batches.file_store import Upload, too_large
from serve_app.gateway.batches.service import INPUT_PURPOSE, BatchService, check_anchor
from serve_app.gateway.bodies.batches import FileObject
from serve_app.gateway.caller import owner
from serve_app.gateway.http.content_encoding import ContentDecoder
from serve_app.gateway.time_limits import TIMEOUT_KEY, time_limit_of

_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_MAX_FIELD_BYTES = 256
_MAX_NAME_CHARS = 255
_FRAME_BYTES = 65_536  # what a body may have beside its file
_WRITE_BYTES = 1_048_576  # that are collected before a thread writes them
_MIN_KEEP_S, _MAX_KEEP_S = 3600, 2_592_000


async def receive_file(request: Request, service: BatchService) -> FileObject:
    """The file of a request, once it is on disk. Raises RequestError, RequestTooLargeError, UnavailableError."""
    limit_s = time_limit_of(request.headers, service.config.upload_timeout_s)
    form = _Form(_boundary_of(request.headers.get("content-type", "")))
    with service.uploads.held(owner()):
        upload = await service.begin_upload()
        _check_announced(request.headers.get("content-length", ""), upload)
        try:
            async with asyncio.timeout(limit_s):
                await _receive(request, form, upload, service)
            keep_s = form.check()
            return await service.finish_upload(upload, form.filename or "", keep_s)
        except TimeoutError as error:
            message = f"the file did not arrive within {limit_s:g} s (upload_timeout_s, {TIMEOUT_KEY}); send less"
            raise SlowRequestError(message, field="file") from error
        except ClientDisconnect as error:
            raise RequestAbortedError("the client left while sending") from error
        finally:
            await asyncio.shield(service.drop_upload(upload))


async def _receive(request: Request, form: "_Form", upload: Upload, service: BatchService) -> None:
    decoder = ContentDecoder(request.headers.get("content-encoding", ""))
    max_bytes, num_bytes = upload.max_bytes + _FRAME_BYTES, 0
    async for piece in request.stream():
        content = decoder.feed(piece, max_bytes - num_bytes)
        num_bytes += len(content)
        if num_bytes > max_bytes:
            raise too_large(upload.max_bytes)
        form.feed(content)
        if len(form.content) >= _WRITE_BYTES:
            await service.write_upload(upload, form.take())
    decoder.finish()
    form.end()
    if form.filename is not None:
        await service.write_upload(upload, form.take())


def _boundary_of(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        message = "content-type is not multipart/form-data; send the fields file and purpose in such a body"
        raise UnsupportedMediaTypeError(message, field="content-type")
    if not options.get(b"boundary"):
        raise RequestError("content-type has no boundary; name the one of the body", field="content-type")
    return options[b"boundary"]


def _check_announced(announced: str, upload: Upload) -> None:
    """Refuses a body that says itself how much too large it is, before any of it is read."""
    if announced.isdecimal() and int(announced[:20]) > upload.max_bytes + _FRAME_BYTES:
        raise too_large(upload.max_bytes)


@dataclass(slots=True)
class _Part:
    """One part of the body while it arrives."""

    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    name: str | None = None
    filename: str | None = None


class _Form:
    """The parts of the body: the file's content to be taken, and the fields beside it."""

    def __init__(self, boundary: bytes) -> None:
        self.content = bytearray()  # of the file, not taken yet
        self.filename: str | None = None  # None: no file has come
        self._fields: dict[str, bytearray] = {}
        self._part = _Part()
        self._is_whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_content,
                    "on_part_data": self._add_content,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed() from error

    def feed(self, content: bytes) -> None:
        """Some more of the body. Raises RequestError."""
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise _malformed() from error

    def end(self) -> None:
        """The body has come. Raises RequestError when it is not whole."""
        if not self._is_whole:
            raise RequestError("the multipart body ends too early; send it to its last boundary", field="body")

    def take(self) -> bytes:
        """What has come of the file since it was asked last."""
        content, self.content = bytes(self.content), bytearray()
        return content

    def check(self) -> int | None:
        """Seconds for which the file is to be kept; None: it does not say. Raises RequestError."""
        given = {name: value.decode(errors="replace") for name, value in self._fields.items()}
        purpose, seconds = given.get("purpose"), given.get("expires_after[seconds]")
        if self.filename is None:
            raise RequestError("file is missing; send it as a part with a filename", field="file")
        if purpose != INPUT_PURPOSE:
            message = "purpose is missing" if purpose is None else f"purpose={purpose[:32]!r} is not for this server"
            raise RequestError(f"{message}; send purpose={INPUT_PURPOSE}", field="purpose")
        check_anchor(given.get("expires_after[anchor]", "created_at"), "expires_after[anchor]")
        if seconds is None:
            return None
        keep_s = int(seconds) if seconds.isascii() and seconds.isdecimal() else 0
        if not _MIN_KEEP_S <= keep_s <= _MAX_KEEP_S:
            message = f"expires_after[seconds]={seconds[:20]} is not an integer from {_MIN_KEEP_S} to {_MAX_KEEP_S}"
            raise RequestError(message, field="expires_after[seconds]")
        return keep_s

    def _begin_part(self) -> None:
        self._part = _Part()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def _end_header(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            _kind, options = parse_options_header(bytes(part.header_value))
            part.name = options.get(b"name", b"").decode(errors="replace")
            filename = options.get(b"filename")
            part.filename = None if filename is None else filename.decode(errors="replace")
        part.header_name, part.header_value = bytearray(), bytearray()

    def _begin_content(self) -> None:
        part = self._part
        if part.name == "file" and part.filename is not None:
            if self.filename is not None:
                raise RequestError("file stands twice in the body; send one file in a request", field="file")
            self.filename = "".join(one for one in part.filename if one.isprintable())[:_MAX_NAME_CHARS]
        elif part.name not in _FIELDS:
            shown = (part.name or "")[:64]
            raise RequestError(f"{shown!r} is unknown; send file (with a filename) and purpose", field=shown or "body")
        elif part.name in self._fields:
            raise RequestError(f"{part.name} stands twice in the body; send it once", field=part.name)
        else:
            self._fields[part.name] = bytearray()

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self.content += data[start:end]
            return
        assert self._part.name is not None
        value = self._fields[self._part.name]
        value += data[start:end]
        if len(value) > _MAX_FIELD_BYTES:
            message = f"{self._part.name} is longer than {_MAX_FIELD_BYTES} bytes"
            raise RequestError(message, field=self._part.name)

    def _end(self) -> None:
        self._is_whole = True


def _malformed() -> RequestError:
    return RequestError("the body is not multipart/form-data as its boundary says", field="body")
