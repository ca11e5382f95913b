"""One application that Serve runs: what its replicas have told, and how it is."""

import asyncio
import re
import time
from dataclasses import dataclass, field

from serve_app.backend.known_replicas import FRESH_S
from serve_app.backend.replica_calls import ReplicaCalls
from serve_app.types.models import CopyState, ModelDescription

ROUTER_NAME = "Router"
PREPROCESSOR_NAME = "Preprocessor"
GRAPH_NAME = "Graph"

_FIRST_WORD_S = 10.0  # until a copy that runs is to have described its model, and one that has, to have told its state
_LOOK_S = 5.0  # until Serve is to have said why a copy has left
_NUM_REGISTERED = 2  # through Serve for each change of its list: what leaves may answer the first time
_MAX_REASON_CHARS = 500  # of what Serve says
_TRACEBACK_FRAME = re.compile(r'^  File ".*(?:\n[ \t].*)*\n', re.MULTILINE)


@dataclass(slots=True)
class Application:
    """An application, and what its replicas have told."""

    name: str
    main: str  # the deployment that describes its models: Router or Graph
    calls: dict[str, ReplicaCalls] = field(default_factory=dict)  # by deployment
    status: str = ""
    message: str = ""
    room: str = ""  # why a replica, or a part of one, is not placed; empty: all are
    descriptions: list[ModelDescription] = field(default_factory=list)
    described_s: float = 0.0  # when it had them first
    has_spoken: bool = False  # a copy has told its state
    deployed_s: float | None = None  # when Serve said that its deploying had ended; None: not while this process looked
    left_s: float | None = None  # when the last ready copy has said that it takes no more calls; None: none has
    looked_s: float = 0.0  # when Serve was last asked
    registered_s: float = 0.0
    listed: frozenset[str] | None = None  # replicas that run, as Serve says; None: it does not
    registered: frozenset[str] | None = None  # what was listed when all were registered with last
    num_registered: int = 0  # how often, while that was listed
    registering: asyncio.Task[None] | None = None
    copies: dict[str, tuple[float, CopyState]] = field(default_factory=dict)  # of `main`: when it was told
    has_none: bool = False  # Serve keeps no replica of `main` at the moment

    def see(self, status: str, message: str, replicas: frozenset[str] | None) -> None:
        """Take over what Serve says of it."""
        if self.status in ("DEPLOYING", "DEPLOY_FAILED") and status == "RUNNING":
            self.deployed_s = time.monotonic()
        self.status, self.message, self.listed = status, message, replicas

    @property
    def labels(self) -> list[str]:
        """What health calls it: its models, or itself while it has not told them; a newcomer has none yet."""
        if self.is_newcomer:
            return []
        return [description.name for description in self.descriptions] or [self.name]

    @property
    def is_newcomer(self) -> bool:
        """Whether no copy has ever run, and that is not an outage: Serve is still at it, or has given up."""
        if self.descriptions:  # they come with an answer, the first state by a link that is being connected
            return not self.has_spoken and time.monotonic() - self.described_s < _FIRST_WORD_S
        if self.status == "RUNNING" and self.deployed_s is not None:  # it is being asked for its models
            return time.monotonic() - self.deployed_s < _FIRST_WORD_S
        return self.status in ("DEPLOYING", "DEPLOY_FAILED")

    @property
    def is_left(self) -> bool:
        """Whether its last copy has left and Serve was not asked since: it may be deleted, or sleep, and no outage."""
        return self.left_s is not None and self.looked_s <= self.left_s and time.monotonic() - self.left_s < _LOOK_S

    @property
    def is_settled(self) -> bool:
        """Whether no copy is looked for: none is being deployed, and no call waits for one."""
        if self.status == "DEPLOYING" or (not self.descriptions and self.status != "DEPLOY_FAILED"):
            return False
        return not self.has_calls or all(calls.num_ready for calls in self.calls.values())

    @property
    def is_calm(self) -> bool:
        """Whether nothing is known here that Serve would have to say more of: every copy that it listed is well."""
        if not self.is_settled or (self.left_s is not None and self.looked_s <= self.left_s):
            return False
        ready = [copy for copy in self.fresh_copies() if copy.state == "ready"]
        return self.has_none or (not self.has_strangers and 0 < len(ready) == len(self.copies))

    @property
    def has_strangers(self) -> bool:
        """Whether a replica may run that does not tell its state here, or describes other models than are known."""
        if self.listed is None or not self.descriptions or self.listed != self.registered:
            return True
        heard = frozenset[str]().union(*(calls.heard for calls in self.calls.values()))
        return self.num_registered < _NUM_REGISTERED or bool(self.listed - heard)

    @property
    def is_asleep(self) -> bool:
        """Whether it has no copy because nobody has asked, or the one that somebody waits for is starting."""
        return self.main in self.calls and self.calls[self.main].is_asleep

    @property
    def wants_copy(self) -> bool:
        """Whether a copy is to start without a request: one that sleeps is not known here yet."""
        return self.has_none and not self.descriptions

    @property
    def has_calls(self) -> bool:
        """Whether calls are under way."""
        return any(calls.num_calls for calls in self.calls.values())

    @property
    def is_routed(self) -> bool:
        """Whether copies of its model are chosen by what they hold."""
        is_wanted = any(description.routed_block_size is not None for description in self.descriptions)
        return is_wanted and ROUTER_NAME in self.calls

    @property
    def reason(self) -> str:
        """Why it waits for room, else the end of what Serve says, of a traceback the error; "" when that is nothing."""
        if self.room:
            return self.room
        return _TRACEBACK_FRAME.split(self.message)[-1].strip()[-_MAX_REASON_CHARS:]

    def leaves(self, told_s: float, known: CopyState, state: CopyState) -> bool:
        """Whether a copy that was ready when it told that has just said that it leaves, and no other one is ready."""
        was_ready = known.state == "ready" and time.monotonic() - told_s < FRESH_S
        return was_ready and state.state in ("draining", "gone") and not has_ready(self.fresh_copies())

    def excuse(self, late_s: float) -> None:
        """Take so long a silence for nothing."""
        now_s = time.monotonic()
        self.copies = {name: (min(told_s + late_s, now_s), state) for name, (told_s, state) in self.copies.items()}

    def fresh_copies(self) -> list[CopyState]:
        """Copies that have told their state just now."""
        now_s = time.monotonic()
        return [state for told_s, state in self.copies.values() if now_s - told_s < FRESH_S]


def has_ready(copies: list[CopyState]) -> bool:
    """Whether any of them takes calls."""
    return any(copy.state == "ready" for copy in copies)
