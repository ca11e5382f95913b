"""Seconds in which a shard computes, by clocks that a test moves."""

from dataclasses import dataclass, field

import torch

from serve_app.engine.busy_time import DeviceBusyTime, HostBusyTime, busy_time_of


@dataclass(slots=True)
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_host_counts_from_begin_to_end_and_what_has_passed_of_the_step_at_hand() -> None:
    clock = Clock()
    busy = HostBusyTime(clock)
    clock.now_s += 7
    busy.begin()
    clock.now_s += 2
    assert busy.seconds == 2
    busy.end()
    clock.now_s += 50
    assert busy.seconds == 2
    busy.begin()
    clock.now_s += 1
    busy.begin()  # the step before has failed
    clock.now_s += 3
    busy.end()
    busy.end()
    assert busy.seconds == 5


@dataclass(slots=True)
class Device:
    """Comes to events one after the other, when a test says so."""

    now_ms: float = 0.0
    asked: "list[Mark]" = field(default_factory=list)

    def make_event(self) -> "Mark":
        return Mark(self)

    def reach(self, at_ms: float) -> None:
        self.now_ms = at_ms
        self.asked.pop(0).at_ms = at_ms


@dataclass(slots=True, eq=False)
class Mark:
    device: Device
    at_ms: float | None = None

    def record(self) -> None:
        self.device.asked.append(self)

    def query(self) -> bool:
        return self.at_ms is not None

    def elapsed_time(self, later: "Mark") -> float:
        assert self.at_ms is not None
        assert later.at_ms is not None
        return later.at_ms - self.at_ms


def test_a_device_counts_steps_that_it_has_come_to_the_end_of() -> None:
    device = Device()
    busy = DeviceBusyTime(device.make_event)
    for _ in range(2):
        busy.begin()
        busy.end()
    assert busy.seconds == 0  # both are launched, and nothing is waited for
    for at_ms in (1000, 3000, 3500):
        device.reach(at_ms)
    busy.begin()
    assert busy.seconds == 2
    device.reach(4000)
    busy.end()
    busy.begin()
    assert busy.seconds == 2.5


def test_a_host_tells_the_seconds_of_the_step_that_is_watched_alone() -> None:
    clock, told = Clock(), list[float]()
    busy = HostBusyTime(clock)
    for step_s in (1, 2, 4):
        if step_s == 2:
            busy.watch(told.append)
        busy.begin()
        clock.now_s += step_s
        busy.end()
    assert told == [2]


def test_a_device_tells_them_when_it_has_come_to_the_end() -> None:
    device, told = Device(), list[float]()
    busy = DeviceBusyTime(device.make_event)
    for is_watched in (False, True, False):
        if is_watched:
            busy.watch(told.append)
        busy.begin()
        busy.end()
    for at_ms in (0, 1000, 1500, 1750):
        device.reach(at_ms)
    busy.begin()
    assert told == [0.25]
    for at_ms in (2000, 9000):
        device.reach(at_ms)
    busy.begin()
    assert told == [0.25]


def test_a_cpu_is_counted_by_the_host() -> None:
    assert isinstance(busy_time_of(torch.device("cpu")), HostBusyTime)
