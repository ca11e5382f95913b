"""What a client is told of an error: of one that is not ours nothing but that there was one, and never where we run."""

import logging
import re

from serve_app.errors import InternalError, RayshardError, RequestError
from serve_app.observability import fault_text

logger = logging.getLogger(__name__)

_MAX_CHARS = 2000
_TERMINAL_CODE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursors (ECMA-48, 5.4)
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_IPV4 = r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]\d)"
_HEX = "[0-9a-f]{1,4}"
_IPV6 = (
    rf"(?<![\w:.])(?:{_HEX}:){{7}}{_HEX}(?![\w:])"
    rf"|(?<![\w:])(?:{_HEX}(?::{_HEX}){{0,6}})?::(?:{_HEX}(?::{_HEX}){{0,6}})?(?![\w:])"
)
_INNER = re.compile(
    r"<[^<>\n]{0,200}?\bat 0x[0-9a-f]+[^<>\n]{0,200}>"  # an object's representation
    r"|\b[\w.]+ object at 0x[0-9a-f]+"
    r"|\b0x[0-9a-f]{5,}"
    r"|\b(?:tcp|ipc|inproc|unix|grpc|ray|http)://[^\s'\"<>)\]]+"
    r"|\b(?:ip|host|node_ip_address|address|repr)=[^\s,)]+"
    r"|\b(?:p?pid|tid|process(?:[ _]?id)?)\b\s{0,3}[:=#(]{0,2}\s{0,3}\d+\)?"
    r"|\b\w{0,32}(?:id| id)\b\s{0,3}[(:=]?\s{0,3}['\"]?[0-9a-f]{8,}['\"]?\)?"
    rf"|\[?(?:{_IPV4}|{_IPV6})(?:%\w+)?(?:/\d{{1,3}})?\]?(?::\d{{1,5}}\b)?"
    r"|\b(?:localhost|[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}):\d{2,5}\b"
    r"|\b[0-9a-f]{24,}\b",  # ids of Ray's
    re.IGNORECASE,
)
_RAYS_PLACE = re.compile(r" ?\((?:pid|ip|actor_id|repr|…)[^()\n]{0,400}\)")  # (pid=…, ip=…, actor_id=…, repr=…)


def as_rayshard_error(error: Exception) -> RayshardError:
    """The error a client may see; one that is not ours is logged here, without what it says."""
    if isinstance(error, RayshardError):
        return error
    log_fault(error)
    return hidden_error(error)


def log_fault(error: Exception) -> None:
    """Log an error that is not ours, without what it says."""
    logger.error("request failed error=%s", fault_text(error))


def hidden_error(error: Exception) -> InternalError:
    """Stands for an error whose message is not for clients."""
    hidden = InternalError("the server failed on this request; see its log")
    hidden.__cause__ = error
    return hidden


def told_message(error: RayshardError) -> str:
    """The error's message as a client sees it; what is wrong with a request quotes it, terminal codes left out."""
    if isinstance(error, RequestError):
        return _TERMINAL_CODE.sub("", error.message)
    return without_places(error.message)


def without_places(text: str) -> str:
    """A text of other processes' without what tells where they run: process ids, addresses, ids of Ray's, object
    representations, terminal codes."""
    shown = _TERMINAL_CODE.sub("", text[:_MAX_CHARS])
    return _RAYS_PLACE.sub("", _INNER.sub("…", shown))
