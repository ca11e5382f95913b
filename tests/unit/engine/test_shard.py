"""The order in which a group's shards load and measure, and what stays of one when another is lost."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from serve_app.engine.shard import EngineShard
from serve_app.engine.shard_loop import ShardLoop
from serve_app.parallel.communicator import Communicator
from serve_app.types.plans import MemoryTaken
from serve_app.types.shards import EngineLimits, Rendezvous, ShardReport, ShardSettings
from tests.checkpoints import make_checkpoint
from tests.plain_driver import Split, shard_settings

HOST = "127.0.0.1"


class SlowEngine:
    """Takes its time to load; measures only once all have loaded."""

    is_measured = True

    def __init__(self, load_s: float, loaded: list[float]) -> None:
        self._load_s = load_s
        self._loaded = loaded

    def load(self, _communicator: Communicator) -> ShardReport:
        time.sleep(self._load_s)
        self._loaded.append(self._load_s)
        return ShardReport(1, 0, 0.0)

    def measure(self) -> int:
        return len(self._loaded)

    def allocate(self, limits: EngineLimits) -> None:
        """Nothing."""

    def forget(self) -> None:
        """Nothing."""

    def memory_taken(self) -> MemoryTaken:
        """None."""
        return MemoryTaken(0, 0)

    def run(self, loop: ShardLoop) -> None:
        """Nothing."""


@pytest.mark.parametrize("split", [Split(2, 1), Split(1, 2)], ids=str)
def test_no_shard_measures_before_the_slowest_has_loaded(tmp_path: Path, split: Split) -> None:
    settings = shard_settings(make_checkpoint("llama", tmp_path), split)
    shards = [EngineShard(cast(ShardSettings, one), HOST) for one in settings]
    loaded: list[float] = []
    for index, shard in enumerate(shards):
        shard._engine = SlowEngine(0.3 * index, loaded)
    reports = load_all(shards)
    assert [report.num_blocks for report in reports] == [2, 2]


@pytest.mark.parametrize("split", [Split(2, 1), Split(1, 2)], ids=str)
def test_a_shard_that_stays_reads_nothing_again_and_measures_again(tmp_path: Path, split: Split) -> None:
    settings = shard_settings(make_checkpoint("llama", tmp_path), split)
    shards = [EngineShard(cast(ShardSettings, one), HOST) for one in settings]
    loaded: list[float] = []
    for shard in shards:
        shard._engine = SlowEngine(0.0, loaded)
    load_all(shards)
    shards[0] = EngineShard(cast(ShardSettings, settings[0]), HOST)
    shards[0]._engine = SlowEngine(0.0, loaded)
    shards[1].leave()
    shards[1].move(HOST)
    reports = load_all(shards)
    assert len(loaded) == 3
    assert reports[1].load_s == 0 < reports[0].load_s
    assert [report.num_blocks for report in reports] == [3, 3]


def load_all(shards: list[EngineShard]) -> list[ShardReport]:
    rendezvous = Rendezvous(HOST, shards[0].open_store(60.0), 60.0, 60.0)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda shard: shard.load(rendezvous), shards))
