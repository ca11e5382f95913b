"""Who a request is from, for whatever runs on its behalf."""

from contextvars import ContextVar
from typing import Protocol

from serve_app.types.models import ModelDescription


class Caller(Protocol):
    """The holder of an API key."""

    name: str

    def may_use(self, model: str) -> bool:
        """Whether a model is there for this caller."""
        ...

    def charge(self, num_tokens: int) -> None:
        """Count tokens that went in or came out."""
        ...


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)  # None: everything is open


def visible(models: list[ModelDescription]) -> list[ModelDescription]:
    """The models that are there for the caller."""
    caller = CALLER.get()
    return models if caller is None else [model for model in models if caller.may_use(model.name)]


def may_see(model: str) -> bool:
    """Whether a model is there for the caller."""
    caller = CALLER.get()
    return caller is None or caller.may_use(model)


def charge(num_tokens: int) -> None:
    """Count tokens of the caller's."""
    caller = CALLER.get()
    if caller is not None:
        caller.charge(num_tokens)
