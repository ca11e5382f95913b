"""The replicas of one deployment, as they tell of themselves, and which of them may take a call."""

import time
from dataclasses import dataclass

from serve_app.backend.token_stream import TokenStream
from serve_app.types.links import LinkAddress
from serve_app.types.models import CopyState, ModelVersion

FRESH_S = 3.0  # a replica that has said nothing for that long is not given new calls
LOST_S = 5.0  # and after that long its calls are taken from it


@dataclass(slots=True, eq=False)
class Replica:
    """What one has told, and what this process has there."""

    replica_id: str
    address: LinkAddress
    told_s: float
    state: str  # as in CopyState
    version: ModelVersion | None
    num_calls: int = 0
    num_sequences: int = 0  # of those calls
    most_sequences: int = 0  # of this process, since it last told its state: what it tells may count any of them
    num_others: int = 0  # sequences of other processes, when it last told its state
    num_blocks: int = 0  # of its KV cache
    num_rebuilds: int = 0

    @property
    def load(self) -> float:
        """See Copy: what other processes have there is known as it was half a second ago."""
        return self.num_sequences + self.num_others

    def take(self, state: CopyState) -> bool:
        """Take over what it tells; whether it still has its KV cache."""
        has_cache = state.state == self.state and state.counts.num_rebuilds == self.num_rebuilds
        self.state, self.num_rebuilds = state.state, state.counts.num_rebuilds
        self.num_blocks = state.num_blocks
        self.num_others = max(0, state.num_running + state.num_waiting - self.most_sequences)
        self.most_sequences = self.num_sequences
        return has_cache or state.state == "draining"


class KnownReplicas:
    """Those that tell their state."""

    def __init__(self) -> None:
        self.by_id: dict[str, Replica] = {}

    def see(self, address: LinkAddress, state: CopyState, version: ModelVersion | None) -> bool:
        """Take over what a replica tells; whether it still has what calls have left in its KV cache."""
        known = self.by_id.get(state.replica_id)
        is_new = known is None
        if known is None:
            known = self.by_id[state.replica_id] = Replica(state.replica_id, address, 0.0, "", None)
        known.address, known.told_s, known.version = address, time.monotonic(), version
        return known.take(state) and not is_new

    def is_another(self, replica_id: str, address: LinkAddress) -> bool:
        """Whether another process than this one is known by the replica's name."""
        known = self.by_id.get(replica_id)
        return known is not None and known.address.server_key != address.server_key

    def take_silent(self, late_s: float) -> list[Replica]:
        """Those that have been silent for too long. late_s: how long this process itself has stood still."""
        now_s = time.monotonic()
        for replica in self.by_id.values():
            replica.told_s = min(replica.told_s + late_s, now_s)
        return [replica for replica in self.by_id.values() if now_s - replica.told_s > LOST_S]

    def fresh(self) -> list[Replica]:
        """Those that have told their state of late."""
        oldest_s = time.monotonic() - FRESH_S
        return [replica for replica in self.by_id.values() if replica.told_s > oldest_s]

    def ready(self, state: str = "ready") -> list[Replica]:
        """Those that take calls now, or are in another state; none that is silent."""
        oldest_s = time.monotonic() - FRESH_S
        return [replica for replica in self.by_id.values() if replica.state == state and replica.told_s > oldest_s]

    def fit(self, stream: TokenStream | None) -> list[Replica]:
        """Those that a call may go to now; none that is silent."""
        fit = [one for one in self.ready() if stream is None or stream.can_go_on_with(one.version)]
        if not fit and stream is not None and stream.has_begun:  # copies that leave are the last of their version
            fit = [one for one in self.ready("draining") if stream.can_go_on_with(one.version)]
        return fit

    def is_replaced(self, stream: TokenStream) -> bool:
        """Whether no copy lives that could go on with the stream, but another model of its name runs."""
        return bool(self.ready()) and not any(stream.can_go_on_with(one.version) for one in self.by_id.values())
