"""Who a request is from, for whatever runs on its behalf."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from serve_app.errors import RequestError
from serve_app.types.models import ModelDescription


class Caller(Protocol):
    """The holder of an API key."""

    name: str

    @property
    def is_admin(self) -> bool:
        """Whether this caller may see what is everybody's."""
        ...

    def may_use(self, model: str) -> bool:
        """Whether a model is there for this caller."""
        ...

    @property
    def tokens_per_minute(self) -> int | None:
        """As many as this caller may use; None: any number."""
        ...

    @property
    def best_priority(self) -> int:
        """The lowest number that this caller's requests may have."""
        ...

    def reserve(self, num_input_tokens: int, num_output_tokens: int) -> int:
        """Take the most tokens that a request may use before it runs; gives how many were taken.

        Raises RateLimitedError when so many are not left, TooManyTokensError when there never are.
        """
        ...

    def settle(self, num_reserved: int, num_used: int) -> None:
        """Give back what was reserved and not used; what was used beyond it is owed."""
        ...


@dataclass(slots=True)
class TokenUse:
    """What a request has really used."""

    num_tokens: int = 0


ADDRESS: ContextVar[str] = ContextVar("address", default="")  # the host that the request came from; "": not known
SESSION: ContextVar[str] = ContextVar("session", default="")  # what the request names as its conversation; "": nothing
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)  # None: everything is open


def visible(models: list[ModelDescription]) -> list[ModelDescription]:
    """The models that are there for the caller."""
    caller = CALLER.get()
    return models if caller is None else [model for model in models if caller.may_use(model.name)]


def may_see(model: str) -> bool:
    """Whether a model is there for the caller."""
    caller = CALLER.get()
    return caller is None or caller.may_use(model)


def is_admin() -> bool:
    """Whether the caller may see what is everybody's."""
    caller = CALLER.get()
    return caller is None or caller.is_admin


def cache_salt(asked: str | None = None) -> str:
    """What the caller's prompts are cached under: none finds, by the time an answer takes, what another has sent."""
    caller = CALLER.get()
    name = "" if caller is None else caller.name
    return f"{len(name)} {name}{asked or ''}" if name or asked else ""


def session(asked: str | None = None) -> str:
    """A digest of the conversation that a request belongs to, the caller's own; "": none is named.

    asked: by the body, before the header.
    """
    name = asked or SESSION.get()
    if not name:
        return ""
    return blake2b(f"{cache_salt()} {name}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


def owner() -> str:
    """Whose the caller's requests are, where those of several share a model: by key, or by host."""
    caller = CALLER.get()
    return f"host {ADDRESS.get()}" if caller is None else f"key {caller.name}"


def priority(asked: int | None) -> int:
    """The priority of a request of the caller's: what it asks for, or the key's. Raises RequestError."""
    caller = CALLER.get()
    if caller is None:
        return asked or 0
    best = caller.best_priority
    if asked is not None and asked < best:
        message = f"priority={asked} is before what key {caller.name} may ask for; send {best} or more"
        raise RequestError(message, field="priority")
    return max(0, best) if asked is None else asked


@contextmanager
def reserved(num_input_tokens: int, num_output_tokens: int = 0) -> Iterator[TokenUse]:
    """While a request of the caller's runs that may use so many tokens; what it has used is to be said in the end.

    Raises RateLimitedError.
    """
    caller, use = CALLER.get(), TokenUse()
    if caller is None:
        yield use
        return
    num_reserved = caller.reserve(num_input_tokens, num_output_tokens)
    try:
        yield use
    finally:
        caller.settle(num_reserved, use.num_tokens)


def estimated(num_tokens: int) -> int:
    """What to reserve for a request whose tokens are only guessed: no more than the caller may use in a minute."""
    caller = CALLER.get()
    limit = None if caller is None else caller.tokens_per_minute
    return num_tokens if limit is None else min(num_tokens, limit)


def output_allowance(num_prompt_tokens: int, num_choices: int) -> int | None:
    """Tokens that each choice may have where a request does not say how many; None: as many as the model can give."""
    caller = CALLER.get()
    limit = None if caller is None else caller.tokens_per_minute
    return None if limit is None else max(1, (limit - num_prompt_tokens) // num_choices)
