"""A model that cannot start says so in one line of the log, which `rayshard serve` shows at once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import RayshardError

logger = logging.getLogger(__name__)


@contextmanager
def told_failure(model: str) -> Iterator[None]:
    """Log why what is done within has failed; Serve tries again, and tells minutes later that it gives up."""
    try:
        yield
    except Exception as error:  # ours, Ray's, the user's class: whatever ends the start is told
        cause = getattr(error, "cause", None) or error  # what a shard has raised comes wrapped by Ray
        kind = type(cause).__name__
        reason = cause.message if isinstance(cause, RayshardError) else str(cause)
        logger.error("model cannot start model=%s kind=%s reason=%s", model, kind, " ".join(reason.split()))
        raise
