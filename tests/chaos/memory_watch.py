"""What the processes of a cluster take of memory while it serves."""

import asyncio
import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from tests.chaos.faulty_cluster import FaultyCluster

MOST_GROWTH = 1.1  # what a rebuild takes for a moment is no growth: medians of quarters are compared


@dataclass(slots=True)
class MemoryWatch:
    """Samples the proportional set size of all processes of a cluster, in bytes."""

    cluster: FaultyCluster
    period_s: float = 10.0
    samples: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(self.period_s)

    async def sample(self) -> int:
        """Take one more, in bytes."""
        self.samples.append(await asyncio.to_thread(_proportional_bytes, self.cluster))
        return self.samples[-1]


def medians_of_quarters(samples: Sequence[int]) -> list[int]:
    """The median of each quarter of a run; fewer than four samples have none."""
    length = len(samples) // 4
    if length == 0:
        return []
    return [round(statistics.median(samples[quarter * length : (quarter + 1) * length])) for quarter in range(4)]


def is_flat(samples: Sequence[int]) -> bool:
    """Whether the last quarter takes no more than the second, give or take; the first is still filling its caches."""
    quarters = medians_of_quarters(samples)
    return bool(quarters) and quarters[3] <= MOST_GROWTH * quarters[1]


def _proportional_bytes(cluster: FaultyCluster) -> int:
    total = 0
    for pid in cluster.all_pids():
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().pss
    return total
