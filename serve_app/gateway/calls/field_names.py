"""Errors of a call in the words of the API that it came by."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serve_app.errors import RequestError


@contextmanager
def fields_named(names: Mapping[str, str], phrases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Inside, a RequestError for one of our fields is one for the client's. names: ours to theirs.

    phrases: what else to replace in messages, such as the advice to send a field.
    """
    try:
        yield
    except RequestError as error:
        ours = next((name for name in sorted(names, key=len, reverse=True) if _is_of(error.field, name)), None)
        if ours is None or error.field is None:
            raise
        message = re.sub(rf"(?<![\w.]){re.escape(ours)}(?!\w)", lambda _match: names[ours], error.message)
        for given, shown in (phrases or {}).items():
            message = message.replace(given, shown)
        raise type(error)(
            message, field=names[ours] + error.field[len(ours) :], retry_after_s=error.retry_after_s
        ) from error


def _is_of(field: str | None, name: str) -> bool:
    """Whether a field is this one, or a part of it."""
    return field is not None and field.startswith(name) and field[len(name) : len(name) + 1] in ("", ".", "[")
