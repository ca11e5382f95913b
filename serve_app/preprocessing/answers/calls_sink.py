"""What is known of a request's tools, and where the calls go that are read of an answer."""

import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.preprocessing.answers.parts import CallDelta

_ID_CHARACTERS = string.ascii_letters + string.digits
_SHORT_ID_CHARS = 9  # what Mistral's chat templates ask for


def long_id() -> str:
    """An id as OpenAI's calls have."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """An id that Mistral's chat templates take."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_SHORT_ID_CHARS))


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools of one request."""

    parameters: Mapping[str, Mapping[str, Any]]  # by name: JSON schemas of their arguments
    is_parallel: bool = True  # an answer may have several calls; else it ends with its first
    new_id: Callable[[], str] = field(default=long_id)


class CallsSink:
    """The calls of one answer, one after the other."""

    def __init__(
        self, tools: OfferedTools, begin: Callable[[CallDelta], None], add: Callable[[int, str], None]
    ) -> None:
        self.tools = tools
        self.num_calls = 0
        self.is_full = False  # no further call is wanted
        self._begin = begin
        self._add = add

    def begin(self, name: str, call_id: str | None = None) -> None:
        """A call of one of the tools."""
        assert name in self.tools.parameters
        self._begin(CallDelta(self.num_calls, call_id or self.tools.new_id(), name))
        self.num_calls += 1

    def add(self, text: str) -> None:
        """A piece of the arguments of the call that has begun."""
        self._add(self.num_calls - 1, text)

    def end(self, *, is_cut: bool = False) -> None:
        """Nothing more belongs to the call. is_cut: because the answer ends in it."""
        self.is_full = not self.tools.is_parallel and not is_cut
