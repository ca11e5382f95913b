"""Serving for long while processes die: `python -m tests.chaos.soak`, `make soak`.

Eight clients stream chats at 80 % load over two copies of two shards, and every half minute a shard, a Router or
Serve's controller is killed, chosen at random. Exit status 1: a request has failed, a text differs from an undisturbed
run's, or memory has grown.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.chats import make_chats
from tests.chaos.event_stream import Answer
from tests.chaos.fault_run import run_undisturbed
from tests.chaos.faulty_cluster import CONTROLLER, ROUTER, SHARD, FaultyCluster, Layout
from tests.chaos.memory_watch import MemoryWatch, is_flat, medians_of_quarters
from tests.chaos.recovery import what_is_held
from tests.chaos.stream_clients import Manners, StreamClients
from tests.chaos.table import count_changed, kinds_of

_KINDS = {"shard": SHARD, "router": ROUTER, "controller": CONTROLLER}
_WEIGHTS = (6, 3, 1)
_NUM_CHATS = 200
_LOAD = Manners(rest=0.25)
_END_S = 300.0  # for what is still open when the time is over
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Soaked:
    """What came of it."""

    minutes: float
    seed: int
    kills: dict[str, int]
    num_requests: int
    num_failed: int
    failures: str
    num_changed: int
    longest_pause_s: float
    quarters_mib: list[int]  # proportional memory of all processes, the median of each quarter
    is_memory_flat: bool
    num_blocks_held: int | None

    @property
    def is_broken(self) -> bool:
        """Whether a promise is broken, or nothing was tried."""
        is_tried = self.num_requests > 0 and sum(self.kills.values()) > 0
        return not is_tried or self.num_failed > 0 or self.num_changed > 0 or not self.is_memory_flat


class RandomKills:
    """Kills one process of a cluster after the other."""

    def __init__(self, cluster: FaultyCluster, seed: int, period_s: float) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._period_s = period_s
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Kill until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            await asyncio.to_thread(self.kill_one)

    def kill_one(self) -> None:
        """Kill one process, if there is one of the kind that its turn has come for."""
        kind = self._random.choices(list(_KINDS), _WEIGHTS)[0]
        if pids := self._cluster.pids(_KINDS[kind]):
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(pids), signal.SIGKILL)
                self.counts[kind] += 1


async def soak(cluster: FaultyCluster, minutes: float, period_s: float, seed: int) -> Soaked:
    """Serve and kill for so long."""
    chats = make_chats(_NUM_CHATS)
    undisturbed = await run_undisturbed(cluster, chats, _END_S)
    kills, memory = RandomKills(cluster, seed, period_s), MemoryWatch(cluster)
    beside = [asyncio.create_task(kills.run()), asyncio.create_task(memory.run())]
    try:
        answers = await _load(cluster, chats, 60.0 * minutes)
    finally:
        for task in beside:
            task.cancel()
    held = await asyncio.to_thread(what_is_held, cluster)
    return Soaked(
        minutes=minutes,
        seed=seed,
        kills=dict(kills.counts),
        num_requests=len(answers),
        num_failed=sum(answer.failure is not None for answer in answers),
        failures=kinds_of(answers),
        num_changed=count_changed(answers, undisturbed.answers),
        longest_pause_s=round(max(answer.longest_pause_s for answer in answers), 1),
        quarters_mib=[median // _MIB for median in medians_of_quarters(memory.samples)],
        is_memory_flat=is_flat(memory.samples),
        num_blocks_held=None if held is None else held.num_blocks,
    )


async def _load(cluster: FaultyCluster, chats: Sequence[dict[str, Any]], min_s: float) -> list[Answer]:
    clients = StreamClients(cluster.url, time.monotonic() + min_s + _END_S, _LOAD)
    return await clients.run(chats, min_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, and print what came of it as JSON; the exit status."""
    options = _options(arguments)
    cluster = FaultyCluster(Layout(num_copies=2))
    try:
        soaked = asyncio.run(soak(cluster, options.minutes, options.kill_every_s, options.seed))
    finally:
        problem = cluster.end()
    text = json.dumps({**asdict(soaked), "end": problem}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return int(soaked.is_broken)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="default: %(default)g")
    parser.add_argument("--kill-every-s", type=float, default=30.0, metavar="S", help="default: %(default)g")
    parser.add_argument("--seed", type=int, default=1, help="which processes die, and in which order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
