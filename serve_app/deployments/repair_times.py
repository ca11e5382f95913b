"""Where the time of a repair goes: from the loss of a shard until the copy takes requests again."""

import logging
import time
from dataclasses import dataclass, field

from serve_app.types.shards import StartTimes

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RepairTimes:
    """Of one loss. Starts that fail meanwhile are in `all_s` alone."""

    noticed_s: float  # since that shard was heard that had been silent for longest
    left_s: float = 0.0  # until the shards that stay had left their group
    _lost_s: float = field(default_factory=time.monotonic, init=False)

    def log(self, model: str, epoch: int, start: StartTimes, allocated_s: float, warmed_up_s: float) -> None:
        """One line, when the copy is ready."""
        logger.info(
            "model copy repaired model=%s epoch=%d kept=%d noticed_s=%.1f left_s=%.1f processes_s=%.1f met_s=%.1f "
            "loaded_s=%.1f sized_s=%.1f warmed_up_s=%.1f all_s=%.1f",
            model,
            epoch,
            start.num_kept,
            self.noticed_s,
            self.left_s,
            start.processes_s,
            start.meet_s,
            start.load_s,
            start.measure_s + allocated_s,
            warmed_up_s,
            self.noticed_s + time.monotonic() - self._lost_s,
        )
