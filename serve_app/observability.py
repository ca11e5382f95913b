"""Logging set-up of our processes. What they count is in serve_app/metrics."""

import logging
import sys


def configure_logging() -> None:
    """Send this project's log lines to standard error, where Ray collects them; may be called again."""
    logger = logging.getLogger("serve_app")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
