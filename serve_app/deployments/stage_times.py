"""How long the stages of a copy have computed, as their shards tell it with each heartbeat."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.types.models import StageCounts


@dataclass(slots=True)
class _Shard:
    num_steps: int = 0  # of all epochs
    busy_s: float = 0.0
    told_steps: int = 0
    told_s: float = 0.0


class StageTimes:
    """Over all epochs. A shard begins anew at zero when its process does, or its cache: what falls has begun anew."""

    def __init__(self) -> None:
        self._shards: dict[int, _Shard] = {}

    def hear(self, shard: int, num_steps: int, busy_s: float) -> None:
        """A shard has done so many steps, and computed for so long, since it began."""
        known = self._shards.setdefault(shard, _Shard())
        known.num_steps += num_steps - known.told_steps if num_steps >= known.told_steps else num_steps
        known.busy_s += busy_s - known.told_s if busy_s >= known.told_s else busy_s
        known.told_steps, known.told_s = num_steps, busy_s

    def counts(self, stages: Sequence[int]) -> list[StageCounts]:
        """By stage; of its ranks, which do the same steps, the most. stages: of each shard."""
        if not self._shards:
            return []
        of_stages: dict[int, list[_Shard]] = {stage: [] for stage in sorted(set(stages))}
        for shard, known in self._shards.items():
            of_stages[stages[shard]].append(known)
        return [
            StageCounts(
                max((one.num_steps for one in ranks), default=0), max((one.busy_s for one in ranks), default=0.0)
            )
            for ranks in of_stages.values()
        ]
