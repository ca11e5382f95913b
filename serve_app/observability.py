"""Logging set-up of our processes. What they count is in serve_app/metrics."""

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO

from serve_app.config.environment import read_environment

_TEXT_FORMAT = "%(levelname)s %(asctime)s %(name)s %(message)s"
_MAX_CAUSES = 4
_PERCENT_SIGN = "%%"
_TRACE_FIELDS = ("trace_id", "span_id")
_PLACEHOLDER = re.compile(rf"{_PERCENT_SIGN}|(?:\b(\w+)=)?%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")


def configure_logging(stream: TextIO = sys.stderr) -> None:
    """Send this project's log lines to standard error, where Ray collects them; may be called again.

    One JSON object a line where RAYSHARD_LOG_FORMAT=json asks for it. Raises ConfigError for another value.
    """
    logger = logging.getLogger("serve_app")
    if logger.handlers:
        return
    is_json = read_environment().log_format == "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter(_TEXT_FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def fault_text(error: BaseException) -> str:
    """An error that is not ours for the log: kind and frames of it and of its causes, for what it says may quote a
    prompt."""
    told: list[str] = []
    shown: BaseException | None = error
    while shown is not None and len(told) < _MAX_CAUSES:
        told.append(type(shown).__name__ + "\n" + "".join(traceback.format_tb(shown.__traceback__)).rstrip("\n"))
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return "\ncaused by ".join(told)


class JsonFormatter(logging.Formatter):
    """A line as one JSON object: time, level, logger, pid and message, and each `key=%s` of the event as a field.

    Of a traced request trace_id and span_id, too, which serve_app.tracing gives a record.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Without a line break."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        told |= {name: value for name in _TRACE_FIELDS if (value := getattr(record, name, None)) is not None}
        return json.dumps({**_fields(record), **told}, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    arguments = record.args if isinstance(record.args, tuple) else ()
    names = [match[1] for match in _PLACEHOLDER.finditer(str(record.msg)) if match[0] != _PERCENT_SIGN]
    return {name: value for name, value in zip(names, arguments, strict=False) if name}
