"""When a soak counts as broken, what it kills, and when memory counts as flat."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.chaos.memory_watch import is_flat, medians_of_quarters
from tests.chaos.pressure import Pressed
from tests.chaos.soak import RandomKills, Soaked

GOOD = Soaked(20.0, 1, {"shard": 3}, 100, 0, "", 0, 12.0, [100, 110, 110, 111], True, 0)
PRESSED = Pressed(200, {"ended": 160, "left": 20, "429": 20}, num_blocks_held=0, num_requests_held=0)


class OneProcess:
    """A cluster of one process, whatever it is asked for as."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def pids(self, _title: str) -> list[int]:
        return [self._pid]


def test_a_soak_without_loss_is_whole() -> None:
    assert not GOOD.is_broken


@pytest.mark.parametrize(
    "change", [{"num_failed": 1}, {"num_changed": 1}, {"is_memory_flat": False}, {"kills": {}}, {"num_requests": 0}]
)
def test_a_soak_is_broken_by_each_loss_and_by_nothing_tried(change: dict[str, object]) -> None:
    assert replace(GOOD, **change).is_broken  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"outcomes": {"ended": 199, "ReadError": 1}},
        {"outcomes": {"429": 200}},
        {"num_without_retry_after": 1},
        {"num_short": 1},
        {"num_unhealthy": 1},
        {"num_blocks_held": 4},
        {"num_requests_held": None},
    ],
)
def test_pressure_is_broken_by_each_loss(change: dict[str, object]) -> None:
    assert not PRESSED.is_broken
    assert replace(PRESSED, **change).is_broken  # type: ignore[arg-type]


def test_memory_is_flat_when_the_last_quarter_is_like_the_second() -> None:
    assert medians_of_quarters([1, 2, 3, 4, 5, 6, 7, 8]) == [2, 4, 6, 8]
    assert is_flat([50, 50, 100, 300, 100, 100, 109, 109])
    assert not is_flat([50, 50, 100, 100, 110, 110, 112, 112])
    assert not is_flat([100, 100, 100])  # too short to tell


def test_a_random_kill_is_a_kill_and_is_counted() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        kills = RandomKills(OneProcess(process.pid), seed=1, period_s=0.0)  # type: ignore[arg-type]
        kills.kill_one()
        assert process.wait(10) == -signal.SIGKILL
        assert kills.counts.total() == 1
    finally:
        process.kill()
        process.communicate()
