"""On whose behalf requests of batches run."""

from serve_app.errors import RateLimitedError
from serve_app.gateway.api_keys import ApiKeys, KeyHolder
from serve_app.gateway.batches.places import OPEN_OWNER, key_of_owner, owner_of_key
from serve_app.gateway.caller import CALLER
from serve_app.types.generation import LAST_PRIORITY


class OwnerGoneError(Exception):
    """The key of a batch's owner is not there any more."""


class BatchCaller:
    """A Caller whose requests come last. holder: of the key; None: no keys are used."""

    is_admin = False
    best_priority = LAST_PRIORITY

    def __init__(self, holder: KeyHolder | None) -> None:
        self.name = "" if holder is None else holder.name
        self._holder = holder

    def may_use(self, model: str) -> bool:
        """Whether the key is for this model."""
        return self._holder is None or self._holder.may_use(model)

    @property
    def tokens_per_minute(self) -> int | None:
        """See Caller."""
        return None if self._holder is None else self._holder.tokens_per_minute

    def reserve(self, num_input_tokens: int, num_output_tokens: int) -> int:
        """See Caller."""
        if self._holder is None:
            return num_input_tokens + num_output_tokens
        return self._holder.reserve(num_input_tokens, num_output_tokens)

    def settle(self, num_reserved: int, num_used: int) -> None:
        """See Caller."""
        if self._holder is not None:
            self._holder.settle(num_reserved, num_used)

    def seconds_until_free(self) -> float:
        """How long a request has to wait so that half of the key's minute is left to others; 0: it may begin."""
        try:
            if self._holder is not None:
                self._holder.enter_in_background()
        except RateLimitedError as error:
            return error.retry_after_s or 1.0
        return 0.0


def owner() -> str:
    """Whose files and batches the request's caller sees."""
    caller = CALLER.get()
    return OPEN_OWNER if caller is None else owner_of_key(caller.name)


def caller_of(owner: str, keys: ApiKeys | None) -> BatchCaller | None:
    """Who an owner's requests run for; None: there is no such key (any more)."""
    name = key_of_owner(owner)
    if keys is None:
        return BatchCaller(None) if name is None else None
    holder = None if name is None else keys.holder_named(name)
    return None if holder is None else BatchCaller(holder)
