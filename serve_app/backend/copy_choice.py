"""Which copy of a model a request goes to: the one that holds its beginning, where that is worth more than balance.

A copy's cost is what it has to compute before the request is answered, in prompt tokens:

    cost = tokens of the prompt that it does not hold + (running + waiting) x tokens that a request takes on average

All copies compute equally fast, so that times, which are cost / rate, need no clock to be compared. Where nobody is
known to hold anything, consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016) chooses by the
session, or by the prompt's first blocks: several Gateways, which share nothing, agree on a copy unless it is too busy.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil
from typing import Final, Literal, Protocol, TypeVar

from serve_app.backend.held_prefixes import HeldPrefixes
from serve_app.backend.prompt_marks import RoutedPrompt

Reason = Literal["prefix", "session", "hash", "load"]
REASONS: Final[tuple[Reason, ...]] = ("prefix", "session", "hash", "load")

_MAX_MARKS = 262_144  # of all copies; some 150 bytes each
_MAX_SESSIONS = 16_384
_UNKNOWN_BLOCKS = 4096  # of a copy that has not told how many it has
_HASH_EXCESS = 1.25  # of the mean load, which a copy may have and still be chosen by the hash
_FIRST_GUESS_TOKENS = 256.0  # that a request takes, before any has ended
_SMOOTHING = 1 / 32


class Copy(Protocol):
    """A copy that can take a request."""

    @property
    def replica_id(self) -> str:
        """Its name."""
        ...

    @property
    def load(self) -> float:
        """Sequences that it runs, and those that wait there."""
        ...

    @property
    def num_blocks(self) -> int:
        """Of its KV cache; 0: not known."""
        ...


CopyT = TypeVar("CopyT", bound=Copy)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why."""

    replica_id: str
    reason: Reason
    num_held_tokens: int  # of the prompt, that need not be computed there as far as is known


@dataclass(slots=True)
class CopyChooser:
    """What one process knows of the copies of one model, from what it has sent to them."""

    num_choices: Counter[Reason] = field(default_factory=Counter)
    request_tokens: float = _FIRST_GUESS_TOKENS  # that a request takes: computed of its prompt, and drawn
    _held: dict[str, HeldPrefixes] = field(default_factory=dict)  # by copy
    _sessions: OrderedDict[bytes, str] = field(default_factory=OrderedDict)  # copy that has a session

    def choose(self, copies: Sequence[CopyT], prompt: RoutedPrompt) -> tuple[CopyT, Choice]:
        """One of the copies, of which there is at least one."""
        held = {copy.replica_id: self._num_held_tokens(copy, prompt) for copy in copies}
        home = self._session_home(copies, prompt)
        if home is None and not any(held.values()):
            return self._by_hash(copies, prompt)

        def cost(copy: CopyT) -> float:
            is_held = home is not None and copy.replica_id == home
            missing = 0 if is_held else prompt.num_tokens - held[copy.replica_id]
            return missing + copy.load * self.request_tokens

        best = min(_in_hash_order(copies, prompt.home_key), key=cost)
        name = best.replica_id
        if name == home:
            reason: Reason = "session"
        else:
            reason = "prefix" if held[name] and held[name] == max(held.values()) else "load"
        return best, Choice(name, reason, held[name])

    def note_sent(self, copy: Copy, prompt: RoutedPrompt, choice: Choice) -> None:
        """The request is on its way: what comes next with its beginning finds it there."""
        self.num_choices[choice.reason] += 1
        held = self._held.setdefault(copy.replica_id, HeldPrefixes())
        held.add(prompt.marks, copy.num_blocks or _UNKNOWN_BLOCKS, _MAX_MARKS // len(self._held))
        if prompt.session_key:
            self._sessions[prompt.session_key] = copy.replica_id
            self._sessions.move_to_end(prompt.session_key)
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)

    def note_ended(self, num_computed: int, num_drawn: int) -> None:
        """A request took so many tokens: of its prompt, and of its answers."""
        self.request_tokens += _SMOOTHING * (num_computed + num_drawn - self.request_tokens)

    def counts(self) -> dict[str, int]:
        """How often each reason has chosen, those that never did among them."""
        return {reason: self.num_choices[reason] for reason in REASONS}

    def forget(self, replica_id: str) -> None:
        """The copy is gone, or its KV cache is."""
        self._held.pop(replica_id, None)

    def _num_held_tokens(self, copy: Copy, prompt: RoutedPrompt) -> int:
        held = self._held.get(copy.replica_id)
        return 0 if held is None else held.num_held(prompt.marks) * prompt.block_size

    def _session_home(self, copies: Sequence[Copy], prompt: RoutedPrompt) -> str | None:
        """The copy that has the prompt's session, or to which every process would give it; None without a session."""
        if not prompt.session_key:
            return None
        known = self._sessions.get(prompt.session_key)
        if known is not None and any(copy.replica_id == known for copy in copies):
            return known
        return _in_hash_order(copies, prompt.session_key)[0].replica_id

    def _by_hash(self, copies: Sequence[CopyT], prompt: RoutedPrompt) -> tuple[CopyT, Choice]:
        if not prompt.home_key:
            best = min(copies, key=_load_of)
            return best, Choice(best.replica_id, "load", 0)
        most = ceil(_HASH_EXCESS * (sum(map(_load_of, copies)) + 1) / len(copies))
        in_order = _in_hash_order(copies, prompt.home_key)
        best = next((copy for copy in in_order if copy.load + 1 <= most), None) or min(in_order, key=_load_of)
        return best, Choice(best.replica_id, "hash" if best is in_order[0] else "load", 0)


def _load_of(copy: Copy) -> float:
    return copy.load


def _in_hash_order(copies: Sequence[CopyT], key: bytes) -> list[CopyT]:
    """Rendezvous hashing: all processes have the same order, and the loss of a copy moves nothing of the others."""
    return sorted(copies, key=lambda copy: blake2b(copy.replica_id.encode(), key=key, digest_size=8).digest())
