"""What a client is told of an error that is not ours: nothing but that there was one."""

import logging

from serve_app.errors import InternalError, RayshardError

logger = logging.getLogger(__name__)


def as_rayshard_error(error: Exception) -> RayshardError:
    """The error a client may see; one that is not ours is logged here."""
    if isinstance(error, RayshardError):
        return error
    logger.error("request failed", exc_info=error)
    return hidden_error(error)


def hidden_error(error: Exception) -> InternalError:
    """Stands for an error whose message is not for clients."""
    hidden = InternalError("the server failed on this request; see its log")
    hidden.__cause__ = error
    return hidden
