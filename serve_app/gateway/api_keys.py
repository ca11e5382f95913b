"""API keys of a Gateway replica: who may come in, and how much. Limits count in each replica for itself."""

import hmac
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import (
    AmbiguousKeyError,
    ConfigError,
    RateLimitedError,
    TooManyTokensError,
    UnauthenticatedError,
)
from serve_app.gateway.caller import CALLER
from serve_app.gateway.key_file import KeyEntry, digest_of, key_id_of, read_key_file

logger = logging.getLogger(__name__)

_LOOK_S = 1.0  # between looks whether the file has changed
_MINUTE_S = 60.0


class KeyHolder:
    """One key and what it has used; a Caller."""

    def __init__(self, entry: KeyEntry, clock: Callable[[], float]) -> None:
        self.entry = entry
        self.name = entry.name
        self.num_running = 0
        self._requests = _Allowance(entry.requests_per_minute, clock)
        self._tokens = _Allowance(entry.tokens_per_minute, clock)

    @property
    def is_admin(self) -> bool:
        """See Caller."""
        return self.entry.is_admin

    def may_use(self, model: str) -> bool:
        """Whether the key is for this model."""
        return self.entry.models is None or model in self.entry.models

    @property
    def tokens_per_minute(self) -> int | None:
        """See Caller."""
        return self.entry.tokens_per_minute

    @property
    def best_priority(self) -> int:
        """See Caller."""
        return self.entry.best_priority

    def reserve(self, num_input_tokens: int, num_output_tokens: int) -> int:
        """See Caller."""
        limit, wanted = self.entry.tokens_per_minute, num_input_tokens + num_output_tokens
        if limit is not None and wanted > limit:
            room = limit - num_input_tokens
            advice = (
                f"ask for at most {room} (max_tokens, times n)" if num_output_tokens and room > 0 else "send less text"
            )
            raise TooManyTokensError(
                f"this request may use {wanted} tokens ({num_input_tokens} of them sent), and key {self.name} may use "
                f"{limit} in a minute; {advice}"
            )
        wait_s = self._tokens.seconds_until(wanted)
        if wait_s > 0:
            message = (
                f"this request may use {wanted} tokens, more than key {self.name} has left of this minute; "
                f"try again in {wait_s:.0f} s, or ask for fewer"
            )
            raise RateLimitedError(message, retry_after_s=wait_s)
        self._tokens.take(wanted)
        return wanted

    def settle(self, num_reserved: int, num_used: int) -> None:
        """See Caller."""
        self._tokens.take(num_used - num_reserved)

    def enter(self) -> None:
        """Count a request that begins. Raises RateLimitedError."""
        limit = self.entry.concurrency
        if limit is not None and self.num_running >= limit:
            message = f"key {self.name} has {limit} requests running, as many as it may; try again later"
            raise RateLimitedError(message, retry_after_s=1.0)
        for what, allowance in (("tokens", self._tokens), ("requests", self._requests)):
            wait_s = allowance.seconds_until(1)
            if wait_s > 0:
                message = f"key {self.name} has used its {what} of this minute; try again in {wait_s:.0f} s"
                raise RateLimitedError(message, retry_after_s=wait_s)
        self._requests.take(1)
        self.num_running += 1

    def enter_in_background(self) -> None:
        """Count a request that nobody waits for: it begins while half of the minute is left to those that begin now.

        Raises RateLimitedError.
        """
        for what, allowance, num_taken in (("tokens", self._tokens, 0), ("requests", self._requests, 1)):
            wait_s = allowance.seconds_until_half(num_taken)
            if wait_s > 0:
                message = f"key {self.name} has used half of its {what} of this minute; the rest is for other requests"
                raise RateLimitedError(message, retry_after_s=wait_s)
        self._requests.take(1)

    def change(self, entry: KeyEntry) -> None:
        """The key has a new line; what it has used stays used."""
        self.entry, self.name = entry, entry.name
        self._requests.change(entry.requests_per_minute)
        self._tokens.change(entry.tokens_per_minute)


class ApiKeys:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_s = clock()
        self._stamp = _stamp_of(path)
        self._holders = {key_id: KeyHolder(entry, clock) for key_id, entry in read_key_file(path).items()}

    @contextmanager
    def used(self, authorizations: Sequence[str]) -> Iterator[KeyHolder]:
        """The holder of the key in a request's `authorization` headers, while the request runs.

        Raises UnauthenticatedError, RateLimitedError.
        """
        holder = self.holder(authorizations)
        holder.enter()
        CALLER.set(holder)  # of this request's task alone
        try:
            yield holder
        finally:
            holder.num_running -= 1

    def holder(self, authorizations: Sequence[str]) -> KeyHolder:
        """The holder of the one key in a request's `authorization` headers. Raises UnauthenticatedError."""
        self._look()
        if len(authorizations) > 1:
            raise AmbiguousKeyError(
                f"{len(authorizations)} API keys were sent, by `authorization` or `x-api-key`; send one"
            )
        kind, _, key = next(iter(authorizations), "").strip().partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise UnauthenticatedError("no API key; send the header `Authorization: Bearer KEY`")
        key = key.strip()
        holder = self._holders.get(key_id_of(key) or "")
        known = holder.entry if holder is not None else _NOBODY
        if not hmac.compare_digest(digest_of(known.salt, key), known.digest) or holder is None:
            raise UnauthenticatedError("the API key is not known here; check it, or ask for a new one")
        return holder

    def holder_named(self, name: str) -> KeyHolder | None:
        """The holder of the key of this name; None: there is none."""
        self._look()
        return next((holder for holder in self._holders.values() if holder.name == name), None)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_s < _LOOK_S:
            return
        self._looked_s = now
        stamp = _stamp_of(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            entries = read_key_file(self._path)
        except ConfigError as error:
            logger.error("keys not read again, those before are in force: %s", error.message)
            return
        former, self._holders = self._holders, {}
        for key_id, entry in entries.items():
            holder = former.get(key_id) or KeyHolder(entry, self._clock)
            holder.change(entry)
            self._holders[key_id] = holder
        logger.info("keys read again num_keys=%d", len(entries))


class _Allowance:
    """So much in a minute, refilled evenly; it may be overdrawn by what is only known afterwards."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute or 0)
        self._told_s = clock()

    def change(self, per_minute: int | None) -> None:
        """Another limit; what is missing of a whole minute's stays missing."""
        self._refill()
        missing = 0.0 if self._per_minute is None else self._per_minute - self._left
        self._per_minute = per_minute
        self._left = (per_minute or 0) - missing

    def take(self, amount: int) -> None:
        """Use some; below 0, give some back."""
        self._refill()
        if self._per_minute is not None:
            self._left = min(float(self._per_minute), self._left - amount)

    def seconds_until(self, amount: int) -> float:
        """How long until there is so much again; 0: there is."""
        self._refill()
        if self._per_minute is None or self._left >= amount:
            return 0.0
        return (amount - self._left) * _MINUTE_S / self._per_minute

    def seconds_until_half(self, amount: int) -> float:
        """How long until half would be left after so much was taken; a limit of 1 is used whole."""
        return (
            0.0
            if self._per_minute is None
            else self.seconds_until(min(self._per_minute, self._per_minute // 2 + amount))
        )

    def _refill(self) -> None:
        now = self._clock()
        if self._per_minute is not None:
            gained = (now - self._told_s) * self._per_minute / _MINUTE_S
            self._left = min(float(self._per_minute), self._left + gained)
        self._told_s = now


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


_NOBODY = KeyEntry("", "", salt=b"\0" * 16, digest=b"\0" * 32)
